"""Faults planted in the data are found by the audits of data, from recipe to finding; sound data is left in peace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import luban
from audit_cases import case_of, people, trained
from luban.artefact import Artefact
from luban.auditing._run import figures_of
from luban.auditing._small import Features, auc, out_of_fold
from luban.auditing.columns import Columns
from luban.auditing.drift import _area, population_stability
from luban.auditing.duplicates import Duplicates
from luban.auditing.labels import Labels, informed, noise, noise_high, suspects
from luban.auditing.leakage import Leakage, alone
from luban.auditing.privacy import Privacy
from luban.gates import Gate, judge
from luban.origin import Origin
from luban.recipe import Section


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    trained(folder, people())
    return folder


def test_a_leaking_column_is_found_from_recipe_to_finding(tmp_path: Path) -> None:
    rows = people(1000)
    code = pl.select(
        pl.when(rows["label"] == "yes").then(pl.lit("refund")).otherwise(pl.lit("none"))
    ).to_series()
    rows = rows.with_columns(code.alias("action"))
    inputs = {"skill": "number", "luck": "number", "action": "category"}
    result = trained(tmp_path, rows, {"inputs": inputs}, audits=["leakage"], gates=["no high"])
    assert not result["passed"]
    audit = luban.audit(tmp_path / "model", str(tmp_path / "rows.csv"), only=["leakage"])
    (finding,) = audit["findings"]
    assert (finding["severity"], finding["where"]) == ("high", "action")
    assert finding["figures"]["strength"] == 1.0


def test_nothing_leaks_in_sound_data(sound: Path) -> None:
    result = Leakage().run(case_of(sound / "model", people(seed=1)))
    assert not result.findings
    strengths = {row["column"]: row["strength"] for row in result.tables["columns"]}
    assert 0.4 < strengths["skill"] < 0.9
    assert strengths["town"] < 0.2


def test_the_target_under_another_name_and_a_number_of_rows_are_told(sound: Path) -> None:
    rows = people(400, seed=2)
    copied = rows.with_columns(rows["label"].alias("town"))
    assert any(
        "is 'label' itself" in one.sentence
        for one in Leakage().run(case_of(sound / "model", copied)).findings
    )
    numbered = rows.with_columns(pl.Series("town", [f"id-{i}" for i in range(len(rows))]))
    (finding,) = Leakage().run(case_of(sound / "model", numbered)).findings
    assert (finding.severity, finding.where) == ("medium", "town")


def test_a_column_alone_explains_what_it_explains() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(4, size=4000)
    half = np.where(generator.random(4000) < 0.5, codes, generator.integers(4, size=4000))
    assert alone(codes, codes % 2, False) == (1.0, pytest.approx(0.998, abs=0.001))
    assert alone(codes, half, False)[0] == pytest.approx(0.5, abs=0.04)
    strength, low = alone(codes, codes + generator.normal(size=4000), True)
    assert strength == pytest.approx(1.25 / 2.25, abs=0.04)
    assert strength - 0.04 < low < strength - 0.01
    assert alone(codes, generator.integers(2, size=4000), False)[0] < 0.1


def test_flipped_labels_are_found(sound: Path) -> None:
    rows = people(3000, seed=3)
    rows = rows.filter(
        (pl.col("skill") + 0.5 * pl.col("luck")).abs() > 0.6
    )  # of the others nobody could tell
    flipped = np.random.default_rng(4).random(len(rows)) < 0.08
    other = pl.select(pl.when(rows["label"] == "yes").then(pl.lit("no")).otherwise(pl.lit("yes"))).to_series()
    rows = rows.with_columns(
        pl.select(pl.when(pl.Series(flipped)).then(other).otherwise(rows["label"])).to_series().alias("label")
    )
    for options in ({}, {"predictions": "own"}):
        result = Labels.model_validate({**options, "shown": 2000}).run(case_of(sound / "model", rows))
        found = np.array([row["row"] for row in result.tables["label"]])
        assert flipped[found].sum() >= 0.8 * flipped.sum()
        assert flipped[found].mean() >= 0.6
        assert result.findings[0].severity in ("medium", "high")


def test_a_weak_opinion_names_difficult_rows_and_raises_no_alarm() -> None:
    """All labels are right, and the opinion is as sure as it should be: a tenth of the rows contradict it none the less."""
    generator = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(-2 * generator.normal(size=4000)))
    labels = (generator.random(4000) < chance).astype(np.int64)
    opinion = np.stack([1 - chance, chance], 1)
    assert len(suspects(labels, opinion)) > 0.09 * 4000  # high, if severity went by that
    wrong, low, high = noise(labels, opinion)
    assert wrong == low == 0
    assert high < 0.03
    flipped = generator.random(4000) < 0.15
    for power in (0.5, 1, 2):  # how sure the opinion takes itself to be is its own affair
        own = opinion**power / (opinion**power).sum(1, keepdims=True)
        wrong, low, high = noise(np.where(flipped, 1 - labels, labels), own)
        assert low < flipped.mean() < high
        assert 0.12 < wrong < 0.19


def test_an_opinion_on_a_rare_class_is_a_witness_though_it_never_names_it() -> None:
    """It knows the probability of each row, and is right no more often than who always says no."""
    generator = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(4.2 - 2 * generator.normal(size=2000)))
    labels = (generator.random(2000) < chance).astype(np.int64)
    opinion = np.stack([1 - chance, chance], 1)
    right, commonest = (opinion.argmax(1) == labels).mean(), (labels == 0).mean()
    assert right < commonest + 0.015
    assert informed(labels, opinion)
    assert noise(labels, opinion) == pytest.approx((0.0, 0.0, 0.0), abs=0.01)
    flipped = generator.random(2000) < 0.1
    wrong = np.where(flipped, 1 - labels, labels)
    assert informed(wrong, opinion)
    assert noise(wrong, opinion)[0] == pytest.approx(flipped.mean(), abs=0.03)
    assert not informed(generator.permutation(labels), opinion)


def test_labels_of_a_rare_class_are_measured(sound: Path) -> None:
    rows = people(2000, seed=5)
    chance = 1 / (1 + np.exp(4.2 - 2 * rows["skill"].to_numpy()))
    drawn = np.random.default_rng(6).random(len(rows)) < chance
    rows = rows.with_columns(pl.Series("label", np.where(drawn, "yes", "no")))
    figures = Labels().run(case_of(sound / "model", rows)).figures
    assert figures["label.noise"] == figures["noise"] == 0.0
    assert figures["label.opinion_accuracy"] < (~drawn).mean() + 0.01  # type: ignore[operator]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("strength", "narrow"), [(0.3, 1.0), (1, 0.25), (3, 0.1), (8, 0.06)])
@pytest.mark.parametrize("learnt", [False, True])
def test_the_upper_bound_of_wrong_labels_holds(
    strength: float, narrow: float, share: float, learnt: bool
) -> None:
    """In 95 % of repetitions, of an opinion that knows the law of the rows, or one that has learnt how often labels are wrong, too,
    and so doubts all of them: what its own doubt explains then says nothing."""
    generator = np.random.default_rng([int(10 * strength), int(100 * share), learnt])
    bounds = []
    for _ in range(200):
        chance = 1 / (1 + np.exp(-strength * generator.normal(size=1000)))
        wrong = generator.random(1000) < share
        labels = ((generator.random(1000) < chance) ^ wrong).astype(np.int64)
        said = share + (1 - 2 * share) * chance if learnt else chance
        bounds.append(noise_high(labels, np.stack([1 - said, said], 1)))
    assert np.mean(np.array(bounds) >= share) >= 0.95
    assert np.median(bounds) < share + narrow


@pytest.mark.parametrize("first", [0, 1])
def test_the_upper_bound_holds_whatever_the_order_of_the_file(first: int) -> None:
    """Which rows an opinion of few different values is surest of is no matter of where they stand, as in a file sorted by its labels."""
    generator = np.random.default_rng(first)
    covered = 0
    for _ in range(100):
        chance = np.where(generator.random(1000) < 0.9, 0.97, 0.03)
        wrong = generator.random(1000) < 0.1
        labels = ((generator.random(1000) < chance) ^ wrong).astype(np.int64)
        order = np.argsort(labels != first, kind="stable")
        covered += noise_high(labels[order], np.stack([1 - chance, chance], 1)[order]) >= 0.1
    assert covered >= 95


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("apart", [0.7, 3.0])
def test_the_upper_bound_holds_for_small_models_that_learnt_from_the_wrong_labels(
    apart: float, share: float
) -> None:
    generator = np.random.default_rng([int(10 * apart), int(100 * share)])
    covered = 0
    for _ in range(40):
        truth = generator.integers(3, size=400)
        places = (generator.normal(size=(400, 4)) + apart * np.eye(4)[truth]).astype(np.float32)
        wrong = generator.random(400) < share
        labels = np.where(wrong, (truth + generator.integers(1, 3, 400)) % 3, truth)
        seen = Features(places, np.zeros(4, np.int64), None, True, np.ones(400, bool))
        covered += noise_high(labels, out_of_fold(seen, labels)) >= share
    assert covered >= 38


@pytest.mark.parametrize(("classes", "seen"), [(50, 1), (100, 5), (100, 100)])
def test_an_opinion_knows_nothing_of_rows_for_leaving_out_classes_that_they_lack(
    classes: int, seen: int
) -> None:
    """The inputs tell nothing, and the model knows more classes than occur."""
    for seed in range(5):
        generator = np.random.default_rng(seed)
        labels = classes - 1 - generator.integers(seen, size=300)
        features = Features(
            generator.normal(size=(300, 3)).astype(np.float32), np.zeros(3, np.int64), None, True, np.ones(300, bool)
        )  # fmt: skip
        assert not informed(labels, out_of_fold(features, labels))
        assert not informed(labels, np.tile(np.bincount(labels, minlength=classes) / 300, (300, 1)))


def test_copies_of_rows_are_counted(sound: Path) -> None:
    """A second opinion has seen the label of a row whose copy it learnt from, so that no bound holds."""
    rows = people(300, seed=3)
    for frame, told in ((rows, False), (pl.concat([rows, rows]), True)):
        notes = Labels().run(case_of(sound / "model", frame)).notes
        assert any("300 of 600 rows have the inputs of an earlier one" in one for one in notes) is told
        assert any("the inputs of an earlier one" in one for one in notes) is told


def test_a_gate_on_what_cannot_be_ruled_out_is_not_met_by_a_weak_opinion(sound: Path) -> None:
    rows = people(1200, seed=5)
    chance = 1 / (1 + np.exp(-rows["skill"].to_numpy()))
    drawn = np.random.default_rng(6).random(len(rows)) < chance
    rows = rows.with_columns(pl.Series("label", np.where(drawn, "yes", "no")))
    result = Labels(predictions="own").run(case_of(sound / "model", rows))
    assert result.figures["noise"] == 0
    most = result.figures["label.noise_high"]
    assert most == result.figures["noise_high"]
    assert most is not None
    assert 0.1 < most < 0.4
    (finding,) = result.findings
    assert f"wrong: at most {most:.1%}, at 95 %" in finding.sentence
    assert finding.figures["noise_high"] == most
    gates = [Gate.parse("labels.noise <= 0.05"), Gate.parse("labels.noise_high <= 0.05")]
    assert [one.passed for one in judge(gates, figures_of([result]), [])] == [True, False]


@pytest.mark.parametrize("prior", [0.5, 0.3, 0.06])
def test_an_opinion_that_knows_nothing_accuses_nobody(sound: Path, prior: float) -> None:
    """The inputs tell nothing of the labels, all of which are right; trees are sure of what they learnt by heart none the less."""
    rows = people(1200, seed=5)
    drawn = np.random.default_rng(6).random(len(rows)) < prior
    rows = rows.with_columns(pl.Series("label", np.where(drawn, "yes", "no")))
    result = Labels().run(case_of(sound / "model", rows))
    for finding in result.findings:
        assert finding.severity == "low"
        assert "are probably wrong" not in finding.sentence
        assert "no surer of labels than how common each class is" in finding.sentence
        assert "worth a look" in finding.sentence
        assert "noise" not in finding.figures
    # Nor does a gate take the noise of such an opinion, high or 0, for a measurement.
    assert result.figures["noise"] is None
    assert result.figures["label.noise"] is None
    assert result.figures["noise_high"] is result.figures["label.noise_high"] is None
    names = ("noise", "label.noise", "noise_high", "label.noise_high")
    gates = [Gate.parse(f"labels.{name} <= 0.9") for name in names]
    for verdict in judge(gates, figures_of([result]), []):
        assert not verdict.passed
        assert "was not measured" in verdict.why


def test_a_gate_on_all_labels_waits_for_each_target(sound: Path, tmp_path: Path) -> None:
    """Of two targets one cannot be told: its noise is not measured, the other's is, and that of all is not."""
    rows = people(1200, seed=5)
    drawn = np.random.default_rng(6).random(len(rows)) < 0.06
    rows = rows.with_columns(pl.Series("luckless", np.where(drawn, "yes", "no")))
    trained(tmp_path, rows, {"targets": {"label": "binary", "luckless": "binary"}})
    result = Labels().run(case_of(tmp_path / "model", rows))
    assert result.figures["luckless.noise"] is result.figures["noise"] is None
    gates = [Gate.parse("labels.label.noise <= 0.05"), Gate.parse("labels.noise <= 0.05")]
    assert [one.passed for one in judge(gates, figures_of([result]), [])] == [True, False]
    told = [one.sentence for one in result.findings if one.where == "luckless"] + list(map(str, result.notes))
    assert any("cannot tell how many are wrong" in one for one in told)
    alone = Labels().run(case_of(sound / "model", rows))
    assert alone.figures["noise"] == alone.figures["label.noise"] == result.figures["label.noise"]


def test_one_suspect_is_one_row_and_unexplained_contradictions_alone_are_wrong_labels(sound: Path) -> None:
    rows = people(600, seed=7).filter((pl.col("skill") + 0.5 * pl.col("luck")).abs() > 1.2)
    far = int((rows["skill"] + 0.5 * rows["luck"]).to_numpy().argmax())
    labels = rows["label"].to_list()
    labels[far] = "no"
    rows = rows.with_columns(pl.Series("label", labels))
    result = Labels(predictions="own").run(case_of(sound / "model", rows))
    (finding,) = result.findings
    assert finding.severity == "low"
    assert finding.figures["suspects"] == 1
    assert finding.sentence.endswith(f"1 of {len(rows)} rows is worth a look")
    assert "contradicts 0.0" not in finding.sentence


def test_gaps_that_go_with_the_answer_are_no_proof_of_a_leak(sound: Path) -> None:
    rows = people(1000, seed=8)
    draw = np.random.default_rng(0).random(len(rows))
    for share, severity, words in (
        (0.45, "medium", "goes with the answer"),
        (0.9, "high", "tells the answer"),
    ):
        gap = draw < np.where(rows["label"] == "yes", share, 0.15)
        worse = rows.with_columns(pl.when(pl.Series(gap)).then(None).otherwise(pl.col("luck")).alias("luck"))
        (finding,) = [
            one for one in Columns().run(case_of(sound / "model", worse)).findings if "answer" in one.sentence
        ]
        assert finding.severity == severity
        assert words in finding.sentence


def test_suspects_come_the_worst_first() -> None:
    shares = np.array([[0.9, 0.1]] * 10 + [[0.1, 0.9]] * 10 + [[0.02, 0.98], [0.05, 0.95]])
    labels = np.array([0] * 10 + [1] * 10 + [0, 0])
    assert suspects(labels, shares).tolist() == [20, 21]


@pytest.mark.data
@pytest.mark.slow
def test_flipped_digits_are_found() -> None:
    """The claim: at least 80 % of 5 % flipped labels of mnist, at least half of what is named."""
    from luban import datasets

    with np.load(datasets.main_file("mnist")) as file:
        images, digits = file["image"], file["label"].astype(np.int64)
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(digits))[:4000]
    pixels, labels = images[chosen].reshape(4000, -1).astype(np.float32), digits[chosen].copy()
    flipped = generator.random(4000) < 0.05
    labels[flipped] = (labels[flipped] + generator.integers(1, 10, flipped.sum())) % 10
    nothing = np.zeros(pixels.shape[1], np.int64)
    opinion = out_of_fold(Features(pixels, nothing, None, True, np.ones(4000, bool)), labels)
    found = suspects(labels, opinion)
    assert flipped[found].sum() >= 0.8 * flipped.sum()
    assert flipped[found].mean() >= 0.5
    assert noise(labels, opinion)[0] == pytest.approx(flipped.mean(), abs=0.02)


def test_a_drifted_file_is_found_from_recipe_to_finding(sound: Path, tmp_path: Path) -> None:
    rows = people(800, seed=9)
    moved = rows.with_columns(pl.col("luck") + 1.5, pl.lit("north").alias("town"))
    moved.write_csv(tmp_path / "moved.csv")
    audit = luban.audit(sound / "model", str(tmp_path / "moved.csv"), only=["drift"])
    assert {one["where"] for one in audit["findings"]} >= {"luck", "town", ""}
    assert audit["figures"]["drift.domain_auc"] > 0.8
    rows.write_csv(tmp_path / "same.csv")
    audit = luban.audit(sound / "model", str(tmp_path / "same.csv"), only=["drift"])
    assert not audit["findings"]
    assert audit["figures"]["drift.domain_auc"] < 0.56
    against = luban.audit(
        sound / "model", str(tmp_path / "same.csv"), only=["drift"], against=str(tmp_path / "moved.csv")
    )
    assert {one["where"] for one in against["findings"]} >= {"luck", "town"}


def test_the_stability_index_is_the_symmetric_divergence() -> None:
    before, after = np.array([200, 800]), np.array([500, 500])
    assert population_stability(before, after) == pytest.approx(
        0.3 * np.log(0.5 / 0.2) - 0.3 * np.log(0.5 / 0.8), abs=2e-3
    )


def test_rows_that_the_model_knows_are_counted(sound: Path) -> None:
    training = pl.read_csv(sound / "rows.csv", infer_schema=False)
    fresh = people(200, seed=11).cast(pl.String)
    case = case_of(sound / "model", pl.concat([fresh, training.head(50)]))
    case.__dict__["training"] = type(case.sample)(training, np.arange(len(training)), len(training))
    result = Duplicates().run(case)
    assert result.figures["exact_share"] == pytest.approx(50 / 250)
    assert result.findings[0].severity == "high"


def test_near_copies_of_training_texts_are_counted(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = [f"word{i}" for i in range(400)]
    texts = [" ".join(generator.choice(words, 30)) for _ in range(300)]
    rows = pl.DataFrame({"text": texts, "label": ["yes" if i % 2 else "no" for i in range(300)]})
    data = {"inputs": {"text": "text"}, "groups": []}
    trained(tmp_path, rows, data, train={"epochs": 1, "device": "cpu", "precision": "fp32", "threads": 1})
    case = case_of(tmp_path / "model", pl.DataFrame())
    copies = [f"{text} indeed" for text in texts[:20]]
    fresh = [" ".join(generator.choice(words, 30)) for _ in range(20)]
    rows = pl.DataFrame({"text": [*copies, *fresh], "label": ["yes"] * 40})
    case.sample = type(case.sample)(rows, np.arange(40), 40)
    case.__dict__["training"] = type(case.sample)(pl.DataFrame({"text": texts}), np.arange(300), 300)
    result = Duplicates().run(case)
    assert result.figures["text.near_share"] == pytest.approx(0.5)
    assert [row["row"] for row in result.tables["text.near"]] == list(range(20))


def test_equal_inputs_of_different_labels_are_counted(sound: Path) -> None:
    rows = people(100, seed=12)
    other = pl.select(pl.when(rows["label"] == "yes").then(pl.lit("no")).otherwise(pl.lit("yes"))).to_series()
    both = pl.concat([rows, rows.head(10).with_columns(other.head(10).alias("label"))])
    assert Duplicates().run(case_of(sound / "model", both)).figures["label.contradictions"] == pytest.approx(
        20 / 110
    )


def test_faults_of_single_columns_are_told(sound: Path) -> None:
    rows = people(1000, seed=13)
    gone = (rows["label"] == "yes") & pl.Series(np.random.default_rng(0).random(1000) < 0.7)
    rows = rows.with_columns(
        pl.select(pl.when(gone).then(None).otherwise(rows["luck"])).to_series().alias("luck"),
        pl.lit("north").alias("town"),
        pl.select(pl.when(pl.Series(np.arange(1000) < 30)).then(900.0).otherwise(rows["skill"]))
        .to_series()
        .alias("skill"),
    )
    found = {(one.where, one.severity) for one in Columns().run(case_of(sound / "model", rows)).findings}
    assert ("luck", "high") in found  # its being empty tells the answer
    assert {("luck", "low"), ("town", "low"), ("skill", "low")} <= found
    assert not Columns().run(case_of(sound / "model", people(1000, seed=14))).findings


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([True, True, False]), np.array([2.0, 1.0, 1.0])) == pytest.approx(0.75)


def test_few_rows_leak_nothing_for_sure() -> None:
    generator = np.random.default_rng(0)
    drawn = [alone(generator.integers(3, size=6), generator.integers(2, size=6), False) for _ in range(300)]
    assert max(low for _, low in drawn) < 0.475  # from which on 0.95 is worth a word
    assert max(strength for strength, _ in drawn) == 1.0
    numbers = [alone(np.arange(6) // 2, generator.normal(size=6), True)[1] for _ in range(100)]
    assert max(numbers) == 0.0


def test_a_short_text_and_the_path_of_a_picture_are_no_numbers_of_rows(sound: Path) -> None:
    case = case_of(
        sound / "model",
        people(100, seed=15).with_columns(pl.Series("town", [chr(0x4E00 + i) * 3 for i in range(100)])),
    )
    pipeline = case.predictor.pipeline
    assert [one.where for one in Leakage().run(case).findings] == ["town"]
    case.scored  # noqa: B018
    for kind in ("text", "image"):
        pipeline.inputs["town"] = Section("processors").parse(kind)  # type: ignore[assignment]
        result = Leakage().run(case)
        assert not result.findings
        assert ("town" in {row["column"] for row in result.tables["columns"]}) == (kind == "text")


def test_a_sorted_file_shows_all_its_classes(sound: Path) -> None:
    case = case_of(sound / "model", people(600, seed=16).sort("label"))
    few = case.scored.take(80)
    assert 0.2 < few.truth["label"].mean() < 0.8
    assert len(few.rows) == len(few.places) == len(few.scores["label"]) == 80
    assert few.rows["skill"].to_list() == case.rows[few.places.tolist()]["skill"].to_list()
    result = Labels(rows=80).run(case)
    assert result.figures["label.opinion_accuracy"] < 1  # of one class alone, any opinion is right
    assert result.rows == 80


def test_all_training_rows_are_known_though_few_are_drawn(sound: Path) -> None:
    loaded = Artefact.load(sound / "model")
    origin = Origin.find(loaded.recipe, loaded.lineage, loaded.pipeline)
    assert isinstance(origin, Origin)
    copied = pl.concat(origin.split("train")).head(300)
    rows = pl.concat([copied, people(100, seed=17).cast(pl.String)])
    case = case_of(sound / "model", rows, recipe=loaded.recipe, lineage=loaded.lineage, limit=50)
    assert case.training is not None
    assert len(case.training.rows) == 50
    assert Duplicates().run(case).figures["exact_share"] == 0.75
    assert len(Privacy()._others(case)) == 100


def test_few_rows_do_not_tell_files_apart() -> None:
    generator = np.random.default_rng(0)
    found = [_area(generator.normal(size=20), generator.normal(size=20)) for _ in range(60)]
    assert max(one.value or 0.0 for one in found) > 0.65  # by chance
    assert max(one.low or 0.0 for one in found) < 0.65
    far = _area(generator.normal(3, 1, 200), generator.normal(size=200))
    assert (far.low or 0.0) > 0.95
