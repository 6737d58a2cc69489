"""From a recipe to everything that training needs, with each derived value written back into the recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from luban import machine
from luban.artefact import build_model
from luban.data.augment._base import Augmenter
from luban.data.contracts import Field, Flat, Spec
from luban.data.loader import Loader
from luban.data.prepare import Prepared, Report, prepare
from luban.data.processors.text import Text
from luban.data.store import Store
from luban.data.windows import Windows
from luban.errors import RecipeError, did_you_mean
from luban.evaluation.metrics import MANY, Task, names
from luban.models import _kernels
from luban.models._base import Model
from luban.objectives._base import Objective, TargetFacts
from luban.recipe import Data, Recipe, Section
from luban.training.callbacks._base import Callback
from luban.training.engine import flops_of, units_in
from luban.training.optimizers._base import Optimizer
from luban.training.schedules._base import Schedule
from luban.training.step import GradientStep

__all__ = ["Plan", "make_plan"]

_ONE_THREAD = 5e8  # operations of an update below which one CPU thread does it alone; some milliseconds


@dataclass
class Plan:
    """A run that is ready to start.

    Attributes:
        recipe: with every derived value written out.
        derived: what was derived, one sentence each.
        prepared: the data.
        spec: the fields that the model sees, those made by objectives among them.
        model: on its device, with its first weights.
        step: makes one update.
        loader, validation: batches.
        schedule: of the learning rate.
        accumulate: batches in an update, 0 for a whole epoch.
        total_steps: updates in all.
        metric: what 'best' means.
        choice: device and precision.
        flops: operations of training on one token (one row, where there are no tokens).
    """

    recipe: Recipe
    derived: list[str]
    prepared: Prepared
    spec: Spec
    model: nn.Module
    step: GradientStep
    loader: Loader
    validation: Loader | None
    schedule: Schedule
    accumulate: int
    total_steps: int
    metric: str
    choice: machine.Choice
    flops: float


def make_plan(recipe: Recipe, report: Report = lambda stage, rows, total: None) -> Plan:
    """Prepare the data, build the model and derive whatever the recipe leaves out.

    Raises:
        LubanError: for anything that cannot work, in one sentence.
    """
    machine.reuse_memory()
    derived: list[str] = []
    recipe = recipe.model_copy(deep=True)
    train = recipe.train
    if train.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("train.device is cuda, but torch sees no CUDA device here; use cpu or auto")
    if isinstance(train.optimizer, Optimizer) and train.optimizer.whole_set and train.accumulate != 1:
        raise RecipeError(
            f"optimizer {train.optimizer.type} makes one update of the whole training set, so train.accumulate={train.accumulate} has no meaning; remove it"
        )
    for callback in train.callbacks:
        cast(Callback, callback).require()

    family = cast(Model, recipe.model)
    for objective in _listed(recipe):
        _fits_attention(objective, family)
        derived += objective.complete(recipe.data)
    aside = {column: other for objective in _listed(recipe) for column, other in objective.aside().items()}
    derived += _complete_inputs(family, recipe.data, aside)
    if family.attends:
        why = _kernels.use(train.kernels)
        if train.kernels == "auto":
            derived.append(why)
        train.kernels = _kernels.in_use()
    else:
        train.kernels = "torch"
    augment = [cast(Augmenter, one) for one in recipe.data.augment]
    texts = _texts_to_augment(recipe, augment)
    grouped = [column for objective in _listed(recipe) for column in objective.groups(recipe.data)]
    prepared = prepare(recipe.data, raw_text=texts, marked=list(dict.fromkeys(grouped)), report=report)
    objectives = _objectives(recipe, prepared, derived)
    derived += family.follow({c: p for c, p in prepared.pipeline.inputs.items() if c not in aside})
    made: dict[str, Field] = {}
    for objective in objectives:
        made.update(objective.bind(prepared.pipeline, getattr(family, "max_positions", None)))
    prepared.pipeline.set_aside(aside)  # only now: what is prepared holds these columns too
    spec = _model_spec(prepared.spec, made, aside)

    torch.manual_seed(train.seed)
    model = build_model(recipe.model, recipe.adapt, spec, pretrained=True, said=derived)
    widest = machine.widest(model)
    choice = machine.choose(train.device, train.precision, widest)
    if train.precision == "auto" or train.device == "auto":
        derived.append(f"device and precision: {choice.why}")
    train.device, train.precision = cast(Any, choice.device.type), cast(Any, choice.precision)
    products, why = machine.choose_products(train.products, choice, widest)
    if train.products == "auto" and products == "onednn":
        derived.append(why)
    train.products = cast(Any, products)
    model.to(choice.device)
    if any(one.shape is not None and len(one.shape) == 3 for one in spec.fields.values()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for objective in objectives:
        objective.begin(model)

    usual = family.usual(any(step.type == "lora" for step in recipe.adapt))
    if train.optimizer is None:
        train.optimizer = Section("optimizers").parse(usual.get("optimizer", "adamw"))
        derived.append(f"optimizer: adamw, learning rate {cast(Optimizer, train.optimizer).learning_rate:g}")
        if train.schedule is None and "schedule" in usual:  # belongs to the optimizer's learning rate
            train.schedule = Section("schedules").parse(usual["schedule"])
            derived.append(
                f"schedule: {train.schedule.type}, warm-up {cast(Schedule, train.schedule).warmup:g} of the updates"
            )
    if train.schedule is None:
        train.schedule = Section("schedules").parse("constant")
    optimizer = cast(Optimizer, train.optimizer)
    accumulate = 0 if optimizer.whole_set else train.accumulate
    if (accumulate != 1) and not all(objective.per_example for objective in objectives):
        raise RecipeError(
            "an objective that compares the rows of a batch with each other cannot be accumulated: splitting a batch changes its loss; set train.accumulate to 1"
        )

    stores = {name: _examples(prepared.store(name), objectives) for name in ("train", "validation")}
    rows = len(stores["train"])
    if train.batch_size is None and train.batch_tokens is None:
        train.batch_size = next(
            size
            for limit, size in ((1_000, 16), (10_000, 32), (100_000, 64), (1_000_000, 256), (np.inf, 512))
            if rows <= limit
        )
        derived.append(f"batch size: {train.batch_size}, for {rows:,} training rows")
    options: dict[str, Any] = {
        "batch_size": train.batch_size,
        "batch_tokens": train.batch_tokens,
        "device": choice.device,
        "collate": [one.collate for one in sorted(objectives, key=lambda one: one.turn)]
        if any(type(one).collate is not Objective.collate for one in objectives)
        else [],
    }
    loader = Loader(
        stores["train"],
        prepared.spec,
        seed=train.seed,
        augment=augment,
        texts={column: cast(Text, prepared.pipeline.inputs[column]) for column in texts},
        **options,
    )
    validation = None
    if prepared.rows["validation"]:
        # Without gradients a batch may be larger; the figures do not depend on it.
        wider = {**options, "batch_size": train.batch_size and max(256, train.batch_size)}
        validation = Loader(stores["validation"], prepared.spec, **wider)
    elif needs := _needs_validation(recipe):
        raise RecipeError(
            f"{needs} looks at validation rows, but there are none; give data.validation or a share in data.split"
        )
    elif train.keep == "best":
        train.keep = "last"
        derived.append("there are no validation rows, so the last weights are kept")
    per_epoch = 1 if accumulate == 0 else -(-loader.count() // accumulate)
    if train.epochs is None and train.steps is None:
        train.epochs = usual.get("epochs", 10)
        derived.append(f"epochs: {train.epochs}")
    total_steps = train.steps if train.steps is not None else per_epoch * cast(int, train.epochs)
    metric = train.metric or "loss"
    train.metric = metric
    _check_metric(metric, prepared, objectives)

    first = next(loader.batches(0))
    flops = flops_of(objectives, model, first)
    if train.threads is None:
        # Two threads that wait for each other thousands of times a second are slower than one, above all on a busy machine.
        small = choice.device.type == "cpu" and flops * units_in(first) < _ONE_THREAD
        train.threads = 1 if small else machine.cores()
        if small:
            derived.append("threads: 1, since an update is too little work to share")
    step = GradientStep(
        model,
        objectives,
        optimizer.build(model.named_parameters()),
        clip=train.clip,
        ema=train.ema,
        precision=choice.precision,
        products=products,
    )
    schedule = cast(Schedule, train.schedule).model_copy(deep=True)
    return Plan(
        recipe,
        derived,
        prepared,
        spec,
        model,
        step,
        loader,
        validation,
        schedule,
        accumulate,
        total_steps,
        metric,
        choice,
        flops,
    )


def _needs_validation(recipe: Recipe) -> str | None:
    """Return what in a recipe would do nothing without validation rows."""
    train = recipe.train
    if any(callback.type == "early_stopping" for callback in train.callbacks):
        return "callback early_stopping"
    if train.schedule is not None and train.schedule.type == "plateau":
        return "schedule plateau"
    if train.evaluate_every is not None:
        return f"train.evaluate_every {train.evaluate_every}"
    return f"train.metric {train.metric}" if train.metric not in (None, "loss") else None


def _complete_inputs(family: Model, data: Data, aside: dict[str, str]) -> list[str]:
    """Let the model fill in the options of the inputs that it reads; those set aside take over the options of another."""
    read = data.model_copy(update={"inputs": {c: p for c, p in data.inputs.items() if c not in aside}})
    said = family.complete(read)
    data.inputs = {**read.inputs, **{c: read.inputs[other].model_copy() for c, other in aside.items()}}
    return said


def _model_spec(spec: Spec, made: dict[str, Field], aside: Collection[str] = ()) -> Spec:
    """The fields that a model may see: inputs and targets, and the targets that objectives make themselves."""
    seen = {
        name: one
        for name, one in spec.fields.items()
        if one.role in ("input", "target") and one.column not in aside
    }
    return Spec({**seen, **made})


def _examples(store: Store, objectives: Sequence[Objective]) -> Store | Windows:
    """Return what training draws from: rows, or windows of them where an objective wants them cut."""
    windows = [window for one in objectives if (window := one.window()) is not None and len(store)]
    if not windows:
        return store
    if len({(name, overlap, trim) for name, _, overlap, trim in windows}) > 1:
        raise RecipeError("the objectives cut texts into examples in different ways; train with one of them")
    name, length, overlap, trim = min(windows, key=lambda window: window[1])
    return Windows(store, name, length, overlap, trim)


def _fits_attention(objective: Objective, family: Model) -> None:
    """Refuse an objective whose answer the model would see, or whose question it could not."""
    wanted, given = getattr(objective, "inner", objective).causal, getattr(family, "CAUSAL", None)
    if wanted is not None and given is not None and wanted != given:
        raise RecipeError(
            f"objective {objective.type} needs a model whose tokens see {'only those before them (gpt2, llama, qwen2, qwen3, smollm, or huggingface with task causal_lm)' if wanted else 'the whole text (bert, or huggingface with task masked_lm)'}, "
            f"and model type '{family.type}' is not of that kind"
        )


def _listed(recipe: Recipe) -> list[Objective]:
    """Return the objectives that the recipe names."""
    named = recipe.objective
    return [cast(Objective, one) for one in (named if isinstance(named, list) else [named] if named else [])]


def _texts_to_augment(recipe: Recipe, augment: list[Augmenter]) -> list[str]:
    """Return the text columns whose words are changed before they are encoded."""
    texts = [column for column, processor in recipe.data.inputs.items() if processor.type == "text"]
    wanted: list[str] = []
    for one in augment:
        for column in one.columns or []:
            if not any(fnmatch.fnmatchcase(column, name) or column == name for name in recipe.data.inputs):
                raise RecipeError(
                    f"augment {one.type}: '{column}' is no input; inputs are {', '.join(recipe.data.inputs)}"
                )
        if one.level == "text":
            own = texts if one.columns is None else [column for column in texts if column in one.columns]
            if not own:
                raise RecipeError(f"augment {one.type} changes text, but no input is read as text")
            wanted += own
    return list(dict.fromkeys(wanted))


def _objectives(recipe: Recipe, prepared: Prepared, derived: list[str]) -> list[Objective]:
    facts = {}
    for column, processor in prepared.pipeline.targets.items():
        ((short, one),) = processor.fields(column, "target").items()
        name = f"{column}.{short}"
        classes = processor.classes() or None
        facts[column] = TargetFacts(
            name,
            one,
            classes,
            _counts(prepared.store("train"), name, len(classes or [])),
            prepared.rows["train"],
            partial(_tally, prepared, name, len(classes or [])),
        )
    if recipe.objective is None and not facts:
        raise RecipeError(
            "there is nothing to learn: name data.targets, or an objective that makes its own of the inputs (masked_lm, causal_lm)"
        )
    if recipe.objective is None:
        chosen = [
            Section("objectives").parse({"type": processor.objective, "target": column})
            for column, processor in prepared.pipeline.targets.items()
        ]
        recipe.objective = chosen if len(chosen) > 1 else chosen[0]
        derived.append("objective: " + ", ".join(f"{one.type} for {one.target}" for one in chosen))  # type: ignore[attr-defined]
    objectives = _listed(recipe)
    if not objectives:
        raise RecipeError("objective: the list is empty; leave the key out to take what the targets bring")
    for objective in objectives:
        objective.setup(facts)
    covered = {getattr(objective, "column", None) for objective in objectives}
    for column in prepared.pipeline.targets:
        if covered != {None} and column not in covered:
            raise RecipeError(
                f"target '{column}' has no objective, so it would not be learnt; add one, or remove the target"
            )
    return objectives


def _counts(store: Store, name: str, classes: int) -> list[int] | None:
    """Return training rows of each class, in one pass over the target alone."""
    if not classes:
        return None
    counts = np.zeros(classes, dtype=np.int64)
    for start in range(0, len(store), 2**16):
        value = store.take(np.arange(start, min(start + 2**16, len(store))))[name]
        numbers = value.values if isinstance(value, Flat) else value
        counts += np.bincount(numbers.astype(np.int64), minlength=classes)
    return [int(n) for n in counts]


def _tally(
    prepared: Prepared, name: str, classes: int, columns: list[str]
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Return training rows by class and combination of groups, (classes, groups), and how many groups each column has."""
    sizes = [prepared.spec.fields[f"{column}.group"].size or 0 for column in columns]
    width, store = int(np.prod(sizes)), prepared.store("train")
    counts = np.zeros(max(1, classes) * width, dtype=np.int64)
    for start in range(0, len(store), 2**16):
        rows = store.take(np.arange(start, min(start + 2**16, len(store))))
        member = np.zeros(len(next(iter(rows.values()))), dtype=np.int64)
        for column, size in zip(columns, sizes, strict=True):
            member = member * size + cast(Any, rows[f"{column}.group"])
        if classes:
            member += cast(Any, rows[name]).astype(np.int64) * width
        counts += np.bincount(member, minlength=len(counts))
    return counts.reshape(-1, width), sizes


def _check_metric(metric: str, prepared: Prepared, objectives: Sequence[Objective]) -> None:
    known = ["loss", *(name for one in objectives for name in one.describe({}))] + [
        f"{column}.{name}"
        for column, p in prepared.pipeline.scored.items()
        for name in names(cast(Task, p.task), len(p.classes()))
    ]
    if metric not in known:
        column, _, name = metric.rpartition(".")
        target = prepared.pipeline.scored.get(column)
        if target is not None and name in names(cast(Task, target.task), 2):
            raise RecipeError(
                f"train.metric: '{metric}' is not measured, because '{column}' has {len(target.classes())} classes and it is too costly beyond {MANY}; metrics are {', '.join(known)}"
            )
        raise RecipeError(
            f"train.metric: '{metric}' is unknown; metrics are {', '.join(known)}{did_you_mean(metric, known)}"
        )
