"""What every model family has in common."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from luban.data.contracts import Spec
from luban.recipe import Sized

__all__ = ["Model"]


class Model(Sized):
    """The options of a model family; `build` makes the module.

    The module is an ordinary `nn.Module` with ``forward(batch) -> dict[str, Tensor | Ragged]``, and nothing else is asked
    of it. It reads input fields of the batch by name and returns, for each target, an output named ``target.logits`` or
    ``target.value`` as the target's field says, of shape (B, width) in float32; beside them ``features`` (B, D), the pooled
    representation that the heads read, and where there are positions ``states``, a `Ragged` of (T, D).
    """

    @abstractmethod
    def build(self, spec: Spec) -> nn.Module:
        """Make the module for these fields; weights are drawn from torch's global generator.

        Raises:
            RecipeError: if the family cannot read these inputs, with what it can read and which family to take instead.
        """
