"""The log of a run, as JSON lines that any tool reads."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

__all__ = ["Log"]


class Log(Callback):
    """Appends to ``log.jsonl``: one object for each report of training and each look at the validation rows."""

    def __init__(self) -> None:
        super().__init__()
        self._path: Path | None = None

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **entry}) + "\n")

    def on_start(self, folder: Path, recipe: dict[str, Any]) -> None:
        self._path = folder / "log.jsonl"

    def on_step(self, progress: Progress, figures: dict[str, float]) -> None:
        self._write({"kind": "train", "step": progress.step, "epoch": progress.epoch, **figures})

    def on_evaluate(self, progress: Progress, figures: dict[str, float]) -> bool:
        self._write({"kind": "validation", "step": progress.step, "epoch": progress.epoch, **figures})
        return False

    def on_end(self, progress: Progress) -> None:
        self._write({"kind": "end", "step": progress.step, "stopped": progress.stopped})

    def on_error(self, error: BaseException) -> None:
        if self._path is not None and self._path.parent.is_dir():
            with suppress(OSError):  # the disk may be the error
                self._write({"kind": "error", "error": type(error).__name__, "message": str(error)})
