"""Schedules at named points."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from luban import registry
from luban.training.schedules._base import Schedule

NAMES = registry.names("schedules")


def make(name: str, **values: Any) -> Schedule:
    schedule: Schedule = registry.lookup("schedules", name)(**values)
    return schedule


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # factor at steps 0, 25, 50, 75, 99 and 100 of 100
        ("constant", {}, [1, 1, 1, 1, 1, 1]),
        ("constant", {"warmup": 50}, [1 / 51, 26 / 51, 1, 1, 1, 1]),
        ("linear", {}, [1, 0.75, 0.5, 0.25, 0.01, 0]),
        ("linear", {"end": 0.2}, [1, 0.8, 0.6, 0.4, 0.208, 0.2]),
        ("linear", {"warmup": 0.5}, [1 / 51, 26 / 51, 1, 0.5, 0.02, 0]),
        ("cosine", {}, [1, 0.853553, 0.5, 0.146447, 0.000247, 0]),
        ("cosine", {"end": 0.1, "warmup": 50}, [1 / 51, 26 / 51, 1, 0.55, 0.100888, 0.1]),
        ("one_cycle", {"warmup": 25}, [0.04 + 0.96 / 26, 1, 2 / 3, 1 / 3, 1 / 75, 0]),
        (
            "one_cycle",
            {"warmup": 0.5, "start": 1.0, "peak": 5.0, "end": 0.5},
            [1 + 4 / 51, 1 + 104 / 51, 5, 2.75, 0.59, 0.5],
        ),
        ("plateau", {"warmup": 50}, [1 / 51, 26 / 51, 1, 1, 1, 1]),
    ],
)
def test_values(name: str, values: dict[str, Any], expected: list[float]) -> None:
    schedule = make(name, **values)
    assert [schedule.factor(step, 100) for step in (0, 25, 50, 75, 99, 100)] == pytest.approx(
        expected, abs=1e-6
    )


def test_plateau_shrinks_after_patience_and_stops_at_the_least_factor() -> None:
    schedule = make("plateau", shrink=0.5, patience=1, min_factor=0.2)
    factors = []
    for loss in (1.0, 0.9, 0.95, 0.92, float("nan"), 0.91, 0.5, 0.6, 0.6, 0.6, 0.6):
        schedule.observe(loss)
        factors.append(schedule.factor(0, 10))
    assert factors == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_plateau_resumes_where_it_was_and_starts_anew_from_nothing() -> None:
    looks = [1.0, 1.1, 1.2, 0.8, 0.9, 0.9, 0.9, 1.0, 1.0]
    straight, first, second = (make("plateau", patience=1) for _ in range(3))
    for look in looks:
        straight.observe(look)
    for look in looks[:5]:
        first.observe(look)
    second.restore(json.loads(json.dumps(first.state())))
    for look in looks[5:]:
        second.observe(look)
    assert second.state() == straight.state()
    assert second.factor(5, 10) == straight.factor(5, 10) == 0.125
    second.restore({})
    assert second.factor(5, 10) == 1.0


@pytest.mark.parametrize("name", NAMES)
@given(
    warmup=st.one_of(st.integers(0, 200), st.floats(0, 0.999)),
    total=st.integers(1, 150),
    step=st.integers(0, 300),
)
def test_every_update_moves_and_none_moves_further_than_the_learning_rate(
    name: str, warmup: int | float, total: int, step: int
) -> None:
    factor = make(name, warmup=warmup).factor(step, total)
    assert 0 <= factor <= 1
    assert factor > 0 or step >= total


@pytest.mark.parametrize("name", NAMES)
def test_stateless_schedules_ignore_what_is_observed(name: str) -> None:
    schedule = make(name)
    assert make(name).model_dump()["type"] == name
    if name != "plateau":
        schedule.observe(3.0)
        assert schedule.state() == {}
        schedule.restore({})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("linear", {"warmup": 1.0}),
        ("linear", {"warmup": -1}),
        ("cosine", {"end": -0.1}),
        ("plateau", {"shrink": 1.0}),
        ("one_cycle", {"warmup": 1.5}),
    ],
)
def test_impossible_values_refuse(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(name, **values)
