"""The loop: order of the batches, looks at the validation rows, checkpoints, stopping. Nothing else."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from luban.data.batch import Batch, rows_in
from luban.data.loader import ROW, Loader
from luban.data.ragged import Ragged
from luban.errors import DivergenceError
from luban.machine import peak_memory_mb
from luban.models._settled import settled
from luban.objectives._base import Objective
from luban.sentences import say
from luban.training.callbacks._base import Callback
from luban.training.checkpoint import Checkpoints, random_state, restore_random_state
from luban.training.flops import FlopCounter
from luban.training.progress import Progress
from luban.training.schedules._base import Schedule
from luban.training.step import GradientStep, compute_losses

__all__ = ["Engine", "Interrupted", "Outcome", "Scorer", "flops_of", "is_loss", "units_in"]

_FLUSH_SECONDS = 0.5
_FLUSH_STEPS = 64


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; a checkpoint was written."""


class Scorer(Protocol):
    """Collects outputs of the validation rows and makes metrics of them."""

    def update(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Take in one more batch."""

    def compute(self) -> dict[str, float]:
        """Return metrics by name, such as ``label.accuracy``."""


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        weights: those to keep.
        progress: where it ended.
        history: figures of each look at the validation rows.
        seconds: time spent in this process.
    """

    weights: dict[str, Tensor]
    progress: Progress
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Pending:
    step: int
    rows: Tensor
    figures: dict[str, Tensor]


class _Epoch:
    """All batches of an epoch, to be gone through twice: the whole set in one update."""

    def __init__(self, loader: Loader, epoch: int) -> None:
        self.loader, self.epoch = loader, epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.loader.batches(self.epoch)


class Engine:
    """Trains by calling a step on batch after batch.

    The state of a run is the step's, the schedule's, the callbacks', torch's random state and a `Progress`; it is saved
    together and makes a resumed run equal to one that was never stopped, bit for bit on a CPU.

    Args:
        step: makes one update.
        loader: training batches.
        validation: validation batches, in order; None to go without.
        schedule: factor of the learning rate.
        total_steps: updates in all.
        accumulate: batches in an update; 0 for a whole epoch.
        evaluate_every: updates between two looks at the validation rows; None for every epoch.
        metric: what 'best' means: ``loss`` or a name the scorer knows.
        keep: ``best`` or ``last`` weights.
        scorer: makes a fresh scorer for each look.
        checkpoints: where to save; None to go without.
        checkpoint_seconds, checkpoint_steps: how often.
        callbacks: what else happens.
        peak: floating-point operations a second that the machine reaches at best.
        flops: operations of training on one token (one row, where there are no tokens).
    """

    def __init__(
        self,
        step: GradientStep,
        loader: Loader,
        validation: Loader | None,
        schedule: Schedule,
        *,
        total_steps: int,
        accumulate: int = 1,
        evaluate_every: int | None = None,
        metric: str = "loss",
        keep: str = "best",
        scorer: Callable[[], Scorer] | None = None,
        checkpoints: Checkpoints | None = None,
        checkpoint_seconds: float = 60.0,
        checkpoint_steps: int | None = None,
        callbacks: Sequence[Callback] = (),
        peak: float | None = None,
        flops: float = 0.0,
    ) -> None:
        self.step, self.loader, self.validation, self.schedule = step, loader, validation, schedule
        self.accumulate, self.evaluate_every = accumulate, evaluate_every
        self.metric, self.keep, self.scorer = metric, keep, scorer
        self.checkpoints = checkpoints
        self.checkpoint_seconds, self.checkpoint_steps = checkpoint_seconds, checkpoint_steps
        self.callbacks, self.peak = list(callbacks), peak
        self.progress = Progress(total_steps=total_steps)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None
        self._best_changed = False
        self._pending: list[_Pending] = []
        self._saved_at = time.monotonic()
        self._interrupted = False
        self._flops_per_unit = flops
        self._window = (time.perf_counter(), 0, 0)  # start, rows, tokens since the last flush

    # --- the loop -------------------------------------------------------------------------------------------------------

    def fit(self, folder: Path, recipe: dict[str, Any]) -> Outcome:
        """Train until the last update, or until a callback or the user stops it.

        Raises:
            DivergenceError: when the loss is not finite; names the update and the rows.
            Interrupted: after Ctrl-C, once a checkpoint is written.
        """
        started = time.perf_counter()
        self._resume()
        with self._listening():
            try:
                for callback in self.callbacks:
                    callback.on_start(folder, recipe)
                self._train()
                for callback in self.callbacks:
                    callback.on_end(self.progress)
            except BaseException as error:
                for callback in self.callbacks:
                    callback.on_error(error)
                raise
        weights = self.best if self.keep == "best" and self.best is not None else _copy(self.step.weights())
        return Outcome(weights, self.progress, self.history, time.perf_counter() - started)

    def _train(self) -> None:
        progress = self.progress
        self.step.model.train()
        self._window = (time.perf_counter(), 0, 0)
        while progress.step < progress.total_steps and progress.stopped is None:
            for batches, used, ends_epoch in self._updates(progress.epoch, progress.batch):
                self._update(batches)
                progress.batch += used
                if ends_epoch:
                    progress.epoch, progress.batch = progress.epoch + 1, 0
                last = progress.step >= progress.total_steps
                every = self.evaluate_every
                if last or (ends_epoch if every is None else progress.step % every == 0):
                    self._look()
                if last or progress.stopped is not None:
                    break
                # Only here is the state that of a whole update and of all that follows from it.
                self._maybe_save()
                if self._interrupted:
                    self._flush()
                    self._save()
                    raise Interrupted
        self._flush()
        self._save()

    def _updates(self, epoch: int, start: int) -> Iterator[tuple[Iterable[Batch], int, bool]]:
        """Yield the batches of each update, how many they are, and whether the epoch ends with them."""
        if self.accumulate == 0:
            yield _Epoch(self.loader, epoch), 0, True
            return
        batches = self.loader.batches(epoch, start)
        group = list(islice(batches, self.accumulate))
        while group:
            following = list(islice(batches, self.accumulate))
            yield group, len(group), not following
            group = following

    def _update(self, batches: Iterable[Batch]) -> None:
        progress = self.progress
        for callback in self.callbacks:
            callback.before_update(self.step.model, progress)
        factor = self.schedule.factor(progress.step, progress.total_steps)
        for group in self.step.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        figures = self.step(batches)
        progress.step += 1
        start, rows, tokens = self._window
        numbers = []
        for batch in batches if isinstance(batches, list) else []:
            numbers.append(batch[ROW])
            rows += rows_in(batch)
            tokens += _tokens(batch)
        if not isinstance(batches, list):
            rows += len(self.loader.store)
        progress.rows += rows - self._window[1]
        self._window = (start, rows, tokens)
        self._pending.append(
            _Pending(progress.step, torch.cat(numbers) if numbers else torch.empty(0), figures)
        )
        if len(self._pending) >= _FLUSH_STEPS or time.perf_counter() - start > _FLUSH_SECONDS:
            self._flush()

    # --- looking --------------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Return the mean loss over the validation rows and what the scorer makes of the outputs."""
        assert self.validation is not None
        model = self.step.model
        own = None
        if self.step.ema is not None:
            own = _copy(model.state_dict())
            model.load_state_dict(self.step.ema.average)
        totals: dict[str, tuple[Tensor, Tensor, float]] = {}
        scorer = self.scorer() if self.scorer is not None else None
        model.eval()
        with torch.no_grad(), self.step.arithmetic(), settled():
            for batch in self.validation.batches(0):
                outputs = _Recorded(model, batch)
                for name, part in compute_losses(self.step.objectives, outputs, batch).items():
                    total, count = part.total.double(), part.count.double()
                    if name in totals:
                        total, count = total + totals[name][0], count + totals[name][1]
                    totals[name] = (total, count, part.weight)
                if scorer is not None:
                    scorer.update(outputs(batch), batch)
        model.train()
        if own is not None:
            model.load_state_dict(own)
        figures = {f"{name}.loss": float(total / count) for name, (total, count, _) in totals.items()}
        figures["loss"] = sum(weight * figures[f"{name}.loss"] for name, (_, _, weight) in totals.items())
        for objective in self.step.objectives:
            figures.update(objective.describe(figures))
        if scorer is not None:
            figures.update(scorer.compute())
        return figures

    def _look(self) -> None:
        self._flush()
        progress = self.progress
        if self.validation is None:
            return
        figures = self.evaluate()
        value = figures.get(
            self.metric, math.nan
        )  # not defined at this look: no row was predicted positive, say
        lower_is_better = is_loss(self.metric)
        # A metric that is not defined (nan) is never the best.
        better = not math.isnan(value) and (
            progress.best is None or (value < progress.best if lower_is_better else value > progress.best)
        )
        if better:
            progress.best, progress.best_step, progress.since_best = value, progress.step, 0
            if self.keep == "best":
                self.best, self._best_changed = _copy(self.step.weights()), True
        else:
            progress.since_best += 1
        self.schedule.observe(value if lower_is_better else -value)
        self.history.append({"step": progress.step, **figures})
        stops = [callback.on_evaluate(progress, figures) for callback in self.callbacks]
        if any(stops) and progress.stopped is None:
            progress.stopped = say("a callback asked for it")
        self._window = (time.perf_counter(), 0, 0)

    def _flush(self) -> None:
        """Read the figures of the updates since the last time, which waits for the device, and check them."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        losses = torch.stack([torch.stack([*p.figures.values()]).float().sum() for p in pending])
        finite = torch.isfinite(losses).tolist()
        if not all(finite):
            self._diverged(pending[finite.index(False)])
        last = {name: float(value) for name, value in pending[-1].figures.items()}
        start, rows, tokens = self._window
        seconds = max(time.perf_counter() - start, 1e-9)
        last["learning_rate"] = self.step.optimizer.param_groups[0]["lr"]
        last["rows_per_second"] = rows / seconds
        if tokens:
            last["tokens_per_second"] = tokens / seconds
        if self._flops_per_unit and self.peak:
            last["share_of_peak"] = self._flops_per_unit * (tokens or rows) / seconds / self.peak
        last["memory_mb"] = peak_memory_mb()
        self._window = (time.perf_counter(), 0, 0)
        for callback in self.callbacks:
            callback.on_step(self.progress, last)

    def _diverged(self, fault: _Pending) -> None:
        numbers = fault.rows.long().tolist()
        shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        name = next((n for n, v in fault.figures.items() if not math.isfinite(float(v))), "loss")
        raise DivergenceError(
            f"{name} became {float(fault.figures[name])} at update {fault.step:,}, on training rows {shown}; nothing later was saved. "
            "Lower train.optimizer.learning_rate, set train.clip, or look at these rows for extreme values"
        )

    # --- saving ---------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step.state(),
            "schedule": self.schedule.state(),
            "callbacks": [callback.state() for callback in self.callbacks],
            "random": random_state(),
            "progress": asdict(self.progress),
            "history": self.history,
        }

    def _maybe_save(self) -> None:
        if self.checkpoint_steps is not None:
            due = self.progress.step % self.checkpoint_steps == 0
        else:
            due = time.monotonic() - self._saved_at >= self.checkpoint_seconds
        if due:
            self._flush()  # never save what is not finite
            self._save()

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        if self.checkpoints.save(
            self.progress.step, self._state(), self.best, best_changed=self._best_changed
        ):
            self._best_changed = False
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        found = self.checkpoints.load() if self.checkpoints is not None else None
        if found is None:
            return
        state, self.best = found
        self.step.restore(state["step"])
        self.schedule.restore(state["schedule"])
        # The recipe's callbacks stand first and are the same; what only shows the run (a bar) may come or go after them.
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=False):
            callback.restore(saved)
        restore_random_state(state["random"])
        self.progress = Progress(**state["progress"])
        self.history = state["history"]

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Let the first Ctrl-C (or SIGTERM) finish the update under way; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class _Recorded(torch.nn.Module):
    """Runs a model once on a batch, however often it is asked, so that loss and metrics share the outputs."""

    def __init__(self, model: torch.nn.Module, batch: Batch) -> None:
        super().__init__()
        self._outputs: dict[str, Any] | None = None
        self._model = [model]  # in a list, so that it is no submodule
        self._batch = batch

    def forward(self, batch: Batch) -> dict[str, Any]:
        if batch is not self._batch:
            outputs: dict[str, Any] = self._model[0](batch)
            return outputs
        if self._outputs is None:
            self._outputs = self._model[0](batch)
        return self._outputs


def flops_of(objectives: Sequence[Objective], model: torch.nn.Module, batch: Batch) -> float:
    """Count the operations of training on one token of a batch (one row, where there are no tokens).

    Changes neither weights nor random state. A backward pass costs twice its forward pass (Kaplan et al., 2020).
    """
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounter() as counter:
        compute_losses(objectives, model, batch)
    model.train(training)
    return 3.0 * int(counter.total) / units_in(batch)


def units_in(batch: Batch) -> int:
    """Return the tokens of a batch, or its rows where there are no tokens."""
    return max(1, _tokens(batch) or rows_in(batch))


def is_loss(metric: str) -> bool:
    """Whether smaller values of a metric are better."""
    return metric.rsplit(".", 1)[-1] in (
        "loss",
        "log_loss",
        "mae",
        "rmse",
        "median_ae",
        "ece",
        "brier",
        "hamming",
        "perplexity",
        "bits_per_byte",
        "information",
    )


def _tokens(batch: Batch) -> int:
    return sum(len(value.values) for value in batch.values() if isinstance(value, Ragged))


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
