"""Partial dependence: how the prediction moves when one column does, on average and row by row."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field as Option

from luban.data.contracts import Array, Encoded
from luban.data.processors._base import as_numbers, as_words
from luban.data.processors.date import as_times
from luban.errors import DataError, InputError, did_you_mean
from luban.explaining._base import Explainer, Survey
from luban.explaining._case import Case
from luban.explaining._rows import Index, column_of, outputs_of, sample
from luban.registry import register
from luban.sentences import say

__all__ = ["PartialDependence"]

_MOVED = ("number", "category", "binary", "date")  # kinds of columns that have a grid of values
_TIED = 0.7  # correlation from which two columns are said to go together
_CLASSES = 10  # followed unless others are asked for


@register("explainers")
class PartialDependence(Explainer):
    """The mean prediction if every row had the same value of a column (PDP), each row's own curve (ICE), and what changes
    locally, among the rows that are near a value (ALE), which holds where columns go together.

    Numbers move over quantiles of the rows' values, categories over their most frequent words. What is followed is the
    probability of each class as predictions have it (after a temperature or thresholds), or the number in the user's unit.

    Example:
        >>> PartialDependence(columns=["age"], grid=10).curves
        20
    """

    paper: ClassVar = say(
        "Friedman, 2001 (PDP); Goldstein et al., 2015 (ICE); Apley and Zhu, 2020 (ALE); Greenwell, Boehmke and McCarthy, 2018 (strength)"
    )
    limits: ClassVar = say(
        "where columns go together, PDP and ICE ask the model about rows that do not exist (ALE does not), "
        "and a mean hides effects that are opposite in different rows"
    )
    scope: ClassVar[Literal["row", "set"]] = "set"

    columns: list[str] = []
    """Columns to move; by default all numbers, categories, flags and dates."""
    classes: list[str] = []
    """Classes whose probability is followed; by default the first ten, of a yes or no the positive one."""
    grid: Annotated[int, Option(ge=2)] = 20
    """Values of a number, at most."""
    levels: Annotated[int, Option(ge=2)] = 20
    """Words of a category, at most; the most frequent ones."""
    rows: Annotated[int, Option(ge=1)] = 500
    """Rows that are looked at, at most."""
    curves: Annotated[int, Option(ge=0)] = 20
    """Rows whose own curve is kept."""

    def refusal(self, case: Case) -> str | None:
        """It needs a target and a column that can move."""
        if not case.target:
            return say("it needs a target that is a column")
        return (
            None
            if _movable(case)
            else say("it needs a number, a category, a flag or a date among the inputs")
        )

    def survey(self, case: Case) -> Survey:
        """Move each column over its values.

        Raises:
            InputError: if there is no such column or class.
            DataError: if no column has two values.
        """
        columns, wanted = self._columns(case), self._classes(case)
        case, notes = sample(case, self.rows, np.random.default_rng(case.seed))
        tables: dict[str, list[dict[str, Any]]] = {"strength": [], "partial_dependence": [], "ice": []}
        tables["ale"] = []
        for column in columns:
            values = _grid(case, column, self.grid, self.levels)
            if len(values) < 2:
                notes.append(
                    say("'{column}' has a single value in these rows, so it cannot move", column=column)
                )
                continue
            places = np.repeat(np.arange(len(values)), len(case))
            rows = np.tile(np.arange(len(case)), len(values))
            moved = _followed(case, column, values, rows, places, wanted)  # (G·n, K)
            curves = moved.reshape(len(values), len(case), -1)
            labels = _labels(values)
            for k, name in enumerate(wanted.values()):
                self._tell(tables, column, name, labels, curves[:, :, k], case.numbers)
            if case.predictor.pipeline.inputs[column].type == "number":
                tables["ale"] += _ale(case, column, self.grid, wanted)
        if not tables["strength"]:
            raise DataError(
                say("no column has two values in these rows, so nothing can move; hand over more rows")
            )
        tables["strength"].sort(key=lambda line: -line["deviation"])
        notes += _tied(case, columns)
        rest = [column for column in case.inputs if column not in _movable(case)]
        if rest and not self.columns:
            notes.append(
                say(
                    "texts, pictures, sets and vectors have no grid of values and stay as they are: {columns}",
                    columns=rest,
                )
            )
        return Survey(self.type, case.target, len(case), tables, {}, notes)

    def _tell(
        self,
        tables: dict[str, list[dict[str, Any]]],
        column: str,
        name: str | None,
        labels: list[Any],
        curves: Array,
        numbers: list[int],
    ) -> None:
        """Write down the curves of a column and a class, (G, n)."""
        means, low, high = curves.mean(1), *np.quantile(curves, [0.1, 0.9], axis=1)
        # Greenwell et al. measure a category by its range over four, which is a deviation for four words or so.
        spread = np.ptp(means) / 4 if isinstance(labels[0], str) else means.std(ddof=1)
        tables["strength"].append(
            {"column": column, "class": name, "deviation": float(spread), "range": float(np.ptp(means))}
        )
        for i, label in enumerate(labels):
            own = {"column": column, "class": name, "value": label}
            tables["partial_dependence"].append(own | {"mean": means[i], "low": low[i], "high": high[i]})
            tables["ice"] += [
                own | {"row": number, "score": curves[i, j]}
                for j, number in enumerate(numbers[: self.curves])
            ]

    def _columns(self, case: Case) -> list[str]:
        movable = _movable(case)
        for column in self.columns:
            if column not in movable:
                raise InputError(
                    say(
                        "received column '{column}', but columns that can move are {movable}{hint}",
                        column=column,
                        movable=[*movable],
                        hint=did_you_mean(column, movable),
                    )
                )
        return self.columns or movable

    def _classes(self, case: Case) -> dict[int, str | None]:
        """Return place among the scores → class; of a number, its only place."""
        names = case.classes
        for name in self.classes:
            if name not in names:
                raise InputError(
                    say(
                        "received class '{name}', but classes of '{target}' are {classes}{hint}",
                        name=name,
                        target=case.target,
                        classes=names[:20] or say("none"),
                        hint=did_you_mean(name, names),
                    )
                )
        if not names:
            return {0: None}
        default = names[1:] if case.processor.task == "binary" else names[:_CLASSES]
        return {names.index(name): name for name in self.classes or default}


def _movable(case: Case) -> list[str]:
    return [column for column, p in case.predictor.pipeline.inputs.items() if p.type in _MOVED]


def _grid(case: Case, column: str, grid: int, levels: int) -> pl.Series:
    """Return the values that a column takes, rising; those of a category by how frequent they are."""
    values = case.frame[column]
    kind = case.predictor.pipeline.inputs[column].type
    if kind in ("category", "binary"):
        counted = as_words(values).drop_nulls().alias("word").value_counts()
        return counted.sort(["count", "word"], descending=[True, False])["word"].head(levels)
    ordered = (as_numbers(values) if kind == "number" else as_times(values)).drop_nulls().unique().sort()
    if len(ordered) <= grid:
        return ordered
    if kind == "date":
        return ordered[np.linspace(0, len(ordered) - 1, grid).round().astype(np.int64)]
    return pl.Series(column, _edges(as_numbers(values).drop_nulls().to_numpy(), grid, 0.05))


def _edges(numbers: Array, count: int, tail: float) -> Array:
    """Return quantiles, distinct and rising."""
    edges: Array = np.unique(np.quantile(numbers, np.linspace(tail, 1 - tail, count)))
    return edges


def _labels(values: pl.Series) -> list[Any]:
    return [one.isoformat() if hasattr(one, "isoformat") else one for one in values.to_list()]


def _followed(
    case: Case, column: str, values: pl.Series, rows: Index, places: Index, wanted: dict[int, str | None]
) -> npt.NDArray[np.float64]:
    """Return the predictions of some rows, (n, K), each with the value at its place instead of the column's own."""
    own = case.predictor.pipeline.inputs[column].encode(values)
    pool: Encoded = {name: value for name, value in case.encoded.items() if column_of(name) != column}
    pool |= {f"{column}.{short}": value for short, value in own.items()}
    choice = {c: places if c == column else rows for c in case.inputs}
    cells = {c: values[places] if c == column else case.frame[c][rows] for c in case.needs}
    outputs = case.decided(outputs_of(case, pool, choice), pl.DataFrame(cells))
    if case.classes:
        return case.shares_of(outputs)[:, list(wanted)]
    numbers: npt.NDArray[np.float64] = np.asarray(case.processor.scores(outputs), np.float64)[:, None]
    return numbers


def _ale(case: Case, column: str, grid: int, wanted: dict[int, str | None]) -> list[dict[str, Any]]:
    """Return accumulated local effects: within each interval of the column, what moving from its lower to its upper end does
    to the rows that lie in it, added up, with mean zero over the rows."""
    numbers = as_numbers(case.frame[column]).to_numpy()
    there = np.flatnonzero(~np.isnan(numbers))
    if len(there) < 2:
        return []
    edges = _edges(numbers[there], grid + 1, 0.0)
    if len(edges) < 2:
        return []
    bins = np.clip(np.searchsorted(edges, numbers[there], side="left") - 1, 0, len(edges) - 2)
    values = pl.Series(column, edges)
    low, high = (_followed(case, column, values, there, bins + side, wanted) for side in (0, 1))
    counts = np.bincount(bins, minlength=len(edges) - 1)
    lines: list[dict[str, Any]] = []
    for k, name in enumerate(wanted.values()):
        steps = np.bincount(bins, (high - low)[:, k], len(edges) - 1) / np.maximum(counts, 1)
        effect = np.concatenate([[0.0], steps.cumsum()])
        effect -= counts @ ((effect[1:] + effect[:-1]) / 2) / len(there)
        near = np.concatenate([[0], counts])  # rows in the interval that ends here
        lines += [
            {"column": column, "class": name, "value": edge, "effect": one, "rows": int(n)}
            for edge, one, n in zip(edges.tolist(), effect.tolist(), near, strict=True)
        ]
    return lines


def _tied(case: Case, columns: list[str]) -> list[str]:
    """Return a sentence for each pair of numbers that go together."""
    kinds = case.predictor.pipeline.inputs
    numbers = {c: as_numbers(case.frame[c]).to_numpy() for c in case.inputs if kinds[c].type == "number"}
    said: list[str] = []
    names = list(numbers)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            both = ~np.isnan(numbers[a]) & ~np.isnan(numbers[b])
            x, y = numbers[a][both], numbers[b][both]
            if not {a, b} & {*columns} or len(x) < 3 or not np.ptp(x) or not np.ptp(y):
                continue
            r = float(np.corrcoef(x, y)[0, 1])
            if abs(r) >= _TIED:
                said.append(
                    say(
                        "'{a}' and '{b}' go together (correlation {r:.2f}), so moving one alone makes rows that are rare or impossible: prefer ALE",
                        a=a,
                        b=b,
                        r=r,
                    )
                )
    return said
