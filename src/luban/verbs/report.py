"""The verb `report`: an artefact → one page that a manager and an engineer can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ValidationError

from luban import files
from luban.artefact import Artefact, is_artefact
from luban.console import Console
from luban.errors import ArtefactError, InputError
from luban.origin import of_split, require_split
from luban.predict import of_artefact
from luban.recipe import read_yaml
from luban.reporting._blocks import Page
from luban.reporting._charts import require as require_pictures
from luban.reporting._html import html
from luban.reporting._markdown import markdown
from luban.reporting._sections import page, verdict
from luban.reporting._words import Words
from luban.reporting.gather import LIMIT, Options, gather
from luban.sentences import revived, say
from luban.verbs.evaluate import trained_on
from luban.verbs.rows import chunks_of

__all__ = ["FORMATS", "audits_of", "format_of", "is_private", "report", "require_page", "write"]

FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json"}
"""Ending of a file → what is written into it."""
_FOLDS = "cross-validation.json"
_AUDIT = "audit.json"


class _Finding(BaseModel):
    severity: Literal["high", "medium", "low", "info"]
    sentence: str
    figures: dict[str, Any] = {}
    advice: str = ""


class _Result(BaseModel):
    findings: list[_Finding] = []
    figures: dict[str, float | None] | None = None
    tables: dict[str, list[dict[str, Any]]] | None = None
    notes: list[Any] | None = None


class _Gate(BaseModel):
    gate: str
    passed: bool
    value: float | None


class _Audit(BaseModel):
    """What a page needs of a file of audits, which somebody else or an older version may have written."""

    audits: dict[str, _Result]
    gates: list[_Gate] | None = None
    left_out: dict[str, str] | None = None
    left: dict[str, str] | None = None


def report(
    artefact: str | Path,
    data: str | None = None,
    *,
    output: str | Path | None = None,
    lang: str = "en",
    format: str | None = None,
    audit: Sequence[str | Path] = (),
    split: str | None = None,
    limit: int = LIMIT,
    examples: int = 6,
    baselines: bool = True,
    private: bool | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Write what is known of an artefact as one page: figures beside baselines, errors, explanations, audits, data, cost, lineage.

    Args:
        artefact: the artefact's directory, or that of a cross-validation, whose first fold is then reported on.
        data: rows with inputs and targets to measure on; by default what was measured after training counts, and its rows are read
            again from where the recipe says, for the baselines and the examples.
        output: the file to write; nothing is written if left out.
        lang: ``en`` or ``zh``.
        format: ``html``, ``md`` or ``json``; by default as the ending of `output` says, else html.
        audit: files that `luban audit -o` wrote; by default ``audit.json`` in the artefact, if it is there.
        split: of `data`, only the rows that were ``train``, ``validation`` or ``test`` when the artefact was trained.
        limit: rows drawn for baselines and examples, at most; of training rows four times as many.
        examples: rows shown of each kind; 0 for none.
        baselines: whether to train simple models to compare with.
        private: whether no row of the data is shown; by default so if the recipe says ``sample: synthetic``.
        device: ``cpu`` or ``cuda``.
        console: who is told what is being done.

    Returns:
        The data behind the page, with ``verdict`` (its sentences), ``output`` and ``format``.

    Raises:
        LubanError: in one sentence.
    """
    console = console or Console()
    written = require_page(output, format)
    words = Words(lang)
    if limit < 10 or examples < 0:
        raise InputError(
            say(
                "received limit {limit} and examples {examples}, but at least 10 and 0 are needed",
                limit=limit,
                examples=examples,
            )
        )
    folder, folds = _resolve(Path(artefact))
    loaded = Artefact.load(folder)
    predictor = of_artefact(loaded, device=device)
    warnings: list[str] = []
    chunks: Iterator[pl.DataFrame] | None = None
    if split is not None and data is None:
        raise InputError(
            say("split chooses among the rows of DATA, and none were given; name a file, or leave split out")
        )
    if data is not None:
        chunks = chunks_of(data, list(predictor.pipeline.inputs))
        if split is not None:
            require_split(loaded.lineage, split, loaded.path)
            chunks = of_split(predictor.pipeline, loaded.lineage, chunks, split)
        elif trained_on(loaded, data):
            warnings.append(
                say(
                    "the artefact was trained on rows of this very file, so its figures are flattered; add --split test"
                )
            )
    result = gather(
        loaded,
        predictor,
        chunks=chunks,
        data=data or "",
        warnings=warnings,
        audits=audits_of(audit, folder),
        options=Options(limit, examples, baselines, is_private(loaded) if private is None else private),
        console=console,
    )
    if folds:
        result["folds"] = folds
    result["verdict"] = verdict(result, words)
    result["format"], result["output"] = written, None
    if output is not None:
        write(result, Path(output), written, lambda: page(result, lang))
        result["output"] = str(output)
    return result


def write(data: dict[str, Any], output: Path, format: str, make: Callable[[], Page]) -> None:
    """Write a report as a file that is complete or not there.

    Args:
        data: what is behind the page; what JSON holds.
        output: the file.
        format: ``html``, ``md`` or ``json``.
        make: makes the page.
    """
    if format == "json":
        text = (
            json.dumps(files.finite(data), ensure_ascii=False, indent=1, default=str, allow_nan=False) + "\n"
        )
    else:
        text = html(make()) if format == "html" else markdown(make())
    with files.new_file(output) as beside:
        beside.write_text(text, encoding="utf-8")


def require_page(output: str | Path | None, format: str | None = None) -> str:
    """Check, before any work is done, that a report can be written there; return its format.

    Raises:
        InputError: if it is none that a report is written in, or the place is a folder.
        MissingError: if it needs pictures and what draws them is not installed.
    """
    written = format_of(output, format)
    if output is not None and Path(output).is_dir():
        raise InputError(say("'{output}' is a folder; name a file with -o", output=output))
    if output is not None and written == "html":
        require_pictures()
    return written


def format_of(output: str | Path | None, format: str | None) -> str:
    """Return what is written: what was asked for, or what the file's ending says.

    Raises:
        InputError: if it is none that a report is written in.
    """
    if format is not None and format not in FORMATS.values():
        raise InputError(say("received format '{format}', but a report is html, md or json", format=format))
    return format or (FORMATS.get(Path(output).suffix.lower(), "html") if output is not None else "html")


def _resolve(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the artefact to report on, and of a cross-validation the figures of all folds."""
    path = folder / _FOLDS
    if is_artefact(folder) or not path.is_file():
        return folder, {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        places = [folder / Path(fold).name for fold in summary["folds"]]
        each = []
        for place in places:
            metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["metrics"]
            each.append({name: one["value"] for name, one in metrics.items()})
        return places[0], {"metrics": summary["metrics"], "each": each}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtefactError(
            f"'{folder}' is damaged: its cross-validation.json and its folds do not fit together ({type(error).__name__}: {error})"
        ) from None


def audits_of(paths: Sequence[str | Path], folder: Path) -> list[dict[str, Any]]:
    """Return audits from files, or those that lie in an artefact where no file is named.

    Raises:
        InputError: if a file holds none that can be shown.
    """
    places = [Path(one) for one in paths] or [place for place in (folder / _AUDIT,) if place.is_file()]
    found = []
    for place in places:
        try:
            one = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"'{place}' holds no audit ({' '.join(str(error).split())[:120]}); write one with: luban audit {folder} DATA -o {place}"
            ) from None
        if not isinstance(one, Mapping) or not isinstance(one.get("audits"), Mapping):
            raise InputError(
                f"'{place}' holds no audit; write one with: luban audit {folder} DATA -o {place}"
            )
        try:
            _Audit.model_validate(one)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise InputError(
                f"'{place}' is no audit that can be shown ({'.'.join(map(str, wrong['loc']))}: {wrong['msg']}); write one anew with: luban audit {folder} DATA -o {place}"
            ) from None
        found.append(revived(dict(one)))
    return found


def is_private(artefact: Artefact) -> bool:
    """Whether a recipe says that no row of its data is to be shown."""
    try:
        data = read_yaml(artefact.recipe, "recipe.yaml").data
    except InputError:
        return False
    return isinstance(data, dict) and data.get("sample") == "synthetic"
