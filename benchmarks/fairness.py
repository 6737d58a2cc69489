"""What does fairness cost? The adult recipe with every means that Luban has, at several strengths, on the published test rows.

    python benchmarks/fairness.py [--quick] [--json] [--seeds N]

Of each run: accuracy, and how far women and men differ in the share predicted to earn more (demographic parity) and in true and
false positive rates (equalised odds), which two of the objectives can also be asked for ('odds'). Claim: some point has at most half
of the plain model's demographic-parity difference for at most one point of accuracy. 15 % of the training rows, drawn by lot, are
validation rows, on which thresholds are fitted.

``--quick`` trains one epoch instead of seven and every other strength.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

import _common as common
import luban
from _common import RECIPES, Claim, say
from luban import datasets

ALPHAS = (1.0, 3.0, 5.0, 10.0, 30.0, 100.0)
AGAINST = (0.3, 1.0, 2.0, 3.0, 10.0)  # an adversary
WITHIN = {"fair": (3.0, 10.0, 30.0), "fair_adversary": (0.3, 1.0, 3.0)}  # the classes: equalised odds
DIFFERENCES = (0.15, 0.1, 0.05, 0.0)


def runs(quick: bool) -> dict[str, dict[str, Any]]:
    """Return what is put upon the plain recipe, by name."""
    alphas, against, differences = (one[:: 2 if quick else 1] for one in (ALPHAS, AGAINST, DIFFERENCES))
    wrapped = {"by": ["sex"], "objective": "binary_cross_entropy"}
    found: dict[str, dict[str, Any]] = {"plain": {}, "reweigh": {"objective": {"type": "reweigh", **wrapped}}}
    for alpha in alphas:
        found[f"fair, alpha {alpha:g}"] = {"objective": {"type": "fair", "alpha": alpha, **wrapped}}
    for alpha in against:
        objective = {"type": "fair_adversary", "alpha": alpha, **wrapped}
        found[f"fair_adversary, alpha {alpha:g}"] = {"objective": objective}
    for kind, chosen in WITHIN.items():
        for alpha in chosen[:: 2 if quick else 1]:
            objective = {"type": kind, "alpha": alpha, "constraint": "equalized_odds", **wrapped}
            found[f"{kind}, odds, alpha {alpha:g}"] = {"objective": objective}
    for difference in differences:
        decide = [{"type": "thresholds", "by": "sex", "max_difference": difference}]
        found[f"thresholds, difference {difference:g}"] = {"decide": decide}
    return found


def table(folder: Path) -> Path:
    """Write the adult rows with 15 % of the training rows marked as validation rows."""
    rows = pl.read_csv(datasets.main_file("adult"), infer_schema=False)
    lots = np.random.default_rng(0).random(len(rows)) < 0.15
    chosen = pl.Series(lots) & (rows["split"] == "train")
    marked = pl.select(pl.when(chosen).then(pl.lit("validation")).otherwise(rows["split"])).to_series()
    path = folder / "adult.parquet"
    rows.with_columns(marked.alias("split")).write_parquet(path)
    return path


def measured(recipe: dict[str, Any], folder: Path, seed: int) -> dict[str, float]:
    """Train and audit once."""
    result = luban.train(recipe, [f"train.seed={seed}", "train.threads=1"], output=folder, force=True)
    audit = luban.audit(
        folder, str(recipe["data"]["train"]), only=["fairness"], by=["sex"], split="test", fresh=True
    )
    figures = audit["figures"]
    return {
        "accuracy": result["metrics"]["income.accuracy"]["value"],
        "parity": figures["fairness.sex.demographic_parity_difference"],
        "odds": figures["fairness.sex.equalized_odds_difference"],
    }


def main() -> int:
    """Run everything and report."""
    options = common.arguments(
        __doc__ or "", lambda parser: parser.add_argument("--seeds", type=int, default=1, help="runs of each")
    )
    plain = yaml.safe_load((RECIPES / "adult.yaml").read_text(encoding="utf-8"))
    points: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain["data"]["train"] = str(table(folder))
        if options.quick:
            plain["train"]["epochs"] = 1
        for name, upon in runs(options.quick).items():
            own = [measured({**plain, **upon}, folder / "run", seed) for seed in range(options.seeds)]
            points[name] = {key: statistics.fmean(one[key] for one in own) for key in own[0]}
            say(f"{name:32} " + "  ".join(f"{key} {value:.4f}" for key, value in points[name].items()))
    base = points["plain"]
    fairer = {name: one for name, one in points.items() if one["parity"] <= base["parity"] / 2}
    best = max(fairer, key=lambda name: fairer[name]["accuracy"], default="plain")
    lost = 100 * (base["accuracy"] - points[best]["accuracy"])
    claims = [
        Claim(f"demographic-parity difference, {best}", points[best]["parity"], points[best]["parity"], points[best]["parity"],
              base["parity"] / 2, "difference", at_most=True),
        Claim(f"accuracy given up, {best}", lost, lost, lost, 1.0, "points", at_most=True),
    ]  # fmt: skip
    return common.report(claims, options, notes={"points": points})


if __name__ == "__main__":
    sys.exit(main())
