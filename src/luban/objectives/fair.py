"""A penalty on how far predictions differ by group, added to another objective.

After Zafar et al., 2017, who bound the covariance of group and score; here its square is added to the loss, group by group, as
a regulariser (Kamishima et al., 2012).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from luban.data.batch import Batch
from luban.errors import RecipeError
from luban.objectives._base import Loss, TargetFacts
from luban.objectives._groups import Grouped
from luban.registry import register

__all__ = ["Fair"]


@register("objectives")
class Fair(Grouped):
    """The inner objective, plus alpha times the squared distance of each group's mean score from that of all rows.

    ``alpha · Σ_g P(g) · (mean score of g - mean score)²``, for each class; with ``equalized_odds`` the same within the rows of
    each true class. Scores are probabilities (of a number, the number in deviations). Groups are as frequent as in training, not
    as in the batch, so that the penalty of a batch does not jump with it; it is too high by about 1 / (rows of the batch) a group,
    so take batches of some hundred rows. Validation rows are measured without the penalty: what is kept as 'best' is not the
    fairest, so take ``train.keep: last``.

    Example:
        ``objective: {type: fair, by: [sex], alpha: 10.0, objective: binary_cross_entropy}``
    """

    per_example: ClassVar[bool] = False

    alpha: Annotated[float, Option(gt=0)] = 10.0
    """Weight of the penalty; try 1 to 100 and look at the accuracy that each costs."""
    constraint: Literal["demographic_parity", "equalized_odds"] = "demographic_parity"
    """What is to be alike: scores of all rows, or scores of the rows of each true class."""

    _shares: Tensor | None = PrivateAttr(default=None)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        super().setup(targets)
        kind = self.supervised.facts.field.kind
        if kind not in ("category", "binary", "number"):
            raise RecipeError(
                f"objective fair fits a category, binary or number, and target '{self.column}' is a {kind}"
            )
        if kind == "number" and self.constraint == "equalized_odds":
            raise RecipeError(
                f"objective fair: equalized_odds is about classes, and target '{self.column}' is a number; take demographic_parity"
            )
        counts = self.tally()
        if self.constraint == "demographic_parity":
            counts = counts.sum(0, keepdim=True)
        self._shares = (counts / counts.sum()).float()  # (conditions, groups), summing to 1

    def both(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        inner = self.supervised
        outputs = model(batch)
        (part,) = inner.losses(outputs, batch).values()
        output = outputs[f"{inner.column}.{inner.facts.field.output}"].float()
        kind = inner.facts.field.kind
        scores = output.softmax(1) if kind == "category" else output.sigmoid() if kind == "binary" else output
        penalty = self.penalty(scores, self.classes_of(batch), self.member(batch))
        return {inner.column: replace(part, total=part.total + self.alpha * part.count * penalty)}

    def penalty(self, scores: Tensor, classes: Tensor, member: Tensor) -> Tensor:
        """Return the penalty of a batch, a scalar, from scores (B, width), classes (B,) and groups (B,)."""
        assert self._shares is not None
        shares = self._shares.to(scores.device)
        mine = F.one_hot(member, self.combinations).to(scores.dtype)  # (B, G)
        total = scores.new_zeros(())
        for condition in range(len(shares)):
            within = shares[condition].sum()
            known = shares[condition] / within.clamp(min=1e-12)
            rows = torch.ones_like(classes) if len(shares) == 1 else (classes == condition).long()
            # Each group's mean over its expected, not its actual, number of rows, minus the mean of all.
            weigh = torch.where(known > 0, mine / known.clamp(min=1e-12) - 1, 0.0) * rows[:, None]
            gaps = weigh.t() @ scores / rows.sum().clamp(min=1)  # (G, width)
            total = total + within * (known[:, None] * gaps.pow(2)).sum()
        return total
