"""Rows that are read again are those that the artefact was made of, or it is said why they are not there; which rows are shown."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from luban import recipe
from luban.artefact import Artefact
from luban.data.prepare import prepare
from luban.data.sampling import Reservoir, Sample
from luban.origin import Origin, Unknown
from luban.recipe import read_yaml
from luban.reporting._columns import summary
from luban.reporting._examples import choose
from luban.reporting._shown import pieces_of


def find(artefact: Artefact) -> Origin | Unknown:
    return Origin.find(artefact.recipe, artefact.lineage, artefact.pipeline)


def joined(chunks: Any) -> pl.DataFrame:
    parts = list(chunks)
    return pl.concat(parts) if parts else pl.DataFrame()


@pytest.mark.parametrize("kind", ["table", "texts"])
def test_rows_of_each_split_are_those_of_the_training(kind: str, artefact_of: Any) -> None:
    artefact = Artefact.load(artefact_of(kind))
    own = find(artefact)
    assert isinstance(own, Origin)
    prepared = prepare(recipe.load(read_yaml(artefact.recipe).data).data)
    for split in ("validation", "test"):
        assert joined(own.split(split)).to_dicts() == joined(prepared.raw(split)).to_dicts(), split
    dropped = sum(n for what, n in artefact.lineage["prepared"]["counts"].items() if what.endswith("dropped"))
    assert len(joined(own.split("train"))) == artefact.lineage["rows"]["train"] + dropped
    assert (dropped > 0) == (kind == "table")


def changed(folder: Path, tmp_path: Path, old: str, new: str) -> Artefact:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return Artefact.load(copy)


def test_data_that_changed_or_went_away_or_lies_elsewhere_is_not_taken(
    artefact_of: Any, tmp_path: Path
) -> None:
    folder = artefact_of("texts")
    reviews = folder.parent / "reviews.jsonl"
    other = tmp_path / "other.jsonl"
    other.write_text(
        reviews.read_text(encoding="utf-8") + '{"review": "更多", "label": "good"}\n', encoding="utf-8"
    )
    found = find(changed(folder, tmp_path, str(reviews), str(other)))
    assert found == Unknown("data_changed", "train")
    shutil.rmtree(tmp_path / "copy")
    gone = find(changed(folder, tmp_path, str(reviews), str(tmp_path / "nowhere.jsonl")))
    assert isinstance(gone, Unknown)
    assert gone.why == "data_gone"
    shutil.rmtree(tmp_path / "copy")
    remote = find(changed(folder, tmp_path, str(reviews), "https://example.com/reviews.jsonl"))
    assert remote == Unknown("data_remote")


def test_a_model_that_was_not_trained_here_has_no_rows(artefact_of: Any) -> None:
    assert find(Artefact.load(artefact_of("imported"))) == Unknown("not_trained_here")


def test_each_row_of_a_stream_is_as_likely_to_be_drawn() -> None:
    drawn = np.zeros(400)
    for seed in range(300):
        chunks = (pl.DataFrame({"i": range(start, start + 50)}) for start in range(0, 400, 50))
        found = Sample.draw(chunks, 40, seed=seed)
        assert found.total == 400
        assert found.rows["i"].is_sorted()
        drawn[found.rows["i"].to_list()] += 1
    assert drawn.sum() == 300 * 40
    # Each of eight chunks has an eighth of the draws: 1500, give or take 3 deviations of 34.
    assert np.abs(drawn.reshape(8, 50).sum(1) - 1500).max() < 110


def test_a_reservoir_hands_chunks_on_and_holds_little() -> None:
    reservoir = Reservoir(10)
    chunks = [pl.DataFrame({"i": range(k * 100, k * 100 + 100)}) for k in range(20)]
    seen = 0
    for given, own in zip(reservoir.through(chunks), chunks, strict=True):
        assert given.equals(own)
        seen += len(given)
        assert len(reservoir._kept if reservoir._kept is not None else []) <= 20
    assert (len(reservoir.sample().rows), reservoir.sample().total) == (10, seen)


def test_the_worst_errors_are_those_it_was_surest_of() -> None:
    truth = np.array([0, 0, 1, 1, 1, 0])
    scores = np.array([0.9, 0.6, 0.2, 0.95, 0.8, 0.1])
    chosen = choose("binary", truth, scores, 0.5, 2)
    assert chosen["worst"] == [0, 2]
    assert chosen["typical"] == [5, 3]  # of two right ones of a class the upper middle one
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    assert choose("multiclass", np.array([0, 0, 1]), shares, 0.5, 3)["worst"] == [1, 2]
    numbers = choose("regression", np.array([1.0, 2.0, 3.0]), np.array([1.1, 5.0, 2.9]), 0.5, 1)
    assert numbers["worst"] == [1]
    labels = choose("multilabel", np.array([[1, 0], [1, 1]]), np.array([[0.9, 0.1], [0.2, 0.9]]), 0.5, 3)
    assert labels == {"worst": [1], "typical": [0]}
    assert choose("binary", truth[:0], scores[:0], 0.5, 2) == {"worst": [], "typical": []}


def test_a_text_is_cut_where_its_explanation_does() -> None:
    part = {
        "kind": "tokens",
        "values": [0.5, -1.0, 0.2],
        "pieces": [{"start": 0, "end": 2}, {"start": 3, "end": 4}, {"start": 0, "end": 0}],
    }
    found = pieces_of({"text": "ab c and more", "cut": True}, part)
    assert [(one.text, one.value) for one in found] == [
        ("ab", 0.5),
        (" ", 0.0),
        ("c", -1.0),
        (" and more…", 0.0),
    ]
    assert [one.text for one in pieces_of({"text": "plain", "cut": False}, {})] == ["plain"]


def test_columns_are_described(artefact_of: Any) -> None:
    pipeline = Artefact.load(artefact_of("table")).pipeline
    rows = pl.DataFrame({"age": [None, 1.0, 2.0, 3.0, 100.0], "city": ["a", "a", "b", None, "a"]})
    age = summary(rows, "age", pipeline.inputs["age"], "input")
    assert (age["missing"], age["low"], age["median"], age["high"], age["distinct"]) == (
        0.2,
        1.0,
        2.5,
        100.0,
        4,
    )
    hidden = summary(rows, "age", pipeline.inputs["age"], "input", values=False)
    assert 1.0 < hidden["low"] < hidden["high"] < 100.0
    city = summary(rows, "city", pipeline.inputs["city"], "input")
    assert city["top"][0] == {"value": "a", "share": 0.6}
