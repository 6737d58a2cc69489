"""Sentences that are written once, in English, where they are thought of, and read in English or Chinese.

::

    say("{n:,} of {of:,} rows ...", n=12, of=400)      a Sentence: the str "12 of 400 rows ...", which knows its template and values
        │  kept(data) ──▶ JSON ──▶ revived(data)       through a file and back
        ▼
    translate(sentence, "zh")                          the same values in the template that zh.json has for it

What has no translation, as a sentence of a plug-in or of an older file, is shown as it is.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias

__all__ = ["LANGUAGES", "Sentence", "kept", "named", "revived", "say", "translate", "unbroken"]

LANGUAGES = ("en", "zh")

Value: TypeAlias = "str | int | float | list[Value] | None"
"""What fills a gap: a word of the user's, a number, another sentence, or a list of these."""
_PHRASES = "phrases"  # the key under which JSON keeps how its sentences were made
_DEEPEST = 32  # levels of a file, and of sentences in sentences: ours have fewer, and Python itself ends near a thousand


class Sentence(str):
    """A text of ours in English that knows how it was made; anywhere else it is a `str` like others.

    Attributes:
        template: as `str.format` takes it.
        values: what fills its gaps.
    """

    __slots__ = ("template", "values")
    template: str
    values: Mapping[str, Value]

    def __new__(cls, template: str, values: Mapping[str, Value]) -> Sentence:
        made = super().__new__(cls, _Filling("en").vformat(template, (), values))
        made.template, made.values = template, values
        return made

    def __str__(self) -> str:
        """Return itself, so that a sentence that was raised is still one in ``str(error)``."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Sentence, (self.template, self.values)


def say(template: str, /, **values: Any) -> Sentence:
    """Return a sentence.

    Args:
        template: the English one, as `str.format` takes it: a literal, which a test looks up in zh.json.
        values: texts, numbers, sentences, lists of these (joined as the language does), or whatever `str` makes a text of.

    Example:
        >>> say("{share:.1%} of {rows:,} rows", share=0.125, rows=4000)
        '12.5% of 4,000 rows'
        >>> say("{n} rows: {which}", n=2, which=["a", "b"]).template
        '{n} rows: {which}'
    """
    return Sentence(template, {name: _plain(value) for name, value in values.items()})


def unbroken(text: str) -> str:
    """Return a text in one line; a sentence, whose gaps may be filled by texts of many, remains one.

    Example:
        >>> unbroken(say("no row can be explained: {reason}", reason="it\\n is odd"))
        'no row can be explained: it is odd'
    """
    if text.splitlines() in ([], [text]):
        return text
    if isinstance(text, Sentence):
        return Sentence(text.template, {name: _unbroken(value) for name, value in text.values.items()})
    return " ".join(line.strip() for line in text.splitlines())


def _unbroken(value: Value) -> Value:
    if isinstance(value, list):
        return [_unbroken(one) for one in value]
    return unbroken(value) if isinstance(value, str) else value


def _plain(value: Any) -> Value:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return _plain(value.item()) if hasattr(value, "item") else str(value)  # a number of NumPy's


class _Filling(string.Formatter):
    """Fills the gaps of a template in a language."""

    def __init__(self, language: str) -> None:
        self._language = language

    def format_field(self, value: Any, format_spec: str) -> Any:
        if isinstance(value, list):
            between = "、" if self._language == "zh" else ", "
            return between.join(self.format_field(one, format_spec) for one in value)
        if isinstance(value, Sentence):
            return str.__str__(value) if self._language == "en" else translate(value, self._language)
        if value is None:
            return "–"
        text = format(value, format_spec)
        if format_spec.endswith("%") and self._language != "en":  # as everywhere on the page
            return f"{text[:-1]} %".replace("-", "−")
        return text


# --- in another language ------------------------------------------------------------------------------------


@cache
def _catalogue() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(
        files("luban").joinpath("zh.json").read_text(encoding="utf-8")
    )
    return found


def translate(text: str, language: str) -> str:
    """Return a sentence in a language; one that has no translation, and every other text, as it is.

    Example:
        >>> translate(say("all {n:,} rows", n=4000), "zh")
        '全部 4,000 行'
    """
    template, values = (text.template, text.values) if isinstance(text, Sentence) else (text, {})
    other = None if language == "en" else _catalogue()["sentences"].get(template)
    return str.__str__(text) if other is None else _Filling(language).vformat(other, (), values)


def named(
    name: str, language: str, of: Literal["audits", "methods", "names", "tables", "cells"] = "names"
) -> str:
    """Return what people call something that code has a name for; a name that is none of ours as it is, with spaces.

    Args:
        name: the code's.
        language: ``en`` or ``zh``.
        of: of what: an audit, an explainer, a figure or a column of a table, a table, or a word in a cell, which stays as it is.

    Example:
        >>> named("suspect_share", "en"), named("suspect_share", "zh")
        ('suspect share', '可疑标签占比')
    """
    known = {} if language == "en" else _catalogue()[of]
    return known.get(name, name if of == "cells" else name.replace("_", " "))


# --- through JSON and back ----------------------------------------------------------------------------------


def kept(data: dict[str, Any]) -> dict[str, Any]:
    """Return data that JSON can hold, with how the sentences in it were made under ``phrases``, if any have gaps.

    Raises:
        AssertionError: if the data have a ``phrases`` of their own, which could not be told from these.

    Example:
        >>> revived(json.loads(json.dumps(kept({"why": say("all {n:,} rows", n=3)}))))["why"].values
        {'n': 3}
    """
    assert _PHRASES not in data, f"'{_PHRASES}' is the key of how sentences were made"
    found: dict[str, Any] = {}

    def look(one: Any) -> None:
        if isinstance(one, Sentence):
            if one.values:
                found[str.__str__(one)] = _json_of(one)
        elif isinstance(one, Mapping):
            for key, value in one.items():
                look(key)
                look(value)
        elif isinstance(one, list | tuple):
            for value in one:
                look(value)

    look(data)
    return {**data, _PHRASES: found} if found else data


def revived(data: Any) -> Any:
    """Return data as it was before `kept`; a template that is none of ours, or does not give the text it stands for, is not believed."""
    if not isinstance(data, dict) or not isinstance(data.get(_PHRASES), Mapping):
        return data
    made = {text: _sentence(phrase) for text, phrase in data[_PHRASES].items()}
    known = {text: one for text, one in made.items() if one == text}

    def back(one: Any, depth: int) -> Any:
        if isinstance(one, str):
            return known.get(one, one)
        if depth > _DEEPEST:  # nothing of ours
            return one
        if isinstance(one, Mapping):
            return {known.get(key, key): back(value, depth + 1) for key, value in one.items()}
        return [back(value, depth + 1) for value in one] if isinstance(one, list) else one

    return back({key: value for key, value in data.items() if key != _PHRASES}, 0)


def _json_of(one: Value) -> Any:
    if isinstance(one, Sentence):
        values = {name: _json_of(value) for name, value in one.values.items()}
        return {"template": one.template, "values": values}
    if isinstance(one, list):
        return [_json_of(value) for value in one]
    finite = not isinstance(one, float) or abs(one) < float("inf")
    return one if finite else None


def _sentence(phrase: Any, depth: int = 0) -> Value:
    """Return what `_json_of` described; None where it is no sentence of ours, or one that is nested deeper than any of ours."""
    if depth > _DEEPEST:
        return None
    if isinstance(phrase, Mapping):
        template, values = phrase.get("template"), phrase.get("values")
        if not isinstance(template, str) or template not in _catalogue()["sentences"]:
            return None
        if not isinstance(values, Mapping):
            return None
        try:
            return Sentence(
                template, {str(name): _sentence(value, depth + 1) for name, value in values.items()}
            )
        except (KeyError, ValueError, TypeError, OverflowError, AttributeError, IndexError):
            # A gap without a value, or with one of another kind or size.
            return None
    if isinstance(phrase, Sequence) and not isinstance(phrase, str):
        return [_sentence(one, depth + 1) for one in phrase]
    return phrase if phrase is None or isinstance(phrase, str | int | float) else None
