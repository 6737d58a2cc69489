"""Vectors: a fixed number of numbers a row (embeddings, spectra, sensor readings)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import PrivateAttr

from luban.data.contracts import Array, Encoded, Field, Processor, Role
from luban.data.processors._base import LARGEST
from luban.data.statistics import Moments
from luban.errors import DataError
from luban.registry import register

__all__ = ["Vector"]


@register("processors")
class Vector(Processor):
    """A list of numbers, as long in every row; nested lists are flattened.

    Field ``value`` is float32 (d,).

    Example:
        >>> p = Vector(normalize="none"); p.update(pl.Series([[1.0, 2.0]])); p.finish()
        >>> p.encode(pl.Series([[3.0, 4.0]]))["value"].tolist()
        [[3.0, 4.0]]
    """

    normalize: Literal["zscore", "minmax", "none"] = "zscore"
    """With the mean and deviation, or the range, of all numbers of the training rows together; none leaves them."""

    _moments: Moments = PrivateAttr(default_factory=Moments)
    _size: int = PrivateAttr(default=0)
    _center: float = PrivateAttr(default=0.0)
    _scale: float = PrivateAttr(default=1.0)

    def _rows(self, values: pl.Series) -> list[Array | None]:
        cells: Iterable[Any] = values.to_list()
        if isinstance(values.dtype, pl.Array) and not values.null_count():
            cells = values.to_numpy()
        rows: list[Array | None] = []
        for row in cells:
            try:
                numbers = None if row is None else np.asarray(row, dtype=np.float64).reshape(-1)
            except (TypeError, ValueError):
                numbers = None
            rows.append(numbers if numbers is not None and (np.abs(numbers) <= LARGEST).all() else None)
        return rows

    def update(self, values: pl.Series) -> None:
        for row in self._rows(values):
            if row is not None:
                self._size = self._size or len(row)
                if len(row) == self._size:
                    self._moments.update(row)

    def finish(self) -> None:
        if not self._size:
            raise DataError("no training row holds a list of numbers here")
        low, high = self._moments.low, self._moments.high
        if self.normalize == "zscore":
            self._center, self._scale = self._moments.mean, self._moments.std or 1.0
        elif self.normalize == "minmax":
            self._center, self._scale = low, (high - low) or 1.0

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        return {"value": Field(column, self.type, role, "float32", (self._size,))}

    def invalid(self, values: pl.Series) -> pl.Series:
        return pl.Series(
            [row is None or len(row) != self._size for row in self._rows(values)], dtype=pl.Boolean
        )

    def encode(self, values: pl.Series) -> Encoded:
        rows = self._rows(values)
        numbers = (
            np.stack([np.zeros(self._size) if row is None else row for row in rows])
            if rows
            else np.empty((0, self._size))
        )
        return {"value": ((numbers - self._center) / self._scale).clip(-LARGEST, LARGEST).astype(np.float32)}

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        rows = generator.normal(size=(n, self._size)) * self._scale + self._center
        return list(rows.tolist())

    def state(self) -> dict[str, Any]:
        return {"size": self._size, "center": self._center, "scale": self._scale}

    def restore(self, state: dict[str, Any]) -> None:
        self._size, self._center, self._scale = (
            int(state["size"]),
            float(state["center"]),
            float(state["scale"]),
        )
