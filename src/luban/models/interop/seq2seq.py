"""Encoders with a decoder: BART, mBART and Marian."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luban.errors import RecipeError
from luban.models.interop.checkpoint import Checkpoint, said
from luban.models.interop.declaration import UNREAD, Kind, Layout, TensorNames, is_pair, refuse, require_size

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["LAYOUTS", "edges_of"]

_BLOCK = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "cross.q": "encoder_attn.q_proj",
    "cross.k": "encoder_attn.k_proj",
    "cross.v": "encoder_attn.v_proj",
    "cross.out": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
    "feed.up": "fc1",
    "feed.down": "fc2",
    "feed_norm": "final_layer_norm",
}
_PARTS = {
    "embedding.tokens": "embed_tokens",
    "embedding.positions": "embed_positions",
    "embedding.norm": "layernorm_embedding",
    "norm": "layer_norm",
}
_PADDING_POSITIONS = 2
"""Rows at the beginning of BART's table of positions that are never used."""
_UNREAD = re.compile(rf"{UNREAD.pattern}|\.embed_(tokens|positions)\.weight$")
"""A table of tokens may be the same under another name, and one of positions be sines."""


# --- the configuration ------------------------------------------------------------------------------------


def _read(found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keys in which BART, mBART and Marian differ, checking that encoder and decoder are as wide as each other."""
    config = found.config
    for key in ("attention_heads", "ffn_dim"):
        one, other = config.get(f"encoder_{key}"), config.get(f"decoder_{key}")
        if one != other:
            raise RecipeError(
                f"'{found.path}' has encoder_{key} {one} and decoder_{key} {other}, and this family has the same in both; take type 'huggingface', task seq2seq, which runs any architecture"
            )
    if kind != "mbart":  # early releases of transformers had one class for all
        for key, usual in (
            ("normalize_before", False),
            ("add_final_layer_norm", False),
            ("normalize_embedding", kind == "bart"),
        ):
            refuse(found, config, key, usual)
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
        **edges_of(config, found.path),
    }
    if not shared and (size := found.said("decoder_vocab_size", int)):
        more["decoder_vocabulary"] = size
        for ending in ("decoder.embed_tokens.weight", "lm_head.weight"):
            require_size(found, ending, 0, size, "decoder_vocab_size")
    if kind == "marian" and more["start"] is None:
        more["start"] = found.said("pad_token_id", int)
    return {key: value for key, value in more.items() if value is not None}


def edges_of(config: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return the tokens that texts begin and end with (`start`, `forced_first`, `forced_last`): from generation_config.json, or
    where it is missing, or there is no directory, from the config. A file that names no forced token has none, whatever the config
    says: `generate` reads the file alone."""
    both = dict(config)
    if folder is not None and (path := folder / "generation_config.json").is_file():
        try:
            both |= {"forced_bos_token_id": None, "forced_eos_token_id": None}
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
    return {ours: said(values, theirs, int, folder or Path("model.config")) for ours, theirs in names.items()}


def _kind(model: Language) -> str:
    """Return which of the three of `transformers` a model is.

    Raises:
        RecipeError: if it is none.
    """
    assert is_pair(model)
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


def _write(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
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


# --- the tensors ------------------------------------------------------------------------------------------


class _PairNames(TensorNames):
    """Names on two sides, whose tables may be one under any of its names."""

    def names(self, model: Language, ours: Iterable[str]) -> dict[str, str]:
        """Return tensor of ours → what Hugging Face calls it."""
        assert is_pair(model)
        found: dict[str, str] = {}
        for name in ours:
            side, _, rest = name.partition(".")
            stem, _, leaf = rest.rpartition(".")
            theirs = "model.encoder" if side == "core" else "model.decoder"
            if side == "language":
                found[name] = "final_logits_bias" if rest == "bias" else f"lm_head.{rest}"
            elif name == "core.embedding.tokens.weight" and model.shared:
                found[name] = "model.shared.weight"
            elif stem.startswith("layers."):
                number, _, part = stem.removeprefix("layers.").partition(".")
                found[name] = f"{theirs}.layers.{number}.{_BLOCK[part]}.{leaf}"
            elif side in ("core", "decoder"):
                found[name] = f"{theirs}.{_PARTS[stem]}.{leaf}"
        return found

    def roots(self, ours: list[str]) -> set[str]:
        """Return the sides that are read."""
        return {"encoder", "decoder"} if any(name.startswith("decoder.") for name in ours) else {"encoder"}

    def sources(
        self, model: Language, checkpoint: Checkpoint, ours: list[str]
    ) -> dict[str, Callable[[], Tensor]]:
        """Return how to read a checkpoint's tensors."""
        assert is_pair(model)
        parts: dict[str, Callable[[], Tensor]] = {}
        for name, theirs in self.names(model, ours).items():
            names = [theirs]
            if name.endswith("embedding.tokens.weight"):  # tied tables are saved under any of their names
                side = "encoder" if name.startswith("core.") else "decoder"
                names += [f"model.{side}.embed_tokens.weight"]
                names += ["model.shared.weight", "model.decoder.embed_tokens.weight"] if model.shared else []
                names += ["lm_head.weight"] if model.tied and (model.shared or side == "decoder") else []
            # Saved without its way to the vocabulary, a model has names without prefix.
            found = [n for one in names for n in (one, one.removeprefix("model.")) if n in checkpoint]
            if not found:
                continue
            parts[name] = read = checkpoint.places[found[0]]
            if name.endswith("embedding.positions.weight"):
                parts[name] = partial(_after_padding, read)
            elif name == "language.bias":
                parts[name] = partial(_flat, read)
        return parts

    def written(self, model: Language, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a module's tensors under the names that `transformers` reads."""
        assert is_pair(model)
        written = {theirs: own[name] for name, theirs in self.names(model, list(own)).items()}
        for side in ("encoder", "decoder"):
            if (table := written.get(f"model.{side}.embed_positions.weight")) is not None:
                unused = table.new_zeros(_PADDING_POSITIONS, table.shape[1])
                written[f"model.{side}.embed_positions.weight"] = torch.cat([unused, table])
        shared = written.get("model.shared.weight")
        table = written["model.decoder.embed_tokens.weight"] if shared is None else shared
        bias = written.get("final_logits_bias")
        written["final_logits_bias"] = table.new_zeros(1, len(table)) if bias is None else bias[None]
        if model.tied:
            written["lm_head.weight"] = table
        elif shared is None and "bart" in _kind(model):
            written["model.shared.weight"] = written[
                "model.encoder.embed_tokens.weight"
            ]  # which nothing reads
        return {name: tensor.contiguous() for name, tensor in written.items()}


def _after_padding(read: Callable[[], Tensor]) -> Tensor:
    return read()[_PADDING_POSITIONS:]


def _flat(read: Callable[[], Tensor]) -> Tensor:
    return read().flatten()


LAYOUTS = {
    "seq2seq": Layout(
        kinds={
            "bart": Kind(("seq2seq",), language="BartForConditionalGeneration"),
            "mbart": Kind(("seq2seq",), language="MBartForConditionalGeneration"),
            "marian": Kind(("seq2seq",), language="MarianMTModel"),
        },
        keys={
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
        read=_read,
        write=_write,
        kind=_kind,
        tensors=_PairNames(prefix="model.", unread=_UNREAD),
    ),
}
