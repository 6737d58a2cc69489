"""Text, as the numbers of its characters, words or subwords."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr, model_validator

from luban.data.contracts import Array, Encoded, Field, Flat, Processor, Role
from luban.data.processors._base import smallest_integer
from luban.data.processors._encoding import Encoder, gather
from luban.data.processors._tokenizer_files import files_of, read
from luban.data.processors._tokenizers import SPECIAL, Form, Kind, Ready, Training, train
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Text"]

# What a tokenizer is trained on, at most; more text changes a vocabulary of thousands little.
_SAMPLE_BYTES = 64 * 2**20
_BYTE_FALLBACK = ("unigram", "char")


@register("processors")
class Text(Processor):
    """Text of any language and any length; no padding is stored.

    Field ``ids`` is ragged int. The tokenizer is trained on the training rows by the `tokenizers` library, or read from the
    files of another model; either way it is part of the artefact. What comes back from the numbers unchanged, as a model that
    writes needs it: any text with ``tokens: bpe`` and ``lowercase: false``, and with ``unigram`` or ``char`` if also
    ``byte_fallback: true`` and ``normalize: none``. As a target, it is what a model of type seq2seq writes.

    Example:
        >>> p = Text(tokens="char"); p.update(pl.Series(["好的", "不好"])); p.finish()
        >>> p.encode(pl.Series(["好好"]))["ids"].offsets.tolist()
        [0, 2]
    """

    objective: ClassVar[str | None] = "seq2seq"
    writes: ClassVar[bool] = True

    tokens: Kind = "char"
    """char: characters; word: words of letters, and single CJK characters; bpe (byte-level), wordpiece, unigram: subwords.
    Two fits of the same texts are equal, but for unigram, whose trainer in the library draws at random."""
    tokenizer: str | None = None
    """A tokenizer to use as it is, instead of training one: a tokenizer.json, a vocab.txt, a SentencePiece model, or the
    directory of a Hugging Face model."""
    like: str | None = None
    """Another input of text whose tokenizer this column shares: it is trained on both columns, as that one's options say."""
    vocabulary: Annotated[int, Option(ge=16)] = 8_000
    """Size of the trained vocabulary, at most."""
    min_count: Annotated[int, Option(ge=1)] = 2
    """Tokens seen less often in training are unknown."""
    max_length: Annotated[int, Option(ge=1)] | None = 512
    """Tokens kept of a text (the first ones); what is cut is counted and reported. null keeps all."""
    lowercase: bool = True
    """Whether upper and lower case are one."""
    normalize: Form | None = None
    """The Unicode form that texts are brought to; nfkc makes full-width letters plain ones. null is nfkc, for bpe none."""
    digits: Literal["together", "single"] = "together"
    """single: each digit is a token of its own, so that numbers are read alike whatever their length."""
    byte_fallback: bool = False
    """Whether a character without a token of its own becomes the bytes of its UTF-8, instead of unknown; blanks are kept.
    For unigram and char; bpe is made of bytes as it is."""
    special: bool = False
    """Whether [CLS] and [SEP] are put around each text; they stay where a text is cut, and so does the token of `end`."""
    end: bool = False
    """Whether an end-of-text token closes each text that is not cut: <|endoftext|> for bpe, else [SEP]. For language models."""
    opening: Annotated[int, Option(ge=0)] | None = None
    """Number of the token that opens each text, in the place of those that the tokenizer puts there: of texts that are written in
    another language than they are read (M2M100, NLLB, mBART-50)."""
    bytes: bool = False
    """Whether a field ``bytes`` holds the length in UTF-8 of what was encoded of each text, for losses per byte."""

    _framed: bool = PrivateAttr(default=False)
    _texts: list[str] = PrivateAttr(default_factory=list)
    _sampled: int = PrivateAttr(default=0)
    _seen: int = PrivateAttr(default=0)
    _ready: Ready | None = PrivateAttr(default=None)
    _encoder: Encoder | None = PrivateAttr(default=None)
    _size: int = PrivateAttr(default=0)
    _counts: Counter[str] = PrivateAttr(default_factory=Counter)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.byte_fallback and self.tokens not in _BYTE_FALLBACK and self.tokenizer is None:
            raise ValueError(
                f"byte_fallback is for tokens {' and '.join(_BYTE_FALLBACK)}, not for {self.tokens}"
                + (", which is made of bytes as it is" if self.tokens == "bpe" else "")
            )
        if self.like is not None:
            own = [*Training.__dataclass_fields__, "tokenizer"]
            given = [k for k in own if k != "end" and getattr(self, k) != type(self).model_fields[k].default]
            if given:
                raise ValueError(
                    f"{' and '.join(given)} would do nothing, because the tokenizer is that of '{self.like}': say it there"
                )
        return self

    # --- what is known once it is fitted ----------------------------------------------------------------

    @property
    def trained(self) -> Tokenizer:
        """The tokenizer, once fitted."""
        return self._known.tokenizer

    @property
    def _known(self) -> Ready:
        assert self._ready is not None, "the processor is not fitted"
        return self._ready

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation that the tokenizer came with."""
        return self._known.chat_template

    def _id(self, role: str) -> int | None:
        name = self._known.roles.get(role)
        number: int | None = None if name is None else self.trained.token_to_id(name)
        return number

    @property
    def pad_id(self) -> int | None:
        """Number of the token that fills."""
        return self._id("pad")

    @property
    def unk_id(self) -> int | None:
        """Number of the token for what is unknown."""
        return self._id("unk")

    @property
    def mask_id(self) -> int | None:
        """Number of the token that hides another."""
        return self._id("mask")

    @property
    def cls_id(self) -> int | None:
        """Number of the token that opens a text to classify."""
        return self._id("cls")

    @property
    def sep_id(self) -> int | None:
        """Number of the token that parts and closes texts."""
        return self._id("sep")

    @property
    def begin_id(self) -> int | None:
        """Number of the token that begins a text to write (``bos_token`` in other libraries)."""
        return self._id("begin")

    @property
    def end_id(self) -> int | None:
        """Number of the token that ends a text to write (``eos_token`` in other libraries)."""
        return self._id("end")

    @property
    def end_ids(self) -> frozenset[int]:
        """Numbers of all tokens at which a text that is written ends: `end_id`, and those that its model names beside it."""
        names = (self._known.roles.get("end"), *self._known.ends)
        numbers = (self.trained.token_to_id(name) for name in names if name is not None)
        return frozenset(number for number in numbers if number is not None)

    @property
    def special_ids(self) -> frozenset[int]:
        """Numbers of all tokens that stand for no text."""
        added = self.trained.get_added_tokens_decoder().items()
        roles = (self._id(role) for role in self._known.roles)
        return frozenset({i for i, token in added if token.special} | {i for i in roles if i is not None})

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """Numbers of the tokens that stand before and after each text."""
        framed = self._framed or self.special or self.tokenizer is not None
        before, after = self._frame() if framed else ([], [])
        return before if self.opening is None else [self.opening], after

    # --- fitting -----------------------------------------------------------------------------------------

    def update(self, values: pl.Series) -> None:
        if self.tokenizer is not None:
            return
        for text in _strings(values):
            self._seen += 1
            if self._sampled < _SAMPLE_BYTES:
                self._texts.append(text)
                self._sampled += len(text.encode())
            else:  # beyond the budget each text replaces an earlier one, so that the sample stays uniform (Vitter, 1985)
                place = int(np.random.default_rng(self._seen).integers(self._seen))
                if place < len(self._texts):
                    self._texts[place] = text

    def share(self, owner: Text) -> None:
        """Take another column's tokenizer, once that is fitted."""
        self._framed = owner.special or owner.tokenizer is not None
        known = owner._known
        self._finish(Ready(known.tokenizer, dict(known.roles), known.chat_template, known.ends))

    def finish(self) -> None:
        if self.like is not None:
            raise DataError(
                f"'like: {self.like}' is the tokenizer of another column, which only a recipe of both knows"
            )
        if self.tokenizer is not None:
            ready = read(Path(self.tokenizer))
        else:
            if not any(text.strip() for text in self._texts):
                raise DataError("no training row holds any text here; remove the column")
            options = {name: getattr(self, name) for name in Training.__dataclass_fields__}
            ready = train(self._texts, Training(**options))
        self._texts, self._sampled = [], 0
        self._finish(ready)

    def _finish(self, ready: Ready) -> None:
        if self.end and "end" not in ready.roles:
            if "sep" not in ready.roles:
                raise DataError("the tokenizer names no end-of-text token (eos_token); leave out 'end'")
            ready.roles["end"] = ready.roles["sep"]
        self._take(ready)

    def _take(self, ready: Ready) -> None:
        ready.tokenizer.no_padding()
        ready.tokenizer.no_truncation()
        self._ready, self._encoder = ready, None
        self._size = 1 + max(ready.tokenizer.get_vocab().values())  # there may be gaps
        if self.opening is not None and self.opening >= self._size:
            raise DataError(
                f"opening is {self.opening}, and the tokenizer has {self._size:,} tokens, numbered from 0; give the number of one of them"
            )

    def files(self) -> list[Path]:
        """Return the files that a named tokenizer is read from: other files are another encoding."""
        return [] if self.tokenizer is None else files_of(Path(self.tokenizer))

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        dtype = smallest_integer(self._size)
        fields = {"ids": Field(column, self.type, role, dtype, None, size=self._size, pad=self.pad_id or 0)}
        if self.bytes and role != "target":  # counted with, never read by a model
            fields["bytes"] = Field(column, self.type, "id", "int32")
        return fields

    # --- encoding ----------------------------------------------------------------------------------------

    def encode(self, values: pl.Series) -> Encoded:
        return self.encode_texts(_strings(values))

    def encode_target(self, values: pl.Series) -> Encoded:
        return {"ids": self.encode(values)["ids"]}

    def encode_measured(self, values: pl.Series) -> tuple[Flat, Array]:
        """Return tokens as a target has them, and the bytes in UTF-8 of the text that is left of each where it was cut, (n,)."""
        encoded = self._encoded(_strings(values), self.end, self.max_length, measure=True)
        ids, sizes = encoded["ids"], encoded["bytes"]
        assert isinstance(ids, Flat)
        assert not isinstance(sizes, Flat)
        return ids, sizes

    def encode_texts(self, texts: list[str], *, end: bool | None = None) -> Encoded:
        """Encode plain strings; as `encode`.

        Args:
            texts: the strings. Names of special tokens in them are these tokens, as in other libraries.
            end: whether an end-of-text token closes each; by default as the option says. A prompt has none.
        """
        return self._encoded(texts, self.end if end is None else end, self.max_length)

    def encode_whole(self, texts: list[str]) -> Flat:
        """Return the tokens of texts, none of which is cut, whatever `max_length` says: for those who cut windows themselves."""
        ids = self._encoded(texts, self.end, None)["ids"]
        assert isinstance(ids, Flat)
        return ids

    def places(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return where in its text each token lies that `encode_texts` makes of it, as (start, end) in characters.

        Both are equal where a token stands for no text. A token that holds a part of a character has the place of the whole one.
        """
        before, after = self.frame
        closing = int(self.end and self.end_id is not None and after[-1:] != [self.end_id])
        result = []
        for one in self.trained.encode_batch(self._without_surrogates(texts), add_special_tokens=False):
            head, tail, close, kept = len(before), len(after), closing, len(one.ids)
            if self.max_length is not None and head + kept + tail + close > self.max_length:
                head = min(head, self.max_length)
                tail, close = min(tail, self.max_length - head), 0
                kept = min(kept, self.max_length - head - tail)
            result.append([(0, 0)] * head + one.offsets[:kept] + [(0, 0)] * (tail + close))
        return result

    def _encoded(self, texts: list[str], end: bool, limit: int | None, *, measure: bool = False) -> Encoded:
        texts = self._without_surrogates(texts)
        if self._encoder is None:
            self._encoder = Encoder(self.trained)
        values, offsets = self._encoder.encode(texts)
        values = values.astype(smallest_integer(self._size))
        lengths = np.diff(offsets)
        before, after = self.frame
        closing: list[int] = []
        if end and self.end_id is not None and after[-1:] != [self.end_id]:
            if self.special:
                after = [*after, self.end_id]
            else:
                closing = [self.end_id]
        whole = lengths + len(before) + len(after) + len(closing)
        kept, closed = lengths, np.full(len(texts), bool(closing))
        if limit is not None and len(cut := np.flatnonzero(whole > limit)):
            self._counts[say("texts cut to max_length")] += len(cut)
            self._counts[say("tokens cut")] += int((whole[cut] - limit).sum())
            closed[cut] = False  # such a text does not end here
            # As other libraries do, the text is cut and what stands around it stays, if there is room.
            before, after = before[:limit], after[: max(0, limit - len(before))]
            kept = np.minimum(lengths, limit - len(before) - len(after))
        encoded: Encoded = {"ids": _assemble(values, offsets[:-1], kept, before, after, closing, closed)}
        if self.bytes or measure:
            encoded["bytes"] = self._lengths(texts, lengths, kept)
        return encoded

    def prompt_ids(self, text: str) -> list[int]:
        """Return the numbers of a text that is to be continued: whole, what opens a text before it, and without what closes one."""
        before, _ = self.frame
        text = self._without_surrogates([text])[0]
        return [*before, *self.trained.encode(text, add_special_tokens=False).ids]

    def decode_ids(self, ids: list[int], skip_special: bool = True) -> str:
        """Return the text of numbers; `skip_special` leaves out the tokens that stand for no text."""
        text: str = self.trained.decode(ids, skip_special_tokens=skip_special)
        return text

    def _without_surrogates(self, texts: list[str]) -> list[str]:
        """A half of a UTF-16 pair is no character; JSON and broken programs bring some."""
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            mended = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            changed = sum(a != b for a, b in zip(texts, mended, strict=True))
            self._counts[say("texts with lone surrogates, which were replaced")] += changed
            return mended
        return texts

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return what the tokenizer puts before and after each text."""
        for probe in ("a", "0", "的"):
            one = self.trained.encode(probe)
            inner = [i for i, sequence in enumerate(one.sequence_ids) if sequence is not None]
            if inner:
                return one.ids[: inner[0]], one.ids[inner[-1] + 1 :]
        return self.trained.encode("").ids, []

    def _lengths(self, texts: list[str], lengths: Array, kept: Array) -> Array:
        """Return the bytes of what was encoded of each text; a character that was cut through counts."""
        result = np.fromiter((len(text.encode()) for text in texts), np.int32, len(texts))
        for i in np.flatnonzero(kept < lengths).tolist():
            places = self.trained.encode(texts[i], add_special_tokens=False).offsets[: kept[i]]
            result[i] = len(texts[i][: max((stop for _, stop in places), default=0)].encode())
        return result

    def counts(self) -> Counter[str]:
        counts, self._counts = self._counts, Counter()
        return +counts

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        lengths = generator.integers(1, min(32, self.max_length or 32) + 1, size=n)
        return [
            self.trained.decode(generator.integers(self._size, size=int(length)).tolist())
            for length in lengths
        ]

    def state(self) -> dict[str, Any]:
        known = self._known
        return {
            "tokenizer": known.tokenizer.to_str(),
            "roles": known.roles,
            "chat_template": known.chat_template,
            **({"ends": list(known.ends)} if known.ends else {}),
            **({"framed": True} if self._framed else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(state["tokenizer"])
        roles = state.get("roles")
        if roles is None:  # written before roles were kept
            names = {name.strip("[]").lower(): name for name in SPECIAL}
            roles = {role: name for role, name in names.items() if tokenizer.token_to_id(name) is not None}
        self._framed = bool(state.get("framed", False))
        self._take(Ready(tokenizer, dict(roles), state.get("chat_template"), tuple(state.get("ends", ()))))


def _assemble(
    values: Array,
    starts: Array,
    kept: Array,
    before: list[int],
    after: list[int],
    closing: list[int],
    closed: Array,
) -> Flat:
    """Put together rows: what stands before, the first `kept` values of each, what stands after, and how some close."""
    lengths = kept + len(before) + len(after) + closed * len(closing)
    offsets = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if not (before or after or closing):
        return Flat(values if len(values) == offsets[-1] else gather(values, starts, kept), offsets)
    result = np.empty(int(offsets[-1]), dtype=values.dtype)
    inner = offsets[:-1] + len(before)
    result[gather(np.arange(len(result)), inner, kept)] = gather(values, starts, kept)
    for i, token in enumerate(before):
        result[offsets[:-1] + i] = token
    for i, token in enumerate(after):
        result[inner + kept + i] = token
    if closing:
        result[offsets[1:][closed] - 1] = closing[0]
    return Flat(result, offsets)


def _strings(values: pl.Series) -> list[str]:
    text: list[str] = values.cast(pl.String, strict=False).fill_null("").to_list()
    return text
