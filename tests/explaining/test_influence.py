"""Influence is the product of the head's gradients, and finds the planted rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from table_cases import INPUTS, people, predictor_of, text_case

from luban.errors import DataError, InputError
from luban.explaining._base import Explanation
from luban.explaining._case import Case
from luban.explaining.influence import Influence
from luban.predict import load
from luban.training.checkpoint import split
from luban.verbs.train import train
from tiny_case import RECIPE, write_rows


def case_of(
    frame: pl.DataFrame, rows: pl.DataFrame, kind: str = "category", target: str = "paid", **options: object
) -> Case:
    model = predictor_of(frame, INPUTS, {target: kind}, **({"hidden": [8], "steps": 60} | options))  # type: ignore[arg-type]

    def training() -> Iterator[pl.DataFrame]:
        for start in range(0, len(frame), 64):
            yield model.clean(frame.slice(start, 64))

    return Case.of(model, rows, training=training)


def found(case: Case, **options: object) -> list[Explanation]:
    return Influence(**options).explain(case)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "target"), [("category", "paid"), ("binary", "paid"), ("number", "wage")])
def test_it_is_the_product_of_gradients_that_autograd_finds(kind: str, target: str) -> None:
    frame = people(40)
    case = case_of(frame, frame.head(2), kind, target, steps=5)
    (one, other) = found(case, top=40, of="truth", cosine=False)
    network = case.predictor.model
    head = next(iter(network.heads.values()))  # type: ignore[union-attr]
    losses = {
        "category": lambda out, y: F.cross_entropy(out, y.long()),
        "binary": lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y.float()),
        "number": lambda out, y: 0.5 * F.mse_loss(out[:, 0], y.float()),
    }
    (values,) = case.processor.encode_target(frame[target]).values()

    def gradient(i: int) -> torch.Tensor:
        output = network(case.predictor.batch(frame[i : i + 1]))[case.output]
        loss = losses[kind](output, torch.from_numpy(np.array(values[i : i + 1])))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))])

    expected = {j: float(gradient(0) @ gradient(j)) for j in range(40)}
    ours = {line["row"]: line["influence"] for line in one.tables["for"] + one.tables["against"]}
    assert len(ours) >= 39
    for row, influence in ours.items():
        assert influence == pytest.approx(expected[row], rel=1e-3, abs=1e-6)
    assert [line["influence"] for line in one.tables["for"]] == sorted(
        (v for v in ours.values() if v > 0), reverse=True
    )
    assert other.row == 1


def test_a_mislabelled_copy_of_a_row_speaks_loudest_against_it() -> None:
    frame = people(200)
    row = frame.sort("age").tail(1)
    planted = pl.concat([frame, row.with_columns(paid=pl.lit("no")), row])
    case = case_of(planted, row)
    assert case.labels == ["yes"]
    one = found(case, top=3, cosine=False)[0]
    (line,) = (line for line in one.tables["against"] if line["row"] == 200)
    assert line["values"]["paid"] == "no"
    assert "all 202 training rows" in one.notes[-1]
    assert len(one.to_json()["tables"]["against"]) == 3
    nearest = found(case, top=1)[0].tables["against"]
    assert nearest[0]["influence"] < -0.9


def test_with_cosine_a_copy_is_nearest() -> None:
    frame = people(200)
    case = case_of(frame, frame[[17]])
    one = found(case, top=5, of="truth")[0]
    top = one.tables["for"][0]
    assert top["influence"] == pytest.approx(1.0, abs=1e-6)
    assert 17 in [line["row"] for line in one.tables["for"] if line["influence"] > 1 - 1e-6]
    assert max(
        abs(line["influence"]) for line in found(case, cosine=False)[0].tables["for"]
    ) != pytest.approx(1.0)


def test_texts_and_samples() -> None:
    case = text_case(rows=2, steps=60)
    frame = case.background
    assert frame is not None
    case.training = lambda: iter([frame])
    for one, label in zip(found(case, top=4), ("negative", "positive"), strict=True):
        assert {line["values"]["label"] for line in one.tables["for"]} == {label}
    few = found(case, rows=30)[0]
    looked = int(few.notes[-1].split(" of ")[0])
    assert 15 <= looked <= 45
    assert "of 120 training rows" in few.notes[-1]
    assert len(found(case, top=2)[0].tables["for"]) == 2


def test_it_says_what_is_missing() -> None:
    frame = people(40)
    case = case_of(frame, frame.head(1), steps=1)
    case.training = None
    with pytest.raises(DataError, match="training rows are not found"):
        found(case)
    case = case_of(frame, frame.head(1).drop("paid"), steps=1)
    with pytest.raises(DataError, match="no column 'paid'"):
        found(case, of="truth")
    with pytest.raises(InputError, match="holds no checkpoint"):
        found(case, checkpoints="nowhere")


def test_checkpoints_of_a_run_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv")
    (tmp_path / "r.yaml").write_text(RECIPE + "\n", encoding="utf-8")
    train(tmp_path / "r.yaml", ["train.checkpoint_steps=4"], output=tmp_path / "model")
    predictor = load(tmp_path / "model")
    frame = pl.read_csv(tmp_path / "rows.csv")
    case = Case.of(predictor, frame.head(1), training=lambda: iter([predictor.clean(frame)]))
    final = found(case)[0]
    both = found(case, checkpoints=str(tmp_path / "model" / "train"))[0]
    steps = sorted((tmp_path / "model" / "train").glob("step-*"))
    assert len(steps) == 2
    assert "2 sets of weights" in both.notes[-1]
    assert "1 set of weights" in final.notes[-1]
    assert both.tables["for"][0]["influence"] != final.tables["for"][0]["influence"]


def test_weights_count_as_much_as_their_learning_rate(tmp_path: Path) -> None:
    frame = people(40)
    case = case_of(frame, frame.head(1), steps=5)

    def save(step: int, factor: float, rate: float | None) -> None:
        folder = tmp_path / f"step-{step}"
        folder.mkdir(exist_ok=True)
        state = case.predictor.model.state_dict()
        weights = {f"/step/model/{name}": factor * one for name, one in state.items()}
        safetensors.torch.save_file(weights, folder / "tensors.safetensors")
        group = {} if rate is None else {"lr": rate}
        plain = split({"step": {"optimizer": {"param_groups": [group]}}}, {})
        (folder / "state.json").write_text(json.dumps(plain), encoding="utf-8")

    def influence(folder: Path) -> np.ndarray:
        one = found(case, top=40, of="truth", cosine=False, checkpoints=str(folder))[0]
        lines = {line["row"]: line["influence"] for line in one.tables["for"] + one.tables["against"]}
        return np.asarray([lines.get(row, 0.0) for row in range(40)])

    alone = []
    for factor in (1.0, 2.0):
        save(1, factor, 0.5)
        alone.append(influence(tmp_path))
    save(1, 1.0, 0.3)
    save(2, 2.0, 0.1)
    np.testing.assert_allclose(influence(tmp_path), 0.75 * alone[0] + 0.25 * alone[1], atol=1e-9)
    save(2, 2.0, 0.0)
    np.testing.assert_allclose(influence(tmp_path), alone[0], atol=1e-9)
    save(1, 1.0, 0.0)
    np.testing.assert_allclose(influence(tmp_path), (alone[0] + alone[1]) / 2, atol=1e-9)
    save(2, 2.0, None)
    with pytest.raises(InputError, match="names no learning rate"):
        influence(tmp_path)
