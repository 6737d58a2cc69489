"""A Chinese page is Chinese throughout: what other parts of Luban wrote, too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from report_cases import english

import luban
from tiny_case import Luban

Make = Callable[[str], Path]


def audited(artefact: Path, folder: Path, rows: Path, **options: Any) -> Path:
    """Return a copy of an artefact with audits of everything that fits beside it."""
    copy = folder / "copy"
    shutil.copytree(artefact, copy)
    luban.audit(copy, str(rows), output=copy / "audit.json", **options)
    return copy


@pytest.mark.parametrize("format", ["html", "md"])
def test_a_page_with_audits_of_a_table_is_chinese(artefact_of: Make, tmp_path: Path, format: str) -> None:
    artefact = artefact_of("table")
    rows = pl.read_ndjson(artefact.parent / "table.jsonl")
    # Faults for many audits to find: gaps that tell the answer, a constant, labels that were shuffled, drift.
    worse = rows.with_columns(
        pl.when(pl.col("label") == "old").then(None).otherwise(pl.col("age") + 30).alias("age"),
        pl.lit("Paris").alias("city"),
        pl.col("label").shuffle(seed=1),
    )
    worse.write_ndjson(tmp_path / "worse.jsonl")
    copy = audited(artefact, tmp_path, tmp_path / "worse.jsonl", options=["fairness.min_rows=5"])
    data = luban.report(copy, output=tmp_path / f"page.{format}", lang="zh", format=format)
    findings = [
        one for audit in data["audits"] for part in audit["audits"].values() for one in part["findings"]
    ]
    assert len({one["audit"] for one in findings}) >= 4
    page = (tmp_path / f"page.{format}").read_text(encoding="utf-8")
    if format == "html":
        assert list(english(page)) == []
    assert not re.search(r"\([^()]*[\u4e00-\u9fff][^()]*\)", page), "half-width parentheses around Chinese"
    for word in ("人口统计均等差", "公平性", "分布漂移", "标签错误", "行中"):
        assert word in page


@pytest.mark.parametrize(("kind", "rows"), [("texts", "reviews-test.jsonl"), ("several", "several.jsonl")])
def test_pages_of_texts_and_of_several_targets_are_chinese(
    artefact_of: Make, tmp_path: Path, kind: str, rows: str
) -> None:
    artefact = artefact_of(kind)
    copy = audited(artefact, tmp_path, artefact.parent / rows)
    luban.report(copy, str(artefact.parent / rows), output=tmp_path / "page.html", lang="zh")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert list(english(page)) == []
    assert "积分梯度" in page or "Shapley" in page


@pytest.mark.parametrize("kind", ["pictures", "causal", "masked", "imported", "folds", "writing"])
def test_pages_without_audits_are_chinese(artefact_of: Make, tmp_path: Path, kind: str) -> None:
    luban.report(artefact_of(kind), output=tmp_path / "page.html", lang="zh")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert list(english(page)) == []


def test_what_is_told_while_a_page_is_made_is_chinese(
    artefact_of: Make, tmp_path: Path, luban: Luban
) -> None:
    for kind, asked in (("table", ["table.jsonl"]), ("causal", [])):
        artefact = artefact_of(kind)
        rows = [artefact.parent / name for name in asked]
        ran = luban("report", artefact, *rows, "--lang", "zh", "-o", tmp_path / "page.html")
        assert ran.code == 0, ran.err
        lines = [line for line in ran.err.splitlines() if line.strip()]
        assert len(lines) >= 2
        assert [line for line in lines if not re.search(r"[\u4e00-\u9fff]", line)] == []


def test_the_page_of_two_is_chinese(artefact_of: Make, tmp_path: Path) -> None:
    artefact = artefact_of("table")
    luban.compare(
        artefact, artefact, str(artefact.parent / "table.jsonl"), output=tmp_path / "two.html", lang="zh"
    )
    page = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert list(english(page)) == []
    assert "用此文件中的行训练过" in page


def test_data_that_are_gone_are_missed_in_chinese(artefact_of: Make, tmp_path: Path) -> None:
    """An error that a page quotes is a sentence, too, where it is one of ours."""
    artefact = artefact_of("table")
    rows = artefact.parent / "table.jsonl"
    copy = shutil.copytree(artefact, tmp_path / "copy")
    recipe = (copy / "recipe.yaml").read_text(encoding="utf-8")
    assert str(rows) in recipe
    (copy / "recipe.yaml").write_text(
        recipe.replace(str(rows), str(tmp_path / "gone.jsonl")), encoding="utf-8"
    )
    luban.audit(copy, str(rows), output=copy / "audit.json", options=["fairness.min_rows=5"])
    luban.report(copy, str(rows), output=tmp_path / "page.html", lang="zh", examples=0)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert list(english(page.replace(str(tmp_path), "…"))) == []
    assert page.count(f"“{tmp_path}”中没有“{tmp_path / 'gone.jsonl'}”；请给出存在的文件") >= 3


def test_an_audit_of_before_is_shown_in_english(artefact_of: Make, tmp_path: Path) -> None:
    """Sentences were plain text once, and those of plug-ins still are."""
    artefact = artefact_of("table")
    finding = {
        "severity": "high",
        "sentence": "12 rows are not right",
        "advice": "Look at them.",
        "figures": {},
    }
    copy = tmp_path / "copy"
    shutil.copytree(artefact, copy)
    (copy / "audit.json").write_text(
        '{"audits": {"columns": {"audit": "columns", "findings": [' + str(finding).replace("'", '"') + "]}}}",
        encoding="utf-8",
    )
    luban.report(copy, output=tmp_path / "page.html", lang="zh", baselines=False, examples=0)
    assert "12 rows are not right" in (tmp_path / "page.html").read_text(encoding="utf-8")
