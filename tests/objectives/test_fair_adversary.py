"""The adversary's game by hand, on tables whose bias is known, and through kills and restarts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

import luban
from audit_cases import people, trained
from luban.data.contracts import Field
from luban.errors import RecipeError
from luban.objectives._base import TargetFacts
from luban.recipe import Section, load
from luban.testing import check_objective
from luban.training.checkpoint import Checkpoints, split
from luban.training.step import GradientStep, compute_losses

COUNTS = np.array([[30, 10, 5], [10, 40, 5]])  # classes x groups
DATA = {"train": "x.csv", "inputs": {"a": "number"}, "targets": {"label": "binary"}, "groups": ["sex"]}
INNER = {
    "binary": ("binary_cross_entropy", 1, "logits"),
    "category": ("cross_entropy", 2, "logits"),
    "number": ("mean_squared", 1, "value"),
    "set": ("binary_cross_entropy", 2, "logits"),
}


class Given(torch.nn.Module):
    """A model whose outputs are its parameters."""

    def __init__(self, values: Tensor, output: str = "logits") -> None:
        super().__init__()
        self.values, self.output = torch.nn.Parameter(values.clone()), output

    def forward(self, batch: Any) -> Any:
        return {f"label.{self.output}": self.values[batch["row"]]}


def objective(
    kind: str = "binary", counts: Any = COUNTS, model: Any = None, outer: bool = False, **options: Any
) -> Any:
    inner, width, output = INNER[kind]
    field = Field("label", kind, "target", "float32", output=output, width=width)
    tally = counts.sum(0, keepdims=True) if kind == "number" else counts
    facts = TargetFacts(
        "label.value",
        field,
        None if kind == "number" else ["no", "yes"],
        None if kind == "number" else counts.sum(1).tolist(),
        int(counts.sum()),
        lambda columns: (tally, [counts.shape[1]]),
    )
    named = {"type": "fair_adversary", "objective": inner, **options}
    one: Any = Section("objectives").parse({"type": "adversarial", "objective": named} if outer else named)
    one.groups(load({"data": DATA, "model": "mlp"}).data)
    one.setup({"label": facts})
    torch.manual_seed(0)
    one.begin(model or Given(torch.zeros(1, width)))
    return one


def learnt(one: Any) -> Any:
    """The objective with an adversary that is past its beginnings."""
    with torch.no_grad():
        for parameter in one._adversary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return one


def rows(n: int = 12, kind: str = "binary") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(2, (n,), generator=generator)
    return {
        "row": torch.arange(n), "label.value": truth if kind == "category" else truth.float(),
        "sex.group": torch.randint(3, (n,), generator=generator), "row.weight": torch.rand(n, generator=generator) + 0.5,
    }  # fmt: skip


def logits(n: int, width: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(2))


def by_hand(one: Any, output: Tensor, batch: dict[str, Any], kind: str, odds: bool) -> Tensor:
    """What an adversary tells, as its definition has it."""
    seen, prior = output, np.log(COUNTS.sum(0) + 1.0) - np.log((COUNTS.sum(0) + 1.0).sum())
    shares = torch.from_numpy(prior).float().expand(len(output), -1)
    if kind == "category":
        seen = output - output.logsumexp(1, keepdim=True)
    if odds:
        truth = batch["label.value"].long()
        seen = torch.cat([seen, F.one_hot(truth, 2).float()], 1)
        within = (COUNTS + 1.0) / (COUNTS + 1.0).sum(1, keepdims=True)
        shares = torch.from_numpy(np.log(within)).float()[truth]
    own = torch.arange(len(output)), batch["sex.group"]
    told: Tensor = (shares + one._adversary(seen)).log_softmax(1)[own] - shares[own]
    return (told * batch["row.weight"]).sum()


@pytest.mark.parametrize(
    ("kind", "constraint"),
    [
        ("binary", "demographic_parity"),
        ("binary", "equalized_odds"),
        ("category", "demographic_parity"),
        ("category", "equalized_odds"),
        ("number", "demographic_parity"),
    ],
)
def test_both_sides_get_the_gradients_of_their_own_game(kind: str, constraint: str) -> None:
    _, width, output = INNER[kind]
    one, batch = learnt(objective(kind, alpha=3.0, constraint=constraint, weight=2.0)), rows(kind=kind)
    model = Given(logits(12, width), output)
    parts = one.forward(model, batch)
    assert {name: part.weight for name, part in parts.items()} == {"label": 2.0, "label.information": 0.0}
    assert {name: float(n) for name, n in one.count(batch).items()} == {
        name: float(part.count) for name, part in parts.items()
    }
    told = by_hand(one, model.values, batch, kind, constraint == "equalized_odds")
    plain = one.inner.forward(model, batch)["label"].total
    torch.testing.assert_close(parts["label.information"].total, told.detach())
    torch.testing.assert_close(parts["label"].total.detach(), (plain + 3 * told).detach())
    (of_model,) = torch.autograd.grad(plain + 3 * told, model.values, retain_graph=True)
    of_adversary = torch.autograd.grad(-told, [*one._adversary.parameters()])
    parts["label"].total.backward()
    torch.testing.assert_close(model.values.grad, of_model)
    for parameter, expected in zip(one._adversary.parameters(), of_adversary, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    with (
        torch.no_grad()
    ):  # validation rows are measured without the penalty, and what is told of them beside it
        seen = one.forward(model, batch)
    assert float(seen["label"].total) == pytest.approx(float(plain.detach()))
    torch.testing.assert_close(seen["label.information"].total, told.detach())
    assert one.describe({"label.information.loss": 0.25}) == {"label.information": 0.25}


@pytest.mark.parametrize("constraint", ["demographic_parity", "equalized_odds"])
def test_it_begins_by_knowing_nothing(constraint: str) -> None:
    told = objective(constraint=constraint).forward(Given(logits(12, 1)), rows())["label.information"]
    assert float(told.total) == pytest.approx(0.0, abs=1e-6)


def test_parts_of_a_batch_add_up() -> None:
    """Accumulation is exact on both sides: an update of three pieces is that of the batch they make."""
    after = []
    for pieces in ([slice(0, 12)], [slice(0, 2), slice(2, 9), slice(9, 12)]):
        one, model = learnt(objective(alpha=2.0, constraint="equalized_odds")), Given(logits(12, 1))
        gradients: list[Tensor] = []
        one._optimizer.step = lambda gradients=gradients, one=one: gradients.extend(
            p.grad.clone() for p in one._adversary.parameters()
        )
        step = GradientStep(model, [one], torch.optim.SGD(model.parameters(), lr=1.0))
        figures = step([{name: value[piece] for name, value in rows().items()} for piece in pieces])
        after.append(([model.values.detach(), *gradients], {name: float(v) for name, v in figures.items()}))
    assert after[0][1] == pytest.approx(after[1][1], rel=1e-5)
    assert len(after[0][0]) == 5
    for whole, parts in zip(after[0][0], after[1][0], strict=True):
        torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("constraint", ["demographic_parity", "equalized_odds"])
def test_what_it_learns_to_tell_is_the_mutual_information(constraint: str) -> None:
    """Of logits that take three values the information about the group, given the class or not, is a sum over a table."""
    table = np.array(
        [[[60, 10, 10], [15, 20, 25]], [[20, 20, 20], [5, 30, 65]]]
    )  # classes x groups x values; both depend on the group
    place = np.array([index for index, n in np.ndenumerate(table) for _ in range(n)])
    truth, group, value = torch.from_numpy(place).T
    model = Given(torch.tensor([-2.0, 0.5, 3.0])[value][:, None])
    one = objective(counts=table.sum(2), alpha=0.0, constraint=constraint, learning_rate=0.03)
    batch = {"row": torch.arange(len(place)), "label.value": truth.float(), "sex.group": group}
    for _ in range(400):
        one.forward(model, batch)["label"].total.backward()
        one.after_update()
    joint = table / table.sum()
    if constraint == "demographic_parity":
        joint = joint.sum(0, keepdims=True)
    alike = joint.sum(1, keepdims=True) * joint.sum(2, keepdims=True) / joint.sum((1, 2), keepdims=True)
    information = float((joint * np.log(joint / alike)).sum())
    assert information > 0.05
    told = one.forward(model, batch)["label.information"]
    assert float(told.total / told.count) == pytest.approx(information, abs=0.003)


def unfair(n: int = 3000) -> pl.DataFrame:
    """People of two groups, who do not have the same luck with their labels; 'shade' tells the group."""
    table = people(n)
    gone = pl.Series(np.random.default_rng(0).random(n) < 0.7) & (table["group"] == "b")
    label = pl.select(pl.when(gone).then(pl.lit("no")).otherwise(table["label"])).to_series()
    return table.with_columns(label.alias("label"), (pl.col("group") == "b").cast(pl.Float64).alias("shade"))


UNFAIR = {"inputs": {"skill": "number", "shade": "number"}}


def run(folder: Path, audit: bool = True, **options: Any) -> dict[str, Any]:
    wrapped = {"type": "fair_adversary", "objective": "binary_cross_entropy", **options}
    upon: dict[str, Any] = {"objective": wrapped} if options else {}
    result = trained(folder, unfair(), UNFAIR, audits=["fairness"] if audit else [], **upon)
    place = Path(result["artefact"])
    found: dict[str, Any] = {
        "weights": safetensors.torch.load_file(place / "model.safetensors"),
        "accuracy": result["metrics"]["label.accuracy"]["value"],
        "told": json.loads((place / "metrics.json").read_text())["history"][-1].get("label.information"),
    }
    return found | (json.loads((place / "audit.json").read_text())["figures"] if audit else {})


def test_the_model_leaves_less_to_tell_and_decides_more_alike(tmp_path: Path) -> None:
    measured, trained_against = run(tmp_path, alpha=0.0), run(tmp_path, alpha=3.0)
    name = "fairness.group.demographic_parity_difference"
    assert measured[name] > 0.3
    assert trained_against[name] < measured[name] / 4
    assert trained_against["accuracy"] > measured["accuracy"] - 0.12
    assert measured["told"] > 0.15
    assert trained_against["told"] < measured["told"] / 5


def test_without_alpha_it_only_measures(tmp_path: Path) -> None:
    """The artefact is that of the plain objective, bit for bit, and holds nothing of the adversary."""
    plain, measured = run(tmp_path, audit=False), run(tmp_path, audit=False, alpha=0.0)
    assert plain["weights"].keys() == measured["weights"].keys()
    for name, value in plain["weights"].items():
        assert torch.equal(value, measured["weights"][name]), name
    assert plain["told"] is None
    predictor = luban.load(tmp_path / "model")
    predictor.predict([{"skill": 0.2, "shade": 1.0}])  # without a group


def test_equal_odds_are_asked_for_within_the_classes() -> None:
    """Logits that follow the class alone differ by group, and by nothing within a class: one constraint minds, the other does not."""
    table = np.array([[400, 100], [100, 400]])
    place = np.array([index for index, n in np.ndenumerate(table) for _ in range(n)])
    truth, group = torch.from_numpy(place).T
    batch = {"row": torch.arange(1000), "label.value": truth.float(), "sex.group": group}
    told = {}
    for constraint in ("demographic_parity", "equalized_odds"):
        one = objective(counts=table, constraint=constraint, alpha=0.0)
        model = Given(truth[:, None] * 4.0 - 2.0)
        for _ in range(200):
            one.forward(model, batch)["label"].total.backward()
            one.after_update()
        part = one.forward(model, batch)["label.information"]
        told[constraint] = float(part.total / part.count)
    assert told["demographic_parity"] > 0.15
    assert abs(told["equalized_odds"]) < 0.002


def test_adversaries_of_other_groups_have_figures_of_their_own() -> None:
    first, second = objective(by=["sex"]), objective()
    parts = compute_losses([first, second], Given(logits(12, 1)), rows())
    assert set(parts) == {"label", "label.sex.information", "label.fair_adversary", "label.information"}
    figures = {"label.sex.information.loss": 0.25, "label.information.loss": 0.5}
    assert first.describe(figures) | second.describe(figures) == {
        "label.sex.information": 0.25,
        "label.information": 0.5,
    }
    assert first.describe({}).keys() == {"label.sex.information"}  # which train.metric may name


def test_outputs_are_shared_with_other_objectives() -> None:
    passes = []
    model = Given(logits(12, 1))
    model.register_forward_hook(lambda *_: passes.append(1))
    other: Any = Section("objectives").parse("binary_cross_entropy")
    one = objective()
    other.setup({"label": one.inner.facts})
    assert len(compute_losses([one, other], model, rows())) == 3
    assert len(passes) == 1


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, batch: Any) -> Any:
        return {"label.logits": self.linear(batch["x.value"])}


def begun(outer: bool) -> GradientStep:
    """A run at its beginning, with the objective as it is or within another one."""
    torch.manual_seed(0)
    net = Net()
    one = objective(alpha=2.0, outer=outer, model=net)
    return GradientStep(net, [one], torch.optim.Adam(net.parameters(), lr=0.1))


@pytest.mark.parametrize("outer", [False, True])
def test_a_run_goes_on_with_the_adversary_that_it_had(outer: bool, tmp_path: Path) -> None:
    batch = rows(30) | {"x.value": logits(30, 4)}
    straight, stopped, forgetful = begun(outer), begun(outer), begun(outer)
    for _ in range(8):
        straight([batch])
    for _ in range(5):
        stopped([batch])
    Checkpoints(tmp_path).save(5, stopped.state(), None, best_changed=False)
    for restarted in (resumed := begun(outer), forgetful):
        found = Checkpoints(tmp_path).load()
        assert found is not None
        if restarted is forgetful:
            del found[0]["objectives"]
        restarted.restore(found[0])
        for _ in range(3):
            restarted([batch])
    ends = [split(one.state(), tensors := {}) and tensors for one in (straight, resumed, forgetful)]
    assert any("adversary" in name for name in ends[0])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not torch.equal(ends[0]["/model/linear.weight"], ends[2]["/model/linear.weight"])


@pytest.mark.parametrize("constraint", ["demographic_parity", "equalized_odds"])
@pytest.mark.parametrize("kind", ["binary", "category"])
def test_the_contract_of_objectives_that_learn(kind: str, constraint: str) -> None:
    one = objective(kind, alpha=2.0, constraint=constraint)
    check_objective(
        one, {"label": one.inner.facts}, {"label.logits": logits(12, INNER[kind][1])}, rows(kind=kind)
    )


def test_what_the_inner_objective_learns_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    one = objective()
    monkeypatch.setattr(type(one.inner), "state", lambda self: {"step": 3})
    monkeypatch.setattr(type(one.inner), "restore", lambda self, state: kept.append(state))
    one.restore(one.state())
    assert kept == [{"step": 3}]


@pytest.mark.parametrize(
    ("kind", "options", "counts", "words"),
    [
        ("set", {}, COUNTS, "fits a category, binary or number, and target 'label' is a set"),
        ("number", {"constraint": "equalized_odds"}, COUNTS, "is a number; take demographic_parity"),
        ("binary", {}, np.array([[0, 30], [0, 40]]), "all training rows have the same sex"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, options: dict[str, Any], counts: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        objective(kind, counts, **options)


@pytest.mark.parametrize(
    ("options", "data", "words"),
    [
        ({"by": ["city"]}, {}, "'city' is none of data.groups, which are group"),
        ({}, {"groups": []}, "objective fair_adversary: data.groups names no column"),
        ({"objective": {"type": "fair", "objective": "binary_cross_entropy"}}, {}, "does not compare a target row by row"),
        ({"alpha": -1.0}, {}, "alpha"),
    ],
)  # fmt: skip
def test_what_no_data_fit_is_refused(
    options: dict[str, Any], data: dict[str, Any], words: str, tmp_path: Path
) -> None:
    wrapped = {"type": "fair_adversary", "objective": "binary_cross_entropy", **options}
    with pytest.raises(RecipeError, match=words):
        trained(tmp_path, people(300), data, objective=wrapped)


def test_mixed_rows_are_refused() -> None:
    given = rows() | {"mix.partner": torch.arange(12), "mix.share": torch.ones(12)}
    with pytest.raises(RecipeError, match="mixup and cutmix"):
        objective().forward(Given(logits(12, 1)), given)
