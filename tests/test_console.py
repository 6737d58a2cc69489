"""What a person reads while a verb runs."""

from __future__ import annotations

import pytest
from rich.console import Console as RichConsole

from luban.console import Terminal, duration
from luban.sentences import say


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "< 0.1 s"), (0.01, "< 0.1 s"), (0.0999, "< 0.1 s"), (0.1, "0.1 s"), (119.94, "119.9 s"), (119.99, "2.0 min"),
        (120, "2.0 min"), (5396.9, "89.9 min"), (5399.0, "1.5 h"), (5400, "1.5 h"), (86_400, "24.0 h"),
    ],
)  # fmt: skip
def test_a_time_has_no_edge_between_its_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("language", "said", "far"),
    [
        (
            "en",
            "looking at all 8 rows",
            ["reading: 8 rows", "changing rows  ━━━━━╌╌╌╌╌  4 of 8 rows, 0 s left"],
        ),
        ("zh", "查看全部 8 行", ["读取数据：8 行", "改变数据行  ━━━━━╌╌╌╌╌  4 / 8 行，剩余 0 秒"]),
    ],
)
def test_a_terminal_speaks_a_language(
    capsys: pytest.CaptureFixture[str], language: str, said: str, far: list[str]
) -> None:
    terminal = Terminal(language)
    terminal.rich = RichConsole(stderr=True, force_terminal=True, highlight=False, soft_wrap=True)
    terminal.stage(say("reading"), 8)
    terminal.stage(say("changing rows"), 4, 8)
    terminal.say(say("looking at {sample}", sample=say("all {n:,} rows", n=8)))
    terminal.say("what has no translation")
    told = capsys.readouterr().err
    assert said in told
    assert "what has no translation" in told
    for one in far:
        assert one in told
