"""A model with a cache says what it says without one, however the tokens come and the rows change."""

from __future__ import annotations

import pytest
import torch
from generation_cases import FAMILIES, VOCABULARY, Pair
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from luban.data.ragged import Ragged
from luban.models import _kernels
from luban.models._cache import Cache
from luban.models._core import Core, Shape
from luban.models._language import encoder_of


def states(module: nn.Module, texts: list[list[int]]) -> list[torch.Tensor]:
    core = encoder_of(module).core
    with torch.no_grad():
        return [core(Ragged.from_rows([torch.tensor(text)])) for text in texts]


@pytest.mark.parametrize("kind", FAMILIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_same_states_however_tokens_come(kind: str, data: st.DataObject, pair: Pair) -> None:
    _, module = pair(kind)
    core = encoder_of(module).core
    token = st.integers(0, VOCABULARY - 1)
    texts: list[list[int]] = [[] for _ in range(data.draw(st.integers(1, 4)))]
    cache = Cache.empty(len(texts), expected=data.draw(st.sampled_from([0, 4, 40])))
    for _ in range(data.draw(st.integers(1, 5))):
        longest = data.draw(st.sampled_from([1, 1, 5]))  # most passes read a token a row
        least = data.draw(st.sampled_from([0, 1])) if longest > 1 else 1
        new = [data.draw(st.lists(token, min_size=least, max_size=longest)) for _ in texts]
        assume(any(new))
        texts = [old + more for old, more in zip(texts, new, strict=True)]
        with torch.no_grad():
            got = core(Ragged.from_rows([torch.tensor(t, dtype=torch.int64) for t in new]), cache=cache)
        whole = zip(texts, new, strict=True)
        wanted = [states(module, [text])[0][len(text) - len(n) :] for text, n in whole if n]
        torch.testing.assert_close(got, torch.cat(wanted), atol=1e-5, rtol=1e-5)
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
        if data.draw(st.booleans()):
            cache.select(torch.tensor(rows))
            texts = [texts[row] for row in rows]
    assert cache.lengths.tolist() == [len(text) for text in texts]


@pytest.mark.parametrize("which", ["torch", "native"])
def test_reading_the_last_tokens_only(which: str, pair: Pair, prompts: list[list[int]]) -> None:
    before = _kernels.in_use()
    try:
        _kernels.use(which)  # type: ignore[arg-type]
    except Exception as error:
        pytest.skip(str(error))
    try:
        for kind in FAMILIES:
            _, module = pair(kind)
            core = encoder_of(module).core
            rows = Ragged.from_rows([torch.tensor(prompt) for prompt in prompts])
            cache = Cache.empty(len(prompts))
            with torch.no_grad():
                got = core(rows, read=rows.offsets[1:] - 1, cache=cache)
                wanted = torch.stack([one[-1] for one in states(module, prompts)])
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
                more = core(Ragged(torch.full((4,), 9), torch.arange(5)), cache=cache)
                wanted = torch.stack([one[-1] for one in states(module, [[*p, 9] for p in prompts])])
            torch.testing.assert_close(more, wanted, atol=1e-5, rtol=1e-5)
    finally:
        _kernels.use(before)


def test_a_copy_goes_its_own_way(pair: Pair) -> None:
    _, module = pair("llama")
    core = encoder_of(module).core
    cache = Cache.empty(1, expected=8)
    with torch.no_grad():
        core(Ragged.from_rows([torch.tensor([5, 6])]), cache=cache)
        other = cache.copy()
        core(Ragged.from_rows([torch.tensor([7])]), cache=other)
        got = core(Ragged.from_rows([torch.tensor([8])]), cache=cache)
    assert (cache.lengths.tolist(), other.lengths.tolist()) == ([3], [3])
    torch.testing.assert_close(got, states(module, [[5, 6, 8]])[0][-1:], atol=1e-5, rtol=1e-5)


def test_another_sequence_is_turned_into_keys_once() -> None:
    torch.manual_seed(0)
    shape = Shape(20, 2, 16, 4, 2, 4, 32, causal=True, cross=True)
    core = Core(shape).eval()
    nn.init.normal_(core.layers[0].cross.k.weight)
    memory = Ragged.from_rows([torch.randn(3, 16), torch.randn(5, 16)])
    texts = [[1, 2, 3], [4, 5]]
    calls = []
    hook = core.layers[0].cross.k.register_forward_hook(lambda *_: calls.append(1))
    cache = Cache.empty(2)
    with torch.no_grad():
        core(Ragged.from_rows([torch.tensor(t) for t in texts]), memory=memory, cache=cache)
        got = core(Ragged(torch.tensor([6, 7]), torch.arange(3)), memory=memory, cache=cache)
        assert len(calls) == 1
        cache.select(torch.tensor([1]), memory=torch.arange(3, 8))
        second = Ragged.from_rows([memory[1]])
        last = core(Ragged(torch.tensor([8]), torch.arange(2)), memory=second, cache=cache)
        assert len(calls) == 1
        hook.remove()
        wanted = [
            core(
                Ragged.from_rows([torch.tensor(text)]), memory=Ragged.from_rows([other]), cache=Cache.empty(1)
            )
            for text, other in (([1, 2, 3, 6], memory[0]), ([4, 5, 7, 8], memory[1]))
        ]
        torch.testing.assert_close(got, torch.stack([wanted[0][3], wanted[1][2]]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last, wanted[1][3:], atol=1e-5, rtol=1e-5)
