"""Curves in MLflow."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from luban.errors import MissingError
from luban.registry import register
from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

__all__ = ["Mlflow"]


@register("callbacks")
class Mlflow(Callback):
    """Logs to MLflow, by default into a local folder; needs ``pip install 'luban[mlflow]'``.

    A training that goes on after a restart goes on in the same run: its id is part of each checkpoint.
    """

    experiment: str = "luban"
    """The experiment that runs appear under."""
    tracking: str | None = None
    """Address or folder of the tracking store; ``train/mlflow.db`` in the artefact if left out."""

    _client: Any = PrivateAttr(default=None)
    _run: Any = PrivateAttr(default=None)
    _id: str | None = PrivateAttr(default=None)

    def require(self) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise MissingError(
                "callback mlflow needs a package that is not installed: pip install 'luban[mlflow]'"
            )

    def on_start(self, folder: Path, recipe: dict[str, Any]) -> None:
        self._client = importlib.import_module("mlflow")
        self._client.set_tracking_uri(self.tracking or f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        self._client.set_experiment(self.experiment)
        self._run = self._client.start_run(run_id=self._id)

    def on_step(self, progress: Progress, figures: dict[str, float]) -> None:
        self._client.log_metrics(
            {f"train/{name}": value for name, value in figures.items()}, step=progress.step
        )

    def on_evaluate(self, progress: Progress, figures: dict[str, float]) -> bool:
        self._client.log_metrics(
            {f"validation/{name}": value for name, value in figures.items()}, step=progress.step
        )
        return False

    def on_end(self, progress: Progress) -> None:
        self._client.end_run()

    def on_error(self, error: BaseException) -> None:
        if self._client is not None:
            self._client.end_run(status="FAILED")

    def state(self) -> dict[str, Any]:
        return {"run": self._id if self._run is None else str(self._run.info.run_id)}

    def restore(self, state: dict[str, Any]) -> None:
        self._id = state.get("run")  # none in a checkpoint that was written before it was kept
