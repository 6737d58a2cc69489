"""Byte-pair encoding (Sennrich et al., 2016) of many words at once, by array operations.

A word is its bytes; as long as two neighbours have a merge, the pair whose merge was learnt first, and of these the leftmost,
becomes one token. Here each round makes one merge in every word that still has one, so that a round costs some array
operations however many words there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from luban.data.contracts import Array

__all__ = ["Merger"]

_NONE = np.iinfo(np.int32).max  # the rank of a pair without a merge
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Merger:
    """The merges of a tokenizer.

    Args:
        vocabulary: token → number.
        merges: pairs of tokens, the first learnt first.
        letters: the character that stands for each byte in tokens, (256).

    Raises:
        KeyError: if a byte has no token, or a merge is of tokens that are none.

    Example:
        >>> values, counts = merger([b"good", b" room"])      # doctest: +SKIP
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[Any], letters: Sequence[str]) -> None:
        self._first = np.array([vocabulary[letter] for letter in letters], dtype=np.int32)
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
        left, right, both = (
            np.array(numbers, dtype=np.int64).reshape(-1)
            for numbers in (
                [vocabulary[a] for a, _ in pairs],
                [vocabulary[b] for _, b in pairs],
                [vocabulary[a + b] for a, b in pairs],
            )
        )
        self._merged = np.append(both, 0).astype(np.int32)
        slots = 1 << max(4, (4 * len(pairs)).bit_length())
        self._shift = np.uint64(64 - slots.bit_length() + 1)
        self._keys = np.full(slots, -1, dtype=np.int64)
        self._ranks = np.full(slots, _NONE, dtype=np.int32)
        keys, ranks = left << 32 | right, np.arange(len(pairs), dtype=np.int32)
        keys, last = np.unique(keys[::-1], return_index=True)  # of two with the same pair the later counts
        ranks = ranks[::-1][last]
        slot = self._slot(keys)
        while len(slot):
            free = np.flatnonzero(self._keys[slot] < 0)
            _, one = np.unique(slot[free], return_index=True)  # where several want a slot, one gets it
            won = free[one]
            self._keys[slot[won]], self._ranks[slot[won]] = keys[won], ranks[won]
            rest = np.ones(len(slot), dtype=bool)
            rest[won] = False
            keys, ranks, slot = keys[rest], ranks[rest], slot[rest] + 1 & slots - 1

    def _slot(self, keys: Array) -> npt.NDArray[np.int64]:
        slot: npt.NDArray[np.int64] = ((keys.astype(np.uint64) * _MIX) >> self._shift).astype(np.int64)
        return slot

    def _rank(self, left: Array, right: Array) -> npt.NDArray[np.int32]:
        """Return the rank of each pair, (n,); `_NONE` where there is no merge."""
        keys = left.astype(np.int64) << 32 | right
        slot = self._slot(keys)
        found = self._keys[slot]
        result = self._ranks[slot]
        result[found != keys] = _NONE
        open_ = np.flatnonzero((found != keys) & (found >= 0))
        slot = slot[open_]
        while len(open_):
            slot = slot + 1 & len(self._keys) - 1
            found = self._keys[slot]
            there = found == keys[open_]
            result[open_[there]] = self._ranks[slot[there]]
            on = ~there & (found >= 0)
            open_, slot = open_[on], slot[on]
        return result

    def __call__(self, words: list[bytes]) -> tuple[Array, Array]:
        """Return the tokens of words, one after the other, and how many each has; no word is empty."""
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        tokens = self._first[np.frombuffer(b"".join(words), dtype=np.uint8)]
        starts = np.cumsum(lengths) - lengths
        ranks = np.full(len(tokens), _NONE, dtype=np.int32)  # of a token with the one after it in its word
        inner = np.ones(len(tokens), dtype=bool)
        inner[starts + lengths - 1] = False
        places = np.flatnonzero(inner)
        ranks[places] = self._rank(tokens[places], tokens[places + 1])
        alive = np.arange(len(words))
        counts = np.zeros(len(words), dtype=np.int64)
        done: list[tuple[Array, Array]] = []  # words, their tokens
        while len(alive):
            # The lowest rank of each word and its leftmost place, in one number.
            best = np.minimum.reduceat(ranks.astype(np.int64) << 32 | np.arange(len(tokens)), starts)
            going = best >> 32 < _NONE
            if not going.all():
                ended = np.repeat(~going, lengths)
                done.append((alive[~going], tokens[ended]))
                counts[alive[~going]] = lengths[~going]
                before: Array = np.cumsum(ended) - ended
                tokens, ranks = tokens[~ended], ranks[~ended]
                alive, lengths, best = alive[going], lengths[going], best[going]
                if not len(alive):
                    break
                starts = np.cumsum(lengths) - lengths
                place = (best & 0xFFFFFFFF) - before[best & 0xFFFFFFFF]
            else:
                place = best & 0xFFFFFFFF
            tokens[place] = self._merged[best >> 32]
            kept = np.ones(len(tokens), dtype=bool)
            kept[place + 1] = False
            tokens, ranks = tokens[kept], ranks[kept]
            shift = np.arange(len(alive))  # one token fewer in each word before
            place, starts, lengths = place - shift, starts - shift, lengths - 1
            behind = np.flatnonzero(place > starts)
            ahead = np.flatnonzero(place + 1 < starts + lengths)
            ranks[place] = _NONE
            changed = np.concatenate([place[behind] - 1, place[ahead]])
            ranks[changed] = self._rank(tokens[changed], tokens[changed + 1])
        result = np.empty(int(counts.sum()), dtype=np.int32)
        begins = np.cumsum(counts) - counts
        for of, values in done:
            each = counts[of]
            ends = np.cumsum(each)
            result[np.repeat(begins[of] - ends + each, each) + np.arange(len(values))] = values
        return result, counts
