"""What may stand in the place of a cell or a word: what the data hold, within what the data hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.data.processors._base import as_numbers, as_words
from luban.data.sampling import Sample
from luban.explaining._case import Case
from luban.explaining._text import _WORD, strings

__all__ = ["Alternatives", "hashable"]

Floats = npt.NDArray[np.float64]

_REFERENCE = 500  # rows that values and words are taken from


@dataclass
class Alternatives:
    """What may stand in the place of a cell or a word, the same for all rows.

    Attributes:
        case: the model.
        free: columns that may change.
        values: values of a cell that is no number, at most.
        words: words tried in place of others.
    """

    case: Case
    free: list[str]
    values: int
    words: int
    _typical: dict[tuple[str, bytes], list[str]] = field(default_factory=dict)

    @cached_property
    def reference(self) -> pl.DataFrame:
        """Rows that stand for the data."""
        others = self.case.others
        rows = self.case.frame if others is None or not len(others.rows) else others.rows
        return Sample.of(rows).take(_REFERENCE, self.case.seed).rows

    @cached_property
    def texts(self) -> list[str]:
        """The free columns that hold texts."""
        return [column for column in self.free if self.case.forms[column] == "tokens"]

    @cached_property
    def scale(self) -> dict[str, tuple[float, float, float, bool]]:
        """Of each number: its deviation, the lowest and the highest value of the data, and whether all are whole."""
        result = {}
        for column in self.free:
            processor = self.case.predictor.pipeline.inputs[column]
            if processor.type != "number":
                continue
            numbers = as_numbers(self.reference[column]).drop_nulls().to_numpy()
            zero, one = processor.scores(np.asarray([[0.0], [1.0]])).tolist()
            spread = float(numbers.std()) if len(numbers) > 1 and np.ptp(numbers) > 0 else abs(one - zero)
            if len(numbers) > 1 and np.ptp(numbers) > 0:
                low, high = float(numbers.min()), float(numbers.max())
            else:  # too few rows to tell: three deviations to each side, as training saw them
                low, high = zero - 3 * spread, zero + 3 * spread
            whole = len(numbers) > 1 and bool((numbers == np.floor(numbers)).all())
            result[column] = (spread or 1.0, low, high, whole)
        return result

    @cached_property
    def choices(self) -> dict[str, list[Any]]:
        """Of each other cell: the values that are tried, the most frequent ones first."""
        result: dict[str, list[Any]] = {}
        for column in self.free:
            processor = self.case.predictor.pipeline.inputs[column]
            if column in self.texts or processor.type == "number":
                continue
            values = self.reference[column]
            if processor.type in ("category", "binary"):
                known = processor.classes()
                counted = Counter(word for word in as_words(values).drop_nulls().to_list() if word in known)
                ranked = [*(word for word, _ in counted.most_common()), *known]
            else:
                ranked = values.drop_nulls().to_list()
                ranked = [one for one, _ in Counter(map(hashable, ranked)).most_common()]
            result[column] = list(dict.fromkeys(ranked))[: self.values]
        return result

    @cached_property
    def decisions(self) -> npt.NDArray[np.int64]:
        """What the model decides of the reference rows, (n,)."""
        return self.case.said(self.case.outputs_of(self.reference))

    def typical(self, column: str, wanted: npt.NDArray[np.bool_]) -> list[str]:
        """Return the words of a text column that stand out where rows are decided as wanted, by smoothed log odds."""
        if not self.words or not wanted.any():
            return []
        key = (column, wanted.tobytes())
        if key not in self._typical:
            self._typical[key] = self._standing_out(column, wanted)
        return self._typical[key]

    def _standing_out(self, column: str, wanted: npt.NDArray[np.bool_]) -> list[str]:
        counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for text, good in zip(strings(self.reference[column]), wanted.tolist(), strict=True):
            counts[good].update({match.group() for match in _WORD.finditer(text)})
        there, total = int(wanted.sum()), len(wanted)

        def odds(word: str) -> float:
            return math.log((counts[1][word] + 0.5) / (there + 1)) - math.log(
                (counts[0][word] + 0.5) / (total - there + 1)
            )

        return sorted(counts[1], key=lambda word: (-odds(word), word))[: self.words]


def hashable(value: Any) -> Any:
    """Return a cell as the key of a mapping: a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value
