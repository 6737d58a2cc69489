"""The rows that an artefact was made of, read again, and samples of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import polars as pl

from luban.artefact import Artefact
from luban.data.contracts import Source
from luban.data.pipeline import is_fitted_step, row_keys
from luban.data.prepare import SPLITS, split_rows
from luban.errors import LubanError, RecipeError
from luban.recipe import Section, read_yaml

__all__ = ["Absent", "OwnRows", "Reservoir", "Sample", "sample"]

_PRIORITY = "__luban_priority__"


@dataclass(frozen=True)
class Absent:
    """Why a part of the report is not there: a key of the words ``absent.*``, and what fills its gaps."""

    why: str
    values: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"absent": self.why, "values": self.values}


@dataclass(frozen=True)
class Sample:
    """Rows drawn from many.

    Attributes:
        rows: those drawn, in their order.
        of: how many there were.
    """

    rows: pl.DataFrame
    of: int


class Reservoir:
    """Draws rows from a stream, each as likely as any other, holding little more than `limit` rows.

    Each row draws a number, and those with the smallest stay, which has the law of reservoir sampling (Vitter 1985); a stream of
    the same rows gives the same sample.

    Args:
        limit: rows at most.
        seed: of the numbers.
        report: is told how many rows went by.
    """

    def __init__(self, limit: int, seed: int = 0, report: Callable[[int], None] = lambda rows: None) -> None:
        self.limit, self.seen, self._report = limit, 0, report
        self._generator = np.random.default_rng(seed)
        self._kept: pl.DataFrame | None = None

    def through(self, chunks: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield chunks as they are, and draw from them."""
        for chunk in chunks:
            self.seen += len(chunk)
            self._report(self.seen)
            drawn = chunk.with_columns(pl.Series(_PRIORITY, self._generator.random(len(chunk))))
            kept = drawn if self._kept is None else pl.concat([self._kept, drawn], how="diagonal_relaxed")
            self._kept = kept if len(kept) <= 2 * self.limit else _smallest(kept, self.limit)
            yield chunk

    def sample(self) -> Sample:
        """Return what was drawn so far."""
        if self._kept is None:
            return Sample(pl.DataFrame(), 0)
        return Sample(_smallest(self._kept, self.limit).drop(_PRIORITY), self.seen)


def sample(
    chunks: Iterable[pl.DataFrame],
    limit: int,
    seed: int = 0,
    report: Callable[[int], None] = lambda rows: None,
) -> Sample:
    """Draw rows from a stream; as `Reservoir`."""
    reservoir = Reservoir(limit, seed, report)
    for _ in reservoir.through(chunks):
        pass
    return reservoir.sample()


def _smallest(rows: pl.DataFrame, limit: int) -> pl.DataFrame:
    if len(rows) <= limit:
        return rows
    order = np.argsort(rows[_PRIORITY].to_numpy(), kind="stable")[:limit]
    return cast(pl.DataFrame, rows[np.sort(order).tolist()])


class OwnRows:
    """The rows that an artefact was trained and measured on, from where its recipe says they are.

    They are taken only if their hash is still the one in lineage.json. Data beyond this machine (a URL, a database) is not
    asked for: a report makes no request.

    Args:
        artefact: whose rows.
        sources: split → source, where the recipe names one.
    """

    def __init__(self, artefact: Artefact, sources: dict[str, Source]) -> None:
        self.artefact, self.sources = artefact, sources

    @classmethod
    def find(cls, artefact: Artefact) -> OwnRows | Absent:
        """Return the rows, or why they are not there."""
        known = artefact.lineage.get("data")
        if artefact.lineage.get("verb") != "train" or not known or "split" not in artefact.lineage:
            return Absent("not_trained_here")
        try:
            data = read_yaml(artefact.recipe, "recipe.yaml").data["data"]
            named = {name: data[name] for name in SPLITS if data.get(name)}
        except (RecipeError, KeyError, TypeError):
            return Absent("no_recipe")
        sources: dict[str, Source] = {}
        for name, options in named.items():
            if "://" in str(options):
                return Absent("data_remote")
            try:
                sources[name] = cast(Source, Section("sources").parse(options))
                found = sources[name].fingerprint()
            except (LubanError, OSError) as error:
                return Absent("data_gone", {"error": str(error)})
            if found != known.get(name):
                return Absent("data_changed", {"split": name})
        return cls(artefact, sources) if "train" in sources else Absent("no_recipe")

    def split(self, name: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of a split as the user has them, of training rows also those that a cleaning step then dropped; but for
        rows whose inputs stand in validation or test data of their own, which training left out."""
        if name in self.sources and name != "train":
            yield from self.sources[name].scan()
            return
        pipeline = self.artefact.pipeline
        steps = [step for step in pipeline.cleaners if not is_fitted_step(step)]
        elsewhere = self._keys_elsewhere() if name == "train" else np.empty(0, np.uint64)
        for chunk in self.sources["train"].scan():
            cleaned = pipeline.clean(chunk, predicting=True, steps=steps)
            codes = split_rows(self.artefact.lineage["split"], cleaned, pipeline)
            mine = codes == SPLITS[name]
            if len(elsewhere):
                mine &= ~np.isin(row_keys(cleaned, {**pipeline.inputs, **pipeline.aside}), elsewhere)
            part = chunk.filter(pl.Series(mine))
            if len(part):
                yield part

    def _keys_elsewhere(self) -> Any:
        pipeline = self.artefact.pipeline
        steps = [step for step in pipeline.cleaners if not is_fitted_step(step)]
        keys = np.empty(0, np.uint64)
        for name in ("validation", "test"):
            for chunk in self.sources[name].scan() if name in self.sources else ():
                cleaned = pipeline.clean(chunk, predicting=True, steps=steps)
                keys = np.union1d(keys, row_keys(cleaned, {**pipeline.inputs, **pipeline.aside}))
        return keys
