"""The maps (B, C, H, W) that the layers of a model make of an image, by the names of the layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.data.batch import Batch, to_batch
from luban.data.store import take_rows
from luban.errors import InputError, did_you_mean
from luban.explaining._case import Case
from luban.explaining._handles import frozen
from luban.models._network import Network, module_key
from luban.sentences import say

__all__ = [
    "BATCH",
    "images_of",
    "layers_of",
    "module_of",
    "refusal_of",
    "resized",
    "tapped",
    "with_gradients",
]

BATCH = 32
"""Images that are read at a time."""


def images_of(case: Case) -> list[str]:
    """Return the image columns."""
    return [column for column, form in case.forms.items() if form == "image"]


def layers_of(case: Case, column: str) -> dict[str, tuple[int, ...]]:
    """Return the layers that make maps of a column, in the order in which they run, and the shapes of these, (C, H, W)."""
    model = case.predictor.model
    inside: nn.Module = model
    prefix = ""
    if isinstance(model, Network) and (key := module_key(column)) in model.encoders:
        inside, prefix = model.encoders[key], f"encoders.{key}."
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                found.pop(name, None)
                found[name] = tuple(output.shape[1:])

        return hook

    handles = [
        module.register_forward_hook(note(prefix + name)) for name, module in inside.named_modules() if name
    ]
    try:
        with torch.inference_mode():
            model(case.batch(0, 1))
    finally:
        for handle in handles:
            handle.remove()
    return found


def refusal_of(case: Case) -> str | None:
    """Return why a case has no maps; None if it has."""
    columns = images_of(case)
    if not columns:
        return say("it needs an image, and no input is one")
    if len(case) and not any(layers_of(case, column) for column in columns):
        return say("it needs a layer that makes maps of the image, and the model has no convolution")
    return None


def module_of(case: Case, column: str, layer: str | None, *, first: bool = False) -> str:
    """Return the name of a layer: the one asked for, or the last that makes maps (or the first convolution).

    The end of a name is enough where no other layer's ends alike.

    Raises:
        InputError: if no layer of that name makes maps; the sentence lists those that do.
    """
    known = layers_of(case, column)
    if layer is not None:
        ending = [name for name in known if name == layer or name.endswith(f".{layer}")]
        if len(ending) == 1:
            return ending[0]
        if layer not in known:
            raise InputError(
                say(
                    "no layer '{layer}' makes maps of '{column}'; layers are {layers}{hint}",
                    layer=layer,
                    column=column,
                    layers=[f"{name} ({'×'.join(map(str, shape))})" for name, shape in known.items()]
                    or say("none"),
                    hint=did_you_mean(layer, known),
                )
            )
        return layer
    if first:
        modules = dict(case.predictor.model.named_modules())
        return next((name for name in known if isinstance(modules[name], nn.Conv2d)), next(iter(known)))
    return list(known)[-1]


@dataclass
class Tap:
    """What a layer made in one pass."""

    output: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def tapped(model: nn.Module, layer: str, *, gradients: bool) -> Iterator[Tap]:
    """Keep what a layer makes; with `gradients`, let them begin there."""
    tap = Tap()

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        tap.output = output
        if not gradients:
            return None
        tap.output = output.detach().requires_grad_()
        return tap.output

    handle = dict(model.named_modules())[layer].register_forward_hook(hook)
    try:
        yield tap
    finally:
        handle.remove()


def with_gradients(case: Case, layer: str) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Yield, some rows at a time, the first and the one after the last, the layer's maps and their gradients, (B, C, h, w), and the
    scores, (B,)."""
    model = case.predictor.model
    for start in range(0, len(case), BATCH):
        stop = min(len(case), start + BATCH)
        batch: Batch = to_batch(
            take_rows(case.encoded, np.arange(start, stop)), case.predictor.spec, case.predictor.device
        )
        with frozen(model), tapped(model, layer, gradients=True) as tap:
            score = case.score(batch, case.chosen[start:stop])
            if not score.requires_grad:  # gradients begin at the layer alone
                raise InputError(
                    say(
                        "the score of '{target}' does not depend on what layer '{layer}' makes; name another layer",
                        target=case.target,
                        layer=layer,
                    )
                )
            (gradient,) = torch.autograd.grad(score.sum(), tap.output)
        yield start, stop, tap.output.detach(), gradient, score.detach()


def resized(maps: Tensor, size: tuple[int, int]) -> npt.NDArray[Any]:
    """Return maps (B, h, w) at the size of the image, (B, H, W), by bilinear interpolation."""
    whole = F.interpolate(maps[:, None].double(), size, mode="bilinear", align_corners=False)
    return whole[:, 0].cpu().numpy()
