"""Metrics as people read them: which is told first, which way is better, how many digits."""

from __future__ import annotations

from typing import Any

from luban.reporting._words import Words, number, percent

__all__ = [
    "HEADLINE",
    "SHOWN",
    "better",
    "difference",
    "differences",
    "distance",
    "headline",
    "interval",
    "of_target",
    "value",
]

HEADLINE = {"binary": "accuracy", "multiclass": "accuracy", "multilabel": "f1_micro", "regression": "mae"}
"""Task → the metric that is told first; of language the bits per byte, else the perplexity."""
SHOWN = {
    "binary": ("accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "mcc", "log_loss", "brier", "ece"),
    "multiclass": (
        "accuracy", "top_5_accuracy", "f1_macro", "precision_macro", "recall_macro", "roc_auc", "mcc", "log_loss", "brier", "ece",
    ),
    "multilabel": ("f1_micro", "f1_macro", "precision_micro", "recall_micro", "subset_accuracy", "hamming", "roc_auc", "pr_auc"),
    "regression": ("mae", "median_ae", "rmse", "r2", "pearson"),
    "text": ("bits_per_byte", "perplexity", "loss"),
}  # fmt: skip
"""Task → the metrics of its table; the others are folded below."""
_LOWER = frozenset(
    ("log_loss", "brier", "ece", "mae", "rmse", "median_ae", "hamming", "loss", "perplexity", "bits_per_byte")
)
_SHARES = frozenset(("accuracy", "top_5_accuracy", "subset_accuracy"))


def better(metric: str) -> int:
    """Return 1 if more is better, else -1.

    Example:
        >>> better("accuracy"), better("log_loss")
        (1, -1)
    """
    return -1 if metric in _LOWER else 1


def headline(task: str, metrics: dict[str, Any]) -> str | None:
    """Return the metric to be told first, if it was measured."""
    for name in (HEADLINE.get(task, "bits_per_byte"), *SHOWN.get(task, SHOWN["text"])):
        if metrics.get(name, {}).get("value") is not None:
            return name
    return None


def of_target(metrics: dict[str, Any], target: str) -> dict[str, Any]:
    """Return the metrics of one target by their own names."""
    start = f"{target}."
    return {
        name.removeprefix(start): one
        for name, one in metrics.items()
        if name.startswith(start) and "." not in name.removeprefix(start)
    }


def value(metric: str, one: float | None) -> str:
    """Return a metric as it is read: shares of rows in per cent."""
    return percent(one, strip=False) if metric in _SHARES else number(one)


def interval(words: Words, metric: str, one: dict[str, Any]) -> str:
    """Return both ends of an interval; empty where there is none."""
    if one.get("low") is None or one.get("high") is None:
        return ""
    return words("range", low=value(metric, one["low"]), high=value(metric, one["high"]))


def differences(words: Words, metric: str, low: float, high: float) -> str:
    """Return both ends of the interval of a difference."""
    if metric in _SHARES:
        return words("points", n=words("range", low=_points(low), high=_points(high)))
    return words("range", low=difference(words, metric, low), high=difference(words, metric, high))


def _points(one: float) -> str:
    text = f"{100 * one:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def distance(words: Words, metric: str, one: float | None) -> str:
    """Return how far two values are apart, without a sign."""
    return difference(words, metric, None if one is None else abs(one)).lstrip("+")


def difference(words: Words, metric: str, one: float | None) -> str:
    """Return a difference with its sign: of shares in points."""
    if one is None:
        return "–"
    sign = "+" if one > 0 else ""
    if metric in _SHARES:
        return words("points", n=_points(one))
    return f"{sign}{number(one)}"
