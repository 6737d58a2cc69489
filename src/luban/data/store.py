"""Encoded rows on disk: written once from start to end, then read in any order, in memory that does not grow with them.

::

    store/
      store.json        number of rows, dtype of a record, ragged fields
      records.bin       fixed-width fields of a row side by side, so that one row is one place on the disk
      0.values.bin      the first ragged field, all rows one after the other
      0.offsets.bin     where each of its rows begins (n + 1 int64)

Files are mapped, and pages that were read are given back every so often: the page cache keeps them as long as the machine
has room, but they do not count as ours.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from luban.data.contracts import Array, Encoded, Flat, Spec

__all__ = ["ANSWER", "RAW", "Store", "StoreWriter", "slice_rows", "take_rows"]

RAW = ".raw"
"""Ending of the field that holds a column's text as bytes, where an augmentation changes it before it is encoded."""

ANSWER = ".answer"
"""Ending of the field that says of each token of a conversation whether it is learnt."""

_GIVE_BACK = 64 * 2**20  # bytes touched between two times of giving pages back
_PAGE_TOUCH = 16 * 4096  # what the kernel maps around one fault


def slice_rows(encoded: Encoded, start: int, stop: int) -> Encoded:
    """Return rows start ... stop - 1, as views."""

    def cut(flat: Flat) -> Flat:
        offsets = flat.offsets[start : stop + 1]
        return Flat(flat.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    return {
        name: cut(value) if isinstance(value, Flat) else value[start:stop] for name, value in encoded.items()
    }


def take_rows(encoded: Encoded, rows: npt.NDArray[np.int64]) -> Encoded:
    """Return rows by number, in this order; the same one may come several times."""
    return {
        name: _gather(value, rows) if isinstance(value, Flat) else value[rows]
        for name, value in encoded.items()
    }


def _gather(flat: Flat, rows: npt.NDArray[np.int64]) -> Flat:
    starts = flat.offsets[rows]
    lengths = flat.offsets[rows + 1] - starts
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return Flat(flat.values[places], offsets)


class StoreWriter:
    """Appends encoded chunks; a store is complete once `close` has written ``store.json``.

    Example:
        >>> with StoreWriter(folder, spec) as writer: writer.append(encoded)      # doctest: +SKIP
    """

    def __init__(self, folder: Path, spec: Spec) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.rows = 0
        fixed = {name: one for name, one in spec.fields.items() if one.shape is not None}
        self._ragged = {name: one.dtype for name, one in spec.fields.items() if one.shape is None}
        self._dtype = np.dtype([(name, one.dtype, one.shape) for name, one in fixed.items()])
        self._records: BinaryIO = (folder / "records.bin").open("wb")
        self._files: dict[str, tuple[BinaryIO, BinaryIO]] = {}
        self._ends: dict[str, int] = {}
        for i, name in enumerate(self._ragged):
            values, offsets = (
                (folder / f"{i}.values.bin").open("wb"),
                (folder / f"{i}.offsets.bin").open("wb"),
            )
            offsets.write(np.zeros(1, dtype=np.int64).tobytes())
            self._files[name], self._ends[name] = (values, offsets), 0

    def append(self, encoded: Encoded) -> None:
        """Add rows; every field of the specification must be there."""
        n = len(next(iter(encoded.values()))) if encoded else 0
        if self._dtype.names:
            records = np.empty(n, dtype=self._dtype)
            for name in self._dtype.names:
                records[name] = encoded[name]
            self._records.write(records.tobytes())
        for name, dtype in self._ragged.items():
            flat = encoded[name]
            assert isinstance(flat, Flat)
            values, offsets = self._files[name]
            values.write(np.ascontiguousarray(flat.values, dtype=dtype).tobytes())
            offsets.write((flat.offsets[1:] + self._ends[name]).astype(np.int64).tobytes())
            self._ends[name] += int(flat.offsets[-1])
        self.rows += n

    def close(self) -> None:
        """Finish the files."""
        for file in (self._records, *(f for pair in self._files.values() for f in pair)):
            file.close()
        fields = [
            [name, self._dtype[name].base.str, list(self._dtype[name].shape)]
            for name in self._dtype.names or ()
        ]
        manifest = {"rows": self.rows, "fixed": fields, "ragged": list(self._ragged.items())}
        (self.folder / "store.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store:
    """Encoded rows of one split, read by row number.

    Args:
        folder: what a `StoreWriter` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        self._rows: int = manifest["rows"]
        self._dtype = np.dtype([(name, dtype, tuple(shape)) for name, dtype, shape in manifest["fixed"]])
        self._maps: list[mmap.mmap] = []
        self._touched = 0
        self._records = self._map("records.bin", self._dtype)
        self._flat = {
            name: Flat(
                self._map(f"{i}.values.bin", np.dtype(dtype)),
                self._map(f"{i}.offsets.bin", np.dtype(np.int64)),
            )
            for i, (name, dtype) in enumerate(manifest["ragged"])
        }

    def _map(self, name: str, dtype: np.dtype[Any]) -> Array:
        path = self.folder / name
        if path.stat().st_size == 0 or dtype.itemsize == 0:
            return np.empty(0, dtype=dtype)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype=dtype)

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> list[str]:
        """Names of the fields."""
        return [*(self._dtype.names or ()), *self._flat]

    def take(self, rows: npt.NDArray[np.int64], without: str | None = None) -> Encoded:
        """Return rows by number, in the order asked for; all fields, or all but one."""
        encoded: Encoded = {}
        if self._dtype.names:
            records = self._records[rows]
            for name in self._dtype.names:
                encoded[name] = records[name].copy(order="C")
        for name, flat in self._flat.items():
            if name != without:
                encoded[name] = _gather(flat, rows)
        self._give_back(len(rows) * (1 + 2 * len(self._flat)))
        return encoded

    def lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of ragged values (tokens) of rows, over all ragged fields; 1 where there is none."""
        if not self._flat:
            return np.ones(len(rows), dtype=np.int64)
        total = np.zeros(len(rows), dtype=np.int64)
        for name, flat in self._flat.items():
            if not name.endswith((RAW, ANSWER)):  # the text itself, or what is beside tokens, is no tokens
                total += flat.offsets[rows + 1] - flat.offsets[rows]
        self._give_back(len(rows) * len(self._flat))
        return total

    def lengths_of(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of values of one ragged field, by row."""
        offsets = self._flat[name].offsets
        lengths: npt.NDArray[np.int64] = offsets[rows + 1] - offsets[rows]
        self._give_back(len(rows))
        return lengths

    def parts(
        self,
        name: str,
        rows: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
    ) -> Flat:
        """Return values `starts` to `stops` of rows of one ragged field, in the order asked for."""
        flat = self._flat[name]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        places = np.arange(offsets[-1]) + np.repeat(
            flat.offsets[rows] + starts - offsets[:-1], stops - starts
        )
        values = flat.values[places]
        self._give_back(2 * len(rows))
        return Flat(values, offsets)

    def longest(self, k: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the k longest rows: the worst batch that training can meet."""
        best_rows = np.empty(0, dtype=np.int64)
        best = np.empty(0, dtype=np.int64)
        for start in range(0, len(self), 2**18):
            rows = np.arange(start, min(start + 2**18, len(self)))
            candidates, lengths = (
                np.concatenate([best_rows, rows]),
                np.concatenate([best, self.lengths(rows)]),
            )
            order = np.argsort(-lengths, kind="stable")[:k]
            best_rows, best = candidates[order], lengths[order]
        return best_rows

    def _give_back(self, places: int) -> None:
        self._touched += places * _PAGE_TOUCH
        if self._touched > _GIVE_BACK:
            self._touched = 0
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
