"""Texts to numbers in bulk, exactly as the `tokenizers` library has them, several times as quickly.

Words repeat (Zipf's law), so that most of a text has been encoded before. A text is cut into segments at places where the
tokenizer is certain to put a boundary, whatever stands around them; each segment is looked up in a table of those that were
encoded already. New ones that are words for certain are spelt by `_words`, and only the rest goes to the library. Cutting, looking
up and putting together are array operations over all characters of many texts.

Where a boundary is certain:

- Between characters of two classes that the tokenizer's own pattern parts. The classes are asked of the library itself.
- In byte-level BPE also between two CJK characters that no token of the vocabulary holds side by side, since no merge can
  cross them: Chinese clauses, which hardly repeat, fall into short words, which do.

Joining is always right and cutting needs a reason: a character that a normaliser may change together with its neighbours is
joined to both, and a tokenizer of which nothing is known here takes the library's own way.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import chain, pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.data.contracts import Array
from luban.data.processors._words import NATIVE, Merger, Speller, WordPieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["CJK_CHARACTER", "GPT2", "GPT2_DIGITS", "WORD", "WORD_DIGITS", "Encoder", "gather", "token_bytes"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel parts texts by: the pattern of GPT-2 (Radford et al., 2019)."""
GPT2_DIGITS = GPT2.replace(r" ?\p{N}+", r"\p{N}")
"""The same, each digit alone."""
_LATER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = (_LATER % digits for digits in (r"\p{N}{1,3}", r"\p{N}"))
CJK_CHARACTER = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
WORD = rf"{CJK_CHARACTER}|(?:(?!{CJK_CHARACTER})[\p{{L}}\p{{M}}])+|\p{{N}}+|[^\s\p{{L}}\p{{M}}\p{{N}}]"
"""A word is a run of letters, a run of digits, one CJK character, or one mark: the same rule for Chinese and for English."""
WORD_DIGITS = WORD.replace(r"\p{N}+", r"\p{N}")

_BLANK, _SPACE, _LETTER, _CJK, _DIGIT, _APOSTROPHE, _MARK, _BOUND = range(8)  # classes of characters
_UNKNOWN = 255
_JOIN, _CUT, _ASK = range(3)  # what two classes say of the place between them; the vocabulary is asked
_WINDOW = 2**17  # characters worked on at once, so that the arrays stay in the processor's caches
_FEW = 4_096  # characters below which the library is quicker
_LONGEST = 64  # characters of a segment that is remembered
_REMEMBERED = 2**19  # segments; more are forgotten, all of them, since a text may be noise
_THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

Rows = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""All values (T,), and where each row begins, (n + 1,)."""


class Encoder:
    """Encodes many texts as a tokenizer does, without what its post-processor puts around them.

    Args:
        tokenizer: the reference; what cannot be done quickly goes through it.

    Attributes:
        reason: why the quick way is not taken, if it is not.

    Example:
        >>> values, offsets = Encoder(tokenizer).encode(["good room", "很好"])      # doctest: +SKIP
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec = json.loads(tokenizer.to_str())
        self.tokenizer = tokenizer
        self._names = [token["content"] for token in spec["added_tokens"]]
        self._cutter = _cutter(spec, tokenizer)
        self.reason = None if self._cutter is not None else "where this tokenizer parts texts is not known"
        self._memory = _Memory()
        self._verified: set[bool] = set()  # with and without the native library
        self._lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return Encoder(self.tokenizer)  # a lock cannot be copied; a memory need not be

    def plain(self, texts: list[str]) -> Rows:
        """As `encode`, by the library alone."""
        rows = [one.ids for one in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = _offsets(np.fromiter(map(len, rows), np.int64, len(rows)))
        return np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets

    def encode(self, texts: list[str]) -> Rows:
        """Return the numbers of all tokens and where each text's begin."""
        if self._cutter is None or sum(map(len, texts)) <= _FEW:
            return self.plain(texts)
        with self._lock:
            values, offsets = self._quick(texts, self._cutter)
            way = NATIVE.library() is not None
            if way not in self._verified:
                if self._verified:
                    # The native library was built meanwhile: what it makes of these texts has not been seen.
                    self._memory.forget()
                    values, offsets = self._quick(texts, self._cutter)
                self._verify(texts, values, offsets, way)
        return (values, offsets) if self.reason is None else self.plain(texts)

    def _verify(self, texts: list[str], values: Array, offsets: Array, way: bool) -> None:
        """Compare with the library on some of the first texts."""
        some = [i for i in range(0, len(texts), max(1, len(texts) // 64)) if len(texts[i]) <= _WINDOW]
        some = some[: 1 + int(np.searchsorted(np.cumsum([len(texts[i]) for i in some]), _WINDOW))]
        if not some:
            return
        expected, ends = self.plain([texts[i] for i in some])
        got = [values[offsets[i] : offsets[i + 1]] for i in some]
        self._verified.add(way)
        if [*map(len, got)] != np.diff(ends).tolist() or not np.array_equal(np.concatenate(got), expected):
            self._cutter, self.reason = None, "its results differed from the library's"

    def _quick(self, texts: list[str], cutter: _Cutter) -> Rows:
        begins = _offsets(np.fromiter(map(len, texts), np.int64, len(texts)))
        whole = "".join(texts)
        points = np.frombuffer(whole.encode("utf-32-le"), dtype=np.uint32)
        cuts = cutter.cuts(points)
        named = np.empty(0, dtype=np.int64)
        if self._names:  # a text that names a special token goes to the library in one piece
            named = pl.Series(texts, dtype=pl.String).str.contains_any(self._names).arg_true().to_numpy()
            for i in named.tolist():
                cuts[begins[i] + 1 : begins[i + 1]] = False
        cuts[begins[begins < len(points)]] = True
        starts = np.append(np.flatnonzero(cuts), len(points))
        marks = np.searchsorted(starts, np.arange(_WINDOW, len(points), _WINDOW))
        huge = np.flatnonzero(np.diff(starts) > _WINDOW)  # these have windows of their own
        edges = np.unique(np.concatenate([[0], marks, huge, huge + 1, [len(starts) - 1]]))
        windows = [starts[a : b + 1] for a, b in pairwise(edges.tolist())]
        tokens: list[Array] = []
        counts: list[Array] = []
        with ThreadPoolExecutor(_THREADS) as pool:  # array operations let go of Python's lock
            for i in range(0, len(windows), _THREADS):
                some = windows[i : i + _THREADS]
                for values, each in self._encode_windows(whole, points, some, begins[named], pool):
                    tokens.append(values)
                    counts.append(each)
        ends = _offsets(np.concatenate(counts))
        return np.concatenate(tokens), ends[np.searchsorted(starts, begins)]

    def _encode_windows(
        self, whole: str, points: Array, windows: list[Array], named: Array, pool: ThreadPoolExecutor
    ) -> list[tuple[Array, Array]]:
        """Return for each window its tokens and how many each segment has; what begins at `named` is the library's."""
        assert self._cutter is not None
        memory = self._memory
        if memory.size > _REMEMBERED:
            memory.forget()
        keys = list(pool.map(lambda starts: _keys(points, starts), windows))
        found = list(pool.map(lambda key: memory.find(*key), keys))
        new = [np.flatnonzero(one < 0) for one in found]
        if any(map(len, new)):
            first, second, begins, ends = (
                np.concatenate(parts)
                for parts in zip(
                    *(
                        (a[n], b[n], s[:-1][n], s[1:][n])
                        for (a, b), n, s in zip(keys, new, windows, strict=True)
                    ),
                    strict=True,
                )
            )
            _, chosen, back = np.unique(first, return_index=True, return_inverse=True)
            if (second[chosen][back] != second).any():  # two segments, one key: once in the life of a machine
                chosen = back = np.arange(len(first))
            begins, ends = begins[chosen], ends[chosen]
            rows = self._new(whole, points, begins, ends, named, pool)
            entries = memory.add(first[chosen], second[chosen], ends - begins <= _LONGEST, *rows)[back]
            for one, places, part in zip(
                found, new, np.split(entries, np.cumsum([*map(len, new)])[:-1]), strict=True
            ):
                one[places] = part
        return list(pool.map(memory.take, found))

    def _new(
        self, whole: str, points: Array, begins: Array, ends: Array, named: Array, pool: ThreadPoolExecutor
    ) -> Rows:
        """Encode segments that were not met before."""
        assert self._cutter is not None
        speller = self._cutter.speller

        def library(which: Array) -> Rows:
            places = zip(begins[which].tolist(), ends[which].tolist(), strict=True)
            return self.plain([whole[a:b] for a, b in places])

        if speller is None or not speller.ready():
            return library(np.arange(len(begins)))
        words = self._cutter.words(points, begins, ends, ~np.isin(begins, named))
        if not len(words.of):
            return library(np.arange(len(begins)))
        data, lengths = _utf8(self._cutter.normalized(points, words), words.ends - words.begins)
        parts = [*pool.map(lambda part: speller(*part), _shares(data, lengths, _THREADS))]
        mine = np.unique(words.of)
        others = np.setdiff1d(np.arange(len(begins)), mine, assume_unique=True)
        values, offsets = library(others)
        counts = np.zeros(len(begins), dtype=np.int64)
        np.add.at(counts, words.of, np.concatenate([each for _, each in parts]))
        counts[others] = np.diff(offsets)
        starts = np.empty(len(begins), dtype=np.int64)
        starts[mine] = _offsets(counts[mine])[:-1]
        starts[others] = int(counts[mine].sum()) + offsets[:-1]
        found = gather(np.concatenate([*(each for each, _ in parts), values]), starts, counts)
        return found, _offsets(counts)


def _utf8(points: Array, lengths: Array) -> tuple[Array, Array]:
    """Return words of code points, one after the other, as UTF-8, and how many bytes each has; no word is empty."""
    data = np.frombuffer(points.astype("<u4").tobytes().decode("utf-32-le").encode(), dtype=np.uint8)
    each = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    return data, np.add.reduceat(each, np.cumsum(lengths) - lengths)


def _shares(data: Array, lengths: Array, parts: int) -> list[tuple[Array, Array]]:
    """Cut words into parts of about as many bytes."""
    ends = np.cumsum(lengths)
    inner = np.searchsorted(ends, np.arange(1, parts) * len(data) / parts)
    at = np.unique(np.concatenate([[0], inner, [len(lengths)]]))
    offsets = np.append(0, ends)
    return [(data[offsets[a] : offsets[b]], lengths[a:b]) for a, b in pairwise(at.tolist())]


# --- the memory -------------------------------------------------------------------------------------------


def _keys(points: Array, starts: Array) -> tuple[Array, Array]:
    """Return two hashes of 64 bits for each segment: together they are as good as the segment.

    A hash is a polynomial over random numbers of the characters, modulo 2**64; one running sum serves all segments. Long
    segments, of which two could be made to agree, get numbers of their own.
    """
    begin, end = int(starts[0]), int(starts[-1])
    if len(starts) == 2 and end - begin > _LONGEST:
        own = np.array([begin], dtype=np.uint64)
        return own, own
    characters = _random_numbers()[points[begin:end]]
    a, b = starts[:-1] - begin, starts[1:] - begin
    result = []
    for powers, inverses in _powers(2 * _WINDOW):
        sums = np.zeros(end - begin + 1, dtype=np.uint64)
        np.cumsum(characters * powers[: end - begin], out=sums[1:])
        result.append((sums[b] - sums[a]) * inverses[a])
    long = np.flatnonzero(b - a > _LONGEST)
    for key in result:
        key[long] = begin + a[long]
    return result[0], result[1]


@cache
def _random_numbers() -> Array:
    return np.random.default_rng(0).integers(1, 2**64, size=0x110000, dtype=np.uint64)


@cache
def _powers(n: int) -> list[tuple[Array, Array]]:
    """Return powers and inverse powers modulo 2**64 of two odd numbers, n each."""

    def powers(base: int) -> Array:
        result = np.full(n, base, dtype=np.uint64)
        result[0] = 1
        return np.cumprod(result)  # wraps around, as it should

    bases = (0x9E3779B97F4A7C1D, 0xD1342543DE82EF95)
    return [(powers(base), powers(pow(base, -1, 2**64))) for base in bases]


class _Memory:
    """Segments that were encoded: an open hash table from keys to entries, and the entries' tokens."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.size = 0
        self._tokens = np.empty(1 << 12, dtype=np.int32)
        self._ends = np.zeros(1 << 12, dtype=np.int64)  # of entry i at i + 1
        self._table(1 << 14)

    def _table(self, slots: int) -> None:
        self._first, self._second = (np.zeros(slots, dtype=np.uint64) for _ in range(2))
        self._entry = np.full(slots, -1, dtype=np.int32)
        self._used = 0

    def find(self, first: Array, second: Array) -> Array:
        """Return the entry of each key, (n,); -1 for none."""
        slots = len(self._entry)
        slot = (first & np.uint64(slots - 1)).astype(np.int64)
        result = self._entry[slot]
        there = (self._first[slot] == first) & (self._second[slot] == second)
        open_ = np.flatnonzero(~there & (result >= 0))
        while len(open_):
            slot = (slot[open_] if len(slot) != len(open_) else slot) + 1 & slots - 1
            entry = self._entry[slot]
            there = (self._first[slot] == first[open_]) & (self._second[slot] == second[open_])
            result[open_] = np.where(there, entry, -1)
            on = ~there & (entry >= 0)
            open_, slot = open_[on], slot[on]
        return result

    def add(self, first: Array, second: Array, remember: Array, tokens: Array, offsets: Array) -> Array:
        """Take new segments, and return their entries; keys only for those to remember."""
        n, used = len(first), int(self._ends[self.size])
        self._tokens = _grown(self._tokens, used + len(tokens))
        self._ends = _grown(self._ends, self.size + n + 1)
        self._tokens[used : used + len(tokens)] = tokens
        self._ends[self.size + 1 : self.size + n + 1] = used + offsets[1:]
        entries = np.arange(self.size, self.size + n, dtype=np.int32)
        self.size += n
        kept = np.flatnonzero(remember)
        if 4 * (self._used + len(kept)) > len(self._entry):
            old = self._entry >= 0
            whole = (self._first[old], self._second[old], self._entry[old])
            self._table(1 << (8 * (self._used + len(kept))).bit_length())
            self._put(*whole)
        self._put(first[kept], second[kept], entries[kept])
        return entries

    def _put(self, first: Array, second: Array, entries: Array) -> None:
        slots = len(self._entry)
        self._used += len(entries)
        slot = (first & np.uint64(slots - 1)).astype(np.int64)
        while len(slot):
            free = np.flatnonzero(self._entry[slot] < 0)
            _, one = np.unique(slot[free], return_index=True)  # where several want a slot, one gets it
            won = free[one]
            self._first[slot[won]], self._second[slot[won]] = first[won], second[won]
            self._entry[slot[won]] = entries[won]
            rest = np.ones(len(slot), dtype=bool)
            rest[won] = False
            first, second, entries = first[rest], second[rest], entries[rest]
            slot = slot[rest] + 1 & slots - 1

    def take(self, entries: Array) -> tuple[Array, Array]:
        """Return the tokens of entries, one after the other, and how many each has."""
        starts = self._ends[entries]
        counts = self._ends[entries + 1] - starts
        return gather(self._tokens, starts, counts), counts


def _grown(array: Array, size: int) -> Array:
    if size <= len(array):
        return array
    result = np.zeros(1 << size.bit_length(), dtype=array.dtype)
    result[: len(array)] = array
    return result


def gather(values: Array, starts: Array, counts: Array) -> Array:
    """Return ``values[start : start + count]`` of each, one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return values[np.repeat(starts - ends + counts, counts) + np.arange(total)]


def _offsets(lengths: Array) -> npt.NDArray[np.int64]:
    result = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=result[1:])
    return result


# --- where boundaries are certain -------------------------------------------------------------------------


class _Words(NamedTuple):
    """Words as the pattern has them: the segment that each is of, in order, and where it begins and ends."""

    of: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


@dataclass
class _Cutter:
    """Finds the places between characters where a tokenizer is certain to put a boundary.

    Attributes:
        table: what a pair of classes says, (8, 8).
        patterns: class → pattern of its characters, as the library understands it; the last that matches wins.
        normalize: what becomes of a character alone; None where nothing does.
        pairs: which pairs of CJK characters stand side by side in a token.
        speller: encodes what the pattern takes as one word, where that can be done here.
        dropped: whether blanks are nothing, and what else a word is made of: None where they belong to words.
        numbers: whether a run of digits is one word, however long.
        blanks: whether of blanks before a word all but the last are a word, and the last too unless it is a space.
    """

    table: npt.NDArray[np.uint8]
    patterns: dict[int, str]
    normalize: Callable[[str], str] | None = None
    pairs: _Pairs | None = None
    speller: Speller | None = None
    dropped: str | None = None
    numbers: bool = False
    blanks: bool = False
    classes: npt.NDArray[np.uint8] = field(default_factory=lambda: np.full(0x110000, _UNKNOWN, np.uint8))
    known: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0x1100, bool))
    became: npt.NDArray[np.uint32] = field(default_factory=lambda: np.arange(0x110000, dtype=np.uint32))
    inner: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0x110000, bool))

    def cuts(self, points: Array) -> npt.NDArray[np.bool_]:
        """Return whether a segment certainly begins at a character, (n,); the first is left open."""
        result = np.zeros(len(points), dtype=bool)
        for start in range(0, len(points), _WINDOW):
            part = points[max(start - 1, 0) : start + _WINDOW]
            seen = np.zeros(0x1100, dtype=bool)
            seen[part >> 8] = True
            for block in np.flatnonzero(seen & ~self.known).tolist():
                self._classify(block)
            classes = self.classes[part]
            said = self.table.reshape(-1)[classes[:-1] * np.uint8(8) + classes[1:]]
            cut = said == _CUT
            if self.pairs is not None and len(asked := np.flatnonzero(said == _ASK)):
                cut[asked] = ~self.pairs.joined(part[asked], part[asked + 1])
            result[max(start, 1) : start + _WINDOW] = cut
        return result

    def words(self, points: Array, begins: Array, ends: Array, wanted: Array) -> _Words:
        """Return the words of those `wanted` segments (n,) whose words are certain: letters, marks or digits, behind blanks."""
        n, lengths = len(begins), ends - begins
        own = gather(points, begins, lengths)
        classes = self.classes[own]
        starts = np.cumsum(lengths) - lengths
        blank = (classes == _BLANK) | (classes == _SPACE)
        kinds = np.bitwise_or.reduceat(np.where(blank, 0, np.uint8(1) << classes), starts)
        blanks = np.add.reduceat(blank, starts, dtype=np.int64)
        first = np.minimum.reduceat(np.where(blank, len(classes), np.arange(len(classes))), starts)
        leading = np.minimum(first - starts, lengths) == blanks
        if self.dropped is not None:
            inner = np.add.reduceat(self.inner[own], starts, dtype=np.int64) == lengths - blanks
            single = (lengths - blanks == 1) & np.isin(kinds, (1 << _MARK, 1 << _APOSTROPHE, 1 << _CJK))
            taken = wanted & leading & (blanks < lengths) & (inner | single)
            return _Words(np.flatnonzero(taken), (begins + blanks)[taken], ends[taken])
        known = (kinds & ~np.uint8(1 << _LETTER | 1 << _CJK)) == 0
        known |= kinds == 1 << _MARK
        if self.numbers:
            known |= kinds == 1 << _DIGIT
        alone = blanks == lengths
        spaced = ~alone & (blanks > 0) & (classes[starts + np.maximum(blanks - 1, 0)] == _SPACE)
        known &= (
            wanted & leading
            if self.blanks
            else wanted & ~alone & ((blanks == 0) | (leading & spaced & (blanks == 1)))
        )
        # Blanks but for the last; the last, unless it is a space, which belongs to the word; the word.
        body = ends - np.where(alone, 0, lengths - blanks)
        last = body - ((blanks > 0) & ~alone)
        word = np.where(spaced, last, body)
        edges = np.stack([begins, last, word, ends], 1)
        taken = (edges[:, 1:] > edges[:, :-1]) & known[:, None]
        of = np.repeat(np.arange(n), 3).reshape(n, 3)
        return _Words(of[taken], edges[:, :-1][taken], edges[:, 1:][taken])

    def normalized(self, points: Array, words: _Words) -> Array:
        """Return the characters of words, one word after the other, each as the normaliser leaves it: in words it stands alone."""
        own = gather(points, words.begins, words.ends - words.begins)
        return own if self.normalize is None else self.became[own]

    def _classify(self, block: int) -> None:
        """Class 256 characters; first those that stand for themselves, then those that a normaliser changes."""
        characters = [chr(c) if not 0xD800 <= c < 0xE000 else "" for c in range(block << 8, (block + 1) << 8)]
        changed = [self._alone(c) for c in characters]
        patterns = tuple(self.patterns.items())
        classes = np.array([_BOUND if c is None else _class_of(c, patterns) for c in changed], dtype=np.uint8)
        # Pairs are looked up as they stand in the text, which must be as they stand in tokens.
        same = np.array([a == b for a, b in zip(characters, changed, strict=True)])
        classes[(classes == _CJK) & ~same] = _LETTER
        places = slice(block << 8, (block + 1) << 8)
        self.classes[places] = classes
        if self.normalize is not None:
            self.became[places] = [ord(c or "\0") for c in changed]
        if self.dropped is not None:
            matches, normalize = _matcher(self.dropped).pre_tokenize_str, self.normalize or str
            # What a normaliser puts spaces around is a word alone.
            self.inner[places] = [
                bool(became and matches(became) and normalize(c) == became)
                for c, became in zip(characters, changed, strict=True)
            ]
        self.known[block] = True

    def _alone(self, character: str) -> str | None:
        """Return what a character becomes, if that is one character and nothing around it can matter."""
        if self.normalize is None or not character:
            return character or None
        became = self.normalize(character)
        became = became.strip() or became[:1]  # a normaliser may put spaces around a CJK character
        if len(became) != 1 or any(_combines(c) for c in (character, became)):
            return None
        return became


def _combines(character: str) -> bool:
    """Whether a character may act on its neighbours: marks, Hangul parts, controls, and what this Python does not know."""
    code = ord(character)
    jamo = 0x1100 <= code < 0x1200 or 0xA960 <= code < 0xA980 or 0xD7B0 <= code < 0xD800
    return jamo or (unicodedata.category(character)[0] in "MC" and character not in "\t\n\r")


@lru_cache(maxsize=2**16)
def _class_of(character: str, patterns: tuple[tuple[int, str], ...]) -> int:
    result = _MARK
    for kind, pattern in patterns:
        if _matcher(pattern).pre_tokenize_str(character):
            result = kind
    return result


@cache
def _matcher(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), "removed", invert=True)


_LETTERS = {_LETTER: r"\p{L}", _DIGIT: r"\p{N}", _BLANK: r"\s", _SPACE: " ", _APOSTROPHE: "'"}
# BERT's own list begins and ends so, too; what it has beside it is joined, which is right as well.
_IDEOGRAPHS = r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}]"
_WORDS = (_LETTER, _CJK)
_BLANKS = (_BLANK, _SPACE)


def _table(*cuts: tuple[Sequence[int], Sequence[int]]) -> npt.NDArray[np.uint8]:
    """Return a table that cuts between the classes of each pair of groups, and joins elsewhere."""
    table = np.full((8, 8), _JOIN, dtype=np.uint8)
    for before, after in cuts:
        table[np.ix_(before, after)] = _CUT
    return table


def _by_pattern(pattern: str) -> _Cutter | None:
    """One of the patterns that byte-level BPE parts texts by."""
    visible = (*_WORDS, _DIGIT)
    if pattern in (GPT2, GPT2_DIGITS):
        # Blanks join what follows, of which they may be a part. An apostrophe joins marks and letters: 's is a token.
        table = _table(
            ((*visible, _MARK, _APOSTROPHE), _BLANKS),
            (visible, (_MARK, _APOSTROPHE)),
            ((_MARK,), visible),
            (_WORDS, (_DIGIT,)),
            ((_DIGIT,), _WORDS),
        )
    elif pattern in (LLAMA3, QWEN2):  # here a mark may begin a word, and a line's end belong to a mark
        table = _table(
            (visible, _BLANKS),
            ((_MARK,), (_SPACE, _DIGIT)),
            (visible, (_MARK, _APOSTROPHE)),
            (_WORDS, (_DIGIT,)),
            ((_DIGIT,), _WORDS),
        )
    else:
        return None
    if pattern in (GPT2_DIGITS, QWEN2):
        table[_DIGIT, _DIGIT] = _CUT
    cutter = _Cutter(table, {**_LETTERS, _CJK: r"(?=\p{L})[\x{2E80}-\x{10FFFF}]"})
    cutter.numbers, cutter.blanks = pattern == GPT2, pattern in (GPT2, GPT2_DIGITS)
    return cutter


def _by_words(ideographs: str | None, *, digits_alone: bool, runs_of: tuple[int, ...]) -> _Cutter:
    """Words, marks and ideographs; blanks are nothing."""
    everything = (*_WORDS, _DIGIT, _APOSTROPHE, _MARK)
    table = _table((everything, (*_BLANKS, *everything)))
    table[np.ix_(runs_of, runs_of)] = _JOIN
    if digits_alone:
        table[_DIGIT, :] = table[:, _DIGIT] = _CUT
        table[_BOUND, _DIGIT] = table[_DIGIT, _BOUND] = _JOIN
        table[np.ix_(_BLANKS, (_DIGIT,))] = _JOIN
    return _Cutter(table, {**_LETTERS, **({_CJK: ideographs} if ideographs else {})})


def _cutter(spec: dict[str, Any], tokenizer: Tokenizer) -> _Cutter | None:
    """Return where a tokenizer's boundaries are certain; None where that is not known."""
    normalizers, pre = (
        _steps(spec["normalizer"], "normalizers"),
        _steps(spec["pre_tokenizer"], "pretokenizers"),
    )
    names = {step["type"] for step in normalizers}
    if not names <= {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"}:
        return None
    if normalizers and any(token["normalized"] for token in spec["added_tokens"]):
        return None  # such a token may stand in a text under another guise
    kind, model = [step["type"] for step in pre], spec["model"]
    ideographs = any(step.get("handle_chinese_chars") for step in normalizers)
    split = str(pre[0].get("pattern", {}).get("Regex")) if pre else ""
    cutter: _Cutter | None = None
    match model["type"], kind:
        case "BPE", ["ByteLevel"] if pre[0].get("use_regex", True) and not pre[0]["add_prefix_space"]:
            cutter = _by_pattern(GPT2)
        case "BPE", ["Split", "ByteLevel"] if _isolates(pre[0]) and not (
            pre[1].get("use_regex", True) or pre[1]["add_prefix_space"]
        ):
            cutter = _by_pattern(split)
        case "BPE", [] if not (model["merges"] or model["fuse_unk"]):  # characters
            cutter = _Cutter(_table((range(_BOUND), range(_BOUND))), {})
        case "WordPiece", ["BertPreTokenizer"] | ["Digits", "BertPreTokenizer"]:
            alone = kind[0] == "Digits"
            if alone and not pre[0]["individual_digits"]:
                return None
            # Underscores and currency signs: some are marks to BERT, some letters; joined letters are right for both.
            cutter = _by_words(
                _IDEOGRAPHS if ideographs else None, digits_alone=alone, runs_of=(_LETTER, _DIGIT)
            )
            cutter.patterns = {**cutter.patterns, _LETTER: r"\S", _MARK: r"[!-/:-@\[-`{-~]|\p{P}"}
            cutter.dropped = r"[\p{L}\p{N}]"
            unknown, prefix = model["unk_token"], model["continuing_subword_prefix"]
            with suppress(KeyError):
                cutter.speller = WordPieces(
                    model["vocab"], unknown, prefix, model["max_input_chars_per_word"]
                )
        case "WordLevel", ["Split"] if pre[0]["behavior"] == "Removed" and pre[0]["invert"]:
            if split in (WORD, WORD_DIGITS):
                cutter = _by_words(CJK_CHARACTER, digits_alone=split == WORD_DIGITS, runs_of=())
                for one in (_LETTER, _DIGIT):
                    cutter.table[one, one] = _CUT if one == _DIGIT and split == WORD_DIGITS else _JOIN
                cutter.patterns[_BOUND] = r"\p{M}"
            elif split == r"\S":
                cutter = _by_words(None, digits_alone=True, runs_of=())
        case "Unigram", ["Split"] if _isolates(pre[0]) and model["byte_fallback"]:
            # Not inside a word: of two ways with the same score, which one wins hangs on the rounding of all before it.
            cutter = _by_pattern(split)
        case "Unigram", ["Metaspace"] | ["Metaspace", "Digits"] if pre[0][
            "prepend_scheme"
        ] == "always" and pre[0].get("split", True):
            every = (_BLANK, _SPACE, _LETTER, _CJK, _DIGIT, _APOSTROPHE, _MARK)
            cutter = _Cutter(_table((every, (_SPACE,))), _LETTERS)
    if model["type"] == "BPE":
        unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if cutter is None or any(model.get(key) for key in unusual):
            return None
        if kind and not model.get(
            "ignore_merges"
        ):  # else a part of a word may be a token that merges never reach
            cutter.table[_CJK, _CJK] = _ASK
            cutter.pairs = _Pairs(raw for raw in map(token_bytes, model["vocab"]) if raw is not None)
            with suppress(KeyError):  # a byte without a token: the library knows what to do
                letters = sorted(_bytes_by_character(), key=_bytes_by_character().__getitem__)
                cutter.speller = Merger(model["vocab"], model["merges"], letters)
    if cutter is not None and normalizers:
        cutter.normalize = tokenizer.normalizer.normalize_str
    return cutter


def _isolates(step: dict[str, Any]) -> bool:
    return step["behavior"] == "Isolated" and not step["invert"]


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return (
        [step for one in part[inner] for step in _steps(one, inner)] if part["type"] == "Sequence" else [part]
    )


# --- pairs that tokens hold -------------------------------------------------------------------------------


def token_bytes(token: str) -> bytes | None:
    """Return the bytes that a token of byte-level BPE stands for; None if it stands for itself (a special token)."""
    of = _bytes_by_character()
    try:
        return bytes([of[c] for c in token])
    except KeyError:
        return None


@cache
def _bytes_by_character() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones are themselves, the others follow after 255 in order."""
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(themselves)]
    return {chr(b): b for b in themselves} | {chr(256 + i): b for i, b in enumerate(others)}


class _Pairs:
    """Which two characters stand side by side in some token.

    A token may hold only the last bytes of the left one or the first bytes of the right one; then it speaks for every
    character with these bytes. Answers are looked up by hash and err on the side of 'yes'.
    """

    _BITS = 20

    def __init__(self, tokens: Iterable[bytes]) -> None:
        found: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for raw in tokens:
            if raw.isascii():
                continue
            for variant, pair in _side_by_side(raw):
                found.setdefault(variant, set()).add(pair)
        self._variants: list[tuple[np.uint32, np.uint32, npt.NDArray[np.bool_]]] = []
        for (mask, shift), pairs in found.items():
            table = np.zeros(1 << self._BITS, dtype=bool)
            left, right = np.array(sorted(pairs), dtype=np.uint32).T
            table[self._slot(left, right)] = True
            self._variants.append((np.uint32(mask), np.uint32(shift), table))

    def _slot(self, left: Array, right: Array) -> Array:
        mixed = (left * np.uint32(0x9E3779B1)) ^ (right * np.uint32(0x85EBCA77))
        return (mixed ^ (mixed >> np.uint32(15))) & np.uint32((1 << self._BITS) - 1)

    def joined(self, left: Array, right: Array) -> npt.NDArray[np.bool_]:
        """Return whether a token may hold both, (n,)."""
        result = np.zeros(len(left), dtype=bool)
        for mask, shift, table in self._variants:
            result |= table[self._slot(left & mask, right >> shift)]
        return result


def _side_by_side(raw: bytes) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return for each place between two characters in a token: which bits it knows of them, and these.

    The bits are (a mask of the left code point, how many low bits of the right one are not known).
    """
    begins = [i for i, byte in enumerate(raw) if byte & 0xC0 != 0x80]  # the others continue a character
    result = []
    for place in begins:
        if place == 0:
            continue
        earlier = [i for i in begins if i < place]
        if earlier:
            left, mask = raw[earlier[-1] : place].decode(errors="replace"), 0x1FFFFF
            if len(left) != 1 or left == "\ufffd":
                continue  # no text holds it
            low = ord(left)
        else:
            low, mask = 0, (1 << 6 * place) - 1
            for byte in raw[:place]:
                low = low << 6 | byte & 0x3F
        lead = raw[place]
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        known = raw[place : place + length]
        high = lead if length == 1 else lead & (0x7F >> length)
        for byte in known[1:]:
            if byte & 0xC0 != 0x80:
                break
            high = high << 6 | byte & 0x3F
        missing = 6 * (length - len(known))
        result.append(((mask, missing), (low & mask, high)))
    return result
