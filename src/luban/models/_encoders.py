"""How an input becomes features where no family claims it: the same few encoders serve all families.

An encoder reads its fields from the batch by name and returns features (B, `width`) and, where there are positions, their
states as a `Ragged` of (T, D).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._convolution import Convolutions
from luban.models._layers import embedding_width

__all__ = [
    "Encoder",
    "Features",
    "Image",
    "Numbers",
    "OneHot",
    "default_encoder",
    "embedding",
    "is_category",
    "is_image",
    "is_number",
    "is_sequence",
    "read",
    "read_ragged",
]

Features: TypeAlias = tuple[Tensor, Ragged | None]

ONE_HOT_UP_TO = 16
"""Categories of so few classes are their own best embedding."""


class Encoder(nn.Module):
    """One or more fields of a batch → features (B, `width`)."""

    width: int
    speaks = False
    """Whether it can put out tokens of its column."""

    def add_vocabulary(self) -> None:
        """Add what turns states into tokens."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, batch: Batch) -> Features:
        """Return features (B, width), and states where the input has positions."""

    def outputs(self, batch: Batch) -> tuple[Tensor, Ragged | None, dict[str, Any]]:
        """As `forward`, with whatever else the model puts out, by name."""
        return *self(batch), {}


# --- what a field is --------------------------------------------------------------------------------------


def is_number(field: Field) -> bool:
    """One real value a row (or a flag)."""
    return field.shape == () and not is_category(field)


def is_category(field: Field) -> bool:
    """One of `size` classes a row."""
    return field.shape == () and field.size is not None and not field.dtype.startswith("float")


def is_image(field: Field) -> bool:
    """Pixels (H, W, C)."""
    return field.kind == "image" and field.shape is not None and len(field.shape) == 3


def is_sequence(field: Field) -> bool:
    """Token ids in an order that means something."""
    return field.shape is None and field.size is not None and field.kind != "set"


# --- the encoders -----------------------------------------------------------------------------------------


class Numbers(Encoder):
    """All plain numbers and flags of a table, in one stack: a thousand columns cost one operation.

    With `periodic`, each of the named columns goes through sines and cosines of learned frequencies and a small dense layer of
    its own (the PLR embedding of Gorishniy et al., 'On Embeddings for Numerical Features', 2022), which lets a dense network
    draw sharp boundaries along one column. The plain value stays beside it, so that far-off values are still ordered.
    Frequencies suit numbers of about unit variance.

    Args:
        names: fields of one number a row.
        periodic: those of them that are embedded.
    """

    FREQUENCIES, SPREAD, SIZE = 16, 0.3, 8

    def __init__(self, names: Sequence[str], periodic: Sequence[str] = ()) -> None:
        super().__init__()
        # Embedded columns first, so that they are a slice.
        self.names = [*periodic, *(name for name in names if name not in set(periodic))]
        self.embedded = len(periodic)
        self.width = len(names) + self.embedded * self.SIZE
        if periodic:
            scale = 1 / math.sqrt(2 * self.FREQUENCIES)
            self.frequencies = nn.Parameter(torch.randn(self.embedded, self.FREQUENCIES) * self.SPREAD)
            self.weight = nn.Parameter(
                torch.empty(self.embedded, 2 * self.FREQUENCIES, self.SIZE).uniform_(-scale, scale)
            )
            self.bias = nn.Parameter(torch.zeros(self.embedded, self.SIZE))

    def forward(self, batch: Batch) -> Features:
        """Return (B, width)."""
        plain = torch.stack([read(batch, name) for name in self.names], 1).float()  # (B, N)
        if not self.embedded:
            return plain, None
        angles = 2 * math.pi * self.frequencies * plain[:, : self.embedded, None]  # (B, N, K)
        waves = torch.cat([angles.sin(), angles.cos()], 2)  # (B, N, 2K)
        embedded = torch.einsum("bnk,nkd->bnd", waves, self.weight) + self.bias
        return torch.cat([plain, embedded.relu().flatten(1)], 1), None


class OneHot(Encoder):
    """All categories of few classes, one-hot, side by side: one scatter for the whole table."""

    offsets: Tensor

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.names = list(sizes)
        self.width = sum(sizes.values())
        offsets = torch.tensor([0, *sizes.values()]).cumsum(0)[:-1]
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, batch: Batch) -> Features:
        """Return (B, width)."""
        index = torch.stack([read(batch, name) for name in self.names], 1) + self.offsets  # (B, N)
        return torch.zeros(len(index), self.width, device=index.device).scatter_(1, index, 1.0), None


class Embedded(Encoder):
    """A category as a learned vector."""

    def __init__(self, name: str, size: int, width: int) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.embedding = embedding(size, width)

    def forward(self, batch: Batch) -> Features:
        """Return (B, width)."""
        return self.embedding(read(batch, self.name)), None


class Bag(Encoder):
    """A set, or a text whose order is left aside: the mean of its learned vectors; zeros where it is empty."""

    def __init__(self, name: str, size: int, width: int) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.embedding = nn.EmbeddingBag(size, width, mode="mean", include_last_offset=True)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(width))

    def forward(self, batch: Batch) -> Features:
        """Return (B, width)."""
        ids = read_ragged(batch, self.name)
        return self.embedding(ids.values, ids.offsets), None


class Flat(Encoder):
    """Every value of a vector or an image as it is, in the stored order (H, W, C)."""

    def __init__(self, name: str, field: Field) -> None:
        super().__init__()
        self.name, self.image = name, is_image(field)
        self.width = math.prod(field.shape or ())

    def forward(self, batch: Batch) -> Features:
        """Return (B, width)."""
        values = read(batch, self.name)
        if self.image:
            values = values.permute(0, 2, 3, 1)  # channels-last memory: the flattening is a view
        return values.flatten(1).float(), None


class Image(Encoder):
    """An image through a module (B, C, H, W) → (B, width)."""

    def __init__(self, name: str, module: nn.Module, width: int) -> None:
        super().__init__()
        self.name, self.width, self.module = name, width, module

    def forward(self, batch: Batch) -> Features:
        """Return (B, width)."""
        return self.module(channels_last(read(batch, self.name))), None


def embedding(size: int, width: int) -> nn.Embedding:
    """Return learned vectors of about unit length; those of PyTorch are √width times as long, which slows learning."""
    vectors = nn.Embedding(size, width)
    nn.init.normal_(vectors.weight, std=1 / math.sqrt(width))
    return vectors


def default_encoder(name: str, field: Field, embeddings: int | None = None, flat: bool = False) -> Encoder:
    """Return the encoder of an input that the family at hand is not made for.

    Args:
        name: the field's full name.
        field: what is known about it.
        embeddings: width of a learned vector; derived from the number of distinct values if None.
        flat: read an image as a plain vector, not by a small convolutional network.

    Raises:
        RecipeError: if the field is of a form that nothing reads.
    """
    if field.size is not None and (field.shape is None or is_category(field)):
        kind = Bag if field.shape is None else Embedded
        return kind(name, field.size, embeddings or embedding_width(field.size))
    if is_image(field) and not flat:
        stack = Convolutions(
            field.shape or (), [16, 32], pools=[2, 2], paddings=["same", "same"], reduce="average"
        )
        return Image(name, stack, stack.width)
    if field.shape and field.size is None:
        return Flat(name, field)
    raise RecipeError(
        f"input '{field.column}' (kind {field.kind}, shape {field.shape}, dtype {field.dtype}) is of a form that no model family reads; "
        "known forms are one value, a class, ids of any number, a vector and an image"
    )


def channels_last(pixels: Tensor) -> Tensor:
    """Return (B, C, H, W) whose strides say channels-last, also for one channel, where `contiguous` cannot tell the two apart.

    On a CPU the convolutions then stay in one layout from the first layer to the last.
    """
    rows, channels, height, width = pixels.shape
    flat = pixels.permute(0, 2, 3, 1).reshape(rows, height, width * channels)
    return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)


def read(batch: Batch, name: str) -> Tensor:
    """Return a field of one shape a row, (B, ...)."""
    value = batch[name]
    assert isinstance(value, Tensor), f"'{name}' is ragged"
    return value


def read_ragged(batch: Batch, name: str) -> Ragged:
    """Return a field whose rows differ in length."""
    value = batch[name]
    assert isinstance(value, Ragged), f"'{name}' is not ragged"
    return value
