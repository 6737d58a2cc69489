"""Metrics of predictions against the truth, with intervals, from a stream of batches.

::

    batches ──update──▶ Collector (one short record a row) ──compute──▶ Measured: metrics, intervals, details

Records are kept in memory up to a limit and on disk beyond (`luban.evaluation.records`), and read in windows, so that
memory does not grow with the rows. It is bounded by that limit (64 MB for all targets and slices together), the sums
of `UNITS` groups of rows (128 MB), their scores (0.5 MB a class, up to `MANY`) and a sort of `ranking.ROOM` rows (60 MB).

The values are scikit-learn's (`luban.evaluation.library`). For the resamples behind an interval each metric is
also a function of weighted sums over the rows, or of rows in order of their score; that function agrees with
the library to 1e-6, and the tests hold it to that. What scikit-learn warns about has the value None here and
the reason beside it.

==========  =============================================================================================
task        metrics
==========  =============================================================================================
binary      accuracy; precision, recall, f1 of the positive class, and ``_macro``, ``_micro``,
            ``_weighted``; mcc; log_loss; brier; ece; roc_auc; pr_auc (average precision)
multiclass  accuracy; top_5_accuracy beyond 5 classes; precision, recall, f1 averaged as above; mcc;
            log_loss; brier; ece; roc_auc and pr_auc (macro, each class against the rest). Beyond `MANY`
            classes only accuracy, top_5_accuracy, log_loss, brier and ece
multilabel  subset_accuracy; hamming; precision, recall, f1 averaged as above; log_loss (mean over
            labels); roc_auc and pr_auc (macro; not beyond `MANY` labels)
regression  mae; rmse; r2; pearson; median_ae
==========  =============================================================================================

Macro averages are over the classes that occur among the rows (in truth or prediction; for roc_auc and pr_auc,
in the truth), so that a class which the rows lack neither helps nor harms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from luban.errors import DivergenceError
from luban.evaluation import library
from luban.evaluation.intervals import Floats, Metric, deal, interval, mcnemar, resamples, units_of
from luban.evaluation.ranking import Run, falling, reached
from luban.evaluation.records import Pool, Table
from luban.sentences import say

__all__ = [
    "BINS",
    "MANY",
    "Collector",
    "Comparison",
    "Measured",
    "Task",
    "compare_paired",
    "grouped",
    "measure",
    "names",
]

Array: TypeAlias = npt.NDArray[Any]
Sums: TypeAlias = dict[str, Floats]
"""Name → weighted sums, (units, width) or (resamples, width)."""
Values: TypeAlias = dict[str, Floats]
"""Name of a metric → its values, (resamples,); NaN where it is not defined."""
Task = Literal["binary", "multiclass", "multilabel", "regression"]

BINS = 15
"""Bins of confidence, of equal width, as in Guo et al. 2017."""
MANY = 200
"""Beyond this many classes a row's scores are not kept, but what most metrics need of them."""

_POINTS = 200  # of a ROC or PR curve
_CURVES = 20  # classes at most that get curves
_VISITS = 20_000_000  # rows visited for the intervals of metrics that need an order; about a second
_FEWEST = 50  # resamples of these, however many the rows and classes
_SMALLEST = float(
    np.finfo(np.float32).eps
)  # probabilities are clipped here before the logarithm, as scikit-learn does

_WHY = {
    "precision": say("no row is predicted positive"),
    "recall": say("no row is positive"),
    "f1": say("no row is positive or predicted positive"),
    "mcc": say("needs two classes among the rows and two among the predictions"),
    "roc_auc": say("needs rows of a class and rows of another"),
    "pr_auc": say("no row is positive"),
    "r2": say("needs two rows whose truth differs"),
    "pearson": say("needs two rows whose truth differs and whose predictions differ"),
}
_BOUNDS = {
    "mcc": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "r2": (-np.inf, 1.0),
    "brier": (0.0, 2.0),
} | dict.fromkeys(("log_loss", "mae", "rmse", "median_ae"), (0.0, np.inf))  # all else lies between 0 and 1
_NO_ROWS = say("no rows, or none with a weight above zero")


def names(task: Task, classes: int) -> list[str]:
    """Return the metrics of a task with so many classes or labels, in the order of this file's table.

    Example:
        >>> names("multiclass", 1000)
        ['accuracy', 'top_5_accuracy', 'log_loss', 'brier', 'ece']
    """
    nothing = {name: np.zeros((1, width)) for name, width in _widths(task, classes).items()}
    return [*_values(task, classes, nothing), *_names_of_order(task, classes)]


def _names_of_order(task: Task, classes: int) -> list[str]:
    return ["median_ae"] if task == "regression" else ["roc_auc", "pr_auc"] if classes <= MANY else []


@dataclass(frozen=True)
class Measured:
    """What was measured on some rows.

    Attributes:
        metrics: name → number with interval, in the order of this file's table.
        details: plain data: `per_class`, `confusion` (truth by prediction), `reliability` (bins of
            confidence), `curves` (ROC and precision-recall by class, 200 points at most, up to 20 classes);
            for regression `errors` (quantiles of prediction minus truth).
        rows: how many rows.
    """

    metrics: dict[str, Metric]
    details: dict[str, Any] = field(default_factory=dict)
    rows: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


# --- collecting ---


class Collector:
    """Gathers truth and scores batch by batch, as one short record a row, on disk where memory would not do.

    Args:
        task: the family of metrics.
        classes: names of the classes (binary: negative, positive) or labels, in the order of the scores;
            numbers by default.
        threshold: probability from which a binary row or a label is predicted positive.
        pool: where records are kept; collectors of one evaluation share it, and with it its limit. One of its own by default.

    Example:
        >>> collector = Collector("binary", ["bad", "good"])
        >>> collector.update(np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.4, 0.3]))
        >>> collector.compute(resamples=0).metrics["accuracy"].value
        0.75
    """

    def __init__(
        self,
        task: Task,
        classes: Sequence[str] | None = None,
        *,
        threshold: float = 0.5,
        pool: Pool | None = None,
    ) -> None:
        self.task = task
        self.classes = list(classes) if classes is not None else ["0", "1"] if task == "binary" else []
        self.threshold = threshold
        self._pool = pool or Pool()
        self._table: Table | None = None

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self._table.rows if self._table else 0

    def update(self, truth: Array, scores: Array, weights: Array | None = None) -> None:
        """Add a batch.

        Args:
            truth: (n,) class numbers; (n, labels) of 0 and 1 for multilabel; (n,) numbers for regression.
            scores: (n,) probabilities of the positive class; (n, classes) or (n, labels) probabilities; (n,)
                predictions for regression.
            weights: (n,), zero or more; 1 by default.

        Raises:
            DivergenceError: if a score is not finite.
            MachineError: if the temporary file cannot be written.
        """
        truth, scores = np.asarray(truth), np.asarray(scores)
        assert len(truth) == len(scores), f"{len(truth)} rows of truth and {len(scores)} of scores"
        bad = (
            len(scores) - int(np.isfinite(scores).reshape(len(scores), -1).all(1).sum()) if len(scores) else 0
        )
        if bad:
            raise DivergenceError(
                f"{bad} of {len(scores)} rows have a prediction that is not finite; train anew"
            )
        if not self.classes and self.task != "regression":
            self.classes = [str(number) for number in range(scores.shape[1])]
        records = _records(self.task, truth, scores, len(self.classes), self.threshold)
        records["weight"] = 1.0 if weights is None else weights
        if self._table is None:
            self._table = self._pool.table(records.dtype)
        self._table.append(records)

    def table(self) -> Table:
        """Return the records of all rows."""
        if self._table is None:
            shape = (0,) if self.task in ("binary", "regression") else (0, len(self.classes))
            wide = (0, len(self.classes)) if self.task == "multilabel" else (0,)
            self.update(np.zeros(wide, np.int64), np.zeros(shape))
        assert self._table is not None
        return self._table

    def compute(self, *, resamples: int = 1000, seed: int = 0, details: bool = True) -> Measured:
        """Measure all rows so far; more may be added afterwards.

        Args:
            resamples: of the bootstrap; 0 leaves the intervals out.
            seed: of the bootstrap.
            details: whether to make the tables and curves, and to take the values from scikit-learn; without, a
                quick look at the validation rows costs little.
        """
        task, table, width = self.task, self.table(), len(self.classes)
        confusion: Floats | None = None
        found: dict[str, float] | None = None
        if details:
            if task == "multilabel" or (task != "regression" and width <= MANY):
                confusion = library.pairs(task, table, width)
            found = library.values(task, table, confusion)
        drawn = _bootstrap(task, table, width, resamples, seed, found)
        metrics = {
            name: interval(
                drawn.values[name],
                drawn.draws[name],
                note=drawn.notes.get(name),
                trials=drawn.trials.get(name),
                bounds=_BOUNDS.get(name, (0, 1)),
            )
            for name in drawn.values
        }
        tables = _details(task, table, self.classes, confusion) if details and self.rows else {}
        return Measured(metrics, tables, self.rows)


def measure(
    task: Task,
    truth: Array,
    scores: Array,
    weights: Array | None = None,
    *,
    classes: Sequence[str] | None = None,
    threshold: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    details: bool = True,
) -> Measured:
    """Measure arrays at once; arguments as in `Collector`.

    Example:
        >>> measured = measure("regression", np.array([1.0, 2.0]), np.array([1.5, 2.5]), resamples=0)
        >>> measured.metrics["mae"].value
        0.5
    """
    collector = Collector(task, classes, threshold=threshold)
    collector.update(truth, scores, weights)
    return collector.compute(resamples=resamples, seed=seed, details=details)


def grouped(
    task: Task,
    truth: Array,
    scores: Array,
    groups: Sequence[str],
    weights: Array | None = None,
    **options: Any,
) -> dict[str, Measured]:
    """Measure each slice of the rows by itself; `options` as in `measure`, slices in sorted order.

    Example:
        >>> slices = grouped("binary", np.array([0, 1]), np.array([0.2, 0.4]), ["x", "y"], resamples=0)
        >>> {name: one.metrics["accuracy"].value for name, one in slices.items()}
        {'x': 1.0, 'y': 0.0}
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    return {
        str(name): measure(
            task, truth[mask], scores[mask], None if weights is None else weights[mask], **options
        )
        for number, name in enumerate(names)
        for mask in [member == number]
    }


# --- one record a row ---


def _records(task: Task, truth: Array, scores: Array, classes: int, threshold: float) -> Array:
    """Reduce a batch to what the metrics need of each row; `said` is the predicted class or number."""
    kept = classes if classes <= MANY else 0
    if task == "regression":
        records = np.zeros(len(truth), [("truth", "f8"), ("said", "f8"), ("weight", "f8")])
        records["truth"], records["said"] = truth, scores
        return records
    scores = scores.astype(np.float32, copy=False)
    if task == "multilabel":
        labels: list[Any] = [("truth", "?", (classes,)), ("said", "?", (classes,))]
        rest: list[Any] = [("exact", "?"), ("wrong", "f8"), ("loss", "f4"), ("weight", "f8")]
        records = np.zeros(len(truth), [*labels, *rest, ("scores", "f4", (kept,))])
        records["truth"] = truth != 0
        records["said"] = scores.astype(np.float64) >= threshold
        different = records["truth"] != records["said"]
        records["exact"] = ~different.any(1)
        if classes:
            records["wrong"] = different.mean(1)
            records["loss"] = _surprise(np.where(records["truth"], scores, 1 - scores)).mean(1)
        records["scores"] = scores[:, :kept]
        return records
    assert len(truth) == 0 or 0 <= truth.min() <= truth.max() < classes, (
        f"class numbers must be 0 to {classes - 1}"
    )
    records = np.zeros(
        len(truth),
        [(name, "i4") for name in ("truth", "said", "rank")]
        + [(name, "f4") for name in ("confidence", "loss", "brier")]
        + [("weight", "f8"), ("scores", "f4", (1 if task == "binary" else kept,))],
    )
    records["truth"] = truth
    if task == "binary":
        records["said"] = scores.astype(np.float64) >= threshold
        records["confidence"] = np.where(records["said"], scores, 1 - scores)
        records["loss"] = _surprise(np.where(truth == 1, scores, 1 - scores))
        records["brier"] = (scores - truth) ** 2
        records["scores"][:, 0] = scores
    elif len(truth):
        chance = np.take_along_axis(scores, truth.astype(np.int64)[:, None], 1)  # of the true class, (n, 1)
        ahead = (scores > chance) | ((scores == chance) & (np.arange(classes) < truth[:, None]))
        records["said"], records["confidence"] = scores.argmax(1), scores.max(1)
        records["rank"] = ahead.sum(1)
        records["loss"] = _surprise(chance[:, 0])
        records["brier"] = (scores.astype(np.float64) ** 2).sum(1) - 2 * chance[:, 0] + 1
        records["scores"] = scores[:, :kept]
    return records


def _surprise(chance: Array) -> Floats:
    return -np.log(np.clip(chance.astype(np.float64), _SMALLEST, 1 - _SMALLEST))


# --- metrics of sums ---


def _widths(task: Task, classes: int) -> dict[str, int]:
    """Return what is summed over rows: name → how many numbers."""
    shared = {"rows": 1, "squares": 1}
    if task == "regression":
        return shared | dict.fromkeys(("absolute", "square", "scaled", "t", "p", "tt", "pp", "tp"), 1)
    if task == "multilabel":
        return shared | {
            "loss": 1,
            "correct": 1,
            "wrong": 1,
            "true": classes,
            "said": classes,
            "hit": classes,
        }
    single = shared | {"loss": 1, "correct": 1, "brier": 1, "top": 1, "calibration": BINS}
    return single | (dict.fromkeys(("true", "said", "hit"), classes) if classes <= MANY else {})


def _sums(task: Task, table: Table, classes: int, units: int, seed: int) -> Floats:
    """Return weighted sums by unit, (units, width): those of `_widths`, side by side."""
    widths = _widths(task, classes)
    matrix = np.zeros((units, sum(widths.values())))
    flat, starts = matrix.reshape(-1), dict(zip(widths, np.cumsum([0, *widths.values()]), strict=False))
    centre = {name: _centre(table, name) for name in ("truth", "said")} if task == "regression" else {}
    for window in table.windows():
        weight = table.read(window, "weight")
        base = deal(window, table.rows, units, seed) * matrix.shape[1]

        def add(name: str, values: Array | float, column: Array | int = 0) -> None:
            # One by one and in order of the rows, so that the sums do not depend on the windows.
            np.add.at(flat, base + (starts[name] + column), weight * values)  # noqa: B023 (called at once)

        add("rows", 1.0)
        add("squares", weight)
        if task == "regression":
            truth, said = table.read(window, "truth"), table.read(window, "said")
            error, t, p = said - truth, centre["truth"](truth), centre["said"](said)
            add("absolute", abs(error))
            add("square", error**2)
            add("scaled", (error / centre["truth"].spread) ** 2)
            for name, values in (("t", t), ("p", p), ("tt", t * t), ("pp", p * p), ("tp", t * p)):
                add(name, values)
            continue
        add("loss", table.read(window, "loss"))
        if task == "multilabel":
            add("correct", table.read(window, "exact"))
            add("wrong", table.read(window, "wrong"))
            for k in range(classes):
                true, claimed = table.read(window, "truth", k), table.read(window, "said", k)
                add("true", true, k)
                add("said", claimed, k)
                add("hit", true & claimed, k)
            continue
        truth, said, confidence = (table.read(window, name) for name in ("truth", "said", "confidence"))
        correct = truth == said
        add("correct", correct)
        add("brier", table.read(window, "brier"))
        add("top", table.read(window, "rank") < 5)
        add("calibration", correct - confidence.astype(np.float64), _bin(confidence))
        if "hit" in widths:
            add("true", 1.0, truth)
            add("said", 1.0, said)
            add("hit", correct, truth)
    return matrix


def _split(matrix: Floats, widths: Mapping[str, int]) -> Sums:
    edges = np.cumsum(list(widths.values()))[:-1]
    return dict(zip(widths, np.split(matrix, edges, axis=1), strict=True))


@dataclass(frozen=True)
class _Centre:
    """Centres and scales, so that sums of squares keep their digits; constant values become exactly zero.

    Attributes:
        mean: of the values.
        spread: their standard deviation, or 1 where they are all equal (which rounding would hide).
        constant: whether they are all equal.
    """

    mean: float
    spread: float
    constant: bool

    def __call__(self, values: Array) -> Floats:
        standard: Floats = (values - self.mean) / self.spread
        return np.zeros(len(values)) if self.constant else standard


def _centre(table: Table, name: str) -> _Centre:
    total, square, low, high = 0.0, 0.0, np.inf, -np.inf
    for window in table.windows():
        values = table.read(window, name)
        total, low, high = total + values.sum(), min(low, values.min()), max(high, values.max())
    mean = total / max(1, table.rows)
    for window in table.windows():
        square += ((table.read(window, name) - mean) ** 2).sum()
    constant = not low < high
    return _Centre(mean, 1.0 if constant else math.sqrt(square / table.rows), constant)


def _bin(confidence: Array) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence: number b holds those above b / 15 and up to (b + 1) / 15."""
    return np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _ratio(above: Array, below: Array) -> Floats:
    """Return the quotient, and NaN where the divisor is zero."""
    nothing: Floats = np.full(np.broadcast(above, below).shape, np.nan)
    return np.divide(above, below, out=nothing, where=below > 0)


def _values(task: Task, classes: int, s: Sums) -> Values:
    """Return the metrics of sums, (resamples, width) each."""
    rows = s["rows"][:, 0]

    def mean(name: str) -> Floats:
        return _ratio(s[name][:, 0], rows)

    if task == "regression":
        t, p, tt, pp, tp = (_ratio(s[name][:, 0], rows) for name in ("t", "p", "tt", "pp", "tp"))
        # Standardised values that are all equal leave rounding errors of this order, not zero.
        spread_t, spread_p = (np.where(v > 1e-12, v, 0.0) for v in (tt - t * t, pp - p * p))
        return {
            "mae": mean("absolute"),
            "rmse": np.sqrt(mean("square")),
            "r2": 1 - _ratio(mean("scaled"), spread_t),
            "pearson": np.clip(_ratio(tp - t * p, np.sqrt(spread_t * spread_p)), -1, 1),
        }
    if task == "multilabel":
        values = {"subset_accuracy": mean("correct"), "hamming": mean("wrong")}
    else:
        values = {"accuracy": mean("correct")}
        if classes > 5:
            values["top_5_accuracy"] = mean("top")
    if "hit" in s:
        values |= _averages(s["true"], s["said"], s["hit"], positive=task == "binary")
        if task != "multilabel":
            values["mcc"] = _matthews(s["true"], s["said"], s["hit"])
    values["log_loss"] = mean("loss")
    if task != "multilabel":
        values["brier"] = mean("brier")
        values["ece"] = _ratio(abs(s["calibration"]).sum(1), rows)
    return values


def _averages(true: Floats, said: Floats, hit: Floats, *, positive: bool) -> Values:
    """Return precision, recall and F1 from counts by class, (resamples, classes) each."""
    occurs = (true + said) > 0
    parts = {"precision": (hit, said), "recall": (hit, true), "f1": (2 * hit, true + said)}
    each = {name: _ratio(above, below) for name, (above, below) in parts.items()}
    values: Values = {name: one[:, 1] for name, one in each.items()} if positive else {}
    for name, (above, below) in parts.items():
        one = np.nan_to_num(each[name])  # within an average, what is not defined counts as 0
        values[f"{name}_macro"] = _ratio(one.sum(1), occurs.sum(1))
        values[f"{name}_micro"] = _ratio(above.sum(1), below.sum(1))
        values[f"{name}_weighted"] = _ratio((one * true).sum(1), true.sum(1))
    return values


def _matthews(true: Floats, said: Floats, hit: Floats) -> Floats:
    """Return the correlation of truth and prediction (Matthews 1975; Gorodkin 2004 for many classes)."""
    rows = true.sum(1)
    covariance = hit.sum(1) * rows - (true * said).sum(1)
    spread_true, spread_said = (rows**2 - (counts**2).sum(1) for counts in (true, said))
    defined = (spread_true > 1e-12 * rows**2) & (spread_said > 1e-12 * rows**2)
    return _ratio(covariance, np.where(defined, np.sqrt(abs(spread_true * spread_said)), 0.0))


# --- metrics of an order ---


class _Curve:
    """Rows of one class against the rest, in falling order of their score; ties are one step."""

    def __init__(self, scores: Array, positive: Array) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        self.positive = positive[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(scores) else self.order
        self.thresholds = ordered[self.starts]

    def steps(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weights of positives and of negatives at each distinct score, (resamples, steps)."""
        ordered = weights[:, self.order]
        positive = ordered * self.positive
        ordered -= positive
        if len(self.starts) == len(self.order):
            return positive, ordered
        return np.add.reduceat(positive, self.starts, axis=1), np.add.reduceat(ordered, self.starts, axis=1)

    def __call__(self, weights: Floats) -> Values:
        """Return the areas below the curves for row weights (resamples, n)."""
        positive, negative = self.steps(weights)
        found = np.cumsum(positive, axis=1)
        positives, negatives = positive.sum(1), negative.sum(1)
        # A pair counts one if the positive is ahead, one half if they tie (Mann and Whitney 1947).
        pairs = ((found - positive / 2) * negative).sum(1)
        taken = np.cumsum(negative, axis=1, out=negative)
        taken += found
        precision = np.divide(found, taken, out=found, where=taken > 0)
        return {
            "roc_auc": _ratio(pairs, positives * negatives),
            "pr_auc": _ratio((positive * precision).sum(1), positives),
        }


class _Median:
    """The weighted median of absolute errors; the mean of the two middle ones where there are two."""

    def __init__(self, errors: Array) -> None:
        self.order = np.argsort(errors, kind="stable")
        self.errors = errors[self.order]

    def __call__(self, weights: Floats) -> Values:
        reached = np.cumsum(weights[:, self.order], axis=1)
        half = reached[:, -1:] / 2
        low, high = self.errors[(reached >= half).argmax(1)], self.errors[(reached > half).argmax(1)]
        return {"median_ae": np.where(half[:, 0] > 0, (low + high) / 2, np.nan)}


def _ordered(task: Task, table: Table, rows: npt.NDArray[np.int64]) -> Iterator[_Curve | _Median]:
    """Yield what the metrics of an order are averaged over, for rows that fit into memory."""
    if task == "regression":
        yield _Median(abs(table.take(rows, "said") - table.take(rows, "truth")))
        return
    for k in range(table.width("scores")):
        if task == "multilabel":
            positive = table.take(rows, "truth", k)
        else:
            positive = table.take(rows, "truth") == (1 if task == "binary" else k)
        yield _Curve(table.take(rows, "scores", k), positive)


def _whole(task: Task, table: Table, weight: float) -> Values:
    """Return the metrics of an order of all rows, which need not fit into memory."""
    if task != "regression":
        return _average([_areas(falling(task, table, k)) for k in range(table.width("scores"))])
    if not weight:
        return {"median_ae": np.full(1, np.nan)}

    def errors() -> Iterator[tuple[Array, Array]]:
        for window in table.windows():
            away = abs(table.read(window, "said") - table.read(window, "truth"))
            yield away, table.read(window, "weight")

    low, high = reached(errors, [(weight / 2, False), (weight / 2, True)])
    return {"median_ae": np.array([(low + high) / 2])}


def _steps(runs: Iterable[Run]) -> Iterator[tuple[Array, Floats, Floats, Floats, Floats]]:
    """Yield the distinct scores of each run, their positives and negatives, and all of these up to there."""
    above = np.zeros(2)
    for scores, positive, weight in runs:
        curve = _Curve(scores, positive)
        true, false = (one[0] for one in curve.steps(weight[None]))
        found, claimed = above[0] + np.cumsum(true), above[1] + np.cumsum(false)
        yield curve.thresholds, true, false, found, claimed
        above = np.array([found[-1], claimed[-1]])


def _areas(runs: Iterable[Run]) -> Values:
    """Return what a `_Curve` returns, from rows in runs."""
    pairs = area = positive = negative = 0.0
    for _, true, false, found, claimed in _steps(runs):
        pairs += float(((found - true / 2) * false).sum())
        area += float((true * _ratio(found, found + claimed)).sum())
        positive, negative = float(found[-1]), float(claimed[-1])
    pair = (pairs, positive * negative), (area, positive)
    return {
        name: _ratio(np.array([above]), np.array([below]))
        for name, (above, below) in zip(("roc_auc", "pr_auc"), pair, strict=True)
    }


def _points(runs: Iterable[Run], positive: float, negative: float) -> dict[str, list[float]]:
    """Return both curves of one class at `_POINTS` places at most, evenly along the ROC curve.

    Args:
        runs: of its rows.
        positive, negative: weight of rows of the class and of the others.
    """
    end = (positive > 0) + (negative > 0)
    goals = np.linspace(0, end * (1 - 1e-9), _POINTS)  # rounding must not put the last beyond the rows
    picked: dict[str, list[float]] = {
        name: [] for name in ("threshold", "false_positive_rate", "recall", "precision")
    }
    for thresholds, _, _, found, claimed in _steps(runs):
        recall, false = found / (positive or 1.0), claimed / (negative or 1.0)
        along = recall + false
        upto = int(np.searchsorted(goals, along[-1], side="right"))
        places = np.unique(np.searchsorted(along, goals[:upto]))
        goals = goals[upto:]
        columns = (thresholds, false, recall, _ratio(found, found + claimed))
        for own, values in zip(picked.values(), columns, strict=True):
            own += values[places].tolist()
    return picked


def _average(parts: list[Values]) -> Values:
    """Return the mean over those parts where a metric is defined."""
    values: Values = {}
    for name in parts[0] if parts else ():
        stacked = np.stack([part[name] for part in parts])
        values[name] = _ratio(np.nan_to_num(stacked).sum(0), (~np.isnan(stacked)).sum(0))
    return values


# --- the bootstrap of all of them ---


@dataclass
class _Drawn:
    values: dict[str, float]
    draws: Values
    notes: dict[str, str]
    trials: dict[str, float]


def _bootstrap(
    task: Task, table: Table, classes: int, count: int, seed: int, found: Mapping[str, float] | None = None
) -> _Drawn:
    """Measure all rows, and `count` resamples of them (none if there is only one row).

    Args:
        task, table, classes: what the records are.
        count: resamples.
        seed: of the resamples.
        found: the library's values, which take the place of ours where they are defined; None to have only ours.
    """
    rows = table.rows
    count = count if rows > 1 else 0
    widths = _widths(task, classes)
    unit_count = units_of(rows, sum(widths.values()))
    matrix = _sums(task, table, classes, unit_count, seed)
    totals = _split(matrix.sum(0)[None], widths)
    weight = float(totals["rows"][0, 0])

    def of_sums(some: Floats) -> Values:
        return _values(task, classes, _split(some, widths))

    # Metrics of an order visit rows, not groups: some rows stand for all, and what their resamples spread is
    # shrunk to what that of all rows would.
    if rows == unit_count:
        some = np.arange(rows)
    else:
        some = np.sort(np.random.default_rng([seed, 3]).choice(rows, unit_count, replace=False))
    parts = list(_ordered(task, table, some)) if count or rows == unit_count else []
    part_weight, shrink = table.take(some, "weight"), (len(some) / max(1, rows)) ** 0.5
    sampled = _average([part(part_weight[None]) for part in parts]) if rows else {}
    whole = sampled
    if rows > unit_count:
        if task == "regression" or found is None:
            whole = _whole(task, table, weight)
        else:
            whole = {n: np.array([found.get(n, np.nan)]) for n in _names_of_order(task, classes)}
    ordered_count = min(count, max(_FEWEST, _VISITS // max(1, unit_count * len(parts))))

    draws: dict[str, list[Floats]] = {}
    done = 0
    for chunk in resamples(unit_count, count, seed, matrix.shape[1]):
        drawn = of_sums(chunk @ matrix)
        if done < ordered_count:
            drawn |= _average([part(chunk[: ordered_count - done] * part_weight) for part in parts])
        for name, values in drawn.items():
            if name in whole:
                values = whole[name] + (values - sampled[name]) * shrink
            draws.setdefault(name, []).append(values)
        done += len(chunk)

    points = {name: float(one[0]) for name, one in (_values(task, classes, totals) | whole).items()}
    notes = dict.fromkeys(whole, _how(rows, unit_count, ordered_count, count)) if count else {}
    for name, value in points.items():
        if np.isnan(value):
            why = _WHY.get(name) or _WHY.get(name.split("_")[0], _NO_ROWS)  # f1_micro: as f1
            notes[name] = why if weight > 0 else _NO_ROWS
            continue
        if rows == 1:
            notes[name] = say("no interval: one row")
        points[name] = (found or {}).get(name, value)
    return _Drawn(
        points,
        {name: np.concatenate(draws[name]) if name in draws else np.zeros(0) for name in points},
        {name: note for name, note in notes.items() if note},
        _trials(task, totals),
    )


def _how(rows: int, units: int, count: int, usual: int) -> str:
    if rows > units and count < usual:
        return say(
            "interval from {units} of {rows} rows and {count} resamples", units=units, rows=rows, count=count
        )
    if rows > units:
        return say("interval from {units} of {rows} rows", units=units, rows=rows)
    return say("interval from {count} resamples", count=count) if count < usual else ""


def _trials(task: Task, totals: Sums) -> dict[str, float]:
    """Return of how many rows a share is one; unequal weights count as fewer rows (Kish 1965)."""
    weight, squares = float(totals["rows"][0, 0]), float(totals["squares"][0, 0])
    if task == "regression" or not weight:
        return {}
    trials = dict.fromkeys(("accuracy", "subset_accuracy", "top_5_accuracy"), weight * weight / squares)
    if task == "binary":
        trials["recall"], trials["precision"] = (
            float(totals[name][0, 1]) * weight / squares for name in ("true", "said")
        )
    return {name: trial for name, trial in trials.items() if trial > 0}


# --- tables and curves ---


def _details(task: Task, table: Table, classes: list[str], confusion: Floats | None) -> dict[str, Any]:
    if task == "regression":
        return {"errors": _quantiles(table, (0.05, 0.25, 0.5, 0.75, 0.95))}
    details: dict[str, Any] = {}
    if confusion is not None:
        if task == "multilabel":
            true, claimed, hit = confusion[:, 1].sum(1), confusion[:, :, 1].sum(1), confusion[:, 1, 1]
        else:
            true, claimed, hit = confusion.sum(1), confusion.sum(0), confusion.diagonal()
            details["confusion"] = confusion.tolist()
        columns = (_ratio(hit, claimed), _ratio(hit, true), _ratio(2 * hit, true + claimed), true, claimed)
        names = ("precision", "recall", "f1", "support", "predicted")
        details["per_class"] = {
            one: {
                name: None if np.isnan(column[k]) else float(column[k])
                for name, column in zip(names, columns, strict=True)
            }
            for k, one in enumerate(classes)
        }
    if task != "multilabel":
        details["reliability"] = _reliability(table)
    if confusion is not None and (width := table.width("scores")) and len(classes) <= _CURVES:
        rows = float(confusion.sum() / (len(classes) if task == "multilabel" else 1))
        details["curves"] = {
            one: _points(falling(task, table, k), float(positive), max(0.0, rows - float(positive)))
            for k, (one, positive) in enumerate(zip(classes[-width:], true[-width:], strict=True))
        }
    return details


def _quantiles(table: Table, shares: Sequence[float]) -> dict[str, float]:
    """Return quantiles of prediction minus truth; between two rows in proportion, as numpy does."""

    def errors() -> Iterator[tuple[Array, Array]]:
        for window in table.windows():
            error = table.read(window, "said") - table.read(window, "truth")
            yield error, np.ones(len(error))

    places = [share * (table.rows - 1) for share in shares]
    # The row at place i is the first that more than i rows reach.
    found = reached(errors, [(end(place), True) for place in places for end in (math.floor, math.ceil)])
    return {
        str(share): low + (high - low) * (place - math.floor(place))
        for share, place, low, high in zip(shares, places, found[::2], found[1::2], strict=True)
    }


def _reliability(table: Table) -> list[dict[str, float]]:
    """Return how sure and how right predictions are, for each bin of confidence that is not empty."""
    each, sure, right = sums = np.zeros((3, BINS))
    for window in table.windows():
        weight, confidence = table.read(window, "weight"), table.read(window, "confidence")
        correct = table.read(window, "truth") == table.read(window, "said")
        for total, values in zip(sums, (1.0, confidence.astype(np.float64), correct), strict=True):
            np.add.at(total, _bin(confidence), weight * values)
    edges = np.linspace(0, 1, BINS + 1)
    names = ("low", "high", "weight", "confidence", "accuracy")
    lines = np.stack([edges[:-1], edges[1:], each, _ratio(sure, each), _ratio(right, each)], axis=1)[each > 0]
    return [dict(zip(names, line, strict=True)) for line in lines.tolist()]


# --- two models ---


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Attributes:
        differences: name → the second's metric minus the first's, with its interval.
        only_a, only_b: rows that only the first, only the second gets right; None for regression.
        p_value: of McNemar's exact test on these; row weights play no part in it.
    """

    differences: dict[str, Metric]
    only_a: int | None = None
    only_b: int | None = None
    p_value: float | None = None


def compare_paired(
    task: Task,
    truth: Array,
    scores_a: Array,
    scores_b: Array,
    weights: Array | None = None,
    *,
    classes: Sequence[str] | None = None,
    threshold: float | tuple[float, float] = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same rows, each resample holding the same rows for both.

    Rows that are hard for one are mostly hard for the other, so a paired interval is narrower than the two
    models' own intervals suggest (Dror et al. 2018).

    Example:
        >>> truth = np.array([0, 1] * 50)
        >>> better = compare_paired("binary", truth, np.full(100, 0.4), truth * 0.8)
        >>> better.differences["accuracy"].value, better.only_a, better.only_b
        (0.5, 0, 50)
    """
    drawn, tables = [], []
    thresholds = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    pool = Pool()
    for scores, own in zip((scores_a, scores_b), thresholds, strict=True):
        collector = Collector(task, classes, threshold=own, pool=pool)
        collector.update(truth, scores, weights)
        tables.append(collector.table())
        drawn.append(_bootstrap(task, tables[-1], len(collector.classes), resamples, seed))
    a, b = drawn
    differences = {
        name: interval(
            b.values[name] - a.values[name],
            b.draws[name] - a.draws[name],
            note=a.notes.get(name) or b.notes.get(name),
        )
        for name in a.values
    }
    if task == "regression":
        return Comparison(differences)
    only_a = only_b = 0
    for window in tables[0].windows():
        right_a, right_b = (library.right(task, one, window) for one in tables)
        only_a, only_b = only_a + int((right_a & ~right_b).sum()), only_b + int((right_b & ~right_a).sum())
    return Comparison(differences, only_a, only_b, mcnemar(only_a, only_b))
