"""The container: what a GGUF file says about itself, and where its tensors lie.

The format is specified in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md::

    header     magic 'GGUF', version (u32), tensors (u64), pairs (u64)
    metadata   pairs times: key (string), type (u32), value
    tensors    tensors times: name (string), dimensions (u32), each of them (u64), type (u32), offset (u64)
    padding    up to the next multiple of general.alignment
    data       each tensor at its offset from here

A string is its length in bytes (u64) and UTF-8; an array is the type of its items (u32), their number (u64), and they.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from luban.data.gguf.blocks import KINDS
from luban.errors import ArtefactError, RecipeError

__all__ = ["GGUF", "TensorInfo", "read_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 had counts of 32 bits; 3 differs from 2 in nothing but that it may be big-endian
_ALIGNMENT = 32  # where general.alignment is not given
_DEEPEST = 4  # arrays in arrays; nobody writes any, and a damaged file must not exhaust the stack
_MOST_DIMENSIONS = 4  # of ggml

_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9

T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: as the file calls it.
        shape: rows first, as in torch; the file has it the other way round.
        type: number of its ggml type, as in `luban.data.gguf.blocks`.
        offset: from the beginning of the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        """How many values it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class GGUF:
    """A file's metadata and its table of tensors.

    Attributes:
        path: of the file.
        metadata: key → number, bool, string, or a list of them.
        tensors: by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return a value of the metadata, or None where there is none.

        Raises:
            ArtefactError: if it is of another kind.
        """
        value = self.metadata.get(key)
        if kind is float and type(value) is int:
            value = float(value)
        if value is None or type(value) is kind:
            return value
        raise ArtefactError(
            f"'{self.path}' is damaged: {key} is of type {type(value).__name__}, not {kind.__name__}"
        )

    def need(self, key: str, kind: type[T]) -> T:
        """Return a value of the metadata that must be there.

        Raises:
            ArtefactError: if it is missing, or of another kind.
        """
        value = self.get(key, kind)
        if value is None:
            raise ArtefactError(f"'{self.path}' is incomplete: its metadata lack {key}")
        return value


def read_gguf(path: str | Path) -> GGUF:
    """Read a file's metadata and its table of tensors; the tensors themselves are left where they are.

    Raises:
        RecipeError: if there is no such file, or it is no GGUF of version 2 or 3, little-endian.
        ArtefactError: if it is damaged or incomplete.
    """
    where = Path(path)
    try:
        with open(where, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise RecipeError(f"'{where}' is no GGUF file: it does not begin with 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(where, data).file()
    except OSError as error:
        raise RecipeError(f"'{where}' cannot be read: {error.strerror or error}") from None


class _Cursor:
    """A place in the file that moves on with whatever is read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def file(self) -> GGUF:
        """Read everything up to the tensors' data."""
        self.take(len(_MAGIC))
        version = self.number("<I")
        if version not in _VERSIONS:
            if version & 0xFFFF == 0:  # the version of a file of the other byte order
                raise RecipeError(
                    f"'{self.path}' is a big-endian GGUF file; convert it to little-endian, which is what is read"
                )
            raise RecipeError(
                f"'{self.path}' is GGUF of version {version}; those read are {' and '.join(map(str, _VERSIONS))}"
            )
        tensors, pairs = self.number("<Q"), self.number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string("a key")
            if key in metadata:
                self.damaged(f"key '{_short(key)}' is there twice")
            metadata[key] = self.value(self.number("<I"), key, 0)
        table = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            self.damaged(f"general.alignment is {alignment!r}, and must be a multiple of 8")
        start = -(-self.at // alignment) * alignment
        found: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in table:
            if name in found:
                self.damaged(f"tensor '{_short(name)}' is there twice")
            if offset % alignment:
                self.damaged(f"tensor '{_short(name)}' does not begin at a multiple of {alignment}")
            found[name] = TensorInfo(name, shape, kind, start + offset)
            self.check(found[name])
        return GGUF(self.path, metadata, found)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read name, shape, type and offset of a tensor."""
        name = self.string("a tensor's name")
        dimensions = self.number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            self.damaged(f"tensor '{_short(name)}' has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        kind = self.number("<I")
        return name, shape, kind, self.number("<Q")

    def check(self, tensor: TensorInfo) -> None:
        """See that a tensor has whole blocks and lies inside the file."""
        kind = KINDS.get(tensor.type)
        length = 1 if kind is None else kind.length(tensor.elements)  # how large another type is nobody asks
        if not tensor.elements or (kind is not None and tensor.shape[-1] % kind.values):
            self.damaged(f"tensor '{_short(tensor.name)}' is {tensor.shape}")
        if tensor.offset + length > self.size:
            self.damaged(f"tensor '{_short(tensor.name)}' lies beyond its end; fetch the file again")

    def value(self, kind: int, key: str, depth: int) -> Any:
        """Read a value of the metadata."""
        if kind == _STRING:
            return self.string(key)
        if kind == _BOOL or kind in _NUMBERS:
            return self.numbers(kind, 1)[0]
        if kind != _ARRAY or depth == _DEEPEST:
            self.damaged(
                f"{_short(key)} is of type {kind}, which does not exist"
                if kind != _ARRAY
                else f"{_short(key)} is too deep"
            )
        items, count = self.number("<I"), self.number("<Q")
        if items == _BOOL or items in _NUMBERS:
            return self.numbers(items, count)
        # Each item takes some bytes, so that a count beyond all reason ends with the file.
        return [self.value(items, key, depth + 1) for _ in range(count)]

    def numbers(self, kind: int, count: int) -> list[Any]:
        """Read that many numbers or bools."""
        dtype = np.dtype("<u1" if kind == _BOOL else _NUMBERS[kind])
        found = np.frombuffer(self.take(dtype.itemsize * count), dtype)
        if kind == _BOOL:
            return [bool(value) for value in found]
        if kind == _FLOAT32:  # 1e-05, as it was written, instead of 9.999999747378752e-06
            return [float(str(value)) for value in found]
        values: list[Any] = found.tolist()
        return values

    def string(self, what: str) -> str:
        """Read a string."""
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError:
            self.damaged(f"{_short(what)} is not UTF-8")

    def number(self, form: str) -> int:
        """Read one number, in the format of `struct`."""
        number: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return number

    def take(self, length: int) -> bytes:
        """Read that many bytes."""
        if length > self.size - self.at:
            self.damaged("it ends in the midst of its metadata; fetch the file again")
        self.at += length
        return self.data[self.at - length : self.at]

    def damaged(self, how: str) -> NoReturn:
        raise ArtefactError(f"'{self.path}' is damaged: {how}")


def _short(name: str) -> str:
    """Return what a file calls something, fit for a sentence."""
    shown = name if name.isprintable() else repr(name)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
