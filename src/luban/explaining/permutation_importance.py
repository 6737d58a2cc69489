"""Permutation importance: how much worse the model becomes when a column is shuffled."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field as Option

from luban.data.contracts import Array
from luban.data.processors._deciding import threshold_of
from luban.errors import DataError, InputError, did_you_mean
from luban.evaluation.intervals import interval, resamples
from luban.evaluation.metrics import Task, measure, names
from luban.explaining._base import Explainer, Survey
from luban.explaining._case import Case
from luban.explaining._rows import outputs_of, sample, with_truth
from luban.registry import register
from luban.sentences import say
from luban.training.engine import is_loss

__all__ = ["PermutationImportance"]

_HEADLINE = {"binary": "roc_auc", "multiclass": "accuracy", "multilabel": "f1_micro", "regression": "mae"}


@register("explainers")
class PermutationImportance(Explainer):
    """The drop of a metric when a column's values change places among the rows, which breaks what ties them to the truth.

    Columns of any kind can be shuffled, texts and pictures too. The interval says how far the drop may be off because the
    rows are a sample and the shuffles were drawn: rows are drawn with replacement, and each time another shuffle is taken.

    Example:
        >>> PermutationImportance(repeats=10).rows
        2000
    """

    paper: ClassVar = say("Breiman, 2001; Fisher, Rudin and Dominici, 2019 (model reliance)")
    limits: ClassVar = say(
        "of columns that say the same each may seem to matter little, since the other one stands in for it; "
        "it tells what this model uses, not what the truth depends on"
    )
    scope: ClassVar[Literal["row", "set"]] = "set"

    metric: str | None = None
    """What drops; by default roc_auc (yes or no), accuracy (classes), f1_micro (sets) or mae (numbers)."""
    repeats: Annotated[int, Option(ge=1)] = 5
    """Shuffles of each column."""
    rows: Annotated[int, Option(ge=2)] = 2000
    """Rows that are looked at, at most."""
    resamples: Annotated[int, Option(ge=0)] = 100
    """Bootstrap resamples behind each interval; 0 leaves the intervals out."""

    def refusal(self, case: Case) -> str | None:
        """It needs a target."""
        return None if case.target else say("it needs a target that is a column")

    def survey(self, case: Case) -> Survey:
        """Measure the rows, whose truth must be known, with each column shuffled in turn.

        Raises:
            DataError: if the rows do not hold the target, or the metric is not defined on them.
            InputError: if there is no such metric.
        """
        score = _Score(case, self.metric)
        generator = np.random.default_rng(case.seed)
        case, truth, notes = with_truth(case)
        case, drawn = sample(case, self.rows, generator)
        if drawn:
            case, truth, _ = with_truth(case)
        if len(case) < 2:
            raise DataError(say("a column of 1 row cannot be shuffled; hand over more rows"))
        whole = self._outputs(case, None, generator)
        value = score(truth, whole)
        if math.isnan(value):
            raise DataError(
                say(
                    "{metric} is not defined on these rows, perhaps because they are all of one class; hand over others, or name another metric",
                    metric=score.metric,
                )
            )
        weights = [row for some in resamples(len(case), self.resamples, case.seed) for row in some]
        values = [score(truth, whole, weight) for weight in weights]
        table = []
        for column in case.inputs:
            shuffled = [self._outputs(case, column, generator) for _ in range(self.repeats)]
            drops = [score.sign * (value - score(truth, one)) for one in shuffled]
            draws = [
                score.sign * (own - score(truth, shuffled[i % self.repeats], weight))
                for i, (own, weight) in enumerate(zip(values, weights, strict=True))
            ]
            spread = interval(float(np.mean(drops)), np.asarray(draws))
            table.append(
                {
                    "column": column,
                    "importance": float(np.mean(drops)),
                    "low": spread.low,
                    "high": spread.high,
                    "deviation": float(np.std(drops)),
                    "drops": drops,
                }
            )
        table.sort(key=lambda line: -cast(float, line["importance"]))
        notes.append(
            say(
                "by how much {metric} rises, over {n} shuffles of a column",
                metric=score.metric,
                n=self.repeats,
            )
            if score.sign < 0
            else say(
                "by how much {metric} drops, over {n} shuffles of a column",
                metric=score.metric,
                n=self.repeats,
            )
        )
        return Survey(
            self.type, case.target, len(case), {"importance": table}, {score.metric: value}, notes + drawn
        )

    def _outputs(self, case: Case, column: str | None, generator: np.random.Generator) -> Array:
        """Return what metrics compare, of the rows with a column shuffled: what would be predicted of them."""
        rows = np.arange(len(case))
        choice = {c: generator.permutation(rows) if c == column else rows for c in case.inputs}
        outputs = outputs_of(case, case.encoded, choice)
        cells = {c: case.frame[c][choice.get(c, rows)] for c in case.needs}
        return case.processor.scores(case.decided(outputs, pl.DataFrame(cells)))


class _Score:
    """One metric of a target.

    Attributes:
        metric: its name.
        sign: 1 where more is better, else -1.
    """

    def __init__(self, case: Case, metric: str | None) -> None:
        processor = case.processor
        self.task = cast(Task, processor.task)
        self.classes, self.threshold = processor.classes() or None, threshold_of(processor)
        known = names(self.task, len(self.classes or []))
        if metric is not None and metric not in known:
            raise InputError(
                say(
                    "received metric '{metric}', but metrics of '{target}' are {known}{hint}",
                    metric=metric,
                    target=case.target,
                    known=[*known],
                    hint=did_you_mean(metric, known),
                )
            )
        self.metric = metric or _HEADLINE[self.task]
        self.sign = -1.0 if is_loss(self.metric) else 1.0

    def __call__(self, truth: Array, scores: Array, weights: npt.NDArray[np.float64] | None = None) -> float:
        """Return its value; NaN where it is not defined."""
        options: dict[str, Any] = {"classes": self.classes, "threshold": self.threshold}
        measured = measure(self.task, truth, scores, weights, resamples=0, details=False, **options)
        value = measured.metrics[self.metric].value
        return float("nan") if value is None else value
