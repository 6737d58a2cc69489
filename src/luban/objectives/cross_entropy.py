"""Cross entropy over the classes of a category."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field as Option
from torch import Tensor
from torch.nn import functional as F

from luban.objectives._classes import ClassWeighted
from luban.registry import register

__all__ = ["CrossEntropy"]


@register("objectives")
class CrossEntropy(ClassWeighted):
    """Minus the log of the probability given to the true class.

    With class weights the mean is taken over weights, as in `torch.nn.functional.cross_entropy`. Label smoothing (Szegedy et
    al., 2016, 'Rethinking the Inception architecture') moves a share of the target to all classes evenly.
    """

    kinds: ClassVar[tuple[str, ...]] = ("category",)

    label_smoothing: Annotated[float, Option(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all classes."""

    def rowwise(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none", label_smoothing=self.label_smoothing)
