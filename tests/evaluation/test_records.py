"""What is written comes back, and all tables of a pool together hold no more than its limit."""

from __future__ import annotations

import tracemalloc
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.errors import MachineError
from luban.evaluation import records as module
from luban.evaluation.records import Pool

TYPE = np.dtype(
    [("hit", "?"), ("truth", "i4"), ("weight", "f8"), ("scores", "f4", (3,)), ("none", "f4", (0,))]
)


def batch(rows: int, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    records = np.zeros(rows, TYPE)
    records["hit"] = generator.random(rows) < 0.5
    records["truth"] = generator.integers(-9, 9, rows)
    records["weight"], records["scores"] = generator.random(rows), generator.random((rows, 3))
    return records


@given(
    sizes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=12),
    limit=st.integers(0, 2000),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_columns_come_back_wherever_they_lie(
    sizes: list[tuple[int, int]], limit: int, ends: tuple[float, float]
) -> None:
    pool = Pool(limit)
    tables, wrote = [pool.table(TYPE) for _ in range(3)], [[batch(0, 0)] for _ in range(3)]
    for seed, (number, rows) in enumerate(sizes):
        wrote[number].append(batch(rows, seed))
        tables[number].append(wrote[number][-1])
        assert pool.held <= limit
    for table, parts in zip(tables, wrote, strict=True):
        whole = np.concatenate(parts)
        assert table.rows == len(whole)
        start, stop = sorted(int(end * len(whole)) for end in ends)
        some = np.arange(start, stop)[::2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_WINDOW", 4)
            windows = list(table.windows())
            assert [n for w in windows for n in range(w.start, w.stop)] == list(range(len(whole)))
            for name in ("hit", "truth", "weight"):
                assert (table.read(slice(start, stop), name) == whole[name][start:stop]).all()
                assert (table.take(some, name) == whole[name][some]).all()
            for k in range(3):
                assert (table.read(slice(start, stop), "scores", k) == whole["scores"][start:stop, k]).all()
                assert (table.take(some, "scores", k) == whole["scores"][some, k]).all()
        assert (table.width("scores"), table.width("none"), table.width("truth")) == (3, 0, 1)


def test_fifty_slices_hold_no_more_than_one() -> None:
    limit = 2**20
    tracemalloc.start()
    try:
        pool = Pool(limit)
        tables = [pool.table(TYPE) for _ in range(50)]
        before = tracemalloc.get_traced_memory()[0]
        for seed in range(40):
            for table in tables:
                table.append(batch(200, seed))  # 11.6 MB in all
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held - before < 1.3 * limit
    assert peak - before < 2 * limit
    assert {table.rows for table in tables} == {8000}


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> IO[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "TemporaryFile", full)
    with pytest.raises(MachineError, match="No space left on device; free disk space"):
        Pool(0).table(TYPE).append(batch(1, 0))
