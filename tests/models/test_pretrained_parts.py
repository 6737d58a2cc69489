"""A pretrained family may read one column of several: its weights and tokenizer are those of `from` there too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from language_case import family, pipeline
from luban.data.contracts import Spec
from luban.models._language import encoder_of
from luban.models.interop import config_of, tensors_of
from luban.predict import load
from luban.tensors import write_tensors
from tiny_case import Luban


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A directory of Hugging Face's with weights and a tokenizer."""
    model = family("bert")
    torch.manual_seed(7)
    encoder = encoder_of(model.build(Spec(pipeline(causal=False).spec.fields)))
    folder = tmp_path / "pretrained"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(config_of(model, encoder.core.shape.vocabulary)), encoding="utf-8"
    )
    write_tensors(tensors_of(model, encoder), folder / "model.safetensors")
    text: Any = pipeline(causal=False).inputs["text"]
    (folder / "tokenizer.json").write_text(text.trained.to_str(), encoding="utf-8")
    return folder


def test_the_family_of_one_column_starts_from_its_weights(
    pretrained: Path, tmp_path: Path, luban: Luban
) -> None:
    lines = [
        "title,body,price,label",
        *(f"good tool {i},measured twice {i},{i},{'ab'[i % 2]}" for i in range(60)),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = {
        "data": {
            "train": str(tmp_path / "rows.csv"),
            "inputs": {"title": "text", "body": "text", "price": "number"},
            "targets": {"label": "category"},
        },
        "model": {
            "type": "mlp",
            "hidden": [4],
            "encoders": {name: {"type": "bert", "from": str(pretrained)} for name in ("title", "body")},
        },
        "train": {"steps": 1, "batch_size": 16, "optimizer": {"type": "sgd", "learning_rate": 1e-9}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours")
    assert ran.code == 0, ran.err
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = load_file(pretrained / "model.safetensors")
    for column in ("title", "body"):
        found = weights[f"encoders.@{column}.encoder.core.layers.0.feed.up.weight"]
        torch.testing.assert_close(found, theirs["bert.encoder.layer.0.intermediate.dense.weight"])
        assert f"{column}: tokenizer {pretrained}" in ran.err
    row = {"title": "a good tool", "body": "measured", "price": 3}
    (before,) = load(tmp_path / "ours").predict([row])
    shutil.rmtree(pretrained)  # the artefact needs it no more
    assert load(tmp_path / "ours").predict([row]) == [before]
