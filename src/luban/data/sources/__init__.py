"""Where rows come from; see `luban.data.contracts.Source` for what each type promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luban.data.contracts import Source

__all__ = ["open_source"]


def open_source(value: str | list[str] | Mapping[str, Any]) -> Source:
    """Return the source that a path, a glob, a URL, a list of them or a mapping with `type` means, as in a
    recipe.

    Raises:
        RecipeError: if the type cannot be told, or an option is unknown or wrong.

    Example:
        >>> open_source("reviews.csv.gz").type
        'csv'
    """
    from pydantic import TypeAdapter, ValidationError

    from luban.errors import RecipeError
    from luban.recipe import Section, source_from

    try:
        source: Source = TypeAdapter(Any).validate_python(Section("sources", short=source_from).parse(value))
    except ValidationError as error:
        raise RecipeError(str(error)) from None
    return source
