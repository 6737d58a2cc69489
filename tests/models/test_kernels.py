"""Which code computes, how it is built, and the fused dropout + residual + layer normalisation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luban import native
from luban.models import _kernels
from luban.models._kernels import add_norm, use

both_paths = pytest.mark.parametrize("path", ["torch", "native"], indirect=True)
compiled = pytest.mark.skipif(native.compiler() is None, reason="no compiler")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been chosen; what was chosen comes back after the test."""
    monkeypatch.setattr(_kernels.NATIVE, "_chosen", None)
    monkeypatch.setattr(_kernels.NATIVE, "_automatic", None)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and native.compiler() is None:
        pytest.skip("no compiler")
    use(request.param)
    return str(request.param)


# --- dropout, residual, layer normalisation ---------------------------------------------------------------------------


def inputs(rows: int, width: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(rows, width), (rows, width), (width,), (width,)]
    return [torch.randn(*shape, requires_grad=True) for shape in shapes]


def gradients(out: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), given)


def near(ours: Tensor, theirs: Tensor) -> bool:
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=0, atol=1e-5 * max(1.0, largest))


@both_paths
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (3, 7), (17, 64), (100, 384), (33, 1000)])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # the kernel is for dropout only
def test_add_norm_is_the_formula(path: str, rows: int, width: int, dropout: float) -> None:
    given = inputs(rows, width)
    ours = add_norm(*given, 1e-5, dropout)
    theirs = F.layer_norm(given[0] + given[1], (width,), given[2], given[3], 1e-5)
    assert near(ours, theirs)
    for mine, expected in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        assert near(mine, expected)


@both_paths
def test_add_norm_drops_in_the_backward_pass_what_it_dropped_in_the_forward_pass(path: str) -> None:
    given = inputs(200, 96)
    torch.manual_seed(3)
    ours = add_norm(*given, 1e-5, 0.25)
    d_residual, d_x, d_weight, d_bias = gradients(ours, given)
    mask = (d_x / d_residual).detach()
    assert ((mask == 0) | ((mask - 4 / 3).abs() < 1e-3)).all()
    assert abs(float((mask == 0).float().mean()) - 0.25) < 0.015
    mask = (mask != 0) * (4 / 3)
    theirs = F.layer_norm(given[0] + given[1] * mask, (96,), given[2], given[3], 1e-5)
    assert near(ours, theirs)
    found = (d_residual, d_x, d_weight, d_bias)
    for mine, expected in zip(found, gradients(theirs, given), strict=True):
        assert near(mine, expected)
    torch.manual_seed(3)
    assert add_norm(*given, 1e-5, 0.25).equal(ours)


@both_paths
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_nan_shows_in_its_own_row_only(path: str, dropout: float) -> None:
    given = [x.detach().clone() for x in inputs(9, 40)]
    given[0][4, 7] = torch.nan
    finite = add_norm(*given, 1e-5, dropout).isfinite().all(1)
    assert finite.tolist() == [row != 4 for row in range(9)]


@compiled
def test_the_kernel_gives_the_same_bits_with_any_number_of_threads() -> None:
    use("native")
    given = inputs(100, 384)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        out = add_norm(*given, 1e-5, 0.1)
        results.append((out, *gradients(out, given)))
    torch.set_num_threads(1)
    assert all(one.equal(other) for one, other in zip(*results, strict=True))


@compiled
def test_what_the_kernel_cannot_read_goes_through_torch() -> None:
    use("native")
    residual, x, weight, bias = (y.detach() for y in inputs(5, 16))
    exact = [y.double() for y in (residual, x, weight, bias)]
    assert add_norm(*exact, 1e-5, 0.1).dtype == torch.float64
    transformed = torch.func.grad(lambda x: add_norm(residual, x, weight, bias, 1e-5, 1e-9).square().sum())(x)
    x.requires_grad_()
    (plain,) = torch.autograd.grad(add_norm(residual, x, weight, bias, 1e-5, 1e-9).square().sum(), x)
    assert near(transformed, plain)
    strided = torch.randn(16, 5).T
    assert near(
        add_norm(strided, strided, weight, bias, 1e-5, 1e-9),
        F.layer_norm(2 * strided, (16,), weight, bias, 1e-5),
    )


# --- GELU ---------------------------------------------------------------------------------------------------------------


@both_paths
@pytest.mark.parametrize("shape", [(0,), (1,), (15,), (16, 16), (33, 7)])
def test_gelu_is_that_of_pytorch(path: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (4 * torch.randn(shape)).requires_grad_()
    ours, theirs = _kernels.gelu(x), F.gelu(x.double())
    assert near(ours.double(), theirs)
    assert near(*(gradients(out, [x])[0] for out in (ours, theirs.float())))
    with torch.no_grad():
        assert torch.equal(_kernels.gelu(x), ours)


@both_paths
def test_gelu_far_from_zero(path: str) -> None:
    x = torch.tensor([-1e4, -50.0, -13.0, -0.0, 0.0, 13.0, 50.0, 1e4, float("nan")], requires_grad=True)
    y = _kernels.gelu(x)
    (slope,) = torch.autograd.grad(y[:-1].sum(), x)
    assert y[:8].tolist() == pytest.approx([0, 0, 0, 0, 0, 13, 50, 1e4], abs=1e-30)
    assert bool(y[8].isnan())
    assert slope[:8].tolist() == pytest.approx([0, 0, 0, 0.5, 0.5, 1, 1, 1], abs=1e-30)
