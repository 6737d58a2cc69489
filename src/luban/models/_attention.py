"""Attention within each row of a flat batch: nothing is padded that need not be, and no row sees another.

Three paths compute the same thing. Luban's own kernel (`_kernels`) reads the flat sequence as it lies, on a CPU that has a
compiler; PyTorch's variable-length attention does so on a GPU in half precision; everything else goes through rectangles.
There, rows are put in order of their length, and neighbours of like lengths share one call: a rectangle with a mask, or,
where their lengths are equal, a slice of the flat sequence that reshapes into a rectangle without a copy.

::

    lengths   200 190 160   |   80 80
              mask          |   slice
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from luban.data.ragged import Ragged
from luban.models import _kernels
from luban.models._layers import dropout as drop

__all__ = ["Plan", "attend", "plan"]

FILL, SLACK = 0.75, 16
"""A row joins the rectangle of longer ones if it has this part of the longest's positions, or lacks at most so many: the
first bounds what long rows waste, the second saves calls for short ones. On a CPU, forward and backward, 32 rows of 10 to
256 tokens take 0.56 of the time of one padded call, and rows of 10 to 34 tokens 0.97 (12 heads of 32)."""


@dataclass(frozen=True, eq=False)
class _Side:
    """The queries, or the keys, of the rows of a group: `rows` of at most `longest`, `total` in all.

    `places` (total,) says where each lies in the rectangle; None where the flat sequence is the rectangle already.
    """

    rows: int
    longest: int
    total: int
    places: Tensor | None

    def rectangle(self, x: Tensor) -> Tensor:
        """(total, heads, d) to (rows, heads, longest, d), zeros where nothing is."""
        if self.places is not None:
            x = x.new_zeros(self.rows * self.longest, *x.shape[1:]).index_copy(0, self.places, x)
        return x.view(self.rows, self.longest, *x.shape[1:]).transpose(1, 2)

    def flat(self, x: Tensor) -> Tensor:
        """(rows, heads, longest, d) to (total, heads · d)."""
        x = x.transpose(1, 2).flatten(0, 1).flatten(1)
        return x if self.places is None else x.index_select(0, self.places)


@dataclass(frozen=True, eq=False)
class _Group:
    """Neighbouring rows that attend in one call.

    `mask` (rows or 1, 1, queries or 1, keys) is true where a query sees a key. None means that it sees all of them, or,
    if `causal`, those up to its own place.
    """

    queries: _Side
    keys: _Side
    mask: Tensor | None
    causal: bool

    @property
    def rows(self) -> int:
        """How many rows share the call."""
        return self.queries.rows

    @property
    def longest(self) -> int:
        """How many queries the longest of them has."""
        return self.queries.longest


@dataclass(frozen=True, eq=False)
class Plan:
    """How a batch attends; made once a batch, used by every layer.

    Attributes:
        order: place in the plan → place in the batch, (T,); None where the batch order is kept.
        back: place in the batch → place in the plan, (T,); None where the batch order is kept.
        queries: where the queries of each row begin, in the order of the plan, and the end of the last, int64, (B + 1,).
        keys: the same of the keys.
        longest: queries of the row that has most, and keys of the row that has most.
        causal: whether a query sees only the keys up to its own place, counted from the end of the row.
        pairs: how many (query, key) pairs the batch has, seen or not: what the arithmetic is proportional to.
        groups: the calls of the path through rectangles.
    """

    order: Tensor | None
    back: Tensor | None
    queries: Tensor
    keys: Tensor
    longest: tuple[int, int]
    causal: bool
    pairs: int
    groups: tuple[_Group, ...]

    def enter(self, x: Tensor) -> Tensor:
        """Bring (T, ...) from the order of the batch into that of the plan."""
        return x if self.order is None else x.index_select(0, self.order)

    def leave(self, x: Tensor) -> Tensor:
        """Bring (T, ...) from the order of the plan into that of the batch."""
        return x if self.back is None else x.index_select(0, self.back)

    def native(self, scale: float, dropout: float = 0.0) -> _kernels.Rows:
        """Return the rows as Luban's own kernel takes them."""
        return _kernels.Rows(self.queries, self.keys, self.longest, self.causal, scale, dropout)


def plan(rows: Ragged, *, keys: Ragged | None = None, causal: bool = False) -> Plan:
    """Plan the attention of a batch of sequences; only offsets are looked at.

    Args:
        rows: the queries.
        keys: the keys, row for row, where they differ from the queries: another sequence (cross attention), or the same with
            what a cache holds before it. Such a plan keeps the order of the batch, for queries, keys and values alike.
        causal: of `k` keys, query `i` of `q` sees the first ``k - q + i + 1``. The last query thereby sees all of them, which
            is right with and without a cache.

    Example:
        >>> rows = Ragged.from_rows([torch.zeros(2), torch.zeros(3)])
        >>> plan(rows).order, plan(rows, keys=rows).order
        (tensor([2, 3, 4, 0, 1]), None)
    """
    offsets, device = rows.offsets, rows.offsets.device
    if keys is not None:
        sizes = list(zip(rows.lengths.tolist(), keys.lengths.tolist(), strict=True))
        parts = [sizes] if sizes and device.type != "cpu" else _runs(sizes)
        return _plan(None, None, offsets, keys.offsets, parts, causal)
    lengths = rows.lengths
    by_length = lengths.argsort(descending=True, stable=True)
    falling = lengths[by_length]
    places = F.pad(falling.cumsum(0), (1, 0))  # offsets in the order of the plan
    total = int(places[-1])
    order = torch.repeat_interleave(offsets[:-1][by_length] - places[:-1], falling, output_size=total)
    order += torch.arange(total, device=device)
    members = _groups([length for length in falling.tolist() if length], device.type != "cpu")
    groups = [[(length, length) for length in group] for group in members]
    return _plan(order, order.argsort(), places, places, groups, causal)


def _plan(
    order: Tensor | None,
    back: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    parts: Sequence[Sequence[tuple[int, int]]],
    causal: bool,
) -> Plan:
    sizes = [size for part in parts for size in part]
    longest = max((q for q, _ in sizes), default=0), max((k for _, k in sizes), default=0)
    groups = tuple(_group(part, causal, queries.device) for part in parts)
    return Plan(order, back, queries, keys, longest, causal, sum(q * k for q, k in sizes), groups)


def _groups(lengths: list[int], one: bool) -> list[list[int]]:
    """Split falling lengths into the rows of each call; `one` call for all where calls cost more than padding (a GPU)."""
    if one:
        return [lengths] if lengths else []
    result: list[list[int]] = []
    for length in lengths:
        if result and _joins(length, result[-1][0]):
            result[-1].append(length)
        else:
            result.append([length])
    return result


def _joins(length: int, longest: int) -> bool:
    return length >= min(FILL * longest, longest - SLACK)


def _runs(sizes: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Split rows of (queries, keys) into neighbours that share a call, in the order of the batch.

    Where rows have a single query each, as when a text is continued, copying their keys into a rectangle would cost more
    than attending: only equal ones share.
    """
    single = all(q <= 1 for q, _ in sizes)
    result: list[list[tuple[int, int]]] = []
    for size in sizes:
        last = result[-1] if result else []
        if last and (
            size == last[0]
            or (
                not single
                and all(
                    _joins(min(own), max(own)) for own in zip(*last, size, strict=True)
                )  # of the queries, then of the keys
            )
        ):
            last.append(size)
        else:
            result.append([size])
    return result


def _group(sizes: Sequence[tuple[int, int]], causal: bool, device: torch.device) -> _Group:
    queries, keys = (_side(list(lengths), device) for lengths in zip(*sizes, strict=True))
    if causal and all(q == k for q, k in sizes):
        # A query sees nothing beyond its own place, so what pads the keys is hidden without a mask.
        return _Group(queries, keys, None, True)
    ragged = sizes if queries.places is not None or keys.places is not None else sizes[:1]
    q, k = torch.tensor(ragged).view(-1, 2, 1, 1, 1).unbind(1)  # (N, 1, 1, 1) each
    key = torch.arange(keys.longest)
    if causal and queries.longest > 1:
        mask = key < k - q + 1 + torch.arange(queries.longest)[:, None]  # (N, 1, Q, K)
    elif keys.places is not None:
        mask = key < k  # (N, 1, 1, K)
    else:
        return _Group(queries, keys, None, False)
    return _Group(queries, keys, mask.to(device, non_blocking=True), False)


def _side(lengths: list[int], device: torch.device) -> _Side:
    longest, total = max(lengths), sum(lengths)
    places = None
    if total != longest * len(lengths):
        taken = torch.arange(longest) < torch.tensor(lengths)[:, None]  # (N, L)
        places = taken.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
    return _Side(len(lengths), longest, total, places)


def attend(
    query: Tensor, key: Tensor, value: Tensor, how: Plan, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Return ``softmax(scale · q kᵀ) v`` within each row (Vaswani et al., 2017).

    Args:
        query: (T, heads, d), in the order of the plan.
        key, value: (S, key heads, d), in the order of the plan. Neighbouring heads of the queries share a head of the keys
            where there are fewer of these (grouped queries; Ainslie et al., 2023).
        how: the plan.
        dropout: probability with which an attention weight is dropped.
        scale: factor of the scores, ``1 / √d`` if None.

    Returns:
        (T, heads · d); zeros for a query that sees no key.
    """
    if has_torch_function((query, key, value)):
        # One function to who counts or traces functions, whatever the path: `how.pairs` is all that a count needs.
        out: Tensor = handle_torch_function(
            attend, (query, key, value), query, key, value, how, dropout=dropout, scale=scale
        )
        return out
    scale = 1 / math.sqrt(query.shape[2]) if scale is None else scale
    if query.is_cuda and not dropout and query.dtype in (torch.float16, torch.bfloat16):
        flash = _flash(query.device, query.shape[1] != key.shape[1])
        if flash is not None:
            return flash(query, key, value, how, scale)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and _kernels.in_use() == "native":
        # The kernel works in fp32. Bringing three tensors there and one back costs far less than what it saves.
        wide = attend(query.float(), key.float(), value.float(), how, dropout, scale)
        return wide.to(query.dtype)
    if _native(query, key, value, how):
        return _kernels.attention(query, key, value, how.native(scale, dropout))
    return _by_rectangles(query, key, value, how, dropout, scale)


def _native(query: Tensor, key: Tensor, value: Tensor, how: Plan) -> bool:
    """Return whether Luban's own kernel can attend, and is the quicker one.

    Measured on a Zen 5 core, it takes 0.1 to 0.7 of the rectangles' time, forward and backward, for rows of 10 to 2048 tokens:
    less, the longer they are and with dropout. Only where a text is continued by one token a step are plain calls up to 1.7 times quicker: the kernel
    rearranges the keys, which pays if several queries read them.
    """
    continued = how.longest[0] <= 1 and not (
        torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    )
    return (
        not continued
        and query.shape[2] == value.shape[2] <= _kernels.WIDEST
        and _kernels.useful(query, key, value)
    )


# --- through rectangles -------------------------------------------------------------------------------------


def _by_rectangles(
    query: Tensor, key: Tensor, value: Tensor, how: Plan, dropout: float, scale: float
) -> Tensor:
    # Split, not sliced: the gradients of slices would each be as large as the whole.
    queries = torch.split(query, [group.queries.total for group in how.groups])
    keys, values = (torch.split(x, [group.keys.total for group in how.groups]) for x in (key, value))
    parts: list[Tensor] = []
    for group, q, k, v in zip(how.groups, queries, keys, values, strict=True):
        if not len(q):
            continue
        if not len(k):
            parts.append(0 * q.flatten(1))  # zeros that a gradient can pass through
            continue
        rectangles = group.queries.rectangle(q), group.keys.rectangle(k), group.keys.rectangle(v)
        if dropout:
            out = _weighted(*rectangles, group, dropout, scale)
        else:
            out = F.scaled_dot_product_attention(
                *rectangles,
                attn_mask=group.mask,
                is_causal=group.causal,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        parts.append(group.queries.flat(out))
    return torch.cat(parts) if parts else query.flatten(1)


def _weighted(q: Tensor, k: Tensor, v: Tensor, group: _Group, dropout: float, scale: float) -> Tensor:
    """Attend with dropout of the weights: written out, because Luban's dropout is the cheaper one on a CPU."""
    if shared := q.shape[1] // k.shape[1] - 1:
        k, v = (x.repeat_interleave(shared + 1, 1) for x in (k, v))
    scores = q * scale @ k.transpose(2, 3)  # (N, heads, Q, K)
    mask = scores.new_ones(scores.shape[2:], dtype=torch.bool).tril() if group.causal else group.mask
    if mask is None:
        return drop(scores.softmax(3), dropout) @ v
    # The lowest number, not -inf, and zeros afterwards: a query that sees nothing gives zeros, and no NaN.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(3).masked_fill(~mask, 0.0)
    return drop(weights, dropout) @ v


# --- on a GPU, in half precision ------------------------------------------------------------------------------


@functools.cache
def _flash(
    device: torch.device, grouped: bool
) -> Callable[[Tensor, Tensor, Tensor, Plan, float], Tensor] | None:
    """Return attention over flat sequences if this PyTorch and this device have it (Dao et al., 2022)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # Its first release had neither windows (now the way to be causal) nor a scale, and grouped queries came later still.
    known = inspect.signature(varlen_attn).parameters
    if not {"window_size", "scale", *(["enable_gqa"] if grouped else [])} <= known.keys():
        return None
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    varlen: Callable[..., Any] = functools.partial(varlen_attn, enable_gqa=True) if grouped else varlen_attn

    def attention(query: Tensor, key: Tensor, value: Tensor, how: Plan, scale: float) -> Tensor:
        window = (-1, 0) if how.causal else (-1, -1)
        offsets = (how.queries.int(), how.keys.int())
        out: Tensor = varlen(query, key, value, *offsets, *how.longest, scale=scale, window_size=window)
        return out.flatten(1)

    return attention
