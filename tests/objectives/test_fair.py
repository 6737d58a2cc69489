"""Reweighing makes group and class independent; the penalty is what its formula says, and shrinks what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import luban
from audit_cases import people, trained
from luban.data.contracts import Field
from luban.errors import RecipeError
from luban.objectives._base import TargetFacts
from luban.recipe import Data, Section, load

COUNTS = np.array([[30, 10], [10, 50]])  # classes x groups
DATA = {"train": "x.csv", "inputs": {"a": "number"}, "targets": {"label": "binary"}, "groups": ["sex"]}


def objective(counts: Any = COUNTS, **options: Any) -> Any:
    field = Field("label", "binary", "target", "float32", output="logits", width=1)
    facts = TargetFacts(
        "label.value", field, ["no", "yes"], [40, 60], 100, lambda columns: (counts, [counts.shape[1]])
    )
    one: Any = Section("objectives").parse({"objective": "binary_cross_entropy", **options})
    one.groups(load({"data": DATA, "model": "mlp"}).data)
    one.setup({"label": facts})
    return one


def batch(truth: list[int], group: list[int], **more: Any) -> Any:
    return {"label.value": torch.tensor(truth).float(), "sex.group": torch.tensor(group), **more}


class Given(torch.nn.Module):
    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits)[:, None])

    def forward(self, batch: Any) -> Any:
        return {"label.logits": self.logits}


def test_weights_are_those_of_kamiran_and_calders() -> None:
    one = objective(type="reweigh")
    given = batch([0, 0, 1, 1], [0, 1, 0, 1])
    expected = torch.tensor([0.4 * 0.4 / 0.3, 0.4 * 0.6 / 0.1, 0.6 * 0.4 / 0.1, 0.6 * 0.6 / 0.5])
    assert float(one.count(given)["label"]) == pytest.approx(float(expected.sum()))
    logits = [0.3, -0.2, 0.8, 1.0]
    part = one.forward(Given(logits), given)["label"]
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), given["label.value"], reduction="none"
    )
    assert float(part.total.detach()) == pytest.approx(float((each * expected).sum()), rel=1e-5)
    own = one.forward(Given(logits), {**given, "row.weight": torch.tensor([2.0, 0, 0, 0])})["label"]
    assert float(own.count) == pytest.approx(2 * float(expected[0]))
    with torch.no_grad():  # validation rows are measured without
        assert float(one.forward(Given(logits), given)["label"].count) == 4


def test_reweighed_parts_of_a_batch_add_up() -> None:
    one, logits = objective(type="reweigh"), [0.3, -0.2, 0.8, 1.0]
    truth, group = [0, 0, 1, 1], [0, 1, 0, 1]
    whole = one.forward(Given(logits), batch(truth, group))["label"]
    parts = [
        one.forward(Given(logits[s]), batch(truth[s], group[s]))["label"] for s in (slice(0, 1), slice(1, 4))
    ]
    assert float(sum(p.total.detach() for p in parts)) == pytest.approx(float(whole.total.detach()), rel=1e-5)
    assert float(sum(p.count for p in parts)) == pytest.approx(float(whole.count))


def test_with_these_weights_group_and_class_are_independent() -> None:
    weights = objective(type="reweigh")._weights.double().numpy() * COUNTS
    assert weights == pytest.approx(np.outer(weights.sum(1), weights.sum(0)) / weights.sum())


@pytest.mark.parametrize("constraint", ["demographic_parity", "equalized_odds"])
def test_the_penalty_is_the_squared_distance_of_group_means(constraint: str) -> None:
    one = objective(type="fair", alpha=5.0, constraint=constraint)
    # A batch in which groups are exactly as frequent as in training: expected and actual means agree.
    truth = np.repeat([0, 0, 1, 1], COUNTS.ravel())
    group = np.repeat([0, 1, 0, 1], COUNTS.ravel())
    scores = torch.rand(100, 1, generator=torch.Generator().manual_seed(0))
    found = float(one.penalty(scores, torch.from_numpy(truth), torch.from_numpy(group)))
    s, expected = scores[:, 0].double().numpy(), 0.0
    for within in [np.full(100, True)] if constraint == "demographic_parity" else [truth == 0, truth == 1]:
        for g in (0, 1):
            mine = within & (group == g)
            expected += mine.mean() * (s[mine].mean() - s[within].mean()) ** 2
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_penalty_is_added_to_the_loss_in_training_only() -> None:
    one, given = objective(type="fair", alpha=5.0), batch([0, 1, 1, 0], [0, 1, 1, 0])
    model = Given([-1.0, 2.0, 1.0, -2.0])
    with_it = one.forward(model, given)["label"]
    with torch.no_grad():
        without = one.forward(model, given)["label"]
    penalty = float(
        one.penalty(model.logits.detach().sigmoid(), given["label.value"].long(), given["sex.group"])
    )
    assert float((with_it.total - without.total).detach()) == pytest.approx(5 * 4 * penalty, rel=1e-5)
    assert penalty > 0.04


@pytest.mark.parametrize(
    ("options", "data", "words"),
    [
        ({"by": ["city"]}, {}, "'city' is none of data.groups, which are group"),
        ({}, {"groups": []}, "data.groups names no column"),
        (
            {"objective": {"type": "adversarial", "objective": "binary_cross_entropy"}},
            {},
            "does not compare a target row by row",
        ),
        (
            {"type": "reweigh", "objective": {"type": "fair_adversary", "objective": "binary_cross_entropy"}},
            {},
            "objective reweigh: 'fair_adversary' does not compare a target row by row",
        ),
    ],
)
def test_what_cannot_be_fair_is_refused(
    options: dict[str, Any], data: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        trained(
            tmp_path,
            people(300),
            data,
            objective={"type": "fair", "objective": "binary_cross_entropy", **options},
        )


def test_the_recipe_says_which_rows_are_whose(tmp_path: Path) -> None:
    """A group that is no input is known to the objective and unknown to the model."""
    rows = people(4000)
    gone = pl.Series(np.random.default_rng(0).random(4000) < 0.7) & (rows["group"] == "b")
    label = pl.select(pl.when(gone).then(pl.lit("no")).otherwise(rows["label"])).to_series()
    rows = rows.with_columns(label.alias("label"), (pl.col("group") == "b").cast(pl.Float64).alias("shade"))
    data = {"inputs": {"skill": "number", "shade": "number"}}
    differences = {}
    for name, upon in (
        ("plain", {}),
        ("fair", {"objective": {"type": "fair", "alpha": 100.0, "objective": "binary_cross_entropy"}}),
        ("reweigh", {"objective": {"type": "reweigh", "objective": "binary_cross_entropy"}}),
    ):
        result = trained(tmp_path, rows, data, audits=["fairness"], **upon)
        audit = json.loads((Path(result["artefact"]) / "audit.json").read_text())
        differences[name] = audit["figures"]["fairness.demographic_parity_difference"]
        predictor = luban.load(result["artefact"])
        assert not any("group" in field for field in predictor.spec.fields)
        predictor.predict([{"skill": 0.2, "shade": 1.0}])
    assert differences["plain"] > 0.3
    assert differences["fair"] < differences["plain"] / 3
    assert differences["reweigh"] < differences["plain"] / 2


def test_mixed_rows_are_refused() -> None:
    given = batch([0, 1], [0, 1], **{"mix.partner": torch.tensor([1, 0]), "mix.share": torch.ones(2)})
    with pytest.raises(RecipeError, match="mixup and cutmix"):
        objective(type="fair").forward(Given([0.0, 1.0]), given)


def test_the_data_section_is_what_it_asks() -> None:
    one: Any = Section("objectives").parse({"type": "fair", "objective": "binary_cross_entropy"})
    assert one.groups(Data.model_validate({**DATA, "groups": ["sex", "age"]})) == ["sex", "age"]
