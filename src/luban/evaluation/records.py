"""Records of rows: appended batch by batch, read back column by column, in memory up to a limit and on disk beyond.

::

    Pool ──── one limit, one temporary file
     ├─ Table   all rows of a target
     ├─ Table   those of one slice
     └─ ...

An evaluation has one pool, so that fifty slices hold no more than one. When its tables together hold more than the limit,
each writes what it holds as one block, a column after another, so that a single class is read without the others. The
file is read, not mapped: the pages of a map count as memory of the process, and would grow with the rows.
"""

from __future__ import annotations

import math
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from luban.errors import MachineError

__all__ = ["LIMIT", "Pool", "Table"]

Array: TypeAlias = npt.NDArray[Any]

LIMIT = 2**26
"""Bytes that a pool holds in memory; what is on disk is cached by the operating system as far as memory allows."""
_WINDOW = 2**16  # rows of a column read at a time
_OBJECT = 128  # bytes of an array beside its contents: slices arrive as many short batches


@dataclass(frozen=True)
class _Block:
    """Records in the file: each field, and each column of a field, one after another."""

    start: int
    rows: int
    offset: int


@dataclass
class _Stored:
    """What a pool has of one table: blocks in the file, then batches in memory."""

    dtype: np.dtype[Any]
    rows: int = 0
    blocks: list[_Block] = field(default_factory=list)
    batches: list[Array] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # first row of each block and batch

    @property
    def offsets(self) -> dict[str, int]:
        """Bytes of a record before each field."""
        return {name: one[1] for name, one in (self.dtype.fields or {}).items()}


class Pool:
    """Memory, and beyond its limit a temporary file, that several tables share.

    Args:
        limit: bytes of records held in memory by all tables together.

    Example:
        >>> table = Pool().table(np.dtype([("truth", "i4"), ("scores", "f4", (2,))]))
        >>> table.append(np.array([(1, (0.2, 0.8)), (0, (0.9, 0.1))], table.dtype))
        >>> table.read(slice(0, 2), "scores", 1).tolist() == [np.float32(0.8), np.float32(0.1)]
        True
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.held = 0
        self._file: IO[bytes] | None = None
        self._stored: list[_Stored] = []

    @property
    def spilled(self) -> bool:
        """Whether records lie on the disk."""
        return self._file is not None

    def table(self, dtype: np.dtype[Any]) -> Table:
        """Return a new, empty table.

        Args:
            dtype: of a record, without padding; a field may be a vector, whose columns are read one by one.
        """
        self._stored.append(_Stored(dtype))
        return Table(self, self._stored[-1])

    def add(self, stored: _Stored, records: Array) -> None:
        """Take in records of a table.

        Raises:
            MachineError: if the temporary file cannot be written.
        """
        stored.batches.append(records)
        stored.starts.append(stored.rows)
        stored.rows += len(records)
        self.held += records.nbytes + _OBJECT
        if self.held > self.limit:
            try:
                self._spill()
            except OSError as error:
                raise MachineError(
                    f"scores cannot be kept in a temporary file: {error}; free disk space"
                ) from error

    def _spill(self) -> None:
        if self._file is None:
            self._file = TemporaryFile()  # noqa: SIM115 (closed when the pool goes)
            weakref.finalize(self, self._file.close)
        for stored in self._stored:
            if not stored.batches:
                continue
            start = stored.starts[len(stored.blocks)]
            block = _Block(start, stored.rows - start, self._file.seek(0, 2))
            for name in stored.dtype.names or ():
                for column in range(math.prod(stored.dtype[name].shape)):
                    parts = [_column(one, name, column) for one in stored.batches]
                    self._file.write(np.concatenate(parts).view(np.uint8).data)
            stored.blocks.append(block)
            del stored.starts[len(stored.blocks) :]
            stored.batches.clear()
        self._file.flush()  # so that a full disk is told here
        self.held = 0

    def read(self, stored: _Stored, rows: slice, name: str, column: int) -> Array:
        """Return one column of some rows of a table, (n,)."""
        dtype = stored.dtype[name].base
        values = np.empty(rows.stop - rows.start, dtype)
        place = rows.start
        while place < rows.stop:
            number = bisect_right(stored.starts, place) - 1
            into = values[place - rows.start :]
            if number < len(stored.blocks):
                assert self._file is not None
                block = stored.blocks[number]
                into = into[: block.start + block.rows - place]
                ahead = stored.offsets[name] + column * dtype.itemsize  # bytes of a record before it
                self._file.seek(block.offset + ahead * block.rows + (place - block.start) * dtype.itemsize)
                got = self._file.readinto(into.view(np.uint8).data)  # type: ignore[attr-defined]
                assert got == into.nbytes, "the temporary file lost records"
            else:
                batch = _column(stored.batches[number - len(stored.blocks)], name, column)
                batch = batch[place - stored.starts[number] :][: len(into)]
                into = into[: len(batch)]
                into[:] = batch
            place += len(into)
        return values


class Table:
    """Rows of one kind of record in a pool; made by `Pool.table`."""

    def __init__(self, pool: Pool, stored: _Stored) -> None:
        self._pool, self._stored = pool, stored

    @property
    def rows(self) -> int:
        """How many rows."""
        return self._stored.rows

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a record."""
        return self._stored.dtype

    def append(self, records: Array) -> None:
        """Add records, (n,), which belong to the table from now on.

        Raises:
            MachineError: if the temporary file cannot be written.
        """
        if len(records):
            self._pool.add(self._stored, records)

    def width(self, name: str) -> int:
        """Return how many columns a field has."""
        return math.prod(self.dtype[name].shape)

    def windows(self) -> Iterator[slice]:
        """Yield all rows, some at a time; where the windows end depends on nothing but the number of rows."""
        for start in range(0, self.rows, _WINDOW):
            yield slice(start, min(start + _WINDOW, self.rows))

    def read(self, rows: slice, name: str, column: int = 0) -> Array:
        """Return one column of some rows, (n,): a field, or a column of a field that is a vector."""
        return self._pool.read(self._stored, rows, name, column)

    def take(self, rows: npt.NDArray[np.int64], name: str, column: int = 0) -> Array:
        """Return one column of the rows with these numbers, which rise, (n,)."""
        parts = [np.empty(0, self.dtype[name].base)]
        for window in self.windows():
            first, last = np.searchsorted(rows, (window.start, window.stop))
            if first < last:
                parts.append(self.read(window, name, column)[rows[first:last] - window.start])
        return np.concatenate(parts)


def _column(records: Array, name: str, column: int) -> Array:
    values: Array = records[name]
    return values[:, column] if values.ndim > 1 else values
