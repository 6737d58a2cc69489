from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from luban.datasets import Source, describe
from luban.datasets.clients import download
from luban.errors import DataError, MachineError, MissingError

MakeTar = Callable[[Path, Mapping[str, bytes]], Path]
NPM = Source("npm", "tiny", "1.0", "0" * 64, "tiny-1.0.tgz", 0.1)
APT = Source("apt", "tiny", "1.0", "0" * 64, "tiny_1.0_all.deb", 0.1)
PIP = Source("pip", "tiny", "1.0", "0" * 64, "tiny-1.0.tar.gz", 0.1)

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "carrier").mkdir()
    return tmp_path / "carrier"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program of the test's own on an otherwise empty PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


def test_npm_packs_the_pinned_version_without_scripts(
    folder: Path, program: Callable[[str, str], None]
) -> None:
    program("npm", 'echo "$@" > tiny-1.0.tgz')
    carrier = download(NPM, folder)
    assert carrier == folder / "tiny-1.0.tgz"
    words = carrier.read_text().split()
    assert words[0] == "pack"
    assert words[-1] == "tiny@1.0"
    assert "--ignore-scripts" in words


def test_apt_downloads_the_pinned_version(folder: Path, program: Callable[[str, str], None]) -> None:
    program("apt-get", 'echo "$@" > tiny_1.0_all.deb')
    assert download(APT, folder).read_text() == "download -qq tiny=1.0\n"


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(("source", "client"), [(NPM, "npm"), (APT, "apt-get"), (PIP, "pip")])
def test_a_missing_client_is_said_in_one_sentence(
    source: Source, client: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=rf"^'{client}' is not on PATH; install it to fetch tiny 1\.0$"):
        download(source, folder)


def test_without_its_own_pip_the_one_on_path_is_taken(
    folder: Path, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    program("pip", 'echo "$@" > tiny-1.0.tar.gz')
    assert download(PIP, folder).read_text().startswith("download --no-deps")


def test_the_clients_own_last_line_is_quoted(folder: Path, program: Callable[[str, str], None]) -> None:
    program("apt-get", "echo 'W: unsandboxed' >&2; echo 'E: Unable to locate package tiny' >&2; exit 100")
    with pytest.raises(
        MachineError, match=r"apt could not fetch tiny 1\.0: E: Unable to locate package tiny; check"
    ):
        download(APT, folder)


def test_npms_reason_is_taken_from_its_json(folder: Path, program: Callable[[str, str], None]) -> None:
    program(
        "npm",
        """echo '"summary": "No matching version found for tiny@1.0.",'; echo log >&2; exit 1""",
    )
    with pytest.raises(
        MachineError, match=r"npm could not fetch tiny 1\.0: No matching version found for tiny@1\.0; "
    ):
        download(NPM, folder)


def test_a_client_that_succeeds_without_a_file_is_a_failure(
    folder: Path, program: Callable[[str, str], None]
) -> None:
    program("npm", "exit 0")
    with pytest.raises(MachineError, match=r"npm could not fetch tiny 1\.0: exit code 0"):
        download(NPM, folder)


@pytest.fixture
def index(tmp_path: Path, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, with an sdist that leaves a mark if it is executed."""
    (tmp_path / "index").mkdir()
    marker = tmp_path / "executed"
    mark = f"open({str(marker)!r}, 'w').close()\nimport setuptools\nsetuptools.setup(name='tiny')\n"
    members = {
        "tiny-1.0/PKG-INFO": b"Metadata-Version: 1.0\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0/setup.py": mark.encode(),
        "tiny-1.0/pos.txt": b"good\n",
    }
    make_tar(tmp_path / "index" / "tiny-1.0.tar.gz", members)
    # No file of settings either: a machine's own index must not be asked.
    for key, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": str(tmp_path / "index"),
        "CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path / "index"


def _pinned(index: Path) -> Source:
    return replace(PIP, sha256=hashlib.sha256((index / PIP.file).read_bytes()).hexdigest())


@needs_pip
def test_pip_downloads_an_sdist_without_executing_it(index: Path, folder: Path) -> None:
    carrier = download(_pinned(index), folder)
    assert carrier.read_bytes() == (index / PIP.file).read_bytes()
    assert not (index.parent / "executed").exists()


@needs_pip
def test_a_relative_folder_is_no_way_around_that(
    index: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert download(_pinned(index), Path("carrier")).is_file()
    assert not (index.parent / "executed").exists()


@needs_pip
def test_an_sdist_with_a_backend_of_its_own_and_another_hash_is_not_executed(
    index: Path, folder: Path, make_tar: MakeTar
) -> None:
    pinned = _pinned(index)
    marker = index.parent / "executed"
    backend = "[build-system]\nrequires = []\nbuild-backend = 'evil'\nbackend-path = ['.']\n"
    make_tar(
        index / PIP.file,
        {
            "tiny-1.0/PKG-INFO": b"Metadata-Version: 1.0\nName: tiny\nVersion: 1.0\n",
            "tiny-1.0/pyproject.toml": backend.encode(),
            "tiny-1.0/evil.py": f"open({str(marker)!r}, 'w').close()\n".encode(),
        },
    )
    with pytest.raises(DataError) as caught:
        download(pinned, folder)
    assert pinned.sha256 in str(caught.value)
    assert _pinned(index).sha256 in str(caught.value)
    assert not marker.exists()


@needs_pip
@pytest.mark.usefixtures("index")
def test_pip_says_that_there_is_no_such_package(folder: Path) -> None:
    with pytest.raises(
        MachineError, match=r"pip could not fetch absent 1\.0: ERROR: No matching distribution found"
    ):
        download(replace(PIP, package="absent"), folder)


def test_an_installed_file_is_found_without_importing_its_package(folder: Path) -> None:
    before = "sklearn" in sys.modules
    path = download(describe("iris").source, folder)
    assert path.name == "iris.csv"
    assert ("sklearn" in sys.modules) == before


def test_an_installed_package_that_is_absent_or_too_old(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iris = describe("iris").source
    with pytest.raises(MissingError, match=r"no sklearn/no\.csv; 1\.6 or later is needed"):
        download(replace(iris, file="sklearn/no.csv"), folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(MissingError, match="run 'pip install scikit-learn'"):
        download(iris, folder)
