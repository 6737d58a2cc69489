"""What families that read one text column and write another have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field as Option

from luban.data.contracts import Field, Spec
from luban.data.processors.text import Text
from luban.errors import RecipeError
from luban.models._encoders import is_sequence
from luban.models._network import Family
from luban.recipe import Data

__all__ = ["Token", "new_tokenizer", "opened_by", "texts_of", "written_of"]

Token = Annotated[int, Option(ge=0)]


def texts_of(family: Family, data: Data) -> tuple[str, str]:
    """Return the column that is read and the one that is written.

    Raises:
        RecipeError: if there is not one of each.
    """
    found = []
    for what, columns in (("reads", data.inputs), ("writes", data.targets)):
        texts = [c for c, p in columns.items() if isinstance(p, Text) and c not in family.encoders]
        if len(texts) != 1:
            where = "data.inputs" if what == "reads" else "data.targets"
            raise RecipeError(
                f"model type '{family.type}' {what} one text column, and {where} has {len(texts)}"
                + (
                    f" ({', '.join(texts)})"
                    if texts
                    else "; write '{zh: text}' there, with the name of your column"
                )
            )
        found.append(texts[0])
    return found[0], found[1]


def new_tokenizer(text: Text) -> dict[str, Any]:
    """Return the options of a text whose tokenizer is trained and must give back what it was given."""
    options: dict[str, Any] = {"tokens": "bpe", "lowercase": False, "end": True}
    if text.tokens in ("char", "unigram") and "tokens" in text.model_fields_set:
        # Else blanks are lost, and what is written is not what was meant.
        options |= {"byte_fallback": True, "normalize": "none"}
    return options


def opened_by(first: int | None, text: Text) -> dict[str, Any]:
    """Return the options by which a text that is written begins with the token that it is made to begin with: else a model would be
    taught another beginning, and measured by it, than it ever writes."""
    return {} if first is None or "opening" in text.model_fields_set else {"opening": first}


def written_of(family: Family, spec: Spec) -> tuple[str, Field]:
    """Return the target that is written, and what is known about it.

    Raises:
        RecipeError: if it is not one text that is read and one that is written, or if an input would be read by nothing.
    """
    targets = [one for one in spec.fields.values() if one.role == "target"]
    texts = {name: one for name, one in spec.fields.items() if one.role == "target" and one.kind == "text"}
    if len(texts) != 1:
        kinds = ", ".join(f"{one.column} ({one.kind})" for one in targets)
        raise RecipeError(
            f"model type '{family.type}' writes one text, and the targets are {kinds or 'none'}; name one text column in "
            "data.targets, or take type 'transformer' or 'bert'"
        )
    sources = [
        one.column
        for one in spec.fields.values()
        if one.role == "input" and is_sequence(one) and one.column not in family.encoders
    ]
    if len(sources) != 1:
        raise RecipeError(
            f"model type '{family.type}' reads one text, and the inputs have {len(sources)} ({', '.join(sources) or 'none'}); "
            "give others a family of their own in model.encoders, or take type 'transformer'"
        )
    others = sorted({one.column for one in spec.fields.values() if one.role == "input"} - {*sources})
    if others and all(one.output is None for one in targets):
        raise RecipeError(
            f"input '{others[0]}' would be read by nothing, because model type '{family.type}' writes from its text alone; "
            "remove it, or take type 'transformer' for another target"
        )
    return next(iter(texts.items()))
