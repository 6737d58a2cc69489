"""A page as HTML: one file, no script, no request, everything inside."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from luban.reporting._blocks import Page
from luban.reporting._words import Words, number, percent

__all__ = ["html"]


@cache
def _environment() -> Environment:
    # All texts are escaped; what is safe is the style sheet and the SVG, which altair escaped.
    environment = Environment(
        loader=PackageLoader("luban.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(number=number, percent=percent)
    return environment


def html(page: Page) -> str:
    """Return a page as HTML."""
    css = files("luban.reporting").joinpath("templates/page.css").read_text(encoding="utf-8")
    template = _environment().get_template("page.html.j2")
    return template.render(page=page, css=css, words=Words(page.language)) + "\n"
