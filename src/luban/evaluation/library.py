"""The reported value of each metric, computed by scikit-learn.

A bootstrap needs a metric a thousand times over, which `luban.evaluation.metrics` does from sums and sorted scores; the value
itself is scikit-learn's, so that nobody has to trust a formula of ours. The tests hold the two to each other.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["values"]

Array: TypeAlias = npt.NDArray[Any]


def values(task: str, records: Array, classes: int) -> dict[str, float]:
    """Return metric → value for the records of a `Collector`; only what scikit-learn has, and what is defined.

    Args:
        task: ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
        records: one a row, with ``truth``, ``said``, ``weight`` and, but for regression, ``scores``.
        classes: how many classes or labels.
    """
    from sklearn import metrics as sk

    weight = np.asarray(records["weight"], dtype=np.float64)
    counted = weight > 0
    records, weight = records[counted], weight[counted]
    if not len(records):
        return {}
    truth, said = np.asarray(records["truth"]), np.asarray(records["said"])
    found: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not defined, which is told apart below
        if task == "regression":
            found["mae"] = sk.mean_absolute_error(truth, said, sample_weight=weight)
            found["rmse"] = sk.root_mean_squared_error(truth, said, sample_weight=weight)
            if len(truth) > 1:
                found["r2"] = sk.r2_score(truth, said, sample_weight=weight)
            return _defined(found)
        scores = np.asarray(records["scores"], dtype=np.float64)
        exact = "subset_accuracy" if task == "multilabel" else "accuracy"
        found[exact] = sk.accuracy_score(truth, said, sample_weight=weight)
        if task == "multilabel":
            found["hamming"] = sk.hamming_loss(truth, said, sample_weight=weight)
        present = np.flatnonzero((truth | said).any(0)) if task == "multilabel" else np.union1d(truth, said)
        for average in ("macro", "micro", "weighted"):
            three = sk.precision_recall_fscore_support(
                truth, said, labels=present, average=average, sample_weight=weight, zero_division=0
            )
            for name, value in zip(("precision", "recall", "f1"), three[:3], strict=True):
                found[f"{name}_{average}"] = value
        if task == "binary":
            three = sk.precision_recall_fscore_support(
                truth, said, labels=[1], average="macro", sample_weight=weight, zero_division=np.nan
            )
            found.update(zip(("precision", "recall", "f1"), map(float, three[:3]), strict=True))
        if task != "multilabel":
            found["mcc"] = sk.matthews_corrcoef(truth, said, sample_weight=weight)
        if scores.shape[1]:
            found.update(_of_scores(sk, task, truth, scores, weight, classes))
    return _defined(found)


def _of_scores(
    sk: Any, task: str, truth: Array, scores: Array, weight: Array, classes: int
) -> dict[str, float]:
    """Return the metrics of probabilities: of each class against the rest, averaged over those that can be told apart."""
    if task == "binary":
        hot, columns = truth[:, None] == 1, scores
    elif task == "multiclass":
        hot, columns = truth[:, None] == np.arange(classes), scores
    else:
        hot, columns = truth, scores
    both = [k for k in range(hot.shape[1]) if hot[:, k].any() and not hot[:, k].all()]
    some = [k for k in range(hot.shape[1]) if hot[:, k].any()]
    found: dict[str, float] = {}
    if both:
        areas = [sk.roc_auc_score(hot[:, k], columns[:, k], sample_weight=weight) for k in both]
        found["roc_auc"] = float(np.mean(areas))
    if some:
        areas = [sk.average_precision_score(hot[:, k], columns[:, k], sample_weight=weight) for k in some]
        found["pr_auc"] = float(np.mean(areas))
    return found


def _defined(found: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}
