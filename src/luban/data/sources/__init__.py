"""Where rows come from; see `luban.data.contracts.Source` for what each type promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from luban.data.contracts import Source

__all__ = ["open_source"]


def open_source(value: str | list[str] | Mapping[str, Any]) -> Source:
    """Return the source that a path, a glob, a URL, a list of them or a mapping with `type` means in a
    recipe.

    Raises:
        RecipeError: if the type cannot be told, or an option is unknown or wrong.

    Example:
        >>> open_source("reviews.csv.gz").type
        'csv'
    """
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    from luban.errors import RecipeError, did_you_mean
    from luban.recipe import Section, source_from
    from luban.registry import lookup

    try:
        return cast("Source", Section("sources", short=source_from).parse(value))
    except PydanticCustomError as error:
        raise RecipeError(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        name = cast("Mapping[str, Any]", value)["type"]
        known = list(lookup("sources", name).model_fields)
        if first["type"] == "extra_forbidden":
            known_keys = ", ".join(known)
            what = f"key '{key}' is unknown; type '{name}' takes {known_keys}{did_you_mean(key, known)}"
        elif first["type"] == "missing":
            what = f"key '{key}' is missing; type '{name}' cannot do without it"
        else:
            message = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
            what = f"{key}: received {first['input']!r}, but {message}" if key else message
        raise RecipeError(what) from None
