"""Low-rank adapters in the format of PEFT, both ways: LoRA, rsLoRA and DoRA.

::

    adapter_config.json           rank, alpha, what is adapted, what else was trained
    adapter_model.safetensors     base_model.model.<module>.lora_A.weight (r, in), .lora_B.weight (out, r), ...

This file knows what adapters are called inside a module of ours (`luban.models._low_rank`) and nothing of how they are trained.

GPT-2 keeps queries, keys and values in one matrix, `c_attn`, and Luban keeps them apart. Their adapters join exactly, as
blocks along a diagonal::

    A = [A_q]          B = [B_q         ]          B A = [B_q A_q]
        [A_k]              [    B_k     ]                [B_k A_k]
        [A_v]              [        B_v ]                [B_v A_v]

and one of `c_attn` comes apart by sharing its A.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from luban.errors import ArtefactError, RecipeError
from luban.models._language import LanguageEncoder, encoder_of
from luban.models._network import Network, column_of
from luban.models.interop.checkpoint import open_checkpoint
from luban.models.interop.configs import options_of
from luban.models.interop.families import layout_of
from luban.models.interop.names import names_of, sources_of
from luban.tensors import write_tensors

__all__ = [
    "Adapter",
    "LowRank",
    "alpha_of",
    "layers_of",
    "read_adapter",
    "whole_of",
    "write_adapter",
]

_PREFIX = "base_model.model."
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNKNOWN = {
    "layer_replication": "repeats layers",
    "trainable_token_indices": "trains single tokens",
    "use_qalora": "is QA-LoRA",
    "alora_invocation_tokens": "is switched on by tokens",
    "arrow_config": "routes between adapters",
    "lora_bias": "has biases in the adapters",
    "target_parameters": "adapts parameters that are no linear layers",
}


# --- the arithmetic ---------------------------------------------------------------------------------------


@dataclass
class LowRank:
    """The adapter of one linear layer: ``scale * b @ a`` is added to its weight.

    Attributes:
        a: (r, in).
        b: (out, r).
        alpha: what the scale is derived from.
        magnitude: length of each row of the adapted weight, (out,), for DoRA.
    """

    a: Tensor
    b: Tensor
    alpha: float
    magnitude: Tensor | None = None


def alpha_of(scale: float, rank: int, rslora: bool) -> float:
    """Return the alpha that a scale came from; the scale was rounded to float32, and alphas have few digits.

    Example:
        >>> alpha_of(5.656854152679443, 8, True)
        16.0
    """
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha, 3)
    return near if math.isclose(near, alpha, rel_tol=1e-6) else alpha


# --- names ------------------------------------------------------------------------------------------------


def _names(network: Network) -> dict[str, str]:
    """Return parameter of a network → what `transformers` calls it in the class that has its head, weights of GPT-2 apart."""
    encoder = encoder_of(network)
    root = _root(network, encoder)
    own = [name for name, _ in encoder.named_parameters() if ".lora_" not in name]
    found = {f"{root}{ours}": theirs for ours, theirs in names_of(encoder.options, own).items()}
    heads = [name for name, _ in network.named_parameters() if name.startswith("heads.")]
    if len(network.heads) == 1:
        head = layout_of(encoder.options).classifier
        found |= {name: f"{head}.{name.rpartition('.')[2]}" for name in heads if ".lora_" not in name}
    return found


def _root(network: Network, encoder: LanguageEncoder) -> str:
    key = next(key for key, part in network.encoders.items() if part is encoder)
    return f"encoders.{key}."


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """Return module of ours → module of theirs, for those that have a weight matrix or vector."""
    return {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for ours, theirs in names.items()
        if ours.endswith(".weight")
    }


_FUSED = re.compile(r"\.attn\.([qkv])$")


def _fused(theirs: str) -> tuple[str, int] | None:
    """Return the matrix of GPT-2 that a part of it lies in, and which third; None for a module that stands alone."""
    match = _FUSED.search(theirs)
    return (_FUSED.sub(".attn.c_attn", theirs), "qkv".index(match[1])) if match else None


# --- reading ----------------------------------------------------------------------------------------------


@dataclass
class Adapter:
    """An adapter as it lies on disk.

    Attributes:
        path: the directory.
        config: adapter_config.json.
        tensors: by the names of `transformers`, without PEFT's prefix.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return the keys of `adapt` type `lora` that it fixes."""
        return {
            "rank": int(self.config["r"]),
            "alpha": float(self.config["lora_alpha"]),
            "dropout": float(self.config.get("lora_dropout", 0.0)),
            "rslora": bool(self.config.get("use_rslora", False)),
            "dora": bool(self.config.get("use_dora", False)),
        }


def read_adapter(path: str | Path, *, tensors: bool = True) -> Adapter:
    """Read a directory that PEFT, or `write_adapter`, wrote.

    Args:
        path: the directory.
        tensors: whether to read them, or the configuration alone.

    Raises:
        RecipeError: if there is no adapter, or one of a kind that Luban's layers cannot repeat.
        ArtefactError: if a file is damaged.
    """
    where = Path(path)
    try:
        config = json.loads((where / "adapter_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"'{path}' has no adapter_config.json; name a directory that PEFT's save_pretrained wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(
            f"'{where / 'adapter_config.json'}' is damaged: {' '.join(str(error).split())[:120]}"
        ) from None
    if not isinstance(config, dict) or not {"r", "lora_alpha"} <= config.keys():
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise RecipeError(f"'{path}' holds an adapter of kind {kind}; Luban reads LORA")
    _refuse(where, config)
    return Adapter(where, config, _tensors(where) if tensors else {})


def _refuse(where: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise RecipeError(f"'{where}' holds an adapter of kind {config.get('peft_type')}; Luban reads LORA")
    for key, what in _UNKNOWN.items():
        if config.get(key):
            raise RecipeError(
                f"'{where}' {what} ({key}), which Luban's low-rank layers do not; merge it with PEFT's merge_and_unload and name the merged model in model.from"
            )
    if config.get("bias", "none") != "none":
        raise RecipeError(
            f"'{where}' also trained biases (bias: {config['bias']}); merge it with PEFT's merge_and_unload and name the merged model in model.from"
        )
    init = str(config.get("init_lora_weights", ""))
    if init.startswith(_OTHER_BASE):
        raise RecipeError(
            f"'{where}' was begun with {init}, which changes the base weights too; save it as plain LoRA with PEFT's path_initial_model_for_weight_conversion"
        )


def _tensors(where: Path) -> dict[str, Tensor]:
    file = where / "adapter_model.safetensors"
    try:
        found = safetensors.torch.load_file(file)
    except FileNotFoundError:
        pickled = (where / "adapter_model.bin").is_file()
        raise RecipeError(
            f"'{where / 'adapter_model.bin'}' is a pickle, which may run anything when it is read; save it again where you trust it, with save_pretrained(DIR)"
            if pickled
            else f"'{where}' has no adapter_model.safetensors"
        ) from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"'{file}' is damaged: {' '.join(str(error).split())[:120]}") from None
    return {name.removeprefix(_PREFIX): value for name, value in found.items()}


_PART = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")


def layers_of(adapter: Adapter, network: Network) -> dict[str, LowRank]:
    """Return layer of the network → its adapter.

    Raises:
        RecipeError: if the adapter is of another model.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        match = _PART.search(name)
        if match is not None:
            parts.setdefault(name[: match.start()], {})[match[1]] = tensor
        elif ".lora_" in name:
            raise RecipeError(
                f"'{adapter.path}' has a tensor '{name}', which Luban's low-rank layers do not know; it reads adapters of linear layers"
            )
    ours = {theirs: name for name, theirs in _modules(_spelled(adapter, _names(network))).items()}
    layers = dict(network.named_modules())
    found: dict[str, LowRank] = {}
    for path, own in parts.items():
        if not {"lora_A", "lora_B"} <= own.keys():
            raise ArtefactError(f"'{adapter.path}' is incomplete: '{path}' has half of an adapter")
        alpha = float(
            _by_pattern(adapter.config.get("alpha_pattern") or {}, path, adapter.config["lora_alpha"])
        )
        whole = LowRank(own["lora_A"], own["lora_B"], alpha, own.get("lora_magnitude_vector"))
        if path in ours:
            found[ours[path]] = whole
            continue
        thirds = [ours.get(f"{path.removesuffix('c_attn')}{one}") for one in "qkv"]
        if not path.endswith(".c_attn") or None in thirds:
            raise RecipeError(
                f"'{adapter.path}' adapts '{path}', which this model has not; is it the adapter of another model?"
            )
        magnitudes = [None] * 3 if whole.magnitude is None else whole.magnitude.chunk(3)
        for third, b, magnitude in zip(thirds, whole.b.chunk(3), magnitudes, strict=True):
            assert third is not None
            found[third] = LowRank(whole.a, b, alpha, magnitude)
    for name, one in found.items():
        layer = layers[name]
        shape = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else None
        if shape != (len(one.b), one.a.shape[1]) or len(one.a) != one.b.shape[1]:
            raise RecipeError(
                f"'{adapter.path}' has an adapter of {(len(one.b), one.a.shape[1])} for '{name}', which is {shape}; is it the adapter of another model?"
            )
    return found


def whole_of(adapter: Adapter, network: Network) -> tuple[dict[str, Tensor], list[str]]:
    """Return parameter of the network → its value, for what was trained whole beside the adapters, and which parts start anew.

    A head of another number of classes cannot be taken over and starts anew.

    Raises:
        RecipeError: if the adapter is of another model.
    """
    names = _spelled(adapter, _names(network))
    ours = {theirs: name for name, theirs in names.items()}
    parameters = dict(network.named_parameters())
    found: dict[str, Tensor] = {}
    anew: list[str] = []
    for theirs, tensor in adapter.tensors.items():
        if ".lora_" in theirs:
            continue
        name = ours.get(theirs)
        if name is None and theirs.split(".")[0] in ("classifier", "score"):
            anew.append(theirs)  # a head where this network has none, several, or one without a bias
            continue
        if name is None:
            raise RecipeError(
                f"'{adapter.path}' has a tensor '{theirs}', which this model has not; is it the adapter of another model?"
            )
        value = tensor.T if _is_transposed(network, name) else tensor
        if value.shape == parameters[name].shape:
            found[name] = value
        elif name.startswith("heads."):
            anew.append(name)
        else:
            raise RecipeError(
                f"'{adapter.path}': tensor '{theirs}' is {tuple(value.shape)}, and the model needs {tuple(parameters[name].shape)}"
            )
    return found, anew


def _is_transposed(network: Network, name: str) -> bool:
    """Whether GPT-2 keeps a weight as (in, out)."""
    return (
        layout_of(encoder_of(network).options).tensors.transposed
        and name.endswith(".weight")
        and (".attention." in name or ".feed." in name)
    )


def _spelled(adapter: Adapter, names: dict[str, str]) -> dict[str, str]:
    """Return the names as the adapter spells them: those of a model without a head have no prefix."""
    prefixes = {theirs.split(".")[0] + "." for ours, theirs in names.items() if ".core." in ours}
    (prefix,) = prefixes
    if any(name.startswith(prefix) for name in adapter.tensors):
        return names
    return {ours: theirs.removeprefix(prefix) for ours, theirs in names.items()}


def _by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return what a pattern of PEFT's says about a module."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


# --- writing ----------------------------------------------------------------------------------------------


def write_adapter(
    network: nn.Module,
    folder: str | Path,
    *,
    base: str | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
) -> dict[str, Any]:
    """Write the adapters of a network, and what was trained beside them, for ``peft.PeftModel.from_pretrained``.

    Args:
        network: with low-rank layers.
        folder: where the two files go; made if it is not there.
        base: the model that the adapters belong to, a directory or a name; a directory is compared with the network.
        dropout, rslora: as the adapters were trained.

    Returns:
        The configuration that was written.

    Raises:
        RecipeError: if something was trained that the format, or the class of `transformers`, cannot hold.
    """
    if not isinstance(network, Network) or not any(
        isinstance(part, LanguageEncoder) for part in network.encoders.values()
    ):
        raise RecipeError(
            "format peft is for language models of Luban's own families (bert, gpt2, llama, ...), and this model is none; export it as hf"
        )
    low = _low_rank(network)
    if not low:
        raise RecipeError("format peft is for a model with adapters, and this one has none; export it as hf")
    names = _names(network)
    _check_expressible(network, names, low)
    if base is not None and Path(base).is_dir():
        _check_base(network, Path(base))
    joined = _joined(network, low, names, rslora)
    tensors: dict[str, Tensor] = {}
    for path, one in joined.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = one.a
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = one.b
        if one.magnitude is not None:
            tensors[f"{_PREFIX}{path}.lora_magnitude_vector"] = one.magnitude
    whole = _whole(network, names, low)
    parameters = dict(network.named_parameters())
    for name in whole:
        tensors[f"{_PREFIX}{names[name]}"] = parameters[name]
    everything = [path for path in _modules(names).values() if not _fused(path)]
    everything += [fused[0] for path in _modules(names).values() if (fused := _fused(path))]
    rank = Counter(len(one.a) for one in joined.values()).most_common(1)[0][0]
    alpha = Counter(one.alpha for one in joined.values() if len(one.a) == rank).most_common(1)[0][0]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _task(network),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "use_dora": any(one.magnitude is not None for one in joined.values()),
        "bias": "none",
        "fan_in_fan_out": layout_of(encoder_of(network).options).tensors.transposed,
        "target_modules": _short(sorted(joined), everything),
        "modules_to_save": _saved(names[name] for name in whole) or None,
        "rank_pattern": {path: len(one.a) for path, one in joined.items() if len(one.a) != rank},
        "alpha_pattern": {path: _plain(one.alpha) for path, one in joined.items() if one.alpha != alpha},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def _low_rank(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return layer → its tensors by their last names."""
    state = network.state_dict()
    found: dict[str, dict[str, Tensor]] = {}
    for name in state:
        layer = name.removesuffix(".lora_a")
        if layer != name:
            leaves = ("weight", "lora_a", "lora_b", "lora_scale", "lora_magnitude")
            found[layer] = {leaf: state[f"{layer}.{leaf}"] for leaf in leaves if f"{layer}.{leaf}" in state}
    return found


def _check_expressible(
    network: Network, names: Mapping[str, str], low: Mapping[str, dict[str, Tensor]]
) -> None:
    encoder = encoder_of(network)
    if len(network.heads) > 1:
        raise RecipeError(
            f"the format peft has one head, and the model has {len(network.heads)}: "
            + ", ".join(column_of(key) for key in network.heads)
        )
    pool = layout_of(encoder.options).pool
    if len(network.heads) == 1 and encoder.pool != pool:
        raise RecipeError(
            f"the model's pool is '{encoder.pool}', and the class of transformers that reads the adapter has '{pool}'; merge the adapters and export as hf"
        )
    if odd := [name for name in low if name not in _modules(names)]:
        raise RecipeError(f"'{odd[0]}' has an adapter, and transformers has no such layer to put it on")
    if mixed := {"lora_magnitude" in one for one in low.values()}:
        assert mixed
        if len(mixed) > 1:
            raise RecipeError(
                "some layers have DoRA and others LoRA, which the format peft cannot hold in one adapter"
            )
    if any(".pooler" in name and names[f"{name}.weight"].startswith("classifier.") for name in low):
        raise RecipeError(
            "transformers trains RoBERTa's pooler whole; put '*.pooler.*' into train of the adapt step"
        )
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            continue
        if name not in names:
            raise RecipeError(
                f"'{name}' has no place in the classes of transformers, so that no adapter of theirs can hold it"
            )
        if parameter.requires_grad and (".embedding." in name or _is_transposed(network, name)):
            raise RecipeError(
                f"'{name}' was trained beside the adapters, which the format peft cannot hold; merge the adapters and export as hf"
            )


def _check_base(network: Network, base: Path) -> None:
    """Compare the frozen weights with those of the model that the adapters are said to belong to."""
    encoder = encoder_of(network)
    checkpoint = open_checkpoint(base)
    depth = options_of(encoder.options.type, base).get("layers")
    if depth != encoder.options.layers:
        raise RecipeError(
            f"the adapters do not belong to '{base}': it has {depth} layers, and the model {encoder.options.layers}"
        )
    frozen = {
        name: parameter
        for name, parameter in encoder.named_parameters()
        if name.startswith("core.") and ".lora_" not in name and not parameter.requires_grad
    }
    found = sources_of(encoder.options, checkpoint, list(frozen))
    for name, parameter in frozen.items():
        theirs = found[name]() if name in found else None
        same = theirs is not None and theirs.shape == parameter.shape
        if theirs is None or not same or not torch.equal(theirs.float(), parameter.float().cpu()):
            raise RecipeError(
                f"the adapters do not belong to '{base}': '{name}' is another there; name the model that training began with, or merge the adapters and export as hf"
            )


def _joined(
    network: Network, low: Mapping[str, dict[str, Tensor]], names: Mapping[str, str], rslora: bool
) -> dict[str, LowRank]:
    """Return module of theirs → its adapter; those of GPT-2's queries, keys and values as one."""
    result: dict[str, LowRank] = {}
    paths = _modules(names)
    for name, own in low.items():
        fused = _fused(paths[name])
        if fused is None:
            result[paths[name]] = _one(own, own["lora_b"], rslora)
            continue
        if fused[0] in result:
            continue
        stem = name.rpartition(".")[0]
        parts = [low.get(f"{stem}.{one}") for one in "qkv"]
        layers = [network.get_submodule(f"{stem}.{one}") for one in "qkv"]
        scale = own["lora_scale"]
        blocks = [
            scale.new_zeros(_width(layer), 0)
            if part is None
            else part["lora_b"] * (part["lora_scale"] / scale)
            for part, layer in zip(parts, layers, strict=True)
        ]
        joined = {
            "lora_a": torch.cat([part["lora_a"] for part in parts if part is not None]),
            "lora_scale": scale,
        }
        if "lora_magnitude" in own:
            joined["lora_magnitude"] = torch.cat(
                [
                    torch.linalg.vector_norm(layer.get_parameter("weight"), dim=1)
                    if part is None
                    else part["lora_magnitude"]
                    for part, layer in zip(parts, layers, strict=True)
                ]
            )
        b = _diagonal(blocks)
        result[fused[0]] = _one(joined, b, rslora)
    return result


def _diagonal(blocks: list[Tensor]) -> Tensor:
    """Return a matrix with these (rows, columns) along its diagonal and zeros elsewhere."""
    rows, columns = (sum(block.shape[side] for block in blocks) for side in (0, 1))
    whole = blocks[0].new_zeros(rows, columns)
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole


def _width(layer: nn.Module) -> int:
    return len(layer.get_parameter("weight"))


def _one(own: Mapping[str, Tensor], b: Tensor, rslora: bool) -> LowRank:
    rank = len(own["lora_a"])
    alpha = alpha_of(float(own["lora_scale"]), rank, rslora)
    return LowRank(own["lora_a"], b, alpha, own.get("lora_magnitude"))


def _whole(network: Network, names: Mapping[str, str], low: Mapping[str, Any]) -> list[str]:
    """Return the parameters that go with the adapters: what was trained, and heads and poolers in any case, since they may be
    new in the network and would be drawn anew elsewhere."""
    return [
        name
        for name, parameter in network.named_parameters()
        if name in names
        and name.rpartition(".")[0] not in low
        and (
            name.startswith("heads.")
            or (".pooler." in name and len(network.heads) == 1)
            or parameter.requires_grad
        )
    ]


def _saved(names: Iterable[str]) -> list[str]:
    """Return modules_to_save: a classifier as a whole, others by their full names."""
    modules = (name.rpartition(".")[0] for name in names)
    return list(
        dict.fromkeys("classifier" if module.startswith("classifier.") else module for module in modules)
    )


def _short(targets: list[str], everything: list[str]) -> list[str]:
    """Return target_modules: last names (``q_proj``) or names within a block where they say the same, else full names."""
    for parts in (1, 2, 3):
        ends = sorted({".".join(path.split(".")[-parts:]) for path in targets})
        picked = {path for path in everything if any(f".{path}".endswith(f".{end}") for end in ends)}
        if picked == set(targets) and not any(part.isdigit() for end in ends for part in end.split(".")):
            return ends
    return targets


def _task(network: Network) -> str | None:
    encoder = encoder_of(network)
    if len(network.heads) == 1:
        return "SEQ_CLS"
    return "CAUSAL_LM" if encoder.language is not None and encoder.options.CAUSAL else None


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value
