"""What the rest of Luban asks of a language model, whoever wrote its layers.

::

    LanguageModel ──begin──▶ Decoding ──read(some tokens a row)──▶ Projection ──▶ logits, losses
                                │  ▲
                                └──┴─ step(a token a row), select(rows), copy()

Generating, scoring and searching know these two classes alone; what is cached between two passes, and how, is the model's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from luban.data.ragged import Ragged
from luban.models._core import Projection
from luban.models._encoders import Encoder
from luban.models._network import Network

__all__ = ["Decoding", "LanguageModel", "language_model_of"]


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


def language_model_of(module: nn.Module) -> LanguageModel:
    """Return the language model inside a network."""
    assert isinstance(module, Network)
    found = [part for part in module.encoders.values() if isinstance(part, LanguageModel)]
    assert len(found) == 1, f"{len(found)} language models"
    return found[0]
