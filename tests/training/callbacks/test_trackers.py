"""A run that goes on after a restart goes on in the trackers too.

wandb and mlflow are extras that may not be installed; a recording stand-in shows what they are asked, no more.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from luban.recipe import Section
from luban.training import engine
from luban.training.callbacks._base import Callback
from luban.verbs.train import train


class _Wandb(types.ModuleType):
    """Records `init`; a run is called as it was asked to be, or gets a new name."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.started: list[dict[str, Any]] = []

    def init(self, **options: Any) -> Any:
        self.started.append(options)
        name = options.get("id") or f"new-{len(self.started)}"
        return types.SimpleNamespace(id=name, log=lambda *a, **k: None, finish=lambda **k: None)


class _Mlflow(types.ModuleType):
    """Records `start_run`."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
        self.started: list[dict[str, Any]] = []

    def start_run(self, **options: Any) -> Any:
        self.started.append(options)
        name = options.get("run_id") or f"new-{len(self.started)}"
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: None


@pytest.fixture(params=["wandb", "mlflow"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = _Wandb() if request.param == "wandb" else _Mlflow()
    monkeypatch.setitem(sys.modules, request.param, package)
    return package


KEY = {"wandb": "id", "mlflow": "run_id"}


def made(tracker: Any) -> Callback:
    callback = Section("callbacks").parse(tracker.__name__)
    assert isinstance(callback, Callback)
    return callback


def test_state_names_the_run(tracker: Any, tmp_path: Path) -> None:
    key = KEY[tracker.__name__]
    first = made(tracker)
    first.on_start(tmp_path, {})
    saved = json.loads(json.dumps(first.state()))
    second = made(tracker)
    second.restore(saved)
    assert second.state() == saved, "also before it has begun"
    second.on_start(tmp_path, {})
    assert [options.get(key) for options in tracker.started] == [None, "new-1"]
    assert second.state() == saved
    if tracker.__name__ == "wandb":
        assert {options["resume"] for options in tracker.started} == {"allow"}


def test_a_checkpoint_of_before_begins_a_new_run(tracker: Any, tmp_path: Path) -> None:
    callback = made(tracker)
    callback.restore({})
    callback.on_start(tmp_path, {})
    assert tracker.started[0].get(KEY[tracker.__name__]) is None


def test_a_resumed_training_goes_on_in_its_run(
    tracker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=80)
    pl.DataFrame({"x": x, "y": 2 * x}).write_csv(tmp_path / "rows.csv")
    recipe = {
        "data": {"train": str(tmp_path / "rows.csv"), "inputs": {"x": "number"}, "targets": {"y": "number"}},
        "model": {"type": "mlp", "size": "tiny"},
        "train": {"epochs": 2, "checkpoint_steps": 2, "callbacks": [tracker.__name__]},
    }
    real = engine.Engine._save

    def dies(self: engine.Engine) -> None:
        real(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_save", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, output=tmp_path / "run")
    train(recipe, output=tmp_path / "run")
    assert [options.get(KEY[tracker.__name__]) for options in tracker.started] == [None, "new-1"]
