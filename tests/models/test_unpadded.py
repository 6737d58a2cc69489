"""Texts in a flat batch: as each by itself, seen by nobody else, and computed only where somebody reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from language_case import CAUSAL, FAMILIES, POOLS, STILL, batch_of, family, gradients, objectives, relative
from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.models import _core
from luban.models._attention import plan
from luban.models._language import LanguageEncoder, encoder_of
from luban.testing import _rows_of
from luban.training.step import GradientStep, compute_losses

CROSS: dict[str, Any] = {"type": "cross_entropy"}
LEARNT: dict[str, list[list[dict[str, Any]]]] = {
    "bert": [
        [CROSS],
        [{"type": "masked_lm"}],
        [{"type": "masked_lm", "whole_word": True}, {"type": "next_sentence"}],
        [CROSS, {"type": "masked_lm", "weight": 0.5}],
    ],
    **{
        name: [[CROSS], [{"type": "causal_lm"}], [CROSS, {"type": "causal_lm", "weight": 0.5}]]
        for name in CAUSAL
    },
}
RUNS = [(name, pool, chosen) for name in FAMILIES for pool in POOLS[name] for chosen in LEARNT[name]]


def name_of(value: Any) -> str:
    return "+".join(one["type"] for one in value) if isinstance(value, list) else str(value)


def made(
    name: str, pool: str, chosen: list[dict[str, Any]], **options: Any
) -> tuple[nn.Module, list[Any], Batch]:
    """A module without dropout, its objectives and a batch of eight texts in no order of length."""
    causal = name in CAUSAL
    model = family(name, pool=pool, **STILL, **options)
    learnt, spec = objectives(model.max_positions, *chosen, causal=causal)
    torch.manual_seed(0)
    module = model.build(spec)
    with torch.no_grad():  # initial weights are so small that attention is even, which would hide much
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module, learnt, batch_of(spec, learnt, causal=causal)


def learn(module: nn.Module, learnt: list[Any], batch: Batch) -> dict[str, Tensor]:
    """The gradients of the summed losses."""
    parts = compute_losses(learnt, module, batch)
    torch.stack([part.weight * part.total for part in parts.values()]).sum().backward()
    return gradients(module)


@pytest.mark.parametrize(("name", "pool", "chosen"), RUNS, ids=name_of)
def test_gradients_are_those_of_the_rows_one_by_one(
    name: str, pool: str, chosen: list[dict[str, Any]]
) -> None:
    module, learnt, batch = made(name, pool, chosen)
    together = learn(module, learnt, batch)
    for row in range(8):
        own = _rows_of(batch, torch.tensor([row]))
        parts = compute_losses(learnt, module, own)
        torch.stack([part.weight * part.total for part in parts.values()]).sum().backward()
    alone = gradients(module)
    assert relative(together, alone) < 1e-5


@pytest.mark.parametrize(
    "chosen", [run for runs in (LEARNT["bert"], LEARNT["gpt2"]) for run in runs], ids=name_of
)
def test_accumulation_is_exact(chosen: list[dict[str, Any]]) -> None:
    name = "gpt2" if any(one["type"] == "causal_lm" for one in chosen) else "bert"
    found = []
    for sizes in ([8], [2, 2, 2, 2], [1, 7]):
        module, learnt, batch = made(name, POOLS[name][0], chosen)
        rows = torch.arange(8).split(sizes)
        before = {key: value.detach().clone() for key, value in module.named_parameters()}
        step = GradientStep(module, learnt, torch.optim.SGD(module.parameters(), lr=1.0))
        figures = step([_rows_of(batch, own) for own in rows])
        moved = {key: before[key] - value.detach() for key, value in module.named_parameters()}
        found.append((moved, float(figures["loss"])))
    for moved, loss in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-6)
        assert relative(moved, found[0][0]) < 1e-5


def states_of(module: nn.Module, batch: Batch) -> list[Tensor]:
    encoder = encoder_of(module)
    encoder.keep_states = True
    with torch.no_grad():
        states = module(batch)["text.states"]
    return list(states.unbind())


def changed(batch: Batch, row: int) -> Batch:
    """The batch with other tokens in one row."""
    ids = batch["text.ids"]
    assert isinstance(ids, Ragged)
    values = ids.values.clone()
    part = slice(int(ids.offsets[row]), int(ids.offsets[row + 1]))
    values[part] = (values[part].roll(1) + 7) % 100
    return {**batch, "text.ids": ids.like(values)}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_document_sees_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, batch = made(name, POOLS[name][0], [CROSS])
    module.eval()
    before = states_of(module, batch)
    for row in (0, 3):
        after = states_of(module, changed(batch, row))
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(one, other) == (i != row), f"row {i} after row {row} was changed"

    # The test can fail: attention over the flat sequence as one text lets the later rows see the earlier ones.
    def flat(rows: Ragged, **options: Any) -> Any:
        return plan(Ragged(rows.values, torch.tensor([0, len(rows.values)])), **options)

    monkeypatch.setattr(_core, "plan", flat)
    before, after = states_of(module, batch), states_of(module, changed(batch, 0))
    assert not torch.equal(before[3], after[3])


@pytest.mark.parametrize("name", CAUSAL)
def test_no_token_of_a_causal_model_sees_a_later_one(name: str) -> None:
    module, _, batch = made(name, "last", [CROSS])
    module.eval()
    ids = batch["text.ids"]
    assert isinstance(ids, Ragged)
    values = ids.values.clone()
    middle = int(ids.offsets[3] + ids.lengths[3] // 2)
    values[middle] = (values[middle] + 7) % 100
    before, after = states_of(module, batch), states_of(module, {**batch, "text.ids": ids.like(values)})
    cut = middle - int(ids.offsets[3])
    assert torch.equal(before[3][:cut], after[3][:cut])
    assert not torch.equal(before[3][cut], after[3][cut])


# --- computed only where somebody reads ---------------------------------------------------------------------


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each look at the places that are read let the last block be shortened."""
    found: list[bool] = []
    short = _core.Core._short

    def spy(self: _core.Core, *arguments: Any) -> Any:
        result = short(self, *arguments)
        found.append(result is not None)
        return result

    monkeypatch.setattr(_core.Core, "_short", spy)
    return found


READ = [
    (name, pool, reads)
    for name in FAMILIES
    for pool in POOLS[name]
    for reads in (False, True)
    if pool in ("first", "last", "pooler")
]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("name", "pool", "reads"), READ)
def test_the_last_layer_where_it_is_read_is_the_whole_one(
    name: str, pool: str, reads: bool, recompute: bool, shortened: list[bool]
) -> None:
    chosen = [CROSS, {"type": "causal_lm" if name in CAUSAL else "masked_lm"}] if reads else [CROSS]
    module, learnt, batch = made(name, pool, chosen, recompute=recompute)
    encoder = encoder_of(module)
    quick, quick_gradients = module(batch), learn(module, learnt, batch)
    # A causal model's tokens are all read, so only its pool of the last ones can be had for less.
    assert set(shortened) == {not (reads and name in CAUSAL)}
    encoder.keep_states = True
    whole, whole_gradients = module(batch), learn(module, learnt, batch)
    assert "text.states" not in quick
    assert "text.states" in whole
    for key in quick:
        one, other = quick[key], whole[key]
        if key == "text.tokens":
            one, other = one.logits(), other.logits()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert relative(quick_gradients, whole_gradients) < 1e-5


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_text_without_tokens_gives_zeros_and_leaves_the_others_as_they_are(name: str) -> None:
    module, _, batch = made(name, POOLS[name][0], [CROSS])
    module.eval()
    ids = batch["text.ids"]
    assert isinstance(ids, Ragged)
    rows = [ids[0], ids[0][:0], ids[1]]
    with torch.no_grad():
        found = module({"text.ids": Ragged.from_rows(rows)})["features"]
        alone = module({"text.ids": Ragged.from_rows([rows[0], rows[2]])})["features"]
    torch.testing.assert_close(found[[0, 2]], alone, rtol=1e-5, atol=1e-6)
    assert not found[1].any() or name == "bert"  # BERT's pooler has a bias


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", FAMILIES)
def test_recompute_gives_the_same_gradients(name: str, dropout: float) -> None:
    chosen = [CROSS, {"type": "causal_lm" if name in CAUSAL else "masked_lm"}]
    found = []
    for recompute in (False, True):
        model = family(name, layer_dropout=dropout, attention_dropout=dropout, recompute=recompute)
        learnt, spec = objectives(model.max_positions, *chosen, causal=name in CAUSAL)
        torch.manual_seed(0)
        module = model.build(spec).train()
        batch = batch_of(spec, learnt, causal=name in CAUSAL)
        torch.manual_seed(1)
        found.append(learn(module, learnt, batch))
    assert relative(found[1], found[0]) < 1e-6


def test_the_shortcut_waits_for_rows_that_are_long_enough() -> None:
    """Two rows of one token each: reading all of them is no shortcut, and the result is the same."""
    spec = Spec({"text.ids": Field("text", "text", "input", "int64", None, size=20)})
    torch.manual_seed(0)
    encoder = family("bert", pool="first").encoder("text.ids", spec.fields["text.ids"])
    assert isinstance(encoder, LanguageEncoder)
    encoder.eval()
    batch: Batch = {"text.ids": Ragged.from_rows([torch.tensor([3]), torch.tensor([4])])}
    quick = encoder(batch)[0]
    encoder.keep_states = True
    torch.testing.assert_close(quick, encoder(batch)[0])
