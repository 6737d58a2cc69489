"""Words to tokens, many at once: byte-pair encoding (Sennrich et al., 2016) and word pieces (Wu et al., 2016).

Where there is a compiler that is C++ of Luban's own (`_words.cpp`). Else merges are made by array operations, ten times as slowly:
each round makes one merge in every word that still has one, so that a round costs some of them however many words there are. Both
give the same tokens. Word pieces have no such way, and go to the library then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from luban.data.contracts import Array
from luban.native import Native

__all__ = ["NATIVE", "Merger", "Speller", "WordPieces"]

_NONE = np.iinfo(np.int32).max  # the rank of a pair without a merge
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Speller(Protocol):
    """Turns words into tokens."""

    def ready(self) -> bool:
        """Return whether it can, on this machine, now."""

    def __call__(self, data: Array, lengths: Array) -> tuple[Array, Array]:
        """Return the tokens of words, one after the other, and how many each has.

        Args:
            data: the bytes of all words, uint8, one word after the other.
            lengths: how many bytes each has, at least 1, int64, (n,).
        """


class _Merges(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("first", "keys", "ranks", "merged")),
        ("mix", ctypes.c_uint64),
        ("shift", ctypes.c_int64),
        ("mask", ctypes.c_int64),
    )


class _Pieces(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("bytes", "starts", "inside", "ids", "table")),
        *((name, ctypes.c_int64) for name in ("count", "mask", "longest", "most")),
        ("unknown", ctypes.c_int32),
    )


def _prepare(library: ctypes.CDLL) -> str:
    for name in ("merge", "learn_pieces", "part_words"):
        getattr(library, name).restype = None
    return "words"


NATIVE = Native(Path(__file__).with_name("_words.cpp"), prepare=_prepare, instead="arrays", late=True)


def _spelt(function: Any, how: ctypes.Structure, data: Array, lengths: Array) -> tuple[Array, Array]:
    """Return what a function of the library makes of words: no more tokens than bytes."""
    data, lengths = np.ascontiguousarray(data, np.uint8), np.ascontiguousarray(lengths, np.int64)
    assert int(lengths.sum()) == len(data), "the words are not as long as they are said to be"
    tokens, counts = np.empty(len(data), np.int32), np.empty(len(lengths), np.int64)
    given, wanted = (data.ctypes.data, lengths.ctypes.data), (tokens.ctypes.data, counts.ctypes.data)
    function(
        ctypes.byref(how),
        *map(ctypes.c_void_p, given),
        ctypes.c_int64(len(lengths)),
        *map(ctypes.c_void_p, wanted),
    )
    return tokens[: int(counts.sum())], counts


class Merger:
    """The merges of a tokenizer.

    Args:
        vocabulary: token → number.
        merges: pairs of tokens, the first learnt first.
        letters: the character that stands for each byte in tokens, (256).

    Raises:
        KeyError: if a byte has no token, or a merge is of tokens that are none.

    Example:
        >>> merger(np.frombuffer(b"good room", np.uint8), np.array([4, 5]))      # doctest: +SKIP
        (array([ 340, 1291], dtype=int32), array([1, 1]))
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

    def ready(self) -> bool:
        """Return True: there is a way without a compiler."""
        return True

    def __call__(self, data: Array, lengths: Array) -> tuple[Array, Array]:
        """As `Speller` says."""
        library = NATIVE.library()
        return self._by_arrays(data, lengths) if library is None else self._by(library, data, lengths)

    def _by(self, library: ctypes.CDLL, data: Array, lengths: Array) -> tuple[Array, Array]:
        arrays = (one.ctypes.data for one in (self._first, self._keys, self._ranks, self._merged))
        merges = _Merges(*arrays, int(_MIX), int(self._shift), len(self._keys) - 1)
        return _spelt(library.merge, merges, data, lengths)

    def _by_arrays(self, data: Array, lengths: Array) -> tuple[Array, Array]:
        tokens = self._first[data]
        starts = np.cumsum(lengths) - lengths
        ranks = np.full(len(tokens), _NONE, dtype=np.int32)  # of a token with the one after it in its word
        inner = np.ones(len(tokens), dtype=bool)
        inner[starts + lengths - 1] = False
        places = np.flatnonzero(inner)
        ranks[places] = self._rank(tokens[places], tokens[places + 1])
        alive = np.arange(len(lengths))
        counts = np.zeros(len(lengths), dtype=np.int64)
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


class WordPieces:
    """The tokens of BERT's kind: the longest one that begins a word, then the longest that goes on, and so forth.

    Args:
        vocabulary: token → number.
        unknown: the token of a word that no tokens make up.
        prefix: what tokens that go on begin with.
        most: characters of a word that is parted; a longer one is unknown.

    Raises:
        KeyError: if there is no such unknown token.

    Example:
        >>> pieces(np.frombuffer(b"unaffable", np.uint8), np.array([9]))      # doctest: +SKIP
        (array([ 14477, 20961, 3085], dtype=int32), array([3]))
    """

    def __init__(self, vocabulary: Mapping[str, int], unknown: str, prefix: str, most: int) -> None:
        # A token that goes on may stand for itself at the beginning of a word, prefix and all.
        tokens = [(token, False, number) for token, number in vocabulary.items()]
        tokens += [
            (token.removeprefix(prefix), True, number)
            for token, number in vocabulary.items()
            if token.startswith(prefix)
        ]
        tokens = [one for one in tokens if one[0]]
        encoded = [token.encode("utf-8", "surrogatepass") for token, _, _ in tokens]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._starts = np.append(0, np.cumsum([len(one) for one in encoded])).astype(np.int64)
        self._inside = np.array([on for _, on, _ in tokens], dtype=np.uint8)
        self._ids = np.array([number for _, _, number in tokens], dtype=np.int32)
        self._table: npt.NDArray[np.int32] | None = None
        self._longest = int(np.diff(self._starts).max(initial=1))
        self._most, self._unknown = most, vocabulary[unknown]

    def ready(self) -> bool:
        """Return whether the library is built."""
        return NATIVE.library() is not None

    def __call__(self, data: Array, lengths: Array) -> tuple[Array, Array]:
        """As `Speller` says; words are UTF-8."""
        library = NATIVE.library()
        assert library is not None, "word pieces need the native library"
        learnt = self._table is not None
        table = (
            np.empty(1 << (4 * len(self._ids)).bit_length(), np.int32) if self._table is None else self._table
        )
        arrays = (one.ctypes.data for one in (self._bytes, self._starts, self._inside, self._ids, table))
        numbers = (len(self._ids), len(table) - 1, self._longest, self._most, self._unknown)
        pieces = _Pieces(*arrays, *numbers)
        if not learnt:
            library.learn_pieces(ctypes.byref(pieces))
            self._table = table
        return _spelt(library.part_words, pieces, data, lengths)
