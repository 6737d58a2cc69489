"""The verb `evaluate`: an artefact on rows whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from luban.artefact import Artefact
from luban.console import Console
from luban.errors import DataError, LubanError
from luban.evaluation.run import evaluate as score
from luban.origin import of_split, require_split, with_options_of
from luban.predict import of_artefact
from luban.verbs.rows import chunks_of, is_literal, open_data

__all__ = ["evaluate", "trained_on"]


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
        require_split(loaded.lineage, split, loaded.path)
        chunks = of_split(predictor.pipeline, loaded.lineage, chunks, split)
    elif trained_on(loaded, data):
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


def trained_on(artefact: Artefact, data: str) -> bool:
    """Whether rows are the very data that an artefact was trained on, by their hash.

    A hash is of contents and of the options that read them, so the artefact's own options are tried, too.
    """
    if data == "-" or is_literal(data):
        return False
    known = artefact.lineage.get("data", {}).get("train")
    try:
        source = open_data(data)
        if known is None or source.fingerprint() == known:
            return known is not None
        again = with_options_of(artefact.recipe, source)
        return again is not None and again.fingerprint() == known
    except (LubanError, OSError):  # whatever is wrong with the data is said when it is read
        return False
