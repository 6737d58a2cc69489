"""Matrix products in float32 on a CPU, by the quicker of the two libraries that PyTorch is built with.

PyTorch hands its products to the BLAS it was linked with. Where that is MKL, processors of other makers get code for a
narrower vector unit than they have; oneDNN, which is also inside PyTorch, goes by what the processor can do. On a Zen 5 core it
makes 200 to 250 GFLOP/s, and MKL 100. `luban.machine` measures once which one it is; nothing here decides.

Within `Products`, every `F.linear` of a size that pays goes to oneDNN, whichever module calls it, and so do the products of its
gradients. Results differ from the BLAS's in their last bits, as those of two releases of a BLAS do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Products", "alike", "available", "by_onednn", "product"]

# oneDNN keeps the code it made for 1,024 shapes, some megabytes each, and every number of tokens is a shape of its own: a run on
# texts grew by 40 MB an update. It reads this when it makes the first; making one anew costs less than half a millisecond.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

_SMALLEST = 2**20
"""Multiplications below which finding the code for a shape costs more than it saves."""

_active = 0  # how many `Products` are open


@functools.cache
def available() -> bool:
    """Return whether this PyTorch has the operator, and it computes what it should."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    x, w = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(by_onednn(x, w), F.linear(x, w))
    except (RuntimeError, TypeError):  # another signature than the one known here
        return False


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weightᵀ + bias``, (T, N), of (T, K) and (N, K); without a gradient."""
    operator: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return operator(x, weight, bias, "none", [], "")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x weightᵀ``, (T, N), of (T, K) and (N, K), by the library in use; without a gradient."""
    with torch._C.DisableTorchFunction():
        return by_onednn(x, weight) if _active and _pays(x, weight) else x @ weight.T


def _pays(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= _SMALLEST
        and not torch.is_autocast_enabled("cpu")
    )


class Products(TorchFunctionMode):
    """Has `F.linear` computed by oneDNN, and its gradients, wherever the backward pass runs.

    What is recomputed for the gradient must be told to be computed alike: `alike`.
    """

    def __enter__(self) -> Any:
        global _active
        _active += 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        global _active
        _active -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take over linear layers that pay, and pass on the rest."""
        if func is F.linear and not kwargs and _ours(*args):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def alike() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the `context_fn` of `torch.utils.checkpoint`: what is recomputed is computed as it was, now."""
    return nullcontext(), Products() if _active else nullcontext()


def _ours(x: Any, weight: Any, bias: Any = None) -> bool:
    """Whether a linear layer is of plain tensors, and nobody who traces or transforms is looking."""
    return (
        type(x) is Tensor
        and type(weight) in (Tensor, torch.nn.Parameter)
        and x.dim() >= 2
        and _pays(x, weight)
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with torch._C.DisableTorchFunction():
        flat: Tensor = _Linear.apply(x if x.dim() == 2 else x.flatten(0, -2), weight, bias)  # type: ignore[no-untyped-call]
        return flat if x.dim() == 2 else flat.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, gradient = ctx.needs_input_grad, gradient.contiguous()
        with torch._C.DisableTorchFunction():
            return (
                by_onednn(gradient, weight.T) if wanted[0] else None,
                by_onednn(gradient.T, x.T) if wanted[1] else None,
                gradient.sum(0) if wanted[2] else None,
            )
