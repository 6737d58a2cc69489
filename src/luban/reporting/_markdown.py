"""A page as Markdown: the same words and tables, without pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from luban.reporting._blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Example,
    Figures,
    Grid,
    Heat,
    Note,
    Page,
    Shown,
    Table,
    Text,
)  # fmt: skip
from luban.reporting._words import number

__all__ = ["markdown"]


def markdown(page: Page) -> str:
    """Return a page as Markdown; texts of rows cannot become markup."""
    lines = [f"# {_plain(page.title)}", "", *(f"{_plain(one)}\n" for one in page.verdict)]
    lines += _lines(page.figures, page.language)
    for section in page.sections:
        lines += ["", f"## {_plain(section.title)}", "", f"*{_plain(section.lead)}*", ""]
        for block in section.blocks:
            lines += [*_lines(block, page.language), ""]
    lines += ["---", "", _plain(page.foot), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _plain(text: str) -> str:
    r"""Return text that Markdown shows as it is.

    Example:
        >>> _plain("<b>|x|\n# no")
        '\\<b\\>\\|x\\| # no'
    """
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))


def _below(text: str, language: str) -> str:
    """Return the second, quieter line of a cell or a figure as it stands behind the first."""
    if not text:
        return ""
    return f"（{_plain(text)}）" if language == "zh" else f" ({_plain(text)})"


def _lines(block: Block, language: str) -> Iterator[str]:
    if isinstance(block, Text):
        yield f"### {_plain(block.text)}" if block.heading else _plain(block.text)
    elif isinstance(block, Note):
        label = f"**{_plain(block.label)}** " if block.label else ""
        code = f" `{block.command.replace('`', '')}`" if block.command else ""
        if block.label:
            rest = " ".join(_plain(part) for part in (block.advice, block.command) if part)
            yield f"> {label}{_plain(block.text)} {rest}"
        else:
            yield f"> {_plain(block.text)}{code}"
    elif isinstance(block, Figures):
        for label, value, below in block.figures:
            yield f"- {_plain(label)}: **{_plain(value)}**{_below(below, language)}"
    elif isinstance(block, Table):
        yield from _table(block.head, block.rows, block.numbers, block.caption, language)
    elif isinstance(block, Heat):
        rows = [
            [Cell(name), *[Cell(number(n)) for n in row]]
            for name, row in zip(block.classes, block.counts, strict=True)
        ]
        head = [f"{block.corner[0]} ↓ {block.corner[1]} →", *block.classes]
        yield from _table(head, rows, [False, *[True] * len(block.classes)], block.caption, language)
    elif isinstance(block, Chart):
        if block.table is not None:
            yield from _lines(block.table, language)
    elif isinstance(block, Code):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
        yield from ([_plain(block.caption), ""] if block.caption else [])
        yield from (fence, block.text.rstrip("\n"), fence)
    elif isinstance(block, Example):
        yield from _example(block)
    elif isinstance(block, Grid):
        for one in block.blocks:
            yield from _lines(one, language)
            yield ""


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    numbers: Sequence[bool],
    caption: str,
    language: str,
) -> Iterator[str]:
    if caption:
        yield f"{_plain(caption)}\n"
    yield f"| {' | '.join(_plain(one) for one in head)} |"
    numbers = numbers or [False] * len(head)
    yield f"|{'|'.join('---:' if one else '---' for one in numbers)}|"
    for row in rows:
        cells = [_plain(one.text) + _below(one.below, language) for one in row]
        yield f"| {' | '.join(cells)} |"


def _example(block: Example) -> Iterator[str]:
    facts = "; ".join(f"{_plain(name)}: **{_plain(value)}**" for name, value in block.facts)
    yield f"- {_plain(block.head)}{': ' if block.head and facts else ''}{facts}"
    for one in block.shown:
        name = f"{_plain(one.column)}: " if one.column else ""
        yield f"  - {name}{_text(one)}"
    if block.shares:
        yield "  - " + "; ".join(f"{_plain(one.column)} {_plain(one.text)}" for one in block.shares)


def _text(one: Shown) -> str:
    return _plain("".join(piece.text for piece in one.pieces)) or "…"
