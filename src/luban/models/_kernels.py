"""What Luban computes on a CPU with C++ of its own, where a compiler is found: attention, GELU, and dropout + residual + layer norm.

The source `_kernels.cpp` is compiled once a machine, in the background of the first run that could use it, into Luban's
cache; that run goes without. A process decides once which it takes, since the last bits of the results differ and a run that
is resumed must be able to repeat itself; `in_use` is what a checkpoint should remember, and `use` what it should call.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.models._layers import dropout as drop
from luban.native import Native

__all__ = ["GELU", "add_norm", "attention", "decode_step", "few_products", "gelu", "in_use", "use", "useful"]

WIDEST = 256  # head size that the source is written for


# --- which is used --------------------------------------------------------------------------------------------


def _prepare(library: ctypes.CDLL) -> str:
    for name in (
        "attention_forward",
        "attention_backward",
        "norm_forward",
        "norm_backward",
        "gelu",
        "decode_step",
        "few_products",
    ):
        getattr(library, name).restype = None
    library.vectors.restype = ctypes.c_char_p
    return str(library.vectors().decode())


SOURCE = Path(__file__).with_name("_kernels.cpp")
NATIVE = Native(SOURCE, SOURCE.with_name("_step.cpp"), prepare=_prepare, instead="torch", option="torch")


def use(which: Literal["auto", "native", "torch"]) -> str:
    """Choose what this process computes with, and say in one line what that is and why; see `Native.use`."""
    return f"attention: {NATIVE.use('none' if which == 'torch' else which)}"


def in_use() -> Literal["native", "torch"]:
    """Return what this process computes with; decides as ``use("auto")`` does if nothing has been chosen."""
    return "torch" if NATIVE.library() is None else "native"


# --- what the kernels read ----------------------------------------------------------------------------------------


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("position", ctypes.c_int64), ("head", ctypes.c_int64))


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("queries", "keys")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "shared", "width")),
        *((name, ctypes.c_int64) for name in ("longest_queries", "longest_keys", "causal", "threads")),
        ("scale", ctypes.c_float),
        ("kept", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "parts", "threads")),
        ("eps", ctypes.c_float),
        ("kept", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
    )


def _view(x: Tensor) -> Any:
    return ctypes.byref(_View(x.data_ptr(), x.stride(0), x.stride(1)))


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _dropout(probability: float) -> dict[str, Any]:
    """Return the fields that say what is dropped; the seed comes from PyTorch's generator, so that a run can be repeated."""
    if not probability:
        return {"kept": 1.0}
    threshold = min(round(probability * 2**32), 2**32 - 1)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return {"threshold": threshold, "kept": 2**32 / (2**32 - threshold), "seed": seed}


def useful(*tensors: Tensor) -> bool:
    """Return whether the kernels can and should read these: fp32 on a CPU, and nobody who traces or transforms is looking."""
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and NATIVE.library() is not None
    )


# --- attention --------------------------------------------------------------------------------------------------


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest: tuple[int, int],
    causal: bool,
    dropout: float,
    scale: float,
) -> Tensor:
    """Attend within rows; see `luban.models._attention.attend`, of which this is the path that is `useful`."""
    queries, keys = (offsets.to(torch.int64).contiguous() for offsets in (queries, keys))
    # The kernel reads where the offsets say.
    assert len(query) == int(queries[-1]), "the queries are not those of the plan"
    assert len(key) == len(value) == int(keys[-1]), "the keys or values are not those of the plan"
    fields = {
        "rows": len(queries) - 1,
        "heads": key.shape[1],
        "shared": query.shape[1] // key.shape[1],
        "width": query.shape[2],
        "longest_queries": longest[0],
        "longest_keys": longest[1],
        "causal": causal,
        "threads": torch.get_num_threads(),
        "scale": scale,
        **_dropout(dropout),
    }
    result: Tensor = _Attention.apply(query, key, value, queries, keys, fields)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        fields: dict[str, Any],
    ) -> Tensor:
        library = NATIVE.library()
        assert library is not None
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        out = query.new_empty(query.shape)
        sums = query.new_empty(query.shape[:2])
        problem = _Problem(queries=queries.data_ptr(), keys=keys.data_ptr(), **fields)
        views = (_view(x) for x in (query, key, value))
        library.attention_forward(ctypes.byref(problem), *views, _pointer(out), _pointer(sums))
        ctx.save_for_backward(query, key, value, queries, keys, out, sums)
        ctx.fields = fields
        return out.flatten(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        library = NATIVE.library()
        assert library is not None
        query, key, value, queries, keys, out, sums = ctx.saved_tensors
        gradient = gradient.contiguous().view(out.shape)
        gradients = tuple(x.new_empty(x.shape) for x in (query, key, value))
        problem = _Problem(queries=queries.data_ptr(), keys=keys.data_ptr(), **ctx.fields)
        views = (_view(x) for x in (query, key, value))
        library.attention_backward(
            ctypes.byref(problem),
            *views,
            _pointer(out),
            _pointer(sums),
            _view(gradient),
            *map(_pointer, gradients),
        )
        return *gradients, None, None, None


# --- dropout, residual, layer normalisation ---------------------------------------------------------------------------


def add_norm(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float) -> Tensor:
    """Return ``layer_norm(residual + dropout(x))``, (T, D), over D (Ba et al., 2016).

    Args:
        residual, x: (T, D).
        weight, bias: (D,).
        eps: what is added to the variance.
        dropout: probability with which a value of `x` is dropped.
    """
    # Without dropout PyTorch's own two passes are as quick; with it the kernel takes 0.8 to 0.95 of their time.
    if dropout and x.dim() == 2 and x.shape == residual.shape and useful(residual, x, weight, bias):
        result: Tensor = _AddNorm.apply(residual, x, weight, bias, eps, _dropout(dropout))  # type: ignore[no-untyped-call]
        return result
    return F.layer_norm(residual + drop(x, dropout), weight.shape, weight, bias, eps)


class _AddNorm(torch.autograd.Function):
    # Sums over rows are made in so many parts, whatever the number of threads: the result is the same.
    PARTS = 16

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        fields: dict[str, Any],
    ) -> Tensor:
        library = NATIVE.library()
        assert library is not None
        residual, x, weight, bias = (y.contiguous() for y in (residual, x, weight, bias))
        out, normal = torch.empty_like(x), torch.empty_like(x)
        inverse = x.new_empty(len(x))
        ctx.norm = _Norm(
            rows=x.shape[0],
            width=x.shape[1],
            parts=_AddNorm.PARTS,
            threads=torch.get_num_threads(),
            eps=eps,
            **fields,
        )
        library.norm_forward(
            ctypes.byref(ctx.norm), *map(_pointer, (residual, x, weight, bias, out, normal, inverse))
        )
        ctx.save_for_backward(normal, inverse, weight)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        library = NATIVE.library()
        assert library is not None
        normal, inverse, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        d_residual, d_x = torch.empty_like(gradient), torch.empty_like(gradient)
        d_weight, d_bias = gradient.new_empty(2, _AddNorm.PARTS, gradient.shape[1])
        tensors = (gradient, normal, inverse, weight, d_residual, d_x, d_weight, d_bias)
        library.norm_backward(ctypes.byref(ctx.norm), *map(_pointer, tensors))
        return d_residual, d_x, d_weight.sum(0), d_bias.sum(0), None, None


# --- GELU -----------------------------------------------------------------------------------------------------------


def gelu(x: Tensor) -> Tensor:
    """Return ``x Φ(x)`` (Hendrycks and Gimpel, 2016), any shape, as `F.gelu` does; forward and backward in half its time."""
    if not useful(x):
        return F.gelu(x)
    result: Tensor = _Gelu.apply(x) if torch.is_grad_enabled() and x.requires_grad else _gelu(x, None)  # type: ignore[no-untyped-call]
    return result


class GELU(torch.nn.GELU):
    """`gelu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return gelu(x)


def _gelu(x: Tensor, slope: Tensor | None) -> Tensor:
    library = NATIVE.library()
    assert library is not None
    x = x.contiguous()
    out = torch.empty_like(x)
    count, threads = ctypes.c_int64(x.numel()), ctypes.c_int64(torch.get_num_threads())
    library.gelu(_pointer(x), count, _pointer(out), None if slope is None else _pointer(slope), threads)
    return out


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        slope = torch.empty_like(x, memory_format=torch.contiguous_format)
        ctx.save_for_backward(slope)
        return _gelu(x, slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        result: Tensor = gradient * slope
        return result


# --- one token a row through a whole model ----------------------------------------------------------------------------


def decode_step(model: ctypes.Structure, tokens: ctypes.Structure) -> None:
    """Run a pass; `luban.models._step` says what over."""
    library = NATIVE.library()
    assert library is not None
    library.decode_step(ctypes.byref(model), ctypes.byref(tokens))


def few_products(matrix: ctypes.Structure, x: Tensor, out: Tensor) -> None:
    """Fill `out` (T, rows) with the products of a matrix and each of a few vectors `x` (T, columns)."""
    library = NATIVE.library()
    assert library is not None
    count, threads = ctypes.c_int64(len(x)), ctypes.c_int64(torch.get_num_threads())
    library.few_products(ctypes.byref(matrix), _pointer(x), count, _pointer(out), threads)
