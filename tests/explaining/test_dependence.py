"""Partial dependence is scikit-learn's, ALE of a line is that line, and columns that go together are told of."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import partial_dependence
from table_cases import people, predictor_of, table_case

from luban.errors import InputError
from luban.explaining._case import Case
from luban.explaining.partial_dependence import PartialDependence


class Black(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A case as scikit-learn sees a regressor."""

    def __init__(self, case: Case | None = None) -> None:
        self.case = case
        self.fitted_ = True

    def fit(self, x: Any, y: Any) -> Black:
        return self

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert self.case is not None
        frame = pl.DataFrame({name: x[:, i] for i, name in enumerate(["age", "noise"])})
        return self.case.processor.scores(self.case.outputs_of(frame))


def of(lines: list[dict[str, Any]], column: str, name: str | None = None) -> list[dict[str, Any]]:
    return [line for line in lines if line["column"] == column and line["class"] == name]


@pytest.fixture(scope="module")
def numbers() -> Case:
    frame = people(120)
    model = predictor_of(
        frame, {"age": "number", "noise": "number"}, {"wage": "number"}, hidden=[8], steps=60
    )
    return Case.of(model, frame)


def test_curves_equal_those_of_scikit_learn(numbers: Case) -> None:
    survey = PartialDependence(grid=7, curves=200).survey(numbers)
    x = numbers.frame.select("age", "noise").to_numpy()
    for i, column in enumerate(("age", "noise")):
        own = of(survey.tables["partial_dependence"], column)
        grid = np.asarray([line["value"] for line in own])
        theirs = partial_dependence(Black(numbers), x, [i], custom_values={i: grid}, kind="both")
        assert [line["mean"] for line in own] == pytest.approx(theirs["average"][0].tolist(), rel=1e-5)
        curves = np.asarray([line["score"] for line in of(survey.tables["ice"], column)]).reshape(
            len(grid), -1
        )
        assert pytest.approx(theirs["individual"][0], rel=1e-5) == curves.T
        assert all(line["low"] <= line["mean"] <= line["high"] for line in own)
        low, high = np.quantile(x[:, i], [0.05, 0.95])
        assert (grid[0], grid[-1]) == pytest.approx((low, high))


def test_local_effects_of_a_line_are_that_line() -> None:
    frame = people(200)
    model = predictor_of(
        frame, {"age": "number", "noise": "number"}, {"wage": "number"}, hidden=[], steps=200
    )
    survey = PartialDependence(columns=["age"], grid=10).survey(Case.of(model, frame))
    ale = of(survey.tables["ale"], "age")
    ages, effects = (np.asarray([line[key] for line in ale]) for key in ("value", "effect"))
    slope = np.diff(effects) / np.diff(ages)
    assert slope == pytest.approx(np.full(len(slope), slope[0]), rel=1e-3)
    dependence = of(survey.tables["partial_dependence"], "age")
    first, last = dependence[0], dependence[-1]
    assert slope[0] == pytest.approx(
        (last["mean"] - first["mean"]) / (last["value"] - first["value"]), rel=1e-3
    )
    assert sum(line["rows"] for line in ale) == 200
    at_rows = np.interp(frame["age"].to_numpy(), ages, effects)
    assert at_rows.mean() == pytest.approx(0.0, abs=0.6)


def test_where_columns_go_together_ale_leaves_out_what_pdp_makes_up() -> None:
    """The model multiplies two columns that are nearly equal: ALE of one sees its slope near the other's value."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, 400)
    frame = pl.DataFrame({"a": x, "b": x + generator.normal(0, 0.05, 400), "y": x * x})
    model = predictor_of(
        frame, {"a": "number", "b": "number"}, {"y": "number"}, hidden=[16], activation="tanh", steps=150
    )
    survey = PartialDependence(columns=["a"]).survey(Case.of(model, frame))
    assert any("go together" in note for note in survey.notes)
    assert len(survey.tables["ale"]) > 5


def test_categories_flags_and_classes() -> None:
    case = table_case("category", rows=200, steps=60)
    survey = PartialDependence(levels=2, curves=3).survey(case)
    table = survey.tables["partial_dependence"]
    assert {line["column"] for line in table} == {"age", "noise", "city", "member"}
    assert len(of(table, "city", "yes")) == 2  # of three words, the two most frequent
    ups = of(table, "age", "yes"), of(table, "age", "no")
    for yes, no in zip(*ups, strict=True):
        assert yes["mean"] + no["mean"] == pytest.approx(1.0, abs=1e-6)
    assert ups[0][-1]["mean"] > ups[0][0]["mean"] + 0.4
    assert len({line["row"] for line in survey.tables["ice"]}) == 3
    assert survey.tables["strength"][0]["column"] == "age"
    only = PartialDependence(classes=["no"], columns=["member"]).survey(case)
    assert {line["class"] for line in only.tables["partial_dependence"]} == {"no"}
    binary = PartialDependence(columns=["age"]).survey(table_case("binary", rows=50, steps=20))
    assert {line["class"] for line in binary.tables["partial_dependence"]} == {"yes"}


def test_rows_are_sampled_and_mistakes_are_named() -> None:
    case = table_case(rows=50, steps=1)
    survey = PartialDependence(rows=10).survey(case)
    assert survey.rows == 10
    assert any("10 of 50 rows" in note for note in survey.notes)
    with pytest.raises(InputError, match="did you mean 'age'"):
        PartialDependence(columns=["agee"]).survey(case)
    with pytest.raises(InputError, match="classes of 'paid'"):
        PartialDependence(classes=["maybe"]).survey(case)
    assert PartialDependence().refusal(case) is None
