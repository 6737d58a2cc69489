"""Dates: layouts, and a calendar in numbers."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.processors.date import Date, as_times
from luban.errors import DataError
from luban.testing import check_processor


def fitted(values: Any, **options: Any) -> Date:
    processor = Date(**options)
    processor.update(pl.Series(values))
    processor.finish()
    return processor


MOMENT = datetime.datetime(2026, 3, 4)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2026-03-04", MOMENT), ("2026/3/4", MOMENT), ("20260304", MOMENT), ("2026.03.04", MOMENT), ("2026年3月4日", MOMENT),
        ("04/03/2026", MOMENT), ("4.3.2026", MOMENT), ("03/24/2026", datetime.datetime(2026, 3, 24)),
        ("2026-03-04 12:30", MOMENT.replace(hour=12, minute=30)),
        ("2026-03-04T12:30:15.5Z", MOMENT.replace(hour=12, minute=30, second=15, microsecond=500000)),
        ("2026年3月4日 12:30:15", MOMENT.replace(hour=12, minute=30, second=15)),
        ("2026-02-30", None), ("2026", None), ("soon", None), ("", None),
    ],
)  # fmt: skip
def test_layouts(cell: str, expected: datetime.datetime | None) -> None:
    assert as_times(pl.Series([cell]))[0] == expected


def test_own_layouts_keep_the_time_of_day() -> None:
    found = as_times(pl.Series(["04.03.26 01:30 PM", "2026-03-04"]), ["%d.%m.%y %I:%M %p"])
    assert found.to_list() == [MOMENT.replace(hour=13, minute=30), MOMENT]


def test_typed_columns() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=8))
    for values in ([MOMENT.date()], [MOMENT], [20260304]):
        assert as_times(pl.Series(values))[0] == MOMENT
    assert as_times(pl.Series([MOMENT.replace(tzinfo=zone)])).dtype == pl.Datetime("us")
    assert as_times(pl.Series([None])).to_list() == [None]


def test_the_calendar_is_round() -> None:
    processor = fitted(["2024-01-01", "2026-01-01"])
    value = np.asarray(
        processor.encode(pl.Series(["2025-01-06", "2025-01-13", "2025-01-06 12:00", None]))["value"]
    )
    assert value.shape == (4, 10)
    monday, next_monday, noon, gap = value
    assert np.allclose(monday[5:7], next_monday[5:7])
    assert np.allclose((monday[7:9], noon[7:9]), ((0, 1), (0, -1)), atol=1e-6)
    assert gap.tolist() == [0] * 9 + [1]
    assert np.allclose(value[:3, 1:9:2] ** 2 + value[:3, 2:9:2] ** 2, 1, atol=1e-5)


def test_time_is_in_deviations_of_the_training_rows() -> None:
    processor = fitted(["2024-01-01", "2024-01-03"])
    value = np.asarray(processor.encode(pl.Series(["2024-01-01", "2024-01-02", "2024-01-03"]))["value"])
    assert np.allclose(value[:, 0], [-1, 0, 1], atol=1e-6)


def test_nothing_to_fit_and_what_cannot_be_read() -> None:
    with pytest.raises(DataError, match="no training row holds a date"):
        fitted(["x", None])
    assert fitted(["2024-01-01"]).invalid(pl.Series(["2024-01-02", "x", None])).to_list() == [
        False,
        True,
        False,
    ]


LAYOUTS = ["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%Y年%m月%d日", "%Y-%m-%d %H:%M:%S", "%d.%m.%Y"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
            st.sampled_from(LAYOUTS),
        ),
        min_size=4,
        max_size=8,
    )
)
def test_any_dates(moments: list[tuple[datetime.datetime, str]]) -> None:
    cells = [moment.strftime(layout) for moment, layout in moments]
    assert [t and t.date() for t in as_times(pl.Series(cells))] == [moment.date() for moment, _ in moments]
    check_processor(Date(), pl.Series("c", [*cells, None, "x"]))
