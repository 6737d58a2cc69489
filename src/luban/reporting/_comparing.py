"""The page of two artefacts: what differs, beyond chance or not."""

from __future__ import annotations

import difflib
from typing import Any

from luban.reporting._blocks import Block, Cell, Chart, Code, Figures, Grid, Heat, Note, Page, Section, Table
from luban.reporting._charts import Whisker, curves, whiskers
from luban.reporting._figures import SHOWN, better, distance, headline, interval, of_target, value
from luban.reporting._quality import against, targets_of, titled
from luban.reporting._sections import duration, progress, size_of
from luban.reporting._words import Words, number

__all__ = ["page_of_two"]

_HEAT = 12  # classes of a confusion matrix at most
_SLICES = 12


def page_of_two(a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], language: str) -> Page:
    """Return the page of two artefacts.

    Args:
        a, b: what `gather` returned of each.
        compared: what `luban compare` returned: ``targets`` that both predict, ``a`` and ``b`` (size, speed), ``differences`` (b minus
            a, paired) where both scored the same rows, ``same_rows``.
        language: ``en`` or ``zh``.
    """
    words = Words(language)
    names = _names(a, b)
    found = [
        _quality(a, b, compared, names, words),
        _sides(a, b, compared, names, words),
        _errors(a, b, compared, names, words),
        _calibration(a, b, compared, names, words),
        _slices(a, b, compared, names, words),
        progress([a, b], words, names),
        _made(a, b, names, words),
    ]
    return Page(
        language,
        words("eyebrow"),
        words("two.title", a=names[0], b=names[1]),
        _verdict(a, b, compared, names, words),
        _figures(a, b, compared, names, words),
        [one for one in found if one is not None],
        words("foot", when=b["made"], version=b["luban"]),
    )


def _names(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return what to call both: the names of their folders, told apart if they are the same."""
    names = [a["artefact"], b["artefact"]]
    return names if names[0] != names[1] else [f"{names[0]} (A)", f"{names[1]} (B)"]


def _targets(a: dict[str, Any], compared: dict[str, Any]) -> dict[str, str]:
    shared = compared["targets"]
    return {name: task for name, task in targets_of(a).items() if name in shared}


def _metrics(one: dict[str, Any], target: str) -> dict[str, Any]:
    return of_target(one["measured"].get("metrics", {}), target)


def _verdict(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> list[str]:
    sentences = []
    for target, task in _targets(a, compared).items():
        own = [_metrics(one, target) for one in (a, b)]
        name = headline(task, own[0])
        if name is None or own[1].get(name, {}).get("value") is None:
            continue
        values = [value(name, one[name]["value"]) for one in own]
        sentence = words(
            "two.values",
            target=target,
            metric=words(f"metric.{name}"),
            a=names[0],
            b=names[1],
            x=values[0],
            y=values[1],
        )
        found = compared.get("differences", {}).get(target, {}).get("differences", {}).get(name, {})
        low, high = found.get("low"), found.get("high")
        if low is None or high is None:
            key = "two.same_rows" if compared.get("same_rows") else "two.other_rows"
            sentences.append(words.sentences([sentence, words(key)]))
            continue
        size = distance(words, name, found["value"])
        if low <= 0 <= high:
            sentences.append(words.sentences([sentence, words("two.chance")]))
        else:
            best = names[1] if (found["value"] > 0) == (better(name) > 0) else names[0]
            sentences.append(words.sentences([sentence, words("two.better", name=best, difference=size)]))
    return sentences or [words("two.nothing")]


def _figures(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Figures:
    shown = []
    for one, name in zip((a, b), names, strict=True):
        for target, task in list(_targets(a, compared).items())[:1]:
            metrics = _metrics(one, target)
            key = headline(task, metrics)
            if key is not None:
                label = f"{name} · {words(f'metric.{key}')}"
                shown.append((label, value(key, metrics[key]["value"]), interval(words, key, metrics[key])))
        shown.append(
            (f"{name} · {words('parameters')}", size_of(one["model"]["parameters"]), one["model"]["type"])
        )
    return Figures(shown)


def _quality(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Section:
    blocks: list[Block] = []
    for target, task in _targets(a, compared).items():
        own = [_metrics(one, target) for one in (a, b)]
        shown = [
            name
            for name in SHOWN.get(task, SHOWN["text"])
            if all(one.get(name, {}).get("value") is not None for one in own)
        ]
        found = compared.get("differences", {}).get(target, {})
        paired = found.get("differences", {})
        rows = []
        for name in shown:
            cells = [Cell(value(name, one[name]["value"]), interval(words, name, one[name])) for one in own]
            last = [against(words, name, paired.get(name, {"value": None}))] if paired else []
            rows.append([Cell(words(f"metric.{name}")), *cells, *last])
        head = [words("metric"), *names, *([words("two.difference")] if paired else [])]
        table = Table(head, rows, [False, *[True] * (len(head) - 1)], words("caption.metrics"))
        blocks += titled(words, a, target, [*_drawn(words, shown, paired), table])
        if found.get("p_value") is not None:
            text = words(
                "two.mcnemar",
                a=names[0],
                b=names[1],
                x=number(found["only_a"]),
                y=number(found["only_b"]),
                p=number(found["p_value"]),
            )
            if compared.get("weighted"):
                text = words.sentences([text, words("two.unweighted_test")])
            blocks.append(Note("info", text))
    blocks += [Note("careful", warning) for warning in compared["warnings"]]
    if "differences" not in compared:
        blocks.append(
            Note("careful", words("two.same_rows" if compared.get("same_rows") else "two.other_rows"))
        )
    return Section("quality", words("title.quality"), words("two.lead"), blocks)


def _drawn(words: Words, shown: list[str], paired: dict[str, Any]) -> list[Block]:
    rows: list[Whisker] = [
        (words(f"metric.{name}"), "", paired[name]["value"], paired[name]["low"], paired[name]["high"])
        for name in shown
        if paired.get(name, {}).get("low") is not None and abs(paired[name]["high"]) <= 1
    ]
    if not rows:
        return []
    title, text = words("two.difference"), words("two.read")
    return [Chart(whiskers(rows, {"": "a"}, "", title=title, text=text, at=0.0, zero=True), title, text)]


def _sides(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Section:
    sides = [compared["a"], compared["b"]]
    rows = [
        [Cell(words("model")), *[Cell(one["model"]) for one in sides]],
        [Cell(words("parameters")), *[Cell(f"{one['parameters']:,}") for one in sides]],
        [Cell(words("two.size")), *[Cell(words("mib", n=number(one["megabytes"]))) for one in sides]],
    ]
    if all(one.get("rows_per_second") for one in sides):
        rows.append([Cell(words("two.speed")), *[Cell(number(one["rows_per_second"])) for one in sides]])
    costs = [one["lineage"].get("cost") or {} for one in (a, b)]
    rows.append(
        [
            Cell(words("time")),
            *[Cell(duration(c["seconds"]) if c.get("seconds") is not None else "–") for c in costs],
        ]
    )
    rows.append(
        [Cell(words("memory")), *[Cell(words("mib", n=number(c.get("peak_memory_mb")))) for c in costs]]
    )
    return Section(
        "cost",
        words("title.cost"),
        words("two.cost"),
        [Table([words("what"), *names], rows, [False, True, True])],
    )


def _errors(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Section | None:
    blocks: list[Block] = []
    for target in _targets(a, compared):
        own: list[Block] = []
        for one, name in zip((a, b), names, strict=True):
            details = one["measured"].get("details", {}).get(target, {})
            classes = list(details.get("per_class", {}))
            if details.get("confusion") and len(classes) <= _HEAT:
                corner = (words("truth"), words("said"))
                own.append(Heat(classes, details["confusion"], corner, name))
        if own:
            blocks += titled(words, a, target, [Grid(own)])
    return Section("errors", words("title.errors"), words("lead.errors"), blocks) if blocks else None


def _calibration(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Section | None:
    blocks: list[Block] = []
    for target in _targets(a, compared):
        series = []
        for one, name, colour in zip((a, b), names, "ab", strict=True):
            bins = one["measured"].get("details", {}).get(target, {}).get("reliability") or []
            if bins:
                series.append((name, colour, [(x["confidence"], x["accuracy"]) for x in bins]))
        if series:
            title, text = words("chart.reliability"), words("two.reliability")
            axes = words("axis.confidence"), words("axis.right")
            svg = curves(series, *axes, title=title, text=text, square=True, diagonal=True, points=True)
            legend = [(name, colour) for name, colour, _ in series]
            blocks += titled(words, a, target, [Chart(svg, title, text, legend=legend)])
    return (
        Section("calibration", words("title.calibration"), words("lead.calibration"), blocks)
        if blocks
        else None
    )


def _slices(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Section | None:
    blocks: list[Block] = []
    columns = [c for c in a["measured"].get("slices", {}) if c in b["measured"].get("slices", {})]
    for column in columns:
        for target, task in _targets(a, compared).items():
            name = headline(task, _metrics(a, target))
            if name is None:
                continue
            rows: list[Whisker] = []
            both = [one["measured"]["slices"][column] for one in (a, b)]
            for word in sorted(both[0], key=lambda w: -both[0][w]["rows"])[:_SLICES]:
                for own, who in zip(both, names, strict=True):
                    one = own.get(word, {}).get("metrics", {}).get(f"{target}.{name}", {})
                    if one.get("value") is not None:
                        rows.append((word, who, one["value"], one["low"], one["high"]))
            title, text = words("chart.slices", column=column, target=target), words("two.slices")
            colours = {names[0]: "a", names[1]: "b"}
            svg = whiskers(rows, colours, words(f"metric.{name}"), title=title, text=text)
            blocks.append(Chart(svg, title, text, legend=list(colours.items())))
    return Section("slices", words("title.slices"), words("lead.slices"), [Grid(blocks)]) if blocks else None


def _made(a: dict[str, Any], b: dict[str, Any], names: list[str], words: Words) -> Section:
    """Say how the recipes differ."""
    lines = list(
        difflib.unified_diff(
            a["recipe"].splitlines(), b["recipe"].splitlines(), names[0], names[1], lineterm="", n=2
        )
    )
    blocks: list[Block] = [
        Code("\n".join(lines), words("two.recipes")) if lines else Note("info", words("two.same_recipe"))
    ]
    hashes = [(one["lineage"].get("data") or {}).get("train") for one in (a, b)]
    if all(hashes):
        key = "two.same_data" if hashes[0] == hashes[1] else "two.other_data"
        blocks.append(Note("info", words(key)))
    return Section("lineage", words("title.lineage"), words("two.made"), blocks)
