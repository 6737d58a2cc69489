"""BERT (Devlin et al., 2018) and those that kept its shape: RoBERTa (Liu et al., 2019) and DistilBERT (Sanh et al., 2019)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from luban.data.contracts import Field
from luban.models._core import Shape, Vocabulary
from luban.models._encoders import Encoder, is_sequence
from luban.models._language import Language, LanguageEncoder, Pool
from luban.models._layers import Activation, Positive, Rate
from luban.registry import register

__all__ = ["Bert"]


@register("models")
class Bert(Language):
    """A Transformer encoder with norms after each part, learned positions, and a pooler over the first token.

    Example:
        >>> Bert(size="tiny").hidden_size
        128
    """

    SIZES: ClassVar = {
        "tiny": {"layers": 2, "hidden_size": 128, "heads": 2},
        "small": {"layers": 4, "hidden_size": 256, "heads": 4},
        "medium": {"layers": 6, "hidden_size": 384, "heads": 12},
        "large": {"layers": 12, "hidden_size": 768, "heads": 12},
    }
    TEXT: ClassVar = {"tokens": "wordpiece", "special": True}

    layout: Literal["bert", "roberta", "distilbert"] = "bert"
    """Whose details it follows: roberta counts positions from 2, tells no segments apart and puts two separators between the
    texts of a pair; distilbert has no segments, and relu behind its pooler."""
    segments: Annotated[int, Option(ge=0)] | None = None
    """Learned vectors that tell the texts of a pair apart; by default 2 in bert, 1 in roberta (which adds it everywhere), none in
    distilbert."""
    pool: Pool = "pooler"
    """What of the states is a text's vector: the first token's, the last one's, their mean or maximum, or, as BERT was
    trained, the first one's through a dense layer (`pooler`)."""
    activation: Activation = "gelu"
    """Activation of the feed-forward part, and of hidden layers."""
    dropout: Rate | list[Rate] = 0.1
    """Dropout after hidden layers; without any, on what the heads read."""
    eps: Positive = 1e-12
    """Added to the variance in the norms."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        return self

    def shape(self, vocabulary: int) -> Shape:
        """Return what the core looks like."""
        return Shape(
            vocabulary,
            self.layers,
            self.hidden_size,
            self.heads,
            self.heads,
            self.hidden_size // self.heads,
            self.intermediate or 4 * self.hidden_size,
            norm_place="post",
            first_norm=True,
            last_norm=False,
            eps=self.eps,
            positions="learned",
            max_positions=self.max_positions,
            position_offset=2 if self.layout == "roberta" else 0,
            segments=self.segments
            if self.segments is not None
            else {"bert": 2, "roberta": 1, "distilbert": 0}[self.layout],
            activation=self.activation,
            dropout=self.layer_dropout,
            attention_dropout=self.attention_dropout,
            recompute=self.recompute,
        )

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts."""
        return _BertEncoder(self, [name], field.size or 0) if is_sequence(field) else None


class _BertEncoder(LanguageEncoder):
    """With BERT's pooler, and its transform before the vocabulary."""

    def __init__(self, options: Bert, names: list[str], size: int) -> None:
        super().__init__(options, names, size)
        self.relu, self.separated = options.layout == "distilbert", options.layout == "roberta"

    def pooler_activation(self, x: Tensor) -> Tensor:
        """Applied behind the pooler."""
        return x.relu() if self.relu else x.tanh()

    def vocabulary_of(self, shape: Shape, tokens: nn.Embedding | None) -> Vocabulary:
        """Make it."""
        return Vocabulary(shape, tokens, transform=True, bias=True)
