"""What every augmentation has in common: a random change of training rows that keeps what they mean."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Generator

from luban.data.batch import Batch
from luban.data.contracts import Spec
from luban.recipe import Component

__all__ = ["Augmenter"]


class Augmenter(Component):
    """A random change of a training batch, drawn anew for every epoch and never applied to validation, test
    or prediction.

    All randomness comes from the generator that is handed in (seeded by run, epoch and batch), so that a
    resumed run draws the same changes. An augmenter acts either on raw text, before it is encoded (`level` is
    ``text``), or on the tensors of a batch (`level` is ``batch``).
    """

    level: ClassVar[Literal["text", "batch"]] = "batch"

    columns: list[str] | None = None
    """The input columns to change; all that the augmentation fits if left out."""

    def text(self, values: list[str], generator: np.random.Generator) -> list[str]:
        """Return changed texts, one for each received."""
        return values

    def batch(self, batch: Batch, spec: Spec, generator: Generator) -> Batch:
        """Return a changed batch; the received one stays as it is."""
        return batch
