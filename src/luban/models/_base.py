"""What every model family has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from luban.data.contracts import Processor, Spec
from luban.recipe import Data, Sized

__all__ = ["Model"]


class Model(Sized):
    """The options of a model family; `build` makes the module.

    The module is an ordinary `nn.Module` with ``forward(batch) -> dict[str, Tensor | Ragged]``, and nothing else is asked
    of it. It reads input fields of the batch by name and returns, for each target, an output named ``target.logits`` or
    ``target.value`` as the target's field says, of shape (B, width) in float32; beside them ``features`` (B, D), the pooled
    representation that the heads read, and where there are positions ``states``, a `Ragged` of (T, D).
    """

    attends: ClassVar[bool] = False
    """Whether it is made of attention, for which a CPU has kernels of Luban's own."""

    def usual(self, adapted: bool) -> dict[str, Any]:
        """Return what of the train section this model is usually trained with, where it differs from other models: `optimizer`,
        `schedule`, `epochs`.

        Args:
            adapted: whether only what an adapter adds is trained.
        """
        return {}

    def complete(self, data: Data) -> list[str]:
        """Fill in what this model needs of the data section and the recipe leaves out; return what was derived, in sentences."""
        return []

    def follow(self, inputs: Mapping[str, Processor]) -> list[str]:
        """Fill in what this model takes from the fitted inputs and the recipe leaves out, before it is built anew; return what was
        derived, in sentences. What an artefact holds is filled in already."""
        return []

    def portable(self) -> Self:
        """Return the options that make the same module anywhere, without the files it was started from."""
        return self

    def load_pretrained(self, module: nn.Module) -> list[str]:
        """Give a new module the weights that the options name; return which parts start anew instead."""
        return []

    @abstractmethod
    def build(self, spec: Spec) -> nn.Module:
        """Make the module for these fields; weights are drawn from torch's global generator.

        Raises:
            RecipeError: if the family cannot read these inputs, with what it can read and which family to take instead.
        """
