"""Shapley values are those of the definition, add up, and agree with captum and with what a linear model must give."""

from __future__ import annotations

import json
import math
from itertools import permutations

import numpy as np
import polars as pl
import pytest
import torch
from table_cases import INPUTS, people, predictor_of, reviews, table_case

from luban.errors import DataError
from luban.explaining._case import Case
from luban.explaining.shapley import Shapley, shapley_values


def test_the_values_are_the_mean_gain_over_all_orders() -> None:
    worth = np.random.default_rng(0).normal(size=16)
    expected = np.zeros(4)
    for order in permutations(range(4)):
        coalition = 0
        for player in order:
            expected[player] += worth[coalition | 1 << player] - worth[coalition]
            coalition |= 1 << player
    assert shapley_values(worth) == pytest.approx(expected / math.factorial(4))


def test_exact_values_equal_the_definition_asked_of_the_black_box() -> None:
    case = table_case(rows=3)
    case.background = people().head(7)
    found = Shapley(background=7).explain(case)
    columns = list(INPUTS)
    for i, one in enumerate(found):
        expected = dict.fromkeys(columns, 0.0)
        for order in permutations(columns):
            rows = case.background.select(columns)
            scores = [case.scores_of(rows, np.full(7, case.chosen[i])).mean()]
            for column in order:
                rows = rows.with_columns(pl.lit(case.frame[column][i]).alias(column))
                scores.append(case.scores_of(rows, np.full(7, case.chosen[i])).mean())
            for column, gain in zip(order, np.diff(scores), strict=True):
                expected[column] += gain / math.factorial(len(columns))
        values = {column: part.total for column, part in one.parts.items()}
        assert values == pytest.approx(expected, abs=1e-5)
        assert one.quality["completeness_error"] < 1e-6
        assert one.score == pytest.approx(float(case.scores_of(case.frame)[i]), abs=1e-5)
        assert "7 rows" in one.notes[0]


def test_of_a_linear_model_the_values_are_weight_times_distance_to_the_mean() -> None:
    frame = people()
    model = predictor_of(frame, {"age": "number", "noise": "number"}, {"wage": "number"}, hidden=[], steps=20)
    case = Case.of(model, frame.head(4), background=frame.head(50))
    found = Shapley(background=50).explain(case)
    probe = frame.head(1).with_columns(age=pl.lit(41.0)), frame.head(1).with_columns(age=pl.lit(40.0))
    slope = float(
        case.scores_of(probe[0], np.zeros(1, int))[0] - case.scores_of(probe[1], np.zeros(1, int))[0]
    )
    for i, one in enumerate(found):
        expected = slope * (frame["age"][i] - frame["age"].head(50).mean())
        assert one.parts["age"].total == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert one.parts["age"].shown == frame["age"][i]


def test_drawn_orders_come_near_the_exact_values_and_captums() -> None:
    from captum.attr import ShapleyValues

    case = table_case(rows=1)
    case.background = people().head(1)
    exact = Shapley(background=1).explain(case)[0]
    drawn = Shapley(background=1, exact=0, permutations=400).explain(case)[0]
    columns = list(INPUTS)
    for column in columns:
        assert drawn.parts[column].total == pytest.approx(
            exact.parts[column].total, abs=5 * drawn.quality["standard_error"] + 1e-6
        )
    assert drawn.quality["completeness_error"] < 1e-5

    def forward(there: torch.Tensor) -> torch.Tensor:
        rows = pl.concat([case.frame.select(columns), case.background.select(columns)])  # type: ignore[union-attr]
        mixed = pl.DataFrame(
            {c: [rows[c][0 if on else 1] for on in there[:, i].tolist()] for i, c in enumerate(columns)}
        )
        return torch.from_numpy(case.scores_of(mixed, np.full(len(mixed), case.chosen[0])))

    captum = ShapleyValues(forward).attribute(torch.ones(1, 4), baselines=torch.zeros(1, 4))[0]
    assert captum.tolist() == pytest.approx([exact.parts[c].total for c in columns], abs=1e-5)


def test_a_text_is_one_column_among_others() -> None:
    frame = reviews().with_columns(number=pl.lit(1.0) * pl.col("number"))
    inputs = {"review": {"type": "text", "tokens": "word", "min_count": 1}, "number": "number"}
    case = Case.of(predictor_of(frame, inputs, {"label": "category"}), frame.head(3), background=frame)
    for one in Shapley(background=30).explain(case):
        assert one.shares["review"] > 0.8
        assert one.quality["completeness_error"] < 1e-6
        assert json.loads(json.dumps(one.to_json()))["parts"]["review"]["kind"] == "value"


def test_options_and_seed_decide_what_is_drawn() -> None:
    case = table_case(rows=1)

    def values(**options: int) -> list[float]:
        return [p.total for p in Shapley(**options).explain(case)[0].parts.values()]

    assert values(exact=0, permutations=10) == values(exact=0, permutations=10)
    assert values(exact=0, permutations=10) != values(exact=0, permutations=20)
    assert values(background=5) != values(background=9)


def test_what_cannot_be_shared_is_refused() -> None:
    frame = people()
    single = Case.of(predictor_of(frame, {"age": "number"}, {"paid": "category"}, steps=1), frame.head(2))
    assert "single" in (Shapley().refusal(single) or "")
    with pytest.raises(DataError, match="no row to explain"):
        Shapley().explain(table_case(rows=0, steps=1))


def test_a_single_row_is_compared_with_rows_made_up_where_there_are_no_others() -> None:
    many = table_case(rows=1)
    frame = people().sort("age")
    oldest = Case.of(many.predictor, frame.tail(1), label="yes")
    (one,) = Shapley(background=40).explain(oldest)
    assert "40 rows made up" in one.notes[0]
    assert one.quality["completeness_error"] < 1e-6
    oldest.background = frame
    (real,) = Shapley(background=300).explain(oldest)
    assert one.parts["age"].total == pytest.approx(real.parts["age"].total, rel=0.3)
    two = table_case(rows=2, steps=1)
    two.background = None
    assert "2 rows of the rows given" in Shapley().explain(two)[0].notes[0]
