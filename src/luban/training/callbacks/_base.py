"""What happens beside the updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from luban.recipe import Component
from luban.training.progress import Progress

__all__ = ["Callback"]


class Callback(Component):
    """Something that watches a run. Each hook does nothing by default; `state` makes it survive a restart."""

    changes: ClassVar[bool] = False
    """Whether it may change what is trained, or end the run. One that only tells somebody of a run is left out where models are
    trained beside the user's own, as the reference models of `luban audit` are: a run that nobody asked for is nobody's to track."""

    def require(self) -> None:
        """Check, before anything else is done, that what it needs is there.

        Raises:
            MissingError: if a package is not installed.
        """

    def on_start(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Called before the first update, also of a resumed run, with the artefact's folder for training and the recipe."""

    def before_update(self, model: nn.Module, progress: Progress) -> None:
        """Called before each single update, with the model that is trained; what it costs, every update costs."""

    def on_step(self, progress: Progress, figures: dict[str, float]) -> None:
        """Called after some updates with the latest figures (`loss`, `learning_rate`, `rows_per_second` ...)."""

    def on_evaluate(self, progress: Progress, figures: dict[str, float]) -> bool:
        """Called after each look at the validation rows; return True to stop the run."""
        return False

    def on_end(self, progress: Progress) -> None:
        """Called when training ended well."""

    def on_error(self, error: BaseException) -> None:
        """Called when training ended otherwise; also for Ctrl-C."""

    def state(self) -> dict[str, Any]:
        """Return what a restart needs, as JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
