"""GPT-2 (Radford et al., 2019): a causal Transformer with norms before each part and learned positions."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from luban.models._core import Shape
from luban.models._language import Language, Pool
from luban.models._layers import Activation, Count, Positive
from luban.registry import register

__all__ = ["Gpt2"]


@register("models")
class Gpt2(Language):
    """A causal language model as OpenAI published it.

    Example:
        >>> Gpt2(size="tiny").pool
        'last'
    """

    SIZES: ClassVar = {
        "tiny": {"layers": 2, "hidden_size": 128, "heads": 2},
        "small": {"layers": 4, "hidden_size": 256, "heads": 4},
        "medium": {"layers": 6, "hidden_size": 384, "heads": 6},
        "large": {"layers": 12, "hidden_size": 768, "heads": 12},
    }
    TEXT: ClassVar = {"tokens": "bpe", "lowercase": False, "end": True}
    CAUSAL: ClassVar = True
    HEAD_BIAS: ClassVar = False

    max_positions: Count = 1024
    """Tokens of a text, at the most."""
    pool: Pool = "last"
    """What of the states is a text's vector: a causal model has seen the whole text only at its last token."""
    activation: Activation = "gelu_tanh"
    """Activation of the feed-forward part, and of hidden layers."""
    eps: Positive = 1e-5
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
            causal=True,
            eps=self.eps,
            positions="learned",
            max_positions=self.max_positions,
            activation=self.activation,
            dropout=self.layer_dropout,
            attention_dropout=self.attention_dropout,
            recompute=self.recompute,
        )
