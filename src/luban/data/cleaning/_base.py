"""What the cleaning steps share: counting, choosing columns, reading numbers out of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import PrivateAttr

from luban.data.contracts import Cleaner
from luban.errors import DataError, did_you_mean
from luban.sentences import say

__all__ = [
    "TOKENS",
    "FirstSeen",
    "Look",
    "Step",
    "chosen",
    "has_numbers",
    "has_text",
    "is_missing",
    "mix",
    "numbers",
    "plain",
    "row_hashes",
]

TOKENS = ["", "NA", "N/A", "null", "None", "nan", "-", "?", "缺失", "无"]
"""Words that commonly stand for 'no value'; capitals and spaces around them do not matter."""


class Step(Cleaner):
    """A cleaner that counts what it does."""

    _counts: Counter[str] = PrivateAttr(default_factory=Counter)

    def _count(self, what: str, times: int) -> None:
        if times:
            self._counts[say("{step}: {what}", step=self.type, what=what)] += int(times)

    def counts(self) -> Counter[str]:
        """Return what was changed or dropped since the last call, by name, and start again from zero."""
        counts, self._counts = self._counts, Counter()
        return counts


def chosen(columns: Sequence[str] | None, rows: pl.DataFrame) -> list[str]:
    """Return the columns a step looks at; all if the recipe names none.

    Raises:
        DataError: if a column does not exist.
    """
    for name in columns or ():
        if name not in rows.columns:
            raise DataError(
                f"there is no column '{name}' to clean; columns are {', '.join(rows.columns)}"
                f"{did_you_mean(name, rows.columns)}"
            )
    return list(rows.columns if columns is None else columns)


def plain(values: pl.Series) -> pl.Series:
    """Return a column of categories as the text that it stands for, any other as it is, (n,)."""
    return values.cast(pl.String) if isinstance(values.dtype, pl.Categorical | pl.Enum) else values


def has_numbers(dtype: pl.DataType) -> bool:
    """Whether cells of a type are numbers, or text that may read as numbers; a column of nulls may be either."""
    return dtype.is_numeric() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)


def has_text(dtype: pl.DataType) -> bool:
    """Whether cells of a type can be written as text; lists, structures, bytes and durations cannot."""
    return has_numbers(dtype) or isinstance(dtype, pl.Boolean | pl.Date | pl.Datetime | pl.Time)


def is_missing(values: pl.Series, tokens: Sequence[str] = TOKENS) -> pl.Series:
    """Return which values are null, NaN or a word that means so, boolean, (n,)."""
    missing = values.is_null()
    values = plain(values)
    if values.dtype == pl.String:
        missing |= (
            values.str.strip_chars()
            .str.to_lowercase()
            .is_in([token.lower() for token in tokens])
            .fill_null(True)
        )
    elif values.dtype.is_float():
        missing |= values.is_nan().fill_null(True)
    return missing


def numbers(values: pl.Series) -> pl.Series:
    """Read numbers, also out of text; null where there is none (infinities are none), Float64, (n,)."""
    values = plain(values)
    if values.dtype == pl.String:
        values = values.str.strip_chars().cast(pl.Float64, strict=False)
    elif not values.dtype.is_numeric():
        return pl.Series(values.name, [None] * len(values), dtype=pl.Float64)
    values = values.cast(pl.Float64)
    return values.set(~values.is_finite().fill_null(True), None)


class Look:
    """Whether a column looks like measurements: nine of ten present values are numbers, of more than 20
    kinds.

    Few different numbers are codes (a label 0 or 1, stars from 1 to 5), which have neither mean nor outliers.
    """

    def __init__(self) -> None:
        self.present = 0
        self.readable = 0
        self._different: set[float] = set()

    def add(self, values: pl.Series) -> None:
        """Look at one more chunk."""
        read = numbers(values).drop_nulls()
        self.present += int((~is_missing(values)).sum())
        self.readable += len(read)
        if len(self._different) <= 20:
            self._different.update(read.unique().head(21))

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers."""
        return 0 < self.readable >= 0.9 * self.present

    @property
    def measured(self) -> bool:
        """Whether it holds numbers that are no codes."""
        return self.numeric and len(self._different) > 20


def row_hashes(rows: pl.DataFrame) -> npt.NDArray[np.uint64]:
    """Hash rows, (n,)."""
    return rows.hash_rows(seed=0x1B873593).to_numpy()


class FirstSeen:
    """Which row had a key first, in 12 bytes a key: sorted arrays, each less than half of the one before
    it."""

    def __init__(self) -> None:
        self._levels: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]] = []

    def first(self, keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return the first row of each key, now or in an earlier call, (n,); `rows` ascend, from call to call
        too."""
        distinct, where, inverse = np.unique(keys, return_index=True, return_inverse=True)
        found = rows[where]
        known = np.zeros(len(distinct), dtype=bool)
        for held, owners in self._levels:
            place = np.searchsorted(held, distinct).clip(max=len(held) - 1)
            here = held[place] == distinct
            found[here] = owners[place[here]]
            known |= here
        level = distinct[~known], found[~known]
        # Small levels are merged into larger ones, so that a key is moved only log(n) times.
        while self._levels and len(self._levels[-1][0]) <= 2 * len(level[0]):
            held, owners = self._levels.pop()
            both = np.concatenate([held, level[0]])
            order = np.argsort(both, kind="stable")
            level = both[order], np.concatenate([owners, level[1]])[order]
        if len(level[0]):
            self._levels.append(level)
        return found[inverse]


def mix(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Shuffle the bits of 64-bit keys (the finaliser of MurmurHash3; Appleby 2011)."""
    keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return keys ^ (keys >> np.uint64(33))
