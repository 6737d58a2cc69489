"""Grad-CAM++: as Grad-CAM, with weights that do justice to several objects of a class."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from luban.explaining.grad_cam import CamExplainer
from luban.registry import register
from luban.sentences import say

__all__ = ["GradCamPP"]


@register("explainers")
class GradCamPP(CamExplainer):
    """``Σ_c w_c · map c``, where ``w_c`` sums the positive gradients of map c, each place weighted so that a small object counts as
    much as a large one. Gradients are those of the exponential of the score, as in the paper.

    Example:
        >>> GradCamPP().positive
        True
    """

    paper: ClassVar[str] = say("Chattopadhay et al., 2018, 'Grad-CAM++'")
    limits: ClassVar[str] = say(
        "it is as coarse as the layer's maps, and its weights hold for piecewise linear models alone, nearly"
    )

    def weighted(self, maps: Tensor, gradients: Tensor) -> Tensor:
        squared = gradients**2
        below = 2 * squared + (maps.sum((2, 3), keepdim=True) * gradients**3)
        alpha = squared / below.where(below != 0, below.new_ones(()))
        # The exponential of the score is a factor of all gradients alike, and is left out.
        weights = (alpha * gradients.clamp(min=0)).sum((2, 3), keepdim=True)
        return (weights * maps).sum(1)
