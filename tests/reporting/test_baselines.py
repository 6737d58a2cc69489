"""Baselines learn what they say they do, and differences are those of the metrics."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import luban
from luban.reporting._quality import calibrated
from luban.reporting.baselines import is_cjk, xz
from tiny_case import Luban


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tabular(artefact_of: Any) -> dict[str, Any]:
    return luban.report(artefact_of("table"), examples=0)


def test_the_constant_answer_is_the_commonest_class(tabular: dict[str, Any], artefact_of: Any) -> None:
    found = tabular["baselines"]["label"]
    constant, trees = found["each"]
    assert (constant["name"], trees["name"]) == ("constant", "trees")
    support = {
        name: own["support"] for name, own in tabular["measured"]["details"]["label"]["per_class"].items()
    }
    assert constant["metrics"]["accuracy"]["value"] in {n / found["rows"] for n in support.values()}
    assert found["rows"] == tabular["measured"]["rows"]
    assert found["train_rows"] == tabular["lineage"]["rows"]["train"] < found["of"], (
        "some were dropped by cleaning"
    )
    assert trees["metrics"]["accuracy"]["value"] > constant["metrics"]["accuracy"]["value"] + 0.1


def test_differences_are_those_of_the_metrics(tabular: dict[str, Any]) -> None:
    found = tabular["baselines"]["label"]
    for metric in ("accuracy", "log_loss", "f1_macro"):
        own = found["metrics"][metric]["value"]
        assert own == pytest.approx(tabular["measured"]["metrics"][f"label.{metric}"]["value"], abs=1e-6)
        for one in found["each"]:
            difference = one["differences"][metric]
            assert difference["value"] == pytest.approx(own - one["metrics"][metric]["value"], abs=1e-6)
            assert difference["low"] <= difference["value"] <= difference["high"]


def test_tfidf_is_scikit_learns(artefact_of: Any) -> None:
    folder = artefact_of("texts")
    found = luban.report(folder, examples=0)["baselines"]["label"]["each"][1]
    train, test = (rows_of(folder.parent / name) for name in ("reviews.jsonl", "reviews-test.jsonl"))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2)
    kept = luban.load(folder).clean(pl.DataFrame(train))["review"].to_list()
    assert len(kept) == len(train)
    # Validation rows are split off the training file: the report tells how many it learnt from.
    data = luban.report(folder, examples=0, limit=5000)
    assert found["name"] == "tfidf"
    assert data["baselines"]["label"]["of"] == data["lineage"]["rows"]["train"] < len(train)
    x = vectorizer.fit_transform([row["review"] for row in train])
    model = LogisticRegression(max_iter=200, C=5.0).fit(x, [row["label"] for row in train])
    accuracy = model.score(
        vectorizer.transform([row["review"] for row in test]), [row["label"] for row in test]
    )
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(accuracy, abs=0.05)  # a tenth more rows


def test_numbers_sets_and_pictures_have_baselines(artefact_of: Any) -> None:
    several = luban.report(artefact_of("several"), examples=0)
    price, tags = (several["baselines"][name]["each"] for name in ("price", "tags"))
    assert [one["name"] for one in price] == ["constant", "tfidf"]
    assert price[1]["metrics"]["r2"]["value"] > 0.8 > 0.1 > price[0]["metrics"]["r2"]["value"]
    assert tags[1]["metrics"]["f1_micro"]["value"] > 0.95
    pictures = luban.report(artefact_of("pictures"), examples=0)["baselines"]["side"]["each"]
    assert pictures[1]["name"] == "pixels"
    assert pictures[1]["metrics"]["accuracy"]["value"] > 0.9


def test_rows_are_sampled_and_their_number_is_said(artefact_of: Any) -> None:
    found = luban.report(artefact_of("table"), examples=0, limit=30)["baselines"]["label"]
    assert (found["rows"], found["train_rows"], found["of"] > 200) == (30, found["train_rows"], True)
    assert 100 < found["train_rows"] <= 120


def test_what_a_compressor_has_read_costs_it_little() -> None:
    draw = random.Random(0)
    letters = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(40)]
    assert xz(letters, letters)["bits_per_byte"] < 0.6
    unknown = xz(letters[:20], letters[20:])["bits_per_byte"]
    assert np.log2(26) * 0.95 < unknown < 6.5


def test_characters_are_told_from_words() -> None:
    assert is_cjk(["这本书很好看 ok"])
    assert is_cjk(["とても良い"])
    assert not is_cjk(["a good book 好"])
    assert not is_cjk([])


def test_of_many_classes_only_the_constant_one_is_left(tmp_path: Path, luban: Luban) -> None:
    draw = random.Random(1)
    lines = ["x,y"] + [f"{draw.random():.4f},c{i % 120}" for i in range(1200)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "data: {train: rows.csv, inputs: {x: number}, targets: {y: category}}\nmodel: {type: mlp, size: tiny}\n"
        "train: {epochs: 1, batch_size: 256, device: cpu, precision: fp32}\n",
        encoding="utf-8",
    )
    assert luban("train", tmp_path / "r.yaml", "-o", tmp_path / "m").code == 0
    ran = luban("report", tmp_path / "m", "-o", tmp_path / "r.md", "--examples", "0", "--json")
    found = json.loads(ran.out)["baselines"]["y"]
    assert [one["name"] for one in found["each"]] == ["constant"]
    assert found["refused"] == {"absent": "many_classes", "values": {"n": 120}}
    assert "120 classes are too many" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_weights_count_in_baselines_and_in_differences(tmp_path: Path, luban: Luban) -> None:
    """Two of three rows say a, but those of b weigh eight times as much; nothing can be told from x."""
    draw = random.Random(2)
    lines = ["x,y,w"] + [f"{draw.random():.4f},{'b,8' if i % 3 == 0 else 'a,1'}" for i in range(300)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = (
        "data: {train: rows.csv, inputs: {x: number}, targets: {y: category}, weight: w,\n"
        "  split: {type: random, validation: 0.3, test: 0}}\n"
        "model: {type: mlp, size: tiny}\n"
        "train: {epochs: 1, batch_size: 64, device: cpu, precision: fp32, keep: %s}\n"
    )
    for keep in ("best", "last"):
        (tmp_path / f"{keep}.yaml").write_text(recipe % keep, encoding="utf-8")
        assert luban("train", tmp_path / f"{keep}.yaml", "-o", tmp_path / keep).code == 0
        ran = luban("report", tmp_path / keep, "-o", tmp_path / "r.html", "--examples", "0", "--json")
        page, data = (tmp_path / "r.html").read_text(encoding="utf-8"), json.loads(ran.out)
        assert data["measured"]["on"] == "validation"
        assert ("The weights were chosen by these validation rows" in page) == (keep == "best")
        assert ("where the weights were kept" in page) == (keep == "best")
        for one in data["baselines"]["y"]["each"]:
            assert one["metrics"]["accuracy"]["value"] > 0.7, "b, which weighs the most, is the answer"
    ran = luban("train", tmp_path / "best.yaml", "train.seed=7", "train.epochs=8", "-o", tmp_path / "other")
    assert ran.code == 0, ran.err
    places = [str(tmp_path / name) for name in ("best", "other")]
    result = json.loads(luban("compare", *places, str(tmp_path / "rows.csv"), "--json").out)
    assert result["weighted"]
    own = []
    for place in places:
        ran = luban("evaluate", place, tmp_path / "rows.csv", "--json")
        own.append(json.loads(ran.out)["metrics"]["y.log_loss"]["value"])
    difference = result["differences"]["y"]["differences"]["log_loss"]["value"]
    assert difference == pytest.approx(own[1] - own[0], abs=1e-6)
    assert abs(difference) > 1e-4


def test_opposite_errors_do_not_make_a_model_calibrated() -> None:
    def bins(*gaps: float) -> list[dict[str, float]]:
        return [{"weight": 50.0, "confidence": 0.7 + gap, "accuracy": 0.7} for gap in gaps]

    assert calibrated(bins(0.01, -0.02)) == ("calibrated", pytest.approx(0.015))
    assert calibrated(bins(0.2, -0.2)) == ("unevenly_confident", pytest.approx(0.2))
    assert calibrated(bins(0.2, 0.0)) == ("overconfident", pytest.approx(0.1))
    assert calibrated(bins(-0.2, -0.1)) == ("underconfident", pytest.approx(0.15))
