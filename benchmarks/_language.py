"""What the benchmarks of language models share: rounds of updates, Luban's side through its engine, the peer's Trainer."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
from _common import CACHE, say

PEERS = ("transformers==5.23.0", "accelerate==1.15.0")
Rows = list[dict[str, Any]]


def peer() -> Path:
    """Return the Python that has the peer, with the torch that we have."""
    return common.environment("transformers", PEERS, on_top_of_ours=True)


class Rounds:
    """Lets a training loop make so many updates each time it is asked, and rest in between.

    The loop calls `begin` before each update and `note` with its loss. An update's time is that from one `begin` to the
    next, whatever the loop does there: loading, the update, its log.

    Args:
        clock: ``wall``, or ``cpu`` for the processor's time of this process, which neighbours disturb less; only with a single
            thread are the two alike.
    """

    def __init__(self, clock: str = "wall") -> None:
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.answers, sys.stdout = sys.stdout, sys.stderr
        self.seconds: list[float] = []
        self.losses: list[Any] = []
        self.left = 0
        self.started: float | None = None

    def begin(self) -> None:
        """Wait until an update is wanted."""
        if self.started is not None:
            self.seconds.append(self.now() - self.started)
        if self.left == 0:
            self.started, self.left = None, self._next()
        self.left -= 1
        self.started = self.now()

    def note(self, loss: Any) -> None:
        """Keep a loss, without reading it yet."""
        self.losses.append(loss)

    def _next(self) -> int:
        if self.seconds:
            answer = {"seconds": self.seconds, "losses": [float(loss) for loss in self.losses]}
            print(json.dumps(answer), file=self.answers, flush=True)
            self.seconds, self.losses = [], []
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        return int(json.loads(line)["updates"])


def busy(parser: argparse.ArgumentParser) -> None:
    """Add what a busy machine needs."""
    parser.add_argument("--threads", type=int, help="of every side; 1 on a busy machine")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu, with --threads 1: processor time"
    )


# --- our side ---------------------------------------------------------------------------------------------


def plan_of(recipe: Mapping[str, Any], threads: int | None) -> Any:
    """Return a run that is ready to start."""
    from luban import recipe as recipes
    from luban.training.plan import make_plan

    own = [] if threads is None else [f"train.threads={threads}"]
    return make_plan(recipes.load(dict(recipe), own))


def train_ours(plan: Any, clock: str) -> None:
    """Train through the engine, as `luban.train` does, in rounds; no checkpoint is written, as none is by the peer."""
    from luban import machine
    from luban.training.engine import Engine
    from luban.training.log import Log

    rounds = Rounds(clock)
    update = type(plan.step).__call__

    class Step(type(plan.step)):  # type: ignore[misc]
        def __call__(self, batches: Any) -> Any:
            rounds.begin()
            figures = update(self, batches)
            rounds.note(figures["loss"])
            return figures

    plan.step.__class__ = Step
    engine = Engine(
        plan.step,
        plan.loader,
        None,
        plan.schedule,
        total_steps=plan.total_steps,
        callbacks=[Log()],
        peak=plan.choice.peak(),
        flops=plan.flops,
    )
    with machine.threads(plan.recipe.train.threads):
        engine.fit(_scratch("luban"), plan.recipe.model_dump())


def batches_of(plan: Any, column: str, target: str | None, count: int) -> list[Rows]:
    """Return the first batches that the run will see, as plain rows."""
    found: list[Rows] = []
    for _, batch in zip(range(count), plan.loader.batches(0), strict=False):
        rows = batch[f"{column}.ids"].unbind()
        truths = batch[f"{target}.index"].tolist() if target else [None] * len(rows)
        found.append(
            [{"input_ids": row.tolist(), "labels": truth} for row, truth in zip(rows, truths, strict=True)]
        )
    return found


def write_for_peer(plan: Any, folder: Path, **config: Any) -> None:
    """Write the model as it starts, head included, so that the peer starts from the same weights."""
    from luban.models._language import encoder_of
    from luban.models.interop import config_of, tensors_of
    from luban.tensors import write_tensors

    family, encoder = plan.recipe.model, encoder_of(plan.model)
    tensors = dict(tensors_of(family, encoder))
    for head in plan.model.heads.values():
        tensors |= {f"classifier.{name}": value.detach() for name, value in head.state_dict().items()}
    size = len(encoder.core.embedding.tokens.weight)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / "model.safetensors")
    whole = {**config_of(family, size), **config}
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")


def our_gradients(plan: Any, path: Path) -> float:
    """Write the gradients of the first batch, named and laid out as the peer has them; return the loss."""
    import torch

    from luban.models._language import encoder_of
    from luban.models.interop import tensors_of
    from luban.tensors import write_tensors
    from luban.training.step import compute_losses

    plan.model.train()
    with plan.step.arithmetic():
        parts = compute_losses(plan.step.objectives, plan.model, next(plan.loader.batches(0)))
    loss = torch.stack([part.total / part.count for part in parts.values()]).sum()
    loss.backward()
    with torch.no_grad():
        for parameter in plan.model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    tensors = dict(tensors_of(plan.recipe.model, encoder_of(plan.model)))
    for head in plan.model.heads.values():
        tensors |= {f"classifier.{name}": value.detach() for name, value in head.state_dict().items()}
    write_tensors({name: value.clone() for name, value in tensors.items()}, path)
    return float(loss.detach())


# --- the peer's side: runs in its own environment ------------------------------------------------------------


def train_theirs(
    model: Any, batches: Sequence[Rows], collate: Callable[[Rows], Any], clock: str, **options: Any
) -> None:
    """Train with Hugging Face's Trainer as it is, on these batches in this order, in rounds."""
    import torch
    from transformers import (  # type: ignore[import-not-found,unused-ignore]
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    rounds = Rounds(clock)

    class Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            rounds.begin()

    class InOrder(Trainer):  # type: ignore[misc,unused-ignore]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

        def training_step(self, *words: Any, **named: Any) -> Any:
            loss = super().training_step(*words, **named)
            rounds.note(loss)
            return loss

    rows = [row for batch in batches for row in batch]
    arguments = TrainingArguments(
        str(_scratch("trainer")),
        per_device_train_batch_size=len(batches[0]),
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )
    say(f"  Trainer: optimizer {arguments.optim}, schedule {arguments.lr_scheduler_type}")
    InOrder(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Watch()],
    ).train()


def their_gradients(model: Any, batch: Mapping[str, Any], path: Path) -> float:
    """Write the gradients of a batch; return the loss."""
    from safetensors.torch import save_file

    model.train()
    loss = model(**batch).loss
    loss.backward()
    named = dict(model.named_parameters())
    save_file({n: p.grad.contiguous() for n, p in named.items() if p.grad is not None}, path)
    return float(loss.detach())


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_batches(batches: Sequence[Rows], path: Path) -> None:
    """Write batches for other processes."""
    path.write_text(json.dumps(batches), encoding="utf-8")


def read_batches(path: Path) -> list[Rows]:
    """Read what `write_batches` wrote."""
    found: list[Rows] = json.loads(path.read_text(encoding="utf-8"))
    return found


def padded(rows: Rows, width: int | None = None) -> dict[str, Any]:
    """Pad rows to the longest, as DataCollatorWithPadding does, or cut and pad them to a width."""
    import torch

    longest = width or max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    seen = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        own = row["input_ids"]
        own = own if len(own) <= longest else [*own[: longest - 1], own[-1]]
        ids[i, : len(own)] = torch.tensor(own)
        seen[i, : len(own)] = 1
    return {
        "input_ids": ids,
        "attention_mask": seen,
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


# --- the comparison -----------------------------------------------------------------------------------------


def difference(ours: Path, theirs: Path) -> tuple[float, float]:
    """Return how far our gradients lie from the peer's, in norms: all together, and the worst tensor by the largest one's norm."""
    from safetensors.numpy import load_file

    a, b = load_file(ours), load_file(theirs)
    missing = sorted(set(b) - set(a))
    assert not missing, f"no gradient for {missing}"
    apart = {name: float(np.linalg.norm((a[name] - b[name]).astype(np.float64))) for name in b}
    sizes = {name: float(np.linalg.norm(b[name].astype(np.float64))) for name in b}
    whole = float(np.linalg.norm(list(apart.values())) / np.linalg.norm(list(sizes.values())))
    # The gradient of a key's bias is zero but for rounding: a softmax does not change if a number is added to all scores.
    worst = max(apart[name] / sizes[name] for name in b if sizes[name] > 1e-4 * max(sizes.values()))
    return whole, worst


def alternate(
    workers: Mapping[str, common.Worker], rounds: int, updates: int
) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    """Let each side make so many updates in turn, after one that is not counted; return seconds by round, and all losses."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in workers}
    losses: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            answer = worker.ask(updates=updates if number else 1)
            losses[name] += answer["losses"]
            if number:
                seconds[name].append(answer["seconds"])
        if number:
            shown = ", ".join(f"{name} {1e3 * np.mean(each[-1]):,.0f}" for name, each in seconds.items())
            say(f"  round {number}, ms an update: {shown}")
    return seconds, losses


def curves(losses: Mapping[str, Sequence[float]], every: int) -> Iterator[str]:
    """Yield the mean losses of so many updates each, side by side."""
    for name, values in losses.items():
        means = [float(np.mean(values[i : i + every])) for i in range(0, len(values), every)]
        yield f"  loss {name:28} " + " ".join(f"{mean:.4f}" for mean in means)


def _scratch(name: str) -> Path:
    folder = CACHE / "bench-scratch" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
