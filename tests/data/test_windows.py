"""Documents cut into windows: nothing is lost, nothing is learnt twice, and memory and disk cut alike."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.contracts import Field, Flat, Spec
from luban.data.store import Store, StoreWriter
from luban.data.windows import Windows, windows_of


def flat(lengths: list[int]) -> Flat:
    """Documents whose tokens all differ."""
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    return Flat(np.arange(offsets[-1], dtype=np.int64), offsets)


def parts(cut: Flat) -> list[list[int]]:
    return [cut.values[a:b].tolist() for a, b in zip(cut.offsets[:-1], cut.offsets[1:], strict=True)]


DOCUMENTS = st.lists(st.integers(0, 40), min_size=0, max_size=12)
CUTS = st.integers(1, 12).flatmap(
    lambda length: st.tuples(
        st.just(length), st.integers(0, length - 1), st.integers(0, 2), st.integers(0, 2)
    )
)


@given(DOCUMENTS, CUTS)
def test_every_token_is_in_a_window(lengths: list[int], cut: tuple[int, int, int, int]) -> None:
    length, overlap, begin, end = cut
    whole = flat(lengths)
    found, documents = windows_of(whole, length, overlap, (begin, end))
    windows = parts(found)
    assert all(len(window) <= length for window in windows)
    for number, document in enumerate(parts(whole)):
        inner = document[begin : len(document) - end]
        own = [window for window, of in zip(windows, documents, strict=True) if of == number]
        # Each begins with what the one before it ended with, and adds something.
        for before, after in pairwise(own):
            assert len(before) == length
            assert after[:overlap] == before[length - overlap :]
            assert len(after) > overlap
        assert [t for i, window in enumerate(own) for t in window[overlap if i else 0 :]] == inner
        assert own or not inner


@given(DOCUMENTS, st.integers(2, 12))
def test_every_token_but_the_first_is_predicted_once(lengths: list[int], length: int) -> None:
    """As `causal_lm` cuts: windows share a token, and each predicts what follows within it."""
    whole = flat(lengths)
    found, _ = windows_of(whole, length, 1)
    labels = sorted(label for window in parts(found) for label in window[1:])
    assert labels == [token for document in parts(whole) for token in document[1:]]


@settings(max_examples=40)
@given(DOCUMENTS, CUTS, st.randoms())
def test_a_store_is_cut_as_memory_is(
    lengths: list[int], cut: tuple[int, int, int, int], random: object
) -> None:
    length, overlap, begin, end = cut
    spec = Spec(
        {
            "text.ids": Field("text", "text", "input", "int64", None, size=500),
            "n.value": Field("n", "number", "input", "int64"),
        }
    )
    whole = flat(lengths)
    numbers = np.arange(len(lengths)) * 10
    with TemporaryDirectory() as folder:
        with StoreWriter(Path(folder), spec) as writer:
            writer.append({"text.ids": whole, "n.value": numbers})
        windows = Windows(Store(Path(folder)), "text.ids", length, overlap, (begin, end))
        expected, documents = windows_of(whole, length, overlap, (begin, end))
        assert len(windows) == len(documents)
        assert windows.names == ["n.value", "text.ids"]
        if not len(windows):
            return
        order = np.array(random.sample(range(len(windows)), len(windows)))  # type: ignore[attr-defined]
        taken = windows.take(order)
        ids = taken["text.ids"]
        assert isinstance(ids, Flat)
        assert parts(ids) == [parts(expected)[i] for i in order]
        assert taken["n.value"].tolist() == numbers[documents[order]].tolist()
        assert windows.lengths(order).tolist() == np.diff(ids.offsets).tolist()
        longest = windows.longest(min(3, len(windows)))
        assert sorted(windows.lengths(longest)) == sorted(np.diff(expected.offsets))[-len(longest) :]


def test_an_overlap_that_is_no_overlap_is_a_fault_of_ours(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, Spec({"t.ids": Field("t", "text", "input", "int64", None, size=9)})) as writer:
        writer.append({"t.ids": flat([3])})
    with pytest.raises(AssertionError, match="windows of 4 cannot overlap by 4"):
        Windows(Store(tmp_path), "t.ids", 4, 4)
