"""What the parts of the data path promise one another.

::

    Source ──chunks──▶ Cleaner ──▶ Split ──▶ Processor ──arrays──▶ Store ──▶ Augmenter ──▶ batch

A chunk is a polars DataFrame of some thousand rows: nothing on this path ever holds a whole file. Each contract is a
`Component`, so that its fields are its recipe keys. Fitting sees training rows only, one chunk after the other
(`update` ... `update`, `finish`), and what was fitted is `state()`, plain JSON.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.recipe import Component

__all__ = [
    "Array",
    "Cleaner",
    "Encoded",
    "Field",
    "Flat",
    "Processor",
    "Role",
    "Source",
    "Spec",
    "Split",
    "in_seconds",
    "seconds",
]

Array: TypeAlias = npt.NDArray[Any]
Role = Literal["input", "target", "group", "weight", "id"]


@dataclass(frozen=True)
class Field:
    """One tensor of a batch, as stored.

    Attributes:
        column: the user's column.
        kind: the processor type that made it, such as ``category``.
        role: input, target, group, weight or id.
        dtype: numpy name of the stored values.
        shape: shape of a row's values; None where rows differ in length (one flat array and offsets).
        size: how many distinct values an integer field has (classes, vocabulary); None for real values.
        pad: the value that fills a rectangle for those who need one.
        mean, std: where given, a batch holds ``(stored - mean) / std`` as float32; small integers travel, floats arrive.
        output, width: for a target, the name of the model's output (``logits``) and how many numbers it has.
    """

    column: str
    kind: str
    role: Role
    dtype: str
    shape: tuple[int, ...] | None = ()
    size: int | None = None
    pad: float = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: str | None = None
    width: int = 0


@dataclass(frozen=True)
class Spec:
    """All fields of a batch, named ``column.field``, in the order of the recipe."""

    fields: dict[str, Field] = field(default_factory=dict)

    def select(self, role: Role) -> dict[str, dict[str, Field]]:
        """Return column → its fields by full name, for one role."""
        result: dict[str, dict[str, Field]] = {}
        for name, one in self.fields.items():
            if one.role == role:
                result.setdefault(one.column, {})[name] = one
        return result

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return {name: asdict(one) for name, one in self.fields.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""

        def field_of(one: Mapping[str, Any]) -> Field:  # JSON has lists where a field has tuples
            options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
            return Field(**options)

        return cls({name: field_of(one) for name, one in data.items()})


@dataclass(frozen=True)
class Flat:
    """Encoded rows of different lengths: `values` (T, ...) and `offsets` (n + 1,), as in `Ragged`, in numpy."""

    values: Array
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


Encoded: TypeAlias = dict[str, Array | Flat]


def in_seconds(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows whose spans of time are numbers of seconds, which every processor can read."""
    spans = [name for name, dtype in rows.schema.items() if isinstance(dtype, pl.Duration)]
    return rows.with_columns(seconds(rows[name]) for name in spans) if spans else rows


def seconds(values: pl.Series) -> pl.Series:
    """Return spans of time as numbers of seconds."""
    units = {"ms": 1e3, "us": 1e6, "ns": 1e9}
    assert isinstance(values.dtype, pl.Duration)
    return values.to_physical().cast(pl.Float64) / units[values.dtype.time_unit]


def _portable(value: Any) -> Any:
    """Return a cell as JSON that is read as the same: 1.50 stays '1.50', which a float would not."""
    if isinstance(value, list):
        return [_portable(one) for one in value]
    if isinstance(value, dict):
        return {key: _portable(one) for key, one in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    return value.isoformat() if hasattr(value, "isoformat") else value


class Source(Component):
    """Rows from somewhere, in chunks."""

    @abstractmethod
    def scan(self, chunk_rows: int = 8192) -> Iterator[pl.DataFrame]:
        """Yield the rows in order, at most `chunk_rows` at a time; the same columns in each chunk.

        Text formats yield strings (the processors decide what a cell means); typed formats yield their own types. An empty
        cell of a text format is null.

        Raises:
            DataError: if the data is missing, unreadable or damaged, with the file and, where there is one, the line.
        """

    @abstractmethod
    def columns(self) -> list[str]:
        """Return the column names without reading the rows."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash that changes when the data changes (contents for local files)."""

    def notes(self) -> list[str]:
        """Return what the user should know about how the data was read (its encoding, rows that were repaired)."""
        return []


class Processor(Component):
    """How a column becomes tensors, and, for a target, how outputs become values again.

    A kind that can be a target says so by `output`; it then brings its objective, its metrics and its decoder.
    """

    output: ClassVar[str | None] = None
    """Name of the model's output for a target of this kind (``logits`` or ``value``); None if it cannot be a target."""
    writes: ClassVar[bool] = False
    """Whether a target of this kind is written token by token, by a model that generates, instead of read off an output."""
    objective: ClassVar[str | None] = None
    """The objective that a target of this kind brings."""
    task: ClassVar[str | None] = None
    """The family of metrics of a target of this kind: ``binary``, ``multiclass``, ``multilabel``, ``regression``."""

    @abstractmethod
    def update(self, values: pl.Series) -> None:
        """Learn from one more chunk of training values."""

    @abstractmethod
    def finish(self) -> None:
        """End the fitting.

        Raises:
            DataError: if the column cannot be used (no value at all, a single class in a target).
        """

    @abstractmethod
    def fields(self, column: str, role: Role) -> dict[str, Field]:
        """Return the fields of a column, by short name (``ids``); known after fitting."""

    @abstractmethod
    def encode(self, values: pl.Series) -> Encoded:
        """Return arrays by short name, one entry a row; never fails on a value that `invalid` lets through."""

    def invalid(self, values: pl.Series) -> pl.Series:
        """Return which values are present but unreadable (a word in a column of numbers), boolean, (n,)."""
        return pl.Series(np.zeros(len(values), dtype=bool))

    def identity(self, values: pl.Series) -> pl.Series:
        """Return what makes two values the same row for splitting; the values themselves unless they only point at data."""
        return values

    def portable(self, values: pl.Series) -> list[Any]:
        """Return values as JSON that means the same on another machine; what only points at data brings the data."""
        return [_portable(value) for value in values.to_list()]

    @abstractmethod
    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        """Make n values of this kind out of what was fitted, as JSON, from no row in particular."""

    def encode_target(self, values: pl.Series) -> Encoded:
        """As `encode`, for a target whose rows are all `known`."""
        return self.encode(values)

    def known(self, values: pl.Series) -> pl.Series:
        """For a target: return which values can be learnt and scored (present, readable, of a known class), boolean, (n,)."""
        return values.is_not_null() & ~self.invalid(values)

    def counts(self) -> Counter[str]:
        """Return what was changed or lost since the last call, by name (``truncated``), and start again from zero."""
        return Counter()

    @property
    def head_width(self) -> int:
        """For a target: how many numbers the model must put out for a row."""
        raise NotImplementedError(f"'{self.type}' cannot be a target")

    def decode(self, output: Array) -> list[dict[str, Any]]:
        """For a target: turn outputs (n, width) into one dict a row: ``value``, and ``score`` or ``scores`` where they exist."""
        raise NotImplementedError(f"'{self.type}' cannot be a target")

    def truth(self, encoded: Array | Flat) -> Array:
        """For a target: turn what `encode_target` made into what metrics compare with: class numbers (n,), 0 and 1 for each
        word of a set (n, width), or numbers in the user's units (n,)."""
        raise NotImplementedError(f"'{self.type}' cannot be a target")

    def scores(self, output: Array) -> Array:
        """For a target: turn outputs (n, width) into what metrics compare: probabilities (of the positive class (n,), of
        each class or word (n, width)), or numbers in the user's units (n,)."""
        raise NotImplementedError(f"'{self.type}' cannot be a target")

    def unit(self, value: float) -> float:
        """For a target: return how large a difference from `value` counts as 1 when predictions are compared."""
        return 1.0

    def classes(self) -> list[str]:
        """For a target: return the names of the classes, in the order of the outputs; none for a number."""
        return []

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what was fitted, as JSON."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""


class Cleaner(Component):
    """One cleaning step: first fitted on training rows, then applied to chunks.

    Steps that change values (imputing, clipping, repairing text) act in training and in prediction alike; steps that drop
    rows act on training data only, since a row to predict is never dropped.
    """

    def update(self, rows: pl.DataFrame) -> None:
        """Learn from one more chunk of training rows; nothing by default."""
        return

    def finish(self) -> None:
        """End the fitting; nothing by default."""
        return

    @abstractmethod
    def apply(self, rows: pl.DataFrame, *, predicting: bool) -> pl.DataFrame:
        """Return the cleaned chunk, counting what was changed and dropped."""

    def counts(self) -> Counter[str]:
        """Return what was changed or dropped since the last call, by name, and start again from zero."""
        return Counter()

    def state(self) -> dict[str, Any]:
        """Return what was fitted, as JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        return


TRAIN, VALIDATION, TEST = 0, 1, 2


class Split(Component):
    """Assigns rows to training, validation and test by what they contain, never by where they stand.

    An assignment is a function of a row and of a few thresholds, so that it needs no list of rows, survives reordering and
    appending, and can be asked again of the same file later (``luban evaluate A DATA --split test``).
    """

    def update(self, rows: pl.DataFrame, keys: npt.NDArray[np.uint64]) -> None:
        """Look at one more chunk; `keys` hash each row's inputs, so that equal inputs have equal keys."""
        return

    def finish(self) -> None:
        """End the fitting."""
        return

    @abstractmethod
    def assign(self, rows: pl.DataFrame, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """Return 0 (train), 1 (validation), 2 (test) or 255 (in none) for each row."""

    def state(self) -> dict[str, Any]:
        """Return what was fitted, as JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        return
