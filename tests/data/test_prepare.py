"""When a preparation is taken from the cache and when it is made again; what it reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from luban import recipe, registry
from luban.data import prepare as module
from luban.data.prepare import Prepared, prepare
from luban.errors import DataError
from luban.recipe import Data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"x": generator.normal(size=80), "word": ["a", "b"] * 40, "y": [i % 3 for i in range(80)]}
    )
    frame.write_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def data(rows: Path, **options: Any) -> Data:
    return Data.model_validate(
        {"train": str(rows), "inputs": {"x": "number"}, "targets": {"y": "category"}, **options}
    )


def same(first: Prepared, second: Prepared) -> bool:
    return first.folder == second.folder


def test_the_same_is_taken_from_the_cache(rows: Path) -> None:
    assert same(prepare(data(rows)), prepare(data(rows)))


# --- plug-ins ---

PLUG_IN = """
from shared_part import Base
from luban.extend import register

@register("processors", "{name}")
class Mine(Base):
    {body}
"""
SHARED = """
import numpy as np
from luban.data.processors.number import Number

class Base(Number):
    def encode(self, values):
        return {{"value": np.full(len(values), {constant}, dtype=np.float32)}}
    def fields(self, column, role):
        return {{"value": super().fields(column, role)["value"]}}
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which recipes import `my_part`, forgotten again when the test is over."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(registry._registered, "processors", dict(registry._registered["processors"]))
    (tmp_path / "shared_part.py").write_text(SHARED.format(constant=1.0))
    (tmp_path / "my_part.py").write_text(PLUG_IN.format(name="mine", body="pass"))
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process would be."""
    for name in ("my_part", "shared_part"):
        sys.modules.pop(name, None)
    registry._registered["processors"].pop("mine", None)


def load(folder: Path, rows: Path) -> Data:
    text = f"data: {{train: {rows}, inputs: {{x: mine}}, targets: {{y: category}}}}\nmodel: mlp\nimports: [my_part]\n"
    (folder / "r.yaml").write_text(text)
    return recipe.load(folder / "r.yaml").data


def values(prepared: Prepared) -> list[float]:
    return [float(v) for v in prepared.store("train").take(np.arange(3))["x.value"]]  # type: ignore[union-attr]


@pytest.mark.parametrize("edited", ["my_part.py", "shared_part.py"])
def test_an_edited_plug_in_prepares_anew(plug_in: Path, rows: Path, edited: str) -> None:
    first = prepare(load(plug_in, rows))
    assert values(first) == [1.0] * 3
    forget()
    assert same(first, prepare(load(plug_in, rows)))
    forget()
    if edited == "my_part.py":
        body = "def encode(self, values):\n        return {'value': super().encode(values)['value'] + 1}"
        (plug_in / edited).write_text(PLUG_IN.format(name="mine", body=body))
    else:
        (plug_in / edited).write_text(SHARED.format(constant=2.0))
    second = prepare(load(plug_in, rows))
    assert not same(first, second)
    assert values(second) == [2.0] * 3


def test_a_file_edited_behind_the_process_poisons_nothing(plug_in: Path, rows: Path) -> None:
    """The old class is still at work when its file is already another: that is neither the old nor the new preparation."""
    first = prepare(load(plug_in, rows))
    (plug_in / "shared_part.py").write_text(SHARED.format(constant=2.0))
    stale = prepare(load(plug_in, rows))
    assert values(stale) == [1.0] * 3
    forget()
    fresh = prepare(load(plug_in, rows))
    assert values(fresh) == [2.0] * 3
    assert len({first.folder, stale.folder, fresh.folder}) == 3


def test_a_class_without_a_file_is_known_by_its_code() -> None:
    """As in a notebook, where a cell is run again with another body."""
    space: dict[str, Any] = {"__name__": "no_such_file"}
    hashes = []
    for constant in ("1", "1", "2", "{'a', 'b', 'c'}"):
        exec(f"class Mine:\n    def f(self, x):\n        return [y for y in x if y in ({constant},)]", space)
        hashes.append(module._source_of(space["Mine"]))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


# --- pictures ---


def paint(path: Path, grey: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)
    return str(path)


def pixels(prepared: Prepared) -> set[int]:
    store = prepared.store("train")
    return set(np.unique(store.take(np.arange(len(store)))["image.pixels"]).tolist())  # type: ignore[arg-type]


def table(folder: Path, kind: str, names: list[str]) -> Any:
    frame = pl.DataFrame({"image": names, "y": [i % 2 for i in range(len(names))]})
    match kind:
        case "csv":
            frame.write_csv(folder / "table.csv")
            return str(folder / "table.csv")
        case "struct":  # as Hugging Face's datasets write it
            cells = [{"bytes": None, "path": name} for name in names]
            schema = {"bytes": pl.Binary, "path": pl.String}
            frame.with_columns(pl.Series("image", cells, dtype=pl.Struct(schema))).write_parquet(
                folder / "t.parquet"
            )
            return str(folder / "t.parquet")
        case _:
            frame.write_csv(folder / "table.csv")
            return {"type": "images", "path": str(folder / "other"), "table": str(folder / "table.csv")}


@pytest.mark.parametrize("kind", ["csv", "struct", "images"])
def test_a_picture_of_other_contents_prepares_anew(tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").mkdir()
    names = [paint(tmp_path / "pictures" / f"{i}.png", i) for i in range(40)]
    options: dict[str, Any] = {
        "train": table(tmp_path, kind, names), "inputs": {"im*": "image"}, "targets": {"y": "category"}, "split": {"test": 0, "validation": 0.1},
    }  # fmt: skip
    first = prepare(Data.model_validate(options))
    assert same(first, prepare(Data.model_validate(options)))
    for i, name in enumerate(names):
        paint(Path(name), 100 + i)
    second = prepare(Data.model_validate(options))
    assert not same(first, second)
    assert min(pixels(second)) >= 100
    os.utime(names[7], ns=(1, 1))
    assert not same(second, prepare(Data.model_validate(options)))


def test_pictures_in_a_folder(tmp_path: Path) -> None:
    for i in range(40):
        paint(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png", i)
    options = {
        "train": str(tmp_path / "pictures") + "/",
        "inputs": {"image": "image"},
        "targets": {"label": "category"},
    }
    first = prepare(Data.model_validate(options))
    paint(tmp_path / "pictures" / "a" / "0.png", 99)
    second = prepare(Data.model_validate(options))
    assert not same(first, second)
    os.utime(tmp_path / "pictures" / "a" / "0.png", ns=(1, 1))
    assert same(second, prepare(Data.model_validate(options))), "small folders are known by their contents"


def test_a_table_that_brings_its_pictures_is_not_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are part of the table, whose own fingerprint knows them."""
    paint(tmp_path / "one.png", 3)
    cell = {"bytes": (tmp_path / "one.png").read_bytes(), "path": "gone.png"}
    frame = pl.DataFrame({"image": [cell] * 40, "y": [i % 2 for i in range(40)]})
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=10)
    options = {
        "train": str(tmp_path / "t.parquet"),
        "inputs": {"image": "image"},
        "targets": {"y": "category"},
    }
    parsed = Data.model_validate(options)
    scanned: list[int] = []
    real = type(parsed.train).scan  # type: ignore[attr-defined]

    def counting(self: Any, chunk_rows: int = 8192) -> Iterator[pl.DataFrame]:
        for chunk in real(self, 10):
            scanned.append(len(chunk))
            yield chunk

    monkeypatch.setattr(type(parsed.train), "scan", counting)
    module._pictures({"train": parsed.train}, ["image"])  # type: ignore[dict-item]
    assert scanned == [10]


# --- versions ---


@pytest.mark.parametrize("package", ["tokenizers", "pillow", "ftfy", "opencc-python-reimplemented"])
def test_another_version_of_a_package_prepares_anew(
    rows: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(data(rows))
    real = module.version
    monkeypatch.setattr(module, "version", lambda name: "0.0.1" if name == package else real(name))
    assert not same(first, prepare(data(rows)))


# --- what is reported ---


def test_columns_without_spread_are_reported(rows: Path) -> None:
    flat = pl.DataFrame(
        {"x": [0.0] * 160 + [float(i) for i in range(40)], "z": range(200), "y": [0, 1] * 100}
    )
    flat.write_csv(rows)
    inputs = {"x": "number", "z": "number"}
    prepared = prepare(data(rows, inputs=inputs, clean=[{"type": "outliers", "columns": ["x", "z"]}]))
    assert prepared.report["counts"] == {"outliers: columns without spread": 1}


def test_what_is_fitted_twice_is_counted_once(rows: Path) -> None:
    frame = pl.read_csv(rows).with_columns(
        x=pl.when(pl.int_range(80) % 8 == 0).then(None).otherwise(pl.col("x"))
    )
    frame.write_csv(rows)
    prepared = prepare(
        data(rows, clean=[{"type": "missing", "strategy": "mean", "columns": ["x"]}, "outliers"])
    )
    assert prepared.report["counts"]["missing: filled"] == 10


def test_an_indicator_that_is_not_made_refuses(rows: Path) -> None:
    inputs = {"x": "number", "word_missing": "number"}
    clean = [{"type": "missing", "strategy": "mean", "indicator": True}]
    with pytest.raises(DataError, match=r"no column 'word_missing'.*missing makes"):
        prepare(data(rows, inputs=inputs, clean=clean))
