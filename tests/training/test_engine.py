"""What the loop promises: exact updates, honest figures, a stop that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
import yaml

import luban
import luban.recipe
from luban.errors import DivergenceError, RecipeError
from luban.training.plan import make_plan
from luban.verbs.train import train


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(240, 3))
    y = x @ [1.0, -2.0, 0.5] + generator.normal(0, 0.1, 240)
    path = tmp_path_factory.mktemp("engine") / "rows.csv"
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}).write_csv(path)
    return path


def recipe(rows: Path, model: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {
        "data": {
            "train": str(rows),
            "inputs": {"a": "number", "b": "number", "c": "number"},
            "targets": {"y": "number"},
        },
        "model": model or {"type": "mlp", "hidden": []},
        "train": {"batch_size": 32, **options},
    }


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(result["artefact"]) / "model.safetensors")


def log(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    lines = (Path(result["artefact"]) / "train" / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def test_gd_is_one_step_down_the_gradient_of_the_whole_set(rows: Path, tmp_path: Path) -> None:
    options = {"optimizer": {"type": "gd", "learning_rate": 0.1}, "epochs": 1, "keep": "last"}
    plan = make_plan(luban.recipe.load(recipe(rows, **options)))
    before = {name: value.clone() for name, value in plan.model.state_dict().items()}
    store = plan.prepared.store("train").take(np.arange(plan.prepared.rows["train"]))
    x = torch.tensor(np.stack([store[f"{name}.value"] for name in "abc"], 1))  # type: ignore[arg-type]
    y = torch.tensor(store["y.value"])
    head = {name: value for name, value in before.items() if name.startswith("heads")}
    weight = next(v for n, v in head.items() if n.endswith("weight")).requires_grad_()
    bias = next(v for n, v in head.items() if n.endswith("bias")).requires_grad_()
    ((x @ weight.T + bias)[:, 0] - y).square().mean().backward()
    assert weight.grad is not None
    after = weights(train(recipe(rows, **options), output=tmp_path / "gd"))
    name = next(n for n in after if n.startswith("heads") and n.endswith("weight"))
    torch.testing.assert_close(after[name], weight.detach() - 0.1 * weight.grad)


def test_accumulated_batches_are_one_large_batch(rows: Path, tmp_path: Path) -> None:
    options = {"optimizer": {"type": "sgd", "learning_rate": 0.1}, "epochs": 2, "keep": "last"}
    large = train(recipe(rows, **options), output=tmp_path / "large")
    small = train(recipe(rows, **{**options, "batch_size": 8, "accumulate": 4}), output=tmp_path / "small")
    assert large["steps"] == small["steps"]
    for name, value in weights(large).items():
        torch.testing.assert_close(weights(small)[name], value, rtol=1e-4, atol=1e-6)


def test_divergence_stops_and_names_the_rows(rows: Path, tmp_path: Path) -> None:
    options = {"optimizer": {"type": "sgd", "learning_rate": 1e25}, "checkpoint_steps": 1}
    with pytest.raises(
        DivergenceError, match=r"became (nan|inf) at update \d+, on training rows \d+, .*learning_rate"
    ):
        train(recipe(rows, **options), output=tmp_path / "diverged")
    assert not (tmp_path / "diverged" / "config.json").exists()
    for checkpoint in (tmp_path / "diverged" / "train").glob("step-*"):
        for name, value in safetensors.torch.load_file(checkpoint / "tensors.safetensors").items():
            assert torch.isfinite(value).all() or not value.is_floating_point(), name


def test_early_stopping_keeps_the_best(rows: Path, tmp_path: Path) -> None:
    options = {
        "epochs": 200,
        "optimizer": {"type": "adamw", "learning_rate": 0.05},
        "callbacks": [{"type": "early_stopping", "patience": 4}],
    }
    result = train(recipe(rows, **options), output=tmp_path / "stopped")
    assert result["stopped"].startswith("no better since update")
    looks = log(result, "validation")
    losses = [look["loss"] for look in looks]
    assert len(looks) < 200
    assert losses.index(min(losses)) == len(losses) - 5
    again = luban.evaluate(result["artefact"], str(rows), split="validation")
    best = looks[losses.index(min(losses))]
    assert again["metrics"]["y.rmse"]["value"] == pytest.approx(best["y.rmse"], rel=1e-5)


def test_convergence_of_the_loss_stops(rows: Path, tmp_path: Path) -> None:
    callbacks = [{"type": "early_stopping", "patience": 3, "converged": 0.05}]
    result = train(recipe(rows, epochs=300, callbacks=callbacks), output=tmp_path / "converged")
    assert "changed by less than 5.00%" in result["stopped"] or "no better" in result["stopped"]
    assert result["steps"] < 300 * 6


def test_plateau_lowers_the_learning_rate(rows: Path, tmp_path: Path) -> None:
    options = {
        "epochs": 60,
        "optimizer": {"type": "adam", "learning_rate": 0.1},
        "schedule": {"type": "plateau", "patience": 1, "shrink": 0.5},
    }
    result = train(recipe(rows, **options), output=tmp_path / "plateau")
    rates = [entry["learning_rate"] for entry in log(result, "train")]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] <= 0.05


def test_derived_values_are_written_out_and_figures_are_logged(rows: Path, tmp_path: Path) -> None:
    result = train(recipe(rows, epochs=3), output=tmp_path / "model")
    resolved = yaml.safe_load((tmp_path / "model" / "recipe.yaml").read_text())
    assert resolved["train"]["threads"] == 1
    assert resolved["train"]["precision"] == "fp32"
    assert resolved["train"]["optimizer"]["type"] == "adamw"
    assert resolved["objective"] == {"type": "mean_squared", "weight": 1.0, "target": "y"}
    entry = log(result, "train")[-1]
    assert {"loss", "rows_per_second", "share_of_peak", "memory_mb", "learning_rate"} <= entry.keys()
    assert 0 < entry["share_of_peak"] < 1
    assert len(log(result, "validation")) == 3


def test_tensorboard_reads_what_was_written(rows: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train(recipe(rows, epochs=3, callbacks=["tensorboard"]), output=tmp_path / "model")
    events = accumulators.EventAccumulator(str(tmp_path / "model" / "train" / "tensorboard")).Reload()
    seen = [scalar.value for scalar in events.Scalars("validation/loss")]
    assert seen == pytest.approx([look["loss"] for look in log(result, "validation")], rel=1e-5)


def test_learning_rate_range_test(rows: Path) -> None:
    found = luban.check(recipe(rows, optimizer={"type": "sgd"}), find_lr=True)["learning_rate"]
    assert 1e-4 < found["suggested"] < 1.0
    assert len(found["rates"]) == len(found["losses"]) > 20


def test_check_writes_nothing(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = luban.check(recipe(rows))
    assert not list(tmp_path.iterdir())
    assert result["parameters"] == 4
    assert result["rows"] == {"train": 192, "validation": 24, "test": 24}
    assert result["updates"] == 10 * 6
    assert result["seconds"] > 0
    assert luban.recipe.load(yaml.safe_load(result["recipe"])).train.batch_size == 32


def test_targets_train_together(rows: Path, tmp_path: Path) -> None:
    options = recipe(rows, epochs=40, optimizer={"type": "adamw", "learning_rate": 0.03})
    options["data"]["inputs"] = {"a": "number", "b": "number"}
    options["data"]["targets"] = {"y": "number", "c": "number"}
    options["objective"] = [
        {"type": "huber", "target": "y"},
        {"type": "mean_squared", "target": "c", "weight": 0.1},
    ]
    result = train(options, output=tmp_path / "both")
    assert result["metrics"]["y.r2"]["value"] > 0.8
    assert "c.r2" in result["metrics"]
    del options["objective"][1]
    with pytest.raises(RecipeError, match="target 'c' has no objective"):
        train(options, output=tmp_path / "one")


def test_batches_by_tokens(tmp_path: Path) -> None:
    texts = ["a " * (i % 13 + 1) for i in range(120)]
    pl.DataFrame({"t": texts, "y": [len(t) > 14 for t in texts]}).write_csv(tmp_path / "texts.csv")
    options = {
        "data": {"train": str(tmp_path / "texts.csv"), "inputs": {"t": {"type": "text", "tokens": "word"}}, "targets": {"y": "binary"}},
        "model": {"type": "rnn", "size": "tiny"},
        "train": {"batch_tokens": 64, "epochs": 2},
    }  # fmt: skip
    result = train(options, output=tmp_path / "model")
    assert 15 < result["steps"] < 2 * 96  # 7 tokens a row: neither one batch a row nor all rows in one
    assert log(result, "train")[-1]["tokens_per_second"] > 0


def test_same_seed_same_bits_other_seed_other_weights(rows: Path, tmp_path: Path) -> None:
    model = {"type": "mlp", "size": "tiny", "dropout": 0.3}
    runs = [
        train(recipe(rows, model, epochs=2, seed=seed), output=tmp_path / str(i))
        for i, seed in enumerate((1, 1, 2))
    ]
    first, same, other = map(weights, runs)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_bf16_is_close_and_leaves_full_precision_weights(rows: Path, tmp_path: Path) -> None:
    model = {"type": "mlp", "hidden": [32]}
    full, half = (
        train(recipe(rows, model, epochs=10, precision=precision), output=tmp_path / precision)
        for precision in ("fp32", "bf16")
    )
    pairs = [(value, weights(half)[name]) for name, value in weights(full).items()]
    assert all(b.dtype == torch.float32 for _, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs), "bf16 changed nothing, so it was not used"
    assert half["metrics"]["y.rmse"]["value"] == pytest.approx(full["metrics"]["y.rmse"]["value"], rel=0.1)
