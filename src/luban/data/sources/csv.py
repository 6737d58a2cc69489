"""Comma-separated values: fast where the text is regular, exact where it is not.

A block of whole lines is first proved to be regular: quotes stand only around cells and every row has all its
cells. Then polars parses it, ten times faster than Python's csv module does. A block without that proof (a
quote inside a plain cell, a short row, an old Macintosh line end) goes through the csv module, which says
what is wrong and in which line, or reads it. polars alone would fill short rows silently.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal, Self

import numpy as np
import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field, PrivateAttr, model_validator

from luban.data.sources import _text
from luban.data.sources._files import File
from luban.data.sources._tables import Schema, TextFiles, checked_names, nulled
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

__all__ = ["Csv"]

_Character = Annotated[str, Field(pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x7f]$")]

# The module's own limit, 128 KB, is for the whole process and shorter than a long article.
csv.field_size_limit(max(csv.field_size_limit(), _text.LONGEST))


@register("sources")
class Csv(TextFiles):
    """Comma-separated values, also packed (gzip, zstd, bzip2, xz); columns are strings, an empty cell is
    null.

    The rules are those of RFC 4180, with any line end, and a quote inside an unquoted cell is a plain
    character. Blank lines are skipped, except in a file of one column, where each is an empty cell.

    Example:
        >>> Csv(path="reviews.csv", separator=";").columns()      # doctest: +SKIP
        ['review', 'label']
    """

    separator: _Character = ","
    """What stands between two cells: one ASCII character."""
    quote: _Character | None = '"'
    """What stands around a cell that holds a separator or a line end; null if quotes are plain text."""
    names: list[str] | None = None
    """Column names, for files whose first line is a row and not a header."""
    ragged: Literal["error", "pad"] = "error"
    """A row with too few cells is an error, or padded with empty cells and counted; too many are an error."""

    _padded: dict[str, int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _two_characters(self) -> Self:
        if self.separator == self.quote:
            raise ValueError(f"separator and quote are both {self.quote!r}; give two different characters")
        return self

    def notes(self) -> list[str]:
        """Return each file's encoding, repaired lines and padded rows, as far as the files were read."""
        return super().notes() + [
            say("{file}: {n} rows had too few cells and were padded", file=name, n=rows)
            for name, rows in self._padded.items()
        ]

    def _schema(self, file: File) -> Schema:
        names, _, _ = self._open(file, whole=False)
        return dict.fromkeys(names, pl.String())

    def _frames(self, file: File, schema: Schema) -> Iterator[pl.DataFrame]:
        names, line, blocks = self._open(file, whole=True)
        self._padded.pop(file.name, None)
        held = b""  # begins with a row, which begins in `line`
        for block in filter(None, blocks):
            held += block
            parsed = self._fast(held, names)
            if parsed is not None:
                frame, end = parsed
                line += held.count(b"\n", 0, end)
                held = held[end:]
                if len(held) > _text.LONGEST:
                    raise DataError(self._unclosed(), at=f"{file.name}:{line}")
            else:
                frame, lines = self._exact(chain([held], blocks), names, file, line)
                line += lines
                held = b""
            yield frame
        if held:
            yield self._exact(iter([held]), names, file, line)[0]

    def _open(self, file: File, *, whole: bool) -> tuple[list[str], int, Iterator[bytes]]:
        """Return the column names, the line that the rows begin in, and the rows as blocks of UTF-8."""
        blocks = iter(self._text(file, whole=whole))
        if self.names is not None:
            return checked_names(self.names, "names"), 1, blocks
        first = io.StringIO(next(blocks).decode(), newline="")
        reader = self._reader(first)
        try:
            header = next((row for row in reader if any(cell.strip() for cell in row)), None)
        except csv.Error as error:
            raise DataError(self._reason(error), at=f"{file.name}:1") from None
        if header is None:
            raise DataError(
                say("'{file}' has blank lines only; give a file that has a header and rows", file=file.name)
            )
        names = checked_names(header, f"{file.name}:{reader.line_num}")
        return names, reader.line_num + 1, chain([first.read().encode()], blocks)

    def _reader(self, lines: Any) -> Any:
        quoting: Literal[0, 3] = 3 if self.quote is None else 0  # QUOTE_NONE, QUOTE_MINIMAL
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote, quoting=quoting, strict=True)

    def _fast(self, text: bytes, names: list[str]) -> tuple[pl.DataFrame, int] | None:
        """Parse the whole rows of a text, if it is certain that polars reads them as the csv module would.

        Returns:
            The rows, and where in the text they end; None if it is not certain.
        """
        if text.count(b"\r") != text.count(b"\r\n"):
            return None
        if not text.endswith(b"\n"):
            text += b"\n"
        data = np.frombuffer(text, np.uint8)
        separators = data == ord(self.separator)
        line_ends = data == ord("\n")
        end = len(text)
        if self.quote and self.quote.encode() in text:
            quotes = data == ord(self.quote)
            at = np.flatnonzero(quotes)
            before = data[at[0::2] - 1]  # of each opening quote; the first byte follows the last, a line end
            after = data[at[1::2] + 1]  # of each closing quote
            between = [ord(self.separator), ord("\n"), ord(self.quote)]  # a doubled quote closes and opens
            if not (np.isin(before, between).all() and np.isin(after, [*between, ord("\r")]).all()):
                return None
            outside = ~np.bitwise_xor.accumulate(quotes.view(np.uint8)).view(bool)
            separators &= outside
            line_ends &= outside
            whole = np.flatnonzero(line_ends)
            end = int(whole[-1]) + 1 if len(whole) else 0
        if not end:
            return pl.DataFrame(schema=dict.fromkeys(names, pl.String)), 0
        try:
            frame = pl.read_csv(
                text[:end], has_header=False, schema=dict.fromkeys(names, pl.String),
                separator=self.separator, quote_char=self.quote,
            )  # fmt: skip
        except PolarsError:
            return None
        rows = np.count_nonzero(line_ends)
        if frame.height != rows or np.count_nonzero(separators[:end]) != rows * (len(names) - 1):
            return None
        return nulled(frame), end

    def _exact(
        self, blocks: Iterator[bytes], names: list[str], file: File, line: int
    ) -> tuple[pl.DataFrame, int]:
        """Parse the first block, and of the next ones what its last row needs, by Python's csv module.

        Returns:
            The rows, and how many lines they took.
        """
        supplied = 0

        def lines() -> Iterator[str]:
            nonlocal supplied
            for block in blocks:
                batch = list(io.StringIO(block.decode(), newline=""))
                supplied += len(batch)
                yield from batch

        rows: list[list[str]] = []
        width, taken = len(names), 0
        reader = self._reader(lines())
        try:
            for row in reader:
                if len(row) != width and (row or width == 1):
                    row = self._even(row, width, at=f"{file.name}:{line + taken}", file=file)
                if row:
                    rows.append(row)
                taken = reader.line_num
                if taken == supplied:
                    break
        except csv.Error as error:
            raise DataError(self._reason(error), at=f"{file.name}:{line + taken}") from None
        frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
        return nulled(frame), taken

    def _even(self, row: list[str], width: int, at: str, file: File) -> list[str]:
        if not row:
            return [""]  # a blank line of a file of one column
        if len(row) > width or self.ragged == "error":
            few = "; write 'ragged: pad' to fill such rows with empty cells" if len(row) < width else ""
            raise DataError(
                f"row has {len(row)} cells where the header has {width}; put quotes around cells that hold "
                f"{self.separator!r}{few}",
                at=at,
            )
        self._padded[file.name] = self._padded.get(file.name, 0) + 1
        return row + [""] * (width - len(row))

    def _unclosed(self) -> str:
        return (
            f"a cell begins with {self.quote} here and never ends; close it, "
            "or write 'quote: null' if quotes are plain text in this file"
        )

    def _reason(self, error: csv.Error) -> str:
        if "expected after" in str(error):
            return (
                f"a cell goes on after its closing {self.quote}; double each {self.quote} inside a quoted "
                "cell, "
                "or write 'quote: null' if quotes are plain text in this file"
            )
        return self._unclosed()
