"""Inputs that give the answer away: a column that alone predicts the target, one that repeats it, one that numbers the rows."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option

from luban.auditing._base import SEED, Audit, AuditResult, Case
from luban.auditing.calibration import coverage_interval as share_interval
from luban.data.contracts import Array
from luban.data.processors._base import as_numbers, as_words
from luban.registry import register
from luban.sentences import say

__all__ = ["Leakage", "alone"]

_BINS = 256  # parts of a number at the most
_FULL = 20  # rows in each of them, about
_LONG = 64  # a text of more letters is no code
_LEAST = 20  # rows from which on two columns are not equal by chance
_RESAMPLES = 200


@register("audits")
class Leakage(Audit):
    """How well each input alone predicts the target, on rows that it was not looked up on (Kaufman et al., 2012).

    Half of the rows say what usually goes with a value (for a number, with a part of its range), the other half are
    predicted by that, and the other way round. 0 is no better than always the commonest class, or the mean; 1 is no error. A
    finding is high where the lower end of the 95 % interval is as strong as the threshold, medium where only the figure is, and
    that end half as strong.
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "Kaufman, Rosset, Perlich & Stitelman, 2012"

    threshold: Annotated[float, Option(gt=0, le=1)] = 0.95
    """Strength from which a single column is said to give the target away."""
    distinct: Annotated[float, Option(gt=0, le=1)] = 0.99
    """Share of different values from which a column of words or whole numbers counts as a number of rows."""

    def refusal(self, case: Case) -> str | None:
        if not any(one.task in ("binary", "multiclass", "regression") for one in case.targets.values()):
            return say("it predicts a category, binary or number from single columns, and no target is one")
        return None

    def run(self, case: Case) -> AuditResult:
        scored = case.scored
        n = len(scored.rows)
        result = AuditResult(self.type, rows=n)
        result.notes.append(
            say(
                "{n:,} rows with a known truth, of {sample}: half to look up, half to predict, and the other way round",
                n=n,
                sample=case.sample,
            )
        )
        table: list[dict[str, Any]] = []
        inputs = [name for name in case.predictor.pipeline.given if name in scored.rows.columns]
        for column in inputs:
            values = scored.rows[column]
            if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
                continue
            kind = case.predictor.pipeline.given[column].type
            if kind in ("image", "chat", "vector"):
                continue  # a path or a picture is no value
            codes, fresh = _codes(values)
            if kind != "text" and fresh >= self.distinct and n >= 50:
                result.find(
                    "medium",
                    say(
                        "'{column}' has another value in nearly every row ({share:.0%}), as a number or a name of the row has, and the model reads it",
                        column=column,
                        share=fresh,
                    ),
                    say(
                        "Remove it from data.inputs: it cannot help with new rows, and the model may learn rows by heart through it."
                    ),
                    {"distinct_share": fresh},
                    column,
                )
            for target, processor in case.targets.items():
                if processor.task not in ("binary", "multiclass", "regression"):
                    continue
                truth = scored.truth[target]
                strength, low = alone(codes, truth, processor.task == "regression")
                same = float(
                    (as_words(values) == as_words(scored.rows[target])).fill_null(False).to_numpy().mean()
                )
                table.append(
                    {
                        "column": column,
                        "target": target,
                        "strength": strength,
                        "low": low,
                        "equal_share": same,
                    }
                )
                result.figures["strength"] = max(strength, result.figures.get("strength") or 0.0)
                if same >= self.threshold and n >= _LEAST:
                    result.find(
                        "high",
                        say(
                            "'{column}' is '{target}' itself in {share:.0%} of the rows: the model is told the answer",
                            column=column,
                            target=target,
                            share=same,
                        ),
                        say("Remove it from data.inputs and train again; the figures so far mean nothing."),
                        {"equal_share": same},
                        column,
                    )
                elif strength >= self.threshold and low >= self.threshold / 2:
                    result.find(
                        "high" if low >= self.threshold else "medium",
                        say(
                            "'{column}' alone predicts '{target}' almost without error ({strength:.0%} of what there is to predict, by {n:,} rows at least {low:.0%})",
                            column=column,
                            target=target,
                            strength=strength,
                            n=n,
                            low=low,
                        ),
                        say(
                            "Ask whether it is known before the answer is. If not, remove it from data.inputs and train again; if so, a rule of one line does what the model does."
                        ),
                        {"strength": strength, "low": low},
                        column,
                    )
        result.tables["columns"] = sorted(table, key=lambda row: -row["strength"])
        return result


def alone(codes: Array, truth: Array, number: bool) -> tuple[float, float]:
    """Return how much of the truth one column predicts, from 0 to 1, and the lower end of its 95 % interval.

    Args:
        codes: values as numbers from 0, (n,).
        truth: class numbers or numbers, (n,).
        number: whether the truth is a number.
    """
    order = np.random.default_rng([SEED, 7]).permutation(len(codes))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    parts = [
        (_numbers if number else _classes)(codes, truth, seen, asked)
        for seen, asked in (halves, halves[::-1])
        if len(seen) and len(asked)
    ]
    if not parts:
        return 0.0, 0.0
    wrong, usual = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    whole = usual.sum()
    if whole <= 0:
        return 0.0, 0.0
    strength = float(np.clip(1 - wrong.sum() / whole, 0, 1))
    if number:
        draws = np.random.default_rng([SEED, 13]).integers(len(wrong), size=(_RESAMPLES, len(wrong)))
        drawn = 1 - wrong[draws].sum(1) / np.maximum(usual[draws].sum(1), 1e-12)
        low = float(np.quantile(drawn, 0.025)) if len(wrong) >= _LEAST else 0.0
    else:
        # Where no row was wrong, no resample can be (Clopper & Pearson, 1934).
        low = 1 - share_interval(int(wrong.sum()), len(wrong))[1] * len(wrong) / whole
    return strength, float(np.clip(low, 0, strength))


def _numbers(codes: Array, truth: Array, seen: Array, asked: Array) -> tuple[Array, Array]:
    """Return the squared errors of the mean that goes with a value, and of the mean of all."""
    size, mean = int(codes.max(initial=0)) + 1, truth[seen].mean()
    counts = np.bincount(codes[seen], minlength=size)
    sums = np.bincount(codes[seen], truth[seen], minlength=size)
    guess = np.where(counts > 0, sums / np.maximum(counts, 1), mean)[codes[asked]]
    return (truth[asked] - guess) ** 2, (truth[asked] - mean) ** 2


def _classes(codes: Array, truth: Array, seen: Array, asked: Array) -> tuple[Array, Array]:
    """Return of which rows the class that goes with a value is wrong, and of which the commonest one."""
    size, classes = int(codes.max(initial=0)) + 1, int(truth.max()) + 1
    table = np.bincount(codes[seen] * classes + truth[seen], minlength=size * classes).reshape(size, classes)
    common = np.bincount(truth[seen], minlength=classes).argmax()
    guess = np.where(table.sum(1) > 0, table.argmax(1), common)[codes[asked]]
    return np.asarray(guess != truth[asked]), np.asarray(truth[asked] != common)


def _codes(values: pl.Series) -> tuple[Array, float]:
    """Return values as numbers from 0, (n,), and the share of different ones where they are words or whole numbers."""
    words = as_words(values).fill_null("")
    numbers = as_numbers(values)
    distinct = words.n_unique() / max(1, len(words))
    if numbers.null_count() <= 0.1 * len(numbers):
        cells: Array = numbers.to_numpy()  # null is NaN here
        if (np.mod(cells, 1) > 0).any():
            distinct = 0.0  # a measurement differs from row to row, and numbers none
        bins = max(4, min(_BINS, len(cells) // _FULL))
        if numbers.n_unique() > bins:
            edges = np.unique(np.nanquantile(cells, np.linspace(0, 1, bins + 1)[1:-1]))
            return np.searchsorted(edges, cells, side="right").astype(np.int64), distinct
    elif (words.str.len_chars() > _LONG).any() or words.str.contains(r"\s").any():
        distinct = 0.0  # a text
    kinds = {word: i for i, word in enumerate(words.unique().sort().to_list())}
    return np.array([kinds[word] for word in words.to_list()], dtype=np.int64), distinct
