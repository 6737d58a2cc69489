"""Activations, dropout, initial weights, pooling, dense layers."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luban.data.ragged import Ragged
from luban.models._layers import (
    MONOTONE,
    Activation,
    BatchNorm1d,
    BatchNorm2d,
    Dropout,
    Init,
    activation_of,
    dense,
    dropout,
    initialise,
    per_layer,
    pooled,
)


@pytest.mark.parametrize("name", get_args(Activation))
def test_monotone_activations_are_those_that_never_fall(name: Activation) -> None:
    values = activation_of(name)(torch.linspace(-8, 8, 2001))
    assert bool((values.diff() >= 0).all()) == (name in MONOTONE)


def test_step_has_a_straight_through_gradient() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    y = activation_of("step")(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert y.tolist() == [0, 0, 1]
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_has_the_mean_and_variance_of_its_definition(p: float) -> None:
    torch.manual_seed(0)
    n = 1 << 20
    y = dropout(torch.ones(n), p)
    kept = y > 0
    # Four standard errors of a Bernoulli mean, in all and in each of the four lanes of the 64-bit draws.
    bound = 4 * math.sqrt(p * (1 - p) / (n / 4))
    for lane in range(4):
        assert abs(float(kept[lane::4].float().mean()) - (1 - p)) < bound
    assert y[kept].unique().numel() == 1
    assert float(y.mean()) == pytest.approx(1.0, abs=bound / (1 - p))
    assert float(y.var()) == pytest.approx(p / (1 - p), rel=0.02)
    neighbours = kept.float() - kept.float().mean()
    for distance in (1, 2, 3, 4):  # values of one draw are independent
        assert abs(float((neighbours[distance:] * neighbours[:-distance]).mean())) < 5 * p * (
            1 - p
        ) / math.sqrt(n)


def test_dropout_follows_the_seed_and_its_mask_is_its_gradient() -> None:
    x = torch.randn(7, 11, requires_grad=True)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    draws[0].sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad * x, draws[0])


def test_dropout_module_does_nothing_in_evaluation() -> None:
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_dropout_differs_between_the_examples_of_a_vmap() -> None:
    masks = torch.func.vmap(lambda x: dropout(x, 0.5), randomness="different")(torch.ones(8, 64))
    assert len({tuple(row.tolist()) for row in masks}) == 8


@pytest.mark.parametrize("init", get_args(Init))
def test_every_init_keeps_its_promise(init: Init) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(300, 200), nn.Conv2d(20, 40, 5), nn.LSTM(30, 40), nn.Embedding(5, 6)])
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    initialise(layers, init)
    weight, convolution = layers[0].weight.detach(), layers[1].weight.detach()
    assert torch.equal(layers[3].weight, before["3.weight"])  # embeddings keep what they have
    if init == "default":
        assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())
        return
    assert not layers[0].bias.any()
    assert not layers[2].bias_ih_l0.any()
    expected = {
        "zeros": 0.0,
        "constant": 0.0,
        "uniform": 0.1 / math.sqrt(3),
        "normal": 0.02,
        "xavier": math.sqrt(2 / 500),
        "he": math.sqrt(2 / 300),
        "orthogonal": 1 / math.sqrt(300),
    }[init]
    assert float(weight.std()) == pytest.approx(expected, rel=0.02, abs=1e-6)
    if init == "he":
        assert float(convolution.std()) == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    if init == "constant":
        assert bool((weight == 0.1).all())
    if init == "orthogonal":  # each gate is a matrix of its own
        gate = layers[2].weight_hh_l0[:40]
        assert torch.allclose(gate @ gate.T, torch.eye(40), atol=1e-5)


def test_init_scale() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    drawn = layer.weight.detach().clone()
    initialise(layer, "default", 2.0)
    assert torch.equal(layer.weight, 2 * drawn)
    initialise(layer, "normal", 0.5)
    assert float(layer.weight.detach().std()) == pytest.approx(0.5, rel=0.05)
    initialise(layer, "constant", -3.0)
    assert bool((layer.weight == -3).all())
    initialise(layer, "uniform", 0.2)
    assert 0.19 < float(layer.weight.detach().abs().max()) <= 0.2


def test_pooled_agrees_with_each_row_and_gives_zeros_for_an_empty_one() -> None:
    rows = [torch.randn(n, 3) for n in (2, 0, 5, 1)]
    states = Ragged.from_rows(rows)
    pools: dict[str, Any] = {
        "first": lambda r: r[0],
        "last": lambda r: r[-1],
        "mean": lambda r: r.mean(0),
        "max": lambda r: r.amax(0),
    }
    for how, of in pools.items():
        expected = torch.stack([of(r) if len(r) else torch.zeros(3) for r in rows])
        assert torch.allclose(pooled(states, how), expected, atol=1e-6), how  # type: ignore[arg-type]
    assert (
        pooled(Ragged(torch.randn(0, 3), torch.zeros(3, dtype=torch.int64)), "max").tolist()
        == [[0.0] * 3] * 2
    )


def test_dense_is_linear_norm_activation_dropout() -> None:
    layers, width = dense(10, [64, 32], "relu", [0.5, 0.25], "batch")
    assert width == 32
    assert [[type(part).__name__ for part in block] for block in layers] == [  # type: ignore[attr-defined]
        ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    ] * 2
    assert [block[3].p for block in layers] == [0.5, 0.25]  # type: ignore[index]


def test_residual_joins_layers_of_equal_width_only() -> None:
    torch.manual_seed(0)
    layers, _ = dense(4, [4, 6, 6], "tanh", residual=True)
    x = torch.randn(2, 4)
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    one = x + F.linear(x, linear[0].weight, linear[0].bias).tanh()
    two = linear[1](one).tanh()
    assert torch.allclose(layers(x), two + linear[2](two).tanh(), atol=1e-6)


def test_per_layer_refuses_a_list_of_another_length() -> None:
    assert per_layer([1, 2], 2, "kernel") == [1, 2]
    with pytest.raises(ValueError, match="kernel has 3 values for 2 layers"):
        per_layer([1, 2, 3], 2, "kernel")


@pytest.mark.parametrize(("norm", "shape"), [(BatchNorm1d, (1, 3)), (BatchNorm2d, (1, 3, 1, 1))])
def test_batch_norm_takes_a_batch_of_one(norm: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = norm(3), torch.randn(shape)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    out = layer.train()(x)
    assert torch.allclose(out, layer.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
