"""Encodings: recognised, said, and repaired where they are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from luban.data.sources import open_source
from luban.data.sources._text import guess
from luban.errors import DataError

SIMPLIFIED = "评论,标签\n这个手机很好用，电池也耐用,好评\n送来的时候已经坏了，不推荐大家购买,差评\n"
TRADITIONAL = "評論,標籤\n這個手機很好用，電池也耐用,好評\n送來的時候已經壞了，不推薦大家購買,差評\n"
WESTERN = "avis,étiquette\nL'année dernière à la crêperie,très bien\nMüller schön für Straße,bien\n"
TYPOGRAPHIC = "avis,note\n“Très bien” – une crêperie à côté,5 €\n"


def rows_of(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


def check(data: bytes, text: str, encoding: str) -> None:
    Path("a.csv").write_bytes(data)
    source = open_source("a.csv")
    header, *rows = rows_of(text)
    assert source.columns() == header
    assert [list(row) for chunk in source.scan(1) for row in chunk.rows()] == rows
    assert source.notes() == [f"a.csv: encoding {encoding} (recognised)"]


@pytest.mark.parametrize(
    ("text", "written", "recognised"),
    [
        (SIMPLIFIED, "utf-8", "utf-8"),
        (SIMPLIFIED, "utf-8-sig", "utf-8-sig"),
        (SIMPLIFIED, "utf-16", "utf-16"),
        (SIMPLIFIED, "utf-32", "utf-32"),
        (SIMPLIFIED, "gbk", "gb18030"),
        (SIMPLIFIED + "𠮷野家,好\n", "gb18030", "gb18030"),
        (TRADITIONAL, "gbk", "gb18030"),
        (TRADITIONAL, "big5", "big5hkscs"),
        (TRADITIONAL + "裏恒,嘅\n", "big5hkscs", "big5hkscs"),
        (TRADITIONAL, "utf-8", "utf-8"),
        (WESTERN, "latin-1", "latin-1"),
        (TYPOGRAPHIC, "cp1252", "cp1252"),
        ("a,b\n1,2\n", "ascii", "utf-8"),
    ],
)
def test_recognised(text: str, written: str, recognised: str, here: Path, block: int) -> None:
    if block == 7 and recognised not in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        pytest.skip("a line or two are too little to recognise these by")
    check(text.encode(written), text, recognised)


def test_utf16_big_endian(here: Path, block: int) -> None:
    check(b"\xfe\xff" + SIMPLIFIED.encode("utf-16-be"), SIMPLIFIED, "utf-16")


@pytest.mark.parametrize(
    ("words", "encoding", "expected"),
    [
        ("评论 标签", "gbk", "gb18030"),
        ("姓名,城市", "gbk", "gb18030"),
        ("評論,標籤,內容", "big5", "big5hkscs"),
        ("姓名,城市,電話", "big5", "big5hkscs"),
        ("café", "latin-1", "latin-1"),
        ("Ångström", "latin-1", "latin-1"),
    ],
)
def test_a_few_words_are_enough(words: str, encoding: str, expected: str) -> None:
    assert guess(words.encode(encoding)) == expected


def test_encoding_is_decided_where_the_first_character_is_not_ascii(here: Path, block: int) -> None:
    text = "a,b\n" + "plain,text\n" * 200 + SIMPLIFIED * 3
    check(text.encode("gbk"), text, "gb18030" if block > 7 else open_note(text.encode("gbk")))


def open_note(data: bytes) -> str:
    """What is recognised by the first line alone."""
    return guess(data[data.index("评".encode("gbk")) :][:12])


def test_given_encoding_is_taken(here: Path) -> None:
    Path("a.csv").write_bytes("名,値\nカタカナ,漢字\n".encode("shift_jis"))
    source = open_source({"type": "csv", "path": "a.csv", "encoding": "Shift-JIS"})
    assert [chunk.rows() for chunk in source.scan()] == [[("カタカナ", "漢字")]]
    assert source.notes() == ["a.csv: encoding shift_jis"]
    Path("b.csv").write_bytes(SIMPLIFIED.encode("utf-16-le"))
    assert open_source({"type": "csv", "path": "b.csv", "encoding": "utf-16-le"}).columns() == [
        "评论",
        "标签",
    ]


@pytest.mark.parametrize("encoding", ["utf8x", "rot13", "hex", ""])
def test_unknown_encoding(encoding: str, here: Path) -> None:
    Path("a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=f"encoding '{encoding}' is unknown; write auto"):
        open_source({"type": "csv", "path": "a.csv", "encoding": encoding}).columns()


@pytest.mark.parametrize(("main", "other"), [("utf-8", "gbk"), ("gbk", "latin-1")])
def test_mixed_encodings_are_repaired_and_counted(main: str, other: str, here: Path, block: int) -> None:
    lines = ["评论,标签", *["这个手机很好用，电池也耐用,好评"] * 30]
    data = [line.encode(main) for line in lines]
    for index in (7, 20):
        data[index] = {"gbk": "另一种编码,x", "latin-1": "déjà vu,x"}[other].encode(other)
    Path("a.csv").write_bytes(b"\n".join(data))
    source = open_source({"type": "csv", "path": "a.csv", "encoding": "auto" if block > 7 else main})
    rows = [row for chunk in source.scan(4) for row in chunk.rows()]
    assert len(rows) == 30
    assert [index for index, (text, _) in enumerate(rows, 1) if "\ufffd" in text] == [7, 20]
    assert rows[7] == ("这个手机很好用，电池也耐用", "好评")
    assert "2 lines have bytes that are not" in source.notes()[0]
    assert "first: line 8" in source.notes()[0]
    source.columns()
    assert "2 lines" in source.notes()[0], "reading the header again must not forget the repairs"


def test_half_a_character_at_the_end(here: Path) -> None:
    for encoding in ("utf-8", "utf-16", "gb18030"):
        Path("a.csv").write_bytes((SIMPLIFIED * 3).rstrip().encode(encoding)[:-1])
        source = open_source("a.csv")
        rows = [row for chunk in source.scan() for row in chunk.rows()]
        assert rows[-1][1].endswith("\ufffd")
        assert "1 line has" in source.notes()[0]
