"""How values are stored in a GGUF file, and how they are read: the types of ggml.

A quantised tensor is a row of blocks of 32 values, each with a scale of its own, d, of 16 bits (and a least value, m)::

    Q8_0   d | 32 whole numbers q of 8 bits         d · q
    Q4_0   d | 32 whole numbers q of 4 bits         d · (q - 8)
    Q4_1   d | m | 32 whole numbers q of 4 bits     d · q + m

A byte of the 4-bit types holds value i in its low half and value i + 16 in its high half. The layouts are those of
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h; products are taken in 32 bits, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["KINDS", "NAMES", "Kind"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Number of a type → what it is called."""


@dataclass(frozen=True)
class Kind:
    """A type that is read.

    Attributes:
        values: how many a block has.
        size: of a block, in bytes.
        read: the bytes of all blocks, (blocks, size), → values, flat.
    """

    values: int
    size: int
    read: Callable[[Bytes], Tensor]

    def length(self, elements: int) -> int:
        """Return how many bytes that many values take."""
        return elements // self.values * self.size


def _plain(dtype: str, reads: Any) -> Callable[[Bytes], Tensor]:
    """Return what copies numbers out of the file; they stay as wide as they are."""

    def read(raw: Bytes) -> Tensor:
        return torch.from_numpy(raw.reshape(-1).view(dtype).astype(reads))

    return read


def _bf16(raw: Bytes) -> Tensor:
    return torch.from_numpy(raw.reshape(-1).view("<i2").astype(np.int16)).view(torch.bfloat16)


def _quantised(blocks: Callable[[Bytes], Floats]) -> Callable[[Bytes], Tensor]:
    def read(raw: Bytes) -> Tensor:
        with np.errstate(all="ignore"):  # a damaged scale may be infinite, and then so is what it scales
            return torch.from_numpy(blocks(raw)).reshape(-1)

    return read


def _half(raw: Bytes) -> Floats:
    """(blocks, 2) bytes to (blocks, 1)."""
    return raw.view("<f2").astype(np.float32)


def _nibbles(raw: Bytes) -> Floats:
    """(blocks, 16) bytes to (blocks, 32)."""
    values = np.empty((len(raw), 32), np.float32)
    values[:, :16] = raw & 15
    values[:, 16:] = raw >> 4
    return values


def _q8_0(raw: Bytes) -> Floats:
    values = raw[:, 2:].view(np.int8).astype(np.float32)
    values *= _half(raw[:, :2])
    return values


def _q4_0(raw: Bytes) -> Floats:
    values = _nibbles(raw[:, 2:])
    values -= 8
    values *= _half(raw[:, :2])
    return values


def _q4_1(raw: Bytes) -> Floats:
    values = _nibbles(raw[:, 4:])
    values *= _half(raw[:, :2])
    values += _half(raw[:, 2:4])
    return values


KINDS = {
    0: Kind(1, 4, _plain("<f4", np.float32)),
    1: Kind(1, 2, _plain("<f2", np.float16)),
    30: Kind(1, 2, _bf16),
    8: Kind(32, 34, _quantised(_q8_0)),
    2: Kind(32, 18, _quantised(_q4_0)),
    3: Kind(32, 20, _quantised(_q4_1)),
}
"""Number of a type → how it is read."""
