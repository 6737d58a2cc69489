"""The columns of a table, at a glance: what is missing, what is typical, how it is spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from luban.data.contracts import Processor
from luban.data.processors._base import as_numbers, as_words

__all__ = ["summary"]

_BINS = 16
_SHOWN = 5
_LONGEST = 40  # characters of a value that is shown


def summary(
    rows: pl.DataFrame, column: str, processor: Processor, role: str, *, values: bool = True
) -> dict[str, Any]:
    """Describe a column.

    Args:
        rows: a sample of rows as the user has them.
        column: its name.
        processor: how it is read.
        role: ``input``, ``target`` or ``group``.
        values: whether values of single rows may be shown; of words only those that five rows or more
            share are, unless there are few rows to begin with.

    Returns:
        ``name``, ``role``, ``kind``, ``missing`` (share), ``distinct``, and by kind: ``low``, ``median``, ``high``, ``mean``,
        ``histogram`` of numbers or of lengths (``measure`` says which), or ``top`` (value, share).
    """
    series = rows[column]
    found: dict[str, Any] = {
        "name": column,
        "role": role,
        "kind": processor.type,
        "missing": series.null_count() / max(1, len(series)),
    }
    if processor.type == "number":
        numbers = as_numbers(series).drop_nulls().to_numpy()
        return found | {"measure": "value", "distinct": len(np.unique(numbers))} | _spread(numbers, values)
    if processor.type in ("text", "chat") and series.dtype == pl.String:
        lengths = series.str.len_chars().drop_nulls().to_numpy().astype(float)
        return found | {"measure": "characters", "distinct": series.n_unique()} | _spread(lengths, True)
    if processor.type in ("category", "binary", "set"):
        words = as_words(series).drop_nulls()
        counted = words.alias("word").value_counts(sort=True)
        top = [
            {"value": word[:_LONGEST], "share": n / max(1, len(series))}
            for word, n in counted.head(_SHOWN).iter_rows()
            if n >= 5 or (values and len(series) < 100)
        ]
        return found | {"distinct": len(counted), "top": top}
    return found


def _spread(numbers: Any, ends: bool) -> dict[str, Any]:
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return {}
    low, first, median, last, high = np.quantile(numbers, (0, 0.01, 0.5, 0.99, 1))
    # The outermost hundredth on either side would squeeze all else into one bar.
    inside = numbers[(numbers >= first) & (numbers <= last)]
    heights, _ = np.histogram(inside, bins=_BINS)
    return {
        "low": float(low if ends else first),
        "median": float(median),
        "high": float(high if ends else last),
        "mean": float(numbers.mean()),
        "histogram": heights.tolist(),
    }
