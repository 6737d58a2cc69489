"""Tables with planted faults, and artefacts trained on them in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import luban
from luban.auditing._base import Case
from luban.data.sampling import Sample
from luban.predict import load


def people(n: int = 1500, seed: int = 0) -> pl.DataFrame:
    """Two groups, two numbers, a class that depends on the numbers alone."""
    generator = np.random.default_rng(seed)
    skill, luck = generator.normal(size=(2, n))
    label = skill + 0.5 * luck + 0.3 * generator.normal(size=n) > 0
    return pl.DataFrame(
        {
            "skill": skill.round(4),
            "luck": luck.round(4),
            "town": generator.choice(["north", "south"], n),
            "group": generator.choice(["a", "b"], n),
            "label": np.where(label, "yes", "no"),
        }
    )


RECIPE: dict[str, Any] = {
    "data": {
        "inputs": {"skill": "number", "luck": "number", "town": "category"},
        "targets": {"label": "binary"},
        "groups": ["group"],
        "split": {"validation": 0.2, "test": 0.3},
    },
    "model": {"type": "mlp", "hidden": [8]},
    "train": {
        "epochs": 8, "batch_size": 32, "device": "cpu", "precision": "fp32", "threads": 1,
        "optimizer": {"type": "adamw", "learning_rate": 0.02},
    },
}  # fmt: skip


def trained(
    folder: Path, rows: pl.DataFrame, data: dict[str, Any] | None = None, **upon: Any
) -> dict[str, Any]:
    """Write the rows, train on them, and return what training returns; the artefact is ``folder/model``."""
    rows.write_csv(folder / "rows.csv")
    recipe = {**RECIPE, **upon, "data": {**RECIPE["data"], **(data or {}), "train": str(folder / "rows.csv")}}
    result: dict[str, Any] = luban.train(recipe, output=folder / "model", force=True)
    return result


def case_of(artefact: Path, rows: pl.DataFrame, by: list[str] | None = None, **more: Any) -> Case:
    """A case over rows as they are."""
    sample = Sample(rows, np.arange(len(rows)), len(rows))
    return Case(load(artefact), sample, by or [], **more)
