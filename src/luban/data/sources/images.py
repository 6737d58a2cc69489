"""Pictures in a folder, labelled by the sub-folder they lie in or by a table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Annotated

import polars as pl
from pydantic import Field, PrivateAttr

from luban.data.contracts import Source
from luban.data.sources import open_source
from luban.data.sources._files import HASHED_WHOLE, reading
from luban.data.sources._tables import rechunk
from luban.errors import DataError, closest, did_you_mean
from luban.registry import register
from luban.sentences import say

__all__ = ["Images"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@register("sources")
class Images(Source):
    """A folder of pictures: the column `image` holds absolute paths; who needs a picture opens it.

    * With one sub-folder for each class, `label` is the sub-folder's name; the pictures may lie deeper in it.
    * Without sub-folders there is no `label`: pictures to predict.
    * With `table`, rows and columns come from that file, one column of which names a picture in the folder.

    Example:
        >>> Images(path="flowers").columns()      # doctest: +SKIP
        ['image', 'label']
    """

    path: Annotated[str, Field(min_length=1)]
    """The folder."""
    table: Annotated[str, Field(min_length=1)] | None = None
    """A csv, jsonl or parquet file with a row for each picture."""
    column: str = "image"
    """The column of `table` that holds file names, relative to `path`; it then holds absolute paths."""

    _left_out: int = PrivateAttr(default=0)
    _table: Source | None = PrivateAttr(default=None)

    def columns(self) -> list[str]:
        """Return ``image`` and ``label``, or the columns of the table."""
        root = self._root()
        if self.table is not None:
            return self._rows().columns()
        return ["image", "label"] if _folders(root) else ["image"]

    def scan(self, chunk_rows: int = 8192) -> Iterator[pl.DataFrame]:
        """Yield a row for each picture, in the order of the table, or of the names of classes and files."""
        frames = self._labelled_by_folder() if self.table is None else self._labelled_by_table(chunk_rows)
        empty = True
        for chunk in rechunk(frames, chunk_rows):
            empty = False
            yield chunk
        if empty:
            raise DataError(
                f"'{self.path}' holds no pictures; give a folder of files that end in {', '.join(_ENDINGS)}"
            )

    def fingerprint(self) -> str:
        """Return a hash of names and contents; beyond 256 MB in all, of names, sizes and mtimes."""
        root = self._root()
        digest = hashlib.sha256(self.model_dump_json(include={"column"}).encode())
        if self.table is not None:
            digest.update(self._rows().fingerprint().encode())
        with reading(self.path):
            pictures = _pictures(root)[0]
            whole = sum(os.path.getsize(one) for one in pictures) <= HASHED_WHOLE
            for one in pictures:
                status = os.stat(one)
                digest.update(
                    f"{os.path.relpath(one, root)}\0{status.st_size}\0".encode("utf-8", "surrogateescape")
                )
                if whole:
                    with open(one, "rb") as handle:
                        digest.update(hashlib.file_digest(handle, "sha256").digest())
                else:
                    digest.update(str(status.st_mtime_ns).encode())
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """Return how many files the last scan left out, and what the table has to say."""
        notes = self._rows().notes() if self.table is not None else []
        if self._left_out:
            notes.append(
                say(
                    "{path}: {n} files are no pictures by their endings and were left out",
                    path=self.path,
                    n=self._left_out,
                )
            )
        return notes

    def _root(self) -> str:
        root = os.path.abspath(os.path.expanduser(self.path))
        if "://" in self.path:
            raise DataError(
                f"'{self.path}' is a URL where a local folder of pictures belongs; copy the folder here first"
            )
        if os.path.isfile(root):
            raise DataError(
                f"'{self.path}' is a file where a folder of pictures belongs; give the folder it lies in"
            )
        if not os.path.isdir(root):
            above = os.path.dirname(root)
            close = closest(os.path.basename(root), os.listdir(above)) if os.path.isdir(above) else ""
            raise DataError(
                say(
                    "folder '{path}' does not exist; give a folder of pictures; did you mean '{close}'?",
                    path=self.path,
                    close=close,
                )
                if close
                else say("folder '{path}' does not exist; give a folder of pictures", path=self.path)
            )
        return root

    def _rows(self) -> Source:
        if self._table is None:
            assert self.table is not None
            self._table = open_source(self.table)
        if self.column not in (names := self._table.columns()):
            raise DataError(
                f"'{self.table}' has no column '{self.column}' for the file names; say which it is by "
                "'column'; "
                f"columns are {', '.join(names)}{did_you_mean(self.column, names)}"
            )
        return self._table

    def _labelled_by_folder(self) -> Iterator[pl.DataFrame]:
        root = self._root()
        with reading(self.path):
            folders = _folders(root)
            here, self._left_out = _pictures(root, deep=False)
            if not folders:
                yield pl.DataFrame({"image": here}, schema={"image": pl.String})
                return
            if here:
                raise DataError(
                    f"'{self.path}' holds pictures ('{os.path.basename(here[0])}') beside sub-folders; "
                    "move each into the sub-folder of its class, or name a 'table' with the labels"
                )
            for folder in folders:
                pictures, others = _pictures(os.path.join(root, folder))
                self._left_out += others
                yield pl.DataFrame(
                    {"image": pictures, "label": [folder] * len(pictures)},
                    schema={"image": pl.String, "label": pl.String},
                )

    def _labelled_by_table(self, chunk_rows: int) -> Iterator[pl.DataFrame]:
        root = self._root()
        for chunk in self._rows().scan(chunk_rows):
            paths = [name and os.path.join(root, str(name)) for name in chunk[self.column]]
            for path in paths:
                if path and not os.path.isfile(path):
                    raise DataError(
                        f"'{self.table}' names the picture '{path}', which does not exist; correct 'path' "
                        "or the name"
                    )
            yield chunk.with_columns(pl.Series(self.column, paths, pl.String))


def _folders(root: str) -> list[str]:
    """Return the names of the sub-folders, sorted; what begins with a dot or two underscores is some
    program's own."""
    with os.scandir(root) as entries:
        return sorted(one.name for one in entries if one.is_dir() and not one.name.startswith((".", "__")))


def _pictures(root: str, deep: bool = True) -> tuple[list[str], int]:
    """Return the pictures in a folder, sorted, and how many other files there are."""
    found: list[str] = []
    others = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(one for one in folders if deep and not one.startswith((".", "__")))
        pictures = sorted(one for one in files if one.lower().endswith(_ENDINGS) and not one.startswith("."))
        others += sum(not one.startswith(".") for one in files) - len(pictures)
        found += [os.path.join(folder, one) for one in pictures]
    return found, others
