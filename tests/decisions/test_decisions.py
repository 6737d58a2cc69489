"""What is fitted on validation rows: right on cases whose answer is known, kept in the artefact, used by every prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import luban
from audit_cases import people, trained
from luban.data.processors.binary import Binary
from luban.data.processors.category import Category
from luban.data.processors.number import Number
from luban.decisions.conformal import Conformal, conformal_quantile
from luban.decisions.temperature import Temperature
from luban.decisions.thresholds import Thresholds
from luban.errors import DataError, ParityError, RecipeError

NONE = pl.DataFrame()


def category(n: int) -> Category:
    processor = Category()
    processor.restore({"words": [f"c{i}" for i in range(n)]})
    return processor


def drawn(n: int, classes: int, seed: int, scale: float = 1.0) -> tuple[Any, Any]:
    """Logits, and classes drawn by exactly their softmax; then the logits are stretched."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (shares.cumsum(1) > generator.random((n, 1))).argmax(1)
    return (logits * scale).astype(np.float32), truth


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_stretch(scale: float) -> None:
    logits, truth = drawn(20_000, 4, 0, scale)
    one = Temperature()
    one.fit(category(4), logits, truth, NONE)
    assert one._temperature == pytest.approx(scale, rel=0.04)
    assert one.outputs(logits, NONE).argmax(1).tolist() == logits.argmax(1).tolist()


def test_the_temperature_of_a_binary_target() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 1)) * 2
    truth = (generator.random(20_000) < 1 / (1 + np.exp(-logits[:, 0]))).astype(int)
    binary = Binary()
    binary.restore({"words": ["no", "yes"]})
    one = Temperature()
    one.fit(binary, logits * 2.5, truth, NONE)
    assert one._temperature == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize(("level", "rank"), [(0.9, 18), (0.5, 10), (0.95, 19)])
def test_the_quantile_is_the_rank_that_the_proof_needs(level: float, rank: int) -> None:
    assert conformal_quantile(np.arange(1, 20), level) == rank  # ceil((19 + 1) · level)
    assert conformal_quantile(np.arange(1, 10), 0.95) == np.inf


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_sets_hold_the_truth_as_often_as_they_promise(method: Any, level: float) -> None:
    processor, held = category(5), []
    for seed in range(20):
        logits, truth = drawn(2400, 5, seed)
        one = Conformal(level=level, method=method)
        one.fit(processor, logits[:400], truth[:400], NONE)
        held.append(one.covers(processor, logits[400:], truth[400:]).mean())
    assert np.mean(held) >= level - 0.006
    if method == "lac":  # aps takes whole classes and so may hold more
        assert np.mean(held) <= level + 0.012


def test_intervals_hold_the_number_as_often_as_they_promise() -> None:
    processor, held = Number(), []
    processor.restore({"center": 50.0, "scale": 10.0, "fill": 0.0, "indicator": False})
    for seed in range(20):
        generator = np.random.default_rng(seed)
        output = generator.normal(size=(1300, 1)).astype(np.float32)
        truth = processor.scores(output) + generator.standard_t(3, size=1300) * 5
        one = Conformal(level=0.9)
        one.fit(processor, output[:300], truth[:300], NONE)
        held.append(one.covers(processor, output[300:], truth[300:]).mean())
    assert np.mean(held) == pytest.approx(0.9, abs=0.012)
    (first, *_) = one.extend(processor, output)
    low, high = first["interval"]
    assert (low + high) / 2 == pytest.approx(float(processor.scores(output)[0]))


def test_too_few_rows_for_a_level_are_refused() -> None:
    logits, truth = drawn(15, 3, 0)
    one = Conformal(level=0.95)
    with pytest.raises(RecipeError, match="needs 19 validation rows, and there are 15"):
        one.fit(category(3), logits, truth, NONE)


def groups(n: int = 4000) -> tuple[Any, Any, pl.DataFrame]:
    generator = np.random.default_rng(0)
    sex = generator.choice(["f", "m"], n)
    logits = generator.normal(size=n) * 2 + np.where(sex == "m", 0.7, -0.7)
    truth = (generator.random(n) < 1 / (1 + np.exp(-logits))).astype(int)
    return logits[:, None].astype(np.float32), truth, pl.DataFrame({"sex": sex})


@pytest.mark.parametrize("constraint", ["demographic_parity", "equal_opportunity"])
@pytest.mark.parametrize("most", [0.0, 0.1])
def test_thresholds_bring_groups_as_near_as_was_asked(constraint: Any, most: float) -> None:
    logits, truth, rows = groups()
    binary = Binary()
    binary.restore({"words": ["no", "yes"]})
    one = Thresholds(by="sex", constraint=constraint, max_difference=most)
    one.fit(binary, logits, truth, rows)
    before, after = logits[:, 0] >= 0, one.outputs(logits, rows)[:, 0] >= 0
    counted = np.full(len(truth), True) if constraint == "demographic_parity" else truth == 1

    def gap(said: Any) -> float:
        own = [said[counted & (rows["sex"] == word).to_numpy()].mean() for word in "fm"]
        return float(abs(own[0] - own[1]))

    assert gap(before) > 0.2 if constraint == "demographic_parity" else gap(before) > 0.1
    assert gap(after) <= most + 0.005
    assert (after == truth).mean() > (before == truth).mean() - 0.06
    other = one.outputs(logits[:3], pl.DataFrame({"sex": ["x", None, "x"]}))
    assert other.tolist() == logits[:3].tolist()  # groups that were not seen


# --- from recipe to prediction ---

DECIDE = ["temperature", {"type": "thresholds", "by": "group"}, {"type": "conformal", "level": 0.8}]


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decided")
    trained(folder, people(1200), decide=DECIDE)
    return folder


def test_the_artefact_keeps_its_decisions_and_replays_them(decided: Path) -> None:
    predictor = luban.load(decided / "model")  # which replays the sample
    assert [one.type for one in predictor.decisions] == ["temperature", "thresholds", "conformal"]
    sample = [json.loads(line) for line in (decided / "model" / "sample.jsonl").read_text().splitlines()]
    assert {"group", "skill"} <= set(sample[0]["row"])
    assert set(sample[0]["prediction"]["label.set"]) <= {"no", "yes"}


def test_a_decision_that_was_changed_is_found_out(decided: Path, tmp_path: Path) -> None:
    shutil.copytree(decided / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["decide"][0]["state"]["temperature"] *= 2
    path.write_text(json.dumps(config))
    with pytest.raises(ParityError, match="does not predict"):
        luban.load(tmp_path / "model")


def test_a_row_without_its_group_is_refused_and_says_why(decided: Path) -> None:
    row = {"skill": 0.1, "luck": 0.2, "town": "north"}
    predictor = luban.load(decided / "model")
    assert "label.set" in predictor.predict([{**row, "group": "a"}])[0]
    with pytest.raises(DataError, match="no column 'group', by whose values 'label' is decided"):
        predictor.predict([row])


def test_sets_cover_the_test_rows(decided: Path) -> None:
    audit = luban.audit(decided / "model", str(decided / "rows.csv"), only=["calibration"])
    (row,) = audit["audits"]["calibration"]["tables"]["coverage"]
    assert row["level"] == 0.8
    assert row["high"] >= 0.8


@pytest.mark.parametrize(
    ("upon", "words"),
    [
        ({"decide": [{"type": "thresholds", "by": "town"}]}, "'town' is none of data.groups"),
        (
            {"decide": [{"type": "thresholds", "by": "group", "target": "skill"}]},
            "'skill' is no target that it fits",
        ),
        ({"decide": ["temperature"], "data": {"split": {"validation": 0.0, "test": 0.2}}}, "there are none"),
        (
            {"decide": ["temperature"], "data": {"split": {"validation": 0.4, "test": 0.0}}},
            r"there are no test rows; give data\.test or a share in data\.split\.test",
        ),
        (
            {"decide": ["temperature"], "data": {"split": {"type": "folds", "folds": 3}}},
            "a fold is both; take another data.split",
        ),
        (
            {"decide": ["conformal", "temperature"]},
            "temperature stands after conformal.*write conformal last",
        ),
    ],
)
def test_what_cannot_be_decided_is_refused_before_training(
    upon: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        trained(tmp_path, people(300), upon.pop("data", None), **upon)


def test_a_number_is_predicted_with_its_interval(tmp_path: Path) -> None:
    rows = people(800).with_columns((100 * pl.col("skill") + 7).alias("price"))
    result = trained(tmp_path, rows, {"targets": {"price": "number"}}, decide=["conformal"])
    assert "price.mae" in result["metrics"]
    (one,) = luban.load(tmp_path / "model").predict([{"skill": 0.5, "luck": 0.0, "town": "north"}])
    low, high = one["price.interval"]
    assert low < one["price"] < high


def test_a_rate_that_a_group_cannot_have_is_not_taken_for_another() -> None:
    """Of a group with one logit all rows are selected, or none: with no difference allowed, nobody is."""
    generator = np.random.default_rng(0)
    logits = np.concatenate([generator.normal(size=400), np.full(200, -1.0)])[:, None].astype(np.float32)
    truth = (np.arange(600) < 400) & (logits[:, 0] > 0.4)
    rows = pl.DataFrame({"sex": ["f"] * 400 + ["m"] * 200})
    binary = Binary()
    binary.restore({"words": ["no", "yes"]})
    one = Thresholds(by="sex")
    sentence = one.fit(binary, logits, truth.astype(int), rows)
    said = one.outputs(logits, rows)[:, 0] >= 0
    reached = abs(said[:400].mean() - said[400:].mean())
    assert reached <= 0.5 / 200  # half a row of the smaller group
    assert sentence.endswith(f"where groups differ by {reached:.3f}")


def test_a_rate_between_those_of_the_grid_is_found() -> None:
    """Both groups can select a third, and a third is no multiple of 1/400."""
    logits = np.repeat([0.0, 1.0, 2.0], 1000)
    logits = np.concatenate([logits, logits + 0.3])[:, None].astype(np.float32)
    truth = np.tile(np.repeat([0, 0, 1], 1000), 2)
    rows = pl.DataFrame({"sex": ["f"] * 3000 + ["m"] * 3000})
    binary = Binary()
    binary.restore({"words": ["no", "yes"]})
    one = Thresholds(by="sex")
    one.fit(binary, logits, truth, rows)
    assert ((one.outputs(logits, rows)[:, 0] >= 0) == truth).all()


def test_decisions_are_fitted_on_what_they_need_and_not_on_more_rows_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luban.verbs import endings

    seen: list[tuple[list[str], int]] = []
    fit = Thresholds.fit

    def watched(self: Any, processor: Any, output: Any, truth: Any, rows: pl.DataFrame) -> str:
        seen.append((rows.columns, len(rows)))
        assert len(output) == len(truth) == len(rows)
        return fit(self, processor, output, truth, rows)

    monkeypatch.setattr(Thresholds, "fit", watched)
    monkeypatch.setattr(endings, "_DECIDING", 100)
    trained(tmp_path, people(1200), decide=[{"type": "thresholds", "by": "group"}])
    ((columns, n),) = seen
    assert {"group"} <= {*columns}
    assert not {"skill", "luck", "town"} & {*columns}
    assert 60 < n < 140  # of 240 validation rows
