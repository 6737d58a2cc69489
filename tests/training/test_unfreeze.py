"""Gradual unfreezing: what is trained when, and that neither optimizers nor restarts mind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from torch import nn

from luban.artefact import build_model
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.recipe import Section
from luban.registry import lookup, names
from luban.training.progress import Progress
from tiny_case import Luban

TEXT = Field("text", "text", "input", "int64", None, size=50)
LABEL = Field("label", "category", "target", "int64", size=3, output="logits", width=3)
SPEC = Spec({"text.ids": TEXT, "label.index": LABEL})
SMALL: dict[str, Any] = {"layers": 3, "hidden_size": 16, "heads": 2}
ABOVE, TOP, MIDDLE, LOW, TABLES = (
    ("heads.", "encoders.@text.pooler."), "encoders.@text.core.layers.2.", "encoders.@text.core.layers.1.",
    "encoders.@text.core.layers.0.", "encoders.@text.core.embedding.",
)  # fmt: skip
ORDER: list[Any] = [ABOVE, TOP, MIDDLE, LOW, TABLES]


def bert(adapt: list[Any] | None = None) -> nn.Module:
    torch.manual_seed(0)
    steps = [Section("adapt").parse(one) for one in adapt or []]
    return build_model(Section("models").parse({"type": "bert", **SMALL}), steps, SPEC)


def reached(model: nn.Module) -> int:
    """How many parts, from the top, are trained; none of them in part."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for n in range(len(ORDER) + 1):
        parts = tuple(one for part in ORDER[:n] for one in ([part] if isinstance(part, str) else part))
        if trained == {name for name, _ in model.named_parameters() if parts and name.startswith(parts)}:
            return n
    raise AssertionError(f"trained in no order: {sorted(trained)}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5]),
        ({"every": 2}, [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3]),
        ({"unit": "steps"}, [1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]),
        ({"unit": "steps", "every": 3, "layers": 2}, [1, 1, 1, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]),
    ],
)
def test_what_is_trained_when(options: dict[str, Any], expected: list[int]) -> None:
    """Three updates an epoch; a run that is resumed at any of them trains what the undisturbed one does."""
    model, callback = bert(), lookup("callbacks", "unfreeze")(**options)
    found = []
    for step in range(16):
        progress = Progress(step=step, epoch=step // 3, total_steps=16)
        callback.before_update(model, progress)
        found.append(reached(model))
        resumed = bert()
        again = lookup("callbacks", "unfreeze")(**options)
        again.restore(callback.state())
        again.before_update(resumed, progress)
        assert reached(resumed) == found[-1]
    assert found == expected


@pytest.mark.parametrize("name", [name for name in names("optimizers") if name != "gd"])
def test_what_waits_does_not_move(name: str) -> None:
    model, callback = bert(), lookup("callbacks", "unfreeze")(unit="steps")
    optimizer = lookup("optimizers", name)(learning_rate=0.01, weight_decay=0.1).build(
        model.named_parameters()
    )
    batch: dict[str, Any] = {"text.ids": Ragged.from_rows([torch.arange(5, 12), torch.arange(20, 23)])}
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(6):
        callback.before_update(model, Progress(step=step))
        torch.nn.functional.cross_entropy(model(batch)["label.logits"], torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert moved <= trained
        assert any(name.startswith(ORDER[min(step, 4)]) for name in moved)


def test_what_was_frozen_stays_so() -> None:
    model = bert([{"type": "lora", "rank": 2}, {"type": "freeze", "patterns": ["heads.*", "*.pooler.*"]}])
    callback = lookup("callbacks", "unfreeze")()
    for epoch, parts in enumerate([(TOP,), (TOP,), (TOP, MIDDLE), (TOP, MIDDLE, LOW), (TOP, MIDDLE, LOW)]):
        callback.before_update(model, Progress(epoch=epoch))
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {n for n, _ in model.named_parameters() if n.startswith(parts) and "lora_" in n}


def test_a_model_without_blocks_refuses() -> None:
    model = build_model(Section("models").parse("fasttext"), [], SPEC)
    with pytest.raises(RecipeError, match="callback unfreeze goes by blocks"):
        lookup("callbacks", "unfreeze")().before_update(model, Progress())


RECIPE = """
data:
  train: rows.csv
  inputs: {text: {type: text, min_count: 1}}
  targets: {label: category}
model: {type: bert, layers: 2, hidden_size: 16, heads: 2, intermediate: 16}
train:
  epochs: 4
  batch_size: 16
  device: cpu
  precision: fp32
  kernels: torch
  keep: last
  optimizer: {type: adamw, learning_rate: 0.01, layer_decay: 0.8}
  callbacks: [{type: unfreeze}]
  checkpoint_steps: 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfreeze")
    generator = np.random.default_rng(0)
    words = ["good", "bad", "fine", "poor", "great", "awful"]
    texts = [" ".join(words[i] for i in generator.integers(len(words), size=4)) for _ in range(300)]
    label = ["up" if "good" in text or "great" in text else "down" for text in texts]
    pl.DataFrame({"text": texts, "label": label}).write_csv(folder / "rows.csv")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def test_in_a_run_that_is_stopped_and_resumed(folder: Path, luban: Luban) -> None:
    recipe = folder / "recipe.yaml"
    assert luban("train", recipe, "-o", folder / "whole").code == 0
    one = luban("train", recipe, "train.epochs=1", "-o", folder / "short")
    assert one.code == 0, one.err
    without = luban("train", recipe, "train.epochs=1", "train.callbacks=[]", "-o", folder / "plain")
    assert without.code == 0, without.err
    short, plain, whole = (weights(folder / name) for name in ("short", "plain", "whole"))
    # In the first epoch the embeddings wait; without the callback they move, and at the end of four epochs they have.
    table = "encoders.@text.core.embedding.tokens.weight"
    assert not torch.equal(short[table], plain[table])
    assert not torch.equal(short[table], whole[table])

    output = folder / "stopped"

    def watch() -> None:
        while len(list((output / "train").glob("step-*"))) < 2:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
    assert luban("train", recipe, "-o", output).code == 130
    assert luban("train", recipe, "-o", output).code == 0
    again = weights(output)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def weights(artefact: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(artefact / "model.safetensors")
