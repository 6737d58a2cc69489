"""A few of many changes, all of one strength."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from luban.data.augment import _color
from luban.data.augment._images import ImageAugmenter, Pixels, uniform, warp
from luban.data.augment.rotate import rotation
from luban.registry import register

__all__ = ["Randaugment"]

# Strength (B,) between 0 and 1 → what the operation takes; a sign was drawn where the operation has two
# directions.
_LIGHT: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda light, strength, sign: _color.brightness(light, 1 + 0.9 * strength * sign),
    lambda light, strength, sign: _color.contrast(light, 1 + 0.9 * strength * sign),
    lambda light, strength, sign: _color.saturation(light, 1 + 0.9 * strength * sign),
    lambda light, strength, sign: _color.sharpness(light, 1 + 0.9 * strength * sign),
    lambda light, strength, sign: _color.posterize(light, 8 - (4 * strength).round()),
    lambda light, strength, sign: _color.solarize(light, 1 - strength),
    lambda light, strength, sign: _color.autocontrast(light),
    lambda light, strength, sign: _color.equalize(light),
]
_MOVES = 5  # shear and shift along x and y, rotate
_KINDS = 1 + _MOVES + len(_LIGHT)  # and doing nothing


@register("augment")
class Randaugment(ImageAugmenter):
    """Apply `n` of 14 changes to each image, one after the other (RandAugment; Cubuk et al. 2020).

    The changes: none, shear and shift along either axis, rotate, brightness, contrast, saturation, sharpness,
    posterize, solarize, autocontrast, equalize; their ranges are those of the paper, at ``magnitude / 30`` of
    the largest.

    Example:
        ``augment: [{type: randaugment, n: 2, magnitude: 9}]``
    """

    n: Annotated[int, Field(ge=1, le=14)] = 2
    """How many changes."""
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0
    """How strong they are, from 0 to 30."""

    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return changed images."""
        size = len(images)
        strength = images.new_full((size,), self.magnitude / 30)
        for _ in range(self.n):
            kind = torch.randint(_KINDS, (size,), generator=generator, device=generator.device).to(
                images.device
            )
            sign = torch.where(uniform(0, 1, size, images, generator) < 0.5, -1.0, 1.0)
            images = self._move(images, kind - 1, strength * sign, pixels)
            light = pixels.to_light(images).clamp(0, 1)
            for i, operation in enumerate(_LIGHT):
                chosen = (kind == 1 + _MOVES + i).nonzero().squeeze(1)
                if len(chosen):
                    light[chosen] = operation(light[chosen], strength[chosen], sign[chosen])
            lit = (kind > _MOVES).view(-1, 1, 1, 1)
            images = torch.where(lit, pixels.from_light(light), images)
        return images

    def _move(self, images: Tensor, kind: Tensor, strength: Tensor, pixels: Pixels) -> Tensor:
        """Shear along x, along y, shift along x, along y, rotate: kinds 0 to 4."""
        chosen = ((kind >= 0) & (kind < _MOVES)).nonzero().squeeze(1)
        if not len(chosen):
            return images
        kind, strength = kind[chosen], strength[chosen]
        zero = torch.zeros_like(strength)
        along = [torch.where(kind == i, strength, zero) for i in range(_MOVES)]
        matrix = rotation(torch.deg2rad(30 * along[4]))
        matrix = matrix + torch.stack([zero, 0.3 * along[0], 0.3 * along[1], zero], dim=1).view(-1, 2, 2)
        # The paper shifts by 150 pixels of 331 at the most.
        offset = torch.stack([along[2] * images.shape[3], along[3] * images.shape[2]], dim=1) * (150 / 331)
        images = images.clone()
        images[chosen] = warp(images[chosen], matrix, offset, pixels.black(images))
        return images
