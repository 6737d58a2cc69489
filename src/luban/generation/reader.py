"""What every way of generating is made of: a model that reads tokens into a cache, and the pieces that come of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.generation.options import Generation
from luban.models._cache import Cache
from luban.models._core import Projection
from luban.models._language import LanguageEncoder, encoder_of
from luban.models._step import Stepper
from luban.models.seq2seq import Seq2SeqEncoder

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
    """Reads tokens into a cache, and says what follows.

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
        self.encoder: LanguageEncoder = encoder_of(module)
        kind = self.encoder.options.type
        self.decoder = self.encoder.decoder if isinstance(self.encoder, Seq2SeqEncoder) else self.encoder.core
        if (sources is None) == isinstance(self.encoder, Seq2SeqEncoder):
            raise RecipeError(
                f"model type '{kind}' "
                + (
                    "writes from a text that it reads: give sources"
                    if sources is None
                    else "reads no source: give prompts alone"
                )
            )
        if not self.decoder.shape.causal:
            raise RecipeError(
                f"model type '{kind}' reads texts in both directions and does not generate; take gpt2, llama, qwen2, qwen3 or smollm"
            )
        if self.encoder.language is None:
            raise RecipeError(
                f"this '{kind}' has no way from its states to tokens: train it with objective causal_lm, or import one that has"
            )
        self.device = next(chain(module.parameters(), module.buffers())).device
        self.cache = Cache.empty(rows, expected=expected, device=self.device)
        self._stepper = None if sources is not None else Stepper.of(self.decoder, self.encoder.language)
        self._memory: Ragged | None = None
        self._sources: list[int] = []
        """Which row of the memory each row reads: in order, so that rows with the same one are neighbours."""
        if isinstance(self.encoder, Seq2SeqEncoder) and sources is not None:
            with torch.inference_mode():
                self._memory = self.encoder.remember(self._flat(sources))
            self._sources = list(range(rows))
        self._written, self._limit = 0, 0

    @property
    def room(self) -> int | None:
        """How many tokens a text can have, None for any number."""
        shape = self.decoder.shape
        return shape.max_positions if shape.positions == "learned" else None

    def limit(self, options: Generation, prompt: Sequence[int]) -> int:
        """Return how many tokens may follow a prompt; the last one is not read again, and needs no room."""
        room = self.room
        self._limit = options.max_tokens if room is None else min(options.max_tokens, room - len(prompt) + 1)
        return self._limit

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read some tokens a row, at least one; return the logits of what follows them, (B, V) in float32."""
        inputs = self._flat(texts)
        return self._logits(inputs, inputs.offsets[1:] - 1)

    def read_one(self, tokens: Tensor) -> Tensor:
        """Read a token a row, (B,); return the logits of what follows, (B, V) in float32."""
        if self._stepper is not None and len(tokens) <= self._stepper.most:
            return self._stepper.step(tokens, self.cache)
        offsets = torch.arange(len(tokens) + 1, device=self.device)
        return self._logits(Ragged(tokens.to(self.device), offsets), None)

    def losses(self, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Tensor:
        """Read some tokens a row, at least one; return what each row's labels, as many, cost: -log-probabilities, summed, (B,)."""
        inputs, wanted = self._flat(texts), self._flat(labels)
        return inputs.like(self._projected(inputs, None).losses(wanted.values)).sum()

    def _flat(self, texts: Sequence[Sequence[int]]) -> Ragged:
        return Ragged.from_rows(torch.tensor(text, dtype=torch.int64) for text in texts).to(self.device)

    def _logits(self, inputs: Ragged, read: Tensor | None) -> Tensor:
        logits = self._projected(inputs, read).logits()
        if not isinstance(self.encoder, Seq2SeqEncoder):
            return logits
        self._written += 1
        places = ((self.encoder.forced_last, self._limit), (self.encoder.forced_first, 1))
        forced = next(
            (token for token, place in places if token is not None and place == self._written), None
        )
        if forced is None:
            return logits
        only = torch.full_like(logits, -torch.inf)
        only[:, forced] = 0.0
        return only

    def _projected(self, inputs: Ragged, read: Tensor | None) -> Projection:
        assert self.encoder.language is not None
        if isinstance(self.encoder, Seq2SeqEncoder) and self._memory is not None:
            counts = torch.bincount(torch.tensor(self._sources), minlength=len(self._memory))
            readers = F.pad(counts.cumsum(0), (1, 0)).to(self.device)
            return self.encoder.write(inputs, self._memory, read=read, readers=readers, cache=self.cache)
        states = self.encoder.core(inputs, read=read, cache=self.cache)
        result: Projection = self.encoder.language(states)
        return result

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows, in this order, as often as they are named."""
        memory = None if self._memory is None else self._keep_memory(rows)
        self.cache.select(torch.tensor(rows, dtype=torch.int64, device=self.device), memory)

    def _keep_memory(self, rows: Sequence[int]) -> Tensor | None:
        """Let go of the texts that no row reads any more; return the places of the states that stay, None for all."""
        assert self._memory is not None
        sources = [self._sources[row] for row in rows]
        assert sources == sorted(sources), "rows with the same source must stay neighbours"
        kept = sorted(set(sources))
        self._sources = [kept.index(source) for source in sources]
        if len(kept) == len(self._memory):
            return None
        stays = torch.zeros(len(self._memory), dtype=torch.bool, device=self.device)
        stays[kept] = True
        places = stays[self._memory.rows].nonzero().squeeze(1)
        lengths = self._memory.lengths[stays]
        self._memory = Ragged(self._memory.values[places], F.pad(lengths.cumsum(0), (1, 0)))
        return places

    def fork(self, rows: Sequence[int]) -> Reader:
        """Return another reader that goes on from some of these rows, while this one stays where it is."""
        other = copy.copy(self)
        other.cache = self.cache.copy()
        other.keep(rows)
        return other
