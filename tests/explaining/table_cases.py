"""Small models with the rows that they were fitted to, made in a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from luban.data.batch import to_batch
from luban.data.pipeline import Pipeline
from luban.explaining._case import Case
from luban.predict import Predictor
from luban.recipe import Data
from luban.registry import lookup


def predictor_of(
    rows: pl.DataFrame,
    inputs: Mapping[str, Any],
    target: Mapping[str, Any],
    model: str = "mlp",
    steps: int = 100,
    rate: float = 0.05,
    **options: Any,
) -> Predictor:
    """Fit processors and a model to rows; a target is one column → its kind."""
    data = Data.model_validate({"train": "none.csv", "inputs": dict(inputs), "targets": dict(target)})
    pipeline = Pipeline.of(data, rows.columns)
    for column, processor in (*pipeline.inputs.items(), *pipeline.targets.items()):
        processor.update(rows[column])
    pipeline.finish()
    spec = pipeline.spec
    torch.manual_seed(0)
    module = lookup("models", model)(**options).build(spec)
    encoded, kept = pipeline.encode(rows, targets=True)
    assert kept.all()
    batch = to_batch(encoded, spec)
    (column,) = target
    processor = pipeline.targets[column]
    (name,) = (f"{column}.{short}" for short in processor.fields(column, "target"))
    if processor.task == "multilabel":
        return Predictor(module.eval(), pipeline, spec, torch.device("cpu"))  # as it is drawn
    losses = {"multiclass": F.cross_entropy, "binary": _binary, "regression": _square}
    optimizer = torch.optim.Adam(module.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        output = module(batch)[f"{column}.{processor.output}"]
        losses[str(processor.task)](output, batch[name]).backward()
        optimizer.step()
    return Predictor(module.eval(), pipeline, spec, torch.device("cpu"))


def _binary(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(output[:, 0], truth)


def _square(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output[:, 0], truth)


def people(n: int = 300, seed: int = 0) -> pl.DataFrame:
    """A table: whether somebody is paid well depends on age and city, a little on a flag, and not on the noise."""
    generator = np.random.default_rng(seed)
    age, noise = generator.normal(40, 10, n), generator.normal(size=n)
    city = generator.choice(["Oslo", "Rome", "Kyiv"], n)
    member = generator.choice(["yes", "no"], n)
    logit = (age - 40) / 4 + 2.0 * (city == "Rome") - 1.0 + 0.5 * (member == "yes")
    paid = generator.random(n) < 1 / (1 + np.exp(-logit))
    return pl.DataFrame(
        {
            "age": age.round(1),
            "noise": noise,
            "city": city,
            "member": member,
            "paid": np.where(paid, "yes", "no"),
            "wage": 3 * age + 20 * (city == "Rome"),
        }
    )


INPUTS = {"age": "number", "noise": "number", "city": "category", "member": "binary"}

GOOD = ["good", "fine", "lovely", "great"]
BAD = ["bad", "dull", "awful", "poor"]
NEUTRAL = ["the", "film", "was", "and", "a", "story"]


def reviews(n: int = 120, seed: int = 0) -> pl.DataFrame:
    """Texts whose label is told by one word."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(n):
        words = generator.choice(NEUTRAL, 5).tolist()
        words.insert(int(generator.integers(5)), str(generator.choice(GOOD if i % 2 else BAD)))
        texts.append(" ".join(words))
        labels.append("positive" if i % 2 else "negative")
    return pl.DataFrame({"review": texts, "label": labels, "number": list(range(n))})


def table_case(kind: str = "category", target: str = "paid", rows: int = 20, **options: Any) -> Case:
    """A case of some people, with the others as background."""
    frame = people()
    model = predictor_of(frame, INPUTS, {target: kind}, hidden=[8], activation="tanh", **options)
    return Case.of(model, frame.head(rows), background=frame)


def text_case(rows: int = 6, **options: Any) -> Case:
    """A case of some reviews."""
    frame = reviews()
    options = {"model": "textcnn", "size": "tiny"} | options
    model = predictor_of(
        frame,
        {"review": {"type": "text", "tokens": "word", "min_count": 1}},
        {"label": "category"},
        **options,
    )
    return Case.of(model, frame.head(rows), background=frame)
