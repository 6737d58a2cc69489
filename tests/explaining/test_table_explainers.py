"""Each of these explainers either says why it does not fit a model, or explains it: in JSON, without NaN, the same each time."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from table_cases import people, predictor_of, reviews, table_case, text_case

from luban.data.pipeline import Pipeline
from luban.explaining._base import Explainer
from luban.explaining._case import Case
from luban.predict import Predictor
from luban.registry import lookup
from luban.training.checkpoint import split

METHODS = [
    "counterfactual", "embeddings", "influence", "partial_dependence", "permutation_importance", "probe", "shapley", "surrogate",
]  # fmt: skip


def numbers() -> Case:
    return table_case("number", "wage", rows=40, steps=5)


def flags() -> Case:
    return table_case("binary", rows=40, steps=20)


def classes() -> Case:
    frame = people(90)
    odd = frame.with_columns(
        tags=pl.Series([["a;b", "b", ""][i % 3] for i in range(90)]),
        day=pl.Series([f"2024-0{1 + i % 9}-11" for i in range(90)]),
        age=pl.when(pl.int_range(90) % 7 == 0).then(None).otherwise("age"),
    )
    inputs = {"age": "number", "city": "category", "tags": "set", "day": "date"}
    return Case.of(
        predictor_of(odd, inputs, {"paid": "category"}, hidden=[4], steps=25), odd.head(40), background=odd
    )


def labels() -> Case:
    frame = people(60).with_columns(tags=pl.Series([["a;b", "b", "a", ""][i % 4] for i in range(60)]))
    model = predictor_of(frame, {"age": "number", "city": "category"}, {"tags": "set"}, hidden=[4], steps=5)
    return Case.of(model, frame.head(40), background=frame)


def texts() -> Case:
    return text_case(rows=40, steps=10)


def pictures() -> Case:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)
    frame = pl.DataFrame({"photo": pl.Series(pixels), "label": ["a", "b"] * 20})
    model = predictor_of(frame, {"photo": "image"}, {"label": "category"}, "cnn", size="tiny", steps=3)
    return Case.of(model, frame)


def several() -> Case:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)
    frame = reviews(40).with_columns(photo=pl.Series(pixels), price=pl.Series(np.arange(40.0)))
    inputs = {
        "review": {"type": "text", "tokens": "word", "min_count": 1},
        "photo": "image",
        "price": "number",
    }
    return Case.of(
        predictor_of(frame, inputs, {"label": "category"}, "cnn", size="tiny", steps=3),
        frame,
        background=frame,
    )


def without_target() -> Case:
    frame = reviews(40)
    pipeline = Pipeline({"review": lookup("processors", "text")(tokens="word", min_count=1)}, {})
    pipeline.inputs["review"].update(frame["review"])
    pipeline.finish()
    torch.manual_seed(0)
    module = lookup("models", "transformer")(size="tiny").build(pipeline.spec)
    return Case.of(Predictor(module.eval(), pipeline, pipeline.spec, torch.device("cpu")), frame)


CASES = [numbers, flags, classes, labels, texts, pictures, several, without_target]
REFUSED = {
    ("counterfactual", "numbers"), ("counterfactual", "pictures"), ("shapley", "texts"), ("shapley", "pictures"),
    ("partial_dependence", "texts"), ("partial_dependence", "pictures"), ("surrogate", "pictures"), ("surrogate", "labels"),
} | {(method, "without_target") for method in METHODS if method != "embeddings"}  # fmt: skip


def result_of(explainer: Explainer, case: Case) -> Any:
    if explainer.scope == "set":
        return explainer.survey(case).to_json()
    return [one.to_json() for one in explainer.explain(case.part(0, 4))]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_fits_is_explained_and_what_does_not_is_refused(make: Any) -> None:
    case = make()
    frame = case.frame
    case.training = lambda: iter([frame])
    weights = {name: value.clone() for name, value in case.predictor.model.state_dict().items()}
    for method in METHODS:
        explainer = lookup("explainers", method)()
        refusal = explainer.refusal(case)
        assert ((method, make.__name__) in REFUSED) == (refusal is not None), (method, refusal)
        if refusal is not None:
            assert refusal[0].islower(), refusal
            assert not refusal.endswith("."), refusal
            continue
        if method == "influence" and not case.classes:
            explainer = lookup("explainers", method)(of="truth")
        found = result_of(explainer, case)
        json.dumps(found, allow_nan=False)
        assert found == result_of(explainer, case), method
        for notes in [found["notes"]] if isinstance(found, dict) else [one["notes"] for one in found]:
            assert all("\n" not in note and not note.endswith(".") for note in notes), notes
    for name, value in case.predictor.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_each_names_its_paper_and_its_limits(method: str) -> None:
    cls = lookup("explainers", method)
    assert any(year in cls.paper for year in map(str, range(1901, 2027))), cls.paper
    assert cls.limits
    assert "\n" not in cls.limits
    overridden = cls.survey if cls.scope == "set" else cls.explain
    assert inspect.unwrap(overridden) is not getattr(Explainer, overridden.__name__)
    assert all(field.description for field in cls.model_fields.values()), method


KEYS: dict[str, dict[str, Any]] = {
    "counterfactual": {"keep": ["age"], "changes": ({"keep": ["age", "city"]}, 1), "values": 1, "words": 0},
    "embeddings": {"file": "FOLDER/e.parquet", "neighbours": 2, "map": "tsne", "perplexity": ({"map": "tsne"}, 3.0), "label": "city", "rows": 20},
    "influence": {"top": 3, "of": "truth", "cosine": False, "rows": 20, "checkpoints": "FOLDER"},
    "partial_dependence": {"columns": ["age"], "classes": ["no"], "grid": 5, "levels": 2, "rows": 10, "curves": 3},
    "permutation_importance": {"metric": "log_loss", "repeats": 2, "rows": 20, "resamples": 10},
    "probe": {"column": "city", "pool": "max", "strength": 100.0, "rows": 30, "held_out": 0.5},
    "shapley": {"background": 5, "exact": 2, "permutations": ({"exact": 2}, 10)},
    "surrogate": {
        "kind": "linear", "depth": 1, "leaf": 12, "strength": ({"kind": "linear"}, 50.0), "text": "char", "vocabulary": 3, "rows": 30, "held_out": 0.6,
    },
}  # fmt: skip
ON_TEXTS = {
    ("counterfactual", "words"),
    ("probe", "pool"),
    ("surrogate", "text"),
    ("surrogate", "vocabulary"),
}


@pytest.fixture(scope="module")
def table() -> Case:
    case = table_case(rows=60, steps=30)
    frame = case.frame
    case.training = lambda: iter([frame])
    return case


@pytest.fixture(scope="module")
def words() -> Case:
    return text_case(rows=40)


@pytest.mark.parametrize(
    ("method", "key"),
    [(method, key) for method in METHODS for key in lookup("explainers", method).model_fields],
)
def test_every_key_changes_what_is_found(
    method: str, key: str, table: Case, words: Case, tmp_path: Path
) -> None:
    case = words if (method, key) in ON_TEXTS else table
    base, value = KEYS[method][key] if isinstance(KEYS[method][key], tuple) else ({}, KEYS[method][key])
    if (method, key) == ("probe", "pool"):
        case = text_case(rows=40, model="transformer", size="tiny", steps=1)
        base = {"column": "number"}
    if isinstance(value, str) and value.startswith("FOLDER"):
        value = value.replace("FOLDER", str(tmp_path))
    if key == "checkpoints":
        state = case.predictor.model.state_dict()
        (tmp_path / "step-1").mkdir()
        weights = {f"/step/model/{name}": 2 * one for name, one in state.items()}
        safetensors.torch.save_file(weights, tmp_path / "step-1" / "tensors.safetensors")
        rate = split({"step": {"optimizer": {"param_groups": [{"lr": 0.1}]}}}, {})
        (tmp_path / "step-1" / "state.json").write_text(json.dumps(rate), encoding="utf-8")
    cls = lookup("explainers", method)
    assert result_of(cls(**base), case) != result_of(cls(**base, **{key: value}), case)
