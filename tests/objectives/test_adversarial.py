"""Adversarial training by hand: where the inputs are moved, what the loss is, and what it does not depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luban.adapt.lora import LoRA
from luban.artefact import build_model
from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Objective, TargetFacts
from luban.recipe import Section, load
from luban.training.step import GradientStep

LABEL = Field("label", "category", "target", "int64", size=3, output="logits", width=3)
FACTS = {"label": TargetFacts("label.index", LABEL, ["x", "y", "z"], [2, 1, 1], 4)}
CROSS: dict[str, Any] = {"type": "cross_entropy"}


def objective(**options: Any) -> Objective:
    made = Section("objectives").parse({"type": "adversarial", "objective": CROSS, **options})
    assert isinstance(made, Objective)
    made.setup(FACTS)
    return made


class Bag(nn.Module):
    """The mean of a text's vectors and two numbers, times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(6, 3)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        ids = batch["text.ids"]
        return {"label.logits": self.above(self.table(ids.values), ids, batch["age.value"])}

    def above(self, vectors: Tensor, ids: Ragged, ages: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat([ids.like(vectors).mean().tanh(), ages], 1))
        return result


def batch() -> Batch:
    rows = [torch.tensor(row) for row in ([1, 2, 3], [4], [5, 6], [7, 8, 1, 2])]
    ages = torch.tensor([[0.5, -1.0], [2.0, 0.1], [0.0, 1.0], [-1.0, -1.0]])
    return {
        "text.ids": Ragged.from_rows(rows), "age.value": ages, "label.index": torch.tensor([0, 2, 1, 0]), "row.weight": torch.tensor([1.0, 2.0, 0.5, 1.0]),
    }  # fmt: skip


def model() -> Bag:
    torch.manual_seed(0)
    return Bag()


def loss_by_hand(net: Bag, vectors: Tensor, ages: Tensor) -> Tensor:
    data: Any = batch()
    logits = net.above(vectors, data["text.ids"], ages)
    return (F.cross_entropy(logits, data["label.index"], reduction="none") * data["row.weight"]).sum()


def step_by_hand(gradient: Tensor, rows: list[int], size: float, norm: str) -> Tensor:
    if norm == "linf":
        return size * gradient.sign()
    result = torch.zeros_like(gradient)
    for row in set(rows):
        mine = [i for i, one in enumerate(rows) if one == row]
        result[mine] = size * gradient[mine] / gradient[mine].norm()
    return result


def back_by_hand(move: Tensor, rows: list[int], radius: float, norm: str) -> Tensor:
    if norm == "linf":
        return move.clamp(-radius, radius)
    result = move.clone()
    for row in set(rows):
        mine = [i for i, one in enumerate(rows) if one == row]
        result[mine] *= min(1.0, radius / float(move[mine].norm()))
    return result


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", [("fgm", 1, 0.3), ("pgd", 3, 0.2), ("pgd", 2, None)])
def test_by_hand(method: tuple[str, int, float | None], norm: str) -> None:
    name, steps, size = method
    epsilon = 0.3
    options: dict[str, Any] = {} if name == "fgm" else {"steps": steps, "step_size": size}
    net = model()
    parts = objective(method=name, epsilon=epsilon, norm=norm, **options).forward(net, batch())
    assert list(parts) == ["label"]
    assert float(parts["label"].count) == 4.5

    data: Any = batch()
    size = 2.5 * epsilon / steps if size is None else size
    vectors, ages = net.table(data["text.ids"].values), data["age.value"]
    clean = loss_by_hand(net, vectors, ages)
    rows: list[int] = data["text.ids"].rows.tolist()
    moves = [torch.zeros_like(vectors), torch.zeros_like(ages)]
    for _ in range(steps):
        at = [
            (one + move).detach().requires_grad_() for one, move in zip((vectors, ages), moves, strict=True)
        ]
        gradients = torch.autograd.grad(loss_by_hand(net, *at), at)
        for i, own in enumerate((rows, [0, 1, 2, 3])):
            there = moves[i] + step_by_hand(gradients[i], own, size, norm)
            moves[i] = back_by_hand(there, own, epsilon, norm).detach()
    expected = loss_by_hand(net, vectors + moves[0], ages + moves[1])
    torch.testing.assert_close(parts["label"].total, clean + expected)
    assert expected.detach() > clean.detach() + 0.1
    # The move counts as a constant: the gradient is that of both losses at their inputs.
    own = torch.autograd.grad(parts["label"].total, [*net.parameters()])
    wanted = torch.autograd.grad(clean + expected, [*net.parameters()])
    for left, right in zip(own, wanted, strict=True):
        torch.testing.assert_close(left, right)


def test_nothing_is_left_behind() -> None:
    net, data = model(), batch()
    before = dict(data)
    objective().forward(net, data)
    assert all(data[name] is value for name, value in before.items())
    assert not net.table._forward_hooks
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_evaluation_is_clean() -> None:
    net = model()
    plain = Section("objectives").parse(CROSS)
    assert isinstance(plain, Objective)
    plain.setup(FACTS)
    with torch.no_grad():
        parts = objective(weight=2.0).forward(net, batch())
        assert list(parts) == ["label"]
        assert torch.equal(parts["label"].total, plain.forward(net, batch())["label"].total)
        assert parts["label"].weight == 2.0


# --- any family -------------------------------------------------------------------------------------------

TEXT = Field("text", "text", "input", "int64", None, size=30)
IMAGE = Field("photo", "image", "input", "uint8", (16, 16, 1))
CITY = Field("city", "category", "input", "int64", size=40)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("text", {"layers": 2, "hidden_size": 16, "heads": 2}),
    "gpt2": ("text", {"layers": 2, "hidden_size": 16, "heads": 2}),
    "llama": ("text", {"layers": 2, "hidden_size": 16, "heads": 2, "kv_heads": 1}),
    "transformer": ("text", {"layers": 2, "hidden_size": 16, "heads": 2}),
    "rnn": ("text", {"size": "tiny"}),
    "textcnn": ("text", {"size": "tiny", "embedding_dropout": 0.0}),
    "fasttext": ("text", {"size": "tiny"}),
    "cnn": ("image", {"size": "tiny"}),
    "resnet": ("image", {"size": "tiny", "norm": "group"}),
    "mlp": ("category", {"hidden": [8]}),
}
STILL: dict[str, Any] = {"dropout": 0.0}


def case(family: str) -> tuple[nn.Module, dict[str, Any]]:
    kind, options = FAMILIES[family]
    generator = torch.Generator().manual_seed(2)
    field, name, value = {
        "text": (TEXT, "text.ids", Ragged.from_rows([torch.randint(30, (n,), generator=generator) for n in (5, 1, 9, 3)])),
        "image": (IMAGE, "photo.pixels", torch.rand(4, 1, 16, 16, generator=generator)),
        "category": (CITY, "city.index", torch.randint(40, (4,), generator=generator)),
    }[kind]  # fmt: skip
    spec = Spec({name: field, "label.index": LABEL})
    layered = {"layer_dropout": 0.0, "attention_dropout": 0.0} if "heads" in options else {}
    torch.manual_seed(0)
    net = build_model(
        Section("models").parse({"type": family, **options, **STILL, **layered}), [], spec
    ).train()
    return net, {name: value, "label.index": torch.tensor([0, 2, 1, 0])}


def rows_of(data: dict[str, Any], rows: list[int]) -> Batch:
    return {
        name: Ragged.from_rows([value[i] for i in rows]) if isinstance(value, Ragged) else value[rows]
        for name, value in data.items()
    }


def gradients_of(net: nn.Module, parts: list[Mapping[str, Any]]) -> list[Tensor]:
    net.zero_grad()
    torch.stack([loss.total for one in parts for loss in one.values()]).sum().backward()  # type: ignore[no-untyped-call]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("method", ["fgm", "pgd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_batch(family: str, method: str) -> None:
    """Totals and gradients of a batch are those of its parts added up, so that accumulation is exact."""
    net, data = case(family)
    made = objective(method=method, epsilon=0.5)
    whole = made.forward(net, data)
    with torch.no_grad():
        clean = made.forward(net, data)["label"].total
    assert whole["label"].total.detach() > 2 * clean + 1e-4
    parts = [made.forward(net, rows_of(data, rows)) for rows in ([2], [0, 3], [1])]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name].total for part in parts), loss.total, rtol=1e-4, atol=1e-5)
        assert float(loss.count) == 4.0
    for left, right in zip(gradients_of(net, [whole]), gradients_of(net, parts), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_columns_of_numbers_are_moved(method: str) -> None:
    """A number a row is as long as it is large, so that both norms say the same of it."""
    fields = {f"{name}.value": Field(name, "number", "input", "float32") for name in ("age", "fare")}
    torch.manual_seed(0)
    net = build_model(Section("models").parse({"type": "mlp", "hidden": [8]}), [], Spec({**fields, "label.index": LABEL}))  # fmt: skip
    data = {name: torch.randn(4) for name in fields} | {"label.index": torch.tensor([0, 2, 1, 0])}
    totals = {
        norm: objective(method=method, norm=norm, epsilon=0.5).forward(net, data)["label"].total.detach()
        for norm in ("l2", "linf")
    }
    torch.testing.assert_close(totals["l2"], totals["linf"])
    with torch.no_grad():
        assert totals["l2"] > 2 * objective().forward(net, data)["label"].total + 1e-3


def test_a_pair_of_texts_is_one_input() -> None:
    """The ids of a pair are joined inside the model; each row still has one ball for both texts."""
    other = Field("other", "text", "input", "int64", None, size=30)
    spec = Spec({"text.ids": TEXT, "other.ids": other, "label.index": LABEL})
    torch.manual_seed(0)
    options = {
        "layers": 1,
        "hidden_size": 16,
        "heads": 2,
        "layer_dropout": 0.0,
        "attention_dropout": 0.0,
        "dropout": 0.0,
    }
    net = build_model(Section("models").parse({"type": "bert", **options}), [], spec)
    data: dict[str, Any] = {
        "text.ids": Ragged.from_rows([torch.tensor([1, 5, 2]), torch.tensor([1, 6, 7, 2])]),
        "other.ids": Ragged.from_rows([torch.tensor([1, 9, 9, 2]), torch.tensor([1, 2])]), "label.index": torch.tensor([0, 2]),
    }  # fmt: skip
    made = objective(epsilon=0.7)
    seen: list[Tensor] = []
    tokens = net.get_submodule("encoders.@text.core.embedding")
    norm: Any = tokens.norm
    handle = norm.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    whole = made.forward(net, data)
    handle.remove()
    moved = seen[1] - seen[0]
    first = moved[:6].norm(), moved[6:].norm()  # [1 5 2 9 9 2] [1 6 7 2 2]
    torch.testing.assert_close(torch.stack(first), torch.tensor([0.7, 0.7]))
    parts = [made.forward(net, rows_of(data, [i])) for i in range(2)]
    torch.testing.assert_close(sum(part["label"].total for part in parts), whole["label"].total)


def test_frozen_tables_are_moved_too() -> None:
    net, data = case("bert")
    net = LoRA(rank=2).apply(net)
    parts = objective(epsilon=0.5).forward(net, data)
    with torch.no_grad():
        clean = objective().forward(net, data)["label"].total
    assert parts["label"].total.detach() > 2 * clean + 1e-3
    gradients_of(net, [parts])
    assert net.get_parameter("encoders.@text.core.embedding.tokens.weight").grad is None


def test_dropout_is_the_same_in_all_passes() -> None:
    """With a ball of next to no size the adversarial loss is the clean one, and the generator has gone one pass on."""
    net, data = case("bert")
    for module in net.modules():
        if hasattr(module, "p"):
            module.p = 0.5
    torch.manual_seed(4)
    parts = objective(method="pgd", epsilon=1e-6).forward(net, data)
    after = torch.rand(1)
    torch.manual_seed(4)
    plain = F.cross_entropy(net(data)["label.logits"], data["label.index"], reduction="sum")
    torch.testing.assert_close(parts["label"].total, 2 * plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.rand(1), after)


def test_batch_normalisation_learns_from_the_clean_pass() -> None:
    net, data = case("cnn")
    norm = nn.BatchNorm2d(1)
    wrapped = _Normed(norm, net)
    objective(method="pgd", epsilon=5.0).forward(wrapped, data)
    expected = nn.BatchNorm2d(1)
    expected(data["photo.pixels"])
    assert torch.equal(norm.running_mean, expected.running_mean)  # type: ignore[arg-type]
    assert norm.momentum == 0.1


class _Normed(nn.Module):
    def __init__(self, norm: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.net = norm, net

    def forward(self, batch: Any) -> Any:
        return self.net({**batch, "photo.pixels": self.norm(batch["photo.pixels"])})


def test_updates_accumulate_exactly() -> None:
    states = []
    for batches in ([[0, 1, 2, 3]], [[0, 3], [1], [2]]):
        net, data = case("bert")
        step = GradientStep(net, [objective(epsilon=0.5)], torch.optim.SGD(net.parameters(), lr=0.1))
        figures = step([rows_of(data, rows) for rows in batches])
        assert set(figures) == {"label", "loss"}
        states.append({name: value.clone() for name, value in net.state_dict().items()})
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


# --- refusals ---------------------------------------------------------------------------------------------


def test_steps_belong_to_pgd() -> None:
    recipe = {
        "data": {"train": "x.csv", "inputs": {"a": "text"}, "targets": {"b": "category"}},
        "model": "bert",
        "objective": {"type": "adversarial", "objective": CROSS, "steps": 2},
    }
    with pytest.raises(RecipeError, match="steps belongs to method 'pgd', and method is 'fgm'"):
        load(recipe)


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, batch: Any) -> Any:
        return {"label.logits": self.bias.expand(len(batch["age.value"]), 3)}


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3)

    def forward(self, batch: Any) -> Any:
        ids = batch["text.ids"]
        doubled = self.table(torch.cat([ids.values, ids.values]))
        return {"label.logits": ids.like(doubled[: len(ids.values)]).mean()}


def test_what_cannot_be_moved_refuses() -> None:
    with pytest.raises(RecipeError, match="there is nothing to move"):
        objective().forward(_Constant(), batch())
    with pytest.raises(RecipeError, match="nothing says which rows the 20 vectors of 'table' belong to"):
        objective().forward(_Twice(), batch())
