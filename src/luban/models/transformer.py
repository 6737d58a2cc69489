"""Transformer encoder (Vaswani et al., 2017) over texts, and over images as patches (Dosovitskiy et al., 2021)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import DataError, RecipeError
from luban.models._attention import Plan, attend, plan
from luban.models._encoders import Encoder, Features, is_image, is_sequence, read, read_ragged
from luban.models._layers import Activation, Count, Dropout, Rate, activation_of, pooled
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

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts and images."""
        if is_sequence(field):
            return _Tokens(self, name, field.size or 0)
        return _Patches(self, name, field) if is_image(field) else None


class _Layers(Encoder):
    """The layers, whatever the positions are."""

    def __init__(self, options: Transformer, name: str) -> None:
        super().__init__()
        self.name, self.pool, self.width = name, options.pool, options.hidden_size
        self.head_width = options.hidden_size // options.heads
        self.positions, self.max_positions = options.positions, options.max_positions or 512
        if self.positions == "learned":
            self.position_embedding = nn.Embedding(self.max_positions, self.width)
        pre = options.norm == "pre"
        self.before = nn.Identity() if pre else nn.LayerNorm(self.width)
        self.dropout = Dropout(options.layer_dropout)
        self.layers = nn.ModuleList(_Layer(options) for _ in range(options.layers))
        self.after = nn.LayerNorm(self.width) if pre else nn.Identity()

    def reset(self) -> None:
        """Draw the weights as BERT and GPT do: N(0, 0.02²), biases zero (Devlin et al., 2018)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def run(self, vectors: Tensor, rows: Ragged) -> Features:
        """Return the pooled row and its states, from one vector a position, (T, D), over `rows`."""
        where = rows.positions
        if self.positions == "learned":
            longest = int(rows.lengths.max()) if len(rows) else 0
            if longest > self.max_positions:
                raise DataError(
                    f"a row of '{self.name}' has {longest} positions, and positions 'learned' has vectors for {self.max_positions}: "
                    "raise model.max_positions, shorten the rows in data.inputs, or take positions 'rotary'"
                )
            vectors = vectors + self.position_embedding(where)
        elif self.positions == "sinusoidal":
            vectors = vectors + sinusoids(where, self.width)
        how = plan(rows)
        x = self.dropout(self.before(vectors)).index_select(0, how.order)
        turns = (
            rotations(where.index_select(0, how.order), self.head_width)
            if self.positions == "rotary"
            else None
        )
        for layer in self.layers:
            x = layer(x, how, turns)
        states = rows.like(self.after(x).index_select(0, how.back))
        return pooled(states, self.pool), states


class _Layer(nn.Module):
    """Attention and feed-forward, each with a normalisation and a residual connection."""

    def __init__(self, options: Transformer) -> None:
        super().__init__()
        width = options.hidden_size
        inside = options.intermediate or 4 * width
        self.pre, self.heads, self.attention_dropout = (
            options.norm == "pre",
            options.heads,
            options.attention_dropout,
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, inside), activation_of(options.activation), nn.Linear(inside, width)
        )
        self.dropout = Dropout(options.layer_dropout)

    def forward(self, x: Tensor, how: Plan, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        """(T, D) to (T, D), in the order of the plan."""
        if self.pre:
            x = x + self.dropout(self.attention(self.norm1(x), how, turns))
            x = x + self.dropout(self.feed(self.norm2(x)))
        else:
            x = self.norm1(x + self.dropout(self.attention(x, how, turns)))
            x = self.norm2(x + self.dropout(self.feed(x)))
        return x

    def attention(self, x: Tensor, how: Plan, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        """(T, D) to (T, D)."""
        q, k, v = (
            self.qkv(x).view(len(x), 3, self.heads, x.shape[1] // self.heads).unbind(1)
        )  # (T, heads, d) each
        if turns is not None:
            q, k = rotate(q, *turns), rotate(k, *turns)
        result: Tensor = self.out(attend(q, k, v, how, self.attention_dropout if self.training else 0.0))
        return result


class _Tokens(_Layers):
    """Texts."""

    def __init__(self, options: Transformer, name: str, size: int) -> None:
        super().__init__(options, name)
        self.embedding = nn.Embedding(size, self.width)
        self.reset()

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a token."""
        ids = read_ragged(batch, self.name)
        return self.run(self.embedding(ids.values), ids)


class _Patches(_Layers):
    """Images as sequences of patches, row by row."""

    def __init__(self, options: Transformer, name: str, field: Field) -> None:
        super().__init__(options, name)
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
        self.reset()

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a patch."""
        pixels = read(batch, self.name).float().permute(0, 2, 3, 1)  # (B, H, W, C)
        side = self.patch
        rows, height, width, channels = pixels.shape
        patches = pixels.reshape(rows, height // side, side, width // side, side, channels).transpose(2, 3)
        flat = patches.reshape(-1, side * side * channels)  # (B·N, p·p·C)
        offsets = torch.arange(rows + 1, device=flat.device) * (len(flat) // rows)
        return self.run(self.embedding(flat), Ragged(flat, offsets))


# --- positions --------------------------------------------------------------------------------------------


def _angles(positions: Tensor, width: int) -> Tensor:
    """Return position × frequency, (T, ceil(width / 2)); frequencies fall from 1 to 1/10000."""
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    return positions[:, None] * torch.exp(steps * (-math.log(10_000.0) / width))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the vectors of Vaswani et al. (2017), (T, width): sines and cosines in turn."""
    angles = _angles(positions, width)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width]


def rotations(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (T, 1, width / 2) each, for `rotate`."""
    angles = _angles(positions, width)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (i, i + d/2) of (T, heads, d) by its position's angle (Su et al., 2021)."""
    left, right = x.chunk(2, 2)
    return torch.cat([left * cosines - right * sines, right * cosines + left * sines], 2)
