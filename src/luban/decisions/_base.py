"""What is fitted on validation rows once the weights are final, kept in the artefact and used by every prediction.

::

    model ──▶ output ──▶ temperature ──▶ thresholds ──▶ output' ──▶ decoded value, scores
                                                          └──────▶ conformal ──▶ label.set, price.interval

A decision changes a target's output, or adds to its prediction. Evaluation, comparison and audits see what prediction sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl
from pydantic import PrivateAttr

from luban.data.contracts import Array, Processor
from luban.errors import RecipeError, did_you_mean
from luban.recipe import Component

__all__ = ["Decision"]


class Decision(Component):
    """One step from outputs to decisions."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of targets it fits."""

    untouched: ClassVar[bool] = False
    """Whether it must be fitted on rows that no other decision was fitted on; such decisions stand last."""

    target: str | None = None
    """The target column; if left out, the only one that fits."""

    _column: str = PrivateAttr(default="")

    @property
    def column(self) -> str:
        """The target it is bound to."""
        return self._column

    @property
    def needs(self) -> list[str]:
        """Columns that rows to predict must bring beside the inputs."""
        return []

    def bind(self, targets: Mapping[str, Processor]) -> None:
        """Choose the target.

        Raises:
            RecipeError: if none fits, or several do.
        """
        fitting = [name for name, one in targets.items() if one.type in self.kinds]
        if self.target is not None and self.target not in fitting:
            raise RecipeError(
                f"decide {self.type}: '{self.target}' is no target that it fits; it fits {' and '.join(self.kinds)}, "
                f"and these are {', '.join(fitting) or 'none'}{did_you_mean(self.target, fitting)}"
            )
        if self.target is None and len(fitting) != 1:
            many = ", ".join(f"{name} ({one.type})" for name, one in targets.items()) or "none"
            raise RecipeError(
                f"decide {self.type} fits targets of kind {' or '.join(self.kinds)}, and the targets are {many}"
                + ("; say which by `target`" if fitting else "; remove it")
            )
        self._column = self.target or fitting[0]

    def fit(self, processor: Processor, output: Array, truth: Array, rows: pl.DataFrame) -> str:
        """Learn from validation rows.

        Args:
            processor: of the target.
            output: what the model puts out, after the decisions before this one, (n, width).
            truth: as `Processor.truth` gives it.
            rows: of the cleaned rows the columns that decisions need, (n,).

        Returns:
            What was learnt, in one sentence.

        Raises:
            RecipeError: if there are too few rows.
        """
        raise NotImplementedError

    def outputs(self, output: Array, rows: pl.DataFrame) -> Array:
        """Return the outputs (n, width) as they are decided by; `rows` are cleaned, (n,)."""
        return output

    def extend(self, processor: Processor, output: Array) -> list[dict[str, Any]]:
        """Return what a prediction shows beside, by short name (``set``), one dict a row; nothing by default."""
        return []

    def state(self) -> dict[str, Any]:
        """Return what was fitted, as JSON."""
        return {"column": self._column}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._column = str(state["column"])
