"""Sorting short texts into classes: texts a second, Luban beside transformers with the same fine-tuned weights.

    python benchmarks/predict.py [--quick] [--json] [--threads N] [--clock cpu]

The classifier and the texts of `explain.py` (MiniLM, 6 layers of 384; sentences of film reviews of about 24 tokens), float32. Three
sides work in turn, each in a process of its own that rests while the others work, from texts to a class and a probability for each:

luban      `Predictor.predict`, with its own code, which is built first if need be
pipeline   `transformers.pipeline("text-classification")` as it comes, one text at a time
sorted     the same, in batches of 32 of texts sorted by their length, which is the best of its common settings

Probabilities of all sides are compared, text by text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import _common as common
import _language as language
import explain
from _common import Claim, Worker, say

GOALS = {"pipeline": 4.0, "sorted": 2.0}
TOLERANCE = 1e-4


def ours(threads: int | None) -> Callable[[list[str]], list[dict[str, float]]]:
    """Return what finds the probabilities of classes with Luban, a dictionary a text."""
    import polars as pl
    import torch

    from luban.models import _kernels
    from luban.predict import load

    say(f"  {_kernels.use('native')}")
    torch.set_num_threads(threads or language.cores())
    predictor = load(explain.ARTEFACT)
    return lambda some: [
        {name: float(share) for name, share in one["label.scores"].items()}
        for one in predictor.predict(pl.DataFrame({"text": some}))
    ]


def theirs(name: str, threads: int | None) -> Callable[[list[str]], list[dict[str, float]]]:
    """Return what finds them with transformers."""
    import torch
    import transformers  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(threads or language.cores())
    classify = transformers.pipeline("text-classification", model=str(explain.EXPORTED), top_k=None)

    def work(some: list[str]) -> list[dict[str, float]]:
        order = sorted(range(len(some)), key=lambda i: len(some[i])) if name == "sorted" else range(len(some))
        found = classify([some[i] for i in order], batch_size=32 if name == "sorted" else 1)
        result: list[dict[str, float]] = [{}] * len(some)
        for i, classes in zip(order, found, strict=True):
            result[i] = {one["label"]: one["score"] for one in classes}
        return result

    return work


def side(words: list[str]) -> None:
    """Be one of the sides: predict the texts that are asked for, and say how long it took."""
    name, clock = words[:2]
    threads = int(words[2]) or None
    work = ours(threads) if name == "luban" else theirs(name, threads)
    common.serve_slices(work, explain.texts(), clock)


def _more(parser: argparse.ArgumentParser) -> None:
    language.busy(parser)


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        side(sys.argv[2:])
        return 0
    options = common.arguments(__doc__ or "", _more)
    explain.prepare()
    rounds = 3 if options.quick else 9
    python = common.environment("captum", explain.PEERS, on_top_of_ours=True)
    where = {"luban": Path(sys.executable), "pipeline": python, "sorted": python}
    speed: dict[str, list[float]] = {name: [] for name in where}
    apart = []
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(own, __file__, name, options.clock, str(options.threads or 0)))
            for name, own in where.items()
        }
        for worker in workers.values():  # whatever is made once is made now
            worker.ask(start=0, stop=40)
        for i in range(rounds):
            values = {}
            for name in list(workers)[:: 1 if i % 2 == 0 else -1]:
                found = workers[name].ask(start=0, stop=explain.COUNT)
                speed[name].append(explain.COUNT / found["seconds"])
                values[name] = found["values"]
            for name in GOALS:
                pairs = zip(values["luban"], values[name], strict=True)
                apart += [max(abs(one[label] - other[label]) for label in other) for one, other in pairs]
            say(f"  round {i + 1}: " + ", ".join(f"{n} {s[-1]:.0f} texts/s" for n, s in speed.items()))
    common.table(speed, "texts a second")
    claims = [
        common.ratios(f"predicting against {name}", speed["luban"], speed[name], goal)
        for name, goal in GOALS.items()
    ]
    name = f"probabilities of {explain.COUNT} texts against both, the worst"
    claims.append(Claim(name, max(apart), min(apart), max(apart), TOLERANCE, "apart", at_most=True))
    notes = {"peer": ", ".join(explain.PEERS), "threads": options.threads or "each side's own"}
    return common.report(claims, options, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
