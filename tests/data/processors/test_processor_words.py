"""Category, binary, set: closed sets of words."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban import registry
from luban.data.contracts import Flat, Processor
from luban.data.processors.binary import Binary
from luban.data.processors.category import Category
from luban.data.processors.set import Set
from luban.errors import DataError
from luban.testing import check_processor


def fitted(name: str, values: Any, **options: Any) -> Any:
    processor: Processor = registry.lookup("processors", name)(**options)
    processor.update(pl.Series(values))
    processor.finish()
    return processor


def ids(encoded: Any) -> list[list[int]]:
    assert isinstance(encoded["ids"], Flat)
    return [part.tolist() for part in np.split(encoded["ids"].values, encoded["ids"].offsets[1:-1])]


# --- category ---------------------------------------------------------------------------------------------


def test_unknown_rare_and_missing_words() -> None:
    processor = fitted("category", ["a", "a", "b", "b", "c", None], min_count=2)
    assert processor.encode(pl.Series(["a", "b", "c", "new"]))["index"].tolist() == [1, 2, 0, 0]
    whole = fitted("category", ["a", "b", None])
    assert whole.encode(pl.Series(["a", None, "new"]))["index"].tolist() == [1, 3, 0]
    assert whole.fields("c", "input")["index"].size == 4
    assert fitted("category", ["a", "b"]).encode(pl.Series([None, "a"]))["index"].tolist() == [0, 1]


def test_numbers_are_sorted_as_numbers() -> None:
    assert fitted("category", ["10", "9", "2"]).classes() == ["2", "9", "10"]
    assert fitted("category", ["10", "9", "b"]).classes() == ["10", "9", "b"]


def test_the_same_word_from_any_file() -> None:
    processor = fitted("category", ["3", "4"])
    assert processor.encode(pl.Series([3, 4]))["index"].tolist() == [1, 2]
    assert processor.encode(pl.Series([3.0, 4.0]))["index"].tolist() == [1, 2]


def test_a_target_has_no_index_for_unknown_words() -> None:
    processor = fitted("category", ["a", "b", None])
    assert processor.known(pl.Series(["a", "new", None])).to_list() == [True, False, False]
    assert processor.encode_target(pl.Series(["b", "a"]))["index"].tolist() == [1, 0]
    assert processor.head_width == 2
    with pytest.raises(DataError, match="nothing to learn"):
        fitted("category", ["a", "a"]).fields("c", "target")


def test_decoding_sorts_by_probability_and_shows_ten() -> None:
    processor = fitted("category", [f"w{i:02}" for i in range(30)])
    (one,) = processor.decode(np.arange(30, dtype=np.float32)[None])
    assert one["value"] == "w29"
    assert list(one["scores"]) == [f"w{i}" for i in range(29, 19, -1)]
    assert one["score"] == one["scores"]["w29"] == pytest.approx(1 - np.exp(-1), abs=1e-6)


def test_nothing_but_gaps() -> None:
    with pytest.raises(DataError, match="no training row holds a value"):
        fitted("category", [None, ""])


@pytest.mark.parametrize(("n", "dtype"), [(255, "uint8"), (256, "int16"), (40_000, "int32")])
def test_the_narrowest_integer(n: int, dtype: str) -> None:
    processor = fitted("category", [str(i) for i in range(n)], max_size=50_000)
    assert (
        processor.encode(pl.Series(["0"]))["index"].dtype
        == dtype
        == processor.fields("c", "input")["index"].dtype
    )


# --- binary -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "positive"),
    [
        (["no", "yes"], "yes"), (["1", "0"], "1"), (["True", "False"], "True"), (["正面", "负面"], "正面"),
        (["ham", "spam"], "spam"), (["dog", "cat"], "dog"), (["2", "10"], "10"), (["malignant", "benign"], "malignant"),
    ],
)  # fmt: skip
def test_which_word_is_positive(words: list[str], positive: str) -> None:
    assert fitted("binary", words).classes()[1] == positive


def test_binary_refuses_one_and_three_words() -> None:
    with pytest.raises(DataError, match="holds only"):
        fitted("binary", ["a", "a", None])
    with pytest.raises(DataError, match=r"holds 3: a, b, c.*read it as category"):
        fitted("binary", ["a", "b", "c"])
    with pytest.raises(DataError, match="'maybe' does not occur"):
        fitted("binary", ["a", "b"], positive="maybe")


def test_binary_gaps_and_other_words() -> None:
    processor = fitted("binary", ["no", "yes", None])
    cells = pl.Series(["no", None, "yes", "perhaps"])
    assert processor.invalid(cells).to_list() == [False, False, False, True]
    assert processor.known(cells).to_list() == [True, False, True, False]
    assert processor.encode(cells.head(3))["value"].tolist() == [0.0, 0.5, 1.0]
    assert fitted("binary", [0.0, 1.0, float("nan")]).classes() == ["0", "1"]


def test_binary_threshold() -> None:
    output = np.array([[np.log(0.3 / 0.7)]], np.float32)
    (strict,), (lax,) = (fitted("binary", ["no", "yes"], threshold=t).decode(output) for t in (0.5, 0.2))
    assert (strict["value"], lax["value"]) == ("no", "yes")
    assert (strict["score"], lax["score"]) == (pytest.approx(0.7, abs=1e-6), pytest.approx(0.3, abs=1e-6))


# --- set --------------------------------------------------------------------------------------------------


def test_sets_of_cells_and_lists() -> None:
    processor = fitted("set", ["b; a", "a;;a", None, ""])
    assert processor.classes() == ["a", "b"]
    assert ids(processor.encode(pl.Series(["b;a", "a;a", None, "c"]))) == [[1, 0], [0], [], []]
    assert processor.counts() == {"unknown words left out": 1}
    assert ids(processor.encode(pl.Series([["b", "a"], [], None]))) == [[1, 0], [], []]


def test_set_thresholds_and_sizes() -> None:
    processor = fitted("set", ["a;b", "b;c", "b"], max_size=2, threshold=0.9)
    assert processor.classes() == ["a", "b"]
    (one,) = processor.decode(np.array([[5.0, 1.0]], np.float32))
    assert one["value"] == ["a"]
    with pytest.raises(DataError, match="is ';' the separator"):
        fitted("set", ["a", "b"], min_count=2)


# --- all three --------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(cells=st.lists(st.one_of(st.none(), words), max_size=15), minimum=st.integers(1, 2))
def test_any_categories(cells: list[str | None], minimum: int) -> None:
    values = pl.Series("c", [*cells, "x", "x", "y", "y"], dtype=pl.String)
    check_processor(Category(min_count=minimum), values, targets=True)


@given(
    pair=st.lists(words.map(str.strip).filter(bool), min_size=2, max_size=2, unique=True),
    cells=st.lists(st.sampled_from([0, 1, None])),
)
def test_any_pair(pair: list[str], cells: list[int | None]) -> None:
    values = pl.Series("c", [*pair, *(None if i is None else pair[i] for i in cells)], dtype=pl.String)
    if values.str.strip_chars().n_unique() == values.n_unique():
        check_processor(Binary(), values, targets=True)


@given(
    cells=st.lists(st.one_of(st.none(), words), max_size=15),
    separator=st.sampled_from([";", "、", "|", ", "]),
)
def test_any_sets(cells: list[str | None], separator: str) -> None:
    values = pl.Series("c", [*cells, f"x{separator}y", "y"], dtype=pl.String)
    check_processor(Set(separator=separator), values, targets=True)
