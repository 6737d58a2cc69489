"""Rows in order of a number, in memory that does not grow with the rows.

A metric of an order needs a sort. Up to `ROOM` rows are sorted at once. Beyond, the leading sixteen bits of a number say
which rows come first (the first step of a radix sort): a pass counts the rows of each leading half, and the rows of some
neighbouring halves, `ROOM` at most, are then read again and sorted, from the highest to the lowest. The result is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from luban.evaluation.records import Table

__all__ = ["ROOM", "Run", "falling", "positives", "reached"]

Array: TypeAlias = npt.NDArray[Any]
Run: TypeAlias = tuple[Array, npt.NDArray[np.bool_], npt.NDArray[np.float64]]
"""Scores, whether positive, and weights above zero, (n,) each."""

ROOM = 2**19
"""Rows sorted at a time, at about 100 bytes each in scikit-learn."""
_HALF = 2**16


def positives(task: str, table: Table, rows: slice, column: int) -> npt.NDArray[np.bool_]:
    """Return which rows are of the class (or have the label) that a column of scores is about, (n,)."""
    if task == "multilabel":
        return table.read(rows, "truth", column)
    number = 1 if task == "binary" else column
    is_class: npt.NDArray[np.bool_] = table.read(rows, "truth") == number
    return is_class


def falling(task: str, table: Table, column: int) -> Iterator[Run]:
    """Yield all rows of weight above zero in falling order of one column of their scores, as runs of some rows.

    Equal scores are in one run. Where very many are nearly equal, each different one comes as one row with the weight of
    all, positives and negatives apart.
    """
    if table.rows <= ROOM:
        parts = [_rows(task, table, window, column, slice(None)) for window in table.windows()]
        yield from _joined(parts)
        return
    counts = np.zeros(_HALF, dtype=np.int64)
    for window in table.windows():
        counts += np.bincount(_keys(table.read(window, "scores", column)) >> 16, minlength=_HALF)
    for low, high in _spans(counts):
        if counts[low:high].sum() > ROOM:
            yield from _by_value(task, table, column, low)
            continue
        parts = []
        for window in table.windows():
            lead = _keys(table.read(window, "scores", column)) >> 16
            if (mine := (low <= lead) & (lead < high)).any():
                parts.append(_rows(task, table, window, column, mine))
        yield from _joined(parts)


def _rows(task: str, table: Table, window: slice, column: int, mine: Any) -> Run:
    weight = table.read(window, "weight")[mine]
    counted = weight > 0
    scores = table.read(window, "scores", column)[mine][counted]
    return scores, positives(task, table, window, column)[mine][counted], weight[counted]


def _joined(parts: list[Run]) -> Iterator[Run]:
    if not parts:
        return
    scores, positive, weight = (np.concatenate(own) for own in zip(*parts, strict=True))
    if len(scores):
        # In order here, once and quickly, so that the stable sorts of whoever reads it find nothing to do.
        order = np.argsort(-scores)
        yield scores[order], positive[order], weight[order]


def _spans(counts: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield neighbouring leading halves that hold `ROOM` rows at most (or one that holds more), highest first."""
    low = high = held = 0
    for lead in np.flatnonzero(counts)[::-1].tolist():
        if held and held + counts[lead] > ROOM:
            yield low, high
            held = 0
        high = high if held else lead + 1
        low, held = lead, held + int(counts[lead])
    if held:
        yield low, high


def _by_value(task: str, table: Table, column: int, lead: int) -> Iterator[Run]:
    """Yield the different scores of one leading half, of which there are 65,536 at most."""
    weights = np.zeros((2, _HALF))
    for window in table.windows():
        keys = _keys(table.read(window, "scores", column))
        if not (mine := keys >> 16 == lead).any():
            continue
        low, weight = keys[mine] & (_HALF - 1), table.read(window, "weight")[mine]
        positive = positives(task, table, window, column)[mine]
        for row, own in enumerate((~positive, positive)):
            weights[row] += np.bincount(low, weight * own, _HALF)
    kinds, low = np.nonzero(weights)
    scores = _values((np.uint32(lead) << np.uint32(16)) + low.astype(np.uint32))
    yield from _joined([(scores, kinds == 1, weights[kinds, low])])


def reached(
    chunks: Callable[[], Iterable[tuple[Array, Array]]], goals: list[tuple[float, bool]]
) -> list[float]:
    """Return the numbers at which the weight of all numbers up to there reaches goals.

    Four passes, one for each sixteen bits of a number.

    Args:
        chunks: makes a pass over float64 numbers and their weights, (n,) each.
        goals: a weight above zero, and whether it must be passed and not only met; below or equal the total.

    Example:
        >>> reached(lambda: [(np.array([3.0, -1.0]), np.ones(2)), (np.array([2.0]), np.ones(1))], [(1.5, False)])
        [2.0]
    """
    prefixes, left = [0] * len(goals), [weight for weight, _ in goals]
    for shift in (48, 32, 16, 0):
        sums = {prefix: np.zeros(_HALF) for prefix in prefixes}
        for values, weights in chunks():
            keys = _keys(values)
            lead = keys >> np.uint64(shift) >> np.uint64(16)
            for prefix, own in sums.items():
                mine = lead == prefix
                low = (keys[mine] >> np.uint64(shift)) & np.uint64(_HALF - 1)
                own += np.bincount(low.astype(np.int64), weights[mine], _HALF)
        some = {prefix: np.flatnonzero(own) for prefix, own in sums.items()}
        upto = {prefix: np.cumsum(own[some[prefix]]) for prefix, own in sums.items()}
        for i, (_, passed) in enumerate(goals):
            prefix = prefixes[i]
            place = int(np.searchsorted(upto[prefix], left[i], side="right" if passed else "left"))
            place = min(place, len(some[prefix]) - 1)  # sums in another order differ in the last bit
            left[i] -= float(upto[prefix][place - 1]) if place else 0.0
            prefixes[i] = (prefix << 16) + int(some[prefix][place])
    return [float(_values(np.array(prefix, dtype=np.uint64))) for prefix in prefixes]


def _keys(values: Array) -> Array:
    """Return whole numbers without sign that are in the same order as these floats."""
    whole = np.dtype(f"u{values.itemsize}").type
    bits = (values + values.dtype.type(0)).view(whole)  # adding 0 makes -0 the same as 0
    top = whole(1 << (8 * values.itemsize - 1))
    keys: Array = np.where(bits & top, ~bits, bits | top)
    return keys


def _values(keys: Array) -> Array:
    """Return the floats that `_keys` made these of."""
    whole = keys.dtype.type
    top = whole(1 << (8 * keys.itemsize - 1))
    floats: Array = np.where(keys & top, keys ^ top, ~keys).view(f"f{keys.itemsize}")
    return floats
