"""Tiny models of every kind, each trained when a test first asks for it, and a browser where the system has one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import report_cases

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def artefact_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return the artefact of a kind, trained once: ``table``, ``texts``, ``pictures``, ``several``, ``causal``, ``masked``, ``folds``, ``writing`` or
    ``imported``; copy before you change."""
    folder = tmp_path_factory.mktemp("report")

    def make(kind: str) -> Path:
        if not (folder / kind).exists():
            if kind in ("causal", "masked"):
                report_cases.speaking(folder, causal=kind == "causal")
            else:
                getattr(report_cases, kind)(folder)
        return folder / kind

    return make


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Return a browser; what is tested with it is left out where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on this system")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
