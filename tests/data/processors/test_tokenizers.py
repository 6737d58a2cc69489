"""Tokenizers: read from the files of others, trained for models that write, and quick encoding that changes nothing."""

from __future__ import annotations

import base64
import copy
import json
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers import decoders as library_decoders

from luban import native
from luban.data.contracts import Flat
from luban.data.processors import _encoding, _words
from luban.data.processors._encoding import LLAMA3, QWEN2, Encoder
from luban.data.processors._tokenizer_files import files_of, read
from luban.data.processors.text import Text
from luban.errors import DataError
from luban.recipe import Section

TEXTS = [
    "It's what we'll do, isn't it? THEY'VE 123 cars; it cost $12.50 — “quoted” e-mail@x.com",
    "我们在2024年的GPU价格，真的好！！！服务很好，房间不错，价格便宜",
    "new line\r\ntab\ttwo  three   four\n\n\nend  naïve café ÀÉ 3rd 4½ Ⅷ ＡＢc，，",
    "日本語のテキスト と 한국어 텍스트 और हिन्दी",
]
# What trips tokenizers: contractions, blanks of all kinds, marks that combine, pairs of letters that become one, emoji made of
# several characters, names of tokens, control characters, and what Unicode has not yet given out.
NASTY = [
    *"abcABCsStTdmrvl '\"!?,.-_$€#@0129½Ⅷ²\t\n\r\x00\x07\x85\xa0\u200b\u200d\u3000\u2028", "'s", "'re", "'LL", "'ſ", "don't", "  ", "   ", "\r\n",
    "é", "e\u0301", "İ", "ß", "ﬁ", "Å", "Ａ", "ａＢ", "，", "。", "（", "我", "们", "我们", "的", "好", "价格", "服务很好", "房间", "\u4e00\u0301", "豈", "\U00020000",
    "が", "か\u3099", "ｶﾞ", "한", "국", "\u1112\u1161\u11ab", "\uac00\u11a8", "😀", "👍🏽", "👨‍👩‍👧", "🇨🇳", "▁", "<0x41>", "[MASK]", "[CLS]", "<|endoftext|>", "ไทย",
    "নৌকা", "عَرَبِي", "\u0378", "\ue000", "\U0010ffff", "゛", "x" * 70, "好" * 70, "9" * 5, "!" * 4, "__", "##a", "\ufeff", "ΌΣΟΣ",
]  # fmt: skip
nasty = st.lists(st.sampled_from(NASTY) | st.characters(exclude_categories=["Cs"]), max_size=25).map("".join)


def fitted(values: Any = TEXTS, **options: Any) -> Text:
    processor = Text(
        **{"min_count": 1, "vocabulary": 1200, "max_length": None, "lowercase": False, **options}
    )
    processor.update(pl.Series(values))
    processor.finish()
    return processor


def taken(path: Path, **options: Any) -> Text:
    processor = Text(tokenizer=str(path), **options)
    processor.finish()
    return processor


def ids(processor: Text, text: str, **options: Any) -> list[int]:
    encoded = processor.encode_texts([text], **options)["ids"]
    assert isinstance(encoded, Flat)
    return encoded.values.tolist()


def tokens(processor: Text, text: str) -> list[str]:
    return [processor.trained.id_to_token(i) for i in ids(processor, text)]


def rows(found: tuple[Any, Any]) -> list[list[int]]:
    return [part.tolist() for part in np.split(found[0], found[1][1:-1])]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches take the quick way too, in several windows."""
    monkeypatch.setattr(_encoding, "_FEW", 0)
    monkeypatch.setattr(_encoding, "_WINDOW", 200)


# --- training ---------------------------------------------------------------------------------------------

LOSSLESS: list[dict[str, Any]] = [
    {"tokens": "bpe"},
    {"tokens": "bpe", "digits": "single", "end": True},
    {"tokens": "unigram", "byte_fallback": True, "normalize": "none"},
    {"tokens": "unigram", "byte_fallback": True, "normalize": "none", "digits": "single"},
    {"tokens": "char", "byte_fallback": True, "normalize": "none"},
]
READY = [fitted(**options) for options in LOSSLESS]


@pytest.mark.parametrize("processor", READY, ids=[" ".join(map(str, one.values())) for one in LOSSLESS])
@given(text=st.text(max_size=30) | nasty)
def test_what_writes_gives_back_every_text(processor: Text, text: str) -> None:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert processor.decode_ids(ids(processor, text, end=False), skip_special=False) == whole


def test_the_names_of_special_tokens_are_these_tokens() -> None:
    processor = READY[0]
    found = ids(processor, "a [MASK] b")
    assert processor.mask_id in found
    assert processor.decode_ids(found) == "a  b"
    assert processor.decode_ids(found, skip_special=False) == "a [MASK] b"


@pytest.mark.parametrize("kind", ["word", "bpe", "wordpiece", "unigram"])
def test_digits_alone(kind: str) -> None:
    texts = ["the year 2024 and 2024 again, 1999", "2024"] * 20
    together, single = (fitted(texts, tokens=kind, digits=digits) for digits in ("together", "single"))
    assert kind == "unigram" or tokens(together, "the 2024") != tokens(single, "the 2024")
    pieces = [token.strip("Ġ▁#") for token in tokens(single, "the 2024")]
    assert [piece for piece in pieces if piece.isdigit()] == list("2024")


@pytest.mark.parametrize("kind", ["unigram", "char"])
def test_unknown_characters_become_bytes(kind: str) -> None:
    processor = fitted(["good room"] * 5, tokens=kind, byte_fallback=True)
    assert tokens(processor, "龘") == ["<0xE9>", "<0xBE>", "<0x98>"]
    assert processor.unk_id not in ids(processor, "no 龘 is unknown\x00")
    without = fitted(["good room"] * 5, tokens=kind, vocabulary=400)
    assert without.unk_id in ids(without, "龘")


def test_bytes_make_room_for_rare_characters() -> None:
    texts = [chr(0x4E00 + i) + "好的" for i in range(900)]
    with pytest.raises(DataError, match="raise 'vocabulary', or set byte_fallback: true"):
        fitted(texts, tokens="unigram", vocabulary=400)
    processor = fitted(texts, tokens="unigram", vocabulary=400, byte_fallback=True)
    assert len(processor.trained.get_vocab()) <= 400
    assert processor.decode_ids(ids(processor, texts[7])) == texts[7]


@pytest.mark.parametrize("kind", ["word", "bpe", "wordpiece"])
def test_bytes_are_refused_where_they_make_no_sense(kind: str) -> None:
    with pytest.raises(
        ValidationError, match=f"byte_fallback is for tokens unigram and char, not for {kind}"
    ):
        Section("processors").parse({"type": "text", "tokens": kind, "byte_fallback": True})


def test_normal_forms() -> None:
    full, apart = "Ａ", "e\u0301"
    assert tokens(fitted(["A é"], tokens="char"), full + apart) == ["A", "é"]
    assert tokens(fitted([full, "é"], tokens="char", normalize="nfc"), full + apart) == [full, "é"]
    assert tokens(fitted([full, apart], tokens="char", normalize="none"), full + apart) == [
        full,
        "e",
        "\u0301",
    ]
    both = [fitted(tokens="bpe", normalize=form) for form in ("nfkc", None)]
    assert [one.decode_ids(ids(one, full)) for one in both] == ["A", full]


def test_a_cjk_character_is_a_word_after_letters_too() -> None:
    assert tokens(fitted(["abc我们def"], tokens="word"), "abc我们def") == ["abc", "我", "们", "def"]


# --- what models that write need --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [("bpe", "<|endoftext|>"), ("char", "[SEP]"), ("unigram", "[SEP]")]
)
def test_an_end_closes_each_text_that_is_not_cut(kind: str, name: str) -> None:
    processor = fitted(tokens=kind, end=True, max_length=4)
    end = processor.end_id
    assert end is not None
    assert processor.trained.id_to_token(end) == name
    assert ids(processor, "It")[-1] == end
    assert ids(processor, "") == [end]
    assert end not in ids(processor, "It's what we'll do")
    assert len(ids(processor, "It's what we'll do")) == 4
    assert end not in ids(processor, "It", end=False)
    assert end not in processor.prompt_ids("It's what we'll do")
    assert len(processor.prompt_ids("It's what we'll do")) > 4
    assert fitted(tokens=kind).end_id is None


def test_what_stands_around_a_text_stays_when_it_is_cut() -> None:
    processor = fitted(tokens="char", special=True, max_length=4)
    assert tokens(processor, "abcdefg") == ["[CLS]", "a", "b", "[SEP]"]
    assert processor.counts() == {"texts cut to max_length": 1, "tokens cut": 5}
    assert tokens(fitted(tokens="char", special=True, max_length=1), "abc") == ["[CLS]"]
    assert tokens(fitted(tokens="char", special=True, end=True), "ab") == ["[CLS]", "a", "b", "[SEP]"]


@pytest.mark.parametrize("special", [False, True])
def test_another_token_opens_texts_that_are_written_in_another_language(special: bool) -> None:
    plain = fitted(tokens="char", special=special)
    number = plain.trained.token_to_id("b")
    processor = fitted(tokens="char", special=special, opening=number)
    closing = ["[SEP]"] if special else []
    assert tokens(processor, "ac") == ["b", "a", "c", *closing]
    assert processor.places(["ac"])[0][:2] == [(0, 0), (0, 1)]
    with pytest.raises(DataError, match="opening is 9999, and the tokenizer has"):
        fitted(tokens="char", opening=9999)


def test_a_prompt_is_opened_but_not_closed() -> None:
    processor = fitted(tokens="char", special=True, max_length=2)
    assert [processor.trained.id_to_token(i) for i in processor.prompt_ids("abc")] == ["[CLS]", "a", "b", "c"]


def test_whole_texts_are_not_cut() -> None:
    processor = fitted(tokens="char", special=True, max_length=2)
    found = processor.encode_whole(["abc", "a"])
    assert found.offsets.tolist() == [0, 5, 8]
    assert not processor.counts()


def test_bytes_of_a_text() -> None:
    texts = ["It's", "我们在", "", "价格，真的好！", "😀"]
    whole = fitted(tokens="bpe", bytes=True)
    assert whole.fields("x", "input")["bytes"].role == "id"
    encoded = whole.encode_texts(texts)
    assert encoded["bytes"].tolist() == [len(text.encode()) for text in texts]  # type: ignore[union-attr]
    cut = fitted(tokens="char", bytes=True, max_length=2, special=False).encode_texts(texts)
    assert cut["bytes"].tolist() == [2, 6, 0, 6, 4]  # type: ignore[union-attr]


def test_lone_surrogates_are_replaced_and_counted() -> None:
    processor = fitted(tokens="bpe")
    assert processor.decode_ids(ids(processor, "a\ud83db")) == "a\ufffdb"
    assert processor.counts() == {"texts with lone surrogates, which were replaced": 1}
    assert processor.decode_ids(processor.prompt_ids("\ud83d\ude00")) == "😀"


def test_numbers_of_special_tokens() -> None:
    processor = fitted(tokens="bpe", end=True)
    found = [
        processor.pad_id,
        processor.unk_id,
        processor.cls_id,
        processor.sep_id,
        processor.mask_id,
        processor.end_id,
    ]
    assert found == [0, 1, 2, 3, 4, 5]
    assert processor.special_ids == {0, 1, 2, 3, 4, 5}
    assert processor.begin_id is None
    assert processor.chat_template is None


def test_an_artefact_from_before_keeps_its_special_tokens() -> None:
    again = Text()
    again.restore({"tokenizer": fitted().trained.to_str()})
    assert (again.pad_id, again.mask_id, again.end_id) == (0, 4, None)


# --- reading ----------------------------------------------------------------------------------------------

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "hello",
    "Hello",
    "cafe",
    "café",
    "##s",
    "我",
    "们",
    "我们",
    "##们",
    "!",
    "<new>",
]


def write(folder: Path, **found: Any) -> Path:
    """Write files: text as it is, anything else as JSON; ``__`` in a name is a dot."""
    for name, content in found.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, "Hello cafés 我们!", "hello cafe ##s 我 们 !"),
        ({"do_lower_case": False}, "Hello cafés 我们", "Hello café ##s 我 们"),
        ({"tokenize_chinese_chars": False}, "我们", "我们"),
        ({"strip_accents": False}, "Cafés", "café ##s"),
        ({"tokenizer_class": "BertTokenizerFast"}, "hello [MASK]", "hello [MASK]"),
        (
            {"added_tokens_decoder": {"15": {"content": "<new>", "special": True}}},
            "hello<new>",
            "hello <new>",
        ),
    ],
)
def test_a_vocabulary_of_word_pieces(
    settings: dict[str, Any], text: str, expected: str, tmp_path: Path
) -> None:
    write(tmp_path, vocab__txt="\n".join(WORDS) + "\n", tokenizer_config__json=settings)
    for place in (tmp_path, tmp_path / "vocab.txt"):
        processor = taken(place)
        assert tokens(processor, text) == ["[CLS]", *expected.split(), "[SEP]"]
    assert (processor.pad_id, processor.cls_id, processor.sep_id, processor.mask_id) == (0, 2, 3, 4)
    assert processor.end_id is None


def bpe(pattern: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        from tokenizers import Regex

        parts = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = library_decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def split_files(tokenizer: Tokenizer, folder: Path) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    write(folder, vocab__json=model["vocab"], merges__txt="#version: 0.2\n" + "\n".join(merges) + "\n")


def test_vocabulary_and_merges(tmp_path: Path) -> None:
    plain, newer = bpe(), bpe(QWEN2)
    split_files(plain, tmp_path)
    for text in [*TEXTS, "a<|endoftext|>b"]:
        assert ids(taken(tmp_path), text) == plain.encode(text).ids
    assert taken(tmp_path).end_id == plain.token_to_id("<|endoftext|>")
    write(tmp_path, tokenizer_config__json={"tokenizer_class": "RobertaTokenizer"})
    processor = taken(tmp_path / "vocab.json")
    assert ids(processor, TEXTS[0]) == [0, *plain.encode(TEXTS[0]).ids, 2]
    assert tokens(processor, "a <mask>") == ["<s>", "a", "<mask>", "</s>"]
    assert (processor.cls_id, processor.sep_id, processor.mask_id) == (0, 2, 4)
    split_files(newer, tmp_path)
    write(tmp_path, tokenizer_config__json={"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>"})
    assert ids(taken(tmp_path), TEXTS[1]) == newer.encode(TEXTS[1]).ids
    assert ids(taken(tmp_path), "e\u0301") == newer.encode("é").ids
    assert taken(tmp_path).end_id == 2


def test_what_stands_beside_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = bpe()
    write(tmp_path, tokenizer__json=tokenizer.to_str())
    processor = taken(tmp_path)
    assert (processor.begin_id, processor.end_id, processor.pad_id, processor.unk_id) == (0, 2, 1, 3)
    templates = [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ messages }}"}]
    settings = {
        "bos_token": {"content": "<|endoftext|>", "lstrip": False},
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "additional_special_tokens": ["<|im_start|>"],
        "chat_template": templates,
    }
    write(tmp_path, tokenizer_config__json=settings, special_tokens_map__json={"pad_token": "<unk>"})
    processor = taken(tmp_path)
    size = tokenizer.get_vocab_size()
    assert (processor.begin_id, processor.end_id, processor.pad_id) == (5, size, 3)
    assert processor.special_ids >= {5, size, size + 1, 3}
    assert processor.fields("x", "input")["ids"].size == size + 2
    again = Text(tokenizer=str(tmp_path))
    again.restore(json.loads(json.dumps(processor.state())))
    assert (again.end_id, again.chat_template) == (size, "{{ messages }}")
    write(tmp_path, chat_template__jinja="{{ 1 }}")
    assert taken(tmp_path).chat_template == "{{ 1 }}"
    assert {path.name for path in processor.files()} == {path.name for path in tmp_path.iterdir()}
    assert files_of(tmp_path / "nothing") == []
    assert Text().files() == []


def test_an_end_for_a_tokenizer_that_was_read(tmp_path: Path) -> None:
    tokenizer = bpe()
    path = write(tmp_path, tokenizer__json=tokenizer.to_str()) / "tokenizer.json"
    assert ids(taken(path, end=True), "It") == [*tokenizer.encode("It").ids, 2]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    write(tmp_path, tokenizer__json=tokenizer.to_str())
    assert ids(taken(path, end=True), "It").count(2) == 1
    write(tmp_path, tokenizer__json=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(DataError, match="names no end-of-text token"):
        taken(path, end=True)
    write(tmp_path, vocab__txt="\n".join(WORDS))
    assert taken(tmp_path / "vocab.txt", end=True).end_id == 3


# --- SentencePiece: the numbers expected are those of sentencepiece 0.2.3 ---------------------------------

UNKNOWN, CONTROL, USER, BYTE = 2, 3, 4, 6
FIRST = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
ALL_BYTES = [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
UNIGRAM = [*FIRST, ("<sep>", 0.0, USER)] + [
    (text, score, 1)
    for text, score in [
        ("▁", -2.5), ("▁the", -3), ("▁c", -4), ("at", -3.5), ("▁cat", -6), ("s", -3), ("a", -4), ("t", -4.2), ("h", -5), ("e", -4), ("我", -5), ("我们", -6),
        ("们", -6), ("<", -9), ("x", -8), ("0", -8), ("4", -8), ("1", -8), (">", -8),
    ]
]  # fmt: skip
MERGED = [("▁a", 0.0, 1), ("bc", -1, 1), ("▁abc", -2, 1), ("ab", -3, 1), ("▁▁", -4, 1), ("我们", -5, 1)]
BPE = [*FIRST, *ALL_BYTES, *MERGED, *((c, -10.0 - i, 1) for i, c in enumerate("▁abc我们d"))]
# Rules made by sentencepiece: Ａ → a, tab → space, e and an accent → é, ① → 1.
RULES = zlib.decompress(
    base64.b85decode(
        b"c-ke?d5{lO902gQzmXX;%3WLJrb1Y$C|BfcbCWAaMb|_sN6sa*SjW0=yY6-0!lq*@*UC|Hg)ZY5SFEEDpP$~$XTI;f@Ar@IoA+MG"
        b"7D6Z*LXHPRbR=ZPM#7K>Ldb5OJS-AYs)mrB6bTXQRQt*kqNO>>#Y5yFH~Gj*0rK+*5A!Io6yz};rw~ObOtJr42qh>^DN6DLrFn`c"
        b"DN7lirW_S0PaG9_hDtn3WuE6b93fQUMP8sf)u>4gUZNIts7+m7ratv(NCRG>5w8+Y6B^TurnI0rt!T+>w5Ba>Xiqy{rvshnNEbTu"
        b"CU4M{w|JXwyvsYh&wG3jtx1f89%6TT@*yAd5xw|?KJ?~O`qH0%3}gU<8N`t2#q$|M8O|_1X9OcjWHh4~LlWZ{OETk`$OI-ciK$Fs"
        b"I@6fR3}!Qnxy&Jz6y`IJg)Cq(i%4S$%UH?^ma~eLtYJ0lSjz_1vx$vt<_os6g)d3xE4J|sUz5SNe9w1m=LdGOgWc?651H)cNA|Oi"
        b"pE$rle&!IraD>Ag<0!}Zm6M#{cYfnf{@@gUahgl<G2yIuCYsBN3FpKMoR8+X$lqM%Dp$Bh7B{%gKiuRN|8j@h+~vRfe=p7(%t#CO"
        b"0Ix)fv;"
    )
)
SENTENCES = [
    "the cats",
    " the  cat ",
    "我们at",
    "we<sep>the",
    "<0x41> t",
    "zz é",
    "abc abcd",
    "  abc",
    "我们a",
    "",
    "ab\tc",
    "a▁b",
]


def varint(n: int) -> bytes:
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def message(*fields: tuple[int, Any]) -> bytes:
    """Write a protocol buffer."""
    found = b""
    for number, value in fields:
        if isinstance(value, float):
            found += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            found += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            found += varint(number << 3 | 2) + varint(len(raw)) + raw
    return found


def sentencepiece(kind: int, pieces: Any, trainer: Any = (), normalizer: Any = ()) -> bytes:
    written = [
        (1, message((1, text), (2, float(score)), *([(3, of)] if of != 1 else [])))
        for text, score, of in pieces
    ]
    return message(*written, (2, message((3, kind), *trainer)), (3, message(*normalizer)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (sentencepiece(1, UNIGRAM), [[5, 8, 9], [5, 8], [4, 15, 7], [4, 0, 13, 3, 11, 12, 13], [4, 17, 19, 18, 20, 21, 22, 4, 11], [4, 0, 4, 0], [4, 10, 0, 4, 10, 0], [4, 10, 0], [4, 15, 10], [], [4, 10, 0], [4, 10, 4, 0]]),
        (sentencepiece(1, UNIGRAM, normalizer=[(4, 0)]), [[5, 8, 9], [4, 5, 4, 8, 4], [4, 15, 7], [4, 0, 13, 3, 11, 12, 13], [4, 17, 19, 18, 20, 21, 22, 4, 11], [4, 0, 4, 0], [4, 10, 0, 4, 10, 0], [4, 4, 4, 10, 0], [4, 15, 10], [], [4, 10, 0], [4, 10, 4, 0]]),
        (sentencepiece(1, UNIGRAM, normalizer=[(3, 0)]), [[11, 12, 13, 8, 9], [11, 12, 13, 8], [15, 7], [0, 13, 3, 11, 12, 13], [17, 19, 18, 20, 21, 22, 4, 11], [0, 4, 0], [10, 0, 4, 10, 0], [10, 0], [15, 10], [], [10, 0], [10, 4, 0]]),
        (sentencepiece(1, [*UNIGRAM, *ALL_BYTES], [(35, 1)]), [[5, 8, 9], [5, 8], [4, 15, 7], [4, 142, 13, 3, 11, 12, 13], [4, 17, 19, 18, 20, 21, 22, 4, 11], [4, 145, 145, 4, 218, 192], [4, 10, 121, 122, 4, 10, 121, 122, 123], [4, 10, 121, 122], [4, 15, 10], [], [4, 10, 121, 32, 122], [4, 10, 4, 121]]),
        (sentencepiece(2, BPE, [(35, 1)], [(4, 0)]), [[265, 119, 107, 104, 265, 268, 266, 119, 118], [263, 119, 107, 104, 263, 268, 266, 119, 265], [265, 264, 266, 119], [265, 122, 104, 63, 118, 104, 115, 65, 119, 107, 104], [265, 63, 51, 123, 55, 52, 65, 265, 119], [265, 125, 125, 265, 198, 172], [261, 261, 271], [263, 261], [265, 264, 266], [], [259, 267, 12, 268], [259, 265, 267]]),
        (sentencepiece(2, [piece for piece in BPE if piece[2] != BYTE]), [[9, 0, 9, 12, 10, 0], [9, 0, 9, 12, 10, 0], [9, 8, 10, 0], [9, 0], [9, 0, 9, 0], [9, 0, 9, 0], [5, 5, 15], [5], [9, 8, 10], [], [3, 11, 0, 12], [3, 9, 11]]),
        (sentencepiece(1, [*UNIGRAM, ("é", -5.0, 1)], normalizer=[(2, RULES)]), [[5, 8, 9], [5, 8], [4, 15, 7], [4, 0, 13, 3, 11, 12, 13], [4, 17, 19, 18, 20, 21, 22, 4, 11], [4, 0, 4, 23], [4, 10, 0, 4, 10, 0], [4, 10, 0], [4, 15, 10], [], [4, 10, 0, 6], [4, 10, 4, 0], [4, 7, 4, 23, 4, 21]]),
    ],
    ids=["unigram", "keeping spaces", "without prefix", "with bytes", "bpe with bytes", "bpe", "with rules"],
)  # fmt: skip
def test_sentencepiece(model: bytes, expected: list[list[int]], tmp_path: Path) -> None:
    path = write(tmp_path, own__model=model) / "own.model"
    processor = taken(path)
    texts = [*SENTENCES, "Ａt\te\u0301 ①"][: len(expected)]
    assert [ids(processor, text) for text in texts] == expected
    assert (processor.unk_id, processor.begin_id, processor.end_id) == (0, 1, 2)
    for text in ("我们a", "at the cat"):
        if 0 not in (found := ids(processor, text)):
            assert processor.decode_ids(found) == text


def test_what_puts_tokens_around_a_sentencepiece_model(tmp_path: Path) -> None:
    write(tmp_path, tokenizer__model=sentencepiece(2, BPE, [(35, 1)], [(4, 0)]))
    bare = ids(taken(tmp_path), "abc")
    for beside, expected in [
        ({"tokenizer_class": "LlamaTokenizer"}, [1, *bare]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True}, [*bare, 2]),
        ({"tokenizer_class": "T5Tokenizer", "extra_ids": 3}, [*bare, 2]),
        ({"tokenizer_class": "XLMRobertaTokenizer"}, [0, *(i + 1 for i in bare), 2]),
    ]:
        write(tmp_path, tokenizer_config__json=beside)
        processor = taken(tmp_path)
        assert ids(processor, "abc") == expected
    assert processor.mask_id == len(BPE) + 1
    write(tmp_path, tokenizer_config__json={"tokenizer_class": "T5Tokenizer", "extra_ids": 3})
    assert tokens(taken(tmp_path), "<extra_id_0>abc")[0] == "<extra_id_0>"
    assert taken(tmp_path).trained.token_to_id("<extra_id_0>") == len(BPE) + 2


# --- bad files --------------------------------------------------------------------------------------------

WHOLE = sentencepiece(1, UNIGRAM)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "there is no tokenizer"),
        ({"tokenizer__json": "{}"}, r"is no tokenizer\.json that can be read"),
        ({"vocab__txt": "a\nb\n"}, r"no vocabulary of word pieces: it has no '\[UNK\]' among its 2 lines"),
        ({"vocab__txt": b"\xff\xfe"}, "cannot be read as text in UTF-8"),
        ({"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": {"tokenizer_class": "MyTokenizer"}}, r"class 'MyTokenizer', whose rules are not known here; .*AutoTokenizer"),
        ({"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": "[1]"}, "should hold a JSON object, but it holds a list"),
        ({"vocab__txt": "\n".join(WORDS), "added_tokens__json": {"<more>": 99}}, "disagree: token '<more>' should be number 99, but it becomes 16"),
        ({"vocab__json": {"a": 0}}, r"merges\.txt' cannot be read"),
        ({"vocab__json": "{", "merges__txt": ""}, "is no JSON"),
        ({"vocab__json": {"a": 0}, "merges__txt": "a\n"}, "a line should hold two tokens"),
        ({"vocab__json": {"a": 0}, "merges__txt": "a b\n"}, "no tokenizer that can be read"),
        ({"a__model": WHOLE, "b__model": WHOLE}, r"several SentencePiece models \(a\.model, b\.model\); name one"),
        ({"a__model": b"hello"}, "is no SentencePiece model that can be read"),
        ({"a__model": b""}, "it has no pieces"),
        ({"a__model": WHOLE[: len(WHOLE) // 2]}, "it ends in the middle of a field"),
        ({"a__model": sentencepiece(3, UNIGRAM)}, "model of kind 'word'; unigram, bpe and char can be read"),
        ({"a__model": sentencepiece(1, UNIGRAM, [(24, 1)])}, "treat_whitespace_as_suffix"),
        ({"a__model": sentencepiece(2, UNIGRAM)}, "cannot be rebuilt exactly"),
        ({"a__model": WHOLE, "tokenizer_config__json": {"tokenizer_class": "AlbertTokenizer"}}, "class 'AlbertTokenizer'"),
        ({"a__model": sentencepiece(1, UNIGRAM, [(46, "<begin>")]), "tokenizer_config__json": {"tokenizer_class": "LlamaTokenizer"}}, "no '<begin>', which should stand around"),
    ],
)  # fmt: skip
def test_bad_files(found: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path, **found)
    with pytest.raises(DataError, match=said):
        read(tmp_path)


@settings(max_examples=150)
@given(data=st.binary(max_size=60), place=st.integers(0, len(WHOLE)))
def test_a_damaged_sentencepiece_model_is_refused_or_read(
    data: bytes, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.model"
    path.write_bytes(WHOLE[:place] + data + WHOLE[place + len(data) :])
    with suppress(DataError):
        assert read(path).tokenizer.encode("the cat").ids


# --- quick encoding ---------------------------------------------------------------------------------------

QUICK: list[dict[str, Any]] = [
    {"tokens": "bpe"}, {"tokens": "bpe", "lowercase": True, "digits": "single"}, {"tokens": "bpe", "normalize": "nfc", "end": True}, {"tokens": "wordpiece"},
    {"tokens": "wordpiece", "lowercase": True, "digits": "single"}, {"tokens": "word"}, {"tokens": "word", "normalize": "none", "digits": "single"}, {"tokens": "char", "lowercase": True},
    {"tokens": "char", "byte_fallback": True}, {"tokens": "unigram"}, {"tokens": "unigram", "digits": "single", "lowercase": True},
    {"tokens": "unigram", "byte_fallback": True, "normalize": "none"}, {"tokens": "unigram", "byte_fallback": True},
]  # fmt: skip
ENCODERS = {" ".join(map(str, options.values())): fitted(**options).trained for options in QUICK}
ENCODERS |= {"llama 3": bpe(LLAMA3), "qwen 2": bpe(QWEN2), "gpt 2": bpe()}
_BARE = json.loads(ENCODERS["wordpiece"].to_str())
_BARE["model"]["continuing_subword_prefix"] = ""
ENCODERS["pieces without prefix"] = Tokenizer.from_str(json.dumps(_BARE))
SPELT = (models.BPE, models.WordPiece)
_CUTTER = Encoder(ENCODERS["gpt 2"])._cutter
assert _CUTTER is not None
MERGER = _CUTTER.speller


@pytest.fixture(params=["native", "none"])
def merging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are merged by Luban's own code, or by arrays."""
    if request.param == "native" and native.compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(_words.NATIVE, "_chosen", None)
    _words.NATIVE.use(request.param)


@pytest.mark.parametrize("name", [name for name in ENCODERS if not isinstance(ENCODERS[name].model, SPELT)])
def test_quick_encoding_changes_nothing(name: str, eager: None) -> None:
    unchanged(name)


@pytest.mark.parametrize("name", [name for name in ENCODERS if isinstance(ENCODERS[name].model, SPELT)])
def test_quick_merging_changes_nothing(name: str, merging: None, eager: None) -> None:
    unchanged(name)


def unchanged(name: str) -> None:
    encoder = Encoder(ENCODERS[name])
    assert encoder.reason is None
    encoder._verified = {False, True}  # a difference is to be seen, not mended

    @settings(max_examples=60)
    @given(texts=st.lists(nasty, max_size=12))
    def check(texts: list[str]) -> None:
        assert rows(encoder.encode(texts)) == rows(encoder.plain(texts))

    check()


def test_a_special_token_of_letters_is_no_word(merging: None, eager: None) -> None:
    tokenizer = Tokenizer.from_str(ENCODERS["gpt 2"].to_str())
    tokenizer.add_special_tokens(["cat", "##", "\n\n"])
    encoder = Encoder(tokenizer)
    encoder._verified = {False, True}
    texts = ["concatenate", "cat", "a ## b", "##", "one\n\ntwo", "\n\n", "the dog"]
    assert rows(encoder.encode(texts)) == rows(encoder.plain(texts))


@pytest.mark.skipif(native.compiler() is None, reason="no compiler")
@given(words=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20))
def test_both_ways_of_merging_agree(words: list[bytes]) -> None:
    merger = MERGER
    assert isinstance(merger, _words.Merger)
    data = np.frombuffer(b"".join(words), dtype=np.uint8)
    lengths = np.array([len(word) for word in words])
    library = _words.NATIVE._build_now().library
    assert library is not None
    ours, theirs = merger._by(library, data, lengths), merger._by_arrays(data, lengths)
    assert [one.tolist() for one in ours] == [one.tolist() for one in theirs]


class Liar:
    """Says that each word is the first token."""

    def ready(self) -> bool:
        return True

    def __call__(self, data: Any, lengths: Any) -> tuple[Any, Any]:
        return np.zeros(len(lengths), np.int32), np.ones(len(lengths), np.int64)


@pytest.mark.parametrize("name", ["gpt 2", "wordpiece"])
@pytest.mark.skipif(native.compiler() is None, reason="no compiler")
def test_what_was_built_meanwhile_is_taken_and_checked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path))
    for key in ("_chosen", "_automatic"):
        monkeypatch.setattr(_words.NATIVE, key, None)
    encoder = Encoder(ENCODERS[name])
    assert rows(encoder.encode(TEXTS)) == rows(encoder.plain(TEXTS))
    deadline = time.monotonic() + 300
    while _words.NATIVE.library() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _words.NATIVE.library() is not None
    assert encoder._cutter is not None
    encoder._cutter.speller = Liar()
    assert rows(encoder.encode(TEXTS)) == rows(encoder.plain(TEXTS))
    assert encoder.reason == "its results differed from the library's"


def test_large_batches(merging: None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(NASTY, size)) for size in generator.integers(0, 60, 400)]
    texts += ["", "好" * 30_000, "", "x" * 1000, ""]
    monkeypatch.setattr(_encoding, "_WINDOW", 5_000)
    monkeypatch.setattr(_encoding, "_REMEMBERED", 300)  # so that it forgets, several times
    for name in ("bpe", "wordpiece", "llama 3"):
        encoder = Encoder(ENCODERS[name])
        for _ in range(2):
            found = encoder.encode(texts)
            assert encoder.reason is None
            assert found[1].tolist() == encoder.plain(texts)[1].tolist()
            assert np.array_equal(found[0], encoder.plain(texts)[0])


def test_a_difference_is_noticed_and_mended(eager: None) -> None:
    encoder = Encoder(ENCODERS["bpe"])
    assert encoder._cutter is not None
    encoder._cutter.table[:] = _encoding._CUT
    assert rows(encoder.encode(TEXTS)) == rows(encoder.plain(TEXTS))
    assert encoder.reason == "its results differed from the library's"


@pytest.mark.parametrize("change", ["prefix", "dropout", "ignore", "pattern", "replace", "normalized"])
def test_what_is_not_known_is_left_to_the_library(change: str, eager: None) -> None:
    spec = json.loads(ENCODERS["qwen 2" if change == "pattern" else "gpt 2"].to_str())
    match change:
        case "prefix":
            spec["pre_tokenizer"]["add_prefix_space"] = True
        case "dropout":
            spec["model"]["dropout"] = 0.1
        case "ignore":
            spec["model"]["ignore_merges"] = True
        case "pattern":
            spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"
        case "replace":
            spec["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
        case "normalized":
            spec["normalizer"] = {"type": "Lowercase"}
            spec["added_tokens"][0]["normalized"] = True
    encoder = Encoder(Tokenizer.from_str(json.dumps(spec)))
    assert (encoder.reason is None) == (change == "ignore")
    if change == "ignore":  # known, but not which characters may be parted
        assert encoder._cutter is not None
        assert encoder._cutter.pairs is None
    if change != "dropout":
        assert rows(encoder.encode(TEXTS)) == rows(encoder.plain(TEXTS))


def test_chinese_clauses_fall_apart_where_no_token_crosses(eager: None) -> None:
    encoder = Encoder(fitted(["服务很好"] * 9 + ["房间不错"] * 9, tokens="bpe", min_count=3).trained)
    encoder.encode(["服务很好房间不错", "房间不错服务很好"])
    assert encoder._memory.size == 2


def test_a_copy_encodes_alike() -> None:
    processor = fitted(tokens="bpe")
    before = ids(processor, TEXTS[1])
    assert ids(copy.deepcopy(processor), TEXTS[1]) == before
