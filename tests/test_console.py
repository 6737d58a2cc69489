"""What a person reads while a verb runs."""

from __future__ import annotations

import pytest

from luban.console import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "< 0.1 s"), (0.01, "< 0.1 s"), (0.0999, "< 0.1 s"), (0.1, "0.1 s"), (119.94, "119.9 s"), (119.99, "2.0 min"),
        (120, "2.0 min"), (5396.9, "89.9 min"), (5399.0, "1.5 h"), (5400, "1.5 h"), (86_400, "24.0 h"),
    ],
)  # fmt: skip
def test_a_time_has_no_edge_between_its_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said
