"""The rows of a query on a database, which is only ever read."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Annotated, Any, Protocol
from urllib.parse import quote

import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field

from luban.data.contracts import Source
from luban.data.sources._files import File, one_line
from luban.data.sources._tables import checked_names, rechunk
from luban.errors import DataError, MissingError, did_you_mean
from luban.registry import register

__all__ = ["Sql"]

_SQLITE = "sqlite:///"
_FETCHED = 10_000  # rows fetched at once; the first of them settle the types, whatever the size of the chunks
_PLAIN = (str, bool, int, float, bytes, NoneType, datetime, date, time, timedelta)
_COMMENT = re.compile(r"\s+|--[^\n]*(\n|$)|/\*.*?\*/", re.DOTALL)
_SELECTS = ("select", "with", "values", "table")


class _Rows(Protocol):
    """What both a DBAPI cursor and an SQLAlchemy result give."""

    def fetchmany(self, size: int, /) -> Sequence[Any]: ...


@register("sources")
class Sql(Source):
    """The rows of a query. SQLite needs nothing further; other databases need SQLAlchemy and their driver.

    Types come from the first 10,000 rows; a later value of another type is an error that names the column.
    Nothing is ever written: SQLite is opened read-only, elsewhere the transaction is rolled back.

    Example:
        >>> source = Sql(connection="sqlite:///shop.db", query="select text, stars from reviews")
        >>> source.columns()      # doctest: +SKIP
        ['text', 'stars']
    """

    connection: Annotated[str, Field(min_length=1)]
    """``sqlite:///file.db``, or an SQLAlchemy URL; ``${NAME}`` is an environment variable (a password)."""
    query: Annotated[str, Field(min_length=1)]
    """One SELECT; with ORDER BY if the order of the rows is to be the same each time."""

    def columns(self) -> list[str]:
        """Return the names of the query's columns."""
        with self._result() as (names, _):
            return names

    def scan(self, chunk_rows: int = 8192) -> Iterator[pl.DataFrame]:
        """Yield the rows of the query, `chunk_rows` at a time."""
        empty = True
        for chunk in rechunk(self._frames(), chunk_rows):
            empty = False
            yield chunk
        if empty:
            raise DataError(f"the query gives no rows; check its conditions: {one_line(self.query)}")

    def fingerprint(self) -> str:
        """Return a hash of the query and of the SQLite file, or of all rows where there is no file."""
        digest = hashlib.sha256(self.query.encode())
        if self.connection.startswith(_SQLITE):
            path = self._sqlite_path()
            for file in (path, f"{path}-wal"):  # the write-ahead log holds what is not yet in the file
                if os.path.exists(file):
                    digest.update(File(file, file).fingerprint().encode())
        else:
            with self._result() as (_, rows):
                while batch := rows.fetchmany(_FETCHED):
                    for row in batch:
                        digest.update(repr(tuple(row)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _frames(self) -> Iterator[pl.DataFrame]:
        with self._result() as (names, rows):
            schema: dict[str, pl.DataType] | None = None
            seen = 0
            while batch := rows.fetchmany(_FETCHED):
                values = ([_plain(value) for value in column] for column in zip(*batch, strict=True))
                columns = dict(zip(names, values, strict=True))
                schema = schema or {name: _dtype(name, column) for name, column in columns.items()}
                yield pl.DataFrame(
                    [_series(name, column, schema[name], seen) for name, column in columns.items()]
                )
                seen += len(batch)

    @contextmanager
    def _result(self) -> Iterator[tuple[list[str], _Rows]]:
        first = _COMMENT.sub(" ", self.query).strip(" (").split(" ")[0].lower()
        if first not in _SELECTS:
            raise DataError(
                f"the query begins with '{first}', but only a SELECT is accepted, since data is only read; "
                "write 'select ... from ...'"
            )
        with self._sqlite() if self.connection.startswith(_SQLITE) else self._sqlalchemy() as (names, rows):
            yield checked_names(names, "query"), rows

    def _sqlite_path(self) -> str:
        path = os.path.expanduser(self._expanded().removeprefix(_SQLITE))
        if not os.path.isfile(path):
            folder = os.path.dirname(path) or "."
            hint = did_you_mean(os.path.basename(path), os.listdir(folder)) if os.path.isdir(folder) else ""
            raise DataError(
                f"database '{path}' does not exist; write 'sqlite:///file.db', with a fourth slash for an "
                f"absolute path{hint}"
            )
        return path

    @contextmanager
    def _sqlite(self) -> Iterator[tuple[list[str], _Rows]]:
        path = self._sqlite_path()
        try:
            address = f"file:{quote(path)}?mode=ro"
            with closing(sqlite3.connect(address, uri=True, check_same_thread=False)) as database:
                cursor = database.execute(self.query)
                yield [name for name, *_ in cursor.description], cursor
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise DataError(
                f"SQLite refuses the query ({one_line(str(error))}); correct it: {one_line(self.query)}",
                at=path,
            ) from error

    @contextmanager
    def _sqlalchemy(self) -> Iterator[tuple[list[str], _Rows]]:
        shown = re.sub(r"//[^/@]*@", "//...@", self.connection)  # no password in a message
        try:
            import sqlalchemy
        except ImportError:
            raise MissingError(
                f"'{shown}' needs SQLAlchemy: pip install 'luban[sql]'; only sqlite:///file.db goes without"
            ) from None
        try:
            engine = sqlalchemy.create_engine(self._expanded())
        except ImportError as error:
            raise MissingError(f"'{shown}' needs a driver that is not installed: {error}") from error
        except sqlalchemy.exc.ArgumentError as error:
            raise DataError(
                f"'{shown}' is no SQLAlchemy URL; write for instance "
                f"postgresql://user:${{PASSWORD}}@host/database"
            ) from error
        try:
            with engine.connect() as plain:
                database = plain.execution_options(stream_results=True, postgresql_readonly=True)
                if engine.dialect.name == "sqlite":
                    # Its driver commits 'with ... delete' by itself.
                    database.exec_driver_sql("pragma query_only = on")
                result = database.execute(sqlalchemy.text(self.query))
                yield list(result.keys()), result
                result.close()  # and the transaction, never committed, is rolled back
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = one_line(str(getattr(error, "orig", None) or error))
            raise DataError(
                f"'{shown}' refuses the query ({reason}); correct it: {one_line(self.query)}"
            ) from error
        finally:
            engine.dispose()

    def _expanded(self) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise DataError(
                    f"environment variable '{match[1]}' of the connection is not set; set it, or write its "
                    "value"
                )
            return os.environ[match[1]]

        return re.sub(r"\$\{(\w+)\}", value, self.connection)


def _plain(value: Any) -> Any:
    """Return a value of a type that polars has: decimals as floats, what is left (UUID, JSON) as text."""
    if isinstance(value, _PLAIN):
        return value
    return float(value) if isinstance(value, Decimal) else str(value)


def _dtype(name: str, values: list[Any]) -> pl.DataType:
    types = {type(value) for value in values} - {type(None)}
    if not types:
        return pl.String()
    if types == {int, float}:
        return pl.Float64()
    if len(types) > 1:
        raise DataError(
            f"column '{name}' of the query mixes {', '.join(sorted(one.__name__ for one in types))}; cast "
            "it to one type in the query"
        )
    return pl.Series(name, values, strict=True).dtype


def _series(name: str, values: list[Any], dtype: pl.DataType, seen: int) -> pl.Series:
    try:
        return pl.Series(name, values, dtype, strict=True)
    except (PolarsError, TypeError, OverflowError) as error:
        raise DataError(
            f"column '{name}' of the query is {dtype} in its first rows, but not in rows {seen + 1} to "
            f"{seen + len(values)} "
            f"({one_line(str(error))}); cast it to one type in the query"
        ) from error
