"""Models trained as the artefact was, on halves of some of its training rows: what it takes to know how unusual a row's loss is.

Which weights they keep, and when they end, follows the recipe's own rule by the validation rows that the artefact itself was chosen
by, none of which is trained on. They get no decisions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl

from luban import machine
from luban.artefact import finish_model
from luban.auditing._base import ROOM, SEED, Case
from luban.data.contracts import Array
from luban.data.sampling import Sample
from luban.errors import DataError
from luban.evaluation.run import TrainingScorer
from luban.origin import Unknown
from luban.predict import Predictor
from luban.recipe import Component, Recipe, Section
from luban.sentences import say
from luban.training.callbacks._base import Callback
from luban.training.engine import Engine
from luban.training.plan import make_plan

__all__ = ["shadows"]


def shadows(case: Case, rows: pl.DataFrame, count: int) -> Iterator[tuple[Predictor, Array]]:
    """Yield models trained by the artefact's recipe on a random half of some rows, and which rows these were, (n,).

    Raises:
        DataError: if the recipe cannot be run again.
    """
    recipe = case.resolved
    if recipe is None:
        raise DataError(say("the artefact's recipe cannot be read, so no model can be trained in its way"))
    validation = _validation(case)
    for number in range(count):
        inside = np.random.default_rng([SEED, 9, number]).random(len(rows)) < 0.5
        case.report(say("training reference models"), number, count)
        with tempfile.TemporaryDirectory(prefix="luban-reference-") as folder:
            rows.filter(pl.Series(inside)).write_ipc(Path(folder) / "train.arrow")
            if validation is not None:
                validation.write_ipc(Path(folder) / "validation.arrow")
            yield _trained(recipe, Path(folder), number), inside


def _validation(case: Case) -> pl.DataFrame | None:
    """Return the rows by which the artefact's weights were chosen, drawn by lot where there are many; None where it had none."""
    if isinstance(case.origin, Unknown):
        return None
    rows = Sample.draw(case.origin.split("validation"), case.limit, seed=SEED, room=ROOM).rows
    return rows if len(rows) else None


def _trained(recipe: Recipe, folder: Path, number: int) -> Predictor:
    own = recipe.model_copy(deep=True)
    own.data.train = _arrow(folder / "train.arrow")
    validated = (folder / "validation.arrow").exists()
    own.data.validation = _arrow(folder / "validation.arrow") if validated else None
    own.data.test = None
    own.data.split = Section("splits").parse({"type": "random", "validation": 0.0, "test": 0.0})
    own.data.max_invalid = 1.0
    callbacks = cast(list[Callback], recipe.train.callbacks) if validated else []
    own.train.callbacks = [one for one in callbacks if one.changes]
    if not validated:
        own.train.metric, own.train.keep, own.train.evaluate_every = None, "last", None
    own.train.seed = recipe.train.seed + 1 + number
    plan = make_plan(own)
    engine = Engine(
        plan.step,
        plan.loader,
        plan.validation,
        plan.schedule,
        total_steps=plan.total_steps,
        accumulate=plan.accumulate,
        evaluate_every=plan.recipe.train.evaluate_every,
        metric=plan.metric,
        keep=plan.recipe.train.keep,
        scorer=lambda: TrainingScorer(plan.prepared.pipeline),
        callbacks=[cast(Callback, one) for one in plan.recipe.train.callbacks],
    )
    with machine.threads(plan.recipe.train.threads or 1):
        outcome = engine.fit(folder / "train", plan.recipe.model_dump())
    plan.model.load_state_dict(outcome.weights)
    module, _ = finish_model(plan.model, plan.recipe.adapt)
    return Predictor(module.eval(), plan.prepared.pipeline, plan.spec, plan.choice.device)


def _arrow(path: Path) -> Component:
    return Section("sources").parse({"type": "arrow", "path": str(path)})
