"""Numbers far from the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, PrivateAttr

from luban.data.cleaning._base import Look, Step, chosen, has_numbers, numbers, plain
from luban.data.quantiles import Quantiles
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

__all__ = ["Outliers"]


@register("cleaning")
class Outliers(Step):
    """Clip numbers that lie far from the others to the bound they cross, or drop their rows.

    The bounds are learnt from training rows: mean ± threshold · standard deviation (zscore), or quartiles ±
    threshold · their distance (iqr; Tukey 1977). Clipping acts on rows to predict too, dropping never does.
    Without `columns`, those (a target among them) that hold more than 20 different numbers are meant; codes
    and labels have no outliers. A column whose values hardly differ (a distance of zero) has no bounds and is
    counted instead of clipped to a constant.

    Example:
        ``clean: [{type: outliers, method: iqr, threshold: 3, action: clip, columns: [income]}]``
    """

    method: Literal["zscore", "iqr"] = "iqr"
    """How far is measured in standard deviations, or in distances between the quartiles."""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """How far is too far; 3 for zscore and 1.5 for iqr if left out."""
    action: Literal["clip", "drop"] = "clip"
    """What becomes of it."""
    columns: list[str] | None = None
    """Which columns; by default all of measurements."""

    _looks: dict[str, Look] = PrivateAttr(default_factory=dict)
    _moments: dict[str, tuple[int, float, float]] = PrivateAttr(default_factory=dict)
    _quantiles: dict[str, Quantiles] = PrivateAttr(default_factory=dict)
    _bounds: dict[str, tuple[float, float]] = PrivateAttr(default_factory=dict)

    def update(self, rows: pl.DataFrame) -> None:
        """Learn from one more chunk of training rows."""
        for name in chosen(self.columns, rows):
            self._looks.setdefault(name, Look()).add(rows[name])
            values = numbers(rows[name]).drop_nulls().to_numpy()
            if self.method == "iqr":
                self._quantiles.setdefault(name, Quantiles()).add(values)
            elif len(values):
                # Means and sums of squares of two parts join without loss of digits (Chan et al. 1979).
                n, mean, squares = self._moments.get(name, (0, 0.0, 0.0))
                m, other = len(values), float(values.mean())
                squares += float(((values - other) ** 2).sum()) + (other - mean) ** 2 * n * m / (n + m)
                self._moments[name] = n + m, mean + (other - mean) * m / (n + m), squares

    def finish(self) -> None:
        """Set the bounds.

        Raises:
            DataError: if a column that the recipe names does not hold numbers.
        """
        for name, look in self._looks.items():
            if self.columns is not None and not look.numeric:
                raise DataError(f"column '{name}' does not hold numbers, so it has no outliers; leave it out")
            if not (look.measured or (self.columns is not None and look.numeric)):
                continue
            if self.method == "iqr":
                low, high = (self._quantiles[name].at(share) for share in (0.25, 0.75))
                reach = (1.5 if self.threshold is None else self.threshold) * (high - low)
            else:
                n, low, squares = self._moments[name]
                high = low
                reach = (3 if self.threshold is None else self.threshold) * float(np.sqrt(squares / n))
            if reach > 0:
                self._bounds[name] = low - reach, high + reach
            else:
                self._count(say("columns without spread"), 1)
        self._looks, self._moments, self._quantiles = {}, {}, {}

    def apply(self, rows: pl.DataFrame, *, predicting: bool) -> pl.DataFrame:
        """Return the chunk with numbers clipped, or rows dropped."""
        outside: list[pl.Series] = []
        changed: list[pl.Series] = []
        for name, (low, high) in self._bounds.items():
            if name not in rows.columns or not has_numbers(rows.schema[name]):
                continue  # of another type than in training: whoever reads the column says so
            values, cells = numbers(rows[name]), plain(rows[name])
            far = ((values < low) | (values > high)).fill_null(False)
            outside.append(far)
            # Text stays text, so that an unreadable cell stays what it is.
            kind = pl.String if cells.dtype == pl.String else pl.Float64
            changed.append(values.clip(low, high).cast(kind).zip_with(far, cells.cast(kind)))
        if self.action == "clip":
            self._count(say("clipped"), sum(int(far.sum()) for far in outside))
            return rows.with_columns(changed)
        if predicting or not outside:
            return rows
        kept = rows.filter(~pl.any_horizontal(*outside))
        self._count(say("dropped"), len(rows) - len(kept))
        return kept

    def state(self) -> dict[str, Any]:
        """Return the bounds of each column."""
        return {"bounds": {name: list(bounds) for name, bounds in self._bounds.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._bounds = {name: (low, high) for name, (low, high) in state["bounds"].items()}
