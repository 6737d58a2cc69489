"""A second network tries to tell the group from what the model says, and the model learns to leave it nothing to tell by.

::

    batch ──▶ model ──▶ output ──┬──▶ inner loss ───────────────────────────────▶ L
                                 └──▶ (gradient times -alpha) ──▶ adversary ──▶ -log q(group | output)

The game is that of Zhang, Lemoine & Mitchell, 2018, 'Mitigating unwanted biases with adversarial learning'; both sides are trained in
one backward pass by reversing the gradient between them (Ganin & Lempitsky, 2015, 'Unsupervised domain adaptation by
backpropagation'). Zhang's projection of one gradient off the other is left out: it needs the gradients of both losses by all parameters,
apart, so that neither would be a sum over rows any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from luban.data.batch import Batch
from luban.errors import RecipeError
from luban.imports import uncollected
from luban.objectives._base import Loss, Objective, Outputs, TargetFacts
from luban.objectives._groups import Grouped
from luban.registry import register

__all__ = ["FairAdversary"]


@register("objectives")
class FairAdversary(Grouped):
    """The inner objective, plus alpha times what an adversary can tell of a row's group from the model's output for it.

    ``L + alpha · mean(log q(group | output) - log P(group))``, in nats: the adversary makes q as good as it can, which bounds the
    mutual information of output and group from below, and the model makes it small. With ``equalized_odds`` the adversary knows the
    true class too, and it is measured against P(group | class). The output is the log-odds of a binary target, the
    log-probabilities of the classes of a category, a number in deviations. Unlike `fair`, which evens out means, this is about
    everything that a threshold, or several, could make of the output.

    The adversary has one hidden layer of tanh: bounded, so that the model cannot win without end by outputs beyond anything the adversary
    has seen. It begins by knowing the shares of the groups in training and nothing else, makes one update of Adam, at a constant rate, for
    each of the model's, and is kept in checkpoints but is no part of the artefact. Rows weigh as in the inner objective.

    Validation rows are measured without the penalty; beside their loss stands what the adversary tells of them (it may fall below 0
    while the model is ahead of it): ``<target>.information``, and where `by` names the groups ``<target>.<groups>.information``
    (``income.sex.information``), so that several adversaries of one target, each with groups of its own, are told apart. What is kept
    as 'best' is not the fairest, so take ``train.keep: last``; a moving average (``train.ema``) steadies what the game leaves restless.

    Example:
        ``objective: {type: fair_adversary, by: [sex], alpha: 1.0, objective: binary_cross_entropy}``
    """

    alpha: Annotated[float, Option(ge=0)] = 1.0
    """Nats of loss that a nat told of the group costs; try 0.3 to 10 and look at the accuracy that each costs. 0 only measures."""
    constraint: Literal["demographic_parity", "equalized_odds"] = "demographic_parity"
    """What is to tell nothing of the group: the output, or the output beside the true class."""
    hidden: Annotated[int, Option(gt=0)] = 32
    """Units of the adversary's hidden layer."""
    learning_rate: Annotated[float, Option(gt=0)] = 0.01
    """Step size of the adversary's Adam; one that lags behind the model is fooled, not convinced."""

    _prior: Tensor | None = PrivateAttr(default=None)
    _adversary: nn.Sequential | None = PrivateAttr(default=None)
    _optimizer: torch.optim.Optimizer | None = PrivateAttr(default=None)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        super().setup(targets)
        kind = self.supervised.facts.field.kind
        if kind not in ("category", "binary", "number"):
            raise RecipeError(
                f"objective fair_adversary fits a category, binary or number, and target '{self.column}' is a {kind}"
            )
        if kind == "number" and self.constraint == "equalized_odds":
            raise RecipeError(
                f"objective fair_adversary: equalized_odds is about classes, and target '{self.column}' is a number; take demographic_parity"
            )
        counts = self.tally()
        if (counts.sum(0) > 0).sum() < 2:
            raise RecipeError(
                f"objective fair_adversary: all training rows have the same {' and '.join(self._columns)}, so there are no groups to tell apart; name another column"
            )
        if self.constraint == "demographic_parity":
            counts = counts.sum(0, keepdim=True)
        # One more of each, so that a group that only validation rows have is improbable, not impossible.
        self._prior = ((counts + 1) / (counts + 1).sum(1, keepdim=True)).log().float()  # (conditions, groups)

    def begin(self, model: nn.Module) -> None:
        super().begin(model)
        assert self._prior is not None, "setup() comes first"
        device = next(model.parameters()).device
        conditions, groups = self._prior.shape
        width = self.supervised.facts.field.width + (conditions if conditions > 1 else 0)
        # Its weights follow from the seed of the run, and what the model draws afterwards does not depend on them.
        with torch.random.fork_rng(devices=[]):
            last = nn.Linear(self.hidden, groups)
            adversary = nn.Sequential(nn.Linear(width, self.hidden), nn.Tanh(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self._prior = self._prior.to(device)
        self._adversary = adversary.to(device)
        with uncollected():
            self._optimizer = torch.optim.Adam(self._adversary.parameters(), lr=self.learning_rate)

    def count(self, batch: Batch) -> dict[str, Tensor]:
        (count,) = self.inner.count(batch).values()
        return {self.supervised.column: count, self._told: count}

    forward = Objective.forward  # it only reads outputs, so that it shares them with other objectives

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        """Return the inner part, with the penalty where there are gradients, and, without weight, what the adversary tells."""
        inner = self.supervised
        (part,) = inner.losses(outputs, batch).values()
        output = outputs[f"{inner.column}.{inner.facts.field.output}"].float()
        if inner.facts.field.kind == "category":
            output = output.log_softmax(1)
        classes, member = self.classes_of(batch), self.member(batch)
        guessed, known = self._guesses(output, classes, member)
        weight = inner.row_weights(batch, classes)
        if weight is not None:
            guessed, known = guessed * weight, known * weight
        told = (guessed.detach() - known).sum()
        total = part.total
        if torch.is_grad_enabled():
            # Of its value nothing remains, only the gradients: the adversary's as it is, the model's reversed.
            cost = -guessed.sum()
            total = total + self.alpha * told + (cost - cost.detach())
        return self.weighted(
            {inner.column: replace(part, total=total), self._told: Loss(told, part.count, 0.0)}
        )

    def describe(self, figures: Mapping[str, float]) -> dict[str, float]:
        """What the adversary tells, in nats a row."""
        return {**super().describe(figures), self._told: figures.get(f"{self._told}.loss", math.nan)}

    @property
    def _told(self) -> str:
        return ".".join([self.supervised.column, *(self.by or ()), "information"])

    def _guesses(self, output: Tensor, classes: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each row's group, (B,): the adversary's, and the one that it began with.

        Args:
            output: of the model, (B, width); its gradient is that of the adversary's cost, times -alpha.
            classes: true class of each row, (B,).
            member: group of each row, (B,).
        """
        assert self._prior is not None, "setup() comes first"
        assert self._adversary is not None, "begin() comes first"
        seen = [output.detach() - self.alpha * (output - output.detach())]
        prior = self._prior[torch.zeros_like(classes)]
        if len(self._prior) > 1:
            seen.append(F.one_hot(classes, len(self._prior)).to(output.dtype))
            prior = self._prior[classes]
        with torch.autocast(output.device.type, enabled=False):  # what is told may be thousandths of a nat
            guess = (prior + self._adversary(torch.cat(seen, 1))).log_softmax(1)
        own = member[:, None]
        return guess.gather(1, own).squeeze(1), prior.gather(1, own).squeeze(1)

    # --- the adversary's side --------------------------------------------------------------------------------

    def after_update(self) -> None:
        super().after_update()
        assert self._optimizer is not None, "begin() comes first"
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        assert self._adversary is not None, "begin() comes first"
        assert self._optimizer is not None
        own = {"adversary": self._adversary.state_dict(), "optimizer": self._optimizer.state_dict()}
        return {**own, "inner": super().state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        assert self._adversary is not None, "begin() comes first"
        assert self._optimizer is not None
        super().restore(state["inner"])
        self._adversary.load_state_dict(state["adversary"])
        self._optimizer.load_state_dict(state["optimizer"])
