"""How C++ of Luban's own is built and chosen, seen on the kernels that models compute with."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from luban import files, native
from luban.data.processors import _words
from luban.errors import MachineError, MissingError
from luban.models import _kernels
from luban.models._kernels import add_norm, in_use, use

compiled = pytest.mark.skipif(native.compiler() is None, reason="no compiler")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been chosen; what was chosen comes back after the test."""
    monkeypatch.setattr(_kernels.NATIVE, "_chosen", None)
    monkeypatch.setattr(_kernels.NATIVE, "_automatic", None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    yield files.cache_folder() / "kernels"
    settled(files.cache_folder() / "kernels")


def settled(folder: Path) -> None:
    """Wait until no build is under way."""
    deadline = time.monotonic() + 300
    while list(folder.glob("*.building")):
        assert time.monotonic() < deadline, "the build does not end"
        time.sleep(0.02)


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels.NATIVE, "_chosen", None)
    monkeypatch.setattr(_kernels.NATIVE, "_automatic", None)


def fake_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take a compiler that notes each call of its and fails; return the notes."""
    script, notes = folder / "broken-c++", folder / "calls"
    script.write_text(f'#!/bin/sh\necho "$1" >> "{notes}"\necho "no such header" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return notes


@compiled
def test_the_first_run_builds_and_the_next_one_uses(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "attention: torch; the native kernel is being built for the next run"
    assert use("auto") == said
    assert in_use() == "torch"
    settled(cache)
    assert use("auto") == said, "a process does not change its mind"
    assert in_use() == "torch"
    another_process(monkeypatch)
    assert use("auto").startswith("attention: native kernel (")
    assert in_use() == "native"
    assert {path.suffix for path in cache.iterdir()} == {".so", ".about"}


@compiled
def test_a_build_outlives_the_run_that_began_it(cache: Path) -> None:
    program = "from luban.models import _kernels; print(_kernels.use('auto'))"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert ran.stdout.endswith("is being built for the next run\n")
    assert ran.stderr == ""
    settled(cache)
    assert use("auto").startswith("attention: native kernel (")


@compiled
def test_asking_for_the_kernel_builds_it_at_once(cache: Path) -> None:
    assert in_use() == "torch"
    settled(cache)
    assert use("native").startswith("attention: native kernel (")
    assert in_use() == "native"
    assert use("torch") == "attention: torch, as asked for"
    assert in_use() == "torch"


def test_a_failed_build_is_remembered_and_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_compiler(tmp_path, monkeypatch)
    assert use("auto").endswith("is being built for the next run")
    settled(cache)
    tried = calls.read_text()
    for _ in range(3):
        another_process(monkeypatch)
        said = use("auto")
        assert said.startswith("attention: torch; the native kernel did not compile, see ")
        assert "no such header" in Path(said.rsplit("see ", 1)[1]).read_text()
    settled(cache)
    assert calls.read_text() == tried
    x = torch.ones(2, 4)
    assert add_norm(x, x, x[0], x[0], 1e-5, 0.0).equal(torch.ones(2, 4))
    with pytest.raises(MachineError, match=r"did not compile with '.*broken-c\+\+', see .*; use 'torch'$"):
        use("native")


def test_two_processes_do_not_build_the_same(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_compiler(tmp_path, monkeypatch)
    place = _kernels.NATIVE._place()
    assert place is not None
    place.building.mkdir(parents=True)
    assert use("auto").endswith("is being built for the next run")
    assert not calls.exists()
    # One that was cut off is taken over in the end.
    monkeypatch.setattr(native, "STALE", -1.0)
    another_process(monkeypatch)
    use("auto")
    settled(cache)
    assert calls.exists()


def test_without_a_compiler_torch_computes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(cache))
    assert use("auto") == "attention: torch; no C++ compiler was found to build the native kernel with"
    with pytest.raises(MissingError, match="install one"):
        use("native")
    assert not cache.exists()


@compiled
def test_a_cache_that_cannot_be_written_or_read_is_no_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    assert use("auto").startswith("attention: torch; the native kernel cannot be built or loaded: ")
    cache.unlink()
    place = _kernels.NATIVE._place()
    assert place is not None
    cache.mkdir()
    place.library.write_text("no library")
    another_process(monkeypatch)
    assert use("auto").startswith("attention: torch; the native kernel cannot be built or loaded: ")
    with pytest.raises(MachineError, match="does not load"):
        use("native")


@compiled
@pytest.mark.parametrize("kernel", [_kernels.NATIVE, _words.NATIVE], ids=lambda kernel: kernel.source.stem)
def test_the_source_compiles_without_a_warning(kernel: native.Native, tmp_path: Path) -> None:
    compiler = native.compiler()
    assert compiler is not None
    strict = [
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-maybe-uninitialized",
    ]  # GCC 12 finds the last in its own headers
    command = [compiler, *native.FLAGS, "-O1", *strict, "-c", str(kernel.source)]
    subprocess.run([*command, "-o", str(tmp_path / "kernels.o")], check=True)
