"""Metrics against scikit-learn, and where scikit-learn would warn."""

from __future__ import annotations

import json
import math
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from luban.errors import DivergenceError
from luban.evaluation import metrics as module
from luban.evaluation.metrics import (
    BINS,
    MANY,
    Collector,
    Measured,
    Task,
    compare_paired,
    grouped,
    measure,
    names,
)
from luban.evaluation.records import Pool

Arrays = tuple[Any, Any, Any]
TASKS: list[Task] = ["binary", "multiclass", "multilabel", "regression"]


def rows(task: Task, n: int, width: int, seed: int, *, weighted: bool, ties: bool) -> Arrays:
    """Random truth, scores (coarse ones tie) and weights."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(1, 5, n) / 2 if weighted else None
    if task == "regression":
        truth = generator.normal(3, 10, n).round(0 if ties else 6)
        return truth, truth + generator.normal(0, 5, n).round(0 if ties else 6), weights
    if task == "binary":
        scores = generator.random(n).astype(np.float32)
        truth = (generator.random(n) < scores).astype(int)
    elif task == "multilabel":
        scores = generator.random((n, width)).astype(np.float32)
        truth = (generator.random((n, width)) < scores).astype(int)
    else:
        scores = generator.dirichlet(np.full(width, 0.5), n).astype(np.float32)
        truth = np.array([generator.choice(width, p=p / p.sum()) for p in scores.astype(float)])
    if ties and task != "multiclass":
        scores = (scores * 8).round().astype(np.float32) / 8
    return truth, scores, weights


def ece(truth: Any, said: Any, confidence: Any, weights: Any) -> float:
    """Guo et al. 2017, equation 3, in a plain loop."""
    total, error = 0.0, 0.0
    for b in range(BINS):
        inside = [i for i, c in enumerate(confidence) if b / BINS < float(c) <= (b + 1) / BINS]
        total += sum(weights[i] for i in inside)
        error += abs(sum(weights[i] * (float(truth[i] == said[i]) - float(confidence[i])) for i in inside))
    return error / total


def average_over(truth: Any, scores: Any, weights: Any, function: Any) -> float:
    """Macro over the columns whose truth has both values (for average precision: a positive)."""
    values = [
        function(truth[:, k], scores[:, k], sample_weight=weights)
        for k in range(truth.shape[1])
        if truth[:, k].any() and (function is sk.average_precision_score or not truth[:, k].all())
    ]
    return float(np.mean(values)) if values else math.nan


def scikit(task: Task, truth: Any, scores: Any, weights: Any) -> dict[str, float]:
    w = {"sample_weight": weights}
    if task == "regression":
        own = np.ones(len(truth)) if weights is None else weights
        varied = np.ptp(truth) > 0
        deviation = [v - np.average(v, weights=own) for v in (truth, scores)]
        both = np.sqrt(np.prod([(own * d * d).sum() for d in deviation]))
        return {
            "mae": sk.mean_absolute_error(truth, scores, **w),
            "rmse": sk.root_mean_squared_error(truth, scores, **w),
            "r2": sk.r2_score(truth, scores, **w) if varied else math.nan,
            "pearson": (own * deviation[0] * deviation[1]).sum() / both if both > 1e-9 else math.nan,
            "median_ae": sk.median_absolute_error(truth, scores, **w),
        }
    result: dict[str, float] = {}
    if task == "multilabel":
        said = (scores >= 0.5).astype(int)
        present = np.flatnonzero((truth | said).any(0))
        result |= {
            "subset_accuracy": sk.accuracy_score(truth, said, **w),
            "hamming": sk.hamming_loss(truth, said, **w),
        }
        losses = [sk.log_loss(truth[:, k], scores[:, k], labels=[0, 1], **w) for k in range(truth.shape[1])]
        result |= {"log_loss": float(np.mean(losses))}
        binary_truth, columns = truth, scores
        options: dict[str, Any] = {"labels": present}
    else:
        said = (scores >= 0.5).astype(int) if task == "binary" else scores.argmax(1)
        classes = 2 if task == "binary" else scores.shape[1]
        own = np.ones(len(truth)) if weights is None else weights
        two = len(set(truth)) > 1 and len(set(said)) > 1
        chances = np.stack([1 - scores, scores], 1) if task == "binary" else scores
        confidence = chances.max(1)
        result |= {
            "accuracy": sk.accuracy_score(truth, said, **w),
            "mcc": sk.matthews_corrcoef(truth, said, **w) if two else math.nan,
            "log_loss": sk.log_loss(truth, chances, labels=range(classes), **w),
            "ece": ece(truth, said, confidence, own),
        }
        if task == "binary":
            result["brier"] = sk.brier_score_loss(truth, scores, pos_label=1, **w)
            result |= {
                name: function(truth, said, zero_division=np.nan, **w)
                for name, function in (
                    ("precision", sk.precision_score),
                    ("recall", sk.recall_score),
                    ("f1", sk.f1_score),
                )
            }
            binary_truth, columns = truth[:, None], scores[:, None]
        else:
            one_hot = np.eye(classes)[truth]
            result["brier"] = float(np.average(((one_hot - scores) ** 2).sum(1), weights=weights))
            if classes > 5:
                result["top_5_accuracy"] = sk.top_k_accuracy_score(
                    truth, scores, k=5, labels=range(classes), **w
                )
            binary_truth, columns = one_hot.astype(int), scores
        options = {}
    for average in ("macro", "micro", "weighted"):
        for name, function in (
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
            ("f1", sk.f1_score),
        ):
            result[f"{name}_{average}"] = function(
                truth, said, average=average, zero_division=0, **options, **w
            )
    result["roc_auc"] = average_over(binary_truth, columns, weights, sk.roc_auc_score)
    result["pr_auc"] = average_over(binary_truth, columns, weights, sk.average_precision_score)
    return result


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    n=st.integers(1, 60),
    width=st.integers(2, 8),
    seed=st.integers(0, 10_000),
    weighted=st.booleans(),
    ties=st.booleans(),
)
def test_agrees_with_scikit_learn(
    task: Task, n: int, width: int, seed: int, weighted: bool, ties: bool
) -> None:
    truth, scores, weights = rows(task, n, width, seed, weighted=weighted, ties=ties)
    check(task, truth, scores, weights, measure(task, truth, scores, weights, resamples=20))


def check(task: Task, truth: Any, scores: Any, weights: Any, measured: Measured) -> None:
    ours = measured.metrics
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of what is not defined
        theirs = scikit(task, truth, scores, weights)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        metric = ours[name]
        if math.isnan(expected):
            assert metric.value is None, name
            assert metric.note, name
        elif metric.value is None:  # defined as 0 there, with a warning
            assert task == "multilabel", name
            assert expected == 0
            assert metric.note
        else:
            assert metric.value == pytest.approx(expected, abs=1e-6, rel=1e-6), name
            if metric.low is not None and metric.high is not None:
                assert metric.low <= metric.value <= metric.high


def small(patch: pytest.MonkeyPatch) -> None:
    """Make few rows as many: windows, runs and units of some rows."""
    patch.setattr("luban.evaluation.records._WINDOW", 11)
    patch.setattr("luban.evaluation.ranking.ROOM", 7)
    patch.setattr("luban.evaluation.intervals.UNITS", 9)


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    n=st.integers(10, 60),
    width=st.integers(1, 8),
    seed=st.integers(0, 10_000),
    weighted=st.booleans(),
    ties=st.booleans(),
    details=st.booleans(),
)
def test_more_rows_than_fit_agree_with_scikit_learn_too(
    task: Task, n: int, width: int, seed: int, weighted: bool, ties: bool, details: bool
) -> None:
    """Windows, runs and summaries, with the library's values and with ours alone."""
    truth, scores, weights = rows(task, n, max(2, width), seed, weighted=weighted, ties=ties)
    if weights is not None:
        weights = weights - weights.min()  # some rows count for nothing
        weights[0] = 1.0
    collector = Collector(task, pool=Pool(0))
    for start in range(0, n, 5):
        part = slice(start, start + 5)
        collector.update(truth[part], scores[part], None if weights is None else weights[part])
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        measured = collector.compute(resamples=3, details=details)
    check(
        task,
        *(one if weights is None else one[weights > 0] for one in (truth, scores)),
        weights if weights is None else weights[weights > 0],
        measured,
    )


@pytest.mark.parametrize("task", TASKS)
def test_tables_and_curves_of_more_rows_than_fit(task: Task) -> None:
    truth, scores, weights = rows(task, 400, 3, 5, weighted=True, ties=True)
    whole = measure(task, truth, scores, weights, resamples=0).details
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        parts = measure(task, truth, scores, weights, resamples=0).details
    assert parts.keys() == whole.keys()
    for name in {*whole} - {"curves"}:
        assert flat(parts[name]) == pytest.approx(flat(whole[name]), abs=1e-9), name
    for name, curve in whole.get("curves", {}).items():
        assert parts["curves"][name].keys() == curve.keys()
        for key, values in curve.items():
            assert parts["curves"][name][key] == pytest.approx(values, abs=1e-9), (name, key)


def flat(tree: Any) -> list[float]:
    """The numbers of plain data, from the left to the right."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [n for one in tree for n in flat(one)] if isinstance(tree, list) else [tree]


def test_quantiles_of_errors_are_numpys() -> None:
    generator = np.random.default_rng(0)
    truth, said = generator.normal(size=(2, 778))
    errors = measure("regression", truth, said, resamples=0).details["errors"]
    assert list(errors.values()) == pytest.approx(
        np.quantile(said - truth, list(map(float, errors))).tolist()
    )


def peak_of(task: Task, rows_in: int, *, details: bool) -> int:
    """Return the most bytes held while rows arrive and are measured."""
    width = 12
    generator = np.random.default_rng(0)
    tracemalloc.start()
    try:
        collector = Collector(task, pool=Pool(2**17))
        for _ in range(rows_in // 500):
            scores = generator.random((500, width), dtype=np.float32)
            truth = generator.integers(0, 2, 500)
            if task == "multiclass":
                truth, scores = generator.integers(0, width, 500), scores / scores.sum(1, keepdims=True)
            elif task == "multilabel":
                truth = generator.integers(0, 2, (500, width))
            collector.update(truth, scores[:, 0] if task in ("binary", "regression") else scores)
        collector.compute(resamples=5, details=details)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("details", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_memory_does_not_grow_with_the_rows(
    task: Task, details: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luban.evaluation.records._WINDOW", 2**10)
    monkeypatch.setattr("luban.evaluation.ranking.ROOM", 2**11)
    monkeypatch.setattr("luban.evaluation.intervals.UNITS", 200)
    many = 3_000 if task in ("multiclass", "multilabel") else 16_000
    peak_of(task, 500, details=details)  # whatever is imported
    few, more = (peak_of(task, n, details=details) for n in (many, 4 * many))
    assert more < 1.1 * few + 2**14


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("classes", [2, 6, MANY, MANY + 1])
def test_names_are_those_of_what_is_measured(task: Task, classes: int) -> None:
    if task in ("binary", "regression") and classes != 2:
        return
    truth, scores, _ = rows(task, 5, classes, 0, weighted=False, ties=False)
    assert list(measure(task, truth, scores, resamples=0).metrics) == names(task, classes)


@pytest.mark.parametrize("task", TASKS)
def test_whole_weights_are_repeated_rows(task: Task) -> None:
    truth, scores, _ = rows(task, 40, 4, 3, weighted=False, ties=True)
    weights = np.arange(40) % 3
    repeated = measure(task, np.repeat(truth, weights, 0), np.repeat(scores, weights, 0), resamples=0).metrics
    weighted = measure(task, truth, scores, weights, resamples=0).metrics
    assert {n: m.value for n, m in weighted.items()} == pytest.approx(
        {n: m.value for n, m in repeated.items()}
    )


def nones(measured: Measured) -> dict[str, str | None]:
    return {name: metric.note for name, metric in measured.metrics.items() if metric.value is None}


def test_one_class_among_the_rows() -> None:
    measured = measure("binary", np.ones(5, int), np.array([0.9, 0.8, 0.7, 0.4, 0.6]))
    assert nones(measured) == {
        "mcc": "needs two classes among the rows and two among the predictions",
        "roc_auc": "needs rows of a class and rows of another",
    }
    assert measured.metrics["recall"].value == 0.8
    negative = nones(measure("binary", np.zeros(5, int), np.full(5, 0.1)))
    assert negative.keys() == {"precision", "recall", "f1", "mcc", "roc_auc", "pr_auc"}
    assert negative["recall"] == "no row is positive"


def test_labels_that_nothing_has() -> None:
    reasons = nones(measure("multilabel", np.array([[1, 0], [0, 0]]), np.full((2, 2), 0.1)))
    assert reasons == {"precision_micro": "no row is predicted positive"}


def test_a_class_that_the_rows_lack_is_left_out_of_macro_averages() -> None:
    truth, scores = np.array([0, 1, 0, 1]), np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]] * 2)
    metrics = measure("multiclass", truth, scores, resamples=0).metrics
    assert metrics["f1_macro"].value == metrics["roc_auc"].value == metrics["pr_auc"].value == 1.0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [0, 1])
def test_no_row_and_one_row(task: Task, n: int) -> None:
    truth, scores, _ = rows(task, 1, 3, 0, weighted=False, ties=False)
    measured = measure(task, truth[:n], scores[:n])
    assert measured.rows == n
    for metric in measured.metrics.values():
        assert metric.low is None
        assert metric.note
        assert n or metric.value is None
    assert "accuracy" not in measured.metrics or (measured.metrics["accuracy"].value is None) == (n == 0)
    weightless = measure(task, truth, scores, np.zeros(1)).metrics
    assert all(metric.value is None for metric in weightless.values())


def test_constant_predictions() -> None:
    generator = np.random.default_rng(0)
    metrics = measure("binary", generator.integers(0, 2, 50), np.full(50, 0.7)).metrics
    assert metrics["roc_auc"].value == 0.5
    assert metrics["mcc"].value is None
    metrics = measure("regression", generator.normal(size=50) + 1e6, np.full(50, 1e6)).metrics
    assert metrics["pearson"].note == "needs two rows whose truth differs and whose predictions differ"
    assert metrics["r2"].value == pytest.approx(0, abs=0.1)
    assert measure("regression", np.full(9, 0.1), np.arange(9.0)).metrics["r2"].value is None


def test_scores_that_are_not_finite_refuse() -> None:
    with pytest.raises(DivergenceError, match="1 of 2 rows"):
        measure("multiclass", np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("limit", [0, 1000, 2**28])
def test_batches_and_a_file_on_disk_change_nothing(task: Task, limit: int) -> None:
    truth, scores, weights = rows(task, 300, 7, 1, weighted=True, ties=False)
    whole = measure(task, truth, scores, weights, resamples=50)
    pool = Pool(limit)
    collector = Collector(task, pool=pool)
    for start in range(0, 200, 37):
        part = slice(start, min(start + 37, 200))
        collector.update(truth[part], scores[part], weights[part])
    collector.compute(resamples=0)  # a look in between
    collector.update(truth[200:], scores[200:], weights[200:])
    assert pool.spilled == (limit < 2000)
    assert collector.compute(resamples=50).to_json() == whole.to_json()


def test_many_classes_keep_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, scores, _ = rows("multiclass", 200, 8, 0, weighted=False, ties=False)
    full = measure("multiclass", truth, scores)
    monkeypatch.setattr(module, "MANY", 7)
    collector = Collector("multiclass")
    collector.update(truth, scores)
    assert collector.table().dtype.itemsize == 32
    reduced = collector.compute()
    assert list(reduced.metrics) == ["accuracy", "top_5_accuracy", "log_loss", "brier", "ece"]
    assert all(full.metrics[name] == metric for name, metric in reduced.metrics.items())
    assert reduced.details.keys() == {"reliability"}


def test_details() -> None:
    truth, scores, _ = rows("binary", 5000, 2, 0, weighted=False, ties=False)
    details = json.loads(
        json.dumps(measure("binary", truth, scores, classes=["no", "yes"], resamples=0).details)
    )
    said = scores >= 0.5
    assert details["confusion"] == sk.confusion_matrix(truth, said).tolist()
    report = sk.classification_report(truth, said, target_names=["no", "yes"], output_dict=True)
    yes = details["per_class"]["yes"]
    assert yes == pytest.approx(
        {
            "precision": report["yes"]["precision"],
            "recall": report["yes"]["recall"],
            "f1": report["yes"]["f1-score"],
            "support": truth.sum(),
            "predicted": said.sum(),
        }
    )
    assert sum(line["weight"] for line in details["reliability"]) == 5000
    assert all(line["low"] <= line["confidence"] <= line["high"] for line in details["reliability"])
    curve = details["curves"]["yes"]
    assert list(details["curves"]) == ["yes"]
    assert 150 < len(curve["recall"]) <= 200
    area = np.trapezoid([0, *curve["recall"]], [0, *curve["false_positive_rate"]])
    assert area == pytest.approx(sk.roc_auc_score(truth, scores), abs=2e-3)
    place = 100
    above = scores >= curve["threshold"][place]
    assert curve["precision"][place] == pytest.approx(truth[above].mean())

    errors = measure("regression", np.zeros(101), np.arange(101.0), resamples=0).details["errors"]
    assert errors == {"0.05": 5.0, "0.25": 25.0, "0.5": 50.0, "0.75": 75.0, "0.95": 95.0}


def test_slices_are_measured_apart() -> None:
    truth, scores, weights = rows("binary", 100, 2, 0, weighted=True, ties=False)
    groups = np.where(np.arange(100) < 30, "south", "north")
    slices = grouped("binary", truth, scores, groups, weights, resamples=30)
    assert list(slices) == ["north", "south"]
    assert slices["south"] == measure("binary", truth[:30], scores[:30], weights[:30], resamples=30)


def test_the_same_seed_gives_the_same_intervals() -> None:
    truth, scores, _ = rows("binary", 100, 2, 0, weighted=False, ties=False)
    first, again, other = (measure("binary", truth, scores, seed=seed).metrics for seed in (0, 0, 1))
    assert first == again
    assert first["accuracy"] != other["accuracy"]


def test_beyond_the_units_intervals_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped rows (sums) and sampled rows (orders) give the spread that drawing each row would."""
    truth, scores, _ = rows("binary", 8000, 2, 0, weighted=False, ties=False)
    exact = measure("binary", truth, scores).metrics
    monkeypatch.setattr("luban.evaluation.intervals.UNITS", 1000)
    rough = measure("binary", truth, scores).metrics
    for name, metric in exact.items():
        assert rough[name].value == pytest.approx(metric.value)
        width = (metric.high or 0) - (metric.low or 0)
        assert (rough[name].high or 0) - (rough[name].low or 0) == pytest.approx(width, rel=0.25), name
    assert rough["roc_auc"].note == "interval from 1000 of 8000 rows"
    assert rough["accuracy"].note is None


def test_a_paired_comparison() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 400)
    good = np.clip(truth * 0.4 + 0.3 + generator.normal(0, 0.25, 400), 0, 1)
    worse = np.clip(good + generator.normal(0, 0.1, 400), 0, 1)
    compared = compare_paired("binary", truth, good, worse)
    alone = [measure("binary", truth, scores).metrics for scores in (good, worse)]
    for name, difference in compared.differences.items():
        a, b = (metrics[name] for metrics in alone)
        assert difference.value == pytest.approx((b.value or 0) - (a.value or 0))
        # the shared rows cancel: narrower than the model's own interval (calibration shares little)
        assert name == "ece" or (difference.high or 0) - (difference.low or 0) < (a.high or 0) - (a.low or 0)
    hits = [(scores >= 0.5) == truth for scores in (good, worse)]
    assert compared.only_a == (hits[0] & ~hits[1]).sum()
    assert compared.only_b == (hits[1] & ~hits[0]).sum()
    same = compare_paired("regression", truth, good, good)
    assert {m.value for m in same.differences.values()} == {0.0}
    assert same.p_value is None
    equal = compare_paired("multilabel", np.eye(4, dtype=int), np.eye(4), np.eye(4))
    assert (equal.only_a, equal.only_b, equal.p_value) == (0, 0, 1.0)
