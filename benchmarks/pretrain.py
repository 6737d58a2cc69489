"""Pretraining speed of a causal language model: tokens a second, Luban beside Hugging Face's Trainer.

    python benchmarks/pretrain.py [--quick] [--json] [--threads N] [--only 8k|50k]

GPT-2's shape with 6 layers of 384, texts of 256 tokens in batches of 16, vocabularies of 8,192 and 50,257 tokens, dropout 0.1
everywhere (GPT-2's default, the same on both sides), float32, AdamW at 5e-5 falling linearly, gradients clipped to 1. Tokens are
drawn by Zipf's law. Three sides work in turn on the same batches from the same first weights, each in a process of its own:

native     Luban through its engine, with its own C++ kernel
torch      the same with `train.kernels: torch`, as on a machine without a compiler
trainer    Trainer as it is: `GPT2LMHeadModel`, default_data_collator

With dropout off, the gradients of a batch must be equal; with it, the loss curves are printed side by side.

Where there is a CUDA device it measures instead how near Luban comes to the device's own peak, in bf16: GPT-2 of 124 million
parameters on texts of 1,024 tokens, and Llama's shape with about a billion on texts of 2,048. The share is that of the operations that
the model needs (6 a parameter and token, and those of causal attention), over the peak that the maker states for dense products.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
import _language as language
from _common import CACHE, Claim, Worker, say

HOME = CACHE / "bench-pretrain"
BATCH, LENGTH = 16, 256
SIZES = {"8k": 8_192, "50k": 50_257}
GOALS = {"8k": (1.1, 1.4), "50k": (1.5, 2.0)}
TOLERANCE = 1e-5
# Dense bf16 products, operations a second, as the maker states them.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def recipe(name: str, kernels: str, dropout: float, updates: int) -> dict[str, Any]:
    """Return what Luban trains."""
    rates = dict.fromkeys(("layer_dropout", "attention_dropout"), dropout)
    text = {
        "type": "text",
        "tokenizer": str(HOME / name / "tokenizer.json"),
        "lowercase": False,
        "end": False,
    }
    return {
        "data": {
            "train": str(HOME / name / "texts.csv"),
            "split": {"validation": 0, "test": 0},
            "inputs": {"text": text},
            "clean": [],
        },
        "model": {
            "type": "gpt2",
            "layers": 6,
            "hidden_size": 384,
            "heads": 6,
            "max_positions": LENGTH,
            **rates,
        },
        "objective": {"type": "causal_lm", "length": LENGTH},
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


def write_texts(name: str, rows: int, length: int = LENGTH) -> None:
    """Write texts of so many tokens, and the tokenizer whose words they are made of."""
    import polars as pl
    from tokenizers import Tokenizer, models, pre_tokenizers

    size = SIZES[name]
    (HOME / name).mkdir(parents=True, exist_ok=True)
    words = [f"w{i}" for i in range(size)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(HOME / name / "tokenizer.json"))
    share = 1 / np.arange(1, size + 1)
    drawn = np.random.default_rng(0).choice(size, size=(rows, length), p=share / share.sum())
    texts = [" ".join(words[i] for i in row) for row in drawn]
    pl.DataFrame({"text": texts}).write_csv(HOME / name / "texts.csv")


# --- the sides --------------------------------------------------------------------------------------------


def our_check(name: str, kernels: str, threads: int | None) -> dict[str, Any]:
    plan = language.plan_of(recipe(name, kernels, 0.0, 8), threads)
    return {"loss": language.our_gradients(plan, HOME / name / f"gradients-{kernels}.safetensors")}


def their_model(name: str, dropout: float, threads: int | None) -> Any:
    import torch
    from transformers import GPT2LMHeadModel  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(threads or language.cores())
    torch.manual_seed(0)
    rates: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel.from_pretrained(HOME / name / "model", **rates)


def tensors(rows: language.Rows) -> dict[str, Any]:
    """Do what default_data_collator does."""
    import torch

    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


def their_check(name: str, threads: int | None) -> dict[str, Any]:
    batch = tensors(language.read_batches(HOME / name / "batches.json")[0])
    path = HOME / name / "gradients-trainer.safetensors"
    return {"loss": language.their_gradients(their_model(name, 0.0, threads), batch, path)}


def side(words: list[str]) -> None:
    """Be one of the sides."""
    kind, name, how, clock = words[:4]
    updates, threads = int(words[4]), int(words[5]) or None
    ours = how != "trainer"
    if kind == "prepare":
        plan = language.plan_of(recipe(name, "torch", 0.1, 8), threads)
        language.write_for_peer(plan, HOME / name / "model", bos_token_id=0, eos_token_id=0)
        language.write_batches(language.batches_of(plan, "text", None, updates), HOME / name / "batches.json")
        common.serve(lambda: {"done": True})
    elif kind == "check":
        common.serve(lambda: our_check(name, how, threads) if ours else their_check(name, threads))
    elif ours:
        language.train_ours(language.plan_of(recipe(name, how, 0.1, updates), threads), clock)
    else:
        batches = language.read_batches(HOME / name / "batches.json")[:updates]
        language.train_theirs(their_model(name, 0.1, threads), batches, tensors, clock)


# --- the comparison ---------------------------------------------------------------------------------------


def compare(name: str, options: Any) -> list[Claim]:
    """Measure one vocabulary."""
    rounds, updates = (5, 1) if options.quick else (7, 3)
    total = rounds * updates + 2
    write_texts(name, total * BATCH)
    theirs, threads = language.peer(), str(options.threads or 0)

    def worker(kind: str, how: str) -> Worker:
        python: Path | str = theirs if how == "trainer" else sys.executable
        return Worker(python, __file__, kind, name, how, options.clock, str(total), threads)

    with worker("prepare", "") as one:
        one.ask()
    claims = []
    for how in ("trainer", "native", "torch"):
        with worker("check", how) as one:
            say(f"  gradients, {how}: loss {one.ask()['loss']:.7f}")
        if how != "trainer":
            whole, worst = language.difference(
                *(HOME / name / f"gradients-{which}.safetensors" for which in (how, "trainer"))
            )
            title = f"{name}, {how} kernels: gradients without dropout against GPT2LMHeadModel's"
            claims.append(Claim(title, whole, whole, worst, TOLERANCE, "relative", at_most=True))
    with ExitStack() as stack:
        workers = {how: stack.enter_context(worker("train", how)) for how in ("native", "torch", "trainer")}
        seconds, losses = language.alternate(workers, rounds, updates)
    # The Trainer divides by all labels, also by the first of each text, which nobody predicts.
    losses["trainer"] = [loss * LENGTH / (LENGTH - 1) for loss in losses["trainer"]]
    for line in language.curves(losses, max(1, total // 8)):
        say(line)
    speed = {how: [BATCH * LENGTH / statistics.fmean(one) for one in each] for how, each in seconds.items()}
    common.table(speed, "tokens/s")
    title = f"vocabulary of {SIZES[name]:,}, tokens/s against the Trainer at equal dropout"
    claims.append(common.ratios(title, speed["native"], speed["trainer"], *GOALS[name]))
    claims.append(common.ratios(f"{title}, without a compiler", speed["torch"], speed["trainer"], 1.0))
    return claims


# --- on a GPU -----------------------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "GPT-2, 124 million": {
        "type": "gpt2",
        "layers": 12,
        "hidden_size": 768,
        "heads": 12,
        "max_positions": 1024,
    },
    "Llama's shape, a billion": {
        "type": "llama",
        "layers": 16,
        "hidden_size": 2048,
        "heads": 32,
        "kv_heads": 8,
        "intermediate": 8192,
        "max_positions": 2048,
    },
}


def on_gpu(options: Any) -> list[Claim]:
    """Measure the share of the device's peak."""
    import torch

    peak = next((value for key, value in PEAKS.items() if key in torch.cuda.get_device_name()), None)
    if peak is None:
        say(f"the peak of '{torch.cuda.get_device_name()}' is not known here, so no share of it is claimed")
    claims = []
    for title, model in MODELS.items():
        length = model["max_positions"]
        sizes = {1024: 32, 2048: 8}[length]
        updates = 20 if options.quick else 60
        write_texts("50k", sizes * (updates + 12), length)
        wanted = recipe("50k", "torch", 0.0, updates + 10)
        wanted["model"] = {**model, "attention_dropout": 0.0, "layer_dropout": 0.0}
        wanted["objective"]["length"] = length
        wanted["train"] |= {"batch_size": sizes, "device": "cuda", "precision": "bf16"}
        plan = language.plan_of(wanted, None)
        parameters = sum(p.numel() for p in plan.model.parameters())
        rates = _gpu_rates(plan, updates, sizes * length)
        layers, width = model["layers"], model["hidden_size"]
        needed = 6 * parameters + 6 * layers * width * length  # causal: half of 12 · layers · width · length
        value = statistics.median(rates)
        memory = torch.cuda.max_memory_allocated() / 2**30
        say(f"  {title}: {parameters / 1e6:,.0f} million parameters, {value:,.0f} tokens/s, {memory:.1f} GiB")
        if peak is not None:
            middle, low, high = (rate * needed / peak for rate in (value, min(rates), max(rates)))
            name = f"{title}: model-FLOPs use in bf16"
            claims.append(Claim(name, middle, low, high, 0.5, "of the peak", aim=0.6))
        del plan
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return claims


def _gpu_rates(plan: Any, updates: int, tokens: int) -> list[float]:
    """Return tokens a second of five stretches of updates, after ten that are not counted."""
    import torch

    batches, rates = plan.loader.batches(0), []
    for _ in range(10):
        plan.step([next(batches)])
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(updates // 5):
            plan.step([next(batches)])
        torch.cuda.synchronize()
        rates.append(updates // 5 * tokens / (time.perf_counter() - started))
    return rates


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=SIZES, help="one vocabulary")
    language.busy(parser)


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        side(sys.argv[2:])
        return 0
    options = common.arguments(__doc__ or "", _more)
    import torch

    claims: list[Claim] = []
    if torch.cuda.is_available():
        claims = on_gpu(options)
    else:
        for name in [options.only] if options.only else SIZES:
            say(name)
            claims += compare(name, options)
    notes = {
        "peer": ", ".join(language.PEERS),
        "threads": options.threads or "each side's own",
        "clock": options.clock,
    }
    return common.report(claims, options, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
