"""`luban explain --lang zh`: the page of every explainer, and what is printed, is Chinese."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_cases import english

import luban
from luban.errors import InputError
from luban.explaining import _render
from luban.explaining._base import Explanation, Part, Piece
from luban.registry import names
from luban.sentences import Sentence, say
from tiny_case import Luban

Make = Callable[[str], Path]
ROWS = {
    "table": "table.jsonl",
    "texts": "reviews-test.jsonl",
    "pictures": "pictures.jsonl",
    "several": "several.jsonl",
}
FITTING = {
    "table": "counterfactual influence partial_dependence permutation_importance shapley surrogate embeddings",
    "texts": "integrated_gradients gradient_x_input occlusion counterfactual probe",
    "pictures": "grad_cam activation_maps",
    "several": "shapley",
}
OF_DATA = r"\ba (?:quick |red |small |old )+one\b|\bencoders\.\S+|《[^》]*》|van der Maaten"
"""What is English on a Chinese page by right: texts of the rows, names of layers, titles and authors of papers."""


@pytest.mark.parametrize(
    ("kind", "method"), [(kind, method) for kind, methods in FITTING.items() for method in methods.split()]
)
def test_the_page_of_an_explainer_is_chinese(
    artefact_of: Make, tmp_path: Path, kind: str, method: str
) -> None:
    artefact = artefact_of(kind)
    rows = str(artefact.parent / ROWS[kind])
    several = method in ("partial_dependence", "permutation_importance", "surrogate", "embeddings", "probe")
    found = luban.explain(
        artefact,
        rows,
        method=method,
        quality=method == "occlusion",
        limit=60 if several else 2,
        output=tmp_path / "zh",
        lang="zh",
    )
    page = (tmp_path / "zh" / "index.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert list(english(re.sub(OF_DATA, "", page), 8)) == []
    assert not re.search(r"\([^()]*[\u4e00-\u9fff][^()]*\)", re.sub(r"(?s)<style>.*?</style>", "", page))
    # What a program reads is as it was.
    summary = json.loads((tmp_path / "zh" / "summary.json").read_text(encoding="utf-8"))
    assert summary["method"] == found["method"] == method
    assert not re.search(r"[\u4e00-\u9fff]", summary["limits"] + summary["paper"])


@pytest.mark.parametrize(
    ("kind", "row"), [("causal", "the old cat"), ("masked", "the old [MASK] is here ."), ("writing", "good")]
)
def test_pages_of_tokens_that_a_model_chooses_are_chinese(
    artefact_of: Make, tmp_path: Path, kind: str, row: str
) -> None:
    luban.explain(artefact_of(kind), row, output=tmp_path / "zh", lang="zh", max_tokens=3)
    page = (tmp_path / "zh" / "index.html").read_text(encoding="utf-8")
    # The headline quotes what was written.
    page = re.sub(r"“[^”]*”", "", re.sub(OF_DATA, "", page))
    assert list(english(page, 5)) == []
    assert "局限" in page


def test_an_explanation_is_printed_in_chinese(artefact_of: Make, luban: Luban) -> None:
    artefact = artefact_of("table")
    row = '{"age": null, "city": "北京", "income": 3000.5, "a column with a very long name that nobody would write by hand": "yes"}'
    ran = luban("explain", artefact, row, "-m", "shapley", "--quality", "--lang", "zh")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("行 0：label = “")
    assert "，概率 " in ran.out
    assert re.search(r"  age（\d+ %）: 缺失  ", ran.out)
    assert "  完备性误差 " in ran.out
    assert "  说明：与训练数据（240 行）中的 50 行比较；计算全部 16 种组合" in ran.out
    assert "Shapley 值（Shapley，1953；" in ran.err
    assert not re.search(r"row|score|neutral|note|missing", ran.out)
    in_english = luban("explain", artefact, row, "-m", "shapley", "--quality")
    assert in_english.out.startswith("row 0: label = ")
    assert re.search(r"  age \(\d+%\): missing  ", in_english.out)
    assert "note: compared with 50 rows of 240 training rows; all 16 coalitions" in in_english.out
    wrong = luban("explain", artefact, row, "--lang", "de")
    assert wrong.code == 2
    assert "received lang 'de', but languages are en and zh" in wrong.err


def test_a_row_that_cannot_be_explained_is_named_in_chinese(
    artefact_of: Make, tmp_path: Path, luban: Luban
) -> None:
    rows = '[{"picture": "no picture"}, {"picture": "%s"}]'
    first = json.loads((artefact_of("pictures").parent / "pictures.jsonl").read_text().partition("\n")[0])
    ran = luban(
        "explain", artefact_of("pictures"), rows % first["picture"], "-m", "occlusion", "--lang", "zh",
        "-o", tmp_path / "zh",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    why = "行 0 无法解释：列“picture”：“no picture”无法按 image 类型读取"
    assert why in ran.err
    assert why in (tmp_path / "zh" / "index.html").read_text(encoding="utf-8")


def test_words_of_the_users_are_never_translated() -> None:
    """A class or a cell may be called as one of our sentences is."""
    part = Part("missing", "tokens", [1.0], [Piece("always", 0, 6)], shown="always")  # type: ignore[arg-type]
    one = Explanation(0, "m", "reading", "yes", 1.0, parts={"missing": part}).to_json()
    one["tables"] = {"rules": [{"if": say("always"), "then": "always"}]}
    for text in (_render.terminal(one, color=False, language="zh"), _render.explanation_html(one, "zh")):
        assert "reading = “yes”" in text
        assert "任何情况" in text
        assert text.count("always") >= 2
    assert _render.tables_text(one["tables"], language="zh").splitlines()[-1].split() == [
        "任何情况",
        "always",
    ]


def test_columns_of_chinese_stand_under_each_other() -> None:
    tables = {"columns": [{"column": "城市", "share": 0.5}, {"column": "age", "share": 0.25}]}
    assert _render.tables_text(tables, language="zh").splitlines() == [
        "各列：",
        "  列    占比",
        "  城市  0.5",
        "  age   0.25",
    ]


def test_a_paper_and_limits_of_every_explainer_are_sentences() -> None:
    from luban.registry import lookup

    for name in names("explainers"):
        cls = lookup("explainers", name)
        assert isinstance(cls.paper, Sentence), name
        assert isinstance(cls.limits, Sentence), name


def test_a_language_that_there_is_not_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="received lang 'de', but languages are en and zh"):
        luban.explain(tmp_path / "nothing", "x", lang="de")
