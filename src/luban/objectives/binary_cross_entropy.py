"""Cross entropy of yes-or-no targets: one (binary) or several at once (set)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from luban.objectives._base import Supervised, TargetFacts
from luban.registry import register

__all__ = ["BinaryCrossEntropy"]


@register("objectives")
class BinaryCrossEntropy(Supervised):
    """Minus the log of the probability given to what is true, for each logit; a set's row is the mean over its words."""

    kinds: ClassVar[tuple[str, ...]] = ("binary", "set")

    label_smoothing: Annotated[float, Option(ge=0, lt=1)] = 0.0
    """Targets become 0 + s/2 and 1 - s/2."""
    positive_weight: Annotated[float, Option(gt=0)] | Literal["balanced"] | None = None
    """Weight of the positive side; balanced: negatives / positives in the training rows, for each logit."""

    _weight: Tensor | None = PrivateAttr(default=None)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        super().setup(targets)
        if self.positive_weight == "balanced":
            positives = torch.tensor(self.facts.counts or [1], dtype=torch.float32)[-self.facts.field.width :]
            self._weight = (self.facts.rows - positives) / positives.clamp(min=1)
        elif self.positive_weight is not None:
            self._weight = torch.tensor([self.positive_weight])
        else:
            self._weight = None

    def rowwise(self, output: Tensor, target: Tensor) -> Tensor:
        wanted = target.reshape(len(output), -1).float()
        if self.label_smoothing:
            wanted = wanted * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight = None if self._weight is None else self._weight.to(output.device)
        return F.binary_cross_entropy_with_logits(output, wanted, pos_weight=weight, reduction="none").mean(1)
