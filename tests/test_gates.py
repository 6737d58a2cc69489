"""Gates: sentences that are read, judged, and refused where they say nothing."""

from __future__ import annotations

import pytest

from luban.errors import RecipeError
from luban.gates import Gate, judge
from luban.recipe import load


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("a.b >= 0.5", 0.5, True), ("a.b > 0.5", 0.5, False), ("a.b <= 0.5", 0.5, True), ("a.b < 0.5", 0.5, False),
        ("a.b>=1e-3", 0.01, True), ("  a.b   <=  2 ", 3.0, False), ("two words.b >= 0", 1.0, False),
    ],
)  # fmt: skip
def test_a_figure_is_compared_with_its_bound(text: str, value: float, passed: bool) -> None:
    (verdict,) = judge([Gate.parse(text)], {"a.b": value}, [])
    assert verdict.passed is passed


def test_what_was_not_measured_is_not_met() -> None:
    (verdict,) = judge([Gate.parse("label.acuracy >= 0")], {"label.accuracy": 1.0, "label.f1": None}, [])
    assert not verdict.passed
    assert verdict.why.endswith("was not measured; did you mean 'label.accuracy'?")
    # A name that is known is no misspelling of another, whose figure is there.
    figures = {"labels.noise": None, "labels.b.noise": 0.0}
    (verdict,) = judge([Gate.parse("labels.noise <= 0.2")], figures, [])
    assert not verdict.passed
    assert verdict.why.endswith("'labels.noise' was not measured, since these rows cannot tell it")


@pytest.mark.parametrize(
    ("text", "found", "passed"),
    [("no high", ["medium", "low"], True), ("no high", ["high"], False), ("no medium", ["high"], False), ("no low", ["info"], True)],
)  # fmt: skip
def test_findings_are_counted_from_their_severity_up(text: str, found: list[str], passed: bool) -> None:
    (verdict,) = judge([Gate.parse(text)], {}, found)
    assert verdict.passed is passed


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("label.accuracy", "neither a figure with a bound"),
        ("label.accuracy >= high", "neither a figure with a bound"),
        ("no hihg", "'hihg' is no severity; severities are high, medium, low; did you mean 'high'"),
    ],
)
def test_a_recipe_refuses_a_gate_that_says_nothing(gate: str, words: str) -> None:
    recipe = {
        "data": {"train": "x.csv", "inputs": {"a": "number"}, "targets": {"b": "number"}},
        "model": "mlp",
    }
    assert load({**recipe, "gates": ["b.mae <= 3", "no high"]}).gates == ["b.mae <= 3", "no high"]
    with pytest.raises(RecipeError, match=words):
        load({**recipe, "gates": [gate]})


def test_findings_of_no_audit_are_not_none() -> None:
    (verdict,) = judge([Gate.parse("no high")], {}, None)
    assert (verdict.passed, verdict.why) == (False, "'no high' is not met: no audit was done")
