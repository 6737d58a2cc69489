"""Optimizers against their formulas, written out in numpy-like torch, and against an interruption."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import Parameter

from luban import registry
from luban.errors import RecipeError
from luban.training.optimizers._base import Optimizer
from luban.training.optimizers.muon import is_hidden_matrix

NAMES = registry.names("optimizers")


def options(name: str, **values: Any) -> Optimizer:
    optimizer: Optimizer = registry.lookup("optimizers", name)(**values)
    return optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(40, 12), nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 3))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(40, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(ids), ids % 3).backward()
        optimizer.step()


# --- the formulas ---

Update = Callable[[Tensor, Tensor], Tensor]


def l2(decay: float, rule: Update) -> Update:
    return lambda w, g: rule(w, g + decay * w)


def sgd(rate: float, momentum: float, nesterov: bool) -> Update:
    velocity: list[Tensor] = []

    def update(w: Tensor, g: Tensor) -> Tensor:
        velocity[:] = [momentum * velocity[0] + g if velocity else g]
        return w - rate * (g + momentum * velocity[0] if nesterov else velocity[0])

    return update


def adagrad(rate: float, start: float, eps: float) -> Update:
    total = [torch.tensor(start, dtype=torch.float64)]

    def update(w: Tensor, g: Tensor) -> Tensor:
        total[0] = total[0] + g**2
        return w - rate * g / (total[0].sqrt() + eps)

    return update


def rmsprop(rate: float, alpha: float, eps: float, centered: bool) -> Update:
    mean, square = [torch.zeros(())], [torch.zeros(())]

    def update(w: Tensor, g: Tensor) -> Tensor:
        mean[0] = alpha * mean[0] + (1 - alpha) * g
        square[0] = alpha * square[0] + (1 - alpha) * g**2
        spread = square[0] - mean[0] ** 2 if centered else square[0]
        return w - rate * g / (spread.sqrt() + eps)

    return update


def adam(rate: float, beta1: float, beta2: float, eps: float, decay: float = 0.0) -> Update:
    memory: list[Any] = [torch.zeros(()), torch.zeros(()), 0]

    def update(w: Tensor, g: Tensor) -> Tensor:
        m, s, t = memory
        m, s, t = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g**2, t + 1
        memory[:] = [m, s, t]
        return w * (1 - rate * decay) - rate * m / (1 - beta1**t) / ((s / (1 - beta2**t)).sqrt() + eps)

    return update


def adafactor(rate: float, decay: float, beta2_decay: float, clip: float) -> Update:
    memory: list[Any] = [torch.zeros(()), torch.zeros(()), 0]
    tiny = torch.finfo(torch.float64).eps

    def update(w: Tensor, g: Tensor) -> Tensor:
        rows, columns, t = memory
        t += 1
        beta = 1 - t**beta2_decay
        rows = beta * rows + (1 - beta) * (g**2).mean(1, keepdim=True)
        columns = beta * columns + (1 - beta) * (g**2).mean(0, keepdim=True)
        memory[:] = [rows, columns, t]
        u = g / (rows * columns / rows.mean()).clamp(min=tiny**2).sqrt()
        u = u / max(1.0, u.pow(2).mean().sqrt().item() / clip)
        step = min(rate, 1 / math.sqrt(t)) * max(1e-3, w.pow(2).mean().sqrt().item())
        return w * (1 - rate * decay) - step * u

    return update


FORMULAS: list[tuple[str, dict[str, Any], Update]] = [
    ("gd", {"learning_rate": 0.3}, sgd(0.3, 0.0, False)),
    ("gd", {"weight_decay": 0.2}, l2(0.2, sgd(0.1, 0.0, False))),
    ("sgd", {}, sgd(0.01, 0.9, False)),
    ("sgd", {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}, l2(0.1, sgd(0.01, 0.5, True))),
    ("adagrad", {}, adagrad(0.01, 0.0, 1e-10)),
    (
        "adagrad",
        {"initial_accumulator": 0.5, "eps": 0.1, "weight_decay": 0.1},
        l2(0.1, adagrad(0.01, 0.5, 0.1)),
    ),
    ("rmsprop", {}, rmsprop(1e-3, 0.99, 1e-8, False)),
    (
        "rmsprop",
        {"alpha": 0.5, "eps": 0.1, "centered": True, "weight_decay": 0.1},
        l2(0.1, rmsprop(1e-3, 0.5, 0.1, True)),
    ),
    ("adam", {}, adam(1e-3, 0.9, 0.999, 1e-8)),
    (
        "adam",
        {"beta1": 0.5, "beta2": 0.7, "eps": 0.1, "weight_decay": 0.1},
        l2(0.1, adam(1e-3, 0.5, 0.7, 0.1)),
    ),
    ("adamw", {}, adam(1e-3, 0.9, 0.999, 1e-8, 0.01)),
    ("adamw", {"beta1": 0.5, "learning_rate": 0.1, "weight_decay": 0.5}, adam(0.1, 0.5, 0.999, 1e-8, 0.5)),
    ("adafactor", {"weight_decay": 0.1}, adafactor(0.01, 0.1, -0.8, 1.0)),
    ("adafactor", {"beta2_decay": -0.5, "clip_threshold": 1.5}, adafactor(0.01, 0.0, -0.5, 1.5)),
]


@pytest.mark.parametrize(("name", "values", "formula"), FORMULAS)
def test_updates_follow_the_formula(name: str, values: dict[str, Any], formula: Update) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64))
    expected = weight.detach().clone()
    optimizer = options(name, **values).build([("weight", weight)])
    for _ in range(6):
        weight.grad = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        expected = formula(expected, weight.grad)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-9)


def test_rmsprop_momentum_keeps_the_last_update() -> None:
    weight = Parameter(torch.zeros(1))
    optimizer = options("rmsprop", momentum=0.5, learning_rate=1.0, alpha=0.0).build([("w", weight)])
    seen = []
    for _ in range(
        3
    ):  # alpha = 0 divides a gradient by itself: the updates are 1, 1 + 0.5, 1 + 0.5 (1 + 0.5)
        weight.grad = torch.ones(1)
        optimizer.step()
        seen.append(-weight.item())
    assert seen == pytest.approx([1.0, 2.5, 4.25])


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    hidden, bias = Parameter(torch.zeros(32, 16)), Parameter(torch.zeros(16))
    optimizer = options("muon", learning_rate=0.1, weight_decay=0.0).build(
        [("hidden", hidden), ("bias", bias)]
    )
    hidden.grad, bias.grad = torch.randn(32, 16), torch.randn(16)
    reference = adam(0.1, 0.9, 0.95, 1e-8)(bias.detach().double(), bias.grad.double())
    optimizer.step()
    torch.testing.assert_close(bias.detach().double(), reference, rtol=1e-5, atol=1e-7)
    # Five Newton-Schulz iterations leave the singular values within about 0.7 to 1.2 (Jordan et al. 2024).
    singular = torch.linalg.svdvals(hidden.detach()) / (0.1 * 0.2 * math.sqrt(32))
    assert 0.6 < singular.min() < singular.max() < 1.3
    # and the directions stay those of the gradient
    u, _, v = torch.linalg.svd(hidden.grad, full_matrices=False)
    aligned = torch.diagonal(u.T @ -hidden.detach() @ v.T) / (0.1 * 0.2 * math.sqrt(32))
    assert aligned.min() > 0.6


@pytest.mark.parametrize(
    ("name", "shape", "hidden"),
    [
        ("blocks.0.attention.qkv.weight", (48, 16), True),
        ("blocks.0.mlp.up.weight", (64, 16), True),
        ("blocks.0.mlp.up.bias", (64,), False),
        ("features.0.weight", (8, 8, 3, 3), False),
        ("embed.weight", (16, 16), False),
        ("token_embedding.weight", (100, 16), False),
        ("wte.weight", (64, 16), False),
        ("lm_head.weight", (64, 16), False),
        ("heads.label.weight", (10, 16), False),
        ("classifier.weight", (4, 16), False),
        ("table", (30000, 16), False),
        ("qkv.lora_a", (2, 64), False),
        ("ahead.weight", (16, 16), True),
    ],
)
def test_muon_tells_hidden_matrices(name: str, shape: tuple[int, ...], hidden: bool) -> None:
    assert is_hidden_matrix(name, Parameter(torch.zeros(shape))) is hidden


def test_muon_refuses_a_model_without_hidden_matrices() -> None:
    with pytest.raises(RecipeError, match="take 'adamw'"):
        options("muon").build([("head.weight", Parameter(torch.zeros(3, 4)))])


# --- the contract, for every type ---


@pytest.mark.parametrize("name", NAMES)
def test_biases_and_norms_do_not_decay_unless_asked(name: str) -> None:
    net = network()
    optimizer = options(name, weight_decay=0.5).build(net.named_parameters())
    decays = {n: g["weight_decay"] for g in optimizer.param_groups for n in g["param_names"]}
    assert decays == {n: 0.5 if p.ndim >= 2 else 0.0 for n, p in net.named_parameters()}
    assert {g["name"].removeprefix("muon_") for g in optimizer.param_groups} == {"decay", "no_decay"}
    assert all(g["initial_lr"] == g["lr"] == options(name).learning_rate for g in optimizer.param_groups)

    everything = options(name, weight_decay=0.5, decay_all=True).build(net.named_parameters())
    assert all(g["weight_decay"] == 0.5 for g in everything.param_groups)


@pytest.mark.parametrize("name", NAMES)
def test_learns(name: str) -> None:
    net = network()
    ids = torch.arange(40)
    before = nn.functional.cross_entropy(net(ids), ids % 3).item()
    train(net, options(name).build(net.named_parameters()), range(60))
    assert nn.functional.cross_entropy(net(ids), ids % 3).item() < before


@pytest.mark.parametrize("name", NAMES)
def test_the_same_run_gives_the_same_bits(name: str) -> None:
    nets = [network(), network()]
    for net in nets:
        train(net, options(name).build(net.named_parameters()), range(8))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """Checkpoints keep tensors in safetensors and the rest in JSON, which knows lists and no tuples."""
    return {"state": state["state"], "param_groups": json.loads(json.dumps(state["param_groups"]))}


@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_changes_no_bit(name: str) -> None:
    straight = network()
    train(straight, options(name).build(straight.named_parameters()), range(9))

    first = network()
    optimizer = options(name).build(first.named_parameters())
    train(first, optimizer, range(4))
    weights, state = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())

    second = network()
    second.load_state_dict(weights)
    resumed = options(name, learning_rate=0.5).build(second.named_parameters())
    resumed.load_state_dict(through_json(state))
    assert resumed.state_dict()["state"].keys() == state["state"].keys()
    train(second, resumed, range(4, 9))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_moves_every_group(name: str) -> None:
    net = network()
    optimizer = options(name, weight_decay=0.0).build(net.named_parameters())
    before = copy.deepcopy(net.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * 0.0
    train(net, optimizer, range(1))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_are_left_out(name: str) -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[index]
    optimizer = options(name).build(net.named_parameters())
    assert "0.weight" not in {n for g in optimizer.param_groups for n in g["param_names"]}
    with pytest.raises(RecipeError, match="frozen"):
        options(name).build(net.requires_grad_(False).named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_is_called_once(name: str) -> None:
    net = network()
    optimizer = options(name).build(net.named_parameters())
    calls = []

    def closure() -> float:
        calls.append(1)
        loss = nn.functional.cross_entropy(net(torch.arange(6)), torch.arange(6) % 3)
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(1.2, abs=0.6)
    assert len(calls) == 1


def changes() -> Iterator[tuple[str, str, Any]]:
    """Each numeric or boolean key of each type, with another value than its default."""
    for name in NAMES:
        for key, info in registry.lookup("optimizers", name).model_fields.items():
            default = info.default
            if isinstance(default, bool):
                yield name, key, not default
            else:
                other = {"beta2_decay": -0.3, "clip_threshold": 1.2, "eps": 0.1}
                yield name, key, other.get(key, default / 2 if default else 0.3)


@pytest.mark.parametrize(("name", "key", "value"), list(changes()))
def test_every_key_does_something(name: str, key: str, value: Any) -> None:
    results = []
    for values in ({}, {key: value}):
        extra = {"weight_decay": 0.3, "decay_all": False} if key == "decay_all" else {}
        if name == "adafactor" and key == "clip_threshold":
            extra["learning_rate"] = 0.5
        net = network()
        named = [(f"layers.{name}", parameter) for name, parameter in net.named_parameters()]
        train(net, options(name, **{**extra, **values}).build(named), range(5))
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert not torch.equal(*results)


def test_only_gd_wants_the_whole_set() -> None:
    assert [name for name in NAMES if registry.lookup("optimizers", name).whole_set] == ["gd"]


def test_nesterov_without_momentum_refuses() -> None:
    with pytest.raises(ValidationError, match="nesterov needs a momentum"):
        options("sgd", momentum=0.0, nesterov=True)
