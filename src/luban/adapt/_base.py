"""What every conversion of a model has in common."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from luban.recipe import Component

__all__ = ["Adaptation"]


class Adaptation(Component):
    """A conversion of a model, made before its optimizer, and made again whenever the artefact is loaded."""

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Return the converted model; it may be the same object.

        Raises:
            RecipeError: if the conversion does not fit the model.
        """
