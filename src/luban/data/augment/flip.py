"""Mirrored images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from luban.data.augment._images import ImageAugmenter, Pixels, Probability, uniform
from luban.registry import register

__all__ = ["Flip"]


@register("augment")
class Flip(ImageAugmenter):
    """Mirror some of the images. Not for letters, digits or anything else of which left and right matter.

    Example:
        ``augment: [flip]`` or ``augment: [{type: flip, direction: vertical, probability: 0.2}]``
    """

    direction: Literal["horizontal", "vertical", "both"] = "horizontal"
    """Left and right, up and down, or each of them by itself."""
    probability: Probability = 0.5
    """How likely an image is mirrored."""

    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return mirrored images."""
        for direction, dim in (("horizontal", 3), ("vertical", 2)):
            if self.direction in (direction, "both"):
                chosen = uniform(0, 1, len(images), images, generator) < self.probability
                images = torch.where(chosen[:, None, None, None], images.flip(dim), images)
        return images
