"""A tiny table and its recipe, and what calling the command line gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RECIPE = """\
data:
  train: rows.csv
  inputs: {age: number, city: category, review: text}
  targets: {label: category}
model: {type: mlp, size: tiny, hidden: [4]}
train: {epochs: 2, batch_size: 16, device: cpu, precision: fp32}
"""


def write_rows(path: Path, n: int = 80) -> None:
    """Write a table with a number, a category, a text, a label of two classes, a price and groups."""
    generator = random.Random(0)
    lines = ["age,city,review,label,price,shop"]
    for i in range(n):
        age = generator.gauss(40, 10)
        review = generator.choice(["很好看", "不好看", "一般 般", "物流很快", "差"])
        label = "good" if age + generator.gauss(0, 3) > 40 else "bad"
        city = generator.choice(["北京", "上海", "Paris"])
        lines.append(f"{age:.2f},{city},{review}{i},{label},{3 * age:.1f},{'ab'[i % 2]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str


Luban = Callable[..., Ran]
