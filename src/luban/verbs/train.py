"""The verb `train`: recipe → artefact."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import polars as pl

from luban import artefact, files
from luban import recipe as recipes
from luban._version import __version__
from luban.artefact import Artefact
from luban.console import Console
from luban.data.prepare import Prepared
from luban.errors import ArtefactError, DataError
from luban.evaluation.run import TrainingScorer, evaluate
from luban.predict import Predictor, load
from luban.recipe import Recipe
from luban.training import machine
from luban.training.callbacks._base import Callback
from luban.training.checkpoint import Checkpoints
from luban.training.engine import Engine, Outcome
from luban.training.log import Log
from luban.training.plan import Plan, make_plan
from luban.verbs import card

__all__ = ["train"]

_SAMPLE_ROWS = 32
_RUN = "run.json"  # in train/: what the run is, so that a restart knows its own


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    resume: bool = True,
    force: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train what a recipe describes and write the artefact.

    A run that was interrupted goes on where its last checkpoint was, if recipe and data are the same. Nothing that is
    finished is overwritten: without `output` a number is added to the name.

    Args:
        recipe: a YAML file, a mapping, or a recipe.
        overrides: ``key=value`` with dotted keys.
        output: the artefact's directory; ``runs/<name of the recipe>`` by default.
        resume: whether to go on with an interrupted run.
        force: replace a finished artefact at `output`.
        console: who is told what happens; nobody by default.

    Returns:
        ``artefact`` (path), ``metrics`` (``target.metric`` → value, low, high), ``rows`` (by split), ``seconds``,
        ``peak_memory_mb``, ``steps``, ``stopped``, ``measured_on``.

    Raises:
        LubanError: in one sentence.

    Example:
        >>> luban.train("reviews.yaml", ["train.epochs=1"])["artefact"]      # doctest: +SKIP
        'runs/reviews'
    """
    console = console or Console()
    resolved, document = recipes.read(recipe, list(overrides))
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "model"
    place = Path(output) if output is not None else None
    split = resolved.data.split
    with recipes.located(document):
        if split is not None and split.type == "folds" and getattr(split, "fold", None) is None:
            folder = place or Path("runs") / name
            return _cross_validate(resolved, folder, resume=resume, force=force, console=console)
        return _train(resolved, name, place, resume, force, console)


def _train(
    resolved: Recipe,
    name: str,
    output: Path | None,
    resume: bool,
    force: bool,
    console: Console,
    *,
    fold: bool = False,
) -> dict[str, Any]:
    """Train once; a finished fold of the very same run is taken as it is."""
    started = time.perf_counter()
    if output is not None and not force and not fold and (output / "config.json").exists():
        raise _finished(output)  # before the data is prepared
    plan = make_plan(resolved, console.stage)
    _tell(plan, console)
    identity = _identity(plan)
    if fold and resume and output is not None and _identity_of(output / "lineage.json") == identity:
        done = Artefact.load(output)
        console.say(f"'{output}' is finished")
        return _result(output, done.metrics, done.lineage)
    target = _place(output, name, identity, resume=resume, force=force, console=console)
    work = target / "train"
    with files.writing(f"'{target}'"):
        work.mkdir(parents=True, exist_ok=True)
        artefact.write_json(work / _RUN, {"identity": identity, "recipe": plan.recipe.model_dump()})
    outcome = _fit(plan, work, console)
    return _finish(plan, outcome, target, identity, time.perf_counter() - started, console)


def _fit(plan: Plan, work: Path, console: Console) -> Outcome:
    options = plan.recipe.train
    watching: list[Callback] = [cast(Callback, one) for one in options.callbacks] + [Log()]
    bar = console.bar()
    if bar is not None:
        watching.append(bar)
    engine = Engine(
        plan.step,
        plan.loader,
        plan.validation,
        plan.schedule,
        total_steps=plan.total_steps,
        accumulate=plan.accumulate,
        evaluate_every=options.evaluate_every,
        metric=plan.metric,
        keep=options.keep,
        scorer=lambda: TrainingScorer(plan.prepared.pipeline),
        checkpoints=Checkpoints(work, console.say),
        checkpoint_seconds=options.checkpoint_every,
        checkpoint_steps=options.checkpoint_steps,
        callbacks=watching,
        peak=plan.choice.peak(),
        flops=plan.flops,
    )
    with machine.threads(cast(int, options.threads)):
        return engine.fit(work, plan.recipe.model_dump())


def _tell(plan: Plan, console: Console) -> None:
    report, rows = plan.prepared.report, plan.prepared.rows
    for source, notes in report["notes"].items():
        for note in notes:
            console.say(f"{source}: {note}")
    console.say(
        f"rows: {rows['train']:,} to train, {rows['validation']:,} to choose by, {rows['test']:,} to report on"
    )
    for what, n in report["counts"].items():
        console.say(f"  {what}: {n:,}")
    for sentence in plan.derived:
        console.say(sentence)
    parameters = sum(p.numel() for p in plan.model.parameters())
    trainable = sum(p.numel() for p in plan.model.parameters() if p.requires_grad)
    frozen = f", {trainable:,} of them trained" if trainable != parameters else ""
    console.say(
        f"model: {plan.recipe.model.type}, {parameters:,} parameters{frozen}; {plan.total_steps:,} updates"
    )


# --- where to ---------------------------------------------------------------------------------------------


def _identity(plan: Plan) -> str:
    """Hash what a run's result depends on: the recipe as resolved, and the data."""
    text = json.dumps(
        [__version__, plan.recipe.model_dump(), plan.prepared.fingerprints],
        sort_keys=True,
        ensure_ascii=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(target: Path) -> ArtefactError:
    return ArtefactError(
        f"'{target}' holds a finished artefact; name another place with -o, or replace it with --force"
    )


def _identity_of(path: Path) -> str | None:
    """Return the identity of the run that a run.json or lineage.json tells of."""
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, str) else None


def _only_ours(work: Path) -> bool:
    """Whether a folder holds nothing but what a run writes before it says what it is."""
    return work.is_dir() and all(
        path.name.endswith(".partial") or path.name == _RUN for path in work.iterdir()
    )


def _place(
    output: Path | None, name: str, identity: str, *, resume: bool, force: bool, console: Console
) -> Path:
    """Return the directory of the run: a new one, or that of the interrupted run it continues."""
    if output is None:
        base = Path("runs") / name
        candidates = [base, *(base.with_name(f"{name}-{i}") for i in range(2, 10_000))]
    else:
        candidates = [output]
    for target in candidates:
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return target
        if not target.is_dir():
            raise ArtefactError(f"'{target}' is a file; name another place with -o")
        work = target / "train"
        known = _identity_of(work / _RUN)
        if (target / "config.json").exists():
            if output is None:
                continue
            if not force or not artefact.is_artefact(target):
                raise _finished(target)
            if known != identity or not resume or _identity_of(target / "lineage.json") == identity:
                shutil.rmtree(
                    work, ignore_errors=True
                )  # the artefact itself stays until its successor is finished
            console.say(f"'{target}' will be replaced once training has ended well")
            return target
        # A folder is ours if a run says so; one that merely has a 'train' in it may be a team's pictures.
        if known is None and not all(path == work and _only_ours(work) for path in target.iterdir()):
            if output is None:
                continue
            raise ArtefactError(
                f"'{target}' holds other files, which are left alone; name another place with -o"
            )
        if known == identity and resume:
            return target
        if known in (identity, None) or force:
            shutil.rmtree(work, ignore_errors=True)
            return target
        if output is not None:
            raise ArtefactError(
                f"'{target}' holds an interrupted run of another recipe or other data; go on with that recipe, name another place with -o, or start anew with --force"
            )
        console.say(f"'{target}' holds an interrupted run of another recipe or other data; it is left alone")
    raise ArtefactError(f"'runs/{name}' and its numbered followers are all taken; name a place with -o")


# --- the artefact -----------------------------------------------------------------------------------------


def _finish(
    plan: Plan, outcome: Outcome, target: Path, identity: str, seconds: float, console: Console
) -> dict[str, Any]:
    """Measure the chosen weights, freeze a sample, and write everything at once."""
    prepared = plan.prepared
    started = time.perf_counter()
    # A fresh model takes the weights: what is measured is what will be loaded, not what training left behind.
    plan.model.load_state_dict(outcome.weights)
    finished = target / "train" / "artefact"
    with files.new_folder(finished, replace=True) as folder:
        weights_hash = artefact.write(
            folder,
            version=__version__,
            model=plan.recipe.model,
            adapt=plan.recipe.adapt,
            spec=_seen(plan),
            pipeline=prepared.pipeline,
            weights=outcome.weights,
            recipe=recipes.dump(plan.recipe),
        )
        for name in ("metrics.json", "lineage.json"):
            artefact.write_json(folder / name, {})
        (folder / "sample.jsonl").write_text("", encoding="utf-8")
        predictor = load(folder, device=plan.choice.device.type, verify=False)
        own_split = plan.recipe.data.split
        folds = own_split is not None and own_split.type == "folds"  # a fold is measured on what it held out
        order = ("validation", "test") if folds else ("test", "validation")
        split = next((s for s in order if prepared.rows[s]), None)
        metrics: dict[str, Any] = {}
        if split is not None:
            console.say(f"measuring on {prepared.rows[split]:,} {split} rows")
            measured = evaluate(predictor, prepared.raw(split), by=prepared.pipeline.groups)
            metrics = {
                "measured_on": split,
                "rows": measured.rows,
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "data": prepared.fingerprints.get(split, prepared.fingerprints["train"]),
                **measured.to_json(),
                "history": outcome.history,
            }
        artefact.write_json(folder / "metrics.json", metrics)
        sample = _sample(predictor, prepared, plan.recipe)
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in sample)
        (folder / "sample.jsonl").write_text(lines, encoding="utf-8")
        seconds += time.perf_counter() - started
        lineage = {
            "verb": "train",
            "identity": identity,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "parents": [],
            "data": prepared.fingerprints,
            "rows": prepared.rows,
            "prepared": prepared.report,
            "split": prepared.split_state,
            "seed": plan.recipe.train.seed,
            "weights": weights_hash,
            "versions": _versions(),
            "hardware": {
                "device": machine.describe(plan.choice.device),
                "precision": plan.choice.precision,
                "threads": plan.recipe.train.threads,
            },
            "cost": {"seconds": round(seconds, 2), "peak_memory_mb": round(machine.peak_memory_mb(), 1)},
            "progress": asdict(outcome.progress),
        }
        artefact.write_json(folder / "lineage.json", lineage)
        card.write(
            folder,
            metrics=metrics,
            lineage=lineage,
            recipe=plan.recipe,
            parameters=sum(p.numel() for p in plan.model.parameters()),
        )
        load(folder, device=plan.choice.device.type)  # the parity contract, before anybody relies on it
    _merge(finished, target)
    return _result(target, metrics, lineage)


def _result(target: Path, metrics: Mapping[str, Any], lineage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "artefact": str(target),
        "metrics": metrics.get("metrics", {}),
        "measured_on": metrics.get("measured_on"),
        "rows": lineage["rows"],
        "steps": lineage["progress"]["step"],
        "stopped": lineage["progress"]["stopped"],
        "seconds": lineage["cost"]["seconds"],
        "peak_memory_mb": lineage["cost"]["peak_memory_mb"],
        "card": str(target / "README.md"),
    }


def _seen(plan: Plan) -> Any:
    return type(plan.prepared.spec)(
        {n: f for n, f in plan.prepared.spec.fields.items() if f.role in ("input", "target")}
    )


def _merge(folder: Path, target: Path) -> None:
    """Move the finished parts beside the checkpoints; config.json, which makes it an artefact, comes last."""
    with files.writing(f"'{target}'"):
        names = sorted(path.name for path in folder.iterdir())
        # A predecessor that is being replaced stops being an artefact first: half of each is neither.
        (target / "config.json").unlink(missing_ok=True)
        for name in [n for n in names if n != "config.json"] + ["config.json"]:
            os.replace(folder / name, target / name)
        files.sync(target)
        folder.rmdir()


def _sample(predictor: Predictor, prepared: Prepared, recipe: Recipe) -> list[dict[str, Any]]:
    """Freeze rows and predictions: of the validation (else test) rows, or made from the columns' specification."""
    pipeline = predictor.pipeline
    split = next((s for s in ("validation", "test") if prepared.rows[s]), None)
    if recipe.sample == "synthetic" or split is None:
        rows = synthetic_rows(prepared, _SAMPLE_ROWS)
    else:
        first: list[pl.DataFrame] = []
        for chunk in prepared.raw(split):
            first.append(chunk.head(_SAMPLE_ROWS - sum(map(len, first))))
            if sum(map(len, first)) >= _SAMPLE_ROWS:
                break
        frame = pl.concat(first)
        columns = {name: processor.portable(frame[name]) for name, processor in pipeline.given.items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [
        {"row": row, "prediction": prediction}
        for row, prediction in zip(rows, predictor.predict(rows), strict=True)
    ]


def synthetic_rows(prepared: Prepared, n: int) -> list[dict[str, Any]]:
    """Make rows of the columns' specification, from no person's data, (n rows)."""
    import numpy as np

    generator = np.random.default_rng(0)
    columns = {name: processor.example(generator, n) for name, processor in prepared.pipeline.given.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "polars", "tokenizers", "safetensors", "scikit-learn")
    return {
        "luban": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


# --- cross-validation -------------------------------------------------------------------------------------


def _cross_validate(
    resolved: Recipe, output: Path, *, resume: bool, force: bool, console: Console
) -> dict[str, Any]:
    """Train once for each fold and report mean and deviation over the folds."""
    import statistics

    assert resolved.data.split is not None
    results = []
    for fold in range(resolved.data.split.folds):  # type: ignore[attr-defined]
        console.say(f"fold {fold + 1} of {resolved.data.split.folds}")  # type: ignore[attr-defined]
        one = resolved.model_copy(deep=True)
        assert one.data.split is not None
        one.data.split.fold = fold  # type: ignore[attr-defined]
        place = output / f"fold-{fold}"
        results.append(_train(one, place.name, place, resume, force, console, fold=True))
    names = results[0]["metrics"]
    metrics: dict[str, Any] = {}
    for name in names:
        values = [
            r["metrics"][name]["value"]
            for r in results
            if name in r["metrics"] and r["metrics"][name]["value"] is not None
        ]
        if values:
            mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
            metrics[name] = {"value": mean, "low": min(values), "high": max(values), "std": spread}
    if not metrics:
        raise DataError("no fold has rows to measure on; set data.split.folds to fewer, or bring more rows")
    summary = {
        "artefact": str(output),
        "folds": [r["artefact"] for r in results],
        "metrics": metrics,
        "measured_on": "each fold in turn; low and high are the lowest and the highest fold",
        "rows": results[0]["rows"],
        "seconds": round(sum(r["seconds"] for r in results), 2),
        "peak_memory_mb": round(machine.peak_memory_mb(), 1),
    }
    artefact.write_json(output / "cross-validation.json", summary)
    return summary
