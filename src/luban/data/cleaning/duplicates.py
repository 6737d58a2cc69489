"""Rows that repeat another."""

from __future__ import annotations

import numpy as np
import polars as pl
from pydantic import PrivateAttr

from luban.data.cleaning._base import FirstSeen, Step, chosen, row_hashes
from luban.registry import register
from luban.sentences import say

__all__ = ["Duplicates"]


@register("cleaning")
class Duplicates(Step):
    """Drop training rows that repeat an earlier one, cell for cell.

    Rows are told apart by 64-bit hashes, 12 bytes for each different row: among a hundred million rows, the
    chance that even one is lost by accident is 0.03 %. It remembers what it saw: a second pass over the data
    takes a fresh copy.

    Example:
        ``clean: [{type: duplicates, columns: [review]}]``
    """

    columns: list[str] | None = None
    """What must be equal; by default all columns."""

    _seen: FirstSeen = PrivateAttr(default_factory=FirstSeen)
    _rows: int = 0

    def apply(self, rows: pl.DataFrame, *, predicting: bool) -> pl.DataFrame:
        """Return the chunk without repeated rows."""
        if predicting or rows.is_empty():
            return rows
        places = np.arange(self._rows, self._rows + len(rows), dtype=np.uint32)
        self._rows += len(rows)
        new = self._seen.first(row_hashes(rows.select(chosen(self.columns, rows))), places) == places
        self._count(say("dropped"), int((~new).sum()))
        return rows.filter(pl.Series(new))
