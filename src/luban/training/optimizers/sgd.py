"""Stochastic gradient descent (Robbins and Monro 1951) with momentum (Polyak 1964; Sutskever et al. 2013)."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import model_validator

from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive, Share, fused

__all__ = ["SGD"]


@register("optimizers")
class SGD(Optimizer):
    """``v ← μ v + g``, ``w ← w - η v``; with Nesterov's momentum ``w ← w - η (g + μ v)``."""

    learning_rate: Positive = 0.01
    """Size of a step η, before the schedule multiplies it; networks with batch norm often bear 0.1."""
    weight_decay: Decay = 0.0
    """L2 penalty: this times the weight is added to the gradient."""
    momentum: Share = 0.9
    """Share μ of the previous update that is kept; 0 is plain SGD."""
    nesterov: bool = False
    """Take the gradient's step from where momentum will have led."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set momentum to 0.9, or remove nesterov")
        return self

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(
            self._groups(parameters),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=fused(parameters),
        )
        if self.momentum:
            # Zeros give the same first update. Without them torch's fused kernel fails when some parameters of a group have
            # had a gradient and others get their first, as when blocks are unfrozen one by one.
            for _, p in parameters:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
