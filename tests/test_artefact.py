"""The parity contract: what was measured is what is loaded, anywhere; what was changed is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from PIL import Image

import luban
from luban.artefact import Artefact
from luban.errors import ArtefactError, DataError, ParityError
from luban.predict import drift, load
from luban.verbs.evaluate import evaluate


def points(folder: Path, rows: int = 300) -> Path:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, rows))
    frame = pl.DataFrame(
        {
            "x": x,
            "城市": [["北京", "上海", "广州"][i] for i in generator.integers(3, size=rows)],
            "text": [" ".join(["word", "字", "more"][: i + 1]) for i in generator.integers(3, size=rows)],
            "side": ["up" if v > 0 else "down" for v in x],
            "price": 100 + 10 * x + y,
            "tags": [";".join(t for t, v in (("p", x[i]), ("q", y[i])) if v > 0) for i in range(rows)],
        }
    )
    frame.write_csv(folder / "points.csv")
    return folder / "points.csv"


RECIPE: dict[str, Any] = {
    "inputs": {"x": "number", "城市": "category", "text": {"type": "text", "min_count": 1}},
    "targets": {"side": "binary", "price": "number", "tags": "set"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artefact")


@pytest.fixture(scope="module")
def artefact(folder: Path) -> Path:
    data = {"train": str(points(folder)), **RECIPE}
    recipe = {
        "data": data,
        "model": {"type": "mlp", "size": "tiny"},
        "train": {"epochs": 24, "batch_size": 32},
    }
    luban.train(recipe, output=folder / "model")
    return folder / "model"


def test_files(artefact: Path) -> None:
    names = {path.name for path in artefact.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "preprocessing.json", "tokenizer.json", "recipe.yaml",
        "metrics.json", "sample.jsonl", "lineage.json", "README.md", "train",
    }  # fmt: skip
    metrics = json.loads((artefact / "metrics.json").read_text())
    accuracy = metrics["metrics"]["side.accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] > 0.8
    assert metrics["metrics"]["price.r2"]["value"] > 0.5
    sample = [json.loads(line) for line in (artefact / "sample.jsonl").read_text().splitlines()]
    assert len(sample) == 30  # 10 % of 300 rows are there to choose by
    assert set(sample[0]["row"]) == set(RECIPE["inputs"])


def test_recipe_in_the_artefact_makes_the_same_artefact(artefact: Path, tmp_path: Path) -> None:
    again = luban.train(artefact / "recipe.yaml", output=tmp_path / "again")
    for name, value in safetensors.torch.load_file(Path(again["artefact"]) / "model.safetensors").items():
        assert torch.equal(value, safetensors.torch.load_file(artefact / "model.safetensors")[name])


PREDICT = """
import json, sys, luban, polars as pl
predictor = luban.load(sys.argv[1])
print(json.dumps(predictor.predict(pl.read_csv(sys.argv[2], infer_schema=False), batch_size=int(sys.argv[3]))))
"""


def test_same_bits_in_a_new_process_and_after_copying(artefact: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(artefact, tmp_path / "copied elsewhere")
    shutil.rmtree(tmp_path / "copied elsewhere" / "train")
    rows = pl.read_csv(folder / "points.csv", infer_schema=False)
    here = load(artefact).predict(rows)
    command = [sys.executable, "-c", PREDICT]
    arguments = [str(tmp_path / "copied elsewhere"), str(folder / "points.csv"), "256"]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    there = json.loads(result.stdout)
    assert max(drift(a, b, {}) for a, b in zip(here, there, strict=True)) <= 1e-6
    twice = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert twice.stdout == result.stdout


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_batch_size_does_not_matter(artefact: Path, folder: Path, batch_size: int) -> None:
    rows = pl.read_csv(folder / "points.csv", infer_schema=False)
    predictor = load(artefact)
    usual = predictor.predict(rows)
    other = predictor.predict(rows, batch_size=batch_size)
    units = {"price": lambda value: 10.0}
    assert max(drift(a, b, units) for a, b in zip(usual, other, strict=True)) <= 1e-6


def test_rows_as_mappings_equal_rows_of_a_file(artefact: Path, folder: Path) -> None:
    typed = pl.read_csv(folder / "points.csv")
    strings = pl.read_csv(folder / "points.csv", infer_schema=False)
    predictor = load(artefact)
    assert predictor.predict(typed.to_dicts()) == predictor.predict(strings)


def changed(artefact: Path, target: Path) -> Path:
    shutil.copytree(artefact, target)
    return target


def test_changed_weights_are_refused(artefact: Path, tmp_path: Path) -> None:
    copy = changed(artefact, tmp_path / "changed")
    weights = safetensors.torch.load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.startswith("heads") and name.endswith("weight"))
    weights[name] = weights[name] + 0.05
    safetensors.torch.save_file(weights, copy / "model.safetensors")
    with pytest.raises(ParityError, match="does not predict what it predicted"):
        load(copy)


def test_one_bit_in_the_weights_is_noticed(artefact: Path, tmp_path: Path) -> None:
    copy = changed(artefact, tmp_path / "flipped")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-2] ^= 1  # low in a mantissa: no prediction shows it
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises((ArtefactError, ParityError)):
        load(copy)


def test_changed_preprocessing_is_refused(artefact: Path, tmp_path: Path) -> None:
    copy = changed(artefact, tmp_path / "scaled")
    state = json.loads((copy / "preprocessing.json").read_text())
    state["inputs"]["x"]["state"]["scale"] *= 2
    (copy / "preprocessing.json").write_text(json.dumps(state))
    with pytest.raises(ParityError):
        load(copy)


def test_file_outside_is_refused(artefact: Path, tmp_path: Path) -> None:
    copy = changed(artefact, tmp_path / "outside")
    state = json.loads((copy / "preprocessing.json").read_text())
    state["inputs"]["text"]["state"]["tokenizer_file"] = "../../etc/passwd"
    (copy / "preprocessing.json").write_text(json.dumps(state))
    with pytest.raises(ArtefactError, match="outside itself"):
        Artefact.load(copy)


def test_unreadable_row_gets_a_reason_and_keeps_its_place(artefact: Path) -> None:
    rows = [{"x": 1.0, "城市": "北京", "text": "word"}, {"x": "much", "城市": "?", "text": None}, {"x": -1.0}]
    first, second, third = load(artefact).predict([{"城市": None, "text": None, **row} for row in rows])
    assert first["side"] == "up"
    assert "column 'x': 'much' cannot be read as number" in second["error"]
    assert third["side"] == "down"


def test_missing_column_is_named(artefact: Path) -> None:
    with pytest.raises(DataError, match=r"there is no column 'x', which the model reads"):
        load(artefact).predict([{"城市": "北京"}])


def test_synthetic_sample_holds_no_row(folder: Path, tmp_path: Path) -> None:
    data = {"train": str(folder / "points.csv"), **RECIPE}
    recipe = {
        "data": data,
        "model": {"type": "mlp", "size": "tiny"},
        "train": {"steps": 3},
        "sample": "synthetic",
    }
    luban.train(recipe, output=tmp_path / "model")
    sample = [
        json.loads(line)["row"] for line in (tmp_path / "model" / "sample.jsonl").read_text().splitlines()
    ]
    real = set(pl.read_csv(folder / "points.csv")["x"].to_list())
    assert len(sample) == 32
    assert not {row["x"] for row in sample} & real
    load(tmp_path / "model")


def test_sample_of_images_brings_its_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.clip(generator.normal(level, 20, size=(12, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    recipe = {
        "data": {"train": str(tmp_path / "pictures"), "inputs": {"image": {"type": "image", "height": 8, "width": 8}}, "targets": {"label": "category"}},
        "model": {"type": "cnn", "channels": [8], "pool": [2]},
        "train": {"epochs": 10, "batch_size": 8, "optimizer": {"type": "adamw", "learning_rate": 0.01}},
    }  # fmt: skip
    result = luban.train(recipe, output=tmp_path / "model")
    assert result["metrics"]["label.accuracy"]["value"] == 1.0
    shutil.rmtree(tmp_path / "pictures")
    load(tmp_path / "model")  # replays the sample


def test_cross_validation(folder: Path, tmp_path: Path) -> None:
    data = {"train": str(folder / "points.csv"), **RECIPE, "split": {"type": "folds", "folds": 3}}
    recipe = {"data": data, "model": {"type": "mlp", "size": "tiny"}, "train": {"epochs": 2}}
    result = luban.train(recipe, output=tmp_path / "folds")
    assert len(result["folds"]) == 3
    metric = result["metrics"]["side.accuracy"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    seen = [Artefact.load(path).lineage["rows"]["validation"] for path in result["folds"]]
    assert sum(seen) == 300  # each row is in one fold


def test_split_is_told_again_by_content(artefact: Path, folder: Path) -> None:
    whole = evaluate(artefact, str(folder / "points.csv"))
    assert whole["rows"] == 300
    assert "trained on 80%" in whole["warnings"][0]
    test = evaluate(artefact, str(folder / "points.csv"), split="test")
    recorded = json.loads((artefact / "metrics.json").read_text())
    assert test["rows"] == recorded["rows"] == 30
    assert test["metrics"]["side.accuracy"] == recorded["metrics"]["side.accuracy"]
