"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

from __future__ import annotations

import torch

from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive, Share, fused

__all__ = ["AdamW"]


@register("optimizers")
class AdamW(Optimizer):
    """``w ← (1 - η λ) w``, then the update of `adam`: decay does not depend on the size of the gradients."""

    learning_rate: Positive = 1e-3
    """Size of a step η, before the schedule multiplies it; fine-tuning wants 1e-5 to 1e-4."""
    weight_decay: Decay = 0.01
    """Decoupled weight decay λ: each update shrinks a weight by this times the learning rate."""
    beta1: Share = 0.9
    """Share β₁ of the mean gradient that is kept from one update to the next."""
    beta2: Share = 0.999
    """Share β₂ of the mean squared gradient that is kept; 0.95 is usual for language models."""
    eps: Positive = 1e-8
    """Keeps the division finite."""

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self._groups(parameters),
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=fused(parameters),
        )
