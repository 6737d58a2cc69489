"""Luban's own pass over one token a row says what the modules say, in fp32 and in int8."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from generation_cases import END, FAMILIES, VOCABULARY, Pair, decode, ours
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from luban.data.ragged import Ragged
from luban.errors import LubanError, RecipeError
from luban.generation.engine import generate
from luban.generation.int8 import to_int8
from luban.generation.options import Generation
from luban.generation.reader import Reader
from luban.generation.score import score
from luban.models import _kernels
from luban.models._language import encoder_of
from luban.models._step import Int8Linear, Stepper, rounded


@pytest.fixture
def native() -> Iterator[None]:
    before = _kernels.in_use()
    try:
        _kernels.use("native")
    except LubanError as error:
        pytest.skip(str(error))
    yield
    _kernels.use(before)


def stepper(module: nn.Module) -> Stepper | None:
    encoder = encoder_of(module)
    assert encoder.language is not None
    with torch.no_grad():
        return Stepper.of(encoder.core, encoder.language)


def logits(module: nn.Module, texts: list[list[int]]) -> torch.Tensor:
    """Of what follows each text."""
    with torch.no_grad():
        rows = [{"text.ids": Ragged.from_rows([torch.tensor(text)])} for text in texts]
        return torch.stack([module(row)["text.tokens"].logits()[-1] for row in rows])


def stepped(module: nn.Module, texts: list[list[int]], tokens: list[list[int]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        reader = Reader(module, len(texts), 4)
        assert reader.decoding.stepper is not None
        reader.read(texts)
        return [reader.read_one(torch.tensor(step)) for step in tokens]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_the_same_logits_in_fp32(kind: str, rows: int, pair: Pair) -> None:
    _, module = pair(kind)
    texts = [list(range(5, 6 + 3 * row)) for row in range(rows)]
    tokens = [[(7 * row + step) % VOCABULARY for row in range(rows)] for step in range(6)]
    for step, got in enumerate(stepped(module, texts, tokens)):
        whole = [text + [one[row] for one in tokens[: step + 1]] for row, text in enumerate(texts)]
        torch.testing.assert_close(got, logits(module, whole), atol=1e-5, rtol=1e-5)


# Widths that fill no vector, one head of keys for many of queries, every activation, no tied weights.
SHAPES: list[dict[str, Any]] = [
    {"hidden_size": 36, "heads": 6, "kv_heads": 1, "intermediate": 50, "tied": False},
    {"hidden_size": 24, "heads": 2, "kv_heads": 2, "head_size": 20, "activation": "gelu"},
    {"hidden_size": 32, "heads": 4, "kv_heads": 2, "activation": "gelu_tanh"},
    {"hidden_size": 32, "heads": 4, "kv_heads": 2, "activation": "relu", "attention_bias": True},
    {"hidden_size": 32, "heads": 4, "kv_heads": 2, "rope_scaling": {"type": "linear", "factor": 3.0}},
]


def drawn(**options: Any) -> nn.Module:
    module = ours("qwen3", layers=2, **options)
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return module


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_activations(shape: dict[str, Any]) -> None:
    module = drawn(**shape)
    got = stepped(module, [[5, 6, 7], [8]], [[9, 10]])[0]
    torch.testing.assert_close(got, logits(module, [[5, 6, 7, 9], [8, 10]]), atol=1e-4, rtol=1e-4)


def plain(module: nn.Module) -> nn.Module:
    """The module with weights that have been rounded, but stand in fp32."""
    result = copy.deepcopy(module)
    encoder = encoder_of(result)
    assert encoder.language is not None
    matrices = [layer.weight for layer in encoder.core.layers.modules() if isinstance(layer, nn.Linear)]
    matrices.append(encoder.core.embedding.tokens.weight)
    matrices += [] if encoder.language.weight is None else [encoder.language.weight]
    with torch.no_grad():
        for weight in matrices:
            values, scale = rounded(weight)
            weight.copy_(values.float() * scale[:, None])
    return result


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("kind", [*FAMILIES, "untied"])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_same_logits_in_int8(kind: str, rows: int, pair: Pair) -> None:
    module = drawn(**SHAPES[0]) if kind == "untied" else pair(kind)[1]
    wanted, got = plain(module), to_int8(copy.deepcopy(module))
    texts = [list(range(5, 6 + 3 * row)) for row in range(rows)]
    tokens = [[(7 * row + step) % VOCABULARY for row in range(rows)] for step in range(3)]
    for step, mine in enumerate(stepped(got, texts, tokens)):
        whole = [text + [one[row] for one in tokens[: step + 1]] for row, text in enumerate(texts)]
        torch.testing.assert_close(mine, logits(wanted, whole), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(got, texts), logits(wanted, texts), atol=1e-4, rtol=1e-4)
    answers = [[7], [9, 4, 5]]
    torch.testing.assert_close(
        score(got, texts, answers), score(wanted, texts, answers), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("which", ["torch", "native"])
def test_texts_in_int8(which: Any, pair: Pair, prompts: list[list[int]]) -> None:
    before = _kernels.in_use()
    try:
        _kernels.use(which)
    except LubanError as error:
        pytest.skip(str(error))
    try:
        _, module = pair("llama")
        options = Generation(max_tokens=20)
        got, wanted = (
            generate(one, prompts, options, end={END}, decode=decode)
            for one in (to_int8(copy.deepcopy(module)), plain(module))
        )
    finally:
        _kernels.use(before)
    assert [one.ids for one in got] == [one.ids for one in wanted]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([1, 2, 3, 4, 5, 30, 130]),
    st.booleans(),
    st.booleans(),
)
@pytest.mark.usefixtures("native")
def test_an_int8_layer(rows: int, columns: int, batch: int, bias: bool, gradient: bool) -> None:
    torch.manual_seed(rows * 100 + columns)
    layer = nn.Linear(columns, rows, bias=bias)
    with torch.no_grad():
        layer.weight[0] = 0  # has no largest weight to be measured by
    small = Int8Linear(layer)
    values, scale = rounded(layer.weight.detach())
    assert ((values.float() * scale[:, None] - layer.weight).abs() <= scale[:, None] / 2 + 1e-7).all()
    x = torch.randn(batch, columns)
    with torch.set_grad_enabled(gradient):
        got = small(x)
    wanted = nn.functional.linear(x, values.float() * scale[:, None], layer.bias)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_int8_takes_a_quarter_of_the_memory() -> None:
    def size(module: nn.Module) -> int:
        tensors = [*module.parameters(), *module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    module = ours("llama", size="small")
    before, names = size(module), len(module.state_dict())
    assert to_int8(module) is module
    assert size(module) < 0.27 * before
    assert len(module.state_dict()) > names
    again = to_int8(ours("llama", size="small"))
    again.load_state_dict(module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(logits(again.eval(), [[5, 6]]), logits(module.eval(), [[5, 6]]))


@pytest.mark.usefixtures("native")
def test_what_another_has_changed_goes_through_the_modules(pair: Pair, prompts: list[list[int]]) -> None:
    module = copy.deepcopy(pair("llama")[1])
    block = encoder_of(module).core.layers[1]
    assert stepper(module) is not None
    hook = block.feed.register_forward_hook(lambda *_: None)
    assert stepper(module) is None
    hook.remove()

    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.5

    adapted = Adapted(32, 16, bias=False)
    adapted.weight = block.attention.v.weight
    block.attention.v = adapted
    assert stepper(module) is None
    got = generate(module, prompts, Generation(max_tokens=9), end=set(), decode=decode)
    for prompt, one in zip(prompts, got, strict=True):
        for step in (0, 3, 8):
            assert int(logits(module, [prompt + one.ids[:step]]).argmax()) == one.ids[step]
    with pytest.raises(RecipeError, match=r"1\.attention\.v is a Adapted.*merge adapters first"):
        to_int8(module)
    with pytest.raises(RecipeError, match="does not"):
        to_int8(ours("bert", size="tiny"))
    assert stepper(pair("llama")[1].double()) is None
    pair("llama")[1].float()


@pytest.mark.usefixtures("native")
def test_threads_change_nothing(pair: Pair) -> None:
    _, module = pair("qwen2")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(stepped(module, [[5, 6], [7]], [[8, 9], [10, 11]]))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
