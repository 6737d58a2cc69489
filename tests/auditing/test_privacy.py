"""Membership inference finds members where there is something to find, and nothing where there is not; canaries are found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import luban
from audit_cases import case_of, people, trained
from luban.artefact import Artefact
from luban.auditing import _shadow, privacy
from luban.auditing._base import Case, losses
from luban.auditing._run import choose
from luban.auditing._shadow import shadows
from luban.auditing.memorisation import Memorisation, alternatives
from luban.auditing.privacy import Privacy, _answers, attack, likelihood_ratio
from luban.auditing.toxicity import matcher
from luban.errors import DataError, RecipeError
from luban.recipe import Section
from luban.registry import lookup, names
from luban.training.callbacks._base import Callback


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


@pytest.mark.parametrize("count", [32, 64])
def test_from_64_references_on_each_row_has_a_deviation_of_its_own(count: int) -> None:
    """Rows differ in how much models vary about them: one deviation for all takes wild rows for members."""
    generator = np.random.default_rng(3)
    scale = np.exp(generator.normal(0, 1.2, 4000))
    member = np.arange(4000) < 2000
    seen = (generator.random((count, 4000)) < 0.5) & member
    references = scale * (generator.normal(size=(count, 4000)) + 2 * seen)
    own = scale * (generator.normal(size=4000) + 2 * member)
    ratio = likelihood_ratio(own, references, seen)
    outside = np.where(seen, np.nan, references)
    if count < 64:
        expected = (own - np.nanmean(outside, 0)) / np.sqrt(
            np.nanmean((outside - np.nanmean(outside, 0)) ** 2)
        )
    else:
        expected = (own - np.nanmean(outside, 0)) / np.nanstd(outside, 0, ddof=1)
    np.testing.assert_allclose(ratio, expected, rtol=1e-10)
    found = attack(ratio[member], ratio[~member])["tpr"].value
    assert found is not None
    assert (found > 0.05) == (count >= 64)


def test_one_reference_is_refused_and_rows_that_cannot_be_told_are_counted(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="1 model leaves too few; take 0 \\(no such attack\\) or 2 and more"
    ):
        choose(["privacy"], options=["privacy.references=1"])
    # None of two models may have left a row out twice: nothing is told, and nobody is warned.
    assert np.isnan(
        likelihood_ratio(np.zeros(3), np.zeros((2, 3)), np.array([[True] * 3, [False] * 3]))
    ).all()
    trained(tmp_path, people(500), {"split": {"validation": 0.0, "test": 0.4}})
    options = ["privacy.references=2"]
    audit = luban.audit(tmp_path / "model", str(tmp_path / "rows.csv"), options, only=["privacy"])
    (row,) = [
        row for row in audit["audits"]["privacy"]["tables"]["attacks"] if row["attack"] == "likelihood_ratio"
    ]
    (note,) = [note for note in audit["audits"]["privacy"]["notes"] if "could not be told" in note]
    looked = audit["audits"]["privacy"]["rows"]
    assert f"{looked - row['members'] - row['others']:,} of {looked:,} rows" in note


def test_references_are_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all callbacks those that change what is trained come along; a tracker would open a run of its own for each model."""
    changing = {"early_stopping", "unfreeze"}
    for name in names("callbacks"):
        kind = lookup("callbacks", name)
        assert issubclass(kind, Callback)
        assert kind.changes == (name in changing), name
    trained(tmp_path, people(500))
    given: list[list[Any]] = []
    fit = _shadow.make_plan

    def planned(recipe: Any) -> Any:
        given.append([one.type for one in recipe.train.callbacks])
        return fit(recipe)

    monkeypatch.setattr(_shadow, "make_plan", planned)
    artefact = Artefact.load(tmp_path / "model")
    case = case_of(tmp_path / "model", people(100, seed=4), recipe=artefact.recipe, lineage=artefact.lineage)
    assert case.resolved is not None
    assert case.training is not None
    case.resolved.train.callbacks = [
        Section("callbacks").parse(name) for name in names("callbacks") if name != "unfreeze"
    ]
    list(shadows(case, case.training.rows, 1))
    assert given == [["early_stopping"]]


def test_a_row_of_which_all_models_are_equally_sure_is_no_member() -> None:
    references = np.random.default_rng(0).normal(size=(64, 10))
    references[:, 0] = 27.6
    ratio = likelihood_ratio(references[0], references[1:].repeat(2, 0)[:64], np.zeros((64, 10), dtype=bool))
    assert ratio[0] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(ratio).all()


def test_a_model_that_learnt_noise_by_heart_is_found_and_one_that_could_not_is_not(tmp_path: Path) -> None:
    rows = people(700)
    noise = rows.with_columns(pl.Series("label", np.random.default_rng(0).choice(["yes", "no"], len(rows))))
    train = {
        "epochs": 200, "batch_size": 64, "device": "cpu", "precision": "fp32", "threads": 1, "keep": "last",
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
    assert audit["figures"]["privacy.likelihood_ratio.auc"] > 0.54
    assert audit["findings"][0]["severity"] == "high"
    trained(tmp_path, people(700), {"split": split})
    audit = luban.audit(tmp_path / "model", str(tmp_path / "rows.csv"), only=["privacy"])
    assert not audit["findings"]
    assert audit["figures"]["privacy.loss.auc"] < 0.57


def test_references_keep_the_weights_that_the_recipe_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise is learnt by heart, so the best weights by validation rows are early ones, and the last ones know far more."""
    rows = people(700)
    noise = rows.with_columns(pl.Series("label", np.random.default_rng(0).choice(["yes", "no"], len(rows))))
    sure: dict[str, float] = {}
    for keep in ("best", "last"):
        folder = tmp_path / keep
        folder.mkdir()
        train = {
            "epochs": 60, "batch_size": 64, "device": "cpu", "precision": "fp32", "threads": 1, "keep": keep,
            "optimizer": {"type": "adamw", "learning_rate": 0.02},
        }  # fmt: skip
        model = {"type": "mlp", "hidden": [64, 64], "numbers": "periodic"}
        trained(folder, noise, {"split": {"validation": 0.2, "test": 0.3}}, train=train, model=model)
        artefact = Artefact.load(folder / "model")
        case = case_of(folder / "model", noise, recipe=artefact.recipe, lineage=artefact.lineage)
        assert case.training is not None
        ((reference, inside),) = shadows(case, case.training.rows, 1)
        known = Case(reference, case.sample).score(case.training.rows.filter(pl.Series(inside)))
        sure[keep] = float(
            np.mean(losses(reference.pipeline.scored["label"], known.truth["label"], known.scores["label"]))
        )
    assert sure["best"] > 0.6
    assert sure["last"] < 0.3


# --- language models ---


WORDS = [
    "anvil",
    "bench",
    "chisel",
    "dowel",
    "easel",
    "file",
    "gouge",
    "hammer",
    "joint",
    "kerf",
    "lathe",
    "mallet",
    "nail",
    "plane",
]


def languages(folder: Path, **upon: Any) -> Path:
    """A small language model of 120 texts that no rule explains; beside it as many others of the same law."""
    generator = np.random.default_rng(2)
    texts = [" ".join(generator.choice(WORDS, generator.integers(4, 8))) for _ in range(240)]
    pl.DataFrame({"text": texts[:120]}).write_csv(folder / "texts.csv")
    pl.DataFrame({"text": texts[120:]}).write_csv(folder / "others.csv")
    recipe: dict[str, Any] = {
        "data": {
            "train": str(folder / "texts.csv"), "split": {"validation": 0.0, "test": 0.0},
            # Characters: pieces of words that were chosen by these texts would give them away by themselves.
            "inputs": {"text": {"type": "text", "tokens": "char", "min_count": 1, "end": True, "lowercase": False}},
        },
        "model": {"type": "llama", "layers": 2, "hidden_size": 64, "heads": 2, "max_positions": 64},
        "objective": "causal_lm",
        "train": {
            "steps": 160, "batch_size": 32, "device": "cpu", "precision": "fp32", "threads": 1, "keep": "last",
            "optimizer": {"type": "adamw", "learning_rate": 0.004}, "kernels": "torch", **upon,
        },
    }  # fmt: skip
    name = folder / ("model" if not upon else "new")
    luban.train(recipe, output=name)
    return name


def test_texts_learnt_by_heart_are_found_and_those_that_were_not_are_not(tmp_path: Path) -> None:
    """Both artefacts name the same texts; the weights of one are still those it began with."""
    learnt, new = (
        languages(tmp_path),
        languages(tmp_path, steps=1, optimizer={"type": "sgd", "learning_rate": 1e-9}),
    )
    others = str(tmp_path / "others.csv")
    options = [f"privacy.reference={new}", "privacy.references=3"]
    audit = luban.audit(learnt, others, options, only=["privacy"])
    attacks = {row["attack"]: row for row in audit["audits"]["privacy"]["tables"]["attacks"]}
    assert list(attacks) == ["loss", "zlib", "reference", "likelihood_ratio"]
    for name, row in attacks.items():
        assert (row["members"], row["others"]) == (120, 120) or name == "likelihood_ratio"
        assert row["auc"]["low"] > (0.65 if name == "likelihood_ratio" else 0.8), name  # of three references
    assert attacks["reference"]["auc"]["value"] > 0.95
    assert {one["severity"] for one in audit["findings"]} == {"high"}
    audit = luban.audit(new, others, only=["privacy"])
    for row in audit["audits"]["privacy"]["tables"]["attacks"]:
        assert row["auc"]["low"] < 0.5 < row["auc"]["high"]
    assert audit["audits"]["privacy"]["findings"] == []


def test_a_column_of_the_name_that_the_other_model_asks_for_is_no_hindrance(
    speaker: Path, tmp_path: Path
) -> None:
    """Our texts stand in `said`, the reference reads `text`, and the rows have both."""
    generator = np.random.default_rng(5)
    said = [" ".join(generator.choice(WORDS, generator.integers(4, 8))) for _ in range(200)]
    rows = pl.DataFrame({"said": said, "text": [str(i) for i in range(200)]})
    rows.write_csv(tmp_path / "rows.csv")
    recipe = {
        "data": {
            "train": str(tmp_path / "rows.csv"), "split": {"validation": 0.0, "test": 0.4},
            "inputs": {"said": {"type": "text", "tokens": "char", "min_count": 1, "end": True}},
        },
        "model": {"type": "llama", "layers": 1, "hidden_size": 32, "heads": 2, "max_positions": 64},
        "objective": "causal_lm",
        "train": {"steps": 2, "batch_size": 16, "device": "cpu", "precision": "fp32", "threads": 1, "keep": "last"},
    }  # fmt: skip
    luban.train(recipe, output=tmp_path / "model")
    options = [f"privacy.reference={speaker / 'model'}"]
    audit = luban.audit(tmp_path / "model", str(tmp_path / "rows.csv"), options, only=["privacy"])
    attacks = {row["attack"]: row for row in audit["audits"]["privacy"]["tables"]["attacks"]}
    assert attacks["reference"]["members"] == attacks["loss"]["members"]


def test_a_reference_that_is_no_language_model_is_said(speaker: Path, tmp_path: Path) -> None:
    trained(tmp_path, people(300))
    options = [f"privacy.reference={tmp_path / 'model'}"]
    others = pl.DataFrame({"text": [f"the code of nobody is {i:04}" for i in range(200)]})
    others.write_csv(tmp_path / "others.csv")
    with pytest.raises(DataError, match=r"privacy\.reference names '.*', which is no language model"):
        luban.audit(speaker / "model", str(tmp_path / "others.csv"), options, only=["privacy"])


def test_of_a_conversation_the_answers_are_what_is_compressed() -> None:
    turns = [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)
    ]
    assert _answers(json.dumps(turns)) == "b\nd"
    assert _answers("no conversation") == ""


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
