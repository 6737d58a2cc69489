"""Kernel SHAP: Shapley values of the parts of a row, by a weighted linear regression."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field as Option

from luban.explaining._base import Explainer, Explanation
from luban.explaining._case import Case
from luban.explaining._surrogates import captum, explain_by
from luban.explaining._units import Replace, Segments, Switches
from luban.registry import register
from luban.sentences import say

__all__ = ["KernelShap"]


@register("explainers")
class KernelShap(Explainer):
    """Values add up to the score of the row minus that of the row with all parts switched off. Computed by captum
    (``pip install 'luban[explain]'``).

    Example:
        >>> KernelShap(samples=1000).unit
        'word'
    """

    paper: ClassVar[str] = say(
        "Lundberg and Lee, 2017, 'A Unified Approach to Interpreting Model Predictions'"
    )
    limits: ClassVar[str] = say(
        "values are estimated from drawn samples, and parts that go together in the data are switched off apart"
    )
    of_written: ClassVar[bool] = True

    samples: Annotated[int, Option(ge=2)] = 256
    """Perturbed rows; some times as many as there are parts give steady values."""
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
        def switches(row: int) -> Switches:
            return Switches(case, row, self.unit, self.replace, self.segments, self.segment_count)

        return explain_by(case, self.type, captum().KernelShap, self.samples, switches, adds_up=True)
