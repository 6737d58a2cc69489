"""The words of a report: complete in both languages, each of them used, and with the same gaps."""

from __future__ import annotations

import json
import re
import string
from importlib.resources import files
from typing import get_args

import pytest

from luban.data.prepare import SPLITS
from luban.errors import InputError
from luban.evaluation.language import LanguageCollector
from luban.evaluation.metrics import names
from luban.origin import Why
from luban.reporting._audited import FAMILIES
from luban.reporting._words import LANGUAGES, Words, number, percent

FOLDER = files("luban.reporting")
ALL = json.loads(FOLDER.joinpath("words.json").read_text(encoding="utf-8"))
SOURCES = "\n".join(
    part.read_text(encoding="utf-8")
    for place in (FOLDER, FOLDER.joinpath("templates"))
    for part in place.iterdir()
    if part.name.endswith((".py", ".j2"))
)
METRICS = {name for task in ("binary", "multiclass", "multilabel", "regression") for name in names(task, 6)}  # type: ignore[arg-type]
METRICS |= set(LanguageCollector(causal=True)._names)
FAMILY: dict[str, set[str]] = {
    "metric": METRICS,
    "title.audit": set(FAMILIES),
    "lead.audit": set(FAMILIES),
    "split": {*SPLITS, "data"},
    "baseline": {"constant", "tfidf", "pixels", "trees", "xz"},
    "severity": {"high", "medium", "low", "info"},
    "absent": set(re.findall(r'Absent\(\s*"(\w+)"', SOURCES))
    | {"many_labels", "many_classes", *get_args(Why)},
    "hardware": {"device", "precision", "threads"},
    "role": {"input", "target"},
    "examples": {"worst", "typical"},
    "chart": {"roc", "pr"},
    "read": {"roc", "pr"},
    "axis": {"recall", "precision", "false_positive_rate"},
}


def gaps(text: str) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_both_languages_have_every_word_with_the_same_gaps() -> None:
    for key, own in ALL.items():
        assert set(own) == set(LANGUAGES), key
        assert all(own.values()), key
        assert gaps(own["en"]) == gaps(own["zh"]), key
    assert sum(bool(re.search(r"[\u4e00-\u9fff]", own["zh"])) for own in ALL.values()) > 0.9 * len(ALL)


@pytest.mark.parametrize("family", FAMILY)
def test_a_family_of_words_is_whole(family: str) -> None:
    """Words whose key is put together are there for all that it can be put together of."""
    have = {key.removeprefix(f"{family}.") for key in ALL if key.startswith(f"{family}.")}
    whole = {
        "metric",
        "title.audit",
        "lead.audit",
        "split",
        "baseline",
        "severity",
        "absent",
        "hardware",
        "role",
    }
    assert FAMILY[family] <= have
    if family in whole:
        assert have == FAMILY[family]


def test_every_word_is_used() -> None:
    literal = set(re.findall(r"""["']([a-z_0-9.]+)["']""", SOURCES))
    made = {f"{family}.{name}" for family, own in FAMILY.items() for name in own}
    made |= {f"about.{name}" for name in METRICS} | {"worst.one", "typical.one"}
    made |= {f"caption.columns_{of}" for of in ("train", "measured")}
    made |= {f"verdict.{key}" for key in ("same", "better", "worse")}
    assert set(ALL) - literal - made == set()


def test_every_word_that_is_asked_for_is_there() -> None:
    asked = set(re.findall(r"""words\(\s*["']([a-z_0-9.]+)["']""", SOURCES))
    assert len(asked) > 150
    assert asked - set(ALL) == set()


def test_there_is_no_other_language() -> None:
    with pytest.raises(InputError, match="received lang 'de', but languages are en and zh"):
        Words("de")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.500"), (1234.5, "1,234"), (-0.25, "−0.250"), (0.00012, "0.00012"), (float("nan"), "–"), (3e9, "3,000,000,000")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_per_cent() -> None:
    assert [percent(0.5), percent(0.12345), percent(1, strip=False), percent(None)] == [
        "50 %",
        "12.3 %",
        "100.0 %",
        "–",
    ]
