"""Attention of ragged rows against each row alone, written out: on PyTorch's path and on the kernel's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from luban import native
from luban.data.ragged import Ragged
from luban.models import _kernels
from luban.models._attention import Plan, attend, plan

LENGTHS = st.integers(0, 40) | st.sampled_from([64, 257, 300])  # 256 keys are a block of the kernel
SIZES = st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=9)
HEADS = st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 1)])
WIDTHS = st.sampled_from([3, 8, 24, 32, 64])
both_paths = pytest.mark.parametrize("path", ["torch", "native"], indirect=True)
# The fixture chooses a path for the whole test: it need not do so again for each example.
examples = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and native.compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(_kernels.NATIVE, "_chosen", None)
    _kernels.use(request.param)
    return str(request.param)


def rows_of(lengths: list[int]) -> Ragged:
    return Ragged.from_rows([torch.zeros(length) for length in lengths])


def split(sizes: list[tuple[int, int]]) -> tuple[Ragged, Ragged]:
    queries, keys = (rows_of(list(lengths)) for lengths in zip(*sizes, strict=True))
    return queries, keys


def alone(query: Tensor, key: Tensor, value: Tensor, how: Plan, scale: float | None = None) -> Tensor:
    """Attend row by row, with every product written out; tensors in the order of the plan."""
    parts = []
    shared = query.shape[1] // key.shape[1]
    ends = zip(how.queries[:-1], how.queries[1:], how.keys[:-1], how.keys[1:], strict=True)
    for first, last, low, high in ends:
        q = query[first:last].transpose(0, 1)  # (heads, Q, d)
        k, v = (x[low:high].repeat_interleave(shared, 1).transpose(0, 1) for x in (key, value))
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        if how.causal:
            seen = seen.tril(k.shape[1] - q.shape[1])
        scores = q @ k.transpose(1, 2) * (1 / math.sqrt(q.shape[2]) if scale is None else scale)
        weights = scores.exp() * seen
        out = weights / weights.sum(2, keepdim=True).clamp_min(1e-30) @ v
        parts.append(out.transpose(0, 1).flatten(1))
    return torch.cat(parts)


def tensors(
    how: Plan, heads: tuple[int, int] = (2, 2), width: int = 8, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(int(how.queries[-1]), heads[0]), *[(int(how.keys[-1]), heads[1])] * 2]
    return [torch.randn(*shape, width, dtype=dtype, requires_grad=True) for shape in shapes]


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    direction = torch.randn(out.shape, dtype=torch.float32).to(out.dtype)
    return torch.autograd.grad((out * direction).sum(), inputs, materialize_grads=True)


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    assert torch.allclose(ours, theirs, rtol=0, atol=tolerance * max(largest, 1)), (ours - theirs).abs().max()


def assert_parity(how: Plan, inputs: list[Tensor], **options: Any) -> None:
    ours, theirs = attend(*inputs, how, **options), alone(*inputs, how, **options)
    assert_near(ours, theirs)
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        assert_near(mine, expected)


# --- parity ---------------------------------------------------------------------------------------------------------


@both_paths
@examples
@example(lengths=[0], heads=(1, 1), causal=False, width=3)
@example(lengths=[1, 0, 1], heads=(2, 2), causal=True, width=8)
@example(lengths=[600, 20], heads=(2, 1), causal=True, width=32)
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=9), heads=HEADS, causal=st.booleans(), width=WIDTHS)
def test_a_text_over_itself_is_each_row_alone(
    path: str, lengths: list[int], heads: tuple[int, int], causal: bool, width: int
) -> None:
    how = plan(rows_of(lengths), causal=causal)
    assert_parity(how, tensors(how, heads, width))


@both_paths
@examples
@example(sizes=[(1, 0)], heads=(1, 1), causal=False, width=3)
@example(sizes=[(5, 2), (3, 0), (0, 4)], heads=(2, 2), causal=True, width=8)
@example(sizes=[(1, 30), (1, 30), (1, 7)], heads=(4, 2), causal=True, width=8)
@example(sizes=[(40, 600)], heads=(4, 2), causal=True, width=64)
@given(sizes=SIZES, heads=HEADS, causal=st.booleans(), width=WIDTHS)
def test_a_text_over_another_is_each_row_alone(
    path: str, sizes: list[tuple[int, int]], heads: tuple[int, int], causal: bool, width: int
) -> None:
    queries, keys = split(sizes)
    how = plan(queries, keys=keys, causal=causal)
    assert how.order is None
    assert_parity(how, tensors(how, heads, width))


@both_paths
def test_the_widest_head_views_and_a_scale_of_ones_own(path: str) -> None:
    how = plan(rows_of([33, 20, 1]), causal=True)
    torch.manual_seed(0)
    joined = torch.randn(54, 3, 2, 256, requires_grad=True)
    ours, theirs = (
        f(*joined.unbind(1), how, scale=0.02) for f in (attend, lambda *a, scale: alone(*a, scale))
    )
    assert_near(ours, theirs)
    assert_near(gradients(ours, [joined])[0], gradients(theirs, [joined])[0])


@both_paths
@pytest.mark.parametrize("causal", [False, True])
def test_double_precision_has_the_gradient_of_its_values(path: str, causal: bool) -> None:
    how = plan(rows_of([3, 1, 0, 2]), causal=causal)
    inputs = tensors(how, (2, 1), 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attend(*x, how), inputs)


@both_paths
@pytest.mark.parametrize("causal", [False, True])
def test_a_cache_changes_nothing(path: str, causal: bool) -> None:
    """Queries in two parts, the second over the keys of both, are the queries at once, if later keys are not seen."""
    whole = plan(rows_of([20]), causal=True)
    query, key, value = (x.detach() for x in tensors(whole))
    first = attend(query[:13], key[:13], value[:13], plan(rows_of([13]), causal=True))
    steps = [
        attend(query[i : i + 1], key[: i + 1], value[: i + 1], plan(rows_of([1]), keys=rows_of([i + 1]), causal=causal))
        for i in range(13, 20)
    ]  # fmt: skip
    assert_near(torch.cat([first, *steps]), attend(query, key, value, whole))


def test_a_plan_brings_rows_there_and_back() -> None:
    rows = rows_of([2, 0, 5, 3, 5])
    how, x = plan(rows), torch.arange(15)
    assert how.enter(x).tolist() == [2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 7, 8, 9, 0, 1]
    assert how.leave(how.enter(x)).equal(x)
    assert how.pairs == 4 + 25 + 9 + 25
    assert how.longest == (5, 5)
    kept = plan(rows, keys=rows)
    assert kept.enter(x) is x is kept.leave(x)


# --- dropout ------------------------------------------------------------------------------------------------------------


@both_paths
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_multiplies_weights_by_a_mask_of_the_right_mean(path: str, causal: bool) -> None:
    """With unit vectors for values, the result is the weights themselves; so the mask can be read, and used again."""
    how = plan(rows_of([32] * 12 + [9, 1]), causal=causal)
    query, key, value = tensors(how, (4, 2), 32)
    rows = torch.cat([torch.eye(n, 32) for n in [32] * 12 + [9, 1]])[:, None].expand(-1, 2, 32).contiguous()
    weights = attend(query, key, rows, how).detach()
    torch.manual_seed(5)
    factors = attend(query, key, rows, how, 0.3).detach() / weights  # (T, heads · keys); 0/0 where no key is
    kept = factors[weights > 0]
    assert ((kept == 0) | ((kept - 1 / 0.7).abs() < 1e-3)).all()
    assert abs(float((kept == 0).float().mean()) - 0.3) < 0.01
    mask = factors.nan_to_num(0.0).view(-1, 4, 32).double()

    def expected(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts, start = [], 0
        for n in [32] * 12 + [9, 1]:
            place = slice(start, start + n)
            q = query[place].transpose(0, 1)
            k, v = (x[place].repeat_interleave(2, 1).transpose(0, 1) for x in (key, value))
            scores = q @ k.transpose(1, 2) / math.sqrt(32)
            if causal:
                scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
            out = (scores.softmax(2) * mask[place].transpose(0, 1)[:, :, :n]) @ v
            parts.append(out.transpose(0, 1).flatten(1))
            start += n
        return torch.cat(parts)

    torch.manual_seed(5)
    ours = attend(query, key, value, how, 0.3)
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    theirs = expected(*exact)
    assert_near(ours, theirs.float())
    for mine, their in zip(gradients(ours, [query, key, value]), gradients(theirs, exact), strict=True):
        assert_near(mine, their.float())


@both_paths
def test_the_seed_decides_what_is_dropped(path: str) -> None:
    how = plan(rows_of([300, 20]))
    inputs = tensors(how)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return attend(*inputs, how, 0.5)

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first.equal(again)
    assert not first.equal(other)
    assert not attend(*inputs, how, 0.5).equal(other), "two layers of one step drop alike"
    for mine, repeated in zip(gradients(first, inputs), gradients(again, inputs), strict=True):
        assert mine.equal(repeated)


# --- what must not happen ------------------------------------------------------------------------------------------------


@both_paths
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("number", [3.0, math.nan, math.inf])
def test_no_row_sees_another_and_nan_shows(path: str, dropout: float, number: float) -> None:
    how = plan(rows_of([20, 18, 5]), causal=True)
    inputs = tensors(how)
    torch.manual_seed(0)
    before = attend(*inputs, how, dropout)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[20 + 4] = number  # the fifth of the second row
        x.requires_grad_()
    torch.manual_seed(0)
    after = attend(*changed, how, dropout)
    assert after[:20].equal(before[:20])
    assert after[38:].equal(before[38:])
    finite = math.isfinite(number)
    assert bool(after[24:38].isfinite().all()) == finite
    for mine, expected in zip(gradients(after, changed), gradients(before, inputs), strict=True):
        assert mine[:20].equal(expected[:20])
        assert mine[38:].equal(expected[38:])
        assert bool(mine[20:38].isfinite().all()) == finite


@both_paths
def test_large_scores_do_not_overflow(path: str) -> None:
    how = plan(rows_of([40]))
    inputs = [x.detach() * 100 for x in tensors(how)]
    softmax = (inputs[0].transpose(0, 1) @ inputs[1].permute(1, 2, 0) / math.sqrt(8)).softmax(2)
    expected = (softmax @ inputs[2].transpose(0, 1)).transpose(0, 1).flatten(1)
    assert_near(attend(*inputs, how), expected, 1e-4)


def test_the_kernel_gives_the_same_bits_with_any_number_of_threads_and_any_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if native.compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(_kernels.NATIVE, "_chosen", None)
    _kernels.use("native")
    how = plan(rows_of([300, 90, 33, 8]), causal=True)
    inputs = tensors(how, (4, 2), 24)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = attend(*inputs, how)
        results.append((out, *gradients(out, inputs)))
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(one.equal(other) for one, other in zip(result, results[0], strict=True))
    single = plan(rows_of([90]), causal=True)
    assert attend(*(x[300:390] for x in inputs), single).equal(results[0][0][300:390])


@both_paths
def test_who_counts_functions_sees_one_whatever_the_path(path: str) -> None:
    class Calls(TorchFunctionMode):
        seen: ClassVar[list[Any]] = []

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(function)
            return function(*args, **(kwargs or {}))

    how = plan(rows_of([5, 3]))
    query, key, value = tensors(how)
    with Calls():
        out = attend(query, key, value, how, scale=0.1)
    assert Calls.seen == [attend]
    assert out.equal(attend(query, key, value, how, scale=0.1))


@both_paths
def test_a_traced_graph_holds_what_attention_is_made_of(path: str) -> None:
    how = plan(rows_of([5, 3, 5]), causal=True)
    inputs = tuple(x.detach() for x in tensors(how, (4, 2)))

    class Layer(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, how)

    program = torch.export.export(Layer(), inputs)
    assert any("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes)
    assert_near(program.module()(*inputs), attend(*inputs, how))


def test_tensors_that_are_not_those_of_the_plan_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(_kernels.NATIVE, "_chosen", None)
    _kernels.use("native")
    how = plan(rows_of([4]))
    query, key, value = tensors(how)
    with pytest.raises(AssertionError, match="not those of the plan"):
        attend(query, key[:3], value[:3], how)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_a_gpu_attends_as_a_cpu_does(dtype: torch.dtype, causal: bool, crossed: bool) -> None:
    queries, keys = split([(7, 20), (64, 64), (0, 3), (1, 9)])
    made = [
        plan(queries.to(device), keys=keys.to(device) if crossed else None, causal=causal)
        for device in ("cpu", "cuda")
    ]
    inputs = [made[0].leave(x.detach()) if not crossed else x.detach() for x in tensors(made[0], (4, 2), 64)]
    here, there = (
        how.leave(attend(*(how.enter(x.to(how.queries.device)) for x in given), how)).cpu().float()
        for how, given in zip(made, (inputs, [x.to(dtype) for x in inputs]), strict=True)
    )
    assert_near(there, here, 1e-5 if dtype == torch.float32 else 2e-2)
