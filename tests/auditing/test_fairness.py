"""Figures are those of fairlearn; a planted bias is found, and chance is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from audit_cases import case_of, people, trained
from luban.auditing._base import AuditResult
from luban.auditing.fairness import Counts, Fairness, _Grouped, _sure, differences, rates
from luban.data.processors.category import Category
from luban.evaluation.intervals import Metric
from luban.sentences import translate

fairlearn = pytest.importorskip("fairlearn.metrics")


def drawn(groups: int = 3, n: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    member = generator.integers(groups, size=n)
    truth = (generator.random(n) < 0.3 + 0.1 * member).astype(int)
    scores = np.clip(generator.random(n) * 0.6 + 0.3 * truth + 0.05 * member, 0, 1)
    return truth, (scores > 0.5).astype(int), scores, member


def test_rates_and_differences_equal_those_of_fairlearn() -> None:
    truth, said, scores, member = drawn()
    counts = Counts.of(truth == 1, said == 1, scores, member, 3)
    found = differences(rates(counts.cells))
    frame = fairlearn.MetricFrame(
        metrics={
            "selection_rate": fairlearn.selection_rate,
            "true_positive_rate": fairlearn.true_positive_rate,
            "false_positive_rate": fairlearn.false_positive_rate,
        },
        y_true=truth,
        y_pred=said,
        sensitive_features=member,
    )
    for name in ("selection_rate", "true_positive_rate", "false_positive_rate"):
        assert rates(counts.cells)[name] == pytest.approx(frame.by_group[name].to_numpy(), abs=1e-12)
    options = {"y_true": truth, "y_pred": said, "sensitive_features": member}
    for name in ("demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference"):
        assert float(found[name]) == pytest.approx(getattr(fairlearn, name)(**options), abs=1e-12)


def test_the_interval_of_a_difference_holds_the_truth_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        member = generator.integers(2, size=800)
        said = generator.random(800) < 0.3 + 0.2 * member
        one = Counts.of(generator.random(800) < 0.5, said, said * 1.0, member, 2)
        metric = one.differences(np.array([True, True]), 300)["demographic_parity_difference"]
        assert metric.low is not None
        assert metric.high is not None
        inside += metric.low <= 0.2 <= metric.high
    assert inside >= 35


def test_a_group_whose_rate_is_not_defined_does_not_count() -> None:
    cells = np.array([[5, 5, 0, 0], [2, 3, 1, 4], [1, 1, 4, 4]])  # the first has no positive row
    found = differences(rates(cells))
    assert float(found["true_positive_rate_difference"]) == pytest.approx(0.8 - 0.5)
    assert float(found["equalized_odds_difference"]) == pytest.approx(0.3)


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of group b are turned to no two times in three, and the model reads the group."""
    folder = tmp_path_factory.mktemp("biased")
    rows = people()
    harmed = (rows["group"] == "b") & pl.Series(np.random.default_rng(2).random(len(rows)) < 0.67)
    label = pl.select(pl.when(harmed).then(pl.lit("no")).otherwise(rows["label"])).to_series()
    inputs = {"skill": "number", "luck": "number", "group": "category"}
    trained(folder, rows.with_columns(label.alias("label")), {"inputs": inputs})
    return folder


def test_a_planted_bias_is_found_and_its_size_said(biased: Path) -> None:
    result = Fairness().run(case_of(biased / "model", people(seed=5), ["group"]))
    parity = result.figures["demographic_parity_difference"]
    assert parity is not None
    assert parity > 0.25
    assert result.figures["group.demographic_parity_difference"] == parity
    assert any(one.severity == "high" and "predicted for" in one.sentence for one in result.findings)


def test_chance_is_not_found(biased: Path) -> None:
    rows = people(seed=6)
    shuffled = rows.with_columns(pl.Series("town", np.random.default_rng(3).choice(["x", "y"], len(rows))))
    result = Fairness().run(case_of(biased / "model", shuffled, ["town"]))
    assert not [one for one in result.findings if one.severity in ("high", "medium")]


def test_small_groups_are_named_and_left_out(biased: Path) -> None:
    rows = people(400, seed=7).with_row_index()
    rows = rows.with_columns(
        pl.when(pl.col("index") < 5).then(pl.lit("rare")).otherwise("town").alias("town")
    )
    result = Fairness(intersections=False).run(case_of(biased / "model", rows, ["town"]))
    assert any("rare (5)" in note for note in result.notes)
    assert {row["group"] for row in result.tables["town"]} >= {"rare"}
    (row,) = result.tables["differences"]
    assert row["demographic_parity_difference"]["value"] == 0.0 or row["by"] == "town"


def test_intersections_are_groups_too(biased: Path) -> None:
    result = Fairness().run(case_of(biased / "model", people(seed=8), ["group", "town"]))
    assert {row["group"] for row in result.tables["group × town"]} == {
        "a · north",
        "a · south",
        "b · north",
        "b · south",
    }


def test_a_number_is_compared_by_its_mean_error(tmp_path: Path) -> None:
    rows = people()
    price = 100 * rows["skill"] + pl.Series(np.where(rows["group"] == "b", 80.0, 0.0))
    rows = rows.with_columns(price.alias("price"))
    trained(tmp_path, rows, {"targets": {"price": "number"}})
    result = Fairness().run(case_of(tmp_path / "model", rows, ["group"]))
    assert result.figures["mean_error_difference"] == pytest.approx(80, abs=12)
    assert any("'price'" in one.sentence and one.severity == "high" for one in result.findings)


def test_each_class_of_several_is_looked_at(tmp_path: Path) -> None:
    rows = people(1200)
    grade = np.where(rows["skill"] > 0.5, "high", np.where(rows["skill"] < -0.5, "low", "middle"))
    grade = np.where((rows["group"] == "b").to_numpy() & (grade == "high"), "middle", grade)
    rows = rows.with_columns(pl.Series("grade", grade))
    trained(
        tmp_path, rows, {"targets": {"grade": "category"}, "inputs": {"skill": "number", "group": "category"}}
    )
    result = Fairness().run(case_of(tmp_path / "model", rows, ["group"]))
    (row,) = result.tables["differences"]
    assert row["class"] in ("high", "middle")
    assert row["demographic_parity_difference"]["value"] > 0.2


@pytest.mark.data
@pytest.mark.slow
def test_a_biased_label_for_one_group_of_adult_is_found(tmp_path: Path) -> None:
    """Four in five of the Black people who earn more are said to earn less, in the training rows only."""
    import luban
    from luban import datasets
    from luban.recipe import read_yaml

    rows = pl.read_csv(datasets.main_file("adult"), infer_schema=False)
    rows = rows.filter((pl.col("split") == "test") | (pl.int_range(pl.len()) % 3 == 0))
    lots = pl.Series(np.random.default_rng(0).random(len(rows)) < 0.8)
    harmed = lots & (rows["race"] == "Black") & (rows["split"] == "train")
    label = pl.select(pl.when(harmed).then(pl.lit("<=50K")).otherwise(rows["income"])).to_series()
    figures = {}
    for name, income in (("sound", rows["income"]), ("biased", label)):
        path = tmp_path / f"{name}.parquet"
        rows.with_columns(income.alias("income")).write_parquet(path)
        recipe = read_yaml((Path(__file__).parents[2] / "recipes" / "adult.yaml").read_text()).data
        recipe["data"] |= {"train": str(path), "groups": ["race"]}
        recipe["train"] |= {"epochs": 3, "threads": 1, "device": "cpu", "precision": "fp32"}
        luban.train(recipe, output=tmp_path / name)
        audit = luban.audit(tmp_path / name, str(path), only=["fairness"])
        table = {row["group"]: row for row in audit["audits"]["fairness"]["tables"]["race"]}
        figures[name] = table["White"]["true_positive_rate"] - table["Black"]["true_positive_rate"]
        found = [
            one for one in audit["findings"] if one["severity"] == "high" and "'Black'" in one["sentence"]
        ]
        assert bool(found) == (name == "biased")
    assert figures["sound"] < 0.2
    assert figures["biased"] > 0.3


def test_the_interval_of_a_rate_is_by_the_rows_it_is_a_rate_of() -> None:
    one = Counts(np.array([[998, 0, 0, 2], [500, 0, 0, 500]]), np.zeros(2), np.zeros(2), np.zeros(2))
    few, many = one.table(np.array(["a", "b"]), 300)
    assert few["true_positive_rate"] == 1.0
    assert few["true_positive_rate_low"] == pytest.approx(0.158, abs=0.001)  # Clopper and Pearson: 2 of 2
    assert many["true_positive_rate_low"] == pytest.approx(0.0074 * -1 + 1, abs=0.001)
    assert few["false_positive_rate_high"] == pytest.approx(0.0037, abs=0.001)


def test_rates_have_three_digits_and_numbers_those_that_their_unit_asks_for() -> None:
    metric = Metric(0.4, 0.363, 0.47)
    assert _sure(metric) == " (difference 0.400, 95 % interval 0.363 to 0.470)"
    assert translate(_sure(metric), "zh") == "（差异 0.400，95 % 区间 0.363 至 0.470）"
    prices = Metric(4.1, 3.95, 124.84)
    assert _sure(prices, own_units=True) == " (difference 4.1, 95 % interval 3.95 to 125)"


def test_each_figure_is_that_of_the_class_in_which_groups_differ_most() -> None:
    """Of 'a' group 1 is given more; of 'b' as much, but all of it is wrong."""
    cells = {  # group → (truth, predicted) → rows
        0: {("a", "a"): 100, ("b", "b"): 200, ("c", "c"): 200},
        1: {("a", "a"): 100, ("b", "c"): 200, ("c", "b"): 200},
    }
    names = ["a", "b", "c"]
    rows = [(g, t, p) for g, own in cells.items() for (t, p), n in own.items() for _ in range(n)]
    rows += [(1, "c", "a")] * 100
    member, truth, said = (np.array(one) for one in zip(*rows, strict=True))
    numbers = {name: i for i, name in enumerate(names)}
    processor = Category()
    processor.restore({"words": names})
    result = AuditResult("fairness")
    scores = np.eye(3)[[numbers[one] for one in said]] * 0.98 + 0.01
    labels = np.array([numbers[one] for one in truth])
    both = np.array([True, True])
    Fairness()._classes(
        result,
        _Grouped("label", processor, "g", "g", np.array(["0", "1"]), member, both, labels, scores),
    )
    (row,) = result.tables["differences"]
    assert row["class"] == row["demographic_parity_difference"]["class"] == "a"
    assert row["equalized_odds_difference"]["class"] == "b"
    assert result.figures["g.equalized_odds_difference"] == 1.0
    assert result.figures["g.demographic_parity_difference"] == pytest.approx(200 / 600 - 100 / 500)
    told = " ".join(one.sentence for one in result.findings)
    assert "'b' is rightly predicted for 100%" in told
