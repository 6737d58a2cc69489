"""Dates and times."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from pydantic import PrivateAttr

from luban.data.contracts import Encoded, Field, Processor, Role
from luban.data.statistics import Moments
from luban.errors import DataError
from luban.registry import register

__all__ = ["Date", "as_times"]

_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M",
    "%Y/%m/%d", "%Y%m%d", "%Y.%m.%d", "%Y年%m月%d日 %H:%M:%S", "%Y年%m月%d日", "%d/%m/%Y", "%d.%m.%Y", "%m/%d/%Y",
)  # fmt: skip
_ISO = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d")
_TIME = ("%H", "%I", "%k", "%l", "%T", "%R", "%X", "%r", "%c", "%s", "%+")


def as_times(values: pl.Series, formats: list[str] | None = None) -> pl.Series:
    """Return the column as Datetime (microseconds, no zone); what is no date becomes null.

    Formats are tried in order, the first that reads a cell wins; ISO 8601 is always understood. Without `formats`, the usual
    Chinese, European and US orders are tried too; an ambiguous 03/04/2026 is read day first.
    """
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        times = (
            values.cast(pl.Datetime("us"), strict=False)
            if values.dtype == pl.Date
            else values.dt.replace_time_zone(None)
        )
        return times.cast(pl.Datetime("us"))
    if values.dtype == pl.Null:
        return pl.Series(values.name, [None] * len(values), dtype=pl.Datetime("us"))
    text = values.cast(pl.String).str.strip_chars().str.strip_suffix("Z")
    result = pl.Series(values.name, [None] * len(values), dtype=pl.Datetime("us"))
    for layout in [*formats, *_ISO] if formats else _FORMATS:
        if result.null_count() == text.null_count():
            break
        has_time = any(part in layout for part in _TIME)
        if has_time:
            parsed = text.str.to_datetime(layout, strict=False, time_unit="us")
        else:
            parsed = text.str.to_date(layout, strict=False).cast(pl.Datetime("us"))
        result = result.fill_null(parsed)
    return result


@register("processors")
class Date(Processor):
    """A date or a moment, as numbers with a calendar in them.

    Field ``value`` (10,): years since the training rows' mean (in deviations); sine and cosine of the day in the year, of the
    day in the month, of the day in the week and of the time of day; 1 if the date is missing.
    """

    formats: list[str] | None = None
    """strftime formats, tried in order; the usual ones if left out."""

    _moments: Moments = PrivateAttr(default_factory=Moments)
    _center: float = PrivateAttr(default=0.0)
    _scale: float = PrivateAttr(default=1.0)

    def update(self, values: pl.Series) -> None:
        times = as_times(values, self.formats).drop_nulls()
        self._moments.update(times.dt.timestamp("ms").to_numpy().astype(np.float64))

    def finish(self) -> None:
        if not self._moments.count:
            raise DataError(
                "no training row holds a date that can be read; name its layout: {type: date, formats: ['%d.%m.%y']}"
            )
        self._center, self._scale = self._moments.mean, self._moments.std or 1.0

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        return {"value": Field(column, self.type, role, "float32", (10,))}

    def invalid(self, values: pl.Series) -> pl.Series:
        return as_times(values, self.formats).is_null() & values.is_not_null()

    def encode(self, values: pl.Series) -> Encoded:
        times = as_times(values, self.formats)
        gaps = times.is_null().to_numpy()
        when = times.dt.timestamp("ms").fill_null(0).to_numpy().astype(np.float64)

        def share(part: pl.Series, period: float) -> Any:
            return part.fill_null(0).to_numpy().astype(np.float64) * (2 * np.pi / period)

        seconds = (
            times.dt.hour().cast(pl.Int32) * 3600
            + times.dt.minute().cast(pl.Int32) * 60
            + times.dt.second().cast(pl.Int32)
        )
        angles = [
            share(times.dt.ordinal_day(), 365.25),
            share(times.dt.day(), 31),
            share(times.dt.weekday(), 7),
            share(seconds, 86400),
        ]
        columns = [(when - self._center) / self._scale, *(f(a) for a in angles for f in (np.sin, np.cos))]
        value = np.where(gaps[:, None], 0.0, np.stack(columns, axis=1))
        return {"value": np.concatenate([value, gaps[:, None]], axis=1).astype(np.float32)}

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        moments = generator.normal(self._center, self._scale, size=n).astype(np.int64)
        return [str(np.datetime64(int(moment), "ms")) for moment in moments]

    def state(self) -> dict[str, Any]:
        return {"center": self._center, "scale": self._scale}

    def restore(self, state: dict[str, Any]) -> None:
        self._center, self._scale = float(state["center"]), float(state["scale"])
