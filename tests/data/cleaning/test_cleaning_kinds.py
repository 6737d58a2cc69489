"""Cleaning typed tables: each cleaner on each kind of column that Parquet knows ends well or in one sentence."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from luban.data.cleaning.missing import Missing
from luban.data.contracts import Cleaner
from luban.data.sources.parquet import Parquet
from luban.errors import DataError
from luban.recipe import Section

N = 40


def kinds() -> pl.DataFrame:
    """A column of each kind, with a gap in row 3 and one value in most of the others."""

    def column(name: str, common: Any, other: Any, dtype: Any = None) -> pl.Series:
        values = [None if i == 3 else other if i % 5 == 0 else common for i in range(N)]
        return pl.Series(name, values, dtype=dtype)

    day, moment = dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 13, 5, 6, 7)
    return pl.DataFrame(
        [
            column("number", 1.5, 2.5),
            column("integer", 7, 8),
            column("decimal", Decimal("12.30"), Decimal("9.99"), pl.Decimal(10, 2)),
            column("long", Decimal(12345678901234567891), Decimal(1), pl.Decimal(38, 0)),
            column("text", "北京", "上海"),
            column("category", "a", "b", pl.Categorical),
            column("enum", "a", "b", pl.Enum(["a", "b"])),
            column("flag", True, False),
            column("day", day, dt.date(2020, 1, 1)),
            column("moment", moment, dt.datetime(2020, 1, 1)),
            column("nanos", moment, dt.datetime(2020, 1, 1), pl.Datetime("ns")),
            column("zoned", moment, dt.datetime(2020, 1, 1)).dt.replace_time_zone("Asia/Shanghai"),
            column("time", dt.time(3, 4), dt.time(5)),
            column("duration", dt.timedelta(seconds=3), dt.timedelta(days=1)),
            column("list", [1, 2], [3]),
            column("array", [1, 2], [3, 4], pl.Array(pl.Int64, 2)),
            column("struct", {"a": 1}, {"a": 2}),
            column("nested", {"a": [1]}, {"a": []}),
            column("binary", b"\xff\x00", b"\x01"),
            pl.Series("nothing", [None] * N),
        ]
    )


ODD = ["time", "list", "array", "struct", "nested", "binary"]
FILLED = [name for name in kinds().columns if name not in (*ODD, "nothing")]


@pytest.fixture
def rows(tmp_path: Path) -> pl.DataFrame:
    """The table as a Parquet file gives it back: spans of time are seconds."""
    kinds().write_parquet(tmp_path / "kinds.parquet")
    return pl.concat(list(Parquet(path=str(tmp_path / "kinds.parquet")).scan()))


def fitted(rows: pl.DataFrame, **options: Any) -> Cleaner:
    """A cleaner that was fitted, written and read back."""
    steps = [Section("cleaning").parse(options) for _ in range(2)]
    first, second = steps
    assert isinstance(first, Cleaner)
    assert isinstance(second, Cleaner)
    for start in range(0, len(rows), 7):
        first.update(rows[start : start + 7])
    first.finish()
    second.restore(json.loads(json.dumps(first.state())))
    assert second.apply(rows, predicting=True).equals(first.apply(rows, predicting=True))
    return second


def test_mode_of_every_kind(rows: pl.DataFrame) -> None:
    cleaned = fitted(rows, type="missing", strategy="mode").apply(rows, predicting=False)
    for name in FILLED:
        common = rows[name][1]
        assert cleaned[name][3] == common, name
        assert cleaned[name].null_count() == 0, name
        assert cleaned[name].to_list()[4:] == rows[name].to_list()[4:], name
    for name in (*ODD, "nothing"):
        assert cleaned[name].equals(rows[name]), f"{name} has no mode that could be kept, and stays"


@pytest.mark.parametrize("name", ["day", "moment", "zoned", "nanos"])
def test_the_mode_of_dates_fills_text_too(rows: pl.DataFrame, name: str) -> None:
    """Rows to predict bring dates as text, or a null that says nothing of its type."""
    step = fitted(rows[[name]], type="missing", strategy="mode")
    iso = rows[name][1].replace(tzinfo=None).isoformat() if name != "day" else "2024-02-29"
    for column in (pl.Series(name, [None, "2020-01-01"]), pl.Series(name, [None])):
        assert step.apply(column.to_frame(), predicting=True)[name][0] == iso


def test_the_mode_of_flags_fills_text_as_text_is_read(rows: pl.DataFrame) -> None:
    step = fitted(rows[["flag"]], type="missing", strategy="mode")
    assert step.apply(pl.DataFrame({"flag": ["false", None]}), predicting=True)["flag"][1] == "true"


@pytest.mark.parametrize("strategy", ["mode", "constant"])
@pytest.mark.parametrize("name", ODD)
def test_filling_what_cannot_be_kept_refuses(rows: pl.DataFrame, name: str, strategy: str) -> None:
    options = {"value": 0} if strategy == "constant" else {}
    with pytest.raises(DataError, match=rf"column '{name}' is of type .*numbers, text, booleans and dates"):
        fitted(rows, type="missing", strategy=strategy, columns=[name], **options)


@pytest.mark.parametrize("strategy", ["mean", "median"])
@pytest.mark.parametrize("name", ["text", "flag", "day", "zoned", "category", *ODD])
def test_a_mean_needs_numbers(rows: pl.DataFrame, name: str, strategy: str) -> None:
    with pytest.raises(DataError, match=f"column '{name}'"):
        fitted(rows, type="missing", strategy=strategy, columns=[name])
    assert fitted(rows[[name]], type="missing", strategy=strategy).apply(rows, predicting=False).equals(rows)


def test_mean_of_decimals(rows: pl.DataFrame) -> None:
    step = fitted(rows[["decimal"]], type="missing", strategy="mean")
    wanted = np.mean([float(value) for value in rows["decimal"].drop_nulls()])
    assert float(step.apply(rows, predicting=True)["decimal"][3]) == pytest.approx(wanted, abs=0.006)


def test_constant_fits_or_refuses(rows: pl.DataFrame) -> None:
    step = fitted(
        rows[["day", "moment", "text", "list"]], type="missing", strategy="constant", value="2024-01-31"
    )
    filled = step.apply(rows, predicting=False)
    assert filled["day"][3] == dt.date(2024, 1, 31)
    assert filled["moment"][3] == dt.datetime(2024, 1, 31)
    assert filled["text"][3] == "2024-01-31"
    assert filled["list"].equals(rows["list"])
    for name in ("day", "moment", "zoned"):  # polars would take 0 for 1970
        with pytest.raises(DataError, match=rf"column '{name}' is of type .*, into which 0 does not fit"):
            fitted(rows[[name]], type="missing", strategy="constant", value=0)


def test_drop_takes_every_kind(rows: pl.DataFrame) -> None:
    columns = [*FILLED, *ODD]
    step = fitted(rows, type="missing", columns=columns)
    assert step.apply(rows, predicting=False).equals(rows.filter(pl.Series(range(N)) != 3))
    assert step.apply(rows, predicting=True).equals(rows)


def test_indicators_stand_beside_what_is_filled(rows: pl.DataFrame) -> None:
    step = fitted(rows, type="missing", strategy="mode", indicator=True)
    made = set(step.apply(rows, predicting=True).columns) - set(rows.columns)
    assert made == {f"{name}_missing" for name in FILLED}


def test_words_for_missing_in_categories() -> None:
    rows = pl.DataFrame({"x": pl.Series(["a", "NA", "a", "b"], dtype=pl.Categorical)})
    assert fitted(rows, type="missing", strategy="mode").apply(rows, predicting=True)["x"].to_list() == list(
        "aaab"
    )


@pytest.mark.parametrize("method", ["iqr", "zscore"])
@pytest.mark.parametrize("action", ["clip", "drop"])
def test_outliers_leave_other_kinds_alone(rows: pl.DataFrame, method: str, action: str) -> None:
    rows = rows.drop("duration")  # a number once it is read
    many = pl.concat(
        [rows, pl.DataFrame({"amount": [Decimal(i) for i in range(N - 1)] + [Decimal(9999)]})],
        how="horizontal",
    )
    step = fitted(many, type="outliers", method=method, action=action, threshold=2)
    cleaned = step.apply(many, predicting=False)
    assert float(cleaned["amount"].max()) < 9999  # type: ignore[arg-type]
    assert cleaned.drop("amount").equals(rows if action == "clip" else rows[:-1])
    for name in ("text", "flag", "day", "category", *ODD):
        with pytest.raises(DataError, match=f"column '{name}' does not hold numbers"):
            fitted(rows, type="outliers", columns=[name])


def test_duplicates_of_every_kind(rows: pl.DataFrame) -> None:
    assert len(fitted(rows, type="duplicates").apply(rows, predicting=False)) == 3


@pytest.mark.parametrize("name", [*FILLED, *ODD, "nothing"])
def test_near_duplicates_need_text(rows: pl.DataFrame, name: str) -> None:
    step = Section("cleaning").parse({"type": "near_duplicates", "column": name})
    assert isinstance(step, Cleaner)
    if name in ODD and name != "time":
        with pytest.raises(DataError, match=rf"column '{name}' is of type .*, which holds no text"):
            step.apply(rows, predicting=False)
    else:
        assert 1 <= len(step.apply(rows, predicting=False)) <= N


def test_text_repairs_categories_and_refuses_what_is_no_text(rows: pl.DataFrame) -> None:
    frame = pl.DataFrame(
        {"x": pl.Series(["  A ", "b"], dtype=pl.Categorical), "n": [1, 2], "l": [["  A "], []]}
    )
    step = Section("cleaning").parse({"type": "text", "lowercase": True})
    assert isinstance(step, Cleaner)
    assert step.apply(frame, predicting=False)["x"].to_list() == ["a", "b"]
    assert step.apply(rows, predicting=False).drop("category", "enum").equals(rows.drop("category", "enum"))
    for name in ("n", "l"):
        named = Section("cleaning").parse({"type": "text", "columns": [name]})
        assert isinstance(named, Cleaner)
        with pytest.raises(DataError, match=rf"column '{name}' is of type .*, which holds no text to repair"):
            named.apply(frame, predicting=False)
        assert named.apply(frame, predicting=True).equals(frame), "a row to predict is never refused"


@pytest.mark.parametrize(
    ("name", "rule", "kept"),
    [
        ("decimal", {"min": 10}, 31), ("category", ["a"], 31), ("enum", {"matches": "a"}, 31), ("flag", [True], 31), ("flag", ["true"], 31),
        ("day", ["2024-02-29"], 31), ("list", {"required": True}, 39), ("binary", {"required": True}, 39), ("duration", {"required": True}, 39),
        ("nothing", {"min": 3, "matches": "x"}, 40),
    ],
)  # fmt: skip
def test_rules_on_other_kinds(rows: pl.DataFrame, name: str, rule: Any, kept: int) -> None:
    step = Section("cleaning").parse({"type": "invalid", "rules": {name: rule}})
    assert isinstance(step, Cleaner)
    missing = int(not (isinstance(rule, dict) and "required" in rule) and name != "nothing")
    assert len(step.apply(rows, predicting=False)) == kept + missing


@pytest.mark.parametrize(
    ("name", "rule"),
    [("day", "0.."), ("flag", "0..1"), ("list", ["a"]), ("binary", {"min_length": 1}), ("struct", {"max_length": 3})],
)  # fmt: skip
def test_rules_that_a_kind_cannot_keep_refuse(rows: pl.DataFrame, name: str, rule: Any) -> None:
    """Polars would count every such cell as breaking the rule, or fail."""
    step = Section("cleaning").parse({"type": "invalid", "rules": {name: rule}})
    assert isinstance(step, Cleaner)
    with pytest.raises(DataError, match=rf"rule of '{name}': .*the column is of type"):
        step.apply(rows, predicting=False)


def test_no_default_column_is_forgotten(rows: pl.DataFrame) -> None:
    step = fitted(rows, type="missing", strategy="mode")
    assert isinstance(step, Missing)
    assert sorted(step.state()["fill"]) == sorted(FILLED)
