"""Every key of the explainers by gradients, by switches and by maps changes what is explained."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from explain_case import FAMILIES, WORDPIECE, frame, predictor
from luban.explaining._case import Case
from luban.recipe import Section
from luban.registry import lookup

pytest.importorskip("captum")

WORDS: dict[str, Any] = {"unit": "token", "replace": "mask"}
SAMPLED: dict[str, Any] = {**WORDS, "samples": 40, "segments": "grid", "segment_count": 9}
CAM: dict[str, Any] = {"layer": "layers.0.0", "positive": ({"layer": "layers.0.0"}, False)}
KEYS: dict[str, dict[str, Any]] = {
    "activation_maps": {"layer": "layers.1.0", "show": "filters", "count": 3},
    "attention_rollout": {"heads": "max", "residual": 0.2},
    "grad_cam": CAM,
    "grad_cam_pp": CAM,
    "gradient_x_input": {},
    "integrated_gradients": {
        "steps": 3, "rule": "right", "baseline": "zero", "keep_special": False, "image_baseline": "blur",
    },
    "kernel_shap": SAMPLED,
    "lime": {**SAMPLED, "penalty": 0.3, "kernel_width": 0.1},
    "occlusion": {
        **WORDS, "window": 2, "stride": ({"window": 3}, 2), "patch": 5, "patch_stride": ({"patch": 4}, 3), "image_baseline": "mean",
    },
}  # fmt: skip
"""Type → key → another value; or a pair: what else must be set for the key to act, and the value."""


@cache
def case() -> Case:
    """A text that a BERT reads and a picture that a small convolutional network reads."""
    model = {
        "type": "bert",
        "size": "tiny",
        **FAMILIES["bert"],
        "encoders": {"photo": {"type": "cnn", "size": "tiny", "padding": "same"}},
    }
    own = predictor(["review", "photo"], "price", model, kinds={"review": {**WORDPIECE, "vocabulary": 60}})
    return Case.of(own, frame().head(1))


def seen(name: str, options: dict[str, Any]) -> Any:
    explainer: Any = Section("explainers").parse({"type": name, **options})
    found = explainer.explain(case())
    return [{column: part.to_json() for column, part in one.parts.items()} for one in found]


def test_every_key_is_tried() -> None:
    for name, keys in KEYS.items():
        assert set(keys) == set(lookup("explainers", name).model_fields), name


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in KEYS.items() for key in keys])
def test_a_key_does_something(name: str, key: str) -> None:
    value, base = KEYS[name][key], {}
    if isinstance(value, tuple):
        base, value = value
    small = {"samples": 30} if "samples" in KEYS[name] and key != "samples" else {}
    before = seen(name, small | base)
    assert seen(name, small | base) == before, "what is seen depends on the options alone"
    assert seen(name, small | base | {key: value}) != before, (
        f"key '{key}' of explainer '{name}' does nothing"
    )
