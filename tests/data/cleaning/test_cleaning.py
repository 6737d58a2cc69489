"""All cleaners keep one contract; then what each promises."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luban import registry
from luban.data.cleaning import text as text_module
from luban.data.cleaning._base import FirstSeen, is_missing, numbers
from luban.data.cleaning.near_duplicates import signatures
from luban.data.contracts import Cleaner
from luban.data.quantiles import Quantiles
from luban.errors import DataError, MissingError

OPTIONS: dict[str, dict[str, Any]] = {
    "missing": {"strategy": "median", "indicator": True},
    "outliers": {},
    "duplicates": {},
    "near_duplicates": {"column": "review"},
    "text": {"columns": ["review"]},
    "invalid": {"rules": {"age": "0..120"}},
}


def make(name: str, **options: Any) -> Cleaner:
    cleaner: Cleaner = registry.lookup("cleaning", name).model_validate(options)
    return cleaner


def chunks(rows: pl.DataFrame, size: int = 7) -> list[pl.DataFrame]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def fit(cleaner: Cleaner, rows: pl.DataFrame, size: int = 7) -> Cleaner:
    for chunk in chunks(rows, size):
        cleaner.update(chunk)
    cleaner.finish()
    return cleaner


def clean(cleaner: Cleaner, rows: pl.DataFrame, *, predicting: bool = False, size: int = 7) -> pl.DataFrame:
    return pl.concat([cleaner.apply(chunk, predicting=predicting) for chunk in chunks(rows, size)])


@pytest.fixture
def rows() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    ages = [str(age) for age in rng.integers(18, 90, 60)]
    ages[3], ages[10], ages[20], ages[30] = "NA", "?", "900", "unknown"
    reviews = [f"review {i}: the  food was {rng.integers(1000)} and {rng.integers(1000)}" for i in range(60)]
    reviews[41] = reviews[40] + "!"
    reviews[50] = reviews[49]
    table = pl.DataFrame({"age": ages, "review": reviews, "label": ["good", "bad"] * 30})
    return table.with_columns(
        pl.all().gather(pl.when(pl.int_range(60) == 5).then(4).otherwise(pl.int_range(60)))
    )


def test_every_type_is_tested() -> None:
    assert set(OPTIONS) == set(registry.names("cleaning"))


@pytest.mark.parametrize("name", OPTIONS)
def test_contract(name: str, rows: pl.DataFrame) -> None:
    cleaner = fit(make(name, **OPTIONS[name]), rows)
    fresh = cleaner.model_copy(deep=True)
    first = clean(cleaner, rows)
    assert sum(cleaner.counts().values()) > 0
    assert not cleaner.counts(), "counting starts again from zero"
    assert clean(fresh, rows, size=13).equals(first), (
        "neither does the size of chunks matter nor which copy acts"
    )

    predicted = clean(cleaner, rows, predicting=True)
    assert len(predicted) == len(rows), "a row to predict is never dropped"
    assert cleaner.apply(rows[:0], predicting=False).is_empty()

    other = make(name, **OPTIONS[name])
    other.restore(json.loads(json.dumps(cleaner.state())))
    assert clean(other, rows, predicting=True).equals(predicted), "a state read back does the same"
    assert clean(other, rows).equals(first)

    again = fit(make(name, **OPTIONS[name]), rows, size=1000)
    assert clean(again, rows).equals(first), "the size of chunks does not matter for fitting"

    dumped = {key: value for key, value in cleaner.model_dump().items() if key != "type"}
    assert make(name, **dumped).model_dump() == cleaner.model_dump()


@pytest.mark.parametrize("name", ["missing", "outliers", "duplicates", "text"])
def test_unknown_column(name: str, rows: pl.DataFrame) -> None:
    cleaner = make(name, **{**OPTIONS[name], "columns": ["agee"]})
    with pytest.raises(DataError, match=r"no column 'agee' to clean; columns are age, .*did you mean 'age'"):
        clean(fit(cleaner, rows), rows)


# --- missing ---


def test_median_leaves_text_and_unreadable_cells(rows: pl.DataFrame) -> None:
    cleaner = fit(make("missing", strategy="median"), rows)
    result = clean(cleaner, rows)
    present = [float(a) for a in rows["age"] if a.isdigit()]
    assert result["age"][3] == str(float(np.median(present)))
    assert result["age"][30] == "unknown", (
        "what is unreadable is not missing: whoever reads the column counts it"
    )
    assert result["review"].equals(rows["review"])
    assert cleaner.counts() == {"missing: filled": 2}


@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("mean", {}, [1.0, 2.0, 2.25, 4.0, 2.25, 2.0]),
        ("median", {}, [1.0, 2.0, 2.0, 4.0, 2.0, 2.0]),
        ("mode", {}, [1.0, 2.0, 2.0, 4.0, 2.0, 2.0]),
        ("constant", {"value": -1}, [1.0, 2.0, -1.0, 4.0, -1.0, 2.0]),
        ("drop", {}, [1.0, 2.0, 4.0, 2.0]),
    ],
)
def test_strategies_on_numbers(strategy: str, options: dict[str, Any], expected: list[float]) -> None:
    rows = pl.DataFrame({"x": [1.0, 2.0, None, 4.0, float("nan"), 2.0]})
    cleaner = fit(make("missing", strategy=strategy, **options), rows, size=2)
    assert clean(cleaner, rows)["x"].to_list() == expected
    assert cleaner.counts() == {f"missing: {'dropped' if strategy == 'drop' else 'filled'}": 2}


def test_drop_makes_cells_null_when_predicting() -> None:
    rows = pl.DataFrame({"x": ["1", "?", "缺失", " n/a "]})
    cleaner = fit(make("missing"), rows)
    assert clean(cleaner, rows, predicting=True)["x"].to_list() == ["1", None, None, None]
    assert clean(cleaner, rows)["x"].to_list() == ["1"]


def test_indicator_and_tokens() -> None:
    rows = pl.DataFrame({"x": ["1", "-1", "?", None], "n": [1, 2, None, 4]})
    cleaner = fit(
        make("missing", strategy="mean", indicator=True, tokens=["-1"], columns=["x", "n"]), rows[:0]
    )
    with pytest.raises(DataError, match="'x' does not hold numbers, so there is no mean"):
        fit(make("missing", strategy="mean", tokens=["-1"], columns=["x"]), pl.DataFrame({"x": ["a", "b"]}))
    cleaner = fit(make("missing", strategy="mode", indicator=True, tokens=["-1"]), rows)
    result = clean(cleaner, rows)
    assert result["x"].to_list() == ["1", "1", "?", "1"]
    assert result["x_missing"].to_list() == [0, 1, 0, 1]
    assert result["n_missing"].to_list() == [0, 0, 1, 0]
    assert result["n"].to_list() == [1, 2, 1, 4]
    with pytest.raises(DataError, match="would replace column 'x_missing'"):
        cleaner.apply(result, predicting=True)


def test_a_mean_turns_integers_into_floats() -> None:
    rows = pl.DataFrame({"x": [1, 2, None]})
    assert clean(fit(make("missing", strategy="mean"), rows), rows)["x"].to_list() == [1.0, 2.0, 1.5]


def test_a_column_absent_or_null_when_predicting() -> None:
    rows = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": ["a", "a", "b"]})
    cleaner = fit(make("missing", strategy="mode"), rows)
    assert cleaner.apply(pl.DataFrame({"y": [None]}), predicting=True)["y"].to_list() == ["a"]


def test_missing_refuses() -> None:
    with pytest.raises(ValidationError, match="strategy constant go together"):
        make("missing", strategy="constant")
    with pytest.raises(ValidationError, match="strategy constant go together"):
        make("missing", strategy="mean", value=3)
    with pytest.raises(ValidationError, match="would always be 0"):
        make("missing", strategy="drop", indicator=True)
    rows = pl.DataFrame({"x": [1, None]})
    with pytest.raises(DataError, match="of type Int64, into which 'none' does not fit"):
        clean(fit(make("missing", strategy="constant", value="none"), rows), rows)


# --- outliers ---


@pytest.mark.parametrize("method", ["zscore", "iqr"])
@pytest.mark.parametrize("as_text", [False, True])
def test_bounds_and_clipping(method: str, as_text: bool) -> None:
    values = np.random.default_rng(0).normal(5, 2, 1000)
    values[7], values[8] = 1e3, -1e3
    rows = pl.DataFrame({"x": values, "label": np.arange(1000) % 2})
    rows = rows.cast(pl.String) if as_text else rows
    cleaner = fit(make("outliers", method=method, threshold=2), rows, size=64)
    if method == "iqr":
        low, high = np.quantile(values, [0.25, 0.75])
        bounds = low - 2 * (high - low), high + 2 * (high - low)
    else:
        bounds = values.mean() - 2 * values.std(), values.mean() + 2 * values.std()
    result = clean(cleaner, rows, predicting=True)
    assert result["x"].cast(pl.Float64).to_numpy() == pytest.approx(np.clip(values, *bounds))
    assert result["label"].equals(rows["label"]), "codes have no outliers"
    assert cleaner.counts() == {"outliers: clipped": int(((values < bounds[0]) | (values > bounds[1])).sum())}


def test_outliers_dropped_in_training_only() -> None:
    rows = pl.DataFrame({"x": [*map(float, range(50)), 1e6]})
    cleaner = fit(make("outliers", action="drop"), rows)
    assert clean(cleaner, rows)["x"].max() == 49
    assert cleaner.counts() == {"outliers: dropped": 1}
    assert clean(cleaner, rows, predicting=True).equals(rows)


def test_no_spread_no_bounds() -> None:
    rows = pl.DataFrame({"x": [0.0] * 900 + [*map(float, range(100))]})
    cleaner = fit(make("outliers"), rows)
    assert cleaner.counts() == {"outliers: columns without spread": 1}
    assert clean(cleaner, rows).equals(rows)


def test_outliers_need_numbers(rows: pl.DataFrame) -> None:
    with pytest.raises(DataError, match="'label' does not hold numbers"):
        fit(make("outliers", columns=["label"]), rows)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.floats(0, 1))
@settings(deadline=None)
def test_quantiles_equal_numpy(values: list[float], share: float) -> None:
    quantiles = Quantiles()
    for start in range(0, len(values), 17):
        quantiles.add(np.array(values[start : start + 17]))
    assert quantiles.at(share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_quantiles_of_a_long_stream(order: str) -> None:
    values = np.random.default_rng(0).exponential(size=200_000)
    values = {"random": values, "ascending": np.sort(values), "descending": -np.sort(-values)}[order]
    quantiles = Quantiles(size=2000)
    for part in np.array_split(values, 100):
        quantiles.add(part)
    assert len(quantiles.table()[0]) <= 2000
    assert quantiles.table()[1].sum() == 200_000
    for share in (0.01, 0.25, 0.5, 0.75, 0.99):
        assert (values < quantiles.at(share)).mean() == pytest.approx(share, abs=0.003)


# --- duplicates ---


@given(st.lists(st.integers(0, 8), max_size=60), st.integers(1, 20))
@settings(deadline=None)
def test_first_of_each_is_kept(values: list[int], size: int) -> None:
    rows = pl.DataFrame({"x": values, "place": range(len(values))}, schema={"x": pl.Int64, "place": pl.Int64})
    if not values:
        return
    cleaner = make("duplicates", columns=["x"])
    kept = clean(cleaner, rows, size=size)
    assert kept["place"].to_list() == [i for i, x in enumerate(values) if x not in values[:i]]
    assert cleaner.counts()["duplicates: dropped"] == len(values) - len(set(values))


def test_levels_stay_few() -> None:
    seen = FirstSeen()
    for start in range(0, 100_000, 500):
        rows = np.arange(start, start + 500, dtype=np.uint32)
        assert (seen.first(rows.astype(np.uint64), rows) == rows).all()
    assert len(seen._levels) <= 10
    rows = np.arange(100_000, 100_010, dtype=np.uint32)
    assert seen.first(np.arange(70_000, 70_010, dtype=np.uint64), rows).tolist() == [*range(70_000, 70_010)]


# --- near_duplicates ---


def grams(text: str, n: int = 4) -> set[str]:
    return {text[i : i + n] for i in range(len(text) - n + 1)} or {text}


@given(st.lists(st.text("abc 鲁班工坊", min_size=1, max_size=80), min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_signatures_estimate_jaccard(texts: list[str]) -> None:
    minima = signatures(texts, 4)
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            exact = len(grams(a) & grams(b)) / len(grams(a) | grams(b))
            assert (
                abs((minima[i] == minima[j]).mean() - exact) < 0.25
            )  # six standard deviations at 128 places
            if exact in (0, 1) and min(len(a), len(b)) >= 4:
                assert (minima[i] == minima[j]).mean() == exact


def test_near_duplicates_found() -> None:
    rng = np.random.default_rng(0)
    letters = np.array(
        list("的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可")
    )
    texts = ["".join(rng.choice(letters, 120)) for _ in range(300)]
    copies = []
    for text in texts[:100]:  # three letters of 120 changed: about 0.82 in common
        changed = list(text)
        for place in (20, 60, 100):
            changed[place] = "龙"
        copies.append("".join(changed))
    rows = pl.DataFrame({"review": [*texts, *copies, *texts[200:210], "", None, "  ", ""]})
    cleaner = fit(make("near_duplicates", column="review", threshold=0.7), rows, size=50)
    kept = clean(cleaner, rows)
    assert kept["review"].to_list()[:300] == texts, "the first of each stays, and nothing else is lost"
    assert len(kept) <= 300 + 3 + 4, "at least 97 of 100 changed copies and all whole ones go"
    assert kept["review"].to_list()[-4:] == ["", None, "  ", ""], "a row without text resembles nothing"
    strict = fit(make("near_duplicates", column="review", threshold=0.97), rows, size=50)
    assert len(clean(strict, rows)) == 400 + 4


def test_capitals_and_spaces_do_not_matter() -> None:
    rows = pl.DataFrame({"t": ["The quick brown fox", "the  quick brown FOX ", "a slow green turtle"]})
    assert len(clean(fit(make("near_duplicates", column="t"), rows), rows)) == 2


# --- text ---


def cleaned(value: str, **options: Any) -> str:
    off = {"ftfy": False, "control": False, "whitespace": False}
    cleaner = make("text", columns=["t"], **{**off, **options})
    rows = pl.DataFrame({"t": [value]})
    return str(fit(cleaner, rows).apply(rows, predicting=True)["t"][0])


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({"ftfy": True}, "schÃ¶n", "schön"),
        ({"ftfy": True}, "æ\x9c\x8dåŠ¡å¾ˆå¥½", "服务很好"),
        ({"html": True}, "<p>a&amp;b</p><br/>c <b>d</b>e", " a&b  c de"),
        ({"html": True}, "x<script>if (a < b) {}</script>y<!-- no -->z", "x  y z"),
        ({"html": True}, "1 < 2 <3 and <!-- open <script> left", "1 < 2 <3 and   open   left"),
        ({"control": True}, "a\x00b\u200b\ufeffc\t\n\u202e👩\u200d👧", "abc\t\n👩\u200d👧"),
        ({"width": "half"}, "ＡＢ１２！　ｶﾞｷﾞ。，", "AB12! ガギ。,"),
        ({"width": "full"}, "AB12! ｶﾞ", "ＡＢ１２！　ガ"),
        ({"simplified": True}, "漢字轉換 abc", "汉字转换 abc"),
        ({"whitespace": True}, "  a \n\t b　c ", "a b c"),
        ({"lowercase": True}, "ÄBC", "äbc"),
        ({}, "  Ａ<b>\x00", "  Ａ<b>\x00"),
    ],
)
def test_text_steps(options: dict[str, Any], before: str, after: str) -> None:
    assert cleaned(before, **options) == after


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=200)
def test_text_cleaning_is_idempotent(value: str) -> None:
    options: dict[str, Any] = {"control": True, "width": "half", "whitespace": True}
    once = cleaned(value, **options)
    assert cleaned(once, **options) == once


def test_markup_takes_linear_time() -> None:
    for piece in ("<script>", "<!--", "<a ", "</script"):
        assert len(cleaned(piece * 20_000, html=True)) <= 20_000 * 10


def test_labels_are_cleaned_unless_left_out(rows: pl.DataFrame) -> None:
    upper = rows.with_columns(label=pl.col("label").str.to_uppercase())
    assert clean(make("text", lowercase=True), upper)["label"].equals(rows["label"])
    assert clean(make("text", lowercase=True, columns=["review"]), upper)["label"].equals(upper["label"])


def test_simplified_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    text_module._to_simplified.cache_clear()
    with pytest.raises(MissingError, match=r"pip install 'luban\[chinese\]'"):
        cleaned("漢", simplified=True)


# --- invalid ---


@pytest.mark.parametrize(
    ("rule", "values", "kept"),
    [
        ("0..120", ["-1", "0", "120", "121", "x", None], ["0", "120", None]),
        ("0..", [-1, 0, 10**9], [0, 10**9]),
        ("..1e-3", [0.0, 0.01], [0.0]),
        ("-5..-1", ["-6", "-3", "0"], ["-3"]),
        (["a", "b"], ["a", "c", None], ["a", None]),
        ([1, 2], ["1", "3", "2.0"], ["1", "2.0"]),
        ([1, 2], [1.0, 3.0], [1.0]),
        ({"min_length": 2, "max_length": 3}, ["鲁", "鲁班", "鲁班工", "鲁班工坊"], ["鲁班", "鲁班工"]),
        ({"matches": r"^\d{3}$"}, ["123", "1234"], ["123"]),
        ({"required": True}, ["a", None, " "], ["a"]),
        ({"min": 3, "required": True}, [3, 2, None], [3]),
    ],
)
def test_rules(rule: Any, values: list[Any], kept: list[Any]) -> None:
    rows = pl.DataFrame({"x": values})
    cleaner = make("invalid", rules={"x": rule})
    assert cleaner.apply(rows, predicting=False)["x"].to_list() == kept
    assert cleaner.apply(rows, predicting=True).equals(rows)
    lost = len(values) - len(kept)
    assert cleaner.counts() == {"invalid: dropped": lost, "invalid: rule of 'x' broken": lost}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("0-120", r"'0-120' is no range; write 0\.\.120"),
        ("..", "is no range"),
        ("a..b", "is no range"),
        ("5..1", "min 5 is above max 1"),
        ({"matches": "("}, "is not a regular expression"),
        ({"minimum": 3}, "Extra inputs"),
    ],
)
def test_rules_that_are_refused(rule: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make("invalid", rules={"x": rule})


# --- shared ---


def test_reading_numbers() -> None:
    assert numbers(pl.Series([" 1.5 ", "2e3", "x", "inf", "nan", None])).to_list() == [
        1.5,
        2000,
        None,
        None,
        None,
        None,
    ]
    assert numbers(pl.Series([1, 2], dtype=pl.Int8)).to_list() == [1.0, 2.0]
    assert numbers(pl.Series([True])).to_list() == [None]
    assert is_missing(pl.Series(["", " NULL ", "0", None])).to_list() == [True, True, False, True]
    assert is_missing(pl.Series([float("nan"), 0.0, None])).to_list() == [True, False, True]
