"""What a config.json says wrongly is said in one sentence, before anything is built; what it leaves out is as in `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import LubanError, RecipeError
from luban.models._language import Language
from luban.models.interop import options_of
from luban.recipe import Section

transformers = pytest.importorskip("transformers")
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM, SMALL),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, SMALL),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, SMALL),
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {**SMALL, "num_key_value_heads": 2, "sliding_window": None},
    ),
    "gpt2": (
        transformers.GPT2Config,
        transformers.GPT2LMHeadModel,
        {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40},
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for kind, (config, model, options) in CLASSES.items():
        torch.manual_seed(0)
        model(config(**options)).save_pretrained(folder / kind)
    return folder


def changed(saved: Path, kind: str, to: Path, without: tuple[str, ...] = (), **changes: Any) -> Path:
    to.mkdir()
    config = json.loads((saved / kind / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if key not in without}
    (to / "config.json").write_text(json.dumps(config))
    (to / "model.safetensors").hardlink_to(saved / kind / "model.safetensors")
    return to


def built(family: str, path: Path) -> torch.nn.Module:
    model = Section("models").parse({"type": family, "from": str(path)})
    assert isinstance(model, Language)
    fields = {
        "text.ids": Field("text", "text", "input", "int64", None, size=60),
        "text.labels": Field("text", "tokens", "target", "int64", None, size=60),
    }
    module = model.build(Spec(fields))
    model.load_pretrained(module)
    return module.eval()


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module({"text.ids": Ragged.from_rows([IDS])})["text.tokens"].logits()
    return found


IDS = torch.arange(5, 17)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": "linear"}, "has rope_scaling 'linear', and that must be a mapping"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "by 'linear' and lacks factor"),
    ("llama", {"rope_scaling": {"type": 3}}, "has type '3', and that must be a text"),
    ("llama", {"rope_scaling": LLAMA3}, "by 'llama3' and lacks low_freq_factor"),
    ("llama", {"rope_scaling": {"type": "yarn"}}, "by 'yarn'; known are"),
    ("llama", {"rope_parameters": [1]}, "has rope_parameters"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "has partial_rotary_factor 0.5"),
    ("llama", {"rope_parameters": {"full_attention": {}}}, "positions that differ by layer"),
    ("llama", {"quantization_config": "gptq"}, "has quantization_config 'gptq'"),
    ("llama", {"vocab_size": 10**12}, "the model needs 1000000000000 by its vocab_size"),
    ("llama", {"hidden_size": 10**9}, "by its hidden_size"),
    ("llama", {"intermediate_size": 10**9}, "by its intermediate_size"),
    ("llama", {"head_dim": 10**9}, "by its heads by head_dim"),
    ("llama", {"num_hidden_layers": 10**7}, "has num_hidden_layers 10000000, and tensors of 2 layers"),
    ("llama", {"num_hidden_layers": 1}, "has num_hidden_layers 1, and tensors of 2 layers"),
    ("llama", {"num_hidden_layers": "two"}, "has num_hidden_layers 'two', and that must be a whole number"),
    ("llama", {"num_attention_heads": True}, "has num_attention_heads 'True'"),
    ("llama", {"rms_norm_eps": "small"}, "has rms_norm_eps 'small', and that must be a number"),
    ("llama", {"rms_norm_eps": float("nan")}, "has rms_norm_eps 'nan'"),
    ("llama", {"hidden_act": ["silu"]}, "has hidden_act"),
    ("llama", {"tie_word_embeddings": "no"}, "has tie_word_embeddings 'no', and that must be true or false"),
    ("mistral", {"sliding_window": 8}, "sliding window of 8 of its 40 tokens"),
    ("gpt2", {"n_positions": 10**9}, "no tensor of it is larger than"),
    ("gpt2", {"n_layer": {}}, "has n_layer '{}'"),
    ("bert", {"type_vocab_size": 10**9}, "by its type_vocab_size"),
    ("roberta", {"pad_token_id": "one"}, "has pad_token_id 'one'"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_what_is_said_wrongly(case: int, saved: Path, tmp_path: Path) -> None:
    kind, changes, words = WRONG[case]
    path = changed(saved, kind, tmp_path / "wrong", **changes)
    family = {"roberta": "bert", "mistral": "llama"}.get(kind, kind)
    with pytest.raises(RecipeError) as caught:
        options_of(family, path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "index", [[], {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": {"a": []}}]
)
def test_a_damaged_index(index: Any, saved: Path, tmp_path: Path) -> None:
    path = changed(saved, "llama", tmp_path / "wrong")
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LubanError, match=r"index\.json' is damaged"):
        options_of("llama", path)


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        ("llama", ("tie_word_embeddings", "rms_norm_eps", "rope_parameters", "head_dim", "hidden_act")),
        ("mistral", ("tie_word_embeddings", "rms_norm_eps", "rope_parameters")),
        ("bert", ("layer_norm_eps", "type_vocab_size", "hidden_act")),
        ("roberta", ("layer_norm_eps", "pad_token_id")),
        ("gpt2", ("layer_norm_epsilon", "activation_function", "n_inner")),
    ],
)
def test_what_is_left_out_is_as_there(
    kind: str, left_out: tuple[str, ...], saved: Path, tmp_path: Path
) -> None:
    path = changed(saved, kind, tmp_path / "less", without=left_out)
    theirs = CLASSES[kind][1].from_pretrained(path).eval()
    with torch.no_grad():
        expected = theirs(input_ids=IDS[None]).logits[0]
    found = logits(built({"roberta": "bert", "mistral": "llama"}.get(kind, kind), path))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_null_is_left_out(saved: Path, tmp_path: Path) -> None:
    path = changed(saved, "roberta", tmp_path / "null", pad_token_id=None)
    assert options_of("bert", path)["max_positions"] == 38
    path = changed(saved, "bert", tmp_path / "segments", type_vocab_size=None)
    assert options_of("bert", path)["segments"] == 2


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_table_of_its_own_where_there_can_be_none(kind: str, tmp_path: Path) -> None:
    config, model, options = CLASSES[kind]
    model(config(**options, tie_word_embeddings=False)).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="that is not its table of tokens"):
        built(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("bert", "bert.encoder.layer.1.adapter.weight"),
        ("gpt2", "transformer.h.0.ln_3.weight"),
    ],
)
def test_a_tensor_that_nobody_reads(kind: str, name: str, saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / kind / "model.safetensors")
    block = ".".join(name.split(".")[:4])
    rotary = {"llama": f"{block}.rotary_emb.inv_freq", "bert": "bert.embeddings.position_ids"}
    tensors[rotary.get(kind, "transformer.h.0.attn.bias")] = torch.ones(1, 3)
    tensors["another_head.weight"] = torch.ones(3)
    (tmp_path / "config.json").write_text((saved / kind / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    built(kind, tmp_path)
    save_file({**tensors, name: torch.ones(32)}, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=f"has a tensor '{name}', which model type '{kind}' has no place"):
        built(kind, tmp_path)


@pytest.mark.parametrize("type_", ["llama", "qwen2", "smollm"])
@pytest.mark.parametrize("key", ["rope_theta", "eps"])
def test_numbers_that_divide_are_positive(type_: str, key: str) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Section("models").parse({"type": type_, "size": "tiny", key: 0})
