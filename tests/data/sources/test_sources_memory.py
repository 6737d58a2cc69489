"""Memory does not grow with the file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

PEAK = """
import sys
from luban.data.sources import open_source
rows = sum(chunk.height for chunk in open_source(sys.argv[1]).scan())
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage counts the parent too
print(rows, int(peak.split()[1]) // 1024)
"""


def frame(rows: int) -> pl.DataFrame:
    return pl.DataFrame({"n": range(rows), "text": ['review "quoted" 好用，'] * rows})


FORMATS: dict[str, Callable[[int, Path], Any]] = {
    "a.csv": lambda rows, path: frame(rows).write_csv(path),
    "a.jsonl": lambda rows, path: frame(rows).write_ndjson(path),
    "a.json": lambda rows, path: frame(rows).write_json(path),
    "a.arrow": lambda rows, path: frame(rows).write_ipc(path),
    "a.npz": lambda rows, path: np.savez(path, x=np.zeros((rows, 10))),
    "a.parquet": lambda rows, path: frame(rows).write_parquet(path, row_group_size=20_000),
}


def peak(name: str, rows: int, folder: Path) -> tuple[float, float]:
    """Return the peak of the resident memory, and the file's size, in MB."""
    path = folder / name
    FORMATS[name](rows, path)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    read, used = map(int, done.stdout.split())
    assert read == rows
    return used, path.stat().st_size / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", FORMATS)
def test_ten_times_the_file_is_not_ten_times_the_memory(name: str, tmp_path: Path) -> None:
    small, _ = peak(name, 150_000, tmp_path)
    large, _ = peak(name, 1_500_000, tmp_path)
    assert large < small + 60, f"{name}: {small} MB became {large} MB"
