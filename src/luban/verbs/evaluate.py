"""The verb `evaluate`: an artefact on rows whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from luban.artefact import Artefact
from luban.console import Console
from luban.data.pipeline import is_fitted_step
from luban.data.prepare import SPLITS, split_rows
from luban.errors import ArtefactError, DataError, LubanError
from luban.evaluation.run import evaluate as score
from luban.predict import of_artefact
from luban.verbs.rows import chunks_of, is_literal, open_data

__all__ = ["evaluate"]


def evaluate(
    artefact: str | Path,
    data: str,
    *,
    split: str | None = None,
    by: Sequence[str] = (),
    device: str = "cpu",
    weights: str = "stored",
    resamples: int = 1000,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure an artefact.

    Args:
        artefact: the artefact's directory.
        data: rows with inputs and targets, as `luban predict` takes them.
        split: ``train``, ``validation`` or ``test``: only the rows that were in this split when the artefact was trained, told
            by what they contain.
        by: columns whose values each get figures of their own; the recipe's groups by default.
        device: ``cpu`` or ``cuda``.
        weights: ``stored``, or ``int8`` for a causal language model.
        resamples: bootstrap resamples behind the 95 % intervals.
        console: who is told what should be known.

    Returns:
        ``metrics`` (``target.metric`` → value, low, high), ``rows``, ``skipped`` (rows that could not be scored, by reason),
        ``cleaned`` (values changed before, by what was done), ``details``, ``slices``, ``warnings``.

    Raises:
        LubanError: in one sentence.
    """
    console = console or Console()
    loaded = Artefact.load(artefact)
    predictor = of_artefact(loaded, device=device, weights=weights)
    chunks = chunks_of(data, list(predictor.pipeline.inputs))
    warnings: list[str] = []
    if split is not None:
        if split not in SPLITS:
            raise DataError(f"received split '{split}', but splits are {', '.join(SPLITS)}")
        chunks = _of_split(loaded, chunks, split)
    elif _trained_on(loaded, data):
        share = loaded.lineage["rows"]["train"] / max(1, sum(loaded.lineage["rows"].values()))
        warnings.append(
            f"the artefact was trained on {share:.0%} of this very file, so these figures flatter it; add --split test"
        )
    for warning in warnings:
        console.say(f"careful: {warning}")
    first = next(chunks, None)
    if first is None:
        raise DataError("there is no row to measure on" + (f" in split '{split}'" if split else ""))
    groups = [
        name for name in predictor.pipeline.groups if name in first.columns
    ]  # unasked, so only where they are
    result = score(predictor, chain([first], chunks), by=by or groups, resamples=resamples)
    for what, n in result.cleaned.items():
        console.say(f"changed before scoring: {what}: {n:,}")
    return {"artefact": str(artefact), **result.to_json(), "split": split, "warnings": warnings}


def _of_split(artefact: Artefact, chunks: Iterator[pl.DataFrame], split: str) -> Iterator[pl.DataFrame]:
    if "split" not in artefact.lineage:
        raise ArtefactError(
            f"'{artefact.path}' does not say how its rows were split, so its {split} rows are not known; leave --split out"
        )
    for chunk in chunks:
        # Rows were keyed after the steps that need no fitting; the same steps give the same keys.
        steps = [step for step in artefact.pipeline.cleaners if not is_fitted_step(step)]
        cleaned = artefact.pipeline.clean(chunk, predicting=True, steps=steps)
        codes = split_rows(artefact.lineage["split"], cleaned, artefact.pipeline)
        part = chunk.filter(pl.Series(codes == SPLITS[split]))
        if len(part):
            yield part


def _trained_on(artefact: Artefact, data: str) -> bool:
    if data == "-" or is_literal(data):
        return False
    try:
        return bool(open_data(data).fingerprint() == artefact.lineage.get("data", {}).get("train"))
    except LubanError:  # whatever is wrong with the data is said when it is read
        return False
