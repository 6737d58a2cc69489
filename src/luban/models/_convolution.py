"""A stack of convolutions that is quick on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from luban.errors import RecipeError
from luban.models._layers import MONOTONE, Activation, BatchNorm2d, activation_of, in_channels_last

__all__ = ["Convolutions", "image_norm"]


def image_norm(kind: Literal["none", "batch", "group"], channels: int) -> nn.Module | None:
    """Return batch (Ioffe and Szegedy, 2015) or group normalisation (Wu and He, 2018; at most 8 channels a group)."""
    match kind:
        case "batch":
            return BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(
                next(n for n in range(max(1, channels // 8), 0, -1) if channels % n == 0), channels
            )
        case _:
            return None


class Convolutions(nn.Module):
    """``convolution → norm → activation → pooling``, several times; then the map becomes one vector.

    Where the activation never falls, the maximum is taken before it: same values, and the activation sees a quarter of
    them. Weights lie in channels-last memory, as batches of images do.

    Args:
        shape: (H, W, C) of the images.
        channels, kernels, strides, paddings, pools: one for each layer; a pool of 0 is none.
        pool: what pooling takes, `max` or `average`.
        activation, norm: in each layer.
        reduce: `flatten` keeps every place of the last map, in the order (H, W, C); `average` and `max` take one value a channel.

    Raises:
        RecipeError: if the image becomes smaller than a kernel on the way.

    Example:
        >>> import torch
        >>> stack = Convolutions((28, 28, 1), [32, 64], pools=[2, 2])
        >>> stack.width, stack(torch.zeros(5, 1, 28, 28)).shape
        (1600, torch.Size([5, 1600]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        *,
        pools: Sequence[int],
        kernels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        paddings: Sequence[Literal["valid", "same"]] | None = None,
        pool: Literal["max", "average"] = "max",
        activation: Activation = "relu",
        norm: Literal["none", "batch", "group"] = "none",
        reduce: Literal["flatten", "average", "max"] = "flatten",
    ) -> None:
        super().__init__()
        n = len(channels)
        height, width, depth = shape
        layers = nn.Sequential()
        for i, (out, kernel, stride, padding, size) in enumerate(
            zip(
                channels,
                kernels or [3] * n,
                strides or [1] * n,
                paddings or ["valid"] * n,
                pools,
                strict=True,
            )
        ):
            left, right = ((kernel - 1) // 2, kernel // 2) if padding == "same" else (0, 0)
            border = nn.ZeroPad2d((left, right, left, right)) if left != right else None  # an even kernel
            convolution = nn.Conv2d(
                depth, out, kernel, stride, left if border is None else 0, bias=norm == "none"
            )
            before = (height, width)
            height, width = ((side + left + right - kernel) // stride + 1 for side in before)
            height, width = height // max(size, 1), width // max(size, 1)
            if min(height, width) < 1:
                raise RecipeError(
                    f"convolution {i + 1} of {n} (kernel {kernel}, stride {stride}, padding {padding}, pool {size}) leaves nothing of a map "
                    f"of {before[0]}×{before[1]}; the image is {shape[0]}×{shape[1]}: take fewer layers, smaller pools or padding 'same'"
                )
            pooling = (nn.MaxPool2d if pool == "max" else nn.AvgPool2d)(size) if size else None
            act = activation_of(activation)
            commute = pool == "max" and activation in MONOTONE
            parts = [
                border,
                convolution,
                image_norm(norm, out),
                *((pooling, act) if commute else (act, pooling)),
            ]
            layers.append(nn.Sequential(*(part for part in parts if part is not None)))
            depth = out
        self.layers = in_channels_last(layers)
        self.reduce = reduce
        self.width = depth * (height * width if reduce == "flatten" else 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width)."""
        maps: Tensor = self.layers(pixels)
        match self.reduce:
            case "average":
                return maps.mean((2, 3))
            case "max":
                return maps.amax((2, 3))
            case _:
                return maps.permute(0, 2, 3, 1).flatten(1)  # a view: the memory is channels-last
