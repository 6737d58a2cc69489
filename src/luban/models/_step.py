"""One token a row through a whole causal model in one call of Luban's own code, where a CPU and a compiler allow it.

Generating reads every weight once a token, and does little with each: what a step may cost is the time to read them from
memory. Hundreds of small operations between the products would double it, so all of a pass is one function (`_step.cpp`).
It takes fp32 weights, or int8 ones (`Int8Linear`), which are a quarter to read.
"""

from __future__ import annotations

import ctypes
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.data.ragged import Ragged
from luban.models import _kernels
from luban.models._cache import Cache
from luban.models._core import Block, Core, Projection, Vocabulary

__all__ = ["Int8Embedding", "Int8Linear", "Int8Vocabulary", "Stepper", "rounded"]

_FEW = {torch.float32: 8, torch.int8: 16}
"""Rows at a time up to which this is quicker than PyTorch's products, which use each weight more often."""
_ACTIVATIONS = {"SiLU": 0, "GELU": 1, "GELU tanh": 2, "ReLU": 3}


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

    def plain(self) -> Tensor:
        """Return the matrix in float32."""
        return self.weight.float() * self.scale[:, None]


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
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


class Int8Embedding(_Int8):
    """A table of vectors in int8."""

    def forward(self, ids: Tensor) -> Tensor:
        """(T,) to (T, D)."""
        return self.weight[ids].float() * self.scale[ids][:, None]


class Int8Vocabulary(nn.Module):
    """What turns states into logits, with int8 weights.

    Args:
        matrix: (V, D); may be the table of tokens itself.
        bias: of each token, (V,).
    """

    def __init__(self, matrix: _Int8, bias: Tensor | None) -> None:
        super().__init__()
        # In a list where it is shared, so that a tied weight has one name only and is saved once.
        self.matrix = None if isinstance(matrix, Int8Embedding) else matrix
        self._tied = [matrix] if isinstance(matrix, Int8Embedding) else []
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weights(self) -> _Int8:
        """The matrix."""
        return self._tied[0] if self.matrix is None else self.matrix

    def forward(self, states: Tensor) -> Projection:
        """(M, D) to logits yet to be made."""
        return Projection(states, self.weights.plain(), self.bias)


# --- the call -----------------------------------------------------------------------------------------------------


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias")),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


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
        inputs = Ragged(tokens, torch.arange(rows + 1))
        reach = cache.plan(inputs, causal=True)
        x = core.embedding(tokens, reach.positions).contiguous()
        logits = torch.empty(rows, self._model.vocabulary.rows)
        keys, values = cache.rectangles()
        for layer, own_keys, own_values in zip(self._layers, keys, values, strict=True):
            layer.keys, layer.values = own_keys.data_ptr(), own_values.data_ptr()
        call = _Tokens(
            rows=rows,
            capacity=keys[0].shape[1],
            positions=reach.positions.data_ptr(),
            x=x.data_ptr(),
            logits=logits.data_ptr(),
        )
        turns = core.turns(reach.positions, x)
        if turns is not None:
            cosines, sines = turns[0].contiguous(), turns[1].contiguous()
            call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
        self._model.threads = torch.get_num_threads()
        _kernels.decode_step(self._model, call)
        cache.advance(inputs)
        return logits

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
        leaves = [
            *operator.attrgetter("attention.q", "attention.k", "attention.v", "attention.out")(block),
            *operator.attrgetter("feed.up", "feed.down", "attention_norm", "feed_norm")(block),
        ]
        if any(type(leaf) not in plain for leaf in [*leaves, block.feed.gate or leaves[0]]):
            return False
    modules = [*core.modules(), *language.modules()]
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return False
    numbers = [*core.parameters(), *language.parameters()]
    return _kernels.useful(*numbers) and all(buffer.device.type == "cpu" for buffer in core.buffers())
