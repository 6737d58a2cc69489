"""Probes: what a linear model can read off each layer."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field as Option

from luban.data.contracts import Array
from luban.data.processors._base import as_numbers, as_words
from luban.errors import DataError, did_you_mean
from luban.evaluation.metrics import measure
from luban.explaining._base import Explainer, Survey
from luban.explaining._case import Case
from luban.explaining._layers import states_of
from luban.explaining._rows import sample, some_rows
from luban.models._network import Network
from luban.registry import register
from luban.sentences import say

__all__ = ["Probe"]

_FEWEST = 20  # rows
_FEW = 20  # distinct numbers up to which a column is read as classes
_CLASSES = 50


@register("explainers")
class Probe(Explainer):
    """How well the target, or any other column, can be read off each layer by a linear model, on rows that it has not seen.

    Where the figure rises, the network has made the answer plainer; a column that the model was never asked for (a group,
    say) and that can be read off its layers is known to it all the same. Vectors of tokens, and of the places of a map, are
    pooled; columns of a layer are brought to one scale.

    Example:
        >>> Probe(column="sex").pool
        'mean'
    """

    paper: ClassVar = say("Alain and Bengio, 2016; Hewitt and Liang, 2019 (what a probe does not show)")
    limits: ClassVar = say(
        "that something can be read off a layer does not mean that the model uses it; "
        "and wide layers are easier to read than narrow ones"
    )
    scope: ClassVar[Literal["row", "set"]] = "set"

    column: str | None = None
    """What is to be read: any column of the rows; the target by default."""
    pool: Literal["mean", "max"] = "mean"
    """How vectors of tokens and of places become one a row."""
    strength: Annotated[float, Option(gt=0)] = 1.0
    """How strongly weights are drawn to zero."""
    rows: Annotated[int, Option(ge=20)] = 2000
    """Rows that are looked at, at most."""
    held_out: Annotated[float, Option(gt=0, lt=1)] = 0.3
    """Share of the rows that are measured on, and not fitted to."""

    def refusal(self, case: Case) -> str | None:
        """It needs layers that it can watch."""
        if not isinstance(case.predictor.model, Network):
            return say("it watches the layers of Luban's own networks, and this model is another")
        if not case.target and self.column is None:
            return say("it needs a target, or option column")
        return None

    def survey(self, case: Case) -> Survey:
        """Fit a probe to each layer and measure it.

        Raises:
            DataError: if the column is missing, or holds nothing that can be read off.
        """
        generator = np.random.default_rng(case.seed)
        column = self.column or case.target
        if column not in case.frame.columns:
            raise DataError(
                say(
                    "there is no column '{column}' in the rows, which is to be read off the layers; columns are {columns}{hint}",
                    column=column,
                    columns=[*case.frame.columns],
                    hint=did_you_mean(column, case.frame.columns),
                )
            )
        case = some_rows(case, np.flatnonzero(case.frame[column].is_not_null().to_numpy()))
        case, notes = sample(case, self.rows, generator)
        truth, classes = _truth(case.frame[column], column, number=_is_number(case, column))
        if len(case) < _FEWEST:
            raise DataError(
                say(
                    "a probe is fitted to {least} rows at least, and there are {n}; hand over more",
                    least=_FEWEST,
                    n=len(case),
                )
            )
        order = generator.permutation(len(case))
        held = order[: max(2, round(self.held_out * len(case)))]
        rest = order[len(held) :]
        if classes and len(np.unique(truth[rest])) < 2:
            raise DataError(
                say(
                    "nearly all rows have the same '{column}', so there is nothing to tell apart",
                    column=column,
                )
            )
        lines = []
        for name, states in states_of(case, self.pool).items():
            line = {"layer": name, "width": states.shape[1]}
            lines.append(line | self._read(states, truth, rest, held, classes))
        quality = {"rows_fitted": float(len(rest)), "rows_held_out": float(len(held))}
        if classes:
            quality["most_frequent_class"] = float(np.bincount(truth[held]).max() / len(held))
        notes.append(
            say("accuracy with which '{column}' is read off each layer, on rows held out", column=column)
            if classes
            else say("R² with which '{column}' is read off each layer, on rows held out", column=column)
        )
        return Survey(self.type, column, len(case), {"layers": lines}, quality, notes)

    def _read(
        self,
        states: npt.NDArray[np.float32],
        truth: Array,
        rest: npt.NDArray[np.int64],
        held: npt.NDArray[np.int64],
        classes: list[str],
    ) -> dict[str, Any]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        last = (
            LogisticRegression(C=1 / self.strength, max_iter=500) if classes else Ridge(alpha=self.strength)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that is nearly there tells the same
            model = make_pipeline(StandardScaler(), last).fit(states[rest].astype(np.float64), truth[rest])
        guess = model.predict(states[held].astype(np.float64))
        if classes:
            hot = np.zeros((len(held), len(classes)))
            hot[np.arange(len(held)), guess] = 1.0
            metric = measure("multiclass", truth[held], hot, classes=classes).metrics["accuracy"]
            return {"accuracy": metric.value, "low": metric.low, "high": metric.high}
        metric = measure("regression", truth[held], guess).metrics["r2"]
        return {"r2": metric.value, "low": metric.low, "high": metric.high}


def _is_number(case: Case, column: str) -> bool | None:
    """Whether a column that the model knows is a number; None of any other."""
    pipeline = case.predictor.pipeline
    processor = pipeline.targets.get(column) or pipeline.inputs.get(column)
    return None if processor is None else processor.type == "number"


def _truth(values: pl.Series, column: str, *, number: bool | None) -> tuple[Array, list[str]]:
    """Return what is to be read, (n,): numbers, or class numbers with the names of the classes."""
    numbers = as_numbers(values)
    if number is None:
        number = not numbers.null_count() and numbers.n_unique() > _FEW
    if number:
        filled = numbers.fill_null(numbers.mean())
        if filled.null_count() or filled.n_unique() < 2:
            raise DataError(
                say(
                    "'{column}' holds fewer than two different numbers, so there is nothing to read off",
                    column=column,
                )
            )
        return filled.to_numpy(), []
    words = as_words(values).fill_null("")
    names, places = np.unique(np.asarray(words.to_list(), dtype=object).astype(str), return_inverse=True)
    if not 2 <= len(names) <= _CLASSES:
        raise DataError(
            say(
                "a probe tells 2 to {most} different words of '{column}' apart, and there are {n:,}; name another column, or hand over other rows",
                most=_CLASSES,
                column=column,
                n=len(names),
            )
        )
    return places.astype(np.int64), names.tolist()
