"""What a model that speaks makes of texts: how probable they are, how they go on, what was hidden in them.

A Transformer whose tokens are a target (a causal or a masked language model) has no column to predict; its predictions are
about the text itself. `Predictor` sends rows here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from luban.data.batch import to_batch
from luban.data.contracts import Flat, Spec
from luban.data.pipeline import Pipeline
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.data.windows import windows_of
from luban.models._language import LanguageEncoder, encoder_of
from luban.objectives.causal_lm import CausalLM
from luban.objectives.masked_lm import MaskedLM

__all__ = ["Score", "Speaker", "speaker_of"]

_TOKENS = 8192  # of a batch: some dozen milliseconds of a small model on a CPU


@dataclass(frozen=True)
class Score:
    """How probable a model holds a text.

    Attributes:
        loss: minus the log of the probability of the tokens that were predicted, summed.
        tokens: how many these were.
        bytes: length of the text in UTF-8.
    """

    loss: float
    tokens: int
    bytes: int


class Speaker:
    """A language model with its text column.

    Args:
        module: the network.
        pipeline: fitted processors.
        spec: fields of a batch.
        device: where the module is.
    """

    def __init__(self, module: nn.Module, pipeline: Pipeline, spec: Spec, device: torch.device) -> None:
        self.module, self.pipeline, self.spec, self.device = module, pipeline, spec, device
        self.encoder: LanguageEncoder = encoder_of(module)
        self.column = next(
            f.column for f in spec.fields.values() if f.role == "target" and f.kind == "tokens"
        )
        text = pipeline.inputs[self.column]
        assert isinstance(text, Text)
        self.text = text
        self.causal = self.encoder.core.shape.causal
        limit = self.encoder.options.max_positions
        self.objective: CausalLM | MaskedLM = (CausalLM if self.causal else MaskedLM)(column=self.column)
        self.objective.bind(pipeline, limit)
        self.limit = limit

    def score(self, ids: Flat, texts: Sequence[str]) -> list[Score]:
        """Return how probable texts are, given their tokens.

        A causal model predicts each token from those before it; of a masked one, tokens are hidden as in training, the same
        ones every time.
        """
        window = self.objective.window()
        assert window is not None
        _, length, overlap, trim = window
        parts, document = windows_of(ids, length, overlap, trim)
        losses = np.zeros(len(texts))
        counts = np.zeros(len(texts), dtype=np.int64)
        generator = torch.Generator()
        for start, stop in _batches(np.diff(parts.offsets)):
            flat = Flat(
                parts.values[parts.offsets[start] : parts.offsets[stop]],
                parts.offsets[start : stop + 1] - parts.offsets[start],
            )
            batch = to_batch({f"{self.column}.ids": flat}, self.spec)
            batch = self.objective.collate(batch, generator.manual_seed(start))
            rows = _rows_of(batch[f"{self.column}.ids"], batch[f"{self.column}.read"])
            moved = {name: value.to(self.device) for name, value in batch.items()}
            with torch.inference_mode():
                each = self.module(moved)[f"{self.column}.tokens"].losses(moved[f"{self.column}.labels"])
            of = document[start + rows]
            np.add.at(losses, of, each.double().cpu().numpy())
            np.add.at(counts, of, 1)
        return [
            Score(float(loss), int(n), len(text.encode()))
            for loss, n, text in zip(losses, counts, texts, strict=True)
        ]

    def fill(self, text: str, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return, for each mask in a text, the k most probable tokens and their probabilities."""
        ids = self.text.encode_texts([text])["ids"]
        assert isinstance(ids, Flat)
        places = torch.from_numpy(np.flatnonzero(ids.values == self.text.mask_id))
        if not len(places):
            return []
        batch = to_batch({f"{self.column}.ids": ids}, self.spec, self.device)
        batch[f"{self.column}.read"] = places.to(self.device)
        with torch.inference_mode():
            shares = self.module(batch)[f"{self.column}.tokens"].logits().softmax(1)
        best = shares.topk(min(k, shares.shape[1]))
        return [
            [(self.text.decode_ids([i]), p) for i, p in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def speaker_of(module: nn.Module, pipeline: Pipeline, spec: Spec, device: torch.device) -> Speaker | None:
    """Return the language model of a network, None where its tokens are no target."""
    if not any(f.role == "target" and f.kind == "tokens" for f in spec.fields.values()):
        return None
    return Speaker(module, pipeline, spec, device)


def _batches(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut windows into runs of at most `_TOKENS` tokens; a longer window is a run of its own."""
    start, used = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and used + length > _TOKENS:
            yield start, i
            start, used = i, 0
        used += length
    if start < len(lengths):
        yield start, len(lengths)


def _rows_of(ids: Tensor | Ragged, places: Tensor | Ragged) -> npt.NDArray[np.int64]:
    assert isinstance(ids, Ragged)
    assert isinstance(places, Tensor)
    rows: npt.NDArray[np.int64] = ids.rows[places].numpy()
    return rows


def replay(speaker: Speaker, ids: Flat, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the parity contract compares of texts: the mean loss of their tokens."""
    return [
        {
            f"{speaker.column}.loss": score.loss / max(1, score.tokens),
            f"{speaker.column}.tokens": score.tokens,
        }
        for score in speaker.score(ids, texts)
    ]
