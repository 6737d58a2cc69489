"""The configuration of Hugging Face's checkpoints, both ways, as the families declare it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.errors import RecipeError
from luban.models.interop.checkpoint import Checkpoint, open_checkpoint
from luban.models.interop.declaration import BLOCK, TABLES, is_pair, require_size
from luban.models.interop.families import FAMILIES, KINDS, kind_of

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["config_of", "options_of"]

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
_TYPES: dict[str, type] = {
    "attention_dropout": float,
    "layer_dropout": float,
    "eps": float,
    "activation": str,
    "tied": bool,
}
"""Key of ours → type of its value, where that is no whole number."""


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
            else "take type 'huggingface'"
            + (", task seq2seq" if family == "seq2seq" else "")
            + ", which runs any architecture of transformers"
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
    layout = KINDS[kind][1]
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


def _require_shapes(found: Checkpoint, options: dict[str, Any], keys: dict[str, str]) -> None:
    """Refuse sizes that are not those of the tensors, before anything of such a size is made."""
    numbers: dict[str, set[int]] = {}
    for name in found.shapes:
        if block := BLOCK.search(name):
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
        ("vocabulary", TABLES, 0),
        ("hidden_size", TABLES, 1),
        ("intermediate", ("intermediate.dense.weight", "lin1.weight", "up_proj.weight", "fc1.weight"), 0),
        ("intermediate", ("mlp.c_fc.weight",), 1),
    ):
        for ending in endings:
            if ours in options:
                require_size(found, ending, side, options[ours], keys[ours])
    if "head_size" in options and "heads" in options:
        require_size(
            found, "self_attn.q_proj.weight", 0, options["heads"] * options["head_size"], "heads by head_dim"
        )
    largest = max((max(shape, default=0) for shape in found.shapes.values()), default=0)
    tables = [n for n in found if n.endswith(("position_embeddings.weight", "wpe.weight"))]
    for ours in ("heads", "kv_heads", *(["max_positions"] if tables else [])):
        if options.get(ours, 0) > largest:
            raise RecipeError(
                f"'{found.path}' has {keys[ours]} {options[ours]}, and no tensor of it is larger than {largest}"
            )


def config_of(model: Language, vocabulary: int) -> dict[str, Any]:
    """Return the config.json with which `transformers` builds the same model, without what is its head's.

    Args:
        model: the family's options.
        vocabulary: rows of the token table.
    """
    kind = kind_of(model)
    layout = KINDS[kind][1]
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
