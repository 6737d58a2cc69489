"""Files and folders that are either complete or not there: written beside, synced, renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luban.errors import ArtefactError, MachineError

__all__ = [
    "cache_folder",
    "finite",
    "new_file",
    "new_folder",
    "require_place",
    "require_space",
    "sha256_of",
    "writing",
]


def cache_folder() -> Path:
    """Return Luban's cache: ``$LUBAN_CACHE``, else ``~/.cache/luban``; everything in it can be made again."""
    return Path(os.environ.get("LUBAN_CACHE") or Path.home() / ".cache" / "luban")


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn the operating system's refusals to write into one sentence.

    Raises:
        MachineError: on a full disk, a read-only place, missing rights.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(
                f"the disk is full: {what} could not be written; what was saved before is untouched. Free some space and run again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise MachineError(f"{what} could not be written: {error.strerror} ({error.filename})") from error
        raise


def finite(data: Any) -> Any:
    """Return plain data as JSON knows it, where a figure that is not defined is null, not NaN.

    Example:
        >>> finite({"f1": float("nan"), "rows": (1, 2)})
        {'f1': None, 'rows': [1, 2]}
    """
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not (abs(data) < float("inf")) else data


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a temporary file beside `target` that becomes `target` when the block ends well, and vanishes when it does not.

    Args:
        target: where the file is to appear, instead of one that is there; folders above it are made.

    Raises:
        MachineError: if it cannot be written.

    Example:
        >>> with new_file(Path("a.json")) as file:      # doctest: +SKIP
        ...     file.write_text("{}")
    """
    with writing(f"'{target}'"):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            yield beside
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's contents, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` when the block ends well, and vanishes when it does not.

    Args:
        target: where the folder is to appear.
        replace: whether a folder that is there already gives way (it is moved aside first, and removed last).

    Example:
        >>> with new_folder(Path("model")) as folder: (folder / "a").write_text("b")      # doctest: +SKIP
    """
    with writing(f"'{target}'"):
        target.parent.mkdir(parents=True, exist_ok=True)
        # A plain temporary folder is private to its owner; an artefact follows the user's umask instead.
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with writing(f"'{target}'"):
            yield beside
            umask = os.umask(0)
            os.umask(umask)
            beside.chmod(0o777 & ~umask)
            for path in beside.rglob("*"):
                sync(path)
            sync(beside)
            aside = None
            if target.exists():
                if not replace:
                    raise MachineError(
                        f"'{target}' appeared while it was being made; nothing was overwritten"
                    )
                aside = target.with_name(f".{target.name}.{os.getpid()}.old")
                target.rename(aside)
            beside.rename(target)
            sync(target.parent)
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_place(target: Path, replace: bool, ours: Callable[[Path], bool]) -> None:
    """Check that something new may stand at a place: nothing does, or what does may be replaced.

    Args:
        target: where it is to stand.
        replace: whether what is there may be replaced.
        ours: whether a folder is one that was written for the same purpose; no other is ever replaced.

    Raises:
        ArtefactError: saying what is there.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtefactError(f"'{target}' is a file; name another place with -o")
    if not any(target.iterdir()):
        return
    if not ours(target):
        raise ArtefactError(f"'{target}' holds other files, which are left alone; name another place with -o")
    if not replace:
        raise ArtefactError(
            f"'{target}' is there already; name another place with -o, or replace it with --force"
        )


def require_space(folder: Path, wanted: int, what: str) -> None:
    """Check that `wanted` bytes are free where `folder` is, or will be.

    Raises:
        MachineError: with both figures.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise MachineError(
            f"{what} needs {wanted / 2**20:,.1f} MiB in '{folder}', but only {free / 2**20:,.1f} MiB are free"
        )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
