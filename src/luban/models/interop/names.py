"""The tensors of Hugging Face's checkpoints, both ways, under the names that the families declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luban.errors import ArtefactError, RecipeError
from luban.models._low_rank import merging
from luban.models.interop.checkpoint import Checkpoint, open_checkpoint
from luban.models.interop.declaration import BLOCK, is_pair, is_tied
from luban.models.interop.families import layout_of

if TYPE_CHECKING:
    from luban.models._language import Language, LanguageEncoder

__all__ = ["load_into", "names_of", "sources_of", "tensors_of"]


def names_of(model: Language, ours: list[str]) -> dict[str, str]:
    """Return tensor of ours → what Hugging Face calls it, for tensors of a `LanguageEncoder`.

    Example:
        >>> from luban.models.llama import Llama
        >>> names_of(Llama(size="tiny"), ["core.layers.0.attention.q.weight"])
        {'core.layers.0.attention.q.weight': 'model.layers.0.self_attn.q_proj.weight'}
    """
    return layout_of(model).tensors.names(model, ours)


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
    source = sources_of(model, checkpoint, list(own))
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
    tensors = layout_of(model).tensors
    names = set(names_of(model, own).values())
    prefix, roots, pair = tensors.prefix, tensors.roots(own), is_pair(model)
    bare = not any(name.startswith(prefix) for name in checkpoint)
    depth = {"layers": model.layers, "decoder.layers": getattr(model, "decoder_layers", None) or model.layers}
    for name in checkpoint:
        rest = name if bare else name.removeprefix(prefix)
        if (bare or pair) and rest.partition(".")[0] not in roots:
            continue
        if not (bare or pair or name.startswith(prefix)):
            continue
        whole = rest.replace(".attn.c_attn.", ".attn.q.") if tensors.transposed else rest
        if prefix + whole in names or whole in names or tensors.unread.search(rest):
            continue
        block = BLOCK.search(rest)
        if block and int(block[2]) >= depth.get(block[1], model.layers):
            continue  # the recipe asked for fewer
        raise RecipeError(
            f"'{checkpoint.path}' has a tensor '{name[:80]}', which model type '{model.type}' has no place for; take type 'huggingface', which runs any architecture"
        )
    if (
        encoder.language is not None
        and encoder.language.weight is None
        and not is_tied(checkpoint, tensors.head)
    ):
        raise RecipeError(
            f"'{checkpoint.path}' has a table '{tensors.head}' that is not its table of tokens, and here they are one (tied); take type 'huggingface', which runs any architecture"
        )


def _theirs(model: Language, name: str) -> str:
    return names_of(model, [name]).get(name, name)


def sources_of(model: Language, checkpoint: Checkpoint, ours: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Return how to read the checkpoint's tensors, by our names, as far as it has them."""
    if checkpoint.kind == "luban":
        return merging(
            {
                name.removeprefix("encoders.").partition(".")[2]: checkpoint.places[name]
                for name in checkpoint
                if name.startswith("encoders.")
            }
        )
    return layout_of(model).tensors.sources(model, checkpoint, ours)


def tensors_of(model: Language, encoder: LanguageEncoder) -> dict[str, Tensor]:
    """Return a module's tensors under the names that `transformers` reads."""
    own = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    return layout_of(model).tensors.written(model, own)
