"""Gradual unfreezing: first the head, then one block after the other (Howard and Ruder, 2018, 'ULMFiT')."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import nn

from luban.adapt._surgery import depths_of
from luban.errors import RecipeError
from luban.registry import register
from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

__all__ = ["Unfreeze"]


@register("callbacks")
class Unfreeze(Callback):
    """At first only what lies above the blocks is trained; then the top block too, and so on down to the embeddings.

    A new head thereby does not wreck what the blocks know before it knows anything itself. What an adapt step froze stays
    frozen, and what lies in wait costs no gradient. With ``every: 1`` a model of 6 blocks is trained whole from the eighth epoch
    on; a run that is shorter leaves its lowest blocks as they were.

    What is trained follows from how far the run is, so that a resumed run needs no memory of it.
    """

    changes: ClassVar[bool] = True

    every: Annotated[int, Option(gt=0)] = 1
    """Epochs (or updates) between two unfreezings."""
    unit: Literal["epochs", "steps"] = "epochs"
    """What `every` counts; steps are updates."""
    layers: Annotated[int, Option(gt=0)] = 1
    """Blocks that are unfrozen at a time."""

    _own: list[tuple[nn.Parameter, int]] = PrivateAttr(default_factory=list)
    _reached: int = PrivateAttr(default=-1)

    def before_update(self, model: nn.Module, progress: Progress) -> None:
        if self._reached < 0:
            depths = depths_of(name for name, _ in model.named_parameters())
            if not depths.blocks:
                raise RecipeError(
                    "callback unfreeze goes by blocks (parameters called '...layers.N...'), and the model has none; remove it"
                )
            self._own = [(p, depths.below[name]) for name, p in model.named_parameters() if p.requires_grad]
        done = progress.epoch if self.unit == "epochs" else progress.step
        # Where an adapt step has frozen the head, the run begins with the highest block that is trained.
        reached = max(done // self.every * self.layers, min(below for _, below in self._own))
        if reached != self._reached:
            self._reached = reached
            for parameter, below in self._own:
                parameter.requires_grad_(below <= reached)
