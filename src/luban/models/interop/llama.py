"""Llama and its relatives: Mistral, Qwen2, Qwen3, SmolLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from luban.errors import RecipeError
from luban.models.interop.checkpoint import Checkpoint, said
from luban.models.interop.core import CoreNames
from luban.models.interop.declaration import Kind, Layout, is_tied, refuse

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["LAYOUTS"]

T = TypeVar("T")


def _read(found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that Llama's relatives have, checking that nothing is asked for that ours does not do."""
    config = found.config
    bias = found.said("attention_bias", bool)
    if kind != "qwen2" and bias:
        refuse(found, config, "attention_bias", False)  # theirs then has one on the output too
    for key, usual in (("mlp_bias", False), ("partial_rotary_factor", 1.0)):
        refuse(found, config, key, usual)
    slides = found.said("use_sliding_window", bool)
    window = found.said("sliding_window", int) if "sliding_window" in config else 4096
    if window and (kind == "mistral" if slides is None else slides) and window < options["max_positions"]:
        raise RecipeError(
            f"'{found.path}' looks back over a sliding window of {window:,} of its {options['max_positions']:,} tokens, which this family does not do; take type 'huggingface', which runs any architecture"
        )
    more: dict[str, Any] = {
        "kv_heads": options.get("kv_heads", options["heads"]),
        "attention_bias": kind == "qwen2" if bias is None else bias,
    }
    if "tied" not in options:
        more["tied"] = is_tied(found, "lm_head.weight")
    rope = found.said("rope_parameters", dict) or {}
    refuse(found, rope, "partial_rotary_factor", 1.0)
    scaling = found.said("rope_scaling", dict) or rope
    theta = found.said("rope_theta", float)
    theta = said(rope, "rope_theta", float, found.path) if theta is None else theta
    more["rope_theta"] = 10_000.0 if theta is None else theta
    how = said(scaling, "rope_type", str, found.path) or said(scaling, "type", str, found.path) or "default"

    def need(key: str, type_: type[T]) -> T:
        value = said(scaling, key, type_, found.path)
        if value is None:
            raise RecipeError(f"'{found.path}' stretches its positions by '{how}' and lacks {key}")
        return value

    if any(isinstance(value, dict) for value in scaling.values()):
        raise RecipeError(
            f"'{found.path}' has positions that differ by layer, which this family does not do; take type 'huggingface'"
        )
    if how == "linear":
        more["rope_scaling"] = {"type": "linear", "factor": need("factor", float)}
    elif how == "llama3":
        more["rope_scaling"] = {
            "type": "llama3",
            "factor": need("factor", float),
            "low": need("low_freq_factor", float),
            "high": need("high_freq_factor", float),
            "trained": need("original_max_position_embeddings", int),
        }
    elif how != "default":
        raise RecipeError(
            f"'{found.path}' stretches its positions by '{how}'; known are default, linear and llama3; take type 'huggingface'"
        )
    return more


def _write(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
    shape = model.shape(vocabulary)
    rope: dict[str, Any] = {"rope_theta": shape.rope.base, "rope_type": "default"}
    if shape.rope.scaling == "linear":
        rope |= {"rope_type": "linear", "factor": shape.rope.factor}
    elif shape.rope.scaling == "llama3":
        rope |= {
            "rope_type": "llama3",
            "factor": shape.rope.factor,
            "low_freq_factor": shape.rope.low,
            "high_freq_factor": shape.rope.high,
            "original_max_position_embeddings": shape.rope.trained,
        }
    if shape.attention_bias != (kind == "qwen2"):
        raise RecipeError(f"transformers' '{kind}' cannot have attention_bias {shape.attention_bias}")
    # Older releases of transformers, vLLM and llama.cpp read the first form, newer ones the second.
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"} if rope["rope_type"] != "default" else None
    return {"rope_theta": shape.rope.base, "rope_scaling": scaling, "rope_parameters": rope}


LAYOUTS = {
    "llama": Layout(
        kinds={
            "llama": Kind(
                ("llama", "smollm"), "LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification"
            ),
            "mistral": Kind(("llama",)),
            "qwen2": Kind(("qwen2",), "Qwen2Model", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification"),
            "qwen3": Kind(("qwen3",), "Qwen3Model", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
        },
        keys={
            "layers": "num_hidden_layers",
            "hidden_size": "hidden_size",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "head_size": "head_dim",
            "intermediate": "intermediate_size",
            "vocabulary": "vocab_size",
            "max_positions": "max_position_embeddings",
            "attention_dropout": "attention_dropout",
            "activation": "hidden_act",
            "eps": "rms_norm_eps",
            "tied": "tie_word_embeddings",
        },
        read=_read,
        write=_write,
        defaults={
            "layers": 32,
            "hidden_size": 4096,
            "heads": 32,
            "max_positions": 2048,
            "activation": "silu",
            "eps": 1e-6,
        },
        tensors=CoreNames(
            prefix="model.",
            blocks="layers.",
            block={
                "attention.q": "self_attn.q_proj",
                "attention.k": "self_attn.k_proj",
                "attention.v": "self_attn.v_proj",
                "attention.out": "self_attn.o_proj",
                "attention.q_norm": "self_attn.q_norm",
                "attention.k_norm": "self_attn.k_norm",
                "attention_norm": "input_layernorm",
                "feed.gate": "mlp.gate_proj",
                "feed.up": "mlp.up_proj",
                "feed.down": "mlp.down_proj",
                "feed_norm": "post_attention_layernorm",
            },
            under={"core.embedding.tokens": "embed_tokens", "core.norm": "norm"},
            beside={"language.": "lm_head."},
        ),
    ),
}
