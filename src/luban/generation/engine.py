"""From prompts to texts: one pass over all prompts, then one token a row at a time.

::

    prompts ──▶ pass over (T,) tokens ──▶ logits (B, V) ──▶ penalties, constraint ──▶ draw ──▶ tokens (B,)
                        │                     ▲                                                  │
                        ▼                     │                                                  │
                      cache ──────────────────┴──── pass over one token a row ◀──────────────────┘

Prompts of different lengths are read unpadded, and a row that is finished leaves the batch, so that no work is done for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from luban.errors import DataError
from luban.generation.beam import search
from luban.generation.constraint import Constraint, Matcher, constrained, constraint_of
from luban.generation.options import Generation
from luban.generation.reader import FinishReason, Piece, Reader
from luban.generation.sampling import Sampler, penalised, seen_in
from luban.generation.stream import Decode, TextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Generated", "generate", "stream"]


@dataclass(frozen=True)
class Generated:
    """A generated text.

    Attributes:
        ids: its tokens, without the one that ends it. Where a stop string came, the last ones may reach beyond the text.
        text: as it is to be read, without the stop string.
        finish_reason: why it is no longer.
        logprobs: log-probability of each token, as the model has it: before temperature, filters, penalty and constraint.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[float]


def generate(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    options: Generation,
    *,
    end: Collection[int],
    decode: Decode,
    tokenizer: Tokenizer | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[int] | None = None,
    on_piece: Callable[[Piece], None] | None = None,
) -> list[Generated]:
    """Continue each prompt.

    Args:
        module: a network with one causal language model, or with an encoder and a decoder.
        prompts: tokens of each, at least one; of any lengths.
        options: how.
        end: tokens that end a text.
        decode: turns tokens into text.
        tokenizer: whose tokens these are; needed for a JSON schema or a regular expression only.
        sources: tokens of the text that an encoder reads, for each prompt; a prompt is then what the decoder begins with.
        numbers: number of each prompt among all of which it is one, from which seeds are counted; its place here by default.
        on_piece: called with every piece as it comes.

    Raises:
        DataError: if a prompt is empty or longer than the model can read.
        RecipeError: if the model cannot generate.
        MissingError: if a constraint is asked for and its package is missing.

    Example:
        >>> generate(module, [[5, 8, 2]], Generation(max_tokens=3), end={0}, decode=decode)   # doctest: +SKIP
        [Generated(ids=[4, 9, 9], text=' and so', finish_reason='length', logprobs=[-0.1, -1.3, -0.4])]
    """
    ids: list[list[int]] = [[] for _ in prompts]
    texts: list[list[str]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    reasons: list[FinishReason] = ["length"] * len(prompts)
    for piece in stream(
        module,
        prompts,
        options,
        end=end,
        decode=decode,
        tokenizer=tokenizer,
        sources=sources,
        numbers=numbers,
    ):
        if piece.token is not None:
            ids[piece.row].append(piece.token)
            logprobs[piece.row].append(piece.logprob)
        texts[piece.row].append(piece.text)
        if piece.finish_reason is not None:
            reasons[piece.row] = piece.finish_reason
        if on_piece is not None:
            on_piece(piece)
    return [Generated(i, "".join(t), r, p) for i, t, r, p in zip(ids, texts, reasons, logprobs, strict=True)]


def stream(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    options: Generation,
    *,
    end: Collection[int],
    decode: Decode,
    tokenizer: Tokenizer | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Continue each prompt, and yield each piece as it comes; arguments and errors are those of `generate`.

    A search over beams knows its text only in the end, and yields it then.
    """
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"prompt {row} has no token, and a text needs one to begin with")
    constraint = constraint_of(options, tokenizer, end)
    if not prompts:
        return
    longest = max(map(len, prompts)) + min(options.max_tokens, _FORESEEN)
    was_training = module.training
    module.eval()
    try:
        reader = Reader(module, len(prompts), longest, sources)
        if options.beams > 1:
            yield from search(reader, prompts, options, end=end, decode=decode, constraint=constraint)
        else:
            sampler = Sampler(options, range(len(prompts)) if numbers is None else numbers)
            yield from _step_by_step(reader, prompts, options, sampler, end, decode, constraint)
    finally:
        module.train(was_training)


_FORESEEN = 1024
"""Tokens of a generated text for which the cache has room from the start: more are allowed than are usually used."""


@dataclass(eq=False)
class _Row:
    """A text in the making."""

    number: int
    stream: TextStream
    limit: int
    matcher: Matcher | None
    count: int = field(default=0)

    def take(self, token: int, logprob: float, end: Collection[int]) -> Piece:
        """Add a token."""
        if token in end:
            return Piece(self.number, None, self.stream.finish(), 0.0, "end")
        self.count += 1
        text = self.stream.push(token)
        reason: FinishReason | None = None
        if self.stream.stopped:
            reason = "stop"
        elif self.matcher is not None and self.matcher.take(token):
            reason = "end"
        elif self.count >= self.limit:
            reason = "length"
        if reason is not None and not self.stream.stopped:
            text += self.stream.finish()
            reason = "stop" if self.stream.stopped else reason
        return Piece(self.number, token, text, logprob, reason)


@torch.inference_mode()
def _step_by_step(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    options: Generation,
    sampler: Sampler,
    end: Collection[int],
    decode: Decode,
    constraint: Constraint | None,
) -> Iterator[Piece]:
    rows = [
        _Row(
            number,
            TextStream(decode, options.stop, prompt),
            reader.limit(options, prompt),
            None if constraint is None else constraint.start(),
        )
        for number, prompt in enumerate(prompts)
    ]
    logits = reader.read(prompts)
    seen = None if options.repetition_penalty == 1 else seen_in(prompts, logits)
    while True:
        scores = logits if seen is None else penalised(logits, seen, options.repetition_penalty)
        if constraint is not None:
            scores = constrained(scores, [row.matcher for row in rows])
        tokens = sampler.choose(scores, [row.number for row in rows])
        chosen = tokens[:, None]
        logprobs = (-F.cross_entropy(logits, tokens, reduction="none")).tolist()
        pieces = [
            row.take(token, logprob, end)
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs, strict=True)
        ]
        yield from pieces
        alive = [i for i, piece in enumerate(pieces) if piece.finish_reason is None]
        if not alive:
            return
        if seen is not None:
            seen.scatter_(1, chosen, True)
        if len(alive) < len(rows):
            rows = [rows[i] for i in alive]
            kept = torch.tensor(alive, device=tokens.device)
            tokens, seen = tokens[kept], None if seen is None else seen[kept]
            reader.keep(alive)
        logits = reader.read_one(tokens)
