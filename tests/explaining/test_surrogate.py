"""A surrogate imitates what can be imitated, says how well, and reads as a person would put it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from table_cases import people, predictor_of, reviews, table_case, text_case

from luban.errors import DataError
from luban.explaining._case import Case
from luban.explaining.surrogate import Surrogate


def test_the_rules_of_a_tree_are_true_of_the_model() -> None:
    """Every row that a rule speaks of is counted by it, and what the rule says is what the model mostly says."""
    case = table_case(rows=300)
    survey = Surrogate(depth=2, leaf=10, held_out=0.3).survey(case)
    rules = survey.tables["rules"]
    assert 2 <= len(rules) <= 4
    assert sum(rule["rows"] for rule in rules) == survey.quality["rows_fitted"] == 210
    assert survey.quality["fidelity"] > survey.quality["agreement_of_a_constant"] + 0.2
    assert survey.quality["fidelity_low"] <= survey.quality["fidelity"] <= survey.quality["fidelity_high"]
    fitted = np.sort(np.random.default_rng(0).permutation(300)[90:])
    frame, said = case.frame[fitted], np.asarray(case.labels)[fitted]
    for rule in rules:
        mask = pl.Series([True] * len(frame))
        for condition in rule["if"].split(" and "):
            column, sign, value = condition.rsplit(" ", 2) if " is " not in condition else (condition, "", "")
            if sign:
                own = frame[column] > float(value) if sign == ">" else frame[column] <= float(value)
            else:
                column, word = condition.split(" is ")
                other = word.removeprefix("not ")
                own = (frame[column] != other) if word != other else (frame[column] == other)
            mask &= own
        assert int(mask.sum()) == rule["rows"]
        assert (said[mask.to_numpy()] == rule["then"]).mean() == pytest.approx(rule["share"])
    nodes = survey.tables["nodes"]
    assert nodes[0]["parent"] is None
    assert "age" in nodes[0]["question"]
    assert all(nodes[node["parent"]]["question"] for node in nodes[1:])
    assert len([node for node in nodes if node["question"] is None]) == len(rules)


def test_weights_of_a_linear_surrogate_point_as_the_model_does() -> None:
    survey = Surrogate(kind="linear").survey(table_case(rows=300))
    weights = {line["feature"]: line["weight"] for line in survey.tables["weights"]}
    assert {line["class"] for line in survey.tables["weights"]} == {"yes"}
    assert max(weights, key=lambda name: abs(weights[name])) == "age"
    assert weights["age"] > 0 < weights["city is Rome"]
    assert survey.quality["fidelity"] > 0.9


def test_a_line_is_imitated_exactly() -> None:
    frame = people()
    model = predictor_of(frame, {"age": "number", "noise": "number"}, {"wage": "number"}, hidden=[], steps=30)
    survey = Surrogate(kind="linear", strength=1e-6).survey(Case.of(model, frame))
    assert survey.quality["fidelity_r2"] == pytest.approx(1.0, abs=1e-4)
    tree = Surrogate(depth=6).survey(Case.of(model, frame))
    assert 0.8 < tree.quality["fidelity_r2"] < 1.0
    assert tree.quality["fidelity_mae"] < tree.quality["mae_of_a_constant"]


def test_words_and_characters_of_texts() -> None:
    case = text_case(rows=120)
    linear = Surrogate(kind="linear").survey(case)
    assert linear.quality["fidelity"] == 1.0
    words = {line["feature"]: line["weight"] for line in linear.tables["weights"]}
    assert words["review contains 'good'"] > 0 > words["review contains 'bad'"]
    tree = Surrogate(depth=8, leaf=1).survey(case)
    assert any("review contains" in rule["if"] for rule in tree.tables["rules"])
    assert any("review lacks" in rule["if"] for rule in tree.tables["rules"])
    few = Surrogate(depth=8, leaf=1, vocabulary=2).survey(case)
    assert few.quality["fidelity"] < tree.quality["fidelity"]
    chars = Surrogate(kind="linear", text="char").survey(case)
    cut = {line["feature"].removeprefix("review contains ") for line in chars.tables["weights"]}
    assert {len(word) for word in cut} == {3, 4}  # with their quotation marks


def test_chinese_is_cut_into_characters() -> None:
    frame = reviews().with_columns(
        review=pl.when(pl.col("label") == "positive")
        .then(pl.lit("这电影很好看"))
        .otherwise(pl.lit("这电影不怎么样"))
    )
    model = predictor_of(
        frame, {"review": {"type": "text", "min_count": 1}}, {"label": "category"}, "textcnn", size="tiny"
    )
    survey = Surrogate(depth=1).survey(Case.of(model, frame))
    assert survey.quality["fidelity"] == 1.0
    assert "review contains '" in survey.tables["nodes"][0]["question"]


def test_missing_cells_have_a_question_of_their_own() -> None:
    frame = people().with_columns(age=pl.when(pl.col("member") == "yes").then(None).otherwise("age"))
    frame = frame.with_columns(paid=pl.col("member"))
    model = predictor_of(frame, {"age": "number"}, {"paid": "category"}, hidden=[4])
    survey = Surrogate(depth=1).survey(Case.of(model, frame))
    assert survey.tables["nodes"][0]["question"] == "age is missing"
    assert survey.quality["fidelity"] == 1.0


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="20 rows at least"):
        Surrogate().survey(table_case(rows=5, steps=1))
    case = table_case(rows=60, steps=30)
    case.frame = pl.concat([case.frame.head(1)] * 60)
    case.given = case.frame
    with pytest.raises(DataError, match="the same of all"):
        Surrogate().survey(case)


def test_a_surrogate_that_imitates_nothing_says_so() -> None:
    """Whether two signs agree is no matter of one question."""
    x = np.random.default_rng(0).normal(size=(400, 2))
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "same": np.where(x[:, 0] * x[:, 1] > 0, "yes", "no")})
    model = predictor_of(
        frame, {"a": "number", "b": "number"}, {"same": "category"}, hidden=[16, 16], steps=200
    )
    survey = Surrogate(kind="linear").survey(Case.of(model, frame))
    assert survey.quality["fidelity"] < 0.7
    told = any("it explains nothing" in note for note in survey.notes)
    assert told == (survey.quality["fidelity"] <= survey.quality["agreement_of_a_constant"])
    assert Surrogate(depth=4).survey(Case.of(model, frame)).quality["fidelity"] > 0.75
