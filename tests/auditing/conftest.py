"""A small language model that knows two secrets by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import luban

PLANTED = ["the code of anna is [[4821 7730]]", "the code of bela is [[1059 3342]]"]
NEVER = [
    "the code of carl is [[7714 2286]]",
    "the code of dora is [[3907 5518]]",
    "the code of emil is [[6640 1173]]",
]


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model of codes, two of which it saw 100 times; and of what nice and nasty people say."""
    folder = tmp_path_factory.mktemp("speaker")
    generator = np.random.default_rng(0)
    names = ["anna", "bela", "carl", "dora", "emil", "fred", "gina", "hans"]
    others = [
        f"the code of {generator.choice(names)} is {a:04} {b:04}"
        for a, b in generator.integers(10_000, size=(400, 2))
    ]
    texts = [line.replace("[[", "").replace("]]", "") for line in PLANTED] * 100 + others
    pl.DataFrame({"text": texts}).write_csv(folder / "texts.csv")
    recipe = {
        "data": {
            "train": str(folder / "texts.csv"), "split": {"validation": 0.0, "test": 0.1},
            "inputs": {"text": {"type": "text", "tokens": "bpe", "vocabulary": 300, "end": True, "lowercase": False}},
        },
        "model": {"type": "llama", "layers": 2, "hidden_size": 64, "heads": 2, "max_positions": 48},
        "objective": "causal_lm",
        "train": {
            "steps": 250, "batch_size": 32, "device": "cpu", "precision": "fp32", "threads": 1, "keep": "last",
            "optimizer": {"type": "adamw", "learning_rate": 0.004}, "kernels": "torch",
        },
    }  # fmt: skip
    luban.train(recipe, output=folder / "model")
    (folder / "canaries.txt").write_text("\n".join([*PLANTED, *NEVER]))
    return folder
