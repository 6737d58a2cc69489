"""What low-rank adapters do to a weight, told by the tensors alone.

An adapted linear layer has beside its `weight` a ``lora_a`` (r, in), a ``lora_b`` (out, r), the factor ``lora_scale`` and, for
DoRA, a ``lora_magnitude`` (out,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["merged_weight", "merging", "norms_of"]


def norms_of(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the length of each row of ``weight + scale * b @ a``, (out,)."""
    norms: Tensor = torch.linalg.vector_norm(weight + scale * (b @ a), dim=1)
    return norms


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor, magnitude: Tensor | None) -> Tensor:
    """Return the weight that does what weight and adapter do together, (out, in)."""
    changed = weight + scale * (b @ a)
    if magnitude is None:
        return changed
    return (magnitude / norms_of(weight, a, b, scale))[:, None] * changed


def merging(places: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """Return how to read the tensors of a model without adapters, which are merged into the weights as these are read.

    Example:
        >>> parts = {"weight": torch.ones(1, 1), "lora_a": torch.ones(1, 1), "lora_b": torch.ones(1, 1), "lora_scale": torch.tensor(2.0)}
        >>> found = merging({f"q.{name}": lambda value=value: value for name, value in parts.items()})
        >>> {name: read() for name, read in found.items()}
        {'q.weight': tensor([[3.]])}
    """
    result = {name: read for name, read in places.items() if not name.rpartition(".")[2].startswith("lora_")}
    for name in places:
        layer, _, leaf = name.rpartition(".")
        if leaf == "lora_a":
            own = {one: read for one, read in places.items() if one.rpartition(".")[0] == layer}
            result[f"{layer}.weight"] = _reader({one.rpartition(".")[2]: read for one, read in own.items()})
    return result


def _reader(own: Mapping[str, Callable[[], Tensor]]) -> Callable[[], Tensor]:
    def read() -> Tensor:
        magnitude = own["lora_magnitude"]() if "lora_magnitude" in own else None
        return merged_weight(
            own["weight"](), own["lora_a"](), own["lora_b"](), own["lora_scale"](), magnitude
        )

    return read
