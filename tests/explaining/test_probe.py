"""Probes read layers as they are: states equal those of a row alone, and accuracy rises where the answer is made plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from table_cases import people, predictor_of, reviews, table_case, text_case

from luban.errors import DataError
from luban.explaining._case import Case
from luban.explaining._layers import states_of
from luban.explaining.probe import Probe

TEXT = {"review": {"type": "text", "tokens": "word", "min_count": 1}}


def uneven(n: int = 60) -> pl.DataFrame:
    """Reviews of very different lengths, in no order."""
    frame = reviews(n)
    long = pl.concat_str([pl.col("review")] * 4, separator=" ")
    return frame.with_columns(review=pl.when(pl.col("number") % 3 == 0).then(long).otherwise("review"))


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("transformer", ["review: embedding", "review: block 1", "review: block 2", "features"]),
        ("bert", ["review: embedding", "review: block 1", "review: block 2", "features"]),
        ("rnn", ["review: layer 1", "features"]),
    ],
)
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_states_of_a_row_do_not_depend_on_its_batch(model: str, layers: list[str], pool: Any) -> None:
    frame = uneven(12)
    case = Case.of(predictor_of(frame, TEXT, {"label": "category"}, model, steps=1, size="tiny"), frame)
    whole = states_of(case, pool)
    assert list(whole) == layers
    for i in (0, 1, 11):
        alone = states_of(case.part(i, i + 1), pool)
        for name in layers:
            assert whole[name][i] == pytest.approx(alone[name][0], abs=1e-5), name


def test_pooled_states_are_the_mean_over_the_tokens_own() -> None:
    frame = uneven(6)
    case = Case.of(
        predictor_of(frame, TEXT, {"label": "category"}, "transformer", steps=1, size="tiny"), frame
    )
    states = states_of(case)
    network: Any = case.predictor.model
    ids = case.batch()["review.ids"]
    core = next(iter(network.encoders.values())).core
    with torch.no_grad():
        expected = ids.like(core.embedding.tokens(ids.values)).mean()  # rotary positions: nothing is added
    assert states["review: embedding"] == pytest.approx(expected.numpy(), abs=1e-6)
    with torch.no_grad():
        outputs = network(case.batch())
    assert states["features"] == pytest.approx(outputs["features"].numpy(), abs=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    frame = uneven(6)
    case = Case.of(predictor_of(frame, TEXT, {"label": "category"}, "bert", steps=1, size="tiny"), frame)
    network: Any = case.predictor.model
    before = [(m, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
    kept = [m.keep_states for m in network.modules() if hasattr(m, "keep_states")]
    states_of(case)
    assert [(m, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()] == before
    assert [m.keep_states for m in network.modules() if hasattr(m, "keep_states")] == kept == [False]


def test_layers_of_a_table_and_of_pictures() -> None:
    frame = people(60)
    model = predictor_of(
        frame, {"age": "number", "city": "category"}, {"paid": "category"}, hidden=[8, 4], steps=1
    )
    states = states_of(Case.of(model, frame))
    assert {name: own.shape[1] for name, own in states.items()} == {
        "numbers: encoder": 1, "classes: encoder": 4, "dense 1": 8, "features": 4,
    }  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 12), dtype=np.uint8)
    pictures = pl.DataFrame({"photo": pl.Series(pixels), "label": ["a", "b"] * 15})
    for family, maps in (("cnn", 2), ("resnet", 5)):
        module = predictor_of(
            pictures, {"photo": "image"}, {"label": "category"}, family, steps=1, size="tiny"
        )
        names = [name for name in states_of(Case.of(module, pictures)) if "map" in name]
        assert names == [f"photo: map {i + 1}" for i in range(maps)]


def test_the_answer_becomes_plainer_from_layer_to_layer() -> None:
    """Whether two signs agree: nothing linear reads it off the inputs, and all of it off the last layer."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(500, 2))
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "same": np.where(x[:, 0] * x[:, 1] > 0, "yes", "no")})
    model = predictor_of(
        frame, {"a": "number", "b": "number"}, {"same": "category"}, hidden=[16, 16], steps=200
    )
    survey = Probe().survey(Case.of(model, frame))
    accuracy = {line["layer"]: line for line in survey.tables["layers"]}
    assert accuracy["numbers: encoder"]["accuracy"] < 0.65
    assert accuracy["features"]["accuracy"] > 0.9
    assert accuracy["features"]["low"] > accuracy["numbers: encoder"]["high"]
    assert survey.quality["rows_held_out"] == 150
    assert 0.4 < survey.quality["most_frequent_class"] < 0.7


def test_other_columns_can_be_asked_for() -> None:
    case = table_case(rows=300)
    city = Probe(column="city").survey(case)
    assert city.target == "city"
    assert city.tables["layers"][1]["accuracy"] == 1.0  # one-hot
    wage = Probe(column="wage").survey(case)
    assert wage.tables["layers"][0]["r2"] > 0.5
    assert "R²" in wage.notes[-1]


def test_options_decide_and_mistakes_are_named() -> None:
    case = text_case(rows=120, model="transformer", size="tiny", steps=3, rate=0.01)
    first = Probe(column="number").survey(case).tables["layers"]
    assert first == Probe(column="number").survey(case).tables["layers"]
    assert first != Probe(column="number", pool="max").survey(case).tables["layers"]
    assert first != Probe(column="number", strength=1000.0).survey(case).tables["layers"]
    assert Probe(rows=40, held_out=0.5).survey(case).quality["rows_fitted"] == 20
    with pytest.raises(DataError, match="did you mean 'label'"):
        Probe(column="lable").survey(case)
    with pytest.raises(DataError, match="different words"):
        Probe(column="review").survey(case)
    with pytest.raises(DataError, match="20 rows at least"):
        Probe().survey(case.part(0, 5))
    assert Probe().refusal(case) is None
