"""Curves in Weights & Biases."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr

from luban.errors import MissingError
from luban.registry import register
from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

__all__ = ["Wandb"]


@register("callbacks")
class Wandb(Callback):
    """Logs to Weights & Biases, by default into a local folder only; needs ``pip install 'luban[wandb]'``.

    A training that goes on after a restart goes on in the same run: its id is part of each checkpoint.
    """

    project: str = "luban"
    """The project that runs appear under."""
    mode: Literal["offline", "online"] = "offline"
    """offline: nothing leaves the machine until ``wandb sync``."""

    _run: Any = PrivateAttr(default=None)
    _id: str | None = PrivateAttr(default=None)

    def require(self) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise MissingError(
                "callback wandb needs a package that is not installed: pip install 'luban[wandb]'"
            )

    def on_start(self, folder: Path, recipe: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,
            dir=str(folder),
            config=recipe,
            id=self._id,
            resume="allow",  # go on in the run of that id, or begin it
        )
        self._id = str(self._run.id)

    def on_step(self, progress: Progress, figures: dict[str, float]) -> None:
        self._run.log({f"train/{name}": value for name, value in figures.items()}, step=progress.step)

    def on_evaluate(self, progress: Progress, figures: dict[str, float]) -> bool:
        self._run.log({f"validation/{name}": value for name, value in figures.items()}, step=progress.step)
        return False

    def on_end(self, progress: Progress) -> None:
        self._run.finish()

    def on_error(self, error: BaseException) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1)

    def state(self) -> dict[str, Any]:
        return {"run": self._id}

    def restore(self, state: dict[str, Any]) -> None:
        self._id = state.get("run")  # none in a checkpoint that was written before it was kept
