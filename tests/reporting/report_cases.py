"""Tiny models of every kind, to report on, with names and texts that would be markup if nobody escaped them; and what of a page is English."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import luban

HOSTILE = "<script>alert('x')</script>"
"""A class, a group and a text."""
BREAKING = '"><img src=x onerror=alert(1)> & | `code` {{ 7 * 7 }} https://example.com/x.png'
ENGLISH = re.compile(r"\b[a-z]{2,}(?: [a-z]{2,})+\b")
"""Two words of lower case, one after the other: a phrase, and no name of a method, an author or a unit."""
NAMES = (
    "a column with a very long name that nobody would write by hand",
    HOSTILE,
    BREAKING,
    "img src",
    "a old small one",
    "luban train",
    "luban import",
)
"""Of columns and values of the data, and of commands."""
OPTIONS = r"（[A-Z][^）]*(?:19|20)\d{2}[^）]*）|--\w+ \w+|objective \w+(?:（\w+: \w+）)?| \w+: \w+"


class Texts(HTMLParser):
    """The texts that a reader sees, but for code and the rows of the data."""

    def __init__(self) -> None:
        super().__init__()
        self._inside: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "br", "input"):
            self._inside.append(tag)
        self.found += [value for name, value in attrs if name in ("alt", "title", "aria-label") and value]

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script", "code", "pre", "article"} & {*self._inside} and data.strip():
            self.found.append(" ".join(data.split()))


def english(page: str, least: int = 50) -> Iterator[str]:
    """Yield what is English on a page, of more texts than `least`."""
    texts = Texts()
    texts.feed(page)
    assert len(texts.found) > least
    for text in texts.found:
        plain = text
        for name in NAMES:
            plain = plain.replace(name, "")
        plain = re.sub(OPTIONS, "", plain)
        if ENGLISH.search(plain):
            yield text


QUICK: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 32,
    "device": "cpu",
    "precision": "fp32",
    "optimizer": {"type": "adamw", "learning_rate": 0.01},
}


def _lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def table(folder: Path) -> Path:
    """Three classes of numbers and words, by groups; one class and one group are hostile."""
    draw = random.Random(0)
    rows = []
    for i in range(400):
        age, city = draw.gauss(40, 12), draw.choice(["北京", "Paris", BREAKING])
        lot = age + 8 * (city == "Paris") + draw.gauss(0, 6)
        label = "young" if lot < 35 else "old" if lot > 50 else HOSTILE
        rows.append(
            {
                "age": None if i % 23 == 0 else round(age, 2),
                "city": city,
                "income": round(draw.lognormvariate(8, 1), 1),
                "a column with a very long name that nobody would write by hand": draw.choice(["yes", "no"]),
                "shop": draw.choice(["east", "west", HOSTILE]),
                "label": label,
            }
        )
    names = [name for name in rows[0] if name not in ("label", "shop")]
    kinds = dict(zip(names, ("number", "category", "number", "binary"), strict=True))
    data = {
        "train": _lines(folder / "table.jsonl", rows),
        "inputs": kinds,
        "targets": {"label": "category"},
        "groups": ["shop"],
        "clean": ["missing"],
        "split": {"type": "random", "validation": 0.15, "test": 0.25},
    }
    model = {"type": "mlp", "size": "tiny", "hidden": [16]}
    luban.train({"data": data, "model": model, "train": {**QUICK, "epochs": 12}}, output=folder / "table")
    return folder / "table"


def texts(folder: Path) -> Path:
    """Chinese reviews, good and bad, one of which is markup; rows lie in a training and a test file."""
    draw = random.Random(1)
    good, bad = ["很好看", "物流很快", "喜欢", "质量不错"], ["差", "不好看", "太慢了", "退货"]
    rows = []
    for i in range(240):
        label = draw.choice(["good", "bad"])
        words = draw.choices(good if label == "good" else bad, k=2) + draw.choices(good + bad, k=1)
        rows.append({"review": "，".join(words) + f" {BREAKING if i % 40 == 0 else i}", "label": label})
    data = {
        "train": _lines(folder / "reviews.jsonl", rows[:180]),
        "test": _lines(folder / "reviews-test.jsonl", rows[180:]),
        "inputs": {"review": "text"},
        "targets": {"label": "binary"},
    }
    model = {"type": "fasttext", "size": "tiny"}
    luban.train({"data": data, "model": model, "train": {**QUICK, "epochs": 6}}, output=folder / "texts")
    return folder / "texts"


def pictures(folder: Path) -> Path:
    """Pictures of 16 by 16 pixels, bright on the left or on the right."""
    draw = np.random.default_rng(2)
    rows = []
    for i in range(160):
        pixels = draw.integers(0, 90, (16, 16, 3)).astype(np.uint8)
        half = slice(0, 8) if i % 2 else slice(8, 16)
        pixels[4:12, half] = np.minimum(255, pixels[4:12, half].astype(int) + draw.integers(20, 150)).astype(
            np.uint8
        )
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        rows.append({"picture": url, "side": "left" if i % 2 else "right"})
    data = {
        "train": _lines(folder / "pictures.jsonl", rows),
        "inputs": {"picture": {"type": "image", "height": 16, "width": 16}},
        "targets": {"side": "category"},
        "split": {"type": "random", "validation": 0.2, "test": 0.3},
    }
    luban.train(
        {"data": data, "model": {"type": "cnn", "size": "tiny"}, "train": {**QUICK, "epochs": 2}},
        output=folder / "pictures",
    )
    return folder / "pictures"


def several(folder: Path) -> Path:
    """A number and a text; a number, a set of words and a yes or no to predict."""
    draw = random.Random(3)
    rows = []
    for _ in range(200):
        size, words = draw.uniform(10, 90), draw.sample(["quick", "red", "small", "old"], 2)
        rows.append(
            {
                "size": round(size, 1),
                "note": f"a {' '.join(words)} one",
                "price": round(3 * size + draw.gauss(0, 12), 1),
                "tags": ";".join(words),
                "sold": "yes" if size + draw.gauss(0, 10) > 50 else "no",
            }
        )
    data = {
        "train": _lines(folder / "several.jsonl", rows),
        "inputs": {"size": "number", "note": {"type": "text", "tokens": "word"}},
        "targets": {"price": "number", "tags": {"type": "set", "separator": ";"}, "sold": "binary"},
        "split": {"type": "random", "validation": 0.2, "test": 0.2},
    }
    luban.train(
        {"data": data, "model": {"type": "mlp", "size": "tiny"}, "train": {**QUICK, "epochs": 8}},
        output=folder / "several",
    )
    return folder / "several"


def speaking(folder: Path, *, causal: bool = True) -> Path:
    """A language model of a few sentences."""
    draw = random.Random(4)
    rows = [
        {
            "text": f"the {draw.choice(['old', 'red', 'new'])} {draw.choice(['cat', 'dog', 'house'])} is {draw.choice(['here', 'there', 'gone'])} ."
        }
        for _ in range(120)
    ]
    name = "causal" if causal else "masked"
    text = {
        "type": "text",
        "tokens": "bpe" if causal else "wordpiece",
        "vocabulary": 300,
        "lowercase": not causal,
        "min_count": 1,
    }
    data = {
        "train": _lines(folder / f"{name}.jsonl", rows),
        "inputs": {"text": {**text, **({"end": True} if causal else {"special": True})}},
    }
    model = {
        "type": "gpt2" if causal else "bert",
        "layers": 1,
        "hidden_size": 32,
        "heads": 2,
        "intermediate": 64,
        "max_positions": 64,
    }
    objective = {"type": "causal_lm" if causal else "masked_lm", "length": 32}
    luban.train({"data": data, "model": model, "objective": objective, "train": QUICK}, output=folder / name)
    return folder / name


def folds(folder: Path) -> Path:
    """A cross-validation of three folds."""
    draw = random.Random(5)
    rows = [{"x": draw.gauss(i % 2, 0.8), "y": "ab"[i % 2]} for i in range(120)]
    data = {
        "train": _lines(folder / "folds.jsonl", rows),
        "inputs": {"x": "number"},
        "targets": {"y": "category"},
        "split": {"type": "folds", "folds": 3},
    }
    luban.train(
        {"data": data, "model": {"type": "mlp", "size": "tiny"}, "train": QUICK}, output=folder / "folds"
    )
    return folder / "folds"


def imported(folder: Path) -> Path:
    """Somebody else's model: a masked language model that was exported, and of which nothing is known."""
    made = speaking(folder, causal=False) if not (folder / "masked").exists() else folder / "masked"
    luban.export(made, folder / "theirs", format="hf")
    luban.import_model(folder / "theirs", folder / "imported")
    return folder / "imported"


def writing(folder: Path) -> Path:
    """An encoder with a decoder that writes words backwards."""
    draw = random.Random(6)
    rows = []
    for _ in range(100):
        letters = draw.choices("abcdef", k=4)
        rows.append({"source": " ".join(letters), "back": " ".join(reversed(letters))})
    data = {
        "train": _lines(folder / "writing.jsonl", rows),
        "inputs": {"source": {"type": "text", "tokens": "word"}},
        "targets": {"back": {"type": "text", "like": "source", "end": True}},
    }
    model = {"type": "seq2seq", "size": "tiny"}
    luban.train({"data": data, "model": model, "train": {**QUICK, "epochs": 1}}, output=folder / "writing")
    return folder / "writing"
