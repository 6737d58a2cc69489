"""No key of an audit is read by nothing: changing any of them changes what the audit finds."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import luban
from audit_cases import RECIPE, case_of, people
from luban.artefact import Artefact
from luban.auditing._base import Audit, Case
from luban.data.sampling import Sample
from luban.recipe import Section
from luban.registry import lookup, names

TRIED: dict[str, dict[str, Any]] = {
    "fairness": {
        "by": ["town"], "intersections": False, "min_rows": 75, "resamples": 100, "tolerance": 0.9, "ratio": ({"tolerance": 0.9}, 0.01),
    },
    "calibration": {"tolerance": 0.001, "resamples": 100},
    "labels": {"predictions": "own", "folds": 3, "rows": 60, "tolerance": 0.9, "shown": 1},
    "leakage": {"threshold": 0.1, "distinct": 0.005},
    "duplicates": {"threshold": 0.95, "ngram": 30, "tolerance": 0.9},
    "drift": {"moderate": 9.0, "large": 9.0, "rows": 50},
    "columns": {"missing": 0.9, "far": 0.1, "outliers": ({"far": 0.1}, 0.9), "dominant": 0.55, "rare": 0.49},
    "robustness": {
        "rows": 20, "share": 0.9, "changes": ["missing"], "pixels": 200.0, "numbers": 3.0, "vectors": 3.0, "steps": ({"rows": 300, "numbers": 1.5, "vectors": 1.5, "pixels": 40.0}, 2), "tolerance": ({"numbers": 5.0}, 0.99),
    },
    "privacy": {"rows": 100, "references": 2, "reference": "runs/base", "tolerance": 0.4},
    "memorisation": {"canaries": "others.txt", "strings": 199, "error": ({"canaries": "one.txt"}, 0.99)},
    "toxicity": {
        "words": "others.txt", "prompts": "prompts.txt", "refusals": "words.txt", "expect": ({"refusals": "words.txt"}, "answer"),
        "rows": 1, "max_tokens": 1, "temperature": 3.0, "tolerance": 0.999,
    },
}  # fmt: skip
BASE: dict[str, dict[str, Any]] = {
    "robustness": {
        "rows": 60,
        "numbers": 0.5,
        "changes": ["missing", "pgd_numbers", "pgd_vectors", "pgd_pixels"],
    },
    "memorisation": {"canaries": "canaries.txt", "strings": 99},
    "toxicity": {"words": "words.txt", "max_tokens": 8, "rows": 4},
}
ALL = [(name, key, value) for name, keys in TRIED.items() for key, value in keys.items()]


def test_every_key_of_every_audit_is_tried() -> None:
    assert set(TRIED) == set(names("audits"))
    for name, keys in TRIED.items():
        assert set(keys) == set(lookup("audits", name).model_fields)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A case with something wrong in every way, and a model of numbers, words, texts and pictures."""
    folder = tmp_path_factory.mktemp("faulty")
    rows = people(600)
    n = len(rows)
    generator = np.random.default_rng(0)
    yes = (rows["label"] == "yes").to_numpy() & ~(
        (rows["group"] == "b").to_numpy() & (generator.random(n) < 0.6)
    )
    flipped = yes ^ (generator.random(n) < 0.08)
    words = [f"w{i}" for i in range(60)]
    notes = [" ".join(generator.choice(words, 12)) for _ in range(n)]
    notes[5:60] = [f"{note} w1" for note in notes[300:355]]
    pixels = generator.integers(0, 120, (n, 4, 4)).astype(np.uint8)
    pixels[yes, :2] += 90
    rows = rows.with_columns(
        pl.Series("label", np.where(flipped, "yes", "no")),
        pl.Series("note", notes),
        pl.Series("photo", pixels, dtype=pl.Array(pl.UInt8, (4, 4))),
        pl.select(pl.when(pl.Series(generator.random(n) < 0.3)).then(None).otherwise(rows["luck"]))
        .to_series()
        .alias("luck"),
    )
    rows.write_ipc(folder / "rows.arrow")
    inputs = {**RECIPE["data"]["inputs"], "group": "category", "note": "text", "photo": "image"}
    data = {**RECIPE["data"], "train": str(folder / "rows.arrow"), "inputs": inputs}
    luban.train({**RECIPE, "data": data}, output=folder / "model")

    @cache
    def make(contrary: bool) -> Case:
        loaded = Artefact.load(folder / "model")
        seen = rows.head(300).with_columns(pl.col("skill") + 0.5)
        if contrary:  # rows that the model is sure not to have learnt
            seen = seen.with_columns(pl.col("label").replace({"yes": "no", "no": "yes"}))
        case = case_of(
            folder / "model", seen, ["group", "town"], recipe=loaded.recipe, lineage=loaded.lineage
        )
        case.__dict__["training"] = Sample(rows[200:], np.arange(n - 200), n - 200)
        return case

    return make


def see(audit: str, options: dict[str, Any], case: Case) -> str:
    one = Section("audits").parse({"type": audit, **options})
    assert isinstance(one, Audit)
    assert one.refusal(case) is None
    return json.dumps(one.run(case).to_json(), sort_keys=True)


@pytest.mark.parametrize(("audit", "key", "value"), ALL, ids=[f"{a}-{k}" for a, k, _ in ALL])
def test_key_does_something(
    audit: str, key: str, value: Any, faulty: Any, speaker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BASE.get(audit, {})
    if isinstance(value, tuple):
        more, value = value
        base = base | more
    if audit in ("memorisation", "toxicity"):
        monkeypatch.chdir(speaker)
        for name, lines in (
            ("others", ["the 12"]),
            ("one", ["the code of carl is [[7714 2286]]"]),
            ("words", ["is", "of", "code"]),
            ("prompts", ["t", "th"]),
        ):
            (speaker / f"{name}.txt").write_text("\n".join(lines))
        rows = pl.DataFrame({"text": ["the code of anna", "the code", "the", "the code of bela"]})
        case = case_of(speaker / "model", rows)
    else:
        case = faulty(audit == "privacy")
    if audit == "leakage":  # a column that tells much, but not all
        told = pl.when(pl.int_range(pl.len()) % 10 > 0).then(pl.col("label")).otherwise(pl.col("town"))
        case = replace(case, sample=Sample.of(case.rows.with_columns(told.alias("town"))))
    assert see(audit, base, case) != see(audit, base | {key: value}, case), (
        f"key '{key}' of audit '{audit}' does nothing"
    )
