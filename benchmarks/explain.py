"""Integrated gradients of short texts: texts a second, Luban beside captum on the Hugging Face model.

    python benchmarks/explain.py [--quick] [--json] [--threads N] [--clock cpu]

MiniLM (6 layers of 384, 22.7 million parameters) with a head of two classes, fine-tuned for some updates on sentences of film
reviews (about 24 tokens each); 32 steps of Gauss-Legendre quadrature, float32, from a text of padding between [CLS] and [SEP] to
the text, at the vectors of the words. Two sides work in turn, each in a process of its own that rests while the other works, on
the same 1,000 texts:

luban      `luban.verbs.explain.explain_rows`: cleaning, tokens, prediction, gradients, scores at both ends, places in the text; with
           its own code, which is built first if need be
captum     `LayerIntegratedGradients`, one text at a time with its 32 steps in one batch and its check of completeness, as captum's
           own guide to BERT does, on the model that `luban export --format hf` wrote; tokens and prediction as usual, and no places

Attributions of both sides are compared, text by text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import _common as common
import _language as language
from _common import CACHE, Claim, Worker, say

HOME = CACHE / "bench-explain"
ARTEFACT, EXPORTED, TEXTS = HOME / "artefact", HOME / "hf", HOME / "texts.csv"
PEERS = (*language.PEERS, "captum==0.9.0")
STEPS, COUNT, GOAL, AIM = 32, 1_000, 3.0, 5.0
TOLERANCE = 1e-4


def prepare() -> None:
    """Write the texts, train the classifier and export it, unless an earlier run did."""
    import polars as pl

    import luban
    from luban import datasets

    if (EXPORTED / "config.json").is_file() and TEXTS.is_file():
        return
    HOME.mkdir(parents=True, exist_ok=True)
    rows = pl.read_csv(datasets.main_file("vader-movies")).select("text", "label")
    rows.sample(COUNT, seed=0).write_csv(TEXTS)
    recipe = {
        "data": {
            "train": "dataset:vader-movies",
            "inputs": {"text": "text"},
            "targets": {"label": "category"},
        },
        "model": {"type": "bert", "from": "dataset:minilm"},
        "train": {"steps": 60, "batch_size": 32, "device": "cpu", "precision": "fp32"},
    }
    luban.train(recipe, output=str(ARTEFACT), force=True)
    luban.export(str(ARTEFACT), str(EXPORTED), format="hf", force=True)


def texts() -> list[str]:
    """Return the texts."""
    import polars as pl

    found: list[str] = pl.read_csv(TEXTS)["text"].to_list()
    return found


# --- the sides --------------------------------------------------------------------------------------------


def ours(threads: int | None) -> Callable[[list[str]], list[list[float]]]:
    """Return what explains texts with Luban: a value a token."""
    import polars as pl
    import torch

    from luban.models import _kernels
    from luban.predict import load
    from luban.verbs.explain import explain_rows

    say(f"  {_kernels.use('native')}")
    torch.set_num_threads(threads or language.cores())
    predictor = load(ARTEFACT)

    def work(some: list[str]) -> list[list[float]]:
        found = explain_rows(
            predictor, pl.DataFrame({"text": some}), method="integrated_gradients", options=[f"steps={STEPS}"]
        )
        return [one.parts["text"].values.tolist() for one in found]

    return work


def theirs(threads: int | None) -> Callable[[list[str]], list[list[float]]]:
    """Return what explains texts with captum: a value a token."""
    import torch
    from captum.attr import LayerIntegratedGradients
    from transformers import (  # type: ignore[import-not-found,unused-ignore]
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    torch.set_num_threads(threads or language.cores())
    model = AutoModelForSequenceClassification.from_pretrained(EXPORTED).eval()
    tokenizer = AutoTokenizer.from_pretrained(EXPORTED)
    gradients = LayerIntegratedGradients(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits,
        model.bert.embeddings.word_embeddings,
    )

    def one(text: str) -> list[float]:
        coded = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        ids, mask = coded["input_ids"], coded["attention_mask"]
        neutral = torch.full_like(ids, tokenizer.pad_token_id)
        neutral[:, 0], neutral[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
        with torch.no_grad():
            chosen = int(model(input_ids=ids, attention_mask=mask).logits.argmax())
        found, _ = gradients.attribute(
            ids,
            neutral,
            target=chosen,
            additional_forward_args=(mask,),
            n_steps=STEPS,
            method="gausslegendre",
            return_convergence_delta=True,
        )
        values: list[float] = found[0].sum(-1).tolist()
        return values

    return lambda some: [one(text) for text in some]


def side(words: list[str]) -> None:
    """Be one of the sides: explain the texts that are asked for, and say how long it took."""
    name, clock = words[:2]
    threads = int(words[2]) or None
    work = (ours if name == "luban" else theirs)(threads)
    common.serve_slices(work, texts(), clock)


# --- the comparison ---------------------------------------------------------------------------------------


def difference(a: list[float], b: list[float]) -> float:
    """Return how far two attributions of a text are apart, relative to the second's length."""
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return float("inf")
    return float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-12))


def _more(parser: argparse.ArgumentParser) -> None:
    language.busy(parser)


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        side(sys.argv[2:])
        return 0
    options = common.arguments(__doc__ or "", _more)
    prepare()
    rounds, each = (3, 40) if options.quick else (5, 200)
    python = common.environment("captum", PEERS, on_top_of_ours=True)
    seconds: dict[str, list[float]] = {"luban": [], "captum": []}
    apart: list[float] = []
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(where, __file__, name, options.clock, str(options.threads or 0)))
            for name, where in (("luban", Path(sys.executable)), ("captum", python))
        }
        for worker in workers.values():  # whatever is made once is made now
            worker.ask(start=0, stop=8)
        for i in range(rounds):
            values = {}
            order = list(workers) if i % 2 == 0 else list(workers)[::-1]
            for name in order:
                found = workers[name].ask(start=i * each, stop=(i + 1) * each)
                seconds[name].append(found["seconds"])
                values[name] = found["values"]
            apart += [difference(a, b) for a, b in zip(values["luban"], values["captum"], strict=True)]
            say(
                f"  round {i + 1}: "
                + ", ".join(f"{n} {each / s[-1]:.1f} texts/s" for n, s in seconds.items())
            )
    common.table({name: [each / s for s in own] for name, own in seconds.items()}, "texts a second")
    speed = {name: [each / s for s in own] for name, own in seconds.items()}
    claims = [
        common.ratios(
            f"integrated gradients, {STEPS} steps, against captum", speed["luban"], speed["captum"], GOAL, AIM
        ),
        Claim(
            f"attributions of {len(apart)} texts against captum's, the worst",
            max(apart),
            min(apart),
            max(apart),
            TOLERANCE,
            "relative",
            at_most=True,
        ),
    ]
    notes = {
        "peer": ", ".join(PEERS),
        "texts": rounds * each,
        "threads": options.threads or "each side's own",
    }
    return common.report(claims, options, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
