"""Rows as explainers of tables need them: some of them, with their truth, put together from others, run through the model.

A row made of the columns of several rows needs nothing encoded again: each column's arrays are gathered by an index of its own.

::

    pool     age  city  review        choice   age: 0 1   city: 0 0   review: 1 0
    row 0     31  Rome  "good"                            ──▶  31 Rome "bad"
    row 1     54  Oslo  "bad"                             ──▶  54 Rome "good"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from luban.data.batch import Batch, to_batch
from luban.data.contracts import Array, Encoded, Flat
from luban.data.processors._encoding import gather
from luban.errors import DataError
from luban.explaining._case import Case, require_rows
from luban.predict import frame_of
from luban.sentences import say

__all__ = [
    "Index",
    "background",
    "column_of",
    "joined",
    "mixed",
    "outputs_of",
    "sample",
    "shown",
    "some_rows",
    "step_of",
    "take",
    "with_truth",
]

Index = npt.NDArray[np.int64]

_ROWS = 4096  # of a batch at most
_TOKENS = 2**14  # of a batch, about: 100 MB inside a small Transformer
_BYTES = 2**24  # of a batch, about


# --- which rows -------------------------------------------------------------------------------------------


def some_rows(case: Case, rows: Index) -> Case:
    """Return a case of the rows of these places."""
    return replace(
        case,
        given=case.given[rows],
        frame=case.frame[rows],
        numbers=[case.numbers[i] for i in rows.tolist()],
        chosen=case.chosen[rows],
    )


def sample(case: Case, limit: int, generator: np.random.Generator) -> tuple[Case, list[str]]:
    """Return a case of at most `limit` rows, drawn without replacement, in order; and the sentence that says so.

    Raises:
        DataError: if there is no row.
    """
    require_rows(case)
    if len(case) <= limit:
        return case, []
    rows = np.sort(generator.choice(len(case), limit, replace=False))
    return some_rows(case, rows), [
        say("{n:,} of {of:,} rows were drawn; option rows asks for more", n=limit, of=len(case))
    ]


def with_truth(case: Case) -> tuple[Case, Array, list[str]]:
    """Return the rows whose target is known, what it is (as `Processor.truth` says), and a sentence on the others.

    Raises:
        DataError: if there is no such column, or it holds nothing that the model knows.
    """
    if case.target not in case.frame.columns:
        raise DataError(
            say(
                "there is no column '{target}' in the rows, and what the model predicts is to be compared with it; hand over rows that hold it",
                target=case.target,
            )
        )
    known = case.processor.known(case.frame[case.target]).fill_null(False).to_numpy()
    if not known.any():
        raise DataError(say("no row has a value of '{target}' that the model knows", target=case.target))
    missing = int((~known).sum())
    notes: list[str] = []
    if missing:
        notes.append(
            say("{n:,} rows were left out, since their '{target}' is unknown", n=missing, target=case.target)
        )
    case = some_rows(case, np.flatnonzero(known)) if missing else case
    (encoded,) = case.processor.encode_target(case.frame[case.target]).values()
    return case, case.processor.truth(encoded), notes


def background(case: Case, limit: int, generator: np.random.Generator) -> tuple[pl.DataFrame, str]:
    """Return at most `limit` rows that stand for the data, and a sentence on where they come from.

    They are drawn from the case's background; from its own rows where it has none; and made up from what the artefact knows of
    each column where there is only the one row that is to be explained.
    """
    others, what = case.others or (None, "")
    if others is None or not len(others):
        if len(case) < 2:
            others = _made_up(case, limit, generator)
            return (
                others,
                say(
                    "compared with {n:,} rows made up from what training saw in each column by itself, "
                    "since the training rows are not found; hand over more rows to compare with these",
                    n=len(others),
                ),
            )
        others, what = case.frame, say("the rows given")
    if len(others) > limit:
        others = others[np.sort(generator.choice(len(others), limit, replace=False))]
    return others, say("compared with {n:,} rows of {what}", n=len(others), what=what)


def _made_up(case: Case, rows: int, generator: np.random.Generator) -> pl.DataFrame:
    """Return rows of the columns' specification, cleaned, from nobody's data."""
    pipeline = case.predictor.pipeline
    columns = {name: one.example(generator, rows) for name, one in pipeline.given.items()}
    made = frame_of([dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)])
    cleaned = case.predictor.clean(made)
    return cleaned.filter(pl.Series(pipeline.readable(cleaned, targets=False)))


# --- rows made of rows ------------------------------------------------------------------------------------


def column_of(name: str) -> str:
    """Return the column of a field's full name.

    Example:
        >>> column_of("a.b.ids")
        'a.b'
    """
    return name.rsplit(".", 1)[0]


def take(value: Array | Flat, rows: Index) -> Array | Flat:
    """Return some rows of encoded values, in any order, as often as asked."""
    if not isinstance(value, Flat):
        return value[rows]
    starts = value.offsets[rows]
    lengths = value.offsets[rows + 1] - starts
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Flat(gather(value.values, starts, lengths), offsets)


def mixed(pool: Encoded, choice: Mapping[str, Index]) -> Encoded:
    """Return rows whose columns come from the rows of a pool that `choice` names: column → places, each (n,)."""
    return {name: take(value, choice[column_of(name)]) for name, value in pool.items()}


def joined(first: Encoded, second: Encoded) -> Encoded:
    """Return the rows of both, one after the other."""
    result: Encoded = {}
    for name, value in first.items():
        other = second[name]
        if isinstance(value, Flat) and isinstance(other, Flat):
            offsets = np.concatenate([value.offsets, value.offsets[-1] + other.offsets[1:]])
            result[name] = Flat(np.concatenate([value.values, other.values]), offsets)
        else:
            assert not isinstance(value, Flat)
            assert not isinstance(other, Flat)
            result[name] = np.concatenate([value, other])
    return result


def step_of(pool: Encoded) -> int:
    """Return how many rows of this kind make a batch of a sensible size."""
    tokens, size = 1.0, 1.0
    for value in pool.values():
        rows = max(1, len(value))
        if isinstance(value, Flat):
            tokens += len(value.values) / rows
        else:
            size += value.nbytes * 4 / rows  # bytes become floats
    return int(np.clip(min(_TOKENS / tokens, _BYTES / size), 16, _ROWS))


def outputs_of(
    case: Case, pool: Encoded, choice: Mapping[str, Index] | None = None
) -> npt.NDArray[np.float64]:
    """Return the model's output for the target, (n, width), of a pool's rows, or of rows mixed from them."""
    rows = len(next(iter(pool.values()))) if choice is None else len(next(iter(choice.values())))
    step, parts = step_of(pool), []
    everything = np.arange(rows)
    with torch.inference_mode():
        for start in range(0, rows, step):
            own: Mapping[str, Index] = (
                {column_of(name): everything[start : start + step] for name in pool}
                if choice is None
                else {column: index[start : start + step] for column, index in choice.items()}
            )
            parts.append(case.predictor.model(batch_of(case, mixed(pool, own)))[case.output].float().cpu())
    result: npt.NDArray[np.float64] = torch.cat(parts).double().numpy()
    return result


def batch_of(case: Case, encoded: Encoded) -> Batch:
    """Return encoded rows as the model sees them."""
    return to_batch(encoded, case.predictor.spec, case.predictor.device)


# --- words ------------------------------------------------------------------------------------------------


def shown(value: Any, width: int = 200) -> Any:
    """Return a cell as it is shown: a number or a word as it is, a long text cut, None for what is no word (pixels).

    Example:
        >>> shown("x" * 300)[-3:], shown(1.5), shown(b"png") is None
        ('...', 1.5, True)
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and not value.startswith("data:image/"):
        return value if len(value) <= width else value[: width - 3] + "..."
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return shown("; ".join(value), width)
    return value.isoformat() if hasattr(value, "isoformat") else None
