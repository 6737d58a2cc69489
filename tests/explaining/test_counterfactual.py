"""A counterfactual flips the decision, keeps what is to be kept, and is near the smallest change there is."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from table_cases import INPUTS, people, predictor_of, reviews, table_case, text_case

from luban.errors import InputError
from luban.explaining._base import Explanation
from luban.explaining._case import Case
from luban.explaining.counterfactual import Counterfactual, rewritten


def found(case: Case, **options: object) -> list[Explanation]:
    return Counterfactual(**options).explain(case)  # type: ignore[arg-type]


def after(case: Case, i: int, one: Explanation) -> pl.DataFrame:
    """Return the row with the changes made by hand."""
    row = case.given[i]
    for line in one.tables["changes"]:
        if "text" in line:
            row = row.with_columns(pl.lit(line["text"]).alias(line["column"]))
        elif "start" not in line:
            row = row.with_columns(pl.lit(line["to"]).alias(line["column"]))
    return row


@pytest.mark.parametrize("kind", ["category", "binary"])
def test_the_changed_row_is_decided_otherwise(kind: str) -> None:
    case = table_case(kind, rows=15)
    before = case.predictor.predict(case.given)
    flips = found(case)
    assert sum("changes" in one.tables for one in flips) >= 14
    for i, one in enumerate(flips):
        if not one.tables:
            assert "no counterfactual" in one.notes[-1]
            continue
        now = case.predictor.predict(after(case, i, one))[0]
        assert now["paid"] != before[i]["paid"]
        (outcome,) = one.tables["outcome"]
        assert (outcome["from"], outcome["to"]) == (before[i]["paid"], now["paid"])
        assert outcome["probability"] == pytest.approx(now["paid.score"], abs=1e-5)
        assert one.quality["changes"] == len(one.tables["changes"]) == len(one.parts)
        assert f"then it is '{now['paid']}'" in one.notes[-1]
        json.dumps(one.to_json())


def test_a_number_moves_no_further_than_to_the_boundary() -> None:
    frame = people()
    model = predictor_of(frame, {"age": "number"}, {"paid": "category"}, hidden=[], steps=200)
    case = Case.of(model, frame.head(10), background=frame)
    ages = np.linspace(10, 70, 60001)
    grid = pl.DataFrame({"age": ages})
    scores = case.scores_of(grid, np.zeros(len(grid), int)) - case.scores_of(grid, np.ones(len(grid), int))
    boundary = float(ages[np.flatnonzero(np.diff(np.sign(scores)))[0]])
    for i, one in enumerate(found(case)):
        (line,) = one.tables["changes"]
        own = frame["age"][i]
        assert abs(line["to"] - own) >= abs(boundary - own) - 1e-2
        assert abs(line["to"] - own) <= abs(boundary - own) + 0.3  # a 256th of the way at the most
        assert line["distance"] == pytest.approx(
            abs(line["to"] - own) / frame["age"].to_numpy().std(), rel=1e-6
        )
        assert one.quality["distance"] == pytest.approx(line["distance"])


def test_what_is_kept_stays_and_then_others_change() -> None:
    case = table_case(rows=10)
    free = found(case)
    assert any(line["column"] == "age" for one in free for line in one.tables["changes"])
    held = found(case, keep=["age"])
    assert not any(line["column"] == "age" for one in held for line in one.tables.get("changes", []))
    for a, b in zip(free, held, strict=True):
        if b.tables:
            assert b.quality["distance"] >= a.quality["distance"] * 0.5
    assert any(
        "no counterfactual within 1 change of" in one.notes[-1]
        for one in found(case, keep=["age"], changes=1)
        if one.notes
    )


def test_the_class_asked_for_is_the_one_that_is_reached() -> None:
    frame = people().with_columns(
        band=pl.when(pl.col("age") < 35)
        .then(pl.lit("low"))
        .when(pl.col("age") < 45)
        .then(pl.lit("mid"))
        .otherwise(pl.lit("high"))
    )
    model = predictor_of(frame, {"age": "number"}, {"band": "category"}, hidden=[16], steps=200)
    rows = frame.filter(pl.col("age") < 30).head(3)
    wanted = Case.of(model, rows, label="high", background=frame)
    for one in found(wanted):
        assert one.tables["outcome"][0]["to"] == "high"
    for one in found(Case.of(model, rows, background=frame)):
        assert one.tables["outcome"][0]["to"] == "mid"


def test_one_word_of_a_text_is_left_out_or_replaced() -> None:
    case = text_case(rows=6)
    for i, one in enumerate(found(case)):
        words = [line for line in one.tables["changes"] if "start" in line]
        assert len(words) == 1
        text = case.given["review"][i]
        assert text[words[0]["start"] : words[0]["end"]] == words[0]["from"]
        assert case.predictor.predict(after(case, i, one))[0]["label"] == one.tables["outcome"][0]["to"]
        part = one.parts["review"]
        assert [p.text for p, value in zip(part.pieces, part.values, strict=True) if value] == [
            words[0]["from"]
        ]
    without = found(case, words=0)
    assert all(line.get("to", "") == "" for one in without for line in one.tables.get("changes", []))


def test_places_are_in_the_text_that_was_given() -> None:
    case = text_case(rows=2)
    case.given = case.given.with_columns(review=pl.lit("<b>") + pl.col("review") + pl.lit("</b>"))
    for i, one in enumerate(found(case)):
        part = one.parts["review"]
        assert part.of_original
        for piece in part.pieces:
            assert case.given["review"][i][piece.start : piece.end] == piece.text


def test_words_and_cells_together_and_pictures_stay() -> None:
    frame = reviews().with_columns(age=pl.Series(np.where(np.arange(120) % 2, 30.0, 31.0)))
    inputs = {"review": {"type": "text", "tokens": "word", "min_count": 1}, "age": "number"}
    case = Case.of(predictor_of(frame, inputs, {"label": "category"}), frame.head(2), background=frame)
    kept = found(case, keep=["review"])
    assert all(line["column"] == "age" for one in kept for line in one.tables.get("changes", []))
    pixels = pl.DataFrame(
        {
            "photo": pl.Series(np.random.default_rng(0).integers(0, 256, (20, 6, 6), dtype=np.uint8)),
            "label": ["a", "b"] * 10,
        }
    )
    image = Case.of(predictor_of(pixels, {"photo": "image"}, {"label": "category"}, steps=2), pixels.head(2))
    assert "not pictures" in (Counterfactual().refusal(image) or "")


def test_without_other_rows_the_artefact_still_knows_what_cells_hold() -> None:
    case = table_case(rows=1)
    case.background = None
    (one,) = found(case)
    assert case.predictor.predict(after(case, 0, one))[0]["paid"] == one.tables["outcome"][0]["to"]


def test_options_and_mistakes() -> None:
    case = table_case(rows=6, steps=30)
    case.background = people().with_columns(city=pl.lit("Oslo"))
    assert all(
        line["to"] == "Oslo"
        for one in found(case, values=1)
        for line in one.tables.get("changes", [])
        if line["column"] == "city"
    )
    with pytest.raises(InputError, match="did you mean 'age'"):
        found(case, keep=["agee"])
    with pytest.raises(InputError, match="nothing can change"):
        found(case, keep=list(INPUTS))
    number = table_case("number", "wage", rows=2, steps=1)
    assert "decision" in (Counterfactual().refusal(number) or "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({0: ""}, "a good film"),
        ({3: ""}, "not a good"),
        ({1: "", 2: ""}, "not film"),
        ({2: "bad"}, "not a bad film"),
    ],
)
def test_a_text_without_some_words_has_no_double_blanks(words: dict[int, str], expected: str) -> None:
    assert rewritten("not a good film", [(0, 3), (4, 5), (6, 10), (11, 15)], words) == expected
