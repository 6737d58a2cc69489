"""Sets: any number of words of a known set (tags, genres, labels)."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.data.contracts import Array, Encoded, Field, Flat, Processor, Role
from luban.data.processors._base import in_order, sigmoid, smallest_integer
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

__all__ = ["Set"]


@register("processors")
class Set(Processor):
    """Several words of a known set: ``drama; comedy``, or a list.

    Field ``ids`` is ragged: the numbers of a row's words. As a target each word has a logit of its own (multi-label).

    Example:
        >>> p = Set(); p.update(pl.Series(["a;b", "b"])); p.finish()
        >>> p.encode(pl.Series(["b;a", ""]))["ids"].offsets.tolist()
        [0, 2, 2]
    """

    output: ClassVar[str | None] = "logits"
    objective: ClassVar[str | None] = "binary_cross_entropy"
    task: ClassVar[str | None] = "multilabel"

    separator: str = ";"
    """What stands between two words in a text cell."""
    min_count: Annotated[int, Option(ge=1)] = 1
    """Words seen in fewer training rows are left out."""
    max_size: Annotated[int, Option(ge=1)] = 1_000
    """The most frequent words are kept, up to this many."""
    threshold: Annotated[float, Option(gt=0, lt=1)] = 0.5
    """Probability from which a word is predicted."""

    _seen: Counter[str] = PrivateAttr(default_factory=Counter)
    _words: list[str] = PrivateAttr(default_factory=list)
    _counts: Counter[str] = PrivateAttr(default_factory=Counter)

    def _split(self, values: pl.Series) -> list[list[str]]:
        if isinstance(values.dtype, pl.List | pl.Array):
            rows = values.to_list()
        else:
            rows = values.cast(pl.String).str.split(self.separator).to_list()
        # A word counts once a row; order is kept, so that equal cells give equal ids.
        return [
            list(dict.fromkeys(w for w in (str(v).strip() for v in row or [] if v is not None) if w))
            for row in rows
        ]

    def update(self, values: pl.Series) -> None:
        for words in self._split(values):
            self._seen.update(words)

    def finish(self) -> None:
        ranked = sorted(
            (pair for pair in self._seen.items() if pair[1] >= self.min_count),
            key=lambda pair: (-pair[1], pair[0]),
        )
        if not ranked:
            raise DataError(
                f"no training row holds a word that occurs {self.min_count} times or more; is '{self.separator}' the separator?"
            )
        self._words = in_order([word for word, _ in ranked[: self.max_size]])
        self._seen.clear()

    def classes(self) -> list[str]:
        """Return the words, in the order of their numbers."""
        return self._words

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        output, width = (self.output, self.head_width) if role == "target" else (None, 0)
        size = len(self._words)
        return {
            "ids": Field(
                column, self.type, role, smallest_integer(size), None, size=size, output=output, width=width
            )
        }

    def known(self, values: pl.Series) -> pl.Series:
        return pl.Series(np.ones(len(values), dtype=bool))  # an empty cell is the empty set

    def encode(self, values: pl.Series) -> Encoded:
        number = {word: i for i, word in enumerate(self._words)}
        rows = self._split(values)
        kept = [[number[word] for word in row if word in number] for row in rows]
        self._counts[say("unknown words left out")] += sum(map(len, rows)) - sum(map(len, kept))
        offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        flat = np.fromiter(
            (i for row in kept for i in row), dtype=smallest_integer(len(self._words)), count=int(offsets[-1])
        )
        return {"ids": Flat(flat, offsets)}

    def counts(self) -> Counter[str]:
        counts, self._counts = self._counts, Counter()
        return +counts

    @property
    def head_width(self) -> int:
        return len(self._words)

    def truth(self, encoded: Array | Flat) -> Array:
        assert isinstance(encoded, Flat)
        hot = np.zeros((len(encoded), self.head_width), dtype=np.int64)
        hot[np.repeat(np.arange(len(encoded)), np.diff(encoded.offsets)), encoded.values.astype(np.int64)] = 1
        return hot

    def scores(self, output: Array) -> Array:
        return sigmoid(output)

    def decode(self, output: Array) -> list[dict[str, Any]]:
        chances = self.scores(output)
        return [
            {
                "value": [
                    word for word, chance in zip(self._words, row, strict=True) if chance >= self.threshold
                ],
                "scores": dict(zip(self._words, row, strict=True)),
            }
            for row in chances.tolist()
        ]

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        picks = generator.random((n, len(self._words))) < min(0.5, 3 / len(self._words))
        return [
            self.separator.join(word for word, picked in zip(self._words, row, strict=True) if picked)
            for row in picks
        ]

    def state(self) -> dict[str, Any]:
        return {"words": self._words}

    def restore(self, state: dict[str, Any]) -> None:
        self._words = list(state["words"])
