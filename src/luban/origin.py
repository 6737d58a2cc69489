"""The rows that an artefact was made of, found again by what its recipe and its lineage say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import polars as pl

from luban.data.contracts import Array, Source
from luban.data.pipeline import Pipeline, is_fitted_step, row_keys
from luban.data.prepare import SPLITS, split_rows
from luban.errors import ArtefactError, DataError, LubanError, RecipeError
from luban.recipe import Section, read_yaml
from luban.sentences import Sentence, say

__all__ = ["Origin", "Unknown", "of_split", "require_split", "with_options_of"]

Why = Literal["not_trained_here", "no_recipe", "data_remote", "data_gone", "data_changed"]

_SQLITE = "sqlite:///"
_TOLD = 200  # characters of an error that are told; one that is a sentence of ours can be said in another language


@dataclass(frozen=True)
class Unknown:
    """Why the rows are not to be had.

    Attributes:
        why: which of the reasons.
        detail: the error, or the split.
    """

    why: Why
    detail: str = ""

    def __str__(self) -> str:
        match self.why:
            case "not_trained_here":
                return say("the artefact does not say what it was trained on")
            case "no_recipe":
                return say("the artefact's recipe does not name its data")
            case "data_remote":
                return say("the data lie beyond this machine, and are not asked for unbidden")
            case "data_gone":
                return say("the data cannot be read ({error})", error=self.detail)
            case "data_changed":
                return say("the {split} data have changed since the artefact was made", split=self.detail)


def of_split(
    pipeline: Pipeline, lineage: Mapping[str, Any], chunks: Iterable[pl.DataFrame], split: str
) -> Iterator[pl.DataFrame]:
    """Yield the rows that were in a split when the artefact was trained, told by what they contain.

    Args:
        pipeline: of the artefact.
        lineage: contents of its lineage.json, which know a ``split`` (`require_split`).
        chunks: rows as the user has them.
        split: ``train``, ``validation`` or ``test``.
    """
    for chunk in chunks:
        codes = split_rows(lineage["split"], _keyed(pipeline, chunk), pipeline)
        part = chunk.filter(pl.Series(codes == SPLITS[split]))
        if len(part):
            yield part


def require_split(lineage: Mapping[str, Any], split: str, path: object) -> None:
    """Refuse a split that nobody knows.

    Raises:
        DataError: if there is no such split.
        ArtefactError: if the artefact does not say how its rows were split.
    """
    if split not in SPLITS:
        raise DataError(
            say("received split '{split}', but splits are {splits}", split=split, splits=[*SPLITS])
        )
    if "split" not in lineage:
        raise ArtefactError(
            say(
                "'{path}' does not say how its rows were split, so its {split} rows are not known; leave --split out",
                path=path,
                split=split,
            )
        )


def with_options_of(recipe: str, source: Source) -> Source | None:
    """Return a source as the training data of a recipe were read: these files, its options. None where they do not fit.

    Args:
        recipe: text of recipe.yaml.
        source: what the user named.
    """
    try:
        options = read_yaml(recipe, "recipe.yaml").data["data"]["train"]
        if not isinstance(options, dict) or {"connection", "table"} & {*options}:
            return None
        same = {**options, "path": getattr(source, "path", None)}
        return cast(Source, Section("sources").parse(same))
    except (LubanError, KeyError, TypeError, AttributeError):
        return None


def _remote(options: Any) -> bool:
    """Whether data lie beyond this machine; a query may speak of addresses without asking them."""
    if isinstance(options, dict) and "connection" in options:
        return not str(options["connection"]).startswith(_SQLITE)
    return "://" in str(options)


def _keyed(pipeline: Pipeline, chunk: pl.DataFrame) -> pl.DataFrame:
    """Return rows as they were when they were split: after the steps that need no fitting, which gives the same keys."""
    steps = [step for step in pipeline.cleaners if not is_fitted_step(step)]
    return pipeline.clean(chunk, predicting=True, steps=steps)


class Origin:
    """The rows that an artefact was trained and measured on.

    They are taken only if their hash is still the one in lineage.json. What lies beyond this machine (a URL, a database that is
    no SQLite file) is not asked for, since an artefact may come from a stranger.

    Attributes:
        pipeline, lineage: of the artefact.
        sources: split → source, where the recipe names one.
    """

    def __init__(self, pipeline: Pipeline, lineage: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
        self.pipeline, self.lineage, self.sources = pipeline, lineage, sources
        self._elsewhere: Array | None = None

    @classmethod
    def find(cls, recipe: str, lineage: Mapping[str, Any], pipeline: Pipeline) -> Origin | Unknown:
        """Return the rows, or why they are not to be had.

        Args:
            recipe: text of recipe.yaml.
            lineage: contents of lineage.json.
            pipeline: of the artefact.
        """
        known = lineage.get("data")
        if not known or "split" not in lineage:
            return Unknown("not_trained_here")
        try:
            data = read_yaml(recipe, "recipe.yaml").data["data"]
            named = {name: data[name] for name in SPLITS if data.get(name)}
        except (RecipeError, KeyError, TypeError, AttributeError):
            return Unknown("no_recipe")
        sources: dict[str, Source] = {}
        for name, options in named.items():
            if _remote(options):
                return Unknown("data_remote")
            try:
                sources[name] = cast(Source, Section("sources").parse(options))
                found = sources[name].fingerprint()
            except (LubanError, OSError, ValueError) as error:
                told = str(error)
                if not isinstance(told, Sentence):  # which is ours, and as long as the paths it names
                    told = " ".join(told.split())[:_TOLD]
                return Unknown("data_gone", told)
            if found != known.get(name):
                return Unknown("data_changed", name)
        return cls(pipeline, lineage, sources) if "train" in sources else Unknown("no_recipe")

    def split(self, name: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of a split as the user has them; of training rows also those that a cleaning step then dropped, but none
        whose inputs stand in validation or test data of their own, which training left out."""
        if name in self.sources and name != "train":
            yield from self.sources[name].scan()
            return
        for chunk in self.sources["train"].scan():
            cleaned = _keyed(self.pipeline, chunk)
            mine = split_rows(self.lineage["split"], cleaned, self.pipeline) == SPLITS[name]
            if name == "train" and len(elsewhere := self._keys_elsewhere()):
                mine &= ~np.isin(self._keys(cleaned), elsewhere)
            part = chunk.filter(pl.Series(mine))
            if len(part):
                yield part

    def _keys(self, cleaned: pl.DataFrame) -> Array:
        return row_keys(cleaned, {**self.pipeline.inputs, **self.pipeline.aside})

    def _keys_elsewhere(self) -> Array:
        if self._elsewhere is None:
            keys = [
                self._keys(_keyed(self.pipeline, chunk))
                for name in ("validation", "test")
                if name in self.sources
                for chunk in self.sources[name].scan()
            ]
            self._elsewhere = np.unique(np.concatenate(keys)) if keys else np.empty(0, np.uint64)
        return self._elsewhere
