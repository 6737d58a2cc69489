"""Tokens stand where they are said to stand, in the text that the user gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explain_case import TEXTS, predictor
from luban.data.processors.text import Text
from luban.explaining._case import Case
from luban.explaining._text import by_word, moved, pieces_of, words_of
from luban.explaining.gradient_x_input import GradientXInput
from luban.recipe import Section

KINDS: list[dict[str, Any]] = [
    {"tokens": "bpe", "vocabulary": 280, "lowercase": False},
    {"tokens": "bpe", "vocabulary": 280, "end": True, "max_length": 9},
    {"tokens": "wordpiece", "vocabulary": 120, "special": True, "min_count": 1},
    {"tokens": "wordpiece", "vocabulary": 120, "special": True, "max_length": 6},
    {"tokens": "char"},
    {"tokens": "word", "special": True, "end": True},
    {"tokens": "unigram", "byte_fallback": True, "normalize": "none", "vocabulary": 300},
    {"tokens": "char", "byte_fallback": True, "normalize": "none"},
]
FITTED: list[Text] = []
for options in KINDS:
    text = Text(**options)
    text.update(pl.Series(TEXTS))
    text.finish()
    FITTED.append(text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(range(len(KINDS))), st.text(max_size=24) | st.sampled_from(TEXTS))
def test_there_is_a_place_for_each_token_and_pieces_are_what_stands_there(kind: int, words: str) -> None:
    text = FITTED[kind]
    words = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids: Any = text.encode_texts([words])["ids"]
    (places,) = text.places([words])
    assert len(places) == len(ids.values)
    pieces = pieces_of(text, ids.values.tolist(), places, words, words)
    assert len(pieces.groups) == len(places)
    end = 0
    for piece, special in zip(pieces.pieces, pieces.special, strict=True):
        if special:
            assert piece.start == piece.end
            continue
        assert piece.start >= end, "pieces do not overlap"
        assert words[piece.start : piece.end] == piece.text
        end = piece.end
    values = np.arange(float(len(places)))
    assert pieces.gather(values).sum() == pytest.approx(values.sum())
    merged = by_word(pieces)
    assert merged.gather(values).sum() == pytest.approx(values.sum())


def test_bytes_of_a_character_are_one_piece() -> None:
    text = FITTED[0]
    words = "ok 🎈 鲁班"
    ids: Any = text.encode_texts([words])["ids"]
    pieces = pieces_of(text, ids.values.tolist(), text.places([words])[0], words, words)
    assert len(ids.values) > len(words)
    assert [piece.text for piece in pieces.pieces if "🎈" in piece.text] != []
    assert all("\ufffd" not in piece.text for piece in pieces.pieces)
    assert "".join(piece.text for piece in pieces.pieces).replace(" ", "") == words.replace(" ", "")


def test_words_are_runs_of_letters_single_cjk_characters_and_signs() -> None:
    text = FITTED[0]
    words = "Don't read 鲁班 2026!"
    ids: Any = text.encode_texts([words])["ids"]
    whole = by_word(pieces_of(text, ids.values.tolist(), text.places([words])[0], words, words))
    assert [piece.text.strip() for piece in whole.pieces] == ["Don't", "read", "鲁", "班", "2026", "!"]
    assert words_of(whole).tolist() == list(range(6))


def test_places_move_back_through_cleaning() -> None:
    assert moved([(0, 4), (5, 8)], "good 1!!", "<b>good</b>  １！！") == [(3, 7), (13, 16)]
    assert moved([(0, 1)], "abc", "完全不同的句子") is None
    assert moved([(0, 0), (0, 2)], "ab", "ab") == [(0, 0), (0, 2)]


def test_a_cleaned_text_is_explained_as_it_was_given() -> None:
    given = ["<p>Good　ＴＯＯＬ</p> 👍", "bad\x07 tool  "]
    rows = pl.DataFrame({"review": given, "label": ["a", "b"]})
    own = predictor(["review"], "label", {"type": "rnn", "size": "tiny"}, rows=rows)
    own.pipeline.cleaners = [Section("cleaning").parse({"type": "text", "html": True, "width": "half"})]  # type: ignore[list-item]
    case = Case.of(own, rows)
    for one, shown in zip(GradientXInput().explain(case), given, strict=True):
        part = one.parts["review"]
        assert part.shown == shown
        assert part.of_original
        for piece in part.pieces:
            assert piece.start == piece.end or shown[piece.start : piece.end] == piece.text
    assert "ＴＯＯＬ" in "".join(p.text for p in GradientXInput().explain(case)[0].parts["review"].pieces)
