"""`luban init DATA`: from a data file to a recipe that says what was guessed, why, and how to change it."""

from __future__ import annotations

import fnmatch
import os
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl
import yaml

from luban import files, registry
from luban.data.contracts import Source
from luban.data.inference import Column, Inference, Problem, Sample, infer, look
from luban.errors import DataError, RecipeError
from luban.recipe import read_yaml, source_from

__all__ = ["InitReport", "init"]

_WIDTH = 110
_BLOCK = 20  # numbered columns from which on one line stands for all


@dataclass(frozen=True)
class InitReport:
    """What was found in the data, and the recipe made of it.

    Attributes:
        recipe: the text of the recipe.
        path: where it was written; None if it was not.
        rows: rows looked at.
        looked: the same for people: ``all 569 rows``.
        columns: one finding for each column, in the order of the data.
        targets: names of the columns to predict; none where a model learns to speak.
        problems: warnings, then notes.
        model: ``type``, ``size`` and the ``reason``.
    """

    recipe: str
    path: Path | None
    rows: int
    looked: str
    columns: list[Column]
    targets: list[str]
    problems: list[Problem]
    model: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


def init(
    data: str, *, targets: list[str] | None = None, output: str | None = None, force: bool = False
) -> InitReport:
    """Look at data and write a commented recipe for it.

    Args:
        data: a file, a glob, a folder of pictures, a URL or ``dataset:NAME``.
        targets: the columns to predict; chosen by name, or else the last that fits.
        output: where to write the recipe; ``<name of the data>.yaml`` in the working directory if left out, nowhere for ``-``.
        force: whether a file that is there already is replaced.

    Raises:
        DataError: if the data cannot be read, a target does not exist or fits none, or there is nothing to predict.
        RecipeError: if the kind of data cannot be told, or the recipe exists already.

    Example:
        >>> report = init("reviews.csv", targets=["label"])      # doctest: +SKIP
        >>> print(report.recipe)                                 # doctest: +SKIP
    """
    data = str(data)
    path = None if output == "-" else Path(output or f"{_stem(data)}.yaml")
    if path is not None and path.exists() and not force:
        raise RecipeError(
            f"'{path}' exists already and is left as it is; choose another name by 'output', or replace it by 'force'"
        )
    source = _source(data)
    spoken = None if targets else _spoken(source)
    if spoken is not None:
        return _speaking(spoken, data, path)
    folder = (
        None
        if "://" in data or data.startswith("dataset:")
        else Path(os.path.abspath(os.path.expanduser(data))).parent
    )
    sample = look(source)
    found = infer(sample, targets, folder)
    source = _by_folder(source, found, sample, folder)
    text = _compose(found, sample, source, data, path)
    _write(text, path)
    return InitReport(
        recipe=text,
        path=path,
        rows=len(sample.rows),
        looked=str(sample),
        columns=found.columns,
        targets=[column.name for column in found.targets],
        problems=found.problems,
        model={**found.model, "reason": found.model_reason},
    )


def _write(text: str, path: Path | None) -> None:
    if path is not None:
        with files.new_file(path) as beside:
            beside.write_text(text, encoding="utf-8")


# --- texts to learn a language from ------------------------------------------------------------------------------------


def _spoken(source: Source) -> Source | None:
    """Return the source of rows from which a model learns to speak: conversations, pairs of answers, documents."""
    if source.type == "text":
        return source
    if source.type not in ("jsonl", "parquet"):
        return None
    columns = {*source.columns()}
    if not (
        {"messages", "conversations"} & columns
        or {"chosen", "rejected"} <= columns
        or {"instruction", "output"} <= columns
    ):
        return None
    found = cast(Source, registry.lookup("sources", "conversations")(path=getattr(source, "path", "")))
    try:
        first = next(found.scan(256))
    except DataError:  # columns of these names that hold something else
        return None
    made = first[found.columns()[0]]
    return found if 2 * made.null_count() <= len(made) else None


def _speaking(source: Source, data: str, path: Path | None) -> InitReport:
    """Write the recipe of a language model, or of one that answers."""
    sample = look(source)
    rows = len(sample.rows)
    names: list[str] = [name for name in ("chosen", "rejected") if name in sample.rows.columns] or [
        source.columns()[0]
    ]
    good = rows - sample.rows[names[0]].null_count()
    chats = source.type == "conversations"
    columns = [
        Column(
            name,
            "chat" if name in names and chats else "text" if name in names else None,
            f"{good:,} of {rows:,} rows hold conversations" if name in names and chats else f"{rows:,} documents"
            if name in names else "it is no part of the conversations",
            role="input" if name in names else "left out",
        )
        for name in sample.rows.columns
    ]  # fmt: skip
    problems = [
        Problem("warning" if "no conversations" in note else "note", f"How it was read: {note}.")
        for note in source.notes()
        if not re.search(r"encoding utf-8\S*( \(recognised\))?$", note)
    ]
    model = {"type": "smollm", "from": "dataset:smollm2"} if chats else {"type": "llama", "size": "small"}
    reason = (
        "was tuned on conversations, 135 million parameters; or a directory of your own" if chats else "learns from nothing, so give it millions of words; or from: DIRECTORY, to go on from there"
    )  # fmt: skip
    objective = "dpo" if len(names) > 1 else "causal_lm"
    why = {
        "dpo": "makes the chosen answer more probable than the rejected one",
        "causal_lm": "learns the answers, and where they end" if chats else "learns the next token",
    }[objective]
    inputs = [
        (
            f"    {_entry(c.name, 'chat' if chats else '{type: text, tokens: bpe, lowercase: false}')}",
            c.reason,
        )
        for c in columns
        if c.role == "input"
    ]
    name = _scalar(path.name) if path else "RECIPE"
    lines = [
        f"# Recipe for {_comment(data)}, written by 'luban init' from {sample}.",
        "# A line that begins with '#' does nothing; take the '#' away to switch it on.",
        "#",
        f"#   luban check {name}    tells what a run will cost, and writes nothing",
        f"#   luban train {name}    runs it",
        *_problems(problems),
        "",
        "data:",
        f"  train: {_data(source, data, path)}",
        "  inputs:",
        *_aligned(inputs),
        "",
        "model:",
        *_aligned(
            [(f"  {key}: {value}", reason if i else "") for i, (key, value) in enumerate(model.items())]
        ),
        *(["adapt: [{type: lora, rank: 8}]"] if chats else []),
        *_aligned([(f"objective: {objective}", why)]),
        "",
        "# train:",
        *_aligned(
            [
                ("#   epochs: 3", "passes over the rows"),
                ("#   batch_tokens: 2048", "tokens of a batch; fewer take less memory"),
                ("#   seed: 1", "another start, to see how much of a result is luck"),
            ]
        ),
    ]
    text = "\n".join(lines) + "\n"
    _write(text, path)
    return InitReport(text, path, rows, str(sample), columns, [], problems, {**model, "reason": reason})


# --- the data -------------------------------------------------------------------------------------------------------------


def _stem(data: str) -> str:
    """Return what to call the recipe of some data: ``reviews`` for ``data/reviews.csv.gz``."""
    name = data.removeprefix("dataset:").rstrip("/").rsplit("/", 1)[-1]
    if name in ("", ".", ".."):
        name = Path(os.path.abspath(data)).name
    stem = name[:1] + name[1:].split(".")[0] if not os.path.isdir(data) else name
    return stem.strip("*?[] ") or "recipe"


def _source(data: str) -> Source:
    """Open the data; a table whose cells are separated by something else than commas says so in its header."""
    options = {"type": "images", "path": data} if os.path.isdir(data) else source_from(data)
    cls = registry.lookup("sources", options.pop("type"))
    source: Source = cls(**options)
    if source.type == "csv":
        header = ",".join(source.columns())
        for separator in ";\t|":
            if separator in header and header.count(separator) >= header.count(","):
                other: Source = cls(**options, separator=separator)
                with suppress(DataError):
                    next(other.scan())
                    return other
    return source


def _by_folder(source: Source, found: Inference, sample: Sample, folder: Path | None) -> Source:
    """Read a table of relative paths to pictures by way of their folder, so that they mean the same from anywhere."""
    for column in found.inputs:
        cells = sample.rows[column.name]
        if column.type == "image" and cells.dtype == pl.String and folder and source.type != "images":
            first = cells.drop_nulls()[0]
            if not Path(first).is_absolute():
                base = Path.cwd() if (Path.cwd() / first).is_file() else folder
                options = {"path": str(base), "table": getattr(source, "path", None), "column": column.name}
                return cast(Source, registry.lookup("sources", "images")(**options))
    return source


# --- the text -------------------------------------------------------------------------------------------------------------


def _scalar(text: str) -> str:
    """Return a string as YAML, for any place in a recipe, quoted where that is safer.

    Example:
        >>> _scalar("mean radius"), _scalar("no"), _scalar("a: b"), _scalar("3"), _scalar("价格")
        ('mean radius', "'no'", "'a: b'", "'3'", '价格')
    """
    for style in (None, '"'):
        line = yaml.safe_dump(
            [text], default_flow_style=True, default_style=style, allow_unicode=True, width=float("inf")
        )
        line = line.strip()[1:-1]
        if line.isprintable() and read_yaml(f"[{line}]").data == [text]:
            break
    return line


def _flow(value: Any) -> str:
    """Return plain data as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value) if isinstance(value, str) else "true" if value is True else f"{value}"


def _component(options: dict[str, Any]) -> str:
    return _scalar(options["type"]) if len(options) == 1 else _flow(options)


def _entry(key: str, value: str) -> str:
    """Return ``key: value``; YAML wants a question mark before a very long key."""
    name = _scalar(key)
    return f"{name}: {value}" if len(name) < 1000 else f"? {name}\n    : {value}"


def _aligned(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Put the comments of a block under one another."""
    block = list(lines)
    width = max((_columns(text) for text, _ in block if _columns(text) <= 56), default=0)
    for text, comment in block:
        gap = " " * max(0, width - _columns(text))
        yield f"{text}{gap}  # {_comment(comment)}" if comment else text


def _columns(text: str) -> int:
    """Return how wide a text stands on a screen: a Chinese character takes two places."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _compose(found: Inference, sample: Sample, source: Source, data: str, path: Path | None) -> str:
    """Write the recipe."""
    name = _scalar(path.name) if path else "RECIPE"
    lines = [
        f"# Recipe for {_comment(data)}, written by 'luban init' from {sample}.",
        "# A line that begins with '#' does nothing; take the '#' away to switch it on.",
        "#",
        f"#   luban check {name}    tells what a run will cost, and writes nothing",
        f"#   luban train {name}    runs it",
        *_problems(found.problems),
        "",
        "data:",
        f"  train: {_data(source, data, path)}",
        "  inputs:",
        *_aligned(map(_column, _in_blocks(found.columns))),
        "  targets:",
        *_aligned(_column(column) for column in found.targets),
        *_aligned(_about_rows(found)),
        "",
        *_aligned(
            [
                ("model:", ""),
                (f"  type: {found.model['type']}", found.model_reason),
                (f"  size: {found.model['size']}", "tiny, small, medium or large"),
            ]
        ),
    ]
    if found.objective:
        lines += [
            "",
            *_aligned(
                [
                    (
                        f"# objective: {_component(found.objective)}",
                        "each class weighs as much in all as any other",
                    )
                ]
            ),
        ]
    lines += [
        "",
        "# train:",
        *_aligned(
            [
                ("#   epochs: 20", "passes over the training rows; 10 if left out"),
                ("#   callbacks: [early_stopping]", "ends when the validation rows are predicted no better"),
                ("#   optimizer: {type: adamw, learning_rate: 0.001}", "how large the steps are"),
                ("#   seed: 1", "another start, to see how much of a result is luck"),
            ]
        ),
    ]
    return "\n".join(lines) + "\n"


def _problems(problems: list[Problem]) -> Iterator[str]:
    for severity, title in (("warning", "Look at this before you train:"), ("note", "Good to know:")):
        chosen = [_comment(problem.message) for problem in problems if problem.severity == severity]
        if chosen:
            yield from ("#", f"# {title}")
        for message in chosen:
            yield from textwrap.wrap(
                message,
                _WIDTH,
                initial_indent="#   - ",
                subsequent_indent="#     ",
                break_long_words=False,
                break_on_hyphens=False,
            )


def _in_blocks(columns: list[Column]) -> Iterator[Column]:
    """Yield what the recipe says of inputs: a pattern where many numbered columns (``pixel0`` ... ``pixel783``) are alike."""
    blocks: dict[str, list[Column]] = {}
    for column in columns:
        numbered = re.fullmatch(r"([^*?\[\]]*\D)\d+", column.name)
        alike = column.type == "number" or ("tells nothing" in column.reason and column.otherwise == "number")
        if numbered and alike and column.role in ("input", "left out"):
            blocks.setdefault(numbered[1], []).append(column)
    for prefix, block in list(blocks.items()):
        plain = all(one.type is None or not (one.options or one.absent) for one in block)
        matched = sum(fnmatch.fnmatchcase(column.name, f"{prefix}*") for column in columns)
        if len(block) < _BLOCK or matched > len(block) or not plain or not any(one.type for one in block):
            del blocks[prefix]
    member = {column.name: prefix for prefix, block in blocks.items() for column in block}
    for column in columns:
        if column.role not in ("input", "left out"):
            continue
        if column.name not in member:
            yield column
        elif block := blocks.pop(member[column.name], []):
            constant = sum(one.type is None for one in block)
            reason = f"{len(block)} columns of numbers, '{block[0].name}' to '{block[-1].name}'"
            reason += f"; {constant} of them are the same in every row" * bool(constant)
            yield Column(f"{member[column.name]}*", "number", reason)


def _column(column: Column) -> tuple[str, str]:
    if column.role == "left out":
        return f"    # {_entry(column.name, column.otherwise)}".replace(
            "\n    ", "\n    # "
        ), f"left out: {column.reason}"
    return f"    {_entry(column.name, _component({'type': column.type, **column.options}))}", column.reason


def _about_rows(found: Inference) -> Iterator[tuple[str, str]]:
    """Groups, cleaning, split and augmentation; commented out unless the rows cannot be read without."""
    if found.groups:
        yield f"  # groups: {_flow(found.groups)}", "every figure is then told for each group too"
    advised = [(_component(step), _why(step, found)) for step in found.advised]
    if found.clean:
        yield "  clean:", ""
        yield from ((f"    - {_flow(step)}", _why(step, found)) for step in found.clean)
        yield from ((f"    # - {step}", why) for step, why in advised)
    elif advised:
        yield f"  # clean: [{', '.join(step for step, _ in advised)}]", "; ".join(why for _, why in advised)
    if found.split and found.split_active:
        yield f"  split: {_flow(found.split)}", "a column of the data says which rows are for what"
    elif found.split:
        why = {
            "stratified": "each part gets its share of every class; else 10 % + 10 % at random",
            "group": "rows that belong together stay together",
            "time": "the latest rows are the test rows",
        }[found.split["type"]]
        yield f"  # split: {_flow(found.split)}", why
    augment = _augmentations({column.type for column in found.inputs})
    if augment:
        yield (
            f"  # augment: [{', '.join(augment)}]",
            "random changes of the training rows, which make few rows go further",
        )


def _why(step: dict[str, Any], found: Inference) -> str:
    match step:
        case {"type": "duplicates"}:
            return f"drops repeated training rows ({found.duplicates:,} seen)"
        case {"type": "missing", "strategy": "drop"}:
            return "drops training rows without a value here"
        case {"type": "missing"}:
            return "these words mean 'no value'; the median stands in"
        case _:
            return "repairs texts, in training and in prediction alike"


def _augmentations(types: set[str | None]) -> list[str]:
    """Return what fits the inputs, of what there is."""
    fitting = [name for kind, names in _AUGMENT.items() if kind in types for name in names]
    return [name for name in fitting if name in registry.names("augment")]


_AUGMENT: dict[str, tuple[str, ...]] = {"image": ("shift", "rotate"), "text": ("word_noise",)}


def _data(source: Source, data: str, path: Path | None) -> str:
    """Return the source as a recipe names it, in its short form where that means the same."""
    options = {key: value for key, value in source.model_dump(exclude_defaults=True).items() if key != "type"}
    folder = (path.parent if path else Path.cwd()).resolve()
    for key in ("path", "table"):
        if key in options:
            options[key] = _from(
                data if options[key] == str(data) or data.startswith("dataset:") else options[key], folder
            )
    if set(options) == {"path"}:
        if data.startswith("dataset:"):
            return data
        try:
            if source_from(options["path"])["type"] == source.type:
                return _scalar(options["path"])
        except RecipeError:  # a folder with a dot in its name
            pass
    return _flow({"type": source.type, **options})


def _from(place: str, folder: Path) -> str:
    """Return a path relative to the recipe's folder if it lies in it, else absolute; what is no local path stays."""
    if "://" in place or place.startswith("dataset:"):
        return place
    absolute = Path(os.path.abspath(os.path.expanduser(place)))
    real = absolute.parent.resolve() / absolute.name
    if real == folder:
        return "."
    relative = real.relative_to(folder).as_posix() if real.is_relative_to(folder) else str(absolute)
    return str(absolute) if relative.startswith("dataset:") else relative
