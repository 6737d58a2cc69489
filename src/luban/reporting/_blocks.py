"""What a report is made of, whatever it is written as.

::

    data (JSON) ──_sections──▶ Section(title, how to read it, blocks) ──┬──_html──▶ one page, pictures inside
                                                                        └──_markdown──▶ the same words and tables

A block is plain data with texts in the reader's language; how it looks is decided where it is written. Texts that come from
rows are texts, never markup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

__all__ = [
    "Block", "Cell", "Chart", "Code", "Example", "Figures", "Grid", "Heat", "Note", "Page", "Piece", "Section", "Share",
    "Shown", "Table", "Text",
]  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A paragraph, or a heading below a section's."""

    kind: ClassVar[str] = "text"
    text: str
    heading: bool = False


@dataclass(frozen=True)
class Note:
    """Something to know: what is missing and the command that makes it (``absent``), what to beware of (``careful``), or what an
    audit found, by its severity; there `label` is the severity, `advice` what to do, and `command` the figures."""

    kind: ClassVar[str] = "note"
    tone: Literal["absent", "careful", "info", "high", "medium", "low"]
    text: str
    command: str = ""
    label: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Figures:
    """A few large numbers: each a label, the number, and what stands below it."""

    kind: ClassVar[str] = "figures"
    figures: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        below: a second, quieter line.
        bar: length of a bar behind it, from 0 to 1; None for none.
        tone: ``good`` or ``bad`` where a difference is beyond chance.
        bars: heights of a small histogram, from 0 to 1.
    """

    text: str
    below: str = ""
    bar: float | None = None
    tone: str = ""
    bars: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table; `numbers` says which columns are numbers. It is folded under a caption if `fold`."""

    kind: ClassVar[str] = "table"
    head: list[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[bool] = ()
    caption: str = ""
    fold: bool = False


@dataclass(frozen=True)
class Heat:
    """A confusion matrix as a table whose cells are tinted: truth down, prediction across.

    Attributes:
        counts: rows of each truth said to be each class, (n, n).
        corner: what stands above the truths and left of the predictions.
    """

    kind: ClassVar[str] = "heat"
    classes: list[str]
    counts: list[list[float]]
    corner: tuple[str, str]
    caption: str = ""

    def tint(self, i: int, j: int) -> float:
        """Return the share of its truth's rows that a cell holds, from 0 to 1."""
        return self.counts[i][j] / max(1.0, sum(self.counts[i]))


@dataclass(frozen=True)
class Chart:
    """A picture: what draws it as SVG, what it shows in a sentence, how to read it, and the numbers behind it."""

    kind: ClassVar[str] = "chart"
    svg: Callable[[], str]
    title: str
    text: str = ""
    table: Table | None = None
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Name of a series and its place among the colours (``a``, ``b``, ``c`` ...)."""


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is."""

    kind: ClassVar[str] = "code"
    text: str
    caption: str = ""
    fold: bool = False


@dataclass(frozen=True)
class Piece:
    """A stretch of a text; `value` from -1 (speaks against) to 1 (speaks for), 0 for none."""

    text: str
    value: float = 0.0


@dataclass(frozen=True)
class Share:
    """How much a column speaks for or against what was said: `value` from -1 to 1, `text` the number."""

    column: str
    value: float
    text: str


@dataclass(frozen=True)
class Shown:
    """A column of a row: a text in pieces, or a picture (a data URL) and the same picture under its heat map."""

    column: str
    pieces: list[Piece] = field(default_factory=list)
    picture: str = ""
    heat: str = ""


@dataclass(frozen=True)
class Example:
    """A row, what was said of it, and why."""

    kind: ClassVar[str] = "example"
    head: str
    tone: str
    facts: list[tuple[str, str]]
    shown: list[Shown]
    shares: list[Share] = field(default_factory=list)
    foot: str = ""


@dataclass(frozen=True)
class Grid:
    """Blocks that stand side by side where there is room."""

    kind: ClassVar[str] = "grid"
    blocks: list[Block]


Block: TypeAlias = Text | Note | Figures | Table | Heat | Chart | Code | Example | Grid


@dataclass(frozen=True)
class Section:
    """A section: the word that links to it, its title, how to read it, and its blocks."""

    name: str
    title: str
    lead: str
    blocks: list[Block]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        language: ``en`` or ``zh``.
        eyebrow, title, verdict: the head.
        figures: the numbers that stand below the verdict.
        sections: in order.
        foot: when and by what it was made.
    """

    language: str
    eyebrow: str
    title: str
    verdict: list[str]
    figures: Figures
    sections: list[Section]
    foot: str
