"""Influence is the product of the head's gradients, and finds the planted rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from table_cases import INPUTS, people, predictor_of, text_case

from luban.errors import DataError, InputError
from luban.explaining._base import Explanation
from luban.explaining._case import Case
from luban.explaining.influence import Influence
from luban.predict import load
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
