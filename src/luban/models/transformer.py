"""Transformer encoder (Vaswani et al., 2017) over texts, and over images as patches (Dosovitskiy et al., 2021)."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._core import Core, Shape
from luban.models._encoders import Encoder, Features, is_image, is_sequence, read, read_ragged
from luban.models._layers import Activation, Count, Rate, pooled
from luban.models._network import Family
from luban.registry import register

__all__ = ["Transformer"]


@register("models")
class Transformer(Family):
    """Self-attention layers; every token sees the whole text, and no text sees another.

    Texts travel unpadded: one flat sequence goes through all dense layers, and attention sees rows of like lengths together.

    Example:
        >>> Transformer(size="tiny").positions
        'rotary'
    """

    attends: ClassVar = True
    made_for: ClassVar = "texts and images (as patches)"
    SIZES: ClassVar = {
        "tiny": {"layers": 2, "hidden_size": 64, "heads": 2},
        "small": {"layers": 4, "hidden_size": 192, "heads": 6},
        "medium": {"layers": 6, "hidden_size": 384, "heads": 12},
        "large": {"layers": 12, "hidden_size": 768, "heads": 12},
    }

    layers: Count
    """Layers of attention and feed-forward."""
    hidden_size: Count
    """Width of a position's vector."""
    heads: Count
    """Attention heads; `hidden_size` is a multiple of it."""
    intermediate: Count | None = None
    """Width inside the feed-forward part; four times `hidden_size` if left out."""
    positions: Literal["learned", "sinusoidal", "rotary"] = "rotary"
    """How a position is known: a learned vector, sines, or a rotation of queries and keys (Su et al., 2021)."""
    max_positions: Count | None = None
    """Positions that `learned` has vectors for, 512 if left out; the others need no limit."""
    norm: Literal["pre", "post"] = "pre"
    """Layer normalisation before each part (easier to train; Xiong et al., 2020) or after its sum (as in BERT)."""
    activation: Activation = "gelu"
    """Activation inside the feed-forward part, and of hidden layers."""
    dropout: Rate | list[Rate] = 0.1
    """Dropout after hidden layers; without any, on what the heads read."""
    layer_dropout: Rate = 0.1
    """Dropout of embeddings and of each part's output."""
    attention_dropout: Rate = 0.0
    """Dropout of attention weights."""
    pool: Literal["first", "mean", "max"] = "mean"
    """What of the states is kept: the first position's, their mean or their maximum."""
    patch: Count | None = None
    """Side of the square patches of an image; by default the smallest that makes at most 100 of them."""

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        if self.positions == "rotary" and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"positions 'rotary' turn pairs of values, and a head has {self.hidden_size // self.heads}: take another number of heads"
            )
        if self.max_positions is not None and self.positions != "learned":
            raise ValueError(
                f"max_positions belongs to positions 'learned', and positions is '{self.positions}'; remove one"
            )
        return self

    def shape(self, vocabulary: int) -> Shape:
        """Return what the core looks like; `vocabulary` is 0 where vectors come in."""
        return Shape(
            vocabulary,
            self.layers,
            self.hidden_size,
            self.heads,
            self.heads,
            self.hidden_size // self.heads,
            self.intermediate or 4 * self.hidden_size,
            norm_place=self.norm,
            first_norm=self.norm == "post",
            last_norm=self.norm == "pre",
            positions=self.positions,
            max_positions=self.max_positions or 512,
            activation=self.activation,
            dropout=self.layer_dropout,
            attention_dropout=self.attention_dropout,
        )

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts and images."""
        if is_sequence(field):
            return _Tokens(self, name, field.size or 0)
        return _Patches(self, name, field) if is_image(field) else None


class _Layers(Encoder):
    """A core and what pools its states."""

    def __init__(self, options: Transformer, name: str, vocabulary: int) -> None:
        super().__init__()
        self.name, self.pool, self.width = name, options.pool, options.hidden_size
        self.core = Core(options.shape(vocabulary))
        self.core.reset()

    def run(self, inputs: Ragged) -> Features:
        """Return (B, width) and a state a position, from ids (T,) or vectors (T, D)."""
        states = inputs.like(self.core(inputs))
        return pooled(states, self.pool), states


class _Tokens(_Layers):
    """Texts."""

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a token."""
        return self.run(read_ragged(batch, self.name))


class _Patches(_Layers):
    """Images as sequences of patches, row by row."""

    def __init__(self, options: Transformer, name: str, field: Field) -> None:
        super().__init__(options, name, 0)
        height, width, channels = field.shape or ()
        sides = [side for side in range(1, min(height, width) + 1) if height % side == width % side == 0]
        self.patch = options.patch or next(
            (side for side in sides if height * width <= 100 * side**2), sides[-1]
        )
        if self.patch not in sides:
            raise RecipeError(
                f"model.patch {self.patch} does not divide an image of {height}×{width}; patches may be {', '.join(map(str, sides))}"
            )
        self.embedding = nn.Linear(channels * self.patch**2, self.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.embedding.bias)

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a patch."""
        pixels = read(batch, self.name).float().permute(0, 2, 3, 1)  # (B, H, W, C)
        side = self.patch
        rows, height, width, channels = pixels.shape
        patches = pixels.reshape(rows, height // side, side, width // side, side, channels).transpose(2, 3)
        flat = patches.reshape(-1, side * side * channels)  # (B·N, p·p·C)
        offsets = torch.arange(rows + 1, device=flat.device) * (len(flat) // rows)
        vectors: Tensor = self.embedding(flat)
        return self.run(Ragged(vectors, offsets))
