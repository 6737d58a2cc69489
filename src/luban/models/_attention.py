"""Attention within each row of a flat batch: nothing is padded that need not be, and no row sees another.

Rows are put in order of their length. Rows of equal length are a slice of the flat sequence, which reshapes into a rectangle
without a copy; rows of nearly equal length share a small rectangle with a mask.

::

    lengths   7 7 7 6   |   3 3   |   1
              mask      |  slice  | slice
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.data.ragged import Ragged
from luban.models._layers import dropout as drop

__all__ = ["Plan", "attend", "plan"]

FILL = 0.75
"""Rows share a rectangle if none is shorter than this part of the longest: at most a quarter of it is padding."""
FEW = 4
"""Fewer rows of one length than this do not get a call of their own: a call costs as much as a short row."""


@dataclass(frozen=True)
class Group:
    """Rows that attend in one call: `start` to `stop` of the sorted sequence, `rows` of at most `longest` positions.

    `places` (stop - start,) says where each position lies in the rectangle, and `mask` (rows, 1, 1, longest) which places are
    taken; both are None where all rows have the same length.
    """

    start: int
    stop: int
    rows: int
    longest: int
    places: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True)
class Plan:
    """How a batch attends; made once, used by every layer.

    Attributes:
        order: sorted place → place in the batch, (T,).
        back: place in the batch → sorted place, (T,).
        groups: the calls.
    """

    order: Tensor
    back: Tensor
    groups: tuple[Group, ...]


def plan(rows: Ragged) -> Plan:
    """Plan the attention of a batch of sequences (its values are not looked at)."""
    device = rows.offsets.device
    lengths = rows.lengths
    by_length = lengths.argsort(descending=True, stable=True)
    first = torch.empty_like(lengths)  # where each row begins in the sorted sequence
    first[by_length] = F.pad(lengths[by_length].cumsum(0)[:-1], (1, 0))
    back = first[rows.rows] + rows.positions
    groups: list[Group] = []
    start = 0
    for members in _groups(
        [length for length in lengths[by_length].tolist() if length], device.type != "cpu"
    ):
        total, longest = sum(members), members[0]
        places = mask = None
        if members[-1] != longest:
            mask = (
                torch.arange(longest, device=device) < torch.tensor(members, device=device)[:, None]
            )  # (N, L)
            places = mask.flatten().nonzero().squeeze(1)
            mask = mask[:, None, None]
        groups.append(Group(start, start + total, len(members), longest, places, mask))
        start += total
    return Plan(back.argsort(), back, tuple(groups))


def _groups(lengths: list[int], one: bool) -> list[list[int]]:
    """Split falling lengths into the rows of each call; `one` call for all where calls cost more than padding (a GPU)."""
    if one:
        return [lengths] if lengths else []
    result: list[list[int]] = []
    mixed = False  # may the last group take rows of another length?
    for length, same in groupby(lengths):
        members = list(same)
        if len(members) >= FEW:
            result.append(members)
            mixed = False
        elif mixed and length >= FILL * result[-1][0]:
            result[-1] += members
        else:
            result.append(members)
            mixed = True
    return result


def attend(query: Tensor, key: Tensor, value: Tensor, how: Plan, dropout: float = 0.0) -> Tensor:
    """Return ``softmax(q kᵀ / √d) v`` within each row.

    Args:
        query, key, value: (T, heads, d), in the order of the plan.
        how: the plan.
        dropout: probability with which an attention weight is dropped.

    Returns:
        (T, heads · d)
    """
    parts: list[Tensor] = []
    for group in how.groups:
        q, k, v = (
            _rectangle(x[group.start : group.stop], group) for x in (query, key, value)
        )  # (N, heads, L, d)
        if dropout:
            scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
            if group.mask is not None:
                scores = scores.masked_fill(~group.mask, -torch.inf)
            out = drop(scores.softmax(3), dropout) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        flat = out.transpose(1, 2).flatten(0, 1).flatten(1)  # (N L, heads d)
        parts.append(flat if group.places is None else flat.index_select(0, group.places))
    return torch.cat(parts) if parts else query.flatten(1)


def _rectangle(x: Tensor, group: Group) -> Tensor:
    """(positions, heads, d) to (N, heads, L, d)."""
    if group.places is not None:
        x = x.new_zeros(group.rows * group.longest, *x.shape[1:]).index_copy(0, group.places, x)
    return x.view(group.rows, group.longest, *x.shape[1:]).transpose(1, 2)
