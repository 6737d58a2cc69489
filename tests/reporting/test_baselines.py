"""Baselines learn what they say they do, and differences are those of the metrics."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import luban
from audit_cases import people, trained
from luban.data.processors.image import Image
from luban.data.sampling import Sample, _alone
from luban.reporting import baselines, gather
from luban.reporting._quality import calibrated
from luban.reporting.baselines import is_cjk, longest_of, within, xz
from tiny_case import Luban


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tabular(artefact_of: Any) -> dict[str, Any]:
    return luban.report(artefact_of("table"), examples=0)


def test_the_constant_answer_is_the_commonest_class(tabular: dict[str, Any], artefact_of: Any) -> None:
    found = tabular["baselines"]["label"]
    constant, trees = found["each"]
    assert (constant["name"], trees["name"]) == ("constant", "trees")
    support = {
        name: own["support"] for name, own in tabular["measured"]["details"]["label"]["per_class"].items()
    }
    assert constant["metrics"]["accuracy"]["value"] in {n / found["rows"] for n in support.values()}
    assert found["rows"] == tabular["measured"]["rows"]
    assert found["train_rows"] == tabular["lineage"]["rows"]["train"] < found["of"], (
        "some were dropped by cleaning"
    )
    assert trees["metrics"]["accuracy"]["value"] > constant["metrics"]["accuracy"]["value"] + 0.1


def test_differences_are_those_of_the_metrics(tabular: dict[str, Any]) -> None:
    found = tabular["baselines"]["label"]
    for metric in ("accuracy", "log_loss", "f1_macro"):
        own = found["metrics"][metric]["value"]
        assert own == pytest.approx(tabular["measured"]["metrics"][f"label.{metric}"]["value"], abs=1e-6)
        for one in found["each"]:
            difference = one["differences"][metric]
            assert difference["value"] == pytest.approx(own - one["metrics"][metric]["value"], abs=1e-6)
            assert difference["low"] <= difference["value"] <= difference["high"]


def test_tfidf_is_scikit_learns(artefact_of: Any) -> None:
    folder = artefact_of("texts")
    found = luban.report(folder, examples=0)["baselines"]["label"]["each"][1]
    train, test = (rows_of(folder.parent / name) for name in ("reviews.jsonl", "reviews-test.jsonl"))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2)
    kept = luban.load(folder).clean(pl.DataFrame(train))["review"].to_list()
    assert len(kept) == len(train)
    # Validation rows are split off the training file: the report tells how many it learnt from.
    data = luban.report(folder, examples=0, limit=5000)
    assert found["name"] == "tfidf"
    assert data["baselines"]["label"]["of"] == data["lineage"]["rows"]["train"] < len(train)
    x = vectorizer.fit_transform([row["review"] for row in train])
    model = LogisticRegression(max_iter=200, C=5.0).fit(x, [row["label"] for row in train])
    accuracy = model.score(
        vectorizer.transform([row["review"] for row in test]), [row["label"] for row in test]
    )
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(accuracy, abs=0.05)  # a tenth more rows


def test_numbers_sets_and_pictures_have_baselines(artefact_of: Any) -> None:
    several = luban.report(artefact_of("several"), examples=0)
    price, tags = (several["baselines"][name]["each"] for name in ("price", "tags"))
    assert [one["name"] for one in price] == ["constant", "tfidf"]
    assert price[1]["metrics"]["r2"]["value"] > 0.8 > 0.1 > price[0]["metrics"]["r2"]["value"]
    assert tags[1]["metrics"]["f1_micro"]["value"] > 0.95
    pictures = luban.report(artefact_of("pictures"), examples=0)["baselines"]["side"]["each"]
    assert pictures[1]["name"] == "pixels"
    assert pictures[1]["metrics"]["accuracy"]["value"] > 0.9


def test_rows_are_sampled_and_their_number_is_said(artefact_of: Any) -> None:
    found = luban.report(artefact_of("table"), examples=0, limit=30)["baselines"]["label"]
    assert (found["rows"], found["train_rows"], found["of"] > 200) == (30, found["train_rows"], True)
    assert 100 < found["train_rows"] <= 120


def test_what_a_compressor_has_read_costs_it_little() -> None:
    draw = random.Random(0)
    letters = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(40)]
    assert xz(letters, letters)["bits_per_byte"] < 0.6
    unknown = xz(letters[:20], letters[20:])["bits_per_byte"]
    assert np.log2(26) * 0.95 < unknown < 6.5


def test_characters_are_told_from_words() -> None:
    assert is_cjk(["这本书很好看 ok"])
    assert is_cjk(["とても良い"])
    assert not is_cjk(["a good book 好"])
    assert not is_cjk([])


def test_of_many_classes_only_the_constant_one_is_left(tmp_path: Path, luban: Luban) -> None:
    draw = random.Random(1)
    lines = ["x,y"] + [f"{draw.random():.4f},c{i % 120}" for i in range(1200)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "data: {train: rows.csv, inputs: {x: number}, targets: {y: category}}\nmodel: {type: mlp, size: tiny}\n"
        "train: {epochs: 1, batch_size: 256, device: cpu, precision: fp32}\n",
        encoding="utf-8",
    )
    assert luban("train", tmp_path / "r.yaml", "-o", tmp_path / "m").code == 0
    ran = luban("report", tmp_path / "m", "-o", tmp_path / "r.md", "--examples", "0", "--json")
    found = json.loads(ran.out)["baselines"]["y"]
    assert [one["name"] for one in found["each"]] == ["constant"]
    assert found["refused"] == {"absent": "many_classes", "values": {"n": 120}}
    assert "120 classes are too many" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_weights_count_in_baselines_and_in_differences(tmp_path: Path, luban: Luban) -> None:
    """Two of three rows say a, but those of b weigh eight times as much; nothing can be told from x."""
    draw = random.Random(2)
    lines = ["x,y,w"] + [f"{draw.random():.4f},{'b,8' if i % 3 == 0 else 'a,1'}" for i in range(300)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = (
        "data: {train: rows.csv, inputs: {x: number}, targets: {y: category}, weight: w,\n"
        "  split: {type: random, validation: 0.3, test: 0}}\n"
        "model: {type: mlp, size: tiny}\n"
        "train: {epochs: 1, batch_size: 64, device: cpu, precision: fp32, keep: %s}\n"
    )
    for keep in ("best", "last"):
        (tmp_path / f"{keep}.yaml").write_text(recipe % keep, encoding="utf-8")
        assert luban("train", tmp_path / f"{keep}.yaml", "-o", tmp_path / keep).code == 0
        ran = luban("report", tmp_path / keep, "-o", tmp_path / "r.html", "--examples", "0", "--json")
        page, data = (tmp_path / "r.html").read_text(encoding="utf-8"), json.loads(ran.out)
        assert data["measured"]["on"] == "validation"
        assert ("The weights were chosen by these validation rows" in page) == (keep == "best")
        assert ("where the weights were kept" in page) == (keep == "best")
        for one in data["baselines"]["y"]["each"]:
            assert one["metrics"]["accuracy"]["value"] > 0.7, "b, which weighs the most, is the answer"
    ran = luban("train", tmp_path / "best.yaml", "train.seed=7", "train.epochs=8", "-o", tmp_path / "other")
    assert ran.code == 0, ran.err
    places = [str(tmp_path / name) for name in ("best", "other")]
    result = json.loads(luban("compare", *places, str(tmp_path / "rows.csv"), "--json").out)
    assert result["weighted"]
    own = []
    for place in places:
        ran = luban("evaluate", place, tmp_path / "rows.csv", "--json")
        own.append(json.loads(ran.out)["metrics"]["y.log_loss"]["value"])
    difference = result["differences"]["y"]["differences"]["log_loss"]["value"]
    assert difference == pytest.approx(own[1] - own[0], abs=1e-6)
    assert abs(difference) > 1e-4


def test_opposite_errors_do_not_make_a_model_calibrated() -> None:
    def bins(*gaps: float) -> list[dict[str, float]]:
        return [{"weight": 50.0, "confidence": 0.7 + gap, "accuracy": 0.7} for gap in gaps]

    assert calibrated(bins(0.01, -0.02)) == ("calibrated", pytest.approx(0.015))
    assert calibrated(bins(0.2, -0.2)) == ("unevenly_confident", pytest.approx(0.2))
    assert calibrated(bins(0.2, 0.0)) == ("overconfident", pytest.approx(0.1))
    assert calibrated(bins(-0.2, -0.1)) == ("underconfident", pytest.approx(0.15))


def test_what_is_decided_for_the_model_is_decided_for_the_baselines(tmp_path: Path) -> None:
    """Half as many of group b are positive; under thresholds by group, model and baseline select both alike."""
    rows = people(1500).with_columns(skill=pl.col("skill") - 1.2 * (pl.col("group") == "b"))
    rows = rows.with_columns(
        label=pl.when(pl.col("skill") + 0.5 * pl.col("luck") > 0).then(pl.lit("yes")).otherwise(pl.lit("no"))
    )
    decide = ["temperature", {"type": "thresholds", "by": "group", "max_difference": 0.02}]
    told = {"inputs": {"skill": "number", "luck": "number", "group": "category"}}
    trained(tmp_path, rows, told, decide=decide)
    taken: list[Any] = []
    measure = baselines.measure

    def watching(task: Any, truth: Any, scores: Any, *args: Any, **options: Any) -> Any:
        taken.append(scores)
        return measure(task, truth, scores, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "measure", watching)
        data = luban.report(tmp_path / "model", output=tmp_path / "r.md", examples=0)
    found = data["baselines"]["label"]
    validation = data["lineage"]["rows"]["validation"]
    assert found["decided"] == {"steps": ["temperature", "thresholds"], "rows": validation}
    origin = gather.Origin.find(
        (tmp_path / "model" / "recipe.yaml").read_text(encoding="utf-8"),
        json.loads((tmp_path / "model" / "lineage.json").read_text(encoding="utf-8")),
        luban.load(tmp_path / "model").pipeline,
    )
    assert isinstance(origin, gather.Origin)
    groups = pl.concat(origin.split("test"))["group"].to_numpy()
    model, _, trees = ((scores >= 0.5) for scores in taken)
    for said in (model, trees):
        rates = [said[groups == group].mean() for group in ("a", "b")]
        assert abs(rates[0] - rates[1]) < 0.12, "as far as 450 rows tell"
    truth = pl.concat(origin.split("test"))["label"].to_numpy() == "yes"
    fair = [truth[groups == group].mean() for group in ("a", "b")]
    assert abs(fair[0] - fair[1]) > 0.3, "which nobody would have without thresholds"
    assert (
        f"(temperature, thresholds) was decided for each baseline anew, in the same way, on {validation} validation rows"
        in (tmp_path / "r.md").read_text(encoding="utf-8")
    )


def test_baselines_are_decided_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be decided for the last baseline is decided for none, else they would not be alike."""
    trained(tmp_path, people(600), decide=["temperature"])
    plain = luban.report(tmp_path / "model", examples=0)["baselines"]["label"]
    assert plain["decided"]["rows"] > 0
    decide, asked = baselines._decided, 0

    def last_fails(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        return decide(*args) if asked == 1 else None

    def never(*args: Any) -> None:
        return None

    found = []
    for one in (last_fails, never):
        monkeypatch.setattr(baselines, "_decided", one)
        found.append(luban.report(tmp_path / "model", examples=0)["baselines"]["label"])
    assert asked == 2
    for one in found:
        assert one["decided"] == {"steps": ["temperature"], "rows": 0}
    assert [one["metrics"] for one in found[0]["each"]] == [one["metrics"] for one in found[1]["each"]]
    assert found[0]["each"][1]["metrics"]["log_loss"] != plain["each"][1]["metrics"]["log_loss"]


def test_a_yes_is_said_from_the_same_probability(tmp_path: Path) -> None:
    trained(tmp_path, people(600), {"targets": {"label": {"type": "binary", "threshold": 0.9}}})
    data = luban.report(tmp_path / "model", output=tmp_path / "r.md", examples=0)
    found = data["baselines"]["label"]
    assert (found["threshold"], found["decided"]) == (0.9, None)
    constant, trees = found["each"]
    assert constant["metrics"]["recall"]["value"] == 0, (
        "half of the rows are positive, which is less than 0.9"
    )
    assert trees["metrics"]["precision"]["value"] > trees["metrics"]["recall"]["value"]
    assert "Yes is said from a probability of 0.9, by the model and by each baseline." in (
        tmp_path / "r.md"
    ).read_text(encoding="utf-8")


def test_pictures_are_shrunk_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (70, 20, 33, 3)).astype(np.uint8)
    column = pl.Series("picture", pixels.tolist(), dtype=pl.Array(pl.UInt8, (20, 33, 3)))
    processor = Image(height=20, width=33)
    processor.restore({"size": [20, 33, 3], "mean": [0.0] * 3, "std": [1.0] * 3})
    monkeypatch.setattr(baselines, "_PICTURES", 16)
    most: list[int] = []
    encode = Image.encode

    def watching(self: Image, values: pl.Series) -> Any:
        most.append(len(values))
        return encode(self, values)

    monkeypatch.setattr(Image, "encode", watching)
    found = baselines._shrunk(processor, column)
    assert (len(most), max(most)) == (5, 16)
    grey = pixels.mean(-1) / 255
    assert found.shape == (70, 10 * 11), "blocks of 2 by 3"
    assert found[3, 12] == pytest.approx(grey[3, 2:4, 3:6].mean())


def test_long_texts_are_cut_and_that_is_said(
    artefact_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "TEXT", 2000)
    data = luban.report(artefact_of("texts"), output=tmp_path / "r.md", examples=0)
    (longest,) = data["baselines"]["label"]["cut"].values()
    assert 0 < longest < 20
    assert f"TF-IDF read the first {longest} characters of a text at the most" in (
        tmp_path / "r.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("room", [0, 1, 7, 60, 100, 10_000])
def test_texts_are_cut_as_little_as_it_takes(room: int) -> None:
    lengths = np.random.default_rng(room).integers(0, 40, 50)
    longest = longest_of(lengths, room)
    if longest is None:
        assert lengths.sum() <= room
    else:
        assert np.minimum(lengths, longest).sum() <= room < np.minimum(lengths, longest + 1).sum()


def test_the_compressor_reads_no_more_than_it_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{i:06d} 好" * 3 for i in range(500)]
    monkeypatch.setattr(baselines, "_READ", 1000)
    monkeypatch.setattr(baselines, "_PRICED", 700)
    found = xz(texts, texts)
    assert found["train_bytes"] <= 1000
    assert found["bytes"] <= 700
    assert (found["of"], found["train_of"]) == (500, 500)
    assert 0 < found["rows"] < found["train_rows"] < 40
    drawn = within(texts, 1000)
    assert drawn != texts[: len(drawn)], "the head of a file is not its like"
    assert within(["aaaa"], 4) == ["aaa"]
    assert within([], 10) == within(["a"], 0) == []


def test_a_compressor_is_given_what_the_model_is_shown(tmp_path: Path, luban: Luban) -> None:
    """Rows that training drops, and whatever cleaning takes out of a text, cost neither side anything."""
    draw = random.Random(7)
    texts = ["".join(draw.choices("abcdefgh", k=40)) for _ in range(100)]
    rows = [{"text": f"<b>{text}</b>"} for text in texts for _ in range(2)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "data: {train: t.jsonl, inputs: {text: {type: text, tokens: bpe, vocabulary: 300}}, clean: [duplicates, {type: text, html: true}],\n"
        "  split: {type: random, validation: 0.3, test: 0}}\n"
        "model: {type: gpt2, layers: 1, hidden_size: 16, heads: 2, max_positions: 64}\nobjective: {type: causal_lm, length: 32}\n"
        "train: {steps: 2, batch_size: 16, device: cpu, precision: fp32}\n",
        encoding="utf-8",
    )
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "m")
    assert ran.code == 0, ran.err
    found = json.loads(luban("report", tmp_path / "m", "-o", tmp_path / "r.md", "--json").out)["baselines"][
        "text"
    ]["xz"]
    assert found["train_rows"] < 100, "each text once"
    assert found["train_bytes"] == found["train_rows"] * 41 - 1, "without <b> and </b>"
    assert found["bytes"] <= found["rows"] * 41


def test_the_background_is_drawn_from_all_training_rows(
    artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[pl.DataFrame | None] = []

    def watching(predictor: Any, part: pl.DataFrame, target: str, background: pl.DataFrame | None) -> Any:
        seen.append(background)
        return gather.Absent("not_asked")

    monkeypatch.setattr(gather, "explain", watching)
    monkeypatch.setattr(gather, "_BACKGROUND", 40)
    luban.report(artefact_of("table"), baselines=False)
    (background,) = seen
    assert background is not None
    assert len(background) == 40
    incomes = pl.Series([row["income"] for row in rows_of(artefact_of("table").parent / "table.jsonl")])
    places = incomes.index_of(float(background["income"][-1]))
    assert places is not None
    assert places > 200, "not the head of the file"


def test_a_reservoir_has_room_for_so_many_bytes() -> None:
    chunks = (
        pl.DataFrame({"text": [f"{i:05d}" * 2000 for i in range(k, k + 50)]}) for k in range(0, 1000, 50)
    )
    found = Sample.draw(chunks, 500, room=10**6)
    size = found.rows.estimated_size()
    assert 0.8 * 10**6 < size <= 1.02 * 10**6
    assert found.total == 1000
    assert found.places.max() > 700
    assert all(
        text == f"{place:05d}" * 2000 for text, place in zip(found.rows["text"], found.places, strict=True)
    )
    assert str(found) == f"{len(found.rows)} rows drawn from 1,000 (no more fit into 0.9537 MiB)"
    assert str(found.take(7)) == "7 rows drawn from 1,000", "fewer were asked for than there was room for"


def test_a_reservoir_of_large_rows_holds_no_others() -> None:
    """What is kept of a chunk must not keep the chunk: polars' texts share the memory that they came in."""
    process = psutil.Process()

    def chunks() -> Iterator[pl.DataFrame]:
        for start in range(0, 60_000, 1000):
            yield pl.DataFrame({"text": [f"{i:07d}" * 1000 for i in range(start, start + 1000)]})

    for _ in Sample.draw(chunks(), 10).rows:
        pass  # whatever an allocator holds on to, it does from here on
    before = process.memory_info().rss
    found = Sample.draw(chunks(), 1000)
    assert process.memory_info().rss - before < 150 * 2**20, "of 400 MiB"
    assert len(found.rows) == 1000


@pytest.mark.parametrize("value", [
    pl.Series([b"ab", None, b"c"]), pl.Series([["a"], [], None]), pl.Series([{"a": "b", "c": [1]}] * 3), pl.Series([None] * 3),
    pl.Series(np.arange(24, dtype=np.uint8).reshape(3, 2, 2, 2).tolist(), dtype=pl.Array(pl.UInt8, (2, 2, 2))),
    pl.Series(["a", "b", None], dtype=pl.Categorical), pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])), pl.Series([object()] * 3, dtype=pl.Object),
    pl.Series([[{"role": "user", "content": "好"}], None, []]),
])  # fmt: skip
def test_rows_of_any_kind_stay_what_they_are(value: pl.Series) -> None:
    rows = pl.DataFrame({"text": ["a", None, "鲁班"], "cell": value})
    again = _alone(rows)
    assert again.schema == rows.schema
    assert again.rows() == rows.rows()
