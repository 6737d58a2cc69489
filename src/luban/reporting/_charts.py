"""Pictures: altair describes them, vl-convert makes SVG of them, without a browser and without a request.

Colours are those of the light page; the style sheet names them as variables and changes them where it is dark. Data reach altair as
values under names of ours, so that no text of a user's is read as a field, an expression or markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any, ParamSpec

from luban.errors import MissingError

__all__ = ["COLOURS", "INK", "Whisker", "curves", "reliability", "require", "scatter", "whiskers"]

INK, SOFT, RULE = "#1f2328", "#6a6f77", "#e2dfd6"
COLOURS = {"a": "#1f5fa8", "b": "#c2571a", "c": "#3f7d4e", "d": "#8a4f9e", "e": "#7a6a1f", "f": "#2b7f86"}
"""Name of a place among the colours → its colour on the light page."""
_WIDTH, _HEIGHT = 350, 230
_ROW = 24  # pixels of a line of whiskers

Whisker = tuple[str, str, float, float | None, float | None]
"""Label, name of the series, value, and both ends of its interval."""


_Arguments = ParamSpec("_Arguments")


def _later(draw: Callable[_Arguments, str]) -> Callable[_Arguments, Callable[[], str]]:
    """Put off drawing until a page needs the picture: Markdown has none."""

    @wraps(draw)
    def put_off(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> Callable[[], str]:
        return lambda: draw(*arguments, **options)

    return put_off


def require() -> None:
    """Check that pictures can be drawn, before anything else is done.

    Raises:
        MissingError: if a package is not installed.
    """
    _altair()


def _altair() -> Any:
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError:
        raise MissingError(
            "the pictures of a report need altair and vl-convert; install them with: pip install 'luban[report]', or take --format md or json"
        ) from None
    return altair


def _svg(chart: Any, title: str, text: str, *, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    """Return a chart as SVG that says what it shows, and that a page may hold beside others."""
    import vl_convert

    axis = {
        "labelColor": SOFT, "titleColor": SOFT, "gridColor": RULE, "domainColor": RULE, "tickColor": RULE, "titleFontWeight": "normal",
        "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 150, "titlePadding": 8, "tickCount": 5,
    }  # fmt: skip
    chart = (
        chart.properties(width=width, height=height, autosize={"type": "fit", "contains": "padding"})
        .configure(background="transparent", font="Arial", padding=4)
        .configure_view(stroke=None)
        .configure_axis(**axis)
        .configure_axisX(grid=True, domain=False, ticks=False, labelPadding=6, labelFlush=False)
        .configure_axisY(domain=False, ticks=False, labelPadding=6)
    )
    svg = str(vl_convert.vegalite_to_svg(chart.to_dict()))
    svg = re.sub(
        r' (?:role|aria-[\w-]+)="[^"]*"', "", svg
    )  # the whole is one picture to those who cannot see it
    named = f"<title>{escape(title)}</title><desc>{escape(text)}</desc>"
    head = re.search(r"<svg[^>]*>", svg)
    assert head is not None
    inner = re.sub(r' (?:class|width|height)="[^"]*"', "", head[0]).replace(
        "<svg", '<svg role="img" class="chart"'
    )
    inner = inner.replace("<svg", f'<svg style="--width:{width}px"')
    return inner + named + svg[head.end() :]


@_later
def curves(
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    x: str,
    y: str,
    *,
    title: str,
    text: str,
    at: float | None = None,
    square: bool = False,
    diagonal: bool = False,
    points: bool = False,
) -> str:
    """Draw lines.

    Args:
        series: name, colour (``a`` ...) and points of each line.
        x, y: titles of the axes.
        title, text: what the picture is called and shows, for those who cannot see it.
        at: where an upright line marks a place along x.
        square: whether both axes go from 0 to 1.
        diagonal: whether a line from corner to corner is there to compare with.
        points: whether each point is marked.
    """
    alt = _altair()
    values = [
        {"series": name, "x": a, "y": b, "order": i}
        for name, _, own in series
        for i, (a, b) in enumerate(own)
    ]
    scale = alt.Scale(domain=[0, 1]) if square else alt.Scale(zero=False, nice=True)
    color = alt.Color(
        "series:N",
        scale=alt.Scale(domain=[name for name, _, _ in series], range=[COLOURS[c] for _, c, _ in series]),
        legend=None,
    )
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("x:Q", title=x, scale=scale),
        y=alt.Y("y:Q", title=y, scale=scale),
        color=color,
        order="order:Q",
    )
    layers = [base.mark_line(strokeWidth=1.8, interpolate="linear")]
    if points or len(values) <= 24:
        layers.append(base.mark_point(filled=True, size=26, opacity=1))
    if at is not None:
        rule = alt.Chart(alt.Data(values=[{"x": at}]))
        layers.insert(0, rule.mark_rule(color=SOFT, strokeDash=[3, 3]).encode(x="x:Q"))
    if diagonal:
        layers.insert(0, _diagonal(alt, 0.0, 1.0))
    return _svg(alt.layer(*layers), title, text, height=300 if square else _HEIGHT)


def _diagonal(alt: Any, low: float, high: float) -> Any:
    ends = alt.Chart(alt.Data(values=[{"x": low, "y": low}, {"x": high, "y": high}]))
    return ends.mark_line(color=SOFT, strokeDash=[3, 3], strokeWidth=1).encode(x="x:Q", y="y:Q")


@_later
def reliability(bins: Sequence[dict[str, float]], x: str, y: str, *, title: str, text: str) -> str:
    """Draw how right predictions are at each confidence, above the share of rows that are so sure."""
    alt = _altair()
    total = sum(one["weight"] for one in bins) or 1.0
    values = [{**one, "share": one["weight"] / total} for one in bins]
    scale = alt.Scale(domain=[0, 1])
    base = alt.Chart(alt.Data(values=values))
    bars = base.mark_bar(color=RULE).encode(
        x=alt.X("low:Q", scale=scale, title=x),
        x2="high:Q",
        y=alt.Y("share:Q", scale=scale, title=y),
        y2=alt.datum(0),
    )
    line = base.mark_line(color=COLOURS["a"], strokeWidth=1.8).encode(
        x=alt.X("confidence:Q", scale=scale), y=alt.Y("accuracy:Q", scale=scale)
    )
    dots = base.mark_point(color=COLOURS["a"], filled=True, opacity=1).encode(
        x="confidence:Q",
        y="accuracy:Q",
        size=alt.Size("share:Q", legend=None, scale=alt.Scale(range=[20, 160])),
    )
    return _svg(alt.layer(bars, _diagonal(alt, 0.0, 1.0), line, dots), title, text, height=300)


@_later
def whiskers(
    rows: Sequence[Whisker],
    colours: dict[str, str],
    x: str,
    *,
    title: str,
    text: str,
    at: float | None = None,
    zero: bool = False,
) -> str:
    """Draw numbers as dots with their intervals, one line for each label and series.

    Args:
        rows: what is drawn, from above.
        colours: series → colour.
        x: title of the axis.
        title, text: as in `curves`.
        at: where an upright line stands to compare with.
        zero: whether the axis must hold 0.
    """
    alt = _altair()
    names = list(colours)
    values = [
        {"label": label, "series": series, "value": value, "low": low, "high": high}
        for label, series, value, low, high in rows
    ]
    labels = list(dict.fromkeys(row[0] for row in rows))
    color = alt.Color(
        "series:N", scale=alt.Scale(domain=names, range=[COLOURS[c] for c in colours.values()]), legend=None
    )
    scale = alt.Scale(zero=zero, nice=True)
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(grid=False, labelColor=INK)), color=color
    )
    if len(names) > 1:
        base = base.encode(yOffset=alt.YOffset("series:N", sort=names))
    whole = [base.transform_filter("datum.low !== null").mark_rule(strokeWidth=2, opacity=0.55).encode(
        x=alt.X("low:Q", scale=scale, title=x), x2="high:Q"
    )]  # fmt: skip
    whole.append(
        base.mark_point(filled=True, size=55, opacity=1).encode(x=alt.X("value:Q", scale=scale, title=x))
    )
    if at is not None:
        rule = alt.Chart(alt.Data(values=[{"x": at}]))
        whole.insert(0, rule.mark_rule(color=SOFT, strokeDash=[3, 3]).encode(x=alt.X("x:Q", scale=scale)))
    lines = sum(1 for _ in labels) * max(1, len(names))
    height = 48 + max(_ROW * len(labels), (_ROW - 8) * lines)
    return _svg(alt.layer(*whole), title, text, height=height)


@_later
def scatter(pairs: Sequence[Sequence[float]], x: str, y: str, *, title: str, text: str) -> str:
    """Draw predictions over truths."""
    alt = _altair()
    values = [{"x": a, "y": b} for a, b in pairs]
    flat = [v for pair in pairs for v in pair]
    low, high = (min(flat), max(flat)) if flat else (0.0, 1.0)
    scale = alt.Scale(domain=[low, high], nice=True, zero=False)
    dots = alt.Chart(alt.Data(values=values)).mark_point(
        filled=True, size=22, opacity=0.55, color=COLOURS["a"]
    )
    dots = dots.encode(x=alt.X("x:Q", title=x, scale=scale), y=alt.Y("y:Q", title=y, scale=scale))
    return _svg(alt.layer(_diagonal(alt, low, high), dots), title, text, height=300)
