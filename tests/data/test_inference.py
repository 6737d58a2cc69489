"""What the columns of some data are, which is the answer, what is wrong: one case a rule."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from luban import registry
from luban.data.inference import Inference, Sample, describe, infer, look, percent
from luban.errors import DataError

N = 200
rng = np.random.default_rng(0)
WORDS = [
    "red",
    "green",
    "blue",
    "round",
    "square",
    "heavy",
    "light",
    "old",
    "new",
    "cheap",
    "dear",
    "good",
    "bad",
    "slow",
    "quick",
]


def series(values: Any, name: str = "c") -> pl.Series:
    return pl.Series(name, values)


def sentences(n: int = N, words: int = 12) -> list[str]:
    return [" ".join(rng.choice(WORDS, words)) for _ in range(n)]


def chinese(n: int = N) -> list[str]:
    return ["".join(rng.choice(list("这家酒店的服务很好房间不错但是早餐一般价格便宜"), 20)) for _ in range(n)]


def found(columns: dict[str, Any], targets: list[str] | None = None, **options: Any) -> Inference:
    rows = pl.DataFrame(columns)
    return infer(Sample(rows, len(rows), True, **options), targets)


def column(result: Inference, name: str) -> Any:
    return next(c for c in result.columns if c.name == name)


def said(result: Inference, severity: str | None = None) -> str:
    return "\n".join(p.message for p in result.problems if severity in (None, p.severity))


# --- one column -------------------------------------------------------------------------------------------

FORMATS = [
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y年%m月%d日",
    "%Y-%m-%d %H:%M:%S",
    "%Y%m%d",
    "%d.%m.%Y",
    "%Y-%m-%dT%H:%M:%SZ",
]
DAYS = [datetime.datetime(2020, 1, 1) + datetime.timedelta(days=7 * i, hours=i % 24) for i in range(N)]


@pytest.mark.parametrize("layout", FORMATS)
def test_dates_in_every_layout(layout: str) -> None:
    result = describe(series([day.strftime(layout) for day in DAYS]))
    assert result.type == "date"
    assert result.reason == "dates from 2020-01-01 to 2023-10-25"


def test_chinese_dates_without_leading_zeros() -> None:
    assert describe(series([f"{d.year}年{d.month}月{d.day}日" for d in DAYS])).type == "date"


def test_typed_dates() -> None:
    assert describe(series(DAYS)).type == "date"
    assert describe(series([d.date() for d in DAYS])).type == "date"
    assert describe(series([d.time() for d in DAYS])).type is None


NUMBERS = {
    "plain": [str(v) for v in rng.normal(size=N)],
    "thousands": [f"{v:,}" for v in range(1000, 1000 + 37 * N, 37)],
    "percent": [f"{v % 97}.5%" for v in range(N)],
    "full width": [str(v % 89).translate({ord(c): 0xFF10 + int(c) for c in "0123456789"}) for v in range(N)],
    "floats": rng.normal(size=N),
    "integers": np.arange(N) % 50,
    "with gaps": [None if i % 5 == 0 else str(i % 60) for i in range(N)],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    assert describe(series(NUMBERS[name])).type == "number"


def test_words_for_no_value_do_not_hide_numbers() -> None:
    result = describe(series(["NA" if i % 10 == 0 else "暂无" if i % 10 == 1 else str(i) for i in range(N)]))
    assert (result.type, result.absent, result.missing) == ("number", ["暂无", "NA"], 0.1)


def test_codes_are_categories() -> None:
    assert describe(series([f"{i % 40:04}" for i in range(N)])).type == "category"
    assert describe(series([str(100000 + i % 30) for i in range(N)], "邮编")).type == "category"
    assert describe(series([str(100000 + i % 30) for i in range(N)], "步数")).type == "number"


def test_two_words_are_binary_if_nothing_is_missing() -> None:
    assert describe(series(["是", "否"] * 50)).type == "binary"
    assert describe(series([0, 1] * 50)).type == "binary"
    assert describe(series([True, False] * 50)).type == "binary"
    assert describe(series(["男", "女", None] * 50)).type == "category"


def test_a_rare_second_word_may_be_absent_from_training() -> None:
    assert describe(series(["yes"] * 195 + ["no"] * 5)).type == "category"


def test_part_of_the_data_may_hide_a_third_word() -> None:
    assert describe(series(["red", "blue"] * 50), whole=False).type == "category"
    assert describe(series(["yes", "no"] * 50), whole=False).type == "binary"


@pytest.mark.parametrize("separator", [";", "|", "、", ",", "，"])
def test_sets(separator: str) -> None:
    rows = [
        separator.join(rng.choice(["动作", "喜剧", "爱情", "科幻", "战争"], 1 + i % 3, replace=False))
        for i in range(N)
    ]
    result = describe(series(rows))
    assert result.type == "set"
    assert result.options == ({} if separator == ";" else {"separator": separator})


def test_lists_of_words_are_sets() -> None:
    result = describe(series([["a"], ["a", "b"], []] * 20))
    assert result.type == "set"
    assert "2 different" in result.reason


def test_texts() -> None:
    english, hanzi = describe(series(sentences())), describe(series(chinese()))
    assert (english.type, english.options) == ("text", {"tokens": "word"})
    assert (hanzi.type, hanzi.options) == ("text", {})
    assert "Chinese" in hanzi.reason


def test_sentences_with_commas_are_no_sets() -> None:
    assert describe(series([s[:20] + ", " + s[20:] for s in sentences()])).type == "text"
    assert describe(series([s[:8] + "，" + s[8:] for s in chinese()])).type == "text"


def test_categories() -> None:
    assert describe(series([WORDS[i % 15] for i in range(N)])).type == "category"
    assert describe(series([f"product {i % 30}" for i in range(N)])).type == "category"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (list(range(1, N + 1)), "n"),
        ([str(i) for i in random.Random(0).sample(range(10**6), N)], "订单编号"),
        ([f"{i * 7919:032x}" for i in range(N)], "key"),
        ([f"u-{i}" for i in range(N)], "user_id"),
        (["same"] * N, "c"),
        ([None] * N, "c"),
        ([f"{i * 7919 % 99991:05x}{i}" for i in range(N)], "ticket"),
        ([f"clips/{i}.wav" for i in range(N)], "clip"),
        ([{"a": 1}] * N, "record"),
        ([[1.0] * (1 + i % 3) for i in range(N)], "ragged"),
    ],
    ids=[
        "counter",
        "order number",
        "hash",
        "user id",
        "constant",
        "empty",
        "codes",
        "sounds",
        "records",
        "ragged",
    ],
)
def test_left_out_with_a_reason(values: list[Any], name: str) -> None:
    result = describe(series(values, name))
    assert (result.type, result.role) == (None, "left out")
    assert result.reason


def test_all_different_amounts_are_no_ids() -> None:
    populations = random.Random(0).sample(range(10**6), N)
    assert describe(series(populations, "population")).type == "number"


def test_arrays() -> None:
    assert describe(series(np.zeros((20, 4)))).type == "vector"
    assert describe(series([[1.0, 2.0]] * 20)).type == "vector"
    picture = describe(series(np.zeros((20, 28, 28), dtype=np.uint8)))
    assert (picture.type, picture.size) == ("image", (28, 28))
    assert describe(series(np.zeros((20, 8, 8, 3), dtype=np.uint8))).type == "image"
    fractions = describe(series(rng.random((20, 8, 8))))
    assert fractions.type is None
    assert "white is 255" in fractions.reason


def test_pictures_by_path_and_by_bytes(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("L", (300, 200), i).save(tmp_path / f"{i}.png")
    result = describe(series([f"{i}.png" for i in range(12)]), folder=tmp_path)
    assert (result.type, result.options) == ("image", {"height": 128, "width": 128})
    assert "200 x 300" in result.reason
    assert describe(series([(tmp_path / f"{i}.png").read_bytes() for i in range(12)])).type == "image"
    missing = describe(series([f"{i}.jpg" for i in range(12)]), folder=tmp_path)
    assert missing.type is None
    assert "does not exist" in missing.reason


def test_missing_distinct_and_examples() -> None:
    result = describe(series(["a", "b", None, "a"] * 10))
    assert (result.missing, result.distinct, result.examples) == (0.25, 2, ["a", "b"])


# --- the target -------------------------------------------------------------------------------------------


def table(**columns: Any) -> dict[str, Any]:
    return {"x": rng.normal(size=N), "z": rng.normal(size=N), **columns}


@pytest.mark.parametrize(
    "name", ["label", "标签", "类别", "Sentiment", "income", "y", "review_label", "商品标签"]
)
def test_target_by_name(name: str) -> None:
    result = found({name: ["a", "b"] * 100, **table()})
    assert [t.name for t in result.targets] == [name]
    assert "chosen by its name" in result.targets[0].reason


def test_target_by_place() -> None:
    result = found(table(kind=["a", "b"] * 100, note=sentences()))
    assert [t.name for t in result.targets] == ["kind"]
    assert "last column that fits" in result.targets[0].reason


def test_a_column_of_many_words_is_the_last_choice() -> None:
    many = [f"w{i % 60}" for i in range(N)]
    assert [t.name for t in found({"kind": ["u", "v"] * 100, "word": many}).targets] == ["kind"]


def test_target_by_the_user_and_its_misspelling() -> None:
    assert [t.name for t in found(table(label=["a", "b"] * 100), ["x", "z"]).targets] == ["x", "z"]
    with pytest.raises(DataError, match=r"no column 'lable' to be the target.*did you mean 'label'"):
        found(table(label=["a", "b"] * 100), ["lable"])
    with pytest.raises(DataError, match="'note' cannot be a target"):
        found(table(note=sentences()), ["note"])


@pytest.mark.parametrize(
    ("values", "name", "kind"),
    [
        ([0, 1], "label", "binary"),
        (["spam", "ham"], "label", "binary"),
        (["正面", "负面"], "标签", "binary"),
        (["cat", "dog"], "label", "category"),
        (list(range(10)), "digit", "category"),
        ([2, 4, 7, 8], "class", "category"),
        ([2, 4, 7, 8], "amount", "number"),
        (list(range(100)), "label", "number"),
        ([0.5, 1.25, 3.0, 4.0, 7.5], "price", "number"),
        (["a;b", "b", "c;a", "c"], "tags", "set"),
    ],
)
def test_kind_of_target(values: list[Any], name: str, kind: str) -> None:
    rows = (values * N)[:N]
    assert [t.type for t in found(table(**{name: rows}), [name]).targets] == [kind]


def test_nothing_to_predict_and_nothing_to_read() -> None:
    with pytest.raises(DataError, match=r"none of the 1 columns.*can be a target"):
        found({"note": sentences()})
    with pytest.raises(DataError, match="no column that a model could read"):
        found({"id": list(range(N)), "label": ["a", "b"] * 100})


# --- problems ---------------------------------------------------------------------------------------------


def test_clean_data_has_no_problems() -> None:
    assert not found(table(label=["a", "b"] * 100)).problems


def test_missing_values_are_told_with_figures() -> None:
    result = found(table(age=[None, 1, 2, 3, 4] * 40, label=["a", "b"] * 100))
    assert "'age' 20 %" in said(result, "note")


def test_missing_answers_are_dropped() -> None:
    result = found(table(label=["a", "b", None, "b"] * 50))
    assert "'label' is missing in 25 % of rows" in said(result, "warning")
    assert result.clean == [{"type": "missing", "strategy": "drop", "columns": ["label"]}]


def test_a_class_called_none_is_an_answer() -> None:
    result = found(table(label=["none", "mild", "strong", "无"] * 50))
    assert (result.targets[0].missing, result.targets[0].distinct, result.clean) == (0, 4, [])


def test_words_among_numbers_are_cleaned() -> None:
    ages = ["unknown" if i % 10 == 0 else str(20 + i % 50) for i in range(N)]
    prices = ["待定" if i % 10 == 0 else f"{1000 + 37 * i:,}" for i in range(N)]
    result = found(table(age=ages, fee=prices, label=["a", "b"] * 100))
    assert {
        "type": "missing",
        "strategy": "median",
        "columns": ["age"],
        "tokens": ["unknown"],
    } in result.clean
    assert {"type": "missing", "strategy": "drop", "columns": ["fee"], "tokens": ["待定"]} in result.clean


def test_duplicates_and_contradictions() -> None:
    x = [*range(190), *[7] * 10]
    result = found({"x": [v * 1.5 for v in x], "label": ["a", "b"] * 100})
    assert "10 of 200 rows (5 %) repeat" in said(result)
    assert "11 rows (5.5 %) have the inputs of another row but another 'label'" in said(result)
    assert {"type": "duplicates"} in result.advised


@pytest.mark.parametrize(
    "leak",
    [
        [3.5 if i % 2 else 2.0 + i % 7 / 10 for i in range(N)],
        ["negativ" if i % 2 else "positiv" for i in range(N)],
        [None if i % 2 else i * 1.3 for i in range(N)],
        [None if i % 2 else f"2024-01-{1 + i % 28:02} {i % 24:02}:{i % 60:02}" for i in range(N)],
    ],
    ids=["number", "word", "gap", "date or nothing"],
)
def test_a_column_that_gives_the_answer_is_left_out(leak: list[Any]) -> None:
    result = found(table(score=leak, label=["a", "b"] * 100), ["label"])
    assert column(result, "score").role == "left out"
    assert "'score' alone gives 'label' in 100 % of rows" in said(result, "warning")


def test_the_only_input_stays() -> None:
    result = found({"score": [i % 2 + i % 7 / 10 for i in range(N)], "label": ["a", "b"] * 100}, ["label"])
    assert column(result, "score").type == "number"
    assert "alone gives" in said(result, "warning")


def test_a_copy_of_a_number_in_another_unit() -> None:
    price = rng.normal(100, 20, N)
    result = found(table(cents=price * 100, price=price))
    assert column(result, "cents").role == "left out"
    assert "correlation of 1.0000" in said(result)


def test_a_name_for_each_row_and_a_strong_feature_are_no_leaks() -> None:
    answers = ["a" if i % 4 else "b" for i in range(N)]
    strong = [i % 4 + rng.normal(0, 1) for i in range(N)]
    result = found(table(name=[f"p{i // 2}" for i in range(N)], strong=strong, label=answers), ["label"])
    assert "alone" not in said(result)


def test_a_name_that_contains_the_targets_name() -> None:
    result = found(table(price_before=rng.normal(size=N), price=rng.normal(size=N)))
    assert "'price_before' has the target's name" in said(result, "note")


@pytest.mark.parametrize(
    ("words", "objective"),
    [
        (("a", "b"), {"type": "cross_entropy", "class_weights": "balanced"}),
        (("yes", "no"), {"type": "binary_cross_entropy", "positive_weight": "balanced"}),
    ],
)
def test_uneven_classes(words: tuple[str, str], objective: dict[str, str]) -> None:
    result = found(table(label=[words[0]] * 180 + [words[1]] * 20))
    assert result.objective == objective
    assert "has 90 % of rows" in said(result, "warning")
    assert "balanced" in said(result)


def test_rare_classes_and_few_rows() -> None:
    rows = table(label=["a"] * 100 + ["b"] * 97 + ["c"] * 3)
    assert "1 of the 3 classes of 'label' have fewer than 5 rows ('c')" in said(found(rows), "warning")
    few = {name: values[:30] for name, values in table(label=["a", "b"] * 15).items()}
    assert "only 30 rows" in said(found(few), "warning")


@pytest.mark.parametrize("name", ["sex", "Race", "性别", "民族", "marital-status", "用户性别"])
def test_persons(name: str) -> None:
    result = found(
        table(**{name: ["u", "v"] * 100, "age": rng.integers(18, 80, N), "label": ["a", "a", "b", "b"] * 50})
    )
    assert result.groups == [name]
    assert "'age'" in said(result, "note")


def test_other_names_are_no_persons() -> None:
    assert not found(
        table(average=rng.normal(size=N), trace=["u", "v"] * 100, label=["a", "a", "b", "b"] * 50)
    ).groups


def test_long_texts() -> None:
    result = found({"text": sentences(N, 600), "label": ["a", "b"] * 100})
    assert "100 % of the texts in 'text' are longer than 512 words" in said(result, "warning")
    assert column(result, "text").options == {"tokens": "word", "max_length": 512}


def test_tags_and_wide_letters() -> None:
    texts = [f"<p>{s}</p> Ａ１" for s in sentences()]
    result = found({"text": texts, "label": ["a", "b"] * 100})
    assert {"type": "text", "html": True, "width": "half", "columns": ["text"]} in result.advised


def test_encodings_are_told() -> None:
    rows = table(label=["a", "b"] * 100)
    assert not found(rows, notes=["a.csv: encoding utf-8 (recognised)"]).problems
    assert "gb18030" in said(found(rows, notes=["a.csv: encoding gb18030 (recognised)"]), "note")
    repaired = "a.csv: encoding utf-8 (recognised); 3 lines have bytes that are not utf-8, replaced by U+FFFD"
    assert "3 lines" in said(found(rows, notes=[repaired]), "warning")


# --- splits and models ------------------------------------------------------------------------------------


def test_a_column_of_splits_is_used_and_not_read() -> None:
    result = found(table(split=["train", "train", "val", "test"] * 50, label=["a", "b"] * 100))
    assert (result.split, result.split_active) == ({"type": "given", "by": "split"}, True)
    assert column(result, "split").role == "split"


def test_customers_stay_together_and_time_goes_on() -> None:
    result = found(table(customer_id=[1000 + i // 3 for i in range(N)], label=["a", "b"] * 100))
    assert (result.split, result.split_active) == ({"type": "group", "by": "customer_id"}, False)
    result = found(table(day=[f"{d:%Y-%m-%d}" for d in DAYS], price=rng.normal(size=N)))
    assert result.split == {"type": "time", "by": "day"}


@pytest.mark.parametrize(
    ("inputs", "model"),
    [
        ({"x": rng.normal(size=N)}, "mlp"),
        ({"x": rng.normal(size=N), "text": sentences()}, "fasttext"),
        ({"image": np.zeros((N, 28, 28), dtype=np.uint8)}, "cnn"),
        ({"image": np.zeros((N, 8, 8), dtype=np.uint8)}, "mlp"),
    ],
)
def test_model(inputs: dict[str, Any], model: str) -> None:
    result = found({**inputs, "label": ["a", "b"] * 100}, ["label"])
    assert result.model == {"type": model, "size": "tiny"}
    assert model in registry.names("models")


def test_the_model_grows_with_the_rows() -> None:
    rows = pl.DataFrame(table(label=["a", "b"] * 100))
    sizes = [infer(Sample(rows, n, n == N)).model["size"] for n in (N, 5_000, 50_000, 2_000_000)]
    assert sizes == ["tiny", "small", "medium", "large"]


# --- looking ----------------------------------------------------------------------------------------------


def test_look_spreads_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n" + "\n".join(map(str, range(9_000))), encoding="utf-8")
    source = registry.lookup("sources", "csv")(path=str(path))
    sample = look(source, limit=300)
    places = sample.rows["x"].cast(pl.Int64)
    assert (len(places), sample.read, sample.complete, sample.whole) == (300, 9000, True, False)
    assert places.is_sorted()
    assert 4000 < places.mean() < 5000  # type: ignore[operator]
    assert str(sample) == "300 rows spread over all 9,000"
    assert look(source, limit=300).rows.equals(sample.rows)
    assert str(look(source)) == "all 9,000 rows"


def test_look_stops_in_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n" + "\n".join(map(str, range(9_000))), encoding="utf-8")
    monkeypatch.setattr("luban.data.inference._SCANNED", 10_000)
    sample = look(registry.lookup("sources", "csv")(path=str(path)))
    assert not sample.complete
    assert str(sample).endswith(f"of the first {sample.read:,} rows; the rest was not read")
    assert sample.read < 9000


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.5, "50 %"), (0.123, "12 %"), (0.9999, "over 99.9 %"), (1e-6, "under 0.01 %"), (0.0345, "3.5 %")]
)  # fmt: skip
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
