"""Quantiles of a stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Quantiles"]

_SIZE = 1_000_000


class Quantiles:
    """The distribution of a stream of numbers, exact up to a million distinct values.

    Past the limit, neighbours are merged into half a million buckets of equal weight that remember their
    middle value. Nothing is drawn, so the result is the same in every run; at a hundred million values, a
    rank is off by less than 0.1 %.
    """

    def __init__(self, size: int = _SIZE) -> None:
        self._size = size
        self._values = np.zeros(0)
        self._rows = np.zeros(0, dtype=np.int64)
        self._new: list[npt.NDArray[np.float64]] = []
        self._waiting = 0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count one more chunk; values that are not finite are left out."""
        self._new.append(values[np.isfinite(values)])
        self._waiting += len(self._new[-1])
        if self._waiting > self._size // 2:
            self._merge()

    def _merge(self) -> None:
        values, rows = np.unique(np.concatenate([np.zeros(0), *self._new]), return_counts=True)
        self._new, self._waiting = [], 0
        self._values, where = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        self._rows = np.bincount(where, np.concatenate([self._rows, rows])).astype(np.int64)
        if len(self._values) > self._size:
            ranks = np.cumsum(self._rows)
            bucket = (
                (2 * ranks - self._rows) * (self._size // 2) // (2 * ranks[-1])
            )  # by the middle of its rows
            first = np.flatnonzero(np.diff(bucket, prepend=-1))
            self._rows = np.add.reduceat(self._rows, first)
            ends = np.cumsum(self._rows)
            self._values = self._values[np.searchsorted(ranks, ends - self._rows / 2)]

    def table(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return the values, ascending, and how many rows each stands for."""
        self._merge()
        return self._values, self._rows

    def at(self, share: float) -> float:
        """Return the value below which `share` of the rows lie, linear between two neighbours as numpy's is.

        There must be values.
        """
        values, rows = self.table()
        rank = share * (rows.sum() - 1)
        low, high = np.searchsorted(np.cumsum(rows), [np.floor(rank), np.ceil(rank)], side="right")
        return float(values[low] + (values[high] - values[low]) * (rank - np.floor(rank)))
