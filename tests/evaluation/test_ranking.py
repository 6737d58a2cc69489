"""Runs and order statistics against a sort of everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.evaluation import ranking, records
from luban.evaluation.ranking import falling, reached
from luban.evaluation.records import Pool

TYPE = np.dtype([("truth", "i4"), ("weight", "f8"), ("scores", "f4", (2,))])


@given(
    scores=st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, 0.5]),
            st.floats(-1, 1, width=32),
            st.floats(0.5, 0.5078125, width=32, exclude_max=True),  # one leading half
        ),
        max_size=60,
    ),
    room=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_runs_are_the_rows_in_falling_order(scores: list[float], room: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = np.zeros(len(scores), TYPE)
    rows["truth"], rows["weight"] = (
        generator.integers(0, 2, len(rows)),
        generator.integers(0, 4, len(rows)) / 2,
    )
    rows["scores"][:, 1] = scores
    table = Pool(100).table(TYPE)
    table.append(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "ROOM", room)
        patch.setattr(records, "_WINDOW", 7)
        runs = list(falling("multiclass", table, 1))
    found: Counter[tuple[float, bool]] = Counter()
    below = np.inf
    for own, positive, weight in runs:
        assert 0 < len(own) <= max(room, 2 * len(set(own.tolist())))
        assert own[0] < below  # equal scores are in one run
        assert (np.diff(own) <= 0).all()
        assert (weight > 0).all()
        below = own[-1]
        for row in zip(own.tolist(), positive.tolist(), weight.tolist(), strict=True):
            found[row[:2]] += row[2]
    wanted: Counter[tuple[float, bool]] = Counter()
    for row in rows:
        wanted[float(row["scores"][1]), bool(row["truth"])] += float(row["weight"])
    assert found == +wanted


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(values=st.lists(numbers, min_size=1, max_size=40), seed=st.integers(0, 1000), passed=st.booleans())
def test_reached_is_where_the_sorted_weights_get_there(values: list[float], seed: int, passed: bool) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.integers(0, 4, len(values)) / 2
    weights[0] = 1.0
    goals = [(share * weights.sum(), passed) for share in (0.1, 0.5, 0.9)]

    def chunks() -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(values), 7):
            yield np.array(values[start : start + 7]), weights[start : start + 7]

    order = np.argsort(values, kind="stable")
    upto = np.cumsum(weights[order])
    for (goal, _), own in zip(goals, reached(chunks, goals), strict=True):
        assert own == np.array(values)[order][np.argmax(upto > goal if passed else upto >= goal)]
