"""Text with words lost and misplaced."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from luban.data.augment._base import Augmenter
from luban.data.augment._text import CJK
from luban.registry import register

__all__ = ["WordNoise"]

_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


@register("augment")
class WordNoise(Augmenter):
    """Drop some words and let others change places (random deletion and swap of EDA; Wei & Zou 2019).

    Words are separated by white space; each Chinese, Japanese or Korean character counts as one. At least one
    word stays.

    Example:
        ``augment: [{type: word_noise, drop: 0.1, swap: 0.1}]``
    """

    level: ClassVar[Literal["text", "batch"]] = "text"

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """How likely a word is dropped."""
    swap: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Pairs of words that change places, as a share of the number of words."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.drop == self.swap == 0:
            raise ValueError("drop and swap are both 0: nothing would change")
        return self

    def text(self, values: list[str], generator: np.random.Generator) -> list[str]:
        """Return changed texts."""
        return [self._changed(value, generator) for value in values]

    def _changed(self, text: str, generator: np.random.Generator) -> str:
        words = _WORD.findall(text)
        if len(words) < 2:
            return text
        gaps = _WORD.split(text)  # the white space before, between and after the words
        pairs = generator.integers(len(words), size=(generator.binomial(len(words), self.swap), 2))
        for a, b in pairs.tolist():
            words[a], words[b] = words[b], words[a]
        kept = np.flatnonzero(generator.random(len(words)) >= self.drop)
        if not len(kept):
            kept = generator.integers(len(words), size=1)
        if len(kept) == len(words):
            return gaps[0] + "".join(word + gap for word, gap in zip(words, gaps[1:], strict=True))
        return "".join(words[i] + gaps[i + 1] for i in kept.tolist()).strip()
