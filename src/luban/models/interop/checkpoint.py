"""Tensors on disk, by name, one at a time: safetensors (in one file or in shards), GGUF, or an artefact of ours.

Only formats that cannot hold a program are read. A pickled checkpoint is refused, with the way to convert it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors
from torch import Tensor

from luban.errors import ArtefactError, RecipeError

__all__ = ["Checkpoint", "located", "open_checkpoint", "said"]

T = TypeVar("T")
_CALLED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
    list: "a list",
}

_PICKLES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "consolidated.00.pth",
    "tf_model.h5",
)


@dataclass
class Checkpoint:
    """Somebody's model.

    Attributes:
        path: where it lies.
        config: config.json, or what a GGUF file says in its stead.
        kind: ``huggingface``, ``luban`` or ``gguf``.
        places: name of each tensor → how to read it.
        shapes: name of each tensor → its shape, known without reading it.
    """

    path: Path
    config: dict[str, Any]
    kind: str
    places: dict[str, Callable[[], Tensor]]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def said(self, key: str, kind: type[T]) -> T | None:
        """Return a value of the configuration, None where it is missing or null.

        Raises:
            RecipeError: if it is of another type.
        """
        return said(self.config, key, kind, self.path)

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name]()


def located(path: str) -> str:
    """Return a path as it is, and of ``dataset:NAME`` the place on this machine, where it is fetched to."""
    if not path.startswith("dataset:"):
        return path
    from luban import datasets

    return str(datasets.main_file(path.removeprefix("dataset:")))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory or a .gguf file; tensors are read when asked for.

    Raises:
        RecipeError: if there is nothing there that is known, or only pickles.
        ArtefactError: if a file is damaged.
    """
    where = Path(path)
    if where.is_file() and where.suffix == ".gguf":
        from luban.models.interop.gguf import open_gguf

        return open_gguf(where)
    if not where.is_dir():
        raise RecipeError(
            f"there is no directory '{path}' of a model; name one with config.json and *.safetensors, an artefact, or a .gguf file"
        )
    config = _config(where)
    files = _files(where)
    places: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safetensors.safe_open(file, "pt") as opened:
                names = list(opened.keys())
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise ArtefactError(f"'{file}' is damaged: {' '.join(str(error).split())[:120]}") from None
        for name in names:
            places[name] = _reader(file, name)
    return Checkpoint(where, config, "luban" if "luban" in config else "huggingface", places, shapes)


def said(config: dict[str, Any], key: str, kind: type[T], path: Path) -> T | None:
    """Return a value of somebody's JSON, None where it is missing or null.

    Raises:
        RecipeError: if it is of another type.
    """
    value = config.get(key)
    if value is None:
        return None
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or value in (float("inf"), float("-inf")) or value != value:
        raise RecipeError(f"'{path}' has {key} {str(value)[:80]!r}, and that must be {_CALLED[kind]}")
    return value


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safetensors.safe_open(file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    return read


def _config(where: Path) -> dict[str, Any]:
    path = where / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"'{where}' has no config.json, so nobody can tell what model it is; name a Hugging Face directory, an artefact, or a .gguf file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"'{path}' cannot be read: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(config, dict):
        raise RecipeError(f"'{path}' holds no mapping")
    return config


def _files(where: Path) -> list[Path]:
    """Return the safetensors files of a model, shards in the order of its index."""
    index = where / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if not all(isinstance(name, str) for name in shards):
                raise TypeError
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ArtefactError(f"'{index}' is damaged: {type(error).__name__}") from None
        if missing := [name for name in shards if not (where / Path(name).name).is_file()]:
            raise ArtefactError(
                f"'{where}' is incomplete: {missing[0]} is missing ({len(missing)} of {len(shards)} shards)"
            )
        return [where / Path(name).name for name in shards]
    single = where / "model.safetensors"
    if single.is_file():
        return [single]
    others = sorted(where.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if pickles := [name for name in _PICKLES if (where / name).is_file()]:
        raise RecipeError(
            f"'{where / pickles[0]}' is a pickle, which may run anything when it is read; convert it once where you trust it, with "
            "transformers: AutoModel.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
        )
    raise RecipeError(f"'{where}' has no model.safetensors")
