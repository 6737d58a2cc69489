"""Every test gets a cache of the run's own and one CPU thread; here too are a tiny artefact and a way to call `luban`."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import hypothesis
import pytest
import torch

from tiny_case import RECIPE, Luban, Ran, write_rows

# A busy machine is slow for reasons of its own; in CI the same examples are tried every time, so that red means something.
hypothesis.settings.register_profile("luban", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("luban")

_CACHE = pytest.StashKey[str]()
_REAL = pytest.StashKey[str | None]()


def pytest_configure(config: pytest.Config) -> None:
    # A folder for each process: workers of pytest-xdist share nothing.
    config.stash[_REAL] = os.environ.get("LUBAN_CACHE")
    config.stash[_CACHE] = tempfile.mkdtemp(prefix="luban-tests-")
    os.environ["LUBAN_CACHE"] = config.stash[_CACHE]


def pytest_unconfigure(config: pytest.Config) -> None:
    _use(config.stash[_REAL])
    shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Choose the cache before any fixture runs: tests of open data keep what was fetched from one run to the next."""
    real = item.get_closest_marker("data") is not None
    _use(item.config.stash[_REAL] if real else item.config.stash[_CACHE])
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings


def _use(cache: str | None) -> None:
    if cache is None:
        os.environ.pop("LUBAN_CACHE", None)
    else:
        os.environ["LUBAN_CACHE"] = cache


# --- calling luban ----------------------------------------------------------------------------------------


@contextmanager
def _standard_input(content: bytes) -> Iterator[None]:
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    try:
        yield
    finally:
        sys.stdin = before


@pytest.fixture(scope="session")
def luban() -> Luban:
    """Call the command line in this process: ``luban("check", "r.yaml")``, with `stdin` as bytes or text."""
    from luban.cli import main

    def call(*arguments: str | Path, stdin: bytes | str = b"") -> Ran:
        out, err = io.StringIO(), io.StringIO()
        content = stdin.encode() if isinstance(stdin, str) else stdin
        with redirect_stdout(out), redirect_stderr(err), _standard_input(content):
            try:
                main([str(one) for one in arguments])
            except SystemExit as ended:
                code = ended.code
        assert isinstance(code, int), "the command line ends with an exit code"
        return Ran(code, out.getvalue(), err.getvalue())

    return call


# --- a tiny artefact --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, luban: Luban) -> Path:
    """A folder with ``rows.csv``, ``r.yaml`` and the artefact ``model`` that was trained on them; copy before you change."""
    folder = tmp_path_factory.mktemp("tiny")
    write_rows(folder / "rows.csv")
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    ran = luban("train", folder / "r.yaml", "-o", folder / "model")
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def work(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `tiny` of the test's own, as the working folder."""
    folder = tmp_path / "work"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("train"))
    monkeypatch.chdir(folder)
    return folder
