"""R-Drop by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luban.data.contracts import Field
from luban.errors import RecipeError
from luban.objectives._base import Objective, TargetFacts
from luban.recipe import Section
from luban.testing import check_objective
from luban.training.step import GradientStep

WIDTHS = {"category": 3, "binary": 1, "set": 4, "number": 1}
INNER = {"category": "cross_entropy", "binary": "binary_cross_entropy", "set": "binary_cross_entropy"}


def facts(kind: str) -> dict[str, TargetFacts]:
    width = WIDTHS[kind]
    output = "value" if kind == "number" else "logits"
    return {"t": TargetFacts("t.x", Field("t", kind, "target", "int64", size=width, output=output, width=width), list("abcd")[: max(2, width)], None, 6)}  # fmt: skip


def objective(kind: str = "category", inner: dict[str, Any] | None = None, **options: Any) -> Objective:
    made = Section("objectives").parse({"type": "r_drop", "objective": inner or INNER[kind], **options})
    assert isinstance(made, Objective)
    made.setup(facts(kind))
    return made


class Net(nn.Module):
    """Remembers what each pass gave."""

    def __init__(self, width: int, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(8, width), nn.Dropout(dropout)
        self.given: list[Tensor] = []

    def forward(self, batch: Any) -> dict[str, Tensor]:
        self.given.append(self.linear(self.dropout(batch["x.value"])))
        return {"t.logits": self.given[-1]}


def batch(kind: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    shape = (6, 4) if kind == "set" else (6,)
    return {
        "x.value": torch.randn(6, 8, generator=generator), "t.x": torch.randint(2, shape, generator=generator),
        "row.weight": torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0]),
    }  # fmt: skip


def kl(p: Tensor, q: Tensor, kind: str) -> Tensor:
    """KL(p, q) of each row, spelt out."""
    if kind == "category":
        return (p.softmax(1) * (p.softmax(1) / q.softmax(1)).log()).sum(1)
    both = [(one.sigmoid(), 1 - one.sigmoid()) for one in (p, q)]
    return sum(a * (a / b).log() for a, b in zip(*both, strict=True)).mean(1)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("kind", INNER)
def test_by_hand(kind: str) -> None:
    net, data = Net(WIDTHS[kind]), batch(kind)
    parts = objective(kind, alpha=3.0, weight=2.0).forward(net, data)
    p, q = net.given
    assert not torch.equal(p, q)
    weight = data["row.weight"]

    def loss(logits: Tensor) -> Tensor:
        if kind == "category":
            return (F.cross_entropy(logits, data["t.x"], reduction="none") * weight).sum()
        target = data["t.x"].reshape(6, -1).float()
        rows = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        return (rows * weight).sum()

    divergence = ((kl(p, q, kind) + kl(q, p, kind)) / 2 * weight).sum()
    assert divergence.detach() > 0.1
    assert list(parts) == ["t"]
    torch.testing.assert_close(parts["t"].total, (loss(p) + loss(q)) / 2 + 3.0 * divergence)
    assert (float(parts["t"].count), parts["t"].weight) == (8.5, 2.0)


def test_class_weights_and_mixed_rows() -> None:
    """A row's divergence weighs what the row weighs in the inner loss."""
    inner = {"type": "cross_entropy", "class_weights": {"a": 3.0}}
    plain = Section("objectives").parse(inner)
    assert isinstance(plain, Objective)
    plain.setup(facts("category"))
    net, data = Net(3), batch("category")
    data |= {"mix.partner": torch.tensor([1, 0, 2, 3, 5, 4]), "mix.share": torch.full((6,), 0.75)}
    parts = objective(inner=inner).forward(net, data)
    own = torch.where(data["t.x"] == 0, 3.0, 1.0) * data["row.weight"]
    weight = 0.75 * own + 0.25 * own[data["mix.partner"]]
    p, q = net.given
    expected = ((kl(p, q, "category") + kl(q, p, "category")) / 2 * weight).sum()
    both = [plain.losses({"t.logits": one}, data)["t"] for one in (p, q)]
    torch.testing.assert_close(parts["t"].total, (both[0].total + both[1].total) / 2 + expected)
    torch.testing.assert_close(parts["t"].count, weight.sum())


def test_evaluation_is_the_inner_one() -> None:
    net, data = Net(3), batch("category")
    with torch.no_grad():
        parts = objective().forward(net.eval(), data)
    assert list(parts) == ["t"]
    assert len(net.given) == 1


def test_accumulated_counts() -> None:
    net, data = Net(3), batch("category")
    step = GradientStep(net, [objective(alpha=0.5)], torch.optim.SGD(net.parameters(), lr=0.1))
    figures = step([{k: v[:4] for k, v in data.items()}, {k: v[4:] for k, v in data.items()}])
    p, q = (torch.cat(net.given[i::2]) for i in range(2))
    divergence = 0.5 * (kl(p, q, "category") + kl(q, p, "category")) / 2
    losses = [F.cross_entropy(one, data["t.x"], reduction="none") for one in (p, q)]
    rows = (losses[0] + losses[1]) / 2 + divergence
    torch.testing.assert_close(figures["loss"], (rows * data["row.weight"]).sum() / 8.5)


def test_inside_adversarial_training() -> None:
    """The vectors of both passes are moved, each by its own gradient."""
    options = {
        "type": "adversarial",
        "objective": {"type": "r_drop", "objective": "cross_entropy"},
        "epsilon": 0.5,
    }
    made = Section("objectives").parse(options)
    assert isinstance(made, Objective)
    made.setup(facts("category"))
    net = Net(3)
    parts = made.forward(net, batch("category"))
    assert set(made.count(batch("category"))) == set(parts) == {"t"}
    assert len(net.given) == 4


@pytest.mark.parametrize("wrapper", ["r_drop", "adversarial"])
@pytest.mark.parametrize("kind", INNER)
def test_the_contract_of_objectives(kind: str, wrapper: str) -> None:
    made = Section("objectives").parse({"type": wrapper, "objective": INNER[kind], "weight": 2.0})
    assert isinstance(made, Objective)
    outputs = {"t.logits": torch.randn(6, WIDTHS[kind], generator=torch.Generator().manual_seed(3))}
    check_objective(made, facts(kind), outputs, batch(kind))


@pytest.mark.parametrize(
    ("kind", "inner", "sentence"),
    [
        ("number", "mean_squared", "is a number, but it fits category, binary, set"),
        (
            "category",
            {"type": "adversarial", "objective": "cross_entropy"},
            "'adversarial' is about something else",
        ),
    ],
)
def test_what_has_no_divergence_refuses(kind: str, inner: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        objective(kind, inner)


def test_a_model_without_dropout_refuses() -> None:
    with pytest.raises(RecipeError, match="the model has no dropout"):
        objective().forward(Net(3, dropout=0.0), batch("category"))
