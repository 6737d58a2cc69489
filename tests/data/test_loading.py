"""Stores, order and loaders: what goes in comes out, once each epoch, wherever a run resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.batch import to_batch
from luban.data.contracts import Field, Flat, Spec
from luban.data.loader import ROW, Loader
from luban.data.order import Shuffle
from luban.data.ragged import Ragged
from luban.data.store import Store, StoreWriter, slice_rows

SPEC = Spec(
    {
        "x.value": Field("x", "number", "input", "float32"),
        "p.pixels": Field("p", "image", "input", "uint8", (2, 3, 1), mean=(0.0,), std=(255.0,)),
        "t.ids": Field("t", "text", "input", "int16", None, size=1000),
    }
)


def encoded(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray | Flat]:
    generator = np.random.default_rng(seed)
    n = len(lengths)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return {
        "x.value": generator.normal(size=n).astype(np.float32),
        "p.pixels": generator.integers(256, size=(n, 2, 3, 1), dtype=np.uint8),
        "t.ids": Flat(generator.integers(1000, size=int(offsets[-1])).astype(np.int16), offsets),
    }


def written(folder: Path, lengths: list[int], chunk: int) -> Store:
    rows = encoded(lengths)
    with StoreWriter(folder, SPEC) as writer:
        for start in range(0, len(lengths), chunk):
            writer.append(slice_rows(rows, start, start + chunk))
    return Store(folder)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 99))
def test_store_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], chunk: int, seed: int
) -> None:
    store = written(tmp_path_factory.mktemp("store"), lengths, chunk)
    rows = encoded(lengths)
    picked = np.random.default_rng(seed).integers(len(lengths), size=5)
    taken = store.take(picked)
    np.testing.assert_array_equal(taken["x.value"], rows["x.value"][picked])  # type: ignore[index]
    np.testing.assert_array_equal(taken["p.pixels"], rows["p.pixels"][picked])  # type: ignore[index]
    flat, original = taken["t.ids"], rows["t.ids"]
    assert isinstance(flat, Flat)
    assert isinstance(original, Flat)
    for place, row in enumerate(picked):
        np.testing.assert_array_equal(
            flat.values[flat.offsets[place] : flat.offsets[place + 1]],
            original.values[original.offsets[row] : original.offsets[row + 1]],
        )
    np.testing.assert_array_equal(store.lengths(picked), np.asarray(lengths)[picked])


def test_longest_rows_come_first(tmp_path: Path) -> None:
    store = written(tmp_path, [3, 9, 1, 9, 4], 2)
    assert store.longest(3).tolist() == [1, 3, 4]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**31))
def test_shuffle_is_a_permutation(n: int, seed: int) -> None:
    order = Shuffle(n, seed)(np.arange(n))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_shuffles_differ_and_are_not_orderly() -> None:
    a, b = (Shuffle(10_000, seed)(np.arange(10_000)) for seed in (1, 2))
    assert (a == b).mean() < 0.01
    assert abs(np.corrcoef(a, np.arange(10_000))[0, 1]) < 0.05
    neighbours = np.abs(np.diff(a))
    assert 2800 < neighbours.mean() < 3800  # a third of n for a random order


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.one_of(st.tuples(st.integers(1, 13), st.none()), st.tuples(st.none(), st.integers(1, 30))),
    st.integers(0, 5),
)
def test_every_row_once_and_resuming_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    size: tuple[int | None, int | None],
    epoch: int,
) -> None:
    store = written(tmp_path_factory.mktemp("store"), lengths, 100)
    loader = Loader(store, SPEC, batch_size=size[0], batch_tokens=size[1], seed=3)
    batches = list(loader.batches(epoch))
    numbers = torch.cat([batch[ROW] for batch in batches])  # type: ignore[arg-type]
    assert sorted(numbers.tolist()) == list(range(len(lengths)))
    assert len(batches) == loader.count(epoch)
    if size[1] is not None:
        for batch in batches:
            text = batch["t.ids"]
            assert isinstance(text, Ragged)
            assert len(text.values) <= size[1] or len(text) == 1
    elif size[0] is not None and size[0] > 1 and len(lengths) > 1:
        assert min(len(batch[ROW]) for batch in batches) > 1  # batch statistics of one row mean nothing
    start = len(batches) // 2
    for resumed, original in zip(loader.batches(epoch, start), batches[start:], strict=True):
        assert torch.equal(resumed[ROW], original[ROW])  # type: ignore[arg-type]


def test_epochs_differ(tmp_path: Path) -> None:
    loader = Loader(written(tmp_path, [1] * 50, 50), SPEC, batch_size=50, seed=0)
    first, second = (next(loader.batches(epoch))[ROW].tolist() for epoch in (0, 1))  # type: ignore[union-attr]
    assert first != second


def test_images_arrive_normalised_and_channels_last() -> None:
    rows = encoded([1, 2])
    batch = to_batch(rows, SPEC)
    pixels = batch["p.pixels"]
    assert isinstance(pixels, torch.Tensor)
    assert pixels.shape == (2, 1, 2, 3)
    np.testing.assert_allclose(pixels.permute(0, 2, 3, 1).numpy(), rows["p.pixels"] / 255.0, rtol=1e-6)  # type: ignore[operator]
    assert batch["t.ids"].values.dtype == torch.int64  # type: ignore[union-attr]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_ragged_and_rectangle_agree(lengths: list[int]) -> None:
    rows = [torch.randn(n, 3) for n in lengths]
    ragged = Ragged.from_rows(rows)
    rectangle, mask = ragged.padded(pad=-1)
    back = Ragged.from_padded(rectangle, mask)
    assert torch.equal(back.values, ragged.values)
    assert torch.equal(back.offsets, ragged.offsets)
    for row, total, mean in zip(rows, ragged.sum(), ragged.mean(), strict=True):
        torch.testing.assert_close(total, row.sum(0))
        torch.testing.assert_close(mean, row.mean(0) if len(row) else torch.zeros(3))
    if min(lengths):
        for row, high, first, last in zip(rows, ragged.max(), ragged.first(), ragged.last(), strict=True):
            torch.testing.assert_close(high, row.max(0).values)
            assert torch.equal(first, row[0])
            assert torch.equal(last, row[-1])
    assert ragged.positions.tolist() == [i for n in lengths for i in range(n)]
    assert ragged.rows.tolist() == [r for r, n in enumerate(lengths) for _ in range(n)]
