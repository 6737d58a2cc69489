"""SentencePiece models (Kudo and Richardson, 2018), read without the library that wrote them.

A model is a protocol buffer (sentencepiece_model.proto); the few fields that decide how a text is cut are read here, and
rebuilt with parts of the `tokenizers` library.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["SentencePiece", "parse"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # types of a piece
_UNIGRAM, _BPE, _WORD, _CHARACTER = 1, 2, 3, 4  # types of a model
_KINDS = {_WORD: "word"}
_BLANK = "\u2581"


@dataclass(frozen=True)
class SentencePiece:
    """What a model file says.

    Attributes:
        kind: unigram, BPE, word or character.
        pieces: (text, score, type) each; the place is the number.
        byte_fallback: whether an unknown character becomes bytes.
        charsmap: rules of normalisation, as the file has them; empty for none.
        prefix: whether a space is put before a text.
        trim: whether spaces around a text go, and runs of them become one.
        begin, end: names of the control pieces around a text.
    """

    kind: int
    pieces: tuple[tuple[str, float, int], ...]
    byte_fallback: bool
    charsmap: bytes
    prefix: bool
    trim: bool
    begin: str
    end: str

    @property
    def unknown(self) -> int:
        """The number of the unknown piece."""
        return next(i for i, (_, _, kind) in enumerate(self.pieces) if kind == _UNKNOWN)

    def as_fairseq(self) -> SentencePiece:
        """Return the model with the numbers of XLM-RoBERTa: four special pieces first, a mask last."""
        special = [
            ("<s>", 0.0, _CONTROL),
            ("<pad>", 0.0, _CONTROL),
            ("</s>", 0.0, _CONTROL),
            ("<unk>", 0.0, _UNKNOWN),
        ]
        return replace(
            self, pieces=(*special, *self.pieces[3:], ("<mask>", 0.0, _CONTROL)), begin="<s>", end="</s>"
        )

    def build(self) -> Tokenizer:
        """Return a tokenizer that gives the same numbers."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        model: models.Model
        texts = [text for text, _, _ in self.pieces]
        unknown = texts[self.unknown]
        if self.kind == _UNIGRAM:
            pieces = [(text, self._score(score, kind)) for text, score, kind in self.pieces]
            model = models.Unigram(pieces, unk_id=self.unknown, byte_fallback=self.byte_fallback)
        else:
            model = models.BPE(
                {text: i for i, text in enumerate(texts)},
                self._merges() if self.kind == _BPE else [],
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=self.byte_fallback,
            )
        tokenizer = Tokenizer(model)
        steps = self._rules()
        if self.trim:  # spaces only: what else is blank, the rules above have made a space of, or left
            steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.prefix:
            steps.append(normalizers.Prepend(_BLANK))
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _BLANK)])
        parts = []
        if self.byte_fallback and self.kind == _UNIGRAM:  # a text that spells a byte's name is no byte
            parts.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "isolated"))
        # Where no piece goes on across a space, words can be cut apart first, and words that return are quick.
        if not any(_BLANK in text.lstrip(_BLANK) for text in texts):
            parts.append(pre_tokenizers.Split(Regex(f"{_BLANK}*[^{_BLANK}]+|{_BLANK}+"), "isolated"))
        if parts:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        decoding: list[Any] = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.prefix:
            decoding.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(decoding)
        special = [text for text, _, kind in self.pieces if kind in (_CONTROL, _UNKNOWN)]
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
        if self.kind != _UNIGRAM:  # whole, before any merge
            users = [text for text, _, kind in self.pieces if kind == _USER_DEFINED]
            tokenizer.add_tokens([AddedToken(text, normalized=False) for text in users])
        return tokenizer

    def _rules(self) -> list[Any]:
        """Return the rules of normalisation.

        The library applies them character by character where characters belong together (``\\r\\n``, a letter and its
        accents), while SentencePiece takes the longest match: what would match further is put together before.
        """
        from tokenizers import normalizers

        if not self.charsmap:
            return []
        rules = normalizers.Precompiled(self.charsmap)
        steps: list[Any] = []
        if rules.normalize_str("\r") == rules.normalize_str("\n"):
            steps.append(normalizers.Replace("\r\n", "\n\n"))
        if rules.normalize_str("\uff76") == "\u30ab":  # rules made of NFKC
            steps.append(normalizers.NFC())
            for marked, plain in _voiced_halves().items():
                steps.append(normalizers.Replace(marked, plain))
        return [*steps, rules]

    def _score(self, score: float, kind: int) -> float:
        """User-defined pieces stand at 0 in the file: better than any other, which is what they are for."""
        least = min(score for _, score, kind in self.pieces if kind == _NORMAL)
        return least if kind in (_BYTE, _UNUSED) else score

    def _merges(self) -> list[tuple[str, str]]:
        """Return the merges that the scores amount to: of all pairs of pieces that make a piece, the best-scored first."""
        numbers = {
            text: i
            for i, (text, _, kind) in enumerate(self.pieces)
            if kind not in (_CONTROL, _UNKNOWN, _BYTE)
        }
        found: list[tuple[float, int, int, str, str]] = []
        for text, score, kind in self.pieces:
            if kind not in (_NORMAL, _UNUSED):
                continue
            for place in range(1, len(text)):
                left, right = text[:place], text[place:]
                if left in numbers and right in numbers:
                    found.append((-score, numbers[left], numbers[right], left, right))
        return [(left, right) for _, _, _, left, right in sorted(found)]


def _voiced_halves() -> dict[str, str]:
    """Return half-width Katakana with a sound mark → the letter, as NFKC has it."""
    pairs = (chr(letter) + mark for letter in range(0xFF66, 0xFF9E) for mark in "\uff9e\uff9f")
    return {pair: one for pair in pairs if len(one := unicodedata.normalize("NFKC", pair)) == 1}


def parse(data: bytes, file: Path) -> SentencePiece:
    """Read a model file.

    Raises:
        DataError: if it is none, or of a kind that cannot be rebuilt.
    """
    try:
        model = _parse(data)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' is no SentencePiece model that can be read: {error}") from None
    if model.kind not in (_UNIGRAM, _BPE, _CHARACTER):
        raise DataError(
            f"'{file}' is a SentencePiece model of kind '{_KINDS.get(model.kind, model.kind)}'; unigram, bpe and char can be read"
        )
    users = any(kind == _USER_DEFINED for _, _, kind in model.pieces)
    if users and model.kind != _UNIGRAM and (model.prefix or model.trim):
        raise DataError(
            f"'{file}' is a SentencePiece model with symbols of its user's own, and puts a space before each text or takes spaces away, "
            "which cannot be rebuilt exactly; give its tokenizer.json"
        )
    return model


def _parse(data: bytes) -> SentencePiece:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            text = _bytes(piece.get(1, b"")).decode()
            score = struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0]
            pieces.append((text, score, int(piece.get(3, _NORMAL))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    kinds = [kind for _, _, kind in pieces]
    if _UNKNOWN not in kinds or _NORMAL not in kinds:
        raise ValueError("it has no pieces, or none for what is unknown")
    if trainer.get(24):
        raise ValueError(
            "its spaces belong to the word before them (treat_whitespace_as_suffix), which is not supported"
        )
    return SentencePiece(
        kind=int(trainer.get(3, _UNIGRAM)),
        pieces=tuple(pieces),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=_bytes(normalizer.get(2, b"")),
        prefix=bool(normalizer.get(3, 1)),
        trim=bool(normalizer.get(4, 1)),
        begin=_bytes(trainer.get(46, b"<s>")).decode(),
        end=_bytes(trainer.get(47, b"</s>")).decode(),
    )


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field is a number where it should be bytes")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol-buffer message: numbers as int, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5) or not number:
            raise ValueError("it is no protocol buffer")
        size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
        if at + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + size]
        at += size
