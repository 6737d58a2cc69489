"""Grad-CAM: where the maps of a layer that speak for a class are strong."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from luban.explaining._base import Explainer, Explanation, Part
from luban.explaining._case import Case
from luban.explaining._maps import images_of, layers_of, module_of, refusal_of, resized, with_gradients
from luban.registry import register
from luban.sentences import say

__all__ = ["CamExplainer", "GradCam"]


class CamExplainer(Explainer):
    """Maps of a layer, weighted by what their gradients say and summed: what Grad-CAM and Grad-CAM++ share."""

    attributes: ClassVar[bool] = False

    layer: str | None = None
    """Name of the layer whose maps are taken; the last one that makes any if left out."""
    positive: bool = True
    """Whether only what speaks for the class is kept, as in the paper."""

    def refusal(self, case: Case) -> str | None:
        return refusal_of(case) if case.target else say("it needs a score, and the model predicts no column")

    def weighted(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Return the map (B, h, w) of a layer's maps and their gradients, (B, C, h, w) each."""
        raise NotImplementedError

    def explain(self, case: Case) -> list[Explanation]:
        scores = np.zeros(len(case))
        parts: list[dict[str, Part]] = [{} for _ in range(len(case))]
        notes = []
        for column in images_of(case):
            if not layers_of(case, column):
                continue
            layer = module_of(case, column, self.layer)
            notes.append(say("maps of '{layer}'", layer=layer))
            shape = next(iter(case.inputs[column].values())).shape or ()
            for start, stop, maps, gradients, own in with_gradients(case, layer):
                whole = self.weighted(maps, gradients)
                whole = whole.clamp(min=0) if self.positive else whole
                scores[start:stop] = own.double().cpu().numpy()
                for i, one in enumerate(resized(whole, (shape[0], shape[1])), start):
                    parts[i][column] = Part(column, "image", one)
        result = case.explanations(self.type, scores.tolist(), parts)
        for explanation in result:
            explanation.notes += notes
        return result


@register("explainers")
class GradCam(CamExplainer):
    """``Σ_c (mean gradient of map c) · map c``, brought to the size of the image.

    Example:
        >>> GradCam(layer="encoders.@photo.module.layers.0").positive
        True
    """

    paper: ClassVar[str] = say("Selvaraju et al., 2017, 'Grad-CAM: Visual Explanations from Deep Networks'")
    limits: ClassVar[str] = say(
        "it is as coarse as the layer's maps, and says where the model looked, not what it saw there"
    )

    def weighted(self, maps: Tensor, gradients: Tensor) -> Tensor:
        return (gradients.mean((2, 3), keepdim=True) * maps).sum(1)
