"""The verb `check`: would this recipe run, how large is it, how long would it take? Writes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from luban import machine
from luban import recipe as recipes
from luban.console import Console
from luban.data.batch import Batch, rows_in
from luban.data.ragged import Ragged
from luban.errors import DivergenceError, MachineError
from luban.recipe import Recipe
from luban.training.plan import Plan, make_plan
from luban.verbs import endings

__all__ = ["check", "find_learning_rate"]

_TIMED = 5


def check(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    find_lr: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Resolve a recipe, prepare its data, and make a real update on the worst batch.

    Args:
        recipe: a YAML file, a mapping, or a recipe.
        overrides: ``key=value`` with dotted keys.
        find_lr: also run the learning-rate range test.
        console: who is told about progress.

    Returns:
        ``recipe`` (resolved, as YAML), ``derived``, ``rows``, ``parameters``, ``trainable``, ``updates``,
        ``seconds_per_update``, ``seconds`` (estimate of the whole), ``peak_memory_mb``, ``worst_batch``, ``data`` (what was
        cleaned and dropped), and with `find_lr` ``learning_rate``.

    Raises:
        LubanError: in one sentence, whatever would have stopped the run.
    """
    console = console or Console()
    resolved, document = recipes.read(recipe, list(overrides))
    with recipes.located(document):
        endings.require(resolved)
        plan = make_plan(resolved, console.stage)
        endings.require_fit(plan.recipe, plan.prepared)
    console.end_stage()
    worst = plan.loader.worst()
    with machine.threads(cast(int, plan.recipe.train.threads)):
        _update(plan, [worst], "the worst batch")
        seconds = _seconds_per_update(plan)
    looks = plan.total_steps / (plan.recipe.train.evaluate_every or max(1, plan.loader.count()))
    validation_rows = plan.prepared.rows["validation"]
    per_row = seconds / max(1, rows_in(worst) * max(1, plan.accumulate))
    estimate = plan.total_steps * seconds + looks * validation_rows * per_row / 3  # no backward pass
    result: dict[str, Any] = {
        "recipe": recipes.dump(plan.recipe),
        "derived": plan.derived,
        "rows": plan.prepared.rows,
        "data": plan.prepared.report,
        "model": plan.recipe.model.type,
        "parameters": sum(p.numel() for p in plan.model.parameters()),
        "trainable": sum(p.numel() for p in plan.model.parameters() if p.requires_grad),
        "layers": {name: list(p.shape) for name, p in plan.model.named_parameters()},
        "updates": plan.total_steps,
        "worst_batch": {
            "rows": rows_in(worst),
            "tokens": sum(len(v.values) for v in worst.values() if isinstance(v, Ragged)),
        },
        "seconds_per_update": round(seconds, 5),
        "seconds": round(estimate, 3),
        "peak_memory_mb": round(machine.peak_memory_mb(), 1),
        "device": plan.choice.why,
    }
    if find_lr:
        result["learning_rate"] = find_learning_rate(plan)
    return result


def _update(plan: Plan, batches: list[Batch], what: str) -> float:
    try:
        figures = plan.step(batches)
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise MachineError(
            f"{what} does not fit into memory; lower train.batch_size, data.inputs.<column>.max_length or model.size"
        ) from None
    loss = float(figures["loss"])
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss of {what} is {loss}; look for extreme values in the data, or lower the learning rate"
        )
    return loss


def _seconds_per_update(plan: Plan) -> float:
    batches = []
    for batch in plan.loader.batches(0):
        batches.append(batch)
        if len(batches) == _TIMED:
            break
    times = []
    for batch in batches:
        started = time.perf_counter()
        _update(plan, [batch], "a batch")
        times.append(time.perf_counter() - started)
    per_batch = sorted(times)[len(times) // 2]
    return per_batch * (plan.loader.count() if plan.accumulate == 0 else plan.accumulate)


def find_learning_rate(
    plan: Plan, *, low: float = 1e-6, high: float = 3.0, updates: int = 80
) -> dict[str, Any]:
    """Raise the learning rate update by update and watch the loss (Smith, 2017, 'Cyclical learning rates').

    Starts from the first weights. The suggestion is a tenth of the rate at which the smoothed loss is lowest: beyond that
    point it rises again, and a step of that size is only just short of too large.

    Returns:
        ``suggested``, and the curve as ``rates`` and ``losses``.
    """
    torch.manual_seed(plan.recipe.train.seed)
    fresh = make_plan(plan.recipe)
    rates, losses = [], []
    smooth, best = 0.0, math.inf
    batches = _endless(fresh)
    for i in range(updates):
        rate = low * (high / low) ** (i / (updates - 1))
        for group in fresh.step.optimizer.param_groups:
            group["lr"] = rate
        loss = float(fresh.step([next(batches)])["loss"])
        if not math.isfinite(loss):
            break
        smooth = 0.9 * smooth + 0.1 * loss
        value = smooth / (1 - 0.9 ** (i + 1))  # without the pull towards the zero that it started from
        rates.append(rate)
        losses.append(value)
        best = min(best, value)
        if value > 3 * best and i > 10:
            break
    lowest = rates[losses.index(min(losses))] if rates else low
    return {"suggested": float(f"{lowest / 10:.1e}"), "rates": rates, "losses": losses}


def _endless(plan: Plan) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from plan.loader.batches(epoch)
        epoch += 1
