"""Products by oneDNN are those of the BLAS, forward and backward, whichever module asks for them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luban import machine
from luban.machine import Choice, choose_products
from luban.models import _core, _products
from luban.models._core import Projection
from luban.models._products import Products, alike, by_onednn, product

needs_onednn = pytest.mark.skipif(not _products.available(), reason="this PyTorch has no such operator")


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums."""
    return bool((a - b).norm() <= 1e-5 * b.norm())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the products that oneDNN made."""
    seen: list[tuple[int, int]] = []

    def note(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((len(x), len(weight)))
        return by_onednn(x, weight, bias)

    monkeypatch.setattr(_products, "by_onednn", note)
    return seen


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(70,), (5, 14)])
def test_a_layer_and_its_gradients_are_those_of_the_blas(
    bias: bool, shape: tuple[int, ...], counted: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(130, 150, bias=bias)
    x, seed = torch.randn(*shape, 130), torch.randn(*shape, 150)
    found = []
    for mode in (False, True):
        read = x.clone().requires_grad_()
        layer.zero_grad()
        with Products() if mode else nullcontext():
            y = layer(read)
        (y * seed).sum().backward()
        assert read.grad is not None
        found.append(
            [y.detach(), read.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]
        )
    assert counted == [(70, 150), (70, 130), (150, 130)]
    assert all(close(a, b) and a.shape == b.shape for a, b in zip(*found, strict=True))


@needs_onednn
def test_gradients_that_nobody_wants_are_not_made(counted: list[tuple[int, int]]) -> None:
    layer = nn.Linear(130, 150).requires_grad_(False)
    x = torch.randn(70, 130, requires_grad=True)
    with Products():
        layer(x).sum().backward()  # its gradient is one number seen everywhere
    assert counted == [(70, 150), (70, 130)]
    assert x.grad is not None
    assert close(x.grad, layer.weight.sum(0).expand_as(x))


@needs_onednn
def test_what_is_recomputed_is_computed_alike(counted: list[tuple[int, int]]) -> None:
    layer = nn.Linear(130, 150)
    x = torch.randn(70, 130, requires_grad=True)
    with Products():
        y = checkpoint(layer, x, use_reentrant=False, context_fn=alike)
    y.square().sum().backward()
    assert counted.count((70, 150)) == 2


@needs_onednn
def test_small_and_foreign_products_are_left_alone(counted: list[tuple[int, int]]) -> None:
    with Products():
        nn.Linear(4, 5)(torch.randn(3, 4))
        nn.Linear(130, 150).double()(torch.randn(70, 130).double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert nn.Linear(130, 150)(torch.randn(70, 130)).dtype == torch.bfloat16
        weight = torch.randn(150, 130)
        per_row = torch.func.vmap(torch.func.grad(lambda row: F.linear(row[None], weight).sum()))
        assert per_row(torch.randn(70, 130)).shape == (70, 130)
    nn.Linear(130, 150)(torch.randn(70, 130))  # outside
    assert not counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quick", [False, pytest.param(True, marks=needs_onednn)])
def test_a_large_vocabularys_loss_is_the_cross_entropy(
    dtype: torch.dtype, bias: bool, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(_core, "LOGITS", 300 * 40)  # chunks of 40 of 130 states
    states, weight = torch.randn(130, 96, requires_grad=True), torch.randn(300, 96, requires_grad=True)
    shift = torch.randn(300, requires_grad=True) if bias else None
    labels = torch.randint(300, (130,))
    labels[0] = int((states[0] @ weight.T).argmin())  # far behind
    leaves = [x for x in (states, weight, shift) if x is not None]
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = F.linear(states, weight, shift).float()
        wanted = F.cross_entropy(logits, labels, reduction="sum") / 7
    expected = [wanted.detach(), *torch.autograd.grad(wanted, leaves)]
    with (
        Products() if quick else torch.enable_grad(),
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        total = Projection(states, weight, shift).total(labels) / 7
    found = [total.detach(), *torch.autograd.grad(total, leaves)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= tolerance * b.norm()


def test_a_frozen_vocabulary_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "LOGITS", 100)
    states, weight = torch.randn(6, 8, requires_grad=True), torch.randn(50, 8)
    Projection(states, weight).total(torch.arange(6)).backward()
    wanted = torch.autograd.grad(
        F.cross_entropy(states @ weight.T, torch.arange(6), reduction="sum"), states
    )[0]
    assert states.grad is not None
    assert close(states.grad, wanted)
    assert weight.grad is None


@needs_onednn
def test_product_is_made_by_what_is_in_use(counted: list[tuple[int, int]]) -> None:
    x, weight = torch.randn(70, 130), torch.randn(150, 130)
    plain = product(x, weight)
    assert not counted
    with Products():
        assert close(product(x, weight), plain)
    assert counted == [(70, 150)]


@pytest.mark.parametrize(
    ("gain", "width", "wanted"), [(2.0, 256, "onednn"), (1.1, 256, "blas"), (9.0, 64, "blas")]
)
def test_the_quicker_library_is_chosen(
    gain: float, width: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"fp32": 1.0, "onednn": gain}
    monkeypatch.setattr(machine, "_measured", lambda device, arithmetic, width: speeds[arithmetic])
    monkeypatch.setattr(machine, "available", lambda: True)
    fp32, bf16 = (Choice(torch.device("cpu"), precision, "") for precision in ("fp32", "bf16"))
    assert choose_products("auto", fp32, width)[0] == wanted
    assert choose_products("onednn", fp32, width)[0] == "onednn"
    assert choose_products("auto", bf16, width)[0] == choose_products("blas", fp32, width)[0] == "blas"


@needs_onednn
def test_what_only_reads_weights_takes_the_quicker_library(
    counted: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = nn.Linear(256, 256), torch.randn(70, 256)
    expected = layer(x).detach()
    found = {}
    for gain in (1.0, 2.0):
        monkeypatch.setattr(machine, "_measured", lambda *a, gain=gain: gain if a[1] == "onednn" else 1.0)
        with machine.inference(layer, torch.device("cpu")):
            found[gain] = layer(x)
        assert found[gain].is_inference()
        assert close(found[gain], expected)
        assert counted == ([] if gain == 1.0 else [(70, 256)])
    with machine.inference(layer, torch.device("meta")):  # another device has a library of its own
        layer(x)
    assert len(counted) == 1
