"""Texts that nearly repeat another."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, PrivateAttr

from luban.data.cleaning._base import FirstSeen, Step, chosen, has_text, mix
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

__all__ = ["NearDuplicates", "signatures"]

# Minima in a signature: an estimate of similarity is off by 0.04 (one standard deviation) at most.
_WIDTH = 128
_DRAWN = np.random.default_rng(0x5EED)
_FACTORS = _DRAWN.integers(0, 2**32, _WIDTH, dtype=np.uint32) | np.uint32(1)
_TERMS = _DRAWN.integers(0, 2**32, _WIDTH, dtype=np.uint32)
_PRIME = np.uint64(0x100000001B3)


def signatures(texts: list[str], ngram: int) -> npt.NDArray[np.uint32]:
    """Return the MinHash signature of each text, (n, 128): two texts agree in the share of n-grams they
    share.

    Example:
        >>> a, b = signatures(["the cat sat on the mat", "the cat sat on a mat"], ngram=4)
        >>> round(float((a == b).mean()), 1)  # 13 n-grams of 22 are shared
        0.6
    """
    padded = [text.ljust(ngram, "\0") for text in texts]  # a text shorter than an n-gram is one n-gram
    ends = np.cumsum([len(text) for text in padded])
    letters = np.frombuffer("".join(padded).encode("utf-32-le"), dtype="<u4").astype(np.uint64)  # (T,)
    grams = np.zeros(len(letters) - ngram + 1, dtype=np.uint64)
    for place in range(ngram):
        grams = grams * _PRIME + letters[place : len(letters) - ngram + 1 + place]
    inside = np.ones(len(grams), dtype=bool)  # false where an n-gram would run on into the next text
    for place in range(1, ngram):
        inside[ends[:-1] - place] = False
    grams = mix(grams[inside])
    x = (grams >> np.uint64(32)).astype(np.uint32)
    sizes = np.diff(ends, prepend=0) - ngram + 1
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    result = np.empty((_WIDTH, len(texts)), dtype=np.uint32)
    for i in range(_WIDTH):  # a multiply-add per place stands for a permutation of all n-grams
        np.minimum.reduceat(x * _FACTORS[i] + _TERMS[i], starts, out=result[i])
    return result.T


@register("cleaning")
class NearDuplicates(Step):
    """Drop training rows whose text resembles an earlier one: reposts, edited copies, boilerplate.

    Two texts are alike to the degree that their sets of character n-grams overlap (Jaccard), which MinHash
    estimates (Broder 1997) and locality-sensitive hashing finds without comparing all pairs (Indyk & Motwani
    1998). Capitals and white space do not matter. A row is dropped if it resembles any earlier one, dropped
    or not. Nothing depends on chance or on the size of chunks. It remembers what it saw, in about 400 bytes a
    row: a second pass over the data takes a fresh copy.

    Example:
        ``clean: [{type: near_duplicates, column: review, threshold: 0.8}]``
    """

    column: str
    """The column of text."""
    threshold: Annotated[float, Field(ge=0.3, le=1)] = 0.8
    """Share of common n-grams from which on two texts are alike."""
    ngram: Annotated[int, Field(ge=1, le=32)] = 4
    """Characters in an n-gram; 4 suits Chinese and Latin text alike."""

    _seen: FirstSeen = PrivateAttr(default_factory=FirstSeen)
    _signatures: npt.NDArray[np.uint8] = PrivateAttr(default_factory=lambda: np.empty((0, _WIDTH), np.uint8))
    _rows: int = 0

    @property
    def remembered(self) -> int:
        """How many texts it has seen."""
        return self._rows

    @property
    def _band(self) -> int:
        """The most places in a band with which 99 % of the pairs at the threshold meet in some band."""
        for places in range(_WIDTH, 1, -1):
            if 1 - (1 - self.threshold**places) ** (_WIDTH // places) >= 0.99:
                return places
        return 1

    def apply(self, rows: pl.DataFrame, *, predicting: bool) -> pl.DataFrame:
        """Return the chunk without texts that resemble an earlier one; rows without text stay.

        Raises:
            DataError: if the column does not exist or cannot be read as text.
        """
        if predicting or rows.is_empty():
            return rows
        values = rows[chosen([self.column], rows)[0]]
        if not has_text(values.dtype):
            raise DataError(
                f"column '{self.column}' is of type {values.dtype}, which holds no text to compare; name a column of "
                "text, or use duplicates, which takes every type"
            )
        keep = ~self.resemblances(values)
        self._count(say("dropped"), int((~keep).sum()))
        return rows.filter(pl.Series(keep))

    def resemblances(self, values: pl.Series, among: int | None = None) -> npt.NDArray[np.bool_]:
        """Return which texts resemble an earlier one, (n,), and remember them all.

        Args:
            values: the texts; what is empty resembles nothing.
            among: count only the first so many texts that were remembered as earlier ones; all by default.
        """
        text = values.cast(pl.String).fill_null("").str.strip_chars()
        text = text.str.to_lowercase().str.replace_all(r"\s+", " ")
        found = np.zeros(len(text), dtype=bool)
        present = (text != "").to_numpy()
        if present.any():
            found[present] = self._resemble(text.filter(pl.Series(present)).to_list(), among)
        return found

    def _resemble(self, texts: list[str], among: int | None) -> npt.NDArray[np.bool_]:
        """Return which texts resemble an earlier one, (n,), and remember them all."""
        minima = signatures(texts, self.ngram)
        begin, self._rows = self._rows, self._rows + len(texts)
        if self._rows > len(self._signatures):
            grown = np.empty((max(self._rows, 2 * begin), _WIDTH), np.uint8)
            grown[:begin] = self._signatures[:begin]
            self._signatures = grown
        # Eight bits of each minimum tell two apart in 255 of 256 cases, in a quarter of the memory (Li &
        # König 2010).
        self._signatures[begin : self._rows] = minima
        places = self._band
        bands = np.arange(_WIDTH // places)
        keys = np.tile(bands.astype(np.uint64), (len(texts), 1))  # (n, bands)
        for place in range(places):
            keys = mix(keys * _PRIME + minima[:, bands * places + place])
        mine = np.repeat(np.arange(begin, self._rows, dtype=np.uint32), len(bands))
        other = self._seen.first(keys.ravel(), mine)
        pairs = np.unique(np.stack([mine, other], axis=1)[mine != other], axis=0)
        if among is not None:
            pairs = pairs[pairs[:, 1] < among]
        agree = (self._signatures[pairs[:, 0]] == self._signatures[pairs[:, 1]]).mean(1)
        alike = (agree - 1 / 256) / (1 - 1 / 256) >= self.threshold
        result = np.zeros(len(texts), dtype=bool)
        result[pairs[alike, 0] - begin] = True
        return result
