"""Which components exist: a recipe section is a folder, a `type` is a file's stem.

Built-in names are read off the folder, and a file is imported only when its type is used, so that neither `--help` nor a
recipe of tables pays for what images need. Others come by entry point (group ``luban.<section>``) or by `imports:` in a
recipe, whose modules call `register`.

A file whose name begins with an underscore holds shared code and is no type.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from luban.errors import MissingError, RecipeError, did_you_mean

__all__ = ["SECTIONS", "lookup", "names", "register"]

SECTIONS: dict[str, str] = {
    "sources": "luban.data.sources",
    "processors": "luban.data.processors",
    "cleaning": "luban.data.cleaning",
    "splits": "luban.data.splits",
    "augment": "luban.data.augment",
    "models": "luban.models",
    "adapt": "luban.adapt",
    "objectives": "luban.objectives",
    "optimizers": "luban.training.optimizers",
    "schedules": "luban.training.schedules",
    "callbacks": "luban.training.callbacks",
    "decisions": "luban.decisions",
    "audits": "luban.auditing",
    "explainers": "luban.explaining",
}
"""Section name → the package that holds its built-in components."""

_Class = TypeVar("_Class", bound=type)
_registered: dict[str, dict[str, type[Any]]] = {section: {} for section in SECTIONS}


def register(section: str, name: str | None = None) -> Callable[[_Class], _Class]:
    """Register a component class under a section.

    Args:
        section: one of `SECTIONS`.
        name: the recipe's `type`; by default the stem of the module that defines the class.

    Raises:
        RecipeError: if the section is unknown, or another class already has the name.

    Example:
        >>> @register("models", "my_model")      # doctest: +SKIP
        ... class MyModel(Model): ...
    """
    if section not in SECTIONS:
        raise RecipeError(f"section '{section}' is unknown; sections are {', '.join(SECTIONS)}")

    def add(cls: _Class) -> _Class:
        type_name = name or cls.__module__.rsplit(".", 1)[-1]
        known = _registered[section].get(type_name)
        same_definition = known is not None and (known.__module__, known.__qualname__) == (
            cls.__module__,
            cls.__qualname__,
        )
        if known is not None and not same_definition:
            raise RecipeError(
                f"type '{type_name}' of section '{section}' is registered twice: by {known.__module__} and by {cls.__module__}; rename one"
            )
        cls.type = type_name  # type: ignore[attr-defined]
        cls.section = section  # type: ignore[attr-defined]
        _registered[section][type_name] = cls
        return cls

    return add


@cache
def _built_in(section: str) -> tuple[str, ...]:
    package = importlib.import_module(SECTIONS[section])
    return tuple(
        m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_") and not m.ispkg
    )


@cache
def _plug_ins(section: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"luban.{section}")}


def names(section: str) -> list[str]:
    """Return the known types of a section, sorted; imports none of them."""
    return sorted({*_built_in(section), *_plug_ins(section), *_registered[section]})


def lookup(section: str, name: str) -> type[Any]:
    """Return the class of a type, importing its file if need be.

    Raises:
        RecipeError: if there is no such type; the sentence lists those there are.
        MissingError: if the plug-in that provides it cannot be imported.
    """
    if name not in _registered[section]:
        if name in _built_in(section):
            importlib.import_module(f"{SECTIONS[section]}.{name}")
        elif name in _plug_ins(section):
            try:
                register(section, name)(_plug_ins(section)[name].load())
            except (ImportError, AttributeError) as error:
                raise MissingError(
                    f"plug-in type '{name}' of section '{section}' cannot be imported: {error}"
                ) from error
    try:
        return _registered[section][name]
    except KeyError:
        known = names(section)
        raise RecipeError(
            f"type '{name}' is unknown; {section} are {', '.join(known)}{did_you_mean(name, known)}"
        ) from None
