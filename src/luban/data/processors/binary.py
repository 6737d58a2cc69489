"""Yes or no."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.data.contracts import Array, Encoded, Field, Flat, Processor, Role
from luban.data.processors._base import as_words, in_order, sigmoid
from luban.errors import DataError
from luban.registry import register

__all__ = ["POSITIVE", "Binary"]

POSITIVE = (
    "1", "true", "yes", "y", "t", "positive", "pos", "spam", "是", "真", "有", "正", "正面", "好评", "阳性", "malignant",
)  # fmt: skip
"""Words that are taken for yes."""


@register("processors")
class Binary(Processor):
    """One of two words; the positive one is 1.

    As an input it is a number 0 or 1 (a missing value is 0.5). As a target it has one logit, whose sigmoid is the
    probability of the positive word.

    Example:
        >>> p = Binary(); p.update(pl.Series(["yes", "no"])); p.finish()
        >>> p.encode(pl.Series(["no", "yes"]))["value"].tolist()
        [0.0, 1.0]
    """

    output: ClassVar[str | None] = "logits"
    objective: ClassVar[str | None] = "binary_cross_entropy"
    task: ClassVar[str | None] = "binary"

    positive: str | None = None
    """The word that counts as 1; derived (yes, true, 1, positive, 是 ...; else the last in order) if left out."""
    threshold: Annotated[float, Option(gt=0, lt=1)] = 0.5
    """Probability from which a prediction is positive."""

    _seen: Counter[str] = PrivateAttr(default_factory=Counter)
    _words: list[str] = PrivateAttr(default_factory=list)

    def update(self, values: pl.Series) -> None:
        counted = as_words(values).drop_nulls().alias("word").value_counts()
        self._seen.update(dict(counted.iter_rows()))

    def finish(self) -> None:
        words = in_order(list(self._seen))
        if len(words) > 2:
            raise DataError(
                f"a binary column holds two values, but this one holds {len(words)}: {', '.join(words[:5])}...; read it as category"
            )
        if self.positive is not None and self.positive not in words:
            raise DataError(
                f"the positive value '{self.positive}' does not occur; the values are {', '.join(words)}"
            )
        if len(words) < 2:
            raise DataError(
                f"a binary column holds two values, but this one holds only {words}; remove it or choose another"
            )
        likely = [word for word in words if word.lower() in POSITIVE]
        positive = self.positive or (likely[0] if len(likely) == 1 else words[1])
        self._words = [next(word for word in words if word != positive), positive]

    def classes(self) -> list[str]:
        """Return the negative and the positive word."""
        return self._words

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        output, width = (self.output, 1) if role == "target" else (None, 0)
        return {"value": Field(column, self.type, role, "float32", output=output, width=width)}

    def invalid(self, values: pl.Series) -> pl.Series:
        words = as_words(values)
        return words.is_not_null() & ~words.is_in(self._words)

    def known(self, values: pl.Series) -> pl.Series:
        return as_words(values).is_in(self._words).fill_null(False)

    def encode(self, values: pl.Series) -> Encoded:
        numbers = as_words(values).replace_strict(
            self._words, [0.0, 1.0], default=None, return_dtype=pl.Float32
        )
        return {"value": numbers.fill_null(0.5).to_numpy().astype(np.float32)}

    @property
    def head_width(self) -> int:
        return 1

    def truth(self, encoded: Array | Flat) -> Array:
        assert not isinstance(encoded, Flat)
        return encoded.astype(np.int64)

    def scores(self, output: Array) -> Array:
        return sigmoid(output.reshape(-1))

    def decode(self, output: Array) -> list[dict[str, Any]]:
        chances = self.scores(output)
        negative, positive = self._words
        return [
            {
                "value": positive if chance >= self.threshold else negative,
                "score": chance if chance >= self.threshold else 1 - chance,
                "scores": {negative: 1 - chance, positive: chance},
            }
            for chance in chances.tolist()
        ]

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        return [self._words[i] for i in generator.integers(2, size=n)]

    def state(self) -> dict[str, Any]:
        return {"words": self._words}

    def restore(self, state: dict[str, Any]) -> None:
        self._words = list(state["words"])
