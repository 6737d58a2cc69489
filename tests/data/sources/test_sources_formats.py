"""Every format, written by somebody else's writer, comes back through chunks of any size."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from polars.testing import assert_frame_equal

from luban import registry
from luban.data.contracts import Source
from luban.data.sources import open_source
from luban.errors import RecipeError

ROWS = 61
TYPED = pl.DataFrame(
    {
        "text": [f'第{i}条，{"x" * (i % 5)} "quoted"\n{i}' if i % 7 else None for i in range(ROWS)],
        "stars": [i % 5 for i in range(ROWS)],
        "price": [i / 4 for i in range(ROWS)],
    }
)
STRINGS = TYPED.with_columns(pl.all().cast(pl.String))


def delimited(path: Path, separator: str = ",", frame: pl.DataFrame = STRINGS) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter=separator).writerows([frame.columns, *frame.rows()])


def jsonl(path: Path) -> None:
    path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in TYPED.to_dicts()), encoding="utf-8"
    )


def stream(path: Path) -> None:
    table = TYPED.to_arrow()
    with pa.OSFile(str(path), "wb") as handle, pa.ipc.new_stream(handle, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=10):
            writer.write_batch(batch)


def database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table rows (text text, stars integer, price real)")
    connection.executemany("insert into rows values (?, ?, ?)", TYPED.rows())
    connection.commit()
    connection.close()


SQL = {"type": "sql", "connection": "sqlite:///rows.db", "query": "select * from rows order by rowid"}
NUMBERS = pl.DataFrame({"x": np.arange(ROWS * 6, dtype="u1").reshape(ROWS, 3, 2), "y": np.arange(ROWS)})
FORMATS: dict[str, tuple[Callable[[Path], Any], pl.DataFrame]] = {
    "rows.csv": (delimited, STRINGS),
    "rows.tsv": (lambda path: delimited(path, "\t"), STRINGS),
    "rows.jsonl": (jsonl, STRINGS),
    "rows.json": (lambda path: path.write_text(json.dumps(TYPED.to_dicts())), STRINGS),
    "indented.json": (lambda path: path.write_text(json.dumps(TYPED.to_dicts(), indent=2)), STRINGS),
    "rows.parquet": (lambda path: pa.parquet.write_table(TYPED.to_arrow(), path, row_group_size=10), TYPED),
    "rows.feather": (lambda path: pa.feather.write_feather(TYPED.to_arrow(), str(path), chunksize=10), TYPED),
    "rows.arrow": (stream, TYPED),
    "polars.arrow": (lambda path: TYPED.write_ipc(path, compression="zstd"), TYPED),
    "rows.npz": (lambda path: np.savez(path, x=NUMBERS["x"].to_numpy(), y=NUMBERS["y"].to_numpy()), NUMBERS),
    "packed.npz": (
        lambda path: np.savez_compressed(path, **{n: NUMBERS[n].to_numpy() for n in "xy"}),
        NUMBERS,
    ),
    "rows.npy": (lambda path: np.save(path, np.arange(ROWS)), pl.DataFrame({"array": np.arange(ROWS)})),
    "rows.db": (database, TYPED),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def opened(name: str) -> Source:
    return open_source(SQL if name.endswith(".db") else name)


def read(source: Source, chunk_rows: int = 8192) -> pl.DataFrame:
    return pl.concat(source.scan(chunk_rows))


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_through_chunks(name: str, here: Path, block: int) -> None:
    write, expected = FORMATS[name]
    write(here / name)
    for chunk_rows in (1, 8, 60, ROWS, 1000):
        source = opened(name)
        chunks = list(source.scan(chunk_rows))
        assert {chunk.height for chunk in chunks[:-1]} <= {chunk_rows}
        assert source.columns() == expected.columns
        assert_frame_equal(pl.concat(chunks), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_fingerprint_follows_the_data_and_not_the_place(name: str, here: Path) -> None:
    write, _ = FORMATS[name]
    write(here / name)
    before = opened(name).fingerprint()
    assert opened(name).fingerprint() == before
    (here / name).rename(here / f"moved {name}")
    if not name.endswith(".db"):
        assert open_source(f"moved {name}").fingerprint() == before
    data = bytearray((here / f"moved {name}").read_bytes())
    data[len(data) // 2] ^= 1
    (here / name).write_bytes(data)
    assert opened(name).fingerprint() != before


def test_fingerprint_follows_the_options(here: Path) -> None:
    delimited(here / "rows.csv")
    assert (
        open_source("rows.csv").fingerprint()
        != open_source({"type": "csv", "path": "rows.csv", "quote": None}).fingerprint()
    )


def test_fingerprint_of_a_large_file_samples_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luban.data.sources import _files

    monkeypatch.setattr(_files, "HASHED_WHOLE", 100)
    monkeypatch.setattr(_files, "_SAMPLE", 10)
    seen = set()
    for data in (b"a,b\n" * 100, b"a,b\n" * 99 + b"a,c\n", b"a,b\n" * 101):
        (here / "rows.csv").write_bytes(data)
        seen.add(open_source("rows.csv").fingerprint())
    assert len(seen) == 3


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json"])
def test_packed_text(name: str, ending: str, here: Path, block: int) -> None:
    write, expected = FORMATS[name]
    write(here / name)
    (here / f"{name}.{ending}").write_bytes(PACKERS[ending]((here / name).read_bytes()))
    assert_frame_equal(read(open_source(f"{name}.{ending}")), expected)


def test_packed_text_of_several_members(here: Path) -> None:
    (here / "two.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n") + bytes(8))
    assert read(open_source("two.csv.gz")).rows() == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.endswith(".db")])
def test_urls(name: str, here: Path) -> None:
    write, expected = FORMATS[name]
    write(here / name)
    assert_frame_equal(read(open_source(f"file://{here}/{name}")), expected)
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe(f"/data/{name}", (here / name).read_bytes())
        source = open_source(f"memory://data/{name}")
        assert_frame_equal(read(source), expected)
        assert source.fingerprint() == open_source(f"memory://data/{name}").fingerprint()
        assert_frame_equal(read(open_source(f"memory://data/*.{name.split('.')[1]}")), expected)
    finally:
        memory.rm("/data", recursive=True)


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.endswith(".db")])
def test_several_files(name: str, here: Path) -> None:
    write, expected = FORMATS[name]
    stem, ending = name.split(".")
    for number in (2, 1):
        write(here / f"{stem}-{number}.{ending}")
    twice = pl.concat([expected, expected])
    assert_frame_equal(read(open_source(f"{stem}-*.{ending}"), 50), twice)
    assert_frame_equal(read(open_source([f"{stem}-1.{ending}", f"{stem}-2.{ending}"]), 50), twice)


def test_files_of_a_glob_come_by_name_and_columns_by_the_first(here: Path) -> None:
    (here / "b.csv").write_text("y,x\n4,3\n")
    (here / "a.csv").write_text("x,y\n1,2\n")
    assert read(open_source("*.csv")).to_dict(as_series=False) == {"x": ["1", "3"], "y": ["2", "4"]}


@pytest.mark.parametrize("name", FORMATS)
def test_early_stop_neither_hangs_nor_leaks(name: str, here: Path) -> None:
    FORMATS[name][0](here / name)
    for _ in range(3):
        chunks = opened(name).scan(2)
        assert next(chunks).height == 2
        chunks.close()  # type: ignore[attr-defined]


def test_npz_arrays_are_chosen_and_renamed(here: Path) -> None:
    np.savez(
        here / "m.npz",
        x_train=np.zeros((4, 2)),
        y_train=np.arange(4),
        x_test=np.ones((2, 2)),
        y_test=np.arange(2),
    )
    source = open_source({"type": "npz", "path": "m.npz", "arrays": {"image": "x_test", "label": "y_test"}})
    assert source.columns() == ["image", "label"]
    assert read(source)["label"].to_list() == [0, 1]
    assert read(source)["image"].to_list() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u8", ">i4", "f2", "<f4", "f8", "U5", "S3", "M8[s]", "M8[ns]", "M8[D]", "m8[ms]"]
)
def test_npy_types(dtype: str, here: Path) -> None:
    values = np.arange(40).astype("i8").astype(dtype)
    np.save(here / "a.npy", values)
    found = read(open_source("a.npy"), 7)["array"].to_list()
    if dtype == "m8[ms]":  # spans of time are seconds
        assert found == pytest.approx([i / 1000 for i in range(40)], rel=1e-15)
    else:
        assert found == pl.Series(values.astype("M8[ms]") if dtype == "M8[s]" else values).to_list()


def test_npy_stored_by_columns(here: Path) -> None:
    values = np.arange(24.0).reshape(6, 4)
    np.save(here / "a.npy", np.asfortranarray(values))
    assert np.array_equal(read(open_source("a.npy"), 4)["array"].to_numpy(), values)


def test_arrow_dictionaries_become_strings(here: Path) -> None:
    frame = pl.DataFrame({"city": pl.Series(list("abca"), dtype=pl.Categorical), "n": [1, 2, 3, 4]})
    frame.write_ipc(here / "polars.arrow")
    frame.write_ipc_stream(here / "stream.arrow")
    pa.feather.write_feather(
        pa.table({"city": pa.array(list("abca")).dictionary_encode(), "n": [1, 2, 3, 4]}),
        "a.feather",
        chunksize=2,
    )
    for name in ("polars.arrow", "stream.arrow", "a.feather"):
        assert_frame_equal(read(open_source(name), 3), frame.with_columns(pl.col("city").cast(pl.String)))


def test_jsonl_keeps_numbers_and_lists_as_written(here: Path) -> None:
    (here / "a.jsonl").write_text(
        '{"n": 1.10, "big": 123456789012345678901234567890, "b": true, "l": [1, 2.5, {"k": "好"}], "o": {}}\n'
        '\n{"n": null, "b": "", "new": NaN}\r\n{"l": "\\ud83d\\ude00 \\ud83d"}',
        encoding="utf-8",
    )
    source = open_source("a.jsonl")
    assert read(source, 2).to_dicts() == [
        {
            "n": "1.10",
            "big": "123456789012345678901234567890",
            "b": "true",
            "l": '[1, 2.5, {"k": "好"}]',
            "o": "{}",
            "new": None,
        },
        {"n": None, "big": None, "b": None, "l": None, "o": None, "new": "NaN"},
        {"n": None, "big": None, "b": None, "l": "😀 \ufffd", "o": None, "new": None},
    ]
    assert "1 line has bytes" in source.notes()[0]
    assert "line 4" in source.notes()[0]
    assert read(open_source({"type": "jsonl", "path": "a.jsonl", "keys": ["n"]})).columns == ["n"]


def test_json_array_of_one_long_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luban.data.sources import _text

    monkeypatch.setattr(_text, "BLOCK", 1000)
    monkeypatch.setattr(_text, "LONGEST", 5000)
    rows = [{"text": "好，" * (i % 40), "n": str(i)} for i in range(500)]
    (here / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="gb18030")
    assert read(open_source("a.json"))["n"].to_list() == [row["n"] for row in rows]


def test_sql_types_nulls_and_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database(here / "rows.db")
    monkeypatch.setenv("SHOP", "rows")
    query = "-- a comment\nwith r as (select * from rows) select price, null as none, cast(stars as blob) as raw from r limit 3"
    for scheme in ("sqlite", "sqlite+pysqlite"):
        source = open_source({"type": "sql", "connection": scheme + ":///${SHOP}.db", "query": query})
        assert read(source).rows() == [(0.0, None, b"0"), (0.25, None, b"1"), (0.5, None, b"2")]
        assert len(source.fingerprint()) == 64


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_sql_never_writes(scheme: str, here: Path) -> None:
    database(here / "rows.db")
    query = "with r as (select 1) delete from rows"
    with pytest.raises(Exception, match="readonly"):
        read(open_source({"type": "sql", "connection": f"{scheme}:///rows.db", "query": query}))
    assert read(open_source(SQL)).height == ROWS


def pictures(root: Path) -> None:
    for name in (
        "cat/b.png",
        "cat/a.JPG",
        "dog/deep/c.jpeg",
        "dog/notes.txt",
        "dog/.hidden.png",
        "__MACOSX/d.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_images_by_folder(here: Path) -> None:
    pictures(here / "pets")
    source = open_source("pets")
    rows = read(source, 2).rows()
    assert [(Path(path).relative_to(here / "pets").as_posix(), label) for path, label in rows] == [
        ("cat/a.JPG", "cat"), ("cat/b.png", "cat"), ("dog/deep/c.jpeg", "dog"),
    ]  # fmt: skip
    assert source.notes() == ["pets: 1 files are no pictures by their endings and were left out"]
    before = source.fingerprint()
    (here / "pets/cat/b.png").write_bytes(b"other")
    assert source.fingerprint() != before
    assert read(open_source("pets/cat/")).columns == ["image"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_images_by_table(ending: str, here: Path) -> None:
    pictures(here / "pets")
    frame = pl.DataFrame({"file": ["dog/deep/c.jpeg", "cat/b.png", None], "stars": ["1", "2", "3"]})
    getattr(frame, {"jsonl": "write_ndjson"}.get(ending, f"write_{ending}"))(here / f"t.{ending}")
    source = open_source({"type": "images", "path": "pets", "table": f"t.{ending}", "column": "file"})
    assert source.columns() == ["file", "stars"]
    assert read(source, 1).rows() == [
        (str(here / "pets/dog/deep/c.jpeg"), "1"), (str(here / "pets/cat/b.png"), "2"), (None, "3"),
    ]  # fmt: skip
    before = source.fingerprint()
    (here / "pets/cat/b.png").write_bytes(b"other")
    assert source.fingerprint() != before


def test_every_type_is_a_source_and_survives_a_recipe() -> None:
    for name in registry.names("sources"):
        cls = registry.lookup("sources", name)
        assert issubclass(cls, Source)
        values = {"connection": "sqlite:///a.db", "query": "select 1"} if name == "sql" else {"path": "a"}
        source = cls(**values)
        assert open_source(source.model_dump()) == source
        assert not any(field.description is None for field in cls.model_fields.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "csv", "path": "a", "seperator": ";"}, "did you mean 'separator'"),
        ({"type": "csv"}, "key 'path' is missing"),
        ({"type": "csv", "path": "a", "separator": "ab"}, "separator: received 'ab'"),
        ({"type": "csv", "path": "a", "separator": '"'}, "two different characters"),
        ({"type": "csv", "path": 3}, "received 3"),
        ({"type": "csvv", "path": "a"}, "did you mean 'csv'"),
        ("rows.xlsx", "cannot be told from its ending"),
    ],
)
def test_wrong_options(value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        open_source(value)


def test_import_is_light() -> None:
    code = "import sys, luban.data.sources; print(sorted({'polars', 'numpy', 'pydantic', 'torch'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_spans_of_time_are_seconds(ending: str, here: Path) -> None:
    from datetime import timedelta

    spans = [timedelta(seconds=90), None, timedelta(days=1, milliseconds=250)]
    frame = pl.DataFrame({"waited": pl.Series(spans, dtype=pl.Duration("ms")), "label": ["a", "b", "a"]})
    (frame.write_parquet if ending == "parquet" else frame.write_ipc)(f"rows.{ending}")
    (found,) = open_source(f"rows.{ending}").scan()
    assert found["waited"].to_list() == [90.0, None, 86400.25]


def test_documents_of_blanks_are_counted(here: Path) -> None:
    Path("a.txt").write_text("one\n\n  \n...\ntwo\n")
    source = open_source("a.txt")
    (found,) = source.scan()
    assert found["text"].to_list() == ["one", "...", "two"]
    (found,) = source.scan()
    assert source.notes()[1:] == ["a.txt: 2 documents of blanks alone left out"]
