"""Small models of every kind with random weights, and rows for them: what explainers are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch

from luban.data.contracts import Processor, Spec
from luban.data.pipeline import Pipeline
from luban.explaining._case import Case
from luban.models._base import Model
from luban.predict import Predictor
from luban.recipe import Section

TEXTS = [
    "The film is good, very good.",
    "物流很快，很满意！",
    "Terrible. Nobody should see it twice.",
    "好",
    "What a fine tool, and what a fine day 🎈",
    "差评",
    "It is neither good nor bad.",
    "一般般，下次不来了。",
]
LABELS = ["good", "good", "bad", "good", "good", "bad", "other", "bad"]
STILL: dict[str, Any] = {"size": "tiny"}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"layers": 2, "hidden_size": 32, "heads": 4, "max_positions": 128},
    "gpt2": {"layers": 2, "hidden_size": 32, "heads": 4, "max_positions": 128},
    "llama": {"layers": 2, "hidden_size": 32, "heads": 4, "kv_heads": 2, "max_positions": 128},
    "qwen3": {"layers": 2, "hidden_size": 32, "heads": 4, "kv_heads": 2, "max_positions": 128},
    "transformer": {"layers": 2, "hidden_size": 32, "heads": 4},
    "rnn": {"hidden_size": 16, "embedding": 16},
    "textcnn": {"filters": 8, "embedding": 16},
    "fasttext": {"embedding": 16, "buckets": 97, "ngrams": 3},
    "mlp": {"hidden": [8]},
}
"""Families of texts, and their options."""


def frame(n: int = 8, side: int = 12) -> pl.DataFrame:
    """Rows with a column of every kind."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return pl.DataFrame(
        {
            "review": (TEXTS * n)[:n],
            "reply": (TEXTS[3:] + TEXTS[:3]) * (n // 8) or TEXTS[:n],
            "age": draw.normal(40, 10, n),
            "income": [None if i % 4 == 0 else float(i) for i in range(n)],
            "city": (["北京", "上海", "Paris", "Rome"] * n)[:n],
            "tags": (["a;b", "b", "", "c;a;b"] * n)[:n],
            "member": (["yes", "no"] * n)[:n],
            "photo": pl.Series(list(pictures), dtype=pl.Array(pl.UInt8, (side, side, 3))),
            "label": (LABELS * n)[:n],
            "good": (["yes", "no"] * n)[:n],
            "price": draw.normal(100, 30, n),
            "topics": (["x;y", "x", "y;z", ""] * n)[:n],
        }
    )


KINDS: dict[str, Any] = {
    "review": {"type": "text", "tokens": "bpe", "vocabulary": 300, "end": True},
    "reply": {"type": "text", "tokens": "bpe", "vocabulary": 300},
    "age": "number",
    "income": "number",
    "city": "category",
    "tags": "set",
    "member": "binary",
    "photo": "image",
    "label": "category",
    "good": "binary",
    "price": "number",
    "topics": "set",
}
WORDPIECE = {"type": "text", "tokens": "wordpiece", "special": True, "vocabulary": 200, "min_count": 1}


def processor(options: Any) -> Processor:
    made = Section("processors").parse(options)
    assert isinstance(made, Processor)
    return made


def predictor(
    inputs: list[str],
    target: str,
    model: dict[str, Any],
    *,
    kinds: dict[str, Any] | None = None,
    rows: pl.DataFrame | None = None,
    seed: int = 0,
) -> Predictor:
    """Fit processors on the rows, and build a model with random weights."""
    rows = frame() if rows is None else rows
    kinds = {**KINDS, **(kinds or {})}
    pipeline = Pipeline(
        {name: processor(kinds[name]) for name in inputs},
        {target: processor(kinds[target])} if target else {},
    )
    for name, one in (*pipeline.inputs.items(), *pipeline.targets.items()):
        one.update(rows[name])
    pipeline.finish()
    spec: Spec = pipeline.spec
    torch.manual_seed(seed)
    options = Section("models").parse(model)
    assert isinstance(options, Model)
    module = options.build(spec).eval()
    with torch.no_grad():  # small random weights give scores that hardly differ
        for name, parameter in module.named_parameters():
            if name.startswith("heads.") or "embedding" in name:
                parameter.mul_(3)
    return Predictor(module, pipeline, spec, torch.device("cpu"))


def text_case(family: str, n: int = 6, target: str = "label", **options: Any) -> Case:
    """A case of texts and a family that reads them."""
    kinds = {"review": WORDPIECE} if family == "bert" else {}
    own = {"type": family, "size": "tiny", **FAMILIES[family], **options}
    if family == "gpt2":
        own.pop("size")
        own["size"] = "tiny"
    return Case.of(predictor(["review"], target, own, kinds=kinds), frame().head(n))


def image_case(family: str = "cnn", n: int = 4, **options: Any) -> Case:
    """A case of pictures."""
    return Case.of(
        predictor(["photo"], "label", {"type": family, "size": "tiny", **options}), frame().head(n)
    )


def table_case(n: int = 8, target: str = "label", **options: Any) -> Case:
    """A case of a table of every kind of column."""
    inputs = ["age", "income", "city", "tags", "member"]
    return Case.of(
        predictor(inputs, target, {"type": "mlp", "size": "tiny", "hidden": [8], **options}), frame().head(n)
    )
