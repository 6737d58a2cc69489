"""A column says which part a row belongs to."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.data.contracts import TEST, TRAIN, VALIDATION, Split
from luban.data.splits._base import Hashes, column
from luban.errors import DataError, did_you_mean
from luban.registry import register

__all__ = ["Given"]

_CODES = {"train": TRAIN, "validation": VALIDATION, "test": TEST, "none": 255}
_WORDS = {
    **_CODES, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "dev": VALIDATION, "testing": TEST,
    "训练": TRAIN, "验证": VALIDATION, "测试": TEST,
}  # fmt: skip


@register("splits")
class Given(Split):
    """The data's own split, as published: a column holds train, validation or test.

    Capitals and spaces do not matter; training, val, valid, dev and testing (训练, 验证, 测试) are known too;
    `none` leaves a row out, and `words` adds others.

    Example:
        ``split: {type: given, by: fold, words: {holdout: test, '': none}}``
    """

    by: str
    """The column of words."""
    words: dict[str, Literal["train", "validation", "test", "none"]] = {}
    """Further words; an empty cell is ``''``."""

    _trained: bool = False
    _seen: bool = False

    def update(self, rows: pl.DataFrame, keys: Hashes) -> None:
        """Check one more chunk."""
        self._seen |= len(rows) > 0
        self._trained |= bool((self.assign(rows, keys) == TRAIN).any())

    def finish(self) -> None:
        """End the checking.

        Raises:
            DataError: if no row is to be trained on.
        """
        if self._seen and not self._trained:
            raise DataError(f"column '{self.by}' marks no row as train; say with 'words' which word means it")

    def assign(self, rows: pl.DataFrame, keys: Hashes) -> npt.NDArray[np.uint8]:
        """Return 0 (train), 1 (validation), 2 (test) or 255 (in none) for each row.

        Raises:
            DataError: for a word that is not known.
        """
        known: dict[str, Any] = {**_WORDS, **{k.strip().lower(): _CODES[v] for k, v in self.words.items()}}
        values = column(rows, self.by).cast(pl.String).fill_null("").str.strip_chars().str.to_lowercase()
        for word in values.unique().sort():
            if word not in known:
                raise DataError(
                    f"column '{self.by}' holds {repr(word) if word else 'an empty cell'}; words known are "
                    f"{', '.join(known)}{did_you_mean(word, known)}; add others with 'words'"
                )
        return np.array([known[word] for word in values], dtype=np.uint8)
