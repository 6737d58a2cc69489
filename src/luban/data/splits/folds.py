"""k-fold cross-validation."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from luban.data.contracts import TEST, TRAIN, VALIDATION, Split
from luban.data.splits._base import Hashes, Rings, Share, Tally, column, mix
from luban.errors import DataError
from luban.registry import register

__all__ = ["Folds"]


@register("splits")
class Folds(Split):
    """Each fold is the validation rows once, and trained on the other times; equal inputs share a fold.

    Without `fold`, training goes through all of them (`at` gives each) and reports mean and spread. Test
    rows, if any, are the same in each.

    Example:
        ``split: {type: folds, folds: 5, by: label, test: 0.1}``
    """

    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """How many."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Only this one, from 0."""
    test: Share = 0.0
    """Share of the rows to report on, in no fold."""
    by: str | None = None
    """A column of classes, to be spread evenly over the folds."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed, other folds."""

    _tally: Tally | None = None
    _rings: Rings | None = None

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} does not exist; {self.folds} folds count from 0 to {self.folds - 1}"
            )
        return self

    def at(self, fold: int) -> Self:
        """Return the same fitted split with `fold` as the validation rows."""
        assert 0 <= fold < self.folds
        return self.model_copy(update={"fold": fold})

    def _classes(self, rows: pl.DataFrame) -> pl.Series | None:
        return None if self.by is None else column(rows, self.by)

    def update(self, rows: pl.DataFrame, keys: Hashes) -> None:
        """Count one more chunk."""
        self._tally = self._tally or Tally()
        self._tally.add(mix(keys, self.seed), self._classes(rows))

    def finish(self) -> None:
        """Cut the ring.

        Raises:
            DataError: if there are fewer different rows than folds.
        """
        shares = [self.test, *[(1 - self.test) / self.folds] * self.folds]
        table = (self._tally or Tally()).table()
        self._rings = Rings.fit(table, shares, what="rows", last_keeps=False)
        self._tally = None

    def assign(self, rows: pl.DataFrame, keys: Hashes) -> npt.NDArray[np.uint8]:
        """Return 0 (the other folds), 1 (this fold) or 2 (test) for each row.

        Raises:
            DataError: if `fold` was left out: then `at` says which.
        """
        assert self._rings is not None, "finish() or restore() comes first"
        if self.fold is None:
            raise DataError(f"which of the {self.folds} folds is meant? give split.fold, from 0")
        parts = self._rings.parts(mix(keys, self.seed), self._classes(rows))  # 0: test, 1: fold 0, ...
        chosen = np.where(parts == self.fold + 1, VALIDATION, TRAIN)
        return np.where(parts == 0, TEST, chosen).astype(np.uint8)

    def state(self) -> dict[str, Any]:
        """Return the arcs."""
        return {} if self._rings is None else self._rings.to_json()

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._rings = Rings.from_json(state) if state else None
