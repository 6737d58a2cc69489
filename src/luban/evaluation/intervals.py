"""How far a measured number may be off because the rows are a sample.

The bootstrap (Efron 1979) answers for every metric in the same way: draw as many rows with replacement as
there are, measure again, and take the middle 95 % of a thousand such measurements. A resample is a row of
counts, so all of them at once are one matrix product with whatever a metric sums over the rows.

Beyond `UNITS` rows, rows are dealt by lot into `UNITS` groups (fewer where a row brings very many sums, as with
thousands of labels) and the groups are drawn. Sums over groups vary as the rows do, so the interval stays right,
every row counts, and neither work nor memory grows with the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luban.sentences import say

__all__ = ["LEVEL", "UNITS", "Metric", "deal", "interval", "mcnemar", "resamples", "units_of"]

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""Share of resamples that an interval holds."""
UNITS = 20_000
"""Rows are drawn one by one up to this number, and in as many groups beyond it."""
_FEWEST = 1_000  # units, however many sums
_CELLS = 2**24  # sums kept at most, of all units: 128 MB
_CHUNK = 2_000_000  # counts made at a time: 16 MB, which stays near the cache


@dataclass(frozen=True)
class Metric:
    """A measured number with its 95 % interval.

    Attributes:
        value: the number; None where it is not defined.
        low: lower end of the interval; None where there is none.
        high: upper end of the interval; None where there is none.
        note: why there is no number or no interval, or how the interval was made if it is not the usual way.

    Example:
        >>> str(Metric(0.913, 0.902, 0.925))
        '0.913 (0.902 to 0.925)'
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str | None = None

    def __str__(self) -> str:
        if self.value is None:
            return f"none ({self.note})"
        return f"{self.value:.4g}" + ("" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})")


def units_of(rows: int, width: int) -> int:
    """Return in how many units rows are drawn that bring `width` sums each, so that all sums fit into memory."""
    return min(rows, UNITS, max(_FEWEST, _CELLS // width))


def deal(window: slice, rows: int, units: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the units of some rows, (n,): a row's own, or by lot where units are fewer than rows.

    Lots are drawn row by row, so that all rows need not be in memory, and rows that lie in order are dealt as any others.
    """
    if units == rows:
        return np.arange(window.start, window.stop)
    lots = np.random.PCG64([seed, 1]).advance(window.start)  # a number a row: any row's can be drawn alone
    drawn: Floats = np.random.Generator(lots).random(window.stop - window.start)
    return (drawn * units).astype(np.int64)


def resamples(units: int, count: int, seed: int, width: int = 1) -> Iterator[Floats]:
    """Yield how often each unit is drawn, (some, units) at a time, `count` resamples in all.

    Args:
        units: to draw from, with replacement.
        count: how many resamples.
        seed: of the draws.
        width: numbers made of each resample; many of them, and fewer resamples come at a time.
    """
    generator = np.random.default_rng([seed, 2])
    step = max(1, _CHUNK // max(1, units, width))
    for start in range(0, count, step):
        size = min(step, count - start)
        drawn = generator.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)


def interval(
    value: float,
    draws: npt.NDArray[Any],
    *,
    note: str | None = None,
    trials: float | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Metric:
    """Return the percentile interval of a metric, corrected for bias.

    The calibration error of a sample is larger on average than the truth, and that of a resample larger again
    by about as much; average precision and macro F1 are biased too. So the ends move by twice the mean
    difference of resamples and value (once from resample to sample, once from sample to truth), and then out
    to the value if that is not between them. Of nominal 95 %, with 50 classes of 10 rows each, the interval
    of macro F1 held the truth in 91 % of trials instead of 76 %, that of average precision in 63 % instead of
    none; unbiased metrics stay as they were.

    Args:
        value: the metric of all rows; NaN if it is not defined.
        draws: the metric of each resample, (resamples,); NaN where it is not defined, which is left out.
        note: what to say with it; the reason, if the value is NaN.
        trials: for a share of rows, of how many. Where it is 0 or 1, no resample can show what no row did,
            and the interval is that of Clopper and Pearson (1934).
        bounds: what the metric can be.
    """
    if np.isnan(value):
        return Metric(None, note=note)
    drawn = draws[~np.isnan(draws)]
    if len(draws) == 0:
        return Metric(float(value), note=note)
    if len(drawn) < len(draws) / 2:
        return Metric(float(value), note=say("no interval: not defined in most resamples"))
    tail = (1 - LEVEL) / 2
    low, high = np.clip(np.quantile(drawn, [tail, 1 - tail]) - 2 * (drawn.mean() - value), *bounds)
    if trials is not None and value in (0, 1) and np.all(drawn == value):
        edge = tail ** (1 / trials)
        low, high, note = (edge, 1.0, note) if value == 1 else (0.0, 1 - edge, note)
    elif np.ptp(drawn) == 0:
        note = note or "all resamples agree: the rows do not tell how far it may be off"
    return Metric(float(value), float(min(low, value)), float(max(high, value)), note)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the p-value of McNemar's exact test (1947): are two models' mistakes equally many?

    Only rows that one of the two gets right count; if the models are equally good, it is either with
    probability one half.

    Args:
        only_a: rows that only the first model gets right.
        only_b: rows that only the second model gets right.

    Example:
        >>> mcnemar(1, 9)
        0.021484375
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
