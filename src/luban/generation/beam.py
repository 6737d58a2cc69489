"""Beam search (Graves, 2012; Sutskever et al., 2014): several beginnings at a time, of which the most probable ones go on.

It takes what `transformers` takes, token by token: of ``2 · beams`` candidates a step (more, if there are several end tokens)
those that end are compared with what was found, by log-probability over a power of the length (Wu et al., 2016), and the best
`beams` of the others go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luban.generation.constraint import Constraint, Matcher, constrained
from luban.generation.options import Generation
from luban.generation.reader import Piece, Reader
from luban.generation.sampling import penalised, seen_in
from luban.generation.stream import Decode, TextStream

__all__ = ["search"]


@dataclass(frozen=True, eq=False)
class _Beam:
    """A beginning of a text.

    Attributes:
        score: its log-probability; of a finished text, over a power of its length.
        ids: its tokens.
        logprobs: the log-probability of each.
        parent: which row of the last pass it continues.
        matcher: where it stands in the grammar.
        complete: whether it ends here, by its last token or because the grammar lets nothing follow.
    """

    score: float
    ids: list[int]
    logprobs: list[float]
    parent: int
    matcher: Matcher | None
    complete: bool = False

    def then(self, token: int, score: float, logprob: float, parent: int, end: Collection[int]) -> _Beam:
        """Return this beginning and one token more."""
        matcher = None if self.matcher is None else self.matcher.copy()
        complete = token in end
        if matcher is not None and not complete:
            complete = matcher.take(token)
        return _Beam(score, [*self.ids, token], [*self.logprobs, logprob], parent, matcher, complete)


@dataclass(eq=False)
class _Search:
    """The search behind one prompt."""

    number: int
    options: Generation
    limit: int
    running: list[_Beam]
    finished: list[_Beam] = field(default_factory=list)
    done: bool = False

    @property
    def _penalty(self) -> float:
        return 1.0 if self.options.length_penalty is None else self.options.length_penalty

    def step(self, candidates: list[_Beam]) -> None:
        """Take the best continuations of all beams, the best one first."""
        beams, length = self.options.beams, len(candidates[0].ids)
        last = length >= self.limit
        # Those behind the first `beams` are there to go on if these end, not to be found themselves.
        ended = [c for c in candidates[:beams] if c.complete or last]
        found = [
            _Beam(c.score / length**self._penalty, c.ids, c.logprobs, c.parent, None, c.complete)
            for c in ended
        ]
        self.finished = sorted([*self.finished, *found], key=lambda beam: -beam.score)[:beams]
        self.running = [c for c in candidates if not c.complete][:beams]
        full = len(self.finished) == beams
        self.done = (
            last
            or not self.running
            or (full and (self.options.early_stopping is True or not self._can_improve(length)))
        )

    def _can_improve(self, length: int) -> bool:
        """Whether what goes on could become better than the worst of what was found."""
        if self.options.early_stopping == "never" and self._penalty > 0:
            length = self.limit  # where a falling sum over a rising length is at its best
        best: float = self.running[0].score / length**self._penalty
        return best > self.finished[-1].score


@torch.inference_mode()
def search(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    options: Generation,
    *,
    end: Collection[int],
    decode: Decode,
    constraint: Constraint | None,
) -> Iterator[Piece]:
    """Yield the pieces of each prompt's best text once its search ends; see `luban.generation.engine.stream`."""
    searches = [
        _Search(
            number,
            options,
            reader.limit(options, prompt),
            [_Beam(0.0, [], [], number, None if constraint is None else constraint.start())],
        )
        for number, prompt in enumerate(prompts)
    ]
    logits = reader.read(prompts)
    seen = None if options.repetition_penalty == 1 else seen_in(prompts, logits)
    while True:
        logprobs = logits.log_softmax(1)
        scores = logprobs if seen is None else penalised(logprobs, seen, options.repetition_penalty)
        if constraint is not None:
            scores = constrained(scores, [beam.matcher for one in searches for beam in one.running])
        row = 0
        for one in searches:
            rows = slice(row, row + len(one.running))
            one.step(_candidates(one, scores[rows], logprobs[rows], row, end))
            row = rows.stop
        for one in searches:
            if one.done:
                yield from _pieces(one, prompts[one.number], decode, end)
        searches = [one for one in searches if not one.done]
        if not searches:
            return
        beams = [beam for one in searches for beam in one.running]
        parents = [beam.parent for beam in beams]
        tokens = torch.tensor([beam.ids[-1] for beam in beams], device=logits.device)
        reader.keep(parents)
        if seen is not None:
            seen = seen[torch.tensor(parents, device=seen.device)].scatter_(1, tokens[:, None], True)
        logits = reader.read_one(tokens)


def _candidates(
    one: _Search, scores: Tensor, logprobs: Tensor, first: int, end: Collection[int]
) -> list[_Beam]:
    """Return the best continuations of the beams, the best one first.

    Args:
        one: the search.
        scores: log-probability of each token behind each beam, penalties and constraint applied, (beams, V).
        logprobs: the same without them.
        first: row of the first beam in the last pass.
        end: tokens that end a text.
    """
    size = scores.shape[1]
    whole = scores + torch.tensor([beam.score for beam in one.running], device=scores.device)[:, None]
    count = max(2, 1 + len(end)) * one.options.beams
    values, places = whole.flatten().topk(min(count, whole.numel()))
    gains = logprobs.flatten()[places].tolist()
    return [
        one.running[place // size].then(place % size, score, gain, first + place // size, end)
        for score, place, gain in zip(values.tolist(), places.tolist(), gains, strict=True)
        if score > -torch.inf  # what a constraint forbids is no candidate
    ]


def _pieces(one: _Search, prompt: Sequence[int], decode: Decode, end: Collection[int]) -> Iterator[Piece]:
    best = one.finished[0]
    ids = best.ids[:-1] if best.ids[-1] in end else best.ids
    stream = TextStream(decode, prompt=prompt)
    for token, logprob in zip(ids, best.logprobs, strict=False):
        yield Piece(one.number, token, stream.push(token), logprob)
    yield Piece(one.number, None, stream.finish(), 0.0, "end" if best.complete else "length")
