"""Gradient × input: one gradient, at the row itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from luban.explaining._base import Explainer, Explanation
from luban.explaining._case import Case
from luban.explaining._gradients import attribute, parts_of, refusal_of
from luban.explaining._handles import Site
from luban.registry import register
from luban.sentences import say

__all__ = ["GradientXInput"]


@register("explainers")
class GradientXInput(Explainer):
    """``x · ∂score/∂x`` for each value x of the input: one pass a row, and exact for a linear model.

    Example:
        >>> GradientXInput().type
        'gradient_x_input'
    """

    paper: ClassVar[str] = say("Shrikumar, Greenside, Shcherbina and Kundaje, 2016, 'Not Just a Black Box'")
    limits: ClassVar[str] = say(
        "it sees the slope at the row alone, so what has saturated seems unimportant, and values need not add up to the score"
    )
    of_written: ClassVar[bool] = True

    def refusal(self, case: Case) -> str | None:
        return refusal_of(case)

    def explain(self, case: Case) -> list[Explanation]:
        found = attribute(case, _zeros, [1.0], [1.0])
        return case.explanations(self.type, found.scores.tolist(), parts_of(case, found.values))


def _zeros(site: Site) -> Tensor:
    return torch.zeros_like(site.actual)
