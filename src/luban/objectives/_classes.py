"""Weights of classes, for objectives over a category, a yes-or-no target or a set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor

from luban.data.batch import Batch
from luban.errors import RecipeError, did_you_mean
from luban.objectives._base import Supervised, TargetFacts

__all__ = ["ClassWeighted"]


class ClassWeighted(Supervised):
    """A supervised objective in which classes may weigh differently.

    Where a row has one class (a category, yes or no), the row weighs as its class does. Where it has several (a set), each
    word's part of the row's loss does, and the row's loss is the mean over weights.
    """

    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """balanced: each class weighs as much in all (rows / (classes x rows of the class), as in scikit-learn); or class → weight."""

    _weights: Tensor | None = PrivateAttr(default=None)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        super().setup(targets)
        facts = self.facts
        if self.class_weights is None:
            self._weights = None
            return
        classes = facts.classes or []
        if self.class_weights == "balanced":
            counts = torch.tensor(facts.counts or [1] * len(classes), dtype=torch.float64)
            self._weights = (counts.sum() / (len(classes) * counts.clamp(min=1))).float()
            return
        for name, value in self.class_weights.items():
            if name not in classes:
                raise RecipeError(
                    f"class_weights: '{name}' is no class of '{self.column}'; classes are {', '.join(classes[:20])}{did_you_mean(name, classes)}"
                )
            if value < 0:
                raise RecipeError(
                    f"class_weights: received {value} for '{name}', but a weight is zero or more"
                )
        self._weights = torch.tensor([self.class_weights.get(name, 1.0) for name in classes])
        if not self._weights.any():
            raise RecipeError(
                f"class_weights: every class of '{self.column}' weighs 0, so nothing would be learnt; give at least one a weight above 0"
            )

    def row_weights(self, batch: Batch, target: Tensor) -> Tensor | None:
        rows = super().row_weights(batch, target)
        if self._weights is None or target.dim() != 1:
            return rows
        own = self._weights.to(target.device)[target.long()]
        return own if rows is None else rows * own

    def mean_over_logits(self, losses: Tensor) -> Tensor:
        """Return the loss of each row, (B,), from those of its logits, (B, width): one of yes or no, or one for each word."""
        if self._weights is None or self.facts.field.kind != "set":
            return losses.mean(1)
        weights = self._weights.to(losses.device)
        return losses @ (weights / weights.sum())
