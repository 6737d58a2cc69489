"""Rows blended with others."""

from __future__ import annotations

from torch import Generator, Tensor

from luban.data.augment._mix import Alpha, Mixer
from luban.data.contracts import Field
from luban.registry import register

__all__ = ["Mixup"]


@register("augment")
class Mixup(Mixer):
    """Blend each row with another of its batch, inputs and targets alike (mixup; Zhang et al. 2018).

    It acts on images and on tables of numbers. The share of the row itself is drawn from Beta(alpha, alpha).

    Example:
        ``augment: [{type: mixup, alpha: 0.2}]``
    """

    alpha: Alpha = 0.2
    """Small values leave most rows nearly as they are; 1 draws all shares alike."""

    @property
    def _alpha(self) -> float:
        return self.alpha

    def fits(self, field: Field, value: Tensor) -> bool:
        """Return whether a field holds real numbers."""
        return value.is_floating_point()

    def mix(
        self, values: list[Tensor], partner: Tensor, share: Tensor, generator: Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Return ``share * own + (1 - share) * partner's``."""
        blended = []
        for value in values:
            weight = share.to(value.dtype).view(-1, *[1] * (value.dim() - 1))
            blended.append(value[partner].lerp(value, weight))
        return blended, share
