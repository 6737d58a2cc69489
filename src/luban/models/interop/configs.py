"""What Hugging Face calls the keys of a family, both ways."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch

from luban.errors import RecipeError
from luban.models.interop.checkpoint import Checkpoint, open_checkpoint, said

if TYPE_CHECKING:
    from luban.models._language import Language
    from luban.models.seq2seq import Seq2Seq

__all__ = ["FAMILIES", "config_of", "is_pair", "options_of"]

T = TypeVar("T")

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
_TYPES: dict[str, type] = {
    "attention_dropout": float,
    "layer_dropout": float,
    "eps": float,
    "activation": str,
    "tied": bool,
}
"""Key of ours → type of its value, where that is no whole number."""
_TABLES = ("word_embeddings.weight", "wte.weight", "embed_tokens.weight", "shared.weight")
"""What the tables of tokens are called, by the ends of their names."""
_ALIASES = {
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    **dict.fromkeys(("bart", "mbart", "marian"), "seq2seq"),
}
"""Model types of Hugging Face whose keys are those of another layout; all that are not named have Llama's."""


@dataclass(frozen=True)
class _Layout:
    """How a kind of configuration is read and written: all that differs from one family to another.

    Attributes:
        keys: key of ours → theirs.
        read: returns further keys of ours, given the checkpoint, its model type and the keys that were read so far; refuses
            what ours does not do.
        write: returns further keys of theirs, given the family's options, the model type and how many tokens there are.
        defaults: by keys of ours what the classes of transformers take where config.json lacks a key; the tensors tell where that
            is not so.
    """

    keys: dict[str, str]
    read: Callable[[Checkpoint, str, dict[str, Any]], dict[str, Any]]
    write: Callable[[Language, str, int], dict[str, Any]]
    defaults: dict[str, Any] = field(default_factory=dict)


def _layout_of(kind: str) -> tuple[str, _Layout]:
    """Return the layout of a model type of Hugging Face, and its name."""
    name = _ALIASES.get(kind, kind if kind in _LAYOUTS else "llama")
    return name, _LAYOUTS[name]


def is_pair(model: Language) -> TypeGuard[Seq2Seq]:
    """Whether a family has a decoder beside its encoder."""
    return model.WRITES


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
        quantised = found.said("quantization_config", dict) or {}
        how = quantised.get("quant_method", "an unknown method")
        raise RecipeError(
            f"'{found.path}' holds weights that were quantised ({how}), whose numbers mean nothing by themselves; take the model as it was before, or a .gguf file"
        )
    layout = _layout_of(kind)[1]
    keys, options = layout.keys, dict(layout.defaults)
    for ours, theirs in keys.items():
        if (value := found.said(theirs, _TYPES.get(ours, int))) is not None:
            options[ours] = value
    activation = options.get("activation")
    if activation is not None:
        if activation not in _ACTIVATIONS:
            raise RecipeError(
                f"'{found.path}' has the activation '{activation}'; known are {', '.join(_ACTIVATIONS)}"
            )
        options["activation"] = _ACTIVATIONS[activation]
    _require_shapes(found, options, keys)
    return {**options, **layout.read(found, kind, options)}


def _of_bert(found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    layout, _ = _layout_of(kind)
    segments = found.said("type_vocab_size", int)
    more: dict[str, Any] = {
        "layout": layout,
        "segments": 0 if layout == "distilbert" else 2 if segments is None else segments,
    }
    _require(found, "token_type_embeddings.weight", 0, more["segments"], "type_vocab_size")
    for key, usual in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        _refuse(found, found.config, key, usual)
    if layout == "roberta":  # whose table begins with rows for padding
        more["max_positions"] = options["max_positions"] - padding_of(found) - 1
    return more


def _to_bert(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
    config: dict[str, Any] = {"tie_word_embeddings": True}
    if kind != "distilbert":
        config |= {
            "type_vocab_size": model.shape(vocabulary).segments,
            "pad_token_id": 1 if kind == "roberta" else 0,
        }
    return config


def _of_gpt2(found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    for key, usual in (
        ("scale_attn_by_inverse_layer_idx", False),
        ("scale_attn_weights", True),
        ("add_cross_attention", False),
    ):
        _refuse(found, found.config, key, usual)
    return {}


def _to_gpt2(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
    return {"embd_pdrop": model.layer_dropout, "tie_word_embeddings": True}


def padding_of(found: Checkpoint) -> int:
    """Return RoBERTa's padding token, behind whose number its positions begin."""
    token = found.said("pad_token_id", int)
    return 1 if token is None else token


def _require_shapes(found: Checkpoint, options: dict[str, Any], keys: dict[str, str]) -> None:
    """Refuse sizes that are not those of the tensors, before anything of such a size is made."""
    numbers: dict[str, set[int]] = {}
    for name in found.shapes:
        if block := re.search(r"(?:^|\.)(decoder\.layers|layers|layer|h)\.(\d{1,9})\.", name, re.ASCII):
            numbers.setdefault(block[1], set()).add(int(block[2]))
    for ours in ("layers", "decoder_layers"):
        if ours not in keys or ours not in options:
            continue
        inner = "decoder.layers" if ours == "decoder_layers" else None
        layers = set().union(
            *(n for where, n in numbers.items() if (where == "decoder.layers") == bool(inner))
        )
        if options[ours] != max(layers, default=-1) + 1:
            raise RecipeError(
                f"'{found.path}' has {keys[ours]} {options[ours]}, and tensors of {max(layers, default=-1) + 1} layers"
            )
    for ours, endings, side in (
        ("vocabulary", _TABLES, 0),
        ("hidden_size", _TABLES, 1),
        ("intermediate", ("intermediate.dense.weight", "lin1.weight", "up_proj.weight", "fc1.weight"), 0),
        ("intermediate", ("mlp.c_fc.weight",), 1),
    ):
        for ending in endings:
            if ours in options:
                _require(found, ending, side, options[ours], keys[ours])
    if "head_size" in options and "heads" in options:
        _require(
            found, "self_attn.q_proj.weight", 0, options["heads"] * options["head_size"], "heads by head_dim"
        )
    largest = max((max(shape, default=0) for shape in found.shapes.values()), default=0)
    tables = [n for n in found if n.endswith(("position_embeddings.weight", "wpe.weight"))]
    for ours in ("heads", "kv_heads", *(["max_positions"] if tables else [])):
        if options.get(ours, 0) > largest:
            raise RecipeError(
                f"'{found.path}' has {keys[ours]} {options[ours]}, and no tensor of it is larger than {largest}"
            )


def _require(found: Checkpoint, ending: str, side: int, size: int, key: str) -> None:
    """Refuse a size that is not that of the first tensor of a name."""
    tables = (n for n in found.shapes if n.endswith(ending))
    name = next((n for n in tables if "decoder." in ending or "decoder." not in n), None)
    if name is None or (len(shape := found.shapes[name]) == 2 and shape[side] == size):
        return
    raise RecipeError(f"'{found.path}': tensor '{name}' is {shape}, and the model needs {size} by its {key}")


def _of_seq2seq(found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keys in which BART, mBART and Marian differ, checking that encoder and decoder are as wide as each other."""
    config = found.config
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
    tied = found.said("tie_word_embeddings", bool) is not False
    shared = tied and found.said("share_encoder_decoder_embeddings", bool) is not False
    more: dict[str, Any] = {
        "norm": "pre" if kind == "mbart" else "post",
        "positions": "sinusoidal" if kind == "marian" else "learned",
        "embedding_norm": kind != "marian",
        "scale_embedding": found.said("scale_embedding", bool) or False,
        "shared": shared,
        "tied": tied,
        "output_bias": "final_logits_bias" in found,
        **_of_generation(found, config),
    }
    if not shared and (size := found.said("decoder_vocab_size", int)):
        more["decoder_vocabulary"] = size
        for ending in ("decoder.embed_tokens.weight", "lm_head.weight"):
            _require(found, ending, 0, size, "decoder_vocab_size")
    if kind == "marian" and more["start"] is None:
        more["start"] = found.said("pad_token_id", int)
    return {key: value for key, value in more.items() if value is not None}


def _of_generation(found: Checkpoint, config: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens that texts begin and end with: from generation_config.json, or where it is missing from the config."""
    path = found.path / "generation_config.json"
    both = dict(config)
    if path.is_file():
        try:
            both |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RecipeError(f"'{path}' cannot be read: {' '.join(str(error).split())[:120]}") from None
    names = {
        "start": "decoder_start_token_id",
        "forced_first": "forced_bos_token_id",
        "forced_last": "forced_eos_token_id",
    }
    values = {
        theirs: value[0] if isinstance(value, list) and value else value
        for theirs, value in ((theirs, both.get(theirs)) for theirs in names.values())
    }
    return {ours: said(values, theirs, int, found.path) for ours, theirs in names.items()}


def _of_llama(found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that Llama's relatives have, checking that nothing is asked for that ours does not do."""
    config = found.config
    bias = found.said("attention_bias", bool)
    if kind != "qwen2" and bias:
        _refuse(found, config, "attention_bias", False)  # theirs then has one on the output too
    for key, usual in (("mlp_bias", False), ("partial_rotary_factor", 1.0)):
        _refuse(found, config, key, usual)
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
    _refuse(found, rope, "partial_rotary_factor", 1.0)
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


def is_tied(found: Checkpoint, head: str) -> bool:
    """Whether what reads tokens off the states is the table of tokens: no other is there, or one of the same numbers."""
    if head not in found:
        return True
    # The decoder's before the encoder's.
    endings = ("decoder.embed_tokens.weight", *_TABLES)
    table = next((name for ending in endings for name in found if name.endswith(ending)), None)
    if table is None or found.shapes.get(table) != found.shapes.get(head):
        return False
    return torch.equal(found[table], found[head])


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
    kind = seq2seq_kind(model) if is_pair(model) else str(getattr(model, "layout", FAMILIES[model.type][0]))
    layout = _layout_of(kind)[1]
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
    if is_pair(model):
        values["decoder_layers"] = model.decoder_layers
    config = {"model_type": kind, **{theirs: values[ours] for ours, theirs in layout.keys.items()}}
    return config | layout.write(model, kind, vocabulary)


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


def _to_seq2seq(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
    assert is_pair(model)
    shape = model.shape(vocabulary)
    config: dict[str, Any] = {
        "is_encoder_decoder": True,
        "scale_embedding": model.scaled,
        "tie_word_embeddings": model.tied,
        "decoder_start_token_id": model.start,
        "forced_bos_token_id": model.forced_first,
        "forced_eos_token_id": model.forced_last,
        "decoder_attention_heads": shape.heads,
        "decoder_ffn_dim": shape.intermediate,
    }
    if kind == "marian":
        config["share_encoder_decoder_embeddings"] = bool(model.shared)
        config["decoder_vocab_size"] = vocabulary if model.shared else model.decoder_vocabulary or vocabulary
    return config


def _to_llama(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
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


_BERT = {"layers": 12, "hidden_size": 768, "heads": 12, "max_positions": 512, "activation": "gelu"}
_LAYOUTS: dict[str, _Layout] = {
    "bert": _Layout(_SHARED, _of_bert, _to_bert, {**_BERT, "intermediate": 3072, "eps": 1e-12}),
    "roberta": _Layout(_SHARED, _of_bert, _to_bert, {**_BERT, "intermediate": 3072, "eps": 1e-12}),
    "distilbert": _Layout(
        {
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
        _of_bert,
        _to_bert,
        {**_BERT, "layers": 6, "intermediate": 3072},
    ),
    "gpt2": _Layout(
        {
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
        _of_gpt2,
        _to_gpt2,
        {**_BERT, "max_positions": 1024, "activation": "gelu_new", "eps": 1e-5},
    ),
    "seq2seq": _Layout(
        {
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
        _of_seq2seq,
        _to_seq2seq,
    ),
    "llama": _Layout(
        {
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
        _of_llama,
        _to_llama,
        {
            "layers": 32,
            "hidden_size": 4096,
            "heads": 32,
            "max_positions": 2048,
            "activation": "silu",
            "eps": 1e-6,
        },
    ),
}
"""A new kind of configuration is one entry here."""
