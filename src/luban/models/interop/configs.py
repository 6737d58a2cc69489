"""What Hugging Face calls the keys of a family, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.errors import RecipeError
from luban.models.interop.checkpoint import Checkpoint, open_checkpoint
from luban.models.seq2seq import Seq2Seq

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["FAMILIES", "config_of", "options_of"]

FAMILIES: dict[str, tuple[str, ...]] = {
    "bert": ("bert", "roberta", "xlm-roberta", "camembert", "distilbert"),
    "gpt2": ("gpt2",),
    "llama": ("llama", "mistral"),
    "smollm": ("llama",),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "seq2seq": ("bart", "mbart", "marian"),
}
"""Type of ours → model types of Hugging Face that it reads, the first of which it writes."""

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "mish": "mish",
}
_SHARED = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
    "max_positions": "max_position_embeddings",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_dropout": "hidden_dropout_prob",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
}
_KEYS: dict[str, dict[str, str]] = {
    "bert": _SHARED,
    "roberta": _SHARED,
    "distilbert": {
        "layers": "n_layers",
        "hidden_size": "dim",
        "heads": "n_heads",
        "intermediate": "hidden_dim",
        "vocabulary": "vocab_size",
        "max_positions": "max_position_embeddings",
        "attention_dropout": "attention_dropout",
        "layer_dropout": "dropout",
        "activation": "activation",
    },
    "gpt2": {
        "layers": "n_layer",
        "hidden_size": "n_embd",
        "heads": "n_head",
        "intermediate": "n_inner",
        "vocabulary": "vocab_size",
        "max_positions": "n_positions",
        "attention_dropout": "attn_pdrop",
        "layer_dropout": "resid_pdrop",
        "activation": "activation_function",
        "eps": "layer_norm_epsilon",
    },
    "seq2seq": {
        "layers": "encoder_layers",
        "decoder_layers": "decoder_layers",
        "hidden_size": "d_model",
        "heads": "encoder_attention_heads",
        "intermediate": "encoder_ffn_dim",
        "vocabulary": "vocab_size",
        "max_positions": "max_position_embeddings",
        "attention_dropout": "attention_dropout",
        "layer_dropout": "dropout",
        "activation": "activation_function",
    },
    "llama": {
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
}
_LAYOUTS = {"xlm-roberta": "roberta", "camembert": "roberta"}


def options_of(family: str, path: str | Path) -> dict[str, Any]:
    """Return the keys of a family that a checkpoint fixes.

    Raises:
        RecipeError: if the checkpoint is of another family, or does what ours does not.
    """
    found = open_checkpoint(path)
    if found.kind == "luban":
        model = dict(found.config.get("model", {}))
        if model.pop("type", None) != family:
            raise RecipeError(
                f"'{path}' is an artefact of type '{found.config.get('model', {}).get('type')}', and model.type is '{family}'"
            )
        return {
            key: value for key, value in model.items() if key not in ("from", "hidden", "encoders", "init")
        }
    return _options(family, found)


def _options(family: str, found: Checkpoint) -> dict[str, Any]:
    config = found.config
    kind = str(config.get("model_type"))
    if kind not in FAMILIES[family]:
        fitting = next((name for name, kinds in FAMILIES.items() if kind in kinds), None)
        advice = (
            f"take type '{fitting}'"
            if fitting
            else "take type 'huggingface', which runs any architecture of transformers"
        )
        raise RecipeError(
            f"'{found.path}' holds a model of type '{kind}', and '{family}' reads {', '.join(FAMILIES[family])}; {advice}"
        )
    if config.get("quantization_config"):
        how = config["quantization_config"].get("quant_method", "an unknown method")
        raise RecipeError(
            f"'{found.path}' holds weights that were quantised ({how}), whose numbers mean nothing by themselves; take the model as it was before, or a .gguf file"
        )
    layout = _LAYOUTS.get(kind, kind)
    keys = _KEYS["seq2seq" if family == "seq2seq" else layout if layout in _KEYS else "llama"]
    options = {ours: config[theirs] for ours, theirs in keys.items() if config.get(theirs) is not None}
    if "activation" in options:
        known = _ACTIVATIONS.get(str(options["activation"]))
        if known is None:
            raise RecipeError(
                f"'{found.path}' has the activation '{options['activation']}'; known are {', '.join(_ACTIVATIONS)}"
            )
        options["activation"] = known
    for key in ("attention_dropout", "layer_dropout", "eps"):
        if key in options:
            options[key] = float(options[key])
    if family == "seq2seq":
        return {**options, **_of_seq2seq(found, config, kind)}
    if family == "bert":
        options["layout"] = layout
        options["segments"] = int(config.get("type_vocab_size", 2)) if layout != "distilbert" else 0
        for key, usual in (
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
            ("add_cross_attention", False),
        ):
            _refuse(found, config, key, usual)
        if (
            layout == "roberta"
        ):  # whose table begins with rows for padding, as many as the number of its token and one
            options["max_positions"] = int(options["max_positions"]) - int(config.get("pad_token_id", 1)) - 1
        return options
    if family == "gpt2":
        for key, usual in (
            ("scale_attn_by_inverse_layer_idx", False),
            ("scale_attn_weights", True),
            ("add_cross_attention", False),
        ):
            _refuse(found, config, key, usual)
        return options
    return {**options, **_of_llama(found, config, kind)}


def _of_seq2seq(found: Checkpoint, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the keys in which BART, mBART and Marian differ, checking that encoder and decoder are as wide as each other."""
    for key in ("attention_heads", "ffn_dim"):
        one, other = config.get(f"encoder_{key}"), config.get(f"decoder_{key}")
        if one != other:
            raise RecipeError(
                f"'{found.path}' has encoder_{key} {one} and decoder_{key} {other}, and this family has the same in both; take type 'huggingface', which runs any architecture"
            )
    if kind != "mbart":  # early releases of transformers had one class for all
        for key, usual in (
            ("normalize_before", False),
            ("add_final_layer_norm", False),
            ("normalize_embedding", kind == "bart"),
        ):
            _refuse(found, config, key, usual)
    tied = bool(config.get("tie_word_embeddings", True))
    shared = tied and bool(config.get("share_encoder_decoder_embeddings", True))
    options: dict[str, Any] = {
        "norm": "pre" if kind == "mbart" else "post",
        "positions": "sinusoidal" if kind == "marian" else "learned",
        "embedding_norm": kind != "marian",
        "scale_embedding": bool(config.get("scale_embedding", False)),
        "shared": shared,
        "tied": tied,
        "output_bias": "final_logits_bias" in found,
        **_of_generation(found, config),
    }
    if not shared and (size := config.get("decoder_vocab_size")):
        options["decoder_vocabulary"] = int(size)
    if kind == "marian" and options["start"] is None:
        options["start"] = config.get("pad_token_id")
    return {key: value for key, value in options.items() if value is not None}


def _of_generation(found: Checkpoint, config: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens that texts begin and end with: from generation_config.json, or where it is missing from the config."""
    path = found.path / "generation_config.json"
    said = dict(config)
    if path.is_file():
        try:
            said |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise RecipeError(f"'{path}' cannot be read: {' '.join(str(error).split())[:120]}") from None
    names = {
        "start": "decoder_start_token_id",
        "forced_first": "forced_bos_token_id",
        "forced_last": "forced_eos_token_id",
    }
    values = {ours: said.get(theirs) for ours, theirs in names.items()}
    return {key: value[0] if isinstance(value, list) and value else value for key, value in values.items()}


def _of_llama(found: Checkpoint, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the keys that Llama's relatives have, checking that nothing is asked for that ours does not do."""
    options: dict[str, Any] = {}
    options.setdefault("kv_heads", config.get("num_key_value_heads") or config["num_attention_heads"])
    bias = config.get("attention_bias", kind == "qwen2")
    if kind != "qwen2" and bias:
        _refuse(found, config, "attention_bias", False)  # theirs then has one on the output too
    options["attention_bias"] = bool(bias)
    _refuse(found, config, "mlp_bias", False)
    _refuse(found, config, "partial_rotary_factor", 1.0)
    if config.get("sliding_window") and config.get("use_sliding_window", kind == "mistral"):
        window = int(config["sliding_window"])
        options["max_positions"] = min(
            window, int(config["max_position_embeddings"])
        )  # within it, nothing slides
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else {})
    options["rope_theta"] = float(config.get("rope_theta") or rope.get("rope_theta") or 10_000.0)
    how = scaling.get("rope_type", scaling.get("type", "default"))
    if how == "linear":
        options["rope_scaling"] = {"type": "linear", "factor": float(scaling["factor"])}
    elif how == "llama3":
        options["rope_scaling"] = {
            "type": "llama3",
            "factor": float(scaling["factor"]),
            "low": float(scaling["low_freq_factor"]),
            "high": float(scaling["high_freq_factor"]),
            "trained": int(scaling["original_max_position_embeddings"]),
        }
    elif how != "default":
        raise RecipeError(
            f"'{found.path}' stretches its positions by '{how}'; known are default, linear and llama3; take type 'huggingface'"
        )
    return options


def _refuse(found: Checkpoint, config: dict[str, Any], key: str, usual: Any) -> None:
    if config.get(key, usual) not in (usual, None):
        raise RecipeError(
            f"'{found.path}' has {key} {config[key]!r}, which this family does not do; take type 'huggingface', which runs any architecture"
        )


def config_of(model: Language, vocabulary: int) -> dict[str, Any]:
    """Return the config.json with which `transformers` builds the same model, without what is its head's.

    Args:
        model: the family's options.
        vocabulary: rows of the token table.
    """
    if isinstance(model, Seq2Seq):
        return _to_seq2seq(model, vocabulary)
    kind = FAMILIES[model.type][0] if model.type != "bert" else str(getattr(model, "layout", "bert"))
    keys = _KEYS.get(kind, _KEYS["llama"])
    shape = model.shape(vocabulary)
    values: dict[str, Any] = {
        "layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_size": shape.head_size,
        "intermediate": shape.intermediate,
        "vocabulary": vocabulary,
        "max_positions": model.max_positions + shape.position_offset,
        "attention_dropout": model.attention_dropout,
        "layer_dropout": model.layer_dropout,
        "activation": next((n for n, ours in _ACTIVATIONS.items() if ours == shape.activation), None),
        "eps": shape.eps,
        "tied": getattr(model, "tied", True),
    }
    if values["activation"] is None:
        raise RecipeError(
            f"transformers has no activation '{shape.activation}'; known are {', '.join(sorted(set(_ACTIVATIONS.values())))}"
        )
    config: dict[str, Any] = {"model_type": kind, **{theirs: values[ours] for ours, theirs in keys.items()}}
    if kind in ("bert", "roberta"):
        config["type_vocab_size"] = shape.segments
        config["pad_token_id"] = 1 if kind == "roberta" else 0
    elif kind == "gpt2":
        config["embd_pdrop"] = model.layer_dropout
    elif kind != "distilbert":
        config |= _to_llama(model, kind)
    if kind in ("bert", "roberta", "distilbert", "gpt2"):
        config["tie_word_embeddings"] = True
    return config


def seq2seq_kind(model: Seq2Seq) -> str:
    """Return which of the three of `transformers` a model is.

    Raises:
        RecipeError: if it is none.
    """
    form = (model.norm, model.positions, model.embedding_norm)
    kinds = {
        ("post", "learned", True): "bart",
        ("pre", "learned", True): "mbart",
        ("post", "sinusoidal", False): "marian",
    }
    shown = "; ".join(
        f"{kind}: norm {n}, positions {p}, embedding_norm {e}" for (n, p, e), kind in kinds.items()
    )
    if form not in kinds:
        raise RecipeError(
            f"transformers has no model with norm {form[0]}, positions {form[1]} and embedding_norm {form[2]}; it has {shown}"
        )
    if model.eps != 1e-5:
        raise RecipeError(f"transformers' '{kinds[form]}' has eps 1e-05, and this model has {model.eps:g}")
    if kinds[form] != "marian" and bool(model.shared) != model.tied:
        raise RecipeError(
            f"transformers' '{kinds[form]}' ties all its tables of tokens or none, and this model has shared {model.shared} and tied {model.tied}"
        )
    if kinds[form] == "marian" and model.shared and not model.tied:
        raise RecipeError(
            "transformers' 'marian' with a shared table ties it to the output too, and this model has tied false"
        )
    return kinds[form]


def _to_seq2seq(model: Seq2Seq, vocabulary: int) -> dict[str, Any]:
    kind, shape = seq2seq_kind(model), model.shape(vocabulary)
    activation = next((n for n, ours in _ACTIVATIONS.items() if ours == shape.activation), None)
    if activation is None:
        raise RecipeError(
            f"transformers has no activation '{shape.activation}'; known are {', '.join(sorted(set(_ACTIVATIONS.values())))}"
        )
    config: dict[str, Any] = {
        "model_type": kind,
        "is_encoder_decoder": True,
        "encoder_layers": shape.layers,
        "decoder_layers": model.decoder_layers,
        "d_model": shape.hidden_size,
        "vocab_size": vocabulary,
        "max_position_embeddings": model.max_positions,
        "attention_dropout": model.attention_dropout,
        "dropout": model.layer_dropout,
        "activation_function": activation,
        "scale_embedding": model.scaled,
        "tie_word_embeddings": model.tied,
        "decoder_start_token_id": model.start,
        "forced_bos_token_id": model.forced_first,
        "forced_eos_token_id": model.forced_last,
    }
    for side in ("encoder", "decoder"):
        config |= {f"{side}_attention_heads": shape.heads, f"{side}_ffn_dim": shape.intermediate}
    if kind == "marian":
        config["share_encoder_decoder_embeddings"] = bool(model.shared)
        config["decoder_vocab_size"] = vocabulary if model.shared else model.decoder_vocabulary or vocabulary
    return config


def _to_llama(model: Language, kind: str) -> dict[str, Any]:
    shape = model.shape(1)
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
