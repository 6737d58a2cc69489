"""Categories: one of a known set of words."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.data.contracts import Array, Encoded, Field, Flat, Processor, Role
from luban.data.processors._base import as_words, in_order, smallest_integer
from luban.errors import DataError
from luban.registry import register

__all__ = ["Category"]

_UNKNOWN = 0  # index of the values an input has never seen, or too seldom
_SHOWN = 10  # a prediction shows the scores of at most so many classes, the likeliest first


@register("processors")
class Category(Processor):
    """One word of a set learnt from the training rows.

    As an input, index 0 stands for words that are new or rare, and a missing value is a word of its own. As a target there
    is no such index: each class has a logit, and rows of an unknown class cannot be scored.

    Example:
        >>> p = Category(); p.update(pl.Series(["b", "a", "b"])); p.finish()
        >>> p.encode(pl.Series(["a", "b", "new"]))["index"].tolist()
        [1, 2, 0]
    """

    output: ClassVar[str | None] = "logits"
    objective: ClassVar[str | None] = "cross_entropy"
    task: ClassVar[str | None] = "multiclass"

    min_count: Annotated[int, Option(ge=1)] = 1
    """Words seen less often in training count as unknown."""
    max_size: Annotated[int, Option(ge=2)] = 10_000
    """The most frequent words are kept, up to this many; the others count as unknown."""

    _seen: Counter[str | None] = PrivateAttr(default_factory=Counter)
    _words: list[str | None] = PrivateAttr(default_factory=list)

    def update(self, values: pl.Series) -> None:
        counted = as_words(values).alias("word").value_counts()
        self._seen.update(dict(counted.iter_rows()))

    def finish(self) -> None:
        kept = [(word, n) for word, n in self._seen.items() if n >= self.min_count]
        kept.sort(key=lambda pair: (-pair[1], pair[0] or ""))
        kept = kept[: self.max_size]
        if not any(word is not None for word, _ in kept):
            raise DataError(
                f"no training row holds a value that occurs {self.min_count} times or more; remove the column or lower min_count"
            )
        words: list[str | None] = [*in_order([word for word, _ in kept if word is not None])]
        self._words = words + [None] * any(word is None for word, _ in kept)
        self._seen.clear()

    def classes(self) -> list[str]:
        """Return the words of a target, in the order of its logits."""
        return [word for word in self._words if word is not None]

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        if role == "target":
            size = self.head_width
            if size < 2:
                raise DataError(
                    f"every training row has the value '{self.classes()[0]}', so there is nothing to learn; choose another target"
                )
            return {
                "index": Field(
                    column, self.type, role, smallest_integer(size), size=size, output=self.output, width=size
                )
            }
        return {
            "index": Field(
                column, self.type, role, smallest_integer(len(self._words) + 1), size=len(self._words) + 1
            )
        }

    def encode(self, values: pl.Series) -> Encoded:
        words = as_words(values)
        known = [word for word in self._words if word is not None]
        index = words.replace_strict(
            known, list(range(1, len(known) + 1)), default=_UNKNOWN, return_dtype=pl.Int32
        )
        if None in self._words:
            index = pl.select(pl.when(words.is_null()).then(len(self._words)).otherwise(index)).to_series()
        return {"index": index.fill_null(_UNKNOWN).to_numpy().astype(smallest_integer(len(self._words) + 1))}

    def encode_target(self, values: pl.Series) -> Encoded:
        classes = self.classes()
        index = as_words(values).replace_strict(classes, list(range(len(classes))), return_dtype=pl.Int32)
        return {"index": index.to_numpy().astype(smallest_integer(len(classes)))}

    def known(self, values: pl.Series) -> pl.Series:
        return as_words(values).is_in(self.classes()).fill_null(False)

    @property
    def head_width(self) -> int:
        return len(self.classes())

    def truth(self, encoded: Array | Flat) -> Array:
        assert not isinstance(encoded, Flat)
        return encoded.astype(np.int64)

    def scores(self, output: Array) -> Array:
        exponents = np.exp(output.astype(np.float64) - output.max(axis=1, keepdims=True))
        shares: Array = exponents / exponents.sum(axis=1, keepdims=True)
        return shares

    def decode(self, output: Array) -> list[dict[str, Any]]:
        names, shares = self.classes(), self.scores(output)
        shown = np.argsort(-shares, axis=1, kind="stable")[:, :_SHOWN].tolist()
        return [
            {
                "value": names[best[0]],
                "score": float(row[best[0]]),
                "scores": {names[i]: float(row[i]) for i in best},
            }
            for best, row in zip(shown, shares, strict=True)
        ]

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        return [self._words[i] for i in generator.integers(len(self._words), size=n)]

    def state(self) -> dict[str, Any]:
        return {"words": self._words}

    def restore(self, state: dict[str, Any]) -> None:
        self._words = list(state["words"])
