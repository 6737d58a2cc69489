"""Turned images."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import model_validator
from torch import Generator, Tensor

from luban.data.augment._images import ImageAugmenter, Pixels, Span, uniform, warp
from luban.registry import register

__all__ = ["Rotate", "rotation"]


@register("augment")
class Rotate(ImageAugmenter):
    """Turn each image about its centre, counter-clockwise for positive angles; corners that come in are
    black.

    Example:
        ``augment: [{type: rotate, degrees: 10}]``
    """

    degrees: float | Span = 10.0
    """The largest angle either way, or [least, largest]."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self._span
        if low > high:
            raise ValueError(f"degrees [{low:g}, {high:g}] is empty; the smaller angle comes first")
        return self

    @property
    def _span(self) -> tuple[float, float]:
        low, high = (-self.degrees, self.degrees) if isinstance(self.degrees, float) else self.degrees
        return low, high

    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return turned images."""
        angle = uniform(*self._span, len(images), images, generator).deg2rad()
        return warp(images, rotation(angle), images.new_zeros(len(images), 2), pixels.black(images))


def rotation(angle: Tensor) -> Tensor:
    """Return where pixels are looked up for a turn by `angle` (B,), in radians, counter-clockwise: (B, 2,
    2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
