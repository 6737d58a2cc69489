"""What every objective has in common: a sum and a count, so that accumulation and data parallelism are exact."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Array, Field
from luban.data.pipeline import Pipeline
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.recipe import Component, Data

__all__ = ["Loss", "Objective", "Outputs", "Supervised", "TargetFacts"]

Outputs = Mapping[str, Any]
"""What a model returns: name → tensor."""


@dataclass(frozen=True)
class Loss:
    """One named part of a loss.

    Attributes:
        total: the SUM over what is counted, a scalar with a gradient.
        count: how much was counted (examples or tokens, times their weights), a scalar.
        weight: the part's share in the whole.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class TargetFacts:
    """What an objective may want to know of a target.

    Attributes:
        name: full name of the field, ``label.index``.
        field: the field.
        classes: names of the classes, where there are any.
        counts: training rows of each class (of the positive word, for each word of a set).
        rows: training rows.
        tally: columns of groups → training rows by class (one for a number) and combination of groups, (classes, groups), and how
            many groups each column has.
    """

    name: str
    field: Field
    classes: list[str] | None = None
    counts: list[int] | None = None
    rows: int = 0
    tally: Callable[[list[str]], tuple[Array, list[int]]] | None = None


class Objective(Component):
    """What is minimised.

    The loss of a batch is the sum over its parts of ``weight * total / count``. With several batches in an update, or
    several processes, totals and counts are added up first; so the result does not depend on how rows were batched.
    """

    per_example: ClassVar[bool] = True
    """Whether a row's loss depends on that row alone; if not, batches cannot be split and gradients not clipped by example."""

    turn: ClassVar[int] = 0
    """Objectives of a lower turn change a batch first: texts are paired, then tokens are hidden."""

    causal: ClassVar[bool | None] = None
    """Whether a token may see only those before it (true), must see those behind it too (false), or it does not matter."""

    weight: Annotated[float, Option(gt=0)] = 1.0
    """Share in the whole, where several objectives are added."""

    def complete(self, data: Data) -> list[str]:
        """Fill in what this objective needs of the data section and the recipe leaves out; return what was derived, in
        sentences."""
        return []

    def groups(self, data: Data) -> list[str]:
        """Return the columns of groups that the objective looks at in a batch, as ``column.group``; the model does not see them."""
        return []

    def aside(self) -> dict[str, str]:
        """Return the inputs that the model does not read as its own, because the objective hands them over in place of another:
        column → that other one, whose options it takes over. They stand last in ``data.inputs``."""
        return {}

    def bind(self, pipeline: Pipeline, limit: int | None) -> dict[str, Field]:
        """Look at the fitted columns; return the target fields that the objective makes itself, by full name.

        Args:
            pipeline: fitted processors.
            limit: positions that the model takes at the most; None where there is no limit.

        Raises:
            RecipeError: if there is no column for it.
        """
        return {}

    def window(self) -> tuple[str, int, int, tuple[int, int]] | None:
        """Return how long rows become examples: field, length, overlap and what is left out at both ends; None to take rows
        whole."""
        return None

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Make the objective's own targets of a batch (mask tokens, pair texts), before it is used; on the CPU."""
        return batch

    def describe(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return figures that follow from the means over the validation rows, such as a perplexity."""
        return {}

    @abstractmethod
    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        """Bind to the targets of a run.

        Raises:
            RecipeError: if the objective does not fit them.
        """

    def begin(self, model: nn.Module) -> None:
        """Look at the model before its first update, also where a run goes on: with the weights it began with, on its device."""
        return

    def after_update(self) -> None:
        """Called after each update of the model; gradients of what the objective itself learns are whole then, and its to clear."""
        return

    def state(self) -> dict[str, Any]:
        """Return what the objective has learnt itself, for checkpoints: mappings and sequences of tensors and plain values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned; `begin` comes before."""
        return

    @abstractmethod
    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Return, by part, what `losses` will count in this batch; needs no forward pass."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        """Return the parts of the loss, given the model's outputs."""

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Run the model and return the parts; an objective that changes the batch, or runs the model twice, overrides this."""
        return self.losses(model(batch), batch)


class Supervised(Objective):
    """An objective that compares one target with the model's output for it, row by row."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of targets it fits."""

    target: str | None = None
    """The target column; if left out, the only one that fits."""

    _facts: TargetFacts | None = PrivateAttr(default=None)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        fitting = {column: facts for column, facts in targets.items() if facts.field.kind in self.kinds}
        if self.target is not None:
            if self.target not in targets:
                raise RecipeError(
                    f"objective {self.type}: '{self.target}' is no target; targets are {', '.join(targets)}"
                )
            if self.target not in fitting:
                raise RecipeError(
                    f"objective {self.type}: target '{self.target}' is a {targets[self.target].field.kind}, but this objective fits {' or '.join(self.kinds)}"
                )
            self._facts = fitting[self.target]
        elif len(fitting) == 1:
            self._facts = next(iter(fitting.values()))
        elif not fitting:
            kinds = ", ".join(f"{column} ({facts.field.kind})" for column, facts in targets.items())
            raise RecipeError(
                f"objective {self.type} fits targets of kind {' or '.join(self.kinds)}, but the targets are {kinds}"
            )
        else:
            raise RecipeError(
                f"objective {self.type} fits several targets ({', '.join(fitting)}); say which by `target`"
            )

    @property
    def facts(self) -> TargetFacts:
        """The target it is bound to."""
        assert self._facts is not None, "setup() comes first"
        return self._facts

    @property
    def column(self) -> str:
        """The target's column, which names this part of the loss."""
        return self.facts.field.column

    @abstractmethod
    def rowwise(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, (B,), from outputs (B, width) and targets (B,) or, for a set, (B, width)."""

    def row_weights(self, batch: Batch, target: Tensor) -> Tensor | None:
        """Return the weight of each row, (B,), or None where all weigh 1."""
        weight = batch.get("row.weight")
        assert weight is None or isinstance(weight, Tensor)
        return weight

    def read(self, batch: Batch) -> Tensor:
        """Return the target of each row: (B,), or for a set (B, width) of 0 and 1."""
        value = batch[self.facts.name]
        if isinstance(value, Ragged):
            hot = value.values.new_zeros(len(value), self.facts.field.width, dtype=torch.float32)
            hot[value.rows, value.values] = 1.0
            return hot
        return value

    def count(self, batch: Batch) -> dict[str, Tensor]:
        target = self.read(batch)
        return {self.column: self._sides(batch, target)[1]}

    def _sides(self, batch: Batch, target: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        """Return the targets to compare with and the weight of each row for it, and the whole weight.

        One pair, or two where rows are mixed (MixUp, CutMix): a row's own target and its partner's, each with its share.
        """
        partner, share = batch.get("mix.partner"), batch.get("mix.share")
        if partner is None:
            weight = self.row_weights(batch, target)
            total = (
                weight.sum() if weight is not None else torch.tensor(float(len(target)), device=target.device)
            )
            return [(target, weight)], total
        assert isinstance(partner, Tensor)
        assert isinstance(share, Tensor)
        sides: list[tuple[Tensor, Tensor | None]] = []
        own = self.row_weights(batch, target)
        for side, part in ((target, share), (target[partner], 1 - share)):
            weight = own if side is target or own is None else own[partner]
            sides.append((side, part if weight is None else part * weight))
        return sides, torch.stack([w.sum() for _, w in sides if w is not None]).sum()

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        name = f"{self.column}.{self.facts.field.output}"
        output = outputs[name].float()
        sides, count = self._sides(batch, self.read(batch))
        total = torch.stack(
            [
                loss.sum() if weight is None else (loss * weight).sum()
                for side, weight in sides
                for loss in [self.rowwise(output, side)]
            ]
        ).sum()
        return {self.column: Loss(total, count, self.weight)}
