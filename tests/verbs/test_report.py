"""`luban report` on the command line: what it writes, what it prints, and what it refuses in one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tiny_case import Luban


def test_it_writes_a_page_and_says_the_verdict(work: Path, luban: Luban) -> None:
    ran = luban("report", "model", "-o", "out/r.html", "--examples", "2")
    assert ran.code == 0, ran.err
    assert ran.out.strip() == "out/r.html"
    assert "label: accuracy is" in ran.err
    text = Path("out/r.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<title>label, predicted by mlp</title>" in text
    assert not list(Path("out").glob(".*")), "nothing half-written is left"


def test_the_ending_says_the_format_and_json_is_the_data_behind(work: Path, luban: Luban) -> None:
    ran = luban("report", "model", "-o", "r.json", "--no-baselines", "--json", "--lang", "zh")
    assert ran.code == 0, ran.err
    data, printed = json.loads(Path("r.json").read_text(encoding="utf-8")), json.loads(ran.out)
    assert data["measured"]["metrics"] == printed["measured"]["metrics"]
    assert "准确率" in data["verdict"][0]
    assert (printed["format"], printed["output"]) == ("json", "r.json")
    assert luban("report", "model", "-o", "r.txt", "--format", "md", "--no-baselines").code == 0
    assert Path("r.txt").read_text(encoding="utf-8").startswith("# label, predicted by mlp")


def test_rows_that_are_given_are_measured(work: Path, luban: Luban) -> None:
    ran = luban("report", "model", "rows.csv", "-o", "r.md", "--no-baselines", "--json")
    data = json.loads(ran.out)
    assert data["measured"]["rows"] == 80
    assert data["verdict"][0].endswith("on 80 given rows.")
    assert "flattered" in data["warnings"][0]
    ran = luban("report", "model", "rows.csv", "--split", "test", "-o", "r.md", "--no-baselines", "--json")
    held = json.loads(ran.out)
    assert held["warnings"] == []
    recorded = json.loads(Path("model/metrics.json").read_text(encoding="utf-8"))
    assert held["measured"]["rows"] == recorded["rows"]
    for name, metric in recorded["metrics"].items():
        assert held["measured"]["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-6), name


def test_data_that_went_away_are_missed_by_name(work: Path, luban: Luban) -> None:
    Path("model/recipe.yaml").write_text(
        Path("model/recipe.yaml").read_text(encoding="utf-8").replace("rows.csv", "gone.csv"),
        encoding="utf-8",
    )
    assert luban("report", "model", "-o", "r.md").code == 0
    text = Path("r.md").read_text(encoding="utf-8")
    assert "There is no baseline beside it: its rows cannot be read any more" in text
    assert "No row is shown" in text


def test_an_audit_is_shown(work: Path, luban: Luban) -> None:
    Path("a.json").write_text(
        '{"audits": {"no_such_audit": {"findings": [], "figures": {"x": 0.25}}}}', encoding="utf-8"
    )
    assert luban("report", "model", "-o", "r.md", "--no-baselines", "--audit", "a.json").code == 0
    assert "0.250" in Path("r.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no artefact 'nowhere'"),
        (["model", "--lang", "fr"], "received lang 'fr', but languages are en and zh"),
        (["model", "--format", "pdf"], "received format 'pdf', but a report is html, md or json"),
        (["model", "--split", "test"], "split chooses among the rows of DATA, and none were given"),
        (
            ["model", "rows.csv", "--split", "tset"],
            "received split 'tset', but splits are train, validation, test",
        ),
        (["model", "--limit", "1"], "received limit 1 and examples 6, but at least 10 and 0 are needed"),
        (["model", "--audit", "rows.csv"], "'rows.csv' holds no audit"),
        (
            ["model", "--audit", "model/lineage.json"],
            "holds no audit; write one with: luban audit model DATA -o",
        ),
        (["model", "-o", "model", "--no-baselines"], "'model' is a folder; name a file with -o"),
    ],
)
def test_mistakes_are_named_in_one_sentence(
    arguments: list[str], said: str, work: Path, luban: Luban
) -> None:
    ran = luban("report", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_without_the_extra_a_page_is_refused_and_the_rest_works(
    work: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    ran = luban("report", "model", "-o", "r.html", "--no-baselines")
    assert ran.code == 2
    assert "pip install 'luban[report]', or take --format md or json" in ran.err
    assert not Path("r.html").exists()
    assert luban("report", "model", "-o", "r.json", "--no-baselines").code == 0
    assert luban("report", "model", "-o", "r.md", "--no-baselines").code == 0


@pytest.mark.parametrize(
    ("audit", "where"),
    [
        ({"a": []}, "audits.a"),
        ({"a": {"findings": [{"severity": "dire", "sentence": "x"}]}}, "audits.a.findings.0.severity"),
        ({"a": {"findings": [{"severity": "low"}]}}, "audits.a.findings.0.sentence"),
        ({"a": {"figures": {"x": "much"}}}, "audits.a.figures.x"),
        ({"a": {"tables": {"t": [1]}}}, "audits.a.tables.t.0"),
    ],
)
def test_a_strange_audit_is_refused_in_one_sentence(
    audit: dict[str, object], where: str, work: Path, luban: Luban
) -> None:
    Path("a.json").write_text(json.dumps({"audits": audit}), encoding="utf-8")
    ran = luban("report", "model", "-o", "r.md", "--no-baselines", "--audit", "a.json")
    assert ran.code == 2
    assert f"'a.json' is no audit that can be shown ({where}: " in ran.err


def test_gates_of_training_and_of_audits_are_both_shown(work: Path, luban: Luban) -> None:
    metrics = json.loads(Path("model/metrics.json").read_text(encoding="utf-8"))
    met = {"gate": "label.accuracy >= 0", "passed": True, "value": 0.5}
    Path("model/metrics.json").write_text(json.dumps({**metrics, "gates": [met]}), encoding="utf-8")
    missed = {"gate": "no high", "passed": False, "value": 2.0}
    audit = {"audits": {"duplicates": {"findings": []}}, "gates": [met, missed]}
    Path("a.json").write_text(json.dumps(audit), encoding="utf-8")
    ran = luban("report", "model", "-o", "r.md", "--no-baselines", "--json", "--audit", "a.json")
    data = json.loads(ran.out)
    assert data["gates"] == [met, missed]
    assert data["verdict"][-1] == "1 of 2 release gates are met."
    assert data["verdict"][-2].startswith(
        "The audits that were made (duplicates) found nothing of high severity"
    )


def test_training_can_end_with_a_report(work: Path, luban: Luban) -> None:
    ran = luban("train", "r.yaml", "-o", "again", "--report", "again.md")
    assert ran.code == 0, ran.err
    assert "report: again.md" in ran.err
    assert "The best simple baseline" in Path("again.md").read_text(encoding="utf-8")
    Path("folder").mkdir()
    ran = luban("train", "r.yaml", "-o", "third", "--report", "folder")
    assert ran.code == 2
    assert "'folder' is a folder; name a file with -o" in ran.err
    assert not Path("third").exists(), "it is refused before anything is trained"


def test_training_can_end_with_a_chinese_report(work: Path, luban: Luban) -> None:
    ran = luban("train", "r.yaml", "-o", "fourth", "--report", "fourth.md", "--lang", "zh")
    assert ran.code == 0, ran.err
    assert "最佳简单基线" in Path("fourth.md").read_text(encoding="utf-8")
    for more, said in (
        (("--report", "fifth.md", "--lang", "de"), "received lang 'de'"),
        (("--lang", "zh"), "no page was asked for; name one by report"),
    ):
        ran = luban("train", "r.yaml", "-o", "fifth", *more)
        assert ran.code == 2
        assert said in ran.err
        assert not Path("fifth").exists(), "it is refused before anything is trained"


def test_findings_are_told_in_chinese(work: Path, luban: Luban) -> None:
    ran = luban("audit", "model", "rows.csv", "--only", "columns", "--only", "duplicates", "--lang", "zh")
    assert ran.code == 0, ran.err
    assert "查看了" in ran.err
    ran = luban("audit", "model", "rows.csv", "--only", "duplicates", "--json")
    assert ran.code == 0, ran.err
    Path("a.json").write_text(ran.out, encoding="utf-8")
    again = luban("report", "model", "-o", "a.md", "--audit", "a.json", "--lang", "zh", "--no-baselines")
    assert again.code == 0, again.err
    assert "查看了" in Path("a.md").read_text(encoding="utf-8")


def test_compare_writes_a_page(work: Path, luban: Luban) -> None:
    ran = luban("compare", "model", "model", "rows.csv", "-o", "two.html", "--lang", "zh")
    assert ran.code == 0, ran.err
    assert "page: two.html" in ran.err
    assert '<html lang="zh-CN">' in Path("two.html").read_text(encoding="utf-8")
    assert luban("compare", "model", "model", "--lang", "xx").code == 2
    ran = luban("compare", "model", "model", "rows.csv", "-o", "two.md", "--json")
    (warning,) = json.loads(ran.out)["warnings"]
    assert warning.startswith("'model' was trained on rows of this very file")
    assert f"careful: {warning}" in ran.err
    assert warning in Path("two.md").read_text(encoding="utf-8")
