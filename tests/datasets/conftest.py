"""Carriers made by the tests themselves, and a cache of their own."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from luban.datasets import Source
from luban.datasets.catalogue import CATALOGUE, Dataset
from luban.datasets.layouts import lines_by_class


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


@pytest.fixture
def make_tar() -> Callable[[Path, Mapping[str, bytes]], Path]:
    def make(path: Path, members: Mapping[str, bytes]) -> Path:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    return make


@pytest.fixture
def carrier(tmp_path: Path, make_tar: Callable[[Path, Mapping[str, bytes]], Path]) -> Path:
    """Six lines in two classes: one is repeated, one is in both classes; and a blank one."""
    members = {"p/pos.txt": "好书\n好书\n一般\n".encode(), "p/neg.txt": "差\n一般\n　\n脏，旧\n".encode()}
    return make_tar(tmp_path / "tiny-1.0.tgz", members)


@pytest.fixture
def tiny(carrier: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A data set in the catalogue whose carrier is the file above."""
    sha256 = hashlib.sha256(carrier.read_bytes()).hexdigest()
    dataset = Dataset(
        name="tiny",
        summary="made by a test",
        licence="CC0-1.0",
        rows=3,
        main="reviews.csv",
        columns=("review", "label"),
        sources=(Source("npm", "tiny", "1.0", sha256, carrier.name, 0.1),),
        tidy=lambda carriers, out: lines_by_class(
            carriers, out, members={"positive": "*/pos.txt", "negative": "*/neg.txt"}, column="review"
        ),
    )
    monkeypatch.setitem(CATALOGUE, "tiny", dataset)
    return dataset
