"""Texts of a model with random weights follow a schema or a regular expression."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import torch
from generation_cases import ours
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from luban.data.contracts import Field, Spec
from luban.errors import InputError, MissingError
from luban.generation.constraint import constraint_of, token_bytes
from luban.generation.engine import Generated, generate
from luban.generation.options import Generation
from luban.recipe import Section

WORDS = [
    '{"城市": "北京", "stars": 5, "good": true}',
    '{"name": "Anna", "stars": 3}',
    "yes no 好 不好 12-34 😀",
]
SCHEMA = {
    "type": "object",
    "properties": {"stars": {"enum": [1, 2, 3]}, "word": {"enum": ["好", "不好 😀"]}},
    "required": ["stars", "word"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        WORDS * 3,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["[PAD]", "[END]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made.add_tokens(["<added>"])
    return made


@pytest.fixture(scope="module")
def module(tokenizer: Tokenizer) -> nn.Module:
    size = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    # More rows than tokens, as many published models have: none of them may be chosen.
    model = Section("models").parse({"type": "llama", "size": "tiny", "vocabulary": size + 20})
    spec = {
        "text.ids": Field("text", "text", "input", "int64", None, size=size),
        "text.labels": Field("text", "tokens", "target", "int64", None, size=size),
    }
    built: nn.Module = model.build(Spec(spec)).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built


def ran(module: nn.Module, tokenizer: Tokenizer, prompts: int = 3, **options: Any) -> list[Generated]:
    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids)  # type: ignore[no-any-return]

    texts = [[5 + i] * (i + 1) for i in range(prompts)]
    return generate(module, texts, Generation(**options), end={1}, decode=decode, tokenizer=tokenizer)


HOWS = [{}, {"temperature": 2.0, "seed": 0}, {"beams": 3}, {"repetition_penalty": 1.5}]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_json_of_a_schema(how: dict[str, Any], module: nn.Module, tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    for one in ran(module, tokenizer, json_schema=SCHEMA, max_tokens=200, **how):
        # Whitespace between the parts is the model's to choose, and this one may choose no end of it.
        if one.finish_reason == "length":
            assert len(one.ids) == 200
            continue
        value = json.loads(one.text)
        assert value["stars"] in (1, 2, 3)
        assert value["word"] in ("好", "不好 😀")


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("regex", [r"(yes|no)", r"[0-9]{2}-[0-9]{2}", "(好|不好 😀)+!", "<added>a", "a?"])
def test_a_regular_expression(
    regex: str, how: dict[str, Any], module: nn.Module, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("llguidance")
    for one in ran(module, tokenizer, regex=regex, max_tokens=60, **how):
        if one.finish_reason == "end":
            assert re.fullmatch(regex, one.text), one.text
        else:
            assert "+" in regex
        assert max(one.ids, default=0) < tokenizer.get_vocab_size()


def test_a_stop_string_and_a_constraint(module: nn.Module, tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    got = ran(module, tokenizer, regex="[ab]{3}-[cd]{3}", stop=["-"], temperature=1.0, seed=1)
    assert all(re.fullmatch("[ab]{3}", one.text) and one.finish_reason == "stop" for one in got)


def test_bytes_of_tokens(tokenizer: Tokenizer) -> None:
    table = token_bytes(tokenizer)
    assert table[:2] == [None, None]
    text = '{"城市": 😀<added>'
    ids = tokenizer.encode(text).ids
    assert b"".join(table[i] or b"" for i in ids).decode() == text
    assert {byte for token in table if token for byte in token} == set(range(256))
    pieces = Tokenizer(models.BPE({"<0xE5>": 0, "▁好": 1, "a": 2, "<s>": 3}, []))
    pieces.add_special_tokens(["<s>"])
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    assert token_bytes(pieces) == [b"\xe5", " 好".encode(), b"a", None]
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(InputError, match="tokens: bpe or unigram"):
        token_bytes(words)


def test_what_cannot_be_followed(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    assert constraint_of(Generation(), None, set()) is None
    with pytest.raises(InputError, match="invalid regex"):
        constraint_of(Generation(regex="a(b"), tokenizer, {1})
    with pytest.raises(InputError, match="nonsense"):
        constraint_of(Generation(json_schema={"type": "nonsense"}), tokenizer, {1})
    with pytest.raises(InputError, match="need the tokenizer"):
        constraint_of(Generation(regex="a"), None, {1})
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingError, match=re.escape("pip install 'luban[constrain]'")):
        constraint_of(Generation(regex="a"), tokenizer, {1})


def test_models_without_an_end_token(module: nn.Module, tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    matcher = constraint_of(Generation(regex="ab?"), tokenizer, set())
    assert matcher is not None
    start = matcher.start()
    a, b = (tokenizer.token_to_id(letter) for letter in "ab")
    assert start.allowed(400).nonzero().flatten().tolist() == [a]
    other = start.copy()
    assert not other.take(a)
    assert other.allowed(400).nonzero().flatten().tolist() == [b]
    assert other.take(b)
    assert start.allowed(400).nonzero().flatten().tolist() == [a]


def test_ours_has_no_tokenizer() -> None:
    with pytest.raises(InputError, match="need the tokenizer"):
        generate(ours("llama", size="tiny"), [[5]], Generation(regex="a"), end={1}, decode=str)
