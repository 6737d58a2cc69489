"""NumPy arrays, read slice by slice."""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, cast

import numpy as np
import numpy.lib.format as npy
import polars as pl
from pydantic import Field

from luban.data.contracts import Array
from luban.data.sources._files import File, reading
from luban.data.sources._tables import Files, Schema
from luban.errors import DataError, did_you_mean
from luban.registry import register
from luban.sentences import say

__all__ = ["Npz"]

_SLICE = 4 << 20  # bytes of an array held at once
# What zipfile lets through when a file is damaged, packed in an unknown way or behind a password.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, ValueError, KeyError, RuntimeError)


@register("sources")
class Npz(Files):
    """NumPy's npz, where each array is a column, and npy, which is one column, ``array``.

    The first dimension counts the rows; arrays of more dimensions become polars Array columns of the
    remaining shape. Pickled objects are refused: loading them would run whatever code they hold.

    Example:
        >>> Npz(path="mnist.npz", arrays={"image": "x_test", "label": "y_test"}).columns()  # doctest: +SKIP
        ['image', 'label']
    """

    arrays: Annotated[dict[str, str], Field(min_length=1)] | None = None
    """Column → array, for a file that holds more than one table; by default every array, by its own name."""

    def _schema(self, file: File) -> Schema:
        with _opened(file, self.arrays) as members:
            return {name: member.series(name, 0).dtype for name, member in members.items()}

    def _frames(self, file: File, schema: Schema) -> Iterator[pl.DataFrame]:
        with _opened(file, self.arrays) as members:
            rows = next(iter(members.values())).shape[0]
            step = max(1, _SLICE // max(1, *(member.row_bytes for member in members.values())))
            for start in range(0, rows, step):
                count = min(step, rows - start)
                yield pl.DataFrame([member.series(name, count) for name, member in members.items()])


@dataclass
class _Member:
    """An array in a file, of which the header was read."""

    stream: BinaryIO
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    whole: Array | None = None
    """All of it, if it is stored by columns: then its rows cannot be read one after the other."""
    row: int = 0

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def series(self, name: str, count: int) -> pl.Series:
        """Return the next `count` rows."""
        if self.whole is not None:
            values = self.whole[self.row : self.row + count]
            self.row += count
        else:
            data = self.stream.read(count * self.row_bytes)
            if len(data) < count * self.row_bytes:
                raise EOFError(f"array '{name}' is cut short")
            values = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
        if self.dtype.kind in "Mm" and np.datetime_data(self.dtype)[0] not in ("ns", "us", "ms", "D"):
            values = values.astype(f"{self.dtype.kind}8[ms]")  # polars has no whole seconds
        return pl.Series(name, values)


@contextmanager
def _opened(file: File, arrays: dict[str, str] | None) -> Iterator[dict[str, _Member]]:
    """Open the arrays of a file by column, each at its first row."""
    with reading(file.name, say("an npz or npy file")), ExitStack() as stack:
        handle = stack.enter_context(file.open())
        magic = handle.read(len(npy.MAGIC_PREFIX))
        handle.seek(0)
        members: dict[str, _Member] = {}
        try:
            if magic == npy.MAGIC_PREFIX:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(0)
                members["array"] = _member(handle, size, "array", file)
            elif not magic:
                raise DataError(f"'{file.name}' is empty; give a file that holds arrays")
            else:
                archive = stack.enter_context(zipfile.ZipFile(handle))
                infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                for name in arrays.values() if arrays else infos:
                    if name not in infos:
                        raise DataError(
                            f"'{file.name}' has no array '{name}'; it has "
                            f"{', '.join(infos)}{did_you_mean(name, infos)}"
                        )
                    stream = cast(BinaryIO, stack.enter_context(archive.open(infos[name])))
                    members[name] = _member(stream, infos[name].file_size, name, file)
            if arrays:
                members = {column: members[name] for column, name in arrays.items()}
            _require_rows(file, members)
            yield members
        except _DAMAGE as error:
            raise EOFError(str(error)) from error


def _member(stream: BinaryIO, size: int, name: str, file: File) -> _Member:
    try:
        read_header = (
            npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        )
        shape, by_columns, dtype = read_header(stream)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:  # numpy parses it as Python
        raise EOFError(f"the header of array '{name}' is broken") from error
    where = f"array '{name}' of '{file.name}'"
    if dtype.hasobject:
        raise DataError(
            f"{where} holds pickled Python objects, which may run code when loaded; save it as numbers or "
            "as strings (dtype 'U')"
        )
    if (
        dtype.kind not in "biufUSMm"
        or (dtype.kind == "f" and dtype.itemsize > 8)
        or (dtype.kind in "Mm" and len(shape) > 1)
    ):
        raise DataError(
            f"{where} is of type {dtype} and shape {shape}; save it as booleans, integers, floats of up to "
            "64 bits, strings or dates"
        )
    if not shape:
        raise DataError(
            f"{where} is a single number where an array of rows belongs; leave it out by naming the others "
            "under 'arrays'"
        )
    count = math.prod(shape)
    if min(shape) < 0 or stream.tell() + count * dtype.itemsize != size:
        raise DataError(f"{where} is cut short or damaged; write or fetch it again")
    member = _Member(stream, shape, dtype)
    if by_columns and len(shape) > 1:
        member.whole = np.frombuffer(stream.read(), dtype).reshape(shape, order="F")
    return member


def _require_rows(file: File, members: dict[str, _Member]) -> None:
    if not members:
        raise DataError(f"'{file.name}' holds no array; give a file that holds arrays")
    if len({member.shape[0] for member in members.values()}) > 1:
        lengths = ", ".join(f"{name} {member.shape[0]}" for name, member in members.items())
        raise DataError(
            f"the arrays of '{file.name}' have different numbers of rows ({lengths}); "
            "choose those of one table, for instance 'arrays: {image: x_train, label: y_train}'"
        )
