"""Explanations as people read them: coloured words on a terminal, pictures, and one page that needs no network.

Everything is drawn from the JSON of an explanation. Blue speaks for what is explained, orange against; the two are told apart by
people who see no red or green, and without any colour (WCAG 2.2, 1.4.1): what speaks against is underlined on a terminal, has a wavy
line under it on a page where what speaks for has a straight one, a minus in a matrix, and stripes in a picture.

What is ours is said in English or Chinese: sentences by `luban.sentences.translate`, names of tables, columns and measures by
`luban.sentences.named`. Cells, classes and words of the user's are shown as they are.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size

from luban.sentences import Sentence, named, say, translate

__all__ = [
    "AGAINST",
    "FOR",
    "STYLE",
    "Page",
    "explanation_html",
    "heatmap",
    "method_name",
    "part_html",
    "spoken",
    "striped",
    "tables_html",
    "tables_text",
    "terminal",
    "unexplained",
]

Json = Mapping[str, Any]

FOR, AGAINST = (33, 113, 181), (217, 95, 2)
SHOWN = 200
"""Rows that the page shows; all are in explanations.jsonl."""
SIDE = 224
"""Pixels of the longer side of a picture, at least."""
STRIPE = 4
"""Pixels of a stripe in a picture."""
WIDEST = 100
"""Places of a cell on a terminal; a Chinese character takes two."""
_PICTURES = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\t\n"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


# --- in a language ----------------------------------------------------------------------------------------


def spoken(value: Any, language: str) -> Any:
    """Return data with every sentence of ours in a language, and everything else as it is.

    Example:
        >>> spoken({"notes": [say("all {n:,} rows", n=3), "of a plug-in"]}, "zh")
        {'notes': ['全部 3 行', 'of a plug-in']}
    """
    if isinstance(value, Sentence):
        return translate(value, language)
    if isinstance(value, Mapping):
        return {key: spoken(one, language) for key, one in value.items()}
    return [spoken(one, language) for one in value] if isinstance(value, list | tuple) else value


def method_name(method: str, language: str) -> str:
    """Return what an explainer is called: in English by its type, which ``--method`` takes.

    Example:
        >>> method_name("grad_cam_pp", "en"), method_name("occlusion", "zh")
        ('grad_cam_pp', '遮挡法')
    """
    return method if language == "en" else named(method, language, "methods")


def _measures(quality: Json, language: str) -> list[str]:
    return [f"{named(key, language)} {value:.3g}" for key, value in quality.items() if value is not None]


def _listed(parts: Iterable[str], language: str) -> str:
    return ("，" if language == "zh" else ", ").join(parts)


# --- on a terminal ----------------------------------------------------------------------------------------


def terminal(one: Json, *, color: bool, language: str = "en") -> str:
    """Return an explanation as lines of text, with coloured words or with the strongest ones listed."""
    one = harmless(spoken(one, language))
    lines = [headline(one, language)]
    for column, part in one["parts"].items():
        lines.append(f"  {_heading(one, column, language)}: {_brief(part, color, language)}")
    lines += [f"  {measure}" for measure in _measures(one["quality"], language)]
    lines += [f"  {translate(say('note: {note}', note=note), language)}" for note in one["notes"]]
    if one.get("tables"):
        lines.append(textwrap.indent(tables_text(one["tables"], 5, language=language), "  "))
    return "\n".join(lines)


def harmless(value: Any) -> Any:
    """Return data whose texts cannot steer a terminal: a control character as its picture, one for one, so that places stay.

    Example:
        >>> harmless({"city": "Rome\\x1b[2J"})
        {'city': 'Rome␛[2J'}
    """
    if isinstance(value, str):
        return value if value.isprintable() else value.translate(_PICTURES)
    if isinstance(value, Mapping):
        return {harmless(key): harmless(one) for key, one in value.items()}
    return [harmless(one) for one in value] if isinstance(value, list | tuple) else value


def headline(one: Json, language: str = "en") -> str:
    """Return what is explained, in one line."""
    target, chosen = one["target"], one["chosen"]
    what = target if chosen is None else say("{target} = {chosen!r}", target=target, chosen=chosen)
    words = [say("row {row}: {what}", row=one["row"], what=what)]
    if one["probability"] is not None:
        words.append(say("{share:.1%}", share=one["probability"]))
    words.append(say("score {score:.4g}", score=one["score"]))
    if one["baseline"] is not None:
        words.append(say("neutral {score:.4g}", score=one["baseline"]))
    return _listed((translate(word, language) for word in words), language)


def _heading(one: Json, column: str, language: str) -> str:
    """Return the name of an input, with its share where there are several."""
    if len(one["parts"]) < 2 or not one["shares"]:
        return column
    share = one["shares"].get(column, 0.0)
    return translate(say("{column} ({share:.0%})", column=column, share=share), language)


def _brief(part: Json, color: bool, language: str) -> str:
    match part["kind"]:
        case "tokens" if color:
            return _coloured(part)
        case "tokens":
            return _strongest([piece["text"] for piece in part["pieces"]], part["values"], language)
        case "value":
            shown = named("missing", language, "cells") if part.get("shown") is None else part["shown"]
            return f"{shown}  {part['values']:+.3g}"
        case "matrix":
            pieces = [piece["text"] for piece in part["pieces"]]
            return "".join(
                f"\n    {output['text']!r} ← {_strongest(pieces, values, language, 5)}"
                for output, values in zip(part["outputs"], part["values"], strict=True)
            )
        case "vector":
            return _strongest([f"[{i}]" for i in range(len(part["values"]))], part["values"], language)
        case kind:
            shape = "×".join(map(str, np.asarray(part["values"]).shape))
            what = named(kind, language, "cells")
            return translate(say("{what} of {shape}; -o FOLDER draws it", what=what, shape=shape), language)


def _strongest(names: Sequence[str], values: Sequence[float | None], language: str, count: int = 12) -> str:
    numbers = np.asarray([0.0 if v is None else v for v in values])
    order = np.argsort(-np.abs(numbers), kind="stable")[:count]
    found = [f"{names[i].strip() or repr(names[i])} {numbers[i]:+.3g}" for i in order if numbers[i]]
    return "  ".join(found) or named("nothing", language, "cells")


def _coloured(part: Json) -> str:
    scale = _scale(part["values"])
    result = []
    for text, value in _stretches(part):
        if value is None or abs(value) < 0.05 * scale:
            result.append(text)
            continue
        weight = min(1.0, abs(value) / scale)
        tone = FOR if value > 0 else AGAINST
        # On white paper at full strength the tone itself, at less a tint of it, always under black letters.
        red, green, blue = (round(255 - weight * 0.75 * (255 - c)) for c in tone)
        line = "" if value > 0 else ";4"
        result.append(f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0{line}m{text}\x1b[0m")
    return "".join(result).replace("\n", " ")


def _stretches(part: Json) -> list[tuple[str, float | None]]:
    """Return the whole text in stretches, each with its value; what stands between pieces has none."""
    shown = part.get("shown") or ""
    result: list[tuple[str, float | None]] = []
    at = 0
    for piece, value in zip(part["pieces"], part["values"], strict=True):
        start, end = piece["start"], piece["end"]
        if start >= end or start < at or end > len(shown):
            continue
        if start > at:
            result.append((shown[at:start], None))
        result.append((shown[start:end], value))
        at = end
    return [*result, (shown[at:], None)] if at < len(shown) else result


def _scale(values: Any) -> float:
    """Return the value that counts as full strength: the largest, or, of many, all but the strongest hundredth."""
    each = np.abs(np.asarray(values, dtype=np.float64))
    each = each[np.isfinite(each)]
    if not each.size:
        return 1.0
    top = float(each.max()) if each.size < 200 else float(np.quantile(each, 0.99)) or float(each.max())
    return top or 1.0


def tables_text(tables: Json, lines: int = 20, *, language: str = "en") -> str:
    """Return the first lines of tables."""
    tables, result = harmless(spoken(tables, language)), []
    for name, rows in tables.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        head = [named(key, language) for key in keys]
        cells = [head, *([_cell(row.get(key)) for key in keys] for row in rows[:lines])]
        widths = [min(WIDEST, max(cell_len(line[i]) for line in cells)) for i in range(len(keys))]
        result.append(named(name, language, "tables") + ("：" if language == "zh" else ":"))
        result += [
            "  " + "  ".join(set_cell_size(c, w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        if len(rows) > lines:
            more = say("... {n:,} lines in all; --json or -o gives them", n=len(rows))
            result.append(f"  {translate(more, language)}")
    return "\n".join(result)


# --- pictures ---------------------------------------------------------------------------------------------


def heatmap(part: Json) -> bytes:
    """Return a PNG: what an image contributed, over the image in grey."""
    from PIL import Image as Pillow

    values = _array(part["values"])
    size = _larger(values.shape)
    under = _under(part, size)
    scale = _scale(values)
    signed = np.clip(values / scale, -1, 1)
    grown = np.asarray(
        Pillow.fromarray(signed.astype(np.float32)).resize(size, Pillow.Resampling.NEAREST), dtype=np.float64
    )
    weight = (striped(grown) ** 0.7 * 0.85)[..., None]
    tone = np.where(grown[..., None] > 0, np.asarray(FOR), np.asarray(AGAINST))
    return _png((under * (1 - weight) + tone * weight).round().astype(np.uint8))


def mosaic(part: Json) -> bytes:
    """Return a PNG of several maps, side by side, each with its own scale."""

    maps = _array(part["values"])  # (N, h, w)
    count, height, width = maps.shape
    columns = int(np.ceil(np.sqrt(count)))
    by = max(1, 96 // max(height, width))
    tall, wide = height * by, width * by
    sheet = np.full((-(-count // columns) * (tall + 4), columns * (wide + 4), 3), 128, dtype=np.uint8)
    for i, one in enumerate(maps):
        signed = np.clip(one / _scale(one), -1, 1).repeat(by, 0).repeat(by, 1)
        tone = np.where(signed[..., None] > 0, np.asarray(FOR), np.asarray(AGAINST))
        weight = striped(signed)[..., None]
        grown = (255 * (1 - weight) + tone * weight).round().astype(np.uint8)
        y, x = i // columns * (tall + 4), i % columns * (wide + 4)
        sheet[y : y + tall, x : x + wide] = grown
    return _png(sheet)


def striped(signed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how strongly pixels are tinted, (H, W), from 0 to 1: what is below 0 in stripes from the upper right to the lower left.

    Args:
        signed: from -1 to 1, (H, W).
    """
    y, x = np.indices(signed.shape)
    between = (signed < 0) & ((x + y) // STRIPE % 2 == 1)
    found: npt.NDArray[np.float64] = np.abs(signed) * np.where(between, 0.3, 1.0)
    return found


def _array(values: Any) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(values, dtype=np.float64))


def _larger(shape: Sequence[int]) -> tuple[int, int]:
    """Return width and height of a picture: whole times as large, so that pixels stay squares."""
    by = max(1, SIDE // max(shape))
    return shape[1] * by, shape[0] * by


def _under(part: Json, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    from PIL import Image as Pillow

    shown = part.get("shown")
    if not (isinstance(shown, str) and shown.startswith("data:image/")):
        return np.full((size[1], size[0], 3), 235.0)
    picture = Pillow.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))).convert("L")
    grey = np.asarray(picture.resize(size, Pillow.Resampling.NEAREST), dtype=np.float64)
    return np.repeat(grey[..., None], 3, 2) * 0.7 + 60


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


# --- a page -----------------------------------------------------------------------------------------------

STYLE = """
.ex-text{line-height:1.9;overflow-wrap:anywhere;white-space:pre-wrap}
.ex-t{border-radius:.2em;padding:.1em 0;text-decoration:underline solid 1.5px;text-underline-offset:.25em;text-decoration-skip-ink:none}
.ex-a{text-decoration-style:wavy}
.ex-bars{border-collapse:collapse}.ex-bars td{padding:.1rem .5rem;vertical-align:middle}
.ex-bar{display:inline-block;height:.8em;border-radius:.15em;vertical-align:middle}
.ex-scroll{overflow-x:auto;max-width:100%}
.ex-matrix{border-collapse:collapse;font-size:.8rem}.ex-matrix td,.ex-matrix th{padding:.1rem .3rem;font-weight:400;text-align:center;white-space:pre}
.ex-pictures img{image-rendering:pixelated;max-width:100%;height:auto;margin:.2rem .6rem .2rem 0;vertical-align:top}
.ex-note{opacity:.75;font-size:.9rem}
@media print{.ex-t,.ex-bar,.ex-matrix td{-webkit-print-color-adjust:exact;print-color-adjust:exact}.ex-scroll{overflow:visible}}
"""
_PAGE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1a1d21;--line:#d5d9de}
@media (prefers-color-scheme:dark){:root{--ground:#15181c;--ink:#e6e8eb;--line:#3a4048}}
body{margin:0 auto;max-width:64rem;padding:1rem;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
section{border-top:1px solid var(--line);padding:.6rem 0}h1{font-size:1.4rem}h2{font-size:1rem;margin:.2rem 0}
h3{font-size:.9rem;font-weight:600;margin:.4rem 0 .1rem}
table.survey{border-collapse:collapse;font-size:.85rem}.survey td,.survey th{padding:.15rem .6rem;text-align:left;border-bottom:1px solid var(--line)}
@media print{section{break-inside:avoid}}
"""


class Page:
    """index.html and the pictures beside it, written row by row.

    Args:
        folder: where to.
        about: ``method``, ``artefact``, ``paper``, ``limits``.
        language: ``en`` or ``zh``.
    """

    def __init__(self, folder: Path, about: Json, language: str = "en") -> None:
        self.folder, self.language, self.rows = folder, language, 0
        self._names: dict[str, str] = {}
        self.file = (folder / "index.html").open("w", encoding="utf-8")
        title = html.escape(
            self._said(
                say(
                    "{method} of {artefact}",
                    method=method_name(about["method"], language),
                    artefact=Path(str(about["artefact"])).name,
                )
            )
        )
        about = spoken({"paper": about["paper"], "limits": about["limits"]}, language)
        source = self._said(say("{paper}. What it cannot tell: {limits}.", **about))
        tag = "zh-CN" if language == "zh" else "en"
        # What fills the gaps is markup, so the sentence around it must bring none.
        legend = self._said(
            say(
                "{blue} speaks for what is explained, {orange} against it.",
                blue=_swatch(1, language),
                orange=_swatch(-1, language),
            )
        )
        self.file.write(
            f'<!doctype html>\n<html lang="{tag}">\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width,initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_PAGE}{STYLE}</style>\n<h1>{title}</h1>\n"
            f"<p>{html.escape(source)}</p>\n<p>{legend}</p>\n"
        )

    def _said(self, sentence: Sentence) -> str:
        return translate(sentence, self.language)

    def add(self, one: Json) -> None:
        """Add the explanation of a row."""
        self.rows += 1
        for column, part in one["parts"].items():
            if part["kind"] in ("image", "maps"):
                picture = heatmap(part) if part["kind"] == "image" else mosaic(part)
                (self.folder / f"row-{one['row']:05d}-{self._name(column)}.png").write_bytes(picture)
        if self.rows <= SHOWN:
            self.file.write(explanation_html(one, self.language))

    def _name(self, column: str) -> str:
        """Return what a column is called in the name of a file: no two alike, not even where case does not count."""
        if column not in self._names:
            plain = "".join(c if c.isalnum() else "_" for c in column)
            known = {name.casefold() for name in self._names.values()}
            free = (plain if i == 1 else f"{plain}-{i}" for i in itertools.count(1))
            self._names[column] = next(name for name in free if name.casefold() not in known)
        return self._names[column]

    def survey(self, found: Json) -> None:
        """Add what was found about a set."""
        self.file.write(f"<section>\n{tables_html(found['tables'], self.language)}</section>\n")

    def close(self, summary: Json) -> None:
        """Finish the page."""
        notes = [*summary["notes"]]
        if self.rows > SHOWN:
            notes.append(
                say(
                    "the first {n} of {of:,} rows are shown; all are in explanations.jsonl",
                    n=SHOWN,
                    of=self.rows,
                )
            )
        notes += [unexplained(row, why) for row, why in list(summary["unreadable"].items())[:20]]
        measures = _listed(_measures(summary["quality"], self.language), self.language)
        if measures and summary["rows"] > 1:
            notes.insert(0, say("means over {n:,} rows: {measures}", n=summary["rows"], measures=measures))
        self.file.write(
            "<section>\n"
            + tables_html(summary.get("tables", {}), self.language)
            + "".join(_note(spoken(note, self.language)) for note in notes)
            + "</section>\n</html>\n"
        )
        self.file.close()


def unexplained(row: str, why: str) -> Sentence:
    """Return the sentence about a row that could not be explained."""
    return say("row {row} could not be explained: {why}", row=row, why=why)


def explanation_html(one: Json, language: str = "en") -> str:
    """Return an explanation as a section of a page; all text is escaped, and pictures are inside."""
    one, parts = spoken(one, language), []
    for column, part in one["parts"].items():
        if part["kind"] != "value":
            heading = html.escape(_heading(one, column, language))
            parts.append(f"<h3>{heading}</h3>\n{part_html(part, language)}")
    values = {c: p for c, p in one["parts"].items() if p["kind"] == "value"}
    if values:
        parts.append(_bars(values))
    measures = _listed(_measures(one["quality"], language), language)
    notes = ([measures] if measures else []) + list(one["notes"])
    return (
        f"<section>\n<h2>{html.escape(headline(one, language))}</h2>\n{''.join(parts)}{tables_html(one.get('tables', {}), language)}"
        + "".join(_note(note) for note in notes)
        + "</section>\n"
    )


def part_html(part: Json, language: str = "en") -> str:
    """Return what an input contributed, as a piece of a page."""
    match part["kind"]:
        case "tokens":
            return _tokens(part, language)
        case "matrix":
            return _matrix(part)
        case "image":
            shown = part.get("shown")
            size = _larger(_array(part["values"]).shape)
            seen = html.escape(translate(say("what the model saw"), language))
            original = (
                f'<img src="{html.escape(shown)}" width="{size[0]}" height="{size[1]}" alt="{seen}">'
                if isinstance(shown, str) and shown.startswith("data:image/png;base64,")
                else ""
            )
            both = translate(say("what speaks for and against"), language)
            return f'<div class="ex-pictures">{original}{_img(heatmap(part), both)}</div>\n'
        case "maps":
            names = _listed(spoken(part.get("names", []), language), language)
            return f'<div class="ex-pictures">{_img(mosaic(part), names)}</div>\n'
        case "vector":
            return _bars({f"[{i}]": {"values": v} for i, v in _top(part["values"])})
        case _:
            return _bars({"": part})


def tables_html(tables: Json, language: str = "en") -> str:
    """Return tables as a piece of a page."""
    parts = []
    for name, lines in spoken(tables, language).items():
        keys = list(dict.fromkeys(key for line in lines for key in line))
        head = "".join(f"<th>{html.escape(named(str(key), language))}</th>" for key in keys)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_cell(line.get(key)))}</td>" for key in keys) + "</tr>\n"
            for line in lines[:SHOWN]
        )
        cut = say("the first {n} of {of:,} lines", n=SHOWN, of=len(lines))
        more = _note(translate(cut, language)) if len(lines) > SHOWN else ""
        parts.append(
            f"<h3>{html.escape(named(name, language, 'tables'))}</h3>\n<div class='ex-scroll'><table class='survey'><tr>{head}</tr>\n{body}</table></div>{more}\n"
        )
    return "".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(one)}" for key, one in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _top(values: Sequence[float | None], count: int = 20) -> Iterable[tuple[int, float]]:
    numbers = [0.0 if v is None else v for v in values]
    order = sorted(range(len(numbers)), key=lambda i: -abs(numbers[i]))[:count]
    return [(i, numbers[i]) for i in order]


def _tokens(part: Json, language: str) -> str:
    scale = _scale(part["values"])
    words = []
    for text, value in _stretches(part):
        if value is None or abs(value) < 0.02 * scale:
            words.append(html.escape(text))
        else:
            words.append(
                f'<span class="{_side(value)}" style="background:{_tint(value / scale)};text-decoration-thickness:{0.3 + 1.5 * min(1.0, abs(value / scale)):.1f}px" title="{value:+.4g}">{html.escape(text)}</span>'
            )
    hidden = [
        (piece["text"], value)
        for piece, value in zip(part["pieces"], part["values"], strict=True)
        if piece["start"] >= piece["end"] and value
    ]
    beside = (
        f"<br>{html.escape(_strongest([t for t, _ in hidden], [v for _, v in hidden], language))}"
        if hidden
        else ""
    )
    return f'<div class="ex-text">{"".join(words)}{beside}</div>\n'


def _matrix(part: Json) -> str:
    values = _array(part["values"])
    scale = _scale(values)
    head = "".join(f"<th>{html.escape(_line(piece['text']))}</th>" for piece in part["pieces"])
    rows = "".join(
        f"<tr><th>{html.escape(_line(output['text']))}</th>"
        + "".join(
            f'<td style="background:{_tint(v / scale)}" title="{v:+.4g}">{_sign(v / scale)}</td>'
            for v in line
        )
        + "</tr>\n"
        for output, line in zip(part["outputs"], values.tolist(), strict=True)
    )
    return f'<div class="ex-scroll"><table class="ex-matrix"><tr><th></th>{head}</tr>\n{rows}</table></div>\n'


def _line(text: str) -> str:
    return text.replace("\n", "↵")


def _bars(parts: Mapping[str, Json]) -> str:
    numbers = {name: float(part["values"] or 0.0) for name, part in parts.items()}
    scale = _scale(list(numbers.values()))
    lines = []
    for name, value in sorted(numbers.items(), key=lambda one: -abs(one[1])):
        width = abs(value) / scale * 12
        shown = parts[name].get("shown")
        lines.append(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape('' if shown is None else str(shown))}</td><td>{value:+.3g}</td>"
            f'<td><span class="ex-bar" style="width:{width:.2f}rem;background:{_tint(np.sign(value))}"></span></td></tr>\n'
        )
    return f"<div class='ex-scroll'><table class='ex-bars'>{''.join(lines)}</table></div>\n"


def _side(value: float) -> str:
    """Return the classes of a word: those that speak against have another line."""
    return "ex-t" if value > 0 else "ex-t ex-a"


def _sign(strength: float) -> str:
    """Return what stands in a cell: nothing where its tint can hardly be seen."""
    return "" if abs(strength) < 0.1 else "+" if strength > 0 else "−"


def _tint(strength: float) -> str:
    """Return a colour for -1 ... 1 that lies over a light or a dark ground alike."""
    red, green, blue = FOR if strength > 0 else AGAINST
    return f"rgba({red},{green},{blue},{min(1.0, abs(float(strength))) * 0.65:.2f})"


def _swatch(sign: int, language: str) -> str:
    words = say("blue, a straight line") if sign > 0 else say("orange, a wavy line or stripes")
    shown = html.escape(translate(words, language))
    return f'<span class="{_side(sign)}" style="background:{_tint(sign)}">{shown}</span>'


def _img(png: bytes, alt: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{html.escape(alt)}">'


def _note(text: str) -> str:
    return f'<p class="ex-note">{html.escape(text)}</p>\n'
