"""R-Drop: two passes with different dropout must agree (Liang et al., 2021, 'R-Drop: regularized dropout')."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.errors import RecipeError
from luban.objectives._base import Loss, Objective, Supervised, TargetFacts
from luban.objectives._wrapping import Wrapping
from luban.registry import register

__all__ = ["RDrop"]

_KINDS = ("category", "binary", "set")


@register("objectives")
class RDrop(Wrapping):
    """The mean of the inner objective over two passes, plus alpha times the divergence between their outputs.

    The divergence is ``(KL(p, q) + KL(q, p)) / 2``, of the classes, or of each yes or no; rows weigh as in the inner objective.
    The mean over both passes, not their sum as in equation 3 of the paper, keeps the loss comparable with one without (and is
    what the authors' code does). Costs a second pass in training; validation rows are measured as ever.

    Example:
        >>> RDrop.model_validate({"objective": "cross_entropy", "alpha": 4.0}).alpha
        4.0
    """

    alpha: Annotated[float, Option(gt=0)] = 1.0
    """Weight of the divergence; the paper takes 0.1 to 1 to fine-tune language models, 5 to translate."""

    _looked: bool = PrivateAttr(default=False)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        if not isinstance(self.inner, Supervised) or type(self.inner).forward is not Objective.forward:
            raise RecipeError(
                f"objective r_drop: it compares the classes that two passes give, and '{self.inner.type}' is about something else; take cross_entropy, binary_cross_entropy or focal"
            )
        super().setup(targets)
        if self.inner.facts.field.kind not in _KINDS:
            raise RecipeError(
                f"objective r_drop: target '{self.inner.column}' is a {self.inner.facts.field.kind}, but it fits {', '.join(_KINDS)}, whose outputs are probabilities"
            )

    def both(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Return the mean of both passes with their divergence added."""
        inner = self.inner
        assert isinstance(inner, Supervised)
        passes = [model(batch), model(batch)]
        first, second = (inner.losses(outputs, batch)[inner.column] for outputs in passes)
        output = f"{inner.column}.{inner.facts.field.output}"
        p, q = (outputs[output].float() for outputs in passes)
        self._look(model, p, q)
        divergence = _divergence(p, q, inner.facts.field.kind)
        sides, _ = inner._sides(batch, inner.read(batch))
        weights = [weight for _, weight in sides if weight is not None]
        if weights:
            divergence = divergence * torch.stack(weights).sum(0)
        total = (first.total + second.total) / 2 + self.alpha * divergence.sum()
        return {inner.column: replace(first, total=total)}

    def _look(self, model: nn.Module, p: Tensor, q: Tensor) -> None:
        """Refuse a model whose passes are all alike; looked at once, since it waits for the device."""
        if not self._looked and not _has_dropout(model) and torch.equal(p, q):
            raise RecipeError(
                "objective r_drop: both passes give the same outputs, since the model has no dropout; set model.dropout or model.layer_dropout above 0"
            )
        self._looked = True


def _divergence(p: Tensor, q: Tensor, kind: str) -> Tensor:
    """Return the symmetric divergence of each row, (B,), from logits (B, width): ``sum((p - q) (log p - log q)) / 2``."""
    if kind == "category":
        return ((p.softmax(1) - q.softmax(1)) * (p.log_softmax(1) - q.log_softmax(1))).sum(1) / 2
    # Of a yes or no, log p - log q and that of the opposites come to the difference of the logits.
    return ((p.sigmoid() - q.sigmoid()) * (p - q)).mean(1) / 2


def _has_dropout(model: nn.Module) -> bool:
    rates = (
        getattr(part, key, 0) for part in model.modules() for key in ("p", "dropout", "attention_dropout")
    )
    return any(isinstance(rate, float | int) and rate > 0 for rate in rates)
