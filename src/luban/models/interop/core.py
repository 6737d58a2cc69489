"""Names of the tensors of a model with one core: an encoder such as BERT, or a decoder such as GPT-2 or Llama."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luban.models.interop.checkpoint import Checkpoint
from luban.models.interop.declaration import TensorNames

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["CoreNames", "padding_of"]


@dataclass(frozen=True, kw_only=True)
class CoreNames(TensorNames):
    """Part of ours → part of theirs.

    Attributes:
        blocks: what the names of blocks begin with, behind the prefix.
        block: of what is in a block.
        under: of what is beside the blocks, under the prefix.
        beside: of what is beside the core: the pooler, the way to the vocabulary.
    """

    blocks: str
    block: dict[str, str]
    under: dict[str, str]
    beside: dict[str, str]

    def names(self, model: Language, ours: Iterable[str]) -> dict[str, str]:
        """Return tensor of ours → what Hugging Face calls it."""
        found: dict[str, str] = {}
        for name in ours:
            stem, _, leaf = name.rpartition(".")
            if stem.startswith("core.layers."):
                number, _, part = stem.removeprefix("core.layers.").partition(".")
                found[name] = f"{self.prefix}{self.blocks}{number}.{self.block[part]}.{leaf}"
            elif stem in self.under:
                found[name] = f"{self.prefix}{self.under[stem]}.{leaf}"
            elif stem in self.beside:
                found[name] = f"{self.beside[stem]}.{leaf}"
            elif stem == "language":
                found[name] = f"{self.beside['language.']}{leaf}"
        return found

    def roots(self, ours: list[str]) -> set[str]:
        """Return the first words of the names of a core."""
        return {self.blocks.partition(".")[0], *(stem.partition(".")[0] for stem in self.under.values())}

    def sources(
        self, model: Language, checkpoint: Checkpoint, ours: list[str]
    ) -> dict[str, Callable[[], Tensor]]:
        """Return how to read a checkpoint's tensors; those of a model that was saved without a head have no prefix."""
        bare = not any(name.startswith(self.prefix) for name in checkpoint)
        parts: dict[str, Callable[[], Tensor]] = {}
        for name, theirs in self.names(model, ours).items():
            theirs = theirs.removeprefix(self.prefix) if bare else theirs
            if theirs in checkpoint:
                read = checkpoint.places[theirs]
                parts[name] = (
                    partial(_transposed, read) if self.transposed and _is_convolution(name) else read
                )
                if self.pads_positions and name == "core.embedding.positions.weight":
                    pad = padding_of(checkpoint)
                    parts[name] = read if pad == 1 else partial(_behind_padding, read, pad)
            elif self.transposed and ".attn." in theirs:
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

    def written(self, model: Language, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a module's tensors under the names that `transformers` reads."""
        names = self.names(model, own)
        if not self.transposed:
            return {names[name]: tensor.contiguous() for name, tensor in own.items() if name in names}
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


def padding_of(found: Checkpoint) -> int:
    """Return RoBERTa's padding token, behind whose number its positions begin."""
    token = found.said("pad_token_id", int)
    return 1 if token is None else token


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
