"""The sections of what `luban audit` found, one for each family of audits."""

from __future__ import annotations

from typing import Any

from luban.reporting._blocks import Block, Cell, Chart, Grid, Note, Section, Table, Text
from luban.reporting._charts import Whisker, whiskers
from luban.reporting._words import Words, number
from luban.sentences import named

__all__ = ["FAMILIES", "audit_name", "audited", "figure_name", "findings", "results_of", "severities"]

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
_OURS = ("lost", "auc", "tpr_at_0.1%_fpr")  # figures whose first part is a word of ours, and no column
_GAPS = ("(missing)", "(others)")  # values that stand for no value, or for many
_WORDS = ("measure", "test", "change", "attack", "kind")  # columns of tables that hold words of ours


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
        blocks: list[Block] = [*findings(words, results)]
        for one in results:
            own = _result(words, one)
            if own and len(results) > 1:
                own.insert(0, Text(audit_name(words, one["audit"]), heading=True))
            blocks += own
        for audit in data["audits"]:
            left = [
                words("with_kind", name=audit_name(words, name), kind=words.sentence(why))
                for name, why in audit["left_out"].get(family, {}).items()
            ]
            if left:
                blocks.append(Note("info", words("left_out", what=words.listed(left))))
        if not blocks:
            blocks.append(Note("absent", words("not_audited"), f"{command} --only {family}"))
        title, lead = words(f"title.audit.{family}"), words(f"lead.audit.{family}")
        sections.append(Section(f"audit-{family}", title, lead, blocks))
    return sections


def findings(words: Words, results: list[dict[str, Any]]) -> list[Block]:
    """Return what was found, the worst first, and what was looked for in vain."""
    found = [finding for one in results for finding in one.get("findings", [])]
    blocks: list[Block] = []
    for finding in sorted(found, key=lambda one: _SEVERITIES.index(one["severity"])):
        severity = finding["severity"]
        numbers = finding.get("figures", {}).items()
        figures = [
            f"{figure_name(words, name)} {_said(words, value)}"
            for name, value in numbers
            if isinstance(value, int | float)
        ]
        blocks.append(
            Note(
                severity,
                _sentence(words, finding["sentence"]),
                words.listed(figures),
                words(f"severity.{severity}"),
                _sentence(words, finding.get("advice", "")),
            )
        )
    quiet = [audit_name(words, one["audit"]) for one in results if not one.get("findings")]
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
        rows = [[Cell(figure_name(words, name)), Cell(number(value))] for name, value in numbers.items()]
        caption = words("caption.figures", audit=audit_name(words, one["audit"]))
        head = [words("figure"), words("value")]
        blocks.append(Table(head, rows, [False, True], caption, fold=len(rows) > _FEW or bool(tables)))
    if one.get("notes"):
        blocks.append(Note("info", words.sentences([_sentence(words, str(note)) for note in one["notes"]])))
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
            (_said(words, line.get("group")), "", line[key], line[f"{key}_low"], line[f"{key}_high"])
            for line in shown
            if all(isinstance(line.get(one), int | float) for one in (key, f"{key}_low", f"{key}_high"))
        ]
        if rows:
            label = what = figure_name(words, key)
            if classes[-1] is not None:
                label = words("with_kind", name=what, kind=classes[-1])
            title, text = words("chart.groups", what=label, by=name), words("read.groups")
            charts.append(Chart(whiskers(rows, {"": "a"}, what, title=title, text=text), title, text))
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
    caption = _captioned(words, name)
    if len(lines) > _LINES:
        caption += words("some_of", n=_LINES, of=number(len(lines)))
    return Table([figure_name(words, key) for key in head], rows, numbers, caption, fold=len(lines) > _FEW)


def _cell(words: Words, line: dict[str, Any], key: str) -> Cell:
    value = line.get(key)
    low, high = line.get(f"{key}_low"), line.get(f"{key}_high")
    if isinstance(value, dict):
        value, low, high = (value.get(part) for part in ("value", "low", "high"))
    if isinstance(low, int | float) and isinstance(high, int | float):
        return Cell(_said(words, value), words("range", low=number(low), high=number(high)))
    if key in _WORDS:
        return Cell(named(str(value), words.language, "cells"))
    return Cell(_said(words, value))


def audit_name(words: Words, name: str) -> str:
    """Return what people call an audit."""
    return named(name, words.language, "audits")


def figure_name(words: Words, key: str) -> str:
    """Return what people call a figure or a column of a table; what stands before its name is a column of the user's.

    Example:
        >>> figure_name(Words("zh"), "sex.demographic_parity_difference"), figure_name(Words("zh"), "typos.lost")
        ('sex · 人口统计均等差', '少量错别字 · 性能损失')
    """
    start, by, target = key.partition("_by_")
    if by and start == "missing_difference":
        return f"{target} · {named(start, words.language)}"
    parts = key.split(".")
    for i in range(1, len(parts)):
        before, name = ".".join(parts[:i]), ".".join(parts[i:])
        if named(name, "zh") != name.replace("_", " "):
            before = named(before, words.language, "cells") if name in _OURS else before
            return f"{before} · {named(name, words.language)}"
    return named(key, words.language)


def _captioned(words: Words, name: str) -> str:
    """Return what people call a table: one of ours, of a column, or by group, which has the name of the column."""
    column, _, last = name.rpartition(".")
    if column and last in ("classes", "near"):
        return f"{column} · {named(last, words.language, 'tables')}"
    return named(name, words.language, "tables")


def _sentence(words: Words, text: str) -> str:
    text = words.sentence(text)
    end = "。" if words.language == "zh" else "."
    return f"{text}{end}" if text and not text.endswith((".", "。", "!", "?", "！", "？")) else text


def _said(words: Words, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else words("yes" if value else "no")
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        return words.listed([_said(words, one) for one in value])
    return named(value, words.language, "cells") if value in _GAPS else str(value)
