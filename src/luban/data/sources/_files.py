"""Where bytes come from: local files, globs and fsspec URLs, packed or not."""

from __future__ import annotations

import bz2
import errno
import glob
import hashlib
import importlib
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, cast

from polars.exceptions import PanicException, PolarsError

from luban.errors import DataError, MachineError, MissingError, closest
from luban.sentences import say

__all__ = ["File", "find", "local_copy", "one_line", "reading", "unpacked"]

HASHED_WHOLE = 256 << 20
"""Bytes up to which a local file is hashed whole; beyond, its size, its mtime and three samples stand for
it."""
_SAMPLE = 1 << 20
_MAGIC = 16  # more bytes than any of the magic numbers has
_PACKED_BLOCK = 1 << 16  # packed bytes taken at once: 1000 times as many may come out


def one_line(text: str, longest: int = 200) -> str:
    """Return text that was not written by us in a form that fits into a sentence.

    Example:
        >>> one_line("no such table:\\n  t.")
        'no such table: t'
    """
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= longest else f"{line[:longest]}..."


@contextmanager
def reading(name: str, kind: str | None = None) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a DataError of one sentence.

    Args:
        name: the file, for the message.
        kind: what the file should be, such as ``say("a Parquet file")``.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            say("'{file}' does not exist any more; give a file that exists", file=name)
        ) from error
    except PermissionError as error:
        raise DataError(
            say("'{file}' may not be read by this user; change its permissions", file=name)
        ) from error
    except (PolarsError, PanicException, OSError, EOFError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(
                say("the disk is full ({error}); free some space and start again", error=error)
            ) from error
        reason = one_line(str(error) or type(error).__name__)
        what = (
            say("'{name}' is damaged or is not {kind}", name=name, kind=kind)
            if kind
            else say("'{name}' cannot be read", name=name)
        )
        raise DataError(
            say("{what} ({reason}); write or fetch it again, or name its true type", what=what, reason=reason)
        ) from error


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        name: as the user would write it.
        path: where it is, for the operating system or for `system`.
        system: an fsspec filesystem; None for a local file.
    """

    name: str
    path: str
    system: Any = None

    def open(self) -> BinaryIO:
        """Open for reading bytes, at the start."""
        if self.system is None:
            return open(self.path, "rb")
        return cast(BinaryIO, self.system.open(self.path, "rb"))

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield the contents, unpacked, in pieces of about `size` bytes."""
        with reading(self.name), self.open() as handle:
            yield from unpacked(self.name, handle, size)

    def fingerprint(self) -> str:
        """Return a hash of the contents, or of what tells versions of them apart.

        * local, up to 256 MB: the contents;
        * local and larger: size, mtime and a megabyte each of head, middle and tail;
        * elsewhere: what the filesystem says about the file (ETag, size, time), by fsspec's ``ukey``.
        """
        with reading(self.name):
            if self.system is not None:
                return str(self.system.ukey(self.path))
            status = os.stat(self.path)
            with open(self.path, "rb") as handle:
                if status.st_size <= HASHED_WHOLE:
                    return hashlib.file_digest(handle, "sha256").hexdigest()
                digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
                for start in (0, status.st_size // 2, status.st_size - _SAMPLE):
                    handle.seek(start)
                    digest.update(handle.read(_SAMPLE))
                return digest.hexdigest()


# --- finding ----------------------------------------------------------------------------------------------


def find(path: str | list[str]) -> list[File]:
    """Return the files that a path, a glob (sorted by name), a URL or a list of them means.

    Raises:
        DataError: if there is none, or a folder stands where a file belongs.
        MissingError: if the package for a kind of URL is not installed.
    """
    paths = [path] if isinstance(path, str) else path
    if not paths or not all(paths):
        raise DataError(
            say("received {path!r} where a path, a glob, a URL or a list of them belongs", path=path)
        )
    return [file for one in paths for file in (_find_url(one) if "://" in one else _find_local(one))]


def _find_local(path: str) -> list[File]:
    expanded = os.path.expanduser(path)
    if os.path.isfile(expanded):
        return [File(path, expanded)]
    if os.path.isdir(expanded):
        raise DataError(
            say(
                "'{path}' is a folder where a file belongs; write '{files}' for all files in it",
                path=path,
                files=f"{path.rstrip('/')}/*",
            )
        )
    if os.path.exists(expanded):
        raise DataError(
            say(
                "'{path}' is a device or a pipe where a file belongs; save the data to a file first",
                path=path,
            )
        )
    if glob.has_magic(expanded):
        found = [File(one, one) for one in sorted(glob.glob(expanded, recursive=True)) if os.path.isfile(one)]
        if not found:
            raise DataError(
                say(
                    "no file matches '{path}'; see what is there: ls {folder}",
                    path=path,
                    folder=os.path.dirname(path) or ".",
                )
            )
        return found
    folder = os.path.dirname(expanded) or "."
    if not os.path.isdir(folder):
        raise DataError(
            say(
                "'{path}' does not exist, nor does its folder '{folder}'; give a file that exists",
                path=path,
                folder=folder,
            )
        )
    place, close = os.path.abspath(folder), closest(os.path.basename(path), os.listdir(folder))
    raise DataError(
        say(
            "'{path}' does not exist in '{folder}'; give a file that exists; did you mean '{close}'?",
            path=path,
            folder=place,
            close=close,
        )
        if close
        else say("'{path}' does not exist in '{folder}'; give a file that exists", path=path, folder=place)
    )


def _find_url(url: str) -> list[File]:
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise MissingError(
            say("'{url}' needs a package that is not installed: {error}", url=url, error=error)
        ) from error
    except ValueError as error:
        raise DataError(
            say("'{url}' is not a URL that can be read: {error}", url=url, error=error)
        ) from error
    if isinstance(system, LocalFileSystem):
        return _find_local(path)
    with reading(url):
        if glob.has_magic(path) and not system.exists(path):
            found = sorted(one for one in system.glob(path) if system.isfile(one))
            if not found:
                raise DataError(say("no file matches '{url}'; see what is there", url=url))
            return [File(system.unstrip_protocol(one), one, system) for one in found]
        if system.isdir(path):
            raise DataError(
                say(
                    "'{path}' is a folder where a file belongs; write '{files}' for all files in it",
                    path=url,
                    files=f"{url.rstrip('/')}/*",
                )
            )
        if not system.exists(path):
            raise DataError(say("'{url}' does not exist; give a file that exists", url=url))
    return [File(url, path, system)]


def local_copy(file: File) -> str:
    """Return the path of a file for those who need a local one, fetching a remote file once into the cache.

    The cache is ``$LUBAN_CACHE/files``, by default ``~/.cache/luban/files``. A fetch that breaks off leaves
    nothing behind that could be taken for the file.
    """
    if file.system is None:
        return file.path
    root = os.environ.get("LUBAN_CACHE") or os.path.expanduser("~/.cache/luban")
    key = hashlib.sha256(f"{file.name} {file.fingerprint()}".encode()).hexdigest()
    target = os.path.join(root, "files", key)
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        partial = f"{target}.{os.getpid()}.partial"
        try:
            with file.open() as source, open(partial, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(partial, target)
        finally:
            if os.path.exists(partial):
                os.remove(partial)
    return target


# --- unpacking --------------------------------------------------------------------------------------------


def _zstd() -> Any:
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        raise MissingError(say("zstd files need the package zstandard: pip install 'luban[zstd]'")) from None
    return zstandard.ZstdDecompressor().decompressobj()


_PACKERS: dict[bytes, tuple[str, Callable[[], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(wbits=31)),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMADecompressor),
    **{b"BZh%d1AY&SY" % level: ("bzip2", bz2.BZ2Decompressor) for level in range(1, 10)},
}
"""First bytes → name and decoder. The ending of a file's name may lie, its first bytes do not."""


def unpacked(name: str, handle: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield what is in a file, unpacking gzip, zstd, bzip2 and xz as their first bytes say.

    Raises:
        DataError: if a packed file is cut short or damaged.
    """
    head = handle.read(_MAGIC)
    packer = next((packer for magic, packer in _PACKERS.items() if head.startswith(magic)), None)
    if packer is not None:
        rest = iter(lambda: handle.read(_PACKED_BLOCK), b"")
        yield from _unpack(name, chain([head], rest), *packer)
        return
    yield head + handle.read(max(size - len(head), 0))
    yield from iter(lambda: handle.read(size), b"")


def _unpack(name: str, blocks: Iterable[bytes], packer: str, make: Callable[[], Any]) -> Iterator[bytes]:
    decoder = make()
    for block in blocks:
        while block:
            if decoder.eof:  # `cat a.gz b.gz` makes one file of several members; tapes pad with zeros
                block = block.lstrip(b"\0")
                if not block:
                    break
                decoder = make()
            try:
                data = decoder.decompress(block)
            except Exception as error:  # the four libraries' own exceptions share no other base
                reason = f"'{name}' is a damaged {packer} file ({error}); write or fetch it again"
                raise DataError(reason) from error
            yield data
            block = decoder.unused_data
    if not decoder.eof:
        raise DataError(
            say(
                "'{name}' is a {packer} file that is cut short; write or fetch it again",
                name=name,
                packer=packer,
            )
        )
