"""Pages as a browser shows them: no error, no request, nothing that does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import luban

# What stands outside the window, but for what scrolls in a box of its own; and boxes that hold more than they show.
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > wide) found.push('page ' + document.documentElement.scrollWidth);
  for (const one of document.querySelectorAll('body *')) {
    if (one.closest('.scroll, .ex-scroll, pre, svg, details:not([open]), .shares .name')) continue;
    const box = one.getBoundingClientRect();
    if (box.right > wide + 1 || box.left < -1) found.push(one.tagName + '.' + one.className + ' ' + box.right);
    if (one.scrollWidth > one.clientWidth + 1 && one.clientWidth && getComputedStyle(one).display !== 'inline')
      found.push('inside ' + one.tagName + '.' + one.className);
  }
  for (const one of document.querySelectorAll('svg.chart text')) {
    const box = one.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1)) found.push('svg text ' + one.textContent);
  }
  return found;
}"""
COLOURS = "() => ['body', 'h1', 'svg.chart text'].flatMap(s => { const one = document.querySelector(s); if (!one) return []; const c = getComputedStyle(one); return [s === 'body' ? c.backgroundColor : s === 'h1' ? c.color : c.fill]; })"


def lightness(colour: str) -> float:
    red, green, blue = (int(one) for one in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def look(browser: Any, page: Path, width: int, scheme: str) -> tuple[list[str], list[str], list[str]]:
    """Return what went wrong, what does not fit, and colours."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    tab.on("console", lambda message: wrong.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    tab.on(
        "request", lambda one: wrong.append(one.url) if not one.url.startswith(("file:", "data:")) else None
    )
    tab.goto(page.as_uri())
    over, colours = tab.evaluate(OVERFLOW), tab.evaluate(COLOURS)
    context.close()
    return wrong, over, colours


@pytest.mark.parametrize("kind", ["table", "texts", "pictures", "several", "causal"])
def test_a_report_fits_and_is_quiet(kind: str, artefact_of: Any, chromium: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    luban.report(
        artefact_of(kind),
        output=page,
        lang="zh" if kind == "texts" else "en",
        limit=100,
        examples=3,
        baselines=kind == "table",
    )
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            wrong, over, (paper, ink, labels) = look(chromium, page, width, scheme)
            assert not wrong, (width, scheme)
            assert not over, (width, scheme)
            back = lightness(paper)
            assert (back > 0.9) == (scheme == "light")
            # What is written stands out from its ground, in pictures as well.
            assert abs(back - lightness(ink)) > 0.6
            assert abs(back - lightness(labels)) > 0.4


@pytest.mark.parametrize(
    ("kind", "rows", "method"),
    [
        ("table", "table", "shapley"),
        ("table", "table", "surrogate"),
        ("table", "table", "counterfactual"),
        ("texts", "reviews", "integrated_gradients"),
        ("pictures", "pictures", "grad_cam"),
        ("several", "several", "occlusion"),
        ("causal", "causal", "gradient_x_input"),
    ],
)
def test_explanations_fit_and_are_quiet(
    kind: str, rows: str, method: str, artefact_of: Any, chromium: Any, tmp_path: Path
) -> None:
    folder = artefact_of(kind)
    luban.explain(
        folder,
        str(folder.parent / f"{rows}.jsonl"),
        method=method,
        limit=300 if method == "surrogate" else 3,
        target_text="好的" if kind == "causal" else None,
        output=tmp_path / "why",
    )
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            wrong, over, (paper, ink) = look(chromium, tmp_path / "why" / "index.html", width, scheme)
            assert not wrong, (width, scheme)
            assert not over, (width, scheme)
            assert (lightness(paper) > 0.9) == (scheme == "light")
            assert abs(lightness(paper) - lightness(ink)) > 0.6


def test_two_side_by_side_fit(artefact_of: Any, chromium: Any, tmp_path: Path) -> None:
    folder = artefact_of("table")
    shutil.copytree(folder, tmp_path / "another with a long name")
    page = tmp_path / "two.html"
    luban.compare(
        folder, tmp_path / "another with a long name", str(folder.parent / "table.jsonl"), output=page
    )
    for width in (1280, 390):
        wrong, over, _ = look(chromium, page, width, "light")
        assert not wrong
        assert not over


def test_it_prints(artefact_of: Any, chromium: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    luban.report(artefact_of("table"), output=page, baselines=False, examples=2)
    tab = chromium.new_page(color_scheme="dark")
    tab.goto(page.as_uri())
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("() => getComputedStyle(document.querySelector('nav')).display") == "none"
    assert lightness(tab.evaluate("() => getComputedStyle(document.body).backgroundColor")) > 0.95
    folded = "() => [...document.querySelectorAll('details:not([open])')].map(one => one.getBoundingClientRect().height)"
    on_paper = tab.evaluate(folded)
    tab.emulate_media(media="screen", color_scheme="light")
    on_screen = tab.evaluate(folded)
    assert len(on_paper) >= 3
    assert all(paper > screen + 40 for paper, screen in zip(on_paper, on_screen, strict=True)), (
        "all that is folded on a screen lies open on paper"
    )
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.pdf().startswith(b"%PDF")
    tab.close()


@pytest.mark.parametrize("media", ["light", "dark", "print"])
def test_for_and_against_are_told_apart_without_colour(
    media: str, artefact_of: Any, chromium: Any, tmp_path: Path
) -> None:
    """WCAG 2.2, 1.4.1: the line under a piece of a text says its side as well, on screen and on paper."""
    page = tmp_path / "report.html"
    luban.report(artefact_of("texts"), output=page, baselines=False, examples=4)
    folder = artefact_of("texts")
    rows = str(folder.parent / "reviews.jsonl")
    luban.explain(folder, rows, method="integrated_gradients", limit=4, output=tmp_path / "why")
    tab = chromium.new_page(color_scheme="light" if media == "light" else "dark")
    lines = """selector => [...document.querySelectorAll(selector)].map(one => {
      const style = getComputedStyle(one);
      return style.textDecorationLine + ' ' + style.textDecorationStyle + (style.textDecorationColor === 'rgba(0, 0, 0, 0)' ? ' unseen' : '');
    })"""
    for place, sides in (
        (page, (".example mark:not(.against)", ".example mark.against")),
        (tmp_path / "why" / "index.html", (".ex-text .ex-t:not(.ex-a)", ".ex-text .ex-a")),
    ):
        tab.goto(place.as_uri())
        if media == "print":
            tab.emulate_media(media="print")
        found = [set(tab.evaluate(lines, one)) for one in sides]
        assert found == [{"underline solid"}, {"underline wavy"}], place
    tab.close()
