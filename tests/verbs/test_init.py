"""`luban init`: the recipe loads, says why, and its commented options are true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from luban import recipe as recipes
from luban import registry
from luban.data.contracts import Source
from luban.data.pipeline import Pipeline
from luban.errors import DataError, RecipeError
from luban.verbs.init import init

N = 120
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str = "data.csv", n: int = N, **columns: Any) -> str:
    rows = pl.DataFrame(columns or {"x": rng.normal(size=n), "label": ["a", "b"] * (n // 2)})
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    rows.write_csv(name) if name.endswith("csv") else rows.write_parquet(name)
    return name


def switched_on(text: str) -> str:
    """Take the '#' away from every option."""
    text = re.sub(r"(?m)^(\s*)# (?=(groups|clean|split|objective|train|augment):|- \{?\w)", r"\1", text)
    return re.sub(r"(?m)^#(?=   (epochs|callbacks|optimizer|seed):)", "", text)


def fitted(data: recipes.Data) -> Pipeline:
    """Read and fit everything, as training would."""
    source = cast(Source, data.train)
    pipeline = Pipeline.of(data, source.columns())
    rows = pl.concat(source.scan())
    for step in pipeline.cleaners:
        step.update(rows)
        step.finish()
    rows = pipeline.clean(rows, predicting=False)
    for name, processor in (*pipeline.inputs.items(), *pipeline.targets.items()):
        processor.update(rows[name])
        processor.finish()
    _, kept = pipeline.encode(rows, targets=True)
    assert kept.all()
    return pipeline


# --- the file ---------------------------------------------------------------------------------------------


def test_writes_beside_the_data_and_loads_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = init(write("data/reviews.csv"))
    assert report.path == Path("reviews.yaml")
    assert report.path.read_text(encoding="utf-8") == report.recipe
    assert "  train: data/reviews.csv\n" in report.recipe
    monkeypatch.chdir("/")
    recipe = recipes.load(tmp_path / "reviews.yaml")
    assert recipe.data.train.model_dump()["path"] == str(tmp_path / "data/reviews.csv")


def test_data_elsewhere_is_named_absolutely(tmp_path: Path) -> None:
    Path("recipes").mkdir()
    report = init(write("data.csv"), output="recipes/a.yaml")
    assert f"  train: {tmp_path}/data.csv\n" in report.recipe
    assert recipes.load("recipes/a.yaml").data.train.model_dump()["path"] == str(tmp_path / "data.csv")


def test_refuses_to_overwrite() -> None:
    Path("data.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"'data\.yaml' exists already"):
        init(write())
    assert Path("data.yaml").read_text(encoding="utf-8") == "mine"
    assert init("data.csv", force=True).path == Path("data.yaml")
    assert not list(Path.cwd().glob(".*"))


def test_writes_nothing_for_a_dash() -> None:
    report = init(write(), output="-")
    assert report.path is None
    assert not list(Path.cwd().glob("*.yaml"))


@pytest.mark.parametrize(
    ("data", "recipe"),
    [
        ("a.b.csv.gz", "a.yaml"),
        ("数据.csv", "数据.yaml"),
        ("my data #1: 'x'.csv", "my data #1: 'x'.yaml"),
        ("parts/*.csv", "recipe.yaml"),
        ("part-*.csv", "part-.yaml"),
    ],
)
def test_names(data: str, recipe: str) -> None:
    if data.endswith("gz"):
        import gzip

        Path(data).write_bytes(gzip.compress(Path(write()).read_bytes()))
    else:
        write(data.replace("*", "1"))
    report = init(data)
    assert report.path == Path(recipe)
    assert fitted(recipes.load(recipe).data)


def test_what_is_no_data_passes_through() -> None:
    Path("a.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with pytest.raises(DataError, match="PNG image"):
        init("a.csv")
    with pytest.raises(DataError, match=r"does not exist|no file"):
        init("b.csv")
    with pytest.raises(RecipeError, match="cannot be told from its ending"):
        init("c.docx")
    Path("empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        init("empty")
    with pytest.raises(DataError, match="did you mean 'label'"):
        init(write(), targets=["labels"])
    assert not list(Path.cwd().glob("*.yaml"))


# --- the text ---------------------------------------------------------------------------------------------


def messy() -> str:
    """A table with something of everything."""
    return write(
        **{
            "id": range(1000, 1000 + N),
            "年龄": [str(20 + i % 40) if i % 9 else "未知" for i in range(N)],
            "sex": ["男", "女"] * (N // 2),
            "note": [" ".join(rng.choice(["good", "bad", "slow", "room", "staff"], 9)) for _ in range(N)],
            "tags": ["a;b" if i % 3 else "c" for i in range(N)],
            "day": [f"2024年{1 + i % 12}月{1 + i % 28}日" for i in range(N)],
            "same": ["x"] * N,
            "class": ["yes" if i % 10 == 0 else None if i == 5 else "no" for i in range(N)],
        }
    )


def test_each_line_says_why() -> None:
    text = init(messy()).recipe
    lines = text.splitlines()
    section = lines[lines.index("data:") : lines.index("model:")]
    assert all("  # " in line for line in section if line.startswith("    "))
    assert "    # id: number" in text
    assert "left out: it counts the rows from 1000 to 1119" in text
    assert "    年龄: number" in text
    assert "    day: date" in text
    assert "    tags: set" in text
    assert "    note: {type: text, tokens: word}" in text
    assert "  # groups: [sex]" in text
    assert "# objective: {type: binary_cross_entropy, positive_weight: balanced}" in text
    assert "model:\n  type: fasttext" in text
    assert "#   - The target 'class' is missing in 0.8 % of rows" in text


def test_every_commented_option_is_true() -> None:
    report = init(messy())
    plain = recipes.load("data.yaml")
    Path("all.yaml").write_text(switched_on(report.recipe), encoding="utf-8")
    full = recipes.load("all.yaml")
    assert (plain.data.groups, full.data.groups) == ([], ["sex"])
    assert (plain.objective, plain.train.epochs) == (None, None)
    assert full.objective is not None
    assert (full.train.epochs, full.train.seed) == (20, 1)
    assert [step.type for step in plain.data.clean] == ["missing", "missing"]
    assert full.data.split is not None
    assert full.data.augment
    for recipe in (plain, full):
        assert list(fitted(recipe.data).targets) == ["class"]


def test_a_left_out_column_can_be_taken_in() -> None:
    text = init(messy()).recipe.replace("    # id: number", "    id: number")
    Path("b.yaml").write_text(text, encoding="utf-8")
    assert "id" in fitted(recipes.load("b.yaml").data).inputs


def test_report_is_json() -> None:
    report = init(messy())
    data = json.loads(json.dumps(report.to_json(), ensure_ascii=False))
    assert data["targets"] == ["class"]
    assert data["rows"] == N
    assert data["path"] == "data.yaml"
    assert data["model"]["type"] == "fasttext"
    first = data["columns"][1]
    assert (first["name"], first["type"], first["distinct"]) == ("年龄", "number", 41)
    assert {"severity", "message"} == set(data["problems"][0])


def test_many_numbered_columns_are_one_line() -> None:
    pixels = {f"pixel{i}": rng.normal(size=N) for i in range(40)} | {"pixel40": [0] * N}
    report = init(write(**pixels, label=["a", "b"] * (N // 2)))
    assert re.search(
        r"\n    pixel\*: number +# 41 columns of numbers, 'pixel0' to 'pixel40'; 1 of them", report.recipe
    )
    assert report.recipe.count("pixel") == 4  # also in the note about the constant one
    assert list(fitted(recipes.load("data.yaml").data).inputs) == list(pixels)


# --- kinds of data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_recognised(separator: str) -> None:
    pl.DataFrame({"x, in m": rng.normal(size=N), "label": ["a", "b"] * (N // 2)}).write_csv(
        "a.csv", separator=separator
    )
    init("a.csv")
    data = recipes.load("a.yaml").data
    assert getattr(data.train, "separator", None) == separator
    assert list(data.inputs) == ["x, in m"]


def test_gbk_is_told() -> None:
    rows = "评论,标签\n" + "".join(
        f"这家酒店第{i}间房的服务很好下次还来,{'好评' if i % 2 else '差评'}\n" for i in range(N)
    )
    Path("a.csv").write_bytes(rows.encode("gbk"))
    report = init("a.csv")
    assert "gb18030" in "\n".join(p.message for p in report.problems)
    assert (report.targets, list(fitted(recipes.load("a.yaml").data).inputs)) == (["标签"], ["评论"])


def pictures(folder: str, n: int = 10) -> list[str]:
    Path(folder).mkdir(parents=True)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(f"{folder}/{i}.png")
    return [f"{i}.png" for i in range(n)]


@pytest.mark.parametrize("folder", ["animals", "v1.0 pictures"])
def test_a_folder_of_pictures(folder: str) -> None:
    pictures(f"{folder}/cat")
    pictures(f"{folder}/dog")
    report = init(folder)
    recipe = recipes.load(cast(Path, report.path))
    assert (recipe.data.train.type, recipe.model.type) == ("images", "cnn")
    assert list(fitted(recipe.data).inputs) == ["image"]


@pytest.mark.parametrize("name", ["data/table.csv", "table.csv"])
def test_a_table_of_pictures(name: str) -> None:
    names = pictures("data")
    if name == "table.csv":
        names = [f"data/{one}" for one in names]
    write(name, picture=names * 2, label=["a", "b"] * 10)
    init(name)
    data = recipes.load("table.yaml").data
    assert data.train.type == "images"
    assert list(fitted(data).inputs) == ["picture"]


def test_arrays() -> None:
    np.savez("a.npz", image=np.zeros((N, 28, 28), np.uint8), label=np.arange(N) % 10)
    init("a.npz")
    recipe = recipes.load("a.yaml")
    assert (recipe.model.type, recipe.data.targets["label"].type) == ("cnn", "category")


# --- odd names --------------------------------------------------------------------------------------------

ODD = [
    "a b", "a: b", "价格", "it's", 'say "x"', "#1", "a #b", "-", "- a", "no", "yes", "null", "3", "3e-4", "true", "~",
    "{a}", "[b]", "a,b", "a]", "*", "&x", "!t", "|", ">", "%", "@", "`", "?", "? a", "=", "<<", "a\nb", "a\tb", " a ",
    "\u2028", "\x85", "\ufeffa", "\x07", "😀", "a\\b", "{", "0o7", "0x1F", ".5", "2024-01-01", "a:", ":", "x" * 1500,
    "dataset:x", "..", "\xa0", "pixel*", "[ab]",
]  # fmt: skip


def columns_of(recipe: recipes.Recipe, text: str) -> set[str]:
    """Return the names a recipe knows: inputs, targets and those that are commented out."""
    assert text.splitlines() == text.split("\n")[:-1]  # no character of a name breaks a line
    return {*recipe.data.inputs, *recipe.data.targets}


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_names_round_trip(name: str) -> None:
    for role in ("input", "target"):
        other = "label" if role == "input" else "x"
        columns = {name: rng.normal(size=N), other: rng.normal(size=N)}
        report = init(
            write("a.parquet", **columns), targets=[name if role == "target" else other], force=True
        )
        recipe = recipes.load("a.yaml")
        assert columns_of(recipe, report.recipe) == {name, other}
        assert set(recipe.data.targets) == set(report.targets)
        fitted(recipe.data)


def test_a_column_without_a_name() -> None:
    Path("a.csv").write_text(
        ",label\n" + "".join(f"{rng.normal()},{'ab'[i % 2]}\n" for i in range(N)), encoding="utf-8"
    )
    init("a.csv")
    assert list(fitted(recipes.load("a.yaml").data).inputs) == ["column_1"]
    init(write("b.parquet", **{"": rng.normal(size=N), "label": ["a", "b"] * (N // 2)}))
    assert list(fitted(recipes.load("b.yaml").data).inputs) == [""]


NAMES = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
CELLS = st.one_of(
    st.none(), st.integers(-(10**6), 10**6).map(str), st.floats(allow_nan=False, width=32).map(str), st.booleans().map(str),
    st.sampled_from(["yes", "no", "NA", "?", "2024-01-01", "2026年3月4日", "a;b", "c.png", "1,200", "50%", ""]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_table_gives_a_recipe_that_loads(data: st.DataObject) -> None:
    names = data.draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    rows = data.draw(st.integers(1, 30))
    pool = [data.draw(st.lists(CELLS, min_size=1, max_size=6)) for _ in names]
    columns = {
        name: data.draw(st.lists(st.sampled_from(cells), min_size=rows, max_size=rows))
        for name, cells in zip(names, pool, strict=True)
    }
    pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)).write_parquet("t.parquet")
    try:
        report = init("t.parquet", force=True)
    except DataError as error:
        if re.search(r"can be a target|could read|the name of a pattern", str(error)) is None:
            raise
        return
    recipe = recipes.load("t.yaml")
    assert set(recipe.data.inputs) == {c.name for c in report.columns if c.role == "input"}
    assert set(recipe.data.targets) == {c.name for c in report.columns if c.role == "target"}
    assert {c.name for c in report.columns} == set(names)
    Path("on.yaml").write_text(switched_on(report.recipe), encoding="utf-8")
    assert set(recipes.load("on.yaml").data.inputs) == set(recipe.data.inputs)
    assert report.model["type"] in registry.names("models")


def _lines(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return name


TALK = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
WORSE = [TALK[0], {"role": "assistant", "content": "3"}]


@pytest.mark.parametrize(
    ("row", "inputs", "objective"),
    [
        ({"messages": TALK, "id": 3}, ["messages"], "causal_lm"),
        ({"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]}, ["messages"], "causal_lm"),
        ({"instruction": "1 + 1", "input": "", "output": "2"}, ["messages"], "causal_lm"),
        ({"chosen": TALK, "rejected": WORSE}, ["chosen", "rejected"], "dpo"),
        ({"prompt": "1 + 1", "chosen": "2", "rejected": "3"}, ["chosen", "rejected"], "dpo"),
    ],
)  # fmt: skip
def test_conversations_and_preferences(row: dict[str, Any], inputs: list[str], objective: str) -> None:
    report = init(_lines("chats.jsonl", [row] * 20))
    assert "from: dataset:smollm2" in report.recipe
    assert [c.name for c in report.columns if c.role == "input"] == inputs
    assert report.targets == []
    small = report.recipe.replace("type: smollm", "type: llama").replace(
        "from: dataset:smollm2", "size: tiny"
    )
    Path("small.yaml").write_text(small, encoding="utf-8")
    recipe = recipes.load(Path("small.yaml"))
    assert recipe.data.train.type == "conversations"
    assert list(recipe.data.inputs) == inputs
    assert [
        one.type for one in (recipe.objective if isinstance(recipe.objective, list) else [recipe.objective])
    ] == [objective]
    assert [one.type for one in recipe.adapt] == ["lora"]
    json.dumps(report.to_json())


def test_columns_that_are_only_called_like_conversations() -> None:
    rows = [{"messages": f"{i} letters", "label": "ab"[i % 2]} for i in range(40)]
    report = init(_lines("letters.jsonl", rows))
    assert report.targets == ["label"]
    rows = [{"messages": TALK, "label": "ab"[i % 2]} for i in range(40)]
    with pytest.raises(DataError):  # whoever names a target wants to predict it
        init(_lines("named.jsonl", rows), targets=["label"])


def test_documents_of_plain_text() -> None:
    Path("corpus.txt").write_text("A good tool improves the way you work.\n\n" * 50, encoding="utf-8")
    report = init("corpus.txt")
    assert report.model["type"] == "llama"
    recipe = recipes.load(Path("corpus.yaml"))
    assert (recipe.data.train.type, list(recipe.data.inputs)) == ("text", ["text"])
    assert report.problems[0].message == "How it was read: corpus.txt: 50 documents of blanks alone left out."
