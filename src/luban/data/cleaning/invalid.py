"""Rows that break a rule."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

import polars as pl
from pydantic import BeforeValidator, Field, field_validator, model_validator

from luban.data.cleaning._base import Step, chosen, has_numbers, has_text, is_missing, numbers
from luban.errors import DataError
from luban.recipe import Config
from luban.registry import register
from luban.sentences import say

__all__ = ["Invalid", "Rule"]

_RANGE = re.compile(r"\s*(\S*?)\s*\.\.\s*(\S*)\s*")


class Rule(Config):
    """What a cell must be; a cell without a value breaks no rule but `required`."""

    min: float | None = None
    """The smallest number."""
    max: float | None = None
    """The largest number."""
    min_length: int | None = Field(None, ge=0)
    """The fewest characters."""
    max_length: int | None = Field(None, ge=0)
    """The most characters."""
    values: list[str | int | float | bool] | None = None
    """The values there may be."""
    matches: str | None = None
    """A regular expression that the text contains; with ``^`` and ``$`` that it is."""
    required: bool = False
    """Whether there must be a value."""

    @field_validator("matches")
    @classmethod
    def _is_an_expression(cls, pattern: str | None) -> str | None:
        try:
            pl.Series([""]).str.contains(pattern or "")
        except pl.exceptions.ComputeError as error:
            lines = str(error).splitlines()
            reason = next((line for line in lines if line.startswith("error: ")), lines[0])
            raise ValueError(
                f"'{pattern}' is not a regular expression: {reason.partition(': ')[2]}"
            ) from None
        return pattern

    @model_validator(mode="after")
    def _can_be_kept(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        return self

    def broken(self, values: pl.Series) -> pl.Series:
        """Return which values break the rule, boolean, (n,).

        Raises:
            DataError: if values of this type cannot be held against the rule.
        """
        self._require_kind(values)
        absent = is_missing(values, [""])
        broken = pl.Series([False]).new_from_index(0, len(values))
        if self.min is not None or self.max is not None:
            number = numbers(values)
            low = -float("inf") if self.min is None else self.min
            high = float("inf") if self.max is None else self.max
            broken |= ~number.is_between(low, high).fill_null(False)
        text = values.cast(pl.String) if has_text(values.dtype) else absent  # only read where it is text
        if self.min_length is not None:
            broken |= text.str.len_chars() < self.min_length
        if self.max_length is not None:
            broken |= text.str.len_chars() > self.max_length
        if self.values is not None:
            words = [str(value) for value in self.values]
            words += [
                word.lower() for word in words if word in ("True", "False")
            ]  # as polars writes booleans
            allowed = text.is_in(words)
            figures = [
                float(v) for v in self.values if isinstance(v, int | float) and not isinstance(v, bool)
            ]
            broken |= ~(allowed | numbers(values).is_in(figures).fill_null(False))
        if self.matches is not None:
            broken |= ~text.str.contains(self.matches)
        return (broken.fill_null(False) & ~absent) | (absent & pl.Series([self.required]))

    def _require_kind(self, values: pl.Series) -> None:
        """Refuse what every cell of the column would break, only because of its type."""
        of_numbers = [key for key in ("min", "max") if getattr(self, key) is not None]
        of_text = [
            key for key in ("min_length", "max_length", "values", "matches") if getattr(self, key) is not None
        ]
        for keys, fits, kinds in (
            (of_numbers, has_numbers, "numbers, and text that reads as numbers"),
            (of_text, has_text, "text, numbers, booleans and dates"),
        ):
            if keys and not fits(values.dtype):
                raise DataError(
                    f"rule of '{values.name}': {' and '.join(keys)} can be asked of {kinds}, but the column is of type "
                    f"{values.dtype}; remove {' and '.join(keys)} (required can be asked of every type)"
                )


def _rule(rule: Any) -> Any:
    """Turn a short form into a mapping; what is no short form is left to the validation."""
    if isinstance(rule, list):
        return {"values": rule}
    if isinstance(rule, str):
        ends = _RANGE.fullmatch(rule)
        try:
            if ends is None or not (ends[1] or ends[2]):
                raise ValueError
            return {key: float(end) for key, end in zip(("min", "max"), ends.groups(), strict=True) if end}
        except ValueError:
            raise ValueError(
                f"'{rule}' is no range; write 0..120, 0.. or ..120, a list of values, or a mapping such as "
                "{min_length: 1}"
            ) from None
    return rule


_ShortRule = Annotated[
    Rule, BeforeValidator(_rule, json_schema_input_type=Rule | str | list[str | int | float | bool])
]


@register("cleaning")
class Invalid(Step):
    """Drop training rows that break a rule. Rows to predict pass, since there is nobody to correct them.

    A rule is a range of numbers (``0..120``, ``0..``, ``..1``), a list of the values there may be, or a
    mapping of min, max, min_length, max_length, values, matches and required.

    Example:
        ``clean: [{type: invalid, rules: {age: 0..120, label: [good, bad], text: {min_length: 1}}}]``
    """

    rules: dict[str, _ShortRule] = Field(min_length=1)
    """Column → rule."""

    def apply(self, rows: pl.DataFrame, *, predicting: bool) -> pl.DataFrame:
        """Return the chunk without rows that break a rule; each is counted, under every column that it
        breaks."""
        if predicting or rows.is_empty():
            return rows
        bad = pl.Series([False]).new_from_index(0, len(rows))
        for name in chosen([*self.rules], rows):
            broken = self.rules[name].broken(rows[name])
            self._count(say("rule of '{column}' broken", column=name), int(broken.sum()))
            bad |= broken
        self._count(say("dropped"), int(bad.sum()))
        return rows.filter(~bad)
