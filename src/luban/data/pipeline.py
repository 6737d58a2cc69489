"""All that happens to a row between the user's file and the batch, fitted once and kept in the artefact."""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.data.contracts import Array, Cleaner, Encoded, Field, Flat, Processor, Role, Spec, in_seconds
from luban.data.processors.text import Text
from luban.errors import DataError, did_you_mean
from luban.recipe import Component, Data
from luban.sentences import say

__all__ = ["WEIGHT", "Pipeline", "is_fitted_step", "raw_bytes", "row_keys"]

WEIGHT = "row.weight"


def is_fitted_step(cleaner: Cleaner) -> bool:
    """Whether a cleaning step must see the training rows before it can act."""
    return type(cleaner).update is not Cleaner.update


@dataclass
class Pipeline:
    """Cleaning steps and processors of all columns.

    Attributes:
        inputs: column → its processor, patterns expanded.
        targets: column → its processor.
        cleaners: the recipe's cleaning steps, those that need no fitting first.
        groups: columns kept for slices.
        weight: column of row weights.
        raw_text: input columns whose text is stored too, because an augmentation changes it before it is encoded.
        counts: what was changed or dropped so far, by name.
        aside: inputs that training compared and no model reads, not fitted; a row is still known by them.
        marked: columns of groups that an objective looks at, encoded for training only.
    """

    inputs: dict[str, Processor]
    targets: dict[str, Processor]
    cleaners: list[Cleaner] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    weight: str | None = None
    raw_text: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    aside: dict[str, Processor] = field(default_factory=dict)
    marked: dict[str, Processor] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Data, columns: list[str] | None = None) -> Self:
        """Make an unfitted pipeline of a recipe's data section.

        Args:
            data: the section.
            columns: the columns of the data, to expand patterns and to refuse unknown names; unchecked if left out.

        Raises:
            DataError: if the recipe names a column that the data lacks.
        """
        # Fitting changes a processor: each pipeline owns copies, so that a recipe can be used twice.
        targets = {name: _fresh(cast(Processor, p)) for name, p in data.targets.items()}
        inputs: dict[str, Processor] = {}
        made = _made_by(data.clean, columns or [])
        # Columns with another part to play enter a model only by their own name, never because a pattern matches.
        by = getattr(data.split, "by", None) or []
        reserved = {*targets, *data.inputs, *data.groups, data.weight, *([by] if isinstance(by, str) else by)}
        for name, processor in data.inputs.items():
            matches = [name]
            if columns is not None and name not in columns and any(c in name for c in "*?["):
                matches = [c for c in columns if fnmatch.fnmatchcase(c, name) and c not in reserved]
                if not matches:
                    raise DataError(f"no column matches the pattern '{name}'; columns are {_listed(columns)}")
            for match in matches:
                inputs[match] = _fresh(cast(Processor, processor))
        if columns is not None:
            wanted = [*inputs, *targets, *data.groups, *([data.weight] if data.weight else [])]
            for name in wanted:
                if name not in columns and name not in made:
                    raise DataError(
                        f"there is no column '{name}'; columns are {_listed(columns)}{did_you_mean(name, columns)}"
                    )
        for name, processor in targets.items():
            if processor.output is None and not processor.writes:
                raise DataError(
                    f"column '{name}' is read as {processor.type}, which cannot be a target; targets are number, category, binary, set or text"
                )
        for name, processor in (*inputs.items(), *targets.items()):
            _check_like(name, processor, inputs)
        # Steps that need no fitting act first, in training (before rows are split) and in prediction alike.
        cleaners = sorted(
            (cast(Cleaner, step.model_copy(deep=True)) for step in data.clean), key=is_fitted_step
        )
        return cls(inputs, targets, cleaners, list(data.groups), data.weight)

    @property
    def spec(self) -> Spec:
        """The fields of a batch; known after fitting."""
        fields: dict[str, Field] = {}
        roles: tuple[tuple[Role, dict[str, Processor]], ...] = (
            ("input", self.inputs),
            ("target", self.targets),
        )
        for role, processors in roles:
            for column, processor in processors.items():
                try:
                    own = processor.fields(column, role)
                except DataError as error:
                    raise DataError(f"column '{column}': {error}") from None
                fields.update({f"{column}.{short}": one for short, one in own.items()})
        if self.weight:
            fields[WEIGHT] = Field(self.weight, "number", "weight", "float32")
        for column, processor in self.marked.items():
            fields[f"{column}.group"] = processor.fields(column, "group")["index"]
        for column in self.raw_text:
            fields[f"{column}.raw"] = Field(column, "raw", "id", "uint8", None)
        return Spec(fields)

    @property
    def scored(self) -> dict[str, Processor]:
        """The targets that are read off an output of the model."""
        return {name: processor for name, processor in self.targets.items() if not processor.writes}

    @property
    def written(self) -> dict[str, Processor]:
        """The targets that a model writes token by token."""
        return {name: processor for name, processor in self.targets.items() if processor.writes}

    def owner(self, processor: Processor) -> Processor:
        """Return what learns a processor's values: itself, or the input whose tokenizer it shares."""
        like = getattr(processor, "like", None)
        return processor if like is None else self.inputs[like]

    def finish(self) -> None:
        """End the fitting of all columns; those that share another's tokenizer come last."""
        columns = [*self.inputs.items(), *self.targets.items(), *self.marked.items()]
        for column, processor in sorted(columns, key=lambda one: self.owner(one[1]) is not one[1]):
            owner = self.owner(processor)
            try:
                if isinstance(processor, Text) and isinstance(owner, Text) and owner is not processor:
                    processor.share(owner)
                else:
                    processor.finish()
            except DataError as error:
                raise DataError(f"column '{column}': {error}") from None

    @property
    def given(self) -> dict[str, Processor]:
        """The inputs that a row brings itself; the others are made by cleaning."""
        made = _made_by(self.cleaners, [*self.inputs])
        return {name: processor for name, processor in self.inputs.items() if name not in made}

    def set_aside(self, columns: Iterable[str]) -> None:
        """Let nobody ask for inputs that no model reads; they are the last ones, so that rows keep their keys."""
        for column in columns:
            self.aside[column] = _fresh(self.inputs.pop(column))

    def require(self, columns: Iterable[str], *, targets: bool, beside: bool = False) -> None:
        """Check that rows bring the columns that are needed.

        Raises:
            DataError: naming the first that is missing.
        """
        have = list(columns)
        made = _made_by(self.cleaners, have)
        others = [*self.groups, *([self.weight] if self.weight else [])] if beside else []
        for name in [*self.inputs, *(self.targets if targets else ()), *others]:
            if name not in have and name not in made:
                raise DataError(
                    say(
                        "there is no column '{name}', which the model reads; columns are {columns}{hint}",
                        name=name,
                        columns=_listed(have),
                        hint=did_you_mean(name, have),
                    )
                )

    def clean(
        self, rows: pl.DataFrame, *, predicting: bool, steps: list[Cleaner] | None = None
    ) -> pl.DataFrame:
        """Apply cleaning steps (all, if not told which) to a chunk.

        In prediction no row is dropped, and what is fitted (filling, clipping) leaves targets alone: a truth that was made
        up or bent is no truth. Repairs of text act on targets too, so that 'Yes' and 'yes' stay one class.
        """
        rows = in_seconds(rows)
        for step in self.cleaners if steps is None else steps:
            truths = rows.select([name for name in self.targets if name in rows.columns])
            rows = step.apply(rows, predicting=predicting)
            if predicting and is_fitted_step(step):
                rows = rows.with_columns(truths)
            self.counts.update(step.counts())
        return rows

    def encode(self, rows: pl.DataFrame, *, targets: bool) -> tuple[Encoded, npt.NDArray[np.bool_]]:
        """Encode a cleaned chunk.

        Returns:
            The arrays of the rows that could be read, and which rows those are, (n,).
        """
        kept = self.readable(rows, targets=targets)
        rows = rows.filter(pl.Series(kept)) if not kept.all() else rows
        encoded: Encoded = {}
        for column, processor in self.inputs.items():
            try:
                own = processor.encode(rows[column])
            except DataError as error:
                raise DataError(f"column '{column}': {error}") from None
            encoded.update({f"{column}.{short}": value for short, value in own.items()})
            self._count(column, processor)
        if targets:
            for column, processor in self.targets.items():
                own = processor.encode_target(rows[column])
                encoded.update({f"{column}.{short}": value for short, value in own.items()})
                self._count(column, processor)
            for column, processor in self.marked.items():
                encoded[f"{column}.group"] = processor.encode(rows[column])["index"]
            if self.weight:
                encoded[WEIGHT] = rows[self.weight].cast(pl.Float32, strict=False).to_numpy()
        for column in self.raw_text:
            encoded[f"{column}.raw"] = raw_bytes(rows[column])
        return encoded, kept

    def _count(self, column: str, processor: Processor) -> None:
        """Take over what the processor of a column has counted."""
        for what, n in processor.counts().items():
            self.counts[say("{column}: {what}", column=column, what=what)] += n

    def readable(self, rows: pl.DataFrame, *, targets: bool) -> npt.NDArray[np.bool_]:
        """Return which rows can be encoded, (n,), and count the others by column."""
        kept = np.ones(len(rows), dtype=bool)
        for column, processor in self.inputs.items():
            bad = processor.invalid(rows[column]).fill_null(False).to_numpy()
            self.counts[say("{column}: unreadable", column=column)] += int((bad & kept).sum())
            kept &= ~bad
        if targets:
            for column, processor in self.targets.items():
                known = processor.known(rows[column]).to_numpy()
                missing = rows[column].is_null().to_numpy() & ~known
                self.counts[say("{column}: target missing", column=column)] += int((missing & kept).sum())
                what = say("{column}: target unreadable or of an unknown class", column=column)
                self.counts[what] += int((~known & ~missing & kept).sum())
                kept &= known
            if self.weight:
                weight = rows[self.weight].cast(pl.Float64, strict=False).fill_null(-1.0).to_numpy()
                bad = ~(np.isfinite(weight) & (weight >= 0))
                what = say("{column}: weight missing or negative", column=self.weight)
                self.counts[what] += int((bad & kept).sum())
                kept &= ~bad
        return kept

    def state(self) -> dict[str, Any]:
        """Return options and everything fitted, as JSON."""

        def one(part: Processor | Cleaner) -> dict[str, Any]:
            return {"options": part.model_dump(), "state": part.state()}

        return {
            "inputs": {name: one(p) for name, p in self.inputs.items()},
            "targets": {name: one(p) for name, p in self.targets.items()},
            "clean": [one(step) for step in self.cleaners],
            "groups": self.groups,
            "weight": self.weight,
            **({"aside": {name: p.model_dump() for name, p in self.aside.items()}} if self.aside else {}),
            **({"marked": {name: one(p) for name, p in self.marked.items()}} if self.marked else {}),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        """Build a fitted pipeline from what `state` returned."""
        from luban.recipe import Section

        def one(section: str, saved: dict[str, Any]) -> Any:
            part = Section(section).parse(saved["options"])
            part.restore(saved["state"])  # type: ignore[attr-defined]
            return part

        return cls(
            {name: one("processors", p) for name, p in state["inputs"].items()},
            {name: one("processors", p) for name, p in state["targets"].items()},
            [one("cleaning", step) for step in state["clean"]],
            state["groups"],
            state["weight"],
            aside={
                name: cast(Processor, Section("processors").parse(options))
                for name, options in state.get("aside", {}).items()
            },
            marked={name: one("processors", p) for name, p in state.get("marked", {}).items()},
        )


def _made_by(steps: Sequence[Component], columns: list[str]) -> set[str]:
    """Return the columns that cleaning adds to these: the indicators of missing values."""
    return {
        f"{column}_missing"
        for step in steps
        if getattr(step, "indicator", False)
        for column in getattr(step, "columns", None) or columns
    }


def _check_like(name: str, processor: Processor, inputs: dict[str, Processor]) -> None:
    """Refuse to share the tokenizer of what has none of its own."""
    like = getattr(processor, "like", None)
    if like is None:
        return
    texts = [n for n, p in inputs.items() if isinstance(p, Text) and p.like is None]
    if like not in texts:
        raise DataError(
            f"column '{name}' is to share the tokenizer of '{like}', which is no text input with a tokenizer of its own; "
            f"these are {', '.join(texts) or 'none'}{did_you_mean(like, texts)}"
        )


def _fresh(processor: Processor) -> Processor:
    return type(processor)(**{name: getattr(processor, name) for name in type(processor).model_fields})


def _listed(columns: list[str]) -> str:
    shown = ", ".join(map(str, columns[:20]))
    return f"{shown}, ... ({len(columns)} in all)" if len(columns) > 20 else shown


def raw_bytes(values: pl.Series) -> Flat:
    """Return texts as ragged UTF-8."""
    parts = [text.encode() for text in values.cast(pl.String).fill_null("").to_list()]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return Flat(np.frombuffer(b"".join(parts), dtype=np.uint8), offsets)


def row_keys(rows: pl.DataFrame, processors: dict[str, Processor]) -> npt.NDArray[np.uint64]:
    """Hash what each row's inputs are, (n,): equal inputs, equal keys, on every machine and version.

    A processor says what makes two of its values the same; for a path to an image that is the file's contents.
    """
    values = {
        column: processor.identity(rows[column])
        for column, processor in processors.items()
        if column in rows.columns
    }
    flat = [
        v.cast(pl.String).fill_null("\x00")
        for v in values.values()
        if not v.dtype.is_nested() and v.dtype != pl.Binary
    ]
    texts = (
        pl.select(pl.concat_str(flat, separator="\x1f")).to_series().to_list() if flat else [""] * len(rows)
    )
    digests = [hashlib.blake2b(text.encode(), digest_size=8) for text in texts]
    for series in values.values():
        if series.dtype.is_nested() or series.dtype == pl.Binary:
            for digest, value in zip(digests, _buffers(series), strict=True):
                digest.update(value)
    return np.frombuffer(b"".join(digest.digest() for digest in digests), dtype=np.uint64)


def _buffers(values: pl.Series) -> list[Any]:
    if isinstance(values.dtype, pl.Array) and not values.null_count():
        array: Array = np.ascontiguousarray(values.to_numpy())
        return [row.tobytes() for row in array]
    return [value if isinstance(value, bytes) else repr(value).encode() for value in values.to_list()]
