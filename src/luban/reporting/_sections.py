"""The page: its head, and its sections in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from luban.console import duration
from luban.evaluation.language import OF_TOKENS
from luban.reporting._audited import audit_name, audited, results_of, severities
from luban.reporting._blocks import Block, Cell, Chart, Code, Figures, Grid, Note, Page, Section, Table, Text
from luban.reporting._charts import curves
from luban.reporting._figures import better, distance, headline, interval, of_target, value
from luban.reporting._quality import best_baseline, calibration, errors, quality, slices, targets_of
from luban.reporting._shown import examples
from luban.reporting._words import Words, number, percent
from luban.sentences import named

__all__ = ["page", "progress", "size_of", "verdict"]

_FEW = 200  # rows measured on, below which a caution is due
_LINES = 12  # of a table of numbers behind a curve


def page(data: dict[str, Any], language: str) -> Page:
    """Return the page of one artefact.

    Args:
        data: what `gather` returned.
        language: ``en`` or ``zh``.
    """
    words = Words(language)
    found = [
        quality(data, words),
        errors(data, words),
        calibration(data, words),
        slices(data, words),
        examples(data, words),
        *audited(data, words),
        progress([data], words),
        _columns(data, words),
        _cost(data, words),
        _lineage(data, words),
        _card(data, words),
    ]
    return Page(
        language,
        words("eyebrow"),
        _title(data, words),
        verdict(data, words),
        _figures(data, words),
        [one for one in found if one is not None],
        words("foot", when=data["made"], version=data["luban"]),
    )


# --- the head ---------------------------------------------------------------------------------------------


def _title(data: dict[str, Any], words: Words) -> str:
    names = words.listed(list(targets_of(data)) or [data["artefact"]])
    key = (
        "page_title_language" if data["model"]["language"] and not data["model"]["targets"] else "page_title"
    )
    return words(key, what=names, model=data["model"]["type"])


def verdict(data: dict[str, Any], words: Words) -> list[str]:
    """Return what to remember, a sentence or two for each target, and one about audits and gates."""
    sentences: list[str] = []
    measured = data["measured"]
    if data.get("folds"):
        sentences.append(words("verdict.folds", n=len(data["folds"]["each"])))
    for target, task in targets_of(data).items() if measured else ():
        metrics = of_target(measured["metrics"], target)
        name = headline(task, metrics)
        if name is None:
            continue
        within = interval(words, name, metrics[name])
        sentence = words(
            "verdict.measured" if within else "verdict.measured_alone",
            target=target,
            metric=words(f"metric.{name}"),
            value=value(name, metrics[name]["value"]),
            interval=within,
            rows=number(measured["rows"]),
            split=words(f"split.{measured['on']}")
            if words.has(f"split.{measured['on']}")
            else str(measured["on"]),
        )
        sentences.append(words.sentences([sentence, *_beside(data, words, target, name)]))
    if not sentences:
        sentences.append(words("verdict.nothing"))
    counts = severities(data)
    made = [audit_name(words, one["audit"]) for results in results_of(data).values() for one in results]
    if made:
        key = "verdict.audit_bad" if counts.get("high") else "verdict.audit_good"
        sentences.append(
            words(
                key,
                # Nothing is known of what audits that were not made would have found.
                what=words.listed(made),
                high=counts.get("high", 0),
                medium=counts.get("medium", 0),
                low=counts.get("low", 0),
            )
        )
    if data["gates"]:
        met = sum(bool(one["passed"]) for one in data["gates"])
        sentences.append(words("verdict.gates", met=met, n=len(data["gates"])))
    return sentences


def _beside(data: dict[str, Any], words: Words, target: str, name: str) -> list[str]:
    """Return the sentence that puts the model beside the best baseline."""
    xz = data["baselines"].get(target, {}).get("xz")
    if xz and name == "bits_per_byte":
        return [words("verdict.xz", bits=number(xz["bits_per_byte"]))]
    best = best_baseline(data, target, name)
    if best is None:
        return []
    one = best["differences"].get(name, {})
    low, high = one.get("low"), one.get("high")
    key = "same"
    if low is not None and high is not None and (low > 0 or high < 0):
        key = "better" if (one["value"] > 0) == (better(name) > 0) else "worse"
    found = data["baselines"][target]
    own = found["metrics"].get(name, {}).get("value")
    sampled = []
    if found["rows"] != data["measured"]["rows"] and own is not None:
        sampled = [words("verdict.sampled", rows=number(found["rows"]), value=value(name, own))]
    return [
        words(
            f"verdict.{key}",
            name=words(f"baseline.{best['name']}"),
            value=value(name, best["metrics"][name]["value"]),
            difference=distance(words, name, one.get("value")),
        ),
        *sampled,
    ]


def _figures(data: dict[str, Any], words: Words) -> Figures:
    measured, model = data["measured"], data["model"]
    shown: list[tuple[str, str, str]] = []
    for target, task in list(targets_of(data).items())[:2] if measured else ():
        metrics = of_target(measured["metrics"], target)
        name = headline(task, metrics)
        if name is not None:
            label = words(f"metric.{name}")
            label = f"{target} · {label}" if len(targets_of(data)) > 1 else label
            shown.append((label, value(name, metrics[name]["value"]), interval(words, name, metrics[name])))
            best = best_baseline(data, target, name)
            if best is not None and len(targets_of(data)) == 1:
                label = words(f"baseline.{best['name']}")
                one = best["metrics"][name]
                shown.append((label, value(name, one["value"]), interval(words, name, one)))
    if measured:
        shown.append((words("rows_measured"), number(measured["rows"]), ""))
    shown.append((words("parameters"), size_of(model["parameters"]), model["type"]))
    seconds = data["lineage"].get("cost", {}).get("seconds")
    if seconds is not None and not model["imported"]:
        shown.append((words("train_time"), duration(seconds), ""))
    return Figures(shown)


def size_of(n: int) -> str:
    """Return a number of parameters in short.

    Example:
        >>> size_of(950), size_of(134_500_000)
        ('950', '134.5 M')
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return str(n)


# --- training ---------------------------------------------------------------------------------------------

_Line: TypeAlias = "tuple[str, str, list[tuple[float, float]]]"
"""Name, colour and points of a line."""


def progress(
    datas: list[dict[str, Any]], words: Words, names: list[str] | None = None, apart: str | None = None
) -> Section | None:
    """Learning curves: of one artefact, or of several by name.

    Args:
        datas: what `gather` returned of each.
        words: of the reader's language.
        names: of several.
        apart: why the losses of several cannot stand in one picture, where they cannot: each then has one of its own.
    """
    several = len(datas) > 1
    lines: list[list[_Line]] = []
    for data, name, colours in zip(datas, names or [""], ("ac", "bd"), strict=False):
        shown = [words("loss.train"), words("loss.validation")]
        if several:
            shown = [words("two.curves_of", what=name, name=one) for one in shown]
        looks = [(one["step"], one["loss"]) for one in data["history"] if one.get("loss") is not None]
        own: list[_Line] = []
        if data["training"]:
            training = [(x, y) for x, y in data["training"]]
            own.append((shown[0], colours[1] if several else "b", training))
        if looks:
            own.append((shown[1], colours[0], looks))
        lines.append(own)
    if not any(lines):
        return None
    charts: list[Block] = []
    best = None
    if not several and datas[0]["kept"]["weights"] == "best":
        best = datas[0]["lineage"].get("progress", {}).get("best_step") or None
    title, text = words("chart.loss"), words("read.loss_best" if best else "read.loss")
    looked = {one["step"] for data in datas for one in data["history"] if one.get("loss") is not None}
    for called, some in _pictures(title, lines, names, words, apart):
        svg = curves(some, words("axis.update"), words("axis.loss"), title=called, text=text, at=best)
        legend = [(name, colour) for name, colour, _ in some]
        charts.append(Chart(svg, called, text, _at_updates(words, called, some, looked), legend))
    for target, task in targets_of(datas[0]).items():
        key = headline(
            task, {n.removeprefix(f"{target}."): {"value": 1} for one in datas[0]["history"] for n in one}
        )
        if key is None or key == "loss":
            continue
        found = [
            (
                name,
                colour,
                [
                    (one["step"], one[f"{target}.{key}"])
                    for one in data["history"]
                    if f"{target}.{key}" in one
                ],
            )
            for data, name, colour in zip(datas, names or [target], "ab", strict=False)
        ]
        title, text = (
            words("chart.metric", metric=words(f"metric.{key}"), target=target),
            words("read.metric"),
        )
        each = [[line] if line[2] else [] for line in found]
        for called, some in _pictures(title, each, names, words, apart if key in OF_TOKENS else None):
            svg = curves(some, words("axis.update"), words(f"metric.{key}"), title=called, text=text, at=best)
            legend = [(n, c) for n, c, _ in some] if several else []
            looked = {step for _, _, points in some for step, _ in points}
            charts.append(Chart(svg, called, text, _at_updates(words, called, some, looked), legend))
    blocks: list[Block] = [Grid(charts)]
    if several and apart is not None and all(lines):
        blocks.insert(0, Note("info", words("two.curves_apart", why=words.sentence(apart))))
    return Section("training", words("title.training"), words("lead.training"), blocks)


def _pictures(
    title: str, lines: list[list[_Line]], names: list[str] | None, words: Words, apart: str | None
) -> Iterator[tuple[str, list[_Line]]]:
    """Yield a title and the lines of each picture that is drawn of what several artefacts have: one of all, or one of each."""
    if apart is None:
        if any(lines):
            yield title, [line for own in lines for line in own]
        return
    for own, name in zip(lines, names or [""], strict=True):
        if own:
            yield words("two.curves_of", what=title, name=name), own


def _at_updates(
    words: Words, title: str, lines: list[tuple[str, str, list[tuple[float, float]]]], looked: set[float]
) -> Table:
    """Return the numbers behind lines at some updates: of each line the latest since the row above, so that none stands there twice.

    Args:
        words: of the reader's language.
        title: of the picture.
        lines: name, colour and points of each, at least one.
        looked: updates after which validation rows were looked at. Each is a row, or some evenly among them where they are too
            many; with as many updates of all, evenly among these, as there is room for.
    """
    steps = sorted({step for _, _, points in lines for step, _ in points})
    kept = {*_evenly(sorted(looked), _LINES)}
    fits = (kept.union(_evenly(steps, n)) for n in range(_LINES, -1, -1))
    rows, above = [], float("-inf")
    for step in sorted(next(one for one in fits if len(one) <= _LINES)):
        cells = [Cell(number(step))]
        for _, _, points in lines:
            since = [y for x, y in points if above < x <= step]
            cells.append(Cell(number(since[-1] if since else None)))
        rows.append(cells)
        above = step
    head = [words("axis.update"), *[name for name, _, _ in lines]]
    return Table(head, rows, [True] * len(head), words("caption.points", what=title), fold=True)


def _evenly(steps: list[float], count: int) -> list[float]:
    """Return at most so many of some steps, evenly among them; the last one is always there, if any is.

    Example:
        >>> _evenly([1, 2, 3, 4, 5, 6], 3), _evenly([1, 2, 3], 1), _evenly([1, 2], 3)
        ([1, 4, 6], [3], [1, 2])
    """
    if len(steps) <= count:
        return steps
    last = len(steps) - 1
    return [steps[last - (count - 1 - i) * last // max(1, count - 1)] for i in range(count)]


# --- data, cost, lineage ----------------------------------------------------------------------------------


def _columns(data: dict[str, Any], words: Words) -> Section:
    blocks: list[Block] = []
    rows = data["lineage"].get("rows") or {}
    if rows:
        shown = [
            (words(f"split.{name}"), number(n), percent(n / max(1, sum(rows.values()))))
            for name, n in rows.items()
        ]
        blocks.append(Figures(shown))
    found = data["columns"]
    if "absent" in found:
        blocks.append(Note("absent", words("no_columns", why=words.of(found))))
    else:
        caption = words(f"caption.columns_{found['of']}", n=number(found["rows"]), of=number(found["all"]))
        head = [words("column"), words("kind"), words("missing"), words("distinct"), words("values")]
        cells = [_column(words, one) for one in found["columns"]]
        blocks.append(Table(head, cells, [False, False, True, True, False], caption))
    prepared = data["lineage"].get("prepared") or {}
    if prepared.get("counts"):
        cells = [[Cell(words.sentence(what)), Cell(number(n))] for what, n in prepared["counts"].items()]
        blocks.append(Table([words("done"), words("count")], cells, [False, True], words("caption.counts")))
    notes = [note for own in (prepared.get("notes") or {}).values() for note in own]
    if notes:
        blocks.append(Text(" · ".join(map(words.sentence, notes))))
    return Section("data", words("title.data_at_a_glance"), words("lead.data_at_a_glance"), blocks)


def _column(words: Words, one: dict[str, Any]) -> list[Cell]:
    distinct = number(one["distinct"]) if "distinct" in one else "–"
    bars: tuple[float, ...] = ()
    text, below = "", ""
    if one.get("histogram"):
        highest = max(one["histogram"]) or 1
        bars = tuple(round(n / highest, 3) for n in one["histogram"])
        key = "spread_characters" if one["measure"] == "characters" else "spread_value"
        text = words(key, low=number(one["low"]), median=number(one["median"]), high=number(one["high"]))
    elif one.get("top"):
        text = words.listed(
            [words("with_share", what=top["value"], share=percent(top["share"], 0)) for top in one["top"]]
        )
        below = (
            words("and_more", n=number(one["distinct"] - len(one["top"])))
            if one["distinct"] > len(one["top"])
            else ""
        )
    kind = Cell(named(one["kind"], words.language, "cells"), words(f"role.{one['role']}"))
    return [
        Cell(one["name"]),
        kind,
        Cell(percent(one["missing"])),
        Cell(distinct),
        Cell(text, below, bars=bars),
    ]


def _cost(data: dict[str, Any], words: Words) -> Section:
    model, lineage = data["model"], data["lineage"]
    cost, hardware = lineage.get("cost") or {}, lineage.get("hardware") or {}
    rows = [[Cell(words("parameters")), Cell(f"{model['parameters']:,}")]]
    if model["megabytes"] is not None:
        rows.append([Cell(words("weights")), Cell(words("mib", n=number(model["megabytes"])))])
    if cost.get("seconds") is not None:
        rows.append([Cell(words("time")), Cell(duration(cost["seconds"]))])
    if cost.get("peak_memory_mb") is not None:
        rows.append([Cell(words("memory")), Cell(words("mib", n=number(cost["peak_memory_mb"])))])
    energy = cost.get("energy_joules")
    if energy is not None:
        rows.append(
            [
                Cell(words("energy")),
                Cell(words("kilojoules", n=number(energy / 1000), wh=number(energy / 3600))),
            ]
        )
    elif not model["imported"]:
        rows.append([Cell(words("energy")), Cell(words("not_measured"), words("no_energy"))])
    run = lineage.get("progress") or {}
    if run.get("step") is not None:
        rows.append(
            [Cell(words("updates")), Cell(number(run["step"]), words.sentence(run.get("stopped") or ""))]
        )
    rows += [
        [Cell(words(f"hardware.{key}")), Cell(str(hardware[key]))]
        for key in ("device", "precision", "threads")
        if hardware.get(key) is not None
    ]
    lead = "lead.cost_import" if model["imported"] else "lead.cost"
    table = Table([words("what"), words("value")], rows, [False, False])
    return Section("cost", words("title.cost"), words(lead), [table])


def _lineage(data: dict[str, Any], words: Words) -> Section:
    lineage = data["lineage"]
    when = str(lineage.get("when", ""))
    rows = [[Cell(words("made_by")), Cell(f"luban {lineage.get('verb', '?')}", when)]]
    parents = lineage.get("parents") or []
    rows += [[Cell(words("parent")), Cell(str(one.get("path", "")))] for one in parents]
    for name, one in (lineage.get("data") or {}).items():
        what = words(f"split.{name}") if words.has(f"split.{name}") else name
        rows.append([Cell(words("hash_of", what=what)), Cell(str(one)[:16])])
    if lineage.get("weights"):
        rows.append([Cell(words("hash_of", what=words("weights"))), Cell(str(lineage["weights"])[:16])])
    if lineage.get("seed") is not None:
        rows.append([Cell(words("seed")), Cell(str(lineage["seed"]))])
    versions = ", ".join(f"{name} {one}" for name, one in (lineage.get("versions") or {}).items())
    rows.append([Cell(words("versions")), Cell(versions)])
    blocks: list[Block] = [Table([words("what"), words("value")], rows, [False, False])]
    if data["recipe"]:
        blocks.append(Code(data["recipe"], words("caption.recipe"), fold=True))
    return Section("lineage", words("title.lineage"), words("lead.lineage"), blocks)


# --- the card ---------------------------------------------------------------------------------------------


def _card(data: dict[str, Any], words: Words) -> Section:
    """What it is for and what it is not for, derived from what was measured and what was not."""
    model, measured = data["model"], data["measured"]
    inputs = words.listed(
        [
            words("with_kind", name=name, kind=named(kind, words.language, "cells"))
            for name, kind in model["inputs"].items()
        ]
    )
    targets = words.listed(
        [
            words("with_kind", name=name, kind=named(one["kind"], words.language, "cells"))
            for name, one in model["targets"].items()
        ]
    )
    does = (
        words("card.predicts", inputs=inputs, targets=targets)
        if targets
        else words("card.language", inputs=inputs)
    )
    limits = [words("card.rows")]
    if not measured:
        limits.append(words("card.unmeasured"))
    elif measured["rows"] < _FEW:
        limits.append(words("card.few", n=number(measured["rows"])))
    small = [
        f"{column}={word}"
        for column, values in measured.get("slices", {}).items()
        for word, part in values.items()
        if part["rows"] < 30
    ]
    if small:
        limits.append(words("card.small", what=words.listed(small[:8])))
    if not model["groups"]:
        limits.append(words("card.no_groups"))
    if not data["audits"]:
        limits.append(words("card.no_audit"))
    if model["imported"]:
        limits.append(words("card.imported"))
    blocks: list[Block] = [
        Text(does),
        Text(words("card.use")),
        Code(f"luban predict {data['artefact']} rows.csv\nluban evaluate {data['artefact']} labelled.csv"),
        *(Note("careful", one) for one in limits),
    ]
    return Section("card", words("title.card"), words("lead.card"), blocks)
