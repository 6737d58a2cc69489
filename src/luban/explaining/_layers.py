"""The layers of a network, watched from outside: one vector a row of what each puts out.

::

    tokens ──▶ embedding ──▶ block 1 ──▶ ... ──▶ encoder ──▶ dense 1 ──▶ ... ──▶ features ──▶ heads
                   ▲             ▲                  ▲            ▲                  ▲
                   └─────────────┴──── pooled ──────┴────────────┴──────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from luban.data.ragged import Ragged
from luban.explaining._case import Case
from luban.explaining._rows import batch_of, mixed, step_of
from luban.models._convolution import Convolutions
from luban.models._core import Block, Core
from luban.models._encoders import Encoder, Image
from luban.models._language import LanguageEncoder
from luban.models._layers import pooled
from luban.models._network import Network, column_of

__all__ = ["states_of"]

Pool = Literal["mean", "max"]
States = dict[str, npt.NDArray[np.float32]]


def states_of(case: Case, pool: Pool = "mean") -> States:
    """Return what each layer makes of the case's rows, pooled over places: name → (n, width), from the first layer on.

    Args:
        case: whose model is a `Network`.
        pool: how the vectors of tokens, and of the places of a map, become one.
    """
    network = case.predictor.model
    assert isinstance(network, Network)
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, vectors: Tensor) -> None:
        found.setdefault(name, []).append(vectors.flatten(1).float().cpu())

    step = step_of(case.encoded)
    with torch.inference_mode(), _watched(network, keep, pool):
        for start in range(0, len(case), step):
            rows = np.arange(start, min(len(case), start + step))
            outputs = network(batch_of(case, mixed(case.encoded, dict.fromkeys(case.inputs, rows))))
            keep("features", outputs["features"])
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


@contextmanager
def _watched(network: Network, keep: Callable[[str, Tensor], None], pool: Pool) -> Iterator[None]:
    """Watch all layers within the block; afterwards the network is as it was."""
    handles: list[Any] = []
    languages = [module for module in network.modules() if isinstance(module, LanguageEncoder)]
    before = [module.keep_states for module in languages]
    try:
        for language in languages:
            language.keep_states = True  # of all tokens, though the heads may read only the first
        dense = [layer for layer in network.trunk.children() if any(True for _ in layer.parameters())]
        widths: dict[str, int] = {}
        for key, encoder in network.encoders.items():
            assert isinstance(encoder, Encoder)
            column = column_of(key) if key.startswith("@") else key
            widths[f"{column}: encoder"] = encoder.width
            handles += _watch_encoder(column, encoder, keep, pool)

        def begin(module: nn.Module, args: Any) -> None:
            for name, part in zip(widths, args[0].split(list(widths.values()), 1), strict=True):
                keep(name, part)

        if dense or len(widths) > 1:  # else what the encoder puts out are the features
            handles.append(network.trunk.register_forward_pre_hook(begin))
        for i, layer in enumerate(dense[:-1]):  # what the last one puts out are the features
            handles.append(layer.register_forward_hook(_output(f"dense {i + 1}", keep, pool)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for language, kept in zip(languages, before, strict=True):
            language.keep_states = kept


def _watch_encoder(
    column: str, encoder: Encoder, keep: Callable[[str, Tensor], None], pool: Pool
) -> list[Any]:
    handles: list[Any] = []
    for module in encoder.modules():
        if isinstance(module, Core):
            handles += _watch_core(column, module, keep, pool)
        elif isinstance(module, Convolutions) or (
            isinstance(module, Image) and isinstance(module.module, nn.Sequential)
        ):
            layers = module.layers if isinstance(module, Convolutions) else module.module
            assert isinstance(layers, nn.Sequential)
            maps = [layer for layer in layers if any(True for _ in layer.parameters())]
            for i, layer in enumerate(maps):
                handles.append(layer.register_forward_hook(_output(f"{column}: map {i + 1}", keep, pool)))
        elif _is_recurrent(module):
            handles += _watch_recurrent(column, module, keep, pool)
    return handles


def _is_recurrent(module: nn.Module) -> bool:
    layers = getattr(module, "layers", None)
    return isinstance(layers, nn.ModuleList) and all(isinstance(layer, nn.RNNBase) for layer in layers)


def _output(name: str, keep: Callable[[str, Tensor], None], pool: Pool) -> Any:
    """Return a hook for what puts out vectors (B, D), steps (B, L, D) or maps (B, C, H, W)."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.dim() == 4:
            output = output.mean((2, 3)) if pool == "mean" else output.amax((2, 3))
        keep(name, output)

    return hook


def _watch_core(column: str, core: Core, keep: Callable[[str, Tensor], None], pool: Pool) -> list[Any]:
    """Watch a Transformer; its blocks see rows of like lengths together, in an order of their own."""
    inputs: list[Ragged] = []

    def begin(module: nn.Module, args: Any) -> None:
        inputs[:] = [args[0]]

    def embedded(module: nn.Module, args: Any, output: Tensor) -> None:
        keep(f"{column}: embedding", pooled(inputs[0].like(output), pool))

    def watch(i: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            keep(f"{column}: block {i + 1}", pooled(inputs[0].like(args[1].how.leave(output)), pool))

        return hook

    handles: list[Any] = [core.register_forward_pre_hook(begin)]
    handles.append(core.embedding.register_forward_hook(embedded))
    blocks = [block for block in core.layers if isinstance(block, Block)]
    return handles + [block.register_forward_hook(watch(i)) for i, block in enumerate(blocks)]


def _watch_recurrent(
    column: str, module: nn.Module, keep: Callable[[str, Tensor], None], pool: Pool
) -> list[Any]:
    """Watch recurrent layers, whose steps are packed: the first ones of all rows, then the second ones, longest row first."""
    lengths: list[Tensor] = []

    def begin(owner: nn.Module, args: Any) -> None:
        value = args[0][getattr(owner, "name", "")]
        lengths[:] = [value.lengths] if isinstance(value, Ragged) else []

    def watch(i: int) -> Any:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            states = output[0]
            if not isinstance(states, PackedSequence):
                keep(f"{column}: layer {i + 1}", states.mean(1) if pool == "mean" else states.amax(1))
                return
            order = lengths[0].argsort(descending=True, stable=True)
            rank = torch.cat(
                [torch.arange(n, device=order.device) for n in states.batch_sizes.tolist()]
            )  # the row, from the longest, that each packed step belongs to
            rows = order[rank]
            by_row = rows.argsort(stable=True)
            offsets = torch.nn.functional.pad(lengths[0].cumsum(0), (1, 0))
            keep(f"{column}: layer {i + 1}", pooled(Ragged(states.data[by_row], offsets), pool))

        return hook

    layers = module.layers
    assert isinstance(layers, nn.ModuleList)
    return [
        module.register_forward_pre_hook(begin),
        *(layer.register_forward_hook(watch(i)) for i, layer in enumerate(layers)),
    ]
