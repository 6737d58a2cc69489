"""What every schedule has in common: a warm-up, then a curve over the rest of the training."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Self, final

from pydantic import Field, model_validator

from luban.recipe import Component

__all__ = ["End", "Schedule"]

End = Annotated[float, Field(ge=0)]


class Schedule(Component):
    """How the learning rate moves: `factor` multiplies the optimizer's learning rate.

    ::

        factor   1 ┤      ╭──╮
                   │    ╱     ╲      curve(progress), progress from 0 at the end of the warm-up
                   │  ╱         ╲    to 1 at step == total_steps, one past the last update
                 0 ┤╱             ╲
                   └──────┴────────┴
                       warmup    total_steps

    No update is wasted on a learning rate of zero: the warm-up starts at ``1/(warmup + 1)``, and the last
    update of a decay to zero is just above it.
    """

    warmup: Annotated[int | float, Field(ge=0)] = 0
    """Steps over which the learning rate rises to its full size; below 1, a share of all steps."""

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        if isinstance(self.warmup, float) and self.warmup >= 1:
            raise ValueError(f"warmup received {self.warmup}; write a share below 1, or whole steps")
        return self

    @final
    def factor(self, step: int, total_steps: int) -> float:
        """Return what to multiply the learning rate by.

        Args:
            step: updates made so far: 0 for the first update.
            total_steps: updates that the whole training makes; later steps keep the last value.

        Example:
            >>> from luban import registry
            >>> cosine = registry.lookup("schedules", "cosine")(warmup=0.1)
            >>> [round(cosine.factor(step, 1000), 3) for step in (0, 50, 100, 550, 1000)]
            [0.01, 0.505, 1.0, 0.5, 0.0]
        """
        warmup = self.warmup if isinstance(self.warmup, int) else round(self.warmup * total_steps)
        if step < warmup:
            return self.rise((step + 1) / (warmup + 1))
        return self.curve(min(1.0, (step - warmup) / max(1, total_steps - warmup)))

    def rise(self, progress: float) -> float:
        """Return the factor within the warm-up, `progress` between 0 and 1; a straight line by default."""
        return progress

    @abstractmethod
    def curve(self, progress: float) -> float:
        """Return the factor after the warm-up, `progress` going from 0 to 1."""

    def observe(self, value: float) -> None:
        """Take note of a look at the validation rows, lower being better; nothing by default."""
        return

    def state(self) -> dict[str, Any]:
        """Return what `observe` has learnt, as JSON; nothing by default."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned; an empty one starts anew."""
        return
