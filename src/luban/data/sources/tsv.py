"""Tab-separated values."""

from __future__ import annotations

from luban.data.sources.csv import Csv, _Character
from luban.registry import register

__all__ = ["Tsv"]


@register("sources")
class Tsv(Csv):
    r"""Tab-separated values: `Csv` with another separator.

    Example:
        >>> Tsv(path="reviews.tsv.gz").separator
        '\t'
    """

    separator: _Character = "\t"
    """What stands between two cells: one ASCII character."""
