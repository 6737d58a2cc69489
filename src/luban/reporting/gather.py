"""Everything a report says, as plain data: measured, recorded, or absent with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any, cast

import numpy as np
import polars as pl

from luban._version import __version__
from luban.artefact import Artefact
from luban.console import Console
from luban.data.contracts import Array
from luban.data.pipeline import Pipeline
from luban.data.sampling import Reservoir, Sample
from luban.errors import DataError, InputError
from luban.evaluation.metrics import Task
from luban.evaluation.run import evaluate, threshold_of
from luban.origin import Origin, Unknown
from luban.predict import Predictor
from luban.recipe import read_yaml
from luban.registry import lookup, names
from luban.reporting import _examples
from luban.reporting._absent import Absent
from luban.reporting._columns import summary
from luban.reporting._explaining import explain
from luban.reporting.baselines import baselines_of, xz
from luban.sentences import say

__all__ = ["LIMIT", "Options", "gather"]

LIMIT = 5_000
"""Rows that predictions, baselines and examples are made of, at most; of training rows four times as many."""
_POINTS = 300  # of a curve, and rows of a scatter
_SEED = 0
_BACKGROUND = 200  # training rows that a row is compared with
_ROOM = (
    2**29
)  # bytes of the training rows, and of those that are shown: fewer are drawn where cells hold pictures or long texts


@dataclass(frozen=True)
class Options:
    """What is asked of a report.

    Attributes:
        limit: rows sampled for baselines and examples.
        examples: rows shown of each kind; 0 for none.
        baselines: whether to train them.
        private: whether rows of the data must not be shown.
        resamples: of the bootstrap, where rows are measured.
    """

    limit: int = LIMIT
    examples: int = 6
    baselines: bool = True
    private: bool = False
    resamples: int = 1000


def gather(
    artefact: Artefact,
    predictor: Predictor,
    *,
    chunks: Iterable[pl.DataFrame] | None = None,
    data: str = "",
    warnings: list[str] | None = None,
    audits: list[dict[str, Any]] | None = None,
    options: Options | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Collect a report.

    Args:
        artefact: what the report is about.
        predictor: the same, loaded.
        chunks: rows to measure on; by default what was measured when it was trained counts, and its rows are read again for the
            examples and the baselines.
        data: what to call these rows.
        warnings: what should be known about them.
        audits: what `luban audit` returned.
        options: what is asked.
        console: who is told what is being done.

    Returns:
        Plain data; a part that is missing is ``{"absent": why, "values": {...}}``.
    """
    options, console = options or Options(), console or Console()
    own = Origin.find(artefact.recipe, artefact.lineage, predictor.pipeline)
    pipeline = predictor.pipeline
    if chunks is not None:
        reservoir = Reservoir(options.limit, lambda n: console.stage(say("measuring"), n), room=_ROOM)
        waiting = iter(chunks)
        first = next(waiting, None)
        if first is None:
            raise DataError("there is no row to measure on")
        by = [name for name in pipeline.groups if name in first.columns]
        stream = reservoir.through(chain([first], waiting))
        result = evaluate(predictor, stream, by=by, resamples=options.resamples)
        measured: dict[str, Any] = {"on": "data", "name": data, **result.to_json()}
        rows: Sample | Absent = reservoir.sample()
    else:
        recorded = artefact.metrics
        measured = (
            {"on": recorded.get("measured_on"), "name": "", **recorded} if recorded.get("metrics") else {}
        )
        measured.pop("history", None)
        if isinstance(own, Unknown):
            rows = Absent.of(own)
        elif not measured:
            rows = Absent("nothing_measured")
        else:
            rows = Sample.draw(
                own.split(measured["on"]),
                options.limit,
                lambda n: console.stage(say("reading rows"), n),
                room=_ROOM,
            )
    train: Sample | Absent
    if isinstance(own, Unknown):
        train = Absent.of(own)
    else:
        train = Sample.draw(
            own.split("train"),
            4 * options.limit,
            lambda n: console.stage(say("reading training rows"), n),
            room=_ROOM,
        )
    console.end_stage()
    return {
        "version": 1,
        "luban": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "artefact": artefact.path.resolve().name,
        "model": _model(artefact, predictor),
        "measured": measured,
        "warnings": warnings or [],
        "history": artefact.metrics.get("history") or [],
        "training": _log(artefact),
        "columns": _columns(predictor, train, rows, options),
        **_looked_at(predictor, artefact, own, train, rows, options, console),
        "audits": [_by_family(one, private=options.private) for one in audits or []],
        "gates": _gates(artefact, audits or []),
        "kept": _kept(artefact),
        "lineage": {k: v for k, v in artefact.lineage.items() if k != "split"},
        "recipe": artefact.recipe,
        "limit": options.limit,
        "private": options.private,
    }


def _gates(artefact: Artefact, audits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the gates judged at the end of training, then those of the audits that came out otherwise or are new."""
    gates: list[dict[str, Any]] = []
    for judged in (artefact.metrics, *audits):
        for gate in judged.get("gates") or []:
            if gate not in gates:
                gates.append(gate)
    return gates


def _kept(artefact: Artefact) -> dict[str, Any]:
    """Return which weights were kept, ``best`` or ``last``, and whether training could end early; None where no recipe says so."""
    try:
        data = read_yaml(artefact.recipe, "recipe.yaml").data
    except InputError:
        data = None
    train = data.get("train") if isinstance(data, dict) else None
    if not isinstance(train, dict):
        return {"weights": None, "early": False}
    callbacks = [one.get("type") if isinstance(one, dict) else one for one in train.get("callbacks") or []]
    return {"weights": train.get("keep"), "early": "early_stopping" in callbacks}


def _by_family(audit: dict[str, Any], *, private: bool) -> dict[str, Any]:
    """Return an audit whose results say their family, and whose audits left out lie by family; one of a plug-in that is not here
    belongs to the data. Tables may quote rows, so a private report has none."""

    def family(name: str) -> str:
        return str(lookup("audits", name).family) if name in names("audits") else "data"

    hidden: dict[str, Any] = {"tables": {}} if private else {}
    results = {name: {**one, "family": family(name), **hidden} for name, one in audit["audits"].items()}
    left: dict[str, dict[str, str]] = {}
    for name, why in (audit.get("left_out") or audit.get("left") or {}).items():
        left.setdefault(family(name), {})[name] = why
    return {**audit, "audits": results, "left_out": left}


def _model(artefact: Artefact, predictor: Predictor) -> dict[str, Any]:
    pipeline = predictor.pipeline
    weights = artefact.path / "model.safetensors"
    targets = {
        name: {
            "kind": p.type,
            "task": p.task or "text",
            "classes": p.classes()[:1000],
            "threshold": threshold_of(p) if p.task else None,
        }
        for name, p in pipeline.targets.items()
    }
    speaker = predictor.speaker
    return {
        "type": artefact.model.type,
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "megabytes": round(weights.stat().st_size / 2**20, 3) if weights.is_file() else None,
        "inputs": {name: p.type for name, p in pipeline.given.items()},
        "targets": targets,
        "groups": pipeline.groups,
        "adapt": [step.type for step in artefact.adapt],
        "language": None if speaker is None else "causal" if speaker.causal else "masked",
        "text": None if speaker is None else speaker.column,
        "imported": artefact.lineage.get("verb") == "import",
    }


def _log(artefact: Artefact) -> list[list[float]]:
    """Return update and loss of the reports of training, some hundred at most; none if the log was deleted."""
    points: list[list[float]] = []
    try:
        with (artefact.path / "train" / "log.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                if entry.get("kind") == "train" and isinstance(entry.get("loss"), float | int):
                    points.append([entry["step"], entry["loss"]])
    except (OSError, ValueError):
        return []
    return points[:: max(1, len(points) // _POINTS)]


def _columns(
    predictor: Predictor, train: Sample | Absent, rows: Sample | Absent, options: Options
) -> dict[str, Any]:
    some, of = (train, "train") if isinstance(train, Sample) and train.total else (rows, "measured")
    if isinstance(some, Absent):
        return some.to_json()
    pipeline = predictor.pipeline
    roles = [("input", pipeline.given), ("target", pipeline.targets)]
    found = [
        summary(some.rows, name, processor, role, values=not options.private)
        for role, processors in roles
        for name, processor in processors.items()
        if name in some.rows.columns
    ]
    return {"of": of, "rows": len(some.rows), "all": some.total, "columns": found}


# --- what needs rows --------------------------------------------------------------------------------------


def _looked_at(
    predictor: Predictor,
    artefact: Artefact,
    own: Origin | Unknown,
    train: Sample | Absent,
    rows: Sample | Absent,
    options: Options,
    console: Console,
) -> dict[str, Any]:
    """Return baselines, examples, scatters and what a language model writes."""
    pipeline = predictor.pipeline
    written = {name: Absent("written").to_json() for name in pipeline.written}
    empty: dict[str, Any] = {"baselines": written, "examples": {}, "scatter": {}, "speech": []}
    if predictor.speaker is not None and not pipeline.targets:
        return empty | _of_language(predictor, artefact, train, rows, options, console)
    if isinstance(rows, Absent):
        reason = rows.to_json()
        return empty | _without(pipeline, written, reason)
    given, cleaned = _usable(predictor, rows.rows)
    if not len(given):
        reason = Absent("no_rows").to_json()
        return empty | _without(pipeline, written, reason)
    console.say(say("predicting {n:,} rows", n=len(given)))
    scores = _scores(predictor, cleaned)
    learnt = _learnt(predictor, train)
    background = learnt.take(_BACKGROUND).rows if isinstance(learnt, Sample) and len(learnt.rows) else None

    def why(predictor: Predictor, part: pl.DataFrame, target: str) -> list[dict[str, Any] | None] | Absent:
        return explain(predictor, part, target, background)

    result = dict(empty)
    validation = _deciding(predictor, own, options, console)
    for target, processor in pipeline.scored.items():
        task = cast(Task, processor.task)
        (encoded,) = processor.encode_target(cleaned[target]).values()
        truth = processor.truth(encoded)
        result["baselines"][target] = _baselines(
            predictor, target, learnt, cleaned, scores[target], validation, options, console
        )
        if options.private:
            result["examples"][target] = Absent("private").to_json()
        elif options.examples:
            chosen = _examples.choose(task, truth, scores[target], threshold_of(processor), options.examples)
            console.say(say("explaining rows of '{target}'", target=target))
            result["examples"][target] = _examples.examples(predictor, given, target, chosen, truth, why)
        if task == "regression" and not options.private:
            pairs = np.stack([truth, scores[target]], axis=1)[:_POINTS]
            result["scatter"][target] = pairs.tolist()
    if pipeline.written and not options.private:
        result["speech"] = _written(predictor, given, options.examples)
    return result


def _without(pipeline: Pipeline, written: dict[str, Any], reason: dict[str, Any]) -> dict[str, Any]:
    """Return the baselines and examples of targets where no row can be had."""
    scored = dict.fromkeys(pipeline.scored, reason)
    return {"baselines": {**written, **scored}, "examples": dict(scored)}


def _usable(predictor: Predictor, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows that can be scored: as the user has them, and cleaned."""
    if not len(rows):
        return rows, rows
    pipeline = predictor.pipeline
    cleaned = predictor.clean(rows)
    good = pipeline.readable(cleaned, targets=False)
    for name, processor in pipeline.targets.items():
        good = good & processor.known(cleaned[name]).to_numpy()
    return rows.filter(pl.Series(good)), cleaned.filter(pl.Series(good))


def _learnt(predictor: Predictor, train: Sample | Absent) -> Sample | Absent:
    """Return training rows as the model was shown them: cleaned, and without those that training dropped."""
    if isinstance(train, Absent) or not len(train.rows):
        return train
    pipeline = predictor.pipeline
    steps = [step.model_copy(deep=True) for step in pipeline.cleaners]  # some remember the rows that they saw
    cleaned = pipeline.clean(train.rows, predicting=False, steps=steps)
    kept = cleaned.filter(pl.Series(pipeline.readable(cleaned, targets=True)))
    return replace(Sample.of(kept), total=train.total)


def _deciding(
    predictor: Predictor, own: Origin | Unknown, options: Options, console: Console
) -> pl.DataFrame | None:
    """Return the validation rows that decisions were fitted on, cleaned, a sample where they are many; None where nothing was
    decided that changes what is said, or these rows cannot be had."""
    if not options.baselines or isinstance(own, Unknown) or all(one.untouched for one in predictor.decisions):
        return None
    drawn = Sample.draw(
        own.split("validation"),
        4 * options.limit,
        lambda n: console.stage(say("reading validation rows"), n),
        room=_ROOM,
    )
    console.end_stage()
    return _usable(predictor, drawn.rows)[1]


def _scores(predictor: Predictor, cleaned: pl.DataFrame) -> dict[str, Array]:
    parts: dict[str, list[Array]] = {name: [] for name in predictor.pipeline.scored}
    for start in range(0, len(cleaned), 256):
        outputs, _ = predictor.outputs_of_cleaned(cleaned.slice(start, 256))
        for name, processor in predictor.pipeline.scored.items():
            parts[name].append(processor.scores(outputs[f"{name}.{processor.output}"]))
    return {name: np.concatenate(own) for name, own in parts.items()}


def _baselines(
    predictor: Predictor,
    target: str,
    train: Sample | Absent,
    test: pl.DataFrame,
    scores: Array,
    validation: pl.DataFrame | None,
    options: Options,
    console: Console,
) -> dict[str, Any]:
    if not options.baselines:
        return Absent("not_asked").to_json()
    if isinstance(train, Absent):
        return train.to_json()
    if not len(train.rows):
        return Absent("no_rows").to_json()
    console.say(say("baselines of '{target}' on {n:,} training rows", target=target, n=len(train.rows)))
    found = baselines_of(
        predictor.pipeline,
        target,
        train,
        test,
        scores,
        decisions=predictor.decisions,
        validation=validation,
        seed=_SEED,
    )
    return found.to_json() if isinstance(found, Absent) else found


def _of_language(
    predictor: Predictor,
    artefact: Artefact,
    train: Sample | Absent,
    rows: Sample | Absent,
    options: Options,
    console: Console,
) -> dict[str, Any]:
    speaker = predictor.speaker
    assert speaker is not None
    column = speaker.column
    result: dict[str, Any] = {"baselines": {}, "speech": []}
    if options.private:
        texts = []
    elif isinstance(rows, Sample) and len(rows.rows):
        texts = _texts(rows.rows[column])
    else:
        texts = [str(one["row"].get(column, "")) for one in artefact.sample]
    if options.examples and texts:
        console.say(say("writing samples"))
        result["speech"] = _examples.speech(predictor, texts, min(3, options.examples))
    if not speaker.causal:
        result["baselines"][column] = Absent("masked").to_json()
    elif not options.baselines:
        result["baselines"][column] = Absent("not_asked").to_json()
    elif isinstance(train, Absent) or isinstance(rows, Absent):
        reason = train if isinstance(train, Absent) else rows
        assert isinstance(reason, Absent)
        result["baselines"][column] = reason.to_json()
    elif speaker.text.type == "chat":
        result["baselines"][column] = Absent("chat").to_json()
    else:
        console.say(say("the baseline: xz"))
        learnt = _learnt(predictor, train)
        assert isinstance(learnt, Sample)
        cleaned = predictor.clean(rows.rows) if len(rows.rows) else rows.rows
        measured = (
            [] if not len(cleaned) else _texts(cleaned.filter(~speaker.text.invalid(cleaned[column]))[column])
        )
        read = _texts(learnt.rows[column]) if len(learnt.rows) else []
        result["baselines"][column] = (
            {"xz": xz(read, measured)} if read and measured else Absent("no_rows").to_json()
        )
    return result


def _texts(values: pl.Series) -> list[str]:
    return [text for text in values.cast(pl.String, strict=False).drop_nulls().to_list() if text]


def _written(predictor: Predictor, rows: pl.DataFrame, count: int) -> list[dict[str, Any]]:
    """Return what was written for some rows, beside what stands there."""
    (target,) = predictor.pipeline.written
    part = rows.head(count)
    inputs = list(predictor.pipeline.given)
    return [
        {
            "prompt": " · ".join(str(row[name]) for name in inputs)[:400],
            "written": prediction.get(target, prediction.get("error", "")),
            "truth": str(row[target])[:400],
        }
        for row, prediction in zip(part.to_dicts(), predictor.predict(part), strict=True)
    ]
