"""Permutation importance: scikit-learn's within its spread, zero for noise, the interval covers what it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import permutation_importance
from table_cases import INPUTS, people, predictor_of, table_case, text_case

from luban.errors import DataError, InputError
from luban.explaining._case import Case
from luban.explaining.permutation_importance import PermutationImportance


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


def lines(case: Case, **options: Any) -> dict[str, dict[str, Any]]:
    survey = PermutationImportance(**options).survey(case)
    return {line["column"]: line for line in survey.tables["importance"]}


def test_it_agrees_with_scikit_learn_and_with_what_a_line_must_lose() -> None:
    frame = people(400)
    model = predictor_of(
        frame, {"age": "number", "noise": "number"}, {"wage": "number"}, hidden=[], steps=300
    )
    case = Case.of(model, frame)
    ours = lines(case, repeats=20, resamples=0)
    x = frame.select("age", "noise").to_numpy()
    theirs = permutation_importance(
        Black(case), x, frame["wage"].to_numpy(), scoring="neg_mean_absolute_error", n_repeats=20, random_state=1
    )  # fmt: skip
    for i, column in enumerate(("age", "noise")):
        spread = 4 * theirs.importances_std[i] / np.sqrt(20) + 1e-6
        assert ours[column]["importance"] == pytest.approx(theirs.importances_mean[i], abs=2 * spread)
        assert ours[column]["deviation"] == pytest.approx(theirs.importances_std[i], rel=0.8, abs=1e-3)
    assert ours["age"]["importance"] > 10
    assert abs(ours["noise"]["importance"]) < 0.5


def test_columns_are_ranked_and_the_interval_tells_noise_from_use() -> None:
    case = table_case("binary", rows=300, steps=60)
    found = lines(case)
    assert next(iter(found)) == "age"
    assert found["age"]["low"] > 0.1
    assert found["noise"]["low"] < 0.02 < found["age"]["importance"]
    for line in found.values():
        assert line["low"] <= line["importance"] <= line["high"]
        assert line["importance"] == pytest.approx(np.mean(line["drops"]))
    survey = PermutationImportance(metric="log_loss").survey(case)
    assert survey.tables["importance"][0]["importance"] > 0  # a loss rises, and that is positive too
    assert "log_loss rises" in survey.notes[-1]


def test_a_text_can_be_shuffled_and_unknown_truths_are_left_out() -> None:
    case = text_case(rows=120)
    case.frame = case.frame.with_columns(label=pl.when(pl.col("number") < 20).then(None).otherwise("label"))
    survey = PermutationImportance(rows=60, repeats=3).survey(case)
    assert survey.tables["importance"][0]["importance"] > 0.3
    assert survey.rows == 60
    assert any("20 rows were left out" in note for note in survey.notes)
    assert any("60 of 100 rows were drawn" in note for note in survey.notes)


def test_the_seed_and_each_option_decide() -> None:
    case = table_case(rows=100, steps=30)
    first = lines(case, resamples=10)
    assert first == lines(case, resamples=10)
    case.seed = 1
    assert first != lines(case, resamples=10)
    assert lines(case, resamples=0)["age"]["high"] is None
    assert len(lines(case, repeats=2, resamples=0)["age"]["drops"]) == 2


def test_bad_input_is_refused_in_a_sentence() -> None:
    case = table_case(rows=10, steps=1)
    with pytest.raises(InputError, match="accuracy"):
        PermutationImportance(metric="acuracy").survey(case)
    without = Case.of(case.predictor, case.given.drop("paid"))
    with pytest.raises(DataError, match="no column 'paid'"):
        PermutationImportance().survey(without)
    assert PermutationImportance().refusal(case) is None
    assert set(INPUTS) == set(lines(case, resamples=0))


def test_a_metric_that_is_not_defined_is_said_to_be_so() -> None:
    case = table_case("binary", rows=60, steps=5)
    paid = Case.of(case.predictor, case.given.filter(pl.col("paid") == "yes"))
    with pytest.raises(DataError, match="roc_auc is not defined"):
        PermutationImportance().survey(paid)
    assert PermutationImportance(metric="accuracy").survey(paid).quality["accuracy"] >= 0
