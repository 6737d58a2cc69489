"""AdaGrad (Duchi, Hazan and Singer 2011)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive, fused

__all__ = ["Adagrad"]


@register("optimizers")
class Adagrad(Optimizer):
    """``s ← s + g²``, ``w ← w - η g / (√s + ε)``: rare features keep large steps, and every step shrinks."""

    learning_rate: Positive = 0.01
    """Size of a step η, before the schedule multiplies it."""
    weight_decay: Decay = 0.0
    """L2 penalty: this times the weight is added to the gradient."""
    initial_accumulator: Annotated[float, Field(ge=0)] = 0.0
    """What the sum of squares s starts from; above 0 it tames the first steps."""
    eps: Positive = 1e-10
    """Keeps the division finite."""

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(
            self._groups(parameters),
            lr=self.learning_rate,
            initial_accumulator_value=self.initial_accumulator,
            eps=self.eps,
            fused=fused(parameters),
        )
