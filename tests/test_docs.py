"""What the documents show is what happens: each snippet is run, parsed or compared."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from luban import recipe, registry
from luban.cli import app, main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(options, text) for name, options, text in found if name == language]


def ids(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def test_reference_is_what_the_classes_say() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_recipes_in_documents_are_valid(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("luban.datasets.main_file", lambda name: tmp_path / f"{name}.csv")
    monkeypatch.setattr(
        "luban.models._language.options_of", lambda family, path: {}
    )  # the weights are the reader's
    monkeypatch.setattr(
        "luban.models.huggingface._config_of", lambda path: ({"model_type": "gpt_neox"}, None)
    )
    monkeypatch.setattr("luban.models.huggingface._edges_of", lambda path, config: {})
    monkeypatch.setattr("luban.models.huggingface._segments_of", lambda path: [])
    for _, text in blocks(page, "yaml"):
        data = recipe.read_yaml(text).data
        if "imports" in data:
            continue  # run below, with the module it names
        recipe.load(data)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_commands_in_documents_exist(page: Path) -> None:
    """Each `luban ...` in a shell block parses: the verb and its options exist."""
    import typer.main

    group = typer.main.get_command(app)
    for _, text in blocks(page, "bash"):
        for line in text.splitlines():
            line = line.removeprefix("$ ").split("  #")[0].strip()
            if not line.startswith("luban "):
                continue
            words = shlex.split(line)[1:]
            command = group.commands[words[0]]  # type: ignore[attr-defined]
            if hasattr(command, "commands"):
                command, words = command.commands[words[1]], words[1:]
            context = command.make_context(words[0], list(words[1:]), resilient_parsing=False)
            assert context.command is command


def test_json_in_documents_is_json() -> None:
    for page in PAGES:
        for _, text in blocks(page, "json"):
            json.loads(text)


@pytest.mark.data
def test_extending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page about a model in one file, as somebody would follow it."""
    page = ROOT / "docs" / "extending.md"
    for language in ("python", "yaml"):
        for options, text in blocks(page, language):
            if match := re.search(r"file=(\S+)", options):
                (tmp_path / match[1]).write_text(text, encoding="utf-8")
            else:
                exec(compile(text, str(page), "exec"), {})
    monkeypatch.chdir(tmp_path)
    try:
        for _, text in blocks(page, "bash"):
            for line in text.splitlines():
                with pytest.raises(SystemExit) as ended:
                    main([*shlex.split(line)[1:], "--json"])
                assert ended.value.code == 0, capsys.readouterr().err
        result = json.loads(capsys.readouterr().out)
        assert result["metrics"]["species.accuracy"]["value"] > 0.8
    finally:
        registry._registered["models"].pop("factorization", None)
        sys.modules.pop("factorization", None)


RECIPES = sorted(ROOT.glob("recipes/**/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=ids(RECIPES))
def test_shipped_recipes_are_valid_and_say_what_to_expect(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("luban.datasets.main_file", lambda name: tmp_path / f"{name}.csv")
    monkeypatch.setattr(
        "luban.models._language.options_of", lambda family, path: {}
    )  # the weights are the reader's
    recipe.load(path)
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"luban train {path.relative_to(ROOT)}" in text, "the header gives the command"
    assert re.search(r"\d+ (s|seconds|min|minutes)\b", text), "the header gives the time"
    assert re.search(r"0\.\d{2,}", text), "the header gives the metric to expect"


def test_readmes_have_the_same_commands() -> None:
    english, chinese = (blocks(ROOT / name, "bash") for name in ("README.md", "README.zh.md"))
    strip = [
        [re.sub(r"#.*", "", line).strip() for _, text in page for line in text.splitlines()]
        for page in (english, chinese)
    ]
    assert strip[0] == strip[1]


def test_yaml_of_the_dump_is_yaml() -> None:
    loaded = recipe.load(
        {"data": {"train": "a.csv", "inputs": {"x": "number"}, "targets": {"y": "category"}}, "model": "mlp"}
    )
    assert yaml.safe_load(recipe.dump(loaded))["model"]["type"] == "mlp"
