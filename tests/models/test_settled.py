"""Blocks on weights that stay as they are: the numbers of the blocks they stand for, and when they stand back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from luban import native
from luban.data.ragged import Ragged
from luban.models import _kernels, _settled
from luban.models._attention import plan
from luban.models._core import Block, Core, Shape
from luban.models._settled import Settled, _known, settled
from luban.predict import load
from luban.verbs.train import train

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no compiler")

LENGTHS = (40, 33, 7, 1, 20, 20, 0, 64)


@pytest.fixture(autouse=True)
def with_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels.NATIVE, "_chosen", None)
    monkeypatch.setattr(_kernels.NATIVE, "_automatic", None)
    monkeypatch.setattr(_settled, "_WORTH", 1)
    _kernels.use("native")
    library = _kernels.NATIVE.library()
    assert library is not None
    if int(library.panel_width()) < 16:
        pytest.skip("the processor has narrow vectors")


def core_of(**options: Any) -> Core:
    """A core with weights of some size, which want no gradient."""
    torch.manual_seed(0)
    usual = {
        "kv_heads": 4,
        "heads": 4,
        "head_size": 16,
        "hidden_size": 64,
        "intermediate": 288,
        "layers": 2,
        "vocabulary": 50,
    }
    shape = Shape(
        **{
            **usual,
            "norm_place": "post",
            "last_norm": False,
            "positions": "learned",
            "max_positions": 64,
            **options,
        }
    )
    core = Core(shape).eval()
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.3)
        parameter.requires_grad_(False)
    return core


def texts(width: int = 64) -> Ragged:
    torch.manual_seed(1)
    rows = [torch.randn(length, width) for length in LENGTHS]
    result = Ragged.from_rows(rows)
    return result.like(result.values.requires_grad_())


def passed(core: Core, inputs: Ragged, **how: Any) -> tuple[Tensor, Tensor]:
    """States, and the gradient of something made of them."""
    states = core(inputs, **how)
    (gradient,) = torch.autograd.grad((states * states.detach().sin()).sum(), inputs.values)
    return states, gradient


def known() -> list[Settled | None]:
    found = _known.get()
    assert found is not None
    return list(found.values())


def blocks_used() -> int:
    return sum(found is not None for found in known())


def near(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.detach().abs().max())))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"kv_heads": 2},
        {"head_size": 32, "hidden_size": 96, "intermediate": 32},  # heads wider in sum than the tokens
        {"attention_bias": False, "out_bias": False, "feed_bias": False},
        {"eps": 0.1},
    ],
    ids=lambda options: ", ".join(options) or "usual",
)
def test_a_settled_block_is_the_block(options: dict[str, Any]) -> None:
    core = core_of(**options)
    inputs = texts(core.shape.hidden_size)
    states, gradient = passed(core, inputs)
    with settled():
        ours, own_gradient = passed(core, inputs)
        assert blocks_used() == 2
        with torch.no_grad():
            assert torch.equal(core(inputs), ours)
    assert near(ours, states)
    assert near(own_gradient, gradient)


def test_weights_are_laid_out_where_it_pays_and_for_the_way_back_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core, inputs = core_of(), texts()
    with settled(), torch.no_grad():
        monkeypatch.setattr(_settled, "_WORTH", len(inputs.values) + 1)
        few = core(inputs)
        assert not known()
        monkeypatch.setattr(_settled, "_WORTH", len(inputs.values))
        assert near(core(inputs), few)
        (first, *_) = known()
        assert first is not None
        before = len(first._kept)
        with settled(), torch.enable_grad():  # what is made of weights is kept until the outer end
            assert near(passed(core, inputs)[0], few)
        assert known()[0] is first
        assert len(first._kept) == before + 6
        core(inputs)
        assert len(first._kept) == before + 6


def test_half_precision_stays_what_it_is() -> None:
    core, inputs = core_of(), texts()
    first = torch.tensor([0, 40, 73, 80])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        states, glance = core(inputs), core(inputs, read=first)
        with settled():
            assert torch.equal(core(inputs), states)
            assert torch.equal(core(inputs, read=first), glance)
            assert not known()


def test_a_number_in_one_row_changes_no_other() -> None:
    core, inputs = core_of(), texts()
    with settled():
        before = core(inputs)
        with torch.no_grad():
            inputs.values[3] = torch.nan
        after = core(inputs)
    changed = inputs.rows == 0
    assert after[changed].isnan().all()
    assert torch.equal(after[~changed], before[~changed])


def test_the_same_bits_with_any_number_of_threads() -> None:
    core, inputs, threads = core_of(), texts(), torch.get_num_threads()
    try:
        with settled():
            torch.set_num_threads(1)
            one = passed(core, inputs)
            torch.set_num_threads(3)
            three = passed(core, inputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_weights_that_changed_since_are_read_anew() -> None:
    core, inputs = core_of(), texts()
    with settled():
        first = core(inputs)
    for parameter in core.parameters():
        parameter.data.mul_(0.5)  # of which PyTorch keeps no count
    with settled():
        second = core(inputs)
    assert near(second, core(inputs))
    assert not near(second, first)


def test_weights_are_laid_out_as_they_are_typed_whatever_the_default() -> None:
    core, inputs = core_of(), texts()
    states, _ = passed(core, inputs)
    torch.set_default_dtype(torch.float64)
    try:
        with settled():
            ours, _ = passed(core, inputs)
            (packed, *_) = [found._kept for found in known() if found is not None]
    finally:
        torch.set_default_dtype(torch.float32)
    assert near(ours, states)
    assert {x.dtype for x in packed} == {torch.float32}


def _learns(core: Core) -> None:
    core.requires_grad_(True)


def _is_watched(core: Core) -> None:
    block = core.layers[0]
    assert isinstance(block, Block)
    block.feed.up.register_forward_hook(lambda module, given, made: 2 * made)


def _is_replaced(core: Core) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for block in core.layers:
        assert isinstance(block, Block)
        doubled = Doubled(64, 64)
        doubled.load_state_dict(block.attention.q.state_dict())
        block.attention.q = doubled.requires_grad_(False)


def _is_trained(core: Core) -> None:
    core.train()


@pytest.mark.parametrize(
    ("options", "change", "used"),
    [
        ({}, _learns, 0),
        ({}, _is_watched, 1),
        ({}, _is_replaced, 0),
        ({"dropout": 0.0}, _is_trained, 0),
        ({"norm_place": "pre"}, None, 0),
        ({"gated": True}, None, 0),
        ({"activation": "relu"}, None, 0),
        ({"positions": "rotary"}, None, 0),
        ({"norm": "rms"}, None, 0),
        ({"intermediate": 100}, None, 0),
    ],
)
def test_where_the_code_does_not_stand_for_the_modules_they_compute(
    options: dict[str, Any], change: Any, used: int
) -> None:
    core, inputs = core_of(**options), texts()
    if change is not None:
        change(core)
    states, gradient = passed(core, inputs)
    with settled():
        ours, own_gradient = passed(core, inputs)
        assert blocks_used() == used
    assert near(ours, states)
    assert near(own_gradient, gradient)


# --- few places that ask -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["torch", "native"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "norm_place": "pre", "last_norm": True},
        {"kv_heads": 2},
        {"attention_bias": False},
    ],
    ids=lambda options: ", ".join(options) or "usual",
)
def test_a_glance_sees_what_keys_and_values_would_show(
    path: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _kernels.use(path)
    core = core_of(**options)
    inputs = Ragged.from_rows([torch.randn(length, 64) for length in (40, 33, 7, 20, 20)])
    inputs = inputs.like(inputs.values.requires_grad_())
    read = inputs.offsets[1:] - 1 if core.shape.causal else inputs.offsets[:-1]
    last = core.layers[-1]
    assert isinstance(last, Block)
    looked: list[int] = []
    glance = last.attention.glance
    monkeypatch.setattr(
        last.attention, "glance", lambda q, x, how: looked.append(len(q)) or glance(q, x, how)
    )
    with settled():
        ours, own_gradient = passed(core, inputs, read=read)
    assert looked == [5]
    theirs, gradient = passed(core, inputs, read=read)
    assert looked == [5]
    assert near(ours, theirs)
    assert near(own_gradient, gradient)


@pytest.mark.parametrize("watched", ["attention", "attention.v"])
def test_who_watches_a_layer_that_a_glance_goes_round_is_told(watched: str) -> None:
    core, inputs = core_of(), texts()
    told: list[int] = []
    core.layers[-1].get_submodule(watched).register_forward_hook(lambda *_: told.append(1))
    with settled():
        core(inputs, read=torch.tensor([0, 40]))
    assert told == [1]


def test_a_hook_before_the_gradient_is_called_within_settled() -> None:
    core, inputs = core_of(), texts()
    told: list[int] = []
    block = core.layers[0]
    assert isinstance(block, Block)
    block.feed.register_full_backward_pre_hook(lambda *_: told.append(1))
    with settled():
        passed(core, inputs)
        assert blocks_used() == 1
    assert told == [1]


def test_a_gpu_makes_keys_and_values() -> None:
    core, inputs = core_of(), texts()
    block = core.layers[-1]
    assert isinstance(block, Block)
    how = plan(Ragged(inputs.offsets[:-1], torch.arange(len(inputs) + 1)), keys=inputs)
    elsewhere = replace(how, queries=how.queries.to("meta"), keys=how.keys.to("meta"))
    assert not block.attention.can_glance(how, None)
    with settled():
        assert block.attention.can_glance(how, None)
        assert not block.attention.can_glance(elsewhere, None)


@pytest.mark.parametrize("lengths", [(), (7, 3)])
def test_where_nobody_asks_there_is_nothing_to_see(lengths: tuple[int, ...]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    inputs = Ragged(torch.zeros(sum(lengths), dtype=torch.int64), offsets)
    with settled():
        assert core_of()(inputs, read=torch.zeros(0, dtype=torch.int64)).shape == (0, 64)


def test_weights_that_learn_get_the_gradients_of_keys_and_values() -> None:
    core, inputs = core_of().requires_grad_(True), texts()
    with settled():
        core(inputs, read=torch.tensor([0])).sum().backward()
    last = core.layers[-1]
    assert isinstance(last, Block)
    assert last.attention.k.weight.grad is not None
    assert last.attention.v.weight.grad is not None


def test_rows_are_predicted_on_settled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'good' if i % 2 else 'bad'} {'work ' * (i % 7)}" for i in range(200)]
    pl.DataFrame({"text": texts, "label": ["up", "down"] * 100}).write_csv(tmp_path / "rows.csv")
    recipe = f"""\
data: {{train: {tmp_path}/rows.csv, inputs: {{text: text}}, targets: {{label: category}}}}
model: {{type: bert, layers: 2, hidden_size: 64, heads: 4, intermediate: 64}}
train: {{steps: 3, device: cpu, precision: fp32}}
"""
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    passes = []
    forward = Settled.__call__
    monkeypatch.setattr(
        Settled, "__call__", lambda self, x, rows: passes.append(len(x)) or forward(self, x, rows)
    )
    train(tmp_path / "recipe.yaml", output=tmp_path / "model")
    assert passes, "so is a validation pass"
    predictor = load(tmp_path / "model")
    passes.clear()
    ours = predictor.predict([{"text": text} for text in texts])
    assert passes
    _kernels.use("torch")
    for one, other in zip(ours, predictor.predict([{"text": text} for text in texts]), strict=True):
        assert one["label.scores"] == pytest.approx(other["label.scores"], abs=1e-5)
