"""Tokens as pieces of the text that the user gave."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.data.processors.text import Text
from luban.explaining._base import Part, Piece

__all__ = ["Pieces", "by_word", "moved", "pieces_of", "strings", "words_of"]

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0002fa1f"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|(?:(?![{_IDEOGRAPH}])\w)+(?:['’\-](?:(?![{_IDEOGRAPH}])\w)+)*|\S")
_ALIKE = 0.3
"""Part of a cleaned text's characters that must be found again in the original, or places in it would mean nothing."""
_COMPARED = 4_000_000
"""Pairs of characters that are compared to align two texts; longer ones are shown as cleaned."""


@dataclass(frozen=True)
class Pieces:
    """A text in pieces, each of one or several tokens.

    Attributes:
        pieces: in order.
        groups: the piece that each token belongs to, (T,).
        special: whether a piece stands for no text ([CLS]), (P,).
        shown: the text that places refer to.
        of_original: whether that is the one the user gave.
    """

    pieces: list[Piece]
    groups: npt.NDArray[np.int64]
    special: npt.NDArray[np.bool_]
    shown: str
    of_original: bool

    def gather(self, values: Any) -> npt.NDArray[np.float64]:
        """Return the sums over each piece of what its tokens have: (..., T) to (..., P)."""
        values = np.asarray(values, dtype=np.float64)
        result = np.zeros((*values.shape[:-1], len(self.pieces)))
        np.add.at(result.T, self.groups, values.T)
        return result

    def part(self, column: str, values: Any) -> Part:
        """Return what a text contributed, given a value for each token, (T,)."""
        return Part(
            column,
            "tokens",
            self.gather(values),
            self.pieces,
            shown=self.shown,
            of_original=self.of_original,
        )


def strings(values: pl.Series) -> list[str]:
    """Return cells as texts; a missing one is empty. Halves of a UTF-16 pair, which are no characters, are replaced."""
    texts = values.cast(pl.String, strict=False).fill_null("").to_list()
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


def pieces_of(
    text: Text, ids: Sequence[int], places: Sequence[tuple[int, int]], cleaned: str, given: str
) -> Pieces:
    """Put the tokens of a text together to pieces.

    Tokens whose places overlap are one piece: byte-level tokens that hold half a character each are shown as that character.

    Args:
        text: the processor.
        ids: the tokens, (T,).
        places: where each lies in the cleaned text (`Text.places`).
        cleaned, given: what was encoded, and what the user gave.
    """
    found = moved(places, cleaned, given)
    of_original = found is not None
    shown, spots = (given, found) if found is not None else (cleaned, list(places))
    pieces: list[Piece] = []
    groups: list[int] = []
    special: list[bool] = []
    for token, (start, end) in zip(ids, spots, strict=True):
        last = pieces[-1] if pieces else None
        if last is not None and start < end and last.start < last.end and start < last.end:
            start, end = min(start, last.start), max(end, last.end)
            pieces[-1] = Piece(shown[start:end], start, end)
        elif start < end:
            pieces.append(Piece(shown[start:end], start, end))
            special.append(False)
        else:
            pieces.append(Piece(str(text.trained.id_to_token(int(token)) or token), start, start))
            special.append(True)
        groups.append(len(pieces) - 1)
    return Pieces(
        pieces, np.asarray(groups, dtype=np.int64), np.asarray(special, dtype=bool), shown, of_original
    )


def moved(places: Sequence[tuple[int, int]], cleaned: str, given: str) -> list[tuple[int, int]] | None:
    """Return where places in a cleaned text lie in the one that it was made of; None if the two have too little in common.

    Example:
        >>> moved([(0, 4), (5, 8)], "good 1!!", "<b>good</b>  １！！")
        [(3, 7), (13, 16)]
    """
    if cleaned == given:
        return list(places)
    if len(cleaned) * len(given) > _COMPARED:
        return None
    starts = np.full(len(cleaned) + 1, -1)
    ends = np.full(len(cleaned) + 1, -1)
    alike = 0
    pairs = SequenceMatcher(None, _folded(given), _folded(cleaned), autojunk=False)
    for kind, a, b, c, d in pairs.get_opcodes():
        if kind == "equal" or (kind == "replace" and b - a == d - c):
            starts[c:d], ends[c:d] = np.arange(a, b), np.arange(a + 1, b + 1)
            alike += d - c if kind == "equal" else (d - c) // 2
        elif kind == "replace":  # so many characters became so many others: each stands for all of them
            starts[c:d], ends[c:d] = a, b
        elif kind == "insert":
            starts[c:d] = ends[c:d] = a
    if cleaned and alike < _ALIKE * len(cleaned):
        return None
    result = []
    for start, end in places:
        if start >= end:
            result.append((start, start))
            continue
        result.append((int(starts[start:end].min()), int(ends[start:end].max())))
    return result


def _folded(text: str) -> str:
    """Return a text as long as it was, its characters without width and case, so that what cleaning made alike is found again."""
    plain = (unicodedata.normalize("NFKC", c).lower() for c in text)
    return "".join(new if len(new) == 1 else old for old, new in zip(text, plain, strict=True))


def words_of(pieces: Pieces) -> npt.NDArray[np.int64]:
    """Return the word that each piece belongs to, (P,), counted from 0; -1 for a piece that stands for no text.

    A word is a run of letters and digits, a CJK character, or any other sign. A piece of several words is one.
    """
    words = [match.span() for match in _WORD.finditer(pieces.shown)]
    starts = np.asarray([start for start, _ in words], dtype=np.int64)
    result = np.full(len(pieces.pieces), -1, dtype=np.int64)
    known: dict[int, int] = {}
    for i, piece in enumerate(pieces.pieces):
        if pieces.special[i]:
            continue
        inner = piece.start + len(piece.text) - len(piece.text.lstrip())
        word = int(np.searchsorted(starts, inner, side="right")) - 1
        result[i] = known.setdefault(word, len(known))
    return result


def by_word(pieces: Pieces) -> Pieces:
    """Return the same text with one piece a word; what stands for no text stays as it is."""
    words = words_of(pieces)
    result: list[Piece] = []
    special: list[bool] = []
    place = np.zeros(len(pieces.pieces), dtype=np.int64)
    seen: dict[int, int] = {}
    for i, (piece, word) in enumerate(zip(pieces.pieces, words.tolist(), strict=True)):
        if word >= 0 and word in seen:
            at = seen[word]
            start, end = min(result[at].start, piece.start), max(result[at].end, piece.end)
            result[at] = Piece(pieces.shown[start:end], start, end)
        else:
            at = len(result)
            result.append(piece)
            special.append(bool(pieces.special[i]))
            if word >= 0:
                seen[word] = at
        place[i] = at
    return Pieces(
        result,
        place[pieces.groups] if len(pieces.groups) else pieces.groups,
        np.asarray(special, dtype=bool),
        pieces.shown,
        pieces.of_original,
    )
