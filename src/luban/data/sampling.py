"""Rows drawn by lot from a stream of them, in one pass."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from luban.data.contracts import Array
from luban.sentences import say

__all__ = ["Reservoir", "Sample"]

_LOT, _PLACE = "__luban_lot__", "__luban_place__"


@dataclass(frozen=True)
class Sample:
    """Rows drawn from many.

    Attributes:
        rows: those drawn, as the user has them, in their order.
        places: where each stood in the stream, from 0, (n,).
        total: rows of the stream.
        room: bytes that kept it from having as many rows as were asked for; None where it has them.
    """

    rows: pl.DataFrame
    places: Array
    total: int
    room: int | None = None

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
        room: int | None = None,
    ) -> Self:
        """Draw at most `limit` rows, which take about `room` bytes at the most; see `Reservoir`."""
        reservoir = Reservoir(limit, progress, seed, room)
        for _ in reservoir.through(chunks):
            pass
        drawn = reservoir.sample()
        return cls(drawn.rows, drawn.places, drawn.total, drawn.room)

    @classmethod
    def of(cls, rows: pl.DataFrame) -> Self:
        """Return all of some rows as a sample."""
        return cls(rows, np.arange(len(rows)), len(rows))

    def __str__(self) -> str:
        if len(self.rows) == self.total:
            return say("all {n:,} rows", n=self.total)
        if self.room is not None:
            return say(
                "{n:,} rows drawn from {of:,} (no more fit into {mib:,.4g} MiB)",
                n=len(self.rows),
                of=self.total,
                mib=self.room / 2**20,
            )
        return say("{n:,} rows drawn from {of:,}", n=len(self.rows), of=self.total)


class Reservoir:
    """Draws rows without replacement, each as likely as any other, from a stream that goes on to somebody else.

    Each row gets a random number, and those with the smallest stay, which has the law of reservoir sampling (Vitter, 1985); the
    numbers depend on a row's place alone. No more than twice the limit, and twice the room, is held beside the chunk at hand.

    Args:
        limit: rows at most; None for all of them, which are then held.
        progress: is told how many rows went by.
        seed: of the numbers.
        room: bytes that the rows may take, as polars estimates them: where rows are large (pictures in their cells), fewer are drawn
            than the limit allows. Only with a limit.

    Example:
        >>> reservoir = Reservoir(100)
        >>> for chunk in reservoir.through([pl.DataFrame({"a": range(1000)})]):
        ...     pass
        >>> len(reservoir.sample().rows)
        100
    """

    def __init__(
        self,
        limit: int | None,
        progress: Callable[[int], None] = lambda rows: None,
        seed: int = 0,
        room: int | None = None,
    ) -> None:
        assert limit is not None or room is None, "all rows take what room they take"
        self.limit, self.room, self.seen, self._progress = limit, room, 0, progress
        self._asked = limit
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
            size = 0 if self.room is None else int(kept.estimated_size())
            if self.room is not None and self.limit is not None and size > 2 * self.room:
                self.limit = min(self.limit, max(1, self.room * len(kept) // size))
            full = self.limit is not None and len(kept) > 2 * self.limit
            self._kept = _alone(self._smallest(kept)) if full else kept
            self._progress(self.seen)
            yield chunk

    def sample(self) -> Sample:
        """Return what was drawn so far."""
        if self._kept is None:
            return Sample(pl.DataFrame(), np.zeros(0, np.int64), 0)
        kept = self._smallest(self._kept)
        if self.room is not None and (size := int(kept.estimated_size())) > self.room:
            kept = kept.bottom_k(max(1, self.room * len(kept) // size), by=_LOT)
        kept = kept.sort(_PLACE)
        full = self._asked is None or len(kept) >= min(self._asked, self.seen)
        return Sample(
            kept.drop(_LOT, _PLACE), kept[_PLACE].to_numpy(), self.seen, None if full else self.room
        )

    def _smallest(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows if self.limit is None else rows.bottom_k(self.limit, by=_LOT)


def _alone(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows that keep nothing else in memory: a text that polars takes out of a chunk holds on to all texts of the chunk."""
    heavy = [one for one in rows if one.dtype.is_nested() or one.dtype in (pl.String, pl.Binary)]
    if not heavy:
        return rows
    copy = io.BytesIO()
    # In the older layout a column is one block, so that it has to be copied.
    pl.DataFrame(heavy).write_ipc(copy, compat_level=pl.CompatLevel.oldest())
    copy.seek(0)
    return rows.with_columns(pl.read_ipc(copy))
