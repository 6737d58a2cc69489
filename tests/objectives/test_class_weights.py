"""Weights of classes act on every kind of target that an objective fits, and parts of the loss keep apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Objective, TargetFacts
from luban.recipe import Section

WORDS = ["w", "x", "y", "z"]
FACTS = {
    "tags": TargetFacts("tags.ids", Field("tags", "set", "target", "int64", None, size=4, output="logits", width=4), WORDS, [1, 2, 4, 8], 10),
    "yes": TargetFacts("yes.value", Field("yes", "binary", "target", "float32", output="logits", width=1), ["no", "yes"], [6, 4], 10),
}  # fmt: skip
TAGS = [torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([3])]
BATCH = {"tags.ids": Ragged.from_rows(TAGS), "yes.value": torch.tensor([1.0, 0.0, 1.0])}
OUTPUTS = {
    "tags.logits": torch.linspace(-2, 2, 12).reshape(3, 4),
    "yes.logits": torch.tensor([[0.3], [-1.0], [2.0]]),
}
HOT = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def loss(**options: Any) -> float:
    made = Section("objectives").parse(options)
    assert isinstance(made, Objective)
    made.setup(FACTS)
    (part,) = made.losses(OUTPUTS, BATCH).values()
    return float(part.total / part.count)


def by_hand(weights: Tensor, gamma: float) -> float:
    """Focal loss (Lin et al., 2017) of each word, and the weighted mean over the words of a row."""
    entropy = F.binary_cross_entropy_with_logits(OUTPUTS["tags.logits"], HOT, reduction="none")
    focal = (1 - (-entropy).exp()) ** gamma * entropy
    return float(((focal * weights).sum(1) / weights.sum()).mean())


def test_focal_weighs_the_words_of_a_set() -> None:
    given = {"w": 3.0, "z": 0.5}
    weights = torch.tensor([3.0, 1.0, 1.0, 0.5])
    assert loss(type="focal", target="tags", class_weights=given) == pytest.approx(by_hand(weights, 2.0))
    assert loss(type="focal", target="tags", class_weights=given, gamma=0.0) == pytest.approx(
        by_hand(weights, 0.0)
    )


def test_balanced_words_weigh_by_their_rows() -> None:
    weights = 15 / (4 * torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert loss(type="focal", target="tags", class_weights="balanced") == pytest.approx(by_hand(weights, 2.0))


def test_equal_weights_change_nothing() -> None:
    plain = loss(type="focal", target="tags")
    assert plain == pytest.approx(by_hand(torch.ones(4), 2.0))
    assert loss(type="focal", target="tags", class_weights=dict.fromkeys(WORDS, 7.0)) == pytest.approx(plain)


def test_focal_weighs_the_sides_of_a_binary_target() -> None:
    entropy = F.binary_cross_entropy_with_logits(
        OUTPUTS["yes.logits"][:, 0], BATCH["yes.value"], reduction="none"
    )  # type: ignore[arg-type]
    weights = torch.tensor([5.0, 1.0, 5.0])
    wanted = float((entropy * weights).sum() / weights.sum())
    assert loss(type="focal", target="yes", gamma=0.0, class_weights={"yes": 5.0}) == pytest.approx(wanted)


@pytest.mark.parametrize("target", ["tags", "yes"])
def test_classes_that_all_weigh_nothing_refuse(target: str) -> None:
    weights = dict.fromkeys(FACTS[target].classes or [], 0.0)
    with pytest.raises(RecipeError, match=f"class_weights: every class of '{target}' weighs 0"):
        loss(type="focal", target=target, class_weights=weights)
