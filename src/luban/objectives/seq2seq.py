"""The next token of the text to be written, given the one that was read (Sutskever et al., 2014; Vaswani et al., 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor

from luban.data.batch import Batch
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Loss, Objective, Outputs, TargetFacts
from luban.registry import register

__all__ = ["Seq2Seq"]


@register("objectives")
class Seq2Seq(Objective):
    """Minus the log of the probability of each token of the target, given the true ones before it (teacher forcing).

    The sum is over the tokens of the target, the one that ends a text among them, and so is the count: a long text weighs
    more than a short one. Where rows have weights, a token has its row's. The logits are made in chunks.

    Example:
        >>> Seq2Seq(label_smoothing=0.1).type
        'seq2seq'
    """

    target: str | None = None
    """The text column that is written; if left out, the only text among the targets."""
    label_smoothing: Annotated[float, Option(ge=0, lt=1)] = 0.0
    """Share of the probability that goes evenly to all tokens instead of the true one (Szegedy et al., 2016); the paper of 2017
    takes 0.1. Validation is without it, so that losses compare."""

    _facts: TargetFacts | None = PrivateAttr(default=None)

    @property
    def column(self) -> str:
        """The target's column, which names this part of the loss."""
        assert self._facts is not None, "setup() comes first"
        return self._facts.field.column

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        texts = {column: facts for column, facts in targets.items() if facts.field.kind == "text"}
        kinds = ", ".join(f"{column} ({facts.field.kind})" for column, facts in targets.items()) or "none"
        if self.target is not None and self.target not in texts:
            raise RecipeError(
                f"objective {self.type}: '{self.target}' is no text target; the targets are {kinds}"
            )
        if self.target is None and len(texts) != 1:
            raise RecipeError(
                f"objective {self.type} fits one text target, and the targets are {kinds}"
                + (
                    "; say which by `target`"
                    if texts
                    else "; write data.targets: {zh: text}, with the name of your column"
                )
            )
        self._facts = texts[self.target] if self.target is not None else next(iter(texts.values()))

    def labels(self, batch: Batch) -> Ragged:
        """Return the tokens to be written, (T,)."""
        assert self._facts is not None, "setup() comes first"
        value = batch[self._facts.name]
        assert isinstance(value, Ragged)
        return value

    def _weights(self, batch: Batch, labels: Ragged) -> Tensor | None:
        """Return the weight of each token, (T,), None where all weigh 1."""
        weight = batch.get("row.weight")
        assert weight is None or isinstance(weight, Tensor)
        return None if weight is None else weight[labels.rows]

    def count(self, batch: Batch) -> dict[str, Tensor]:
        labels = self.labels(batch)
        weights = self._weights(batch, labels)
        if weights is not None:
            return {self.column: weights.sum()}
        return {self.column: torch.tensor(float(len(labels.values)), device=labels.values.device)}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        labels = self.labels(batch)
        projection, weights = outputs[f"{self.column}.tokens"], self._weights(batch, labels)
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        if weights is None:
            total = projection.total(labels.values, smoothing)
        else:
            total = (projection.losses(labels.values, smoothing) * weights).sum()
        return {self.column: Loss(total, self.count(batch)[self.column], self.weight)}

    def describe(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The perplexity, e to the mean loss."""
        loss = figures.get(f"{self.column}.loss", math.nan)
        return {f"{self.column}.perplexity": math.nan if math.isnan(loss) else math.exp(min(loss, 700.0))}
