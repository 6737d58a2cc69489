"""The garbage collector rests during imports, and is afterwards as it was."""

from __future__ import annotations

import ast
import gc
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import luban
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


LAYERS = (
    ("_version", "imports", "sentences"),
    ("errors",),
    ("files", "gates", "tensors", "registry", "datasets"),
    ("native",),
    ("recipe",),
    ("data",),
    ("models.interop",),
    ("models", "decisions", "objectives"),
    ("adapt", "machine"),
    ("artefact", "generation", "origin"),
    ("language",),
    ("writing",),
    ("predict",),
    ("evaluation",),
    ("training",),
    ("console",),
    ("auditing", "explaining", "exporting"),
    ("reporting",),
    ("verbs",),
    ("cli", "extend", "testing"),
)
"""What is in a layer imports from those above it in this list, and from its own part; never from those below."""
WITHIN = {"luban.models._core", "luban.models._low_rank"}
"""Parts of models that know no family, and that interop may use."""


def test_imports_point_one_way() -> None:
    """Those inside functions too: a circle that is put off is still one."""
    root = Path(luban.__file__).parent
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    wrong = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue
        here = _part([*parts])
        assert here in level, f"{here} stands in no layer"
        for module in _imported(ast.parse(file.read_text(encoding="utf-8"))):
            there = _part(module.split(".")[1:])
            lower = level.get(there, -1) < level[here] if there in level else hasattr(luban, there)
            if there != here and not lower and not (here == "models.interop" and module in WITHIN):
                wrong.append(f"{'.'.join(parts)} imports {module}")
    assert not wrong


def _part(names: list[str]) -> str:
    return ".".join(names[:2]) if names[:2] == ["models", "interop"] else names[0]


def _imported(tree: ast.Module) -> list[str]:
    """Modules of ours that a file imports, but for those that only type checkers see."""
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "luban":
            found += [f"luban.{one.name}" for one in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("luban."):
            found.append(str(node.module))
        elif isinstance(node, ast.Import):
            found += [one.name for one in node.names if one.name.startswith("luban.")]
    return found
