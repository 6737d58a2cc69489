"""Arrow IPC: Feather version 2, IPC files and IPC streams."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import polars as pl

from luban.data.sources._files import File, reading
from luban.data.sources._tables import Files, Schema
from luban.errors import DataError
from luban.registry import register
from luban.sentences import say

__all__ = ["Arrow"]

_FILE_MAGIC = b"ARROW1\0\0"
_CONTINUES = b"\xff\xff\xff\xff"
_END = _CONTINUES + bytes(4)
_LONGEST_SCHEMA = 16 << 20
_PEEKED = 4096
_KINDS = _SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3


@register("sources")
class Arrow(Files):
    """Arrow IPC files and streams, also Feather version 2; columns keep their types.

    Dictionary-encoded columns become strings. One record batch is held in memory at a time.

    Example:
        >>> Arrow(path="table.feather").columns()      # doctest: +SKIP
        ['review', 'label']
    """

    def _schema(self, file: File) -> Schema:
        with reading(file.name, say("an Arrow file")), file.open() as handle:
            _, schema = next(_messages(handle, file.name))
            return dict(_frame(schema).schema)

    def _frames(self, file: File, schema: Schema) -> Iterator[pl.DataFrame]:
        with reading(file.name, say("an Arrow file")), file.open() as handle:
            shared = b""  # what every batch needs before it: the schema and the dictionaries
            if handle.read(len(_FILE_MAGIC)) == _FILE_MAGIC:  # where dictionaries may come after the batches
                first = _messages(handle, file.name, (_SCHEMA, _DICTIONARY))
                shared = b"".join(message for _, message in first)
            for kind, message in _messages(handle, file.name, (_RECORDS,) if shared else _KINDS):
                if kind == _RECORDS:
                    yield _frame(shared + message)
                else:
                    shared += message


def _frame(stream: bytes) -> pl.DataFrame:
    frame = pl.read_ipc_stream(io.BytesIO(stream + _END))
    return frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))


def _messages(handle: BinaryIO, name: str, wanted: tuple[int, ...] = _KINDS) -> Iterator[tuple[int, bytes]]:
    """Yield the messages of a file or a stream from its start, with their kinds; skip those of other kinds.

    An IPC file is a stream between a magic word and a footer, so that both are read alike, batch by batch.

    ::

        message = FF FF FF FF │ size of header (i32) │ header (a flatbuffer, knows the size of the body) │
        body

    Source: Arrow columnar format, "Serialization and Interprocess Communication".
    """
    size = handle.seek(0, io.SEEK_END)
    handle.seek(0)
    magic = handle.read(len(_FILE_MAGIC))
    if magic.startswith(b"FEA1"):
        raise DataError(
            f"'{name}' is Feather version 1, which is no longer read; write it as version 2 or as Parquet"
        )
    if magic != _FILE_MAGIC:
        handle.seek(0)
    expected = [_SCHEMA]
    while len(prefix := handle.read(8)) == 8 and prefix != _END:
        if prefix.startswith(_CONTINUES):
            header = handle.read(min(size, int.from_bytes(prefix[4:], "little")))
        else:
            prefix, header = _bare_schema(handle) if magic == _FILE_MAGIC else (b"", b"")
        kind, body = _kind_and_body(header)
        end = handle.tell() + body
        if kind not in expected or body < 0 or end > size:
            raise EOFError("a message is damaged or cut short")
        expected = [_DICTIONARY, _RECORDS]
        if kind in wanted:
            yield kind, prefix + header + handle.read(body)
        handle.seek(end)
    if expected == [_SCHEMA] or 0 < len(prefix) < 8:
        raise EOFError("it is empty" if not size else "it is cut short")


def _bare_schema(handle: BinaryIO) -> tuple[bytes, bytes]:
    """Return prefix and header of the schema in a file of polars, which leaves out the prefix.

    Where the header ends is then known from where the next message begins.
    """
    start = len(_FILE_MAGIC)
    handle.seek(start)
    data = handle.read(_LONGEST_SCHEMA)
    end = data.find(_CONTINUES)
    while end >= 0:
        following = _kind_and_body(data[end + 8 : end + 8 + _PEEKED])[0]
        if end % 8 == 0 and (data.startswith(_END, end) or following in (_DICTIONARY, _RECORDS)):
            handle.seek(start + end)
            return _CONTINUES + end.to_bytes(4, "little"), data[:end]
        end = data.find(_CONTINUES, end + 1)
    raise EOFError("the schema has no end")


def _kind_and_body(header: bytes) -> tuple[int, int]:
    """Return a message's kind and its body's size, fields 1 and 3 of its flatbuffer table; 0 if broken."""
    try:
        (table,) = struct.unpack_from("<I", header, 0)
        layout = table - struct.unpack_from("<i", header, table)[0]
        entries = struct.unpack_from("<H", header, layout)[0] // 2 - 2
        fields = [*struct.unpack_from(f"<{entries}H", header, layout + 4), 0, 0, 0, 0]
        kind = struct.unpack_from("<B", header, table + fields[1])[0] if fields[1] else 0
        body = struct.unpack_from("<q", header, table + fields[3])[0] if fields[3] else 0
    except struct.error:
        return 0, 0
    return kind, body
