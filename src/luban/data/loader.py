"""Batches of a split, in an order that is a function of seed, epoch and position alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from luban.data.augment._base import Augmenter
from luban.data.batch import Batch, to_batch, to_device
from luban.data.contracts import Encoded, Flat, Spec
from luban.data.order import Shuffle
from luban.data.processors.text import Text
from luban.data.store import Store
from luban.data.windows import Windows

__all__ = ["ROW", "Loader"]

ROW = "row.number"
"""Field of a batch that says which rows of the store it holds, so that a fault can name them."""

_BLOCK = 65_536  # rows whose order is worked out at a time


class Loader:
    """Reads a store batch by batch.

    Args:
        store: encoded rows.
        spec: their fields.
        batch_size: rows in a batch, or
        batch_tokens: ragged values in a batch at the most (at least one row, whatever its length).
        seed: shuffle by this seed and the epoch; None keeps the order of the store.
        augment: random changes, in order.
        texts: column → its text processor, for columns whose raw text is augmented.
        collate: what objectives do to a batch before it is used (masking, pairing), in order.
        device: where batches go.
    """

    def __init__(
        self,
        store: Store | Windows,
        spec: Spec,
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        seed: int | None = None,
        augment: Sequence[Augmenter] = (),
        texts: Mapping[str, Text] | None = None,
        collate: Sequence[Callable[[Batch, torch.Generator], Batch]] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        assert (batch_size is None) != (batch_tokens is None), "give batch_size or batch_tokens"
        self.store, self.spec, self.device = store, spec, device
        self.batch_size, self.batch_tokens, self.seed = batch_size, batch_tokens, seed
        self.augment, self.texts, self.collate = list(augment), dict(texts or {}), list(collate)

    def _order(self, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
        n = len(self.store)
        # SeedSequence mixes seed and epoch, so that neighbouring seeds share no epoch's order.
        seed = (
            None
            if self.seed is None
            else int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0])
        )
        shuffle = None if seed is None else Shuffle(n, seed)
        for start in range(0, n, _BLOCK):
            positions = np.arange(start, min(start + _BLOCK, n))
            yield positions if shuffle is None else shuffle(positions)

    def plan(self, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the row numbers of each batch of an epoch; reads no row.

        A last batch of a single row joins the one before it: batch statistics of one row mean nothing.
        """
        pending = np.empty(0, dtype=np.int64)
        held: npt.NDArray[np.int64] | None = None
        for block in self._order(epoch):
            pending = np.concatenate([pending, block])
            for batch, rest in self._cut(pending):
                if held is not None:
                    yield held
                held, pending = batch, rest
        if len(pending) == 1 and held is not None and self.batch_size is not None and self.batch_size > 1:
            held, pending = np.concatenate([held, pending]), pending[:0]
        if held is not None:
            yield held
        if len(pending):
            yield pending

    def _cut(
        self, rows: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Cut full batches off the front; yield each with what remains."""
        if self.batch_size is not None:
            for start in range(0, len(rows) - self.batch_size + 1, self.batch_size):
                yield rows[start : start + self.batch_size], rows[start + self.batch_size :]
            return
        assert self.batch_tokens is not None
        ends = np.cumsum(self.store.lengths(rows))
        start, used = 0, 0
        while start < len(rows):
            stop = max(start + 1, int(np.searchsorted(ends, used + self.batch_tokens, side="right")))
            if stop >= len(rows):
                return  # not known to be full until the next block is seen
            yield rows[start:stop], rows[stop:]
            start, used = stop, int(ends[stop - 1])

    def count(self, epoch: int = 0) -> int:
        """Return the number of batches of an epoch."""
        if self.batch_size is not None:
            full, rest = divmod(len(self.store), self.batch_size)
            return full + (rest > 1 or (rest == 1 and (full == 0 or self.batch_size == 1)))
        return sum(1 for _ in self.plan(epoch))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from the `start`-th on."""
        for number, rows in enumerate(self.plan(epoch)):
            if number >= start:
                yield self.load(rows, (epoch, number))

    def worst(self) -> Batch:
        """Return the batch that needs the most memory: the longest rows together."""
        if self.batch_size is not None:
            return self.load(self.store.longest(min(self.batch_size, len(self.store))), (0, 0))
        assert self.batch_tokens is not None
        rows = self.store.longest(min(self.batch_tokens, len(self.store)))
        fits = int(np.searchsorted(np.cumsum(self.store.lengths(rows)), self.batch_tokens, side="right"))
        return self.load(rows[: max(1, fits)], (0, 0))

    def load(self, rows: npt.NDArray[np.int64], where: tuple[int, int]) -> Batch:
        """Return the batch of these rows; `where` (epoch, batch) seeds its augmentation."""
        encoded = self.store.take(rows)
        if self.texts:
            self._reencode(encoded, where)
        # What objectives do is done before the batch travels: it is little arithmetic and many small steps.
        batch = to_batch(encoded, self.spec, "cpu" if self.collate else self.device)
        if self.collate:
            generator = torch.Generator().manual_seed(self._seed(where, 3))
            for change_of in self.collate:
                batch = change_of(batch, generator)
            for name, one in self.spec.fields.items():
                if one.role == "id" and one.shape is None:  # read by objectives only
                    batch.pop(name, None)
            batch = to_device(batch, self.device)
        changes = [one for one in self.augment if one.level == "batch"]
        if changes:
            # Random numbers come from the CPU whatever the device, so that a run means the same on both.
            generator = torch.Generator().manual_seed(self._seed(where, 1))
            for change in changes:
                batch = change.batch(batch, self.spec, generator)
        batch[ROW] = torch.from_numpy(rows)
        return batch

    def _seed(self, where: tuple[int, int], stream: int) -> int:
        return int(
            np.random.SeedSequence([self.seed or 0, *where, stream]).generate_state(1, np.uint64)[0]
            >> np.uint64(1)
        )

    def _reencode(self, encoded: Encoded, where: tuple[int, int]) -> None:
        generator = np.random.default_rng(self._seed(where, 2))
        for column, processor in self.texts.items():
            raw = encoded.pop(f"{column}.raw")
            assert isinstance(raw, Flat)
            data, ends = raw.values.tobytes(), raw.offsets.tolist()
            texts = [data[a:b].decode() for a, b in pairwise(ends)]
            for change in self.augment:
                if change.level == "text" and (change.columns is None or column in change.columns):
                    texts = change.text(texts, generator)
            encoded.update(
                {f"{column}.{short}": value for short, value in processor.encode_texts(texts).items()}
            )
