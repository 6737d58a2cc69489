"""What a language model is made to say of texts: how they are measured, and what rows that it cannot read cost the others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from language_case import SENTENCES, family, objectives, pipeline
from luban.artefact import Artefact
from luban.data.pipeline import Pipeline
from luban.data.processors.text import Text
from luban.errors import ArtefactError, InputError
from luban.evaluation.language import LanguageCollector
from luban.evaluation.run import evaluate
from luban.generation.options import Generation
from luban.generation.reader import Piece
from luban.generation.score import score
from luban.language import Score, Speaker
from luban.objectives.causal_lm import CausalLM
from luban.objectives.masked_lm import MaskedLM
from luban.predict import Predictor, _objective_of
from luban.recipe import Component
from luban.verbs.predict import predict


def speaker_of(causal: bool, objective: Component | None = None, **options: Any) -> Speaker:
    torch.manual_seed(0)
    _, spec = objectives(64, {"type": "causal_lm" if causal else "masked_lm"}, causal=causal)
    module = family("gpt2" if causal else "bert", **options).build(spec).eval()
    return Speaker(module, Pipeline(pipeline(causal).inputs, {}), spec, torch.device("cpu"), objective)


LONG = " ".join(SENTENCES * 6)


@pytest.mark.parametrize("causal", [True, False])
def test_max_length_cuts_nothing_that_is_measured(causal: bool) -> None:
    speaker = speaker_of(causal)
    whole = speaker.measure(pl.Series([LONG]))
    text = speaker.text.model_copy(update={"max_length": 16})
    assert isinstance(text, Text)
    speaker.text = text
    assert speaker.measure(pl.Series([LONG])) == whole
    assert not text.counts()


def test_the_first_token_is_not_predicted_and_its_bytes_do_not_count() -> None:
    speaker = speaker_of(causal=True)
    texts = ["", "a", *SENTENCES, "😀", " so"]
    for text, one in zip(texts, speaker.measure(pl.Series(texts)), strict=True):
        ids = speaker.text.trained.encode(text).ids
        predicted = sum(len(speaker.text.trained.id_to_token(i) or "") for i in ids[1:])  # a sign is a byte
        assert (one.tokens, one.bytes) == (len(ids), predicted), text  # the end is predicted, and has no byte


def test_the_objective_says_how_texts_are_measured() -> None:
    short, usual = speaker_of(True, CausalLM(length=8)), speaker_of(True)
    assert (short.objective.length, usual.objective.length) == (8, 256)
    assert short.measure(pl.Series([LONG])) != usual.measure(pl.Series([LONG]))
    many, few = speaker_of(False, MaskedLM(share=0.5)), speaker_of(False, MaskedLM(share=0.1))
    assert many.measure(pl.Series([LONG]))[0].tokens > 3 * few.measure(pl.Series([LONG]))[0].tokens
    assert speaker_of(True, max_positions=4).objective.length == 4


@pytest.mark.parametrize(
    ("recipe", "kind", "length"),
    [
        ("objective: {type: causal_lm, length: 40, column: text}", "causal_lm", 40),
        ("objective: [{type: next_sentence}, {type: masked_lm, length: 50}]", "masked_lm", 50),
        ("objective: {type: adversarial, objective: {type: causal_lm, length: 60}}", "causal_lm", 60),
        ("objective: causal_lm", "causal_lm", None),
        ("objective: {type: cross_entropy}", None, None),
        ("", None, None),
    ],
)
def test_the_objective_of_an_artefact(recipe: str, kind: str | None, length: int | None) -> None:
    artefact = Artefact(Path("x"), family("gpt2"), [], pipeline(True).spec, pipeline(True), recipe)
    found = _objective_of(artefact)
    assert (None if found is None else found.type) == kind
    assert getattr(found, "length", None) == length
    with pytest.raises(ArtefactError, match="names no objective"):
        _objective_of(replace(artefact, recipe="objective: {type: causal_lm, length: two}"))


def test_what_is_hidden_of_a_text_depends_on_nothing_beside_it() -> None:
    speaker = speaker_of(False, MaskedLM(whole_word=True))
    alone = [speaker.measure(pl.Series([text]))[0] for text in SENTENCES]
    for order in (SENTENCES, SENTENCES[::-1]):
        together = speaker.measure(pl.Series(order))
        expected = alone if order is SENTENCES else alone[::-1]
        assert [one.tokens for one in together] == [one.tokens for one in expected]
        assert [one.loss for one in together] == pytest.approx([one.loss for one in expected], rel=1e-5)


def test_a_bad_row_costs_no_other_row() -> None:
    speaker = speaker_of(True, max_positions=64)
    texts = ["Yes.", LONG, "No, because", "今天", LONG, "A"]
    options = Generation(max_tokens=6, temperature=1.0, seed=3)
    pieces: list[Piece] = []
    found = speaker.predict(texts, options, on_piece=pieces.append, first=32)
    assert ["error" in one for one in found] == [False, True, False, False, True, False]
    assert "64 positions" in found[1]["error"]
    good = speaker.predict([text if text != LONG else "B" for text in texts], options, first=32)
    for i in (0, 2, 3, 5):
        assert found[i]["completion"] == good[i]["completion"]
        assert found[i]["completion"] == "".join(piece.text for piece in pieces if piece.row == 32 + i)
    chosen = speaker.predict(texts, candidates=["yes", "no"])
    assert ["error" in one for one in chosen] == ["error" in one for one in found]
    assert chosen[2]["answer.scores"] == pytest.approx(
        speaker.predict(texts[2:3], candidates=["yes", "no"])[0]["answer.scores"], rel=1e-4
    )
    filled = speaker_of(False, max_positions=64).predict(["The [MASK].", f"{LONG} [MASK]", "Yes."])
    assert ["error" in one for one in filled] == [False, True, False]


def test_rows_beyond_a_chunk_have_their_own_numbers_and_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luban.predict._SPOKEN", 2)
    speaker = speaker_of(True)
    predictor = Predictor(speaker.module, speaker.pipeline, speaker.spec, speaker.device)
    pieces: list[Piece] = []
    how = {"max_tokens": 12, "temperature": 2.0, "seed": 1}
    found = predictor.predict([{"text": "Yes"}] * 5, generation=how, on_piece=pieces.append)
    assert len({one["completion"] for one in found}) == 5
    assert {piece.row for piece in pieces} == set(range(5))
    monkeypatch.setattr("luban.predict._SPOKEN", 32)
    again = predictor.predict([{"text": "Yes"}] * 5, generation=how)
    assert [one["completion"] for one in again] == [one["completion"] for one in found]


def test_candidates_that_cannot_be_chosen_from() -> None:
    speaker = speaker_of(True)
    with pytest.raises(InputError, match="options of generation would do nothing"):
        speaker.predict(["a"], Generation(), ["b"])
    with pytest.raises(InputError, match="'b' is there more than once"):
        speaker.predict(["a"], candidates=["b", "c", "b"])
    with pytest.raises(InputError, match="has no token"):
        speaker.predict(["a"], candidates=["b", ""])


def test_no_end_of_an_interval_leaves_what_a_perplexity_can_be() -> None:
    collector = LanguageCollector(causal=True)
    draws = np.random.default_rng(0)
    collector.update([Score(float(draws.exponential(900)) if i == 0 else 1.0, 10, 30) for i in range(12)])
    metrics = collector.compute(count=300).metrics
    loss, perplexity = metrics["loss"], metrics["perplexity"]
    for end in ("low", "value", "high"):
        assert getattr(perplexity, end) == pytest.approx(math.exp(getattr(loss, end)))
    assert perplexity.low is not None
    assert perplexity.low >= 1


def test_candidates_may_be_compared_by_their_tokens() -> None:
    speaker = speaker_of(True)
    answers = ["no", "because the carpenter measured twice and cut once"]
    (whole,) = speaker.predict(["Yes,"], candidates=answers)
    (mean,) = speaker.predict(["Yes,"], candidates=answers, per_token=True)
    ids = [speaker.text.trained.encode(one, add_special_tokens=False).ids for one in answers]
    prompt = speaker.prompt("Yes,")
    for found, how in ((whole, "sum"), (mean, "mean")):
        expected = score(speaker.module, [prompt], ids, how=how).softmax(1)[0]  # type: ignore[arg-type]
        assert list(found["answer.scores"].values()) == pytest.approx(expected.tolist(), rel=1e-5)
    assert mean["answer.scores"][answers[1]] > whole["answer.scores"][answers[1]] + 0.1
    predictor = Predictor(speaker.module, speaker.pipeline, speaker.spec, speaker.device)
    assert predictor.predict([{"text": "Yes,"}], candidates=answers, per_token=True) == [mean]
    with pytest.raises(InputError, match="no candidates that could be compared per token"):
        predictor.predict([{"text": "Yes,"}], per_token=True)


def test_a_masked_model_refuses_what_it_cannot_do() -> None:
    speaker = speaker_of(False)
    predictor = Predictor(speaker.module, speaker.pipeline, speaker.spec, speaker.device)
    row = [{"text": "The [MASK]."}]
    (own,) = predictor.predict(row)
    assert "fills" in own
    for asked in ({"per_token": True}, {"candidates": ["a"]}, {"generation": {"max_tokens": 3}}):
        with pytest.raises(InputError, match="neither continues texts nor scores answers"):
            predictor.predict(row, **asked)  # type: ignore[arg-type]


def test_a_stream_of_rows_goes_on_counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row beyond a chunk repeats the draws of no row before it."""
    speaker = speaker_of(True)
    predictor = Predictor(speaker.module, speaker.pipeline, speaker.spec, speaker.device)
    monkeypatch.setattr("luban.verbs.predict.Artefact.load", lambda path: path)
    monkeypatch.setattr("luban.verbs.predict.of_artefact", lambda *args, **kwargs: predictor)
    monkeypatch.setattr(
        "luban.verbs.predict.chunks_of",
        lambda data, columns: (pl.DataFrame({"text": ["Yes"] * 2}) for _ in range(3)),
    )
    pieces: list[Piece] = []
    how = ["max_tokens=12", "temperature=2.0", "seed=1"]
    found = list(predict("any", "rows.csv", how, on_piece=pieces.append))
    assert len({one["completion"] for one in found}) == 6
    assert {piece.row for piece in pieces} == set(range(6))
    whole = predictor.predict(
        [{"text": "Yes"}] * 6, generation={"max_tokens": 12, "temperature": 2.0, "seed": 1}
    )
    assert [one["completion"] for one in whole] == [one["completion"] for one in found]


def test_weights_of_rows_count_where_texts_are_measured() -> None:
    """A row of weight 2 is worth two rows, and one of weight 0 none; a weight that makes no sense is said."""
    speaker = speaker_of(True)
    inputs = Pipeline(speaker.pipeline.inputs, {}, weight="often")
    predictor = Predictor(speaker.module, inputs, speaker.spec, speaker.device)
    rows = pl.DataFrame({"text": SENTENCES[:4], "often": [2.0, 0.5, 0.0, -1.0], "by": ["a", "b", "a", "b"]})
    found = evaluate(predictor, [rows], by=["by"], resamples=30)
    one, other = speaker.measure(pl.Series(SENTENCES[:2]))
    for name, unit in (("loss", "tokens"), ("bits_per_byte", "bytes")):
        scale = 1 / math.log(2) if unit == "bytes" else 1.0
        expected = (2 * one.loss + 0.5 * other.loss) / (2 * getattr(one, unit) + 0.5 * getattr(other, unit))
        assert found.targets["text"].metrics[name].value == pytest.approx(scale * expected, rel=1e-6)
    assert found.slices["by"]["b"]["text"].metrics["loss"].value == pytest.approx(
        other.loss / other.tokens, rel=1e-6
    )
    assert found.cleaned == {"often: weight missing or negative, taken as 0": 1}
    assert found.targets["text"].details["tokens"] == sum(
        one.tokens for one in speaker.measure(pl.Series(SENTENCES[:4]))
    )
