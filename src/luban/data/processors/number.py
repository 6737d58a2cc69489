"""Numbers: amounts, counts, measurements."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import PrivateAttr

from luban.data.contracts import Array, Encoded, Field, Flat, Processor, Role
from luban.data.processors._base import LARGEST, as_numbers
from luban.data.quantiles import Quantiles
from luban.data.statistics import Moments
from luban.errors import DataError
from luban.registry import register

__all__ = ["Number"]


@register("processors")
class Number(Processor):
    """A real number, brought to a common scale.

    As an input it makes the field ``value`` (float32) and, where the training rows have gaps, ``missing`` (1 where there was
    no number). As a target it is regressed in normalised units and decoded into the user's.

    Example:
        >>> p = Number(); p.update(pl.Series([1.0, 3.0])); p.finish()
        >>> p.encode(pl.Series(["1", None]))["value"].tolist()
        [-1.0, 0.0]
    """

    output: ClassVar[str | None] = "value"
    objective: ClassVar[str | None] = "mean_squared"
    task: ClassVar[str | None] = "regression"

    normalize: Literal["zscore", "minmax", "robust", "log", "none"] = "zscore"
    """zscore: mean 0, deviation 1; minmax: 0 to 1; robust: median 0, interquartile range 1; log: log(1 + |x|) with its sign, then zscore."""
    missing: Literal["mean", "median", "zero"] = "mean"
    """What stands in for a missing number."""
    indicator: bool | None = None
    """Whether a second field says where the number was missing; by default if the training rows miss any."""

    _moments: Moments = PrivateAttr(default_factory=Moments)
    _quantiles: Quantiles = PrivateAttr(default_factory=Quantiles)
    _missing: int = PrivateAttr(default=0)
    _center: float = PrivateAttr(default=0.0)
    _scale: float = PrivateAttr(default=1.0)
    _fill: float = PrivateAttr(default=0.0)
    _indicator: bool = PrivateAttr(default=False)

    @property
    def _needs_quantiles(self) -> bool:
        return self.normalize == "robust" or self.missing == "median"

    def _bend(self, numbers: Array) -> Array:
        return np.sign(numbers) * np.log1p(np.abs(numbers)) if self.normalize == "log" else numbers

    def update(self, values: pl.Series) -> None:
        numbers = as_numbers(values)
        self._missing += numbers.null_count()
        present = self._bend(numbers.drop_nulls().to_numpy())
        self._moments.update(present)
        if self._needs_quantiles:
            self._quantiles.add(present)

    def finish(self) -> None:
        seen = self._moments
        if not seen.count:
            raise DataError(
                "no training row holds a number here; read the column as text or category, or remove it"
            )
        center, scale = {
            "zscore": (seen.mean, seen.std),
            "log": (seen.mean, seen.std),
            "minmax": (seen.low, seen.high - seen.low),
            "none": (0.0, 1.0),
        }.get(self.normalize, (0.0, 0.0))
        if self._needs_quantiles:
            low, median, high = (self._quantiles.at(q) for q in (0.25, 0.5, 0.75))
            if self.normalize == "robust":
                center, scale = median, high - low
        # A constant column, or one whose middle half is constant, has no scale of its own.
        self._center, self._scale = center, scale if scale > 1e-12 * max(1.0, abs(center)) else 1.0
        stand_in = {"mean": seen.mean, "median": median if self._needs_quantiles else 0.0, "zero": 0.0}[
            self.missing
        ]
        self._fill = (stand_in - self._center) / self._scale
        self._indicator = self._missing > 0 if self.indicator is None else self.indicator
        self._quantiles = Quantiles()

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        if role == "target":
            return {"value": Field(column, self.type, role, "float32", output=self.output, width=1)}
        fields = {"value": Field(column, self.type, role, "float32")}
        if self._indicator:
            fields["missing"] = Field(column, self.type, role, "float32")
        return fields

    def invalid(self, values: pl.Series) -> pl.Series:
        present = (
            values.fill_nan(None) if values.dtype.is_float() else values
        )  # NaN is how others say missing
        return as_numbers(values).is_null() & present.is_not_null()

    def encode(self, values: pl.Series) -> Encoded:
        numbers = as_numbers(values)
        scaled = (self._bend(numbers.to_numpy()) - self._center) / self._scale  # null is NaN here
        gaps = np.isnan(scaled)
        scaled = np.where(gaps, self._fill, scaled).clip(-LARGEST, LARGEST)
        encoded: Encoded = {"value": scaled.astype(np.float32)}
        if self._indicator:
            encoded["missing"] = gaps.astype(np.float32)
        return encoded

    def encode_target(self, values: pl.Series) -> Encoded:
        return {"value": self.encode(values)["value"]}

    @property
    def head_width(self) -> int:
        return 1

    def truth(self, encoded: Array | Flat) -> Array:
        assert not isinstance(encoded, Flat)
        return self.scores(encoded)

    def scores(self, output: Array) -> Array:
        numbers: Array = output.reshape(-1).astype(np.float64) * self._scale + self._center
        if self.normalize == "log":
            numbers = np.sign(numbers) * np.expm1(np.minimum(np.abs(numbers), 700.0))
        return numbers

    def unit(self, value: float) -> float:
        return self._scale * (1 + abs(value)) if self.normalize == "log" else self._scale

    def decode(self, output: Array) -> list[dict[str, Any]]:
        return [{"value": value} for value in self.scores(output).tolist()]

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        return [float(value) for value in self.scores(generator.normal(size=n))]

    def state(self) -> dict[str, Any]:
        return {
            "center": self._center,
            "scale": self._scale,
            "fill": self._fill,
            "indicator": self._indicator,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._center, self._scale = float(state["center"]), float(state["scale"])
        self._fill, self._indicator = float(state["fill"]), bool(state["indicator"])
