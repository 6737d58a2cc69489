"""Conversations, as the tokens of one text and which of them are answers."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
from pydantic import PrivateAttr, model_validator

from luban.data._messages import ANSWER, Message, UnreadableError, dump, objects_in, read
from luban.data._templates import BUILT_IN, render, special_tokens
from luban.data.contracts import Array, Encoded, Field, Flat, Role
from luban.data.processors._base import smallest_integer
from luban.data.processors._encoding import Encoder
from luban.data.processors._tokenizers import END, Ready
from luban.data.processors.text import Text
from luban.errors import DataError, did_you_mean
from luban.registry import register

__all__ = ["Answers", "Chat"]

_DEFAULT = "chatml"
# Roles of tokens → the variables by which templates know them, as in the `transformers` library.
_VARIABLES = {
    "begin": "bos_token", "end": "eos_token", "unk": "unk_token", "pad": "pad_token", "sep": "sep_token", "cls": "cls_token",
    "mask": "mask_token",
}  # fmt: skip
_OPEN = "answers not learnt, since the tokenizer does not see where they end"
_PROBE: Message = {"role": "user", "content": "1"}


@dataclass(frozen=True)
class Answers:
    """Conversations as tokens.

    Attributes:
        ids: their tokens.
        answer: 1 for a token of an answer or the one that closes it, 0 for any other; rows as those of `ids`.
        bytes: length of the answers in UTF-8, as far as they are not cut, (n,).
    """

    ids: Flat
    answer: Flat
    bytes: Array


@dataclass(frozen=True)
class _Closing:
    """How the template closes an answer.

    Attributes:
        tail: what follows the content.
        kept: characters of the tail that the model writes: up to the end of the token that ends the turn.
        token: number of that token.
    """

    tail: str
    kept: int
    token: int


@dataclass(frozen=True)
class _Span:
    """Where an answer stands in the text of its conversation: its content ends at `end`, what the model writes at `stop`."""

    start: int
    end: int
    stop: int


@dataclass(frozen=True)
class _Written:
    """A conversation as text, where its answers stand, and what was lost on the way."""

    whole: str
    spans: list[_Span]
    lost: Counter[str]


@dataclass(frozen=True)
class _Row:
    """A conversation as tokens, cut to max_length, and what was lost."""

    ids: Array
    answer: Array
    bytes: int
    lost: Counter[str]


@register("processors")
class Chat(Text):
    """Conversations: a list of messages with ``role`` and ``content`` (or ``from`` and ``value``), or its JSON text.

    Fields: ``ids``, the tokens of the text that the chat template makes of a conversation, and ``answer``, as long, 1 for the
    tokens that the assistant writes, the one that ends its turn among them, and 0 for all others. So a model learns to answer
    and to stop, and nothing else. The template is the tokenizer's own or one of ours, and is part of the artefact.

    Where an answer begins, the text is cut before it is split into tokens, so that what stands before is the same tokens in
    training and when an answer is to be generated; but for tokenizers that would put a space at the cut.

    Example:
        >>> chats = pl.Series(['[{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]'])
        >>> p = Chat(tokens="char", min_count=1); p.update(chats); p.finish()
        >>> encoded = p.encode(chats); p.decode_ids(encoded["ids"].values[encoded["answer"].values == 1].tolist(), False)
        '2 <|im_end|>'
    """

    objective: ClassVar[str | None] = None
    writes: ClassVar[bool] = False

    template: str | None = None
    """chatml, llama3, alpaca, plain, or a file of a Jinja template; by default the tokenizer's own, chatml where it has none.
    alpaca and plain need no token but the one that ends a text."""

    _closing: _Closing | None = PrivateAttr(default=None)
    _stops: list[str] = PrivateAttr(default_factory=list)
    _day: str | None = PrivateAttr(default=None)
    _cuts: bool = PrivateAttr(default=True)
    _quick: bool = PrivateAttr(default=False)
    _names: re.Pattern[str] | None = PrivateAttr(default=None)
    _memo: dict[str, _Row | str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _no_frame(self) -> Self:
        given = [key for key in ("special", "end", "like") if getattr(self, key)]
        given += [] if self.opening is None else ["opening"]
        if given:
            raise ValueError(
                f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for plain texts: in a conversation the template says where "
                "special tokens stand, and the tokenizer must know these; remove it"
            )
        self.model_fields_set.update({"special", "end"})  # as said, so that no model suggests another value
        return self

    @classmethod
    def of(cls, text: Text, template: str | None = None) -> Self:
        """Return a processor of conversations with the tokenizer of a fitted text column.

        Args:
            text: such as that of a model which was imported.
            template: as the option; by default the template that the tokenizer came with.

        Raises:
            DataError: if the tokenizer lacks a token that the template needs.
        """
        chat = cls(template=template, max_length=text.max_length)
        chat._begin(text._known, trained=False)
        return chat

    # --- what is known once it is fitted ----------------------------------------------------------------

    @property
    def end_ids(self) -> frozenset[int]:
        """Numbers of the tokens at which generation stops: the one that ends a turn, and those that end a text."""
        numbers = (self.trained.token_to_id(name) for name in self._stops)
        return super().end_ids | {number for number in numbers if number is not None}

    @property
    def _source(self) -> str:
        source = self._known.chat_template
        assert source is not None, "a chat always has a template"
        return source

    # --- fitting -----------------------------------------------------------------------------------------

    def update(self, values: pl.Series) -> None:
        if self.tokenizer is not None:
            return
        source = self._option() or BUILT_IN[_DEFAULT]
        names = [*special_tokens(source), END]
        texts: list[str] = []
        for cell in values.to_list():
            try:
                messages = read(cell)
            except UnreadableError:
                continue  # counted when it is encoded
            try:
                text = render(source, messages, tokens={"eos_token": END})
            except UnreadableError:  # as is this
                text = "\n".join(message["content"] for message in messages)
            for name in names:  # these become tokens of their own, and are no example of text
                text = text.replace(name, " ")
            texts.append(text)
        super().update(pl.Series(texts, dtype=pl.String))

    def finish(self) -> None:
        super().finish()
        self._begin(self._known, trained=self.tokenizer is None)

    def _option(self) -> str | None:
        """Return the source of the template that the option names."""
        if self.template is None or self.template in BUILT_IN:
            return BUILT_IN.get(self.template or "")
        path = Path(self.template)
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(
                f"template '{self.template}' is neither one of {', '.join(BUILT_IN)} nor a file{did_you_mean(self.template, list(BUILT_IN))}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"template '{path}' cannot be read as text in UTF-8: {error}") from None

    def files(self) -> list[Path]:
        files = super().files()
        if self.template is not None and self.template not in BUILT_IN and os.path.isfile(self.template):
            files.append(Path(self.template))
        return files

    def _begin(self, ready: Ready, *, trained: bool) -> None:
        """Choose the template, and give the tokenizer what it needs for it."""
        option = self._option()
        source = option or (None if trained else ready.chat_template) or BUILT_IN[_DEFAULT]
        roles = dict(ready.roles)
        if trained:
            names = special_tokens(source)
            if "eos_token" in source:
                names.append(END)
                roles["end"] = END
            ready.tokenizer.add_special_tokens(names)
        else:
            _require(source, ready, own=option is None and ready.chat_template is not None)
        self._day = datetime.now().isoformat() if "strftime_now" in source else None
        self._settle(Ready(ready.tokenizer, roles, source, ready.ends))
        assert self._closing is not None
        ends = str(self.trained.id_to_token(self._closing.token))
        self._stops = list(dict.fromkeys([ends, *([roles["end"]] if "end" in roles else [])]))
        if "eos_token" not in source:
            # Then nothing but generation asks for the end of a text, here and in every format that is exported to.
            self._known.roles["end"] = ends

    def _settle(self, ready: Ready, known: list[Any] | None = None) -> None:
        """Find out how the template closes answers, and whether texts may be cut where these begin; or take it as `known`, so
        that loading somebody's artefact runs no template."""
        self._take(ready)
        added = {i: token.content for i, token in self.trained.get_added_tokens_decoder().items()}
        names = sorted(
            {content for i, content in added.items() if i in self.special_ids}, key=len, reverse=True
        )
        self._names = re.compile("|".join(map(re.escape, names))) if names else None
        self._memo = {}
        if known is not None:
            self._closing, self._cuts, self._quick = _Closing(*known[:3]), bool(known[3]), bool(known[4])
            return
        try:
            before = self._render([_PROBE], prompt=True)
            texts = [self._render([_PROBE, {"role": ANSWER, "content": content}]) for content in ("x", "y")]
        except UnreadableError as error:
            raise DataError(f"the chat template cannot write a question and its answer: {error}") from None
        if not all(text.startswith(before) for text in texts):
            raise DataError(
                f"the chat template opens an answer with {before[-40:]!r} when one is to be generated, and otherwise where one is given; "
                "take another by 'template'"
            )
        tail = _common_end(*texts)
        found = self.trained.encode(tail, add_special_tokens=False)
        candidates = (self.special_ids | added.keys()) - {self.unk_id}
        place = next((i for i, token in enumerate(found.ids) if token in candidates), None)
        if place is None:
            raise DataError(
                f"the chat template closes an answer with {tail!r}, in which the tokenizer sees no token of its own, so a model would never "
                "learn to stop; let the template write {{ eos_token }} there, or take another by 'template'"
            )
        self._closing = _Closing(tail, found.offsets[place][1], found.ids[place])
        start, stop = len(before), len(texts[0]) - len(tail) + self._closing.kept
        whole, first, second, answer, rest = (
            self.trained.encode(text, add_special_tokens=False).ids
            for text in (texts[0], before, texts[0][start:], texts[0][start:stop], texts[0][stop:])
        )
        self._cuts = first + second == whole or whole[: len(first)] != first
        # The token that ends a turn is a border by itself, but for tokenizers that swallow or add blanks behind it.
        self._quick = self._cuts and answer + rest == second

    # --- rendering ---------------------------------------------------------------------------------------

    def _render(
        self, messages: Sequence[Message], *, prompt: bool = False, now: datetime | None = None
    ) -> str:
        """Return the text of a conversation; by default of the day on which the processor was fitted, so that it stays so."""
        tokens = {_VARIABLES[role]: name for role, name in self._known.roles.items() if role in _VARIABLES}
        if now is None and self._day is not None:
            now = datetime.fromisoformat(self._day)
        return render(self._source, messages, prompt=prompt, tokens=tokens, now=now)

    def _spans(
        self, messages: Sequence[Message], whole: str, lost: Counter[str], *, now: datetime | None = None
    ) -> list[_Span]:
        """Return where the answers stand in the text of a conversation, or in a prompt that goes on from it.

        Turn by turn the conversation is written as far as the turn, and that must be how the whole one begins.
        """
        assert self._closing is not None
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != ANSWER:
                continue
            before = self._render(messages[:i], prompt=True, now=now)
            until = whole if i + 1 == len(messages) else self._render(messages[: i + 1], now=now)
            if not (whole.startswith(before) and whole.startswith(until) and until.startswith(before)):
                lost["answers not learnt, since the template writes them otherwise once others follow"] += 1
            elif not until.endswith(self._closing.tail):
                lost["answers not learnt, since the template does not close them"] += 1
            else:
                end = len(until) - len(self._closing.tail)
                spans.append(_Span(len(before), end, end + self._closing.kept))
        return spans

    # --- encoding ----------------------------------------------------------------------------------------

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        fields = super().fields(column, role)
        answer = Field(column, self.type, "id", "uint8", None)  # never read by a model
        return {"ids": fields.pop("ids"), "answer": answer, **fields}

    def invalid(self, values: pl.Series) -> pl.Series:
        """Return which cells are no conversation, or none of whose answers a model could learn, boolean, (n,)."""
        self._memo = {}
        rows = self._rows(values)
        self._counts.update(row for row in rows if isinstance(row, str))
        return pl.Series(values.name, [isinstance(row, str) for row in rows], pl.Boolean)

    def encode(self, values: pl.Series) -> Encoded:
        answers = self.answers(values)
        encoded: Encoded = {"ids": answers.ids, "answer": answers.answer}
        if self.bytes:
            encoded["bytes"] = answers.bytes
        self._memo = {}
        return encoded

    def encode_texts(self, texts: list[str], *, end: bool | None = None) -> Encoded:
        """Encode conversations as JSON texts; as `encode`."""
        return self.encode(pl.Series(texts, dtype=pl.String))

    def answers(self, values: pl.Series) -> Answers:
        """Return conversations as tokens, with the lengths of their answers; what is `invalid` has no token."""
        rows = self._rows(values)
        good = [row if isinstance(row, _Row) else _NOTHING for row in rows]
        for row in good:
            self._counts.update(row.lost)
        offsets = np.cumsum([0, *(len(row.ids) for row in good)], dtype=np.int64)
        dtype = smallest_integer(self._size)
        ids = np.concatenate([np.empty(0, dtype), *(row.ids.astype(dtype) for row in good)])
        answer = np.concatenate([np.empty(0, np.uint8), *(row.answer for row in good)])
        lengths = np.array([row.bytes for row in good], dtype=np.int32)
        return Answers(Flat(ids, offsets), Flat(answer, offsets), lengths)

    def _rows(self, values: pl.Series) -> list[_Row | str]:
        """Return each conversation as tokens, or why it cannot be learnt from; kept until `encode` has asked for them too."""
        cells = values.to_list()
        keys = [cell if isinstance(cell, str) else repr(cell) for cell in cells]
        new = {key: cell for key, cell in zip(keys, cells, strict=True) if key not in self._memo}
        found: dict[str, _Row | str] = {}
        texts: dict[str, _Written] = {}
        for key, cell in new.items():
            lost: Counter[str] = Counter()
            try:
                messages = read(cell)
                whole = self._render(messages)
                spans = self._spans(messages, whole, lost)
            except UnreadableError as error:
                found[key] = f"left out because of {error}"
                continue
            if not spans:
                found[key] = f"left out because of {next(iter(lost))}"
                continue
            if self._names is not None and any(self._names.search(one["content"]) for one in messages):
                lost["conversations whose messages name special tokens, which are taken for these"] += 1
            texts[key] = _Written(whole, spans, lost)
        encode = self._quickly if self._quick else self._with_places
        found.update(zip(texts, encode([*texts.values()]), strict=True))
        self._memo.update(found)
        return [self._memo[key] for key in keys]

    def _quickly(self, texts: Sequence[_Written]) -> Iterator[_Row | str]:
        """Encode each answer and each stretch between answers by itself, so that nobody has to ask where tokens stand."""
        assert self._closing is not None
        pieces: list[str] = []
        for one in texts:
            edges = [0, *(place for span in one.spans for place in (span.start, span.stop)), len(one.whole)]
            pieces += [one.whole[a:b] for a, b in pairwise(edges)]
        if self._encoder is None:
            self._encoder = Encoder(self.trained)
        values, ends = self._encoder.encode(pieces)
        first = 0
        for one in texts:
            count = 2 * len(one.spans) + 1
            own = ends[first : first + count + 1]
            mine = np.arange(count) % 2 == 1
            closed = values[np.maximum(own[1:] - 1, 0)] == self._closing.token
            one.lost[_OPEN] += int((mine & ~closed).sum())
            answer = np.repeat((mine & closed).astype(np.uint8), np.diff(own))
            yield self._row(
                one,
                values[own[0] : own[-1]],
                answer,
                partial(self._reach, pieces[first : first + count], own - own[0]),
            )
            first += count

    def _reach(self, pieces: Sequence[str], ends: Array, limit: int) -> int:
        """Return the characters that the first tokens reach."""
        last = (
            int(np.searchsorted(ends, limit, side="left")) - 1
        )  # the piece that the limit cuts, or that ends there
        places = self.trained.encode(pieces[last], add_special_tokens=False).offsets
        return sum(map(len, pieces[:last])) + int(places[limit - int(ends[last]) - 1][1])

    def _with_places(self, texts: Sequence[_Written]) -> Iterator[_Row | str]:
        """Encode texts and look where each token stands."""
        assert self._closing is not None
        parts = [self._parts(one.whole, one.spans) for one in texts]
        found = iter(
            self.trained.encode_batch([part for own in parts for _, part in own], add_special_tokens=False)
        )
        for one, own in zip(texts, parts, strict=True):
            encodings = [(at, next(found)) for at, _ in own]
            ids = np.concatenate([np.array(part.ids, dtype=np.int32) for _, part in encodings])
            places = np.concatenate(
                [np.array(part.offsets, dtype=np.int64).reshape(-1, 2) + at for at, part in encodings]
            )
            starts, stops = places[:, 0], places[:, 1]
            answer = np.zeros(len(ids), dtype=np.uint8)
            for span in one.spans:
                inside = np.flatnonzero((starts >= span.start) & (starts < span.stop))
                if not len(inside) or ids[inside[-1]] != self._closing.token:
                    one.lost[_OPEN] += 1
                    continue
                if inside[0] and starts[inside[0]] > span.start and stops[inside[0] - 1] > span.start:
                    one.lost["answers whose first token belongs to the prompt, and is not learnt"] += 1
                answer[inside] = 1
            yield self._row(one, ids, answer, partial(_furthest, stops))

    def _parts(self, whole: str, spans: Sequence[_Span]) -> list[tuple[int, str]]:
        """Return the parts of a text that are split into tokens one by one, each with where it begins."""
        cuts = sorted({0, *(span.start for span in spans)}) if self._cuts else [0]
        return [(a, whole[a:b]) for a, b in pairwise([*cuts, len(whole)])]

    def _row(self, one: _Written, ids: Array, answer: Array, reach: Callable[[int], int]) -> _Row | str:
        """Cut a conversation to max_length, and count what is lost; `reach` says how far its first tokens go."""
        if not answer[1:].any():
            return "left out because of answers that cannot be told apart"
        limit, lost = self.max_length, +one.lost
        end = len(one.whole)
        if limit is not None and len(ids) > limit:
            if not answer[1:limit].any():
                return "left out because of answers that all lie behind max_length"
            lost["conversations cut to max_length"] += 1
            lost["tokens cut"] += len(ids) - limit
            lost["tokens of answers cut"] += int(answer[limit:].sum())
            ids, answer, end = ids[:limit], answer[:limit], reach(limit)
        size = sum(len(one.whole[span.start : min(span.end, end)].encode()) for span in one.spans)
        return _Row(ids, answer, size, lost)

    def text_of(self, cell: Any) -> str:
        """Return the text that the template makes of a conversation today; empty where it makes none."""
        try:
            return self._render(read(cell, answered=False), now=datetime.now())
        except UnreadableError:
            return ""

    # --- prompts -----------------------------------------------------------------------------------------

    def prompt_of(self, messages: Sequence[Mapping[str, Any]] | str) -> list[int]:
        """Return the tokens after which the answer to a conversation is to be generated.

        Args:
            messages: the conversation so far, or its JSON text; any other text is the only message of a user.

        Raises:
            DataError: if it is no conversation, or ends with an answer.

        Example:
            >>> chat.prompt_of([{"role": "user", "content": "1 + 1"}])      # doctest: +SKIP
            [1, 4093, 198, 33, 1232, 216, 33, 2, 198, 1, 520, 9531, 198]
        """
        try:
            if isinstance(messages, str) and objects_in(messages) is None:
                messages = [{"role": "user", "content": messages}]
            turns = read(messages, answered=False)
            if turns[-1]["role"] == ANSWER:
                raise DataError(
                    "the conversation ends with an answer, so none is to be generated; end it with a message of the user"
                )
            now = datetime.now()
            text = self._render(turns, prompt=True, now=now)
            spans = self._spans(turns, text, Counter(), now=now) if self._cuts else []
        except UnreadableError as error:
            raise DataError(f"this is no conversation that can be answered, because of {error}") from None
        parts = [part for _, part in self._parts(text, spans)]
        return [i for one in self.trained.encode_batch(parts, add_special_tokens=False) for i in one.ids]

    def prompt_ids(self, text: str) -> list[int]:
        """Return the tokens after which an answer is to be generated; of a conversation that ends with answers, the last ones'."""
        listed = objects_in(text)
        if listed is None:
            return self.prompt_of(text)
        try:
            messages = read(listed, answered=False)
        except UnreadableError as error:
            raise DataError(f"this is no conversation that can be answered, because of {error}") from None
        while len(messages) > 1 and messages[-1]["role"] == ANSWER:
            messages.pop()
        return self.prompt_of(messages)

    # --- the rest of the contract ------------------------------------------------------------------------

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        contents = super().example(generator, 2 * n)
        contents = [text if text.strip() else "1" for text in contents]
        made = [
            dump([{"role": "user", "content": question}, {"role": ANSWER, "content": answer}])
            for question, answer in zip(contents[::2], contents[1::2], strict=True)
        ]
        short = dump(
            [_PROBE, {"role": ANSWER, "content": "1"}]
        )  # for those that max_length leaves no answer of
        good = [isinstance(row, _Row) for row in self._rows(pl.Series(made, dtype=pl.String))]
        return [text if fits else short for text, fits in zip(made, good, strict=True)]

    def state(self) -> dict[str, Any]:
        closing = self._closing
        assert closing is not None, "the processor is not fitted"
        known = [closing.tail, closing.kept, closing.token, self._cuts, self._quick]
        return super().state() | {"stops": self._stops, "day": self._day, "answers": known}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._day, self._stops = state["day"], list(state["stops"])
        self._settle(replace(self._known), state["answers"])


def _furthest(stops: Array, limit: int) -> int:
    return int(stops[:limit].max())


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return one[len(one) - sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) :]


_NOTHING = _Row(np.empty(0, np.int32), np.empty(0, np.uint8), 0, Counter())


def _require(source: str, ready: Ready, *, own: bool) -> None:
    """Refuse a template whose tokens a tokenizer lacks; its own template may name some for tools that it never uses."""
    missing = [name for name in special_tokens(source) if ready.tokenizer.token_to_id(name) is None]
    if missing and not own:
        # A new token would need a new row in the model's table, which adapters leave untrained and other formats do not expect.
        raise DataError(
            f"the tokenizer has no '{missing[0]}', which the chat template needs; take template: plain or alpaca, which need no token "
            "of their own, or start from a model that was tuned on conversations"
        )
    if "eos_token" in source and "end" not in ready.roles:
        raise DataError("the tokenizer names no end-of-text token (eos_token), which the chat template needs")
