"""Faults that a reader found, each as the test that would have found it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

import luban
from luban.errors import ArtefactError, DataError, DivergenceError, RecipeError
from luban.predict import load
from luban.training import engine
from luban.verbs.evaluate import evaluate
from luban.verbs.rows import chunks_of
from luban.verbs.train import train


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    x = generator.normal(size=320)
    price = np.where(generator.random(320) < 0.05, 500.0, 10 * x)
    frame = pl.DataFrame(
        {
            "x": [None if i % 9 == 0 else float(v) for i, v in enumerate(x)],
            "z": generator.normal(size=320),
            "price": price,
            "side": [["UP", "up"][i % 2] if v > 0 else "down" for i, v in enumerate(x)],
        }
    )
    frame.write_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def recipe(rows: Path, targets: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    return {
        "data": {
            "train": str(rows),
            "inputs": {"x": "number", "z": "number"},
            "targets": targets or {"side": "category"},
            "clean": [{"type": "text", "columns": ["side"], "lowercase": True}],
            **data,
        },
        "model": {"type": "mlp", "size": "tiny"},
        "train": {"epochs": 6, "batch_size": 32},
    }


def test_a_folder_named_train_is_not_ours(rows: Path, tmp_path: Path) -> None:
    precious = tmp_path / "pictures" / "train" / "cats" / "a.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    with pytest.raises(ArtefactError, match="holds other files, which are left alone"):
        train(recipe(rows), output=tmp_path / "pictures")
    with pytest.raises(ArtefactError, match="holds other files"):
        train(recipe(rows), output=tmp_path / "pictures", force=True)
    assert precious.read_text() == "precious"


def test_force_keeps_the_old_artefact_until_the_new_one_is_there(rows: Path, tmp_path: Path) -> None:
    train(recipe(rows), output=tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    bad = recipe(rows, {"price": "number"})
    bad["train"]["optimizer"] = {"type": "sgd", "learning_rate": 1e30}
    with pytest.raises(DivergenceError):
        train(bad, output=tmp_path / "model", force=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    load(tmp_path / "model")
    other = recipe(rows)
    other["train"]["seed"] = 5
    train(other, output=tmp_path / "model", force=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("optimizer", ["adamw", "gd"])
def test_resuming_after_any_checkpoint(
    rows: Path, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints that fall on the end of an epoch hold the look that belongs to it."""
    options = recipe(rows)
    options["train"] |= {
        "checkpoint_steps": 1 if optimizer == "gd" else 4,
        "optimizer": {"type": optimizer, "learning_rate": 0.05},
        "callbacks": [{"type": "early_stopping", "patience": 2}],
    }
    whole = train(options, output=tmp_path / "whole")
    wanted = safetensors.torch.load_file(tmp_path / "whole" / "model.safetensors")
    real = engine.Engine._save
    for stop in range(1, 1 + whole["steps"] // options["train"]["checkpoint_steps"]):
        saves = 0

        def dies(self: engine.Engine, stop: int = stop) -> None:
            nonlocal saves
            real(self)
            saves += 1
            if saves == stop:
                raise KeyboardInterrupt

        output = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(engine.Engine, "_save", dies)
            with pytest.raises(KeyboardInterrupt):
                train(options, output=output)
        train(options, output=output)
        for name, value in safetensors.torch.load_file(output / "model.safetensors").items():
            assert torch.equal(value, wanted[name]), f"stopped after save {stop}: {name}"


@pytest.mark.parametrize(
    "clean",
    [
        [{"type": "outliers", "method": "iqr"}],
        [{"type": "missing", "strategy": "mode"}],
        [{"type": "invalid", "rules": {"z": "-1..1"}}, "duplicates"],
        [{"type": "text", "html": True}],
    ],
)
def test_what_training_measured_is_what_evaluate_measures(
    rows: Path, tmp_path: Path, clean: list[Any]
) -> None:
    options = recipe(rows, {"price": "number", "side": "category"}, clean=clean)
    result = train(options, output=tmp_path / "model")
    again = evaluate(tmp_path / "model", str(rows), split="test")
    assert again["metrics"] == result["metrics"]
    assert again["rows"] == result["rows"]["test"]


def test_labels_repaired_in_training_are_repaired_in_evaluation(rows: Path, tmp_path: Path) -> None:
    train(recipe(rows), output=tmp_path / "model")
    result = evaluate(tmp_path / "model", str(rows))
    assert result["rows"] == 320
    assert result["details"]["side"]["per_class"].keys() == {"down", "up"}


def test_indicator_of_a_missing_value_is_an_input(rows: Path, tmp_path: Path) -> None:
    options = recipe(
        rows, clean=[{"type": "missing", "strategy": "mean", "columns": ["x"], "indicator": True}]
    )
    options["data"]["inputs"]["x_missing"] = "number"
    train(options, output=tmp_path / "model")
    predictions = load(tmp_path / "model").predict([{"x": None, "z": 0.0}, {"x": 1.0, "z": 0.0}])
    assert all("error" not in prediction for prediction in predictions)


def test_metric_that_is_not_defined_yet(tmp_path: Path) -> None:
    labels = ["yes" if i % 20 == 0 else "no" for i in range(400)]
    values = np.random.default_rng(0).normal(size=400)
    pl.DataFrame({"x": values, "y": labels}).write_csv(tmp_path / "rare.csv")
    options = {
        "data": {"train": str(tmp_path / "rare.csv"), "inputs": {"x": "number"}, "targets": {"y": "binary"}},
        "model": {"type": "mlp", "size": "tiny"},
        "train": {"epochs": 2, "metric": "y.mcc"},
    }
    assert luban.train(options, output=tmp_path / "model")["steps"] > 0


def test_folds_are_trained_again_when_the_recipe_changes(rows: Path, tmp_path: Path) -> None:
    options = recipe(rows, split={"type": "folds", "folds": 2, "test": 0.2})
    first = train(options, output=tmp_path / "folds")
    same = train(options, output=tmp_path / "folds")
    assert same["metrics"] == first["metrics"]
    recorded = json.loads((tmp_path / "folds" / "fold-0" / "metrics.json").read_text())
    assert recorded["measured_on"] == "validation"
    options["train"]["epochs"] = 12
    other = train(options, output=tmp_path / "folds", force=True)
    assert other["metrics"] != first["metrics"]


def test_odd_cells_spoil_their_row_only(rows: Path, tmp_path: Path) -> None:
    train(recipe(rows), output=tmp_path / "model")
    predictor = load(tmp_path / "model")
    good = {"x": 1.0, "z": 0.0}
    result = predictor.predict([good, {"x": [1], "z": 0.0}, {"x": float("nan"), "z": 0.0}])
    assert result[0]["side"] == "up"
    assert "error" in result[1]
    assert "error" not in result[2]  # NaN is how others say missing


@pytest.mark.parametrize(
    "text", ["好不好?", "Is this good?", "see http://a.b it is good", "[great] film", "2 * 3"]
)
def test_a_text_with_marks_is_a_value(text: str) -> None:
    if text.startswith("["):  # a list of rows begins so
        with pytest.raises(DataError, match="no JSON"):
            list(chunks_of(text, ["review"]))
        return
    (frame,) = chunks_of(text, ["review"])
    assert frame["review"].to_list() == [text]


@pytest.mark.parametrize(
    "options",
    [{"callbacks": ["early_stopping"]}, {"schedule": "plateau"}, {"metric": "side.accuracy"}],
)
def test_what_needs_validation_rows_refuses_without(
    rows: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    without = recipe(rows, split={"validation": 0, "test": 0.2})
    without["train"] |= options
    with pytest.raises(RecipeError, match="looks at validation rows, but there are none"):
        train(without, output=tmp_path / "model")


def test_a_pattern_takes_no_column_that_plays_another_part(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frame = pl.DataFrame({name: generator.random(60) for name in ("a", "b", "w", "g")})
    frame = frame.with_columns(pl.Series("y", [i % 2 for i in range(60)]))
    frame.with_columns(pl.Series("part", ["train", "test", "validation"] * 20)).write_csv(
        tmp_path / "rows.csv"
    )
    data = {"train": str(tmp_path / "rows.csv"), "inputs": {"*": "number"}, "targets": {"y": "binary"}}
    data |= {"weight": "w", "groups": ["g"], "split": {"type": "given", "by": "part"}}
    train({"data": data, "model": "mlp", "train": {"steps": 2}}, output=tmp_path / "model")
    assert list(load(tmp_path / "model").pipeline.inputs) == ["a", "b"]
