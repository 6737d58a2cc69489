"""Convolutions over a text: which phrases occur, wherever they stand (Kim, 2014)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field as Limit
from torch import nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.models._encoders import Encoder, Features, embedding, is_sequence, read_ragged
from luban.models._layers import MONOTONE, Count, Dropout, Rate, activation_of, in_channels_last, pooled
from luban.models._network import Family
from luban.registry import register

__all__ = ["TextCNN"]


@register("models")
class TextCNN(Family):
    """Filters of several widths over the vectors of tokens, and the strongest answer of each in the whole text.

    Example:
        >>> TextCNN(widths=[3, 4, 5], filters=100, embedding=300).dropout          # the paper's
        0.5
    """

    made_for: ClassVar = "texts"
    SIZES: ClassVar = {
        "tiny": {"embedding": 32, "filters": 32},
        "small": {"embedding": 128, "filters": 100},
        "medium": {"embedding": 256, "filters": 200},
        "large": {"embedding": 300, "filters": 500},
    }

    embedding: Count
    """Width of the vectors of tokens."""
    filters: Count
    """Filters of each width."""
    widths: Annotated[list[Count], Limit(min_length=1)] = [2, 3, 4, 5]
    """How many tokens the filters look at."""
    embedding_dropout: Rate = 0.2
    """Dropout on the vectors of tokens."""
    dropout: Rate | list[Rate] = 0.5
    """Dropout after each hidden layer; without hidden layers, on what the filters found."""

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts."""
        return _Phrases(self, name, field.size or 0) if is_sequence(field) else None


class _Phrases(Encoder):
    """All texts of a batch in one convolution, with gaps of zeros between them.

    ::

        texts       a b c | d | e f         widest filter 5: gaps of 2
        sequence    0 0 a b c 0 0 d 0 0 e f 0 0

    A filter of width w stands over every token, as in a convolution with padding 'same' of each text alone: no text is too
    short, and no filter sees two texts.
    """

    def __init__(self, options: TextCNN, name: str, size: int) -> None:
        super().__init__()
        self.name = name
        self.widths = options.widths
        self.gap = max(options.widths) // 2
        self.width = options.filters * len(options.widths)
        self.embedding = embedding(size, options.embedding)
        self.dropout = Dropout(options.embedding_dropout)
        # A 2-d convolution in channels-last memory: the sequence (T, D) is its input as it lies, without a transposition.
        self.filters = nn.ModuleList(
            in_channels_last(nn.Conv2d(options.embedding, options.filters, (1, width)))
            for width in options.widths
        )
        self.activation = activation_of(options.activation)
        self.monotone = options.activation in MONOTONE

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and what each filter answers over each token."""
        ids = read_ragged(batch, self.name)
        vectors = self.dropout(self.embedding(ids.values))  # (T, D)
        places = torch.arange(len(vectors), device=vectors.device) + self.gap * (ids.rows + 1)  # (T,)
        length = len(vectors) + self.gap * (len(ids) + 1) + 1  # never shorter than a filter
        sequence = vectors.new_zeros(length, vectors.shape[1]).index_copy(0, places, vectors)
        image = sequence[None, None].permute(0, 3, 1, 2)  # (1, D, 1, T')
        answers = []
        for filters, width in zip(self.filters, self.widths, strict=True):
            answer = filters(image)[
                0, :, 0
            ].t()  # (T' - width + 1, F): one for each place where the filter begins
            answers.append(answer.index_select(0, places - (width - 1) // 2))
        states = ids.like(torch.cat(answers, 1))
        # The maximum first, where the activation does not change which one it is: it then sees B values instead of T.
        if self.monotone:
            found = self.activation(states.max()).masked_fill(states.lengths[:, None] == 0, 0.0)
            return found, states
        states = states.like(self.activation(states.values))
        return pooled(states, "max"), states
