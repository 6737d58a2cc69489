"""Two artefacts side by side: the same rows for both, differences that are those of the figures, and a page that leaves nothing out."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import report_cases
from test_page import AUDIT, Elements, require_harmless

import luban
import luban as luban_api  # where a fixture takes the name
from luban.errors import ArtefactError, DataError
from luban.evaluation.language import LanguageCollector, compare_texts
from luban.language import Score
from luban.reporting._blocks import Block, Chart, Grid, Heat, Page, Section, Table, Text
from luban.reporting._comparing import page_of_two
from luban.reporting._markdown import markdown
from luban.reporting._sections import page
from luban.verbs.rows import read_again
from tiny_case import Luban

LANGUAGE = """\
data:
  train: {train}
  inputs: {{text: {{type: text, tokens: bpe, vocabulary: {vocabulary}, end: true}}}}
  split: {{type: random, validation: 0.2, test: 0}}
  clean: {clean}
model: {{type: gpt2, layers: 1, hidden_size: 32, heads: 2, intermediate: 64, max_positions: 64}}
objective: {{type: causal_lm, length: 32}}
train: {{epochs: {epochs}, batch_size: 32, device: cpu, precision: fp32, optimizer: {{type: adamw, learning_rate: 0.01}}}}
"""


def speaking(folder: Path, name: str, **options: Any) -> Path:
    """A language model of short sentences; `rows.jsonl` are others of the kind."""
    for part, seed, count in (("train", 0, 200), ("rows", 1, 90)):
        draw = random.Random(seed)
        lines = [
            f"the {draw.choice(['old', 'red', 'New'])} {draw.choice(['cat', 'dog', 'house'])} is {draw.choice(['here', 'there', 'gone'])} {i} ."
            for i in range(count)
        ]
        report_cases._lines(folder / f"{part}.jsonl", [{"text": line} for line in lines])
    given = {"train": folder / "train.jsonl", "vocabulary": 300, "clean": "[]", "epochs": 1, **options}
    (folder / f"{name}.yaml").write_text(LANGUAGE.format(**given), encoding="utf-8")
    luban.train(folder / f"{name}.yaml", output=folder / name)
    return folder / name


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Two language models with the same tokenizer, the second of which has learnt for longer, and rows."""
    folder = tmp_path_factory.mktemp("two")
    return speaking(folder, "a"), speaking(folder, "b", epochs=6), str(folder / "rows.jsonl")


def test_language_models_are_compared_by_what_they_pay(two: tuple[Path, Path, str], tmp_path: Path) -> None:
    a, b, rows = two
    found = luban.compare(a, b, rows, output=tmp_path / "two.md")
    assert (found["targets"], found["rows"], found["skipped"], found["warnings"]) == (["text"], 90, {}, [])
    own = [luban.evaluate(one, rows)["metrics"] for one in (a, b)]
    for name in ("loss", "perplexity", "bits_per_byte"):
        one = found["differences"]["text"]["differences"][name]
        assert one["value"] == pytest.approx(
            own[1][f"text.{name}"]["value"] - own[0][f"text.{name}"]["value"], rel=1e-6
        )
        assert one["low"] < one["value"] < one["high"] < 0
    widths = [m["text.loss"]["high"] - m["text.loss"]["low"] for m in own]
    paired = found["differences"]["text"]["differences"]["loss"]
    assert paired["high"] - paired["low"] < sum(widths)
    for side in ("a", "b"):
        assert found[side]["tokens_per_second"] > found[side]["rows_per_second"] > 0
    text = (tmp_path / "two.md").read_text(encoding="utf-8")
    assert "bits per byte is" in text
    assert "b is better by" in text
    assert "Tokens a second" in text
    assert "xz, a compressor" in text
    recorded = luban.compare(a, b, output=tmp_path / "recorded.md", baselines=False)
    assert recorded["same_rows"], "the same validation rows"
    assert "need DATA" in (tmp_path / "recorded.md").read_text(encoding="utf-8")


def test_the_interval_is_that_of_texts_drawn_for_both(two: tuple[Path, Path, str]) -> None:
    draw = np.random.default_rng(0)
    hard = draw.gamma(4, 5, 400)
    tokens = draw.integers(5, 20, 400)
    a, b = LanguageCollector(causal=True), LanguageCollector(causal=True)
    a.update([Score(float(h), int(n), int(4 * n)) for h, n in zip(hard, tokens, strict=True)])
    noise = draw.normal(0, 1, 400)
    b.update(
        [Score(float(h + e - 0.5), int(n), int(4 * n)) for h, e, n in zip(hard, noise, tokens, strict=True)]
    )
    found = compare_texts(a, b, count=4000).differences["loss"]
    gain = noise - 0.5
    assert found.value == pytest.approx(gain.sum() / tokens.sum())
    # The ratio's own deviation, by the delta method: hard texts cancel out.
    error = np.sqrt(((gain - found.value * tokens) ** 2).sum()) / tokens.sum()
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)


def test_where_tokens_differ_only_bytes_can_be_compared(
    two: tuple[Path, Path, str], tmp_path: Path, luban: Luban
) -> None:
    a, _, rows = two
    other = speaking(tmp_path, "c", vocabulary=320)
    ran = luban("compare", a, other, rows, "-o", tmp_path / "two.html", "--no-baselines")
    assert ran.code == 0, ran.err
    assert "cut texts into tokens otherwise, so their loss and perplexity" in ran.err
    assert "text.bits_per_byte" in ran.out
    assert "text.loss" not in ran.out
    assert "tokens_per_second" in ran.out
    assert "bits per byte can" in Elements((tmp_path / "two.html").read_text(encoding="utf-8")).words
    found = luban_api.compare(a, other, rows, output=tmp_path / "two.md", baselines=False)
    differences = found["differences"]["text"]["differences"]
    why = "the two cut texts into tokens otherwise"
    for name in ("loss", "perplexity"):
        assert differences[name] == {"value": None, "low": None, "high": None, "note": why}
    assert differences["bits_per_byte"]["low"] < differences["bits_per_byte"]["high"]
    assert found["incomparable"] == {"text.loss": why, "text.perplexity": why}
    text = (tmp_path / "two.md").read_text(encoding="utf-8")
    assert "text: bits per byte is" in text
    assert found["curves_apart"] == why
    for which in ("a", "c"):
        assert f"Loss: {which}" in text
    recorded = luban("compare", a, other)
    assert "text.bits_per_byte" in recorded.out
    assert "text.perplexity" not in recorded.out


MASKED = """\
data:
  train: {train}
  inputs: {{text: {{type: text, tokens: wordpiece, vocabulary: {vocabulary}, min_count: 1}}}}
  split: {{type: random, validation: 0.2, test: 0}}
model: {{type: bert, layers: 1, hidden_size: 32, heads: 2, intermediate: 64, max_positions: 64}}
objective: {objective}
train: {{epochs: 1, batch_size: 32, device: cpu, precision: fp32, optimizer: {{type: adamw, learning_rate: 0.01}}}}
"""


def filling(folder: Path, name: str, vocabulary: int = 200, **objective: Any) -> Path:
    """A masked language model of short sentences."""
    lines = [
        f"the {['old', 'red', 'new'][i % 3]} {['cat', 'dog', 'house'][i % 7 % 3]} is gone {i} ."
        for i in range(160)
    ]
    train = report_cases._lines(folder / "masked.jsonl", [{"text": line} for line in lines])
    told = json.dumps({"type": "masked_lm", "length": 32, **objective})
    (folder / f"{name}.yaml").write_text(
        MASKED.format(train=train, vocabulary=vocabulary, objective=told), encoding="utf-8"
    )
    luban_api.train(folder / f"{name}.yaml", output=folder / name)
    return folder / name


def test_masked_models_are_asked_for_the_same_tokens(tmp_path: Path, luban: Luban) -> None:
    """The same weights are as good as themselves, whatever masking their recipe has."""
    a = filling(tmp_path, "a", share=0.15)
    b = shutil.copytree(a, tmp_path / "b")
    recipe = (b / "recipe.yaml").read_text(encoding="utf-8")
    assert "share: 0.15" in recipe
    changed = recipe.replace("share: 0.15", "share: 0.9").replace("length: 32", "length: 16")
    (b / "recipe.yaml").write_text(changed, encoding="utf-8")
    (b / "sample.jsonl").write_text("", encoding="utf-8")  # its losses are of the first masking
    rows = str(tmp_path / "masked.jsonl")
    found = luban_api.compare(a, b, rows, output=tmp_path / "two.md")
    for one in found["differences"]["text"]["differences"].values():
        assert (one["value"], one["low"], one["high"]) == (0, 0, 0)
    assert found["incomparable"] == {}
    assert found["curves_apart"] == "the two were asked for other tokens", "while they were trained"
    assert "Loss: b" in (tmp_path / "two.md").read_text(encoding="utf-8")
    (warning,) = found["warnings"][:1]
    assert warning.endswith(
        "hide tokens otherwise (length 32, share 0.15; length 16, share 0.9), so both are asked for those that the first hides"
    )
    page = json.loads(luban("compare", a, b, rows, "-o", tmp_path / "two.json", "--json").out)
    assert page["differences"] == found["differences"]
    content = json.loads((tmp_path / "two.json").read_text(encoding="utf-8"))
    measured = [content[side]["measured"]["metrics"]["text.loss"]["value"] for side in ("a", "b")]
    assert measured[0] == measured[1], "the page puts figures of the same tokens beside each other"
    # What was recorded is of other tokens.
    recorded = luban_api.compare(a, b, output=tmp_path / "recorded.md")
    assert set(recorded["incomparable"]) == {"text.loss", "text.perplexity"}
    assert "give DATA to ask both for the same" in recorded["warnings"][0]
    text = (tmp_path / "recorded.md").read_text(encoding="utf-8")
    assert "text: there is nothing to compare by, since the two were asked for other tokens." in text
    assert "text.loss" not in luban("compare", a, b).out


def test_masked_models_with_other_tokens_have_nothing_to_be_compared_by(tmp_path: Path, luban: Luban) -> None:
    a, b = filling(tmp_path, "a"), filling(tmp_path, "b", vocabulary=80)
    found = luban_api.compare(a, b, str(tmp_path / "masked.jsonl"), output=tmp_path / "two.md")
    assert {one["value"] for one in found["differences"]["text"]["differences"].values()} == {None}
    assert "masked models have nothing else to be compared by" in found["warnings"][0]
    assert "tune both for the same task and compare what comes of it" in found["warnings"][0]
    recorded = luban("compare", a, b)
    assert "tune both for the same task" in recorded.err
    assert "give DATA" not in recorded.err, "it would not help"
    text = (tmp_path / "two.md").read_text(encoding="utf-8")
    assert "text: there is nothing to compare by, since the two cut texts into tokens otherwise." in text
    assert "is better by" not in text
    luban_api.compare(a, b, str(tmp_path / "masked.jsonl"), output=tmp_path / "two.zh.md", lang="zh")
    assert "text：没有可比较的指标，因为两者的分词方式不同。" in (tmp_path / "two.zh.md").read_text(
        encoding="utf-8"
    )


def test_texts_that_the_two_clean_otherwise_are_left_out(two: tuple[Path, Path, str], tmp_path: Path) -> None:
    a, _, rows = two
    lower = speaking(tmp_path, "lower", clean="[{type: text, lowercase: true}]")
    capitals = sum("New" in row["text"] for row in map(json.loads, Path(rows).read_text().splitlines()))
    found = luban.compare(a, lower, rows)
    assert 0 < capitals < 90
    assert found["rows"] == 90 - capitals
    assert found["skipped"] == {"the two clean the truth otherwise": capitals}
    assert any(f"{capitals} rows are left out" in warning for warning in found["warnings"])
    with pytest.raises(
        DataError, match="no row can be scored by both artefacts; the two clean the truth otherwise: 1 rows"
    ):
        luban.compare(a, lower, '{"text": "the New cat"}')


def test_what_is_not_alike_is_not_compared(artefact_of: Any, two: tuple[Path, Path, str]) -> None:
    with pytest.raises(
        ArtefactError, match=r"causal' is a causal language model and '.*masked' a masked one"
    ):
        luban.compare(artefact_of("masked"), artefact_of("causal"))
    with pytest.raises(ArtefactError, match=r"predicts no column and '.*table' predicts label"):
        luban.compare(two[0], artefact_of("table"))


@pytest.mark.parametrize("kind", ["masked", "writing"])
def test_other_models_of_texts_are_compared(kind: str, artefact_of: Any, tmp_path: Path) -> None:
    folder = artefact_of(kind)
    shutil.copytree(folder, tmp_path / "other")
    rows = str(folder.parent / f"{kind}.jsonl")
    found = luban.compare(folder, tmp_path / "other", rows, output=tmp_path / "two.html")
    assert found["rows"] == (120 if kind == "masked" else 100)
    assert found["targets"] == ["text" if kind == "masked" else "back"]
    (own,) = found["differences"].values()
    assert {one["value"] for one in own["differences"].values()} == {0}
    assert ("bits_per_byte" in own["differences"]) == (kind == "writing")
    assert ("tokens_per_second" in found["a"]) == (kind == "writing")
    require_harmless((tmp_path / "two.html").read_text(encoding="utf-8"))


LABELS = """\
data:
  train: {train}
  inputs: {{x: number}}
  targets: {{y: category}}
  clean: {clean}
  split: {{type: random, validation: 0.2, test: 0}}
model: {{type: mlp, size: tiny}}
train: {{epochs: 3, batch_size: 16, device: cpu, precision: fp32}}
"""


def labelled(folder: Path, name: str, clean: str) -> Path:
    draw = random.Random(0)
    rows = [{"x": draw.gauss(i % 2, 0.5), "y": "ab"[i % 2]} for i in range(120)]
    train = report_cases._lines(folder / "labels.jsonl", rows)
    (folder / f"{name}.yaml").write_text(LABELS.format(train=train, clean=clean), encoding="utf-8")
    luban.train(folder / f"{name}.yaml", output=folder / name)
    return folder / name


def test_truth_is_cleaned_as_rows_are(tmp_path: Path) -> None:
    repairs = "[{type: text, lowercase: true}]"
    a, b, plain = (
        labelled(tmp_path, name, clean) for name, clean in (("a", repairs), ("b", repairs), ("plain", "[]"))
    )
    rows = [{"x": i / 40, "y": " A" if i % 4 == 0 else "ab"[i % 2]} for i in range(40)]
    file = report_cases._lines(tmp_path / "rows.jsonl", [*rows, {"x": 0.5, "y": "c"}])
    both = luban.compare(a, b, file)
    evaluated = luban.evaluate(a, file)
    assert both["rows"] == evaluated["rows"] == 40, "' A' is 'a' once it is cleaned"
    assert both["skipped"] == {"the target is missing or of an unknown class": 1}
    assert both["differences"]["y"]["differences"]["accuracy"]["value"] == pytest.approx(
        luban.evaluate(b, file)["metrics"]["y.accuracy"]["value"]
        - evaluated["metrics"]["y.accuracy"]["value"]
    )
    one_sided = luban.compare(a, plain, file)
    assert one_sided["rows"] == 30, "to one of the two ' A' is no class"
    assert one_sided["skipped"] == {"the target is missing or of an unknown class": 11}


def test_standard_input_is_read_once(artefact_of: Any, tmp_path: Path, luban: Luban) -> None:
    folder = artefact_of("table")
    rows = (folder.parent / "table.jsonl").read_text(encoding="utf-8")
    expected = json.loads(luban("compare", folder, folder, folder.parent / "table.jsonl", "--json").out)
    ran = luban(
        "compare", folder, folder, "-", "-o", tmp_path / "two.json", "--no-baselines", "--json", stdin=rows
    )
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["rows"], found["differences"]) == (expected["rows"], expected["differences"])
    written = json.loads((tmp_path / "two.json").read_text(encoding="utf-8"))
    assert written["a"]["measured"]["rows"] == written["b"]["measured"]["rows"] == found["rows"]


def test_standard_input_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"x": 1}\n{"x": 2}\n')))
    with read_again("-") as read:
        assert [pl.concat(read([]))["x"].to_list() for _ in range(3)] == [[1, 2]] * 3


# --- the page ---------------------------------------------------------------------------------------------


def flat(blocks: list[Block]) -> Iterator[Block]:
    for one in blocks:
        yield from flat(one.blocks) if isinstance(one, Grid) else [one]


def untold(made: Page) -> list[str]:
    """Return the pictures that have no numbers with them: a table of their own, or one that follows before the next heading."""
    found = []
    for section in made.sections:
        waiting: list[str] = []
        for one in [*flat(section.blocks), Text("", heading=True)]:
            if isinstance(one, Chart) and one.table is None:
                waiting.append(f"{section.name}: {one.title}")
            elif isinstance(one, Table | Heat):
                waiting = []
            elif isinstance(one, Text) and one.heading:
                found += waiting
                waiting = []
    return found


@pytest.mark.parametrize("kind", ["table", "several", "causal", "folds"])
def test_every_picture_has_numbers_beside_it(kind: str, artefact_of: Any, tmp_path: Path) -> None:
    copy = tmp_path / kind
    shutil.copytree(artefact_of(kind), copy)
    if kind != "folds":
        (copy / "audit.json").write_text(json.dumps(AUDIT), encoding="utf-8")
    data = luban.report(copy, examples=1)
    data["lineage"]["cost"].pop("energy_joules", None)  # as where no counter can be read
    for lang in ("en", "zh"):
        assert untold(page(data, lang)) == []
    text = markdown(page(data, "en"))
    curves = text.split("## Learning curves")[1].split("\n## ")[0]
    assert "| update | training | validation |" in curves
    assert (
        "| Energy of the processor | not measured (the machine's energy counters could not be read) |" in text
    )
    last = data["history"][-1]
    assert f"| {last['step']} |" in curves
    if kind == "table":
        charts = [c for s in page(data, "en").sections for c in flat(s.blocks) if isinstance(c, Chart)]
        assert len(charts) >= 7
        assert "ROC curves: the numbers behind the picture" in text


def section(made: Page, name: str) -> Section:
    return next(one for one in made.sections if one.name == name)


def test_the_page_of_two_has_what_is_known_of_both(artefact_of: Any, tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree(artefact_of("table"), tmp_path / name)
    changed = json.loads(json.dumps(AUDIT))
    changed["audits"]["fairness"]["findings"] = []
    changed["audits"]["fairness"]["figures"] = {"ratio": 0.9}
    for name, audit in (("one", AUDIT), ("other", changed)):
        (tmp_path / name / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    rows = str(artefact_of("table").parent / "table.jsonl")
    luban.compare(tmp_path / "one", tmp_path / "other", rows, output=tmp_path / "two.json")
    content = json.loads((tmp_path / "two.json").read_text(encoding="utf-8"))
    content["a"]["lineage"]["cost"]["energy_joules"] = 7200.0
    content["b"]["lineage"]["cost"].pop("energy_joules", None)
    for lang in ("en", "zh"):
        made = page_of_two(content["a"], content["b"], content["compared"], lang)
        assert untold(made) == []
        assert {"baselines", "audits", "calibration", "slices", "training"} <= {s.name for s in made.sections}
    made = page_of_two(content["a"], content["b"], content["compared"], "en")
    (table,) = [one for one in section(made, "baselines").blocks if isinstance(one, Table)]
    assert [row[0].text for row in table.rows] == [
        "Model",
        "always the same answer",
        "gradient-boosted trees",
    ]
    assert len(table.head) == 5
    assert all(len(row) == 5 for row in table.rows)
    counts, figures = (one for one in section(made, "audits").blocks if isinstance(one, Table))
    assert [cell.text for cell in counts.rows[0]] == ["High", "1", "0"]
    assert [[cell.text for cell in row] for row in figures.rows] == [["ratio", "0.500", "0.900"]]
    text = markdown(made)
    assert "| Energy of the processor | 7.20 kJ (2 Wh) | not measured |" in text
    for part in ("Calibration", "Slices", "Learning curves"):
        assert text.split(f"## {part}\n")[1].split("\n## ")[0].count("\n|") >= 4, part
    (tmp_path / "other" / "audit.json").unlink()
    luban.compare(tmp_path / "one", tmp_path / "other", output=tmp_path / "two.md", baselines=False)
    text = (tmp_path / "two.md").read_text(encoding="utf-8")
    assert "No audit lies beside other." in text
    assert "`luban audit other DATA -o other/audit.json`" in text
    assert "one: there is no baseline beside it: it was not asked for." in text


def test_losses_of_models_trained_by_another_loss_are_drawn_apart(artefact_of: Any, tmp_path: Path) -> None:
    artefact = artefact_of("texts")
    other = shutil.copytree(artefact, tmp_path / "other")
    recipe = (other / "recipe.yaml").read_text(encoding="utf-8")
    assert "label_smoothing: 0.0" in recipe
    (other / "recipe.yaml").write_text(recipe.replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    assert luban_api.compare(artefact, artefact)["curves_apart"] is None
    found = luban_api.compare(artefact, other, output=tmp_path / "two.md", baselines=False)
    assert found["curves_apart"] == "the two were trained by other losses"
    assert found["incomparable"] == {}
    text = (tmp_path / "two.md").read_text(encoding="utf-8")
    assert "Loss: texts" in text
    assert "Loss: other" in text
    assert "since the two were trained by other losses" in text
