"""Evaluating an artefact: what was scored, what could not be, what was changed; and metrics that a plan may ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import luban
from luban import recipe as recipes
from luban.errors import RecipeError
from luban.evaluation import metrics, run
from luban.evaluation.records import Pool
from luban.training.plan import make_plan
from tiny_case import Luban, Ran

RECIPE = """\
data:
  train: rows.csv
  inputs: {age: number, city: category}
  targets: {label: binary}
  weight: price
  clean: [{type: missing, strategy: median, columns: [age]}]
model: {type: mlp, size: tiny, hidden: [4]}
train: {epochs: 1, batch_size: 16, device: cpu, precision: fp32}
"""


@pytest.fixture
def cleaning(work: Path, luban: Luban) -> Path:
    """The artefact ``cleaning``, which fills in missing ages, and ``new.csv``, with something wrong in five of its rows."""
    (work / "c.yaml").write_text(RECIPE, encoding="utf-8")
    ran = luban("train", "c.yaml", "-o", "cleaning")
    assert ran.code == 0, ran.err
    (work / "new.csv").write_text(
        "age,city,label,price\n"
        "41,Paris,good,1\n"
        "30,Paris,bad,2\n"
        "NA,Paris,good,1\n"  # filled in
        "old,Paris,good,1\n"  # unreadable
        "40,Paris,,1\n"  # no truth
        "40,Paris,excellent,1\n"  # of an unknown class
        "42,Paris,good,-1\n",  # a weight that makes no sense
        encoding="utf-8",
    )
    return work


def asked(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    answer: dict[str, Any] = json.loads(ran.out)
    return answer


def test_rows_skipped_and_values_changed_are_told_apart(cleaning: Path, luban: Luban) -> None:
    ran = luban("evaluate", "cleaning", "new.csv", "--json", "--resamples", "0")
    answer = asked(ran)
    assert answer["rows"] == 4
    assert answer["skipped"] == {
        "age: unreadable": 1,
        "label: target missing, unreadable or of an unknown class": 2,
    }
    assert answer["rows"] + sum(answer["skipped"].values()) == 7
    assert answer["cleaned"]["price: weight missing or negative, taken as 0"] == 1
    (filled,) = (what for what in answer["cleaned"] if what.startswith("missing: "))
    assert answer["cleaned"][filled] == 1
    assert len(answer["cleaned"]) == 2
    assert f"changed before scoring: {filled}: 1" in ran.err


def test_recorded_figures_tell_both_too(cleaning: Path) -> None:
    recorded = json.loads((cleaning / "cleaning" / "metrics.json").read_text(encoding="utf-8"))
    assert (recorded["skipped"], recorded["cleaned"]) == ({}, {})


def test_all_slices_share_one_pool(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[Pool] = []

    def pool() -> Pool:
        pools.append(Pool(100))
        return pools[-1]

    rows = pl.read_csv("rows.csv")
    predictor = luban.load("model")
    whole = run.evaluate(predictor, [rows], by=["city", "shop"], resamples=20)
    monkeypatch.setattr(run, "Pool", pool)
    spilled = run.evaluate(predictor, [rows], by=["city", "shop"], resamples=20)
    assert len(pools) == 1
    assert pools[0].spilled
    assert pools[0].held <= 100
    assert spilled == whole


def many_classes(folder: Path, metric: str, target: str) -> Path:
    words = [f"word{number}" for number in range(12)]
    lines = [f"{number % 7},{words[number % 12]}" for number in range(240)]
    (folder / "many.csv").write_text("\n".join(["x,label", *lines]) + "\n", encoding="utf-8")
    recipe = {
        "data": {"train": "many.csv", "inputs": {"x": "number"}, "targets": {"label": target}},
        "model": {"type": "mlp", "hidden": [4]},
        "train": {"epochs": 1, "metric": metric, "callbacks": [{"type": "early_stopping"}]},
    }
    (folder / "many.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "many.yaml"


def test_a_plan_refuses_a_metric_that_many_classes_do_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = many_classes(tmp_path, "label.f1_macro", "category")
    assert make_plan(recipes.load(path, [])).metric == "label.f1_macro"
    monkeypatch.setattr(metrics, "MANY", 11)
    monkeypatch.setattr("luban.training.plan.MANY", 11)
    with pytest.raises(RecipeError) as error:
        make_plan(recipes.load(path, []))
    said = str(error.value)
    assert "'label.f1_macro' is not measured, because 'label' has 12 classes" in said
    assert "beyond 11" in said
    assert said.endswith(
        "metrics are loss, label.accuracy, label.top_5_accuracy, label.log_loss, label.brier, label.ece"
    )
    offered = many_classes(tmp_path, "label.top_5_accuracy", "category")
    assert make_plan(recipes.load(offered, [])).metric == "label.top_5_accuracy"
    with pytest.raises(RecipeError, match=r"'label.mae' is unknown; metrics are loss, label.accuracy"):
        make_plan(recipes.load(many_classes(tmp_path, "label.mae", "category"), []))
