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

    def finish(self, model: nn.Module) -> tuple[nn.Module, Adaptation | None]:
        """Return a trained model as an artefact holds it, and the step that makes its form again; None where none is needed.

        The step must do without any file that `apply` read: an artefact stands on its own.
        """
        return model, self

    def notes(self) -> list[str]:
        """Return what the user should know about how `apply` went."""
        return []
