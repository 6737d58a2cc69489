"""What all sources of files share: one or several files of the same columns, cut into chunks."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import polars as pl
from pydantic import Field, PrivateAttr

from luban.data.contracts import Source, in_seconds
from luban.data.sources._files import File, find, one_line
from luban.data.sources._text import Text
from luban.errors import DataError
from luban.sentences import say

__all__ = ["Files", "Schema", "TextFiles", "checked_names", "nulled", "rechunk"]

Schema: TypeAlias = dict[str, pl.DataType]


def rechunk(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """Regroup frames to `rows` rows each; the last may have fewer, an empty one is left out."""
    held: list[pl.DataFrame] = []
    height = 0
    for frame in frames:
        held.append(frame)
        height += frame.height
        if height >= rows:
            whole = pl.concat(held) if len(held) > 1 else frame
            full = height - height % rows
            for start in range(0, full, rows):
                yield whole.slice(start, rows)
            held = [whole.slice(full)]
            height -= full
    if height:
        yield pl.concat(held)


def nulled(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame of strings with null for each empty one."""
    return frame.with_columns(pl.when(pl.all() != "").then(pl.all()))


class Files(Source):
    """One or several files; a subclass says what columns a file has and yields its rows."""

    path: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    """A file, a glob, a URL that fsspec can open, or a list of them."""

    @abstractmethod
    def _schema(self, file: File) -> Schema:
        """Return the columns of a file."""

    @abstractmethod
    def _frames(self, file: File, schema: Schema) -> Iterator[pl.DataFrame]:
        """Yield the rows of a file in order, as many at a time as suits."""

    def _files(self) -> list[File]:
        return find(self.path)

    def columns(self) -> list[str]:
        """Return the column names of the first file."""
        return list(self._schema(self._files()[0]))

    def scan(self, chunk_rows: int = 8192) -> Iterator[pl.DataFrame]:
        """Yield the rows of all files in order, `chunk_rows` at a time."""
        files = self._files()
        schemas = [self._schema(file) for file in files]  # all at once: no misfit is met after an hour
        for file, schema in zip(files, schemas, strict=True):
            _require_same(files[0], schemas[0], file, schema)
        names = list(schemas[0])
        frames = (
            in_seconds(frame)[names]  # not select, which takes a column named "*" for a pattern
            for file, schema in zip(files, schemas, strict=True)
            for frame in self._frames(file, schema)
        )
        empty = True
        for chunk in rechunk(frames, chunk_rows):
            empty = False
            yield chunk
        if empty:
            values: dict[str, Any] = {"file": files[0].name, "columns": one_line(", ".join(names))}
            raise DataError(
                say("'{file}' has columns ({columns}) but no rows; give a file that has rows", **values)
                if len(files) == 1
                else say(
                    "'{file}' and {n} more has columns ({columns}) but no rows; give a file that has rows",
                    n=len(files) - 1,
                    **values,
                )
            )

    def fingerprint(self) -> str:
        """Return a hash of the files' contents (see `File.fingerprint`) and of the options that read them."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"path"}).encode())
        for file in self._files():
            digest.update(file.fingerprint().encode())
        return digest.hexdigest()


class TextFiles(Files):
    """Files of text: every column holds strings."""

    encoding: str = "auto"
    """A Python codec; auto recognises UTF-8, UTF-16 with its mark, GB18030 (GBK), Big5 and Latin-1, file by
    file."""

    _texts: dict[str, Text] = PrivateAttr(default_factory=dict)

    def _text(self, file: File, *, whole: bool, breaks: bytes = b"\r") -> Text:
        """Return the text of a file; what a reading of the whole file finds out replaces earlier notes."""
        text = Text(file, self.encoding, breaks)
        if whole or file.name not in self._texts:
            self._texts[file.name] = text
        return text

    def notes(self) -> list[str]:
        """Return each file's encoding and its repaired lines, as far as the files were read."""
        if not self._texts:
            self.columns()
        return [text.note() for text in self._texts.values()]


def checked_names(names: Sequence[str | None], at: str) -> list[str]:
    """Return column names without spaces around them; a column without a name gets its number.

    Raises:
        DataError: if a name occurs twice.
    """
    clean = [(name or "").strip() or f"column_{number}" for number, name in enumerate(names, 1)]
    numbers: dict[str, int] = {}
    for number, name in enumerate(clean, 1):
        if (first := numbers.setdefault(name, number)) != number:
            raise DataError(
                f"column name '{one_line(name)}' occurs twice (columns {first} and {number}); rename one",
                at=at,
            )
    return clean


def _require_same(first: File, expected: Schema, file: File, schema: Schema) -> None:
    missing = [name for name in expected if name not in schema]
    extra = [name for name in schema if name not in expected]
    if missing or extra:
        differences = [f"'{first.name}' alone has {one_line(', '.join(missing))}"] * bool(missing)
        differences += [f"'{file.name}' alone has {one_line(', '.join(extra))}"] * bool(extra)
        raise DataError(
            f"'{first.name}' and '{file.name}' have different columns ({'; '.join(differences)}); give "
            "files of the same columns"
        )
    for name, dtype in schema.items():
        if dtype != expected[name]:
            raise DataError(
                f"column '{name}' is {expected[name]} in '{first.name}' but {dtype} in '{file.name}'; "
                "convert one of the files"
            )
