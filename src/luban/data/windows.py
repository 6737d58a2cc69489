"""Documents of any length as examples of a bounded one: a view of a store, computed, never written.

::

    document   [CLS] a b c d e f g h [SEP]        trim (1, 1), length 4, overlap 1
    windows          a b c d
                           d e f g
                                 g h
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from luban.data.contracts import Array, Encoded, Flat
from luban.data.store import Store

__all__ = ["Windows"]


class Windows:
    """The windows of a ragged field, with the rest of each row beside every one of them; read as a `Store` is.

    Args:
        store: whole documents.
        name: the ragged field, ``text.ids``.
        length: positions of a window, at the most.
        overlap: positions that a window shares with the one before it.
        trim: positions left out at both ends of a document (opening and closing tokens).

    Example:
        >>> Windows(store, "text.ids", 512, overlap=1)      # doctest: +SKIP
    """

    def __init__(
        self, store: Store, name: str, length: int, overlap: int = 0, trim: tuple[int, int] = (0, 0)
    ) -> None:
        assert 0 <= overlap < length, f"windows of {length} cannot overlap by {overlap}"
        self.store, self.name, self.length, self.overlap, self.trim = store, name, length, overlap, trim
        self.folder = store.folder
        counts = np.empty(len(store), dtype=np.int64)
        for start in range(0, len(store), 2**18):
            rows = np.arange(start, min(start + 2**18, len(store)))
            counts[rows] = self._count(store.lengths_of(name, rows))
        # One number a document is kept, however long the documents are.
        self._ends = counts.cumsum()

    def _count(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        inner = np.maximum(lengths - sum(self.trim), 0)
        step = self.length - self.overlap
        # A last window of overlap alone would hold nothing new.
        return np.where(inner > self.overlap, -(-(inner - self.overlap) // step), np.minimum(inner, 1))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def names(self) -> list[str]:
        """Names of the fields."""
        return self.store.names

    def _places(self, windows: npt.NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Return the document of each window, and where it starts and stops in it."""
        documents = np.searchsorted(self._ends, windows, side="right")
        before = np.where(documents > 0, self._ends[documents - 1], 0)
        starts = self.trim[0] + (windows - before) * (self.length - self.overlap)
        ends = self.store.lengths_of(self.name, documents) - self.trim[1]
        return documents, starts, np.minimum(starts + self.length, ends)

    def take(self, windows: npt.NDArray[np.int64]) -> Encoded:
        """Return windows by number, in the order asked for."""
        documents, starts, stops = self._places(windows)
        encoded = self.store.take(documents, without=self.name)
        encoded[self.name] = self.store.parts(self.name, documents, starts, stops)
        return encoded

    def lengths(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of tokens of windows."""
        _, starts, stops = self._places(windows)
        result: npt.NDArray[np.int64] = stops - starts
        return result

    def longest(self, k: int) -> npt.NDArray[np.int64]:
        """Return the numbers of k windows of the greatest length."""
        best = np.empty(0, dtype=np.int64)
        for start in range(0, len(self), 2**18):
            candidates = np.concatenate([best, np.arange(start, min(start + 2**18, len(self)))])
            lengths = self.lengths(candidates)
            best = candidates[np.argsort(-lengths, kind="stable")[:k]]
            if len(best) == k and self.lengths(best).min() == self.length:
                break  # none is longer
        return best


def windows_of(
    flat: Flat, length: int, overlap: int = 0, trim: tuple[int, int] = (0, 0)
) -> tuple[Flat, Array]:
    """Return the windows of encoded documents in memory, and the document of each, (n,); cut as `Windows` cuts."""
    lengths = np.diff(flat.offsets)
    inner = np.maximum(lengths - sum(trim), 0)
    step = length - overlap
    counts = np.where(inner > overlap, -(-(inner - overlap) // step), np.minimum(inner, 1))
    documents = np.repeat(np.arange(len(lengths)), counts)
    numbers = np.arange(len(documents)) - np.repeat(counts.cumsum() - counts, counts)
    starts = flat.offsets[documents] + trim[0] + numbers * step
    stops = np.minimum(starts + length, flat.offsets[documents + 1] - trim[1])
    offsets = np.concatenate([[0], (stops - starts).cumsum()]).astype(np.int64)
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts)
    return Flat(flat.values[places], offsets), documents
