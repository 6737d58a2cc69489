"""What the layers of a convolutional network answer to an image, and what their filters look for."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field as Option
from torch import nn

from luban.data.batch import to_batch
from luban.data.store import take_rows
from luban.errors import InputError
from luban.explaining._base import Explainer, Explanation, Part
from luban.explaining._case import Case
from luban.explaining._maps import BATCH, images_of, layers_of, module_of, refusal_of, tapped
from luban.registry import register
from luban.sentences import say

__all__ = ["ActivationMaps"]


@register("explainers")
class ActivationMaps(Explainer):
    """The maps of a layer as they are, those that answer most strongly first; or the filters of a convolution.

    Example:
        >>> ActivationMaps(show="filters").count
        16
    """

    paper: ClassVar[str] = say(
        "Zeiler and Fergus, 2014, 'Visualizing and Understanding Convolutional Networks'"
    )
    limits: ClassVar[str] = say("they show what a layer answers, not whether the prediction depends on it")
    attributes: ClassVar[bool] = False

    layer: str | None = None
    """Name of the layer; the first convolution if left out."""
    show: Literal["maps", "filters"] = "maps"
    """The layer's maps of each image, or, the same for all, the weights of its filters (the mean over the channels they read)."""
    count: Annotated[int, Option(ge=1)] = 16
    """Maps, or filters, that are shown."""

    def refusal(self, case: Case) -> str | None:
        return refusal_of(case)

    def explain(self, case: Case) -> list[Explanation]:
        model = case.predictor.model
        scores = case.scores_of_encoded(case.encoded, case.chosen) if case.target else np.zeros(len(case))
        parts: list[dict[str, Part]] = [{} for _ in range(len(case))]
        notes = []
        for column in images_of(case):
            if not layers_of(case, column):
                continue
            layer = module_of(case, column, self.layer, first=True)
            module = dict(model.named_modules())[layer]
            if self.show == "filters":
                if not isinstance(module, nn.Conv2d):
                    raise InputError(
                        say(
                            "layer '{layer}' is no convolution and has no filters; name one that is, or take show=maps",
                            layer=layer,
                        )
                    )
                filters = module.weight.detach().double().mean(1).cpu().numpy()  # (N, h, w)
                order = np.argsort(-np.abs(filters).sum((1, 2)), kind="stable")[: self.count]
                for own in parts:
                    own[column] = Part(
                        column, "maps", filters[order], names=[say("filter {n}", n=i) for i in order]
                    )
                notes.append(
                    say(
                        "{n} of {of} filters of '{layer}', the strongest",
                        n=len(order),
                        of=len(filters),
                        layer=layer,
                    )
                )
                continue
            total = 0
            for start in range(0, len(case), BATCH):
                stop = min(len(case), start + BATCH)
                rows = take_rows(case.encoded, np.arange(start, stop))
                with torch.inference_mode(), tapped(model, layer, gradients=False) as tap:
                    model(to_batch(rows, case.predictor.spec, case.predictor.device))
                found = tap.output.double().cpu().numpy()
                total = found.shape[1]
                for i, maps in enumerate(found, start):
                    order = np.argsort(-np.abs(maps).mean((1, 2)), kind="stable")[: self.count]
                    names: list[str] = [say("channel {n}", n=c) for c in order]
                    parts[i][column] = Part(column, "maps", maps[order], names=names)
            notes.append(
                say(
                    "{n} of {of} maps of '{layer}', the strongest of each image",
                    n=min(total, self.count),
                    of=total,
                    layer=layer,
                )
            )
        result = case.explanations(self.type, scores.tolist(), parts)
        for one in result:
            one.notes += notes
        return result
