"""The numbers behind a learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from luban.reporting._blocks import Block, Chart, Grid, Note, Table
from luban.reporting._sections import progress
from luban.reporting._words import Words


def content(training: list[tuple[float, float]], history: list[dict[str, float]]) -> dict[str, Any]:
    """What `gather` returns, as far as curves go."""
    return {
        "training": training,
        "history": history,
        "kept": {"weights": "last"},
        "lineage": {},
        "model": {"targets": {"label": {"type": "category", "task": "multiclass"}}},
    }


def charts(datas: list[dict[str, Any]], names: list[str] | None = None) -> list[Chart]:
    made = progress(datas, Words("en"), names)
    assert made is not None
    return drawn(made.blocks)


def drawn(blocks: Sequence[Block]) -> list[Chart]:
    (grid,) = [one for one in blocks if isinstance(one, Grid)]
    assert isinstance(grid, Grid)
    return [one for one in grid.blocks if isinstance(one, Chart)]


def numbers(chart: Chart) -> list[list[str]]:
    assert isinstance(chart.table, Table)
    return [[cell.text for cell in row] for row in chart.table.rows]


TRAINING = [(float(step), 1 / step) for step in range(1, 500)]


def test_one_look_does_not_hide_how_training_went() -> None:
    (chart,) = charts([content(TRAINING, [{"step": 499, "loss": 0.25}])])
    rows = numbers(chart)
    assert len(rows) == 12
    assert [row[2] for row in rows] == ["–"] * 11 + ["0.250"]
    steps = [int(row[0]) for row in rows]
    assert (steps[0], steps[-1]) == (1, 499)
    gaps = {b - a for a, b in pairwise(steps)}
    assert max(gaps) - min(gaps) <= 1, "evenly"
    for step, row in zip(steps, rows, strict=True):
        assert float(row[1]) == pytest.approx(1 / step, abs=0.0006)


def test_every_look_is_a_row_and_no_number_stands_there_twice() -> None:
    sparse = [(step, y) for step, y in TRAINING if step % 50 == 0]
    (chart,) = charts([content(sparse, [{"step": 120, "loss": 0.5}, {"step": 121, "loss": 0.4}])])
    rows = numbers(chart)
    assert [row for row in rows if 100 <= int(row[0]) <= 150] == [
        ["100", "0.010", "–"],
        ["120", "–", "0.500"],
        ["121", "–", "0.400"],
        ["150", "0.0067", "–"],
    ]
    seen = [row[2] for row in rows if row[2] != "–"]
    assert seen == ["0.500", "0.400"]


def test_many_looks_are_thinned() -> None:
    (chart,) = charts([content(TRAINING, [{"step": 10 * i, "loss": 1.0 + i} for i in range(1, 41)])])
    rows = numbers(chart)
    assert len(rows) == 12
    assert {int(row[0]) % 10 for row in rows} == {0}
    assert (rows[0][0], rows[-1][0]) == ("10", "400")


def test_a_line_without_points_is_left_out() -> None:
    """The second was never looked at by this metric."""
    looks = [{"step": 10, "loss": 1.0, "label.accuracy": 0.5}]
    loss, accuracy = charts([content([], looks), content([(5, 2.0)], [])], ["one", "other"])
    assert numbers(loss) == [["5", "–", "2"], ["10", "1", "–"]]
    assert [name for name, _ in accuracy.legend] == ["one"]
    assert numbers(accuracy) == [["10", "0.500"]]
    assert progress([content([], [])], Words("en")) is None


def test_losses_of_other_things_have_a_picture_each() -> None:
    looks = [{"step": 10, "loss": 1.0, "text.perplexity": 2.7, "text.bits_per_byte": 1.5}]
    datas = [content([(5, 2.0)], looks), content([(6, 9.0)], [{**looks[0], "loss": 8.0}])]
    for one in datas:
        one["model"] = {"targets": {"text": {"type": "text", "task": "text"}}}
    together = progress(datas, Words("en"), ["one", "other"])
    assert together is not None
    assert [len(one.legend) for one in drawn(together.blocks)] == [4, 2]
    assert not [one for one in together.blocks if isinstance(one, Note)]

    apart = progress(datas, Words("en"), ["one", "other"], "the two cut texts into tokens otherwise")
    assert apart is not None
    note, _ = apart.blocks
    assert isinstance(note, Note)
    assert note.text.startswith(
        "Each loss has a picture of its own, since the two cut texts into tokens otherwise"
    )
    first, second, bytes_ = drawn(apart.blocks)
    assert (first.title, second.title) == ("Loss: one", "Loss: other")
    assert [name for name, _ in first.legend] == ["one: training", "one: validation"]
    assert numbers(first) == [["5", "2", "–"], ["10", "–", "1"]]
    assert numbers(second) == [["6", "9", "–"], ["10", "–", "8"]]
    assert [name for name, _ in bytes_.legend] == ["one", "other"], "bits per byte can be compared"

    for one in datas:
        for look in one["history"]:
            look.pop("text.bits_per_byte", None)
    of_tokens = progress(datas, Words("zh"), ["甲", "乙"], "the two cut texts into tokens otherwise")
    assert of_tokens is not None
    titles = [one.title for one in drawn(of_tokens.blocks)]
    assert titles[:2] == ["损失：甲", "损失：乙"]
    assert [title.rpartition("：")[2] for title in titles[2:]] == ["甲", "乙"]
