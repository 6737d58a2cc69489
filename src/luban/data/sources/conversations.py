"""Conversations: what models that answer are tuned on, in the layouts that people keep them in.

=============  ================================================================================================
layout         columns
=============  ================================================================================================
messages       ``messages``: a list of ``role`` and ``content`` (OpenAI)
sharegpt       ``conversations``: a list of ``from`` and ``value``; ``system``, if there is one
alpaca         ``instruction``, ``input``, ``output``; ``system`` and ``history`` (pairs of earlier turns), if there are any
preferences    ``chosen`` and ``rejected`` beside any of these, or beside ``prompt``: texts, messages, or whole conversations
=============  ================================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import polars as pl
from pydantic import Field, PrivateAttr

from luban.data._messages import ANSWER, Message, UnreadableError, dump, objects_in, read
from luban.data.contracts import Source
from luban.data.sources._files import find, one_line
from luban.data.sources.jsonl import Jsonl
from luban.data.sources.parquet import Parquet
from luban.errors import DataError, did_you_mean
from luban.registry import register
from luban.sentences import say

__all__ = ["Conversations"]

Layout: TypeAlias = Literal["messages", "alpaca", "sharegpt"]

_COLUMNS: dict[Layout, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations", "system"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
}
_NEEDED: dict[Layout, str] = {"messages": "messages", "sharegpt": "conversations", "alpaca": "instruction"}
_PAIR = ("chosen", "rejected")
_PREFERENCE = (*_PAIR, "prompt")
_KNOWN = tuple(dict.fromkeys([name for names in _COLUMNS.values() for name in names] + [*_PREFERENCE]))


@register("sources")
class Conversations(Source):
    """Conversations in JSON (also JSON lines) or Parquet, each a row whose column ``messages`` holds them as JSON text:
    a list of objects with ``role`` (system, user, assistant, tool) and ``content``.

    Pairs of answers of which one is preferred become two such columns, ``chosen`` and ``rejected``. All other columns are kept
    as they are. What is no conversation (an unknown role, no answer, an empty message) becomes a row without one, which is
    counted, said, and left out by the processor `chat`.

    Example:
        >>> Conversations(path="chats.jsonl", format="sharegpt").format
        'sharegpt'
    """

    path: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    """A file, a glob, a URL that fsspec can open, or a list of them."""
    format: Literal["auto", "messages", "alpaca", "sharegpt"] = "auto"
    """The layout; auto tells it by the names of the columns."""
    names: dict[str, str] = {}
    """The layout's name of a column → what the file calls it, where it differs (``output: response``)."""
    keys: list[str] | None = None
    """The other columns to keep; by default all, of JSON those of the first 1000 objects."""
    encoding: str = "auto"
    """Of JSON: a Python codec; auto recognises UTF-8, UTF-16 with its mark, GB18030 (GBK), Big5 and Latin-1."""

    _inner: Source | None = PrivateAttr(default=None)
    _rows: int = PrivateAttr(default=0)
    _reasons: Counter[str] = PrivateAttr(default_factory=Counter)
    _first: dict[str, int] = PrivateAttr(default_factory=dict)
    _left: Counter[str] = PrivateAttr(default_factory=Counter)

    def columns(self) -> list[str]:
        """Return the names of the columns that come out."""
        return [*self._made(), *self._others()]

    def scan(self, chunk_rows: int = 8192) -> Iterator[pl.DataFrame]:
        """Yield conversations in order.

        Raises:
            DataError: if there is none among all rows, or the files cannot be read.
        """
        made, others, layout = self._made(), self._others(), self._layout()
        self._rows, self._reasons, self._first, self._left = 0, Counter(), {}, Counter()
        for chunk in self._source().scan(chunk_rows):
            own = [name for name in map(self._name, _KNOWN) if name in chunk.columns]
            rows = [self._converted(row, layout, made) for row in chunk[own].to_dicts()]
            columns = [
                pl.Series(name, [row[i] if row else None for row in rows], pl.String)
                for i, name in enumerate(made)
            ]
            yield pl.DataFrame([*columns, *(chunk[name] for name in others)])
        if self._rows and sum(self._reasons.values()) == self._rows:
            raise DataError(
                f"none of the {self._rows:,} rows of '{self._shown}' is a conversation: {self._listed()}; see the layouts of source "
                "conversations, and 'names' for columns of other names"
            )

    def fingerprint(self) -> str:
        """Return a hash of the files' contents and of the options."""
        options = self.model_dump_json(exclude={"path"})
        return hashlib.sha256(f"{options} {self._source().fingerprint()}".encode()).hexdigest()

    def notes(self) -> list[str]:
        """Return how the files were read, and which rows are no conversations."""
        layout = self._layout()
        column = self._name(_NEEDED[layout])
        what = say(
            "'{file}' is read as {layout}, by its column '{column}'",
            file=self._shown,
            layout=layout,
            column=column,
        )
        if self._is_preference():
            columns = list(map(self._name, _PAIR))
            what = say("'{file}' is read as pairs of answers ({columns})", file=self._shown, columns=columns)
        notes = [*self._source().notes(), what]
        notes += [
            say(
                "{n:,} rows are no conversations, because of {reason}; the first is row {row:,}",
                n=n,
                reason=reason,
                row=self._first[reason] + 1,
            )
            for reason, n in self._reasons.most_common()
        ]
        if self._left:
            keys = [one_line(key, 30) for key, _ in self._left.most_common(10)]
            notes.append(
                say("messages have keys besides role and content, which are left out: {keys}", keys=keys)
            )
        return notes

    def _listed(self) -> str:
        return ", ".join(f"{reason} ({n:,})" for reason, n in self._reasons.most_common(3))

    # --- the files ---------------------------------------------------------------------------------------

    @property
    def _shown(self) -> str:
        return find(self.path)[0].name

    def _source(self) -> Source:
        """Return the source of the rows as they lie in the files."""
        if self._inner is None:
            if self._shown.lower().endswith((".parquet", ".pq")):
                self._inner = Parquet(path=self.path)
            elif self.keys is None:
                self._inner = Jsonl(path=self.path, encoding=self.encoding)
            else:
                wanted = dict.fromkeys([*map(self._name, _KNOWN), *self.keys])
                present = Jsonl(path=self.path, encoding=self.encoding).columns()
                # A key of the layout may well first be met behind the objects that were looked at.
                late = [self._name(name) for name in ("system", "history", "input")]
                names = [name for name in wanted if name in present or name in late or name in self.keys]
                self._inner = Jsonl(path=self.path, encoding=self.encoding, keys=names)
        return self._inner

    def _name(self, column: str) -> str:
        """Return what the file calls a column."""
        return self.names.get(column, column)

    def _layout(self) -> Layout:
        for name in self.names:
            if name not in _KNOWN:
                raise DataError(
                    f"names: '{name}' is no column of any layout; these are {', '.join(_KNOWN)}{did_you_mean(name, _KNOWN)}"
                )
        present = self._source().columns()
        for name in self.names.values():
            if name not in present:
                raise DataError(
                    f"names: '{self._shown}' has no column '{name}'; it has {one_line(', '.join(present))}{did_you_mean(name, present)}"
                )
        alone = self._is_preference()  # beside a prompt, or with whole conversations
        if self.format != "auto":
            if not alone and self._name(_NEEDED[self.format]) not in present:
                raise DataError(
                    f"'{self._shown}' has no column '{self._name(_NEEDED[self.format])}', which format {self.format} needs; "
                    f"it has {one_line(', '.join(present))}: take another format, or say by 'names' what the column is called"
                )
            return self.format
        for layout, needed in _NEEDED.items():
            if self._name(needed) in present:
                return layout
        if alone:
            return "messages"
        raise DataError(
            f"'{self._shown}' has columns {one_line(', '.join(present))}, and conversations stand in 'messages' (OpenAI), 'conversations' "
            "(ShareGPT) or 'instruction' and 'output' (Alpaca); say by 'names' what they are called here, such as "
            "'names: {instruction: question, output: answer}'"
        )

    def _is_preference(self) -> bool:
        return {*map(self._name, _PAIR)} <= {*self._source().columns()}

    def _made(self) -> list[str]:
        return [*_PAIR] if self._is_preference() else ["messages"]

    def _others(self) -> list[str]:
        layout, made = self._layout(), self._made()
        own = {self._name(name) for name in (*_COLUMNS[layout], *(_PREFERENCE if len(made) > 1 else ()))}
        present = self._source().columns()
        for name in self.keys or ():
            if name not in present:
                raise DataError(
                    f"keys: '{self._shown}' has no column '{name}'; it has {one_line(', '.join(present))}{did_you_mean(name, present)}"
                )
        others = [name for name in present if name not in own and (self.keys is None or name in self.keys)]
        for name in made:
            if name in others:
                raise DataError(
                    f"'{self._shown}' has a column '{name}' beside its {layout} columns, and the conversations would have the same name; "
                    "choose another format, or leave it out by 'keys'"
                )
        return others

    # --- a row -------------------------------------------------------------------------------------------

    def _converted(self, row: Mapping[str, Any], layout: Layout, made: list[str]) -> list[str] | None:
        """Return the JSON text of each column that is made; None for a row that is no conversation, which is counted."""
        number, self._rows = self._rows, self._rows + 1
        try:
            if len(made) > 1:
                return [dump(one) for one in self._pair(row, layout)]
            return [dump(self._conversation(row, layout))]
        except UnreadableError as error:
            reason = str(error)
            self._reasons[reason] += 1
            self._first.setdefault(reason, number)
            return None

    def _get(self, row: Mapping[str, Any], column: str) -> Any:
        return row.get(self._name(column))

    def _conversation(
        self, row: Mapping[str, Any], layout: Layout, *, answered: bool = True
    ) -> list[Message]:
        if layout == "alpaca":
            return self._alpaca(row, answered=answered)
        messages = read(self._get(row, _NEEDED[layout]), answered=answered, left=self._left)
        return self._with_system(messages, row) if layout == "sharegpt" else messages

    def _with_system(self, messages: list[Message], row: Mapping[str, Any]) -> list[Message]:
        system = self._get(row, "system")
        if messages[0]["role"] == "system" or not isinstance(system, str) or not system.strip():
            return messages
        return [{"role": "system", "content": system}, *messages]

    def _alpaca(self, row: Mapping[str, Any], *, answered: bool) -> list[Message]:
        turns: list[tuple[str, Any]] = []
        for pair in _pairs(self._get(row, "history")):
            turns += [("user", pair[0]), (ANSWER, pair[1])]
        parts = [self._get(row, "instruction"), self._get(row, "input")]
        turns.append(("user", "\n".join(str(part) for part in parts if part not in (None, ""))))
        if answered:
            turns.append((ANSWER, self._get(row, "output")))
        messages = read([{"role": role, "content": content} for role, content in turns], answered=answered)
        return self._with_system(messages, row)

    def _pair(self, row: Mapping[str, Any], layout: Layout) -> list[list[Message]]:
        before = self._before(row, layout)
        chosen, rejected = (self._answered(self._get(row, name), before) for name in _PAIR)
        if chosen == rejected:
            raise UnreadableError(say("two answers that are equal"))
        if _question(chosen) != _question(rejected):
            raise UnreadableError(say("answers to different prompts"))
        return [chosen, rejected]

    def _before(self, row: Mapping[str, Any], layout: Layout) -> list[Message]:
        """Return what both answers of a pair answer; nothing, if they bring it themselves."""
        if self._get(row, _NEEDED[layout]) is not None:
            return self._conversation(row, layout, answered=False)
        prompt = self._get(row, "prompt")
        if prompt is None:
            return []
        if objects_in(prompt) is not None:
            return read(prompt, answered=False, left=self._left)
        return read([{"role": "user", "content": prompt}], answered=False)

    def _answered(self, answer: Any, before: list[Message]) -> list[Message]:
        """Return the conversation that ends with one answer of a pair."""
        if objects_in(answer) is None:
            messages = read([{"role": ANSWER, "content": answer}])
        else:
            messages = read(answer, left=self._left)
        if messages[0]["role"] == ANSWER:
            if not before:
                raise UnreadableError(say("an answer without a prompt"))
            messages = [*before, *messages]
        elif before and before[0]["role"] == "system" and messages[0]["role"] != "system":
            messages = [before[0], *messages]
        return messages


def _question(messages: list[Message]) -> list[Message]:
    """Return what stands before the first answer."""
    roles = [message["role"] for message in messages]
    return messages[: roles.index(ANSWER)]


def _pairs(history: Any) -> list[tuple[Any, Any]]:
    """Return the earlier turns that Alpaca's ``history`` holds: a list of a question and an answer each."""
    if isinstance(history, str):
        try:
            history = json.loads(history)
        except ValueError:
            raise UnreadableError(say("a history that is no list of pairs")) from None
    if history is None:
        return []
    if not isinstance(history, list) or not all(isinstance(one, list) and len(one) == 2 for one in history):
        raise UnreadableError(say("a history that is no list of pairs"))
    return [(one[0], one[1]) for one in history]
