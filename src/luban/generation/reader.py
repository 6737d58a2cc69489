"""What every way of generating is made of: a model that reads tokens into a cache, and the pieces that come of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.generation.options import Generation
from luban.models._decoding import language_model_of

__all__ = ["FinishReason", "Piece", "Reader"]

FinishReason = Literal["end", "stop", "length"]
"""``end``: the model ended the text, or the constraint did; ``stop``: a stop string came; ``length``: no more was allowed."""


@dataclass(frozen=True)
class Piece:
    """What a step adds to one row.

    Attributes:
        row: which prompt's.
        token: the new token; None where the row ends without one.
        text: what is certain now, which may be empty: a character may be incomplete, or a stop string begun.
        logprob: of the token, as in `Generated`.
        finish_reason: why the row ends here, None where it goes on.
    """

    row: int
    token: int | None
    text: str
    logprob: float
    finish_reason: FinishReason | None = None


class Reader:
    """Reads tokens into a model, and says what follows.

    An encoder reads its text once; all rows that go on from it (beams, samples) attend to the same states.

    Args:
        module: a network with one language model that writes: a causal one, or an encoder with a decoder.
        rows: texts at a time.
        expected: tokens of the longest one in the end, at most.
        sources: tokens of the text that an encoder reads, for each row; None where there is no encoder.

    Raises:
        RecipeError: if the model cannot generate.
    """

    def __init__(
        self, module: nn.Module, rows: int, expected: int, sources: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.model = language_model_of(module)
        kind = self.model.kind
        if (sources is not None) != self.model.NEEDS_SOURCE:
            raise RecipeError(
                f"model type '{kind}' "
                + (
                    "writes from a text that it reads: give sources"
                    if sources is None
                    else "reads no source: give prompts alone"
                )
            )
        if not self.model.causal:
            raise RecipeError(
                f"model type '{kind}' reads texts in both directions and does not generate; take gpt2, llama, qwen2, qwen3, smollm, or huggingface with task causal_lm"
            )
        if not self.model.has_vocabulary:
            raise RecipeError(
                f"this '{kind}' has no way from its states to tokens: train it with objective causal_lm, or import one that has"
            )
        self.device = next(chain(module.parameters(), module.buffers())).device
        self.decoding = self.model.begin(rows, expected, None if sources is None else self._flat(sources))
        self._written, self._limit = 0, 0

    def limit(self, options: Generation, prompt: Sequence[int]) -> int:
        """Return how many tokens may follow a prompt; the last one is not read again, and needs no room."""
        room = self.model.room
        self._limit = options.max_tokens if room is None else min(options.max_tokens, room - len(prompt) + 1)
        return self._limit

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read some tokens a row, at least one; return the logits of what follows them, (B, V) in float32."""
        return self._following(self.decoding.read(self._flat(texts), last=True).logits())

    def read_one(self, tokens: Tensor) -> Tensor:
        """Read a token a row, (B,); return the logits of what follows, (B, V) in float32."""
        return self._following(self.decoding.step(tokens.to(self.device)))

    def losses(self, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Tensor:
        """Read some tokens a row, at least one; return what each row's labels, as many, cost: -log-probabilities, summed, (B,)."""
        inputs, wanted = self._flat(texts), self._flat(labels)
        return inputs.like(self.decoding.read(inputs).losses(wanted.values)).sum()

    def _flat(self, texts: Sequence[Sequence[int]]) -> Ragged:
        return Ragged.from_rows(torch.tensor(text, dtype=torch.int64) for text in texts).to(self.device)

    def _following(self, logits: Tensor) -> Tensor:
        self._written += 1
        forced = self.decoding.forced(self._written, self._limit)
        if forced is None:
            return logits
        only = torch.full_like(logits, -torch.inf)
        only[:, forced] = 0.0
        return only

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows, in this order, as often as they are named."""
        self.decoding.select(rows)

    def fork(self, rows: Sequence[int]) -> Reader:
        """Return another reader that goes on from some of these rows, while this one stays where it is."""
        other = copy.copy(self)
        other.decoding = self.decoding.copy()
        other.keep(rows)
        return other
