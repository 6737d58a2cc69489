"""The order in which rows are visited: an exact shuffle of any number of rows, in constant memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Shuffle"]

_ROUNDS = 6


class Shuffle:
    """A pseudo-random permutation of 0 ... n - 1 that is computed, not stored.

    A Feistel network permutes the next power of four; values beyond n walk the cycle on until they fall below it (Black and
    Rogaway, 2002, 'Ciphers with arbitrary finite domains'). So the position in an epoch is one integer, resuming needs no
    skipping, and a billion rows cost no list.

    Example:
        >>> sorted(Shuffle(5, seed=1)(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self._half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
        self._mask = np.uint64((1 << self._half) - 1)
        self._keys = np.random.default_rng(seed).integers(0, 2**63, _ROUNDS, dtype=np.uint64)

    def _encrypt(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        half, mask = np.uint64(self._half), self._mask
        left, right = x >> half, x & mask
        for key in self._keys:
            # The mixer of SplitMix64 (Steele et al., 2014) as round function.
            z = right + key
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((z ^ (z >> np.uint64(31))) & mask)
        return (left << half) | right

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows at positions of the shuffled order."""
        if self.n <= 1:
            return np.zeros(len(positions), dtype=np.int64)
        result = self._encrypt(positions.astype(np.uint64))
        while (outside := result >= np.uint64(self.n)).any():
            result[outside] = self._encrypt(result[outside])
        return result.astype(np.int64)
