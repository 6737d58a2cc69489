"""Objectives that know which group of people a row belongs to; the model does not."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import PrivateAttr
from torch import Tensor

from luban.data.batch import Batch
from luban.errors import RecipeError, did_you_mean
from luban.objectives._base import Objective, Supervised
from luban.objectives._wrapping import Wrapping
from luban.recipe import Data

__all__ = ["Grouped"]


class Grouped(Wrapping):
    """An objective around one that compares a target row by row, with the groups of the training rows beside it."""

    by: list[str] | None = None
    """Columns whose values, together, are the groups; all of ``data.groups`` if left out."""

    _columns: list[str] = PrivateAttr(default_factory=list)
    _sizes: list[int] = PrivateAttr(default_factory=list)

    def groups(self, data: Data) -> list[str]:
        _ = self.supervised  # one that cannot be wrapped has no groups either, and says something else of it
        if not data.groups:
            raise RecipeError(
                f"objective {self.type}: data.groups names no column; say there which are groups"
            )
        for name in self.by or ():
            if name not in data.groups:
                raise RecipeError(
                    f"objective {self.type}: '{name}' is none of data.groups, which are {', '.join(data.groups)}{did_you_mean(name, data.groups)}"
                )
        self._columns = list(self.by or data.groups)
        return self._columns

    @property
    def supervised(self) -> Supervised:
        """The objective that is wrapped."""
        inner = self.inner
        if not isinstance(inner, Supervised) or type(inner).forward is not Objective.forward:
            raise RecipeError(
                f"objective {self.type}: '{self.inner.type}' does not compare a target row by row; take cross_entropy, binary_cross_entropy, focal or mean_squared"
            )
        return inner

    def tally(self) -> Tensor:
        """Return the training rows by class (one for a number) and group, (classes, groups)."""
        tally = self.supervised.facts.tally
        assert tally is not None, "the plan counts groups where an objective asks for them"
        counts, self._sizes = tally(self._columns)
        return torch.from_numpy(counts).double()

    def member(self, batch: Batch) -> Tensor:
        """Return the group of each row as a number, (B,)."""
        member: Any = 0
        for column, size in zip(self._columns, self._sizes, strict=True):
            member = member * size + batch[f"{column}.group"]
        assert isinstance(member, Tensor)
        return member

    @property
    def combinations(self) -> int:
        """How many groups there can be."""
        return math.prod(self._sizes)

    def classes_of(self, batch: Batch) -> Tensor:
        """Return the class of each row, (B,); 0 for a number.

        Raises:
            RecipeError: if rows are mixed with others, and so belong to no single group.
        """
        if "mix.partner" in batch:
            raise RecipeError(
                f"objective {self.type}: mixup and cutmix make rows of no single group; remove them from data.augment"
            )
        target = self.supervised.read(batch)
        return (
            torch.zeros_like(target, dtype=torch.long)
            if self.supervised.facts.classes is None
            else target.long()
        )
