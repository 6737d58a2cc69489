"""The verb `train`: recipe → artefact."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Self, cast

import polars as pl
import torch

from luban import artefact, files, machine
from luban import recipe as recipes
from luban._version import __version__
from luban.artefact import Artefact
from luban.console import Console
from luban.data.prepare import Prepared
from luban.data.processors._base import as_words
from luban.errors import ArtefactError, DataError, InputError
from luban.evaluation.run import TrainingScorer, evaluate
from luban.predict import Predictor, load
from luban.recipe import Recipe
from luban.reporting._words import Words
from luban.training.callbacks._base import Callback
from luban.training.checkpoint import Checkpoints
from luban.training.energy import Energy
from luban.training.engine import Engine, Outcome
from luban.training.log import Log
from luban.training.plan import Plan, make_plan
from luban.verbs import card, endings
from luban.verbs.lineage import versions
from luban.verbs.report import report as write_report
from luban.verbs.report import require_page

__all__ = ["train"]

_SAMPLE_ROWS = 32
_RUN = "run.json"  # in train/: what the run is, so that a restart knows its own
# Keys of `train` that the machine decides where the recipe does not.
_MACHINE = ("device", "precision", "threads", "kernels", "products")


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    resume: bool = True,
    force: bool = False,
    report: str | Path | None = None,
    lang: str = "en",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train what a recipe describes and write the artefact.

    A run that was interrupted goes on where its last checkpoint was, if recipe and data are the same; with the device, the
    precision and the threads that it began with, whatever this machine would derive. Nothing that is finished is
    overwritten: without `output` a number is added to the name.

    Args:
        recipe: a YAML file, a mapping, or a recipe.
        overrides: ``key=value`` with dotted keys.
        output: the artefact's directory; ``runs/<name of the recipe>`` by default.
        resume: whether to go on with an interrupted run.
        force: replace a finished artefact at `output`.
        report: a file for the page of `luban report`, written when all is done.
        lang: ``en`` or ``zh``; of that page.
        console: who is told what happens; nobody by default.

    Returns:
        ``artefact`` (path), ``metrics`` (``target.metric`` → value, low, high), ``rows`` (by split), ``seconds``,
        ``peak_memory_mb``, ``steps``, ``stopped``, ``measured_on``, ``gates`` and ``passed``: whether all of them are met. The
        artefact is kept either way.

    Raises:
        LubanError: in one sentence.

    Example:
        >>> luban.train("reviews.yaml", ["train.epochs=1"])["artefact"]      # doctest: +SKIP
        'runs/reviews'
    """
    console = console or Console()
    if report is not None:
        require_page(report)  # not after hours
        Words(lang)
    elif lang != "en":
        raise InputError(
            f"received lang '{lang}', which is of the page, but no page was asked for; name one by report"
        )
    resolved, document = recipes.read(recipe, list(overrides))
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "model"
    place = Path(output) if output is not None else None
    split = resolved.data.split
    with recipes.located(document):
        if split is not None and split.type == "folds" and getattr(split, "fold", None) is None:
            folder = place or Path("runs") / name
            result = _cross_validate(resolved, folder, resume=resume, force=force, console=console)
        else:
            result = _train(resolved, name, place, resume, force, console)
    if report is not None:
        write_report(result["artefact"], output=report, lang=lang, console=console)
        result["report"] = str(report)
    return result


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
    endings.require(resolved)
    plan = make_plan(resolved, console.stage)
    endings.require_fit(plan.recipe, plan.prepared)
    _tell(plan, console)
    run = _Run.of(plan, resolved)
    if fold and resume and output is not None and run.continues(_Run.read(output / "lineage.json")):
        done = Artefact.load(output)
        console.say(f"'{output}' is finished")
        return _result(output, done.metrics, done.lineage)
    target = _place(output, name, run, resume=resume, force=force, console=console)
    work = target / "train"
    begun = _Run.read(work / _RUN)
    if begun is not None and any(work.glob("step-*")):
        plan, run = _as_begun(plan, run, begun, resolved, target, console)
    with files.writing(f"'{target}'"):
        work.mkdir(parents=True, exist_ok=True)
        # At once: half a record would make the checkpoints beside it nobody's.
        beside = work / f".{_RUN}.partial"
        artefact.write_json(beside, {**run.to_json(), "recipe": plan.recipe.model_dump()})
        os.replace(beside, work / _RUN)
    energy = Energy()
    outcome = _fit(plan, work, console, energy)
    return _finish(plan, outcome, target, run, time.perf_counter() - started, energy, console)


def _as_begun(
    plan: Plan, run: _Run, begun: _Run, resolved: Recipe, target: Path, console: Console
) -> tuple[Plan, _Run]:
    """Return the plan of an interrupted run as it began: with its device, precision and threads, not with this machine's.

    Raises:
        ArtefactError: if its device is not here.
    """
    if begun.cache != run.cache:
        console.say(
            f"the data of '{target}' were prepared anew since the run began (a package, a plug-in or a picture changed); "
            "its result may differ from that of an undisturbed run"
        )
    if begun.used == run.used:
        return plan, run
    device, precision, threads, kernels, products = (begun.used[key] for key in _MACHINE)
    if device == "cuda" and not torch.cuda.is_available():
        raise ArtefactError(
            f"'{target}' holds an interrupted run that began on cuda, which torch does not see here; go on where there is one, name another place with -o, or start anew with --fresh"
        )
    console.say(
        f"going on with {device}, {precision}, {threads} threads, {kernels} kernels and products by {products}, with which the run began"
    )
    same = resolved.model_copy(deep=True)
    for key in _MACHINE:
        if begun.used[key] is not None:  # an older Luban chose less
            setattr(same.train, key, begun.used[key])
    return make_plan(same, console.stage), replace(run, used=begun.used)


def _fit(plan: Plan, work: Path, console: Console, energy: Energy) -> Outcome:
    options = plan.recipe.train
    watching: list[Callback] = [cast(Callback, one) for one in options.callbacks] + [Log(), energy]
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


@dataclass(frozen=True)
class _Run:
    """What makes two trainings the same run.

    Attributes:
        identity: hash of the recipe as resolved, but for what the machine decides, and of the data.
        asked: device, precision and threads as the recipe has them; ``auto`` or None where the machine decides.
        used: what they came to.
        cache: the name of the prepared data in the cache, which changes with whatever they depend on.
    """

    identity: str
    asked: dict[str, Any]
    used: dict[str, Any]
    cache: str | None

    @classmethod
    def of(cls, plan: Plan, resolved: Recipe) -> Self:
        """Return the run that a recipe plans on this machine."""
        recipe = plan.recipe.model_dump()
        used = {key: recipe["train"].pop(key) for key in _MACHINE}
        prepared = plan.prepared
        what = [__version__, recipe, prepared.fingerprints, prepared.rows, prepared.spec.to_json()]
        text = json.dumps(what, sort_keys=True, ensure_ascii=False)
        asked = {key: getattr(resolved.train, key) for key in _MACHINE}
        return cls(hashlib.sha256(text.encode()).hexdigest(), asked, used, prepared.folder.name)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the run that a run.json or lineage.json tells of, None if it tells of none."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            identity, cache = str(saved["identity"]), saved.get("cache")
            machines = saved.get("machine", {})  # none in what an older Luban wrote, which is another run
            asked, used = (
                {key: machines.get(part, {}).get(key) for key in _MACHINE} for part in ("asked", "used")
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return cls(identity, asked, used, cache)

    def to_json(self) -> dict[str, Any]:
        """Return what `read` finds again."""
        return {
            "identity": self.identity,
            "machine": {"asked": self.asked, "used": self.used},
            "cache": self.cache,
        }

    def continues(self, other: _Run | None) -> bool:
        """Whether this run is that one: what either machine decided for itself does not matter, what was asked for does."""
        return (
            other is not None
            and self.identity == other.identity
            and all(
                self.asked[key] == other.asked[key] or self.used[key] == other.used[key] for key in _MACHINE
            )
        )


def _finished(target: Path) -> ArtefactError:
    return ArtefactError(
        f"'{target}' holds a finished artefact; name another place with -o, or replace it with --force"
    )


def _only_ours(work: Path) -> bool:
    """Whether a folder holds nothing but what a run writes before it says what it is."""
    return work.is_dir() and all(
        path.name.endswith(".partial") or path.name == _RUN for path in work.iterdir()
    )


def _place(output: Path | None, name: str, run: _Run, *, resume: bool, force: bool, console: Console) -> Path:
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
        known = _Run.read(work / _RUN)
        ours = run.continues(known)
        if (target / "config.json").exists():
            if output is None:
                continue
            if not force or not artefact.is_artefact(target):
                raise _finished(target)
            if not ours or not resume or run.continues(_Run.read(target / "lineage.json")):
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
        if ours and resume:
            return target
        if ours or known is None or force:
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
    plan: Plan,
    outcome: Outcome,
    target: Path,
    run: _Run,
    seconds: float,
    energy: Energy,
    console: Console,
) -> dict[str, Any]:
    """Measure the chosen weights, freeze a sample, and write everything at once."""
    prepared = plan.prepared
    started = time.perf_counter()
    # A fresh model takes the weights: what is measured is what will be loaded, not what training left behind.
    plan.model.load_state_dict(outcome.weights)
    module, adapt = artefact.finish_model(plan.model, plan.recipe.adapt)
    finished = target / "train" / "artefact"
    with files.new_folder(finished, replace=True) as folder:
        weights_hash = artefact.write(
            folder,
            version=__version__,
            model=plan.recipe.model,
            adapt=adapt,
            spec=plan.spec,
            pipeline=prepared.pipeline,
            weights=module.state_dict(),
            recipe=recipes.dump(plan.recipe),
        )
        for name in ("metrics.json", "lineage.json"):
            artefact.write_json(folder / name, {})
        (folder / "sample.jsonl").write_text("", encoding="utf-8")
        predictor = load(folder, device=plan.choice.device.type, verify=False)
        if plan.recipe.decide:
            predictor.decisions = endings.decide(plan.recipe, predictor, prepared, console)
            artefact.write_decisions(folder, predictor.decisions)
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
        ended = endings.examine(
            plan.recipe, predictor, prepared, split, metrics, recipes.dump(plan.recipe), console
        )
        if ended.verdicts:
            metrics["gates"] = [one.to_json() for one in ended.verdicts]
        artefact.write_json(folder / "metrics.json", metrics)
        if ended.results:
            artefact.write_json(folder / "audit.json", ended.to_json())
        sample = _sample(predictor, prepared, plan.recipe)
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in sample)
        (folder / "sample.jsonl").write_text(lines, encoding="utf-8")
        seconds += time.perf_counter() - started
        lineage = {
            "verb": "train",
            **run.to_json(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "parents": [],
            "data": prepared.fingerprints,
            "rows": prepared.rows,
            "prepared": prepared.report,
            "split": prepared.split_state,
            "seed": plan.recipe.train.seed,
            "weights": weights_hash,
            "versions": versions(),
            "hardware": {
                "device": machine.describe(plan.choice.device),
                "precision": plan.choice.precision,
                "threads": plan.recipe.train.threads,
            },
            "cost": {
                "seconds": round(seconds, 2),
                "peak_memory_mb": round(machine.peak_memory_mb(), 1),
                **({} if energy.joules is None else {"energy_joules": round(energy.joules, 1)}),
            },
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
        "gates": metrics.get("gates", []),
        "passed": all(one["passed"] for one in metrics.get("gates", [])),
    }


def _merge(folder: Path, target: Path) -> None:
    """Move the finished parts beside the checkpoints; config.json, which makes it an artefact, comes last."""
    with files.writing(f"'{target}'"):
        names = sorted(path.name for path in folder.iterdir())
        # A predecessor that is being replaced stops being an artefact first: half of each is neither.
        (target / "config.json").unlink(missing_ok=True)
        (target / "audit.json").unlink(missing_ok=True)  # the successor may have none
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
        for name in _decided_by(predictor):
            rows = [{name: None, **row} for row in rows]
    else:
        first: list[pl.DataFrame] = []
        for chunk in prepared.raw(split):
            first.append(chunk.head(_SAMPLE_ROWS - sum(map(len, first))))
            if sum(map(len, first)) >= _SAMPLE_ROWS:
                break
        frame = pl.concat(first)
        # A text that is written comes along, since it is compared by how probable it is.
        frozen = {**pipeline.given, **pipeline.written}
        columns = {name: processor.portable(frame[name]) for name, processor in frozen.items()}
        for name in _decided_by(predictor):  # which no processor reads
            columns.setdefault(name, as_words(frame[name]).to_list())
        rows = [
            dict(zip(columns, map(_as_json, values), strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
    return [
        {"row": row, "prediction": prediction}
        for row, prediction in zip(rows, predictor.replay(rows), strict=True)
    ]


def _decided_by(predictor: Predictor) -> list[str]:
    """Return the columns that decisions need beside the inputs."""
    needed = [name for one in predictor.decisions for name in one.needs]
    return [name for name in dict.fromkeys(needed) if name not in predictor.pipeline.inputs]


def _as_json(value: Any) -> Any:
    """Return a cell of a typed table as JSON that is read as the same: 1.50 stays '1.50', which a float would not."""
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value) if isinstance(value, Decimal) else value


def synthetic_rows(prepared: Prepared, n: int) -> list[dict[str, Any]]:
    """Make rows of the columns' specification, from no person's data, (n rows)."""
    import numpy as np

    generator = np.random.default_rng(0)
    frozen = {**prepared.pipeline.given, **prepared.pipeline.written}
    columns = {name: processor.example(generator, n) for name, processor in frozen.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


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
        "gates": [gate for r in results for gate in r["gates"]],
        "passed": all(r["passed"] for r in results),
    }
    artefact.write_json(output / "cross-validation.json", summary)
    return summary
