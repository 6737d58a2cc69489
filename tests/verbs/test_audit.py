"""`luban audit` from the command line: what it prints, its exit codes, how it goes on, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luban
from audit_cases import people, trained
from luban import registry
from luban.auditing import leakage
from luban.auditing._run import FAMILIES, choose
from luban.errors import InputError
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


def test_a_finding_makes_the_exit_code_one_only_if_asked(made: Path, luban: Luban) -> None:
    drifted = made / "drifted.csv"
    people(300, seed=6).with_columns((people(300, seed=6)["luck"] + 9).alias("luck")).write_csv(drifted)
    plain = luban("audit", made / "model", drifted, "--only", "drift", "-o", made / "out.json")
    assert plain.code == 0
    assert "high    drift: 'luck' is no longer what the model learnt from" in plain.out
    assert json.loads((made / "out.json").read_text())["figures"]["drift.domain_auc"] > 0.9
    assert luban("audit", made / "model", drifted, "--only", "drift", "--fail-on", "high").code == 1
    sound = luban("audit", made / "model", made / "more.csv", "--only", "drift", "--fail-on", "low")
    assert (sound.code, sound.out.strip()) == (0, "nothing found by drift")


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
    import yaml

    from audit_cases import RECIPE

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
