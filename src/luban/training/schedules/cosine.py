"""Half a cosine from the full learning rate to its end (Loshchilov and Hutter 2017, without restarts)."""

from __future__ import annotations

import math

from luban.registry import register
from luban.training.schedules._base import End, Schedule

__all__ = ["Cosine"]


@register("schedules")
class Cosine(Schedule):
    """``factor = end + (1 - end) · (1 + cos(π · progress)) / 2``."""

    end: End = 0.0
    """What the factor goes to; language models often keep 0.1."""

    def curve(self, progress: float) -> float:
        """Return the cosine's value."""
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * progress)) / 2
