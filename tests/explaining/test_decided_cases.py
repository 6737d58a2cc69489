"""What is explained is what is predicted: thresholds and temperatures that were fitted behind the model are seen through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
from table_cases import INPUTS, people, predictor_of, reviews, text_case

from explain_case import image_case
from luban.decisions.temperature import Temperature
from luban.decisions.thresholds import Thresholds
from luban.errors import DataError, InputError
from luban.explaining._case import Background, Case
from luban.explaining._maps import layers_of
from luban.explaining.counterfactual import Counterfactual
from luban.explaining.embeddings import Embeddings
from luban.explaining.grad_cam import GradCam
from luban.explaining.partial_dependence import PartialDependence
from luban.explaining.permutation_importance import PermutationImportance
from luban.explaining.surrogate import Surrogate
from luban.verbs import explain as verb

SHIFTS = {"Rome": -4.0, "Oslo": 3.0, "A": -3.0, "B": 3.0}


def decided_case(by: str, rows: int = 60) -> Case:
    """A case whose model is decided by a threshold for each city, which it reads, or each group, which it does not."""
    frame = people(300).with_columns(group=pl.Series(["A", "B", "C"] * 100))
    predictor = predictor_of(frame, INPUTS, {"paid": "binary"}, hidden=[8], activation="tanh", steps=60)
    warm, own = Temperature(), Thresholds(by=by)
    warm.restore({"column": "paid", "temperature": 1.7})
    own.restore({"column": "paid", "shifts": SHIFTS})
    predictor.decisions = [warm, own]
    return Case.of(predictor, frame.head(rows), background=frame)


def predicted(case: Case, rows: pl.DataFrame, name: str = "paid") -> list[object]:
    return [one[name] for one in case.predictor.predict(rows)]


@pytest.mark.parametrize("by", ["city", "group"])
def test_a_counterfactual_flips_what_is_predicted(by: str) -> None:
    case = decided_case(by)
    before, found = predicted(case, case.given), Counterfactual().explain(case)
    assert len({one.tables["changes"][0]["column"] for one in found if one.tables}) > 1
    for i, one in enumerate(found):
        if not one.tables:
            continue
        row = case.given[i].with_columns(
            **{line["column"]: pl.lit(line["to"]) for line in one.tables["changes"]}
        )
        (now,) = case.predictor.predict(row)
        assert now["paid"] != before[i]
        assert one.tables["outcome"][0]["to"] == now["paid"]
        assert one.tables["outcome"][0]["probability"] == pytest.approx(now["paid.score"], abs=1e-5)


@pytest.mark.parametrize("by", ["city", "group"])
def test_surveys_are_about_what_is_predicted(by: str) -> None:
    case = decided_case(by, 200)
    said = predicted(case, case.given)
    raw = case.said(np.asarray(case.predictor.model(case.batch())["paid.logits"].detach()))
    assert (np.asarray(case.classes)[raw] != np.asarray(said)).mean() > 0.1  # else nothing is tested
    assert [case.classes[k] for k in Surrogate._said(case)] == said
    accuracy = PermutationImportance(metric="accuracy", repeats=1, resamples=0).survey(case)
    assert accuracy.quality["accuracy"] == pytest.approx(
        np.mean([a == b for a, b in zip(said, case.given["paid"], strict=True)])
    )
    unlabelled = Case.of(case.predictor, case.given.drop("paid"))
    places = Embeddings(neighbours=0).survey(unlabelled).tables["map"]
    assert [line["label"] for line in places] == said
    moved = PartialDependence(columns=["city"]).survey(case).tables["partial_dependence"]
    chances = case.predictor.predict(case.given.with_columns(city=pl.lit("Rome")))
    (line,) = (line for line in moved if line["value"] == "Rome")
    assert line["mean"] == pytest.approx(np.mean([one["paid.scores"]["yes"] for one in chances]), abs=1e-5)


def test_a_shuffled_group_is_decided_about_by_what_it_then_is() -> None:
    """Thresholds alone make the city matter to a model that does not read it by itself."""
    case = decided_case("city", 200)
    found = PermutationImportance(metric="accuracy", resamples=0).survey(case).tables["importance"]
    case.predictor.decisions = []
    raw = PermutationImportance(metric="accuracy", resamples=0).survey(case).tables["importance"]
    own, plain = ({line["column"]: line["importance"] for line in table} for table in (found, raw))
    assert own["city"] != pytest.approx(plain["city"])


# --- rows that stand for the data ---------------------------------------------------------------------------


def chunks_of(rows: int, asked: list[int]) -> Iterator[pl.DataFrame]:
    for start in range(0, rows, 500):
        asked.append(start)
        yield pl.DataFrame({"n": range(start, start + 500)})


def test_a_sorted_file_is_stood_for_by_rows_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    draw = verb.background_of(lambda: chunks_of(6_000, asked), lambda: None)
    assert not asked  # nothing is read until somebody asks
    found = draw()
    assert found is not None
    assert found is draw()
    assert len(asked) == 12
    assert len(found.rows) == verb.BACKGROUND
    assert found.of == "6,000 training rows"
    assert found.rows["n"].mean() == pytest.approx(3_000, abs=200)
    monkeypatch.setattr(verb, "READ", 2_200)
    asked.clear()
    part = verb.background_of(lambda: chunks_of(6_000, asked), lambda: None)()
    assert part is not None
    assert asked == [0, 500, 1000, 1500, 2000]
    assert part.rows["n"].max() < 2_200
    assert part.of == "the first 2,200 training rows"


def test_where_training_rows_are_gone_others_stand_in() -> None:
    rows = pl.DataFrame({"n": [1, 2]})

    def gone() -> Iterator[pl.DataFrame]:
        raise OSError
        yield rows

    for training in (None, gone):
        found = verb.background_of(training, lambda: rows)()
        assert found == Background(rows, "the sample that the artefact keeps")
    assert verb.background_of(gone, lambda: None)() is None


def test_values_that_are_tried_come_from_all_of_the_data() -> None:
    """The reference is drawn, too: of a file sorted by city all cities are tried."""
    frame = people(1200).sort("city")
    predictor = predictor_of(frame, INPUTS, {"paid": "category"}, hidden=[4], steps=1)
    from luban.explaining._alternatives import Alternatives

    tried = Alternatives(Case.of(predictor, frame.head(2), background=frame), ["city"], 20, 0)
    assert tried.reference["city"].n_unique() == 3


# --- what cannot be done is said ----------------------------------------------------------------------------


def test_a_surrogate_of_a_single_class_or_without_a_word_is_refused() -> None:
    case = decided_case("group", 100)
    held = np.random.default_rng(case.seed).permutation(100)[:30]

    def one_minority_row(own: Case) -> np.ndarray:
        return (np.arange(100) == held[0]).astype(np.int64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Surrogate, "_said", staticmethod(one_minority_row))
        with pytest.raises(DataError, match="the same of all 70 rows that a surrogate is fitted to"):
            Surrogate(kind="linear").survey(case)
    texts = text_case(rows=40)
    lonely = reviews(40).with_columns(review=pl.Series([f"w{i}" for i in range(40)]))
    again = Case.of(texts.predictor, lonely)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Surrogate, "_said", staticmethod(lambda own: np.arange(len(own)) % 2))
        with pytest.raises(DataError, match="no word of review occurs in two of the rows"):
            Surrogate().survey(again)


def test_a_layer_that_the_score_does_not_read_is_named() -> None:
    case = image_case("cnn", 2)
    layer = [*layers_of(case, "photo")][-1]
    head = case.predictor.model.heads.values()  # type: ignore[union-attr,operator]
    (last,) = head
    handle = last.register_forward_hook(lambda module, args, output: output.detach())
    try:
        with pytest.raises(InputError, match=f"does not depend on what layer '{layer}' makes"):
            GradCam().explain(case)
    finally:
        handle.remove()
