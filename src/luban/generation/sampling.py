"""One token from logits: penalties and filters, as pure functions over (B, V), and the draw.

A filter sets the logits of what may not be drawn to -inf. Each agrees with the processor of that name in `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luban.generation.options import Generation

__all__ = ["Sampler", "at_least_p", "penalised", "seen_in", "top_k", "top_p"]

_MOST = 1024
"""Tokens that are sorted before all of them are: a nucleus is rarely larger, and a vocabulary is."""


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens that a text has less probable (Keskar et al., 2019).

    Args:
        logits: (B, V).
        seen: whether the text has the token, prompt included, bool, (B, V).
        penalty: what positive logits are divided by and negative ones multiplied with.

    Example:
        >>> penalised(torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[True, True, False]]), 2.0).tolist()
        [[1.0, -2.0, 3.0]]
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def seen_in(prompts: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """Return which tokens each prompt has, bool, like logits (B, V)."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(prompt, device=logits.device)] = True
    return seen


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` largest logits of each row, (B, V), and those that equal the smallest of them (Fan et al., 2018).

    Example:
        >>> top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2).tolist()
        [[-inf, 3.0, 2.0]]
    """
    if k >= logits.shape[1]:
        return logits
    least = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep of each row, (B, V), the fewest tokens, the most probable first, that have probability `p` (Holtzman et al., 2020).

    Example:
        >>> top_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.7).exp().tolist()[0][2]
        0.0
    """
    whole = logits.logsumexp(1, keepdim=True)
    count = min(_MOST, logits.shape[1])
    values, places = logits.topk(count)
    mass = (values - whole).exp().cumsum(1)
    if count < logits.shape[1] and bool((mass[:, -1] < p).any()):
        values, places = logits.sort(1, descending=True)
        mass = (values - whole).exp().cumsum(1)
    # A token goes if those before it suffice; the most probable one stays in any case.
    kept = torch.cat([torch.ones_like(mass[:, :1], dtype=torch.bool), mass[:, :-1] < p], 1)
    result = torch.full_like(logits, -torch.inf)
    return result.scatter_(1, places, values.masked_fill(~kept, -torch.inf))


def at_least_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens of each row, (B, V), with `p` times the probability of the most probable one (Nguyen et al., 2024).

    Example:
        >>> at_least_p(torch.tensor([[0.6, 0.3, 0.1]]).log(), 0.4).exp().tolist()[0][2]
        0.0
    """
    probabilities = logits.softmax(1)
    return logits.masked_fill(probabilities < p * probabilities.amax(1, keepdim=True), -torch.inf)


class Sampler:
    """Chooses a token a row, as the options say.

    Each row draws from a generator of its own, so that its text depends neither on the rows beside it nor on when these end.

    Args:
        options: how.
        numbers: number of each row, by which its seed follows that of the options: rows of the same number draw the same.

    Example:
        >>> Sampler(Generation(), [0]).choose(torch.tensor([[0.0, 2.0, 1.0]]), [0]).tolist()
        [1]
    """

    def __init__(self, options: Generation, numbers: Sequence[int]) -> None:
        self.options = options
        self.generators: list[torch.Generator] = []
        if options.temperature:
            seed = int(torch.randint(2**63 - 1, ())) if options.seed is None else options.seed
            self.generators = [torch.Generator().manual_seed((seed + n) % 2**63) for n in numbers]

    def choose(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Return a token for each row, int64, (B,).

        Args:
            logits: (B, V) float32, penalties and constraints applied.
            rows: which rows these are, as places in `numbers`, (B,).
        """
        options = self.options
        if not options.temperature:
            return logits.argmax(1)
        # From the largest logit down and in double precision: no temperature is so small that anything overflows but to -inf.
        logits = logits.double()
        logits = (logits - logits.amax(1, keepdim=True)) / options.temperature
        if options.top_k is not None:
            logits = top_k(logits, options.top_k)
        if options.top_p is not None and options.top_p < 1:
            logits = top_p(logits, options.top_p)
        if options.min_p is not None:
            logits = at_least_p(logits, options.min_p)
        # In double precision, and drawn on the CPU: every device takes the same token, whatever its own generators draw.
        mass = logits.softmax(1).cumsum(1)
        draws = [torch.rand((1, 1), generator=self.generators[row], dtype=torch.float64) for row in rows]
        wanted = torch.cat(draws).to(mass.device) * mass[:, -1:]
        found = torch.searchsorted(mass, wanted, right=True)
        # A draw next to 1 may round to the whole mass: the last token that has any is the last that can be drawn.
        last = torch.searchsorted(mass, mass[:, -1:].contiguous())
        return torch.minimum(found, last).squeeze(1)
