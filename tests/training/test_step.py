"""An update equals what torch does by hand, however its rows are batched."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

import language_case
from luban import registry
from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Objective, TargetFacts
from luban.recipe import Section
from luban.testing import check_language_objective, check_objective
from luban.training.step import GradientStep, compute_losses, count_losses

CLASSES = ["a", "b", "c"]
FACTS = {
    "label": TargetFacts(
        "label.index",
        Field("label", "category", "target", "int64", size=3, output="logits", width=3),
        CLASSES,
        [5, 3, 2],
        10,
    ),
    "yes": TargetFacts(
        "yes.value",
        Field("yes", "binary", "target", "float32", output="logits", width=1),
        ["no", "yes"],
        [6, 4],
        10,
    ),
    "tags": TargetFacts(
        "tags.ids",
        Field("tags", "set", "target", "int64", None, size=4, output="logits", width=4),
        list("wxyz"),
        [1, 2, 3, 4],
        10,
    ),
    "price": TargetFacts(
        "price.value", Field("price", "number", "target", "float32", output="value", width=1), None, None, 10
    ),
}


class Heads(nn.Module):
    """One linear layer a target."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(5, facts.field.width) for name, facts in FACTS.items()})

    def forward(self, batch: Batch) -> dict[str, Any]:
        return {
            f"{name}.{FACTS[name].field.output}": layer(batch["x.value"])
            for name, layer in self.layers.items()
        }


def make_batch(rows: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tags = [
        torch.randperm(4, generator=generator)[: int(n)]
        for n in torch.randint(5, (rows,), generator=generator)
    ]
    return {
        "x.value": torch.randn(rows, 5, generator=generator),
        "label.index": torch.randint(3, (rows,), generator=generator),
        "yes.value": torch.randint(2, (rows,), generator=generator).float(),
        "tags.ids": Ragged.from_rows(tags),
        "price.value": torch.randn(rows, generator=generator),
        "row.weight": torch.rand(rows, generator=generator) + 0.1,
    }


def part(batch: Batch, start: int, stop: int) -> Batch:
    return {
        name: Ragged.from_rows(value.unbind()[start:stop]) if isinstance(value, Ragged) else value[start:stop]
        for name, value in batch.items()
    }


def objective(**options: Any) -> Objective:
    made = Section("objectives").parse(options)
    assert isinstance(made, Objective)
    made.setup(FACTS)
    return made


def gradients(objectives: list[Objective], batches: list[Batch]) -> tuple[list[torch.Tensor], float]:
    torch.manual_seed(1)
    model = Heads()
    before = [p.detach().clone() for p in model.parameters()]
    step = GradientStep(model, objectives, torch.optim.SGD(model.parameters(), lr=1.0))
    loss = float(step(batches)["loss"])
    return [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)], loss


ALL = [
    {"type": "cross_entropy", "class_weights": "balanced", "label_smoothing": 0.1},
    {"type": "binary_cross_entropy", "target": "yes", "weight": 0.5, "positive_weight": 3.0},
    {"type": "focal", "target": "tags", "gamma": 1.5},
    {"type": "huber", "delta": 0.3, "weight": 2.0},
]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=5), st.integers(0, 1000))
def test_accumulation_is_exact(sizes: list[int], seed: int) -> None:
    whole = make_batch(sum(sizes), seed)
    ends = np.cumsum([0, *sizes]).tolist()
    pieces = [part(whole, a, b) for a, b in pairwise(ends)]
    objectives = [objective(**options) for options in ALL]
    one, loss_one = gradients(objectives, [whole])
    many, loss_many = gradients(objectives, pieces)
    assert loss_one == pytest.approx(loss_many, rel=1e-5)
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


FITTING = {
    "cross_entropy": ["label"],
    "binary_cross_entropy": ["yes", "tags"],
    "focal": ["label", "yes", "tags"],
    "mean_squared": ["price"],
    "mean_absolute": ["price"],
    "huber": ["price"],
}
WRAPPING = ("adversarial", "r_drop")
LANGUAGE = {
    "causal_lm": [("gpt2", {}), ("llama", {})],
    "masked_lm": [
        ("bert", {}),
        ("bert", {"whole_word": True}),
        ("bert", {"share": 0.5, "masked": 0.3, "random": 0.7}),
    ],
    "next_sentence": [("bert", {}), ("bert", {"pairs": "order"})],
}
"""Objectives over a text's own tokens, each with families that can learn from it."""


OWN = {
    "dpo": "test_dpo.py::test_accumulation_is_exact",
    "fair": "test_fair.py::test_the_penalty_is_the_squared_distance_of_group_means",
    "fair_adversary": "test_fair_adversary.py::test_parts_of_a_batch_add_up",
    "reweigh": "test_fair.py::test_reweighed_parts_of_a_batch_add_up",
    "seq2seq": "test_seq2seq_loss.py::test_parts_of_a_batch_add_up",
}
"""Objectives over more than a linear layer and a target: the test in tests/objectives that their parts add up, or, where they
refuse to be taken apart, what they come to."""


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", registry.names("objectives"))
def test_every_objective_keeps_its_contract(name: str, weighted: bool) -> None:
    batch = make_batch(9)
    if not weighted:
        del batch["row.weight"]
    outputs = {key: value.detach() for key, value in Heads()(batch).items()}
    if name in OWN:
        file, _, test = OWN[name].partition("::")
        folder = Path(__file__).parent.parent / "objectives"
        assert f"def {test}(" in (folder / file).read_text(encoding="utf-8")
        return
    if name in LANGUAGE:
        for family, options in LANGUAGE[name]:
            made = Section("objectives").parse({"type": name, "column": "text", **options})
            assert isinstance(made, Objective)
            whole = language_case.pipeline(causal=family != "bert")
            rows = pl.DataFrame({"text": language_case.SENTENCES})
            check_language_objective(made, language_case.family(family), whole, rows, weighted=weighted)
        return
    for target in ["label"] if name in WRAPPING else FITTING[name]:
        options = {"type": name, "target": target}
        if name in WRAPPING:
            options = {"type": name, "objective": {"type": "cross_entropy", "target": target}}
        check_objective(Section("objectives").parse(options), FACTS, outputs, batch)  # type: ignore[arg-type]


def test_check_objective_catches_a_mean() -> None:
    """The check can fail: an objective that returns a mean in place of a sum."""

    class Mean(registry.lookup("objectives", "mean_squared")):  # type: ignore[misc]
        def losses(self, outputs: Any, batch: Batch) -> Any:
            return {
                name: replace(part, total=part.total / part.count)
                for name, part in super().losses(outputs, batch).items()
            }

    batch = make_batch(9)
    outputs = {key: value.detach() for key, value in Heads()(batch).items()}
    mean = Mean()
    with pytest.raises(AssertionError, match=r"no sum over rows|options change"):
        check_objective(mean, FACTS, outputs, batch)


class _Shift(nn.Module):
    """What a learner adds to the outputs: one number, and how often it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros(()))


class _Learner(registry.lookup("objectives", "mean_squared")):  # type: ignore[misc]
    """An objective that learns a shift of the outputs, ever more slowly."""

    _shift: Any = PrivateAttr(default=None)
    _updates: int = PrivateAttr(default=0)

    def begin(self, model: nn.Module) -> None:
        self._shift, self._updates = _Shift(), 0

    def rowwise(self, output: Tensor, target: Tensor) -> Tensor:
        return super().rowwise(output + self._shift.by, target)  # type: ignore[no-any-return]

    def after_update(self) -> None:
        self._updates += 1
        with torch.no_grad():
            self._shift.by -= 0.1 * self._shift.by.grad / self._updates
        self._shift.by.grad = None

    def state(self) -> dict[str, Any]:
        return {"shift": self._shift.state_dict(), "updates": self._updates}

    def restore(self, state: Any) -> None:
        self._shift.load_state_dict(state["shift"])
        self._updates = state["updates"]


def _check(cls: type[Objective], model: nn.Module | None = None) -> None:
    """Check a class of objectives as if a recipe could name it."""
    batch = make_batch(9)
    outputs = {key: value.detach() for key, value in Heads()(batch).items()}
    one = cls.model_validate({"target": "price"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "parse", lambda self, data: one)  # a local class stands in no registry
        check_objective(one, FACTS, outputs, batch, model=model)


@pytest.mark.parametrize("of_its_own", [False, True])
def test_check_objective_lets_a_learner_go_on_after_a_checkpoint(of_its_own: bool) -> None:
    model = Heads() if of_its_own else None
    _check(_Learner, model)
    assert model is None or all(parameter.grad is None for parameter in model.parameters())


def test_check_objective_runs_the_model_that_it_is_handed() -> None:
    """What an objective makes of the model by itself is checked, too: a pass that differs each time is no loss to go on with."""

    class Restless(_Learner):
        _passes: int = PrivateAttr(default=0)

        def forward(self, model: nn.Module, batch: Batch) -> Any:
            self._passes += 1
            return {
                name: replace(part, total=part.total * self._passes)
                for name, part in super().forward(model, batch).items()
            }

    _check(Restless)
    with pytest.raises(AssertionError, match="the loss is another"):
        _check(Restless, Heads())


@pytest.mark.parametrize(
    ("method", "broken", "words"),
    [
        ("restore", lambda self, state: None, r"after restore\(\) the loss is another"),
        ("restore", lambda self, state: self._shift.load_state_dict(state["shift"]), "one update after restore"),
        ("state", lambda self: {"shift": self._shift, "updates": 1}, "no checkpoint holds: .*_Shift"),
        ("describe", lambda self, figures: {"price.half": 0.5} if figures else {}, "train.metric may name"),
    ],
)  # fmt: skip
def test_check_objective_catches_what_a_learner_forgets(
    method: str, broken: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Learner, method, broken)
    with pytest.raises(AssertionError, match=words):
        _check(_Learner)


def test_check_objective_catches_one_that_moves_the_model() -> None:
    class Meddler(_Learner):
        def begin(self, model: nn.Module) -> None:
            super().begin(model)
            self._model = model

        _model: Any = PrivateAttr(default=None)

        def after_update(self) -> None:
            super().after_update()
            with torch.no_grad():
                next(self._model.parameters()).add_(1.0)

    with pytest.raises(AssertionError, match="changes the weights of the model"):
        _check(Meddler)


def test_parts_of_the_same_target_and_type_keep_apart() -> None:
    """Three of a kind: none is lost in the sum, in the figures or in the counts that accumulation divides by."""
    same = [
        objective(type="huber", delta=delta, weight=weight)
        for delta, weight in ((0.1, 1.0), (0.5, 2.0), (2.0, 3.0))
    ]
    objectives = [*same, objective(type="mean_squared")]
    batch = make_batch(8)
    names = ["price", "price.huber", "price.huber.2", "price.mean_squared"]
    parts = compute_losses(objectives, Heads(), batch)
    assert list(parts) == list(count_losses(objectives, batch)) == names
    whole, loss = gradients(objectives, [batch])
    pieces, loss_of_pieces = gradients(objectives, [part(batch, 0, 3), part(batch, 3, 8)])
    alone = [gradients([one], [batch]) for one in objectives]
    assert loss == pytest.approx(sum(one for _, one in alone))
    assert loss_of_pieces == pytest.approx(loss)
    for a, b, *each in zip(whole, pieces, *(g for g, _ in alone), strict=True):
        torch.testing.assert_close(a, torch.stack(each).sum(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_class_weighted_cross_entropy_is_torchs() -> None:
    batch = make_batch(12)
    del batch["row.weight"]
    made = objective(type="cross_entropy", class_weights={"a": 2.0, "c": 0.5})
    model = Heads()
    loss = made.forward(model, batch)["label"]
    expected = F.cross_entropy(
        model(batch)["label.logits"], batch["label.index"], weight=torch.tensor([2.0, 1.0, 0.5])
    )
    torch.testing.assert_close(loss.total / loss.count, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"type": "cross_entropy"}, lambda o, b: F.cross_entropy(o["label.logits"], b["label.index"])),
        (
            {"type": "cross_entropy", "label_smoothing": 0.2},
            lambda o, b: F.cross_entropy(o["label.logits"], b["label.index"], label_smoothing=0.2),
        ),
        (
            {"type": "binary_cross_entropy", "target": "yes"},
            lambda o, b: F.binary_cross_entropy_with_logits(o["yes.logits"][:, 0], b["yes.value"]),
        ),
        ({"type": "focal", "target": "label", "gamma": 0.0}, lambda o, b: F.cross_entropy(o["label.logits"], b["label.index"])),
        ({"type": "mean_squared"}, lambda o, b: F.mse_loss(o["price.value"][:, 0], b["price.value"])),
        ({"type": "mean_absolute"}, lambda o, b: F.l1_loss(o["price.value"][:, 0], b["price.value"])),
        ({"type": "huber", "delta": 0.7}, lambda o, b: F.huber_loss(o["price.value"][:, 0], b["price.value"], delta=0.7)),
    ],
)  # fmt: skip
def test_objectives_equal_torch(options: dict[str, Any], expected: Any) -> None:
    batch = make_batch(9)
    del batch["row.weight"]
    made = objective(**options)
    model = Heads()
    (loss,) = made.forward(model, batch).values()
    torch.testing.assert_close(loss.total / loss.count, expected(model(batch), batch))


def test_multilabel_equals_torch() -> None:
    batch = make_batch(9)
    del batch["row.weight"]
    tags = batch["tags.ids"]
    assert isinstance(tags, Ragged)
    hot = torch.zeros(9, 4)
    for row, ids in enumerate(tags.unbind()):
        hot[row, ids] = 1.0
    made = objective(type="binary_cross_entropy", target="tags")
    model = Heads()
    loss = made.forward(model, batch)["tags"]
    expected = F.binary_cross_entropy_with_logits(model(batch)["tags.logits"], hot)
    torch.testing.assert_close(loss.total / loss.count, expected)


def test_focal_by_hand() -> None:
    batch = make_batch(6)
    del batch["row.weight"]
    model = Heads()
    loss = objective(type="focal", target="label", gamma=2.0).forward(model, batch)["label"]
    p = model(batch)["label.logits"].softmax(1)[torch.arange(6), batch["label.index"]]
    torch.testing.assert_close(loss.total / loss.count, (-((1 - p) ** 2) * p.log()).mean())


def test_row_weights_count_rows_twice() -> None:
    batch = part(make_batch(6), 0, 6)
    doubled = {
        name: Ragged.from_rows([*value.unbind(), value.unbind()[0]])
        if isinstance(value, Ragged)
        else torch.cat([value, value[:1]])
        for name, value in batch.items()
    }
    batch["row.weight"] = torch.tensor([2.0, 1, 1, 1, 1, 1])
    doubled["row.weight"] = torch.ones(7)
    objectives = [objective(type="cross_entropy"), objective(type="mean_absolute")]
    one, _ = gradients(objectives, [batch])
    other, _ = gradients(objectives, [doubled])
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_mixed_rows_take_both_targets() -> None:
    batch = make_batch(4)
    del batch["row.weight"]
    share, partner = torch.tensor([0.9, 0.6, 1.0, 0.25]), torch.tensor([1, 2, 3, 0])
    mixed = {**batch, "mix.share": share, "mix.partner": partner}
    model = Heads()
    loss = objective(type="cross_entropy").forward(model, mixed)["label"]
    logits, target = model(batch)["label.logits"], batch["label.index"]
    own = F.cross_entropy(logits, target, reduction="none")
    other = F.cross_entropy(logits, target[partner], reduction="none")
    torch.testing.assert_close(loss.total / loss.count, (share * own + (1 - share) * other).mean())


def test_clip_and_ema() -> None:
    batch = make_batch(8)
    model = Heads()
    step = GradientStep(
        model,
        [objective(type="mean_squared")],
        torch.optim.SGD(model.parameters(), lr=1.0),
        clip=0.01,
        ema=0.5,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    figures = step([batch])
    moved = torch.cat([(value - before[name]).flatten() for name, value in model.state_dict().items()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(figures["gradient_norm"]) > 0.01
    keep = min(0.5, 2 / 11)  # early on the average follows more closely
    for name, value in step.weights().items():
        torch.testing.assert_close(value, keep * before[name] + (1 - keep) * model.state_dict()[name])


def test_objective_that_does_not_fit_refuses() -> None:
    with pytest.raises(RecipeError, match=r"'price' is a number, but this objective fits category"):
        objective(type="cross_entropy", target="price")
    with pytest.raises(RecipeError, match="'prise' is no target; targets are label, yes, tags, price"):
        objective(type="huber", target="prise")
    with pytest.raises(RecipeError, match="fits several targets"):
        objective(type="binary_cross_entropy")
    with pytest.raises(RecipeError, match=r"'d' is no class of 'label'; classes are a, b, c"):
        objective(type="cross_entropy", class_weights={"d": 1.0})
