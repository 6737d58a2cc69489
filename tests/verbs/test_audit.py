"""`luban audit` from the command line: what it prints, its exit codes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import luban
from audit_cases import RECIPE, case_of, people, trained
from luban import registry
from luban.artefact import Artefact
from luban.auditing import _base as auditing_base
from luban.auditing import leakage
from luban.auditing._run import FAMILIES, choose
from luban.data.sampling import Sample
from luban.errors import InputError
from luban.origin import Origin, Unknown
from luban.recipe import load
from luban.verbs import audit as audit_verb
from tiny_case import Luban


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    trained(folder, people(900))
    people(300, seed=5).write_csv(folder / "more.csv")
    return folder


def test_everything_that_fits_is_done_and_what_does_not_says_why(made: Path, luban: Luban) -> None:
    ran = luban("audit", made / "model", made / "rows.csv", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert set(found["audits"]) | set(found["left_out"]) == set(registry.names("audits"))
    assert set(found["left_out"]) == {"memorisation", "toxicity"}
    assert found["split"] == "test"  # of the file that it was trained on
    assert 200 < found["rows"] == found["of"] < 340
    assert all(
        {"audit", "severity", "sentence", "figures", "advice"} <= set(one) for one in found["findings"]
    )
    assert all(value is None or abs(value) < 1e9 for value in found["figures"].values())


@pytest.mark.parametrize("rows", [1, 4])
def test_a_few_rows_accuse_nobody(made: Path, luban: Luban, rows: int) -> None:
    people(rows, seed=6).write_csv(made / "few.csv")
    ran = luban("audit", made / "model", made / "few.csv", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    # Four rows may well differ from those it learnt from; one tells nothing.
    accused = [one for one in found["findings"] if one["severity"] in ("high", "medium")]
    assert {one["audit"] for one in accused} <= ({"drift"} if rows > 1 else set())
    assert f"needs 10 rows at least, and {rows} have a known truth" in found["left_out"]["labels"]
    assert f"30 rows at least, and {rows} have a known truth" in found["left_out"]["calibration"]
    asked = luban("audit", made / "model", made / "few.csv", "--only", "labels")
    assert asked.code == 2
    assert "hand over more, or lower labels.folds" in asked.err


def test_a_finding_makes_the_exit_code_one_only_if_asked(made: Path, luban: Luban) -> None:
    drifted = made / "drifted.csv"
    people(300, seed=6).with_columns((people(300, seed=6)["luck"] + 9).alias("luck")).write_csv(drifted)
    plain = luban("audit", made / "model", drifted, "--only", "drift", "-o", made / "out.json")
    assert plain.code == 0
    assert "high    drift: 'luck' is no longer what the model learnt from" in plain.out
    assert json.loads((made / "out.json").read_text())["figures"]["drift.domain_auc"] > 0.9
    assert luban("audit", made / "model", drifted, "--only", "drift", "--fail-on", "high").code == 1
    sound = luban("audit", made / "model", made / "more.csv", "--only", "drift", "--fail-on", "low")
    assert (sound.code, sound.out.strip()) == (0, "Nothing was found by: drift.")


def test_what_is_found_is_told_in_chinese(made: Path, luban: Luban) -> None:
    drifted = made / "drifted.csv"
    people(300, seed=6).with_columns((people(300, seed=6)["luck"] + 9).alias("luck")).write_csv(drifted)
    ran = luban("audit", made / "model", drifted, "--lang", "zh", "--only", "drift", "--only", "generation")
    assert "严重      分布漂移：“luck”已不同于模型训练时的分布" in ran.out
    assert "未做：有害内容（该审计针对生成的文本，而该模型不生成文本）。" in ran.err
    sound = luban("audit", made / "model", made / "more.csv", "--lang", "zh", "--only", "drift")
    assert sound.out.strip() == "未发现问题的审计：分布漂移。"
    wrong = luban("audit", made / "model", made / "more.csv", "--lang", "de")
    assert wrong.code == 2
    assert "received lang 'de', but languages are en and zh" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "fairnes"], "there is no audit 'fairnes'; audits and families of them are"),
        (["--only", "toxicity"], "audit 'toxicity' does not fit: it looks at texts that are generated"),
        (["--only", "fairness", "--by", "sex"], "there is no column 'sex' of groups"),
        (["--fail-on", "hihg"], "severities are high, medium, low; did you mean 'high'?"),
        (["fairness.min_row=3"], "key 'min_row' is unknown; audit fairness takes"),
        (
            ["fairness.min_rows=0"],
            "audit fairness: min_rows: received 0, but it should be greater than or equal to 1",
        ),
        (["min_rows=3"], "is not of the form audit.key=value"),
        (["--split", "tset"], "received split 'tset'"),
        (["--limit", "0"], "at least one row"),
    ],
)
def test_mistakes_are_said_in_a_sentence(made: Path, luban: Luban, arguments: list[str], words: str) -> None:
    ran = luban("audit", made / "model", made / "more.csv", *arguments)
    assert ran.code == 2, ran.err
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_the_refusal_names_the_audits_that_fit(made: Path, luban: Luban) -> None:
    ran = luban("audit", made / "model", made / "more.csv", "--only", "memorisation")
    assert "those that do are" in ran.err
    assert "fairness" in ran.err.split("those that do are")[1]


def test_rows_are_drawn_by_lot_and_their_number_is_said(made: Path) -> None:
    audit = luban.audit(made / "model", str(made / "more.csv"), only=["columns"], limit=50)
    assert (audit["rows"], audit["of"]) == (50, 300)
    assert audit["audits"]["columns"]["notes"] == ["looked at 50 rows drawn from 300"]


def test_rows_take_so_much_room_and_no_more(
    made: Path, monkeypatch: pytest.MonkeyPatch, luban: Luban
) -> None:
    """Of the rows that are looked at, of those that they are compared with, and of the training rows."""
    drawn: list[Sample] = []
    draw = Sample.draw.__func__  # type: ignore[attr-defined]

    def watched(cls: type[Sample], *arguments: Any, **options: Any) -> Sample:
        drawn.append(draw(cls, *arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(Sample, "draw", classmethod(watched))
    room = 3_000
    for module in (auditing_base, audit_verb):
        monkeypatch.setattr(module, "ROOM", room)
    rows = str(made / "more.csv")
    found = audit_verb.audit(made / "model", rows, only=["drift", "columns"])
    assert [one.room for one in drawn] == [room, room]
    assert all(one.rows.estimated_size() <= room for one in drawn)
    assert found["rows"] < found["of"] == 300
    said = f"{found['rows']} rows drawn from 300 (no more fit into 0.002861 MiB)"
    assert found["audits"]["columns"]["notes"] == [f"looked at {said}"]
    ran = luban("audit", made / "model", rows, "--only", "drift", "--against", rows, "--lang", "zh")
    assert [one.room for one in drawn[2:]] == [room, room]
    assert f"查看抽取的 {len(drawn[2].rows)} 行样本（共 300 行，限 0.002861 MiB）" in ran.err
    assert audit_verb.audit(made / "model", rows, only=["columns"], limit=5)["audits"]["columns"][
        "notes"
    ] == ["looked at 5 rows drawn from 300"], "what bounds is the limit"


def test_an_interrupted_audit_goes_on_where_it_was(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    run, broken = leakage.Leakage.run, [True]

    def count(name: str, cls: Any) -> None:
        original = cls.run
        monkeypatch.setattr(cls, "run", lambda self, case: (done.append(name), original(self, case))[1])

    for name in ("columns", "labels"):
        count(name, registry.lookup("audits", name))

    def stop(self: Any, case: Any) -> Any:
        if broken[0]:
            raise KeyboardInterrupt
        return run(self, case)

    monkeypatch.setattr(leakage.Leakage, "run", stop)
    options: dict[str, Any] = {"only": ["columns", "labels", "leakage"]}
    with pytest.raises(KeyboardInterrupt):
        luban.audit(made / "model", str(made / "more.csv"), **options)
    assert done == ["columns", "labels"]
    broken[0] = False
    resumed = luban.audit(made / "model", str(made / "more.csv"), **options)
    assert done == ["columns", "labels"]  # not done again
    fresh = luban.audit(made / "model", str(made / "more.csv"), **options)
    assert done == ["columns", "labels"] * 2  # what was finished in the end is forgotten
    assert {k: v for k, v in resumed.items() if k != "when"} == {
        k: v for k, v in fresh.items() if k != "when"
    }


def test_families_stand_for_their_audits() -> None:
    audits, asked = choose(["data"])
    assert [one.type for one in audits] == ["columns", "drift", "duplicates", "labels", "leakage"]
    assert not asked
    assert {registry.lookup("audits", name).family for name in registry.names("audits")} == set(FAMILIES)
    with pytest.raises(InputError, match="did you mean 'privacy'"):
        choose(["privcy"])


# --- at the end of training ---


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        (["label.accuracy >= 0.6", "fairness.demographic_parity_difference <= 0.9", "no high"], 0),
        (["label.accuracy >= 0.999"], 1),
        (["fairness.demographic_parity_difference <= -1"], 1),
    ],
)
def test_training_ends_with_a_yes_or_no(tmp_path: Path, luban: Luban, gates: list[str], code: int) -> None:
    people(600).write_csv(tmp_path / "rows.csv")
    recipe = {
        **RECIPE,
        "data": {**RECIPE["data"], "train": "rows.csv"},
        "gates": gates,
        "audits": ["fairness"],
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "model")
    assert ran.code == code, ran.err
    assert (tmp_path / "model" / "config.json").exists()  # kept either way
    assert ("FAIL" in ran.out) == bool(code)
    saved = json.loads((tmp_path / "model" / "metrics.json").read_text())["gates"]
    assert [one["gate"] for one in saved] == gates
    assert set(json.loads((tmp_path / "model" / "audit.json").read_text())["audits"]) == {"fairness"}


def test_a_gate_that_nothing_measures_is_refused_before_training(tmp_path: Path) -> None:
    from luban.errors import RecipeError

    with pytest.raises(RecipeError, match=r"'label\.acuracy' is not measured; metrics are"):
        trained(tmp_path, people(200), gates=["label.acuracy >= 0.5"])
    assert not (tmp_path / "model").exists()


def test_a_gate_without_held_out_rows_is_refused_before_training(tmp_path: Path) -> None:
    from luban.errors import RecipeError

    with pytest.raises(RecipeError, match="neither validation nor test rows to judge it by"):
        trained(
            tmp_path,
            people(200),
            {"split": {"validation": 0.0, "test": 0.0}},
            gates=["label.accuracy >= 0.5"],
        )


def test_the_card_of_gates_that_were_judged_on_no_rows_says_so(made: Path) -> None:
    from luban.verbs import card

    loaded = Artefact.load(made / "model")
    recipe = load(yaml.safe_load(loaded.recipe))
    told = card.text({"gates": [{"gate": "no high", "passed": False}]}, loaded.lineage, recipe, 1)
    assert "Nothing: there were neither validation nor test rows." in told


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    trained(
        folder,
        people(600),
        gates=["fairness.group.demographic_parity_difference <= 0.9", "no high"],
        audits=["fairness", {"type": "privacy", "references": 3}],
    )
    return folder


def test_a_gate_whose_figure_is_missing_is_not_met(gated: Path, tmp_path: Path) -> None:
    rows = people(120, seed=3)
    few = rows.filter((rows["group"] == "a") | (pl.Series(range(len(rows))) < 20))
    few.write_csv(tmp_path / "few.csv")
    found = luban.audit(gated / "model", str(tmp_path / "few.csv"), only=["fairness"])
    assert [(one["passed"], one["value"]) for one in found["gates"]] == [(False, None), (True, 0.0)]
    assert not found["passed"]
    other = luban.audit(gated / "model", str(tmp_path / "few.csv"), only=["columns"])
    assert [one["gate"] for one in other["gates"]] == ["no high"]  # the other is about what --only left out


def test_gates_and_what_is_being_done_are_told_in_chinese(gated: Path, tmp_path: Path, luban: Luban) -> None:
    rows = people(120, seed=3)
    few = rows.filter((rows["group"] == "a") | (pl.Series(range(len(rows))) < 20))
    few.write_csv(tmp_path / "few.csv")
    ran = luban("audit", gated / "model", tmp_path / "few.csv", "--only", "fairness", "--lang", "zh")
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert lines[-2].startswith(
        "未通过     fairness.group.demographic_parity_difference <= 0.9 未满足：未测量"
    )
    assert lines[-1] == "通过      “no high”已满足"
    assert f"查看全部 {len(few)} 行" in ran.err
    assert "正在审计：公平性" in ran.err
    in_english = luban("audit", gated / "model", tmp_path / "few.csv", "--only", "fairness")
    assert [line.split()[0] for line in in_english.out.splitlines()[-2:]] == ["FAIL", "pass"]
    assert f"looking at all {len(few)} rows" in in_english.err
    assert "auditing: fairness" in in_english.err


def test_nothing_found_by_no_audit_is_no_yes(made: Path, gated: Path) -> None:
    found = luban.audit(made / "model", str(made / "more.csv"), only=["generation"], fail_on="high")
    assert not found["audits"]
    assert not found["passed"]
    found = luban.audit(gated / "model", str(made / "more.csv"), only=["generation"])
    assert found["gates"] == [
        {"gate": "no high", "passed": False, "value": None, "why": "'no high' is not met: no audit was done"}
    ]


def test_the_training_file_is_known_whatever_options_it_was_read_with(tmp_path: Path) -> None:
    rows = people(400)
    rows.write_csv(tmp_path / "t.csv")
    recipe = {
        **RECIPE,
        "data": {
            **RECIPE["data"],
            "train": {"type": "csv", "path": str(tmp_path / "t.csv"), "encoding": "utf-8"},
        },
    }
    luban.train(recipe, output=tmp_path / "model")
    found = luban.audit(tmp_path / "model", str(tmp_path / "t.csv"), only=["columns"])
    assert found["split"] == "test"
    assert found["rows"] < 200
    rows.head(300).write_csv(tmp_path / "other.csv")
    assert luban.audit(tmp_path / "model", str(tmp_path / "other.csv"), only=["columns"])["split"] is None


def test_the_training_rows_themselves_are_a_finding(made: Path) -> None:
    found = luban.audit(made / "model", str(made / "rows.csv"), only=["duplicates"], split="train")
    assert [(one["severity"], one["figures"]["share"]) for one in found["findings"]] == [("high", 1.0)]
    assert "are those that the artefact was trained on" in found["audits"]["duplicates"]["notes"][-1]


def test_what_was_done_before_an_edit_is_done_again(made: Path, tmp_path: Path) -> None:
    import shutil

    from luban.verbs.audit import _work

    shutil.copytree(made / "model", tmp_path / "model")
    (tmp_path / "words.txt").write_text("one")
    audits, _ = choose(["toxicity"], options=[f"toxicity.words={tmp_path / 'words.txt'}"])
    case = case_of(tmp_path / "model", people(20))

    def folder() -> Path:
        return _work(Artefact.load(tmp_path / "model"), case, audits, "-", None, None)

    first = folder()
    assert folder() == first
    (tmp_path / "words.txt").write_text("two")
    assert (second := folder()) != first
    for name in ("preprocessing.json", "lineage.json"):
        path = tmp_path / "model" / name
        path.write_text(path.read_text() + "\n")
        third = folder()
        assert third != second
        second = third
    case.__dict__["origin"] = Unknown("data_changed", "train")
    assert folder() != second


def test_a_strangers_recipe_neither_trains_nor_reads_files(gated: Path, luban: Luban) -> None:
    given = load(
        {
            **RECIPE,
            "data": {**RECIPE["data"], "train": "x.csv"},
            "audits": [
                {"type": "privacy", "references": 1000, "tolerance": 0.2},
                {"type": "memorisation", "canaries": "/etc/passwd"},
            ],
        }
    ).audits
    audits = {one.type: one for one in choose([], given, foreign=True)[0]}
    assert (audits["privacy"].references, audits["privacy"].tolerance) == (0, 0.2)  # type: ignore[attr-defined]
    assert audits["memorisation"].canaries is None  # type: ignore[attr-defined]
    own = {one.type: one for one in choose([], given)[0]}
    assert own["privacy"].references == 1000  # type: ignore[attr-defined]
    ran = luban("audit", gated / "model", gated / "rows.csv", "--only", "privacy")
    assert "not taken from the artefact's recipe unless you say it: privacy.references=3" in ran.err


def test_a_sqlite_file_of_ones_own_is_no_far_away_database(tmp_path: Path) -> None:
    rows = people(300)
    with closing(sqlite3.connect(tmp_path / "rows.db")) as database:
        database.execute("create table t (skill real, luck real, town text, 'group' text, label text)")
        database.executemany("insert into t values (?, ?, ?, ?, ?)", rows.rows())
        database.commit()
    source = {
        "type": "sql",
        "connection": f"sqlite:///{tmp_path / 'rows.db'}",
        "query": "select * from t where town <> 'http://nowhere'",
    }
    luban.train({**RECIPE, "data": {**RECIPE["data"], "train": source}}, output=tmp_path / "model")
    loaded = Artefact.load(tmp_path / "model")
    found = Origin.find(loaded.recipe, loaded.lineage, loaded.pipeline)
    assert isinstance(found, Origin)
    assert sum(map(len, found.split("train"))) == loaded.lineage["rows"]["train"]
    far = loaded.recipe.replace("sqlite:///", "postgresql://")
    assert str(Origin.find(far, loaded.lineage, loaded.pipeline)) == str(Unknown("data_remote"))


def test_rows_of_a_test_file_of_its_own_are_not_looked_for_in_the_training_file(tmp_path: Path) -> None:
    people(100, seed=3).write_csv(tmp_path / "test.csv")
    trained(tmp_path, people(400), {"test": str(tmp_path / "test.csv"), "split": {"validation": 0.2}})
    found = luban.audit(tmp_path / "model", str(tmp_path / "rows.csv"), only=["columns"])
    assert found["split"] == "validation"
