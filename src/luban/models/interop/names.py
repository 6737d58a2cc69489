"""What Hugging Face calls the tensors of a family, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luban.errors import ArtefactError, RecipeError
from luban.models._low_rank import merging
from luban.models.interop.checkpoint import Checkpoint, open_checkpoint
from luban.models.interop.configs import is_pair, is_tied, padding_of, seq2seq_kind

if TYPE_CHECKING:
    from luban.models._language import Language, LanguageEncoder
    from luban.models.seq2seq import Seq2Seq

__all__ = ["load_into", "names_of", "tensors_of"]

_BERT_BLOCK = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed.up": "intermediate.dense",
    "feed.down": "output.dense",
    "feed_norm": "output.LayerNorm",
}
_DISTILBERT_BLOCK = {
    "attention.q": "attention.q_lin",
    "attention.k": "attention.k_lin",
    "attention.v": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed.up": "ffn.lin1",
    "feed.down": "ffn.lin2",
    "feed_norm": "output_layer_norm",
}
_GPT2_BLOCK = {
    # q, k and v lie in one matrix, c_attn, which is taken apart when it is read.
    "attention.q": "attn.q",
    "attention.k": "attn.k",
    "attention.v": "attn.v",
    "attention.out": "attn.c_proj",
    "attention_norm": "ln_1",
    "feed.up": "mlp.c_fc",
    "feed.down": "mlp.c_proj",
    "feed_norm": "ln_2",
}
_LLAMA_BLOCK = {
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
}
_EMBEDDINGS = {
    "core.embedding.tokens": "embeddings.word_embeddings",
    "core.embedding.positions": "embeddings.position_embeddings",
    "core.embedding.segments": "embeddings.token_type_embeddings",
    "core.embedding.norm": "embeddings.LayerNorm",
}
_LAYOUTS: dict[str, tuple[str, str, dict[str, str], dict[str, str], dict[str, str]]] = {
    # prefix, blocks, names in a block, names under the prefix, names beside it
    "bert": (
        "bert.",
        "encoder.layer.",
        _BERT_BLOCK,
        {**_EMBEDDINGS, "pooler": "pooler.dense"},
        {
            "language.transform.0": "cls.predictions.transform.dense",
            "language.transform.2": "cls.predictions.transform.LayerNorm",
            "language.": "cls.predictions.",
        },
    ),
    "roberta": (
        "roberta.",
        "encoder.layer.",
        _BERT_BLOCK,
        _EMBEDDINGS,
        {
            "pooler": "classifier.dense",
            "language.transform.0": "lm_head.dense",
            "language.transform.2": "lm_head.layer_norm",
            "language.": "lm_head.",
        },
    ),
    "distilbert": (
        "distilbert.",
        "transformer.layer.",
        _DISTILBERT_BLOCK,
        _EMBEDDINGS,
        {
            "pooler": "pre_classifier",
            "language.transform.0": "vocab_transform",
            "language.transform.2": "vocab_layer_norm",
            "language.": "vocab_projector.",
        },
    ),
    "gpt2": (
        "transformer.",
        "h.",
        _GPT2_BLOCK,
        {"core.embedding.tokens": "wte", "core.embedding.positions": "wpe", "core.norm": "ln_f"},
        {"language.": "lm_head."},
    ),
    "llama": (
        "model.",
        "layers.",
        _LLAMA_BLOCK,
        {"core.embedding.tokens": "embed_tokens", "core.norm": "norm"},
        {"language.": "lm_head."},
    ),
}


_SEQ2SEQ_BLOCK = {
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
_SEQ2SEQ_PARTS = {
    "embedding.tokens": "embed_tokens",
    "embedding.positions": "embed_positions",
    "embedding.norm": "layernorm_embedding",
    "norm": "layer_norm",
}
_PADDING_POSITIONS = 2
"""Rows at the beginning of BART's table of positions that are never used."""


def layout_of(model: Language) -> str:
    """Return the name under which a family's tensors are known."""
    layout = str(getattr(model, "layout", model.type))
    return layout if layout in _LAYOUTS else "llama"


def names_of(model: Language, ours: list[str]) -> dict[str, str]:
    """Return tensor of ours → what Hugging Face calls it, for tensors of a `LanguageEncoder`.

    Example:
        >>> from luban.models.llama import Llama
        >>> names_of(Llama(size="tiny"), ["core.layers.0.attention.q.weight"])
        {'core.layers.0.attention.q.weight': 'model.layers.0.self_attn.q_proj.weight'}
    """
    if is_pair(model):
        return _names_of_seq2seq(model, ours)
    prefix, blocks, block, under, beside = _LAYOUTS[layout_of(model)]
    found: dict[str, str] = {}
    for name in ours:
        stem, _, leaf = name.rpartition(".")
        if stem.startswith("core.layers."):
            number, _, part = stem.removeprefix("core.layers.").partition(".")
            found[name] = f"{prefix}{blocks}{number}.{block[part]}.{leaf}"
        elif stem in under:
            found[name] = f"{prefix}{under[stem]}.{leaf}"
        elif stem in beside:
            found[name] = f"{beside[stem]}.{leaf}"
        elif stem == "language":
            found[name] = f"{beside['language.']}{leaf}"
    return found


def _names_of_seq2seq(model: Seq2Seq, ours: list[str]) -> dict[str, str]:
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
            found[name] = f"{theirs}.layers.{number}.{_SEQ2SEQ_BLOCK[part]}.{leaf}"
        elif side in ("core", "decoder"):
            found[name] = f"{theirs}.{_SEQ2SEQ_PARTS[stem]}.{leaf}"
    return found


def load_into(model: Language, encoder: LanguageEncoder, path: Path) -> list[str]:
    """Copy a checkpoint's tensors into a module.

    Returns:
        Which of its parts the checkpoint lacks, and which therefore start anew: the pooler, the way to the vocabulary.

    Raises:
        ArtefactError: if a tensor of the core is missing or of another shape.
        RecipeError: if the checkpoint has tensors that the family does not.
    """
    checkpoint = open_checkpoint(path)
    own = encoder.state_dict()
    if checkpoint.kind != "luban":
        _require_read(model, checkpoint, encoder)
    source = _source(model, checkpoint, list(own))
    missing: set[str] = set()
    with torch.no_grad():
        for name, tensor in own.items():
            found = source.get(name)
            if found is None:
                if name.startswith(("core.", "decoder.")):
                    raise ArtefactError(
                        f"'{path}' is incomplete: there is no tensor '{_theirs(model, name)}'"
                    )
                missing.add(name.split(".")[0])
                continue
            value = found()  # one at a time: all of them together would be the model twice
            if name == "core.embedding.tokens.weight" and len(value) < len(tensor):
                raise ArtefactError(
                    f"'{path}' has vectors for {len(value):,} tokens, and the tokenizer has {len(tensor):,}: they do not belong together"
                )
            if value.shape != tensor.shape:
                raise ArtefactError(
                    f"'{path}': tensor '{_theirs(model, name)}' is {tuple(value.shape)}, and the model needs {tuple(tensor.shape)}"
                )
            tensor.copy_(value)
    return sorted(missing)


def _require_read(model: Language, checkpoint: Checkpoint, encoder: LanguageEncoder) -> None:
    """Refuse a checkpoint of which a part would be left out without a word."""
    own = list(encoder.state_dict())
    names = set(names_of(model, own).values())
    pair = is_pair(model)
    layout = "seq2seq" if pair else layout_of(model)
    if pair:
        sides = ("encoder", "decoder") if any(name.startswith("decoder.") for name in own) else ("encoder",)
        prefix, roots = "model.", {*sides}
    else:
        prefix, blocks, _, under, _ = _LAYOUTS[layout]
        roots = {blocks.partition(".")[0], *(stem.partition(".")[0] for stem in under.values())}
    bare = not any(name.startswith(prefix) for name in checkpoint)
    depth = {"layers": model.layers, "decoder.layers": getattr(model, "decoder_layers", None) or model.layers}
    for name in checkpoint:
        rest = name if bare else name.removeprefix(prefix)
        if (bare or pair) and rest.partition(".")[0] not in roots:
            continue
        if not (bare or pair or name.startswith(prefix)):
            continue
        whole = rest.replace(".attn.c_attn.", ".attn.q.") if layout == "gpt2" else rest
        if prefix + whole in names or whole in names or _UNREAD.search(rest):
            continue
        if pair and re.search(r"\.embed_(tokens|positions)\.weight$", rest):
            continue  # the same table under another name, or sines
        block = re.search(r"(?:^|\.)(decoder\.layers|layers|layer|h)\.(\d{1,9})\.", rest, re.ASCII)
        if block and int(block[2]) >= depth.get(block[1], model.layers):
            continue  # the recipe asked for fewer
        raise RecipeError(
            f"'{checkpoint.path}' has a tensor '{name[:80]}', which model type '{model.type}' has no place for; take type 'huggingface', which runs any architecture"
        )
    head = "lm_head.weight" if pair else _HEADS[layout]
    if encoder.language is not None and encoder.language.weight is None and not is_tied(checkpoint, head):
        raise RecipeError(
            f"'{checkpoint.path}' has a table '{head}' that is not its table of tokens, and here they are one (tied); take type 'huggingface', which runs any architecture"
        )


_HEADS = {
    "bert": "cls.predictions.decoder.weight",
    "roberta": "lm_head.decoder.weight",
    "distilbert": "vocab_projector.weight",
    "gpt2": "lm_head.weight",
    "llama": "lm_head.weight",
}
"""What reads tokens off the states, where it is not the table of tokens."""
_UNREAD = re.compile(r"(position_ids|token_type_ids|inv_freq|\.attn\.(masked_)?bias|(^|\.)pooler\..*)$")
"""Numbers that follow from the configuration, and the pooler where it is not wanted."""


def _theirs(model: Language, name: str) -> str:
    return names_of(model, [name]).get(name, name)


def _source(model: Language, checkpoint: Checkpoint, ours: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Return how to read the checkpoint's tensors, by our names, as far as it has them."""
    if checkpoint.kind == "luban":
        return merging(
            {
                name.removeprefix("encoders.").partition(".")[2]: checkpoint.places[name]
                for name in checkpoint
                if name.startswith("encoders.")
            }
        )
    if is_pair(model):
        return _source_of_seq2seq(model, checkpoint, ours)
    prefix = _LAYOUTS[layout_of(model)][0]
    bare = not any(
        name.startswith(prefix) for name in checkpoint
    )  # saved without a head, names have no prefix
    gpt2 = layout_of(model) == "gpt2"
    parts: dict[str, Callable[[], Tensor]] = {}
    for name, theirs in names_of(model, ours).items():
        theirs = theirs.removeprefix(prefix) if bare else theirs
        if theirs in checkpoint:
            read = checkpoint.places[theirs]
            parts[name] = partial(_transposed, read) if gpt2 and _is_convolution(name) else read
            if layout_of(model) == "roberta" and name == "core.embedding.positions.weight":
                pad = padding_of(checkpoint)
                parts[name] = read if pad == 1 else partial(_behind_padding, read, pad)
        elif gpt2 and ".attn." in theirs:
            whole = theirs.rsplit(".", 2)[0] + ".c_attn." + theirs.rsplit(".", 1)[1]
            if whole in checkpoint:
                parts[name] = partial(_third, checkpoint.places[whole], theirs.rsplit(".", 2)[1])
    if (
        "language.weight" in ours
        and "language.weight" not in parts
        and "core.embedding.tokens.weight" in parts
    ):
        parts["language.weight"] = parts["core.embedding.tokens.weight"]  # tied there, not here
    return parts


def _source_of_seq2seq(
    model: Seq2Seq, checkpoint: Checkpoint, ours: list[str]
) -> dict[str, Callable[[], Tensor]]:
    parts: dict[str, Callable[[], Tensor]] = {}
    for name, theirs in _names_of_seq2seq(model, ours).items():
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


def _after_padding(read: Callable[[], Tensor]) -> Tensor:
    return read()[_PADDING_POSITIONS:]


def _flat(read: Callable[[], Tensor]) -> Tensor:
    return read().flatten()


def _tensors_of_seq2seq(model: Seq2Seq, own: dict[str, Tensor]) -> dict[str, Tensor]:
    written = {theirs: own[name] for name, theirs in _names_of_seq2seq(model, list(own)).items()}
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
    elif shared is None and "bart" in seq2seq_kind(model):
        written["model.shared.weight"] = written["model.encoder.embed_tokens.weight"]  # which nothing reads
    return {name: tensor.contiguous() for name, tensor in written.items()}


def _behind_padding(read: Callable[[], Tensor], pad: int) -> Tensor:
    """Return RoBERTa's positions behind two unused rows, where padding is not token 1."""
    table = read()
    return torch.cat([table.new_zeros(2, table.shape[1]), table[pad + 1 :]])


def _transposed(read: Callable[[], Tensor]) -> Tensor:
    return read().T


def _third(read: Callable[[], Tensor], part: str) -> Tensor:
    """Return the queries, the keys or the values out of GPT-2's one matrix."""
    third = read().chunk(3, -1)[("q", "k", "v").index(part)]
    return third.T if third.dim() == 2 else third


def _is_convolution(name: str) -> bool:
    """Whether GPT-2 keeps a weight transposed: the linear layers, which it calls one-wide convolutions."""
    return name.endswith(".weight") and (".attention." in name or ".feed." in name)


def tensors_of(model: Language, encoder: LanguageEncoder) -> dict[str, Tensor]:
    """Return a module's tensors under the names that `transformers` reads."""
    own = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    if is_pair(model):
        return _tensors_of_seq2seq(model, own)
    names = names_of(model, list(own))
    written = {names[name]: tensor for name, tensor in own.items() if name in names}
    if layout_of(model) != "gpt2":
        return {name: tensor.contiguous() for name, tensor in written.items()}
    result: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        tensor = own[ours]
        if ".attn.c_proj" not in theirs and ".attn." in theirs:
            whole = theirs.rsplit(".", 2)[0] + ".c_attn." + theirs.rsplit(".", 1)[1]
            if theirs.rsplit(".", 2)[1] == "q":
                parts = [own[ours.replace("attention.q", f"attention.{part}")] for part in "qkv"]
                joined = torch.cat(parts)
                result[whole] = joined.T if joined.dim() == 2 else joined
        else:
            result[theirs] = tensor.T if _is_convolution(ours) else tensor
    return {name: tensor.contiguous() for name, tensor in result.items()}
