"""Conversations as all parts of the data path hold them: messages in order, each with a role and a content.

::

    [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]

What files call the roles, and where they keep the content, differs; `read` knows the ways in use.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from luban.sentences import say

__all__ = ["ANSWER", "Message", "UnreadableError", "dump", "objects_in", "read"]

Message: TypeAlias = dict[str, str]
"""``role`` and ``content``."""

ANSWER = "assistant"
"""Role of the messages that a model learns to write."""

_ALIASES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    ANSWER: ("assistant", "gpt", "model", "chatgpt", "bot", "bard", "bing"),
    "tool": ("tool", "function", "observation", "ipython"),
}
_ROLES = {alias: role for role, aliases in _ALIASES.items() for alias in aliases}
_KNOWN = frozenset({"role", "from", "content", "value"})
_SHOWN = 30  # characters of what was not written by us, in a reason


class UnreadableError(ValueError):
    """Why something is no conversation, in a few words that count well."""


def read(value: Any, *, answered: bool = True, left: Counter[str] | None = None) -> list[Message]:
    """Return the messages of a conversation.

    Roles are brought to system, user, assistant and tool; a content that comes in parts is joined; a system message without
    text is left out, since many files have an empty one in each row.

    Args:
        value: a list of messages, or its JSON text. A message has ``role`` and ``content`` (OpenAI), or ``from`` and ``value``
            (ShareGPT).
        answered: whether there must be an answer.
        left: counts other keys of messages, which are left out.

    Raises:
        UnreadableError: if it is none.

    Example:
        >>> read('[{"from": "human", "value": "1 + 1"}, {"from": "gpt", "value": "2"}]')
        [{'role': 'user', 'content': '1 + 1'}, {'role': 'assistant', 'content': '2'}]
    """
    listed = objects_in(value)
    if listed is None:
        raise UnreadableError(say("no list of messages"))
    messages = [message for one in listed if (message := _message(one, left)) is not None]
    if not messages:
        raise UnreadableError(say("no message"))
    if answered and not any(message["role"] == ANSWER for message in messages):
        raise UnreadableError(say("no answer"))
    return messages


def dump(messages: Sequence[Message]) -> str:
    """Return the canonical JSON text, which `read` reads back."""
    return json.dumps(messages, ensure_ascii=False)


def objects_in(value: Any) -> list[Mapping[str, Any]] | None:
    """Return the messages that a value holds as they stand there, a single one too; None if it is anything else."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    return (
        [*value] if all(isinstance(one, Mapping) and {"role", "from"} & one.keys() for one in value) else None
    )


def _message(one: Mapping[str, Any], left: Counter[str] | None) -> Message | None:
    named = one.get("role") if one.get("role") is not None else one.get("from")
    role = _ROLES.get(str(named).strip().lower())
    if role is None:
        raise UnreadableError(say("a role '{role}'", role=str(named)[:_SHOWN]))
    if one.get("tool_calls") or one.get("function_call"):
        raise UnreadableError(say("a call of tools, which has no place among contents"))
    content = _text(one.get("content") if one.get("content") is not None else one.get("value"))
    if left is not None:
        left.update(key for key, value in one.items() if key not in _KNOWN and value not in (None, [], {}))
    if content.strip():
        return {"role": role, "content": content}
    if role == "system":
        return None
    raise UnreadableError(say("an answer without text") if role == ANSWER else say("a message without text"))


def _text(content: Any) -> str:
    """Return a content, joined if it comes in parts, and without halves of UTF-16 pairs, which are no characters."""
    if content is None:
        return ""
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise UnreadableError(say("a content that is no text"))
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise UnreadableError(say("a content that is no text"))
    try:
        content.encode()
    except UnicodeEncodeError:
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return content
