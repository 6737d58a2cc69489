"""The verb `compare`: two artefacts side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from luban.artefact import Artefact
from luban.console import Console
from luban.data.contracts import Array
from luban.errors import ArtefactError, DataError
from luban.evaluation.metrics import Task, compare_paired
from luban.evaluation.run import threshold_of
from luban.predict import Predictor, of_artefact
from luban.reporting._comparing import page_of_two
from luban.reporting._words import Words
from luban.reporting.baselines import weights_of
from luban.reporting.gather import Options, gather
from luban.verbs.evaluate import trained_on
from luban.verbs.report import is_private, require_page, write
from luban.verbs.rows import chunks_of

__all__ = ["compare"]

_TIMED_ROWS = 256


def compare(
    a: str | Path,
    b: str | Path,
    data: str | None = None,
    *,
    output: str | Path | None = None,
    lang: str = "en",
    format: str | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Put two artefacts side by side: size, speed on the same rows, and quality.

    With `data`, both score the same rows and the differences get a paired bootstrap interval (and, for classes, McNemar's
    test): far sharper than two separate intervals. Without it, what each artefact recorded is shown, and said to be of
    different rows where it is.

    Args:
        a, b: artefacts.
        data: rows with inputs and targets of both.
        output: a file for the page of both (``.html``, ``.md`` or ``.json``).
        lang: ``en`` or ``zh``; of the page.
        format: ``html``, ``md`` or ``json``; by default as the ending of `output` says.
        device: ``cpu`` or ``cuda``.
        console: who is told what is being done.

    Returns:
        ``a`` and ``b`` (parameters, size, speed, metrics), ``warnings`` and, with data, ``differences`` (b minus a) and ``weighted``:
        whether these are, as the recipes' ``data.weight`` says; McNemar's test counts rows, each once.

    Raises:
        ArtefactError: if the two predict different things.
    """
    written = require_page(output, format)
    words = Words(lang)
    artefacts = [Artefact.load(a), Artefact.load(b)]
    predictors = [of_artefact(one, device=device) for one in artefacts]
    targets = [{name: (p.type, p.classes()) for name, p in one.pipeline.scored.items()} for one in artefacts]
    shared = [name for name in targets[0] if name in targets[1] and targets[0][name] == targets[1][name]]
    if not shared and all(one.pipeline.written for one in artefacts):
        raise ArtefactError(
            f"'{a}' and '{b}' write texts, which are not compared row by row: look at 'luban evaluate' of each"
        )
    if not shared and not any(targets):
        raise ArtefactError(
            f"neither '{a}' nor '{b}' predicts a column, by which they could be compared row by row: look at 'luban evaluate' of each"
        )
    if not shared:
        raise ArtefactError(
            f"'{a}' predicts {', '.join(targets[0]) or 'no column'} and '{b}' predicts {', '.join(targets[1]) or 'no column'}: they have no target with the same classes in common, so there is nothing to compare"
        )
    sides = []
    for path, artefact, predictor in zip((a, b), artefacts, predictors, strict=True):
        sides.append(
            {
                "artefact": str(path),
                "model": artefact.model.type,
                "parameters": sum(p.numel() for p in predictor.model.parameters()),
                "megabytes": round(
                    sum(f.stat().st_size for f in artefact.path.iterdir() if f.is_file()) / 2**20, 3
                ),
                "train_seconds": artefact.lineage.get("cost", {}).get("seconds"),
                "metrics": artefact.metrics.get("metrics", {}),
                "measured_on": artefact.metrics.get("data"),
            }
        )
    warnings: list[str] = []
    result: dict[str, Any] = {"a": sides[0], "b": sides[1], "targets": shared, "warnings": warnings}
    if data is None:
        result["same_rows"] = (
            sides[0]["measured_on"] is not None and sides[0]["measured_on"] == sides[1]["measured_on"]
        )
        _write(result, artefacts, predictors, None, output, written, words.language, console)
        return result
    for path, artefact in {str(path): one for path, one in zip((a, b), artefacts, strict=True)}.items():
        if trained_on(artefact, data):
            warnings.append(
                f"'{path}' was trained on rows of this very file, so its figures are flattered; compare on rows that neither has seen"
            )
    weigh = [one.pipeline.weight for one in artefacts]
    if weigh[0] != weigh[1]:
        # Beside each other stand figures weighted as each artefact says; a difference needs one weight for a row.
        warnings.append(
            f"'{a}' weighs rows by {_column(weigh[0])} and '{b}' by {_column(weigh[1])}, so the paired differences are unweighted"
        )
    for warning in warnings:
        (console or Console()).say(f"careful: {warning}")
    columns = list(dict.fromkeys(c for one in artefacts for c in one.pipeline.inputs))
    chunks = chunks_of(data, columns)
    first = next(chunks, None)
    if first is None:
        raise DataError("there is no row to compare on")
    truth, scores, weights, rows = _both(predictors, chain([first], chunks), shared, weigh[0] == weigh[1])
    result["rows"], result["weighted"] = rows, weights is not None
    result["differences"] = {}
    for name in shared:
        processor = predictors[0].pipeline.targets[name]
        compared = compare_paired(
            cast(Task, processor.task),
            truth[name],
            scores[0][name],
            scores[1][name],
            weights,
            classes=processor.classes() or None,
            threshold=(
                threshold_of(processor),
                threshold_of(predictors[1].pipeline.targets[name]),
            ),
        )
        result["differences"][name] = asdict(compared)
    for side, speed in zip(sides, _speeds(predictors, first), strict=True):
        side["rows_per_second"] = round(speed, 1)
    _write(result, artefacts, predictors, data, output, written, words.language, console)
    return result


def _write(
    result: dict[str, Any],
    artefacts: list[Artefact],
    predictors: list[Predictor],
    data: str | None,
    output: str | Path | None,
    format: str,
    lang: str,
    console: Console | None,
) -> None:
    """Write the page of both, if there is a place for it."""
    if output is None:
        return
    options = Options(examples=0, baselines=False, private=any(is_private(one) for one in artefacts))
    reports = []
    for artefact, predictor in zip(artefacts, predictors, strict=True):
        chunks = None if data is None else chunks_of(data, list(predictor.pipeline.inputs))
        reports.append(
            gather(artefact, predictor, chunks=chunks, data=data or "", options=options, console=console)
        )
    content = {"compared": result, "a": reports[0], "b": reports[1]}
    write(content, Path(output), format, lambda: page_of_two(reports[0], reports[1], result, lang))


def _both(
    predictors: list[Predictor], chunks: Iterator[pl.DataFrame], targets: list[str], weighted: bool
) -> tuple[dict[str, Array], list[dict[str, Array]], Array | None, int]:
    """Score the same rows with both, and weigh them; rows that either cannot read are left out."""
    truth: dict[str, list[Array]] = {name: [] for name in targets}
    scores: list[dict[str, list[Array]]] = [{name: [] for name in targets} for _ in predictors]
    weights: list[Array] = []
    rows = 0
    for chunk in chunks:
        pipeline = predictors[0].pipeline
        for name in targets:
            if name not in chunk.columns:
                raise DataError(
                    f"there is no column '{name}', the target to compare by; columns are {', '.join(chunk.columns)}"
                )
        good = np.ones(len(chunk), dtype=bool)
        for name in targets:
            good &= pipeline.targets[name].known(chunk[name]).to_numpy()
        for predictor in predictors:
            predictor.pipeline.require(chunk.columns, targets=False)
            cleaned = predictor.pipeline.clean(chunk, predicting=True)
            good &= predictor.pipeline.readable(cleaned, targets=False)
        own_weights = weights_of(pipeline, cleaned) if weighted else None
        if own_weights is not None:
            weights.append(own_weights[good])
        part = chunk.filter(pl.Series(good))
        rows += len(part)
        for start in range(0, len(part), 256):
            piece = part.slice(start, 256)
            for predictor, own in zip(predictors, scores, strict=True):
                outputs, _ = predictor.outputs(piece)
                for name in targets:
                    processor = predictor.pipeline.targets[name]
                    own[name].append(processor.scores(outputs[f"{name}.{processor.output}"]))
            for name in targets:
                (encoded,) = pipeline.targets[name].encode_target(piece[name]).values()
                truth[name].append(pipeline.targets[name].truth(encoded))
    if not rows:
        raise DataError("no row can be scored by both artefacts")
    joined = [{name: np.concatenate(parts) for name, parts in own.items()} for own in scores]
    whole = np.concatenate(weights) if weights else None
    if whole is not None and not whole.any():
        raise DataError("the rows that both can score weigh nothing; give rows whose weight is above 0")
    return {name: np.concatenate(parts) for name, parts in truth.items()}, joined, whole, rows


def _column(name: str | None) -> str:
    return "no column" if name is None else f"'{name}'"


def _speeds(predictors: list[Predictor], rows: pl.DataFrame) -> list[float]:
    """Rows a second, measured in turns so that both meet the same machine."""
    part = rows.head(_TIMED_ROWS)
    times: list[list[float]] = [[] for _ in predictors]
    for _ in range(5):
        for predictor, own in zip(predictors, times, strict=True):
            started = time.perf_counter()
            predictor.predict(part)
            own.append(time.perf_counter() - started)
    return [len(part) / sorted(own)[len(own) // 2] for own in times]
