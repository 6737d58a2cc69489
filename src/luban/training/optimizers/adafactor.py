"""Adafactor: Adam's division with a memory of rows plus columns (Shazeer and Stern 2018)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive

__all__ = ["Adafactor"]


@register("optimizers")
class Adafactor(Optimizer):
    """The mean squares of a matrix (n, m) are kept as n + m numbers; without momentum, that is all.

    A step is relative to the size of the parameter it moves, and no larger than ``1/√t`` of it at update t
    whatever the schedule says. Torch has no fused kernel for it.
    """

    learning_rate: Positive = 0.01
    """Size of a step relative to the root mean square of the parameter, before the schedule multiplies it."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay: each update shrinks a weight by this times the learning rate."""
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    """The mean squares of update t keep the share ``1 - t^beta2_decay`` of what they were."""
    clip_threshold: Annotated[float, Field(ge=1)] = 1.0
    """An update whose root mean square is above this is scaled down to it."""

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(
            self._groups(parameters),
            lr=self.learning_rate,
            beta2_decay=self.beta2_decay,
            d=self.clip_threshold,
        )
