"""Reweighing: rows weigh so that group and class are independent in training (Kamiran & Calders, 2012)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.pipeline import WEIGHT
from luban.errors import RecipeError
from luban.objectives._base import Loss, TargetFacts
from luban.objectives._groups import Grouped
from luban.registry import register

__all__ = ["Reweigh"]


@register("objectives")
class Reweigh(Grouped):
    """The inner objective with rows weighing ``P(group) P(class) / P(group, class)``, counted on the training rows.

    Weights of the recipe (``data.weight``) are multiplied by these. Validation rows are measured without. It evens out what the
    labels say of groups; what the inputs say of them stays, so it seldom makes decisions alike on its own.

    Example:
        ``objective: {type: reweigh, by: [sex], objective: binary_cross_entropy}``
    """

    _weights: Tensor | None = PrivateAttr(default=None)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        super().setup(targets)
        if self.supervised.facts.field.kind not in ("category", "binary"):
            raise RecipeError(
                f"objective reweigh: it weighs rows by group and class, and target '{self.column}' is a {self.supervised.facts.field.kind}; take objective fair"
            )
        counts = self.tally()
        both = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
        self._weights = torch.where(counts > 0, both / counts.clamp(min=1), 1.0).float()

    def _weighed(self, batch: Batch) -> Batch:
        assert self._weights is not None
        own = self._weights.to(self.member(batch).device)[self.classes_of(batch), self.member(batch)]
        given = batch.get(WEIGHT)
        return {**batch, WEIGHT: own if given is None else own * given}  # type: ignore[operator]

    def count(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.count(self._weighed(batch))

    def both(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return self.inner.forward(model, self._weighed(batch))
