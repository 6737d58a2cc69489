"""Fine-tuning speed of an encoder on texts of different lengths: time an update, Luban beside Hugging Face's Trainer.

    python benchmarks/finetune.py [--quick] [--json] [--threads N] [--only short|mixed]

MiniLM (6 layers of 384, 22.7 million parameters), a new head of two classes, batches of 32, dropout 0.1 everywhere, float32,
AdamW at 5e-5 falling linearly, gradients clipped to 1: what the Trainer does by default, and the same in Luban. Texts are
sentences of film reviews (`short`, about 24 tokens), and the same sentences put together to lengths drawn between 10 and 256
(`mixed`, mean about 99). Five sides work in turn, each in a process of its own that rests while another works:

native     Luban through its engine, attention and norms by its own C++ kernel
torch      the same with `train.kernels: torch`, as on a machine without a compiler
longest    Trainer as it is: each batch padded to its longest text
fixed      Trainer with every text cut or padded to 128 tokens, as many tutorials do
grouped    Trainer with texts of like length put together; its batches are drawn from its own order of 1,600 texts, from the
           longest to the shortest, and compared by real tokens a second, since they are other batches

`native`, `torch`, `longest` and `fixed` see the same batches in the same order from the same first weights, head included. With
dropout off, gradients of a batch of very different lengths must be equal; with it, the loss curves are printed side by side.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
import _language as language
from _common import CACHE, Claim, Worker, say

HOME = CACHE / "bench-finetune"
BATCH, FIXED, MEGA = 32, 128, 50 * 32
GOALS = {"short": (2.2, 3.5), "mixed": (3.2, 5.0)}
WITHOUT_COMPILER = (2.0, 3.0)
TOLERANCE = 1e-5


def recipe(texts: str, kernels: str, dropout: float, updates: int) -> dict[str, Any]:
    """Return what Luban trains."""
    rates = dict.fromkeys(("dropout", "layer_dropout", "attention_dropout"), dropout)
    return {
        "data": {
            "train": str(HOME / f"{texts}.csv"),
            "split": {"validation": 0, "test": 0},
            "inputs": {"text": {"type": "text"}},
            "targets": {"label": "category"},
        },
        "model": {"type": "bert", "from": "dataset:minilm", **rates},
        "train": {
            "steps": updates,
            "batch_size": BATCH,
            "optimizer": {"type": "adamw", "learning_rate": 5e-5, "weight_decay": 0.0},
            "schedule": {"type": "linear"},
            "clip": 1.0,
            "precision": "fp32",
            "kernels": kernels,
            "keep": "last",
            "device": "cpu",
        },
    }


def write_texts() -> None:
    """Write both sets of texts."""
    import polars as pl

    from luban import datasets

    HOME.mkdir(parents=True, exist_ok=True)
    rows = pl.read_csv(datasets.main_file("vader-movies")).select("text", "label")
    rows.write_csv(HOME / "short.csv")
    draw = np.random.default_rng(0)
    texts, labels = rows["text"].to_list(), rows["label"].to_list()
    joined: list[dict[str, str]] = []
    while len(joined) < 3_000:
        wanted = float(np.clip(draw.lognormal(np.log(80), 0.75), 10, 256))
        first = int(draw.integers(len(texts)))
        words: list[str] = []
        while len(words) < wanted / 1.3:  # tokens a word
            words += texts[int(draw.integers(len(texts)))].split() if words else texts[first].split()
        joined.append({"text": " ".join(words[: max(8, int(wanted / 1.3))]), "label": labels[first]})
    pl.DataFrame(joined).write_csv(HOME / "mixed.csv")


# --- the sides --------------------------------------------------------------------------------------------


def our_side(texts: str, kernels: str, updates: int, threads: int | None, clock: str) -> None:
    plan = language.plan_of(recipe(texts, kernels, 0.1, updates), threads)
    language.train_ours(plan, clock)


def our_check(texts: str, kernels: str, threads: int | None) -> dict[str, Any]:
    plan = language.plan_of(recipe(texts, kernels, 0.0, 8), threads)
    return {"loss": language.our_gradients(plan, HOME / f"gradients-{texts}-{kernels}.safetensors")}


def their_model(texts: str, dropout: float, threads: int | None) -> Any:
    import torch
    from transformers import (  # type: ignore[import-not-found,unused-ignore]
        BertForSequenceClassification,
    )

    torch.set_num_threads(threads or language.cores())
    torch.manual_seed(0)
    return BertForSequenceClassification.from_pretrained(
        HOME / f"model-{texts}",
        num_labels=2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def their_side(texts: str, how: str, updates: int, threads: int | None, clock: str) -> None:
    batches = language.read_batches(HOME / f"{texts}.json")
    if how == "grouped":
        batches = grouped([row for batch in batches for row in batch])
        language.write_batches(batches, HOME / f"{texts}-grouped.json")
    width = FIXED if how == "fixed" else None
    language.train_theirs(
        their_model(texts, 0.1, threads), batches[:updates], lambda rows: language.padded(rows, width), clock
    )


def grouped(rows: language.Rows) -> list[language.Rows]:
    """Return batches as `train_sampling_strategy="group_by_length"` makes them, in random order.

    Within its groups of 50 batches the Trainer goes from the longest to the shortest; a few updates show their mean only if
    they are drawn from all of it.
    """
    import torch
    from transformers.trainer_pt_utils import (  # type: ignore[import-not-found,unused-ignore]
        get_length_grouped_indices,
    )

    rows = rows[: len(rows) // MEGA * MEGA] or rows
    lengths = [len(row["input_ids"]) for row in rows]
    # 50 batches together is what the Trainer does from 6,400 rows on.
    order = get_length_grouped_indices(lengths, BATCH, 50, generator=torch.Generator().manual_seed(0))
    batches = [[rows[i] for i in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    # Spread over the range in each stretch: every seventh, then every seventh from the next on.
    return [
        batches[i]
        for offset in np.random.default_rng(0).permutation(7)
        for i in range(offset, len(batches), 7)
    ]


def their_check(texts: str, threads: int | None) -> dict[str, Any]:
    batch = language.padded(language.read_batches(HOME / f"{texts}.json")[0])
    path = HOME / f"gradients-{texts}-theirs.safetensors"
    return {"loss": language.their_gradients(their_model(texts, 0.0, threads), batch, path)}


def side(words: list[str]) -> None:
    """Be one of the sides."""
    kind, texts, how, clock = words[:4]
    updates, threads = int(words[4]), int(words[5]) or None
    if kind == "prepare":
        plan = language.plan_of(recipe(texts, "torch", 0.1, 8), threads)
        language.write_for_peer(plan, HOME / f"model-{texts}")
        language.write_batches(language.batches_of(plan, "text", "label", updates), HOME / f"{texts}.json")
        common.serve(lambda: {"done": True})
    elif kind == "check":
        ours = how in ("native", "torch")
        common.serve(lambda: our_check(texts, how, threads) if ours else their_check(texts, threads))
    elif how in ("native", "torch"):
        our_side(texts, how, updates, threads, clock)
    else:
        their_side(texts, how, updates, threads, clock)


# --- the comparison ---------------------------------------------------------------------------------------


def compare(texts: str, options: Any) -> list[Claim]:
    """Measure one set of texts."""
    rounds = 5 if options.quick else 7
    updates = {"short": 4 if options.quick else 10, "mixed": 2 if options.quick else 4}[texts]
    total = rounds * updates + 2
    theirs, threads = language.peer(), str(options.threads or 0)

    def worker(kind: str, how: str, count: int) -> Worker:
        ours = kind == "prepare" or how in ("native", "torch")
        python: Path | str = sys.executable if ours else theirs
        return Worker(python, __file__, kind, texts, how, options.clock, str(count), threads)

    with worker("prepare", "", max(total, MEGA // BATCH)) as one:
        one.ask()
    claims = []
    for how in ("theirs", "native", "torch"):
        with worker("check", how, 0) as one:
            say(f"  gradients, {how}: loss {one.ask()['loss']:.7f}")
        if how != "theirs":
            whole, worst = language.difference(
                *(HOME / f"gradients-{texts}-{name}.safetensors" for name in (how, "theirs"))
            )
            name = f"{texts}, {how} kernels: gradients without dropout against the padded model's"
            claims.append(Claim(name, whole, whole, worst, TOLERANCE, "relative", at_most=True))
    names = ["native", "torch", "longest", "fixed", "grouped"]
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker("train", name, total)) for name in names}
        seconds, losses = language.alternate(workers, rounds, updates)
    common.table({k: [1e3 * s for one in v for s in one] for k, v in seconds.items()}, "ms an update")
    for line in language.curves({k: v for k, v in losses.items() if k != "grouped"}, max(1, total // 8)):
        say(line)
    speed = {name: [1 / statistics.fmean(one) for one in each] for name, each in seconds.items()}
    batches = language.read_batches(HOME / f"{texts}.json")
    tokens = [sum(len(row["input_ids"]) for row in batch) for batch in batches]
    lengths = [len(row["input_ids"]) for batch in batches for row in batch]
    say(f"  tokens a text: {min(lengths)} to {max(lengths)}, mean {statistics.fmean(lengths):.1f}")
    (goal, aim), trainer = GOALS[texts], "against the Trainer"
    claims += [
        common.ratios(
            f"{texts} {trainer}, padded to the longest", speed["native"], speed["longest"], goal, aim
        ),
        common.ratios(
            f"{texts} without a compiler {trainer}, padded to the longest",
            speed["torch"],
            speed["longest"],
            *WITHOUT_COMPILER,
        ),
        common.ratios(f"{texts} {trainer}, padded to {FIXED}", speed["native"], speed["fixed"], 1.0),
    ]
    others = [
        sum(len(row["input_ids"]) for row in batch)
        for batch in language.read_batches(HOME / f"{texts}-grouped.json")
    ]
    ours, peers = (
        [sum(sizes[1 + i * updates :][:updates]) / sum(one) for i, one in enumerate(seconds[name])]
        for name, sizes in (("native", tokens), ("grouped", others))
    )
    each = [a / b for a, b in zip(ours, peers, strict=True)]
    spent = {name: sum(map(sum, seconds[name])) for name in ("native", "grouped")}
    seen = [sum(sizes[1 : 1 + rounds * updates]) for sizes in (tokens, others)]
    whole = seen[0] / spent["native"] / (seen[1] / spent["grouped"])
    name = f"{texts} {trainer}, like lengths together, tokens a second"
    return [*claims, Claim(name, whole, min(each), max(each), 1.0, "x")]


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=GOALS, help="one set of texts")
    language.busy(parser)


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        side(sys.argv[2:])
        return 0
    options = common.arguments(__doc__ or "", _more)
    write_texts()
    claims: list[Claim] = []
    for texts in [options.only] if options.only else GOALS:
        say(texts)
        claims += compare(texts, options)
    notes = {
        "peer": ", ".join(language.PEERS),
        "batch": BATCH,
        "threads": options.threads or "each side's own",
    }
    return common.report(claims, options, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
