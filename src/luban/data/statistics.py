"""Statistics of a stream of numbers, in memory that does not grow with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Moments", "Reservoir"]

Floats = npt.NDArray[np.float64]


class Moments:
    """Count, mean, variance, minimum and maximum, merged chunk by chunk (Chan, Golub and LeVeque, 1983).

    Example:
        >>> m = Moments()
        >>> for chunk in ([1.0, 2.0], [3.0]): m.update(np.array(chunk))
        >>> m.count, m.mean, round(m.std, 6)
        (3, 2.0, 0.816497)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0
        self.low = math.inf
        self.high = -math.inf

    def update(self, values: Floats) -> None:
        """Take in one more chunk of finite values, (n,)."""
        n = len(values)
        if n == 0:
            return
        mean = float(values.mean())
        delta = mean - self.mean
        total = self.count + n
        self._squares += float(((values - mean) ** 2).sum()) + delta * delta * self.count * n / total
        self.mean += delta * n / total
        self.count = total
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    @property
    def std(self) -> float:
        """Population standard deviation; 0 without values."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0


class Reservoir:
    """Values themselves up to `limit`, a uniform sample of that size beyond it (Vitter, 1985, by random keys).

    Quantiles are exact as long as no value was dropped. The sample depends on the seed and the order of the values alone.
    """

    def __init__(self, limit: int = 1_000_000, seed: int = 0) -> None:
        self.limit = limit
        self.seen = 0
        self._generator = np.random.default_rng(seed)
        self._parts: list[npt.NDArray[Any]] = []
        self._keys: list[Floats] = []
        self._held = 0

    @property
    def exact(self) -> bool:
        """Whether every value seen is still held."""
        return self.seen <= self.limit

    def update(self, values: npt.NDArray[Any]) -> None:
        """Take in one more chunk, (n,)."""
        self.seen += len(values)
        self._parts.append(values)
        self._keys.append(self._generator.random(len(values)))
        self._held += len(values)
        if self._held > 2 * self.limit:
            self._thin()

    def _thin(self) -> None:
        values, keys = np.concatenate(self._parts), np.concatenate(self._keys)
        if len(values) > self.limit:
            kept = np.sort(np.argpartition(keys, self.limit)[: self.limit])
            values, keys = values[kept], keys[kept]
        self._parts, self._keys, self._held = [values], [keys], len(values)

    def values(self) -> npt.NDArray[Any]:
        """Return what is held, in the order it came."""
        if not self._parts:
            return np.empty(0)
        self._thin()
        return self._parts[0]

    def quantile(self, q: float) -> float:
        """Return the quantile q in [0, 1], linearly interpolated; NaN without values."""
        held = self.values()
        return float(np.quantile(held, q)) if len(held) else math.nan
