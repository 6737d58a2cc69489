"""Classical Chinese poems: held-out bits per byte of a language model trained here, beside an interpolated 5-gram model.

    python benchmarks/poetry.py [--quick] [--json] [--minutes M] [--threads N] [--order N] [--keep FOLDER]

The recipe recipes/poetry.yaml is trained as a user trains it, by `luban.train`. The peer is an n-gram model with modified Kneser-Ney
smoothing (Chen and Goodman, 1998; `_ngram.py` beside this file, whose tests hold it against the formula written out). Both read the same
tokens of the same training poems and are scored on the same held-out poems, token for token: all but the first of each poem, and
the one that ends it. Bits are divided by the bytes of the whole poems in UTF-8, for both.

Kneser-Ney models are made of two amounts of text: of the windows of text that the language model has seen, and of all training
poems. The claim is the harder one: bits per byte below those of the second.

``--minutes`` sets the time for the updates (preparing and measuring come on top); without it the recipe's own number of updates is made.
``--quick`` trains a model of 2 layers on the Tang poems alone for three minutes, to see that all of this works; bits per byte are shown
then, and not claimed. ``--keep`` names a folder for the artefact; what lies finished there is scored without training it again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

import _common as common
import luban
from _common import CACHE, RECIPES, Claim, say
from _ngram import KneserNey
from luban import datasets
from luban import recipe as recipes
from luban.data.contracts import Flat
from luban.data.processors.text import Text
from luban.predict import Predictor
from luban.training.plan import Plan, make_plan

PROMPTS = ("春", "明月", "白日依山盡")
QUICK_MINUTES = 3.0
PROBE = 12  # updates by whose speed a budget in minutes becomes a number of updates
RESAMPLES = 1000
TINY = ["model.layers=2", "model.hidden_size=128", "model.heads=2", "model.kv_heads=2"]


@dataclass(frozen=True)
class Held:
    """What is scored: each token but a poem's first, in nats, and the bytes of the poems.

    Attributes:
        name: of the model.
        losses: minus the log of the probability of a poem's tokens, summed, (poems,).
        tokens: how many these were, (poems,).
        bytes: of each whole poem, (poems,).
    """

    name: str
    losses: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]

    @property
    def bits(self) -> float:
        """Bits per byte."""
        return float(self.losses.sum() / self.bytes.sum() / math.log(2))

    def tell(self) -> None:
        """Print it."""
        loss = self.losses.sum() / self.tokens.sum()
        say(f"  {self.name:58} {self.bits:.4f} bits per byte, {loss:.4f} nats a token")


# --- the language model ---------------------------------------------------------------------------------------


def overrides(options: Any, folder: Path) -> list[str]:
    """Return what is changed in the recipe."""
    own = [] if options.threads is None else [f"train.threads={options.threads}"]
    if options.quick:
        poems = pl.read_ndjson(datasets.main_file("chinese-poetry"))
        path = folder / "tang.jsonl"
        poems.filter(pl.col("dynasty") == "tang").write_ndjson(path)
        own += [*TINY, f"data.train={path}", "data.split.test=0.05", "train.batch_tokens=1024"]
    return own


def budget(own: list[str], minutes: float) -> int:
    """Return how many updates the machine makes in so many minutes, at the speed that it has now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "probe"
        few = [f"train.steps={PROBE}", f"train.evaluate_every={PROBE}", "data.split.test=0"]
        luban.train(RECIPES / "poetry.yaml", [*own, *few], output=folder)
        steps = [one for one in log_of(folder) if one["kind"] == "train"]
    # The first updates also warm the machine up.
    seconds = (steps[-1]["time"] - steps[1]["time"]) / (steps[-1]["step"] - steps[1]["step"])
    return max(1, round(60 * minutes / seconds))


def log_of(artefact: Path) -> list[dict[str, Any]]:
    """Return what a run has written down."""
    lines = (artefact / "train" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def trained(options: Any, folder: Path) -> Path:
    """Train, unless there is an artefact."""
    artefact = Path(options.keep) if options.keep else folder / "artefact"
    if (artefact / "config.json").is_file():
        say(f"taking {artefact} as it is")
        return artefact
    minutes = options.minutes or (QUICK_MINUTES if options.quick else None)
    # Beside the artefact, which names it: whoever takes it up again needs its rows.
    artefact.parent.mkdir(parents=True, exist_ok=True)
    own = overrides(options, artefact.parent)
    if minutes is not None:
        steps = budget(own, minutes)
        own += [f"train.steps={steps}", f"train.evaluate_every={max(1, steps // 6)}"]
        say(f"{minutes:g} minutes are {steps:,} updates")
    result = luban.train(RECIPES / "poetry.yaml", own, output=artefact)
    say(f"trained: {result['steps']:,} updates, {result['seconds']:.0f} s with preparing and measuring")
    return artefact


def curve(artefact: Path) -> dict[str, Any]:
    """Tell how the loss fell; return what the updates cost."""
    log = log_of(artefact)
    updates = [one for one in log if one["kind"] == "train"]
    shown = [f"{one['step']:,}: {one['loss']:.3f}" for one in log if one["kind"] == "validation"]
    say(f"  validation loss, by update: {', '.join(shown)}")
    speed = statistics.median(one["tokens_per_second"] for one in updates if "tokens_per_second" in one)
    seconds = json.loads((artefact / "lineage.json").read_text(encoding="utf-8"))["cost"]["seconds"]
    return {"tokens a second, median": round(speed), "minutes, all in all": round(seconds / 60, 1)}


def seen_by(plan: Plan) -> Flat:
    """Return the windows of text that the updates were made of; of several epochs, those of one."""
    batches = islice(plan.loader.plan(0), plan.total_steps * plan.accumulate)
    windows = np.fromiter(chain.from_iterable(batches), dtype=np.int64)
    return ids(plan.loader.store.take(windows))


def ids(encoded: Any) -> Flat:
    """Return the tokens of encoded rows."""
    found = encoded["text.ids"]
    assert isinstance(found, Flat)
    return found


def by_model(predictor: Predictor, texts: pl.Series) -> Held:
    """Score poems with the language model."""
    assert predictor.speaker is not None
    scores = predictor.speaker.measure(texts)
    losses, tokens, sizes = zip(*((s.loss, s.tokens, s.bytes) for s in scores), strict=True)
    return Held("language model", np.array(losses), np.array(tokens), np.array(sizes))


def sample(predictor: Predictor) -> None:
    """Print poems that begin with the prompts."""
    how = {"temperature": 0.8, "top_p": 0.9, "max_tokens": 70, "seed": 0}
    written = predictor.predict([{"text": prompt} for prompt in PROMPTS], generation=how)
    for prompt, one in zip(PROMPTS, written, strict=True):
        say(f"  {prompt} → {prompt}{one['completion']}")


# --- the peer -----------------------------------------------------------------------------------------------------


def by_ngrams(
    name: str, text: Text, train: Flat, held: Flat, sizes: npt.NDArray[np.int64], order: int
) -> tuple[Held, float]:
    """Count n-grams of training tokens and score the held-out ones; return also how far sums of probabilities are from one."""
    start = time.perf_counter()
    model = KneserNey(train.values, train.offsets, text.trained.get_vocab_size(), order)
    losses = -np.log(model.probabilities(held.values, held.offsets))
    losses[held.offsets[:-1]] = 0.0  # a poem's first token is predicted by neither
    tokens = np.diff(held.offsets) - 1
    found = Held(name, np.add.reduceat(losses, held.offsets[:-1]), tokens, sizes)
    say(f"  counted {len(train.values):,} tokens in {time.perf_counter() - start:.0f} s")
    return found, off_one(model, held)


def off_one(model: KneserNey, held: Flat, count: int = 20) -> float:
    """Return how far the sum of all tokens' probabilities is from one at the most, after so many beginnings of held-out poems."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for poem in rng.integers(len(held.offsets) - 1, size=count):
        start, stop = held.offsets[poem], held.offsets[poem + 1]
        begun = held.values[start : rng.integers(start, stop)]
        worst = max(worst, abs(float(model.distribution(begun).sum()) - 1))
    return worst


# --- the comparison --------------------------------------------------------------------------------------------------


def difference(name: str, ours: Held, peer: Held) -> Claim:
    """Return by how many bits per byte the peer needs more; its interval is a bootstrap over poems."""
    assert (ours.tokens == peer.tokens).all(), "both must predict the same tokens"
    assert (ours.bytes == peer.bytes).all(), "both must be divided by the same bytes"
    gain = (peer.losses - ours.losses) / math.log(2)
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(gain), size=len(gain)) for _ in range(RESAMPLES))
    each = [gain[drawn].sum() / ours.bytes[drawn].sum() for drawn in draws]
    low, high = np.quantile(each, (0.025, 0.975))
    return Claim(name, peer.bits - ours.bits, float(low), float(high), 0.0, "bits per byte")


def compared(artefact: Path, order: int, quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Score both sides on the held-out poems."""
    plan = make_plan(recipes.load(artefact / "recipe.yaml"))
    predictor = luban.load(artefact)
    texts = pl.concat(plan.prepared.raw("test"))["text"]
    ours = by_model(predictor, texts)
    assert predictor.speaker is not None
    text = predictor.speaker.text
    held = ids({"text.ids": text.encode(texts)["ids"]})
    everything = plan.prepared.store("train")
    seen, whole = seen_by(plan), ids(everything.take(np.arange(len(everything))))
    same, error = by_ngrams(f"{order}-grams of the text it has seen", text, seen, held, ours.bytes, order)
    all_of_it, other = by_ngrams(f"{order}-grams of all training poems", text, whole, held, ours.bytes, order)
    say(f"{len(texts):,} poems held out, {ours.bytes.sum():,} bytes, {ours.tokens.sum():,} tokens predicted")
    for each in (ours, same, all_of_it):
        each.tell()
    sample(predictor)
    sums = max(error, other)
    claims = [
        Claim("n-gram probabilities of a context: sum off one", sums, sums, sums, 1e-9, "", at_most=True)
    ]
    below = difference(f"poetry: bits per byte below {order}-grams of all training poems", ours, all_of_it)
    facts = {
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "tokens seen": len(seen.values) if plan.total_steps <= plan.loader.count() else "more than an epoch",
        "training tokens": len(whole.values),
        "bits per byte": {one.name: round(one.bits, 4) for one in (ours, same, all_of_it)},
        **curve(artefact),
    }
    # A small model of a few minutes says nothing about the recipe: its figures are shown, and not claimed.
    return (claims if quick else [below, *claims]), facts


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, help="time for the updates; by default the recipe's updates")
    parser.add_argument("--threads", type=int, help="of the training; 1 on a busy machine")
    parser.add_argument("--order", type=int, default=5, help="tokens of the longest n-gram")
    parser.add_argument("--keep", help="the artefact's folder; a finished one is scored as it is")


def main() -> int:
    options = common.arguments(__doc__ or "", _more)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        artefact = trained(options, Path(folder))
        claims, facts = compared(artefact, options.order, options.quick)
    return common.report(claims, options, notes=facts)


if __name__ == "__main__":
    sys.exit(main())
