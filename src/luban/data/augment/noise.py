"""Numbers with noise."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field as Limits
from torch import Generator, Tensor

from luban.data.augment._base import Augmenter
from luban.data.augment._images import inputs
from luban.data.batch import Batch
from luban.data.contracts import Spec
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.registry import register

__all__ = ["Noise"]


@register("augment")
class Noise(Augmenter):
    """Add normal noise to numbers, which smooths what is learnt from them (Bishop 1995).

    Without `columns`, all inputs of real numbers but images are meant.

    Example:
        ``augment: [{type: noise, std: 0.1}]``
    """

    std: Annotated[float, Limits(gt=0)] = 0.1
    """Standard deviation of the noise, in units of the normalised values."""

    def batch(self, batch: Batch, spec: Spec, generator: Generator) -> Batch:
        """Return the batch with noise in its numbers.

        Raises:
            RecipeError: if there are no numbers to change.
        """
        changed: Batch = {}
        for name, field in inputs(batch, spec, self.columns):
            value = batch[name]
            flat = value.values if isinstance(value, Ragged) else value
            told = name.endswith(".missing")  # says that a number is missing; it is no measurement itself
            if not flat.is_floating_point() or told or (self.columns is None and field.kind == "image"):
                continue
            noise = torch.randn(flat.shape, generator=generator, device=generator.device).to(flat)
            noisy: Tensor = torch.add(flat, noise, alpha=self.std)
            changed[name] = value.like(noisy) if isinstance(value, Ragged) else noisy
        if not changed:
            raise RecipeError(
                "augment type 'noise' changes real numbers, but no input that it may change holds any"
            )
        return {**batch, **changed}
