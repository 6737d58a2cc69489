"""Occlusion: what the score loses when something is hidden."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field as Option
from torch import Tensor

from luban.data.batch import to_batch
from luban.data.store import take_rows
from luban.explaining._base import Explainer, Explanation, Part
from luban.explaining._case import Case
from luban.explaining._units import Replace, Switches
from luban.registry import register
from luban.sentences import say

__all__ = ["Occlusion"]

BATCH = 64
"""Occluded images that are read at a time."""


@register("explainers")
class Occlusion(Explainer):
    """The score of the row minus its score without a word, a patch of an image, or a column, one after the other.

    Where windows overlap, a place gets the mean over those that cover it, as in captum's `Occlusion`.

    Example:
        >>> Occlusion(window=3).stride
        1
    """

    paper: ClassVar[str] = say(
        "Zeiler and Fergus, 2014, 'Visualizing and Understanding Convolutional Networks'"
    )
    limits: ClassVar[str] = say(
        "what two words say twice seems unimportant, since either alone is enough; and a row with a hole is one that the model was never trained on"
    )
    of_written: ClassVar[bool] = True

    unit: Literal["word", "token"] = "word"
    """What of a text is hidden at a time: a word (a single CJK character), or a token."""
    replace: Replace = "remove"
    """remove takes it out of the text; mask puts the mask token in its place, or the unknown one where there is none."""
    window: Annotated[int, Option(ge=1)] = 1
    """Units of a text that are hidden together."""
    stride: Annotated[int, Option(ge=1)] = 1
    """Units by which the window moves."""
    patch: Annotated[int, Option(ge=1)] | None = None
    """Side of the square that is hidden of an image, in pixels; an eighth of the shorter side if left out."""
    patch_stride: Annotated[int, Option(ge=1)] | None = None
    """Pixels by which it moves; half its side if left out."""
    image_baseline: Literal["zero", "mean"] = "zero"
    """What the square is filled with: zeros as the model sees them, or the image's mean colour."""

    def refusal(self, case: Case) -> str | None:
        return None if case.target else say("it needs a score, and the model predicts no column")

    def explain(self, case: Case) -> list[Explanation]:
        scores, parts = [], []
        for row in range(len(case)):
            switches = Switches(case, row, self.unit, self.replace, "grid", 1)
            score, values = self._units(switches)
            own = switches.parts(values)
            for column, form in case.forms.items():
                if form == "image":
                    own[column] = Part(column, "image", self._image(case, row, column, score))
            scores.append(score)
            parts.append(own)
        return case.explanations(self.type, scores, parts)

    def _units(self, switches: Switches) -> tuple[float, npt.NDArray[np.float64]]:
        """Return the score of the row, and what it loses without each unit, (M,); images are left to `_image`."""
        windows: list[npt.NDArray[np.bool_]] = [np.zeros(len(switches), dtype=bool)]
        first = 0
        for column, size in switches.sizes.items():
            text = switches.case.forms[column] == "tokens"
            window, stride = (self.window, self.stride) if text else (1, 1)
            for start in starts(size, window, stride) if switches.case.forms[column] != "image" else ():
                hidden = np.zeros(len(switches), dtype=bool)
                hidden[first + start : first + min(size, start + window)] = True
                windows.append(hidden)
            first += size
        masks = np.stack(windows)
        scores = switches.scores(~masks)
        covered = masks.sum(0)
        values = ((scores[0] - scores)[:, None] * masks).sum(0) / np.maximum(covered, 1)
        return float(scores[0]), values

    def _image(self, case: Case, row: int, column: str, score: float) -> npt.NDArray[np.float64]:
        """Return what the score loses without each place of an image, (H, W)."""
        (name,) = case.inputs[column]
        height, width = (case.inputs[column][name].shape or ())[:2]
        side = self.patch or max(1, min(height, width) // 8)
        step = self.patch_stride or max(1, side // 2)
        corners = [(y, x) for y in starts(height, side, step) for x in starts(width, side, step)]
        total, covered = np.zeros((height, width)), np.zeros((height, width))
        chosen = int(case.chosen[row])
        with torch.inference_mode():
            for first in range(0, len(corners), BATCH):
                some = corners[first : first + BATCH]
                rows = take_rows(case.encoded, np.full(len(some), row))
                batch = to_batch(rows, case.predictor.spec, case.predictor.device)
                pixels = batch[name]
                assert isinstance(pixels, Tensor)
                pixels = pixels.float().clone()
                fill = pixels[0].mean((1, 2), keepdim=True) if self.image_baseline == "mean" else 0.0
                for i, (y, x) in enumerate(some):
                    pixels[i, :, y : y + side, x : x + side] = fill
                batch[name] = pixels
                found = case.score(batch, np.full(len(some), chosen)).double().cpu().numpy()
                for (y, x), own in zip(some, found, strict=True):
                    total[y : y + side, x : x + side] += score - own
                    covered[y : y + side, x : x + side] += 1
        return total / np.maximum(covered, 1)


def starts(size: int, window: int, stride: int) -> list[int]:
    """Return where windows begin so that all of `size` places are seen; the last one may reach beyond.

    Example:
        >>> starts(5, 2, 2)
        [0, 2, 4]
    """
    if not size:
        return []
    return [i * stride for i in range(1 + max(0, -(-(size - window) // stride)))]
