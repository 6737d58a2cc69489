"""The reported value of each metric, computed by scikit-learn.

A bootstrap needs a metric a thousand times over, which `luban.evaluation.metrics` does from sums and sorted scores; the value
itself is scikit-learn's, so that nobody has to trust a formula of ours. The tests hold the two to each other.

scikit-learn wants all rows at once, so it is asked in ways that give the same number from less:

- What only depends on which class was said of which, is asked of one row for each pair of classes, with the weight of all
  rows of that pair; of labels, one row each for hit, missed and false.
- A mean over rows is the mean over windows of rows, each with its weight.
- The area of a curve is asked of runs of falling score (`luban.evaluation.ranking`), one class at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from luban.evaluation.ranking import Run, falling
from luban.evaluation.records import Table

__all__ = ["pairs", "right", "values"]

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]


def values(task: str, table: Table, confusion: Floats | None) -> dict[str, float]:
    """Return metric → value for the records of a `Collector`; only what scikit-learn has, and what is defined.

    Args:
        task: ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
        table: one record a row, with ``truth``, ``said``, ``weight`` and, but for regression, ``scores``.
        confusion: what `pairs` returned; None for regression and where there are too many classes for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not defined, which is told apart below
        if task == "regression":
            found = _of_numbers(table)
        else:
            found = _of_rows(task, table)
            if confusion is not None and confusion.any():
                found |= _of_labels(confusion) if task == "multilabel" else _of_pairs(task, confusion)
            found |= _of_scores(task, table)
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def pairs(task: str, table: Table, classes: int) -> Floats:
    """Return the weight of rows by truth and prediction, (classes, classes); by label, (labels, 2, 2) for multilabel."""
    if task == "multilabel":
        tables = np.zeros((classes, 2, 2))
        for window, weight in _weights(table):
            for k in range(classes):
                truth, said = table.read(window, "truth", k), table.read(window, "said", k)
                tables[k] += np.bincount(truth * 2 + said, weight, 4).reshape(2, 2)
        return tables
    sums = np.zeros(classes * classes)
    for window, weight in _weights(table):
        truth, said = table.read(window, "truth").astype(np.int64), table.read(window, "said")
        np.add.at(sums, truth * classes + said, weight)
    return sums.reshape(classes, classes)


def right(task: str, table: Table, rows: slice) -> npt.NDArray[np.bool_]:
    """Return which rows are predicted without a mistake, (n,)."""
    if task == "multilabel":
        return table.read(rows, "exact")
    correct: npt.NDArray[np.bool_] = table.read(rows, "truth") == table.read(rows, "said")
    return correct


def _weights(table: Table) -> Iterator[tuple[slice, Floats]]:
    for window in table.windows():
        yield window, table.read(window, "weight")


def _of_numbers(table: Table) -> dict[str, float]:
    """Return the metrics of regression: means over windows of means over rows."""
    from sklearn import metrics as sk

    total = away = square = middle = 0.0
    for window, weight in _weights(table):
        if own := float(weight.sum()):
            truth, said = table.read(window, "truth"), table.read(window, "said")
            total += own
            away += own * sk.mean_absolute_error(truth, said, sample_weight=weight)
            square += own * sk.mean_squared_error(truth, said, sample_weight=weight)
            middle += own * np.average(truth, weights=weight)
    if not total:
        return {}
    spread = 0.0  # the error of who always says the mean
    for window, weight in _weights(table):
        if own := float(weight.sum()):
            truth = table.read(window, "truth")
            constant = np.full(len(truth), middle / total)
            spread += own * sk.mean_squared_error(truth, constant, sample_weight=weight)
    found = {"mae": away / total, "rmse": math.sqrt(square / total)}
    return found | ({"r2": 1 - square / spread} if spread else {})


def _of_rows(task: str, table: Table) -> dict[str, float]:
    """Return the share of rows that are right in all."""
    from sklearn import metrics as sk

    hits = misses = 0.0
    for window, weight in _weights(table):
        correct = right(task, table, window)
        hits += float(weight[correct].sum())
        misses += float(weight[~correct].sum())
    if not hits + misses:
        return {}
    name = "subset_accuracy" if task == "multilabel" else "accuracy"
    return {name: sk.accuracy_score([1, 1], [1, 0], sample_weight=[hits, misses])}


def _of_pairs(task: str, confusion: Floats) -> dict[str, float]:
    """Return the metrics of who was taken for whom, from one row for each pair of classes."""
    from sklearn import metrics as sk

    truth, said = np.nonzero(confusion)
    weight = confusion[truth, said]
    found = _averages(truth, said, weight, np.union1d(truth, said))
    if task == "binary":
        three = sk.precision_recall_fscore_support(
            truth, said, labels=[1], average="macro", sample_weight=weight, zero_division=np.nan
        )
        found.update(zip(("precision", "recall", "f1"), map(float, three[:3]), strict=True))
    return found | {"mcc": sk.matthews_corrcoef(truth, said, sample_weight=weight)}


def _of_labels(confusion: Floats) -> dict[str, float]:
    """Return the same of labels, each row having (or missing, or being wrongly given) a single one."""
    from scipy.sparse import csr_array
    from sklearn import metrics as sk

    label, truth, said = np.nonzero(confusion)
    weight = confusion[label, truth, said]
    found = {"hamming": sk.hamming_loss(truth, said, sample_weight=weight)}
    present = np.flatnonzero(confusion.sum((1, 2)) > confusion[:, 0, 0])
    if len(present):
        # A second label that nothing has: of one column scikit-learn makes two classes.
        shape = (len(label), max(2, len(confusion)))
        both = [csr_array((own, (np.arange(len(own)), label)), shape=shape) for own in (truth, said)]
        for own in both:
            own.eliminate_zeros()  # which scikit-learn would count
        found |= _averages(both[0], both[1], weight, present)
    return found


def _averages(truth: Any, said: Any, weight: Floats, present: Array) -> dict[str, float]:
    from sklearn import metrics as sk

    found: dict[str, float] = {}
    for average in ("macro", "micro", "weighted"):
        three = sk.precision_recall_fscore_support(
            truth, said, labels=present, average=average, sample_weight=weight, zero_division=0
        )
        found |= zip((f"{name}_{average}" for name in ("precision", "recall", "f1")), three[:3], strict=True)
    return found


def _of_scores(task: str, table: Table) -> dict[str, float]:
    """Return the metrics of probabilities: of each class against the rest, averaged over those that can be told apart."""
    areas = [_areas(falling(task, table, k)) for k in range(table.width("scores"))]
    found: dict[str, float] = {}
    for name, own in zip(("roc_auc", "pr_auc"), zip(*areas, strict=True), strict=False):
        if defined := [area for area in own if area is not None]:
            found[name] = float(np.mean(defined))
    return found


def _areas(runs: Iterator[Run]) -> tuple[float | None, float | None]:
    """Return the areas below the ROC and the precision-recall curve of one class; None where not defined.

    Of two runs, each positive of the higher is ahead of each negative of the lower; so pairs are counted between runs, and
    scikit-learn counts them within one. Precision depends on all rows above, for which two rows on top stand in each run.
    """
    from sklearn import metrics as sk

    ahead = np.zeros(2)  # weight of negatives and of positives in the runs before
    ordered = area = 0.0
    for scores, positive, weight in runs:
        own = np.array([weight[~positive].sum(), weight[positive].sum()])
        ordered += ahead[1] * own[0]
        if own.all():
            # What `roc_auc_score` does, without its looking twice for the values that a boolean can take.
            curve = sk.roc_curve(positive, scores, sample_weight=weight, drop_intermediate=False)
            ordered += own.prod() * sk.auc(curve[0], curve[1])
        if own[1]:
            if ahead.any():
                scores = np.r_[np.repeat(np.nextafter(scores.max(), np.inf), 2), scores]
                positive, weight = np.r_[False, True, positive], np.r_[ahead, weight]
            precision = sk.average_precision_score(positive, scores, sample_weight=weight)
            area += precision * (ahead[1] + own[1]) - (
                ahead[1] * ahead[1] / ahead.sum() if ahead.any() else 0
            )
        ahead += own
    if not ahead[1]:
        return None, None
    return (ordered / ahead.prod() if ahead[0] else None), area / ahead[1]
