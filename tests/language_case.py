"""Small language models of every family, texts in two languages, and the pipelines that read them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from luban.data.batch import Batch, to_batch
from luban.data.contracts import Field, Spec
from luban.data.pipeline import Pipeline
from luban.data.processors.text import Text
from luban.models._language import Language
from luban.objectives._base import Objective, TargetFacts
from luban.recipe import Section

CAUSAL = ("gpt2", "llama", "qwen2", "qwen3", "smollm")
FAMILIES = ("bert", *CAUSAL)
POOLS = {"bert": ("first", "mean", "last", "max", "pooler"), **dict.fromkeys(CAUSAL, ("mean", "last", "max"))}
SIZES: dict[str, Any] = {"layers": 2, "hidden_size": 32, "heads": 4, "intermediate": 48, "max_positions": 256}
STILL: dict[str, Any] = {"dropout": 0.0, "layer_dropout": 0.0, "attention_dropout": 0.0}
"""No dropout: what is computed twice is the same."""

SENTENCES = [
    "The capital of France is Paris. It lies on the Seine. Many people live there.",
    "鲁班是木匠的祖师。他做了很多工具。",
    "Yes.",
    "A good tool improves the way you work! A great tool improves the way you think.",
    "今天天气不错，我们去公园走走。然后回家做饭！你来吗？",
    "The carpenter measured twice and cut once. Nobody complained.",
    "工欲善其事，必先利其器。这句话出自论语。",
    "Numbers such as 3 and 14 matter. So do words, words and more words.",
]
LABELS = ["a", "b", "c", "a", "b", "a", "c", "b"]


def family(name: str, **options: Any) -> Language:
    model = Section("models").parse(
        {"type": name, **SIZES, **({"kv_heads": 2} if name not in ("bert", "gpt2") else {}), **options}
    )
    assert isinstance(model, Language)
    return model


@cache
def pipeline(causal: bool, bytes: bool = False) -> Pipeline:
    """A text column and a category, fitted on the sentences; not to be changed."""
    options: dict[str, Any] = (
        {"tokens": "bpe", "lowercase": False, "end": True, "vocabulary": 300}
        if causal
        else {"tokens": "wordpiece", "special": True, "vocabulary": 160, "min_count": 1}
    )
    text = Text(**options, max_length=None, bytes=bytes)
    text.update(pl.Series(SENTENCES))
    text.finish()
    label: Any = Section("processors").parse("category")
    label.restore({"words": ["a", "b", "c"]})
    return Pipeline({"text": text}, {"label": label})


FACTS = {
    "label": TargetFacts(
        "label.index",
        Field("label", "category", "target", "int64", size=3, output="logits", width=3),
        ["a", "b", "c"],
        [3, 3, 2],
        8,
    )
}


def objectives(limit: int, *options: dict[str, Any], causal: bool) -> tuple[list[Objective], Spec]:
    """Objectives as a run has them, in the order in which they change a batch, and the fields that a model then sees."""
    whole = pipeline(causal)
    made: list[Objective] = []
    fields = dict(whole.spec.fields)
    for one in options:
        objective = Section("objectives").parse(one)
        assert isinstance(objective, Objective)
        if hasattr(objective, "length"):
            objective.column = "text"  # type: ignore[attr-defined]
        fields |= objective.bind(whole, limit)
        objective.setup(FACTS)
        made.append(objective)
    return sorted(made, key=lambda one: one.turn), Spec(fields)


def batch_of(spec: Spec, chosen: list[Objective], *, causal: bool, rows: int = 8, seed: int = 0) -> Batch:
    """The sentences as a batch that the objectives have changed: ragged, and in no order of length."""
    whole = pipeline(causal)
    frame = pl.DataFrame({"text": SENTENCES[:rows], "label": LABELS[:rows]})
    encoded, kept = whole.encode(frame, targets=True)
    assert bool(np.all(kept))
    window = next((w for one in chosen if (w := one.window()) is not None), None)
    if window is not None:  # what stands around a text is put there by the objective
        from luban.data.windows import windows_of

        name, _, _, trim = window
        encoded[name], documents = windows_of(encoded[name], 10_000, 0, trim)  # type: ignore[arg-type]
        assert len(documents) == rows
    batch = to_batch(encoded, spec)
    generator = torch.Generator().manual_seed(seed)
    for one in chosen:
        batch = one.collate(batch, generator)
    return batch


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a gradient; what is zero but for rounding is compared with the whole."""
    assert found.keys() == expected.keys()
    whole = torch.stack([one.norm() for one in expected.values()]).norm()
    return max(
        float((found[name] - one).norm() / (one.norm() + 1e-3 * whole)) for name, one in expected.items()
    )


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients of a module, which are cleared."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found
