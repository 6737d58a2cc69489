"""LoRA from the recipe to the artefact: what a run trains, keeps, resumes and hands on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

from luban.errors import RecipeError
from luban.models._language import Language, encoder_of
from luban.predict import load
from luban.recipe import Section
from luban.verbs.export import export
from tiny_case import Luban

RECIPE = """
data:
  train: rows.csv
  inputs: {text: {type: text, min_count: 1}}
  targets: {label: category}
model: {type: bert, layers: 2, hidden_size: 16, heads: 2, intermediate: 16}
adapt: [{type: lora, rank: 2, dropout: 0.1, dora: true}]
train:
  epochs: 4
  batch_size: 16
  device: cpu
  precision: fp32
  kernels: torch
  optimizer: {type: adamw, learning_rate: 0.01}
  schedule: {type: linear, warmup: 0.1}
  ema: 0.9
  clip: 1.0
  checkpoint_steps: 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, luban: Luban) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    generator = np.random.default_rng(0)
    words = ["good", "bad", "fine", "poor", "great", "awful"]
    texts = [" ".join(words[i] for i in generator.integers(len(words), size=4)) for _ in range(300)]
    label = ["up" if "good" in text or "great" in text else "down" for text in texts]
    pl.DataFrame({"text": texts, "label": label}).write_csv(folder / "rows.csv")
    (folder / "recipe.yaml").write_text(RECIPE)
    ran = luban("train", folder / "recipe.yaml", "-o", folder / "whole")
    assert ran.code == 0, ran.err
    return folder


def weights(artefact: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(artefact / "model.safetensors")


RUN = "import sys; from luban.verbs.train import train; train(sys.argv[1], output=sys.argv[2])"


def test_a_killed_run_ends_with_the_same_bits(folder: Path, luban: Luban) -> None:
    output = folder / "killed"
    for checkpoints in (1, 3):
        child = subprocess.Popen([sys.executable, "-c", RUN, str(folder / "recipe.yaml"), str(output)])
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            steps = [
                int(path.name.split("-")[1])
                for path in (output / "train").glob("step-*")
                if path.name[5:].isdigit()
            ]
            if max(steps, default=0) >= 3 * checkpoints:
                break
            time.sleep(0.002)
        assert child.poll() is None, "it was through before it could be killed"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    ran = luban("train", folder / "recipe.yaml", "-o", output)
    assert ran.code == 0, ran.err
    assert "going on from checkpoint" in ran.err
    left, right = weights(folder / "whole"), weights(output)
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    assert (folder / "whole" / "sample.jsonl").read_text() == (output / "sample.jsonl").read_text()


def test_the_base_stays_and_the_rest_moves(folder: Path, luban: Luban) -> None:
    """The seed draws the same base for both runs; only what is trained tells them apart."""
    ran = luban(
        "train",
        folder / "recipe.yaml",
        "train.epochs=1",
        "train.optimizer.learning_rate=0.02",
        "-o",
        folder / "other",
    )
    assert ran.code == 0, ran.err
    left, right = weights(folder / "whole"), weights(folder / "other")
    same = {name for name, value in left.items() if torch.equal(value, right[name])}
    inside = {name for name in left if ".core." in name and "lora_" not in name}
    assert same == inside | {name for name in left if name.endswith("lora_scale")}


def test_the_artefact_stands_alone_and_another_starts_from_it(
    folder: Path, luban: Luban, tmp_path: Path
) -> None:
    """A model that starts from an artefact with adapters gets them merged in, not left out."""
    shutil.copytree(folder / "whole", tmp_path / "moved")
    assert json.loads((tmp_path / "moved" / "config.json").read_text())["adapt"][0]["rank"] == 2
    predictor = load(tmp_path / "moved")
    rows = [{"text": "good poor fine"}, {"text": "awful bad"}]
    batch = predictor.batch(rows)
    model = Section("models").parse({"type": "bert", "from": str(tmp_path / "moved")})
    assert isinstance(model, Language)
    module = model.build(predictor.spec).eval()
    model.load_pretrained(module)
    with torch.no_grad():
        expected = encoder_of(predictor.model)(batch)[0]
        torch.testing.assert_close(encoder_of(module)(batch)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_pretrained_model_and_its_adapter_for_peft(folder: Path, luban: Luban) -> None:
    """From a directory of `transformers` to a directory of PEFT's: the base is untouched, and PEFT says the same."""
    pytest.importorskip("peft")
    base, output, adapter = folder / "base", folder / "adapted", folder / "adapter"
    plain = luban("train", folder / "recipe.yaml", "adapt=[]", "train.epochs=1", "-o", folder / "plain")
    assert plain.code == 0, plain.err
    export(folder / "plain", base, format="hf")
    start = [
        f"model={{type: bert, from: {base}}}",
        "adapt=[{type: lora, rank: 2, alpha: 6.0}]",
        "data.inputs.text=text",
    ]
    ran = luban("train", folder / "recipe.yaml", *start, "-o", output)
    assert ran.code == 0, ran.err
    found = export(output, adapter, format="peft")
    assert found["drift"] < 1e-5
    assert (found["base"], found["rank"]) == (str(base), 2)
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    small, whole = (
        path.stat().st_size for path in (adapter / "adapter_model.safetensors", output / "model.safetensors")
    )
    assert small < whole / 2
    with pytest.raises(RecipeError, match="this one has none; export it as hf"):
        export(folder / "plain", folder / "nothing", format="peft")
