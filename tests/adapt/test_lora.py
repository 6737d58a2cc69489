"""Low-rank adapters by their numbers: what they compute, what is trained, what an artefact keeps."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from luban.adapt.lora import LoRA, LowRankLinear, merge
from luban.artefact import build_model
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._low_rank import merging
from luban.recipe import Section, load
from luban.registry import names
from luban.tensors import write_tensors

TEXT = Field("text", "text", "input", "int64", None, size=50)
AGE = Field("age", "number", "input", "float32")
LABEL = Field("label", "category", "target", "int64", size=3, output="logits", width=3)
SPEC = Spec({"text.ids": TEXT, "label.index": LABEL})
SMALL: dict[str, Any] = {"layers": 2, "hidden_size": 16, "heads": 2}


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 50, (length,), generator=generator) for length in (7, 1, 12, 5)]
    return {"text.ids": Ragged.from_rows(rows), "age.value": torch.tensor([0.1, -1.0, 0.4, 2.0])}


def model_of(family: str, spec: Spec = SPEC, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(Section("models").parse({"type": family, **options}), [], spec).eval()


def stirred(module: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


LANGUAGES = {
    "bert": SMALL, "gpt2": SMALL, "llama": SMALL | {"kv_heads": 1}, "qwen2": SMALL | {"kv_heads": 1}, "qwen3": SMALL | {"kv_heads": 1},
    "smollm": {"size": "tiny"},
}  # fmt: skip
OTHERS = {"mlp": {"hidden": [8]}, "transformer": SMALL, "rnn": {"size": "tiny", "hidden": [8]}, "textcnn": {"size": "tiny", "hidden": [8]}}  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", [*LANGUAGES, *OTHERS])
def test_at_first_nothing_changes_and_merging_changes_next_to_nothing(family: str, dora: bool) -> None:
    options = (LANGUAGES | OTHERS)[family]
    spec = SPEC if family != "mlp" else Spec({"text.ids": TEXT, "age.value": AGE, "label.index": LABEL})
    before = model_of(family, spec, **options)(batch())["label.logits"]
    model = LoRA(rank=4, dora=dora, dropout=0.5).apply(model_of(family, spec, **options)).eval()
    assert torch.equal(model(batch())["label.logits"], before)
    stirred(model)
    after = model(batch())["label.logits"]
    assert (after - before).abs().max() > 1e-2
    state = {name: value.clone() for name, value in model.state_dict().items()}
    merged = merge(model)
    assert not any(isinstance(part, LowRankLinear) for part in merged.modules())
    torch.testing.assert_close(merged(batch())["label.logits"], after, atol=1e-4, rtol=1e-4)
    plain = model_of(family, spec, **options)
    places = merging({name: partial(torch.clone, value) for name, value in state.items()})
    plain.load_state_dict({name: read() for name, read in places.items()})
    assert torch.equal(plain(batch())["label.logits"], merged(batch())["label.logits"])


def test_a_layer_by_hand() -> None:
    torch.manual_seed(0)
    base = nn.Linear(5, 3)
    x = torch.randn(2, 4, 5)
    for rslora, scale in ((False, 6 / 3), (True, 6 / math.sqrt(3))):
        layer = stirred(LoRA(rank=3, alpha=6.0, rslora=rslora).apply(nn.Sequential(base)))[0]
        a, b = layer.lora_a, layer.lora_b
        expected = base(x) + scale * (x @ a.T) @ b.T
        torch.testing.assert_close(layer(x), expected)
    layer = stirred(LoRA(rank=3, alpha=6.0, dora=True).apply(nn.Sequential(base)))[0]
    weight = base.weight + 2.0 * layer.lora_b @ layer.lora_a
    direction = weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(layer(x), x @ (layer.lora_magnitude[:, None] * direction).T + base.bias)


def test_defaults_of_alpha() -> None:
    def scale(**options: Any) -> float:
        return float(LoRA(**options).apply(nn.Sequential(nn.Linear(9, 9)))[0].lora_scale)  # type: ignore[index]

    assert scale(rank=2) == scale(rank=8) == 2.0
    assert scale(rank=4, rslora=True) == 8.0
    assert scale(rank=4, alpha=2.0) == 0.5


def test_dropout_falls_on_the_update_alone() -> None:
    layer = stirred(LoRA(rank=4, dropout=0.5).apply(nn.Sequential(nn.Linear(6, 6))))[0]
    x = torch.ones(2000, 6)
    whole, plain = layer.train()(x).mean(0), nn.functional.linear(x, layer.weight, layer.bias)[0]
    torch.testing.assert_close(whole, layer.eval()(x)[0], atol=0.05, rtol=0)
    assert layer.train()(x).std(0).min() > 1e-3
    with torch.no_grad():
        layer.lora_b.zero_()
    torch.testing.assert_close(layer.train()(x), plain.expand(2000, 6))


# --- what is trained --------------------------------------------------------------------------------------


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted(model: nn.Module) -> set[str]:
    return {name for name, part in model.named_modules() if isinstance(part, LowRankLinear)}


def test_what_is_trained_in_a_language_model() -> None:
    spec = Spec({"text.ids": TEXT, "age.value": AGE, "label.index": LABEL})
    model = LoRA(rank=2).apply(model_of("bert", spec, **SMALL, hidden=[8], numbers="periodic"))
    whole = {name for name in trained(model) if "lora" not in name}
    assert whole == {
        "encoders.@text.pooler.weight", "encoders.@text.pooler.bias", "encoders.numbers.frequencies", "encoders.numbers.weight",
        "encoders.numbers.bias", "trunk.0.0.weight", "trunk.0.0.bias", "heads.@label.weight", "heads.@label.bias",
    }  # fmt: skip
    core = "encoders.@text.core.layers"
    parts = ("attention.q", "attention.k", "attention.v", "attention.out", "feed.up", "feed.down")
    assert adapted(model) == {f"{core}.{i}.{part}" for i in range(2) for part in parts}
    assert not model.get_parameter(f"{core}.0.attention.q.bias").requires_grad, "bias none"


def test_targets_train_and_layers() -> None:
    step = LoRA.model_validate(
        {
            "rank": 2,
            "targets": ["*.attention.q", "*.1.attention.v"],
            "train": ["heads.*", "*.feed_norm.*"],
            "layers": {"*.v": {"rank": 3}, "*.1.*": {"rank": 5, "alpha": 1.0}},
        }
    )
    model = step.apply(model_of("bert", **SMALL))
    core = "encoders.@text.core.layers"
    ranks = {
        name: (len(part.lora_a), float(part.lora_scale))
        for name, part in model.named_modules()
        if isinstance(part, LowRankLinear)
    }
    assert ranks == {
        f"{core}.0.attention.q": (2, 2.0), f"{core}.1.attention.q": (5, pytest.approx(0.2)), f"{core}.1.attention.v": (3, 2.0),
    }  # fmt: skip
    assert {n for n in trained(model) if "lora" not in n} == {
        "heads.@label.weight", "heads.@label.bias", *(f"{core}.{i}.feed_norm.{leaf}" for i in range(2) for leaf in ("weight", "bias"))
    }  # fmt: skip


def test_few_parameters_are_trained() -> None:
    """The shape of MiniLM-L6 (Wang et al., 2020) with 30,522 tokens; its sentence vectors are means, so it has no pooler."""
    spec = Spec({"text.ids": Field("text", "text", "input", "int64", None, size=30522), "label.index": LABEL})
    shape = {"layers": 6, "hidden_size": 384, "heads": 12, "intermediate": 1536}
    for pool, share in (("mean", 0.01475), ("pooler", 0.02117)):
        model = LoRA(rank=8).apply(model_of("bert", spec, **shape, pool=pool))
        own = sum(p.numel() for p in model.parameters() if p.requires_grad)
        base = sum(p.numel() for n, p in model.named_parameters() if "lora" not in n)
        low = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
        assert low == 6 * (4 * 8 * (384 + 384) + 2 * 8 * (384 + 1536)) == 331_776
        assert own == low + 3 * 384 + 3 + (384 * 384 + 384 if pool == "pooler" else 0)
        assert own / base == pytest.approx(share, abs=1e-4)
        assert low / base < 0.02


def test_steps_side_by_side() -> None:
    steps = [
        {"type": "lora", "targets": ["*.feed.*"], "rank": 3},
        {"type": "lora", "targets": ["*.attention.*"], "rank": 5},
        {"type": "freeze", "patterns": ["heads.*"]},
    ]
    parsed = [Section("adapt").parse(one) for one in steps]
    model = build_model(Section("models").parse({"type": "bert", **SMALL}), parsed, SPEC)
    assert {len(part.lora_a) for part in model.modules() if isinstance(part, LowRankLinear)} == {3, 5}
    assert len(adapted(model)) == 12
    assert {name.rpartition(".")[2] for name in trained(model) if "pooler" not in name} == {
        "lora_a",
        "lora_b",
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ["*.query"]}, r"targets '\*\.query' matches no linear layer; there are .*attention\.q"),
        ({"train": ["head.*"]}, r"train 'head\.\*' matches no parameter"),
        ({"layers": {"*.x": {"rank": 1}}}, r"layers '\*\.x' matches no adapted layer"),
        ({"targets": ["*.pooler"], "train": ["*.pooler.*"]}, "is to be trained whole and to have an update"),
    ],
)
def test_what_matches_nothing_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        LoRA.model_validate(options).apply(model_of("bert", **SMALL))


def test_a_model_without_linear_layers_refuses() -> None:
    with pytest.raises(RecipeError, match="no linear layer besides what is trained whole"):
        LoRA().apply(model_of("rnn", size="tiny"))
    with pytest.raises(RecipeError, match="targets is empty"):
        load(
            {
                "data": {"train": "x.csv", "inputs": {"a": "text"}, "targets": {"b": "category"}},
                "model": "bert",
                "adapt": [{"type": "lora", "targets": []}],
            }
        )


# --- an artefact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", names("models"))
def test_an_artefact_of_any_family_is_built_again(family: str, tmp_path: Path) -> None:
    """Saved after training and built from the options that `finish` leaves: the same outputs, merged or not."""
    options = LANGUAGES.get(family) or OTHERS.get(family) or {"size": "tiny"}
    if family == "mlp":
        options = {"hidden": [8]}
    if family == "huggingface":
        pytest.importorskip("transformers")
        small = {
            "hidden_size": 16,
            "embedding_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
        }
        options = {"config": {"model_type": "electra", "vocab_size": 99, **small}}
    model = Section("models").parse({"type": family, **options})
    for merged in (False, True):
        step = LoRA(rank=2, dora=True, merge=merged)
        torch.manual_seed(0)
        try:
            module = stirred(build_model(model, [step], SPEC)).eval()
        except RecipeError as error:
            pytest.skip(str(error))  # reads no text, writes one, or has no linear layer
        before = module(batch())["label.logits"]
        module, kept = step.finish(module)
        write_tensors(module.state_dict(), tmp_path / "w.safetensors")
        assert (kept is None) == merged
        again = build_model(model, [kept] if kept is not None else [], SPEC).eval()
        again.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"))
        tolerance = 1e-4 if merged else 0.0
        torch.testing.assert_close(again(batch())["label.logits"], before, atol=tolerance, rtol=tolerance)


def test_a_rank_that_a_weight_has_no_room_for_is_refused() -> None:
    model = model_of("bert", **SMALL)
    with pytest.raises(
        RecipeError,
        match=r"rank 17 is more than layer '[^']*layers\.0\.attention\.q' can use, whose weight is 16 by 16; take a rank of 16 or less",
    ):
        LoRA(rank=17).apply(model)
    LoRA(rank=16).apply(model_of("bert", **SMALL))
    named = {"*.feed.up": {"rank": 17}}
    with pytest.raises(RecipeError, match=r"feed\.up' can use, whose weight is 64 by 16"):
        LoRA.model_validate({"rank": 2, "layers": named}).apply(model_of("bert", **SMALL))


# --- models of transformers ---------------------------------------------------------------------------------


def foreign(kind: str, **options: Any) -> torch.nn.Module:
    small = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, **options}
    return build_model(
        Section("models").parse({"type": "huggingface", "config": {"model_type": kind, **small}}), [], SPEC
    )


MIXTRAL = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "num_local_experts": 3,
}


@pytest.mark.parametrize(
    ("kind", "options", "left"),
    [
        # The weight is multiplied by, and the layer never called.
        ("mamba", {"state_size": 4}, ["mixer.dt_proj.weight"]),
        # All experts in one tensor of three dimensions.
        ("mixtral", MIXTRAL, ["mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
        ("bert", {"num_attention_heads": 2, "intermediate_size": 24}, []),
    ],
)
def test_every_update_of_a_foreign_model_is_trained(
    kind: str, options: dict[str, Any], left: list[str]
) -> None:
    pytest.importorskip("transformers")
    step = LoRA(rank=2)
    module = step.apply(foreign(kind, **options))
    outputs = module(batch())
    sum(one.pow(2).sum() for name, one in outputs.items() if name.endswith("logits")).backward()
    updates = {name: one.grad for name, one in module.named_parameters() if name.endswith(".lora_b")}
    assert updates
    assert all(grad is not None and bool(grad.any()) for grad in updates.values())
    names = [f"layers.*.{name}" for name in left]
    assert [name for name in names if name not in " ".join(step.notes())] == []
    assert len(step.notes()) == bool(left)


def test_a_layer_that_is_not_called_cannot_be_named() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(RecipeError, match=r"reads the weight of '[^']*dt_proj' without calling the layer"):
        LoRA(rank=1, targets=["*.dt_proj"]).apply(foreign("mamba", state_size=4))
