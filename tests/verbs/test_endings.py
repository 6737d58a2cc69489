"""What a training ends with: audits of a bounded sample, which is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import luban
from audit_cases import RECIPE, people
from luban.console import Console
from luban.verbs import endings


class Heard(Console):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.parametrize(
    ("limit", "room", "most"), [(100, 2**28, 100), (20_000, 4_000, 449), (20_000, 2**28, 450)]
)
def test_audits_look_at_a_sample_that_fits_into_memory(
    limit: int, room: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_LIMIT", limit)
    monkeypatch.setattr(endings, "ROOM", room)
    people(1500).write_csv(tmp_path / "rows.csv")
    data = {**RECIPE["data"], "train": str(tmp_path / "rows.csv")}
    heard = Heard()
    recipe = {**RECIPE, "data": data, "audits": ["fairness"], "gates": ["label.accuracy >= 0.5"]}
    luban.train(recipe, output=tmp_path / "model", console=heard)
    result = json.loads((tmp_path / "model" / "audit.json").read_text(encoding="utf-8"))
    (rows,) = (one["rows"] for one in result["audits"].values())
    assert 0 < rows <= most
    told = [sentence for sentence in heard.said if sentence.startswith("audits look at")]
    why = " (no more fit into 0.003815 MiB)" if room == 4_000 else ""
    assert told == ([] if rows == 450 else [f"audits look at {rows} rows drawn from 450{why}"])
    (gate,) = result["gates"]
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text(encoding="utf-8"))
    assert gate["value"] == metrics["metrics"]["label.accuracy"]["value"], "which is that of all rows"
