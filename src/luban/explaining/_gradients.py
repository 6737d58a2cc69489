"""Gradients of the score along a path from a neutral input to the row, many steps of many rows in one unpadded batch.

::

    rows     a b c | d e                      two texts
    batch    d e | d e | ... | a b c | a b c   each as many times as there are steps: no step waits for another, and nothing is padded

What of a row a path changes is said by a `Change`; see `luban.explaining._handles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luban.data.batch import to_batch
from luban.data.contracts import Encoded, Flat
from luban.data.processors.set import Set
from luban.data.processors.text import Text
from luban.data.store import take_rows
from luban.explaining._base import Part, Piece
from luban.explaining._case import Case
from luban.explaining._handles import Probe, Site, frozen
from luban.models._foreign import ForeignEncoder
from luban.models._settled import settled
from luban.sentences import say

__all__ = [
    "Found",
    "attribute",
    "costs",
    "found_in",
    "part_of",
    "parts_of",
    "refusal_of",
    "runs",
    "special_ids",
]

BUDGET = 4096
"""Tokens (or what costs about as much) in one batch."""
GRAIN = 128
"""Batches of texts are filled up to a multiple of so many tokens: oneDNN makes code for each number of rows it meets, which takes
up to 0.8 ms a product where the product takes 3."""
GPU_BUDGET = 2**16
PIXELS = 64
"""Numbers of an image or a vector that cost about as much as a token."""


@dataclass
class Found:
    """What gradients came to.

    Attributes:
        values: field → contributions, as the rows are encoded: (n, ...), or `Flat` of (T,).
        scores: of the rows, (n,).
        baselines: of the neutral inputs, (n,).
    """

    values: dict[str, npt.NDArray[np.float64] | Flat]
    scores: npt.NDArray[np.float64]
    baselines: npt.NDArray[np.float64]

    def totals(self) -> npt.NDArray[np.float64]:
        """Return the sum of all contributions of each row, (n,)."""
        total = np.zeros(len(self.scores))
        for value in self.values.values():
            if isinstance(value, Flat):
                np.add.at(total, np.repeat(np.arange(len(value)), np.diff(value.offsets)), value.values)
            else:
                total += value.reshape(len(total), -1).sum(1)
        return total


def refusal_of(case: Case) -> str | None:
    """Return why gradients cannot reach the inputs of a case; None if they can."""
    if not case.target:
        return say("it needs a score, and the model predicts no column")
    if not len(case):
        return None
    probe, missing = Probe(case.predictor.model, case.predictor.spec), []
    for one in _telling(case):
        missing += probe.missing(one.batch())
    if missing:
        return say(
            "no gradient can attach to '{column}', whose vectors the model looks up in a way of its own",
            column=missing[0],
        )
    return None


def _telling(case: Case) -> list[Case]:
    """Return a few rows by which a model shows where gradients attach: of each text one that has tokens, if any has."""
    if apart := _lengths_apart(case):
        longest = int(apart[-1][0])
        return [case.part(longest, longest + 1)]
    fields = {name for own in case.inputs.values() for name in own}
    texts = [value for name, value in case.encoded.items() if name in fields and isinstance(value, Flat)]
    starts = {int(np.diff(text.offsets).argmax()) for text in texts} or {0}
    return [case.part(start, min(start + 2, len(case))) for start in sorted(starts)]


def costs(encoded: Encoded, n: int) -> npt.NDArray[np.int64]:
    """Return what each of n rows costs to compute, in tokens, roughly and at least 1, (n,)."""
    result = np.zeros(n, dtype=np.int64)
    for value in encoded.values():
        result += (
            np.diff(value.offsets) if isinstance(value, Flat) else int(value[0].size if n else 0) // PIXELS
        )
    return result.clip(min=1)


def runs(
    cost: npt.NDArray[np.int64], steps: int, budget: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Cut rows × steps into batches that are as full as they can be: yield the row and the step of each item of a batch, (B,) each.

    Rows of like length come together, so that models that pad waste little; the steps of a row may lie in two batches.
    """
    rows = np.repeat(np.argsort(cost, kind="stable"), steps)
    ends = cost[rows].cumsum()
    start = 0
    while start < len(rows):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + budget, "right")))
        yield rows[start:stop], np.arange(start, stop) % steps
        start = stop


def _lengths_apart(case: Case) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each length, where a model reads texts of one length together alone, as padding would change them: batches
    are then of one length each, so that every look-up is of a whole batch. The longest come last; nothing where any rows may share a
    batch."""
    apart = [
        name
        for part in case.predictor.model.modules()
        if isinstance(part, ForeignEncoder) and not part.masks_padding
        for name in part.names
    ]
    texts = [value for name in apart if isinstance(value := case.encoded.get(name), Flat)]
    if not texts:
        return []
    lengths = np.stack([np.diff(text.offsets) for text in texts], axis=1)
    return [np.flatnonzero((lengths == one).all(1)) for one in np.unique(lengths, axis=0)]


def attribute(
    case: Case,
    neutral: Any,
    alphas: Sequence[float],
    weights: Sequence[float],
    *,
    budget: int | None = None,
) -> Found:
    """Return ``Σ weight · gradient · (x - x')`` at ``x' + α (x - x')``, over steps (α, weight), for each row.

    Args:
        case: the rows and the score.
        neutral: a function of a `Site` that returns x', which broadcasts to what the model has there.
        alphas, weights: of the steps.
        budget: tokens in one batch.
    """
    if budget is None:
        budget = BUDGET if case.predictor.device.type == "cpu" else GPU_BUDGET
    n, device = len(case), case.predictor.device
    fields = {name for own in case.inputs.values() for name in own}
    values: dict[str, npt.NDArray[np.float64] | Flat] = {}
    for name in fields & case.encoded.keys():
        one = case.encoded[name]
        if isinstance(one, Flat):
            values[name] = Flat(np.zeros(len(one.values)), one.offsets)
    baselines = np.zeros(n)
    probe = Probe(case.predictor.model, case.predictor.spec)
    cost, apart = costs(case.encoded, n), _lengths_apart(case)
    groups = apart or [np.arange(n)]
    all_alphas, all_weights = np.asarray(alphas, dtype=np.float32), np.asarray(weights, dtype=np.float64)

    def one_pass(
        rows: npt.NDArray[np.int64], alpha: npt.NDArray[np.float32]
    ) -> tuple[list[Site], list[Tensor], Tensor]:
        """Read items, each a row at an alpha, (B,) each; what fills the batch up is read too, and not spoken of."""
        taken = take_rows(case.encoded, rows)
        encoded, extra = (taken, 0) if apart else _filled(taken)
        each = torch.as_tensor(np.append(alpha, np.zeros(extra, np.float32)), device=device)
        deltas: list[Tensor] = []

        def change(site: Site) -> Tensor:
            start: Tensor = neutral(site)
            delta = site.actual - start
            deltas.append(delta)
            by = each[site.rows].view(-1, *[1] * (site.actual.dim() - 1))
            return start + by * delta

        batch = to_batch(encoded, case.predictor.spec, device)
        with probe.attached(batch, change) as (changed, sites):
            score = case.score(changed, case.chosen[np.append(rows, rows[-1:].repeat(extra))])
        return sites, deltas, score[: len(rows)]

    # For a batch or less, laying the weights out would take longer than it saves.
    much = int(cost.sum()) * len(alphas) > budget
    with frozen(case.predictor.model), settled() if much else nullcontext():
        for rows, steps in _runs_within(groups, cost, len(alphas), budget):
            sites, deltas, score = one_pass(rows, all_alphas[steps])
            if not any(site.values.numel() for site in sites):  # texts without a token
                continue
            gradients = torch.autograd.grad(score.sum(), [site.values for site in sites], allow_unused=True)
            for site, delta, gradient in zip(sites, deltas, gradients, strict=True):
                if gradient is None:  # the score does not depend on it
                    gradient = torch.zeros_like(delta)
                for name, part in site.collect(gradient * delta).items():
                    if site.form == "image":
                        part = part.sum(1)  # (B, C, H, W): a place's colours together
                    _add(values, name, part.double().cpu().numpy(), rows, all_weights[steps], n)
        with torch.no_grad():
            for rows, _ in _runs_within(groups, cost, 1, 2 * budget):
                _, _, score = one_pass(rows, np.zeros(len(rows), np.float32))
                baselines[rows] = score.double().cpu().numpy()
        scores = case.scores_of_encoded(case.encoded, case.chosen)
    return Found(values, scores, baselines)


def _runs_within(
    groups: Sequence[npt.NDArray[np.int64]], cost: npt.NDArray[np.int64], steps: int, budget: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield what `runs` does, with no batch of rows of two groups."""
    for group in groups:
        for rows, at in runs(cost[group], steps, budget):
            yield group[rows], at


def _filled(encoded: Encoded) -> tuple[Encoded, int]:
    """Return encoded rows and, where their only field of different lengths is a text that misses a multiple of `GRAIN` tokens, a
    last row that makes up for it: the beginning of another one again. With it, how many rows were added, 0 or 1."""
    flat = [name for name, value in encoded.items() if isinstance(value, Flat)]
    if len(flat) != 1:
        return encoded, 0
    (name,) = flat
    text = encoded[name]
    assert isinstance(text, Flat)
    lengths, missing = np.diff(text.offsets), -len(text.values) % GRAIN
    if len(text.values) < GRAIN or not missing or missing > lengths.max():
        return encoded, 0
    longest = int(lengths.argmax())
    result = take_rows(encoded, np.append(np.arange(len(lengths)), longest))
    filled = result[name]
    assert isinstance(filled, Flat)
    offsets = filled.offsets.copy()
    offsets[-1] = offsets[-2] + missing
    return {**result, name: Flat(filled.values[: offsets[-1]], offsets)}, 1


def _add(
    values: dict[str, npt.NDArray[np.float64] | Flat],
    name: str,
    part: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    n: int,
) -> None:
    """Add what items, (B,) rows each with a weight, got to what all have; what filled up the batch comes last, and is left out."""
    known = values.get(name)
    if isinstance(known, Flat):
        counts = np.diff(known.offsets)[rows]
        ends = counts.cumsum()
        places = np.repeat(known.offsets[:-1][rows] - ends + counts, counts) + np.arange(ends[-1])
        weighed = part[: ends[-1]] * np.repeat(weights, counts)
        known.values[:] += np.bincount(places, weighed, len(known.values))
        return
    if known is None:
        known = values[name] = np.zeros((n, *part.shape[1:]))
    np.add.at(known, rows, part[: len(rows)] * weights.reshape(-1, *[1] * (part.ndim - 1)))


# --- what a person sees -----------------------------------------------------------------------------------


def special_ids(case: Case, name: str) -> list[int]:
    """Return the tokens of a field that stand in a neutral text too (`Case.framing_ids`)."""
    column = next(column for column, own in case.inputs.items() if name in own)
    processor = case.predictor.pipeline.inputs[column]
    if not isinstance(processor, Text):
        return []
    return case.framing_ids(processor)


def parts_of(case: Case, values: dict[str, npt.NDArray[np.float64] | Flat]) -> list[dict[str, Part]]:
    """Return what each column of each row contributed, of what its fields did."""
    result: list[dict[str, Part]] = [{} for _ in range(len(case))]
    for column, fields in case.inputs.items():
        own = {name: values[name] for name in fields if name in values}
        if not own:
            continue
        if case.forms[column] == "tokens":
            (flat,) = own.values()
            assert isinstance(flat, Flat)
            each = np.split(flat.values, flat.offsets[1:-1])
            for row, (pieces, numbers) in enumerate(zip(case.pieces(column), each, strict=True)):
                result[row][column] = pieces.part(column, numbers)
            continue
        for row in range(len(case)):
            result[row][column] = _part(case, column, own, row)
    return result


def _part(case: Case, column: str, own: dict[str, npt.NDArray[np.float64] | Flat], row: int) -> Part:
    """Return what a column that is no text contributed to a row, of what its fields did."""
    if case.forms[column] == "set":
        (flat,) = own.values()
        assert isinstance(flat, Flat)
        return part_of(case, column, flat.values[flat.offsets[row] : flat.offsets[row + 1]], row)
    arrays = [value[row] for value in own.values() if not isinstance(value, Flat)]
    if case.forms[column] == "image":
        return Part(column, "image", arrays[0])
    if case.predictor.pipeline.inputs[column].type == "vector":
        return Part(column, "vector", arrays[0].reshape(-1))
    # A number and whether it was missing, or a date and its parts, are one thing to the user.
    return part_of(case, column, np.asarray([sum(float(array.sum()) for array in arrays)]), row)


def part_of(case: Case, column: str, values: npt.NDArray[np.float64], row: int) -> Part:
    """Return what a set contributed, given a value for each of its words, or what a single value did, (1,)."""
    shown = case.given[column][row] if column in case.given.columns else None
    processor = case.predictor.pipeline.inputs[column]
    if not isinstance(processor, Set):
        plain = shown if isinstance(shown, int | float | str) or shown is None else str(shown)[:200]
        return Part(column, "value", values.sum(), shown=plain)
    (name,) = case.inputs[column]
    ids = case.encoded[name]
    assert isinstance(ids, Flat)
    words = [processor.classes()[int(i)] for i in ids.values[ids.offsets[row] : ids.offsets[row + 1]]]
    text = shown if isinstance(shown, str) else processor.separator.join(words)
    return Part(column, "tokens", values, found_in(words, text), shown=text)


def found_in(words: Sequence[str], text: str) -> list[Piece]:
    """Return words as pieces of a text, each where it is found next."""
    result: list[Piece] = []
    for word in words:
        start = text.find(word)
        result.append(Piece(word, start, start + len(word)) if start >= 0 else Piece(word, 0, 0))
    return result
