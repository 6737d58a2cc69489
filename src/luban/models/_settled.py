"""Blocks whose weights stay as they are for a while, each as one function forward and one backward, by Luban's own code.

To predict many rows, or to explain one, a block is passed again and again, and its weights are only read. Within `settled` they
are laid out once as the products read them; gradients are those of the input alone; and a tile of tokens goes through norms,
products and activation before the next one does (`_settled.cpp`). For blocks as BERT has them (Devlin et al., 2018): attention
of each row to itself, norms behind the parts, GELU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luban.models._kernels import NATIVE, WIDEST, Rows, pointer, useful

__all__ = ["Parts", "Settled", "bare", "hooked", "is_settled", "settled", "settled_block"]

_NARROWEST = 16
"""Columns of a panel, without which a vector is so narrow that the BLAS, which goes by the processor, is quicker."""

_WORTH = 256
"""Tokens of a pass from which on laying out the weights is quicker than doing without, measured for widths of 384 and 768."""

_known: ContextVar[dict[nn.Module, Settled | None] | None] = ContextVar("settled", default=None)


@contextmanager
def settled() -> Iterator[None]:
    """Promise that no weight of any model changes within the block, so that what is made of weights may be kept until its end."""
    token = _known.set({} if (known := _known.get()) is None else known)
    try:
        yield
    finally:
        _known.reset(token)


def is_settled() -> bool:
    """Whether weights stay as they are, as `settled` says, and nobody asks for products in half precision, which are not made here."""
    return _known.get() is not None and not torch.is_autocast_enabled("cpu")


class _Norming(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Settled(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("width", "inner", "keys", "hidden", "threads")),
        *((name, ctypes.c_void_p) for name in ("wide", "wide_bias")),
        *((f"{name}{part}", ctypes.c_void_p) for name in ("out", "up", "down") for part in ("", "_bias")),
        *((f"{name}_back", ctypes.c_void_p) for name in ("q", "k", "v", "out", "up", "down")),
        ("first", _Norming),
        ("second", _Norming),
    )


class _Kept(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("first", "first_inverse", "second", "second_inverse", "slope")
    )


@dataclass(frozen=True)
class Parts:
    """What a block is made of.

    Attributes:
        heads, head_size: of the attention.
        q, k, v, out, up, down: its linear layers.
        first, second: the norms behind attention and feed-forward part.
    """

    heads: int
    head_size: int
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module
    up: nn.Module
    down: nn.Module
    first: nn.Module
    second: nn.Module

    @property
    def linear(self) -> tuple[nn.Module, ...]:
        """Its linear layers."""
        return self.q, self.k, self.v, self.out, self.up, self.down


def settled_block(block: nn.Module, parts: Parts, x: Tensor) -> Settled | None:
    """Return the block as it may be computed within `settled`, of which this is its first or a later pass; None elsewhere, and where
    the code does not stand for what these modules do."""
    known = _known.get()
    if known is None or not is_settled() or x.dim() != 2 or not useful(x):
        return None
    if torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters()):
        return None
    if block not in known:
        if len(x) < _WORTH:
            return None
        known[block] = Settled(parts) if _fits(block, parts) else None
    return known[block]


def _fits(block: nn.Module, parts: Parts) -> bool:
    """Whether these are the very modules that the code stands for: nothing adapted or hooked."""
    if any(hooked(module) for module in block.modules()) or not bare(*parts.linear):
        return False
    if any(type(m) is not nn.LayerNorm or m.bias is None for m in (parts.first, parts.second)):
        return False
    if not useful(*block.parameters()):
        return False
    panel = _panel()
    sides = [side for m in parts.linear if isinstance(m, nn.Linear) for side in m.weight.shape]
    return panel >= _NARROWEST and parts.head_size <= WIDEST and all(side % panel == 0 for side in sides)


def _panel() -> int:
    library = NATIVE.library()
    assert library is not None
    return int(library.panel_width())


def hooked(module: nn.Module) -> bool:
    """Return whether somebody is told, or changes, what goes through a module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def bare(*layers: nn.Module) -> bool:
    """Return whether these are linear layers and no more, neither adapted nor hooked: their weights say all that they do."""
    return all(type(layer) is nn.Linear and not hooked(layer) for layer in layers)


class Settled:
    """A block with its weights laid out."""

    def __init__(self, parts: Parts) -> None:
        self._kept: list[Tensor] = []  # whose memory the structure points to
        self._heads, self._head_size = parts.heads, parts.head_size
        q, k, v, out, up, down = (self._read(layer) for layer in parts.linear)
        self._inner, self._keys, self._hidden = len(q[0]), len(k[0]), len(up[0])
        wide, wide_bias = (torch.cat(same) for same in zip(q, k, v, strict=True))
        forward = {"wide": (wide, wide_bias), "out": out, "up": up, "down": down}
        self._backward = {"q": q, "k": k, "v": v, "out": out, "up": up, "down": down}
        self._structure = _Settled(
            width=wide.shape[1],
            inner=self._inner,
            keys=self._keys,
            hidden=self._hidden,
            first=self._norm(parts.first),
            second=self._norm(parts.second),
            **{name: self._packed(weight.T) for name, (weight, _) in forward.items()},
            **{f"{name}_bias": self._stays(bias) for name, (_, bias) in forward.items()},
        )

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        """Return what the block makes of tokens (T, D) that attend within `rows`, (T, D)."""
        assert x.shape[1] == self._structure.width, "the code reads as many values as the weights say"
        result: Tensor = _Block.apply(x, self, rows)  # type: ignore[no-untyped-call]
        return result

    # --- laying out ------------------------------------------------------------------------------------------------

    def _stays(self, x: Tensor) -> int:
        self._kept.append(x.detach().contiguous())
        return self._kept[-1].data_ptr()

    @staticmethod
    def _read(layer: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(layer, nn.Linear)
        weight = layer.weight.detach()
        return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()

    def _norm(self, norm: nn.Module) -> _Norming:
        assert isinstance(norm, nn.LayerNorm)
        return _Norming(self._stays(norm.weight), self._stays(norm.bias), norm.eps)

    def _packed(self, matrix: Tensor) -> int:
        """Lay out a matrix (depth, columns) as panels of columns."""
        return self._stays(matrix.unflatten(1, (-1, _panel())).transpose(0, 1))

    # --- passes ----------------------------------------------------------------------------------------------------

    def heads_of(self, wide: Tensor) -> list[Tensor]:
        """Return queries, keys and values, (T, heads, d) each, of what `before` made."""
        parts = wide.split([self._inner, self._keys, self._keys], 1)
        return [part.unflatten(1, (-1, self._head_size)) for part in parts]

    def before(self, x: Tensor) -> Tensor:
        """Return queries, keys and values beside one another, (T, inner + 2 keys)."""
        wide = x.new_empty(len(x), self._inner + 2 * self._keys)
        self._call("before_forward", x, wide)
        return wide

    def before_back(self, gradients: Sequence[Tensor], d_x: Tensor) -> None:
        """Add to the gradient of the input, (T, D), what it had through queries, keys and values."""
        self._call("before_backward", *gradients, d_x)

    def kept(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return room for what the gradient needs: normalised values and inverse deviations of both norms, and slopes."""
        while self._backward:  # weights are laid out for the way back too, the first time that there is one
            name, (weight, _) = self._backward.popitem()
            setattr(self._structure, f"{name}_back", self._packed(weight))
        norm = torch.empty_like(x), x.new_empty(len(x))
        other = torch.empty_like(x), x.new_empty(len(x))
        return *norm, *other, x.new_empty(len(x), self._hidden)

    def behind(self, seen: Tensor, x: Tensor, kept: Sequence[Tensor] | None) -> Tensor:
        """Return what follows the attention, (T, D), and fill `kept`, if there is any."""
        y = torch.empty_like(x)
        self._call("behind_forward", seen, x, y, None if kept is None else _room(kept))
        return y

    def behind_back(self, gradient: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the gradients of what attention saw, (T, inner), and of the input, but for what it had through the attention."""
        d_seen, d_x = gradient.new_empty(len(gradient), self._inner), torch.empty_like(gradient)
        self._call("behind_backward", gradient, _room(kept), d_seen, d_x)
        return d_seen, d_x

    def _call(self, name: str, *arguments: Tensor | _Kept | None) -> None:
        library = NATIVE.library()
        assert library is not None
        first = arguments[0]
        assert isinstance(first, Tensor)
        self._structure.threads = torch.get_num_threads()
        given = [pointer(a) if isinstance(a, Tensor) else a and ctypes.byref(a) for a in arguments]
        getattr(library, name)(ctypes.byref(self._structure), ctypes.c_int64(len(first)), *given)


def _room(kept: Sequence[Tensor]) -> _Kept:
    return _Kept(*(x.data_ptr() for x in kept))


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Settled, rows: Rows) -> Tensor:
        x = x.contiguous()
        wide = block.before(x)
        seen, sums = rows.forward(*block.heads_of(wide))
        kept = block.kept(x) if ctx.needs_input_grad[0] else None
        y = block.behind(seen, x, kept)
        if kept is not None:
            ctx.save_for_backward(wide, seen, sums, *kept)
        ctx.block, ctx.rows = block, rows
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wide, seen, sums, *kept = ctx.saved_tensors
        d_seen, d_x = ctx.block.behind_back(gradient.contiguous(), kept)
        parts = ctx.rows.backward(*ctx.block.heads_of(wide), seen, sums, d_seen.view(seen.shape))
        ctx.block.before_back(parts, d_x)
        return d_x, None, None
