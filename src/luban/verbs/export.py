"""The verb `export`: an artefact → another runtime's files, checked against the artefact on its own frozen sample."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from luban import files
from luban.artefact import Artefact
from luban.console import Console
from luban.errors import InputError, did_you_mean
from luban.predict import of_artefact

__all__ = ["FORMATS", "export"]

FORMATS = {"hf": "a directory that transformers loads", "peft": "a LoRA adapter in PEFT's format"}

_WRITTEN = frozenset(
    {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json",
        "adapter_model.safetensors", "README.md",
    }
)  # fmt: skip


def export(
    source: str | Path,
    output: str | Path,
    *,
    format: str = "hf",
    force: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write an artefact for another runtime.

    Args:
        source: the artefact.
        output: the directory to write.
        format: one of `FORMATS`.
        force: replace what is there.
        console: who is told what happens.

    Returns:
        ``output``, ``format``, and what the format found out: ``drift`` of the other runtime on the artefact's sample.

    Raises:
        InputError: if the format is unknown or cannot hold the artefact.
        ParityError: if the other runtime answers otherwise.

    Example:
        >>> luban.export("runs/reviews", "out/reviews", format="hf")["drift"]      # doctest: +SKIP
        1.2e-06
    """
    console = console or Console()
    if format not in FORMATS:
        known = ", ".join(f"{name} ({what})" for name, what in FORMATS.items())
        raise InputError(f"received format '{format}'; formats are {known}{did_you_mean(format, FORMATS)}")
    files.require_place(Path(output), force, _is_export)
    artefact = Artefact.load(source)
    predictor = of_artefact(artefact)
    with files.new_folder(Path(output), replace=Path(output).exists()) as folder:
        found: dict[str, Any] = import_module(f"luban.exporting.{format}").write(artefact, predictor, folder)
    for note in found.get("notes", []):
        console.say(note)
    if found.get("drift") is None:
        console.say(
            "transformers is not installed, so the files were not compared with the artefact: pip install 'luban[hf]'"
        )
    return {"output": str(output), "format": format, **found}


def _is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but what an export writes."""
    return all(path.is_file() and path.name in _WRITTEN for path in folder.iterdir())
