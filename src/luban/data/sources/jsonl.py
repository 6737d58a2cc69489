"""JSON: one object a line, or one array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from types import NoneType
from typing import Annotated, Any, TypeAlias

import polars as pl
from pydantic import Field

from luban.data.sources import _text
from luban.data.sources._files import File, one_line, reading
from luban.data.sources._tables import Schema, TextFiles, nulled
from luban.data.sources._text import Text
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

__all__ = ["Jsonl"]

_Row: TypeAlias = tuple[Any, str, int]
"""An object, its text, and the line in which it begins."""
_FIRST = 1000  # objects whose keys become the columns
_BATCH = 4096
_PEEKED = 4096
_GAP = re.compile(r"\s*(,?)\s*(\]?)")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice in an object"
        )
    return result


_EXACT = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)  # 1.10 stays 1.10
# Refuses repeated keys, at a third of the speed; good enough for the first objects.
_CAREFUL = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str, object_pairs_hook=_pairs)
_PLAIN = json.JSONDecoder()


@register("sources")
class Jsonl(TextFiles):
    """JSON lines, or a file that is one JSON array of objects, also packed; each key is a column of strings.

    A number is kept as it is written (``1.10`` stays ``1.10``), true and false become ``true`` and ``false``,
    a list or an object becomes its JSON text; null, an empty string and a missing key are null.

    Example:
        >>> Jsonl(path="reviews.jsonl").columns()      # doctest: +SKIP
        ['review', 'label']
    """

    keys: Annotated[list[str], Field(min_length=1)] | None = None
    """The keys to read; by default those of the first 1000 objects, and then a key first met later is an
    error."""

    def _schema(self, file: File) -> Schema:
        text = self._text(file, whole=False, breaks=_breaks(file))
        names: dict[str, None] = {}
        for row, _, _ in islice(_rows(text, _CAREFUL), _FIRST):
            names.update(dict.fromkeys(row))
        if not names:
            raise DataError(
                say(
                    '\'{file}\' holds no object with a key; give rows such as {{"text": "good", "label": "1"}}',
                    file=file.name,
                )
            )
        return dict.fromkeys(self.keys or names, pl.String())

    def _frames(self, file: File, schema: Schema) -> Iterator[pl.DataFrame]:
        text = self._text(file, whole=True, breaks=_breaks(file))
        known = set(schema)
        for batch in _batches(_rows(text)):
            if self.keys is None and (new := set().union(*(row for row, _, _ in batch)) - known):
                name, line = next((name, line) for row, _, line in batch for name in row if name in new)
                raise DataError(
                    f"key '{one_line(name)}' is in none of the file's first {_FIRST} objects; "
                    "list the keys to read, for instance 'keys: [text, label]'",
                    at=f"{file.name}:{line}",
                )
            yield nulled(pl.DataFrame([_column(name, batch, text) for name in schema]))


def _breaks(file: File) -> bytes:
    """Return where a block of text may end: an array may well be a single line of gigabytes."""
    with reading(file.name):
        head = next(file.blocks(_PEEKED), b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")
    return b"," if head.startswith(b"[") else b"\r"


def _batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Group rows, few of them if they are long."""
    batch: list[_Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[1])
        if len(batch) == _BATCH or size >= _text.BLOCK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rows(text: Text, decoder: json.JSONDecoder = _EXACT) -> Iterator[_Row]:
    """Yield each object of a file."""
    blocks = (block.decode() for block in text)
    first = next(blocks)
    read = _array if first.lstrip().startswith("[") else _lines
    for row in read(chain([first], blocks), text.file.name, decoder):
        if type(row[0]) is not dict:
            raise DataError(
                f"received {one_line(row[1], 40)} where an object belongs; "
                'write each row as {"column": "value", ...}',
                at=f"{text.file.name}:{row[2]}",
            )
        yield row


def _column(name: str, rows: list[_Row], text: Text) -> pl.Series:
    values = [row.get(name) for row, _, _ in rows]
    if not set(map(type, values)) <= {str, NoneType}:
        for index, value in enumerate(values):
            if isinstance(value, bool):
                values[index] = "true" if value else "false"
            elif isinstance(value, dict | list):
                values[index] = json.dumps(_PLAIN.decode(rows[index][1])[name], ensure_ascii=False)
    try:
        return pl.Series(name, values, pl.String)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can write but UTF-8 cannot
        for index, value in enumerate(values):
            mended = value and value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if mended != value:
                values[index] = mended
                text.repaired += 1
                text.first_repaired = text.first_repaired or rows[index][2]
        return pl.Series(name, values, pl.String)


def _lines(blocks: Iterator[str], name: str, decoder: json.JSONDecoder) -> Iterator[_Row]:
    line = 0
    for block in blocks:
        for source in block.removesuffix("\n").split("\n"):
            line += 1
            source = source.strip()
            if source:
                try:
                    value, end = decoder.raw_decode(source)
                    if end < len(source):
                        raise json.JSONDecodeError("Extra data", source, end)
                except (ValueError, RecursionError) as error:
                    raise _malformed(error, f"{name}:{line}") from None
                yield value, source, line


def _array(blocks: Iterator[str], name: str, decoder: json.JSONDecoder) -> Iterator[_Row]:
    text = next(blocks)
    at = text.index("[") + 1
    line = 1 + text.count("\n", 0, at)
    first = True
    while True:
        gap = _GAP.match(text, at)
        assert gap is not None  # it matches the empty string
        comma, bracket = gap.groups()
        start = gap.end()
        if bracket:
            if text[start:].strip() or any(block.strip() for block in blocks):
                raise DataError(
                    say("something stands after the end of the array; keep one array in a file"),
                    at=f"{name}:{line}",
                )
            return
        try:
            if start == len(text):
                raise EOFError("the array has no end")
            if bool(comma) == first:
                raise ValueError(
                    f"a comma {'stands before the first' if first else 'is missing before an'} object"
                )
            value, end = decoder.raw_decode(text, start)
        except (EOFError, ValueError, RecursionError) as error:  # broken, or only cut by the end of the block
            more = next(blocks, None) if len(text) - at < _text.LONGEST else None
            if more is None:
                raise _malformed(error, f"{name}:{line + text.count(chr(10), at, start)}") from None
            text, at = text[at:] + more, 0
            continue
        line += text.count("\n", at, start)
        yield value, text[start:end], line
        line += text.count("\n", start, end)
        at, first = end, False


def _malformed(error: Exception, at: str) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at character {error.colno}"
    else:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(str(error))
    return DataError(
        say(
            "this is not JSON ({reason}); write one object a line, or one array of objects in the file",
            reason=reason,
        ),
        at=at,
    )
