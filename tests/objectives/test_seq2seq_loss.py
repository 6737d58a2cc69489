"""Teacher forcing: what is summed, what is counted, weights, smoothing, and how a batch is cut."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models import _core
from luban.models._core import Projection
from luban.models._decoding import shifted
from luban.objectives._base import TargetFacts
from luban.objectives.seq2seq import Seq2Seq
from luban.recipe import Section

SIZE, WIDTH = 20, 6
TEXT = TargetFacts("zh.ids", Field("zh", "text", "target", "int64", None, size=SIZE))
OTHER = TargetFacts("fr.ids", Field("fr", "text", "target", "int64", None, size=SIZE))
LABEL = TargetFacts(
    "label.index", Field("label", "category", "target", "int64", size=3, output="logits", width=3)
)


def objective(**options: Any) -> Seq2Seq:
    made = Section("objectives").parse({"type": "seq2seq", **options})
    assert isinstance(made, Seq2Seq)
    made.setup({"zh": TEXT, "label": LABEL})
    return made


def case() -> tuple[Batch, dict[str, Projection]]:
    torch.manual_seed(0)
    labels = Ragged.from_rows([torch.randint(SIZE, (n,)) for n in (3, 0, 5, 1)])
    states = torch.randn(9, WIDTH, requires_grad=True)
    return {"zh.ids": labels}, {"zh.tokens": Projection(states, torch.randn(SIZE, WIDTH), torch.randn(SIZE))}


def values(batch: Batch) -> torch.Tensor:
    labels = batch["zh.ids"]
    assert isinstance(labels, Ragged)
    return labels.values


def test_the_sum_over_the_tokens_of_the_target_and_their_number() -> None:
    batch, outputs = case()
    loss = objective(weight=2.0).losses(outputs, batch)["zh"]
    expected = F.cross_entropy(outputs["zh.tokens"].logits(), values(batch), reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    assert (float(loss.count), loss.weight) == (9.0, 2.0)
    assert float(objective().count(batch)["zh"]) == 9.0


def test_a_token_weighs_what_its_row_weighs() -> None:
    batch, outputs = case()
    batch["row.weight"] = torch.tensor([2.0, 7.0, 0.0, 0.5])
    loss = objective(label_smoothing=0.1).losses(outputs, batch)["zh"]
    each = F.cross_entropy(
        outputs["zh.tokens"].logits(), values(batch), reduction="none", label_smoothing=0.1
    )
    torch.testing.assert_close(loss.total, 2 * each[:3].sum() + 0.5 * each[8])
    assert float(loss.count) == float(objective().count(batch)["zh"]) == 6.5


def test_smoothing_is_for_training_only() -> None:
    batch, outputs = case()
    smoothed = objective(label_smoothing=0.1)
    logits = outputs["zh.tokens"].logits()
    expected = F.cross_entropy(logits, values(batch), reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(smoothed.losses(outputs, batch)["zh"].total, expected)
    with torch.no_grad():
        plain = F.cross_entropy(logits, values(batch), reduction="sum")
        torch.testing.assert_close(smoothed.losses(outputs, batch)["zh"].total, plain)


@pytest.mark.parametrize("weighted", [False, True])
def test_logits_in_chunks_change_neither_loss_nor_gradient(
    weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for limit in (2**24, 3 * SIZE):  # of all logits at once, or of three rows at a time
        monkeypatch.setattr(_core, "LOGITS", limit)
        batch, outputs = case()
        if weighted:
            batch["row.weight"] = torch.tensor([2.0, 7.0, 0.0, 0.5])
        total = objective(label_smoothing=0.1).losses(outputs, batch)["zh"].total
        torch.autograd.backward(total)
        found.append((total.detach(), outputs["zh.tokens"].states.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_parts_of_a_batch_add_up() -> None:
    batch, outputs = case()
    whole, projection = objective().losses(outputs, batch)["zh"], outputs["zh.tokens"]
    labels = batch["zh.ids"]
    assert isinstance(labels, Ragged)
    total, count = 0.0, 0.0
    for i in range(4):
        part = slice(int(labels.offsets[i]), int(labels.offsets[i + 1]))
        one = {"zh.tokens": Projection(projection.states[part], projection.weight, projection.bias)}
        loss = objective().losses(one, {"zh.ids": Ragged.from_rows([labels[i]])})["zh"]
        total, count = total + float(loss.total.detach()), count + float(loss.count)
    assert total == pytest.approx(float(whole.total.detach()), rel=1e-6)
    assert count == float(whole.count)


def test_a_row_reads_its_start_and_all_its_labels_but_the_last() -> None:
    labels = Ragged.from_rows([torch.tensor(row) for row in ([5, 6, 2], [], [7], [8, 2])])
    read = shifted(labels.like(labels.values.long()), 9)
    assert [row.tolist() for row in read.unbind()] == [[9, 5, 6], [], [9], [9, 8]]
    empty = Ragged.from_rows([torch.empty(0, dtype=torch.int64)])
    assert len(shifted(empty, 9).values) == 0


def test_the_perplexity_is_e_to_the_loss() -> None:
    assert objective().describe({"zh.loss": 2.0}) == {"zh.perplexity": pytest.approx(math.exp(2))}
    assert math.isnan(objective().describe({})["zh.perplexity"])


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        ({}, {"label": LABEL}, r"fits one text target, and the targets are label \(category\); write data.targets"),
        ({}, {}, "the targets are none"),
        ({}, {"zh": TEXT, "fr": OTHER}, "say which by `target`"),
        ({"target": "label"}, {"zh": TEXT, "label": LABEL}, "'label' is no text target"),
        ({"target": "en"}, {"zh": TEXT}, "'en' is no text target"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit(
    options: dict[str, Any], targets: dict[str, TargetFacts], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Seq2Seq(**options).setup(targets)


def test_the_target_that_is_named() -> None:
    made = Seq2Seq(target="fr")
    made.setup({"zh": TEXT, "fr": OTHER})
    assert made.column == "fr"
