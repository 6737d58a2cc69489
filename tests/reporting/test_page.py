"""A page says what was measured, is whole, and no text of a user's is more than text."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_cases import BREAKING, HOSTILE

import luban
from luban.reporting._words import number

AUDIT: dict[str, Any] = {
    "audits": {
        "fairness": {
            "audit": "fairness",
            "findings": [
                {
                    "audit": "fairness",
                    "severity": "high",
                    "sentence": f"Group {HOSTILE} is selected half as often.",
                    "figures": {"ratio": 0.5},
                    "advice": "Set a threshold for each group.",
                    "where": "shop",
                }
            ],
            "figures": {"ratio": 0.5},
            "tables": {
                "groups": [
                    {
                        "group": HOSTILE,
                        "selection_rate": 0.25,
                        "selection_rate_low": 0.2,
                        "selection_rate_high": 0.3,
                    },
                    {
                        "group": "east",
                        "selection_rate": 0.5,
                        "selection_rate_low": 0.4,
                        "selection_rate_high": 0.6,
                    },
                ]
            },
            "rows": 100,
            "notes": ["100 rows were looked at"],
        }
    },
    "left_out": {"fgsm": "it needs an image"},
    "gates": [{"gate": "no high", "passed": False, "value": 1.0, "why": "1 finding"}],
    "figures": {},
    "findings": [],
}


class Elements(HTMLParser):
    """Gathers the elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def made(artefact: Path, tmp_path: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    place = tmp_path / f"page.{options.pop('ending', 'html')}"
    data = luban.report(artefact, output=place, **options)
    return place.read_text(encoding="utf-8"), data


def require_harmless(text: str) -> None:
    """No script, no handler, nothing from elsewhere."""
    page = Elements(text)
    for tag, attributes in page.found:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,")) or value == "data:,", value
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_names_and_texts_of_users_are_only_text(lang: str, artefact_of: Any, tmp_path: Path) -> None:
    copy = tmp_path / "table"
    shutil.copytree(artefact_of("table"), copy)
    (copy / "audit.json").write_text(json.dumps(AUDIT), encoding="utf-8")
    text, _ = made(copy, tmp_path, lang=lang)
    require_harmless(text)
    words = Elements(text).words
    assert HOSTILE in words
    assert BREAKING in words
    assert ("发现 1 个严重问题" if lang == "zh" else "1 problems of high severity") in words
    assert ("1 个发布门槛中满足 0 个" if lang == "zh" else "0 of 1 release gates are met") in words
    assert ("预测为正的比例（按 groups 分组）" if lang == "zh" else "selection rate by groups") in words
    assert ("0.200 至 0.300" if lang == "zh" else "0.200 to 0.300") in words
    assert "Set a threshold for each group." in words
    assert ("fgsm（it needs an image）" if lang == "zh" else "fgsm (it needs an image)") in words
    written, _ = made(copy, tmp_path, lang=lang, ending="md")
    assert HOSTILE not in written
    assert "\\<script\\>" in written


def test_the_verdict_says_what_was_measured_and_what_the_baseline_reaches(
    artefact_of: Any, tmp_path: Path
) -> None:
    text, data = made(artefact_of("table"), tmp_path, examples=2)
    accuracy = data["measured"]["metrics"]["label.accuracy"]
    best = max(
        (one for one in data["baselines"]["label"]["each"]),
        key=lambda one: one["metrics"]["accuracy"]["value"],
    )
    (sentence,) = data["verdict"]
    assert (
        f"accuracy is {100 * accuracy['value']:.1f} % ({100 * accuracy['low']:.1f} % to {100 * accuracy['high']:.1f} %)"
        in sentence
    )
    assert f"reaches {100 * best['metrics']['accuracy']['value']:.1f} %" in sentence
    low, high = (best["differences"]["accuracy"][end] for end in ("low", "high"))
    said = "within chance" if low <= 0 <= high else "is better by"
    assert said in sentence
    assert sentence in Elements(text).words
    assert len(data["examples"]["label"]["worst"]) == 2


def test_every_section_is_there_and_linked(artefact_of: Any, tmp_path: Path) -> None:
    text, _ = made(artefact_of("table"), tmp_path)
    elements = Elements(text).found
    sections = [own["id"] for tag, own in elements if tag == "section"]
    links = [str(own["href"])[1:] for tag, own in elements if tag == "a"]
    assert sections == links
    assert sections == [
        "quality",
        "errors",
        "calibration",
        "slices",
        "examples",
        "audits",
        "training",
        "data",
        "cost",
        "lineage",
        "card",
    ]
    charts = re.findall(r'<svg[^>]*role="img"[^>]*><title>([^<]+)</title><desc>([^<]+)</desc>', text)
    assert len(charts) >= 6, "pictures say what they show"


def test_explanations_are_shown_and_add_up(artefact_of: Any) -> None:
    data = luban.report(artefact_of("table"), baselines=False)
    for one in data["examples"]["label"]["worst"]:
        explanation = one["explanation"]
        assert explanation["chosen"] == one["said"]
        assert set(explanation["totals"]) == set(data["model"]["inputs"])
        total = explanation["score"] - explanation["baseline"]
        assert sum(explanation["totals"].values()) == pytest.approx(total, abs=0.05)
    assert data["baselines"]["label"] == {"absent": "not_asked", "values": {}}


def test_pictures_are_shown_with_what_mattered(artefact_of: Any, tmp_path: Path) -> None:
    text, data = made(artefact_of("pictures"), tmp_path, baselines=False)
    require_harmless(text)
    shown = data["examples"]["side"]["worst"] + data["examples"]["side"]["typical"]
    assert all(one["cells"][0]["picture"].startswith("data:image/png") for one in shown)
    heats = [one["cells"][0]["heat"] for one in shown if "heat" in one["cells"][0]]
    assert heats
    assert all(heat.startswith("data:image/png") for heat in heats)
    assert text.count("<img ") == len(shown) + len(heats)


def test_no_row_is_shown_where_rows_are_private(artefact_of: Any, tmp_path: Path) -> None:
    folder = artefact_of("texts")
    lines = (folder.parent / "reviews-test.jsonl").read_text(encoding="utf-8").splitlines()
    reviews = [json.loads(line)["review"] for line in lines]
    text, _ = made(folder, tmp_path, baselines=False)
    assert any(review in Elements(text).words for review in reviews)
    for ending in ("html", "json", "md"):
        text, data = made(folder, tmp_path, private=True, baselines=False, ending=ending)
        assert data["examples"]["label"] == {"absent": "private", "values": {}}
        assert not any(review in text for review in reviews)


def test_nothing_of_single_rows_is_in_a_private_report(artefact_of: Any, tmp_path: Path) -> None:
    copy = tmp_path / "several"
    shutil.copytree(artefact_of("several"), copy)
    (copy / "audit.json").write_text(json.dumps(AUDIT), encoding="utf-8")
    _, data = made(copy, tmp_path, private=True, baselines=False, ending="json")
    assert data["scatter"] == {}
    assert data["audits"][0]["audits"]["fairness"]["tables"] == {}
    assert data["audits"][0]["audits"]["fairness"]["findings"]
    spoken, data = made(artefact_of("causal"), tmp_path, private=True, baselines=False)
    assert data["speech"] == []
    assert "the old" not in spoken


def test_several_targets_have_figures_of_their_own(artefact_of: Any, tmp_path: Path) -> None:
    text, data = made(artefact_of("several"), tmp_path, examples=1)
    require_harmless(text)
    assert [sentence.split(":")[0] for sentence in data["verdict"]] == ["price", "tags", "sold"]
    assert len(data["scatter"]["price"]) == data["measured"]["rows"]
    words = Elements(text).words
    assert words.count("Target: price") >= 3
    assert "mean absolute error" in words


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_language_models_are_priced_and_speak(kind: str, artefact_of: Any, tmp_path: Path) -> None:
    text, data = made(artefact_of(kind), tmp_path)
    require_harmless(text)
    assert data["speech"]
    if kind == "causal":
        bits = data["measured"]["metrics"]["text.bits_per_byte"]["value"]
        assert f"bits per byte is {number(bits)}" in data["verdict"][0]
        found = data["baselines"]["text"]["xz"]
        assert found["rows"] == data["measured"]["rows"]
        assert 0 < found["bits_per_byte"] < 8
        assert all(one["written"] for one in data["speech"])
    else:
        assert data["baselines"]["text"]["absent"] == "masked"
        assert all(len(one["fills"]) for one in data["speech"])


def test_what_is_written_stands_beside_the_truth(artefact_of: Any, tmp_path: Path) -> None:
    text, data = made(artefact_of("writing"), tmp_path, examples=2)
    require_harmless(text)
    assert len(data["speech"]) == 2
    for one in data["speech"]:
        assert one["truth"] == " ".join(reversed(one["prompt"].split()))
    assert data["baselines"]["back"] == {"absent": "written", "values": {}}
    assert "There is no baseline beside it" in Elements(text).words
    assert "back: bits per byte is" in data["verdict"][0]


def test_of_an_imported_model_little_is_known_and_that_is_said(artefact_of: Any, tmp_path: Path) -> None:
    text, data = made(artefact_of("imported"), tmp_path)
    words = Elements(text).words
    assert data["verdict"] == ["Nothing was measured yet: give rows whose truth is known."]
    assert "luban report imported DATA" in words
    assert "It was trained elsewhere" in words
    rows = artefact_of("masked").parent / "masked.jsonl"
    _, measured = made(artefact_of("imported"), tmp_path, data=str(rows))
    assert measured["measured"]["rows"] == 120
    assert "perplexity" in measured["verdict"][0]


def test_all_folds_of_a_cross_validation_are_shown(artefact_of: Any, tmp_path: Path) -> None:
    text, data = made(artefact_of("folds"), tmp_path, examples=1)
    assert len(data["folds"]["each"]) == 3
    mean = sum(fold["y.accuracy"] for fold in data["folds"]["each"]) / 3
    assert data["folds"]["metrics"]["y.accuracy"]["value"] == pytest.approx(mean)
    words = Elements(text).words
    assert "Fold 3" in words
    assert "The first of 3 folds" in words


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_two_are_compared_on_a_page(lang: str, artefact_of: Any, tmp_path: Path) -> None:
    folder = artefact_of("table")
    shutil.copytree(folder, tmp_path / "other")
    rows = str(folder.parent / "table.jsonl")
    result = luban.compare(folder, tmp_path / "other", rows, output=tmp_path / "two.html", lang=lang)
    text = (tmp_path / "two.html").read_text(encoding="utf-8")
    require_harmless(text)
    words = Elements(text).words
    assert result["differences"]["label"]["differences"]["accuracy"]["value"] == 0
    assert ("偶然范围之内" if lang == "zh" else "within chance") in words
    assert ("配方相同" if lang == "zh" else "The recipes are the same") in words
    luban.compare(folder, tmp_path / "other", output=tmp_path / "two.md")
    assert "need DATA" in (tmp_path / "two.md").read_text(encoding="utf-8")
