"""Candidate answers: the probabilities of a plain pass over prompt and answer."""

from __future__ import annotations

import pytest
import torch
from generation_cases import FAMILIES, Pair

from luban.data.ragged import Ragged
from luban.errors import DataError
from luban.generation import score as scoring
from luban.generation.score import demonstrated, score

CANDIDATES = [[7], [9, 4], [7, 8, 9, 10], [11]]


def plain(module: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    rows = Ragged.from_rows([torch.tensor(prompt + answer)])
    with torch.no_grad():
        logprobs = module({"text.ids": rows})["text.tokens"].logits().log_softmax(1)
    steps = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return sum(float(logprobs[i, token]) for i, token in zip(steps, answer, strict=True))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("shared", [0, 6])
def test_log_probabilities(kind: str, shared: int, pair: Pair, prompts: list[list[int]]) -> None:
    _, module = pair(kind)
    texts = [list(range(10, 10 + shared)) + prompt for prompt in prompts]
    wanted = torch.tensor([[plain(module, text, answer) for answer in CANDIDATES] for text in texts])
    torch.testing.assert_close(score(module, texts, CANDIDATES), wanted, atol=1e-4, rtol=1e-4)
    lengths = torch.tensor([len(answer) for answer in CANDIDATES])
    got = score(module, texts, CANDIDATES, how="mean")
    torch.testing.assert_close(got, wanted / lengths, atol=1e-4, rtol=1e-4)


def test_the_same_in_parts(pair: Pair, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = pair("llama")
    whole = score(module, prompts, CANDIDATES)
    monkeypatch.setattr(scoring, "_TOKENS", 1)
    torch.testing.assert_close(score(module, prompts, CANDIDATES), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score(module, prompts[:1], CANDIDATES), whole[:1], atol=1e-5, rtol=1e-5)


def test_prompts_that_begin_alike_share_what_is_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = pair("llama")
    read: list[int] = []
    flat = scoring.Reader._flat
    monkeypatch.setattr(
        scoring.Reader, "_flat", lambda self, texts: read.append(sum(map(len, texts))) or flat(self, texts)
    )
    score(module, [[5] * 30 + [6], [5] * 30 + [7, 8], [5] * 30 + [6]], [[1], [2]])
    assert read == [30, 4]


def test_what_is_empty() -> None:
    with pytest.raises(DataError, match="candidate 1 has no token"):
        score(torch.nn.Identity(), [[1]], [[1], []])
    with pytest.raises(DataError, match="prompt 0 has no token"):
        score(torch.nn.Identity(), [[]], [[1]])
    assert score(torch.nn.Identity(), [], [[1]]).shape == (0, 1)


def test_worked_examples() -> None:
    got = demonstrated([("{a}", "x"), ("b", "y")], "c", "Q: {text}\nA: {answer}\n")
    assert got == "Q: {a}\nA: x\nQ: b\nA: y\nQ: c\nA: "
    assert demonstrated([], "c") == "c\n"
    for wrong in ("{text}", "{answer}{text}", "{text}{text}{answer}"):
        with pytest.raises(DataError, match="template"):
            demonstrated([], "c", wrong)
