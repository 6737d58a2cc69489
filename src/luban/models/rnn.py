"""Recurrent network over texts, the rows of an image, or a sequence of vectors."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.models._encoders import Encoder, Features, embedding, is_image, is_sequence, read, read_ragged
from luban.models._layers import Count, Dropout, Rate, pooled
from luban.models._network import Family
from luban.registry import register

__all__ = ["RNN"]


@register("models")
class RNN(Family):
    """Elman (1990), LSTM (Hochreiter and Schmidhuber, 1997) or GRU (Cho et al., 2014) layers, then a pooled state.

    An image is read row by row: H steps of W·C values.

    Example:
        >>> RNN(cell="rnn", hidden_size=128, layers=1, bidirectional=False).pool     # 28 rows of 28 pixels → 10 digits
        'last'
    """

    made_for: ClassVar = "texts, images (row by row) and sequences of vectors"
    SIZES: ClassVar = {
        "tiny": {"hidden_size": 32, "embedding": 32},
        "small": {"hidden_size": 128, "embedding": 64},
        "medium": {"hidden_size": 256, "embedding": 128, "bidirectional": True, "dropout": 0.2},
        "large": {"hidden_size": 512, "embedding": 256, "layers": 2, "bidirectional": True, "dropout": 0.3},
    }

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    """What a step computes."""
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Nonlinearity of the `rnn` cell; the others have their own."""
    hidden_size: Count
    """Width of the state, in each direction."""
    layers: Count = 1
    """Recurrent layers on top of one another."""
    bidirectional: bool = False
    """Read the sequence from its end as well."""
    recurrent_dropout: Rate = 0.0
    """Dropout between recurrent layers."""
    pool: Literal["last", "mean", "max"] = "last"
    """What of the states is kept: the last one read (in both directions), their mean or their maximum."""
    embedding: Count
    """Width of the vectors of tokens."""

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.nonlinearity != "tanh" and self.cell != "rnn":
            raise ValueError(
                f"nonlinearity belongs to cell 'rnn', and cell is '{self.cell}'; remove one of the two"
            )
        if self.recurrent_dropout and self.layers == 1:
            raise ValueError(
                "recurrent_dropout acts between layers, and there is one layer; raise layers, or use dropout"
            )
        return self

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts, images and sequences of vectors."""
        if is_sequence(field):
            return _Tokens(self, name, field.size or 0)
        if is_image(field):
            _, width, channels = field.shape or ()
            return _Steps(self, name, width * channels, image=True)
        if field.shape is not None and len(field.shape) == 2 and field.size is None:
            return _Steps(self, name, field.shape[1], image=False)
        return None


class _Recurrent(Encoder):
    """The recurrent layers, whatever the steps are."""

    def __init__(self, options: RNN, name: str, step: int) -> None:
        super().__init__()
        self.name, self.pool = name, options.pool
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[options.cell]
        extra = {"nonlinearity": options.nonlinearity} if options.cell == "rnn" else {}
        # Dropout between layers is ours, for speed: one module a layer.
        directions = 2 if options.bidirectional else 1
        self.width = options.hidden_size * directions
        self.layers = nn.ModuleList(
            kind(
                step if i == 0 else self.width,
                options.hidden_size,
                batch_first=True,
                bidirectional=options.bidirectional,
                **extra,
            )
            for i in range(options.layers)
        )
        self.between = Dropout(options.recurrent_dropout)

    def run(self, steps: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the layers over packed steps (T, D) with `sizes`, or over a rectangle (B, L, D).

        Returns:
            The states, of the form that came in, and the last of each row in both directions, (B, width).
        """
        for i, layer in enumerate(self.layers):
            if i:
                steps = self.between(steps)
            out, last = layer(steps if sizes is None else PackedSequence(steps, sizes))
            steps = out if sizes is None else out.data
            last = last[0] if isinstance(last, tuple) else last  # an LSTM also returns its cells
        return steps, last.transpose(0, 1).flatten(1)


class _Steps(_Recurrent):
    """Sequences that are all of one length: the rows of an image, or vectors."""

    def __init__(self, options: RNN, name: str, step: int, image: bool) -> None:
        super().__init__(options, name, step)
        self.image = image

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a step."""
        steps = read(batch, self.name).float()
        if self.image:
            steps = steps.permute(0, 2, 3, 1).flatten(2)  # (B, H, W·C)
        states, last = self.run(steps, None)
        rows, length, _ = states.shape
        ragged = Ragged(states.flatten(0, 1), torch.arange(rows + 1, device=states.device) * length)
        return last if self.pool == "last" else pooled(ragged, self.pool), ragged


class _Tokens(_Recurrent):
    """Texts of different lengths, packed: the first tokens of all rows, then the second ones, and so on.

    ::

        rows, longest first    a b c | d e | f          packed    a d f   b e   c
                                                        sizes     3       2     1
    """

    def __init__(self, options: RNN, name: str, size: int) -> None:
        super().__init__(options, name, options.embedding)
        self.embedding = embedding(size, options.embedding)

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a token."""
        ids = read_ragged(batch, self.name)
        vectors = self.embedding(ids.values)  # (T, D)
        pooled_rows = vectors.new_zeros(len(ids), self.width)
        if len(vectors) == 0:  # nothing to read in any row
            return pooled_rows, Ragged(vectors.new_zeros(0, self.width), ids.offsets)
        by_length = ids.lengths.argsort(descending=True, stable=True)  # (B,)
        positions, rank = ids.positions, by_length.argsort()
        order = (positions * len(ids) + rank[ids.rows]).argsort()  # (T,) packed place → flat place
        states, last = self.run(vectors.index_select(0, order), positions.bincount().cpu())
        ragged = ids.like(states.index_select(0, order.argsort()))
        if self.pool == "last":
            return pooled_rows.index_copy(0, by_length[: len(last)], last), ragged
        return pooled(ragged, self.pool), ragged
