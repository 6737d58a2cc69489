"""Integrated gradients: the gradient of the score, averaged on the straight way from a neutral input to the row."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field as Option
from torch import Tensor

from luban.data.processors.text import Text
from luban.explaining._base import Explainer, Explanation
from luban.explaining._case import Case
from luban.explaining._gradients import attribute, parts_of, refusal_of, special_ids
from luban.explaining._handles import Site
from luban.registry import register
from luban.sentences import say

__all__ = ["IntegratedGradients", "rule_of"]

Rule = Literal["gauss_legendre", "middle", "right", "left"]


@register("explainers")
class IntegratedGradients(Explainer):
    """``(x - x') · ∫ ∂score/∂x (x' + α (x - x')) dα`` for each value x of the input and its neutral value x'.

    Contributions add up to the score of the row minus that of the neutral input; what is missing of that, because the integral
    is a sum, is `completeness_error`. The same as captum's `IntegratedGradients` and `LayerIntegratedGradients`.

    Example:
        >>> IntegratedGradients(steps=64).rule
        'gauss_legendre'
    """

    paper: ClassVar[str] = say("Sundararajan, Taly and Yan, 2017, 'Axiomatic Attribution for Deep Networks'")
    limits: ClassVar[str] = say(
        "values depend on the neutral input they are compared with, and tokens that act only together share in a way no data supports"
    )
    of_written: ClassVar[bool] = True

    steps: Annotated[int, Option(ge=1)] = 32
    """Points at which the gradient is taken."""
    rule: Rule = "gauss_legendre"
    """Where these lie and what they weigh: Gauss-Legendre quadrature, or the middle, right or left end of equal steps."""
    baseline: Literal["pad", "mask", "zero", "mean"] = "pad"
    """What stands for no token, or no category: the vector of the padding token, that of the mask token, zeros, or the mean of all
    vectors. Zeros where there is no such token."""
    keep_special: bool = True
    """Whether tokens that stand for no text ([CLS], [SEP]) stand in the neutral text too, so that they get nothing."""
    image_baseline: Literal["zero", "mean", "blur"] = "zero"
    """What stands for no image: zeros as the model sees them (black, or the training images' mean with `normalize: zscore`), the
    image's own mean colour, or a blurred image."""

    def refusal(self, case: Case) -> str | None:
        return refusal_of(case)

    def explain(self, case: Case) -> list[Explanation]:
        alphas, weights = rule_of(self.rule, self.steps)
        found = attribute(case, _Neutral(self, case), alphas, weights)
        result = case.explanations(
            self.type, found.scores.tolist(), parts_of(case, found.values), found.baselines.tolist()
        )
        gaps = np.abs(found.totals() - (found.scores - found.baselines))
        for one, gap, score, base in zip(result, gaps, found.scores, found.baselines, strict=True):
            one.quality["completeness_error"] = float(gap / max(abs(score - base), 1e-6))
        return result


def rule_of(rule: Rule, steps: int) -> tuple[list[float], list[float]]:
    """Return where on the way from 0 to 1 gradients are taken, and what each weighs.

    Example:
        >>> rule_of("middle", 2)
        ([0.25, 0.75], [0.5, 0.5])
    """
    if rule == "gauss_legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return ((1 + places) / 2).tolist(), (weights / 2).tolist()
    shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[rule]
    return [(i + shift) / steps for i in range(steps)], [1 / steps] * steps


class _Neutral:
    """What the neutral input has at a site."""

    def __init__(self, options: IntegratedGradients, case: Case) -> None:
        self.options, self.case = options, case

    def __call__(self, site: Site) -> Tensor:
        """Return what broadcasts to ``site.actual``."""
        if site.form == "image":
            return self._image(site.actual)
        if site.ids is None or site.table is None:
            return torch.zeros_like(
                site.actual
            )  # a number's mean, since numbers are normalised; one-hot: no category
        neutral = self._vector(site).expand_as(site.actual)
        if self.options.keep_special and site.form == "tokens":
            known = torch.as_tensor(special_ids(self.case, site.name), device=site.ids.device)
            kept = torch.isin(site.ids, known)
            neutral = torch.where(kept[:, None], site.actual, neutral)
        return neutral

    def _vector(self, site: Site) -> Tensor:
        assert site.table is not None
        zero = site.actual.new_zeros(site.actual.shape[1])
        if self.options.baseline == "mean":
            return site.table.detach().mean(0)
        if self.options.baseline == "zero" or site.form != "tokens":
            return zero
        column = site.name.rsplit(".", 1)[0]
        text = self.case.predictor.pipeline.inputs[column]
        assert isinstance(text, Text)
        token = text.pad_id if self.options.baseline == "pad" else text.mask_id
        return zero if token is None else site.table.detach()[token]

    def _image(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        match self.options.image_baseline:
            case "zero":
                return torch.zeros_like(pixels)
            case "mean":
                return pixels.mean((2, 3), keepdim=True).expand_as(pixels)
            case _:
                return blurred(pixels)


def blurred(pixels: Tensor) -> Tensor:
    """Return images (B, C, H, W) through a Gaussian whose deviation is a tenth of the shorter side."""
    sigma = max(1.0, min(pixels.shape[2:]) / 10)
    reach = min(int(3 * sigma), min(pixels.shape[2:]) - 1)
    places = torch.arange(-reach, reach + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = pixels.shape[1]
    for shape, pad in (((1, 1, -1, 1), (0, 0, reach, reach)), ((1, 1, 1, -1), (reach, reach, 0, 0))):
        weight = kernel.view(shape).expand(channels, *[-1] * 3)
        pixels = F.conv2d(F.pad(pixels, pad, mode="reflect"), weight, groups=channels)
    return pixels
