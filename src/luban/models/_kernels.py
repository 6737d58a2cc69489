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

__all__ = [
    "GELU",
    "NATIVE",
    "Rows",
    "add_norm",
    "attention",
    "decode_step",
    "few_products",
    "gelu",
    "in_use",
    "pointer",
    "use",
    "useful",
]

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
        "before_forward",
        "before_backward",
        "behind_forward",
        "behind_backward",
    ):
        getattr(library, name).restype = None
    library.vectors.restype = ctypes.c_char_p
    return str(library.vectors().decode())


SOURCE = Path(__file__).with_name("_kernels.cpp")
NATIVE = Native(
    SOURCE,
    SOURCE.with_name("_step.cpp"),
    SOURCE.with_name("_settled.cpp"),
    prepare=_prepare,
    instead="torch",
    option="torch",
)


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


def view(x: Tensor) -> Any:
    """Return where (positions, heads, width) lie, the last without gaps."""
    return ctypes.byref(_View(x.data_ptr(), x.stride(0), x.stride(1)))


def pointer(x: Tensor) -> ctypes.c_void_p:
    """Return where a tensor begins."""
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


def attention(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    """Attend within rows; see `luban.models._attention.attend`, of which this is the path that is `useful`."""
    result: Tensor = _Attention.apply(query, key, value, rows)  # type: ignore[no-untyped-call]
    return result


class Rows:
    """The rows within which queries attend to keys, and how.

    Args:
        queries, keys: where each row of them begins, and the end of the last, (B + 1,).
        longest: queries of the row that has most, and keys of the row that has most.
        causal: whether a query sees only the keys up to its own place, counted from the end of the row.
        scale: factor of the scores.
        dropout: probability with which an attention weight is dropped.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        longest: tuple[int, int],
        causal: bool,
        scale: float,
        dropout: float = 0.0,
    ) -> None:
        self._queries, self._keys = (offsets.to(torch.int64).contiguous() for offsets in (queries, keys))
        self._fields = {
            "rows": len(queries) - 1,
            "longest_queries": longest[0],
            "longest_keys": longest[1],
            "causal": causal,
            "threads": torch.get_num_threads(),
            "scale": scale,
            **_dropout(dropout),
        }

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries (T, heads, d) see, of the same shape, and the sums of their softmax, (T, heads). In all three the
        last dimension has no gaps."""
        # The kernel reads where the offsets say.
        assert len(query) == int(self._queries[-1]), "the queries are not those of the plan"
        assert len(key) == len(value) == int(self._keys[-1]), "the keys or values are not those of the plan"
        library = NATIVE.library()
        assert library is not None
        out, sums = query.new_empty(query.shape), query.new_empty(query.shape[:2])
        problem, views = self._problem(query, key), map(view, (query, key, value))
        library.attention_forward(ctypes.byref(problem), *views, pointer(out), pointer(sums))
        return out, sums

    def backward(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, gradient: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of query, key and value, without gaps, of that of what `forward` returned."""
        library = NATIVE.library()
        assert library is not None
        gradients = tuple(x.new_empty(x.shape) for x in (query, key, value))
        problem, views = self._problem(query, key), map(view, (query, key, value))
        library.attention_backward(
            ctypes.byref(problem),
            *views,
            pointer(out),
            pointer(sums),
            view(gradient),
            *map(pointer, gradients),
        )
        return gradients

    def _problem(self, query: Tensor, key: Tensor) -> _Problem:
        return _Problem(
            queries=self._queries.data_ptr(),
            keys=self._keys.data_ptr(),
            heads=key.shape[1],
            shared=query.shape[1] // key.shape[1],
            width=query.shape[2],
            **self._fields,
        )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        out, sums = rows.forward(query, key, value)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.rows = rows
        return out.flatten(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        gradient = gradient.contiguous().view(out.shape)
        return *ctx.rows.backward(query, key, value, out, sums, gradient), None


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
            ctypes.byref(ctx.norm), *map(pointer, (residual, x, weight, bias, out, normal, inverse))
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
        library.norm_backward(ctypes.byref(ctx.norm), *map(pointer, tensors))
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
    library.gelu(pointer(x), count, pointer(out), None if slope is None else pointer(slope), threads)
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
    library.few_products(ctypes.byref(matrix), pointer(x), count, pointer(out), threads)
