"""What the splits share: hashes on a ring, cut into parts.

A row's hash is its place on a ring of 2^64 points, the same in every run. A part (test, validation, training,
a fold) is an arc of that ring, so a few numbers say for ever where each row belongs::

    start ──── test ──── ends[0] ──── validation ──── ends[1] ──── training ──── start

The ends are order statistics of the hashes that were seen, so that the shares are as exact as the duplicates
allow; past `LIMIT` distinct hashes they are the plain shares of the ring, which by then are off by less than
0.1 %.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from luban.data.contracts import TEST, TRAIN, VALIDATION, Split
from luban.errors import DataError, did_you_mean

__all__ = ["LIMIT", "Hashes", "Rings", "SharedSplit", "Tally", "column", "hash_values", "mix"]

Hashes: TypeAlias = npt.NDArray[np.uint64]
LIMIT = 200_000
"""Distinct hashes that are counted one by one."""
Share = Annotated[float, Field(ge=0, lt=1)]
_PARTS = np.array([TEST, VALIDATION, TRAIN], dtype=np.uint8)


def column(rows: pl.DataFrame, name: str) -> pl.Series:
    """Return a column, or raise a DataError that lists those there are."""
    if name not in rows.columns:
        raise DataError(
            f"there is no column '{name}' to split by; columns are {', '.join(rows.columns)}"
            f"{did_you_mean(name, rows.columns)}"
        )
    return rows[name]


def mix(keys: Hashes, seed: int) -> Hashes:
    """Shuffle the ring by a seed: a bijection of 64-bit keys (finaliser of SplitMix64; Steele et al.
    2014)."""
    z = keys.astype(np.uint64) ^ np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_values(values: pl.Series) -> Hashes:
    """Hash values by their text, alike in every process and version, which polars does not promise of its
    hash."""
    text = values.cast(pl.String).fill_null("")
    distinct = text.unique()
    digests = (hashlib.blake2b(one.encode(), digest_size=8).digest() for one in distinct)
    hashes = pl.Series([int.from_bytes(digest) for digest in digests], dtype=pl.UInt64)
    return text.replace_strict(distinct, hashes, return_dtype=pl.UInt64).to_numpy()


def _names(classes: pl.Series) -> pl.Series:
    return classes.cast(pl.String).fill_null("")


class Tally:
    """How many rows each (class, hash) has, as long as there are no more than `LIMIT` of them."""

    def __init__(self) -> None:
        self._counted = pl.DataFrame(schema={"class": pl.String, "hash": pl.UInt64, "rows": pl.Int64})
        self._new: list[pl.DataFrame] = []
        self._waiting = 0
        self.full = False

    def add(self, hashes: Hashes, classes: pl.Series | None = None) -> None:
        """Count one more chunk; rows without a class are of class ``''``."""
        if self.full:
            return
        names = pl.repeat("", len(hashes), eager=True) if classes is None else _names(classes)
        chunk = pl.DataFrame({"class": names, "hash": hashes}, schema_overrides={"hash": pl.UInt64})
        self._new.append(chunk.group_by("class", "hash").agg(pl.len().cast(pl.Int64).alias("rows")))
        self._waiting += len(self._new[-1])
        if self._waiting > LIMIT // 2:
            self.table()

    def table(self) -> pl.DataFrame | None:
        """Return class, hash and rows, sorted; None past the limit."""
        if self._new:
            table = pl.concat([self._counted, *self._new])
            self._counted = table.group_by("class", "hash").agg(pl.col("rows").sum()).sort("class", "hash")
            self._new, self._waiting = [], 0
        if len(self._counted) > LIMIT:
            self.full = True
            self._counted = self._counted.clear()
        return None if self.full else self._counted


@dataclass(frozen=True)
class Rings:
    """The arcs of each class; what a split remembers.

    Attributes:
        default: the arcs of rows whose class was not seen: the start, then the end of each part but the last.
        classes: class → its arcs.
        mixed: hashes that occur in several classes; they follow `default`, so that equal inputs stay together
            where labels contradict each other.
    """

    default: tuple[int, ...]
    classes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mixed: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))

    @classmethod
    def fit(cls, table: pl.DataFrame | None, shares: Sequence[float], *, what: str, last_keeps: bool) -> Self:
        """Cut the ring.

        The classes are cut one after the other, the largest first, and what rounding took from a part in one
        class is owed to it in the next: a thousand classes of three rows keep the shares as well as one of
        3000.

        Args:
            table: class, hash, rows, sorted; None if there were too many to count.
            shares: share of each part, summing to one; the last part takes the rest.
            what: what a hash stands for, in messages: ``rows``.
            last_keeps: whether the last part (training) takes at least one hash of each class.

        Raises:
            DataError: if a part that should have rows gets none.
        """
        inner = np.cumsum(shares)[:-1]
        plain = (0, *(min(int(share * 2**64), 2**64 - 1) for share in inner))
        if table is None:
            return cls(plain)
        wanted = np.array(shares) > 0
        if len(table) < wanted.sum():
            raise DataError(
                f"the data has {len(table)} different {what}, but {wanted.sum()} parts (training, "
                "validation, ...) need at least one each: there is nothing to validate on; "
                "give more data, or fewer parts"
            )
        several = table["hash"].filter(table["hash"].is_duplicated()).unique().sort()
        classes: dict[str, tuple[int, ...]] = {}
        owed = np.zeros(len(inner))
        needy = wanted.copy()
        hashes, rows = table["hash"].to_numpy(), table["rows"].to_numpy()
        groups = table.group_by("class", maintain_order=True).agg(
            pl.col("rows").sum().alias("total"), size=pl.len()
        )
        groups = groups.with_columns(end=pl.col("size").cum_sum()).sort(
            "total", descending=True, maintain_order=True
        )
        for name, total, different, end in groups.iter_rows():
            counts = rows[end - different : end]
            if last_keeps and different == 1:  # a class of which training must know the only row
                classes[name] = (0,) * (len(inner) + 1)
                needy[-1] = False
                continue
            least = needy.astype(np.int64)
            least[-1] |= last_keeps
            while least.sum() > different:  # more needs than rows: the first part waits for the next class
                least[np.flatnonzero(least)[0]] = 0
            wish = inner * total + owed
            size = np.diff(wish, prepend=0)
            goal = np.cumsum(np.where(least[:-1] > 0, np.maximum(size, 1), size))
            classes[name], got = _cut(hashes[end - different : end], counts, goal, least)
            owed = np.clip(wish - got, -counts.max(), counts.max())
            needy &= np.diff(got, prepend=0, append=total) == 0
        if needy.any():
            raise DataError(
                f"the {len(classes)} classes have too few {what} each to give every part some; "
                "use a split of type random, or a column of fewer values"
            )
        return cls(plain, classes, several.to_numpy())

    def parts(self, hashes: Hashes, classes: pl.Series | None = None) -> npt.NDArray[np.uint8]:
        """Return the part of each row, from 0, (n,)."""
        if classes is None:
            index = np.full(len(hashes), 0)
        else:
            index = np.array([self._index.get(name, -1) for name in _names(classes)], dtype=np.int64)
            if len(self.mixed):
                index[np.isin(hashes, self.mixed)] = -1
        arcs = self._arcs[index]
        position = hashes - arcs[:, 0]  # wraps around, as a ring does
        parts: npt.NDArray[np.uint8] = (position[:, None] >= arcs[:, 1:]).sum(1, dtype=np.uint8)
        return parts

    @cached_property
    def _arcs(self) -> Hashes:
        return np.array([*self.classes.values(), self.default], dtype=np.uint64)  # (C + 1, parts)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        mixed = base64.b64encode(self.mixed.astype("<u8").tobytes()).decode()
        classes = {name: list(arcs) for name, arcs in self.classes.items()}
        return {"default": list(self.default), "classes": classes, "mixed": mixed}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        mixed = np.frombuffer(base64.b64decode(data["mixed"]), dtype="<u8").astype(np.uint64)
        return cls(tuple(data["default"]), {k: tuple(v) for k, v in data["classes"].items()}, mixed)


def _cut(
    hashes: Hashes, rows: npt.NDArray[np.int64], goal: npt.NDArray[np.float64], least: npt.NDArray[np.int64]
) -> tuple[tuple[int, ...], npt.NDArray[np.int64]]:
    """Cut one class's ring where the number of rows so far comes closest to each goal.

    A hash with many rows (a thousand empty texts) may stand where no cut is good; then the ring is entered
    elsewhere.

    Returns:
        The start and the ends, and how many rows lie before each end.
    """
    n = len(hashes)
    before = np.cumsum(least)[:-1]
    after = np.cumsum(least[::-1])[::-1][1:]
    best: tuple[float, tuple[int, ...], npt.NDArray[np.int64]] | None = None
    for first in range(0, n, max(1, n // 64)):
        total = np.concatenate([[0], np.cumsum(np.roll(rows, -first))])
        right = np.searchsorted(total, goal).clip(1, n)
        ends = np.where(total[right] - goal < goal - total[right - 1], right, right - 1)
        # Each part takes its least: k parts before an end need k hashes, and those after it the rest.
        ends = np.maximum.accumulate(np.maximum(ends, before) - before) + before
        ends = np.minimum(ends, n - after)
        got = total[ends]
        error = float(np.abs(got - goal).max(initial=0))
        if best is None or error < best[0]:
            start = int(hashes[first]) if first else 0
            # An end is the first hash that is past it; where there is none, the ring is full.
            past = [
                (int(hashes[(first + end) % n]) - start) % 2**64 if end < n else 2**64 - 1 for end in ends
            ]
            best = error, (start, *past), got
        if error <= max(1.0, 0.001 * float(total[-1])):
            break
    assert best is not None
    return best[1], best[2]


class SharedSplit(Split):
    """A split by shares: what random, stratified and group have in common."""

    validation: Share = 0.1
    """Share of the rows to choose by."""
    test: Share = 0.1
    """Share of the rows to report on."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed, another split."""

    _tally: Tally | None = None
    _rings: Rings | None = None

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation:g} and test {self.test:g} leave no rows to train on; "
                "their sum must be below 1"
            )
        return self

    def _hashes(self, rows: pl.DataFrame, keys: Hashes) -> Hashes:
        return mix(keys, self.seed)

    def _classes(self, rows: pl.DataFrame) -> pl.Series | None:
        return None

    def _what(self) -> str:
        return "rows"

    def update(self, rows: pl.DataFrame, keys: Hashes) -> None:
        """Count one more chunk."""
        self._tally = self._tally or Tally()
        self._tally.add(self._hashes(rows, keys), self._classes(rows))

    def finish(self) -> None:
        """Cut the ring.

        Raises:
            DataError: if there are too few different rows to train on, to choose by and to report on.
        """
        shares = [self.test, self.validation, 1 - self.test - self.validation]
        table = (self._tally or Tally()).table()
        self._rings = Rings.fit(table, shares, what=self._what(), last_keeps=True)
        self._tally = None

    def assign(self, rows: pl.DataFrame, keys: Hashes) -> npt.NDArray[np.uint8]:
        """Return 0 (train), 1 (validation) or 2 (test) for each row."""
        assert self._rings is not None, "finish() or restore() comes first"
        return _PARTS[self._rings.parts(self._hashes(rows, keys), self._classes(rows))]

    def state(self) -> dict[str, Any]:
        """Return the arcs."""
        return {} if self._rings is None else self._rings.to_json()

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._rings = Rings.from_json(state) if state else None
