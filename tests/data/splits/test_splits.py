"""All splits keep one contract; then what each promises."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luban import registry
from luban.data.contracts import TEST, TRAIN, VALIDATION, Split
from luban.data.splits import _base
from luban.data.splits._base import Hashes, hash_values, mix
from luban.errors import DataError

OPTIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "stratified": {"by": "label"},
    "group": {"by": "label"},
    "time": {"by": "day"},
    "given": {"by": "part"},
    "folds": {"fold": 1},
}


def make(name: str, **options: Any) -> Split:
    split: Split = registry.lookup("splits", name).model_validate(options)
    return split


def data(n: int, seed: int = 0, copies: int = 1) -> tuple[pl.DataFrame, Hashes]:
    """Return `n` different rows, each `copies` times, in random order."""
    rng = np.random.default_rng(seed)
    which = rng.permutation(np.repeat(np.arange(n), copies))
    rows = pl.DataFrame(
        {
            "label": [f"c{i % 4}" for i in which],
            "day": [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in which],
            "part": [["train", "dev", "test"][i % 3] for i in which],
        }
    )
    return rows, rng.integers(0, 2**64, n, dtype=np.uint64)[which]


def fit(split: Split, rows: pl.DataFrame, keys: Hashes, chunk: int = 97) -> Split:
    for start in range(0, len(rows), chunk):
        split.update(rows[start : start + chunk], keys[start : start + chunk])
    split.finish()
    return split


def sizes(parts: np.ndarray[Any, Any]) -> list[int]:
    """Return the number of training, validation and test rows."""
    return [int((parts == part).sum()) for part in (TRAIN, VALIDATION, TEST)]


def test_every_type_is_tested() -> None:
    assert set(OPTIONS) == set(registry.names("splits"))


@pytest.mark.parametrize("name", OPTIONS)
def test_contract(name: str) -> None:
    rows, keys = data(500, copies=2)
    split = fit(make(name, **OPTIONS[name]), rows, keys)
    parts = split.assign(rows, keys)
    assert parts.dtype == np.uint8
    assert min(sizes(parts)[:2]) > 0

    other = make(name, **OPTIONS[name])
    other.restore(json.loads(json.dumps(split.state())))
    assert np.array_equal(other.assign(rows, keys), parts), "a state read back assigns the same"

    order = np.random.default_rng(1).permutation(len(rows))
    again = fit(make(name, **OPTIONS[name]), rows[order], keys[order], chunk=1000)
    assert np.array_equal(again.assign(rows, keys), parts), "neither order nor chunks matter"

    one_by_one = [int(split.assign(rows[i : i + 1], keys[i : i + 1])[0]) for i in range(20)]
    assert one_by_one == parts[:20].tolist()
    assert len(split.assign(rows[:0], keys[:0])) == 0

    if name not in ("given", "time"):
        for key in keys[:50]:
            assert len(set(parts[keys == key])) == 1, "equal inputs stay together"


@pytest.mark.parametrize("name", ["random", "stratified", "group", "folds"])
def test_seed_matters(name: str) -> None:
    rows, keys = data(500)
    rows = rows.with_columns(label=pl.int_range(500) % 40)
    first, second = (fit(make(name, **OPTIONS[name], seed=s), rows, keys).assign(rows, keys) for s in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["random", "stratified", "group", "time"])
def test_shares_must_leave_training_rows(name: str) -> None:
    with pytest.raises(ValidationError, match="leave no rows to train on"):
        make(name, **OPTIONS[name], validation=0.5, test=0.5)


@pytest.mark.parametrize("name", ["stratified", "group", "time", "given"])
def test_unknown_column(name: str) -> None:
    rows, keys = data(10)
    with pytest.raises(DataError, match=r"no column 'labell'.*did you mean 'label'"):
        fit(make(name, by="labell"), rows, keys)


# --- random ---


@for_all(
    n=st.integers(3, 300),
    copies=st.integers(1, 3),
    validation=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 2**70),
)
@settings(max_examples=80, deadline=None)
def test_random_is_exact(n: int, copies: int, validation: float, test: float, seed: int) -> None:
    rows, keys = data(n, copies=copies)
    parts = fit(make("random", validation=validation, test=test, seed=seed), rows, keys).assign(rows, keys)
    for size, share in zip(sizes(parts)[1:], (validation, test), strict=True):
        # Half a row is rounded at both ends, and a part that was asked for takes one row at least.
        assert abs(size - share * n * copies) <= 1.5 * copies
        assert (size > 0) == (share > 0)
    assert sizes(parts)[0] > 0


def test_random_is_exact_on_a_thousand() -> None:
    rows, keys = data(1000)
    assert sizes(fit(make("random"), rows, keys).assign(rows, keys)) == [800, 100, 100]


@pytest.mark.parametrize("seed", range(10))
def test_a_key_of_many_rows_spoils_no_share(seed: int) -> None:
    rows, keys = data(1000)
    keys[:300] = 7
    assert sizes(fit(make("random", seed=seed), rows, keys).assign(rows, keys)) == [800, 100, 100]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_rows(n: int) -> None:
    rows, keys = data(n)
    with pytest.raises(DataError, match=f"{n} different rows, but 3 parts"):
        fit(make("random"), rows, keys)


def test_all_rows_identical() -> None:
    rows, keys = data(100)
    with pytest.raises(DataError, match=r"1 different rows.*nothing to validate on"):
        fit(make("random"), rows, np.full_like(keys, 3))


def test_beyond_the_limit_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "LIMIT", 1000)
    rows, keys = data(20_000)
    for name in ("random", "stratified"):
        split = fit(make(name, **OPTIONS[name]), rows, keys)
        shares = np.array(sizes(split.assign(rows, keys))) / len(rows)
        assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
        assert len(json.dumps(split.state())) < 200


def test_appended_rows_do_not_move_the_others() -> None:
    rows, keys = data(500)
    split = fit(make("random"), rows[:400], keys[:400])
    assert np.array_equal(split.assign(rows, keys)[:400], split.assign(rows[:400], keys[:400]))


# --- stratified ---


@for_all(counts=st.lists(st.integers(1, 60), min_size=1, max_size=12), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_every_class_keeps_its_share(counts: list[int], seed: int) -> None:
    labels = np.repeat([f"class {i}" for i in range(len(counts))], counts)
    keys = np.random.default_rng(seed).integers(0, 2**64, len(labels), dtype=np.uint64)
    rows = pl.DataFrame({"label": labels})
    split = make("stratified", by="label", validation=0.2, test=0.1, seed=seed)
    try:
        fit(split, rows, keys)
    except DataError:
        assert max(counts) < 3
        return
    parts = split.assign(rows, keys)
    assert min(sizes(parts)) > 0
    for name, count in zip(rows["label"].unique(maintain_order=True), counts, strict=True):
        train, validation, test = sizes(parts[labels == name])
        assert train >= 1
        assert abs(validation - 0.2 * count) <= 2
        assert abs(test - 0.1 * count) <= 2


def test_many_tiny_classes_keep_the_shares_together() -> None:
    labels = np.repeat(np.arange(1000), 3)
    keys = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64)
    rows = pl.DataFrame({"label": labels})
    parts = fit(make("stratified", by="label"), rows, keys).assign(rows, keys)
    assert sizes(parts) == [2400, 300, 300]
    assert (parts.reshape(1000, 3) == TRAIN).any(1).all()


def test_a_single_row_of_a_class_is_trained_on() -> None:
    rows, keys = data(100)
    rows = rows.with_columns(label=pl.when(pl.int_range(100) == 17).then(pl.lit("rare")).otherwise("label"))
    for seed in range(20):
        assert fit(make("stratified", by="label", seed=seed), rows, keys).assign(rows, keys)[17] == TRAIN


def test_contradicting_labels_do_not_cross() -> None:
    rows, keys = data(400)
    keys = np.repeat(keys[:200], 2)
    rows = pl.DataFrame({"label": ["a", "b"] * 100 + ["a", "a"] * 100})
    parts = fit(make("stratified", by="label"), rows, keys).assign(rows, keys)
    assert np.array_equal(parts[::2], parts[1::2])


def test_a_column_of_numbers_is_no_class() -> None:
    rows, keys = data(50)
    with pytest.raises(DataError, match=r"50 classes have too few rows each.*type random"):
        fit(make("stratified", by="x"), rows.with_columns(x=pl.int_range(50) * 0.1), keys)


# --- group ---


def test_groups_stay_whole() -> None:
    rows, keys = data(3000)
    rows = rows.with_columns(shop=pl.int_range(3000) % 200, year=pl.int_range(3000) % 7)
    parts = fit(make("group", by="shop"), rows, keys).assign(rows, keys)
    assert rows.with_columns(part=parts).group_by("shop").agg(pl.col("part").n_unique())["part"].max() == 1
    assert np.array(sizes(parts)) / 3000 == pytest.approx([0.8, 0.1, 0.1], abs=0.003)
    both = fit(make("group", by=["shop", "year"]), rows, keys).assign(rows, keys)
    whole = rows.with_columns(part=both).group_by("shop", "year").agg(pl.col("part").n_unique())
    assert whole["part"].max() == 1
    assert rows.with_columns(part=both).group_by("shop").agg(pl.col("part").n_unique())["part"].max() == 3


def test_rows_without_a_group_stand_alone() -> None:
    rows, keys = data(1000)
    parts = fit(make("group", by="shop"), rows.with_columns(shop=pl.lit(None, pl.String)), keys).assign(
        rows.with_columns(shop=pl.lit(None, pl.String)), keys
    )
    assert sizes(parts) == [800, 100, 100]


def test_names_of_two_columns_do_not_run_together() -> None:
    rows = pl.DataFrame({"a": ["x", "xy", None, "x"], "b": ["yz", "z", "xyz", "yz"]})
    keys = np.arange(4, dtype=np.uint64)
    hashes = make("group", by=["a", "b"])._hashes(rows, keys)  # type: ignore[attr-defined]
    assert len(set(hashes.tolist())) == 3


def test_too_few_groups() -> None:
    rows, keys = data(100)
    with pytest.raises(DataError, match="2 different groups of 'g'"):
        fit(make("group", by="g"), rows.with_columns(g=pl.int_range(100) % 2), keys)


# --- time ---


@pytest.mark.parametrize(
    "values",
    [
        [f"2024-01-{1 + i % 30:02}" for i in range(300)],
        [f"2024/01/{1 + i % 30:02} 08:00" for i in range(300)],
        [f"2024-01-{1 + i % 30:02}T08:00:00.5+08:00" for i in range(300)],
        [str(1990 + i % 30) for i in range(300)],
        [1990 + i % 30 for i in range(300)],
    ],
)
def test_the_future_is_tested(values: list[Any]) -> None:
    rows, keys = pl.DataFrame({"when": values}), np.zeros(300, np.uint64)
    parts = fit(make("time", by="when", test=0.2), rows, keys).assign(rows, keys)
    assert sizes(parts) == [210, 30, 60]
    day = np.arange(300) % 30
    assert day[parts == TRAIN].max() < day[parts == VALIDATION].min()
    assert day[parts == VALIDATION].max() < day[parts == TEST].min()


def test_typed_dates_and_zones() -> None:
    rows = pl.DataFrame(
        {"when": ["2024-05-01T01:00+08:00", "2024-04-30T18:00Z", "2024-04-30T16:00:00-04:00"]}
    )
    keys = np.zeros(3, np.uint64)
    parts = fit(make("time", by="when", validation=0.3, test=0.3), rows, keys).assign(rows, keys)
    assert parts.tolist() == [TRAIN, VALIDATION, TEST]
    typed = rows.select(pl.Series("when", ["2024-05-01", "2024-05-02", "2024-05-03"]).str.to_date())
    assert fit(make("time", by="when"), typed, keys).assign(typed, keys).tolist() == [TRAIN, VALIDATION, TEST]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2024-01-01", "2024-02-01", "yesterday"], "'yesterday', which is no time; times are ISO dates"),
        (["2024-01-01", None, "2024-01-02"], "an empty cell, which is no time"),
        (["2001", "2002", "about 2003"], "'about 2003', which is no time"),
        (["2001", "2002", "inf"], "'inf', which is no time"),
        (["2024-01-01"] * 3, "1 different times, but 3 parts"),
    ],
)
def test_times_that_cannot_be_used(values: list[str | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(make("time", by="when"), pl.DataFrame({"when": values}), np.zeros(3, np.uint64))


def test_dates_after_numbers() -> None:
    rows = pl.DataFrame({"when": ["2001", "2002", "2003"]})
    split = make("time", by="when")
    split.update(rows, np.zeros(3, np.uint64))
    with pytest.raises(DataError, match="'2003-01-01', which is no time"):
        split.update(pl.DataFrame({"when": ["2003-01-01"]}), np.zeros(1, np.uint64))
    with pytest.raises(DataError, match="dates in one place and numbers in another"):
        split.update(
            pl.DataFrame({"when": ["2003-01-01"]}).select(pl.col("when").str.to_date()),
            np.zeros(1, np.uint64),
        )


def test_time_without_test_rows() -> None:
    rows, keys = pl.DataFrame({"when": np.arange(100)}), np.zeros(100, np.uint64)
    split = fit(make("time", by="when", test=0), rows, keys)
    assert sizes(split.assign(rows, keys)) == [90, 10, 0]
    assert split.state() == {"kind": "number", "validation": 90.0, "test": None}


# --- given ---


def test_given_words() -> None:
    rows = pl.DataFrame({"part": ["Train", " DEV", "val", "test", "holdout", None, "验证"]})
    keys = np.zeros(7, np.uint64)
    split = fit(make("given", by="part", words={"Holdout": "test", "": "none"}), rows, keys)
    assert split.assign(rows, keys).tolist() == [0, 1, 1, 2, 2, 255, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", "tset"], r"'tset'; words known are train, validation, test, .*did you mean 'test'"),
        (["train", None], "an empty cell; words known are"),
        (["test", "dev"], "marks no row as train"),
    ],
)
def test_given_refuses(values: list[str | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(make("given", by="part"), pl.DataFrame({"part": values}), np.zeros(2, np.uint64))


# --- folds ---


@for_all(n=st.integers(10, 200), folds=st.integers(2, 9), by=st.sampled_from([None, "label"]))
@settings(max_examples=60, deadline=None)
def test_folds_cover_the_rows_once(n: int, folds: int, by: str | None) -> None:
    rows, keys = data(n)
    split: Any = fit(make("folds", folds=folds, by=by), rows, keys)
    parts = np.stack([split.at(i).assign(rows, keys) for i in range(folds)])
    assert ((parts == VALIDATION).sum(0) == 1).all()
    assert ((parts == TRAIN).sum(0) == folds - 1).all()
    sizes_of_folds = (parts == VALIDATION).sum(1)
    assert sizes_of_folds.min() >= 1
    assert sizes_of_folds.max() - sizes_of_folds.min() <= (1 if by is None else 4)


def test_folds_with_test_rows() -> None:
    rows, keys = data(1000)
    split: Any = fit(make("folds", folds=3, test=0.1), rows, keys)
    first, second = (split.at(i).assign(rows, keys) for i in (0, 1))
    assert sizes(first) == sizes(second) == [600, 300, 100]
    assert np.array_equal(first == TEST, second == TEST)


def test_classes_spread_over_folds() -> None:
    rows, keys = data(400)
    split: Any = fit(make("folds", folds=5, by="label"), rows, keys)
    for fold in range(5):
        chosen = rows.filter(pl.Series(split.at(fold).assign(rows, keys) == VALIDATION))
        assert chosen["label"].value_counts()["count"].to_list() == [20] * 4


def test_folds_refuse() -> None:
    rows, keys = data(10)
    with pytest.raises(ValidationError, match="fold 5 does not exist; 5 folds count from 0 to 4"):
        make("folds", fold=5)
    with pytest.raises(DataError, match="3 different rows, but 5 parts"):
        fit(make("folds"), rows[:3], keys[:3])
    with pytest.raises(DataError, match="which of the 5 folds"):
        fit(make("folds"), rows, keys).assign(rows, keys)


# --- hashes ---


def test_hashes_are_the_same_for_ever() -> None:
    assert hash_values(pl.Series(["鲁班", None, "a", "a"])).tolist() == [
        14680194979275136655,
        16476032584258269876,
        4681665781835383343,
        4681665781835383343,
    ]
    assert mix(np.array([0, 1], np.uint64), 0).tolist() == [9370218965779684112, 132297946315314195]


@for_all(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50), st.integers(0, 2**64))
def test_mixing_is_a_bijection(keys: list[int], seed: int) -> None:
    assert len(set(mix(np.array(keys, np.uint64), seed).tolist())) == len(keys)
