"""Llama (Touvron et al., 2023): rotary positions, root-mean-square norms, a gated feed-forward part, shared keys and values."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field as Option
from pydantic import field_validator, model_validator
from torch import nn

from luban.data.contracts import Field
from luban.models._core import Rope, Shape, Vocabulary
from luban.models._encoders import Encoder, is_sequence
from luban.models._language import Language, LanguageEncoder, Pool
from luban.models._layers import Activation, Count, Positive, Rate
from luban.recipe import Config
from luban.registry import register

__all__ = ["Llama", "Scaling"]


class Scaling(Config):
    """How rotary positions are stretched beyond those seen in pretraining."""

    type: Literal["linear", "llama3"] = "linear"
    """linear divides all positions (Chen et al., 2023); llama3 divides the slow frequencies (Llama 3, 2024)."""
    factor: Annotated[float, Option(gt=0)]
    """By how much."""
    low: Annotated[float, Option(gt=0)] = 1.0
    """For llama3: pairs that turn less often than this over the trained positions are divided whole."""
    high: Annotated[float, Option(gt=0)] = 4.0
    """For llama3: pairs that turn more often stay as they are."""
    trained: Count = 8192
    """For llama3: positions seen in pretraining."""


@register("models")
class Llama(Language):
    """A causal language model of Llama's shape, which most open models share.

    Example:
        >>> Llama(size="tiny").kv_heads
        1
    """

    SIZES: ClassVar = {
        "tiny": {"layers": 2, "hidden_size": 128, "heads": 2, "kv_heads": 1},
        "small": {"layers": 4, "hidden_size": 256, "heads": 4, "kv_heads": 2},
        "medium": {"layers": 6, "hidden_size": 384, "heads": 6, "kv_heads": 2},
        "large": {"layers": 12, "hidden_size": 768, "heads": 12, "kv_heads": 4},
    }
    TEXT: ClassVar = {"tokens": "bpe", "lowercase": False, "end": True}
    CAUSAL: ClassVar = True
    HEAD_BIAS: ClassVar = False

    kv_heads: Count
    """Heads of keys and values; fewer than `heads` is grouped-query attention (Ainslie et al., 2023)."""
    head_size: Count | None = None
    """Width of a head; `hidden_size` / `heads` if left out."""
    max_positions: Count = 2048
    """Tokens of a text, at the most."""
    pool: Pool = "last"
    """What of the states is a text's vector: a causal model has seen the whole text only at its last token."""
    activation: Activation = "silu"
    """Activation of the gate, and of hidden layers."""
    layer_dropout: Rate = 0.0
    """Dropout of embeddings and of each part's output."""
    attention_dropout: Rate = 0.0
    """Dropout of attention weights."""
    eps: Positive = 1e-5
    """Added to the mean square in the norms."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary positions: the slowest pair turns once in 2π times as many tokens."""
    rope_scaling: Scaling | None = None
    """How rotary positions are stretched."""
    attention_bias: bool = False
    """Whether queries, keys and values have a bias."""
    tied: bool = True
    """Whether the table of tokens is also what reads tokens off the states (Press and Wolf, 2017)."""

    NORM_QUERIES: ClassVar = False

    @field_validator(
        "rope_theta", "eps"
    )  # unlike a constraint, it holds where a relative has another default
    @classmethod
    def _positive(cls, value: float) -> float:
        if not 0 < value < float("inf"):
            raise ValueError("must be greater than 0")
        return value

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.head_size is None and self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}; set head_size"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        size = self.head_size or self.hidden_size // self.heads
        if size % 2:
            raise ValueError(
                f"rotary positions turn pairs of values, and a head has {size}: take another number of heads"
            )
        return self

    def shape(self, vocabulary: int) -> Shape:
        """Return what the core looks like."""
        scaling = self.rope_scaling
        rope = Rope(self.rope_theta)
        if scaling is not None:
            rope = Rope(
                self.rope_theta, scaling.type, scaling.factor, scaling.low, scaling.high, scaling.trained
            )
        return Shape(
            vocabulary,
            self.layers,
            self.hidden_size,
            self.heads,
            self.kv_heads,
            self.head_size or self.hidden_size // self.heads,
            self.intermediate or _rounded(8 * self.hidden_size // 3),
            causal=True,
            norm="rms",
            eps=self.eps,
            rope=rope,
            max_positions=self.max_positions,
            activation=self.activation,
            gated=True,
            attention_bias=self.attention_bias,
            out_bias=False,
            feed_bias=False,
            norm_queries=self.NORM_QUERIES,
            dropout=self.layer_dropout,
            attention_dropout=self.attention_dropout,
            recompute=self.recompute,
        )

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts."""
        return _LlamaEncoder(self, [name], field.size or 0) if is_sequence(field) else None


class _LlamaEncoder(LanguageEncoder):
    """With a vocabulary that may be tied to the table of tokens."""

    def __init__(self, options: Llama, names: list[str], size: int) -> None:
        super().__init__(options, names, size)
        self.tied = options.tied

    def vocabulary_of(self, shape: Shape, tokens: nn.Embedding | None) -> Vocabulary:
        """Make it."""
        return Vocabulary(shape, tokens if self.tied else None)


def _rounded(width: int, to: int = 64) -> int:
    """Return the next multiple: matrix units work in blocks."""
    return -(-width // to) * to
