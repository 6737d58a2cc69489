"""Rows of different lengths as one flat tensor with offsets: no padding is stored, moved or multiplied.

::

    rows      [a b c]  [d]  [e f]
    values    a b c d e f          (T, ...)   T = sum of lengths
    offsets   0 3 4 6              (B + 1,)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Ragged"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """A batch of sequences of different lengths.

    Attributes:
        values: all sequences, one after the other, (T, ...).
        offsets: where each begins, and the end of the last, int64, (B + 1,).

    Example:
        >>> texts = Ragged.from_rows([torch.tensor([1, 2, 3]), torch.tensor([4])])
        >>> texts.lengths.tolist(), texts.padded(pad=0)[0].tolist()
        ([3, 1], [[1, 2, 3], [4, 0, 0]])
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def from_rows(cls, rows: Iterable[Tensor]) -> Self:
        """Join tensors of shape (L_i, ...) into one batch."""
        parts = list(rows)
        lengths = torch.tensor([0, *(len(part) for part in parts)])
        return cls(torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64), lengths.cumsum(0))

    @classmethod
    def from_padded(cls, rectangle: Tensor, mask: Tensor) -> Self:
        """Take the positions of a rectangle (B, L, ...) where `mask` (B, L) is true; rows keep their order."""
        mask = mask.bool()
        return cls(rectangle[mask], torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)))

    def padded(self, pad: float = 0) -> tuple[Tensor, Tensor]:
        """Return the rectangle (B, L, ...) and its mask (B, L), for those who need one."""
        longest = int(self.lengths.max()) if len(self) else 0
        mask = torch.arange(longest, device=self.offsets.device) < self.lengths[:, None]  # (B, L)
        rectangle = self.values.new_full((len(self), longest, *self.values.shape[1:]), pad)
        rectangle[mask] = self.values
        return rectangle, mask

    @property
    def lengths(self) -> Tensor:
        """Length of each row, int64, (B,)."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """The row that each position belongs to, int64, (T,)."""
        return torch.repeat_interleave(
            torch.arange(len(self), device=self.offsets.device), self.lengths, output_size=len(self.values)
        )

    @property
    def positions(self) -> Tensor:
        """The place of each position within its row, from 0, int64, (T,)."""
        return torch.arange(len(self.values), device=self.offsets.device) - self.offsets[:-1][self.rows]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def unbind(self) -> tuple[Tensor, ...]:
        """Return the rows as views, each (L_i, ...)."""
        return torch.split(self.values, self.lengths.tolist())

    def like(self, values: Tensor) -> Self:
        """Return other values (T, ...) over the same rows."""
        return type(self)(values, self.offsets)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Move to a device."""
        return type(self)(
            self.values.to(device, non_blocking=non_blocking),
            self.offsets.to(device, non_blocking=non_blocking),
        )

    def first(self) -> Tensor:
        """The first position of each row, (B, ...); rows must not be empty."""
        return self.values[self.offsets[:-1]]

    def last(self) -> Tensor:
        """The last position of each row, (B, ...); rows must not be empty."""
        return self.values[self.offsets[1:] - 1]

    def sum(self) -> Tensor:
        """Sum over each row, (B, D); an empty row gives zeros. Values are (T, D)."""
        return self.values.new_zeros(len(self), *self.values.shape[1:]).index_add(0, self.rows, self.values)

    def mean(self) -> Tensor:
        """Mean over each row, (B, D); an empty row gives zeros. Values are (T, D)."""
        return self.sum() / self.lengths.clamp(min=1).to(self.values.dtype)[:, None]

    def max(self) -> Tensor:
        """Maximum over each row, (B, D); rows must not be empty. Values are (T, D)."""
        index = self.rows[:, None].expand_as(self.values)
        result = self.values.new_full((len(self), self.values.shape[1]), -torch.inf)
        return result.scatter_reduce(0, index, self.values, "amax", include_self=True)
