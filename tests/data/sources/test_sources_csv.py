"""CSV against Python's csv module, on odd tables and on broken ones."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luban.data.sources import _text, open_source
from luban.errors import DataError

ODD = st.sampled_from(
    [
        '"',
        "\n",
        "\r\n",
        "\r",
        ",",
        "\t",
        ";",
        " ",
        "好",
        "，",
        "😀",
        "\u2028",
        "\x0b",
        "\x85",
        "é",
        "a",
        "''",
        "\\",
    ]
)
CELLS = st.one_of(
    st.lists(ODD, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tables(draw: Any) -> list[list[str]]:
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=12))
    return [[f"c{i}" for i in range(width)], *rows]


def read(source: Any, chunk_rows: int = 5) -> list[list[str | None]]:
    return [list(row) for chunk in source.scan(chunk_rows) for row in chunk.rows()]


@QUICK
@given(
    table=tables(),
    size=st.sampled_from([1, 5, 40, 4 << 20]),
    ends=st.sampled_from(["\n", "\r\n"]),
    tab=st.booleans(),
)
def test_what_csv_writes_is_read_back(
    table: list[list[str]],
    size: int,
    ends: str,
    tab: bool,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_text, "BLOCK", size)
    name = "a.tsv" if tab else "a.csv"
    quoting = (
        csv.QUOTE_MINIMAL if ends == "\r\n" else csv.QUOTE_ALL
    )  # with "\n", minimal forgets to quote "\r"
    with open(name, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator=ends, quoting=quoting, delimiter="\t" if tab else ",").writerows(
            table
        )
    source = open_source({"type": name[2:], "path": name, "encoding": "utf-8"})
    assert source.columns() == table[0]
    assert read(source) == [[cell or None for cell in row] for row in table[1:]]


@QUICK
@given(
    body=st.lists(ODD, max_size=40).map("".join),
    size=st.sampled_from([1, 5, 4 << 20]),
    ragged=st.sampled_from(["error", "pad"]),
)
def test_any_text_is_read_as_csv_reads_it_or_refused(
    body: str, size: int, ragged: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_text, "BLOCK", size)
    Path("a.csv").write_bytes(("x,y\n" + body).encode())
    try:
        rows: Any = read(open_source({"type": "csv", "path": "a.csv", "ragged": ragged, "encoding": "utf-8"}))
    except DataError:
        rows = None
    try:
        expected: Any = [row for row in csv.reader(io.StringIO(body, newline=""), strict=True) if row]
    except csv.Error:
        expected = None
    if expected and any(len(row) > 2 or (len(row) < 2 and ragged == "error") for row in expected):
        expected = None
    assert rows == ([[cell or None for cell in [*row, ""][:2]] for row in expected] if expected else None)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n3\n", {}, r"^a\.csv:3: row has 1 cells where the header has 2.*ragged: pad"),
        ("a,b\n1,2\n3,4,5\n", {}, r"^a\.csv:3: row has 3 cells.*put quotes around"),
        ("a,b\n1,2\n3,4,5\n", {"ragged": "pad"}, r"^a\.csv:3: row has 3 cells"),
        ('a,b\n1,"x\ny"\n\n"z\n",\n3\n', {}, r"^a\.csv:7: row has 1 cells"),
        ('a,b\n1,2\n"3,4\n5,6\n', {}, r"^a\.csv:3: a cell begins with \" here and never ends.*quote: null"),
        ('a,b\n1,"x"y\n', {}, r"^a\.csv:2: a cell goes on after its closing"),
        ('a,"b\n1,2\n', {}, r"^a\.csv:1: a cell begins with"),
        ("a, a\n1,2\n", {}, r"^a\.csv:1: column name 'a' occurs twice \(columns 1 and 2\)"),
        ("a,b\n", {}, r"^'a\.csv' has columns \(a, b\) but no rows"),
        ("a", {}, r"^'a\.csv' has columns \(a\) but no rows"),
        ("\n \n\n", {}, r"^'a\.csv' has blank lines only"),
        ("", {}, r"^'a\.csv' is empty"),
    ],
)
def test_malformed(text: str, options: dict[str, Any], message: str, here: Path, block: int) -> None:
    Path("a.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(open_source({"type": "csv", "path": "a.csv", **options}))
    assert len(str(caught.value).splitlines()) == 1


def test_short_rows_are_padded_and_counted(here: Path, block: int) -> None:
    Path("a.csv").write_text("a,b,c\n1,2,3\n4\n5,6\n7,8,9\n")
    source = open_source({"type": "csv", "path": "a.csv", "ragged": "pad"})
    for _ in range(2):
        assert read(source) == [["1", "2", "3"], ["4", None, None], ["5", "6", None], ["7", "8", "9"]]
        assert source.notes()[1] == "a.csv: 2 rows had too few cells and were padded"


def test_header(here: Path) -> None:
    Path("a.csv").write_text('\ufeff\n , first ,"two\nlines",\n1,2,3,4\n', encoding="utf-8")
    assert open_source("a.csv").columns() == ["column_1", "first", "two\nlines", "column_4"]
    assert read(open_source("a.csv")) == [["1", "2", "3", "4"]]


def test_names_that_polars_would_take_for_patterns(here: Path) -> None:
    Path("a.csv").write_text("*,^b.*$,b\n1,2,3\n")
    Path("b.csv").write_text("b,*,^b.*$\n6,4,5\n")
    assert read(open_source("*.csv")) == [["1", "2", "3"], ["4", "5", "6"]]


def test_options(here: Path) -> None:
    Path("a.csv").write_text("1;'x;y'\n2;''\n")
    assert read(
        open_source({"type": "csv", "path": "a.csv", "separator": ";", "quote": "'", "names": ["n", "t"]})
    ) == [["1", "x;y"], ["2", None]]
    Path("b.tsv").write_text('a\tb\n"open\t5" pipe\n')
    assert read(open_source({"type": "tsv", "path": "b.tsv", "quote": None})) == [['"open', '5" pipe']]


def test_blank_lines(here: Path, block: int) -> None:
    Path("a.csv").write_text("a,b\n\n1,2\n\n\n3,4\n\n")
    assert read(open_source("a.csv")) == [["1", "2"], ["3", "4"]]
    Path("b.csv").write_text('a\n1\n\n""\n2\n')
    assert read(open_source("b.csv")) == [["1"], [None], [None], ["2"]]


def test_old_macintosh_line_ends(here: Path, block: int) -> None:
    Path("a.csv").write_bytes(b'a,b\r1,"x\ry"\r3,4\r')
    assert read(open_source("a.csv")) == [["1", "x\ry"], ["3", "4"]]


def test_cells_of_many_kilobytes(here: Path, block: int) -> None:
    long = ("好" * 99 + "\n") * 300
    Path("a.csv").write_text(f'a,b\n"{long}",1\n5" x,"{long}"\n', encoding="utf-8")
    assert read(open_source("a.csv")) == [[long, "1"], ['5" x', long]]


def test_a_cell_that_never_ends_does_not_fill_the_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text, "BLOCK", 1000)
    monkeypatch.setattr(_text, "LONGEST", 10_000)
    Path("a.csv").write_text('a,b\n1,2\n"3,4\n' + "5,6\n" * 100_000)
    with pytest.raises(DataError, match=r"^a\.csv:3: a cell begins with"):
        read(open_source("a.csv"))
    Path("b.csv").write_text("a,b\n" + "x" * 20_000)
    with pytest.raises(DataError, match="has a line of more than"):
        read(open_source("b.csv"))
