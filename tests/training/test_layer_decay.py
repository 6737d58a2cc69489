"""Learning rates that fall from the heads to the embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from luban.adapt._surgery import depths_of
from luban.adapt.lora import LoRA
from luban.artefact import build_model
from luban.data.contracts import Field, Spec
from luban.errors import RecipeError
from luban.recipe import Section
from luban.registry import lookup, names

TEXT = Field("text", "text", "input", "int64", None, size=50)
AGE = Field("age", "number", "input", "float32")
LABEL = Field("label", "category", "target", "int64", size=3, output="logits", width=3)
SPEC = Spec({"text.ids": TEXT, "age.value": AGE, "label.index": LABEL})
SMALL: dict[str, Any] = {"layers": 3, "hidden_size": 16, "heads": 2}


def model_of(family: str, spec: Spec = SPEC, **options: Any) -> nn.Module:
    return build_model(Section("models").parse({"type": family, **options}), [], spec)


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}


def test_the_rates_of_bert() -> None:
    model = model_of("bert", **SMALL, hidden=[4])
    found = rates(
        lookup("optimizers", "adamw")(learning_rate=1.0, layer_decay=0.5).build(model.named_parameters())
    )
    assert found.keys() == {name for name, _ in model.named_parameters()}
    core = "encoders.@text.core"
    expected = {
        "heads.": 1.0, "trunk.": 1.0, "encoders.@text.pooler.": 1.0, f"{core}.layers.2.": 0.5, f"{core}.layers.1.": 0.25,
        f"{core}.layers.0.": 0.125, f"{core}.embedding.": 0.0625,
    }  # fmt: skip
    for name, rate in found.items():
        (wanted,) = [value for start, value in expected.items() if name.startswith(start)]
        assert rate == wanted, name


def test_groups_by_depth_and_weight_decay() -> None:
    model = model_of("bert", **SMALL)
    build = lookup("optimizers", "adamw")(learning_rate=0.1, weight_decay=0.3, layer_decay=0.8).build
    groups = {g["name"]: g for g in build(model.named_parameters()).param_groups}
    assert list(groups) == [
        "decay", "no_decay", *(f"{kind}_below_{below}" for below in (1, 2, 3, 4) for kind in ("decay", "no_decay"))
    ]  # fmt: skip
    for name, group in groups.items():
        below = int(name.rpartition("_")[2]) if "below" in name else 0
        assert group["lr"] == group["initial_lr"] == pytest.approx(0.1 * 0.8**below)
        assert group["weight_decay"] == (0.0 if name.startswith("no") else 0.3)
        assert all((p.ndim >= 2) == (not name.startswith("no")) for p in group["params"])


@pytest.mark.parametrize(
    ("family", "top", "bottom", "last"),
    [
        ("gpt2", "core.norm.weight", "core.embedding.positions.weight", "core.layers.2.attention.q.weight"),
        ("llama", "core.norm.weight", "core.embedding.tokens.weight", "core.layers.2.feed.gate.weight"),
        ("transformer", "core.norm.bias", "core.embedding.tokens.weight", "core.layers.2.attention.k.bias"),
        ("rnn", None, "embedding.weight", "layers.2.weight_ih_l0"),
    ],
)
def test_what_lies_above_and_below(family: str, top: str | None, bottom: str, last: str) -> None:
    options: dict[str, Any] = {**SMALL, **({"kv_heads": 1} if family == "llama" else {})}
    if family == "rnn":
        options = {"layers": 3, "size": "tiny"}
    depths = depths_of(name for name, _ in model_of(family, **options).named_parameters())
    assert depths.blocks == 3
    assert depths.below[f"encoders.@text.{bottom}"] == 4
    assert depths.below[f"encoders.@text.{last}"] == 1
    assert depths.below["heads.@label.weight"] == 0
    if top is not None:
        assert depths.below[f"encoders.@text.{top}"] == 0


def test_encoders_of_their_own_depth_and_dense_layers_behind_one() -> None:
    other = Field("title", "text", "input", "int64", None, size=50)
    spec = Spec({**SPEC.fields, "title.ids": other})
    inner = {"type": "gpt2", "layers": 2, "hidden_size": 8, "heads": 2, "hidden": [4]}
    model = model_of("bert", spec, **SMALL, encoders={"title": inner}, numbers="periodic")
    depths = depths_of(name for name, _ in model.named_parameters())
    assert depths.blocks == 3
    seen = {
        "encoders.@text.core.layers.0.feed.up.weight": 3, "encoders.@text.core.embedding.norm.bias": 4,
        "encoders.@title.encoder.core.layers.0.feed.up.weight": 2, "encoders.@title.encoder.core.embedding.tokens.weight": 3,
        "encoders.@title.encoder.core.norm.weight": 0, "encoders.@title.layers.0.0.weight": 0, "encoders.numbers.weight": 0,
    }  # fmt: skip
    assert {name: depths.below[name] for name in seen} == seen


def test_a_decoder_beside_an_encoder() -> None:
    names = ["core.embedding.tokens.w", "core.layers.0.w", "core.layers.1.w", "core.norm.w", "decoder.embedding.positions.w", "decoder.layers.0.w", "decoder.norm.w", "language.bias"]  # fmt: skip
    found = depths_of(f"encoders.@text.{name}" for name in names)
    assert [found.below[f"encoders.@text.{name}"] for name in names] == [3, 2, 1, 0, 2, 1, 0, 0]


def test_names_of_other_libraries() -> None:
    assert depths_of(["transformer.wte.weight", "transformer.h.0.w", "transformer.h.11.w", "transformer.ln_f.w"]).below == {
        "transformer.wte.weight": 13, "transformer.h.0.w": 12, "transformer.h.11.w": 1, "transformer.ln_f.w": 0,
    }  # fmt: skip
    assert depths_of(["bert.embeddings.norm.w", "bert.encoder.layer.0.w", "bert.pooler.w"]).below == {
        "bert.embeddings.norm.w": 2, "bert.encoder.layer.0.w": 1, "bert.pooler.w": 0
    }  # fmt: skip


def test_depth_is_that_of_the_whole_model() -> None:
    """Frozen blocks count, and so do those whose weights have adapters beside them."""
    model = LoRA(rank=2).apply(model_of("bert", **SMALL))
    frozen = "encoders.@text.core.layers.2."
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            parameter.requires_grad_(False)
    found = rates(
        lookup("optimizers", "sgd")(learning_rate=1.0, layer_decay=0.5).build(model.named_parameters())
    )
    assert found["encoders.@text.core.layers.1.attention.q.lora_a"] == 0.25
    assert not any(name.startswith(frozen) for name in found)


@pytest.mark.parametrize("name", names("optimizers"))
def test_every_optimizer_follows_it(name: str) -> None:
    """Two updates from the same gradient: what moves half as fast is that of half the rate."""
    torch.manual_seed(0)
    start = {f"layers.{i}.weight": torch.randn(16, 16) for i in range(2)} | {"head.bias": torch.randn(4)}
    gradients = {key: torch.randn_like(value) for key, value in start.items()}

    def moved(**options: Any) -> dict[str, torch.Tensor]:
        parameters = {key: nn.Parameter(value.clone()) for key, value in start.items()}
        optimizer = lookup("optimizers", name)(learning_rate=1e-3, weight_decay=0.0, **options).build(
            parameters.items()
        )
        for key, parameter in parameters.items():
            parameter.grad = gradients[key].clone()
        optimizer.step()
        return {key: parameter.detach() - start[key] for key, parameter in parameters.items()}

    plain, decayed = moved(), moved(layer_decay=0.5)
    torch.testing.assert_close(decayed["head.bias"], plain["head.bias"])
    torch.testing.assert_close(
        decayed["layers.1.weight"], 0.5 * plain["layers.1.weight"], rtol=1e-2, atol=1e-7
    )
    torch.testing.assert_close(
        decayed["layers.0.weight"], 0.25 * plain["layers.0.weight"], rtol=1e-2, atol=1e-7
    )


def test_a_model_without_blocks_refuses() -> None:
    model = model_of("fasttext")
    with pytest.raises(
        RecipeError, match=r"layer_decay 0\.9 goes by blocks .* the model has none; remove it"
    ):
        lookup("optimizers", "adamw")(layer_decay=0.9).build(model.named_parameters())
    assert len(lookup("optimizers", "adamw")().build(model.named_parameters()).param_groups) == 2
