"""The page of two artefacts: what differs, beyond chance or not."""

from __future__ import annotations

import difflib
from typing import Any

from luban.console import duration
from luban.reporting._audited import audit_name, figure_name, findings, results_of, severities
from luban.reporting._blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Figures,
    Grid,
    Heat,
    Note,
    Page,
    Section,
    Table,
    Text,
)
from luban.reporting._charts import Whisker, curves, whiskers
from luban.reporting._figures import SHOWN, better, distance, headline, interval, of_target, value
from luban.reporting._quality import against, targets_of, titled
from luban.reporting._sections import progress, size_of
from luban.reporting._words import Words, number, percent
from luban.sentences import say

__all__ = ["page_of_two"]

_HEAT = 12  # classes of a confusion matrix at most
_SLICES = 12
_FIGURES = 12  # of audits that are not folded


def page_of_two(a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], language: str) -> Page:
    """Return the page of two artefacts.

    Args:
        a, b: what `gather` returned of each.
        compared: what `luban compare` returned: ``targets`` that both predict, ``a`` and ``b`` (size, speed), ``differences`` (b minus
            a, paired) where both scored the same rows, ``same_rows``, ``incomparable`` (metric → why), ``curves_apart``.
        language: ``en`` or ``zh``.
    """
    words = Words(language)
    names = _names(a, b)
    found = [
        _quality(a, b, compared, names, words),
        _baselines(a, b, compared, names, words),
        _sides(a, b, compared, names, words),
        _errors(a, b, compared, names, words),
        _calibration(a, b, compared, names, words),
        _slices(a, b, compared, names, words),
        _audits(a, b, names, words),
        progress([a, b], words, names, compared["curves_apart"]),
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


def _first(compared: dict[str, Any], target: str, task: str, metrics: dict[str, Any]) -> str | None:
    """Return the metric by which the two are compared first; None where none says anything of them beside each other."""
    apart = compared["incomparable"]
    return headline(task, {name: one for name, one in metrics.items() if f"{target}.{name}" not in apart})


def _verdict(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> list[str]:
    sentences = []
    for target, task in _targets(a, compared).items():
        own = [_metrics(one, target) for one in (a, b)]
        name = _first(compared, target, task, own[0])
        if name is None and (told := headline(task, own[0])) is not None:
            why = compared["incomparable"][f"{target}.{told}"]
            nothing = say("{target}: there is nothing to compare by, since {why}.", target=target, why=why)
            sentences.append(words.sentence(nothing))
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
            key = _first(compared, target, task, metrics)
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
    blocks += [Note("careful", words.sentence(warning)) for warning in compared["warnings"]]
    if "differences" not in compared:
        blocks.append(
            Note("careful", words("two.same_rows" if compared.get("same_rows") else "two.other_rows"))
        )
    return Section("quality", words("title.quality"), words("two.lead"), blocks)


def _baselines(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Section:
    """Put both beside what simple methods reach, each trained on the training rows of its model."""
    blocks: list[Block] = []
    for target, task in _targets(a, compared).items():
        both = [one["baselines"].get(target, {}) for one in (a, b)]
        own: list[Block] = []
        name = _first(compared, target, task, _metrics(a, target))
        if name is not None and any("each" in one or "xz" in one for one in both):
            own.append(_simple(words, name, [_metrics(one, target) for one in (a, b)], both, names))
        for found, who in zip(both, names, strict=True):
            if "absent" in found:
                text = words("two.no_baseline", name=who, why=words.of(found))
                own.append(Note("absent", text))
            elif "each" in found:
                rows = {"rows": number(found["rows"]), "train": number(found["train_rows"])}
                own.append(Text(words("two.how_baselines", name=who, of=number(found["of"]), **rows)))
        blocks += titled(words, a, target, own)
    return Section("baselines", words("two.baselines"), words("two.lead_baselines"), blocks)


def _simple(
    words: Words,
    name: str,
    metrics: list[dict[str, Any]],
    both: list[dict[str, Any]],
    names: list[str],
) -> Table:
    """Return a table of what the models and their baselines reach by one metric, and how far these are apart."""
    each = [
        {one["name"]: (one["metrics"], one["differences"]) for one in found.get("each", [])}
        | ({"xz": ({"bits_per_byte": {"value": found["xz"]["bits_per_byte"]}}, {})} if "xz" in found else {})
        for found in both
    ]
    nothing: dict[str, Any] = {"value": None}
    first = [Cell(words("model"))]
    for own, found in zip(metrics, both, strict=True):
        one = found.get("metrics", own).get(name, nothing)
        first += [Cell(value(name, one["value"]), interval(words, name, one)), Cell("")]
    rows = [first]
    for method in dict.fromkeys([*each[0], *each[1]]):
        cells = [Cell(words(f"baseline.{method}"))]
        for own in each:
            reached, differences = own.get(method, ({}, {}))
            one = reached.get(name, nothing)
            cells += [
                Cell(value(name, one["value"]), interval(words, name, one)),
                against(words, name, differences.get(name, nothing)),
            ]
        rows.append(cells)
    head = [words("two.method")]
    for who in names:
        head += [who, words("two.above", name=who)]
    caption = words("two.by_metric", metric=words(f"metric.{name}"))
    return Table(head, rows, [False, True, True, True, True], caption)


def _audits(a: dict[str, Any], b: dict[str, Any], names: list[str], words: Words) -> Section:
    """Put side by side what audits found of both."""
    both = (a, b)
    found = [results_of(one) for one in both]
    blocks: list[Block] = []
    if any(found):
        counts = [severities(one) for one in both]
        rows = [
            [
                Cell(words(f"severity.{severity}")),
                *[
                    Cell(number(own.get(severity, 0)) if results else "–")
                    for own, results in zip(counts, found, strict=True)
                ],
            ]
            for severity in ("high", "medium", "low", "info")
        ]
        made = [
            words.listed([audit_name(words, one["audit"]) for results in own.values() for one in results])
            or "–"
            for own in found
        ]
        rows.append([Cell(words("two.audited")), *[Cell(one) for one in made]])
        blocks.append(
            Table([words("two.severity"), *names], rows, [False, True, True], words("two.findings"))
        )
        blocks += _audit_figures(words, found, names)
    for one, results, who in zip(both, found, names, strict=True):
        if results:
            blocks.append(Text(words("two.found_of", name=who), heading=True))
            blocks += findings(words, [result for own in results.values() for result in own])
        else:
            command = f"luban audit {one['artefact']} DATA -o {one['artefact']}/audit.json"
            blocks.append(Note("absent", words("two.no_audit", name=who), command))
    return Section("audits", words("title.audits"), words("two.lead_audits"), blocks)


def _audit_figures(
    words: Words, found: list[dict[str, list[dict[str, Any]]]], names: list[str]
) -> list[Block]:
    """Return the figures of audits that were made of both."""
    figures = [
        {
            (result["audit"], name): one
            for results in own.values()
            for result in results
            for name, one in (result.get("figures") or {}).items()
            if one is not None
        }
        for own in found
    ]
    rows = [
        [
            Cell(figure_name(words, key[1]), audit_name(words, key[0])),
            *[Cell(number(own[key])) for own in figures],
        ]
        for key in figures[0]
        if key in figures[1]
    ]
    if not rows:
        return []
    head = [words("figure"), *names]
    return [Table(head, rows, [False, True, True], words("two.figures"), fold=len(rows) > _FIGURES)]


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
    if all(one.get("tokens_per_second") for one in sides):
        speeds = [Cell(number(one["tokens_per_second"])) for one in sides]
        rows.append([Cell(words("two.tokens")), *speeds])
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
    energy = [c.get("energy_joules") for c in costs]
    rows.append(
        [
            Cell(words("energy")),
            *[
                Cell(words("not_measured"))
                if joules is None
                else Cell(words("kilojoules", n=number(joules / 1000), wh=number(joules / 3600)))
                for joules in energy
            ],
        ]
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
            table = _bins(words, [one["measured"] for one in (a, b)], target, names)
            blocks += titled(words, a, target, [Grid([Chart(svg, title, text, legend=legend), table])])
    return (
        Section("calibration", words("title.calibration"), words("lead.calibration"), blocks)
        if blocks
        else None
    )


def _bins(words: Words, measured: list[dict[str, Any]], target: str, names: list[str]) -> Table:
    """Return how often each is right where it is so sure, and of how many rows."""
    each = [
        {
            (one["low"], one["high"]): one
            for one in own.get("details", {}).get(target, {}).get("reliability") or []
        }
        for own in measured
    ]
    rows = []
    for low, high in sorted({*each[0], *each[1]}):
        cells = [Cell(words("range", low=percent(low, 0), high=percent(high, 0)))]
        for own in each:
            one = own.get((low, high))
            cells += (
                [Cell("–"), Cell("–")]
                if one is None
                else [
                    Cell(percent(one["confidence"])),
                    Cell(percent(one["accuracy"]), words("n_rows", n=number(one["weight"]))),
                ]
            )
        rows.append(cells)
    head = [words("bin")]
    for who in names:
        head += [f"{who}: {words('axis.confidence')}", f"{who}: {words('axis.right')}"]
    return Table(head, rows, [False, True, True, True, True], words("caption.reliability"))


def _slices(
    a: dict[str, Any], b: dict[str, Any], compared: dict[str, Any], names: list[str], words: Words
) -> Section | None:
    blocks: list[Block] = []
    columns = [c for c in a["measured"].get("slices", {}) if c in b["measured"].get("slices", {})]
    for column in columns:
        for target, task in _targets(a, compared).items():
            name = _first(compared, target, task, _metrics(a, target))
            if name is None:
                continue
            rows: list[Whisker] = []
            lines: list[list[Cell]] = []
            both = [one["measured"]["slices"][column] for one in (a, b)]
            words_of = dict.fromkeys(w for own in both for w in sorted(own, key=lambda w: -own[w]["rows"]))
            for i, word in enumerate(words_of):
                cells = [Cell(word)]
                for own, who in zip(both, names, strict=True):
                    one = own.get(word, {}).get("metrics", {}).get(f"{target}.{name}", {"value": None})
                    if one["value"] is not None and i < _SLICES:
                        rows.append((word, who, one["value"], one["low"], one["high"]))
                    n = words("n_rows", n=number(own[word]["rows"])) if word in own else ""
                    shown = (interval(words, name, one), n)
                    cells.append(Cell(value(name, one["value"]), " · ".join(part for part in shown if part)))
                lines.append(cells)
            title, text = words("chart.slices", column=column, target=target), words("two.slices")
            colours = {names[0]: "a", names[1]: "b"}
            svg = whiskers(rows, colours, words(f"metric.{name}"), title=title, text=text)
            table = Table([column, *names], lines, [False, True, True], words("caption.slices"))
            blocks += [Chart(svg, title, text, legend=list(colours.items())), table]
    return Section("slices", words("title.slices"), words("two.lead_slices"), blocks) if blocks else None


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
