"""Adam (Kingma and Ba 2015)."""

from __future__ import annotations

import torch

from luban.registry import register
from luban.training.optimizers._base import Decay, Named, Optimizer, Positive, Share, fused

__all__ = ["Adam"]


@register("optimizers")
class Adam(Optimizer):
    """``m ← β₁ m + (1 - β₁) g``, ``s ← β₂ s + (1 - β₂) g²``, ``w ← w - η m̂ / (√ŝ + ε)``.

    The hats divide by ``1 - βᵗ``, because m and s start from zero.
    """

    learning_rate: Positive = 1e-3
    """Size of a step η, before the schedule multiplies it; fine-tuning wants 1e-5 to 1e-4."""
    weight_decay: Decay = 0.0
    """L2 penalty: this times the weight is added to the gradient; adamw decays the weights themselves."""
    beta1: Share = 0.9
    """Share β₁ of the mean gradient that is kept from one update to the next."""
    beta2: Share = 0.999
    """Share β₂ of the mean squared gradient that is kept; 0.95 is usual for language models."""
    eps: Positive = 1e-8
    """Keeps the division finite."""

    def _make(self, parameters: Named) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self._groups(parameters),
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=fused(parameters),
        )
