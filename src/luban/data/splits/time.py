"""The past to train on, the future to test on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import model_validator

from luban.data.contracts import TEST, TRAIN, VALIDATION, Split
from luban.data.quantiles import Quantiles
from luban.data.splits._base import Hashes, Share, column
from luban.errors import DataError
from luban.registry import register

__all__ = ["Time"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@register("splits")
class Time(Split):
    """The latest rows are the test rows, those before them validation: a forecast is judged on its future.

    Rows of the same time stay together. Times are ISO dates (2024-05-01), date-times
    (2024-05-01T12:30:00+08:00; without a zone UTC is meant) or numbers (years, Unix seconds), one kind in a
    column.

    Example:
        ``split: {type: time, by: date, validation: 0.1, test: 0.2}``
    """

    by: str
    """The column of times."""
    validation: Share = 0.1
    """Share of the rows to choose by."""
    test: Share = 0.1
    """Share of the rows to report on."""

    _kind: Literal["number", "time"] | None = None
    _quantiles: Quantiles | None = None
    _starts: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation:g} and test {self.test:g} leave no rows to train on; "
                "their sum must be below 1"
            )
        return self

    def update(self, rows: pl.DataFrame, keys: Hashes) -> None:
        """Look at one more chunk."""
        self._quantiles = self._quantiles or Quantiles()
        self._quantiles.add(self._times(rows))

    def finish(self) -> None:
        """Find the two moments at which validation and test begin.

        Raises:
            DataError: if there are fewer different times than parts.
        """
        values, rows = (self._quantiles or Quantiles()).table()
        parts = 1 + (self.validation > 0) + (self.test > 0)
        if len(values) < parts:
            raise DataError(
                f"column '{self.by}' holds {len(values)} different times, but {parts} parts "
                "(training, validation, test) need at least one each"
            )
        before = np.concatenate([[0], np.cumsum(rows)])  # rows before values[i]
        last = len(values)

        def begin(share: float, end: int, least: int) -> int:
            """Return where a part that ends at `end` begins, with at least `least` times left before it."""
            if share == 0:
                return end
            nearest = int(np.abs(before - (before[end] - share * before[-1])).argmin())
            return min(max(nearest, least), end - 1)

        test = begin(self.test, last, 1 + (self.validation > 0))
        validation = begin(self.validation, test, 1)
        # Infinity stands for 'never': JSON has no word for it, so the state keeps None.
        moments = [float(values[i]) if i < last else np.inf for i in (validation, test)]
        self._starts = moments[0], moments[1]
        self._quantiles = None

    def assign(self, rows: pl.DataFrame, keys: Hashes) -> npt.NDArray[np.uint8]:
        """Return 0 (train), 1 (validation) or 2 (test) for each row.

        Raises:
            DataError: for a time that cannot be read.
        """
        assert self._starts is not None, "finish() or restore() comes first"
        times = self._times(rows)
        validation, test = self._starts
        before_test = np.where(times >= validation, VALIDATION, TRAIN)
        return np.where(times >= test, TEST, before_test).astype(np.uint8)

    def _times(self, rows: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Return the times as numbers: themselves, or microseconds since 1970."""
        values = column(rows, self.by)
        kind = self._kind
        if values.dtype.is_temporal():
            times, kind = values.cast(pl.Datetime("us")).cast(pl.Int64), "time"
        elif values.dtype.is_numeric():
            times, kind = values, "number"
        else:
            text = values.cast(pl.String).str.strip_chars()
            times = text.cast(pl.Float64, strict=False)
            if kind is None:
                kind = "number" if times.null_count() * 2 < len(times) else "time"
            if kind == "time":
                times = _parse(text)
        times = times.cast(pl.Float64)
        if self._kind not in (None, kind):
            raise DataError(
                f"column '{self.by}' holds dates in one place and numbers in another; give it one kind"
            )
        bad = (times.is_null() | ~times.is_finite()).fill_null(True)
        if bad.any():
            found = values.filter(bad)[0]
            found = "an empty cell" if found is None else repr(str(found))
            raise DataError(
                f"column '{self.by}' holds {found}, which is no time; times are ISO dates (2024-05-01), "
                "date-times (2024-05-01 12:30:00) or numbers, of one kind"
            )
        if len(rows):
            self._kind = kind
        return times.to_numpy()

    def state(self) -> dict[str, Any]:
        """Return the two moments and how times are read."""
        if self._starts is None:
            return {}
        validation, test = (None if np.isinf(one) else one for one in self._starts)
        return {"kind": self._kind, "validation": validation, "test": test}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        if state:
            moments = [np.inf if state[key] is None else float(state[key]) for key in ("validation", "test")]
            self._kind, self._starts = state["kind"], (moments[0], moments[1])


def _parse(text: pl.Series) -> pl.Series:
    """Read ISO dates and date-times as microseconds since 1970; null where that fails."""
    distinct = text.drop_nulls().unique()
    return text.replace_strict(distinct, pl.Series([_microseconds(one) for one in distinct], dtype=pl.Int64))


def _microseconds(text: str) -> int | None:
    text = text.replace("/", "-")
    try:
        moment = datetime.fromisoformat(f"{text}-01" if len(text) == len("2024-05") else text)
    except ValueError:
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)
