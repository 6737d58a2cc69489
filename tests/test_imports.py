"""The garbage collector rests during imports, and is afterwards as it was."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from importlib import import_module

import pytest

from luban import imports
from luban.imports import own_process, uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_afterwards_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ImportError), uncollected():
            import_module("luban.there_is_no_such_module")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_objects_of_others_are_never_frozen() -> None:
    assert not imports._owned
    frozen = gc.get_freeze_count()
    with uncollected():
        sys.modules["luban_test_module"] = sys
    del sys.modules["luban_test_module"]
    assert gc.get_freeze_count() == frozen


def test_in_a_process_of_our_own_only_what_was_imported_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_owned", False)
    own_process()
    freezes: list[None] = []
    monkeypatch.setattr(gc, "freeze", lambda: freezes.append(None))
    with uncollected():
        pass
    assert not freezes
    monkeypatch.setitem(sys.modules, "luban_test_first", sys)
    with uncollected():
        monkeypatch.setitem(sys.modules, "luban_test_module", sys)
    assert len(freezes) == 1


def test_neither_luban_nor_its_command_line_imports_a_large_library() -> None:
    """`luban --help` answers at once."""
    large = ("torch", "polars", "numpy", "sklearn", "scipy", "tokenizers", "pandas")
    found = _loaded_by("import luban, luban.cli", large)
    assert not found


def test_checking_a_recipe_imports_no_library_that_it_does_not_use() -> None:
    large = ("torch._dynamo", "sympy", "sklearn", "scipy", "pandas", "matplotlib", "tensorflow")
    assert not _loaded_by("import luban.verbs.check", large)


def _loaded_by(statement: str, modules: tuple[str, ...]) -> list[str]:
    code = f"{statement}; import json, sys; print(json.dumps([m for m in {modules!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found
