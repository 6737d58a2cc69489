"""A straight line from the full learning rate to its end (best or close to it in Defazio et al. 2023)."""

from __future__ import annotations

from luban.registry import register
from luban.training.schedules._base import End, Schedule

__all__ = ["Linear"]


@register("schedules")
class Linear(Schedule):
    """``factor = 1 - (1 - end) · progress``."""

    end: End = 0.0
    """What the factor goes to; above 1 the learning rate grows."""

    def curve(self, progress: float) -> float:
        """Return the line's value."""
        return 1.0 - (1.0 - self.end) * progress
