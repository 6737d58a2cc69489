"""Every test gets a cache of its own making, one CPU thread, and no leave to touch the user's files."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
import torch

_CACHE = pytest.StashKey[str]()
_REAL = pytest.StashKey[str | None]()


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
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


def _use(cache: str | None) -> None:
    if cache is None:
        os.environ.pop("LUBAN_CACHE", None)
    else:
        os.environ["LUBAN_CACHE"] = cache


@pytest.fixture(autouse=True)
def _same_threads() -> None:
    torch.set_num_threads(1)
