"""Rows as a user hands them over: a file, standard input, or a literal."""

from __future__ import annotations

import glob
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

from luban.data.contracts import Source
from luban.errors import DataError, LubanError
from luban.predict import frame_of
from luban.recipe import Section, anchor, source_from
from luban.sentences import say

__all__ = ["chunks_of", "is_literal", "open_data", "read_again"]


def is_literal(text: str) -> bool:
    """Whether an argument is a row itself rather than the name of a file.

    Example:
        >>> is_literal('{"review": "好"}'), is_literal("rows.csv"), is_literal("[MASK] is a tool")
        (True, False, False)
    """
    return re.match(r'\s*(\{|\[\s*[{\[\]"\d-])', text) is not None


@contextmanager
def read_again(data: str) -> Iterator[Callable[[list[str]], Iterator[pl.DataFrame]]]:
    """Return what yields the rows for some columns, as `chunks_of` does, each time it is called: standard input, which can be
    read but once, is put aside in a file for as long.

    Args:
        data: as in `chunks_of`.
    """
    if data != "-":
        yield lambda columns: chunks_of(data, columns)
        return
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(sys.stdin.buffer, file)

        def read(columns: list[str]) -> Iterator[pl.DataFrame]:
            file.seek(0)
            yield from _lines(file, 8192)

        yield read


def chunks_of(data: str, columns: list[str], chunk_rows: int = 8192) -> Iterator[pl.DataFrame]:
    """Yield rows in chunks.

    Args:
        data: a path, a URL, ``dataset:NAME``, ``-`` for JSON lines on standard input, a JSON object or a list of them, or,
            where one column is read, simply its value.
        columns: the columns that are read; a bare value stands for the only one.
        chunk_rows: rows at a time.

    Raises:
        DataError: if it cannot be read.
    """
    if data == "-":
        yield from _lines(sys.stdin.buffer, chunk_rows)
    elif is_literal(data):
        try:
            rows = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(
                say(
                    "the literal row is no JSON ({error}); write for instance {example}",
                    error=error,
                    example=_example(columns),
                )
            ) from None
        if rows != []:
            yield frame_of(rows if isinstance(rows, list) else [rows])
    elif _looks_like_data(data):
        yield from _source_with(data, columns).scan(chunk_rows)
    elif len(columns) == 1:
        yield frame_of([{columns[0]: data}])
    else:
        raise DataError(
            say(
                "there is no file '{data}'; give a file, '-' for JSON lines on standard input, or a row such as {example}",
                data=data,
                example=_example(columns),
            )
        )


def open_data(data: str) -> Source:
    """Open a path, a glob, a URL or ``dataset:NAME``; paths are relative to the working folder.

    Raises:
        InputError: if the kind of data cannot be told.
    """
    options = source_from(anchor(data, Path.cwd()))
    return cast(Source, Section("sources").parse(options))


def _source_with(data: str, columns: list[str]) -> Source:
    """Open data that has these columns; conversations may lie in a layout that is yet to become ``messages``."""
    source = open_data(data)
    if not {*columns} <= {*source.columns()}:
        try:
            options = {"type": "conversations", "path": anchor(data, Path.cwd())}
            chats = cast(Source, Section("sources").parse(options))
            if {*columns} <= {*chats.columns()}:
                return chats
        except LubanError:  # then what is missing is said of the columns as they stand there
            pass
    return source


def _looks_like_data(data: str) -> bool:
    if data.startswith("dataset:") or ("://" in data and not any(c.isspace() for c in data)):
        return True
    try:
        if Path(data).exists() or (any(c in data for c in "*?[") and glob.glob(data)):
            return True
    except OSError:  # a text longer than any file name
        return False
    try:
        source_from(data)
    except LubanError:  # an ending that no source knows: it is a value, or a mistake that the caller names
        return False
    return "." in Path(data).name and " " not in data  # a file that was meant, and is not there


def _lines(stream: IO[bytes], chunk_rows: int) -> Iterator[pl.DataFrame]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                say("this line is no JSON object ({error})", error=error), at=f"standard input:{number}"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                say("a line holds one JSON object, but this one holds {kind}", kind=type(row).__name__),
                at=f"standard input:{number}",
            )
        rows.append(row)
        if len(rows) == chunk_rows:
            yield frame_of(rows)
            rows = []
    if rows:
        yield frame_of(rows)


def _example(columns: list[str]) -> str:
    shown = ", ".join(f'"{name}": ...' for name in columns[:3])
    return "'{" + shown + (", ..." if len(columns) > 3 else "") + "}'"
