"""Replacing modules, and drawing the top of a model anew."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from luban.adapt._surgery import replace_modules
from luban.adapt.reinitialise import Reinitialise
from luban.artefact import build_model
from luban.data.contracts import Field, Spec
from luban.errors import RecipeError
from luban.recipe import Section

TEXT = Field("text", "text", "input", "int64", None, size=50)
LABEL = Field("label", "category", "target", "int64", size=3, output="logits", width=3)
SPEC = Spec({"text.ids": TEXT, "label.index": LABEL})
SHAPE: dict[str, Any] = {"layers": 3, "hidden_size": 64, "heads": 2}


# --- replacing --------------------------------------------------------------------------------------------


def wide(name: str, module: nn.Module) -> nn.Module:
    return nn.Sequential(module, nn.Identity())


def is_linear(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def test_shared_modules_stay_shared_and_nothing_new_is_looked_into() -> None:
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared), "c": nn.Linear(2, 1)})
    seen: list[str] = []

    def make(name: str, module: nn.Module) -> nn.Module:
        seen.append(name)
        return wide(name, module)

    assert replace_modules(net, is_linear, make) is net
    assert seen == ["a", "c"]
    assert net["a"] is net["b"][1]  # type: ignore[index]
    assert [name for name, _ in net.named_parameters()] == [
        "a.0.weight",
        "a.0.bias",
        "c.0.weight",
        "c.0.bias",
    ]


def test_the_model_itself_and_its_mode() -> None:
    net = nn.Linear(2, 2).eval()
    made = replace_modules(net, is_linear, wide)
    assert isinstance(made, nn.Sequential)
    assert not made.training
    assert made[0] is net
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU().eval())
    replace_modules(inner.train(), lambda name, module: name == "1", lambda name, module: nn.GELU().eval())
    assert inner[1].training


# --- drawing anew -----------------------------------------------------------------------------------------


def model_of(family: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(Section("models").parse({"type": family, **options}), [], SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # as if pretrained: nothing looks as it is drawn
    return model


def changed(family: str, options: dict[str, Any], **keys: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
    model = model_of(family, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    step = Reinitialise(**keys)
    assert step.apply(model) is model
    assert step.finish(model) == (model, None)
    after = model.state_dict()
    return after, {name for name, value in after.items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("family", "more"),
    [("bert", {}), ("gpt2", {}), ("llama", {"kv_heads": 1}), ("qwen3", {"kv_heads": 1}), ("transformer", {})],
)
def test_the_top_blocks_are_as_at_first(family: str, more: dict[str, Any]) -> None:
    options = SHAPE | more
    after, names = changed(family, options, layers=2)
    blocks = tuple(f"encoders.@text.core.layers.{i}." for i in (1, 2))
    poolers = {f"encoders.@text.pooler.{leaf}" for leaf in ("weight", "bias")} if family == "bert" else set()
    assert names == {name for name in after if name.startswith(blocks)} | poolers
    scaled = (
        1.0 if family == "bert" else 1 / math.sqrt(2 * 3)
    )  # before norms, what adds to the stream starts smaller
    for name in names:
        value, leaf = after[name], name.rpartition(".")[2]
        if "norm" in name:
            assert torch.equal(value, torch.full_like(value, float(leaf == "weight"))), name
        elif leaf == "bias":
            assert not value.any(), name
        else:
            factor = scaled if ".out." in name or ".down." in name else 1.0
            assert float(value.std()) == pytest.approx(0.02 * factor, rel=0.05), name
            assert abs(float(value.mean())) < 2e-3, name


def test_blocks_are_drawn_apart() -> None:
    after, _ = changed("bert", SHAPE, layers=2)
    one, two = (after[f"encoders.@text.core.layers.{i}.attention.q.weight"] for i in (1, 2))
    assert not torch.equal(one, two)


def test_the_pooler_alone_or_not_at_all() -> None:
    assert changed("bert", SHAPE, layers=0)[1] == {
        f"encoders.@text.pooler.{leaf}" for leaf in ("weight", "bias")
    }
    assert not any("pooler" in name for name in changed("bert", SHAPE, pooler=False)[1])


def test_recurrent_layers() -> None:
    _, names = changed("rnn", {"size": "tiny", "layers": 2})
    assert names == {
        f"encoders.@text.layers.1.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }


@pytest.mark.parametrize(
    ("family", "keys", "sentence"),
    [
        ("bert", {"layers": 3}, "layers is 3, and the model has 3 blocks, of which at least one must stay"),
        ("fasttext", {"layers": 1}, "the model has no blocks"),
        ("gpt2", {"layers": 0}, "layers is 0 and the model has no pooler"),
    ],
)
def test_what_cannot_be_drawn_refuses(family: str, keys: dict[str, Any], sentence: str) -> None:
    options = {} if family == "fasttext" else SHAPE
    with pytest.raises(RecipeError, match=sentence):
        Reinitialise(**keys).apply(model_of(family, **options))


def test_it_comes_before_lora() -> None:
    steps = [Section("adapt").parse(one) for one in ({"type": "lora"}, {"type": "reinitialise"})]
    with pytest.raises(RecipeError, match="put it before lora"):
        build_model(Section("models").parse({"type": "bert", **SHAPE}), steps, SPEC)
    build_model(Section("models").parse({"type": "bert", **SHAPE}), steps[::-1], SPEC)
