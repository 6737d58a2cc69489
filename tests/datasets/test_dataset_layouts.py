"""Layouts, each on a carrier of a few rows that has the traps of the real one."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from luban.datasets import fetch, layouts
from luban.errors import DataError

Pack = Callable[[Mapping[str, bytes]], list[Path]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def pack(tmp_path: Path, make_tar: Callable[[Path, Mapping[str, bytes]], Path]) -> Pack:
    return lambda members: [make_tar(tmp_path / "carrier.tgz", members)]


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_scored_sentences_keep_the_score_and_derive_the_label(
    pack: Pack, out: Path, tmp_path: Path, make_tar: Callable[[Path, Mapping[str, bytes]], Path]
) -> None:
    lines = '1_1\t0.5\tsaid "yes", twice\r\n1_2\t0\tneither\r\n2\t-1.25\tcafé &amp; bar'
    inner = make_tar(tmp_path / "inner.tgz", {"h/tweets_GroundTruth.txt": lines.encode()})
    carriers = pack({"v/inner.tgz": inner.read_bytes()})
    counts = layouts.scored_sentences(carriers, out, inner="*/inner.tgz", member="*/tweets_*", file="t.csv")
    assert counts == {"rows": 3, "repeated texts kept": 0, "scores of exactly 0, labelled negative": 1}
    assert [tuple(row.values()) for row in _rows(out / "t.csv")] == [
        ("1_1", 'said "yes", twice', "0.5", "positive"),
        ("1_2", "neither", "0", "negative"),
        ("2", "café &amp; bar", "-1.25", "negative"),
    ]


def test_emails_are_decoded_and_labelled_by_folder(pack: Pack, out: Path) -> None:
    mails = {
        "p/data/spam-1/1.txt": b"caf\xe9\r\n",
        "p/data/easy-ham-1/2.txt": "你好".encode(),
        "p/data/x.json": b"{}",
    }
    assert layouts.emails(pack(mails), out) == {"rows": 2, "repeated texts kept": 0, "read as latin-1": 1}
    assert [json.loads(line) for line in (out / "emails.jsonl").read_text("utf-8").split("\n")[:-1]] == [
        {"text": "你好", "label": "ham", "folder": "easy-ham-1"},
        {"text": "café\r\n", "label": "spam", "folder": "spam-1"},
    ]


def test_poems_say_what_they_are_and_come_once(pack: Pack, out: Path) -> None:
    def poems(*rows: dict[str, object]) -> bytes:
        return json.dumps(rows, ensure_ascii=False).encode()

    shi = {"author": "李白", "paragraphs": ["牀前看月光，", "疑是地上霜。 "], "title": "靜夜思 ", "id": "1"}
    again = {**shi, "author": "杜甫"}
    empty = {"author": "無", "paragraphs": [], "title": "句"}
    members = {
        "p/dist/quantangshi/poet.tang.0.json": poems(shi, empty),
        "p/dist/quantangshi/poet.song.1000.json": poems(again, {**shi, "paragraphs": ["□山。"]}),
        "p/dist/quantangshi/error/poet.song.0.json": poems({**shi, "paragraphs": ["錯。"]}),
        "p/dist/quantangshi/authors.tang.json": b"[]",
        "p/dist/songci/ci.song.0.json": poems(
            {"author": "苏轼", "paragraphs": ["明月。"], "rhythmic": "水调歌头"}
        ),
        "p/dist/wudaishici/huajianji/huajianji-1-juan.json": poems(
            {"title": "菩萨蛮 其六", "paragraphs": ["玉楼。"], "author": "温庭筠", "rhythmic": "菩萨蛮"}
        ),
        "p/dist/wudaishici/huajianji/huajianji-0-preface.json": b"{}",
        "p/dist/wudaishici/nantang/poetrys.json": poems(
            {"title": "", "paragraphs": ["春花。"], "author": "李煜", "rhythmic": "虞美人"}
        ),
        "p/dist/yuanqu/yuanqu.json": poems({**shi, "paragraphs": ["枯藤。"], "dynasty": "yuan"}),
        "p/dist/youmengying/youmengying.json": poems({"content": "x"}),
    }
    assert layouts.poems(pack(members), out) == {
        "rows": 6,
        "repeated dropped": 1,
        "empty dropped": 1,
        "with □ for a lost character": 1,
    }
    lines = (out / "poems.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [tuple(json.loads(line).values()) for line in lines] == [
        ("牀前看月光，疑是地上霜。", "靜夜思", "李白", "tang", "shi"),
        ("玉楼。", "菩萨蛮 其六", "温庭筠", "five dynasties", "ci"),
        ("春花。", "虞美人", "李煜", "five dynasties", "ci"),
        ("□山。", "靜夜思", "李白", "song", "shi"),
        ("明月。", "水调歌头", "苏轼", "song", "ci"),
        ("枯藤。", "靜夜思", "李白", "yuan", "qu"),
    ]


def test_json_digits_find_every_grey_value_again(pack: Pack, out: Path) -> None:
    grey = np.arange(784) % 256
    flat = [round(value / 255, 3) for value in grey.tolist()]
    members = {f"p/src/digits/{digit}.json": json.dumps({"data": flat * digit}).encode() for digit in (1, 2)}
    assert layouts.json_digits(pack(members), out) == {"rows": 3, "repeated images kept": 2}
    with np.load(out / "mnist.npz") as data:
        assert data["label"].tolist() == [1, 2, 2]
        assert data["image"].dtype == np.uint8
        np.testing.assert_array_equal(data["image"][2].ravel(), grey)


def test_pickled_images_get_readable_labels(pack: Pack, out: Path) -> None:
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    arrays = {"data": images, "label": np.array([1, 0, 1])}
    members = {f"a/animal_{k}_version_3.gz": gzip.compress(pickle.dumps(v)) for k, v in arrays.items()}
    assert layouts.pickled_images(pack(members), out, classes=("bear", "cat"))["rows"] == 3
    with np.load(out / "animals.npz", allow_pickle=False) as data:
        assert data["label"].tolist() == ["cat", "bear", "cat"]
        np.testing.assert_array_equal(data["image"], images)


def test_adult_joins_its_parts_and_empties_the_unknown(pack: Pack, out: Path) -> None:
    line = "39, ?, 77516, HS-grad, 13, Divorced, Sales, Unmarried, White, Male, 2174, 0, 40, Cuba, >50K"
    members = {
        "r/adult.data": f"{line}\n\n".encode(),
        "r/adult.test": f"|1x3 Cross validator\n{line}.\n\n".encode(),
    }
    assert layouts.adult(pack(members), out) == {"rows": 2, "missing values": 2}
    train, test = _rows(out / "adult.csv")
    assert (train.pop("split"), test.pop("split")) == ("train", "test")
    assert train == test
    assert (train["age"], train["workclass"], train["native-country"], train["income"]) == (
        "39",
        "",
        "Cuba",
        ">50K",
    )


def test_compas_loses_names_and_columns_that_it_has_twice(pack: Pack, out: Path) -> None:
    table = b'id,name,first,last,score,charge,score\n1,ann lee,ann,lee,3,"Battery, simple",3\n'
    assert layouts.compas(pack({"r/compas-scores-two-years.csv": table}), out)["rows"] == 1
    assert _rows(out / "compas.csv") == [{"id": "1", "score": "3", "charge": "Battery, simple"}]
    with pytest.raises(DataError, match="column 'score' occurs twice, with different values"):
        layouts.compas(pack({"r/compas-scores-two-years.csv": table.replace(b",3\n", b",4\n")}), out)


def test_german_credit_reads_its_codes(pack: Pack, out: Path) -> None:
    line = "A11 6 A34 A43 1169 A65 A75 4 A93 A101 4 A121 67 A143 A152 2 A173 1 A192 A201 1\n"
    codes = {
        "status": {"A11": "... < 0 DM "},
        "status_sex": {"A93": "male : single"},
        "credit": {"1": "good"},
    }
    members = {"r/german.data": line.encode(), "r/german/values_maps.json": json.dumps(codes).encode()}
    assert layouts.german_credit(pack(members), out) == {"rows": 1}
    (row,) = _rows(out / "german-credit.csv")
    assert tuple(row) == layouts.GERMAN_COLUMNS
    assert row["status"] == "... < 0 DM"
    assert (row["installment_rate"], row["sex"], row["marital_status"], row["other_debtors"]) == (
        "4", "male", "single", "A101",
    )  # fmt: skip
    assert (row["age"], row["credit"]) == ("67", "good")


def test_prompts_drop_silence_and_tones(out: Path, tmp_path: Path, pack: Pack) -> None:
    carriers = []
    for language, voice in (("en", "en_US_f_Allison"), ("ru", "ru_RU_f_IvrvoiceRU")):
        clips = {"hello": voice.encode(), "digits/1": voice.encode() * 2, "beep": b"tone", "silence/1": b""}
        members = {f"./usr/share/asterisk/sounds/{voice}/{clip}.wav": blob for clip, blob in clips.items()}
        carriers.append(pack(members)[0].rename(tmp_path / f"{language}.tgz"))
    assert layouts.prompts(carriers, out, languages=("en", "ru")) == {
        "rows": 4,
        "silence and tones dropped": 4,
    }
    rows = _rows(out / "prompts.csv")
    assert {(row["language"], row["prompt"]) for row in rows} == {
        ("en", "hello"), ("en", "digits/1"), ("ru", "hello"), ("ru", "digits/1"),
    }  # fmt: skip
    assert (out / "ru/digits/1.wav").read_bytes() == b"ru_RU_f_IvrvoiceRU" * 2
    assert all((out / row["clip"]).is_file() for row in rows)


def test_a_model_directory_keeps_its_tree(pack: Pack, out: Path) -> None:
    members = {"m/model/config.json": b"{}", "m/model/1_Pooling/config.json": b"[]", "m/__init__.py": b"x"}
    assert layouts.model_directory(pack(members), out, under="m/model") == {"rows": 2}
    assert (out / "1_Pooling" / "config.json").read_bytes() == b"[]"
    assert not (out / "__init__.py").exists()


def test_a_model_file_comes_alone(pack: Pack, out: Path) -> None:
    members = {"m/tiny.Q4_1.gguf": b"GGUF", "m/__init__.py": b"x"}
    assert layouts.model_file(pack(members), out, member="m/tiny.Q4_1.gguf") == {"rows": 1}
    assert [path.name for path in out.iterdir()] == ["tiny.Q4_1.gguf"]
    assert (out / "tiny.Q4_1.gguf").read_bytes() == b"GGUF"


def test_the_same_carrier_gives_the_same_bytes(pack: Pack, tmp_path: Path) -> None:
    carriers = pack({"p/src/digits/7.json": json.dumps({"data": [0.5] * 784}).encode()})
    blobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        layouts.json_digits(carriers, tmp_path / name)
        blobs.append((tmp_path / name / "mnist.npz").read_bytes())
    assert blobs[0] == blobs[1]


def test_what_scikit_learn_carries_needs_no_network() -> None:
    from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

    for name, load in (("breast-cancer", load_breast_cancer), ("iris", load_iris), ("wine", load_wine)):
        expected = load()
        rows = _rows(fetch(name, report=lambda _: None) / f"{name}.csv")
        *features, target = rows[0]
        np.testing.assert_array_equal([[float(row[key]) for key in features] for row in rows], expected.data)
        assert features == list(expected.feature_names)
        assert [row[target] for row in rows] == expected.target_names[expected.target].tolist()
    with np.load(fetch("digits", report=lambda _: None) / "digits.npz") as data:
        np.testing.assert_array_equal(data["image"], load_digits().images)
        np.testing.assert_array_equal(data["label"], load_digits().target)
