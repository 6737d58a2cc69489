"""One cycle up and down (Smith 2018, "A disciplined approach to neural network hyper-parameters")."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luban.registry import register
from luban.training.schedules._base import End, Schedule

__all__ = ["OneCycle"]


@register("schedules")
class OneCycle(Schedule):
    """Up from `start` to `peak` within the warm-up, down to `end` over the rest, in straight lines.

    A long rise to an unusually large learning rate and a fall far below it regularise: few epochs reach what
    many did. Smith lets momentum fall and rise the other way; here it stays as it is.
    """

    warmup: Annotated[int | float, Field(ge=0)] = 0.3
    """Steps of the way up; below 1, a share of all steps."""
    start: Annotated[float, Field(ge=0)] = 0.04
    """Factor that the way up starts from."""
    peak: Annotated[float, Field(gt=0)] = 1.0
    """Factor at the top; above 1 the learning rate passes its given size."""
    end: End = 0.0
    """Factor that the way down goes to."""

    def rise(self, progress: float) -> float:
        """Return the way up."""
        return self.start + (self.peak - self.start) * progress

    def curve(self, progress: float) -> float:
        """Return the way down."""
        return self.peak + (self.end - self.peak) * progress
