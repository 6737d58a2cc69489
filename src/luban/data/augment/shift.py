"""Moved images."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from luban.data.augment._images import ImageAugmenter, Pixels, moved
from luban.registry import register

__all__ = ["Shift"]


@register("augment")
class Shift(ImageAugmenter):
    """Move each image by whole pixels, so that nothing is blurred; what comes in is black.

    Example:
        ``augment: [{type: shift, share: 0.1}]``
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The farthest either way, as a share of height and width."""

    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return moved images."""
        down, right = (
            torch.randint(-most, most + 1, (len(images),), generator=generator, device=generator.device)
            for most in (round(self.share * size) for size in images.shape[-2:])
        )
        return moved(images, right.to(images.device), down.to(images.device), pixels.black(images))
