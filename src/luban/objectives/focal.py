"""Focal loss: cross entropy that cares less for what is already right."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field as Option
from torch import Tensor
from torch.nn import functional as F

from luban.objectives._classes import ClassWeighted
from luban.registry import register

__all__ = ["Focal"]


@register("objectives")
class Focal(ClassWeighted):
    """Cross entropy times (1 - p)^gamma, where p is the probability of the truth (Lin et al., 2017, 'Focal loss').

    Fits a category (softmax), a binary target and a set (a sigmoid each). With gamma 0 it is cross entropy.
    """

    kinds: ClassVar[tuple[str, ...]] = ("category", "binary", "set")

    gamma: Annotated[float, Option(ge=0)] = 2.0
    """How little the easy rows count."""

    def rowwise(self, output: Tensor, target: Tensor) -> Tensor:
        if self.facts.field.kind == "category":
            loss = F.cross_entropy(output, target, reduction="none")
            return (1 - (-loss).exp()) ** self.gamma * loss
        loss = F.binary_cross_entropy_with_logits(
            output, target.reshape(len(output), -1).float(), reduction="none"
        )
        return self.mean_over_logits((1 - (-loss).exp()) ** self.gamma * loss)
