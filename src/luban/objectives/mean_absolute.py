"""Absolute error of a number."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from luban.objectives._base import Supervised
from luban.registry import register

__all__ = ["MeanAbsolute"]


@register("objectives")
class MeanAbsolute(Supervised):
    """Mean absolute error, in normalised units: the median is what it looks for."""

    kinds: ClassVar[tuple[str, ...]] = ("number",)

    def rowwise(self, output: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(output.reshape(len(output)), target, reduction="none")
