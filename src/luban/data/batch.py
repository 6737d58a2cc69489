"""From encoded rows to the tensors that a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from luban.data.contracts import Encoded, Field, Flat, Spec
from luban.data.ragged import Ragged

__all__ = ["Batch", "rows_in", "to_batch", "to_device"]

Batch: TypeAlias = dict[str, Tensor | Ragged]
"""One batch as the model sees it: ``column.field`` → tensor (B, ...) or `Ragged`."""


def to_batch(encoded: Encoded, spec: Spec, device: torch.device | str = "cpu") -> Batch:
    """Turn encoded rows into a batch on a device; the one way from arrays to tensors, in training and in prediction.

    Integers become int64; fields with `mean` and `std` are normalised on the device, so that bytes travel. An image is
    stored (H, W, C) and arrives as (B, C, H, W) in channels-last memory, which is a view, not a copy.

    Args:
        encoded: arrays by full name (``review.ids``); names that the specification lacks pass unchanged.
        spec: the fields.
        device: where the batch goes.
    """
    batch: Batch = {}
    for name, value in encoded.items():
        one = spec.fields.get(name)
        if isinstance(value, Flat):
            values = _tensor(value.values, one, device)
            batch[name] = Ragged(values, torch.from_numpy(value.offsets).to(device))
        else:
            batch[name] = _tensor(value, one, device)
    return batch


def _tensor(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], one: Field | None, device: torch.device | str
) -> Tensor:
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy()
    tensor = torch.from_numpy(array).to(device)
    if one is not None and one.mean is not None and one.std is not None:
        # One pass over the data where mean and std are single numbers, which is the rule.
        if len(one.mean) == 1:
            tensor = tensor.to(torch.float32)
            tensor = (
                tensor.mul_(1 / one.std[0])
                if one.mean[0] == 0
                else tensor.sub_(one.mean[0]).mul_(1 / one.std[0])
            )
        else:
            tensor = (
                tensor.to(torch.float32) - tensor.new_tensor(one.mean, dtype=torch.float32)
            ) / tensor.new_tensor(one.std, dtype=torch.float32)
    elif not tensor.is_floating_point():
        tensor = tensor.to(torch.int64)
    if one is not None and one.kind == "image":
        tensor = tensor.permute(0, 3, 1, 2)  # (B, H, W, C) memory seen as (B, C, H, W): channels-last
    return tensor


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def rows_in(batch: Mapping[str, Tensor | Ragged]) -> int:
    """Return the number of rows of a batch."""
    return len(next(iter(batch.values())))
