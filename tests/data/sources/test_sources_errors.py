"""What is wrong with the data ends in one sentence, whatever it is; no other exception, no hang."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luban.data.sources import open_source
from luban.errors import DataError, MissingError

Write = Callable[[Path], Any]


def sql(query: str, connection: str = "sqlite:///a.db") -> dict[str, Any]:
    return {"type": "sql", "connection": connection, "query": query}


def table(path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.execute("create table t (n)")
    connection.executemany("insert into t values (?)", [(i,) for i in range(10_000)] + [("word",)])
    connection.commit()
    connection.close()


def nothing(path: Path) -> None: ...


def both(*writes: tuple[str, Write]) -> Write:
    def write(path: Path) -> None:
        for name, one in writes:
            one(path.parent / name)

    return write


def text(content: str | bytes) -> Write:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(write: Write, keep: float = 0.5) -> Write:
    def cut_short(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return cut_short


PARQUET: Write = lambda path: pl.DataFrame({"a": range(1000)}).write_parquet(path)  # noqa: E731
ARROW: Write = lambda path: pl.DataFrame({"a": range(1000)}).write_ipc(path)  # noqa: E731
STREAM: Write = lambda path: pl.DataFrame({"a": range(1000)}).write_ipc_stream(path)  # noqa: E731
NPZ: Write = lambda path: np.savez(path, a=np.arange(1000))  # noqa: E731
NPY: Write = lambda path: np.save(path, np.arange(1000))  # noqa: E731

CASES: list[tuple[str, Write, Any, str]] = [
    ("a.csv", nothing, "a.csv", "'a.csv' does not exist in '.*'; give a file that exists"),
    ("reviews.csv", text("a\n1\n"), "review.csv", "did you mean 'reviews.csv'"),
    ("a.csv", nothing, "no/a.csv", "nor does its folder 'no'"),
    ("a.csv", nothing, "*.csv", r"no file matches '\*\.csv'"),
    ("a.csv", nothing, "memory://nowhere/a.csv", "does not exist"),
    ("a.csv", nothing, "memory://nowhere/*.csv", "no file matches"),
    ("a.csv", nothing, "nosuch://a.csv", "Protocol not known: nosuch"),
    ("a.csv", lambda path: path.mkdir(), "a.csv", "'a.csv' is a folder where a file belongs"),
    ("a.jsonl", text(""), "a.jsonl", "'a.jsonl' is empty"),
    ("a.parquet", text(""), "a.parquet", "'a.parquet' is damaged or is not a Parquet file"),
    ("a.arrow", text(""), "a.arrow", r"is not an Arrow file \(it is empty\)"),
    ("a.npz", text(""), "a.npz", "'a.npz' is empty"),
    ("a.csv", text(bytes(range(256)) * 9), "a.csv", "holds zero bytes, so it is binary"),
    ("a.csv", PARQUET, "a.csv", "'a.csv' is a Parquet file where text belongs"),
    ("a.csv", text(b"PK\x03\x04..."), "a.csv", "a zip archive or an Excel workbook"),
    ("a.csv.gz", lambda path: path.write_bytes(gzip.compress(b"a,b\n1,2\n" * 999)[:-9]), "a.csv.gz", "gzip file that is cut short"),
    ("a.csv.gz", lambda path: path.write_bytes(gzip.compress(b"a,b\n1,2\n")[:12] + b"#" * 30), "a.csv.gz", "damaged gzip file"),
    ("a.csv.gz", lambda path: path.write_bytes(gzip.compress(b"")), "a.csv.gz", "'a.csv.gz' is empty"),
    ("a.parquet", cut(PARQUET), "a.parquet", "is damaged or is not a Parquet file"),
    ("a.parquet", text("a,b\n1,2\n"), "a.parquet", "is damaged or is not a Parquet file"),
    ("a.arrow", cut(ARROW), "a.arrow", "is damaged or is not an Arrow file"),
    ("a.arrow", cut(STREAM), "a.arrow", "is damaged or is not an Arrow file"),
    ("a.arrow", cut(STREAM, 0.001), "a.arrow", "is damaged or is not an Arrow file"),
    ("a.arrow", text("a,b\n1,2\n"), "a.arrow", "is damaged or is not an Arrow file"),
    ("a.arrow", text("FEA1...."), "a.arrow", "Feather version 1"),
    ("a.npz", cut(NPZ), "a.npz", "is damaged or is not an npz or npy file"),
    ("a.npy", cut(NPY), "a.npy", "array 'array' of 'a.npy' is cut short"),
    ("a.npy", text("a,b\n1,2\n"), "a.npy", "is damaged or is not an npz or npy file"),
    ("a.npy", lambda path: np.save(path, np.array([{}, 1]), allow_pickle=True), "a.npy", "pickled Python objects"),
    ("a.npz", lambda path: np.savez(path, x=np.array([None])), "a.npz", "array 'x' of 'a.npz' holds pickled"),
    ("a.npy", lambda path: np.save(path, np.zeros(3, "c8")), "a.npy", "is of type complex64"),
    ("a.npy", lambda path: np.save(path, np.zeros(3, [("x", "i4")])), "a.npy", "save it as booleans"),
    ("a.npy", lambda path: np.save(path, 3), "a.npy", "is a single number"),
    ("a.npy", lambda path: np.save(path, np.zeros((0, 3))), "a.npy", r"has columns \(array\) but no rows"),
    ("a.npz", lambda path: np.savez(path, x=np.zeros(3), y=np.zeros(4)), "a.npz", r"\(x 3, y 4\).*arrays: "),
    ("a.npz", NPZ, {"type": "npz", "path": "a.npz", "arrays": {"x": "aa"}}, "no array 'aa'; it has a; did you mean 'a'"),
    ("a.npz", lambda path: np.savez(path), "a.npz", "holds no array"),
    ("a.jsonl", text('{"a": 1}\n\n{"a": }\n'), "a.jsonl", r"^a\.jsonl:3: this is not JSON"),
    ("a.jsonl", text('{"a": 1}\n[1]\n'), "a.jsonl", r"^a\.jsonl:2: received \[1\] where an object belongs"),
    ("a.jsonl", text('{"a": 1, "a": 2}\n'), "a.jsonl", r"^a\.jsonl:1: .*key 'a' occurs twice"),
    ("a.jsonl", text('{"a": ' + "[" * 100_000), "a.jsonl", "nested too deeply"),
    ("a.jsonl", text('{"a": 1}\n' * 1000 + '{"b": 1}\n'), "a.jsonl", r"^a\.jsonl:1001: key 'b' is in none of"),
    ("a.jsonl", text("{}\n"), "a.jsonl", "holds no object with a key"),
    ("a.json", text("[]"), "a.json", "holds no object with a key"),
    ("a.json", text('[{"a": 1},\n\n{"a": 2}'), "a.json", r"^a\.json:3: .*the array has no end"),
    ("a.json", text('[{"a": 1}\n{"a": 2}]'), "a.json", r"^a\.json:2: .*comma is missing"),
    ("a.json", text('[{"a": 1},\n{"a": 2]'), "a.json", r"^a\.json:2: this is not JSON"),
    ("a.json", text('[{"a": 1}] []'), "a.json", "stands after the end of the array"),
    ("a.json", text('{"a": {\n"b": 1}}'), "a.json", r"^a\.json:1: this is not JSON"),
    ("x", both(("a.csv", text("x,y\n1,2\n")), ("b.csv", text("x,z\n1,2\n"))), "*.csv", "'a.csv' and 'b.csv' have different columns .*alone has y.*alone has z"),
    ("x", both(("a.parquet", PARQUET), ("b.parquet", lambda path: pl.DataFrame({"a": ["x"]}).write_parquet(path))), "*.parquet", "column 'a' is Int64 in 'a.parquet' but String in 'b.parquet'"),
    ("a.db", table, sql("delete from t"), "begins with 'delete', but only a SELECT"),
    ("a.db", table, sql("/* select */ drop table t"), "begins with 'drop'"),
    ("a.db", table, sql("select 1; select 2"), "SQLite refuses the query"),
    ("a.db", table, sql("select * from missing"), r"^a\.db: SQLite refuses the query \(no such table: missing\)"),
    ("a.db", table, sql("select 1 as a, 2 as a"), "column name 'a' occurs twice"),
    ("a.db", table, sql("select * from t where n < 0"), "the query gives no rows"),
    ("a.db", table, sql("select n from t"), "column 'n' of the query is Int64 in its first rows, but not in rows 10001 to 10001"),
    ("a.db", table, sql("select n from t order by rowid desc"), "column 'n' of the query mixes int, str"),
    ("a.db", table, sql("select 1", "sqlite:///b.db"), "database 'b.db' does not exist.*did you mean 'a.db'"),
    ("a.db", text("not a database, not at all" * 100), sql("select 1 from t"), "file is not a database"),
    ("a.db", table, sql("select 1", "sqlite:///${NO_SUCH_VARIABLE}"), "'NO_SUCH_VARIABLE' of the connection is not set"),
    ("a.db", table, sql("select 1", "what"), "is no SQLAlchemy URL"),
    ("a.db", table, sql("select * from missing", "sqlite+pysqlite:///a.db"), "refuses the query .no such table"),
    ("pets", nothing, "pets/", "folder 'pets/' does not exist"),
    ("pets", lambda path: path.mkdir(), "pets", "'pets' holds no pictures"),
    ("pets", text("x"), "pets", "'pets' is a file where a folder"),
    ("pets", lambda path: ((path / "cat").mkdir(parents=True), (path / "a.png").touch()), "pets", "pictures .'a.png'. beside sub-folders"),
    ("t.csv", text("file\na.png\n"), {"type": "images", "path": ".", "table": "t.csv"}, "no column 'image'.*columns are file"),
    ("t.csv", text("image\na.png\n"), {"type": "images", "path": ".", "table": "t.csv"}, "a.png', which does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "write", "source", "message"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_one_sentence(name: str, write: Write, source: Any, message: str, here: Path) -> None:
    write(here / name)
    with pytest.raises(DataError, match=message) as caught:
        list(open_source(source).scan())
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("package", "source", "message"),
    [
        ("sqlalchemy", sql("select 1", "postgresql://me:secret@host/db"), r"pip install 'luban\[sql\]'"),
        ("zstandard", "a.csv.zst", r"pip install 'luban\[zstd\]'"),
    ],
)
def test_missing_packages(
    package: str, source: Any, message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd....")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=message) as caught:
        list(open_source(source).scan())
    assert "secret" not in str(caught.value)


def test_missing_driver(here: Path) -> None:
    with pytest.raises(MissingError, match="needs a driver"):
        list(open_source(sql("select 1", "postgresql+psycopg://me:secret@host/db")).scan())


SAMPLES: dict[str, bytes] = {}


def sample(name: str, folder: Path) -> bytes:
    if name not in SAMPLES:
        writers: dict[str, Write] = {
            "a.parquet": PARQUET, "a.arrow": ARROW, "s.arrow": STREAM, "a.npz": NPZ, "a.npy": NPY,
            "a.csv": text("a,b\n1,好\n"), "a.tsv": text("a\tb\n1\t2\n"), "a.jsonl": text('{"a": 1}\n{"a": "好"}\n'),
            "a.json": text(json.dumps([{"a": 1}] * 9)), "a.csv.gz": text(gzip.compress(b"a,b\n1,2\n")), "a.db": table,
        }  # fmt: skip
        writers[name](folder / name)
        SAMPLES[name] = (folder / name).read_bytes()
    return SAMPLES[name]


NAMES = [
    "a.csv",
    "a.tsv",
    "a.csv.gz",
    "a.jsonl",
    "a.json",
    "a.parquet",
    "a.arrow",
    "s.arrow",
    "a.npz",
    "a.npy",
    "a.db",
]


def rows_or_sentence(name: str, data: bytes, folder: Path) -> None:
    (folder / name).write_bytes(data)
    said = ""
    try:
        for chunk in open_source(sql("select n from t") if name == "a.db" else name).scan(100):
            assert chunk.height
    except DataError as error:
        said = str(error)
    assert len(said.splitlines()) < 2


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(data=b"\0")
@example(data=b"[")
@example(data=b"\xff\xfe")
@example(data=b"\x1f\x8b")
@given(data=st.binary(min_size=1, max_size=300))
def test_random_bytes(name: str, data: bytes, here: Path) -> None:
    rows_or_sentence(name, data, here)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=4),
    keep=st.sampled_from([1.0, 1.0, 0.9, 0.5]),
)
def test_damaged_files(name: str, where: float, junk: bytes, keep: float, here: Path) -> None:
    data = bytearray(sample(name, here))
    at = int(where * len(data))
    data[at : at + len(junk)] = junk
    rows_or_sentence(name, bytes(data[: max(1, int(keep * len(data)))]), here)
