"""Inputs moved a little in the direction that does most harm, by the gradient of the loss.

FGSM makes one step (Goodfellow et al., 2015), PGD several and comes back to within the radius (Madry et al., 2018). Pictures are
moved by their pixels, numbers of a table in their deviations, tokens and categories by their vectors.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from luban.data.batch import rows_in, to_batch
from luban.data.contracts import Array
from luban.data.store import slice_rows
from luban.objectives.adversarial import Moved
from luban.predict import Predictor

__all__ = ["Kind", "attacked", "kinds_of"]

Kind = Literal["pixels", "numbers", "vectors"]
"""What is moved."""


def kinds_of(predictor: Predictor) -> list[Kind]:
    """Return what of a model's inputs can be moved."""
    fields = [one for one in predictor.spec.fields.values() if one.role == "input"]
    found: list[Kind] = []
    if any(one.kind == "image" for one in fields):
        found.append("pixels")
    if any(one.dtype.startswith("float") and one.kind != "image" for one in fields):
        found.append("numbers")
    if any(
        isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) for module in predictor.model.modules()
    ):
        found.append("vectors")
    return found


def attacked(
    predictor: Predictor,
    rows: pl.DataFrame,
    truth: dict[str, Array],
    kind: Kind,
    radius: float,
    steps: int,
    batch_size: int = 128,
) -> dict[str, Array]:
    """Return the outputs of readable rows whose inputs were moved against the truth, target → (n, width).

    Args:
        predictor: the artefact.
        rows: cleaned rows, all of which can be read and scored.
        truth: target → class numbers, 0 and 1, or numbers in the target's units.
        kind: what is moved.
        radius: how far each value may move: pixels of 255, deviations of a number, or the share of a vector's mean size.
        steps: 1 for FGSM, more for PGD.
        batch_size: rows at a time.

    Raises:
        RecipeError: if nothing of this model can be moved so.
    """
    encoded, kept = predictor.pipeline.encode(rows, targets=False)
    assert kept.all()
    targets = predictor.pipeline.scored
    parts: dict[str, list[Array]] = {name: [] for name in targets}
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        batch = to_batch(slice_rows(encoded, start, start + batch_size), predictor.spec, predictor.device)
        with (
            Moved(predictor.model, batch, frozenset()) as inputs,
            torch.enable_grad(),
            # cuDNN gives no gradient of a recurrent network in evaluation mode.
            torch.backends.cudnn.flags(enabled=False),
        ):
            for step in range(steps):
                outputs = predictor.model(inputs.batch())
                loss = torch.stack(
                    [
                        _loss(predictor, name, outputs[f"{name}.{one.output}"], truth[name][part])
                        for name, one in targets.items()
                    ]
                ).sum()
                gradients = inputs.gradients(loss, retain=False)
                _move(inputs, gradients, predictor, kind, radius, steps, first=step == 0)
            inputs.hold()
            with torch.no_grad():
                outputs = predictor.model(inputs.batch())
        for name, one in targets.items():
            parts[name].append(outputs[f"{name}.{one.output}"].detach().float().cpu().numpy())
        assert rows_in(batch) == len(parts[next(iter(targets))][-1])
    joined = {f"{name}.{targets[name].output}": np.concatenate(own) for name, own in parts.items()}
    decided = predictor.decided(joined, rows, np.ones(len(rows), dtype=bool))
    return {name: decided[f"{name}.{one.output}"] for name, one in targets.items()}


def _loss(predictor: Predictor, name: str, output: Tensor, truth: Array) -> Tensor:
    processor = predictor.pipeline.scored[name]
    wanted = torch.from_numpy(np.ascontiguousarray(truth)).to(output.device)
    if processor.task == "multiclass":
        return F.cross_entropy(output, wanted.long(), reduction="sum")
    if processor.task == "regression":
        # In the target's units only the direction counts, and that of the output is the same.
        away = torch.from_numpy(np.sign(processor.scores(output.detach().cpu().numpy()) - truth)).to(
            output.device
        )
        return (output.reshape(-1) * torch.where(away == 0, 1.0, away)).sum()
    return F.binary_cross_entropy_with_logits(
        output, wanted.reshape(output.shape).to(output.dtype), reduction="sum"
    )


@torch.no_grad()
def _move(
    inputs: Moved,
    gradients: dict[str, Tensor],
    predictor: Predictor,
    kind: Kind,
    radius: float,
    steps: int,
    first: bool,
) -> None:
    """Go a step up the gradient in what is of this kind, and stay within the radius and within what a picture can be."""
    tables = dict(predictor.model.named_modules())
    for key, before in list(inputs.moves.items()):
        before = before.detach()
        field = predictor.spec.fields.get(key)
        own: Kind = "vectors" if field is None else "pixels" if field.kind == "image" else "numbers"
        gradient = gradients.get(key)
        if own != kind or gradient is None:
            inputs.moves[key] = before.requires_grad_()
            continue
        reach: Tensor | float = radius
        if field is None:
            weight = tables[key.rpartition(" (")[0]].weight
            assert isinstance(weight, Tensor)
            reach = radius * float(weight.float().pow(2).mean().sqrt())
        elif own == "pixels":
            std = torch.tensor(field.std or (255.0,), device=before.device).view(1, -1, 1, 1)
            reach = radius / std
        size = reach if steps == 1 else 2.5 * reach / steps
        moved = before + size * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, -1 * torch.as_tensor(reach)), torch.as_tensor(reach))
        if own == "pixels" and field is not None:
            value = inputs.fields[key]
            assert isinstance(value, Tensor)
            mean = torch.tensor(field.mean or (0.0,), device=before.device).view(1, -1, 1, 1)
            moved = torch.minimum(torch.maximum(value + moved, -mean / std), (255 - mean) / std) - value
        inputs.moves[key] = moved.requires_grad_()
