"""The words of a report, in English and Chinese, from ``words.json``."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from luban.errors import InputError
from luban.sentences import LANGUAGES, translate

__all__ = ["LANGUAGES", "Words", "number", "percent"]


@cache
def _all() -> dict[str, dict[str, str]]:
    text = files("luban.reporting").joinpath("words.json").read_text(encoding="utf-8")
    words: dict[str, dict[str, str]] = json.loads(text)
    return words


class Words:
    """The words of one language.

    Args:
        language: ``en`` or ``zh``.

    Raises:
        InputError: if it is another.

    Example:
        >>> Words("zh")("title.quality")
        '质量'
    """

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise InputError(f"received lang '{language}', but languages are {' and '.join(LANGUAGES)}")
        self.language = language

    def __call__(self, key: str, **values: Any) -> str:
        """Return a sentence, with values filled in."""
        text = _all()[key][self.language]
        return text.format(**values) if values else text

    def has(self, key: str) -> bool:
        """Whether there is such a word."""
        return key in _all()

    def of(self, reason: dict[str, Any]) -> str:
        """Return the sentence of a reason, as the data holds it: ``{"absent": key, "values": {...}}``."""
        values = {name: self.sentence(str(value)) for name, value in reason.get("values", {}).items()}
        if self.has(f"split.{values.get('split')}"):
            values["split"] = self(f"split.{values['split']}")
        return self(f"absent.{reason['absent']}", **values)

    def sentence(self, text: str) -> str:
        """Return a sentence that another part of Luban wrote; in English where it is not known here."""
        return translate(text, self.language)

    def sentences(self, parts: list[str]) -> str:
        """Join sentences."""
        return ("" if self.language == "zh" else " ").join(parts)

    def listed(self, parts: list[str]) -> str:
        """Join the parts of a list."""
        return ("、" if self.language == "zh" else ", ").join(parts)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for people: few digits, thousands apart, a real minus.

    Example:
        >>> number(0.91321), number(12345.6), number(-0.00012), number(None)
        ('0.913', '12,346', '−0.00012', '–')
    """
    if value is None or value != value:
        return "–"
    size = abs(value)
    if size == 0 or (size >= 1 and float(value).is_integer() and size < 1e15):
        text = f"{value:,.0f}"
    elif size >= 1e7:
        text = f"{value:.{digits}g}"
    elif size >= 100:
        text = f"{value:,.0f}" if size >= 1000 else f"{value:,.1f}"
    elif size >= 1:
        text = f"{value:.{digits - 1}f}"
    elif size >= 0.01:
        text = f"{value:.{digits}f}"
    else:
        text = f"{value:.2g}"
    return text.replace("-", "−")


def percent(share: float | None, digits: int = 1, *, strip: bool = True) -> str:
    """Return a share as a percentage, without zeros at its end unless these are to stay.

    Example:
        >>> percent(0.123), percent(1)
        ('12.3 %', '100 %')
    """
    if share is None or share != share:
        return "–"
    text = f"{100 * share:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if strip and "." in text else text
    return f"{text} %".replace("-", "−")
