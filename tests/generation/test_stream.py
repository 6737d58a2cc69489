"""Characters are whole, stop strings are cut exactly, and pieces make the text that decoding at once makes."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from luban.generation.stream import TextStream


def decoder(tokens: list[bytes]):  # type: ignore[no-untyped-def]
    return lambda ids: b"".join(tokens[i] for i in ids).decode("utf-8", "replace")


def pieces(tokens: list[bytes], stop: list[str] | None = None) -> tuple[list[str], TextStream]:
    stream = TextStream(decoder(tokens), stop or [])
    out = []
    for token in range(len(tokens)):
        out.append(stream.push(token))
        if stream.stopped:
            break
    return [*out, stream.finish()], stream


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[a:b] for a, b in itertools.pairwise(ends)]


CUTS = st.lists(st.integers(0, 200), max_size=30)
TEXTS = st.text(st.one_of(st.sampled_from("a 好你😀👩🏽‍🚀\n�é"), st.characters(codec="utf-8")), max_size=25)


@settings(max_examples=300, deadline=None)
@given(TEXTS, CUTS)
def test_text_cut_anywhere_comes_in_whole_characters(text: str, places: list[int]) -> None:
    got, stream = pieces(cut(text.encode(), places))
    assert "".join(got) == stream.text == text
    if "�" not in text:
        assert all("�" not in piece for piece in got)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), CUTS)
def test_bytes_that_are_no_text_come_as_they_are_decoded_at_once(raw: bytes, places: list[int]) -> None:
    got, stream = pieces(cut(raw, places))
    assert "".join(got) == stream.text == raw.decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab好😀", max_size=20),
    st.lists(st.text("ab好😀", min_size=1, max_size=4), min_size=1, max_size=3),
    CUTS,
)
def test_a_text_ends_before_the_first_stop_string(text: str, stop: list[str], places: list[int]) -> None:
    tokens = cut(text.encode(), places)
    got, stream = pieces(tokens, stop)
    # The first that is complete: a longer one that begins earlier may be complete only later.
    seen = ""
    wanted, stopped = text, False
    for n in range(1, len(tokens) + 1):
        seen = b"".join(tokens[:n]).decode("utf-8", "replace").rstrip("�")
        if found := [seen.index(word) for word in stop if word in seen]:
            wanted, stopped = seen[: min(found)], True
            break
    assert ("".join(got), stream.stopped) == (wanted, stopped)


def test_nothing_waits_longer_than_it_must() -> None:
    tokens = ["评".encode()[:1], "评".encode()[1:], b" STO", b"RE", b" ST", b"OP now"]
    got, stream = pieces(tokens, ["STOP"])
    assert got == ["", "评", " ", "STORE", " ", "", ""]
    assert stream.stopped


def test_the_prompt_decides_how_the_first_token_is_written() -> None:
    words = ["Hello", "world", "again"]

    def decode(ids: list[int]) -> str:  # no space before the first word, as sentencepiece does it
        return " ".join(words[i] for i in ids)

    stream = TextStream(decode, prompt=[0])
    assert [stream.push(1), stream.push(2)] == [" world", " again"]
    alone = TextStream(decode)
    assert [alone.push(1), alone.push(2)] == ["world", " again"]
    garbled = TextStream(decoder([b"\xe5", b"a"]), prompt=[0])
    assert garbled.push(1) == "a"


def test_a_token_of_no_text_changes_nothing() -> None:
    def decode(ids: list[int]) -> str:
        return "".join("" if i == 0 else chr(i) for i in ids)

    stream = TextStream(decode, prompt=[0])
    assert [stream.push(i) for i in (0, 65, 0, 66)] == ["", "A", "", "B"]
    assert stream.finish() == ""
