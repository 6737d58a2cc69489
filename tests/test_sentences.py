"""Sentences are written once and read in two languages: the catalogue is whole, and nothing is lost on the way through JSON."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
import string
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import luban
from luban.auditing._run import Store
from luban.data.sampling import Sample
from luban.errors import DataError
from luban.registry import names
from luban.sentences import LANGUAGES, Sentence, kept, named, revived, say, translate

ROOT = Path(luban.__file__).parent
CATALOGUE: dict[str, dict[str, str]] = json.loads((ROOT / "zh.json").read_text(encoding="utf-8"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(ROOT.rglob("*.py"))}


_SAMPLES = {"sample", "reference", "training"}  # gaps that a sample of rows fills


def _said() -> dict[str, str]:
    """Return each template of ours → where it is said."""
    found = {}
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say":
                place = f"{file.relative_to(ROOT)}:{node.lineno}"
                template = node.args[0]
                assert isinstance(template, ast.Constant), f"{place} says no literal"
                found[str(template.value)] = place
    return found


def _gaps(template: str) -> set[tuple[str, str]]:
    return {(name, spec or "") for _, name, spec, _ in string.Formatter().parse(template) if name is not None}


def test_every_sentence_has_a_translation_and_every_translation_a_sentence() -> None:
    said = _said()
    assert len(said) > 200
    assert {text: place for text, place in said.items() if text not in CATALOGUE["sentences"]} == {}
    assert set(CATALOGUE["sentences"]) - set(said) == set()


def test_what_explaining_and_auditing_refuse_can_be_translated() -> None:
    """Whatever is raised for a user, and why an explainer or an audit does not fit, is said, and no literal."""
    files = [
        file
        for file in TREES
        if file.parent.name in ("explaining", "auditing")
        or file.relative_to(ROOT).as_posix() in ("verbs/explain.py", "verbs/audit.py", "verbs/rows.py")
    ]
    literal = []
    for file in files:
        for node in ast.walk(TREES[file]):
            texts: list[ast.expr] = []
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                if name.endswith("Error") and name not in ("ValueError", "NotImplementedError"):
                    texts = node.exc.args[:1]
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("refusal"):
                texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value]
            for text in texts:
                plain = isinstance(text, ast.Constant) and isinstance(text.value, str)
                if plain or isinstance(text, ast.JoinedStr | ast.BinOp):
                    literal.append(f"{file.relative_to(ROOT)}:{text.lineno}")
    assert len(files) > 40
    assert literal == []


@pytest.mark.parametrize("part", ["sentences", "audits", "methods", "names", "tables", "cells"])
def test_translations_have_the_gaps_of_their_sentences_and_are_chinese(part: str) -> None:
    for english, chinese in CATALOGUE[part].items():
        assert _gaps(english) == _gaps(chinese), english
        if part == "sentences" and not re.search(r"[\u4e00-\u9fff]", chinese):
            assert not re.search(r"[A-Za-z]{2}", re.sub(r"\{.*?\}", "", english)), english


def test_all_that_code_names_has_a_name() -> None:
    assert set(CATALOGUE["audits"]) == set(names("audits"))
    assert set(CATALOGUE["methods"]) == set(names("explainers"))
    places = [
        tree
        for file, tree in TREES.items()
        if file.parent.name in ("auditing", "processors", "evaluation", "explaining")
        or file.name == "explain.py"
    ]
    words = {
        str(node.value)
        for tree in places
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    text = "\n".join(words)  # a name may be a part of an f-string
    for part in ("names", "tables", "cells"):
        missing = [
            name
            for name in CATALOGUE[part]
            # The bounds of an interval are put behind the name of what it is of.
            if (bare := name.removesuffix("_low").removesuffix("_high")) not in text
            and bare.partition("_")[2] not in text
        ]
        missing = [name for name in missing if name not in names("processors")]
        assert not missing, f"{part}: {missing} are names of nothing"
    assert {*names("processors")} <= {*CATALOGUE["cells"]}


def test_a_sentence_is_a_text_that_can_be_translated() -> None:
    one = say("{n:,} of {of:,} rows ({share:.1%}) {what}: {then}", n=np.int64(1200), of=4000, share=0.3,
              what=say("have nearly the '{column}' of a training row", column="正文"),
              then=say("rows of so few values look alike"))  # fmt: skip
    assert (
        one
        == "1,200 of 4,000 rows (30.0%) have nearly the '正文' of a training row: rows of so few values look alike"
    )
    assert translate(one, "en") == one
    assert type(translate(one, "en")) is str
    assert (
        translate(one, "zh")
        == "4,000 行中有 1,200 行（30.0 %）的“正文”与某训练行近似相同：取值种类很少的行自然会相同"
    )
    assert {one: 1}[str(one)] == 1
    for same in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert same.values == one.values


def test_lists_are_joined_and_gaps_are_shown_as_the_language_does() -> None:
    one = say("{n} of {of} classes of '{target}' are rare: {rare}", n=2, of=9, target="t", rare=["a", "b"])
    assert one.endswith("rare: a, b")
    assert translate(one, "zh").endswith("稀少：a、b")
    assert say("{value:.3f}", value=None) == "–"


def test_a_sentence_of_many_lines_is_raised_in_one_and_still_translated() -> None:
    for at, place in ((None, ""), ("a.csv:3", "a.csv:3：")):
        error = DataError(say("there is no column '{name}', which the model reads; columns are {columns}{hint}",
                              name="a\n b", columns=["c\nd", "e\n"], hint=""), at=at)  # fmt: skip
        assert "\n" not in str(error)
        assert translate(str(error), "zh") == f"{place}没有模型所读取的列“a b”；现有列为 c d、e"
    assert str(DataError("a\n  b")) == "a b"


def test_a_sentence_survives_an_error_and_an_object() -> None:
    with pytest.raises(DataError) as raised:
        raise DataError(say("the training data cannot be read ({error})", error=ValueError("no")))
    assert isinstance(str(raised.value), Sentence)
    rows = pl.DataFrame({"a": range(10)})
    looked = say("looked at {sample}", sample=Sample.of(rows).take(4))
    assert translate(looked, "zh") == "查看了抽取的 4 行样本（共 10 行）"


def test_what_is_not_ours_stays_as_it_is() -> None:
    assert translate("a plug-in's own finding about {x}", "zh") == "a plug-in's own finding about {x}"
    assert translate(say("a template that nobody translated, {n}", n=1), "zh").endswith("translated, 1")
    assert named("a_figure_of_a_plug_in", "zh") == "a figure of a plug in"
    assert LANGUAGES == ("en", "zh")


def test_sentences_go_through_json_and_back(tmp_path: Path) -> None:
    note = say("{sample}, compared with {reference}", sample=say("all {n:,} rows", n=5), reference="x")
    data = {"notes": [note, "of a plug-in"], "counts": {say("{column}: unreadable", column="age"): 3}}
    once = json.loads(json.dumps(kept(data)))
    assert once["notes"] == ["all 5 rows, compared with x", "of a plug-in"]
    assert once["counts"] == {"age: unreadable": 3}
    again = revived(once)
    assert "phrases" not in again
    assert translate(again["notes"][0], "zh") == "全部 5 行，与x比较"
    assert [translate(key, "zh") for key in again["counts"]] == ["age：无法读取"]
    assert kept({"plain": say("overconfident")}) == {"plain": "overconfident"}

    store = Store(tmp_path)
    for _ in range(2):
        assert translate(store("one", lambda: data)["notes"][0], "zh") == "全部 5 行，与x比较"
    store.forget()


def _nested(depth: int) -> object:
    """Lists in lists, deeper than Python follows."""
    one: object = "all 5 rows"
    for _ in range(depth):
        one = [one]
    return one


@pytest.mark.parametrize(
    "phrase",
    [
        {"template": "{x.__class__}", "values": {"x": 1}},
        {"template": "all {n:,} rows", "values": {"n": "five"}},
        {"template": "all {n:,} rows", "values": {}},
        {"template": "all {n:,} rows", "values": {"n": 6}},
        {
            "template": "{share:.1%} of the values of '{column}' lie far off (up to {farthest:.4g}; the middle half is {low:.4g} to {high:.4g})",
            "values": {"share": 0.1, "column": "x", "farthest": 10**400, "low": 1, "high": 2},
        },
        {"template": "all {n:,} rows", "values": {"n": ["five", {"template": "all {n:,} rows"}]}},
        {"template": "looked at {sample}", "values": {"sample": _nested(3000)}},
        _nested(3000),
        {"template": ["all"], "values": 3},
        "all 5 rows",
    ],
)
def test_phrases_of_a_stranger_are_not_believed(phrase: object) -> None:
    """An audit.json may come from anywhere: another text than the one that is shown cannot hide behind it."""
    found = revived({"note": "all 5 rows", "phrases": {"all 5 rows": phrase}})
    assert found == {"note": "all 5 rows"}
    assert translate(found["note"], "zh") == "all 5 rows"


def test_data_that_are_nested_without_end_are_left_as_they_are() -> None:
    found = revived({"deep": _nested(3000), "note": "all 5 rows", "phrases": {
        "all 5 rows": {"template": "all {n:,} rows", "values": {"n": 5}}}})  # fmt: skip
    assert translate(found["note"], "zh") == "全部 5 行"
    assert isinstance(found["deep"], list)


def test_data_with_a_key_of_that_name_are_not_mixed_up_with_sentences() -> None:
    with pytest.raises(AssertionError, match="'phrases' is the key"):
        kept({"phrases": ["a user's own"], "why": say("all {n:,} rows", n=3)})


@pytest.mark.parametrize(
    ("template", "values", "read"),
    [
        ("looked at {sample}", {}, "查看了{s}"),
        ("looking at {sample}", {}, "查看{s}"),
        (
            "measured on {n:,} rows with a known truth, of {sample}",
            {"n": 380},
            "在{s}中真实值已知的 380 行上测量",
        ),
        ("{sample}, compared with {reference}", {}, "{s}，与{s}比较"),
        ("{sample}, compared with {reference} of the training rows", {}, "{s}，与训练数据中{s}比较"),
        (
            "equal inputs are looked for among all {n:,} training rows, texts that are nearly equal among {sample}",
            {"n": 4000},
            "在全部 4,000 行训练数据中查找完全相同的输入，在{s}中查找近似重复的文本",
        ),
        (
            "measured on {n:,} rows with a known truth, of {sample}; 95 % intervals by {resamples:,} resamples",
            {"n": 380, "resamples": 1000},
            "在{s}中真实值已知的 380 行上测量；95 % 区间由 1,000 次自助重采样得到",
        ),
        (
            "{n:,} rows with a known truth, of {sample}; second opinion: {whose}",
            {"n": 380, "whose": say("the artefact's own")},
            "{s}中真实值已知的 380 行；第二意见来自该模型自身",
        ),
        (
            "{n:,} rows with a known truth, of {sample}: half to look up, half to predict, and the other way round",
            {"n": 380},
            "{s}中真实值已知的 380 行：一半用于查表，一半用于预测，再互换",
        ),
        (
            "{n:,} training rows (of {training}) and {n:,} rows that it was not trained on (of {sample})",
            {"n": 300},
            "从{s}中取 300 行训练数据，从{s}中取 300 行未参与训练的数据",
        ),
        (
            "{n:,} rows with a known truth, of {sample}, before and after each change",
            {"n": 380},
            "{s}中真实值已知的 380 行，每种变化前后各测一次",
        ),
        (
            "{n:,} texts of at most {tokens} tokens, temperature {temperature:g}; prompts: {sample}",
            {"n": 9, "tokens": 8, "temperature": 0.5},
            "9 段文本，每段最多 8 个词元，温度 0.5；提示为{s}",
        ),
    ],
)
def test_a_drawn_sample_reads_well_wherever_it_stands(
    template: str, values: dict[str, object], read: str
) -> None:
    drawn = Sample.of(pl.DataFrame({"a": range(4000)})).take(400)
    samples = {name: drawn for _, name, _, _ in string.Formatter().parse(template) if name in _SAMPLES}
    found = translate(say(template, **values, **samples), "zh")
    assert found == read.replace("{s}", "抽取的 400 行样本（共 4,000 行）")


def test_every_sentence_that_holds_a_sample_is_read_above() -> None:
    (marks,) = test_a_drawn_sample_reads_well_wherever_it_stands.pytestmark
    read = {case[0] for case in marks.args[1]}
    assert read == {text for text in _said() if {name for name, _ in _gaps(text)} & _SAMPLES}


def test_a_sample_that_is_bounded_by_its_room_says_so() -> None:
    rows = pl.DataFrame({"a": range(4000)})
    drawn = Sample.draw([rows], 3000, room=8_000)
    assert len(drawn.rows) < 1000
    said = say("looked at {sample}", sample=drawn)
    assert said == f"looked at {len(drawn.rows)} rows drawn from 4,000 (no more fit into 0.007629 MiB)"
    assert translate(said, "zh") == f"查看了抽取的 {len(drawn.rows)} 行样本（共 4,000 行，限 0.007629 MiB）"
    assert str(Sample.draw([rows], 10, room=2**28)) == "10 rows drawn from 4,000"
    assert str(Sample.draw([rows], 5000, room=2**28)) == "all 4,000 rows"
