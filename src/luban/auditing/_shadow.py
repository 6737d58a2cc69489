"""Models trained as the artefact was, on halves of some of its training rows: what it takes to know how unusual a row's loss is.

They keep their last weights and no decisions: there are no rows to choose by that would not be missing elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from luban.artefact import finish_model
from luban.auditing._base import SEED, Case
from luban.data.contracts import Array
from luban.errors import DataError
from luban.predict import Predictor
from luban.recipe import Recipe, Section
from luban.training import machine
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
        raise DataError("the artefact's recipe cannot be read, so no model can be trained in its way")
    for number in range(count):
        inside = np.random.default_rng([SEED, 9, number]).random(len(rows)) < 0.5
        case.report("training reference models", number, count)
        with tempfile.TemporaryDirectory(prefix="luban-reference-") as folder:
            path = Path(folder) / "rows.arrow"
            rows.filter(pl.Series(inside)).write_ipc(path)
            yield _trained(recipe, path, number), inside


def _trained(recipe: Recipe, path: Path, number: int) -> Predictor:
    own = recipe.model_copy(deep=True)
    own.data.train = Section("sources").parse({"type": "arrow", "path": str(path)})
    own.data.validation = own.data.test = None
    own.data.split = Section("splits").parse({"type": "random", "validation": 0.0, "test": 0.0})
    own.data.max_invalid = 1.0
    own.train.callbacks, own.train.metric, own.train.keep, own.train.evaluate_every = [], None, "last", None
    own.train.seed = recipe.train.seed + 1 + number
    plan = make_plan(own)
    engine = Engine(
        plan.step,
        plan.loader,
        None,
        plan.schedule,
        total_steps=plan.total_steps,
        accumulate=plan.accumulate,
        keep="last",
    )
    with machine.threads(plan.recipe.train.threads or 1):
        outcome = engine.fit(path.parent / "train", plan.recipe.model_dump())
    plan.model.load_state_dict(outcome.weights)
    module, _ = finish_model(plan.model, plan.recipe.adapt)
    return Predictor(module.eval(), plan.prepared.pipeline, plan.spec, plan.choice.device)
