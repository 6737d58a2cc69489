"""The count agrees with torch's own counter, and with arithmetic where that has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from luban.training.flops import FlopCounter


@pytest.mark.parametrize(
    "work",
    [
        lambda: nn.Linear(7, 5)(torch.ones(3, 2, 7)),
        lambda: nn.Conv2d(3, 8, 3, groups=1, stride=2)(torch.ones(2, 3, 9, 9)),
        lambda: nn.Conv2d(4, 8, 3, groups=2)(torch.ones(2, 4, 9, 9)),
        lambda: nn.Conv1d(3, 8, 5)(torch.ones(2, 3, 20)),
        lambda: torch.ones(4, 3, 5) @ torch.ones(4, 5, 6),
        lambda: torch.bmm(torch.ones(4, 3, 5), torch.ones(4, 5, 6)),
    ],
)  # fmt: skip
def test_agrees_with_torch(work) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        work()
    with torch.no_grad(), FlopCounter() as ours:
        work()
    assert ours.total == theirs.get_total_flops() > 0


def test_attention() -> None:
    query, key = torch.ones(2, 3, 6, 8), torch.ones(2, 3, 9, 8)
    with torch.no_grad(), FlopCounter() as counter:
        F.scaled_dot_product_attention(query, key, key)
    assert counter.total == 2 * (2 * 3 * 6 * 9) * (8 + 8)


@pytest.mark.parametrize(("cell", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers(cell: type[nn.RNNBase], gates: int) -> None:
    layer = cell(5, 6, num_layers=2, bidirectional=True)
    each = 2 * gates * (2 * 6 * (5 + 6) + 2 * 6 * (12 + 6))  # both directions of both layers, one position
    with torch.no_grad(), FlopCounter() as counter:
        layer(torch.ones(7, 3, 5))
    assert counter.total == 21 * each
    with torch.no_grad(), FlopCounter() as counter:
        layer(pack_sequence([torch.ones(n, 5) for n in (4, 2, 1)]))
    assert counter.total == 7 * each
