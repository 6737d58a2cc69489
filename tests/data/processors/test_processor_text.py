"""Texts: tokens, lengths, and two fits of the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.contracts import Flat
from luban.data.processors import text as module
from luban.data.processors.text import Text
from luban.errors import DataError
from luban.testing import check_processor

TEXTS = [
    "The room was good, the staff was slow.",
    "服务很好，房间不错",
    "Good room 101!",
    "早餐一般 good",
    "the the the",
]
KINDS = ["char", "word", "bpe", "wordpiece", "unigram"]


def fitted(values: Any = TEXTS, **options: Any) -> Text:
    processor = Text(**{"min_count": 1, "vocabulary": 400, **options})
    processor.update(pl.Series(values))
    processor.finish()
    return processor


def ids(processor: Text, texts: list[str | None]) -> list[list[int]]:
    encoded = processor.encode(pl.Series(texts, dtype=pl.String))["ids"]
    assert isinstance(encoded, Flat)
    return [part.tolist() for part in np.split(encoded.values, encoded.offsets[1:-1])]


def tokens(processor: Text, text: str) -> list[str]:
    return [processor.trained.id_to_token(i) for i in ids(processor, [text])[0]]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("char", "好 Ab", ["好", "a", "b"]),
        ("word", "Good room，很好 101", ["good", "room", ",", "很", "好", "101"]),
        ("wordpiece", "good 服务", ["good", "服", "务"]),
    ],
)
def test_tokens(kind: str, text: str, expected: list[str]) -> None:
    assert tokens(fitted([text] * 3, tokens=kind), text) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_and_empty_texts_have_no_tokens(kind: str) -> None:
    assert ids(fitted(tokens=kind), [None, ""]) == [[], []]


@pytest.mark.parametrize("kind", KINDS[:4])
def test_two_fits_of_the_same_texts_are_equal(kind: str) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcdefgh 好评差"), 30)) for _ in range(200)]
    # More characters seen equally often than an alphabet holds, and symbols inside words.
    rare = [chr(0x4E00 + i) for i in range(400)] + [f"{a}℃{b}" for a in "abcdefgh" for b in "stuvwxyz"]
    for values in (texts, rare * 2):
        states = {json.dumps(fitted(values, tokens=kind, min_count=2).state()) for _ in range(4)}
        assert len(states) == 1


def test_a_script_of_many_syllables_leaves_room_for_pieces() -> None:
    """Each is a token where a word begins and another inside one, and all are no more than were asked for."""
    generator = np.random.default_rng(0)
    syllables = [chr(0xAC00 + 7 * i) for i in range(400)]
    texts = [" ".join(["".join(generator.choice(syllables, 3)), "하였다"]) for _ in range(600)]
    text = fitted(texts, tokens="wordpiece", vocabulary=500)
    assert text.trained.get_vocab_size() <= 500
    assert "하였다" in text.trained.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_restored_it_encodes_alike(kind: str) -> None:
    processor, again = fitted(tokens=kind, special=True), Text(tokens=kind, special=True)
    again.restore(json.loads(json.dumps(processor.state())))
    assert ids(again, [*TEXTS, "new words 新词"]) == ids(processor, [*TEXTS, "new words 新词"])


def test_word_pieces_know_more_than_a_thousand_characters() -> None:
    characters = [chr(0x4E00 + i) for i in range(2000)]
    processor = fitted(characters * 2, tokens="wordpiece", vocabulary=4000)
    unknown = processor.trained.token_to_id("[UNK]")
    assert [unknown] not in ids(processor, list(characters))


def test_word_pieces_have_no_other_special_tokens() -> None:
    processor = fitted(["abc abd abe"] * 3, tokens="wordpiece")
    assert "##b" not in tokens(processor, "a ##b")
    assert "##b" in processor.trained.get_vocab()


def test_byte_level_tokens_lose_nothing() -> None:
    processor = fitted(tokens="bpe", lowercase=False)
    for text in ("Ümläut 😀\t\x00 好", "  two  spaces "):
        assert processor.trained.decode(ids(processor, [text])[0]) == text


def test_cuts_are_counted() -> None:
    processor = fitted(max_length=3)
    assert [len(row) for row in ids(processor, ["good", "the", None, "abcdefg"])] == [3, 3, 0, 3]
    assert processor.counts() == {"texts cut to max_length": 2, "tokens cut": 5}
    assert processor.counts() == {}


def test_special_tokens_stand_around_each_text() -> None:
    processor = fitted(special=True)
    assert tokens(processor, "go") == ["[CLS]", "g", "o", "[SEP]"]
    assert len(ids(processor, [None])[0]) == 2


def test_a_tokenizer_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(fitted().trained.to_str(), encoding="utf-8")
    for place in (path, tmp_path):
        given_one = Text(tokenizer=str(place))
        given_one.update(pl.Series(["ignored"]))
        given_one.finish()
        assert ids(given_one, TEXTS) == ids(fitted(), TEXTS)
    with pytest.raises(DataError, match="there is no tokenizer"):
        fitted(tokenizer=str(tmp_path / "other.json"))
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"is no tokenizer\.json"):
        fitted(tokenizer=str(path))


def test_nothing_to_fit() -> None:
    with pytest.raises(DataError, match="holds any text"):
        fitted([None, "", "  "])


def test_the_sample_of_a_large_text_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAMPLE_BYTES", 200)
    texts = [f"w{i}" for i in range(1000)]
    whole, parts = Text(tokens="word", min_count=1), Text(tokens="word", min_count=1)
    whole.update(pl.Series(texts))
    for start in range(0, 1000, 17):
        parts.update(pl.Series(texts[start : start + 17]))
    assert whole._texts == parts._texts
    assert 40 < len(whole._texts) < 120
    assert len(set(whole._texts) - set(texts[:200])) > 20


unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(st.one_of(st.none(), unicode), max_size=8),
    kind=st.sampled_from(KINDS[:4]),
    special=st.booleans(),
    lowercase=st.booleans(),
)
def test_any_texts(cells: list[str | None], kind: Any, special: bool, lowercase: bool) -> None:
    processor = Text(
        tokens=kind, special=special, lowercase=lowercase, min_count=1, vocabulary=300, max_length=16
    )
    check_processor(processor, pl.Series("c", [*cells, "好 word", "x"], dtype=pl.String))
