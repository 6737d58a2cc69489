"""Rows drawn by lot from a stream of them, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from luban.data.contracts import Array

__all__ = ["Reservoir", "Sample"]

_LOT, _PLACE = "__luban_lot__", "__luban_place__"


@dataclass(frozen=True)
class Sample:
    """Rows drawn from many.

    Attributes:
        rows: those drawn, as the user has them, in their order.
        places: where each stood in the stream, from 0, (n,).
        total: rows of the stream.
    """

    rows: pl.DataFrame
    places: Array
    total: int

    def take(self, count: int, seed: int = 1) -> Self:
        """Draw fewer of these rows; all of them where there are no more.

        The first ones would not do: rows lie in the order of the stream, and a file is often sorted by class.
        """
        if len(self.rows) <= count:
            return self
        mine = np.sort(np.random.default_rng(seed).choice(len(self.rows), count, replace=False))
        return type(self)(self.rows[mine.tolist()], self.places[mine], self.total)

    @classmethod
    def draw(
        cls,
        chunks: Iterable[pl.DataFrame],
        limit: int | None,
        progress: Callable[[int], None] = lambda rows: None,
        seed: int = 0,
    ) -> Self:
        """Draw at most `limit` rows; see `Reservoir`."""
        reservoir = Reservoir(limit, progress, seed)
        for _ in reservoir.through(chunks):
            pass
        drawn = reservoir.sample()
        return cls(drawn.rows, drawn.places, drawn.total)

    @classmethod
    def of(cls, rows: pl.DataFrame) -> Self:
        """Return all of some rows as a sample."""
        return cls(rows, np.arange(len(rows)), len(rows))

    def __str__(self) -> str:
        return (
            f"all {self.total:,} rows"
            if len(self.rows) == self.total
            else f"{len(self.rows):,} rows drawn from {self.total:,}"
        )


class Reservoir:
    """Draws rows without replacement, each as likely as any other, from a stream that goes on to somebody else.

    Each row gets a random number, and those with the smallest stay, which has the law of reservoir sampling (Vitter, 1985); the
    numbers depend on a row's place alone. No more than twice the limit is held.

    Args:
        limit: rows at most; None for all of them, which are then held.
        progress: is told how many rows went by.
        seed: of the numbers.

    Example:
        >>> reservoir = Reservoir(100)
        >>> for chunk in reservoir.through([pl.DataFrame({"a": range(1000)})]): ...
        >>> len(reservoir.sample().rows)
        100
    """

    def __init__(
        self, limit: int | None, progress: Callable[[int], None] = lambda rows: None, seed: int = 0
    ) -> None:
        self.limit, self.seen, self._progress = limit, 0, progress
        self._generator = np.random.default_rng(seed)
        self._kept: pl.DataFrame | None = None

    def through(self, chunks: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield chunks as they are, and draw from them."""
        for chunk in chunks:
            part = chunk.with_columns(
                pl.Series(_LOT, self._generator.random(len(chunk))),
                pl.Series(_PLACE, np.arange(self.seen, self.seen + len(chunk))),
            )
            self.seen += len(chunk)
            kept = part if self._kept is None else pl.concat([self._kept, part], how="diagonal_relaxed")
            full = self.limit is not None and len(kept) > 2 * self.limit
            self._kept = self._smallest(kept) if full else kept
            self._progress(self.seen)
            yield chunk

    def sample(self) -> Sample:
        """Return what was drawn so far."""
        if self._kept is None:
            return Sample(pl.DataFrame(), np.zeros(0, np.int64), 0)
        kept = self._smallest(self._kept).sort(_PLACE)
        return Sample(kept.drop(_LOT, _PLACE), kept[_PLACE].to_numpy(), self.seen)

    def _smallest(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows if self.limit is None else rows.bottom_k(self.limit, by=_LOT)
