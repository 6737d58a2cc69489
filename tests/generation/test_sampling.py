"""Each filter against the processor of `transformers`; draws against the distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luban.generation.options import Generation
from luban.generation.sampling import Sampler, at_least_p, penalised, top_k, top_p

processors = pytest.importorskip("transformers.generation.logits_process")


def logits(seed: int, size: int, scale: float) -> torch.Tensor:
    return torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * scale


CASES = [(0, 50, 1.0), (1, 50, 8.0), (2, 3000, 0.1), (3, 3000, 3.0), (4, 2, 1.0)]
IDS = torch.zeros(3, 1, dtype=torch.int64)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("k", [1, 5, 4000])
def test_top_k(case: Any, k: int) -> None:
    x = logits(*case)
    assert torch.equal(top_k(x, k), processors.TopKLogitsWarper(k)(IDS, x))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("p", [0.01, 0.5, 0.95, 0.999])
def test_top_p(case: Any, p: float) -> None:
    x = logits(*case)
    assert torch.equal(top_p(x, p), processors.TopPLogitsWarper(p)(IDS, x))


def test_top_p_behind_another_filter() -> None:
    x = top_k(logits(5, 3000, 2.0), 20)
    assert torch.equal(top_p(x, 0.9), processors.TopPLogitsWarper(0.9)(IDS, x))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p(case: Any, p: float) -> None:
    x = logits(*case)
    assert torch.equal(at_least_p(x, p), processors.MinPLogitsWarper(p)(IDS, x))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 49), min_size=4, max_size=4), min_size=3, max_size=3),
    st.sampled_from([0.5, 1.1, 2.0]),
)
def test_repetition_penalty(seen: list[list[int]], penalty: float) -> None:
    x, ids = logits(6, 50, 3.0), torch.tensor(seen)
    mask = torch.zeros(3, 50, dtype=torch.bool).scatter(1, ids, True)
    wanted = processors.RepetitionPenaltyLogitsProcessor(penalty)(ids, x)
    assert torch.equal(penalised(x, mask, penalty), wanted)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.9, "min_p": 0.05}]
)
def test_what_is_drawn_is_distributed_as_the_filters_leave_it(options: dict[str, Any]) -> None:
    temperature, x = 0.7, logits(7, 30, 1.5)[:1]
    sampler = Sampler(Generation(temperature=temperature, seed=0, **options), [0])
    draws = 20_000
    tokens = sampler.choose(x.expand(draws, -1), [0] * draws)
    wanted = x
    wanted = processors.TemperatureLogitsWarper(temperature)(IDS[:1], wanted)
    for key, make in (
        ("top_k", processors.TopKLogitsWarper),
        ("top_p", processors.TopPLogitsWarper),
        ("min_p", processors.MinPLogitsWarper),
    ):
        wanted = make(options[key])(IDS[:1], wanted) if key in options else wanted
    probabilities = wanted.softmax(1)[0]
    counts = torch.bincount(tokens, minlength=30)
    assert not counts[probabilities == 0].any()
    spread = (probabilities * (1 - probabilities) * draws).sqrt()
    assert ((counts - probabilities * draws).abs() <= 4.5 * spread + 1e-9).all()


def test_the_largest_draw_is_no_token_beyond_the_last() -> None:
    x = torch.tensor([[0.0, 1.0, -torch.inf]])
    sampler = Sampler(Generation(temperature=1.0, seed=0), [0])
    assert int(sampler.choose(x.expand(5000, -1), [0] * 5000).max()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 3, "temperature": 0.5}, "set temperature 0, or remove beams"),
        ({"beams": 3, "stop": ["x"]}, "remove stop"),
        ({"top_p": 0.9, "seed": 1}, "top_p and seed would do nothing"),
        ({"length_penalty": 1.0}, "length_penalty would do nothing without beams"),
        ({"early_stopping": False}, "early_stopping would do nothing without beams"),
        ({"json_schema": {}, "regex": "a"}, "remove one"),
        ({"temperature": -1.0}, "greater than or equal to 0"),
        ({"top_p": 0.0}, "greater than 0"),
        ({"stop": [""]}, "at least 1 character"),
        ({"max_token": 3}, "Extra inputs"),
        ({"max_tokens": 2.0}, "valid integer"),
    ],
)
def test_impossible_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Generation(**options)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2, "top_p": 0.9, "min_p": 0.1}])
def test_any_temperature_draws_a_token_that_may_be_drawn(temperature: float, filters: dict[str, Any]) -> None:
    sampler = Sampler(Generation(temperature=temperature, seed=0, **filters), [0, 1])
    logits = torch.tensor([[50.0, -torch.inf, 60.0], [-1e30, 3.0, -torch.inf]])
    for _ in range(20):
        found = sampler.choose(logits, [0, 1])
        assert logits.gather(1, found[:, None]).isfinite().all()
        if temperature < 1:
            assert found.tolist() == [2, 1]
