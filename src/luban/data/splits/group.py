"""Whole groups at random."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from luban.data.splits._base import Hashes, SharedSplit, column, hash_values, mix
from luban.registry import register

__all__ = ["Group"]


@register("splits")
class Group(SharedSplit):
    """Whole groups go to one part: a patient, a speaker or a shop that was trained on is never tested on.

    Rows without a group stand alone. The shares count rows and are as exact as the sizes of the groups allow.

    Example:
        ``split: {type: group, by: patient}`` or ``split: {type: group, by: [shop, year]}``
    """

    by: str | Annotated[list[str], Field(min_length=1)]
    """The column, or the columns together, that name a row's group."""

    def _hashes(self, rows: pl.DataFrame, keys: Hashes) -> Hashes:
        parts = [column(rows, name) for name in ([self.by] if isinstance(self.by, str) else self.by)]
        groups = pl.DataFrame([part.cast(pl.String) for part in parts])
        missing = groups.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()
        # A name's length before the name: ('a', 'bc') and ('ab', 'c') are two groups.
        named = [
            part for one in groups.columns for part in (pl.col(one).str.len_chars(), pl.lit(":"), pl.col(one))
        ]
        names = groups.select(pl.concat_str(named, ignore_nulls=True)).to_series()
        return mix(np.where(missing, keys, hash_values(names)), self.seed)

    def _what(self) -> str:
        return f"groups of '{self.by if isinstance(self.by, str) else ', '.join(self.by)}'"
