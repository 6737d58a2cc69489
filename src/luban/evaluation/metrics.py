"""Metrics of predictions against the truth, with intervals, from a stream of batches.

::

    batches ──update──▶ Collector (one short record a row) ──compute──▶ Measured: metrics, intervals, details

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
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from luban.errors import DivergenceError, MachineError
from luban.evaluation import library
from luban.evaluation.intervals import UNITS, Floats, Metric, deal, interval, mcnemar, resamples

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
    "precision": "no row is predicted positive",
    "recall": "no row is positive",
    "f1": "no row is positive or predicted positive",
    "mcc": "needs two classes among the rows and two among the predictions",
    "roc_auc": "needs rows of a class and rows of another",
    "pr_auc": "no row is positive",
    "r2": "needs two rows whose truth differs",
    "pearson": "needs two rows whose truth differs and whose predictions differ",
}
_BOUNDS = {
    "mcc": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "r2": (-np.inf, 1.0),
    "brier": (0.0, 2.0),
} | dict.fromkeys(("log_loss", "mae", "rmse", "median_ae"), (0.0, np.inf))  # all else lies between 0 and 1
_NO_ROWS = "no rows, or none with a weight above zero"


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
        limit: bytes of records held in memory; a temporary file takes over beyond.

    Example:
        >>> collector = Collector("binary", ["bad", "good"])
        >>> collector.update(np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.4, 0.3]))
        >>> collector.compute(resamples=0).metrics["accuracy"].value
        0.75
    """

    def __init__(
        self, task: Task, classes: Sequence[str] | None = None, *, threshold: float = 0.5, limit: int = 2**28
    ) -> None:
        self.task = task
        self.classes = list(classes) if classes is not None else ["0", "1"] if task == "binary" else []
        self.threshold = threshold
        self.rows = 0
        self.limit = max(1, limit)
        self._file = SpooledTemporaryFile(max_size=self.limit)  # noqa: SIM115 (closed when the collector goes)
        self._type: np.dtype[Any] | None = None
        weakref.finalize(self, self._file.close)

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
        self._type = records.dtype
        self.rows += len(records)
        try:
            self._file.write(records.tobytes())
        except OSError as error:
            raise MachineError(
                f"scores cannot be kept in a temporary file: {error}; free disk space"
            ) from error

    def records(self) -> Array:
        """Return the records of all rows, (n,), mapped from the temporary file if there is one."""
        if self._type is None or self.rows == 0:
            shape = (0,) if self.task in ("binary", "regression") else (0, len(self.classes))
            wide = (0, len(self.classes)) if self.task == "multilabel" else (0,)
            return _records(
                self.task, np.zeros(wide, np.int64), np.zeros(shape), len(self.classes), self.threshold
            )
        if self.rows * self._type.itemsize > self.limit:  # which is when the file has moved to the disk
            self._file.flush()
            return np.memmap(self._file, self._type, mode="r", shape=(self.rows,))
        self._file.seek(0)
        return np.frombuffer(self._file.read(), self._type)

    def compute(self, *, resamples: int = 1000, seed: int = 0, details: bool = True) -> Measured:
        """Measure all rows so far; more may be added afterwards.

        Args:
            resamples: of the bootstrap; 0 leaves the intervals out.
            seed: of the bootstrap.
            details: whether to make the tables and curves, and to take the values from scikit-learn; without, a
                quick look at the validation rows costs little.
        """
        records = self.records()
        drawn = _bootstrap(self.task, records, len(self.classes), resamples, seed)
        if details:
            for name, value in library.values(self.task, records, len(self.classes)).items():
                if not math.isnan(drawn.values.get(name, math.nan)):
                    drawn.values[name] = value
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
        tables = _details(self.task, records, self.classes) if details and self.rows else {}
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
        records = np.zeros(len(truth), [*labels, ("loss", "f4"), ("weight", "f8"), ("scores", "f4", (kept,))])
        records["truth"] = truth != 0
        records["said"] = scores.astype(np.float64) >= threshold
        records["loss"] = _surprise(np.where(records["truth"], scores, 1 - scores)).mean(1) if classes else 0
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


def _sums(task: Task, records: Array, classes: int, units: npt.NDArray[np.int64], count: int) -> Sums:
    """Return weighted sums by unit, (count, width) each."""
    weight = np.asarray(records["weight"])

    def cells(column: Array | int, width: int, values: Array | float = 1.0) -> Floats:
        sums = np.bincount(units * width + column, weight * values, count * width)
        return sums.astype(np.float64, copy=False).reshape(count, width)

    def total(values: Array | float) -> Floats:
        return cells(0, 1, values)

    def labels(*names: str) -> Floats:
        sums = np.zeros((count, classes))
        for start in range(0, len(records), 65_536):  # the records may lie on disk, larger than memory
            part = slice(start, start + 65_536)
            both = np.logical_and.reduce([records[name][part] for name in names])
            np.add.at(sums, units[part], both * weight[part, None])
        return sums

    truth, said = records["truth"], records["said"]
    sums = {"rows": total(1.0)}
    if task == "regression":
        error, t, p = said - truth, _standard(truth), _standard(said)
        columns = {"absolute": abs(error), "square": error**2, "scaled": (error / _spread(truth)) ** 2}
        columns |= {"t": t, "p": p, "tt": t * t, "pp": p * p, "tp": t * p}
        return sums | {name: total(values) for name, values in columns.items()}
    sums["loss"] = total(records["loss"])
    if task == "multilabel":
        sums |= {"correct": total((truth == said).all(1)), "wrong": total((truth != said).mean(1))}
        return sums | {"true": labels("truth"), "said": labels("said"), "hit": labels("truth", "said")}
    correct, confidence = truth == said, records["confidence"]
    sums |= {"correct": total(correct), "brier": total(records["brier"]), "top": total(records["rank"] < 5)}
    sums["calibration"] = cells(_bin(confidence), BINS, correct - confidence.astype(np.float64))
    if classes <= MANY:
        sums |= {
            "true": cells(truth, classes),
            "said": cells(said, classes),
            "hit": cells(truth, classes, correct),
        }
    return sums


def _spread(values: Array) -> float:
    """Return the standard deviation, or 1 where values are all equal (which rounding would hide)."""
    return float(np.std(values)) if len(values) and np.ptp(values) > 0 else 1.0


def _standard(values: Array) -> Floats:
    """Centre and scale, so that sums of squares keep their digits; constant values become exactly zero."""
    if len(values) == 0 or np.ptp(values) == 0:
        return np.zeros(len(values))
    standard: Floats = (values - np.mean(values)) / _spread(values)
    return standard


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

    def points(self, weights: Floats) -> dict[str, list[float]]:
        """Return both curves at `_POINTS` places at most, evenly along the ROC curve."""
        positive, negative = (np.cumsum(one[0]) for one in self.steps(weights[None]))
        recall = positive / max(positive[-1], 1e-300)
        false = negative / max(negative[-1], 1e-300)
        along = recall + false
        places = np.unique(np.searchsorted(along, np.linspace(0, along[-1], _POINTS)))
        picked = {
            "threshold": self.thresholds,
            "false_positive_rate": false,
            "recall": recall,
            "precision": np.nan_to_num(_ratio(positive, positive + negative)),
        }
        return {name: values[places].tolist() for name, values in picked.items()}


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


def _ordered(task: Task, records: Array) -> Iterator[_Curve | _Median]:
    """Yield what the metrics of an order are averaged over."""
    if task == "regression":
        yield _Median(abs(records["said"] - records["truth"]))
        return
    scores, truth = records["scores"], records["truth"]
    for k in range(scores.shape[1]):
        positive = truth[:, k] if task == "multilabel" else truth == (1 if task == "binary" else k)
        yield _Curve(np.ascontiguousarray(scores[:, k]), positive)


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


def _bootstrap(task: Task, records: Array, classes: int, count: int, seed: int) -> _Drawn:
    """Measure all rows, and `count` resamples of them (none if there is only one row)."""
    rows = len(records)
    count = count if rows > 1 else 0
    units, unit_count = deal(rows, seed)
    sums = _sums(task, records, classes, units, unit_count)
    edges = np.cumsum([one.shape[1] for one in sums.values()])[:-1]
    matrix = np.concatenate(list(sums.values()), axis=1)

    def of_sums(totals: Floats) -> Values:
        return _values(task, classes, dict(zip(sums, np.split(totals, edges, axis=1), strict=True)))

    # Metrics of an order visit rows, not groups: some rows stand for all, and what their resamples spread is
    # shrunk to what that of all rows would.
    weight = np.asarray(records["weight"], dtype=np.float64)
    whole = _average([part(weight[None]) for part in _ordered(task, records)]) if rows else {}
    some = np.arange(rows)
    if rows > UNITS:
        some = np.sort(np.random.default_rng([seed, 3]).choice(rows, UNITS, replace=False))
    parts = list(_ordered(task, records[some])) if count else []
    part_weight, shrink = weight[some], (len(some) / max(1, rows)) ** 0.5
    sampled = _average([part(part_weight[None]) for part in parts]) if rows > UNITS else whole
    ordered_count = min(count, max(_FEWEST, _VISITS // max(1, unit_count * len(parts))))

    draws: dict[str, list[Floats]] = {}
    done = 0
    for chunk in resamples(unit_count, count, seed):
        drawn = of_sums(chunk @ matrix)
        if done < ordered_count:
            drawn |= _average([part(chunk[: ordered_count - done] * part_weight) for part in parts])
        for name, values in drawn.items():
            if name in whole:
                values = whole[name] + (values - sampled[name]) * shrink
            draws.setdefault(name, []).append(values)
        done += len(chunk)

    points = {name: float(one[0]) for name, one in (of_sums(matrix.sum(0)[None]) | whole).items()}
    notes = dict.fromkeys(whole, _how(rows, ordered_count, count)) if count else {}
    for name, value in points.items():
        if np.isnan(value):
            why = _WHY.get(name) or _WHY.get(name.split("_")[0], _NO_ROWS)  # f1_micro: as f1
            notes[name] = why if weight.sum() > 0 else _NO_ROWS
        elif rows == 1:
            notes[name] = "no interval: one row"
    return _Drawn(
        points,
        {name: np.concatenate(draws[name]) if name in draws else np.zeros(0) for name in points},
        {name: note for name, note in notes.items() if note},
        _trials(task, sums, weight),
    )


def _how(rows: int, count: int, usual: int) -> str:
    parts = [f"{UNITS} of {rows} rows"] if rows > UNITS else []
    parts += [f"{count} resamples"] if count < usual else []
    return f"interval from {' and '.join(parts)}" if parts else ""


def _trials(task: Task, sums: Sums, weight: Floats) -> dict[str, float]:
    """Return of how many rows a share is one; unequal weights count as fewer rows (Kish 1965)."""
    if task == "regression" or weight.sum() == 0:
        return {}
    per_weight = weight.sum() / (weight**2).sum()
    trials = {name: weight.sum() * per_weight for name in ("accuracy", "subset_accuracy", "top_5_accuracy")}
    if task == "binary":
        trials["recall"], trials["precision"] = (sums[n][:, 1].sum() * per_weight for n in ("true", "said"))
    return {name: trial for name, trial in trials.items() if trial > 0}


# --- tables and curves ---


def _details(task: Task, records: Array, classes: list[str]) -> dict[str, Any]:
    truth, said, weight = records["truth"], records["said"], np.asarray(records["weight"])
    if task == "regression":
        shares = (0.05, 0.25, 0.5, 0.75, 0.95)
        quantiles = np.quantile(said - truth, shares).tolist()
        return {"errors": dict(zip(map(str, shares), quantiles, strict=True))}
    details: dict[str, Any] = {}
    sums = _sums(task, records, len(classes), np.zeros(len(records), np.int64), 1)
    if "hit" in sums:
        true, claimed, hit = (sums[name][0] for name in ("true", "said", "hit"))
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
        if "hit" in sums:
            flat = np.bincount(truth.astype(np.int64) * len(classes) + said, weight, len(classes) ** 2)
            details["confusion"] = flat.reshape(len(classes), -1).tolist()
        confidence = records["confidence"].astype(np.float64)
        bins, edges = _bin(confidence), np.linspace(0, 1, BINS + 1)
        each = np.bincount(bins, weight, BINS)
        sure, right = (
            _ratio(np.bincount(bins, weight * values, BINS), each) for values in (confidence, truth == said)
        )
        names = ("low", "high", "weight", "confidence", "accuracy")
        table = np.stack([edges[:-1], edges[1:], each, sure, right], axis=1)[each > 0]
        details["reliability"] = [dict(zip(names, line, strict=True)) for line in table.tolist()]
    if (width := records["scores"].shape[1]) and len(classes) <= _CURVES:
        curves = (one.points(weight) for one in _ordered(task, records) if isinstance(one, _Curve))
        details["curves"] = dict(zip(classes[-width:], curves, strict=True))
    return details


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
    drawn, correct = [], []
    thresholds = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    for scores, own in zip((scores_a, scores_b), thresholds, strict=True):
        collector = Collector(task, classes, threshold=own)
        collector.update(truth, scores, weights)
        records = collector.records()
        drawn.append(_bootstrap(task, records, len(collector.classes), resamples, seed))
        correct.append((records["truth"] == records["said"]).reshape(len(records), -1).all(1))
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
    only_a, only_b = int((correct[0] & ~correct[1]).sum()), int((correct[1] & ~correct[0]).sum())
    return Comparison(differences, only_a, only_b, mcnemar(only_a, only_b))
