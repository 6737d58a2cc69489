"""Texts equal to those of `transformers`, token by token; batches, streams, ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_cases import END, FAMILIES, Pair, decode, ours
from torch import nn

from luban.data.ragged import Ragged
from luban.errors import DataError, RecipeError
from luban.generation.engine import Generated, generate, stream
from luban.generation.options import Generation
from luban.generation.reader import Piece, Reader
from luban.models._language import encoder_of


def expected(model: Any, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
    return out[: out.index(END)] if END in out else out


def padded_left(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    rows = model.generate(ids, attention_mask=mask, **options)[:, longest:].tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


def ran(module: nn.Module, prompts: list[list[int]], **options: Any) -> list[Generated]:
    return generate(module, prompts, Generation(**options), end={END}, decode=decode)


@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_texts_are_those_of_transformers(kind: str, pair: Pair, prompts: list[list[int]]) -> None:
    model, module = pair(kind)
    got = [one.ids for one in ran(module, prompts, max_tokens=30)]
    how = {"max_new_tokens": 30, "do_sample": False}
    assert got == [expected(model, prompt, **how) for prompt in prompts]
    assert got == padded_left(model, prompts, **how)
    assert got == [ran(module, [prompt], max_tokens=30)[0].ids for prompt in prompts]
    assert len({len(ids) for ids in got}) > 1 or kind == "gpt2"  # some ended before others


@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_texts_with_a_repetition_penalty_are_those_of_transformers(
    kind: str, pair: Pair, prompts: list[list[int]]
) -> None:
    model, module = pair(kind)
    got = [one.ids for one in ran(module, prompts, max_tokens=30, repetition_penalty=1.3)]
    how = {"max_new_tokens": 30, "do_sample": False, "repetition_penalty": 1.3}
    assert got == [expected(model, prompt, **how) for prompt in prompts]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "search",
    [
        {"beams": 3},
        {"beams": 4, "length_penalty": 2.0},
        {"beams": 4, "length_penalty": -1.0},
        {"beams": 3, "early_stopping": True},
        {"beams": 3, "early_stopping": "never", "length_penalty": 1.5},
        {"beams": 3, "early_stopping": "never", "length_penalty": -0.5},
        {"beams": 2, "repetition_penalty": 1.3},
    ],
)
def test_searched_texts_are_those_of_transformers(
    kind: str, search: dict[str, Any], pair: Pair, prompts: list[list[int]]
) -> None:
    model, module = pair(kind)
    got = [one.ids for one in ran(module, prompts, max_tokens=14, **search)]
    how = {key.replace("beams", "num_beams"): value for key, value in search.items()}
    how |= {"max_new_tokens": 14, "do_sample": False}
    assert got == [expected(model, prompt, **how) for prompt in prompts]
    assert got == padded_left(model, prompts, **how)


# --- batches ------------------------------------------------------------------------------------------------


def test_a_drawn_text_depends_on_the_seed_and_its_place_only(pair: Pair, prompts: list[list[int]]) -> None:
    _, module = pair("llama")
    how = {"max_tokens": 20, "temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 7}
    first = ran(module, prompts, **how)
    assert [one.ids for one in first] == [one.ids for one in ran(module, prompts, **how)]
    assert ran(module, prompts[:1], **how)[0].ids == first[0].ids
    assert [one.ids for one in ran(module, prompts, **{**how, "seed": 8})] != [one.ids for one in first]
    torch.manual_seed(3)
    free = [one.ids for one in ran(module, prompts, max_tokens=20, temperature=1.5)]
    assert free != [one.ids for one in ran(module, prompts, max_tokens=20, temperature=1.5)]
    torch.manual_seed(3)
    assert free == [one.ids for one in ran(module, prompts, max_tokens=20, temperature=1.5)]


def test_log_probabilities_are_those_of_a_pass_over_the_whole_text(
    pair: Pair, prompts: list[list[int]]
) -> None:
    _, module = pair("qwen2")
    for how in ({"temperature": 1.3, "seed": 1, "repetition_penalty": 1.2}, {"beams": 3}):
        for prompt, one in zip(prompts, ran(module, prompts, max_tokens=12, **how), strict=True):
            rows = Ragged.from_rows([torch.tensor([*prompt, *one.ids])])
            with torch.no_grad():
                logits = module({"text.ids": rows})["text.tokens"].logits()
            steps = logits.log_softmax(1)[len(prompt) - 1 : -1]
            wanted = steps.gather(1, torch.tensor(one.ids)[:, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(one.logprobs), wanted, atol=1e-4, rtol=1e-4)


def test_a_module_in_training_generates_without_dropout_and_goes_on_training(
    pair: Pair, prompts: list[list[int]]
) -> None:
    module = ours("gpt2", size="tiny", layer_dropout=0.5).train()
    got = ran(module, prompts, max_tokens=5)
    assert module.training
    assert [one.ids for one in got] == [one.ids for one in ran(module.eval(), prompts, max_tokens=5)]


# --- ends and streams -----------------------------------------------------------------------------------------


def test_reasons_to_finish(pair: Pair, prompts: list[list[int]]) -> None:
    model, module = pair("llama")
    got = ran(module, prompts, max_tokens=30)
    full = [expected(model, prompt, max_new_tokens=30, do_sample=False) for prompt in prompts]
    assert [one.finish_reason for one in got] == ["length" if len(ids) == 30 else "end" for ids in full]
    assert all(one.text == decode(one.ids) for one in got)
    text = decode(full[2])
    assert len(text) > 6
    stopped = ran(module, [prompts[2]], max_tokens=30, stop=[text[3:6], "never there"])[0]
    place = text.index(text[3:6])
    assert (stopped.text, stopped.finish_reason) == (text[:place], "stop")
    assert stopped.ids == full[2][: place + 3]
    assert ran(module, [prompts[2]], max_tokens=1)[0].ids == full[2][:1]


def test_no_more_tokens_than_there_are_positions(pair: Pair) -> None:
    _, module = pair("gpt2")
    prompt = [7, 8, 9] * 20
    how = {"max_tokens": 50}
    got = generate(module, [prompt, [5]], Generation(**how), end=set(), decode=decode)
    assert [len(one.ids) for one in got] == [64 - 60 + 1, 50]
    assert got[0].finish_reason == "length"
    assert len(generate(module, [prompt], Generation(beams=2, **how), end=set(), decode=decode)[0].ids) == 5
    with pytest.raises(DataError, match="65 tokens"):
        ran(module, [[5] * 65])


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 1.0, "seed": 2}, {"beams": 2}, {"stop": ["A", "B", "Z"]}], ids=str
)
def test_pieces_make_the_text(how: dict[str, Any], pair: Pair, prompts: list[list[int]]) -> None:
    _, module = pair("qwen3")
    options = Generation(max_tokens=25, **how)
    seen: list[Piece] = []
    whole = generate(module, prompts, options, end={END}, decode=decode, on_piece=seen.append)
    pieces = list(stream(module, prompts, options, end={END}, decode=decode))
    assert pieces == seen
    for row, one in enumerate(whole):
        mine = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in mine) == one.text
        assert [piece.token for piece in mine if piece.token is not None] == one.ids
        assert [piece.finish_reason for piece in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == one.finish_reason


def test_a_stream_can_be_left(pair: Pair, prompts: list[list[int]]) -> None:
    _, module = pair("llama")
    module.train()
    pieces = stream(module, prompts, Generation(), end={END}, decode=decode)
    next(pieces)
    assert not torch.is_inference_mode_enabled()  # what the caller does between pieces is its own
    pieces.close()
    assert module.training
    module.eval()


def test_what_cannot_be_generated_is_refused(pair: Pair) -> None:
    _, module = pair("llama")
    with pytest.raises(DataError, match="prompt 1 has no token"):
        ran(module, [[5], []])
    assert ran(module, []) == []
    with pytest.raises(RecipeError, match="both directions"):
        ran(ours("bert", size="tiny"), [[5]])
    encoder = encoder_of(silent := ours("llama", size="tiny"))
    encoder.language = None
    with pytest.raises(RecipeError, match="no way from its states to tokens"):
        Reader(silent, 1, 8)
