"""Rows at random."""

from __future__ import annotations

from luban.data.splits._base import SharedSplit
from luban.registry import register

__all__ = ["Random"]


@register("splits")
class Random(SharedSplit):
    """Validation and test rows at random; equal inputs stay together, so that no test row was trained on.

    The shares are exact (as far as duplicates allow) up to 200,000 different rows. Beyond, a row's hash is
    compared with the share itself: memory no longer grows, and the shares are off by less than 0.1 %.

    Example:
        ``split: {validation: 0.1, test: 0.1}`` or ``split: {type: random, validation: 0.2, test: 0, seed:
        1}``
    """
