"""Cut-out images."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from luban.data.augment._images import ImageAugmenter, Pixels, Span, boxes, moved, warp
from luban.registry import register

__all__ = ["Crop"]


@register("augment")
class Crop(ImageAugmenter):
    """Cut a part out of each image, at the size it had.

    With `padding`, the image gets a black border and a window of its old size is cut out (He et al. 2016, for
    CIFAR). With `scale`, a window of another size and shape is cut out and stretched (Szegedy et al. 2015,
    for ImageNet).

    Example:
        ``augment: [{type: crop, padding: 4}]`` or ``augment: [{type: crop, scale: [0.3, 1]}]``
    """

    padding: Annotated[int, Field(ge=1)] | None = None
    """Pixels of the border; 4 if `scale` is left out too."""
    scale: Span | None = None
    """Area of the window as a share of the image, [least, largest]."""
    ratio: Span = [3 / 4, 4 / 3]
    """Width by height of the window, relative to the image's, [least, largest]; with `scale` only."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.padding is not None and self.scale is not None:
            raise ValueError("padding and scale are both given; they are two ways to cut, keep one")
        if self.scale is None and "ratio" in self.model_fields_set and self.ratio != [3 / 4, 4 / 3]:
            raise ValueError("ratio without scale has no effect: a window of the old size keeps its shape")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale {self.scale} is no range of shares; write [least, largest], above 0 and up to 1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} is no range; write [least, largest], above 0")
        return self

    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return parts of the images."""
        n = len(images)
        if self.scale is None:
            most = 4 if self.padding is None else self.padding
            steps = torch.randint(-most, most + 1, (2, n), generator=generator, device=generator.device)
            right, down = steps.to(images.device)
            return moved(images, right, down, pixels.black(images))
        least, largest = self.scale
        narrow, wide = self.ratio
        corner, size = boxes(n, (least, largest), (narrow, wide), images, generator)
        whole = images.new_tensor([images.shape[3], images.shape[2]])
        return warp(images, torch.diag_embed(size), (corner + size / 2 - 0.5) * whole, None)
