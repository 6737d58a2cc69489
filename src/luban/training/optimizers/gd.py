"""Gradient descent (Cauchy 1847): one update from the gradient of the whole training set."""

from __future__ import annotations

from typing import ClassVar

import torch

from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive, fused

__all__ = ["GD"]


@register("optimizers")
class GD(Optimizer):
    """``w ← w - η ∇L(w)`` with the loss of all training rows, so that an epoch is one update.

    There is no noise in it: the loss falls at every update if the step is small enough.
    """

    whole_set: ClassVar[bool] = True

    learning_rate: Positive = 0.1
    """Size of a step η, before the schedule multiplies it."""
    weight_decay: Decay = 0.0
    """L2 penalty: this times the weight is added to the gradient."""

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        return torch.optim.SGD(self._groups(parameters), lr=self.learning_rate, fused=fused(parameters))
