"""Membership inference finds members where there is something to find, and nothing where there is not; canaries are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import luban
from audit_cases import case_of, people, trained
from luban.auditing import privacy
from luban.auditing.memorisation import Memorisation, alternatives
from luban.auditing.privacy import Privacy, attack, likelihood_ratio
from luban.auditing.toxicity import matcher
from luban.errors import DataError


def test_the_attack_measures_what_is_known_of_normal_scores() -> None:
    generator = np.random.default_rng(0)
    members, others = generator.normal(1.0, 1, 4000), generator.normal(0, 1, 4000)
    found = attack(members, others)
    assert found["auc"].value == pytest.approx(0.7602, abs=0.01)  # Φ(1 / √2)
    assert found["tpr"].value == pytest.approx(0.0183, abs=0.012)  # 1 - Φ(3.09 - 1)
    assert found["auc"].low is not None
    assert found["auc"].low > 0.74


def test_false_alarms_stay_below_one_in_a_thousand() -> None:
    generator = np.random.default_rng(1)
    same = [generator.normal(size=5000) for _ in range(2)]
    found = attack(*same)
    assert found["tpr"].value == pytest.approx(0.001, abs=0.0015)
    assert found["auc"].value == pytest.approx(0.5, abs=0.015)


def test_the_likelihood_ratio_finds_members_whom_the_loss_hides() -> None:
    """Rows differ more in difficulty than training on one changes it."""
    generator = np.random.default_rng(2)
    difficulty = generator.normal(0, 3, 2000)
    member = np.arange(2000) < 1000
    seen = (generator.random((8, 2000)) < 0.5) & member
    references = difficulty + generator.normal(size=(8, 2000)) + 1.5 * seen
    own = difficulty + generator.normal(size=2000) + 1.5 * member
    ratio = likelihood_ratio(own, references, seen)
    known = np.isfinite(ratio)
    sharp = attack(ratio[member & known], ratio[~member & known])["auc"].value
    blunt = attack(own[member], own[~member])["auc"].value
    assert sharp is not None
    assert blunt is not None
    assert blunt < 0.66
    assert sharp > 0.75


def test_a_model_that_learnt_noise_by_heart_is_found_and_one_that_could_not_is_not(tmp_path: Path) -> None:
    rows = people(700)
    noise = rows.with_columns(pl.Series("label", np.random.default_rng(0).choice(["yes", "no"], len(rows))))
    train = {
        "epochs": 80, "batch_size": 64, "device": "cpu", "precision": "fp32", "threads": 1, "keep": "last",
        "optimizer": {"type": "adamw", "learning_rate": 0.02},
    }  # fmt: skip
    split = {"validation": 0.0, "test": 0.4}
    trained(
        tmp_path,
        noise,
        {"split": split},
        train=train,
        model={"type": "mlp", "hidden": [128, 128], "numbers": "periodic"},
    )
    options = ["privacy.references=4"]
    audit = luban.audit(tmp_path / "model", str(tmp_path / "rows.csv"), options, only=["privacy"])
    assert audit["figures"]["privacy.loss.auc"] > 0.65
    assert audit["figures"]["privacy.likelihood_ratio.auc"] > 0.6
    assert audit["findings"][0]["severity"] == "high"
    trained(tmp_path, people(700), {"split": split})
    audit = luban.audit(tmp_path / "model", str(tmp_path / "rows.csv"), only=["privacy"])
    assert not audit["findings"]
    assert audit["figures"]["privacy.loss.auc"] < 0.57


# --- generators ---


def test_canaries_planted_a_hundred_times_are_found_and_others_are_not(speaker: Path) -> None:
    options = [f"memorisation.canaries={speaker / 'canaries.txt'}", "memorisation.strings=499"]
    audit = luban.audit(speaker / "model", str(speaker / "texts.csv"), options, only=["memorisation"])
    rows = audit["audits"]["memorisation"]["tables"]["canaries"]
    assert [row["learnt"] for row in rows] == [True, True, False, False, False]
    assert [row["rank"] for row in rows[:2]] == [1, 1]
    assert rows[0]["exposure"] == pytest.approx(np.log2(500))
    assert max(row["exposure"] for row in rows[2:]) < 6
    assert rows[0]["recited"]
    assert not any(row["recited"] for row in rows[2:])
    (finding,) = audit["findings"]
    assert finding["severity"] == "high"
    assert "4821" not in str(audit)  # a report does not give the secret away


def test_what_is_generated_is_searched_for_words(speaker: Path, tmp_path: Path) -> None:
    for name, lines in (
        ("words", ["code", "never said"]),
        ("refusals", ["I cannot"]),
        ("prompts", ["the code", "the"]),
    ):
        (tmp_path / name).write_text("\n".join(lines))
    files = [f"toxicity.{name}={tmp_path / name}" for name in ("words", "refusals", "prompts")]
    audit = luban.audit(
        speaker / "model", str(speaker / "texts.csv"), [*files, "toxicity.max_tokens=12"], only=["toxicity"]
    )
    assert audit["figures"]["toxicity.toxic_share"] == 0.5  # "the" goes on with "code"
    assert audit["figures"]["toxicity.refusal_share"] == 0.0
    assert [one["severity"] for one in audit["findings"]] == ["high", "high"]


def test_alternatives_have_the_form_of_the_secret() -> None:
    generator = np.random.default_rng(0)
    for line in alternatives("Bank: [[aB-12 张]] of 2024", 50, generator):
        assert len(line) == len("Bank: aB-12 张 of 2024")
        assert line.startswith("Bank: ")
        assert line.endswith(" of 2024")
        assert line[6].islower()
        assert line[7].isupper()
        assert line[9:11].isdecimal()
    assert len(set(alternatives("pin 1234", 50, generator))) > 40
    assert "pin 12" not in alternatives("pin [[12]]", 999, generator)
    with pytest.raises(DataError, match="holds no digit and no"):
        alternatives("nothing", 1, generator)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A classy bass", []),
        ("What an ASS!", ["ass"]),
        ("你这混蛋吗", ["混蛋"]),
        ("ｄａｍｎ it", ["damn"]),
        ("no way in  hell", []),
        ("你ass好", ["ass"]),
        ("éass", []),
    ],
)
def test_words_are_found_whole_and_in_any_form(text: str, found: list[str]) -> None:
    assert matcher(["ass", "damn", "混蛋", "no way in hell"])(text) == found


def test_a_file_that_is_not_there_is_said(speaker: Path) -> None:
    with pytest.raises(DataError, match=r"the canaries 'gone\.txt' cannot be read"):
        luban.audit(
            speaker / "model",
            str(speaker / "texts.csv"),
            ["memorisation.canaries=gone.txt"],
            only=["memorisation"],
        )
    assert Memorisation().canaries is None


def test_a_secret_of_few_forms_is_refused(speaker: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("the code is [[4821]]\nthe code is [[7]]\n")
    with pytest.raises(
        DataError, match="the secret of canary 2 has only 10 forms, too few to be compared with 999"
    ):
        luban.audit(
            speaker / "model",
            str(speaker / "texts.csv"),
            [f"memorisation.canaries={tmp_path / 'few.txt'}"],
            only=["memorisation"],
        )


def test_a_share_at_fewer_false_alarms_than_one_row_is_not_said() -> None:
    generator = np.random.default_rng(3)
    assert attack(generator.normal(size=999), generator.normal(size=999))["tpr"].value is None
    assert attack(generator.normal(size=999), generator.normal(size=1000))["tpr"].value is not None


def test_references_are_asked_as_the_model_is_and_as_many_for_each_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reference is the model itself: a temperature is no trace of training."""
    trained(tmp_path, people(500), decide=["temperature"])
    case = case_of(tmp_path / "model", people(300, seed=4))
    case.predictor.decisions[0].restore({"column": "label", "temperature": 3.0})
    asked: list[Any] = []
    generator = np.random.default_rng(0)
    bare = replace(case.predictor, decisions=[])
    monkeypatch.setattr(
        privacy,
        "shadows",
        lambda case, rows, count: ((bare, generator.random(len(rows)) < 0.5) for _ in range(count)),
    )
    monkeypatch.setattr(
        privacy, "likelihood_ratio", lambda *given: (asked.append(given), np.zeros(len(given[0])))[1]
    )
    Privacy(references=8)._ratio(case, people(300, seed=5), case.rows)
    ((own, found, seen),) = asked
    assert np.isfinite(own).all()
    assert (found == own).all()
    assert seen[:, :300].mean() == pytest.approx(0.5, abs=0.05)
    assert seen[:, 300:].mean() == pytest.approx(0.5, abs=0.05)  # or the others' means would be surer
