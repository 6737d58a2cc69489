"""Explanations are measured: a right one is told from a wrong one, and one of the model from one of the row."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from explain_case import frame, image_case, predictor, table_case, text_case
from luban.explaining._base import Explainer, Explanation, plain
from luban.explaining._case import Case
from luban.explaining._quality import measure, rank_correlation, shuffled
from luban.explaining.integrated_gradients import IntegratedGradients
from luban.explaining.occlusion import Occlusion
from luban.registry import lookup
from luban.testing import check_explainer

OWN = (
    "activation_maps", "attention_rollout", "grad_cam", "grad_cam_pp", "gradient_x_input", "integrated_gradients", "kernel_shap",
    "lime", "occlusion",
)  # fmt: skip


class Upside(Explainer):
    """Occlusion, the wrong way round."""

    paper: ClassVar[str] = "nobody"
    limits: ClassVar[str] = "it is wrong"

    def refusal(self, case: Case) -> str | None:
        return None

    def explain(self, case: Case) -> list[Explanation]:
        found = Occlusion().explain(case)
        for one in found:
            for part in one.parts.values():
                part.values = -part.values
        return found


class Lengths(Upside):
    """Values of the row alone: the length of each word."""

    def explain(self, case: Case) -> list[Explanation]:
        found = Occlusion().explain(case)
        for one in found:
            for part in one.parts.values():
                part.values = np.asarray(
                    [float(len(piece.text)) + 0.01 * i for i, piece in enumerate(part.pieces)]
                )
        return found


def measured(case: Case, explainer: Explainer) -> dict[str, float]:
    found = explainer.explain(case)
    measure(case, explainer, found)
    keys = found[0].quality
    return {key: float(np.mean([one.quality[key] for one in found if key in one.quality])) for key in keys}


def test_right_values_delete_sooner_than_chance_and_wrong_ones_later() -> None:
    own = predictor(["age", "income", "city", "member"], "label", {"type": "mlp", "hidden": []})
    with torch.no_grad():
        own.model.heads["@label"].weight.mul_(3)
    case = Case.of(own, frame())
    right, wrong = measured(case, Occlusion()), measured(case, Upside.model_construct())
    assert right["deletion"] < right["deletion_random"] < wrong["deletion"]
    assert right["insertion"] > wrong["insertion"]
    assert right["comprehensiveness"] > wrong["comprehensiveness"]
    assert right["sufficiency"] < wrong["sufficiency"]


def test_what_explains_the_row_alone_does_not_change_with_the_weights() -> None:
    case = text_case("transformer", 6)
    assert measured(case, Lengths.model_construct())["randomised"] == pytest.approx(1)
    assert measured(case, IntegratedGradients())["randomised"] < 0.8


def test_shuffled_weights_are_as_large_and_no_longer_the_same() -> None:
    case = text_case("rnn", 2)
    other = shuffled(case.predictor, 0)
    changed = 0
    for (name, a), (_, b) in zip(
        case.predictor.model.named_parameters(), other.model.named_parameters(), strict=True
    ):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        changed += not torch.equal(a, b)
    assert changed > 3


def test_rank_correlation_is_spearmans() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        a, b = draw.integers(0, 6, 20).astype(float), draw.normal(size=20)
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(rank_correlation(np.zeros(3), np.arange(3.0)))


def test_images_and_tables_are_measured_and_maps_are_not() -> None:
    assert {"deletion", "insertion", "randomised"} <= set(measured(image_case("cnn", 2), Occlusion()))
    case = image_case("cnn", 2)
    explainer = lookup("explainers", "activation_maps")()
    found = explainer.explain(case)
    measure(case, explainer, found)
    assert all(not one.quality for one in found)


@pytest.mark.parametrize("method", ["influence", "counterfactual"])
def test_what_has_no_values_is_not_measured(method: str) -> None:
    """Training rows have no place in the row, and a change that was not found has none either."""
    case = table_case(3)
    found = Occlusion().explain(case)
    for one in found[1 if method == "counterfactual" else 0 :]:
        one.parts = {}

    class Found(Occlusion):
        def explain(self, case: Case) -> list[Explanation]:
            return found

    for one in found:
        one.quality = {}
    measure(case, Found(), found)
    assert [bool(one.quality) for one in found] == [method == "counterfactual", False, False]


def test_json_has_no_number_that_is_none() -> None:
    assert plain({"a": np.float32(0.1), "b": [float("nan"), 2]}) == {"a": 0.1, "b": [None, 2]}


@pytest.mark.parametrize("name", OWN)
def test_the_contract(name: str) -> None:
    pytest.importorskip("captum")
    reasons: list[Any] = [
        check_explainer(lookup("explainers", name)(), case)
        for case in (text_case("bert", 3), table_case(3), image_case("cnn", 2))
    ]
    assert None in reasons, f"'{name}' fits none of three models: {reasons}"
