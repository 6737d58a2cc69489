"""Curves in TensorBoard."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from luban.errors import MissingError
from luban.registry import register
from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

__all__ = ["TensorBoard"]


@register("callbacks")
class TensorBoard(Callback):
    """Writes event files for ``tensorboard --logdir``; needs ``pip install 'luban[tensorboard]'``."""

    folder: str | None = None
    """Where the events go; ``train/tensorboard`` in the artefact if left out."""

    _writer: Any = PrivateAttr(default=None)

    def require(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingError(
                "callback tensorboard needs a package that is not installed: pip install 'luban[tensorboard]'"
            )

    def on_start(self, folder: Path, recipe: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self.folder or str(folder / "tensorboard"))

    def on_step(self, progress: Progress, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, progress.step)

    def on_evaluate(self, progress: Progress, figures: dict[str, float]) -> bool:
        for name, value in figures.items():
            self._writer.add_scalar(f"validation/{name}", value, progress.step)
        self._writer.flush()
        return False

    def on_end(self, progress: Progress) -> None:
        self._writer.close()

    def on_error(self, error: BaseException) -> None:
        if self._writer is not None:
            self._writer.close()
