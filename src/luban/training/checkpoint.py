"""Checkpoints: complete or not there, verified before they are trusted, free of pickle.

::

    train/
      step-00001200/
        tensors.safetensors     weights, optimizer, moving average, what objectives learn, random states
        best.safetensors        the best weights so far (a hard link as long as they do not change)
        state.json              everything else: position in the data, schedule, callbacks, figures
        manifest.json           sha256 of each of the files above
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from luban import files
from luban.tensors import write_tensors

__all__ = ["Checkpoints", "join", "split"]

_KEPT = 2


def split(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Return `state` as JSON, its tensors moved into `tensors` under their path; `join` puts them back.

    Mappings keep keys that are no strings, tuples stay tuples, floats come back bit for bit.

    Raises:
        TypeError: for anything but mappings, sequences, tensors and JSON's scalars.
    """
    if isinstance(state, Tensor):
        tensors[path] = state.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(state, Mapping):
        return {"map": [[key, split(value, tensors, f"{path}/{key}")] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        kind = "tuple" if isinstance(state, tuple) else "list"
        return {kind: [split(value, tensors, f"{path}/{i}") for i, value in enumerate(state)]}
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"{path}: a checkpoint cannot hold {type(state).__name__}")


def join(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `split` took apart."""
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, value),) = skeleton.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "map":
        return {key: join(part, tensors) for key, part in value}
    parts = [join(part, tensors) for part in value]
    return tuple(parts) if kind == "tuple" else parts


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie.
        say: called with a sentence whenever the user should know something.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda sentence: None) -> None:
        self.folder, self.say = folder, say

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def save(
        self, step: int, state: dict[str, Any], best: Mapping[str, Tensor] | None, *, best_changed: bool
    ) -> bool:
        """Write a checkpoint, unless that of this step is there, and let go of all but the last few.

        Args:
            step: number of updates made.
            state: whatever `load` is to return; tensors anywhere in it.
            best: the best weights so far.
            best_changed: whether they are others than at the last checkpoint.

        Returns:
            Whether it was written.

        Raises:
            MachineError: if the disk is full or cannot be written; earlier checkpoints stay.
        """
        tensors: dict[str, Tensor] = {}
        skeleton = split(state, tensors)
        target = self.folder / f"step-{step:08}"
        if target.exists():
            return False
        previous = next(iter(self._all()), None)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if best is not None:
            size += sum(t.numel() * t.element_size() for t in best.values())
        files.require_space(self.folder, int(size * 1.02) + 2**20, "a checkpoint")
        with files.new_folder(target) as folder:
            write_tensors(tensors, folder / "tensors.safetensors")
            if best is not None:
                link = previous / "best.safetensors" if previous is not None and not best_changed else None
                if link is not None and link.is_file():
                    os.link(link, folder / "best.safetensors")
                else:
                    write_tensors(best, folder / "best.safetensors")
            (folder / "state.json").write_text(json.dumps(skeleton), encoding="utf-8")
            hashes = {path.name: files.sha256_of(path) for path in sorted(folder.iterdir())}
            (folder / "manifest.json").write_text(json.dumps(hashes), encoding="utf-8")
        for old in self._all()[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        return True

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor] | None] | None:
        """Return the state and the best weights of the newest checkpoint that is undamaged; None if there is none.

        What was half written when a run died is removed; which checkpoint was taken, and which was found damaged, is said.
        """
        for rest in self.folder.glob(".*.partial"):
            shutil.rmtree(rest, ignore_errors=True)
        for path in self._all():
            problem = _problem(path)
            if problem is not None:
                self.say(f"checkpoint {path.name} is damaged ({problem}); it is left out")
                shutil.rmtree(path, ignore_errors=True)
                continue
            skeleton = json.loads((path / "state.json").read_text(encoding="utf-8"))
            state = join(skeleton, safetensors.torch.load_file(path / "tensors.safetensors"))
            best_path = path / "best.safetensors"
            self.say(f"going on from checkpoint {path.name}")
            return state, safetensors.torch.load_file(best_path) if best_path.is_file() else None
        return None


def _problem(path: Path) -> str | None:
    try:
        hashes = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, expected in hashes.items():
            if files.sha256_of(path / name) != expected:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, AttributeError):
        return "it is incomplete"
    return None if "state.json" in hashes and "tensors.safetensors" in hashes else "it is incomplete"


def random_state() -> dict[str, Tensor]:
    """Return the states of torch's global generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Take back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
