"""The learning rate shrinks when the validation rows show no progress (as He et al. 2016 did by hand)."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from luban.registry import register
from luban.training.schedules._base import Schedule

__all__ = ["Plateau"]


@register("schedules")
class Plateau(Schedule):
    """The factor is multiplied by `shrink` after more than `patience` looks without a new lowest value.

    It depends on what was observed: `state` belongs in a checkpoint, and a second training starts with
    ``restore({})``.

    Example:
        >>> plateau = Plateau(shrink=0.5, patience=1)
        >>> for loss in (1.0, 1.2, 1.1):
        ...     plateau.observe(loss)
        >>> plateau.factor(3, 100)
        0.5
    """

    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What the factor is multiplied by."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Looks without a new best value that are borne before the factor shrinks."""
    min_factor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The factor never goes below this."""

    _factor: float = PrivateAttr(default=1.0)
    _best: float | None = PrivateAttr(default=None)
    _waited: int = PrivateAttr(default=0)

    def curve(self, progress: float) -> float:
        """Return the factor that the looks so far have left; `progress` plays no part."""
        return self._factor

    def observe(self, value: float) -> None:
        """Take note of a loss, or of a score with its sign turned; a NaN counts as no progress."""
        if not math.isnan(value) and (self._best is None or value < self._best):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited > self.patience:
            self._factor, self._waited = max(self.min_factor, self._factor * self.shrink), 0

    def state(self) -> dict[str, Any]:
        """Return the factor, the lowest value, and the looks since."""
        return {"factor": self._factor, "best": self._best, "waited": self._waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned; an empty one starts anew."""
        self._factor = state.get("factor", 1.0)
        self._best = state.get("best")
        self._waited = state.get("waited", 0)
