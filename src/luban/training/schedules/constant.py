"""The learning rate stays as it is."""

from __future__ import annotations

from luban.registry import register
from luban.training.schedules._base import Schedule

__all__ = ["Constant"]


@register("schedules")
class Constant(Schedule):
    """``factor = 1`` after the warm-up."""

    def curve(self, progress: float) -> float:
        """Return 1."""
        return 1.0
