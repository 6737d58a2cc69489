"""One token a row through a whole causal model in one call of Luban's own code, where a CPU and a compiler allow it.

Generating reads every weight once a token, and does little with each: what a step may cost is the time to read them from
memory. Hundreds of small operations between the products would double it, so all of a pass is one function (`_step.cpp`).
It takes fp32 weights, or int8 ones (`Int8Linear`), which are a quarter to read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.models import _kernels
from luban.models._cache import Cache, Reach
from luban.models._core import LOGITS, Block, Core, Projection, Vocabulary

__all__ = ["Int8Embedding", "Int8Linear", "Int8Vocabulary", "Stepper", "rounded"]

_FEW = {torch.float32: 16, torch.int8: 128}
"""Vectors at a time up to which this is quicker than PyTorch's products, for which int8 weights are turned into fp32 first."""
_PART = 2**18
"""Weights that are turned into fp32 at a time: more would not stay in a near cache."""
_ACTIVATIONS = {"SiLU": 0, "GELU": 1, "GELU tanh": 2, "ReLU": 3}


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias")),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


# --- int8 weights -----------------------------------------------------------------------------------------------


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (rows, columns) as int8, and the scale of each row, (rows,): row by row, the largest becomes ±127.

    Example:
        >>> rounded(torch.tensor([[0.5, -1.0]]))[0].tolist()
        [[64, -127]]
    """
    # A row of zeros has any scale.
    scale = (weight.abs().amax(1).float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


class _Int8(nn.Module):
    """An int8 matrix, (rows, columns), with the scale of each row."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        values, scale = rounded(weight.detach())
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)

    def products(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(T, columns) to (T, rows)."""
        rows, columns = self.weight.shape
        if len(x) <= _FEW[torch.int8] and not torch.is_grad_enabled() and _kernels.useful(x, self.scale):
            out = x.new_empty(len(x), rows)
            x = x.contiguous()
            pointers = (y if y is None else y.data_ptr() for y in (self.weight, self.scale, bias))
            _kernels.few_products(_Matrix(*pointers, rows, columns), x, out)
            return out
        parts = self.weight.split(max(1, _PART // columns))
        y = torch.cat([F.linear(x, part.to(x.dtype)) for part in parts], 1) * self.scale.to(x.dtype)
        return y if bias is None else y + bias


class Int8Linear(_Int8):
    """A linear layer whose weights are int8, each output with a scale of its own; what comes in stays as it is.

    Example:
        >>> layer = nn.Linear(64, 8)
        >>> bool((Int8Linear(layer)(torch.ones(1, 64)) - layer(torch.ones(1, 64))).abs().max() < 0.05)
        True
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.weight)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(T, columns) to (T, rows)."""
        return self.products(x, self.bias)


class Int8Embedding(_Int8):
    """A table of vectors in int8."""

    def forward(self, ids: Tensor) -> Tensor:
        """(T,) to (T, D)."""
        return self.weight[ids].float() * self.scale[ids][:, None]


@dataclass(kw_only=True)
class _Int8Projection(Projection):
    """States on their way to the vocabulary through an int8 matrix."""

    matrix: _Int8

    def logits(self) -> Tensor:
        """Return all logits, (M, V), in float32."""
        return self.matrix.products(self.states, self.bias).float()

    def losses(self, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross entropy of each state, (M,), given the true tokens (M,)."""
        rows = max(1, LOGITS // len(self.weight))
        parts = [
            F.cross_entropy(
                _Int8Projection(states, self.weight, self.bias, matrix=self.matrix).logits(),
                wanted,
                reduction="none",
                label_smoothing=label_smoothing,
            )
            for states, wanted in zip(self.states.split(rows), labels.split(rows), strict=True)
        ]
        return torch.cat(parts)

    def total(self, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross entropy summed over the states, a scalar, given the true tokens (M,)."""
        return self.losses(labels, label_smoothing).sum()


class Int8Vocabulary(nn.Module):
    """What turns states into logits, with int8 weights.

    Args:
        matrix: (V, D).
        bias: of each token, (V,).
        tied: whether the matrix is the table of tokens itself.
    """

    def __init__(self, matrix: Int8Embedding, bias: Tensor | None, *, tied: bool) -> None:
        super().__init__()
        # In a list where it is shared, so that a tied weight has one name only and is saved once.
        self.matrix = None if tied else matrix
        self._tied = [matrix] if tied else []
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weights(self) -> Int8Embedding:
        """The matrix."""
        return self._tied[0] if self.matrix is None else self.matrix

    def forward(self, states: Tensor) -> Projection:
        """(M, D) to logits yet to be made."""
        return _Int8Projection(states, self.weights.weight, self.bias, matrix=self.weights)


# --- the call -----------------------------------------------------------------------------------------------------


class _Scaling(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Scaling) for name in ("attention_norm", "feed_norm", "query_norm", "key_norm")),
        *((name, _Matrix) for name in ("query", "key", "value", "out", "gate", "up", "down")),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class _Transformer(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "width", "heads", "key_heads", "head_size")),
        *((name, ctypes.c_int64) for name in ("inside", "activation", "threads")),
        ("eps", ctypes.c_float),
        ("last_norm", _Scaling),
        ("vocabulary", _Matrix),
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("positions", "cosines", "sines", "x", "logits")),
    )


class Stepper:
    """Reads one token a row with a model's weights, as they lie now.

    Args:
        core: the model.
        language: its way to the vocabulary.
    """

    def __init__(self, core: Core, language: Vocabulary | Int8Vocabulary) -> None:
        self._core = core
        shape = core.shape
        self._kept: list[Tensor] = []  # whose memory the structures point to
        self._table: tuple[Tensor, Tensor] | None = None
        self._layers = (_Layer * shape.layers)(*(self._layer(block) for block in _blocks(core)))
        vocabulary = self._vocabulary(language)
        self._model = _Transformer(
            layers=ctypes.addressof(self._layers),
            count=shape.layers,
            width=shape.hidden_size,
            heads=shape.heads,
            key_heads=shape.kv_heads,
            head_size=shape.head_size,
            inside=shape.intermediate,
            activation=_activation(_blocks(core)[0].feed.activation),
            eps=shape.eps,
            last_norm=self._scaling(core.norm),
            vocabulary=vocabulary,
        )
        self.most = _FEW[torch.int8 if self._layers[0].query.scale else torch.float32]
        """Rows up to which a call is worth its while."""

    @staticmethod
    def of(core: Core, language: nn.Module) -> Stepper | None:
        """Return a stepper where one can do what these modules would."""
        return Stepper(core, language) if _known(core, language) else None  # type: ignore[arg-type]

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Read a token a row, (B,), into a cache that has some already; return the logits of what follows, (B, V)."""
        core, rows = self._core, len(tokens)
        reach = cache.plan_one()
        x = core.embedding(tokens, reach.positions).contiguous()
        logits = torch.empty(rows, self._model.vocabulary.rows)
        keys, values = cache.rectangles()
        for layer, own_keys, own_values in zip(self._layers, keys, values, strict=True):
            layer.keys, layer.values = own_keys.data_ptr(), own_values.data_ptr()
        call = _Tokens(
            rows=rows,
            capacity=keys[0].shape[2],
            positions=reach.positions.data_ptr(),
            x=x.data_ptr(),
            logits=logits.data_ptr(),
        )
        if core.shape.positions == "rotary":
            cosines, sines = self._turns(reach, x)
            call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
        self._model.threads = torch.get_num_threads()
        _kernels.decode_step(self._model, call)
        cache.advance(1)
        return logits

    def _turns(self, reach: Reach, x: Tensor) -> Sequence[Tensor]:
        """Return cosines and sines of where the tokens stand, (B, head_size / 2) each, from a table: making them anew takes a fortieth
        of a step."""
        if self._table is None or len(self._table[0]) < reach.longest:
            self._table = self._core.turns(torch.arange(2 * reach.longest, device=x.device), x)
        assert self._table is not None
        return [part.index_select(0, reach.positions) for part in self._table]

    def _layer(self, block: Block) -> _Layer:
        attention, feed = block.attention, block.feed
        return _Layer(
            attention_norm=self._scaling(block.attention_norm),
            feed_norm=self._scaling(block.feed_norm),
            query_norm=self._scaling(attention.q_norm),
            key_norm=self._scaling(attention.k_norm),
            query=self._matrix(attention.q),
            key=self._matrix(attention.k),
            value=self._matrix(attention.v),
            out=self._matrix(attention.out),
            gate=_Matrix() if feed.gate is None else self._matrix(feed.gate),
            up=self._matrix(feed.up),
            down=self._matrix(feed.down),
        )

    def _pointer(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        x = x.detach().contiguous()
        self._kept.append(x)
        return x.data_ptr()

    def _scaling(self, norm: Any) -> _Scaling:
        if norm is None:
            return _Scaling()
        return _Scaling(self._pointer(norm.weight), self._pointer(getattr(norm, "bias", None)))

    def _matrix(self, layer: Any) -> _Matrix:
        return self._of(layer.weight, getattr(layer, "scale", None), layer.bias)

    def _of(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> _Matrix:
        rows, columns = weight.shape
        return _Matrix(self._pointer(weight), self._pointer(scale), self._pointer(bias), rows, columns)

    def _vocabulary(self, language: Vocabulary | Int8Vocabulary) -> _Matrix:
        if isinstance(language, Int8Vocabulary):
            return self._of(language.weights.weight, language.weights.scale, language.bias)
        return self._of(language.matrix, None, language.bias)


def _blocks(core: Core) -> list[Block]:
    return [block for block in core.layers if isinstance(block, Block)]


def _activation(module: nn.Module) -> int | None:
    name = type(module).__name__
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        name = "GELU tanh"
    return _ACTIVATIONS.get(name)


def _known(core: Core, language: nn.Module) -> bool:
    """Whether these are the very modules that the code stands for: nothing adapted, hooked or of another kind."""
    shape = core.shape
    usual = (
        shape.causal
        and not shape.cross
        and shape.norm_place == "pre"
        and shape.last_norm
        and all(type(block) is Block for block in core.layers)
        and _activation(_blocks(core)[0].feed.activation) is not None
    )
    if not usual or not isinstance(language, Vocabulary | Int8Vocabulary):
        return False
    if isinstance(language, Vocabulary) and language.transform is not None:
        return False
    plain = (nn.Linear, Int8Linear, nn.Embedding, Int8Embedding, nn.LayerNorm, nn.RMSNorm)
    for block in _blocks(core):
        attention, feed = block.attention, block.feed
        leaves: list[nn.Module | None] = [
            attention.q,
            attention.k,
            attention.v,
            attention.out,
            feed.gate,
            feed.up,
            feed.down,
        ]
        leaves += [block.attention_norm, block.feed_norm, attention.q_norm, attention.k_norm]
        if any(leaf is not None and type(leaf) not in plain for leaf in leaves):
            return False
    modules = [*core.modules(), *language.modules()]
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return False
    numbers = [*core.parameters(), *language.parameters()]
    return _kernels.useful(*numbers) and all(buffer.device.type == "cpu" for buffer in core.buffers())
