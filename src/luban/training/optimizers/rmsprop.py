"""RMSprop (Tieleman and Hinton 2012, lecture 6.5; centred: Graves 2013)."""

from __future__ import annotations

import torch

from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive, Share

__all__ = ["RMSprop"]


@register("optimizers")
class RMSprop(Optimizer):
    """``s ← α s + (1 - α) g²``, ``w ← w - η g / (√s + ε)``: AdaGrad that forgets.

    Torch has no fused kernel for it.
    """

    learning_rate: Positive = 1e-3
    """Size of a step η, before the schedule multiplies it."""
    weight_decay: Decay = 0.0
    """L2 penalty: this times the weight is added to the gradient."""
    alpha: Share = 0.99
    """Share α of the mean square that is kept from one update to the next."""
    momentum: Share = 0.0
    """Share of the previous update that is kept."""
    centered: bool = False
    """Divide by the standard deviation of the gradient instead of its root mean square."""
    eps: Positive = 1e-8
    """Keeps the division finite."""

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(
            self._groups(parameters),
            lr=self.learning_rate,
            alpha=self.alpha,
            momentum=self.momentum,
            centered=self.centered,
            eps=self.eps,
        )
