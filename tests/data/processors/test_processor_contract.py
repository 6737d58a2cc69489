"""Every registered processor keeps the contract, on cells of every type that it may meet."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from luban import registry
from luban.data.contracts import Processor
from luban.testing import check_processor

rng = np.random.default_rng(0)


def png(side: int = 6, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(file, "PNG")
    return file.getvalue()


def talk(*turns: str) -> str:
    """A conversation of the user and the assistant by turns."""
    return json.dumps(
        [{"role": ["user", "assistant"][i % 2], "content": turn} for i, turn in enumerate(turns)]
    )


CASES: list[tuple[str, dict[str, Any], pl.Series]] = [
    ("number", {}, pl.Series(["1", "2.5", None, "-3e2", "1,200", "45%", "x", "", "１２"])),
    ("number", {}, pl.Series([1.0, None, 3.5, float("nan"), float("inf"), -2.0])),
    ("number", {}, pl.Series([1, 2, 3, None, 2**40])),
    ("number", {}, pl.Series([True, False, None, True])),
    ("number", {}, pl.Series([7.0] * 5)),
    ("number", {}, pl.Series([datetime.timedelta(seconds=90), None, datetime.timedelta(days=1)])),
    ("number", {}, pl.Series([Decimal("1.50"), None, Decimal("-2.25")])),
    ("category", {}, pl.Series([Decimal("1.50"), None, Decimal("-2.25"), Decimal("1.50")])),
    ("category", {}, pl.Series([datetime.timedelta(seconds=90), None, datetime.timedelta(days=1)])),
    ("category", {}, pl.Series([b"a", "b\u00e9".encode(), None, b"a"])),
    ("number", {}, pl.Series(["1e300", "1e30", "-1e38", "1", "2"])),
    *(
        ("number", {"normalize": normalize, "missing": missing, "indicator": indicator}, pl.Series([5.0, None, 1.0, 9.5, 2.0, -7.0]))
        for normalize in ("zscore", "minmax", "robust", "log", "none")
        for missing in ("mean", "median", "zero")
        for indicator in (None, True, False)
    ),
    ("category", {}, pl.Series(["b", "a", None, "b", " a ", "", "价格"])),
    ("category", {"min_count": 2}, pl.Series(["b", "a", None, "b", "a", "c"])),
    ("category", {"max_size": 2}, pl.Series(["b", "a", None, "b", "a", "c"])),
    ("category", {}, pl.Series([1.0, 2.0, float("nan"), None, 2.5, 1.0])),
    ("category", {}, pl.Series(["nan", "1", "10", "9", "inf", "2"])),
    ("category", {}, pl.Series([3, 1, None, 2, 3])),
    ("category", {}, pl.Series([True, False, None, True])),
    ("category", {}, pl.Series([datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), None])),
    ("category", {}, pl.Series(["a", "b", None], dtype=pl.Categorical)),
    ("category", {}, pl.Series([str(i) for i in range(400)])),
    ("binary", {}, pl.Series(["yes", "no", None, "yes", ""])),
    ("binary", {"positive": "no", "threshold": 0.3}, pl.Series(["yes", "no", None, "yes"])),
    ("binary", {}, pl.Series([0, 1, None, 1])),
    ("binary", {}, pl.Series([0.0, 1.0, None, float("nan")])),
    ("binary", {}, pl.Series([True, False, None])),
    ("set", {}, pl.Series(["a;b", "b", None, "", "c; a ;;a", "价格"])),
    ("set", {"separator": "、", "min_count": 2}, pl.Series(["动作、喜剧", "喜剧、爱情", "动作", None])),
    ("set", {"max_size": 2, "threshold": 0.2}, pl.Series([["a", "b"], ["b", None, "c"], None, []])),
    ("set", {}, pl.Series([[1, 2], [2], None])),
    ("date", {}, pl.Series(["2024-01-01", "2026年3月4日", "2023/5/6 12:30", None, "soon", "2020-02-29T01:02:03Z"])),
    ("date", {}, pl.Series([datetime.date(2024, 1, 1), datetime.date(1969, 1, 2), None])),
    ("date", {}, pl.Series([datetime.datetime(2024, 1, 1, 12, 30, 15), datetime.datetime(2024, 1, 2), None])),
    ("date", {}, pl.Series([20240101, 20240301, None])),
    ("date", {"formats": ["%d.%m.%y"]}, pl.Series(["01.02.24", "03.04.25", None, "2024-01-01"])),
    ("date", {"formats": ["%Y-%m-%d %I:%M %p"]}, pl.Series(["2024-01-01 03:04 PM", "2024-01-02 03:04 AM", None])),
    *(
        ("text", {"tokens": tokens, "special": special, "min_count": 1, "vocabulary": 300, "max_length": 4}, pl.Series(["Good room, 10/10", "服务很好", None, "", "good GOOD room again 。"]))
        for tokens in ("char", "word", "bpe", "wordpiece")  # two fits of unigram differ
        for special in (False, True)
    ),
    ("text", {"lowercase": False, "max_length": None}, pl.Series(["Aa", "aA" * 600, None, "b"])),
    ("text", {}, pl.Series([12, 34, None, 12])),
    *(
        ("chat", {"tokens": tokens, "template": template, "min_count": 1, "vocabulary": 300, "bytes": True}, pl.Series([talk("1 + 1", "2"), talk("服务", "很好", "Good?", "\nyes"), None, "", talk("no answer")]))
        for tokens in ("char", "word", "bpe", "wordpiece")
        for template in (None, "llama3", "alpaca", "plain")
    ),
    ("chat", {"max_length": 16, "tokens": "bpe"}, pl.Series([talk("1 + 1", "2 and some more of it"), talk("2", "x"), talk("much too long a question for it", "lost")])),
    ("chat", {}, pl.Series([json.loads(talk("1 + 1", "2")), None, json.loads(talk("and", "so", "on", "on"))])),
    ("vector", {}, pl.Series([[1.0, 2.0], [3.0, 4.5], None, [1.0], [float("nan"), 1.0]])),
    ("vector", {"normalize": "minmax"}, pl.Series(np.arange(12.0).reshape(4, 3))),
    ("vector", {"normalize": "none"}, pl.Series([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])),
    ("vector", {}, pl.Series([[1, 2], [3, 4], ["a", "b"], None], dtype=pl.Object)),
    ("image", {}, pl.Series(rng.integers(0, 256, (4, 6, 6), dtype=np.uint8))),
    ("image", {"normalize": "zscore"}, pl.Series(rng.integers(0, 256, (4, 6, 6, 3), dtype=np.uint8))),
    ("image", {"height": 4, "width": 5, "channels": 3, "resize": "fit"}, pl.Series(rng.integers(0, 256, (4, 6, 6), dtype=np.uint8))),
    ("image", {"normalize": "none"}, pl.Series([png(), png(8), None, b"broken", png(6, "L")])),
    ("image", {}, pl.Series([{"bytes": png(), "path": None}, {"bytes": png(), "path": None}, None])),
    ("image", {}, pl.Series(rng.integers(0, 256, (4, 6, 6)).astype(np.float32))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "values"), CASES, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(CASES)]
)
def test_contract(name: str, options: dict[str, Any], values: pl.Series) -> None:
    processor: Processor = registry.lookup("processors", name)(**options)
    check_processor(processor, values.alias("column"), targets=processor.output is not None)


def test_every_processor_has_a_case() -> None:
    assert {name for name, _, _ in CASES} >= {*registry.names("processors")}
