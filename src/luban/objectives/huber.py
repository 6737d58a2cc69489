"""Huber loss: squared near the truth, absolute far from it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field as Option
from torch import Tensor
from torch.nn import functional as F

from luban.objectives._base import Supervised
from luban.registry import register

__all__ = ["Huber"]


@register("objectives")
class Huber(Supervised):
    """Squared error up to `delta`, linear beyond it (Huber, 1964), in normalised units: outliers pull less."""

    kinds: ClassVar[tuple[str, ...]] = ("number",)

    delta: Annotated[float, Option(gt=0)] = 1.0
    """Where squared becomes linear, in deviations of the target."""

    def rowwise(self, output: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(output.reshape(len(output)), target, reduction="none", delta=self.delta)
