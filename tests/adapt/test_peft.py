"""Adapters against PEFT: the same logits and the same gradients, from its files to our module and from ours to its model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luban.adapt._base import Adaptation
from luban.adapt._peft import read_adapter
from luban.adapt.lora import LoRA, merge, write_peft
from luban.artefact import build_model
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import ArtefactError, RecipeError
from luban.models._base import Model
from luban.models._network import Network
from luban.recipe import Section

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

VOCABULARY, CLASSES = 60, 3
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40, "initializer_range": 0.3,
}  # fmt: skip
LLAMA: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
MADE: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**SMALL, num_labels=CLASSES)
    ),
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SMALL, num_labels=CLASSES)
    ),
    "gpt2": lambda: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=40, initializer_range=0.3, pad_token_id=0, num_labels=CLASSES)
    ),
    "gpt2 lm": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=40, initializer_range=0.3)
    ),
    "llama": lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**LLAMA, num_labels=CLASSES)),
    "llama lm": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "qwen3": lambda: transformers.Qwen3ForSequenceClassification(
        transformers.Qwen3Config(**LLAMA, num_labels=CLASSES)
    ),
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
}
TEXT = Field("text", "text", "input", "int64", None, size=VOCABULARY)
LABEL = Field("label", "category", "target", "int64", size=CLASSES, output="logits", width=CLASSES)
TOKENS = Field("text", "tokens", "target", "int64", None, size=VOCABULARY)
CLASSIFY = Spec({"text.ids": TEXT, "label.index": LABEL})
SPEAK = Spec({"text.ids": TEXT, "text.labels": TOKENS})
LENGTHS = (7, 1, 12, 5)


def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def reference(case: str) -> Any:
    torch.manual_seed(0)
    model = MADE[case]()
    with torch.no_grad():  # norms and biases begin at one and zero, which would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def spec_of(case: str) -> Spec:
    return SPEAK if case.endswith(" lm") else CLASSIFY


def built(case: str, base: Path, adapt: list[Any]) -> tuple[nn.Module, list[Any]]:
    kind = case.split()[0]
    model = Section("models").parse({"type": "bert" if kind == "roberta" else kind, "from": str(base)})
    assert isinstance(model, Model)
    module = model.build(spec_of(case))
    model.load_pretrained(module)
    steps = [Section("adapt").parse(one) for one in adapt]
    for step in steps:
        assert isinstance(step, Adaptation)
        module = step.apply(module)
    return module.eval(), steps


def ours(case: str, module: nn.Module) -> torch.Tensor:
    outputs = module({"text.ids": Ragged.from_rows(rows())})
    logits: torch.Tensor = (
        outputs["text.tokens"].logits() if case.endswith(" lm") else outputs["label.logits"]
    )
    return logits


def theirs(case: str, model: Any) -> torch.Tensor:
    lm = case.endswith(" lm")
    parts = [model(input_ids=row[None]).logits for row in rows()]
    return torch.cat([part[0] if lm else part for part in parts])


def stirred(module: Any) -> Any:
    """Another value for everything that is trained: adapters that begin at zero would hide mistakes."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                scale = 0.3 if "magnitude" in name else 0.1
                parameter.add_(torch.randn_like(parameter) * scale)
    return module


def trained_by_peft(case: str, folder: Path, **changes: Any) -> Any:
    lm = case.endswith(" lm")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM" if lm else "SEQ_CLS",
        **{
            "r": 4,
            "lora_alpha": 16,
            "target_modules": "all-linear",
            "fan_in_fan_out": case.startswith("gpt2"),
            **changes,
        },
    )
    model = stirred(peft.get_peft_model(reference(case), config)).eval()
    model.save_pretrained(folder)
    return model


# --- from theirs to ours ----------------------------------------------------------------------------------

PEFT_KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("kind", PEFT_KINDS)
@pytest.mark.parametrize("case", MADE)
def test_an_adapter_of_pefts_gives_the_same_logits(case: str, kind: str, tmp_path: Path) -> None:
    reference(case).save_pretrained(tmp_path / "base")
    model = trained_by_peft(case, tmp_path / "adapter", **PEFT_KINDS[kind])
    module, steps = built(case, tmp_path / "base", [{"type": "lora", "from": str(tmp_path / "adapter")}])
    step = steps[0]
    assert (step.rank, step.alpha, step.rslora, step.dora) == (4, 16.0, kind == "rslora", kind == "dora")
    with torch.no_grad():
        expected = theirs(case, model)
        torch.testing.assert_close(ours(case, module), expected, atol=1e-5, rtol=1e-5)
        assert (expected - theirs(case, reference(case))).abs().max() > 0.05, "the adapter does something"
        torch.testing.assert_close(ours(case, merge(module)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["bert", "gpt2", "llama lm"])
def test_ranks_of_their_own(case: str, tmp_path: Path) -> None:
    reference(case).save_pretrained(tmp_path / "base")
    layer = {"bert": "attention.self.query", "gpt2": "attn.c_attn", "llama lm": "self_attn.v_proj"}[case]
    options = {"rank_pattern": {layer: 2}, "alpha_pattern": {layer: 5}}
    model = trained_by_peft(case, tmp_path / "adapter", **options)
    module, (step,) = built(case, tmp_path / "base", [{"type": "lora", "from": str(tmp_path / "adapter")}])
    expected = theirs(case, model)
    torch.testing.assert_close(ours(case, module), expected, atol=1e-5, rtol=1e-5)
    # What an artefact keeps makes the same module without the directory, and is written and read as YAML is.
    _, kept = step.finish(module)
    assert isinstance(kept, LoRA)
    assert kept.from_ is None
    again, _ = built(case, tmp_path / "base", [kept.model_dump()])
    assert again.state_dict().keys() == module.state_dict().keys()
    again.load_state_dict(module.state_dict())
    assert torch.equal(ours(case, again), ours(case, module))
    # And back to PEFT.
    write_peft(again, [kept], tmp_path / "back", str(tmp_path / "base"))
    back = peft.PeftModel.from_pretrained(reference(case), tmp_path / "back").eval()
    torch.testing.assert_close(theirs(case, back), expected, atol=1e-5, rtol=1e-5)


# --- from ours to theirs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", MADE)
def test_peft_reads_what_we_write(case: str, kind: str, tmp_path: Path) -> None:
    reference(case).save_pretrained(tmp_path / "base")
    options = {"type": "lora", "rank": 4, "alpha": 10.0, "dropout": 0.1, **KINDS[kind]}
    module, steps = built(case, tmp_path / "base", [options])
    stirred(module)
    write_peft(module, steps, tmp_path / "adapter", str(tmp_path / "base"))
    model = peft.PeftModel.from_pretrained(reference(case), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(case, module), theirs(case, model), atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 10, 0.1)
    assert (config["use_rslora"], config["use_dora"]) == (kind == "rslora", kind == "dora")
    # Written and read again, it is what it was: bit for bit, where nothing had to be joined.
    twin, _ = built(case, tmp_path / "base", [{"type": "lora", "from": str(tmp_path / "adapter")}])
    if not case.startswith("gpt2"):
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in twin.state_dict().items())
    torch.testing.assert_close(ours(case, twin), ours(case, module), atol=1e-5, rtol=1e-5)


def test_queries_and_values_of_gpt2_join_as_blocks(tmp_path: Path) -> None:
    reference("gpt2").save_pretrained(tmp_path / "base")
    options = {"type": "lora", "rank": 3, "targets": ["*.attention.q", "*.attention.v"]}
    for kind in KINDS:
        module, steps = built("gpt2", tmp_path / "base", [options | KINDS[kind]])
        stirred(module)
        config = write_peft(module, steps, tmp_path / kind, str(tmp_path / "base"))["target_modules"]
        assert config == ["c_attn"]
        found = read_adapter(tmp_path / kind).tensors
        a, b = (found[f"transformer.h.1.attn.c_attn.lora_{one}.weight"] for one in "AB")
        assert (a.shape, b.shape) == ((6, 32), (96, 6))
        assert not b[:32, 3:].any()
        assert not b[32:64].any()
        assert not b[64:, :3].any()
        model = peft.PeftModel.from_pretrained(reference("gpt2"), tmp_path / kind).eval()
        torch.testing.assert_close(ours("gpt2", module), theirs("gpt2", model), atol=1e-5, rtol=1e-5)


def test_the_configuration_of_bert(tmp_path: Path) -> None:
    reference("bert").save_pretrained(tmp_path / "base")
    module, steps = built("bert", tmp_path / "base", [{"type": "lora"}])
    config = write_peft(module, steps, tmp_path / "adapter", str(tmp_path / "base"))
    assert config["task_type"] == "SEQ_CLS"
    assert config["target_modules"] == ["intermediate.dense", "output.dense", "self.key", "self.query", "self.value"]  # fmt: skip
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 16, {})
    module, steps = built(
        "llama lm", _saved("llama lm", tmp_path), [{"type": "lora", "targets": ["*.attention.?"]}]
    )
    config = write_peft(module, steps, tmp_path / "speaks")
    assert config["task_type"] == "CAUSAL_LM"
    assert config["target_modules"] == ["k_proj", "q_proj", "v_proj"]
    assert config["modules_to_save"] is None


def _saved(case: str, folder: Path) -> Path:
    reference(case).save_pretrained(folder / case)
    return folder / case


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["bert", "llama"])
def test_the_same_gradients_as_peft(case: str, kind: str, tmp_path: Path) -> None:
    reference(case).save_pretrained(tmp_path / "base")
    module, steps = built(case, tmp_path / "base", [{"type": "lora", "rank": 4, **KINDS[kind]}])
    stirred(module)
    write_peft(module, steps, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(reference(case), tmp_path / "adapter", is_trainable=True).eval()
    labels = torch.tensor([0, 2, 1, 1])
    for logits in (ours(case, module), theirs(case, model)):
        torch.nn.functional.cross_entropy(logits, labels).backward()
    # Their gradients, under our names: written as if they were values.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    twin, _ = built(case, tmp_path / "base", [{"type": "lora", "from": str(tmp_path / "gradients")}])
    expected = dict(twin.named_parameters())
    seen = 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-6, name
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-5)
            seen += 1
        else:
            assert parameter.grad is None, name
    adapted = 2 * (6 if case == "bert" else 7)
    assert seen == adapted * (3 if kind == "dora" else 2) + (4 if case == "bert" else 1)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "IA3"}, "adapter of kind IA3; Luban reads LORA"),
        ({"bias": "all"}, "also trained biases"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights too"),
    ],
)
def test_what_cannot_be_repeated_refuses(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    trained_by_peft("bert", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(RecipeError, match=sentence):
        LoRA.model_validate({"from": str(tmp_path)})


def test_a_directory_that_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no adapter_config\.json"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ArtefactError, match="is damaged"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(RecipeError, match=r"has no adapter_model\.safetensors"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(RecipeError, match="is a pickle"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ArtefactError, match="is damaged"):
        read_adapter(tmp_path)


def test_the_adapter_of_another_model(tmp_path: Path) -> None:
    trained_by_peft("llama", tmp_path / "adapter")
    reference("bert").save_pretrained(tmp_path / "base")
    with pytest.raises(RecipeError, match="is it the adapter of another model"):
        built("bert", tmp_path / "base", [{"type": "lora", "from": str(tmp_path / "adapter")}])


def test_a_head_of_other_classes_starts_anew(tmp_path: Path) -> None:
    reference("bert").save_pretrained(tmp_path / "base")
    trained_by_peft("bert", tmp_path / "adapter")
    step = LoRA.model_validate({"from": str(tmp_path / "adapter")})
    label = Field("label", "category", "target", "int64", size=5, output="logits", width=5)
    model = Section("models").parse({"type": "bert", "from": str(tmp_path / "base")})
    build_model(model, [step], Spec({"text.ids": TEXT, "label.index": label}))
    assert sorted(note.split("'")[1] for note in step.notes()) == ["heads.@label.bias", "heads.@label.weight"]


def test_an_adapter_is_not_written_for_another_base(tmp_path: Path) -> None:
    module, steps = built("bert", _saved("bert", tmp_path), [{"type": "lora"}])
    other = reference("bert")
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        RecipeError, match=r"do not belong to .*'core\.layers\.1\.feed\.down\.weight' is another"
    ):
        write_peft(module, steps, tmp_path / "adapter", str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("adapt", "sentence"),
    [
        ([], "this one has none; export it as hf"),
        ([{"type": "lora", "train": ["heads.*", "*.embedding.tokens.*"]}], "was trained beside the adapters"),
        ([{"type": "lora", "targets": ["*.q"]}, {"type": "lora", "dora": True}], "some layers have DoRA"),
        ([{"type": "lora", "targets": ["*.q"]}, {"type": "lora", "dropout": 0.1}], "differ in dropout"),
    ],
)
def test_what_the_format_cannot_hold_refuses(adapt: list[Any], sentence: str, tmp_path: Path) -> None:
    module, steps = built("bert", _saved("bert", tmp_path), adapt)
    assert isinstance(module, Network)
    with pytest.raises(RecipeError, match=sentence):
        write_peft(module, steps, tmp_path / "adapter")
