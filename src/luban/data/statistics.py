"""Statistics of a stream of numbers, in memory that does not grow with it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["Moments"]

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
