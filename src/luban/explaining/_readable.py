"""Rows as a person would tell them apart: numbers, words that a column holds, words that a text contains.

What the model reads are normalised numbers, indices and tokens; a simple model that is to be read by people needs these instead.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.data.processors._base import as_numbers, as_words
from luban.data.processors.date import as_times
from luban.data.processors.set import Set
from luban.errors import DataError
from luban.explaining._case import Case
from luban.sentences import say

__all__ = ["Feature", "Readable", "readable_columns"]

_YEAR = 365.2425 * 86_400e6  # microseconds


@dataclass(frozen=True)
class Feature:
    """One column of the matrix.

    Attributes:
        column: the user's column.
        kind: ``number`` (in the user's unit; a date in years), ``is`` (1 where the column holds the word), ``holds`` (1, or a
            weight, where the text or the set contains it), ``missing``.
        word: of `is` and `holds`.
    """

    column: str
    kind: Literal["number", "is", "holds", "missing"]
    word: str = ""

    @property
    def name(self) -> str:
        """How it is called.

        Example:
            >>> Feature("city", "is", "Paris").name
            'city is Paris'
        """
        match self.kind:
            case "number":
                return self.column
            case "is":
                return say("{column} is {word}", column=self.column, word=self.word)
            case "holds":
                return say("{column} contains '{word}'", column=self.column, word=self.word)
            case _:
                return say("{column} is missing", column=self.column)

    @property
    def opposite(self) -> str:
        """How it is called where it is 0."""
        match self.kind:
            case "number":
                return self.column
            case "is":
                return say("{column} is not {word}", column=self.column, word=self.word)
            case "holds":
                return say("{column} lacks '{word}'", column=self.column, word=self.word)
            case _:
                return say("{column} is not missing", column=self.column)


@dataclass
class Readable:
    """Makes matrices of rows; fitted on some, then used on any.

    Attributes:
        case: whose columns are read.
        text: what a text is cut into; ``auto`` takes characters (one and two at a time) where it is written without blanks.
        vocabulary: words kept of a text, at most.
        levels: words kept of a category, at most.
        weigh: give words of texts their TF-IDF weight, instead of 1.
        features: what the matrix's columns mean; known after `fit`.
    """

    case: Case
    text: Literal["auto", "word", "char"] = "auto"
    vocabulary: int = 1000
    levels: int = 20
    weigh: bool = False
    features: list[Feature] = field(default_factory=list)
    _fill: dict[str, float] = field(default_factory=dict)
    _words: dict[str, list[str]] = field(default_factory=dict)
    _texts: dict[str, Any] = field(default_factory=dict)

    def fit(self, frame: pl.DataFrame) -> Any:
        """Learn words and what stands in for a missing number; return the matrix of these rows."""
        for column in readable_columns(self.case):
            values, kind = frame[column], self._kind(column)
            if kind == "text":
                self._texts[column] = self._vectorizer(values)
            elif kind in ("number", "date"):
                numbers = _numbers(values, kind)
                present = numbers[~np.isnan(numbers)]
                self._fill[column] = float(np.median(present)) if len(present) else 0.0
            else:
                self._words[column] = self._frequent(column, values)
        return self.transform(frame, fresh=True)

    def transform(self, frame: pl.DataFrame, *, fresh: bool = False) -> Any:
        """Return the matrix of rows, (n, features), as scipy's compressed rows."""
        from scipy import sparse

        parts: list[Any] = []
        features: list[Feature] = []
        for column in readable_columns(self.case):
            values, kind = frame[column], self._kind(column)
            if kind == "text":
                vectorizer = self._texts[column]
                if vectorizer is None:
                    continue
                parts.append(vectorizer.transform(_strings(values)))
                features += [Feature(column, "holds", word) for word in vectorizer.get_feature_names_out()]
            elif kind in ("number", "date"):
                numbers = _numbers(values, kind)
                gaps = np.isnan(numbers)
                parts.append(np.stack([np.where(gaps, self._fill[column], numbers), gaps], 1))
                features += [Feature(column, "number"), Feature(column, "missing")]
            else:
                words = self._words[column]
                parts.append(self._hot(column, values, words))
                features += [Feature(column, "holds" if kind == "set" else "is", word) for word in words]
        if fresh:
            self.features = features
        if not parts:
            raise DataError(
                say(
                    "no word of {columns} occurs in two of the rows, so there is nothing that a person could read; hand over more rows",
                    columns=readable_columns(self.case),
                )
            )
        return sparse.csr_matrix(sparse.hstack([sparse.csr_matrix(part) for part in parts]))

    def _kind(self, column: str) -> str:
        return self.case.predictor.pipeline.inputs[column].type

    def _cells(self, column: str, values: pl.Series) -> list[list[str]]:
        """Return the words of each cell: of a set all, of a category one or none."""
        processor = self.case.predictor.pipeline.inputs[column]
        if isinstance(processor, Set):
            return processor._split(values)
        return [[] if word is None else [word] for word in as_words(values).to_list()]

    def _frequent(self, column: str, values: pl.Series) -> list[str]:
        counted: dict[str, int] = {}
        for words in self._cells(column, values):
            for word in words:
                counted[word] = counted.get(word, 0) + 1
        kept = sorted(counted, key=lambda word: (-counted[word], word))[: self.levels]
        # Of two words one says it all, and a rule reads better with the one that a flag calls positive.
        if self._kind(column) == "binary" and len(kept) == 2:
            kept = [word for word in kept if word == self.case.predictor.pipeline.inputs[column].classes()[1]]
        return kept

    def _hot(self, column: str, values: pl.Series, words: Sequence[str]) -> Any:
        place = {word: i for i, word in enumerate(words)}
        hot = np.zeros((len(values), len(words)), np.float32)
        for i, own in enumerate(self._cells(column, values)):
            for word in own:
                if word in place:
                    hot[i, place[word]] = 1.0
        return hot

    def _vectorizer(self, values: pl.Series) -> Any:
        """Return what cuts a column's texts; None where they hold nothing."""
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

        texts = _strings(values)
        char = self.text == "char" or (self.text == "auto" and _unspaced(texts))
        options: dict[str, Any] = {"max_features": self.vocabulary, "min_df": min(2, len(texts))}
        if char:
            options |= {"analyzer": "char", "ngram_range": (1, 2)}
        else:
            options |= {"token_pattern": r"(?u)\w+|[!?]"}
        made = TfidfVectorizer(**options) if self.weigh else CountVectorizer(binary=True, **options)
        try:
            return made.fit(texts)
        except ValueError:  # no word occurs twice
            return None


def readable_columns(case: Case) -> list[str]:
    """Return the inputs that a person can read in words: all but pictures and vectors."""
    kinds = case.predictor.pipeline.inputs
    return [
        column
        for column, form in case.forms.items()
        if form in ("tokens", "set", "category", "number") or kinds[column].type == "date"
    ]


def _numbers(values: pl.Series, kind: str) -> npt.NDArray[np.float64]:
    """Return numbers, or dates in years; NaN where there is none."""
    if kind == "date":
        return as_times(values).cast(pl.Int64).cast(pl.Float64).to_numpy() / _YEAR + 1970
    return as_numbers(values).to_numpy()


def _strings(values: pl.Series) -> list[str]:
    texts: list[str] = values.cast(pl.String, strict=False).fill_null("").to_list()
    return texts


def _unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters are Chinese or Japanese, which are written without blanks."""
    letters = [c for text in texts[:200] for c in text[:200] if c.isalpha()]
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in letters)
    return wide > len(letters) / 3
