"""Text as people leave it: broken encodings, tags, stray characters, several widths."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Literal

import polars as pl

from luban.data.cleaning._base import Step, chosen, plain
from luban.errors import DataError, MissingError
from luban.registry import register
from luban.sentences import say

__all__ = ["Text"]

# Control characters but tab and line ends, and marks without width or for direction. The two joiners stay:
# emoji, Persian and the scripts of India need them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\uffff]"
)
_TAG = re.compile(r"<!--|<(script|style)\b[^<>]*>|</?([a-z][a-z0-9]*)\b[^<>]*>", re.IGNORECASE)
# Tags within a word; any other tag separates words.
_INLINE = frozenset(
    {"a", "abbr", "b", "bdi", "bdo", "big", "code", "em", "font", "i", "ins", "kbd", "mark", "q", "s", "samp",
     "small", "span", "strong", "sub", "sup", "tt", "u", "var"}
)  # fmt: skip
_SPACE = re.compile(r"\s+")
_HALF_KATAKANA = re.compile("[\uff61-\uff9f]+")
_TO_HALF = {0x3000: 0x20, **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}}
_TO_FULL = {half: full for full, half in _TO_HALF.items()}


@register("cleaning")
class Text(Step):
    """Repair and unify text, in training and in prediction alike.

    The steps run in the order of the keys below. Labels are cleaned as well unless `columns` leaves them out,
    so that ``good `` and ``good`` are one class.

    Example:
        ``clean: [{type: text, html: true, width: half, simplified: true, columns: [review]}]``
    """

    columns: list[str] | None = None
    """Which columns; by default all that hold text."""
    ftfy: bool = True
    """Repair text that was decoded by the wrong encoding (``schÃ¶n`` → ``schön``), by the package of that
    name."""
    html: bool = False
    """Remove tags, comments, scripts and styles, and resolve entities; a tag that ends a line becomes a
    space."""
    control: bool = True
    """Remove control characters and invisible marks; joiners, tabs and line ends stay."""
    width: Literal["half", "full"] | None = None
    """Make Latin letters, digits, signs and spaces half-width (``Ａ！`` → ``A!``) or full-width; katakana
    become full-width, their usual form, either way."""
    simplified: bool = False
    """Turn traditional Chinese characters into simplified ones; needs ``pip install 'luban[chinese]'``."""
    whitespace: bool = True
    """Make each run of white space one space, and remove it at both ends."""
    lowercase: bool = False
    """Make capitals small."""

    def apply(self, rows: pl.DataFrame, *, predicting: bool) -> pl.DataFrame:
        """Return the chunk with its texts cleaned.

        Raises:
            MissingError: if `simplified` is asked for and its package is not installed.
            DataError: if a column that the recipe names does not exist, or holds no text in training.
        """
        repair = self._steps()
        changed = []
        for name in rows.columns if predicting else chosen(self.columns, rows):
            if self.columns is not None and name not in self.columns:
                continue
            texts = plain(rows[name])
            if texts.dtype == pl.String:
                clean = pl.Series(
                    name,
                    [None if text is None else repair(text) for text in texts.to_list()],
                    dtype=pl.String,
                )
                self._count(say("changed"), int((clean != texts).sum()))
                changed.append(clean)
            elif self.columns is not None and texts.dtype != pl.Null and not predicting:
                raise DataError(
                    f"column '{name}' is of type {texts.dtype}, which holds no text to repair; leave it out of 'columns'"
                )
        return rows.with_columns(changed)

    def _steps(self) -> Callable[[str], str]:
        steps: list[Callable[[str], str]] = []
        if self.ftfy:
            steps.append(_repaired)
        if self.html:
            steps.append(_without_tags)
        if self.control:
            steps.append(lambda text: _CONTROL.sub("", text))
        if self.width is not None:
            table = _TO_HALF if self.width == "half" else _TO_FULL
            steps.append(lambda text: _full_katakana(text).translate(table))
        if self.simplified:
            convert = _to_simplified()
            steps.append(lambda text: text if text.isascii() else convert(text))
        if self.whitespace:
            steps.append(lambda text: _SPACE.sub(" ", text).strip())
        if self.lowercase:
            steps.append(str.lower)

        def repair(text: str) -> str:
            for step in steps:
                text = step(text)
            return text

        return repair


def _repaired(text: str) -> str:
    if text.isascii():
        return text
    import ftfy

    return str(ftfy.fix_encoding(text))


def _without_tags(text: str) -> str:
    """Remove markup in one pass; what only looks like it (``a < b``, ``<3``) stays."""
    if "<" in text:
        kept, place = [], 0
        never: set[str] = set()  # closings that do not follow any more, so that no search is repeated
        while (tag := _TAG.search(text, place)) is not None:
            kept.append(text[place : tag.start()])
            place = tag.end()
            closing = "-->" if tag[0] == "<!--" else f"</{tag[1].lower()}" if tag[1] else None
            if closing is not None and closing not in never:
                end = re.compile(re.escape(closing), re.IGNORECASE).search(text, place)
                if end is None:
                    never.add(closing)
                else:
                    place = end.end() if closing == "-->" else end.start()
            if tag[2] is None or tag[2].lower() not in _INLINE:
                kept.append(" ")
        text = "".join([*kept, text[place:]])
    return html.unescape(text)


def _full_katakana(text: str) -> str:
    # A sound mark is a character of its own in half width; the compatibility form joins it to its letter.
    return _HALF_KATAKANA.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)


@cache
def _to_simplified() -> Callable[[str], str]:
    try:
        from opencc import OpenCC
    except ImportError:
        raise MissingError("simplified characters need OpenCC: pip install 'luban[chinese]'") from None
    convert: Callable[[str], str] = OpenCC("t2s").convert
    return convert
