"""How much arithmetic a forward pass is.

`torch.utils.flop_counter` would count more kinds of operations, but its dispatch mode imports the compiler, which takes longer
than many a run; `torch.profiler` writes to stderr. The operations counted here are those that matter: matrix products,
convolutions, attention and recurrent layers; two floating-point operations for each multiplication and addition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from luban.models._attention import Plan, attend

__all__ = ["FlopCounter"]


def _product(result: Any, a: Tensor, b: Tensor, *rest: Any) -> int:
    return 2 * int(result.numel()) * a.shape[-1]


def _linear(result: Any, x: Tensor, weight: Tensor, *rest: Any) -> int:
    return 2 * int(result.numel()) * int(weight.shape[-1])


def _addmm(result: Any, bias: Tensor, a: Tensor, b: Tensor, *rest: Any) -> int:
    return _product(result, a, b)


def _convolution(result: Any, x: Tensor, weight: Tensor, *rest: Any) -> int:
    return 2 * int(result.numel()) * prod(weight.shape[1:])


def _attention(result: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> int:
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def _recurrent(result: Any, x: Tensor, *rest: Any) -> int:
    # Each position meets every weight matrix of every layer once; (data, batch sizes, ...) where rows are packed.
    weights = next(
        part for part in rest if isinstance(part, Sequence) and not isinstance(part, Tensor) and len(part) > 2
    )
    positions = x.shape[0] if isinstance(rest[0], Tensor) and rest[0].dim() == 1 else x.shape[0] * x.shape[1]
    return 2 * int(positions) * sum(int(weight.numel()) for weight in weights if weight.dim() == 2)


def _attend(result: Any, query: Tensor, key: Tensor, value: Tensor, how: Plan, *rest: Any) -> int:
    return 4 * how.pairs * int(query.shape[1]) * int(query.shape[2])


_COUNTS: Mapping[Any, Callable[..., int]] = {
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    attend: _attend,
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__), _product
    ),
    **dict.fromkeys((torch.addmm, torch.baddbmm), _addmm),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
}


class FlopCounter(TorchFunctionMode):
    """Counts the operations of what runs inside.

    Example:
        >>> with FlopCounter() as counter: _ = torch.ones(2, 3) @ torch.ones(3, 5)
        >>> counter.total
        60
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        count = _COUNTS.get(function)
        if count is not None:
            self.total += count(result, *args, *(kwargs or {}).values())
        return result
