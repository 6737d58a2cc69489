"""Plain text, as documents: what language models are pretrained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import polars as pl
from pydantic import Field, PrivateAttr

from luban.data.sources import _text
from luban.data.sources._files import File
from luban.data.sources._tables import Schema, TextFiles
from luban.registry import register
from luban.sentences import say

__all__ = ["Text"]

_BATCH = 4096


@register("sources")
class Text(TextFiles):
    """Documents of plain text, one row each; files may be larger than memory as long as no document is.

    Example:
        >>> Text(path="corpus/*.txt", documents="blank").column
        'text'
    """

    documents: Literal["line", "blank", "file"] = "line"
    """Where a document ends: with its line, at an empty line, or with its file. Documents of blanks alone are left out and counted."""
    column: Annotated[str, Field(min_length=1)] = "text"
    """Name of the column they make."""

    _blank: dict[str, int] = PrivateAttr(default_factory=dict)

    def _schema(self, file: File) -> Schema:
        next(iter(self._text(file, whole=False)))  # whatever cannot be read is said now
        return {self.column: pl.String()}

    def _frames(self, file: File, schema: Schema) -> Iterator[pl.DataFrame]:
        batch: list[str] = []
        size = self._blank[file.name] = 0
        for document in self._documents(file):
            if not document.strip():
                self._blank[file.name] += 1
                continue
            batch.append(document)
            size += len(document)
            if len(batch) == _BATCH or size >= _text.BLOCK:
                yield pl.DataFrame({self.column: batch}, schema=schema)
                batch, size = [], 0
        if batch:
            yield pl.DataFrame({self.column: batch}, schema=schema)

    def notes(self) -> list[str]:
        """Return each file's encoding, and how many of its documents were left out, as far as the files were read."""
        left = [
            say("{file}: 1 document of blanks alone left out", file=name)
            if n == 1
            else say("{file}: {n:,} documents of blanks alone left out", file=name, n=n)
            for name, n in self._blank.items()
            if n
        ]
        return [*super().notes(), *left]

    def _documents(self, file: File) -> Iterator[str]:
        held: list[str] = []
        for line in self._lines(file):
            if self.documents == "line":
                yield line
            elif self.documents == "file" or line.strip():
                held.append(line)
            elif held:
                yield "\n".join(held)
                held = []
        if held:
            yield "\n".join(held)

    def _lines(self, file: File) -> Iterator[str]:
        for block in self._text(file, whole=True):
            # Not splitlines(), which also breaks at characters that stand within a line.
            lines = block.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
            yield from lines[:-1] if lines[-1] == "" else lines
