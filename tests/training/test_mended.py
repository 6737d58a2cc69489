"""Faults that a reader found, each as the test that would have found it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

import luban
from luban import machine
from luban.console import Console, Terminal
from luban.data import prepare
from luban.errors import ArtefactError, DataError, DivergenceError, RecipeError
from luban.predict import load
from luban.training import engine
from luban.training import plan as plans
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
    (frame,) = chunks_of(text, ["review"])
    assert frame["review"].to_list() == [text]


@pytest.mark.parametrize("text", ['[{"review": "good"', '{"review": good}', "[[1, 2]", '["good"'])
def test_broken_rows_are_no_value(text: str) -> None:
    with pytest.raises(DataError, match="no JSON"):
        list(chunks_of(text, ["review"]))


@pytest.mark.parametrize(
    "options",
    [
        {"callbacks": ["early_stopping"]},
        {"schedule": "plateau"},
        {"metric": "side.accuracy"},
        {"evaluate_every": 3},
    ],
)
def test_what_needs_validation_rows_refuses_without(
    rows: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    without = recipe(rows, split={"validation": 0, "test": 0.2})
    without["train"] |= options
    with pytest.raises(RecipeError, match="looks at validation rows, but there are none"):
        train(without, output=tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("read_as", ["number", "category"])
def test_decimals_and_bytes_are_frozen_as_they_were_read(tmp_path: Path, read_as: str) -> None:
    """1.50 as a class is not 1.5; none of it is JSON."""
    n = 120
    frame = pl.DataFrame(
        {
            "price": pl.Series([Decimal(f"{1 + i % 3}.50") for i in range(n)], dtype=pl.Decimal(10, 2)),
            "code": [f"c{i % 4}".encode() for i in range(n)],
            "sizes": pl.Series(
                [[Decimal(i), Decimal(2)] for i in range(n)], dtype=pl.List(pl.Decimal(10, 1))
            ),
            "i": range(n),
            "y": [i % 2 for i in range(n)],
        }
    )
    frame.write_parquet(tmp_path / "rows.parquet")
    inputs = {"price": read_as, "code": "category", "sizes": "set", "i": "number"}
    data = {"train": str(tmp_path / "rows.parquet"), "inputs": inputs, "targets": {"y": "category"}}
    options = {"data": data, "model": {"type": "mlp", "size": "tiny"}, "train": {"steps": 2}}
    train(options, output=tmp_path / "model")
    predictor = load(tmp_path / "model")
    first = json.loads((tmp_path / "model" / "sample.jsonl").read_text().split("\n")[0])
    assert Decimal(first["row"]["price"]) == Decimal(first["row"]["price"]).quantize(Decimal("1.00"))
    same = frame.filter(pl.col("i") == first["row"]["i"])
    assert predictor.predict(same)[0]["y.scores"] == pytest.approx(first["prediction"]["y.scores"], abs=1e-6)


# --- a run that goes on somewhere else ---


class GoneError(Exception):
    """The machine went away."""


def stopped(options: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Train until the second checkpoint is written."""
    real = engine.Engine._save
    saves = 0

    def dies(self: engine.Engine) -> None:
        nonlocal saves
        real(self)
        saves += 1
        if saves == 2:
            raise GoneError

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_save", dies)
        with pytest.raises(GoneError):
            train(options, output=output, **more)


def on_a_machine(monkeypatch: pytest.MonkeyPatch, cores: int, precision: str = "fp32") -> None:
    """Let everything that is derived from the machine come out otherwise."""
    monkeypatch.setattr(plans, "_ONE_THREAD", 0)
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(
        machine.Choice, "peak", lambda self: None
    )  # seconds of measuring, which nothing here needs
    real = machine.choose

    def choose(device: str, asked: str, width: int) -> machine.Choice:
        return real(device, precision if asked == "auto" else asked, width)

    monkeypatch.setattr(plans.machine, "choose", choose)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(output / "model.safetensors")


def test_resuming_on_another_machine_is_the_same_run(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recipe(rows)
    options["train"] |= {"epochs": 2, "checkpoint_steps": 4}
    said: list[str] = []
    console = Console()
    monkeypatch.setattr(console, "say", said.append)
    with monkeypatch.context() as patch:
        on_a_machine(patch, 2, "bf16")
        train(options, output=tmp_path / "whole")
        stopped(options, tmp_path / "stopped", patch)
    on_a_machine(monkeypatch, 1)
    used: list[int] = []
    set_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (used.append(n), set_threads(n))[1])
    train(options, output=tmp_path / "stopped", console=console)
    assert used[0] == 2
    assert any(
        one.startswith(
            "going on with cpu, bf16, 2 threads, torch kernels and products by blas, with which the run began"
        )
        for one in said
    ), said
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "stopped")[name]), name
    lineage = json.loads((tmp_path / "stopped" / "lineage.json").read_text())
    assert (lineage["hardware"]["precision"], lineage["hardware"]["threads"]) == ("bf16", 2)
    assert "threads: 2" in (tmp_path / "stopped" / "recipe.yaml").read_text()


@pytest.mark.parametrize("other", [{"threads": 1}, {"precision": "fp32"}, {"seed": 3}])
def test_asking_for_something_else_is_another_run(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    options = recipe(rows)
    options["train"] |= {"epochs": 2, "checkpoint_steps": 4}
    on_a_machine(monkeypatch, 2, "bf16")
    stopped(options, tmp_path / "stopped", monkeypatch)
    with pytest.raises(ArtefactError, match="interrupted run of another recipe"):
        train({**options, "train": options["train"] | other}, output=tmp_path / "stopped")
    # What was derived, written out: the resolved recipe of the run is the same run.
    same = {**options, "train": options["train"] | {"threads": 2, "precision": "bf16", "device": "cpu"}}
    train(same, output=tmp_path / "stopped")


def test_what_was_asked_for_is_not_forgotten(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recipe(rows)
    options["train"] |= {"epochs": 2, "checkpoint_steps": 4}
    stopped({**options, "train": options["train"] | {"threads": 2}}, tmp_path / "stopped", monkeypatch)
    with pytest.raises(ArtefactError, match="interrupted run of another recipe"):
        train(options, output=tmp_path / "stopped")


def test_a_run_that_began_on_a_device_that_is_not_here(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recipe(rows)
    options["train"] |= {"epochs": 2, "checkpoint_steps": 4}
    stopped(options, tmp_path / "stopped", monkeypatch)
    record = tmp_path / "stopped" / "train" / "run.json"
    saved = json.loads(record.read_text())
    saved["machine"]["used"]["device"] = "cuda"
    record.write_text(json.dumps(saved))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArtefactError, match="began on cuda, which torch does not see here"):
        train(options, output=tmp_path / "stopped")
    assert list((tmp_path / "stopped" / "train").glob("step-*"))
    train(options, output=tmp_path / "stopped", resume=False)


def test_finished_folds_are_taken_on_another_machine(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recipe(rows, split={"type": "folds", "folds": 2, "test": 0.2})
    with monkeypatch.context() as patch:
        on_a_machine(patch, 2)
        first = train(options, output=tmp_path / "folds")
    on_a_machine(monkeypatch, 1)
    before = (tmp_path / "folds" / "fold-0" / "model.safetensors").stat().st_mtime_ns
    assert train(options, output=tmp_path / "folds")["metrics"] == first["metrics"]
    assert (tmp_path / "folds" / "fold-0" / "model.safetensors").stat().st_mtime_ns == before


def test_resuming_without_the_bar_that_was_there(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only shows a run (a bar on a terminal) is no part of its checkpoints."""
    options = recipe(rows)
    options["train"] |= {"checkpoint_steps": 4, "callbacks": [{"type": "early_stopping", "patience": 40}]}
    train(options, output=tmp_path / "whole")
    stopped(options, tmp_path / "stopped", monkeypatch, console=Terminal())
    train(options, output=tmp_path / "stopped")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "stopped")[name]), name


def test_data_prepared_anew_is_said(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = recipe(rows)
    options["train"] |= {"epochs": 2, "checkpoint_steps": 4}
    stopped(options, tmp_path / "stopped", monkeypatch)
    said: list[str] = []
    console = Console()
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(prepare, "_versions", lambda: {"polars": "another"})
    train(options, output=tmp_path / "stopped", console=console)
    assert sum("prepared anew since the run began" in one for one in said) == 1


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
