"""`luban explain`, from the command to the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import luban
from luban.errors import InputError
from luban.explaining import _render
from luban.explaining._base import Explanation, Part, Piece
from luban.registry import lookup, names
from luban.verbs.explain import explain_rows
from luban.verbs.train import train
from tiny_case import RECIPE, Luban, write_rows

ROWS = '[{"age": 50, "city": "北京", "review": "很好看 <b>&"}, {"age": 20, "city": "Paris", "review": "差"}]'


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("explain")
    write_rows(folder / "rows.csv")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    torch.manual_seed(0)
    return str(train(str(folder / "recipe.yaml"), [], output=str(folder / "artefact"))["artefact"])


def test_rows_become_json_that_names_method_paper_and_limits(luban: Luban, artefact: str) -> None:
    ran = luban("explain", artefact, ROWS, "-m", "integrated_gradients", "steps=64", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["method"] == "integrated_gradients"
    assert "Sundararajan" in result["paper"]
    assert result["limits"]
    assert result["options"]["steps"] == 64
    assert result["rows"] == 2
    assert 0 <= result["quality"]["completeness_error"] < 0.05
    first = result["explanations"][0]
    assert first["target"] == "label"
    assert list(first["parts"]) == ["age", "city", "review"]
    assert sum(first["shares"].values()) == pytest.approx(1, abs=1e-3)
    shown = first["parts"]["review"]["shown"]
    for piece in first["parts"]["review"]["pieces"]:
        assert shown[piece["start"] : piece["end"]] == piece["text"] or piece["start"] == piece["end"]
    total = sum(
        v if isinstance(v, float) else sum(v) for v in (part["values"] for part in first["parts"].values())
    )
    assert total == pytest.approx(first["score"] - first["baseline"], abs=0.05)


def test_the_prediction_that_is_explained_is_the_one_that_is_made(artefact: str) -> None:
    rows = json.loads(ROWS)
    found = luban.explain(artefact, ROWS, method="occlusion")["explanations"]
    for one, predicted in zip(found, luban.load(artefact).predict(rows), strict=True):
        assert one["chosen"] == predicted["label"]
        assert one["probability"] == pytest.approx(predicted["label.score"], abs=1e-5)
    for label in ("good", "bad"):
        asked = luban.explain(artefact, ROWS, method="occlusion", label=label)["explanations"]
        assert {one["chosen"] for one in asked} == {label}


def test_plain_text_lists_what_is_strongest(luban: Luban, artefact: str) -> None:
    ran = luban("explain", artefact, ROWS, "-m", "occlusion")
    assert ran.code == 0
    assert ran.out.startswith("row 0: label = ")
    assert "\x1b" not in ran.out
    assert "Zeiler and Fergus" in ran.err


def test_without_a_method_one_is_chosen_that_fits(artefact: str) -> None:
    assert luban.explain(artefact, ROWS)["method"] == "integrated_gradients"


def test_one_that_does_not_fit_refuses_and_names_those_that_do(luban: Luban, artefact: str) -> None:
    ran = luban("explain", artefact, ROWS, "-m", "grad_cam")
    assert ran.code == 2
    assert (
        "explainer 'grad_cam' does not fit this artefact: it needs an image, and no input is one" in ran.err
    )
    assert "those that fit are" in ran.err
    for name in ("integrated_gradients", "occlusion", "gradient_x_input"):
        assert name in ran.err
    assert "attention_rollout" not in ran.err.partition("those that fit are")[2]
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "grad_cm"], "there is no explainer 'grad_cm'"),
        (["-m", "grad_cm"], "did you mean 'grad_cam"),
        (["-m", "occlusion", "windw=3"], "explainer occlusion takes"),
        (["-m", "occlusion", "window=0"], "received 0"),
        (["--class", "goood"], "'label' has no class 'goood'; classes are bad, good; did you mean 'good'?"),
        (["--target", "lable"], "there is no target 'lable' to explain; targets are label"),
        (["--target-text", "x"], "--target-text is for a model that writes texts"),
        (["--limit", "-1"], "received --limit -1"),
        (["--seed", "-1"], "received --seed -1, but it is 0 or more"),
        (
            ["-m", "occlusion", "window"],
            "option 'window' is not of the form key=value; explainer occlusion takes unit, replace, window",
        ),
    ],
)
def test_mistakes_are_one_sentence(luban: Luban, artefact: str, arguments: list[str], words: str) -> None:
    ran = luban("explain", artefact, ROWS, *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert len(ran.err.strip().splitlines()) <= 2


def test_a_mistake_is_told_in_the_language_that_is_asked_for(
    luban: Luban, artefact: str, tmp_path: Path
) -> None:
    for asked in (["--lang", "zh"], ["--lang=zh"]):
        ran = luban("explain", artefact, ROWS, "-m", "grad_cam", *asked)
        assert ran.code == 2
        assert "luban: 解释方法“grad_cam”不适用于该模型：需要图像，而没有图像输入；适用的有 " in ran.err
    assert "是否指“good”？" in luban("explain", artefact, ROWS, "--class", "goood", "--lang", "zh").err
    ran = luban("explain", artefact, ROWS, "-m", "occlusion", "windoww=3", "--lang", "zh")
    assert "未知的键“windoww”；explainer occlusion 可用的有 unit、" in ran.err
    assert "；是否指“window”？" in ran.err
    ran = luban("explain", artefact, ROWS, "-m", "occlusion", "window", "--lang", "zh")
    assert "选项“window”不是 key=value 的形式" in ran.err
    broken = tmp_path / "rows.parquet"
    broken.write_bytes(b"PAR1 no")
    assert (
        f"luban: “{broken}”已损坏，或不是 Parquet 文件（"
        in luban("explain", artefact, broken, "--lang", "zh").err
    )
    ran = luban("report", artefact, "--lang", "zh", "--format", "pdf")
    assert "收到格式“pdf”" in ran.err
    assert "没有模型产物“nowhere”" in luban("explain", "nowhere", ROWS, "--lang", "zh").err
    ran = luban("explain", artefact, ROWS, "-m", "grad_cam", "--lang", "zh", "--json")
    assert json.loads(ran.out)["error"].startswith("explainer 'grad_cam' does not fit")  # JSON is English
    assert "不适用" in ran.err


@pytest.mark.parametrize("method", ["probe", "embeddings", "surrogate"])
def test_rows_one_by_one_are_refused_by_what_looks_at_a_set(artefact: str, method: str) -> None:
    predictor = luban.load(artefact)
    rows = pl.DataFrame(json.loads(ROWS))
    with pytest.raises(InputError) as raised:
        explain_rows(predictor, rows, method=method)
    told = str(raised.value)
    assert told.startswith(f"explainer '{method}' does not fit this artefact: it looks at the rows together")
    fitting = told.partition("those that fit are ")[2].split(", ")
    assert {"occlusion", "integrated_gradients"} <= set(fitting)
    assert not {"probe", "embeddings", "surrogate", "permutation_importance"} & set(fitting)
    assert [one.row for one in explain_rows(predictor, rows, method=fitting[-1])] == [0, 1]


def test_a_row_that_cannot_be_read_costs_only_itself(artefact: str) -> None:
    rows = '[{"age": "old", "city": "x", "review": "差"}, {"age": 3, "city": "x", "review": "差"}]'
    result = luban.explain(artefact, rows, method="occlusion")
    assert [one["row"] for one in result["explanations"]] == [1]
    assert "cannot be read as number" in result["unreadable"]["0"]
    with pytest.raises(InputError, match="cannot be read as number"):
        luban.explain(artefact, '{"age": "old", "city": "x", "review": "差"}', method="occlusion")


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_text_of_blanks_is_explained_by_nothing(
    luban: Luban, artefact: str, tmp_path: Path, method: str
) -> None:
    row = '{"age": 3, "city": "Paris", "review": "  "}'
    ran = luban("explain", artefact, row, "-m", method)
    assert ran.code == 0, ran.err
    assert re.search(r"  review \(\d+%\): nothing\n", ran.out)
    assert luban("explain", artefact, row, "-m", method, "-o", tmp_path / "page").code == 0
    part = json.loads((tmp_path / "page" / "explanations.jsonl").read_text())["parts"]["review"]
    assert (part["pieces"], part["values"]) == ([], [])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("permutation_importance", "a column of 1 row cannot be shuffled; hand over more rows"),
        ("partial_dependence", "no column has two values in these rows, so nothing can move"),
    ],
)
def test_a_set_of_one_row_is_no_set(
    luban: Luban, artefact: str, tmp_path: Path, method: str, words: str
) -> None:
    write_rows(tmp_path / "one.csv", 1)
    ran = luban("explain", artefact, tmp_path / "one.csv", "-m", method)
    assert ran.code == 2
    assert words in ran.err


def test_a_limit_is_said(artefact: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "many.csv", 150)
    data = str(tmp_path / "many.csv")
    result = luban_explain(artefact, data)
    assert result["rows"] == 100
    assert result["notes"] == [
        "the first 100 rows are explained, and there are more; --limit 0 explains all of them"
    ]
    assert luban_explain(artefact, data, limit=0)["rows"] == 150
    assert luban_explain(artefact, data, limit=0)["notes"] == []
    assert luban_explain(artefact, data, limit=7)["rows"] == 7


def luban_explain(*arguments: Any, **options: Any) -> dict[str, Any]:
    return luban.explain(*arguments, method="gradient_x_input", **options)


def test_measures_of_quality_are_added_when_asked_for(artefact: str) -> None:
    result = luban.explain(artefact, ROWS, method="occlusion", quality=True)
    keys = {"deletion", "deletion_random", "insertion", "comprehensiveness", "sufficiency", "randomised"}
    assert keys <= set(result["explanations"][0]["quality"])
    assert keys <= set(result["quality"])


def test_a_folder_holds_all_of_it_and_the_page_asks_for_nothing(
    luban: Luban, artefact: str, tmp_path: Path
) -> None:
    folder = tmp_path / "why"
    ran = luban("explain", artefact, ROWS, "-m", "occlusion", "-o", str(folder))
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(folder / "index.html")
    lines = [
        json.loads(line) for line in (folder / "explanations.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [one["row"] for one in lines] == [0, 1]
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["rows"] == 2
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert "<b>&" not in page
    assert "&lt;" in page
    again = luban("explain", artefact, ROWS, "-m", "occlusion", "-o", str(folder))
    assert again.code == 2
    assert "--force" in again.err
    assert luban("explain", artefact, ROWS, "-m", "occlusion", "-o", str(folder), "--force").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("b", encoding="utf-8")
    refused = luban("explain", artefact, ROWS, "-m", "occlusion", "-o", str(tmp_path / "mine"), "--force")
    assert refused.code == 2
    assert (tmp_path / "mine" / "a").read_text(encoding="utf-8") == "b"


def test_every_explainer_says_its_paper_and_limits() -> None:
    for name in names("explainers"):
        cls = lookup("explainers", name)
        assert re.search(r"(19|20)\d\d", cls.paper), name
        assert cls.limits, name
        assert "\n" not in cls.limits, name


# --- pictures -------------------------------------------------------------------------------------------------


def test_words_are_coloured_by_their_side() -> None:
    part = Part(
        "t",
        "tokens",
        [1.0, -0.5, 0.0],
        [Piece("ab", 0, 2), Piece("c", 3, 4), Piece("d", 4, 5)],
        shown="ab cd!",
    )  # type: ignore[arg-type]
    one = Explanation(0, "occlusion", "y", "z", 1.0, parts={"t": part}).to_json()
    text = _render.terminal(one, color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).endswith("t: ab cd!")
    grounds = [tuple(map(int, found)) for found in re.findall(r"48;2;(\d+);(\d+);(\d+)m", text)]
    assert len(grounds) == 2
    assert grounds[0][2] > grounds[0][0] + 50, "the first is blue"
    assert grounds[1][0] > grounds[1][2] + 50, "the second is orange"
    lines = re.findall(r"38;2;0;0;0(;4)?m(\w+)", text)
    assert lines == [("", "ab"), (";4", "c")], (
        "what speaks against is underlined, for those who see no colour"
    )
    page = _render.explanation_html(one)
    assert page.count('<span class="ex-t"') == 1
    assert page.count('<span class="ex-t ex-a"') == 1
    assert "rgba(33,113,181,0.65)" in page
    assert "rgba(217,95,2,0.33)" in page or "rgba(217,95,2,0.32)" in page


def test_a_heatmap_is_blue_where_pixels_speak_for_and_orange_where_against() -> None:
    import io

    import numpy as np
    from PIL import Image

    values = np.zeros((4, 4))
    values[0, 0], values[3, 3] = 1, -1
    png = _render.heatmap(Part("p", "image", values).to_json())
    pixels = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    assert pixels.shape == (224, 224, 3)
    assert pixels[5, 5, 2] > pixels[5, 5, 0] + 50
    assert pixels[-5, -5, 0] > pixels[-5, -5, 2] + 50
    shades = [set(map(tuple, pixels[rows, rows].reshape(-1, 3))) for rows in (slice(0, 56), slice(-56, None))]
    assert [len(one) for one in shades] == [1, 2], "stripes where it speaks against"
    assert len(set(map(tuple, pixels[100:120, 100:120].reshape(-1, 3)))) == 1


def test_tables_are_drawn_and_escaped() -> None:
    tables = {"importance": [{"column": "a<b", "value": 0.12345678}, {"column": {"c": 1.5}, "value": None}]}
    assert "0.1235" in _render.tables_text(tables)
    assert "c: 1.5" in _render.tables_text(tables)
    assert "a&lt;b" in _render.tables_html(tables)


def test_what_cells_hold_cannot_steer_a_terminal() -> None:
    pieces = [Piece("bad\x1b[2J", 0, 7), Piece("\x9b", 7, 8)]
    one = Explanation(
        0, "m", "t\x1b]0;x\x07", "c\x1b", 1.0, parts={"a\x1b": Part("a\x1b", "tokens", [1.0, -1.0], pieces)}
    )
    one.parts["a\x1b"].shown = "bad\x1b[2J\x9b"
    one.notes.append("then it is '\x1b[31m'")
    one.tables["changes"] = [{"to": "\x1b[8m"}]
    for color in (False, True):
        text = _render.terminal(one.to_json(), color=color)
        rest = re.sub(r"\x1b\[(48;2;\d+;\d+;\d+|38;2;0;0;0(;4)?|0)m", "", text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", rest)
        assert "bad␛[2J" in rest
    assert "\x1b" not in _render.tables_text({"values\x1b": [{"a\x1b": "\x1b[8m"}]})


def test_pictures_of_columns_that_are_called_alike_lie_apart(tmp_path: Path) -> None:
    import numpy as np

    page = _render.Page(tmp_path, {"method": "m", "artefact": "a", "paper": "p", "limits": "l"})
    parts = {name: Part(name, "image", np.eye(4) * i) for i, name in enumerate(("a b", "a_b", "A b"), 1)}
    for row in (0, 1):
        page.add(Explanation(row, "m", "t", "c", 1.0, parts=parts).to_json())
    page.file.close()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"row-0000{row}-{name}.png" for row in (0, 1) for name in ("a_b", "a_b-2", "A_b-3")
    }


def test_of_several_rows_it_is_said_how_much_each_column_mattered(artefact: str) -> None:
    found = luban.explain(artefact, ROWS, method="occlusion")
    lines = found["tables"]["columns"]
    assert {line["column"] for line in lines} == {"age", "city", "review"}
    assert sum(line["share"] for line in lines) == pytest.approx(1.0)
    for line in lines:
        own = [one["parts"][line["column"]]["values"] for one in found["explanations"]]
        totals = [sum(v) if isinstance(v, list) else v for v in own]
        assert line["importance"] == pytest.approx(sum(map(abs, totals)) / 2, rel=1e-4)
        assert line["mean"] == pytest.approx(sum(totals) / 2, rel=1e-4, abs=1e-6)
    assert "tables" not in luban.explain(artefact, json.dumps(json.loads(ROWS)[:1]), method="occlusion")


def test_where_the_training_rows_are_gone_the_frozen_ones_stand_for_the_data(
    artefact: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artefact, copy)
    text = (copy / "recipe.yaml").read_text(encoding="utf-8")
    (copy / "recipe.yaml").write_text(text.replace("rows.csv", "nowhere.csv"), encoding="utf-8")
    row = json.dumps(json.loads(ROWS)[0])
    one, two = (luban.explain(str(copy), row, method="shapley")["explanations"][0] for _ in range(2))
    assert one == two
    assert "made up" not in " ".join(one["notes"])
    assert one["quality"]["completeness_error"] < 1e-5


def test_vectors_lie_beside_the_page(artefact: str, tmp_path: Path) -> None:
    rows = json.dumps(json.loads(ROWS) * 4)
    luban.explain(artefact, rows, method="embeddings", output=str(tmp_path / "out"))
    assert len(pl.read_parquet(tmp_path / "out" / "embeddings.parquet")) == 8


# --- texts that are written -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("write")
    write_rows(folder / "rows.csv")
    (folder / "recipe.yaml").write_text(
        "data: {train: rows.csv, inputs: {review: {type: text, vocabulary: 300}}}\n"
        "model: {type: gpt2, layers: 1, hidden_size: 16, heads: 2, max_positions: 64}\n"
        "objective: causal_lm\n"
        "train: {steps: 2, batch_size: 16, device: cpu, precision: fp32}\n",
        encoding="utf-8",
    )
    return str(train(str(folder / "recipe.yaml"), [], output=str(folder / "artefact"))["artefact"])


def test_each_token_that_is_written_is_explained(luban: Luban, writer: str, tmp_path: Path) -> None:
    ran = luban("explain", writer, "很好看", "--max-tokens", "4", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["method"] == "gradient_x_input"
    part = result["explanations"][0]["parts"]["review"]
    assert part["kind"] == "matrix"
    assert len(part["values"]) == len(part["outputs"])
    assert {len(line) for line in part["values"]} == {len(part["pieces"])}
    asked = luban(
        "explain",
        writer,
        "不好看, 差 x",
        "--target-text",
        "物流很快 y",
        "-m",
        "occlusion",
        "unit=token",
        "--quality",
        "--json",
    )
    found = json.loads(asked.out)["explanations"][0]
    assert found["chosen"] == "物流很快 y"
    assert "".join(piece["text"] for piece in found["parts"]["review"]["outputs"]) == "物流很快 y"
    assert "deletion" in found["quality"]
    assert luban("explain", writer, "很好看", "-o", str(tmp_path / "why")).code == 0
    assert 'class="ex-matrix"' in (tmp_path / "why" / "index.html").read_text(encoding="utf-8")
    plain = luban("explain", writer, "很好看", "--target-text", "x")
    assert "'x' ←" in plain.out


def test_what_fits_no_written_text_is_refused(luban: Luban, writer: str) -> None:
    ran = luban("explain", writer, "很好看", "-m", "shapley")
    assert ran.code == 2
    assert "it explains no tokens that are written" in ran.err
    assert "integrated_gradients" in ran.err
    assert luban("explain", writer, "很好看", "--class", "a").code == 2
