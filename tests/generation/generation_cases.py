"""Tiny models with random weights, and the same in `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from luban.data.contracts import Field, Spec
from luban.models._language import Language
from luban.recipe import Section

VOCABULARY = 60
END = 1
Pair = Callable[[str], tuple[Any, torch.nn.Module]]
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3")
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 0,
}


def theirs(kind: str) -> Any:
    """A model of `transformers` with tiny random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
        kept = {names.get(key, key): value for key, value in SMALL.items() if key != "num_key_value_heads"}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**kept))
    else:
        prefix = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
        own = {} if kind == "qwen2" else {"head_dim": 8}
        config = getattr(transformers, f"{prefix}Config")(**SMALL, **own)
        model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    with torch.no_grad():  # norms and biases begin at one and zero, which would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def spec() -> Spec:
    return Spec(
        {
            "text.ids": Field("text", "text", "input", "int64", None, size=VOCABULARY),
            "text.labels": Field("text", "tokens", "target", "int64", None, size=VOCABULARY),
        }
    )


def ours(kind: str, **options: Any) -> torch.nn.Module:
    """A network of Luban's."""
    model = Section("models").parse({"type": kind, **options})
    assert isinstance(model, Language)
    module = model.build(spec())
    model.load_pretrained(module)
    return module.eval()


def decode(ids: list[int]) -> str:
    """A letter a token."""
    return "".join(chr(ord("A") + i) for i in ids)
