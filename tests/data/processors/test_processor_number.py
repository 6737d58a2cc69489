"""Numbers: what is read as one, and on which scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.data.processors._base import as_numbers, as_words, in_order
from luban.data.processors.number import Number
from luban.errors import DataError
from luban.testing import check_processor

NORMALIZE = ["zscore", "minmax", "robust", "log", "none"]


def fitted(values: Any, **options: Any) -> Number:
    processor = Number(**options)
    processor.update(pl.Series(values))
    processor.finish()
    return processor


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1", 1.0),
        (" -2.5e3 ", -2500.0),
        ("1,234", 1234.0),
        ("1,234,567,890.5", 1234567890.5),
        ("45%", 0.45),
        ("１２，３４５．５％", 123.455),
        ("+7", 7.0),
        ("", None),
        ("x", None),
        ("1,23", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("1e39", None),
        ("5 kg", None),
    ],
)
def test_as_numbers(cell: str, number: float | None) -> None:
    assert as_numbers(pl.Series([cell]))[0] == pytest.approx(number)


def test_a_cell_means_the_same_beside_any_other() -> None:
    cells = ["1,234", "0.5", "45%", "x", None, "7"]
    together = as_numbers(pl.Series(cells)).to_list()
    assert together == [as_numbers(pl.Series([cell], dtype=pl.String))[0] for cell in cells]


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("zscore", [-1.5, -0.5, 0.5, 1.5]),
        ("minmax", [0, 1 / 3, 2 / 3, 1]),
        ("robust", [-1, -1 / 3, 1 / 3, 1]),
        ("none", [1, 3, 5, 7]),
    ],
)
def test_scales(normalize: str, expected: list[float]) -> None:
    values = [1.0, 3.0, 5.0, 7.0]
    scaled = fitted(values, normalize=normalize).encode(pl.Series(values))["value"]
    unit = np.std(values) / 2 if normalize == "zscore" else 1
    assert np.allclose(np.asarray(scaled) * unit, expected)


def test_log_has_mean_zero_and_keeps_signs() -> None:
    values = pl.Series([-1000.0, -1.0, 0.0, 1.0, 1000.0])
    scaled = np.asarray(fitted(values, normalize="log").encode(values)["value"])
    assert np.allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-6)
    assert np.allclose(scaled, -scaled[::-1], atol=1e-6)


@pytest.mark.parametrize(("missing", "stand_in"), [("mean", 4.0), ("median", 2.0), ("zero", 0.0)])
def test_what_stands_in_for_a_gap(missing: str, stand_in: float) -> None:
    processor = fitted([1.0, 2.0, 9.0, None], missing=missing, normalize="none")
    encoded = processor.encode(pl.Series([None, 5.0]))
    assert np.asarray(encoded["value"]).tolist() == [stand_in, 5.0]
    assert np.asarray(encoded["missing"]).tolist() == [1.0, 0.0]


def test_the_indicator_follows_the_training_rows() -> None:
    assert list(fitted([1.0, 2.0]).encode(pl.Series([1.0, None]))) == ["value"]
    assert list(fitted([1.0, None]).encode(pl.Series([1.0]))) == ["value", "missing"]
    assert list(fitted([1.0, None], indicator=False).encode(pl.Series([1.0]))) == ["value"]


def test_a_target_with_gaps_in_training_has_one_field() -> None:
    processor = fitted([1.0, None, 3.0])
    assert (
        list(processor.encode_target(pl.Series([1.0]))) == list(processor.fields("y", "target")) == ["value"]
    )


def test_far_beyond_the_training_rows_stays_finite() -> None:
    processor = fitted([1.0, 1.0 + 1e-9])
    assert np.isfinite(np.asarray(processor.encode(pl.Series([1e38, -1e38]))["value"])).all()


def test_nothing_to_fit() -> None:
    with pytest.raises(DataError, match="no training row holds a number"):
        fitted(["a", None])


def test_invalid_is_a_word_and_not_a_gap() -> None:
    assert fitted(["1", "2"]).invalid(pl.Series(["1", None, "x", "2%"])).to_list() == [
        False,
        False,
        True,
        False,
    ]


numbers = st.one_of(st.none(), st.floats(-1e30, 1e30), st.integers(-(2**70), 2**70).map(float))


@given(
    values=st.lists(numbers, min_size=2, max_size=30).filter(lambda v: sum(x is not None for x in v) > 1),
    normalize=st.sampled_from(NORMALIZE),
    missing=st.sampled_from(["mean", "median", "zero"]),
)
def test_any_numbers(values: list[float | None], normalize: Any, missing: Any) -> None:
    processor = fitted(pl.Series(values, dtype=pl.Float64), normalize=normalize, missing=missing)
    encoded = processor.encode(pl.Series(values, dtype=pl.Float64))
    scaled = np.asarray(encoded["value"])
    assert np.isfinite(scaled).all()
    present = np.array([v for v in values if v is not None])
    kept = scaled[[v is not None for v in values]]
    if normalize == "minmax":
        assert kept.min() >= -1e-6
        assert kept.max() <= 1 + 1e-6
    back = np.array([one["value"] for one in processor.decode(kept[:, None])])
    spread = max(np.abs(present).max(), 1e-3)
    if normalize != "log":
        assert np.allclose(back, present, atol=1e-5 * spread)
    order = np.argsort(present, kind="stable")
    assert (np.diff(kept[order]) >= 0).all()


@given(
    st.lists(
        st.one_of(st.none(), st.integers(-50, 50).map(str), st.sampled_from(["1,000", "9%", "x", " 4 ", ""])),
        min_size=8,
        max_size=20,
    )
)
def test_contract_on_any_cells(cells: list[str | None]) -> None:
    check_processor(Number(), pl.Series("c", [*cells, "1", "2", "3"], dtype=pl.String), targets=True)


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3, 30], ["3", "30"]),
        ([3.0, 2.5, float("nan")], ["3", "2.5", None]),
        ([True, False], ["true", "false"]),
        ([" a ", "", None], ["a", None, None]),
        ([1e300, -4.0], ["1e300", "-4"]),
    ],
)
def test_as_words(values: list[Any], words: list[str | None]) -> None:
    found = as_words(pl.Series(values)).to_list()
    assert found == words or [w and float(w) for w in found] == [w and float(w) for w in words]


@given(
    st.lists(st.sampled_from(["nan", "inf", "-inf", "1", "10", "9", "02", "2.5", "a"]), unique=True),
    st.randoms(),
)
def test_order_does_not_depend_on_the_order_of_arrival(words: list[str], random: Any) -> None:
    shuffled = words.copy()
    random.shuffle(shuffled)
    assert in_order(shuffled) == in_order(words)
