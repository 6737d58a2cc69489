"""Rows at random, the same share of each class."""

from __future__ import annotations

import polars as pl

from luban.data.splits._base import SharedSplit, column
from luban.registry import register

__all__ = ["Stratified"]


@register("splits")
class Stratified(SharedSplit):
    """As `random`, for each value of a column by itself: every class keeps its share in every part.

    Training keeps at least one row of each class; a class with a single row is trained on only. Equal inputs
    stay together even where their classes contradict each other. Beyond 200,000 different rows the shares
    hold in expectation.

    Example:
        ``split: {type: stratified, by: label}``
    """

    by: str
    """The column of classes, commonly the target."""

    def _classes(self, rows: pl.DataFrame) -> pl.Series:
        return column(rows, self.by)
