"""Weights of a GGUF file, the format of llama.cpp: one file with quantised tensors, metadata and tokenizer.

::

    X.gguf ──▶ data/gguf/file.py      header, metadata, where tensors lie
                 ├──▶ gguf.py             config and tensors under the names of Hugging Face ──▶ Checkpoint
                 │      └── data/gguf/blocks.py   values out of blocks
                 └──▶ data/gguf/tokenizer.py  Tokenizer

The specification is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files of the architectures llama, qwen2 and
qwen3 are read, in F32, F16, BF16, Q8_0, Q4_0 and Q4_1.

Llama's rotary positions turn pairs of values. Hugging Face takes value i and value i + d/2 of a head for a pair, GGUF two
neighbours, as Meta does; so what makes queries and keys has its rows in another order, which is put right here. Qwen's files
keep the order of Hugging Face.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.data.gguf.blocks import KINDS, NAMES
from luban.data.gguf.file import GGUF, TensorInfo, read_gguf
from luban.data.gguf.tokenizer import tokenizer_of
from luban.errors import ArtefactError, RecipeError
from luban.models._core import Rope
from luban.models.interop.checkpoint import Checkpoint

__all__ = ["open_gguf", "tokenizer_of", "unpermuted"]

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_PERMUTED = "llama"  # the one whose queries and keys lie in the order of neighbours

_BESIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_FREQUENCIES = "rope_freqs.weight"  # by how much each pair turns slower, which is how a file says 'llama3'


def open_gguf(path: str | Path) -> Checkpoint:
    """Open a GGUF file of version 2 or 3; a tensor is read, and its values computed, when it is asked for.

    Quantised tensors come as 32-bit numbers, others as wide as they are stored.

    Raises:
        RecipeError: if it is no GGUF file, or one of an architecture or with tensors of a type that is not read.
        ArtefactError: if it is damaged or incomplete.

    Example:
        >>> found = open_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP
        >>> found.config["num_hidden_layers"], found["model.norm.weight"].shape  # doctest: +SKIP
        (30, torch.Size([576]))
    """
    file = read_gguf(path)
    architecture = file.need("general.architecture", str)
    if architecture not in _ARCHITECTURES:
        raise RecipeError(
            f"'{path}' holds a model of type '{architecture}'; those read from GGUF files are {', '.join(_ARCHITECTURES)}"
        )
    if (parts := file.get("split.count", int) or 1) > 1:
        raise RecipeError(f"'{path}' is one of {parts} parts; join them first, with llama-gguf-split --merge")
    for tensor in file.tensors.values():
        if tensor.type not in KINDS:
            raise RecipeError(
                f"'{path}': tensor '{tensor.name}' is of type {NAMES.get(tensor.type, tensor.type)}; those read are "
                f"{', '.join(NAMES[kind] for kind in KINDS)}: quantise the model to one of them"
            )
    config = _config(file, architecture)
    places: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in file.tensors.items():
        if name == _FREQUENCIES:
            continue  # config has it
        heads = None
        if architecture == _PERMUTED and re.search(r"\.attn_[qk]\.", name):
            heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
            if tensor.shape[0] % (2 * heads):
                raise ArtefactError(
                    f"'{path}' is damaged: tensor '{name}' has {tensor.shape[0]} rows for {heads} heads"
                )
        theirs = _theirs(file, name)
        places[theirs], shapes[theirs] = _reader(file.path, tensor, heads), tuple(tensor.shape)
    return Checkpoint(file.path, config, "gguf", places, shapes)


def unpermuted(rows: Tensor, heads: int) -> Tensor:
    """Bring rows that make rotary queries or keys from the order of neighbours to that of halves, (heads · d, ...).

    Example:
        >>> unpermuted(torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]), 1).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _theirs(file: GGUF, name: str) -> str:
    """Return what Hugging Face calls a tensor."""
    if name in _BESIDE:
        return _BESIDE[name]
    block = re.fullmatch(r"blk\.(\d{1,6})\.(.+)", name, re.ASCII)
    if block is None or block[2] not in _BLOCK:
        # Left out, it would be missed without a word.
        raise RecipeError(
            f"'{file.path}' has a tensor '{name[:80]}', which the models that are read do not have"
        )
    return f"model.layers.{block[1]}.{_BLOCK[block[2]]}"


def _reader(path: Path, tensor: TensorInfo, heads: int | None = None) -> Callable[[], Tensor]:
    kind = KINDS[tensor.type]

    def read() -> Tensor:
        try:
            # A map of this tensor alone, for as long as it is read: what was read before takes no memory.
            raw = np.memmap(path, np.uint8, "r", tensor.offset, (tensor.elements // kind.values, kind.size))
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"'{path}' has changed since it was opened: {' '.join(str(error).split())[:120]}"
            ) from None
        values = kind.read(raw).view(tensor.shape)
        return values if heads is None else unpermuted(values, heads)

    return read


def _config(file: GGUF, architecture: str) -> dict[str, Any]:
    """Return the config.json with which `transformers` would build the model."""

    def count(key: str, usual: int | None = None) -> int:
        value = file.metadata.get(f"{architecture}.{key}", usual)
        if isinstance(value, list) and value:  # one for each layer
            if any(other != value[0] for other in value):
                raise RecipeError(f"'{file.path}' has layers of different {key}, which no family here has")
            value = value[0]
        if value is None:
            raise ArtefactError(f"'{file.path}' is incomplete: its metadata lack {architecture}.{key}")
        if type(value) is not int or value <= 0:
            raise ArtefactError(f"'{file.path}' is damaged: {architecture}.{key} is {value!r}")
        return value

    for key, usual in {"expert_count": 0, "attention.causal": True}.items():
        value = file.get(f"{architecture}.{key}", type(usual))
        if value not in (usual, None):
            raise RecipeError(f"'{file.path}' has {key} {value}, which no family here does")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ArtefactError(
            f"'{file.path}' is incomplete: there is no tensor 'token_embd.weight' of two dimensions"
        )
    heads, hidden = count("attention.head_count"), count("embedding_length")
    head = count(
        "attention.key_length", file.get(f"{architecture}.rope.dimension_count", int) or hidden // heads
    )
    for key in ("attention.value_length", "rope.dimension_count"):
        if count(key, head) != head:
            raise RecipeError(
                f"'{file.path}' has {key} {count(key)} where heads are {head} wide, which no family here has"
            )
    theta = file.get(f"{architecture}.rope.freq_base", float)
    window = file.get(f"{architecture}.attention.sliding_window", int)
    return {
        "model_type": architecture,
        "num_hidden_layers": count("block_count"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv", heads),
        "head_dim": head,
        "intermediate_size": count("feed_forward_length"),
        "vocab_size": table.shape[0],
        "max_position_embeddings": count("context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": file.need(f"{architecture}.attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "rope_theta": theta,
        "rope_scaling": _scaling(file, architecture, theta or 10_000.0, head),
        "sliding_window": window,
        "use_sliding_window": bool(window),
    }


def _scaling(file: GGUF, architecture: str, theta: float, head: int) -> dict[str, Any] | None:
    """Return how positions are stretched, in the words of Hugging Face."""
    how = file.get(f"{architecture}.rope.scaling.type", str) or "none"
    factor = file.get(f"{architecture}.rope.scaling.factor", float)
    older = file.get(f"{architecture}.rope.scale_linear", float)
    if how == "none" and older not in (None, 0.0, 1.0):
        how, factor = "linear", older
    if how == "linear":
        if factor is None or not 0 < factor < float("inf"):
            raise ArtefactError(f"'{file.path}' is damaged: {architecture}.rope.scaling.factor is {factor}")
        return {"rope_type": how, "factor": factor}
    if how != "none":
        return {"rope_type": how}  # which is refused by whoever builds the model
    table = file.tensors.get(_FREQUENCIES)
    if table is None:
        return None
    slower = _reader(file.path, table)().flatten().float()
    factor = float(slower.max())
    if bool((slower == 1).all()):
        return None
    # The file keeps what comes out of Llama 3's rule and not the rule; all of Llama 3.1 to 3.3 have the same, but for factor.
    rule = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    expected = Rope(theta).frequencies(head, "cpu") / Rope(
        theta, "llama3", factor, 1.0, 4.0, 8192
    ).frequencies(head, "cpu")
    if slower.shape != expected.shape or not torch.allclose(slower, expected, rtol=1e-3):
        raise RecipeError(
            f"'{file.path}' slows its rotary positions down in a way that is not that of Llama 3"
        )
    return {"rope_type": "llama3", "factor": factor, **rule}
