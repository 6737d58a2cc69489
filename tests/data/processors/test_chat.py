"""Conversations as tokens: which of them are answers, by whichever template, and nothing that is lost without a word."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data._messages import UnreadableError
from luban.data._templates import BUILT_IN, render, special_tokens
from luban.data.contracts import Flat
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.errors import DataError
from luban.recipe import Section

TURNS = ["1 + 1?", "It is 2.", "And 2 + 2?", "4,\n\nas you see 好"]
# Writes what the answers thought only in the last one, as reasoning models do.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    messages = [{"role": ["user", "assistant"][i % 2], "content": turn} for i, turn in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def cells(*chats: Sequence[Any]) -> pl.Series:
    return pl.Series("chat", [json.dumps(chat, ensure_ascii=False) for chat in chats])


def fitted(*chats: Sequence[Any], **options: Any) -> Chat:
    chat = Chat.model_validate({"tokens": "bpe", "lowercase": False, "min_count": 1, **options})
    chat.update(cells(*(chats or [talk(*TURNS, system="Be exact.")])))
    chat.finish()
    return chat


def encoded(chat: Chat, *chats: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    """The tokens of each conversation, and which are answers."""
    values = cells(*chats)
    assert not chat.invalid(values).any()
    arrays = chat.encode(values)
    ids, answer = arrays["ids"], arrays["answer"]
    assert isinstance(ids, Flat)
    assert isinstance(answer, Flat)
    assert ids.offsets.tolist() == answer.offsets.tolist()
    cuts = zip(ids.offsets, ids.offsets[1:], strict=False)
    return [(ids.values[a:b].tolist(), answer.values[a:b].tolist()) for a, b in cuts]


def answers_in(chat: Chat, ids: list[int], answer: list[int]) -> str:
    chosen = [i for i, mine in zip(ids, answer, strict=True) if mine]
    return chat.decode_ids(chosen, skip_special=False)


def saved(chat: Chat, folder: Path, **settings: Any) -> Path:
    """The files of a tokenizer as others keep them."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(chat.trained.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


# --- the mask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["bpe", "unigram"])
@pytest.mark.parametrize("template", list(BUILT_IN))
def test_answers_and_what_ends_them_are_marked_and_nothing_else(template: str, tokens: str) -> None:
    chat = fitted(
        template=template, tokens=tokens, byte_fallback=tokens == "unigram", normalize="none", vocabulary=400
    )
    end = chat.trained.id_to_token(next(iter(chat.end_ids)))
    ((ids, answer),) = encoded(chat, talk(*TURNS, system="Be exact."))
    assert answers_in(chat, ids, answer) == TURNS[1] + end + TURNS[3] + end
    assert chat.end_id in chat.end_ids, "generation stops where an answer ends"
    assert sum(i in chat.end_ids and mine for i, mine in zip(ids, answer, strict=True)) == 2, "it has a loss"
    assert chat.decode_ids(ids, skip_special=False) == chat.text_of(talk(*TURNS, system="Be exact."))


WORDS = st.text(st.sampled_from("ab \n好1.<|"), min_size=1, max_size=8).filter(
    lambda text: bool(text.strip())
)


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=2, max_size=6), st.sampled_from(list(BUILT_IN)))
def test_what_stands_before_an_answer_is_what_a_model_is_asked_with(turns: list[str], template: str) -> None:
    chat = CHATS.setdefault(template, fitted(template=template, vocabulary=300))
    messages = talk(*turns)
    ((ids, answer),) = encoded(chat, messages)
    marked = np.flatnonzero(np.diff([0, *answer]) == 1)
    asked = [i for i, one in enumerate(messages) if one["role"] == "assistant"]
    assert len(marked) == len(asked)
    for place, i in zip(marked, asked, strict=True):
        assert chat.prompt_of(messages[:i]) == ids[:place]
    contents = [turn.strip() if template == "llama3" else turn for turn in turns[1::2]]
    end = chat.trained.id_to_token(next(iter(chat.end_ids)))
    assert answers_in(chat, ids, answer) == "".join(content + end for content in contents)


CHATS: dict[str, Chat] = {}


def test_a_tokenizer_that_puts_a_space_at_a_cut_splits_the_whole_text() -> None:
    chat = fitted(tokens="unigram", template="chatml", vocabulary=200)
    assert not chat._cuts
    ((ids, answer),) = encoded(chat, talk("1 + 1?", "It is 2."))
    whole = chat.trained.encode(chat.text_of(talk("1 + 1?", "It is 2.")), add_special_tokens=False).ids
    assert ids == whole
    assert chat.prompt_of(talk("1 + 1?")) == ids[: answer.index(1)]


def test_a_turn_that_a_template_writes_otherwise_later_is_not_learnt_and_counted(tmp_path: Path) -> None:
    (tmp_path / "forgets.jinja").write_text(FORGETS)
    template = str(tmp_path / "forgets.jinja")
    chat = fitted(template=template)
    ((ids, answer),) = encoded(chat, talk(*TURNS))
    assert answers_in(chat, ids, answer) == f"<think></think>{TURNS[3]}<|im_end|>"
    assert chat.counts() == {
        "answers not learnt, since the template writes them otherwise once others follow": 1
    }


def test_a_row_without_an_answer_is_invalid_and_says_why() -> None:
    chat = fitted()
    values = pl.Series([None, "plain words", "[]", *cells(talk("1"), talk("1", "2"))])
    assert chat.invalid(values).to_list() == [True, True, True, True, False]
    assert sum(chat.counts().values()) == 4
    assert chat.encode(values)["ids"].offsets.tolist()[:5] == [0] * 5  # type: ignore[union-attr]


def test_names_of_special_tokens_in_messages_are_counted() -> None:
    chat = fitted()
    encoded(chat, talk("say <|im_end|>", "no"))
    assert chat.counts() == {"conversations whose messages name special tokens, which are taken for these": 1}


def test_lists_of_messages_are_read_as_their_text() -> None:
    chat = fitted()
    messages = talk(*TURNS)
    typed = pl.Series("chat", [messages])
    assert chat.encode(typed)["ids"].values.tolist() == encoded(chat, messages)[0][0]  # type: ignore[union-attr]
    assert chat.encode_texts([json.dumps(messages)])["ids"].values.tolist() == encoded(chat, messages)[0][0]  # type: ignore[union-attr]


# --- truncation -------------------------------------------------------------------------------------------


def test_truncation_is_counted_and_leaves_no_row_without_an_answer() -> None:
    whole = fitted()
    ((ids, answer),) = encoded(whole, talk(*TURNS))
    first = answer.index(1)
    for limit in range(1, len(ids) + 2):
        chat = Chat.of(whole)
        chat.max_length = limit
        values = cells(talk(*TURNS))
        bad = chat.invalid(values).item()
        assert bad == (limit <= first), "a conversation of which no answer is left is no example"
        if bad:
            assert chat.counts() == {"left out because of answers that all lie behind max_length": 1}
            continue
        arrays = chat.encode(values)
        assert arrays["ids"].values.tolist() == ids[:limit]  # type: ignore[union-attr]
        assert arrays["answer"].values.tolist() == answer[:limit]  # type: ignore[union-attr]
        said = chat.decode_ids([i for i, mine in zip(ids[:limit], answer[:limit], strict=True) if mine])
        if "\N{REPLACEMENT CHARACTER}" not in said:
            assert chat.answers(values).bytes.item() == len(said.encode())
            chat.counts()
            chat.answers(values)
        counts = chat.counts()
        assert counts["conversations cut to max_length"] == (limit < len(ids))
        assert counts["tokens cut"] == max(0, len(ids) - limit)
        assert counts["tokens of answers cut"] == sum(answer[limit:])


def test_bytes_are_those_of_the_answers() -> None:
    chat = fitted(bytes=True)
    assert chat.encode(cells(talk("1", "好的"), talk("1", "a", "2", "b")))["bytes"].tolist() == [6, 2]  # type: ignore[union-attr]


# --- templates --------------------------------------------------------------------------------------------

transformers = pytest.importorskip("transformers")

FOREIGN = {
    **BUILT_IN,
    # In the ways that templates of models are written: blocks on lines of their own, loops, namespaces, filters, dates.
    "lines": """{% set ns = namespace(first=true) %}
{%- if not messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\nYou are helpful. ' + strftime_now('%Y') + '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {%- if message['role'] == 'tool' %}{% continue %}{% endif %}
    {%- generation %}{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content | trim ~ '<|im_end|>\\n' }}{%- endgeneration %}
    {%- set ns.first = false %}
{% endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}""",
    "json": "{{ bos_token }}{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_templates_mean_what_they_mean_in_transformers(name: str, tmp_path: Path) -> None:
    source = FOREIGN[name]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fitted(template="alpaca").trained, eos_token="<|endoftext|>"
    )
    for messages in (talk("1 + 1 <b>"), talk(*TURNS), talk(*TURNS[:3], system="Be  exact.\n")):
        for prompt in (False, True):
            theirs = fast.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=prompt
            )
            ours = render(source, messages, prompt=prompt, tokens={"eos_token": "<|endoftext|>"})
            assert ours == theirs


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    chat = fitted()
    folder = saved(
        chat, tmp_path / "model", eos_token="<|im_end|>", tokenizer_class="PreTrainedTokenizerFast"
    )
    (folder / "chat_template.jinja").write_text(BUILT_IN["chatml"], encoding="utf-8")
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    own = fitted(tokenizer=str(folder))
    for messages in (talk("1 + 1"), talk(*TURNS[:3], system="Be exact.")):
        theirs = fast.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert own.prompt_of(messages) == theirs
    assert encoded(own, talk(*TURNS))[0][0] == fast.apply_chat_template(talk(*TURNS))["input_ids"]


@pytest.mark.parametrize("attack", [
    "{{ messages.__class__.__mro__[1].__subclasses__() }}", "{{ ''.format.__globals__ }}", "{{ cycler.__init__.__globals__.os }}",
    "{% set ns = namespace(_x=1) %}", "{{ dict.__base__ }}", "{{ messages.append(1) }}", "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ raise_exception('no tools') }}", "{{ 1 / 0 }}", "{{ nothing.at_all }}",
])  # fmt: skip
def test_a_strangers_template_gets_nowhere(attack: str) -> None:
    try:
        written = render(attack + "{{ messages[0].content }}", talk("1"))
    except UnreadableError:
        return
    assert written == "1", "nothing came of it"


HUGE = {
    "a text doubled by ~": "{% set ns = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "by +": "{% set ns = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "by join": "{% set ns = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "by a method": "{% set ns = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set ns.s = ns.s.join(['a', 'b', 'c']) %}{% endfor %}",
    "by a block": "{% set ns = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set b %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = b %}{% endfor %}",
    "by a macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set ns.s = m(ns.s) %}{% endfor %}",
    "by replace": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "by the filter": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set ns.s = ns.s | replace('a', ns.s) %}{% endfor %}",
    "by format": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "lists": "{% set ns = namespace(s=[1, 2]) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "lists by sum": "{% set ns = namespace(s=[1, 2]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] | map('list') | sum(start=[]) %}{% endfor %}",
    "nested lists": "{% set ns = namespace(s=['abcdefgh']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "nested lists as JSON": "{% set ns = namespace(s=['abcdefgh']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
    "what a namespace shows": "{% set ns = namespace(s='abcdefgh' * 1000) %}{% for i in range(60) %}{% set ns.s = [namespace(a=ns.s), namespace(a=ns.s)] %}{% endfor %}{{ ns }}",
    "itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns ~ ns }}",
    "slices": "{% set s = 'abcdefgh' * 100000 %}{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = ns.l + [s[i:]] %}{% endfor %}",
    "letters": "{% set s = '好' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = ns.l + [s | list] %}{% endfor %}",
    "pieces": "{% set s = 'a b ' * 250000 %}{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = ns.l + [s.split()] %}{% endfor %}",
    "dictionaries": "{% set l = [(1, 2)] * 100000 %}{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = ns.l + [dict(messages[0].items())] * 1000 %}{% endfor %}",
    "a wide place": "{{ 'a' | center(1000000000) }}",
    "a wide margin": "{{ 'a\nb' | indent(1000000000) }}",
    "a wide JSON": "{{ [1, 2] | tojson(indent=1000000000) }}",
    "a wide line": "{{ 'a'.ljust(1000000000) }}",
    "a wide line by rjust": "{{ 'a'.rjust(1000000000, 'b') }}",
    "a wide line by center": "{{ 'a'.center(1000) }}",
    "many zeros": "{{ '1'.zfill(1000000000) }}",
    "a width of many bits": "{{ 'a'.ljust(2 ** 64 * 2 ** 64) }}",
    "a width by way of attr": "{{ ('a' | attr('zfill'))(1000000000) }}",
    "a width that is unpacked": "{{ 'a'.ljust(*[1000000000]) }}",
    "wide lines without end": "{% set ns = namespace(l=[]) %}{% for a in range(1000) %}{% for b in range(1000) %}{% set ns.l = ['a'.ljust(999)] %}{% endfor %}{% endfor %}",
    "wide lines that are kept": "{% set ns = namespace(s='') %}{% for a in range(1000) %}{% for b in range(1000) %}{% set ns.s = ns.s ~ 'a'.zfill(999) %}{% endfor %}{% endfor %}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide number by the filter": "{{ '%1000000000d' | format(1) }}",
    "a width that is an argument": "{{ '%*d' % (1000000000, 1) }}",
    "a wide number by the method": "{{ '{:1000000000}'.format(1) }}",
    "a width inside a place": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a wide year": "{{ strftime_now('%1000000000Y') }}",
    "what is written": "{% set s = 'abcdefgh' * 100000 %}{% for i in range(1000) %}{{ s }}{% endfor %}",
    "lists that are written": "{% set l = ['abcdefgh' * 1000] * 1000 %}{% for i in range(1000) %}{{ l }}{% endfor %}",
    "loops in loops": "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop that calls itself": "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "numbers": "{% set ns = namespace(n=3) %}{% for i in range(500) %}{% set ns.n = ns.n + ns.n %}{% endfor %}",
    "numbers by minus": "{% set ns = namespace(n=3) %}{% for i in range(500) %}{% set ns.n = ns.n - (0 - ns.n) %}{% endfor %}",
    "searches": "{% set s = 'a' * 1000000 %}{% for a in range(1000) %}{% if ('a' * 500 + 'b') in s %}{% endif %}{% endfor %}",
    "comparisons": "{% set s = 'a' * 1000000 %}{% set u = 'a' * 1000000 %}{% for a in range(1000) %}{% if s == u %}{% endif %}{% endfor %}",
    "tests": "{% set s = 'a' * 1000000 %}{% set u = 'a' * 1000000 %}{% for a in range(1000) %}{% if s is eq(u) %}{% endif %}{% endfor %}",
    "a sum of lists": "{{ ([[1]] * 40000) | sum(start=[]) | length }}",
    "sums of products": "{% for a in range(1000) %}{% for b in range(1000) %}{% set c = 'a' * 1000000 %}{% endfor %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("attack", HUGE)
def test_a_strangers_template_can_neither_fill_the_memory_nor_loop_for_ever(attack: str) -> None:
    render(BUILT_IN["chatml"], talk("1"))
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(UnreadableError, match="the template refuses it: ") as error:
            render(HUGE[attack], talk("1"))
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 60
    assert len(str(error.value)) < 120
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "padded",
    [
        "'7'.zfill(3)",
        "'ab'.ljust(5, '.')",
        "'ab'.rjust(5)",
        "'ab'.center(7, '*')",
        "'ab'.ljust(-4)",
        "'a'.ljust(999)",
    ],
)
def test_texts_are_padded_as_in_python(padded: str) -> None:
    assert render(f"{{{{ {padded} }}}}", talk("1")) == eval(padded)


def test_a_width_that_is_no_number_is_the_templates_fault() -> None:
    with pytest.raises(UnreadableError):
        render("{{ 'a'.ljust('wide') }}", talk("1"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "a" * 300_000,
    ],
)
def test_a_template_that_cannot_be_compiled_is_one_sentence(source: str) -> None:
    with pytest.raises(DataError, match=r"the chat template (is nested too deeply|has 300,000 characters)"):
        render(source, talk("1"))


def test_a_long_conversation_may_be_written_in_any_way() -> None:
    """What templates do with texts, on a megabyte of them."""
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}{% set c = m.content | trim %}"
        "{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% set ns.text = ns.text ~ m['role'] + ': ' + c.replace('a', 'bb')[:100] ~ '\n' %}{{ c }}{% endfor %}{{ ns.text }}"
        "{{ messages | map(attribute='content') | join('; ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ messages | tojson(indent=4) }}{{ '%s' | format('x') }}{{ '{0}!'.format('y') }}{{ messages[::-1][0].content[:3] }}"
    )
    messages = talk(*("word </think> a " * 700 for _ in range(100)))
    assert len(render(source, messages)) > 2e6


def test_templates_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    def using(source: str) -> Chat:
        path = tmp_path / "t.jinja"
        path.write_text(source, encoding="utf-8")
        return fitted(template=str(path))

    with pytest.raises(DataError, match=r"is no Jinja \(line 1"):
        using("{% for m in messages %}")
    with pytest.raises(DataError, match="never learn to stop"):
        using("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    with pytest.raises(DataError, match=r"cannot write a question and its answer: .*only tools"):
        using("{{ raise_exception('only tools') }}")
    with pytest.raises(DataError, match=r"opens an answer with .*<think>'"):
        using("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}")  # fmt: skip
    with pytest.raises(DataError, match=r"neither one of chatml, .* nor a file.*did you mean 'chatml'"):
        fitted(template="chatmll")


def test_a_template_with_a_date_stays_as_it_was_fitted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "t.jinja").write_text(FOREIGN["lines"], encoding="utf-8")
    chat = fitted(template=str(tmp_path / "t.jinja"))
    assert chat._day is not None
    chat._day = "2001-01-01"
    again = Chat.model_validate({k: v for k, v in chat.model_dump().items() if k != "type"})
    again.restore(json.loads(json.dumps(chat.state())))
    ((ids, _),) = encoded(again, talk("1", "2"))
    assert "helpful. 2001" in again.decode_ids(ids)
    assert "helpful. 2001" not in again.decode_ids(again.prompt_of(talk("1"))), "a prompt is of today"


# --- tokenizers -------------------------------------------------------------------------------------------


def test_a_tokenizers_own_template_is_taken_and_kept(tmp_path: Path) -> None:
    own = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    folder = saved(fitted(template="plain"), tmp_path / "m", eos_token="<|endoftext|>", chat_template=own)
    chat = fitted(tokenizer=str(folder))
    assert chat.chat_template == own
    assert encoded(chat, talk("1", "2"))[0][1] == [0, 0, 1, 1]
    other = fitted(tokenizer=str(folder), template="plain")
    assert other.chat_template == BUILT_IN["plain"]
    again = Chat.model_validate(
        {k: v for k, v in chat.model_dump().items() if k not in ("type", "tokenizer")}
    )
    again.restore(json.loads(json.dumps(chat.state())))
    assert (again.chat_template, again.end_ids, again.end_id) == (own, chat.end_ids, chat.end_id)
    assert set(map(str, chat.files())) == {
        str(folder / name) for name in ("tokenizer.json", "tokenizer_config.json")
    }


def test_a_tokenizer_without_the_tokens_of_a_template_refuses(tmp_path: Path) -> None:
    text = Text(tokens="bpe", lowercase=False, end=True)
    text.update(pl.Series(TURNS))
    text.finish()
    (tmp_path / "tokenizer.json").write_text(text.trained.to_str(), encoding="utf-8")
    with pytest.raises(DataError, match=r"has no '<\|im_start\|>', .* take template: plain or alpaca"):
        fitted(tokenizer=str(tmp_path))
    chat = fitted(tokenizer=str(tmp_path), template="plain")
    assert chat.trained.get_vocab_size() == text.trained.get_vocab_size(), "no row of the table is added"
    assert chat.end_ids == {text.end_id}
    plain = Text(tokens="bpe", lowercase=False)
    plain.update(pl.Series(TURNS))
    plain.finish()
    (tmp_path / "tokenizer.json").write_text(plain.trained.to_str(), encoding="utf-8")
    with pytest.raises(DataError, match="names no end-of-text token"):
        fitted(tokenizer=str(tmp_path), template="plain")


def test_the_end_of_a_turn_becomes_the_end_of_a_text_unless_the_template_asks_for_that(
    tmp_path: Path,
) -> None:
    trained = fitted()
    trained.trained.add_special_tokens(["<|endoftext|>"])
    folder = saved(
        trained, tmp_path / "m", eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=BUILT_IN["chatml"]
    )  # fmt: skip
    chat = fitted(tokenizer=str(folder))
    turn, text = (chat.trained.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>"))
    assert chat.end_id == turn, "what is exported stops there too"
    assert chat.end_ids == {turn, text}
    plain = fitted(tokenizer=str(folder), template="plain")
    assert plain.end_id == text
    assert plain.end_ids == {text}


def test_an_end_that_is_also_the_filler_is_learnt(tmp_path: Path) -> None:
    """Where batches are padded, masking the filler masks the end, and models never stop; nothing is padded here."""
    folder = saved(
        fitted(template="plain"), tmp_path / "m", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    chat = fitted(tokenizer=str(folder), template="plain")
    assert chat.pad_id == chat.end_id
    for ids, answer in encoded(chat, talk("1", "2"), talk(*TURNS)):
        assert all(mine for i, mine in zip(ids, answer, strict=True) if i == chat.end_id)
        assert chat.end_id in ids


def test_a_fitted_text_becomes_a_chat(tmp_path: Path) -> None:
    folder = saved(fitted(), tmp_path / "m", eos_token="<|im_end|>", chat_template=BUILT_IN["chatml"])
    text = Text(tokenizer=str(folder), lowercase=False)
    text.finish()
    chat = Chat.of(text)
    assert encoded(chat, talk(*TURNS)) == encoded(fitted(tokenizer=str(folder)), talk(*TURNS))
    assert text.chat_template == BUILT_IN["chatml"]
    assert text.end_id == chat.end_id


def test_options_of_plain_texts_are_refused_and_never_suggested() -> None:
    for key, value in (("special", True), ("end", True), ("like", "other")):
        with pytest.raises(ValueError, match=f"{key} is for plain texts"):
            Section("processors").parse({"type": "chat", key: value})
    assert {"special", "end"} <= Chat().model_fields_set


def test_special_tokens_are_read_off_a_template() -> None:
    assert special_tokens("{{ '<|a|>' + '<|b c|>' + '<|' + m.role + '|>' + '<|a|>' + '<|d_1|>' }}") == [
        "<|a|>",
        "<|d_1|>",
    ]


# --- prompts ----------------------------------------------------------------------------------------------


def test_prompts() -> None:
    chat = fitted()
    prompt = chat.prompt_of(talk("1 + 1?"))
    assert chat.decode_ids(prompt, skip_special=False).endswith("1 + 1?<|im_end|>\n<|im_start|>assistant\n")
    assert chat.prompt_of(json.dumps(talk("1 + 1?"))) == prompt
    assert chat.prompt_of("1 + 1?") == prompt, "a plain text is a user's message"
    assert chat.prompt_ids(json.dumps(talk("1 + 1?", "2"))) == prompt, (
        "the answer of a row is what is asked for"
    )
    with pytest.raises(DataError, match="ends with an answer"):
        chat.prompt_of(talk("1", "2"))
    with pytest.raises(DataError, match="a role 'narrator'"):
        chat.prompt_of([{"role": "narrator", "content": "x"}])
    with pytest.raises(DataError, match="a message without text"):
        chat.prompt_ids("")
