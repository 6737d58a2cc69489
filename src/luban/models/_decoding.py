"""What the rest of Luban asks of a language model, whoever wrote its layers.

::

    LanguageModel ──begin──▶ Decoding ──read(some tokens a row)──▶ Projection ──▶ logits, losses
                                │  ▲
                                └──┴─ step(a token a row), select(rows), copy()

Generating, scoring and searching know these two classes alone; what is cached between two passes, and how, is the model's own.
A model that reads one text and writes another (`PairModel`) says beside them which target it writes, and how that begins and ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._core import Projection
from luban.models._encoders import Encoder
from luban.models._network import Network

__all__ = ["Decoding", "LanguageModel", "PairModel", "language_model_of", "pair_of", "shifted"]


class Decoding(ABC):
    """Texts that a model is reading, and what it keeps of them from one pass to the next."""

    @abstractmethod
    def read(self, inputs: Ragged, *, last: bool = False) -> Projection:
        """Read some tokens a row, at least one.

        Args:
            inputs: the new tokens, a row for each text, (T,).
            last: whether only what follows the last token of each row is wanted.

        Returns:
            The way to the logits of what follows each new token, (T,), or each row, (B,).
        """

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Read a token a row, (B,); return the logits of what follows, (B, V) in float32."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, in this order, as often as they are named."""

    @abstractmethod
    def copy(self) -> Self:
        """Return the same texts, to go on from in another way."""

    def forced(self, place: int, limit: int) -> int | None:
        """Return the token that stands at a place, counted from 1, of a text of at most `limit`, whatever was read; None for any."""
        return None


class LanguageModel(Encoder):
    """The encoder of a text column that can also put out its tokens."""

    NEEDS_SOURCE: ClassVar[bool] = False
    """Whether it writes from another text, which it reads first."""

    names: list[str]
    """The field of ids; of two, for a pair."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The type of its family, for messages."""

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Whether it predicts tokens from those before them alone, so that it can generate."""

    @property
    @abstractmethod
    def has_vocabulary(self) -> bool:
        """Whether it has what turns states into tokens."""

    @property
    @abstractmethod
    def limit(self) -> int | None:
        """Tokens of a text that it was made for, None where it does not say."""

    @property
    @abstractmethod
    def room(self) -> int | None:
        """Tokens of a text that it can read at all, None for any number."""

    @abstractmethod
    def begin(self, rows: int, expected: int, sources: Ragged | None = None) -> Decoding:
        """Begin to read texts.

        Args:
            rows: how many.
            expected: tokens of the longest one in the end; more is possible.
            sources: what an encoder reads, a row for each text; None where `NEEDS_SOURCE` is false.
        """


class PairModel(LanguageModel):
    """An encoder, whose states other targets may be read off, and a decoder beside it, which writes a target.

    Where a batch has the text to be written, its outputs have ``column.tokens``: the way from the states before each of its tokens,
    (T, D), to the vocabulary.
    """

    NEEDS_SOURCE = True

    target = ""
    """The field of the ids that it writes."""
    start = 0
    """The token that the decoder begins with."""
    forced_first: int | None = None
    """The token that every written text begins with; None for any."""
    forced_last: int | None = None
    """The token that is written last where a text becomes as long as is allowed; None for any."""

    @abstractmethod
    def add_decoder(self, name: str, field: Field) -> None:
        """Have the decoder write the target `name`."""

    def edges(
        self, name: str, field: Field, size: int, start: int | None, first: int | None, last: int | None
    ) -> None:
        """Set the target, and the tokens that it begins and ends with.

        Args:
            name: the target, and
            field: what is known about it.
            size: tokens of the vocabulary.
            start: the token that the decoder begins with; None for the one that fills.
            first, last: as `forced_first` and `forced_last`.

        Raises:
            RecipeError: if a token is none of the vocabulary.
        """
        for key, number in (("start", start), ("forced_first", first), ("forced_last", last)):
            if number is not None and number >= size:
                raise RecipeError(f"model.{key} is {number}, and '{field.column}' has {size:,} tokens")
        self.target, self.start = name, int(field.pad) if start is None else start
        self.forced_first, self.forced_last = first, last

    def forced(self, place: int, limit: int) -> int | None:
        """Return the token that every text has at a place, as BART's do at both ends; see `Decoding.forced`."""
        if place == limit and self.forced_last is not None:
            return self.forced_last
        return self.forced_first if place == 1 else None


def shifted(labels: Ragged, start: int) -> Ragged:
    """Return what the decoder reads to predict each label: a start token, and all labels of the row but the last.

    Example:
        >>> import torch
        >>> shifted(Ragged(torch.tensor([5, 6, 2, 7, 2]), torch.tensor([0, 3, 3, 5])), 0).values.tolist()
        [0, 5, 6, 0, 7]
    """
    values = labels.values.roll(1)
    first = labels.offsets[:-1][labels.lengths > 0]
    return labels.like(values.index_fill(0, first, start))


def language_model_of(module: nn.Module) -> LanguageModel:
    """Return the language model inside a network."""
    assert isinstance(module, Network)
    found = [part for part in module.encoders.values() if isinstance(part, LanguageModel)]
    assert len(found) == 1, f"{len(found)} language models"
    return found[0]


def pair_of(module: nn.Module) -> PairModel:
    """Return the model inside a network that reads one text and writes another."""
    found = language_model_of(module)
    assert isinstance(found, PairModel)
    return found
