"""Cells without a value."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any, Literal, Self, TypeAlias

import polars as pl
from pydantic import PrivateAttr, model_validator

from luban.data.cleaning._base import TOKENS, Look, Step, chosen, is_missing, numbers, plain
from luban.data.quantiles import Quantiles
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

__all__ = ["Missing"]

_MOST_VALUES = 1_000_000
_Fill: TypeAlias = float | int | str | None
"""What is filled in, as JSON knows it: a date is text (ISO 8601), a decimal is text where a float would round it."""


@register("cleaning")
class Missing(Step):
    """Fill in the cells that hold no value, or drop their rows.

    A cell is missing if it is null, NaN or one of `tokens`. What is filled in is learnt from training rows. A
    column of text stays text (``'41.5'`` is filled in, and an unreadable cell stays what it is, to be counted
    by whoever reads the column). Rows to predict are never dropped: there, ``drop`` makes the cell null and
    leaves it to the model's input.

    With ``indicator``, a column ``<column>_missing`` of 0 and 1 stands beside each, which the recipe can name
    as an input: ``inputs: {age: number, age_missing: number}``.

    Example:
        ``clean: [{type: missing, strategy: median, columns: [age, income], indicator: true}]``
    """

    strategy: Literal["drop", "mean", "median", "mode", "constant"] = "drop"
    """Drop the row; or fill in the mean or the median (columns of numbers), the most frequent value, or
    `value`."""
    value: float | int | str | None = None
    """What ``constant`` fills in."""
    columns: list[str] | None = None
    """Which columns; by default all, of numbers where the strategy is mean or median, of numbers, text, booleans and
    dates where it is mode or constant."""
    indicator: bool = False
    """Add a column ``<column>_missing`` of 0 and 1 for each column that is filled."""
    tokens: list[str] = TOKENS
    """Words that mean 'no value'; capitals and spaces around them do not matter."""

    _looks: dict[str, Look] = PrivateAttr(default_factory=dict)
    _sums: dict[str, tuple[int, float]] = PrivateAttr(default_factory=dict)
    _quantiles: dict[str, Quantiles] = PrivateAttr(default_factory=dict)
    _values: dict[str, Counter[Any]] = PrivateAttr(default_factory=dict)
    _fill: dict[str, _Fill] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _value_has_a_use(self) -> Self:
        if (self.strategy == "constant") != (self.value is not None):
            raise ValueError("'value' and strategy constant go together: the value is what is filled in")
        if self.indicator and self.strategy == "drop":
            raise ValueError(
                "with strategy drop an indicator would always be 0; choose a strategy that fills"
            )
        return self

    def update(self, rows: pl.DataFrame) -> None:
        """Learn from one more chunk of training rows.

        Raises:
            DataError: if a column that the recipe names is of a type whose cells cannot be filled.
        """
        for name in chosen(self.columns, rows):
            if self.strategy != "drop" and not _can_be_filled(rows.schema[name]):
                if self.columns is None:
                    continue
                raise DataError(
                    f"column '{name}' is of type {rows.schema[name]}, but {self.strategy} fills numbers, text, booleans "
                    "and dates; leave it out of 'columns', or drop its rows by strategy drop"
                )
            look = self._looks.setdefault(name, Look())
            if self.strategy in ("drop", "constant"):
                continue
            values = plain(rows[name]).filter(~is_missing(rows[name], self.tokens))
            look.add(values)
            match self.strategy:
                case "mean":
                    read = numbers(values).drop_nulls()
                    count, mean = self._sums.get(name, (0, 0.0))
                    count += len(read)
                    # A running mean: a sum of a billion values would lose digits.
                    self._sums[name] = count, mean + float((read - mean).sum()) / max(count, 1)
                case "median":
                    self._quantiles.setdefault(name, Quantiles()).add(numbers(values).drop_nulls().to_numpy())
                case "mode":
                    counter = self._values.setdefault(name, Counter())
                    for value, times in values.value_counts().iter_rows():
                        if value in counter or len(counter) < _MOST_VALUES:
                            counter[value] += times

    def finish(self) -> None:
        """Decide what is filled in.

        Raises:
            DataError: if a column that the recipe names has nothing to learn from.
        """
        for name, look in self._looks.items():
            match self.strategy:
                case "drop":
                    self._fill[name] = None
                case "constant":
                    self._fill[name] = self.value
                case "mean" if look.numeric:
                    self._fill[name] = self._sums[name][1]
                case "median" if look.numeric:
                    self._fill[name] = self._quantiles[name].at(0.5)
                case "mode" if self._values[name]:
                    # The smaller of two equally frequent values, whatever the order of the rows.
                    common = min(self._values[name].items(), key=lambda item: (-item[1], item[0]))[0]
                    self._fill[name] = _as_json(common)
                case _ if self.columns is not None:
                    wanted = "any value" if self.strategy == "mode" else "numbers"
                    raise DataError(
                        f"column '{name}' does not hold {wanted}, so there is no {self.strategy} to fill in; "
                        "use strategy mode or constant, or leave the column out"
                    )
        self._sums, self._quantiles, self._values = {}, {}, {}

    def apply(self, rows: pl.DataFrame, *, predicting: bool) -> pl.DataFrame:
        """Return the chunk with cells filled in, or rows dropped."""
        missing = {name: is_missing(rows[name], self.tokens) for name in self._fill if name in rows.columns}
        if self.strategy == "drop":
            if not predicting:
                kept = rows.filter(~pl.any_horizontal(*missing.values())) if missing else rows
                self._count(say("dropped"), len(rows) - len(kept))
                return kept
            return rows.with_columns(rows[name].set(where, None) for name, where in missing.items())
        changed = []
        for name, where in missing.items():
            changed.append(_filled(rows[name], where, self._fill[name]))
            self._count(say("filled"), int(where.sum()))
            if self.indicator:
                if f"{name}_missing" in rows.columns:
                    raise DataError(
                        f"the indicator of '{name}' would replace column '{name}_missing'; rename it"
                    )
                changed.append(where.cast(pl.Int8).alias(f"{name}_missing"))
        return rows.with_columns(changed)

    def state(self) -> dict[str, Any]:
        """Return what is filled into which column."""
        return {"fill": self._fill}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._fill = dict(state["fill"])


def _can_be_filled(dtype: pl.DataType) -> bool:
    """Whether a value of the type can be kept in an artefact, which is JSON, and put back into a column."""
    return dtype.is_numeric() or isinstance(
        dtype, pl.String | pl.Categorical | pl.Enum | pl.Boolean | pl.Date | pl.Datetime | pl.Null
    )


def _as_json(value: Any) -> _Fill:
    """Return a cell as JSON that `_filled` puts back."""
    if isinstance(value, Decimal):
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if hasattr(value, "isoformat"):
        # What the clock on the wall showed, as columns of dates are read: zones come and go between files.
        return str((value.replace(tzinfo=None) if hasattr(value, "tzinfo") else value).isoformat())
    return value  # type: ignore[no-any-return]


def _filled(values: pl.Series, where: pl.Series, fill: _Fill) -> pl.Series:
    """Put `fill` into the cells `where`, keeping text as text and integers as integers if the value is
    one."""
    values = plain(values)  # so that a category may be new
    if not _can_be_filled(values.dtype):
        return values  # of another type than in training: whoever reads the column says so
    if values.dtype == pl.Null:
        return pl.repeat(fill, len(values), eager=True).alias(values.name)
    if values.dtype == pl.String:
        fill = str(fill).lower() if isinstance(fill, bool) else str(fill)  # true, as polars and JSON write it
    elif values.dtype.is_integer() and isinstance(fill, float) and not fill.is_integer():
        values = values.cast(pl.Float64)
    try:
        cell = _cell(fill, values.dtype)
    except pl.exceptions.PolarsError:
        raise DataError(
            f"column '{values.name}' is of type {values.dtype}, into which {fill!r} does not fit; give a value of that "
            "type (a date as '2024-01-31', 0 or 1 for a boolean), or name the columns to fill by 'columns'"
        ) from None
    return values.zip_with(~where, cell.new_from_index(0, len(values)))


def _cell(fill: _Fill, dtype: pl.DataType) -> pl.Series:
    """Return a series of one value.

    Raises:
        PolarsError: if the value is none of the type's.
    """
    if not isinstance(dtype, pl.Date | pl.Datetime):
        return pl.Series([fill]).cast(dtype)
    if not isinstance(fill, str):  # polars would count days or microseconds from 1970
        raise pl.exceptions.InvalidOperationError("a date is written as text")
    text = pl.Series([fill])
    moment = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us")
    moment = moment.fill_null(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    if moment.null_count():
        raise pl.exceptions.InvalidOperationError("it is no date of ISO 8601")
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        # An hour that the zone skips in spring stays missing; of one that it repeats in autumn the first is meant.
        moment = moment.dt.replace_time_zone(dtype.time_zone, ambiguous="earliest", non_existent="null")
    return moment.cast(dtype)
