"""The sections of what `luban audit` found, one for each family of audits."""

from __future__ import annotations

from typing import Any

from luban.reporting._blocks import Block, Cell, Chart, Grid, Note, Section, Table, Text
from luban.reporting._charts import Whisker, whiskers
from luban.reporting._words import Words, number

__all__ = ["FAMILIES", "audited", "results_of", "severities"]

FAMILIES = ("fairness", "robustness", "privacy", "data", "calibration", "generation")
"""Families of audits in the order of the page."""
_ASKED = ("fairness", "robustness", "privacy")  # whose absence is said
_SEVERITIES = ("high", "medium", "low", "info")
_LINES = 40  # of a table
_FEW = 8  # lines that are not folded
_DRAWN = (
    "selection_rate",
    "true_positive_rate",
    "false_positive_rate",
    "accuracy",
)  # drawn by group, in turn, two at most
_GROUPS = 24  # drawn at most


def results_of(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return family → results, of all audits."""
    found: dict[str, list[dict[str, Any]]] = {}
    for audit in data["audits"]:
        for name, one in audit["audits"].items():
            found.setdefault(one["family"], []).append({"audit": name, **one})
    return found


def severities(data: dict[str, Any]) -> dict[str, int]:
    """Return severity → number of findings, of all audits."""
    counts: dict[str, int] = {}
    for results in results_of(data).values():
        for one in results:
            for finding in one.get("findings", []):
                counts[finding["severity"]] = counts.get(finding["severity"], 0) + 1
    return counts


def audited(data: dict[str, Any], words: Words) -> list[Section]:
    """Findings, figures and tables; where an audit was not made, the command that makes it."""
    found = results_of(data)
    command = f"luban audit {data['artefact']} DATA -o {data['artefact']}/audit.json"
    if not found:
        note = Note("absent", words("no_audit"), command)
        return [Section("audits", words("title.audits"), words("lead.audits"), [note])]
    sections: list[Section] = []
    for family in FAMILIES:
        skipped = any(audit["left_out"].get(family) for audit in data["audits"])
        if family not in found and family not in _ASKED and not skipped:
            continue
        results = found.get(family, [])
        blocks: list[Block] = [*_findings(words, results)]
        for one in results:
            own = _result(words, one)
            if own and len(results) > 1:
                own.insert(0, Text(_spaced(one["audit"]), heading=True))
            blocks += own
        for audit in data["audits"]:
            left = [f"{_spaced(name)} ({why})" for name, why in audit["left_out"].get(family, {}).items()]
            if left:
                blocks.append(Note("info", words("left_out", what=words.listed(left))))
        if not blocks:
            blocks.append(Note("absent", words("not_audited"), f"{command} --only {family}"))
        title, lead = words(f"title.audit.{family}"), words(f"lead.audit.{family}")
        sections.append(Section(f"audit-{family}", title, lead, blocks))
    return sections


def _findings(words: Words, results: list[dict[str, Any]]) -> list[Block]:
    """Return what was found, the worst first, and what was looked for in vain."""
    found = [finding for one in results for finding in one.get("findings", [])]
    blocks: list[Block] = []
    for finding in sorted(found, key=lambda one: _SEVERITIES.index(one["severity"])):
        severity = finding["severity"]
        numbers = finding.get("figures", {}).items()
        figures = [
            f"{_spaced(name)} {_said(value)}" for name, value in numbers if isinstance(value, int | float)
        ]
        blocks.append(
            Note(
                severity,
                _sentence(finding["sentence"]),
                words.listed(figures),
                words(f"severity.{severity}"),
                _sentence(finding.get("advice", "")),
            )
        )
    quiet = [_spaced(one["audit"]) for one in results if not one.get("findings")]
    if quiet:
        blocks.append(Note("info", words("nothing_found", audit=words.listed(quiet))))
    return blocks


def _result(words: Words, one: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    tables = one.get("tables") or {}
    for name, lines in tables.items():
        blocks += _charts(words, name, lines)
    for name, lines in tables.items():
        if lines:
            blocks.append(_table(words, name, lines))
    numbers = {name: value for name, value in (one.get("figures") or {}).items() if value is not None}
    if numbers:
        rows = [[Cell(_spaced(name)), Cell(number(value))] for name, value in numbers.items()]
        caption = words("caption.figures", audit=_spaced(one["audit"]))
        head = [words("figure"), words("value")]
        blocks.append(Table(head, rows, [False, True], caption, fold=len(rows) > _FEW or bool(tables)))
    if one.get("notes"):
        blocks.append(Note("info", words.sentences([_sentence(str(note)) for note in one["notes"]])))
    return blocks


def _charts(words: Words, name: str, lines: list[dict[str, Any]]) -> list[Block]:
    """Draw rates by group, where a table has them with intervals."""
    if not lines or "group" not in lines[0]:
        return []
    classes = list(dict.fromkeys(line.get("class") for line in lines))
    shown = [line for line in lines if line.get("class") == classes[-1]][:_GROUPS]
    charts: list[Block] = []
    for key in [key for key in _DRAWN if key in lines[0] and f"{key}_low" in lines[0]][:2]:
        rows: list[Whisker] = [
            (str(line.get("group")), "", line[key], line[f"{key}_low"], line[f"{key}_high"])
            for line in shown
            if all(isinstance(line.get(one), int | float) for one in (key, f"{key}_low", f"{key}_high"))
        ]
        if rows:
            label = f"{_spaced(key)} ({classes[-1]})" if classes[-1] is not None else _spaced(key)
            title, text = words("chart.groups", what=label, by=name), words("read.groups")
            charts.append(Chart(whiskers(rows, {"": "a"}, _spaced(key), title=title, text=text), title, text))
    return [Grid(charts)] if charts else []


def _table(words: Words, name: str, lines: list[dict[str, Any]]) -> Table:
    """Return lines as a table: what has both ends of an interval beside it, or in it, gets them as a second line."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    head = [
        key
        for key in keys
        if not (key.endswith(("_low", "_high")) and key.rsplit("_", 1)[0] in keys)
        and not isinstance(lines[0].get(key), list)
    ]
    rows = [[_cell(words, line, key) for key in head] for line in lines[:_LINES]]
    numbers = [any(isinstance(line.get(key), int | float | dict) for line in lines) for key in head]
    caption = _spaced(name)
    if len(lines) > _LINES:
        caption += words("some_of", n=_LINES, of=number(len(lines)))
    return Table([_spaced(key) for key in head], rows, numbers, caption, fold=len(lines) > _FEW)


def _cell(words: Words, line: dict[str, Any], key: str) -> Cell:
    value = line.get(key)
    low, high = line.get(f"{key}_low"), line.get(f"{key}_high")
    if isinstance(value, dict):
        value, low, high = (value.get(part) for part in ("value", "low", "high"))
    if isinstance(low, int | float) and isinstance(high, int | float):
        return Cell(_said(value), words("range", low=number(low), high=number(high)))
    return Cell(_said(value))


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _sentence(text: str) -> str:
    return f"{text}." if text and not text.endswith((".", "。", "!", "?", "！", "？")) else text


def _said(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        return ", ".join(_said(one) for one in value)
    return str(value)
