"""Convolutional network: convolutions with pooling, then dense layers (LeCun et al., 1998)."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import NonNegativeInt, model_validator

from luban.data.contracts import Field
from luban.models._convolution import Convolutions
from luban.models._encoders import Encoder, Image, is_image
from luban.models._layers import Count, per_layer
from luban.models._network import Family
from luban.registry import register

__all__ = ["CNN"]

_PER_LAYER = ("kernel", "stride", "padding", "pool")


@register("models")
class CNN(Family):
    """Convolutions over images; other inputs join before the dense layers.

    Keys of the convolutions take one value for all layers or a list with one for each.

    Example:
        >>> CNN(channels=[32, 64, 64], kernel=3, pool=[2, 2, 0], hidden=[64], dropout=0.0).channels
        [32, 64, 64]
    """

    made_for: ClassVar = "images"
    SIZES: ClassVar = {
        "tiny": {"channels": [8, 16], "hidden": [32]},
        "small": {"channels": [32, 64], "hidden": [64]},
        "medium": {
            "channels": [32, 64, 128],
            "padding": "same",
            "norm": "batch",
            "hidden": [128],
            "dropout": 0.2,
        },
        "large": {
            "channels": [64, 128, 256],
            "padding": "same",
            "norm": "batch",
            "hidden": [256],
            "dropout": 0.3,
        },
    }

    channels: list[Count]
    """Channels of each convolution."""
    kernel: Count | list[Count] = 3
    """Side of the square kernels."""
    stride: Count | list[Count] = 1
    """Step of the kernels."""
    padding: Literal["valid", "same"] | list[Literal["valid", "same"]] = "valid"
    """`valid` keeps kernels inside the image; `same` lets the map keep its size (a stride divides it)."""
    pool: NonNegativeInt | list[NonNegativeInt] = 2
    """Side of the squares that pooling takes together, after each layer; 0 is none."""
    pool_kind: Literal["max", "average"] = "max"
    """What pooling takes of a square."""
    reduce: Literal["flatten", "average", "max"] = "flatten"
    """How the last map becomes a vector: every place of it, or one value a channel, which admits images of any size."""
    norm: Literal["none", "batch", "group"] = "none"
    """Normalisation between a convolution and its activation."""

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        for key in _PER_LAYER:
            per_layer(getattr(self, key), len(self.channels), key)
        return self

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read images."""
        if not is_image(field):
            return None
        kernels, strides, paddings, pools = (
            per_layer(getattr(self, key), len(self.channels), key) for key in _PER_LAYER
        )
        stack = Convolutions(
            field.shape or (),
            self.channels,
            kernels=kernels,
            strides=strides,
            paddings=paddings,
            pools=pools,
            pool=self.pool_kind,
            activation=self.activation,
            norm=self.norm,
            reduce=self.reduce,
        )
        return Image(name, stack, stack.width)
