"""What the processors share."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from luban.data.contracts import Array, seconds

__all__ = ["LARGEST", "as_numbers", "as_words", "in_order", "sigmoid", "smallest_integer"]

LARGEST = 1e38
"""What float32 holds, nearly; a number beyond it counts as none."""


def as_numbers(values: pl.Series) -> pl.Series:
    """Return the column as Float64; what is no number, or none that float32 holds, becomes null.

    Thousands separators, surrounding blanks, full-width digits and a trailing percent sign are understood; of a span of time,
    the seconds.
    """
    if isinstance(values.dtype, pl.Duration):
        values = seconds(values)
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        if numbers.null_count() > text.null_count():  # only then is the repair worth its time
            tidy = (
                text.str.normalize("NFKC")
                .str.replace_all(r"(\d),(\d{3})", "${1}${2}")
                .str.replace_all(r"(\d),(\d{3})", "${1}${2}")
            )
            percent = tidy.str.ends_with("%")
            repaired = tidy.str.strip_chars_end("%").cast(pl.Float64, strict=False)
            repaired = pl.select(pl.when(percent).then(repaired / 100).otherwise(repaired)).to_series()
            numbers = numbers.fill_null(repaired) if len(numbers) else numbers
    elif values.dtype == pl.Boolean or values.dtype.is_numeric():
        numbers = values.cast(pl.Float64)
    elif values.dtype == pl.Null:
        numbers = pl.Series(values.name, [None] * len(values), dtype=pl.Float64)
    else:
        numbers = values.cast(pl.String, strict=False).cast(pl.Float64, strict=False)
    return pl.select(pl.when(numbers.abs() <= LARGEST).then(numbers)).to_series().alias(values.name)


def as_words(values: pl.Series) -> pl.Series:
    """Return the column as strings, the same word for the same value whatever the file's type: 3, 3.0 and '3' are '3'."""
    if values.dtype == pl.String:
        words = values.str.strip_chars()
        return pl.select(pl.when(words != "").then(words)).to_series().alias(values.name)
    if isinstance(values.dtype, pl.Duration):
        values = seconds(values)
    if values.dtype.is_float():
        values = values.fill_nan(None)
        whole = values.is_finite() & (values == values.floor()) & (values.abs() < 2**53)
        whole_words = values.cast(pl.Int64, strict=False).cast(pl.String)
        return (
            pl.select(pl.when(whole).then(whole_words).otherwise(values.cast(pl.String)))
            .to_series()
            .alias(values.name)
        )
    if values.dtype == pl.Binary:
        return values.cast(pl.String, strict=False)
    if values.dtype == pl.Null:
        return pl.Series(values.name, [None] * len(values), dtype=pl.String)
    return values.cast(pl.String, strict=False)


def smallest_integer(size: int) -> str:
    """Return the name of the narrowest dtype that holds 0 ... size - 1 (torch reads no unsigned wider than a byte)."""
    return "uint8" if size <= 256 else "int16" if size <= 2**15 else "int32"


def in_order(words: list[str]) -> list[str]:
    """Sort words: as numbers if all are, else as text."""
    try:
        numbers = {word: float(word) for word in words}
    except ValueError:
        return sorted(words)
    if not all(map(math.isfinite, numbers.values())):  # 'nan' stands before and after every number
        return sorted(words)
    return sorted(words, key=lambda word: (numbers[word], word))


def sigmoid(logits: Array) -> Array:
    """Return probabilities, in double precision and without overflow."""
    result: Array = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    return result
