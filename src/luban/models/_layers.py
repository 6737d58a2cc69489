"""What the families build with: activations, initial weights, a dropout that is cheap on a CPU, dense layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field as Limit
from torch import Tensor, nn

from luban.data.ragged import Ragged

__all__ = [
    "MONOTONE",
    "Activation",
    "BatchNorm1d",
    "BatchNorm2d",
    "Count",
    "Dropout",
    "Init",
    "Positive",
    "Rate",
    "activation_of",
    "dense",
    "dropout",
    "embedding_width",
    "in_channels_last",
    "initialise",
    "per_layer",
    "pooled",
]

Count: TypeAlias = Annotated[int, Limit(gt=0)]
Positive: TypeAlias = Annotated[float, Limit(gt=0, allow_inf_nan=False)]
Rate: TypeAlias = Annotated[float, Limit(ge=0, lt=1)]
Activation = Literal[
    "step", "sigmoid", "tanh", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "softplus", "mish"
]
Init = Literal["default", "zeros", "constant", "uniform", "normal", "xavier", "he", "orthogonal"]

MONOTONE = frozenset({"step", "sigmoid", "tanh", "relu", "leaky_relu", "softplus"})
"""Activations that never fall: the maximum may be taken before them, over fewer bytes, with the same result."""


class Step(nn.Module):
    """1 where the input is positive, else 0; the gradient passes straight through (Bengio et al., 2013)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x + ((x > 0).to(x.dtype) - x).detach()


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "step": Step,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),  # as OpenAI wrote it for GPT-2
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
}


def activation_of(name: Activation) -> nn.Module:
    """Return the activation of a name.

    Example:
        >>> activation_of("relu")(torch.tensor([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """
    return _ACTIVATIONS[name]()


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each value with probability `p` and scale the rest by ``1 / (1 - p)``.

    On a CPU, drawing one random double a value costs more than the layer it regularises, so one 64-bit draw serves four
    values there. `p` is thereby rounded to a multiple of 1/65536, and the scale is that of the rounded `p`: the mean is
    exact. Elsewhere this is `F.dropout`.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * 65536)
    # The bounds matter: plain `random_()` never sets the sign bit, and every fourth value would be dropped too often.
    bits = x.new_empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
    return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


class Dropout(nn.Module):
    """Zero each value with probability `p` and scale the rest by ``1 / (1 - p)`` (Srivastava et al., 2014).

    The same in distribution as `nn.Dropout`, and several times quicker on a CPU; see `dropout`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape; the identity in evaluation mode."""
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"p={self.p}"


def initialise(module: nn.Module, init: Init, scale: float | None = None) -> None:
    """Draw the weights of all linear, convolutional and recurrent layers anew; their biases become zero.

    Embeddings and normalisations keep what they are made with.

    Args:
        module: what to initialise, in place.
        init: ``default`` leaves what PyTorch does. ``xavier`` is Glorot and Bengio (2010), ``he`` He et al. (2015),
            ``orthogonal`` Saxe et al. (2013).
        scale: the value of ``constant`` (0.1 if None), the bound of ``uniform`` (0.1), the standard deviation of
            ``normal`` (0.02); for the others a factor of the weights (1).
    """
    if init == "default" and scale is None:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd | nn.RNNBase):
            # Copied, because a recurrent layer's list is a property and holds the gates stacked: each is one matrix.
            for name, weight in layer.named_parameters(recurse=False):
                if weight.dim() > 1:
                    gates = weight.shape[0] // layer.hidden_size if isinstance(layer, nn.RNNBase) else 1
                    for matrix in weight.detach().chunk(gates):
                        _fill(matrix, init, scale)
                elif init != "default" and "bias" in name:
                    nn.init.zeros_(weight)


def _fill(weight: Tensor, init: Init, scale: float | None) -> None:
    match init:
        case "zeros":
            weight.zero_()
        case "constant":
            weight.fill_(0.1 if scale is None else scale)
        case "uniform":
            bound = 0.1 if scale is None else scale
            weight.uniform_(-bound, bound)
        case "normal":
            weight.normal_(0.0, 0.02 if scale is None else scale)
        case _:
            if init == "xavier":
                nn.init.xavier_uniform_(weight)
            elif init == "he":
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
            elif init == "orthogonal":
                nn.init.orthogonal_(weight)
            weight.mul_(1.0 if scale is None else scale)


def per_layer(value: Any, layers: int, key: str) -> list[Any]:
    """Return one value for each layer, from one for all or a list.

    Raises:
        ValueError: if a list has another length than there are layers.

    Example:
        >>> per_layer(3, 2, "kernel")
        [3, 3]
    """
    if not isinstance(value, list):
        return [value] * layers
    if len(value) != layers:
        raise ValueError(
            f"{key} has {len(value)} values for {layers} layers; give one for each, or a single one for all"
        )
    return value


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that takes a batch of one value a channel, which has no variance, by its running statistics.

    The last batch of an epoch may hold a single row; PyTorch's own then raises an error, after an hour of training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        if self.training and x.numel() == self.num_features:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Over rows (B, C)."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Over maps (B, C, H, W)."""


class _Residual(nn.Module):
    """Layers whose input is added to their output."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        result: Tensor = x + self.layers(x)
        return result


def dense(
    width: int,
    hidden: Sequence[int],
    activation: Activation,
    dropout: float | list[float] = 0.0,
    norm: Literal["none", "batch", "layer"] = "none",
    residual: bool = False,
) -> tuple[nn.Sequential, int]:
    """Make the layers ``linear → norm → activation → dropout`` and tell the width of the last.

    Without hidden layers, `dropout` acts on the input itself.

    Args:
        width: values that come in.
        hidden: width of each layer.
        activation: after each layer.
        dropout: one for all layers, or one for each.
        norm: batch (Ioffe and Szegedy, 2015) or layer normalisation (Ba et al., 2016) before the activation.
        residual: add a layer's input to its output where both have the same width.

    Example:
        >>> dense(784, [100], "relu")
        (Sequential(
          (0): Sequential(
            (0): Linear(in_features=784, out_features=100, bias=True)
            (1): ReLU()
          )
        ), 100)
    """
    if not hidden:
        rates = [dropout] if isinstance(dropout, float | int) else dropout[:1]
        return nn.Sequential(*(Dropout(rate) for rate in rates if rate)), width
    blocks = nn.Sequential()
    for size, rate in zip(hidden, per_layer(dropout, len(hidden), "dropout"), strict=True):
        parts: list[nn.Module] = [nn.Linear(width, size)]
        if norm != "none":
            parts.append(BatchNorm1d(size) if norm == "batch" else nn.LayerNorm(size))
        parts.append(activation_of(activation))
        if rate:
            parts.append(Dropout(rate))
        block = nn.Sequential(*parts)
        blocks.append(_Residual(block) if residual and size == width else block)
        width = size
    return blocks, width


Module = TypeVar("Module", bound=nn.Module)


def in_channels_last(module: Module) -> Module:
    """Lay the kernels of 2-d convolutions as channels-last batches lie; the values stay."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def embedding_width(size: int) -> int:
    """Return how wide the embedding of `size` distinct values should be: ``1.6 size^0.56``, at most 64 (fastai's rule).

    Example:
        >>> embedding_width(42), embedding_width(5000)
        (13, 64)
    """
    return min(64, math.ceil(1.6 * math.pow(size, 0.56)))


def pooled(states: Ragged, how: Literal["first", "last", "mean", "max"]) -> Tensor:
    """Return one vector a row, (B, D), from states (T, D); a row without positions gives zeros.

    Example:
        >>> pooled(Ragged(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 2, 2])), "mean").tolist()
        [[2.0], [0.0]]
    """
    if how == "mean":
        return states.mean()
    if how == "max":
        highest = states.max()
        return highest.masked_fill(states.lengths[:, None] == 0, 0.0)
    if len(states.values) == 0:
        return states.values.new_zeros(len(states), states.values.shape[1])
    # Without asking whether a row is empty, since a device would have to be waited for.
    places = (states.offsets[:-1] if how == "first" else states.offsets[1:] - 1).clamp(
        0, len(states.values) - 1
    )
    return states.values.index_select(0, places).masked_fill(states.lengths[:, None] == 0, 0.0)
