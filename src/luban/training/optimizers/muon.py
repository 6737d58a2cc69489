"""Muon: orthogonalised momentum for hidden matrices (Jordan et al. 2024), AdamW for everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, overload

import torch
from torch.nn import Parameter

from luban.errors import RecipeError
from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive, Share, fused

__all__ = ["Muon", "is_hidden_matrix"]

_ENDS = re.compile(r"(?:^|[._])(?:\w*embed\w*|wte|wpe|(?:lm_)?heads?|classifier)(?:[._]|$)")
_MAX_ASPECT = 8  # hidden matrices are 4 : 1 at most in transformers; vocabularies and low ranks are far out


def is_hidden_matrix(name: str, parameter: Parameter) -> bool:
    """Return whether Muon updates this parameter: a matrix between hidden states, no embedding and no head.

    Orthogonalising makes all directions of an update equally long, which is right for a map between two
    hidden states and wrong for a table of rows that are seldom seen (Jordan et al. 2024). Two rules tell,
    since neither suffices:

    * no part of the name is an embedding or a head (``...embed...``, ``wte``, ``wpe``, ``head``, ``heads``,
      ``lm_head``, ``classifier``);
    * neither side is more than 8 times the other, which leaves out vocabularies, few labels and low ranks.

    Example:
        >>> is_hidden_matrix("blocks.0.attention.query.weight", Parameter(torch.zeros(64, 64)))
        True
        >>> is_hidden_matrix("heads.label.weight", Parameter(torch.zeros(10, 64)))
        False
    """
    if parameter.ndim != 2 or _ENDS.search(name):
        return False
    return max(parameter.shape) <= _MAX_ASPECT * min(parameter.shape)


@register("optimizers")
class Muon(Optimizer):
    """``v ← μ v + (1 - μ) g``, ``w ← (1 - η λ) w - η' UVᵀ`` where ``USVᵀ`` is the matrix ``(1 - μ) g + μ v``.

    ``UVᵀ`` comes from five Newton-Schulz iterations in bfloat16. ``η' = 0.2 η √max(n, m)`` gives the update
    the root mean square of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), so that one
    learning rate and one schedule serve both parts. Convolution kernels and all else that `is_hidden_matrix`
    refuses go to AdamW.
    """

    learning_rate: Positive = 1e-3
    """Size of a step η of both parts, before the schedule multiplies it; as for adamw."""
    weight_decay: Decay = 0.1
    """Decoupled weight decay λ of both parts: an update shrinks a weight by this times the learning rate."""
    momentum: Share = 0.95
    """Share μ of the mean gradient that is kept in the hidden matrices."""
    beta1: Share = 0.9
    """AdamW's share of the mean gradient that is kept."""
    beta2: Share = 0.95
    """AdamW's share of the mean squared gradient that is kept."""

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        hidden = [(name, p) for name, p in parameters if is_hidden_matrix(name, p)]
        rest = [(name, p) for name, p in parameters if not is_hidden_matrix(name, p)]
        if not hidden:
            raise RecipeError(
                "optimizer 'muon' finds no hidden matrix to train (no embedding, head, convolution or "
                "low-rank factor is one); take 'adamw'"
            )
        groups = [{**group, "name": f"muon_{group['name']}"} for group in self._groups(hidden)]
        muon = torch.optim.Muon(
            groups,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        if not rest:
            return muon
        adamw = torch.optim.AdamW(
            self._groups(rest), lr=self.learning_rate, betas=(self.beta1, self.beta2), fused=fused(rest)
        )
        return _Joined(muon, adamw)


class _Joined(torch.optim.Optimizer):
    """Optimizers that step as one: the parts work on this object's groups and state."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self._link()

    def _link(self) -> None:
        start = 0
        for part in self._parts:
            stop = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:stop], self.state
            start = stop

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._link()  # loading made new groups and a new state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
