"""Keys and values of the tokens that a causal model has read, so that each further token costs one token's work.

::

    layer 0    keys    (rows, key heads, capacity, d)      a row's tokens lie at 0 .. length, zeros behind
               values  (rows, key heads, capacity, d)
    layer 1    ...
    lengths    (rows,)

A pass reads new tokens in one of three ways. The first one of a batch attends over its own flat sequence, so that nothing is
padded or gathered. A pass of one token a row, which is what generating is made of, attends over the rectangles as they lie.
Any other (several tokens behind what is there) gathers the keys of each row into a flat sequence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.data.ragged import Ragged
from luban.models._attention import Plan, attend, plan

__all__ = ["Cache", "Reach"]


@dataclass(frozen=True, eq=False)
class Reach:
    """How the new tokens of one pass see what is cached.

    Attributes:
        positions: of each new token in its row, (T,).
        longest: tokens of the longest row, the new ones included.
        even: whether all rows have as many tokens, the new ones included.
        rows: of each new token, (T,).
        plan: of the attention over flat keys; None for one token a row.
        all: row and position of every key, old and new, row by row, (S,) each; None where there are only new ones.
        mask: 0 where a row has a key and -inf where it has none, (rows, 1, 1, longest); None where all have as many.
    """

    positions: Tensor
    longest: int
    even: bool
    rows: Tensor
    plan: Plan | None
    all: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None

    @property
    def fresh(self) -> bool:
        """Whether nothing was cached before this pass."""
        return self.plan is not None and self.all is None

    def reading(self, short: Plan) -> Reach:
        """Return the same for fewer queries."""
        return dataclasses.replace(self, plan=short)


@dataclass(eq=False)
class Cache:
    """What a batch of texts has left in a model.

    Attributes:
        lengths: tokens of each row, int64, (B,).
        expected: tokens that rows are expected to have in the end, at most; more is possible, and moves what is there.

    Example:
        >>> cache = Cache(torch.zeros(2, dtype=torch.int64))
        >>> cache.plan(Ragged(torch.tensor([5, 6, 7]), torch.tensor([0, 2, 3])), causal=True).positions.tolist()
        [0, 1, 0]
    """

    lengths: Tensor
    expected: int = 0
    _capacity: int = 0
    _longest: int = 0
    _even: bool = True
    _reach: Reach | None = None
    _keys: list[Tensor] = field(default_factory=list)
    _values: list[Tensor] = field(default_factory=list)
    _memory: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int, *, expected: int = 0, device: torch.device | str = "cpu") -> Cache:
        """Return the cache of `rows` texts of which nothing has been read."""
        return cls(torch.zeros(rows, dtype=torch.int64, device=device), expected)

    def __len__(self) -> int:
        return len(self.lengths)

    # --- one pass -----------------------------------------------------------------------------------------

    def plan(self, inputs: Ragged, *, causal: bool) -> Reach:
        """Plan a pass over new tokens, a row of `inputs` for each row here; made once, used by every layer."""
        assert len(inputs) == len(self), f"{len(inputs)} rows for a cache of {len(self)}"
        rows, new = len(self), len(inputs.values)
        single = new == rows and torch.equal(
            inputs.offsets, torch.arange(rows + 1, device=inputs.offsets.device)
        )
        if single and self._longest:
            return self.plan_one()
        self._reach = self._several(inputs, causal)
        return self._reach

    def plan_one(self) -> Reach:
        """Plan a pass over one new token a row, where rows have some already."""
        assert self._longest, "rows have no token yet"
        longest, positions = self._longest + 1, self.lengths
        self._reserve(longest)
        device = positions.device
        rows = torch.arange(len(self), device=device)
        mask = None
        if not self._even:
            mask = torch.zeros(len(self), 1, 1, longest, device=device).masked_fill_(
                torch.arange(longest, device=device) > positions[:, None, None, None], -torch.inf
            )
        self._reach = Reach(positions, longest, self._even, rows, None, mask=mask)
        return self._reach

    def _several(self, inputs: Ragged, causal: bool) -> Reach:
        rows = inputs.rows
        totals = self.lengths + inputs.lengths
        sizes = totals.tolist()
        longest = max(sizes, default=0)
        even = all(size == longest for size in sizes)
        positions = inputs.positions + self.lengths[rows]
        self._reserve(longest)
        if not self._longest:
            # Given as keys of their own, the texts keep the order of the batch.
            return Reach(positions, longest, even, rows, plan(inputs, keys=inputs, causal=causal))
        offsets = F.pad(totals.cumsum(0), (1, 0))
        keys = Ragged(torch.empty(sum(sizes), device="meta"), offsets)  # of which only offsets count
        how = plan(inputs, keys=keys, causal=causal)
        return Reach(positions, longest, even, rows, how, (keys.rows, keys.positions))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Reach) -> Tensor:
        """Keep the new keys and values of a layer, and attend over all.

        Args:
            layer: its number.
            query: (T, heads, d), in the order of the batch; of fewer tokens where `how` is `Reach.reading` them.
            key, value: (T, key heads, d).
            how: what `plan` returned for this pass.

        Returns:
            (T, heads · d).
        """
        if layer == len(self._keys):
            for kept, new in ((self._keys, key), (self._values, value)):
                # Zeros, not whatever memory held: what a mask hides is still multiplied, by 0, and must not be NaN.
                kept.append(new.new_zeros(len(self), new.shape[1], self._capacity, new.shape[2]))
        keys, values = self._keys[layer], self._values[layer]
        if how.plan is None and how.even:
            keys[:, :, how.longest - 1] = key
            values[:, :, how.longest - 1] = value
        else:
            keys[how.rows, :, how.positions] = key
            values[how.rows, :, how.positions] = value
        if how.plan is None:
            return self._attend_single(query, keys, values, how)
        if how.all is not None:
            rows, positions = how.all
            key, value = keys[rows, :, positions], values[rows, :, positions]
        return attend(query, key, value, how.plan)

    def _attend_single(self, query: Tensor, keys: Tensor, values: Tensor, how: Reach) -> Tensor:
        rows, heads, width = query.shape
        # Heads that share keys are as good as several queries at one place: so grouped, no key is repeated in memory.
        grouped = query.view(rows, keys.shape[1], -1, width)  # (B, key heads, shared, d)
        mask = how.mask if how.mask is None else how.mask.to(query.dtype)
        out = F.scaled_dot_product_attention(
            grouped, keys[:, :, : how.longest], values[:, :, : how.longest], attn_mask=mask
        )
        return out.reshape(rows, heads * width)

    def memory(self, layer: int, cross: Any, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the other sequence, (S, key heads, d) each; computed by the first pass only.

        Args:
            layer: its number.
            cross: the layer's attention to the other sequence.
            memory: states of the other sequence, (S, D).
        """
        if layer not in self._memory:
            self._memory[layer] = cross.keys_values(memory, None)
        return self._memory[layer]

    def advance(self, new: Tensor | int) -> None:
        """Count the tokens of a pass that every layer has seen: so many of each row, (B,), or of all."""
        assert self._reach is not None
        self.lengths = self.lengths + new
        self._longest, self._even, self._reach = self._reach.longest, self._reach.even, None

    # --- rows ---------------------------------------------------------------------------------------------

    def select(self, rows: Tensor, memory: Tensor | None = None) -> None:
        """Keep some rows, in another order if need be, and as often as they are named.

        That is how a finished text leaves the batch, how beams change places, and how several texts go on from one.

        Args:
            rows: int64, (B',).
            memory: of texts with another sequence beside them: places of its states that stay, (S',).
        """
        assert self._reach is None, "rows cannot change in the middle of a pass"
        self.lengths = self.lengths.index_select(0, rows)
        sizes = self.lengths.tolist()
        self._longest = max(sizes, default=0)
        self._even = all(size == self._longest for size in sizes)
        for kept in (self._keys, self._values):
            for layer, old in enumerate(kept):
                kept[layer] = self._moved(old[:, :, : self._longest].index_select(0, rows))
        if memory is not None:
            self._memory = {
                layer: (k.index_select(0, memory), v.index_select(0, memory))
                for layer, (k, v) in self._memory.items()
            }

    def rectangles(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the keys and the values of each layer, (B, key heads, capacity, d) each: what a pass writes into by itself."""
        return self._keys, self._values

    def copy(self) -> Cache:
        """Return the same contents, to go on from in another way."""
        assert self._reach is None, "a cache cannot be copied in the middle of a pass"
        return dataclasses.replace(
            self,
            _keys=[kept.clone() for kept in self._keys],
            _values=[kept.clone() for kept in self._values],
            _memory=dict(self._memory),
        )

    def _reserve(self, longest: int) -> None:
        """Make room for rows of so many tokens, by doubling, so that a text is moved a few times at the most."""
        if longest <= self._capacity:
            return
        self._capacity = max(longest, self.expected, 2 * self._capacity)
        for kept in (self._keys, self._values):
            for layer, old in enumerate(kept):
                kept[layer] = self._moved(old[:, :, : self._longest])

    def _moved(self, old: Tensor) -> Tensor:
        """(B, key heads, L, d) to (B, key heads, capacity, d), zeros behind."""
        new = old.new_zeros(*old.shape[:2], self._capacity, old.shape[3])
        new[:, :, : old.shape[2]] = old
        return new
