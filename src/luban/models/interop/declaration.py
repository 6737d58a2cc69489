"""What a family of Hugging Face's checkpoints declares, and what its declaration is made of.

A family is one module here (`bert`, `gpt2`, `llama`, `seq2seq`): how its configuration is read and written, what its tensors are
called, and which classes of `transformers` load what is exported. Reading, exporting and the reference derive from it; one whose
blocks or tables have other names than those of the rest adds them to `BLOCK` and `TABLES`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from luban.errors import RecipeError
from luban.models.interop.checkpoint import Checkpoint

if TYPE_CHECKING:
    from luban.models._language import Language
    from luban.models.seq2seq import Seq2Seq

__all__ = [
    "BLOCK",
    "TABLES",
    "UNREAD",
    "Kind",
    "Layout",
    "TensorNames",
    "is_pair",
    "is_tied",
    "refuse",
    "require_size",
]

UNREAD = re.compile(r"(position_ids|token_type_ids|inv_freq|\.attn\.(masked_)?bias|(^|\.)pooler\..*)$")
"""Numbers that follow from the configuration, and the pooler where it is not wanted."""
TABLES = ("word_embeddings.weight", "wte.weight", "embed_tokens.weight", "shared.weight")
"""What the tables of tokens are called, by the ends of their names."""
BLOCK = re.compile(r"(?:^|\.)(decoder\.layers|layers|layer|h)\.(\d{1,9})\.", re.ASCII)
"""What blocks are called, and where their number stands in the name of a tensor."""


@dataclass(frozen=True)
class Kind:
    """A model type of Hugging Face.

    Attributes:
        read_by: types of ours that read it.
        bare, language, classifier, pretraining: classes of `transformers` without a head, with tokens as output, with one linear
            head, and with tokens and whether the second text goes on from the first; empty where none is written.
    """

    read_by: tuple[str, ...]
    bare: str = ""
    language: str = ""
    classifier: str = ""
    pretraining: str = ""


@dataclass(frozen=True, kw_only=True)
class TensorNames(ABC):
    """What the tensors of a layout are called.

    Attributes:
        prefix: what the names of the core begin with, but for a model that was saved without a head.
        head: the table that reads tokens off the states, where it is not the table of tokens.
        unread: names of numbers that follow from the configuration, or that are wanted nowhere.
        pads_positions: whether positions are counted from behind the padding token's number, so that the table begins with unused
            rows.
        transposed: whether linear layers in blocks are kept transposed, with queries, keys and values in one.
    """

    prefix: str
    head: str = "lm_head.weight"
    unread: re.Pattern[str] = UNREAD
    pads_positions: bool = False
    transposed: bool = False

    @abstractmethod
    def names(self, model: Language, ours: Iterable[str]) -> dict[str, str]:
        """Return tensor of ours → what Hugging Face calls it, for tensors of a `LanguageEncoder`."""

    @abstractmethod
    def sources(
        self, model: Language, checkpoint: Checkpoint, ours: list[str]
    ) -> dict[str, Callable[[], Tensor]]:
        """Return how to read a checkpoint's tensors, by our names, as far as it has them."""

    @abstractmethod
    def written(self, model: Language, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a module's tensors under the names that `transformers` reads."""

    @abstractmethod
    def roots(self, ours: list[str]) -> set[str]:
        """Return the first words of the names of a core, behind the prefix."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a kind of checkpoint is read and written: all that differs from one family to another.

    Attributes:
        kinds: model types of Hugging Face that have this layout, the first of a type of ours being the one it writes.
        keys: key of ours → theirs.
        read: returns further keys of ours, given the checkpoint, its model type and the keys that were read so far; refuses
            what ours does not do.
        write: returns further keys of theirs, given the family's options, the model type and how many tokens there are.
        defaults: by keys of ours what the classes of transformers take where config.json lacks a key; the tensors tell where that
            is not so.
        tensors: what the tensors are called.
        classifier: the linear layer of a sequence classifier.
        pairs: the linear layer that tells whether the second text goes on from the first; empty where there is none.
        pool: what of the states a sequence classifier reads.
        kind: which of the model types a family's options are; the first one that its type reads if left out.
    """

    kinds: dict[str, Kind]
    keys: dict[str, str]
    read: Callable[[Checkpoint, str, dict[str, Any]], dict[str, Any]]
    write: Callable[[Language, str, int], dict[str, Any]]
    defaults: dict[str, Any] = field(default_factory=dict)
    tensors: TensorNames
    classifier: str = "score"
    pairs: str = ""
    pool: str = "last"
    kind: Callable[[Language], str] | None = None


def is_pair(model: Language) -> TypeGuard[Seq2Seq]:
    """Whether a family has a decoder beside its encoder."""
    return model.writes


def refuse(found: Checkpoint, config: dict[str, Any], key: str, usual: Any) -> None:
    """Refuse a configuration whose key has any other value."""
    if config.get(key, usual) not in (usual, None):
        raise RecipeError(
            f"'{found.path}' has {key} {config[key]!r}, which this family does not do; take type 'huggingface', which runs any architecture"
        )


def require_size(found: Checkpoint, ending: str, side: int, size: int, key: str) -> None:
    """Refuse a size that is not that of the first tensor of a name."""
    tables = (n for n in found.shapes if n.endswith(ending))
    name = next((n for n in tables if "decoder." in ending or "decoder." not in n), None)
    if name is None or (len(shape := found.shapes[name]) == 2 and shape[side] == size):
        return
    raise RecipeError(f"'{found.path}': tensor '{name}' is {shape}, and the model needs {size} by its {key}")


def is_tied(found: Checkpoint, head: str) -> bool:
    """Whether what reads tokens off the states is the table of tokens: no other is there, or one of the same numbers."""
    if head not in found:
        return True
    # The decoder's before the encoder's.
    endings = ("decoder.embed_tokens.weight", *TABLES)
    table = next((name for ending in endings for name in found if name.endswith(ending)), None)
    if table is None or found.shapes.get(table) != found.shapes.get(head):
        return False
    return torch.equal(found[table], found[head])
