"""What a model that reads one text and writes another makes of rows: the text it writes, and how probable it holds a given one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from luban.data.batch import to_batch
from luban.data.contracts import Array, Encoded, Flat, Spec
from luban.data.pipeline import Pipeline
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.data.store import slice_rows
from luban.generation.engine import Generated, generate
from luban.generation.options import Generation
from luban.generation.reader import Piece
from luban.language import Score
from luban.machine import inference
from luban.models._decoding import pair_of

__all__ = ["Writer", "writer_of"]


class Writer:
    """An encoder and a decoder with their text columns.

    Args:
        module: the network.
        pipeline: fitted processors.
        spec: fields of a batch.
        device: where the module is.
    """

    def __init__(self, module: nn.Module, pipeline: Pipeline, spec: Spec, device: torch.device) -> None:
        self.module, self.spec, self.device = module, spec, device
        self.encoder = encoder = pair_of(module)
        ((self.column, text),) = pipeline.written.items()
        assert isinstance(text, Text)
        self.text = text
        forced = encoder.forced_last
        self.end = text.end_ids if forced is None else text.end_ids | {forced}

    def options(self) -> Generation:
        """Return how a text is written if nothing else is asked for: greedily, as long as training knew texts to be."""
        limits = [limit for limit in (self.text.max_length, self.encoder.limit) if limit is not None]
        return Generation(max_tokens=min(limits)) if limits else Generation()

    def predict(
        self,
        encoded: Encoded,
        options: Generation | None = None,
        batch_size: int = 256,
        on_piece: Callable[[Piece], None] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the text of each row as a prediction has it; arguments as in `write`."""
        return [
            {
                self.column: one.text,
                f"{self.column}.finish_reason": one.finish_reason,
                f"{self.column}.tokens": len(one.ids),
                f"{self.column}.log_probability": sum(one.logprobs),
            }
            for one in self.write(encoded, options, batch_size, on_piece, numbers)
        ]

    def write(
        self,
        encoded: Encoded,
        options: Generation | None = None,
        batch_size: int = 256,
        on_piece: Callable[[Piece], None] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Generated]:
        """Return the text of each row.

        Args:
            encoded: what `Pipeline.encode` made of the inputs.
            options: how; see `options` for the default.
            batch_size: rows at a time.
            on_piece: is shown texts as they come.
            numbers: number of each row among all of which it is one, by which pieces and seeds are counted; its place by default.
        """
        sources = self._rows(encoded)
        numbers = range(len(sources)) if numbers is None else numbers
        # Sources of like lengths attend in one call; rows come back in their own order.
        order = np.argsort([len(source) for source in sources], kind="stable").tolist()
        results: dict[int, Generated] = {}
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            mine = [numbers[i] for i in places]
            written = generate(
                self.module,
                [[self.encoder.start]] * len(places),
                self.options() if options is None else options,
                end=self.end,
                decode=self.text.decode_ids,
                tokenizer=self.text.trained,
                sources=[sources[i] for i in places],
                numbers=mine,
                on_piece=None if on_piece is None else _renumbered(on_piece, mine),
            )
            results.update(zip(places, written, strict=True))
        return [results[i] for i in range(len(order))]

    def score(
        self, encoded: Encoded, target: Flat, sizes: Sequence[int] | Array, batch_size: int = 64
    ) -> list[Score]:
        """Return how probable the model holds given texts.

        Args:
            encoded: what `Pipeline.encode` made of the inputs.
            target: tokens of the texts, and
            sizes: their bytes, as `Text.encode_measured` made them.
            batch_size: rows at a time.
        """
        losses: list[float] = []
        counts: list[int] = []
        with inference(self.module, self.device):
            for start in range(0, len(target), batch_size):
                rows = slice_rows({**encoded, self.encoder.target: target}, start, start + batch_size)
                batch = to_batch(rows, self.spec, self.device)
                labels = batch[self.encoder.target]
                assert isinstance(labels, Ragged)
                each = self.module(batch)[f"{self.column}.tokens"].losses(labels.values)
                losses += labels.like(each.double()).sum().tolist()
                counts += labels.lengths.tolist()
        return [
            Score(loss, count, int(size)) for loss, count, size in zip(losses, counts, sizes, strict=True)
        ]

    def _rows(self, encoded: Encoded) -> list[list[int]]:
        ids = encoded[self.encoder.names[0]]
        assert isinstance(ids, Flat)
        return [part.tolist() for part in np.split(ids.values, ids.offsets[1:-1])]


def _renumbered(on_piece: Callable[[Piece], None], numbers: Sequence[int]) -> Callable[[Piece], None]:
    return lambda piece: on_piece(replace(piece, row=numbers[piece.row]))


def writer_of(module: nn.Module, pipeline: Pipeline, spec: Spec, device: torch.device) -> Writer | None:
    """Return what writes a target of a network, None where every target is read off an output."""
    return Writer(module, pipeline, spec, device) if pipeline.written else None
