"""Small blocks, so that files of a few kilobytes cross their borders; a cache of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from luban.data.sources import _text


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=[7, 64, 4 << 20], ids=lambda size: f"block={size}")
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(_text, "BLOCK", request.param)
    return int(request.param)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is also the current one: messages then name files as a user writes them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
