"""What mixing rows shares: partners, shares, and what they are called in a batch.

``mix.partner``, int64 (B,), is the row that was mixed in; ``mix.share``, float32 (B,), is the weight of the
row's own target, so that an objective is ``share * loss(own target) + (1 - share) * loss(partner's target)``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import numpy as np
import torch
from pydantic import Field as Limits
from torch import Generator, Tensor

from luban.data.augment._base import Augmenter
from luban.data.augment._images import Probability, inputs, uniform
from luban.data.batch import Batch, rows_in
from luban.data.contracts import Field, Spec
from luban.errors import RecipeError

__all__ = ["Alpha", "Mixer"]

Alpha = Annotated[float, Limits(gt=0)]


class Mixer(Augmenter):
    """A mixture of each row with another of its batch."""

    probability: Probability = 1.0
    """How likely a batch is mixed. A batch that is mixed already stays: two steps of 0.5 and 1 take turns."""

    @abstractmethod
    def fits(self, field: Field, value: Tensor) -> bool:
        """Return whether a field can be mixed."""

    @abstractmethod
    def mix(
        self, values: list[Tensor], partner: Tensor, share: Tensor, generator: Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Return the mixed fields, and the shares that came out."""

    @property
    @abstractmethod
    def _alpha(self) -> float: ...

    def batch(self, batch: Batch, spec: Spec, generator: Generator) -> Batch:
        """Return the mixed batch, with ``mix.partner`` and ``mix.share``.

        Raises:
            RecipeError: if an input cannot be mixed.
        """
        chosen: dict[str, Tensor] = {}
        for name, field in inputs(batch, spec, self.columns):
            value = batch[name]
            if not isinstance(value, Tensor) or not self.fits(field, value):
                raise RecipeError(
                    f"augment type '{self.type}' cannot mix input '{field.column}', which is {field.kind}; "
                    "name the columns to be mixed by 'columns', or leave the augmentation out"
                )
            chosen[name] = value
        drawn = uniform(0, 1, 1, torch.empty(0), generator)
        if "mix.partner" in batch or drawn.item() >= self.probability:
            return batch
        n = rows_in(batch)
        device = next(iter(chosen.values())).device
        partner = torch.randperm(n, generator=generator, device=generator.device).to(device)
        # torch draws from a Beta distribution without a generator only; numpy draws from a seed of the
        # generator.
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        beta = np.random.default_rng(seed).beta(self._alpha, self._alpha, n)
        share = torch.from_numpy(beta).to(device, torch.float32)
        values, share = self.mix(list(chosen.values()), partner, share, generator)
        return {**batch, **dict(zip(chosen, values, strict=True)), "mix.partner": partner, "mix.share": share}
