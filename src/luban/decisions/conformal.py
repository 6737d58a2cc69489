"""Sets and intervals that hold the truth as often as was asked for: split conformal prediction.

Vovk et al., 2005; as told by Angelopoulos & Bates, 2021, 'A gentle introduction to conformal prediction'. Sets are those of LAC
(Sadinle et al., 2019) or APS (Romano et al., 2020), intervals those of the absolute residual.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.data.contracts import Array, Processor
from luban.data.processors._deciding import class_shares
from luban.decisions._base import Decision
from luban.errors import RecipeError
from luban.registry import register

__all__ = ["Conformal", "conformal_quantile"]


@register("decisions")
class Conformal(Decision):
    """A prediction gains ``label.set``, or for a number ``price.interval``, which holds the truth with probability `level`.

    The promise is about new rows drawn as the validation rows were, and about all of them together: a single class or group may
    fare worse. A set always holds the most probable class. Where the validation rows also chose the weights (`train.keep: best`),
    the promise is a little too good; the audit calibration says on other rows how it holds. It stands last among decisions.
    """

    kinds: ClassVar[tuple[str, ...]] = ("category", "binary", "number")
    untouched: ClassVar[bool] = True

    level: Annotated[float, Option(gt=0, lt=1)] = 0.9
    """Share of rows whose truth the set or interval is to hold."""
    method: Literal["lac", "aps"] = "lac"
    """How sets are made: lac gives the smallest on average; aps gives difficult rows larger ones. Nothing for a number."""

    _quantile: float = PrivateAttr(default=0.0)

    def fit(self, processor: Processor, output: Array, truth: Array, rows: pl.DataFrame) -> str:
        if processor.task == "regression":
            scores = np.abs(processor.scores(output) - truth)
        else:
            scores = self._strangeness(class_shares(processor.scores(output)))[np.arange(len(truth)), truth]
        self._quantile = conformal_quantile(scores, self.level)
        if not math.isfinite(self._quantile):
            least = math.ceil(self.level / (1 - self.level))
            raise RecipeError(
                f"decide conformal: a level of {self.level:g} needs {least:,} validation rows, and there are {len(scores):,}; lower the level or raise data.split.validation"
            )
        what = "half width of the interval" if processor.task == "regression" else "bound of the set"
        return f"conformal prediction of '{self.column}' at {self.level:.0%}: {what} {self._quantile:.4g}, by {len(scores):,} validation rows"

    def _strangeness(self, likely: Array) -> Array:
        """Return how strange each class would be, (n, classes)."""
        if self.method == "lac":
            return 1 - likely
        order = np.argsort(-likely, axis=1, kind="stable")
        summed = np.cumsum(np.take_along_axis(likely, order, 1), 1)
        result = np.empty_like(likely)
        np.put_along_axis(result, order, summed, 1)
        return result

    def sets(self, processor: Processor, output: Array) -> Array:
        """Return which classes the set of each row holds, boolean, (n, classes)."""
        likely = class_shares(processor.scores(output))
        inside: Array = self._strangeness(likely) <= self._quantile
        inside[np.arange(len(likely)), likely.argmax(1)] = True
        return inside

    def intervals(self, processor: Processor, output: Array) -> Array:
        """Return the interval of each row, in the target's units, (n, 2)."""
        values = processor.scores(output)
        return np.stack([values - self._quantile, values + self._quantile], 1)

    def covers(self, processor: Processor, output: Array, truth: Array) -> Array:
        """Return of which rows the set or interval holds the truth, boolean, (n,)."""
        if processor.task == "regression":
            low, high = self.intervals(processor, output).T
            return np.asarray((low <= truth) & (truth <= high))
        held: Array = self.sets(processor, output)[np.arange(len(truth)), truth]
        return held

    def extend(self, processor: Processor, output: Array) -> list[dict[str, Any]]:
        if processor.task == "regression":
            return [{"interval": one} for one in self.intervals(processor, output).tolist()]
        names, order = (
            processor.classes(),
            np.argsort(-class_shares(processor.scores(output)), axis=1, kind="stable"),
        )
        inside = self.sets(processor, output)
        return [
            {"set": [names[i] for i in likeliest if mine[i]]}
            for likeliest, mine in zip(order, inside, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "quantile": self._quantile}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._quantile = float(state["quantile"])


def conformal_quantile(scores: Array, level: float) -> float:
    """Return the score that a new row stays within with probability `level`; infinite where there are too few rows.

    Example:
        >>> conformal_quantile(np.arange(1, 20) / 20, 0.9)
        0.9
    """
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf
