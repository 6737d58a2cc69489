"""Text of any encoding as blocks of UTF-8 lines, with every guess and every repair said.

A file is read once, in pieces. While it is plain ASCII its encoding does not matter; the first piece that is
not decides.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import chain

from luban.data.sources._files import File, reading
from luban.errors import DataError, did_you_mean
from luban.sentences import say

__all__ = ["LONGEST", "Text", "guess"]

BLOCK = 4 << 20
"""Bytes that are read, decoded and parsed at once."""
LONGEST = 64 << 20
"""Bytes that one line or one quoted cell may have; more is a broken file, and would fill the memory."""
_SAMPLE = 256 << 10
_UTF8 = ("utf-8", "utf-8-sig")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16 and so comes before it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BINARY = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF document",
    b"SQLite format 3": "an SQLite database",
}
_ENCODINGS = ("utf-8", "utf-16", "gb18030", "gbk", "big5", "latin-1", "cp1252", "shift_jis", "euc_kr")


class Text:
    """The lines of a text file, in UTF-8: iterate over it to read it.

    Args:
        file: what to read.
        encoding: a Python codec, or ``auto``.
        breaks: where a block may end if it holds no line end: after a carriage return, or after a comma.

    Attributes:
        encoding: the codec; of ``auto`` it is known once the first line that is not ASCII was read.
        repaired: how many lines held bytes that the codec cannot decode, each now U+FFFD.
        first_repaired: the number of the first such line.
    """

    def __init__(self, file: File, encoding: str = "auto", breaks: bytes = b"\r") -> None:
        self.file = file
        self.given = None if encoding == "auto" else _known(encoding)
        self.encoding = self.given or "utf-8"
        self.breaks = breaks
        self.repaired = 0
        self.first_repaired = 0

    def note(self) -> str:
        """Return one line for the user: the encoding, and how many lines were repaired."""
        values: dict[str, str | int] = {"file": self.file.name, "encoding": self.encoding}
        note = (
            say("{file}: encoding {encoding}", **values)
            if self.given
            else say("{file}: encoding {encoding} (recognised)", **values)
        )
        if not self.repaired:
            return note
        values |= {"note": note, "n": self.repaired, "first": self.first_repaired}
        if self.repaired == 1:
            return say(
                "{note}; 1 line has bytes that are not {encoding}, replaced by U+FFFD (first: line {first})",
                **values,
            )
        return say(
            "{note}; {n} lines have bytes that are not {encoding}, replaced by U+FFFD (first: line {first})",
            **values,
        )

    def __iter__(self) -> Iterator[bytes]:
        """Yield blocks of whole lines; only the last may lack its line end."""
        with reading(self.file.name):
            raw = self.file.blocks(BLOCK)
            head = next(raw, b"")
            bom = next((name for mark, name in _BOMS.items() if head.startswith(mark)), None)
            self.encoding = self.given or bom or "utf-8"
            codec: str | None = self.given or bom  # None: not known yet
            if _is_wide(self.encoding):
                blocks, codec = _narrowed(chain([head], raw), self.encoding), "utf-8"
            else:
                self._refuse_binary(head)
                blocks = chain([head.removeprefix(codecs.BOM_UTF8)], raw)
            line = 0
            for block in self._lines(blocks):
                line = line or 1
                if codec is None and (found := _NOT_ASCII.search(block)):
                    self.encoding = codec = guess(block[found.start() : found.start() + _SAMPLE])
                yield self._decoded(block, codec or "utf-8", line)
                line += block.count(b"\n")
            if line == 0:
                raise DataError(say("'{file}' is empty; give a file that has rows", file=self.file.name))

    def _lines(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Regroup blocks to whole lines, about `BLOCK` bytes of them."""
        held: list[bytes] = []
        size = 0
        for block in blocks:
            size += len(block)
            cut = block.rfind(b"\n") + 1 or block.rfind(self.breaks, 0, -1) + 1
            if size >= BLOCK and cut:
                yield b"".join((*held, block[:cut]))
                held = [block[cut:]]
                size = len(held[0])
            elif size <= LONGEST:
                held.append(block)
            else:
                raise DataError(
                    f"'{self.file.name}' has a line of more than {LONGEST >> 20} MB; "
                    "check that it is a text file with a line end after each row"
                )
        if size:
            yield b"".join(held)

    def _decoded(self, block: bytes, codec: str, line: int) -> bytes:
        """Return a block in UTF-8; in lines that cannot be decoded, the bad bytes become U+FFFD."""
        with suppress(UnicodeError):
            text = block.decode(codec)
            return block if codec in _UTF8 else text.encode()
        lines = block.split(b"\n")
        for index, one in enumerate(lines):
            try:
                lines[index] = one.decode(codec).encode()
            except UnicodeError:
                lines[index] = one.decode(codec, "replace").encode("utf-8", "replace")
                self.repaired += 1
                self.first_repaired = self.first_repaired or line + index
        return b"\n".join(lines)

    def _refuse_binary(self, head: bytes) -> None:
        kind = next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)
        if kind:
            raise DataError(
                f"'{self.file.name}' is {kind} where text belongs; unpack or convert it, or name its true "
                "type"
            )
        if b"\0" in head:
            raise DataError(
                say(
                    "'{file}' holds zero bytes, so it is binary where text belongs; name its true type, or say 'encoding: utf-16-le' if it is UTF-16 without its mark",
                    file=self.file.name,
                )
            )


def _known(encoding: str) -> str:
    try:
        if "a\n".encode(encoding).decode(encoding) == "a\n":
            return codecs.lookup(encoding).name
    except (LookupError, UnicodeError):
        pass
    raise DataError(
        f"encoding '{encoding}' is unknown; write auto, or one such as "
        f"{', '.join(_ENCODINGS)}{did_you_mean(encoding, _ENCODINGS)}"
    )


def _is_wide(encoding: str) -> bool:
    """Whether the byte 0x0A is not simply a line end: UTF-16, UTF-32, EBCDIC."""
    return "\n".encode(encoding).removeprefix(codecs.BOM_UTF8) != b"\n"


def _narrowed(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Transcode to UTF-8, with 0xFF for what cannot be decoded, so that it is counted where all repairs
    are."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    mark = "\ufeff"
    for block, last in chain(((block, False) for block in blocks), [(b"", True)]):
        text = decoder.decode(block, last)
        if text:
            yield text.removeprefix(mark).encode("utf-8", "replace").replace(b"\xef\xbf\xbd", b"\xff")
            mark = ""


# --- guessing ---------------------------------------------------------------------------------------------


def guess(sample: bytes) -> str:
    """Guess the encoding of text without a byte order mark.

    Validity comes first: text of another encoding is hardly ever valid UTF-8. Almost any bytes are valid
    GB18030 and Big5, so these two are told apart by how plausible their characters are: in true text nearly
    all are from the common half of the character set, in text read wrongly many are not. What is neither is
    taken for Western European.

    Args:
        sample: some lines, in which at least one byte is not ASCII; the last line may be cut.

    Returns:
        ``utf-8``, ``gb18030``, ``big5hkscs`` (Big5 with its common extensions), ``cp1252`` or ``latin-1``.

    Example:
        >>> guess("评论,标签\\n很好用,1\\n".encode("gbk"))
        'gb18030'
    """
    utf8 = sample.decode("utf-8", "replace")
    broken = utf8.count("\ufffd")
    if broken < sum(character > "\x7f" for character in utf8) - broken:
        return "utf-8"
    plausible = {name: _plausibility(sample, name) for name in ("gb18030", "big5hkscs")}
    best = max(plausible, key=lambda name: plausible[name])
    if plausible[best] > 0.5:
        return best
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252" if any(0x80 <= byte < 0xA0 for byte in sample) else "latin-1"


def _plausibility(sample: bytes, encoding: str) -> float:
    """Return the share of common characters among those that are not ASCII."""
    characters = [one for one in sample.decode(encoding, "replace") if one > "\x7f"]
    weights = _weights(encoding)
    return sum(weights.get(one, 0) for one in characters) / max(len(characters), 1)


@cache
def _weights(encoding: str) -> dict[str, float]:
    """Return how common a character is in texts of an encoding.

    Common are punctuation and the hanzi of level 1, which are 3755 in GB 2312 and 5401 in Big5. GB 18030 has the
    latter too, for texts in traditional characters; most of these are in Big5, which therefore wins a draw.
    """

    def decoded(codec: str, *leads: int) -> set[str]:
        pairs = (bytes((lead, trail)) for lead in leads for trail in (*range(0x40, 0x7F), *range(0xA1, 0xFF)))
        return {one for pair in pairs for one in pair.decode(codec, "ignore") if one > "\x7f"}

    traditional = decoded("big5", *range(0xA4, 0xC7))
    if encoding == "big5hkscs":
        return dict.fromkeys(traditional | decoded("big5", 0xA1), 1.0)
    simplified = decoded("gb2312", 0xA1, 0xA3, *range(0xB0, 0xD8))
    return {**dict.fromkeys(traditional, 0.8), **dict.fromkeys(simplified, 1.0)}
