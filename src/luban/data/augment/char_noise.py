"""Misspelt text."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from luban.data.augment._base import Augmenter
from luban.data.augment._text import is_cjk
from luban.registry import register

__all__ = ["CharNoise"]

_ROWS = ["1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm"]


def _neighbours() -> dict[str, str]:
    """Return each key's neighbours on a QWERTY keyboard: left and right, and the two above and below."""
    at = {(y, x): key for y, row in enumerate(_ROWS) for x, key in enumerate(row)}
    around = [(0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0)]
    return {key: "".join(at.get((y + dy, x + dx), "") for dy, dx in around) for (y, x), key in at.items()}


_NEAR = _neighbours()


@register("augment")
class CharNoise(Augmenter):
    """Misspell some characters, so that a model bears what people type (Belinkov & Bisk 2018).

    A character is swapped with the next one, dropped, doubled, or (Latin letters and digits) replaced by its
    neighbour on the keyboard. Chinese, Japanese and Korean characters are only swapped or dropped. White
    space stays, and so does at least one character.

    Example:
        ``augment: [{type: char_noise, share: 0.05, operations: [swap, drop]}]``
    """

    level: ClassVar[Literal["text", "batch"]] = "text"

    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """How likely a character is changed."""
    operations: Annotated[list[Literal["swap", "drop", "duplicate", "similar"]], Field(min_length=1)] = [
        "swap", "drop", "duplicate", "similar",
    ]  # fmt: skip
    """What may be done to it; one is drawn."""

    def text(self, values: list[str], generator: np.random.Generator) -> list[str]:
        """Return misspelt texts."""
        return [self._misspelt(value, generator) for value in values]

    def _misspelt(self, text: str, generator: np.random.Generator) -> str:
        letters = list(text)
        places = np.flatnonzero(generator.random(len(letters)) < self.share)
        choices = generator.random(len(places))
        for place, choice in zip(places.tolist(), choices.tolist(), strict=True):
            letter = letters[place]
            possible = [one for one in self.operations if self._can(one, letter)]
            if not possible:
                continue
            choice *= len(possible)
            match possible[int(choice)]:
                case "swap" if place + 1 < len(letters) and not letters[place + 1].isspace():
                    letters[place], letters[place + 1] = letters[place + 1], letter
                case "drop":
                    letters[place] = ""
                case "duplicate":
                    letters[place] = letter * 2
                case "similar":
                    near = _NEAR[letter.lower()]
                    other = near[int(choice % 1 * len(near))]
                    letters[place] = other.upper() if letter.isupper() else other
        return "".join(letters) or text

    @staticmethod
    def _can(operation: str, letter: str) -> bool:
        if not letter or letter.isspace():
            return False
        if operation == "similar":
            return letter.lower() in _NEAR
        return operation != "duplicate" or not is_cjk(letter)
