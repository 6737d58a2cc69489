"""Images with a part of another."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from luban.data.augment._images import inside
from luban.data.augment._mix import Alpha, Mixer
from luban.data.contracts import Field
from luban.errors import RecipeError
from luban.registry import register

__all__ = ["Cutmix"]


@register("augment")
class Cutmix(Mixer):
    """Replace a rectangle of each image by that of another, and the target in proportion (CutMix; Yun et al.
    2019).

    The rectangle has the image's shape and 1 - share of its area, before what falls outside is cut off; the
    share in the batch is what is really left.

    Example:
        ``augment: [{type: cutmix, alpha: 1.0}]``
    """

    alpha: Alpha = 1.0
    """1 draws all shares alike; larger values prefer halves."""

    @property
    def _alpha(self) -> float:
        return self.alpha

    def fits(self, field: Field, value: Tensor) -> bool:
        """Return whether a field holds images."""
        return field.kind == "image"

    def mix(
        self, values: list[Tensor], partner: Tensor, share: Tensor, generator: Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Return the images with rectangles of their partners'."""
        if len(values) > 1:
            raise RecipeError("augment type 'cutmix' mixes one column of images; name it by 'columns'")
        images = values[0]
        height, width = images.shape[-2:]
        size = (1 - share).sqrt()[:, None].expand(-1, 2)
        centre = torch.rand(len(images), 2, generator=generator, device=generator.device).to(images.device)
        hole = inside(centre - size / 2, size, height, width)
        mixed = torch.where(hole, images[partner], images).contiguous(memory_format=torch.channels_last)
        return [mixed], 1 - hole.mean((1, 2, 3), dtype=torch.float32)
