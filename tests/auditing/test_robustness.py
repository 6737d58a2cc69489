"""Changes do what they say, attacks do what the gradient says, and a brittle model is found brittle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from audit_cases import case_of, people, trained
from luban.auditing import robustness
from luban.auditing._attack import attacked, kinds_of
from luban.auditing._base import AuditResult
from luban.auditing._perturbations import UNSEEN, perturbations
from luban.auditing.robustness import Robustness
from luban.data.processors.image import Image
from luban.errors import InputError, RecipeError
from luban.recipe import Section
from luban.sentences import translate


def processor(kind: str) -> object:
    return Section("processors").parse(kind)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    trained(folder, people())
    return folder


TEXTS = pl.DataFrame({"t": ["It is GOOD, really good!!", "物流很快，价格也好。", None]})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("case", ["iT IS good, REALLY GOOD!!", "物流很快，价格也好。", None]),
        ("width", ["Ｉｔ ｉｓ ＧＯＯＤ， ｒｅａｌｌｙ ｇｏｏｄ！！", "物流很快,价格也好。", None]),
        ("punctuation", ["It is GOOD, really good", "物流很快，价格也好", None]),
        ("whitespace", ["  It  is  GOOD,  really  good!!\n", "  物流很快，价格也好。\n", None]),
    ],
)
def test_changes_of_texts(name: str, expected: list[str | None]) -> None:
    known = {one.name: one for one in perturbations({"t": processor("text")}, 0.2)}  # type: ignore[dict-item]
    assert known[name].change(TEXTS, np.random.default_rng(0))["t"].to_list() == expected
    assert known[name].harmless


def test_other_script_is_the_same_word_in_other_characters() -> None:
    pytest.importorskip("opencc")
    known = {one.name: one for one in perturbations({"t": processor("text")}, 0.2)}  # type: ignore[dict-item]
    rows = pl.DataFrame({"t": ["价格很好", "價格很好", "fine"]})
    assert known["script"].change(rows, np.random.default_rng(0))["t"].to_list() == [
        "價格很好",
        "价格很好",
        "fine",
    ]


def test_changes_of_tables_hit_the_share_of_cells() -> None:
    kinds = {"n": processor("number"), "c": processor("category")}
    known = {one.name: one for one in perturbations(kinds, 0.25)}  # type: ignore[arg-type]
    rows = pl.DataFrame({"n": np.arange(4000) / 4000, "c": ["x"] * 4000})
    draw = np.random.default_rng(0)
    assert (known["unseen_category"].change(rows, draw)["c"] == UNSEEN).mean() == pytest.approx(
        0.25, abs=0.03
    )
    gone = known["missing"].change(rows, draw)
    assert gone.null_count().row(0) == pytest.approx((1000, 1000), abs=100)
    far = known["out_of_range"].change(rows, draw)["n"]
    assert ((far > 5) | (far < -5)).mean() == pytest.approx(0.25, abs=0.03)
    noise = known["number_noise"].change(rows, draw)["n"] - rows["n"]
    assert noise.std() == pytest.approx(0.25 / 4 * rows["n"].std(), rel=0.1)


def test_changes_of_pictures() -> None:
    image = Image()
    pixels = np.zeros((4, 6, 6), np.uint8)
    pixels[:, 2, 2] = 90
    rows = pl.DataFrame({"p": pl.Series(pixels, dtype=pl.Array(pl.UInt8, (6, 6)))})
    image.update(rows["p"])
    image.finish()
    known = {one.name: one for one in perturbations({"p": image}, 0.2)}
    draw = np.random.default_rng(0)
    blurred = known["blur"].change(rows, draw)["p"].to_numpy()[0, ..., 0]
    assert blurred[1:4, 1:4].tolist() == [[10] * 3] * 3
    assert blurred.sum() == 90
    assert known["dark"].change(rows, draw)["p"].to_numpy().max() == 72
    assert (
        known["much_noise"].change(rows, draw)["p"].to_numpy().std()
        > known["noise"].change(rows, draw)["p"].to_numpy().std()
    )


def test_fgsm_moves_each_number_by_the_sign_of_its_gradient(table: Path) -> None:
    case = case_of(table / "model", people(64, seed=1))
    whole, predictor = case.scored, case.predictor
    rows = predictor.clean(whole.rows)
    assert kinds_of(predictor) == ["numbers"]
    found = attacked(predictor, rows, whole.truth, "numbers", 0.3, 1)["label"]
    batch = predictor.batch(rows)
    names = ("skill.value", "luck.value")
    for name in names:
        batch[name].requires_grad_()  # type: ignore[union-attr]
    wanted = torch.from_numpy(whole.truth["label"])[:, None].float()
    torch.nn.functional.binary_cross_entropy_with_logits(
        predictor.model(batch)["label.logits"], wanted, reduction="sum"
    ).backward()
    moved = {name: (batch[name] + 0.3 * batch[name].grad.sign()).detach() for name in names}  # type: ignore[union-attr,operator]
    expected = predictor.model({**batch, **moved})["label.logits"].detach().numpy()
    assert found == pytest.approx(expected, abs=1e-5)


def test_pgd_does_no_less_harm_than_fgsm_and_both_more_than_noise(table: Path) -> None:
    result = Robustness(numbers=0.5, rows=400).run(case_of(table / "model", people(400, seed=2)))
    lost = {row["change"]: row["lost"] for row in result.tables["changes"]}
    assert lost["pgd_numbers"] >= lost["fgsm_numbers"] - 0.005 > 0.1
    assert lost["fgsm_numbers"] > lost["number_noise"] + 0.1
    assert any(one.where == "pgd_numbers" and one.severity == "medium" for one in result.findings)


@pytest.mark.parametrize("n", [1, 6])
def test_a_few_rows_that_are_lost_are_told_and_no_finding(table: Path, n: int) -> None:
    """All of them are: an interval of what is lost then has no width."""
    rows = people(400, seed=2)
    known = rows.filter((pl.col("skill").abs() > 1) & ((pl.col("skill") > 0) == (pl.col("label") == "yes")))
    result = Robustness(numbers=50.0, changes=["fgsm_numbers"]).run(case_of(table / "model", known.head(n)))
    assert result.tables["changes"][0]["lost_low"] > 0.5
    assert result.findings == []


def test_findings_say_what_was_measured_in_both_languages() -> None:
    result = AuditResult("robustness", rows=100)
    row = {"change": "typos", "target": "price", "measure": "mean absolute error", "before": 2.0, "after": 3.5, "lost": 0.75,
           "lost_low": 0.5, "lost_high": 1.0}  # fmt: skip
    Robustness()._tell(result, row, harmless=True, attack=False)
    attack = {**row, "change": "pgd_vectors", "measure": "accuracy", "before": 0.9, "after": 0.4}
    Robustness()._tell(result, attack, harmless=False, attack=True)
    one, two = (finding.sentence for finding in result.findings)
    assert one == "the mean absolute error of 'price' grows from 2 to 3.5 under a few typing errors"
    assert translate(one, "zh") == "有少量错别字时，“price”的平均绝对误差由 2 增至 3.5"
    assert translate(two, "zh") == "受到白盒攻击（pgd_vectors）时，“price”的准确率由 90.0 % 降至 40.0 %"


def test_a_change_that_is_unknown_is_refused(table: Path) -> None:
    with pytest.raises(InputError, match="'blur' is no change of these inputs; changes are number_noise"):
        Robustness(changes=["blur"]).run(case_of(table / "model", people(50, seed=3)))


def test_pictures_stay_pictures_under_attack(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(2, size=200)
    pixels = (generator.random((200, 6, 6)) * 120).astype(np.uint8)
    pixels[label == 1, :3] += 100
    np.savez(tmp_path / "rows.npz", photo=pixels, label=label)
    import luban

    recipe = {
        "data": {"train": str(tmp_path / "rows.npz"), "inputs": {"photo": "image"}, "targets": {"label": "category"}},
        "model": {"type": "mlp", "hidden": [8]},
        "train": {"epochs": 20, "device": "cpu", "precision": "fp32", "threads": 1},
    }  # fmt: skip
    luban.train(recipe, output=tmp_path / "model")
    rows = pl.DataFrame({"photo": pl.Series(pixels, dtype=pl.Array(pl.UInt8, (6, 6))), "label": label})
    case = case_of(tmp_path / "model", rows)
    seen: list[torch.Tensor] = []
    case.predictor.model.register_forward_pre_hook(
        lambda module, given: seen.append(given[0]["photo.pixels"].detach())
    )
    attacked(case.predictor, case.predictor.clean(rows), case.scored.truth, "pixels", 60.0, 4)
    assert min(float(one.min()) for one in seen) >= 0
    assert max(float(one.max()) for one in seen) <= 1
    result = Robustness(rows=200, pixels=60.0, changes=["dark", "fgsm_pixels"]).run(case)
    lost = {row["change"]: row["lost"] for row in result.tables["changes"]}
    assert lost["fgsm_pixels"] > 0.3


def test_case_breaks_a_model_that_reads_capitals(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    good, bad = ["Nice", "Great", "Fine"], ["nice", "great", "fine"]
    label = generator.integers(2, size=300)
    texts = [" ".join(generator.choice(good if one else bad, 4)) for one in label]
    rows = pl.DataFrame({"text": texts, "label": ["yes" if one else "no" for one in label]})
    inputs = {"text": {"type": "text", "tokens": "word", "lowercase": False, "min_count": 1}}
    train = {
        "epochs": 15,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "optimizer": {"type": "adamw", "learning_rate": 0.02},
    }
    trained(tmp_path, rows, {"inputs": inputs, "groups": []}, model={"type": "fasttext"}, train=train)
    result = Robustness(changes=["case", "whitespace"]).run(case_of(tmp_path / "model", rows))
    (finding,) = result.findings
    assert (finding.where, finding.severity) == ("case", "high")
    assert result.figures["harmless_lost"] == result.figures["case.lost"]


def test_a_word_is_that_of_the_processor_whatever_the_type_of_the_column() -> None:
    known = {one.name: one for one in perturbations({"c": processor("category")}, 0.2)}  # type: ignore[dict-item]
    rows = pl.DataFrame({"c": [3.0, 4.0] * 500})
    changed = known["unseen_category"].change(rows, np.random.default_rng(0))["c"]
    assert set(changed.unique()) == {"3", "4", UNSEEN}


def test_an_attack_that_does_not_fit_leaves_the_others(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise RecipeError("nothing says which rows the vectors belong to")

    monkeypatch.setattr(robustness, "attacked", refused)
    case = case_of(table / "model", people(60, seed=4))
    result = Robustness().run(case)
    assert {"number_noise", "missing"} <= {row["change"] for row in result.tables["changes"]}
    assert "fgsm_numbers is left out: nothing says which rows the vectors belong to" in result.notes
    with pytest.raises(RecipeError):
        Robustness(changes=["fgsm_numbers"]).run(case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN is on a GPU")
def test_a_recurrent_network_is_attacked_on_cuda(tmp_path: Path) -> None:
    from luban.predict import load

    rows = people(200).with_columns(pl.concat_str(["town", "label"], separator=" ").alias("note"))
    trained(tmp_path, rows, {"inputs": {"note": "text"}, "groups": []}, model={"type": "rnn"})
    case = case_of(tmp_path / "model", rows)
    case.predictor = load(tmp_path / "model", device="cuda")
    clean = case.predictor.clean(case.scored.rows)
    found = attacked(case.predictor, clean, case.scored.truth, "vectors", 0.5, 2)
    assert np.abs(found["label"] - case.scored.outputs["label"]).max() > 1e-4
