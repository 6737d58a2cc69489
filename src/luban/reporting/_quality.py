"""The sections about how good a model is: metrics beside baselines, errors, calibration, slices."""

from __future__ import annotations

from typing import Any

from luban.reporting._blocks import Block, Cell, Chart, Grid, Heat, Note, Section, Table, Text
from luban.reporting._charts import Whisker, curves, reliability, scatter, whiskers
from luban.reporting._figures import (
    SHOWN,
    better,
    difference,
    differences,
    headline,
    interval,
    of_target,
    value,
)
from luban.reporting._words import Words, number, percent

__all__ = [
    "best_baseline",
    "calibrated",
    "calibration",
    "errors",
    "quality",
    "slices",
    "targets_of",
    "titled",
]

_HEAT = 16  # classes of a confusion matrix at most
_BESIDE = 3  # classes whose table stands beside the matrix
_PAIRS = 10  # confusions that are listed
_CLASSES = 40  # classes that are listed
_CURVES = 4  # classes whose curves are drawn
_SLICES = 16  # slices that are drawn
_ALONG = (0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95)  # places along a curve whose heights are written out
_CALIBRATED = 0.02  # between confidence and accuracy, on average, that nobody would mind


def targets_of(data: dict[str, Any]) -> dict[str, str]:
    """Return what was measured: column → task; of a language model its text, as ``text``."""
    targets = {name: one["task"] for name, one in data["model"]["targets"].items()}
    return targets or ({data["model"]["text"]: "text"} if data["model"]["text"] else {})


def titled(words: Words, data: dict[str, Any], target: str, blocks: list[Block]) -> list[Block]:
    """Return blocks under the name of their target, if there are several targets."""
    return (
        [Text(words("of_target", target=target), heading=True), *blocks]
        if len(targets_of(data)) > 1 and blocks
        else blocks
    )


def best_baseline(data: dict[str, Any], target: str, metric: str) -> dict[str, Any] | None:
    """Return the baseline of a target that is best by a metric, None where there is none."""
    each = data["baselines"].get(target, {}).get("each", [])
    each = [one for one in each if one["metrics"].get(metric, {}).get("value") is not None]
    return max(each, key=lambda one: better(metric) * float(one["metrics"][metric]["value"]), default=None)


# --- metrics ----------------------------------------------------------------------------------------------


def quality(data: dict[str, Any], words: Words) -> Section:
    """What was measured, beside what simple methods reach."""
    blocks: list[Block] = []
    measured = data["measured"]
    if not measured:
        blocks.append(
            Note("absent", words("absent.nothing_measured"), f"luban report {data['artefact']} DATA")
        )
    for target, task in targets_of(data).items() if measured else ():
        blocks += titled(words, data, target, _of_target(data, words, target, task))
    if (
        measured
        and measured["on"] == "validation"
        and (data["kept"]["weights"] == "best" or data["kept"]["early"])
    ):
        blocks.append(Note("careful", words("chosen_here")))
    for warning in data["warnings"]:
        blocks.append(Note("careful", words.sentence(warning)))
    if measured.get("skipped"):
        what = words.listed(
            [
                words("counted", what=words.sentence(reason), n=number(n))
                for reason, n in measured["skipped"].items()
            ]
        )
        blocks.append(Note("careful", words("skipped", what=what)))
    if data["gates"]:
        rows = [
            [
                Cell(one["gate"]),
                Cell(number(one["value"])),
                Cell(
                    words("gate.met" if one["passed"] else "gate.missed"),
                    tone="good" if one["passed"] else "bad",
                ),
            ]
            for one in data["gates"]
        ]
        head = [words("gate"), words("value"), words("gate.verdict")]
        blocks.append(Table(head, rows, [False, True, False], words("caption.gates")))
    if data.get("folds"):
        blocks.append(_folds(data["folds"], words))
    return Section("quality", words("title.quality"), words("lead.quality"), blocks)


def _of_target(data: dict[str, Any], words: Words, target: str, task: str) -> list[Block]:
    metrics = of_target(data["measured"]["metrics"], target)
    found = data["baselines"].get(target, {})
    each = found.get("each", [])
    shown = [
        name for name in SHOWN.get(task, SHOWN["text"]) if metrics.get(name, {}).get("value") is not None
    ]
    best = best_baseline(data, target, headline(task, metrics) or "")
    head = [words("metric"), words("model")]
    head += [words(f"baseline.{one['name']}") for one in each]
    head += [words("difference")] if best else []
    rows = [[*_metric(words, name, metrics[name]), *_beside(words, name, each, best)] for name in shown]
    blocks: list[Block] = []
    if each:
        blocks.append(_chart(words, data, target, task, shown))
    blocks.append(Table(head, rows, [False, *[True] * (len(head) - 1)], words("caption.metrics")))
    if each:
        blocks.append(Text(_how(words, data, target)))
        if found.get("refused"):
            blocks.append(Note("info", words.of(found["refused"])))
    elif "xz" in found:
        one = found["xz"]
        blocks.append(
            Text(
                words(
                    "xz",
                    bits=number(one["bits_per_byte"]),
                    rows=number(one["rows"]),
                    of=number(one["of"]),
                    size=number(one["bytes"] / 2**20),
                    train_rows=number(one["train_rows"]),
                    train_of=number(one["train_of"]),
                    train=number(one["train_bytes"] / 2**20),
                    seconds=number(max(0.01, one["seconds"])),
                )
            )
        )
    elif found.get("absent"):
        blocks.append(Note("absent", words("no_baseline", why=words.of(found))))
    rest = [name for name in metrics if name not in shown]
    if rest:
        cells = [[*_metric(words, name, metrics[name])] for name in rest]
        blocks.append(Table(head[:2], cells, [False, True], words("caption.all_metrics"), fold=True))
    return blocks


def _metric(words: Words, name: str, one: dict[str, Any]) -> list[Cell]:
    label = words(f"metric.{name}") if words.has(f"metric.{name}") else name
    about = words(f"about.{name}") if words.has(f"about.{name}") else ""
    if one["value"] is None:
        return [Cell(label, about), Cell("–", words.sentence(one.get("note") or ""))]
    return [Cell(label, about), Cell(value(name, one["value"]), interval(words, name, one))]


def _beside(words: Words, name: str, each: list[dict[str, Any]], best: dict[str, Any] | None) -> list[Cell]:
    cells = []
    for one in each:
        metric = one["metrics"].get(name, {"value": None})
        cells.append(Cell(value(name, metric["value"]), interval(words, name, metric)))
    if best is not None:
        cells.append(against(words, name, best["differences"].get(name, {"value": None})))
    return cells


def against(words: Words, name: str, one: dict[str, Any]) -> Cell:
    """Return the cell of a paired difference, good or bad where it is beyond chance."""
    if one["value"] is None:
        return Cell("–")
    low, high = one.get("low"), one.get("high")
    tone = ""
    below = ""
    if low is not None and high is not None:
        below = differences(words, name, low, high)
        if low > 0 or high < 0:
            tone = "good" if (one["value"] > 0) == (better(name) > 0) else "bad"
    return Cell(difference(words, name, one["value"]), below, tone=tone)


def _chart(words: Words, data: dict[str, Any], target: str, task: str, shown: list[str]) -> Chart:
    found = data["baselines"][target]
    if task == "regression":
        names = [name for name in shown if name in ("mae", "rmse")]
    else:
        names = [name for name in shown if better(name) > 0][:6]
    # Always the same answer is so far off that nothing else could be told apart; the table has it.
    each = [one for one in found["each"] if one["name"] != "constant"] or found["each"]
    series = {"model": found["metrics"], **{one["name"]: one["metrics"] for one in each}}
    labels = {"model": words("model"), **{one["name"]: words(f"baseline.{one['name']}") for one in each}}
    colours = dict(zip((labels[name] for name in series), "abc", strict=False))
    rows: list[Whisker] = [
        (words(f"metric.{name}"), labels[who], one[name]["value"], one[name]["low"], one[name]["high"])
        for name in names
        for who, one in series.items()
        if one.get(name, {}).get("value") is not None
    ]
    title, text = words("chart.baselines"), words("read.baselines")
    svg = whiskers(rows, colours, "", title=title, text=text)
    return Chart(svg, title, text, legend=list(colours.items()))


def _how(words: Words, data: dict[str, Any], target: str) -> str:
    found = data["baselines"][target]
    seconds = sum(one["seconds"] for one in found["each"])
    said = [
        words(
            "how_baselines",
            rows=number(found["rows"]),
            train=number(found["train_rows"]),
            of=number(found["of"]),
            seconds=number(seconds),
        )
    ]
    if found["threshold"] not in (None, 0.5):
        said.append(words("threshold_baselines", threshold=f"{found['threshold']:g}"))
    if found["decided"]:
        key = "decided_baselines" if found["decided"]["rows"] else "undecided_baselines"
        steps = words.listed(found["decided"]["steps"])
        said.append(words(key, steps=steps, rows=number(found["decided"]["rows"])))
    said += [words("cut_baselines", column=column, n=number(n)) for column, n in found["cut"].items()]
    return words.sentences(said)


def _folds(folds: dict[str, Any], words: Words) -> Table:
    names = [
        name
        for name in folds["metrics"]
        if any(name.endswith(f".{m}") for own in SHOWN.values() for m in own)
    ]
    rows = []
    for name in names:
        one, metric = folds["metrics"][name], name.rsplit(".", 1)[-1]
        cells = [Cell(name), Cell(value(metric, one["value"]), words("spread", std=number(one.get("std"))))]
        rows.append([*cells, *[Cell(value(metric, fold.get(name))) for fold in folds["each"]]])
    head = [words("metric"), words("mean"), *[words("fold", n=i + 1) for i in range(len(folds["each"]))]]
    return Table(head, rows, [False, *[True] * (len(head) - 1)], words("caption.folds"))


# --- errors -----------------------------------------------------------------------------------------------


def errors(data: dict[str, Any], words: Words) -> Section | None:
    """Where it goes wrong: the confusion matrix, each class, curves; of numbers how large errors are."""
    blocks: list[Block] = []
    for target, details in data["measured"].get("details", {}).items():
        own: list[Block] = []
        classes = list(details.get("per_class", {}))
        if details.get("confusion"):
            own += _confusion(words, classes, details["confusion"])
        if classes:
            own.append(_per_class(words, details["per_class"]))
        if len(own) == 2 and len(classes) <= _BESIDE:
            own = [Grid(own)]
        if details.get("curves") and len(classes):
            own.append(_curves(words, details["curves"]))
        if details.get("errors"):
            own += _numbers(words, data, target, details["errors"])
        blocks += titled(words, data, target, own)
    if not blocks:
        return None
    return Section("errors", words("title.errors"), words("lead.errors"), blocks)


def _confusion(words: Words, classes: list[str], counts: list[list[float]]) -> list[Block]:
    blocks: list[Block] = []
    if len(classes) <= _HEAT:
        corner = (words("truth"), words("said"))
        blocks.append(Heat(classes, counts, corner, words("caption.confusion")))
    pairs = sorted(
        ((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n > 0),
        reverse=True,
    )[:_PAIRS]
    if len(classes) > 2 and pairs:
        rows = [
            [Cell(classes[i]), Cell(classes[j]), Cell(number(n)), Cell(percent(n / (sum(counts[i]) or 1)))]
            for n, i, j in pairs
        ]
        head = [words("truth"), words("said"), words("rows"), words("share_of_truth")]
        caption = words("caption.pairs")
        blocks.append(Table(head, rows, [False, False, True, True], caption, fold=len(classes) <= _HEAT))
    return blocks


def _per_class(words: Words, per_class: dict[str, dict[str, float | None]]) -> Table:
    names = ("precision", "recall", "f1")
    shown = sorted(per_class, key=lambda one: -(per_class[one]["support"] or 0))[:_CLASSES]
    rows = [
        [
            Cell(name),
            Cell(number(per_class[name]["support"])),
            *[Cell(number(per_class[name][m]), bar=per_class[name][m] or 0.0) for m in names],
        ]
        for name in shown
    ]
    head = [words("class"), words("rows"), *[words(f"metric.{name}") for name in names]]
    caption = words("caption.per_class")
    if len(per_class) > len(shown):
        caption += words("some_of", n=len(shown), of=number(len(per_class)))
    return Table(head, rows, [False, True, True, True, True], caption, fold=len(shown) > _HEAT)


def _curves(words: Words, found: dict[str, dict[str, list[float]]]) -> Grid:
    names = list(found)[:_CURVES]
    colours = dict(zip(names, "abcd", strict=False))
    charts: list[Block] = []
    for kind, x, y in (("roc", "false_positive_rate", "recall"), ("pr", "recall", "precision")):
        series = [(n, c, list(zip(found[n][x], found[n][y], strict=True))) for n, c in colours.items()]
        title, text = words(f"chart.{kind}"), words(f"read.{kind}")
        axes = words(f"axis.{x}"), words(f"axis.{y}")
        svg = curves(series, *axes, title=title, text=text, square=True, diagonal=kind == "roc")
        table = _places(words, title, axes, [(n, points) for n, _, points in series], up_to=kind == "roc")
        charts.append(Chart(svg, title, text, table, list(colours.items()) if len(colours) > 1 else []))
    return Grid(charts)


def _places(
    words: Words,
    title: str,
    axes: tuple[str, str],
    series: list[tuple[str, list[tuple[float, float]]]],
    *,
    up_to: bool,
) -> Table:
    """Return the highest point of curves up to some places along x, or from there on."""
    rows = []
    for place in _ALONG:
        cells = [Cell(f"{'≤' if up_to else '≥'} {percent(place)}")]
        for _, points in series:
            heights = [y for x, y in points if (x <= place if up_to else x >= place)]
            cells.append(Cell(percent(max(heights)) if heights else "–"))
        rows.append(cells)
    names = [axes[1]] if len(series) == 1 else [f"{axes[1]}: {name}" for name, _ in series]
    head = [axes[0], *names]
    return Table(head, rows, [True] * len(head), words("caption.points", what=title), fold=True)


def _numbers(words: Words, data: dict[str, Any], target: str, quantiles: dict[str, float]) -> list[Block]:
    rows = [[Cell(percent(float(share))), Cell(number(one))] for share, one in quantiles.items()]
    table = Table(
        [words("share_of_rows"), words("error_below")], rows, [True, True], words("caption.quantiles")
    )
    pairs = data["scatter"].get(target)
    if not pairs:
        return [table]
    title, text = words("chart.scatter"), words("read.scatter", n=number(len(pairs)))
    svg = scatter(pairs, words("truth"), words("said"), title=title, text=text)
    return [Grid([Chart(svg, title, text), table])]


# --- calibration and slices -------------------------------------------------------------------------------


def calibration(data: dict[str, Any], words: Words) -> Section | None:
    """Whether a probability means what it says."""
    blocks: list[Block] = []
    for target, details in data["measured"].get("details", {}).items():
        bins = details.get("reliability")
        if not bins:
            continue
        title, text = words("chart.reliability"), words("read.reliability")
        axes = words("axis.confidence"), words("axis.right")
        svg = reliability(bins, *axes, title=title, text=text)
        rows = [
            [
                Cell(words("range", low=percent(one["low"], 0), high=percent(one["high"], 0))),
                Cell(number(one["weight"])),
                Cell(percent(one["confidence"])),
                Cell(percent(one["accuracy"])),
            ]
            for one in bins
        ]
        head = [words("bin"), words("rows"), words("axis.confidence"), words("axis.right")]
        table = Table(head, rows, [False, True, True, True], words("caption.reliability"))
        key, gap = calibrated(bins)
        said = Text(words(key, gap=number(100 * gap, 2)))
        blocks += titled(words, data, target, [said, Grid([Chart(svg, title, text), table])])
    if not blocks:
        return None
    return Section("calibration", words("title.calibration"), words("lead.calibration"), blocks)


def calibrated(bins: list[dict[str, float]]) -> tuple[str, float]:
    """Return the word for how confidence and accuracy differ, and by how much.

    Opposite errors do not cancel: what is too sure in one place and not sure enough in another is not calibrated.

    Example:
        >>> calibrated([{"weight": 1, "confidence": 0.9, "accuracy": 0.8}, {"weight": 1, "confidence": 0.6, "accuracy": 0.7}])[0]
        'unevenly_confident'
    """
    total = sum(one["weight"] for one in bins) or 1.0
    gaps = [one["weight"] * (one["confidence"] - one["accuracy"]) / total for one in bins]
    size, whole = sum(map(abs, gaps)), sum(gaps)
    if size < _CALIBRATED:
        return "calibrated", size
    if abs(whole) < _CALIBRATED:
        return "unevenly_confident", size
    return ("overconfident" if whole > 0 else "underconfident"), abs(whole)


def slices(data: dict[str, Any], words: Words) -> Section:
    """Figures of parts of the rows."""
    blocks: list[Block] = []
    for column, values in data["measured"].get("slices", {}).items():
        for target, task in targets_of(data).items():
            metrics = of_target(data["measured"]["metrics"], target)
            name = headline(task, metrics)
            if name is None:
                continue
            found = {
                word: (part["rows"], part["metrics"].get(f"{target}.{name}", {"value": None}))
                for word, part in values.items()
            }
            blocks.append(_sliced(words, column, target, name, found, metrics[name]["value"]))
    if not blocks:
        groups = data["model"]["groups"]
        command = "" if groups else f"luban evaluate {data['artefact']} DATA --by COLUMN"
        blocks.append(Note("absent", words("no_slices"), command))
    return Section("slices", words("title.slices"), words("lead.slices"), blocks)


def _sliced(
    words: Words,
    column: str,
    target: str,
    name: str,
    found: dict[str, tuple[int, dict[str, Any]]],
    whole: float,
) -> Block:
    order = sorted((w for w in found if found[w][1]["value"] is not None), key=lambda w: -found[w][0])
    metric = words(f"metric.{name}")
    rows = [
        [
            Cell(w),
            Cell(number(found[w][0])),
            Cell(value(name, found[w][1]["value"]), interval(words, name, found[w][1])),
        ]
        for w in order
    ]
    table = Table([column, words("rows"), metric], rows, [False, True, True], words("caption.slices"))
    title, text = words("chart.slices", column=column, target=target), words("read.slices")
    drawn: list[Whisker] = [
        (w, metric, found[w][1]["value"], found[w][1]["low"], found[w][1]["high"]) for w in order[:_SLICES]
    ]
    svg = whiskers(drawn, {metric: "a"}, metric, title=title, text=text, at=whole)
    return Grid([Chart(svg, title, text), table])
