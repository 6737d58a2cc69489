"""Objectives that wrap another one: what it needs and what it measures stay its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.pipeline import Pipeline
from luban.objectives._base import Loss, Objective, Outputs, TargetFacts
from luban.recipe import Component, Data, Section

__all__ = ["Wrapping"]


class Wrapping(Objective):
    """An objective around another, which alone is measured on the validation rows; both count the same."""

    objective: Annotated[Component, Section("objectives")]
    """The objective that is wrapped."""

    @property
    def inner(self) -> Objective:
        """The objective that is wrapped."""
        return cast(Objective, self.objective)

    @property
    def per_example(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self.inner.per_example

    @property
    def turn(self) -> int:  # type: ignore[override]
        """As the inner one."""
        return self.inner.turn

    @property
    def column(self) -> str | None:
        """The target of the inner one, if it has a single one."""
        return getattr(self.inner, "column", None)

    def complete(self, data: Data) -> list[str]:
        return self.inner.complete(data)

    def groups(self, data: Data) -> list[str]:
        return self.inner.groups(data)

    def aside(self) -> dict[str, str]:
        return self.inner.aside()

    def bind(self, pipeline: Pipeline, limit: int | None) -> dict[str, Field]:
        return self.inner.bind(pipeline, limit)

    def window(self) -> tuple[str, int, int, tuple[int, int]] | None:
        return self.inner.window()

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        return self.inner.collate(batch, generator)

    def describe(self, figures: Mapping[str, float]) -> dict[str, float]:
        return self.inner.describe(figures)

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        self.inner.setup(targets)

    def begin(self, model: nn.Module) -> None:
        self.inner.begin(model)

    def after_update(self) -> None:
        self.inner.after_update()

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.inner.restore(state)

    def count(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.count(batch)

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        return self.weighted(self.inner.losses(outputs, batch))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        if not torch.is_grad_enabled():
            return self.weighted(self.inner.forward(model, batch))
        return self.weighted(self.both(model, batch))

    def both(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Return the inner parts with what is added to each in training."""
        raise NotImplementedError

    def weighted(self, parts: Mapping[str, Loss]) -> dict[str, Loss]:
        """Return the parts with this objective's weight upon their own."""
        return {name: replace(part, weight=part.weight * self.weight) for name, part in parts.items()}


def summed(parts: Mapping[str, Loss]) -> Any:
    """Return the weighted sum of the totals, a scalar with a gradient; no row's share depends on the others."""
    return torch.stack([part.weight * part.total for part in parts.values()]).sum()
