"""LIME: a sparse linear model of what the score does when parts of the row are switched off at random."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field as Option

from luban.explaining._base import Explainer, Explanation
from luban.explaining._case import Case
from luban.explaining._surrogates import captum, explain_by
from luban.explaining._units import Replace, Segments, Switches
from luban.registry import register
from luban.sentences import say

__all__ = ["Lime"]


@register("explainers")
class Lime(Explainer):
    """Fitted near the row: samples count by how alike they are to it. Computed by captum (``pip install 'luban[explain]'``).

    Example:
        >>> Lime(samples=1000).penalty
        0.01
    """

    paper: ClassVar[str] = say("Ribeiro, Singh and Guestrin, 2016, 'Why Should I Trust You?'")
    limits: ClassVar[str] = say(
        "samples are drawn, so another seed gives somewhat other values, and a straight line is fitted where the model may bend"
    )
    of_written: ClassVar[bool] = True

    samples: Annotated[int, Option(ge=2)] = 256
    """Perturbed rows that the line is fitted to."""
    penalty: Annotated[float, Option(ge=0)] = 0.01
    """Weight of the Lasso's penalty: more makes more values zero."""
    kernel_width: Annotated[float, Option(gt=0)] = 1.0
    """Cosine distance at which a sample counts about a third."""
    unit: Literal["word", "token"] = "word"
    """What of a text is switched: a word (a single CJK character), or a token."""
    replace: Replace = "remove"
    """remove takes a token out of the text; mask puts the mask token in its place."""
    segments: Segments = "superpixels"
    """How an image is cut: into patches of like colour, or into rectangles."""
    segment_count: Annotated[int, Option(ge=2)] = 64
    """Into about how many."""

    def refusal(self, case: Case) -> str | None:
        return None if case.target else say("it needs a score, and the model predicts no column")

    def explain(self, case: Case) -> list[Explanation]:
        methods = captum()
        core = importlib.import_module("captum._utils.models.linear_model")
        near = importlib.import_module("captum.attr._core.lime")
        similarity = near.get_exp_kernel_similarity_function("cosine", self.kernel_width)

        def make(score: Any) -> Any:
            return methods.Lime(score, core.SkLearnLasso(alpha=self.penalty), similarity)

        def switches(row: int) -> Switches:
            return Switches(case, row, self.unit, self.replace, self.segments, self.segment_count)

        return explain_by(case, self.type, make, self.samples, switches, adds_up=False)
