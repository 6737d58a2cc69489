"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass
class Progress:
    """Where a run stands; everything here survives a restart.

    Attributes:
        step: updates made.
        epoch: epochs completed.
        batch: batches of the present epoch that are used up.
        rows: training rows seen, repeated ones counted again.
        total_steps: updates that the whole run makes.
        best: the best value of the metric so far; None before the first look.
        best_step: when that was.
        since_best: looks at the validation rows since then.
        stopped: why the run ended early, if it did.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    rows: int = 0
    total_steps: int = 0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    stopped: str | None = None
