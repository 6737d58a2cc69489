"""Images with a hole."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Generator, Tensor

from luban.data.augment._images import ImageAugmenter, Pixels, Probability, Span, boxes, inside, uniform
from luban.registry import register

__all__ = ["Erase"]


@register("augment")
class Erase(ImageAugmenter):
    """Cover a rectangle of some images, so that no single part decides (random erasing; Zhong et al. 2020).

    Example:
        ``augment: [{type: erase, probability: 0.25, fill: noise}]``
    """

    probability: Probability = 0.5
    """How likely an image is covered."""
    scale: Span = [0.02, 0.33]
    """Area of the rectangle as a share of the image, [least, largest]."""
    ratio: Span = [0.3, 3.3]
    """Width by height of the rectangle, relative to the image's, [least, largest]."""
    fill: Literal["black", "noise"] = "black"
    """What covers it; noise is normal, in units of the normalised values."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] < 1:
            raise ValueError(
                f"scale {self.scale} is no range of shares; write [least, largest], between 0 and 1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} is no range; write [least, largest], above 0")
        return self

    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return images with a rectangle covered."""
        n, _, height, width = images.shape
        (least, largest), (narrow, wide) = self.scale, self.ratio
        hole = inside(*boxes(n, (least, largest), (narrow, wide), images, generator), height, width)
        hole &= (uniform(0, 1, n, images, generator) < self.probability).view(-1, 1, 1, 1)
        cover = pixels.black(images)
        if self.fill == "noise":
            cover = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)
        return torch.where(hole, cover, images)
