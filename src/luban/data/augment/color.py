"""Other light."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Generator, Tensor

from luban.data.augment import _color
from luban.data.augment._images import ImageAugmenter, Pixels, uniform
from luban.registry import register

__all__ = ["Color"]

Strength = Annotated[float, Field(ge=0, le=1)]


@register("augment")
class Color(ImageAugmenter):
    """Change the brightness, the contrast and the saturation of each image, each by a factor drawn from 1 ±
    strength.

    Example:
        ``augment: [{type: color, brightness: 0.4, contrast: 0.4, saturation: 0.4}]``
    """

    brightness: Strength = 0.2
    """Strength of the change of brightness."""
    contrast: Strength = 0.2
    """Strength of the change of contrast."""
    saturation: Strength = 0.2
    """Strength of the change of saturation; images of one channel have none."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.brightness == self.contrast == self.saturation == 0:
            raise ValueError("brightness, contrast and saturation are all 0: nothing would change")
        return self

    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return images in another light."""
        light = pixels.to_light(images)
        for strength, operation in (
            (self.brightness, _color.brightness),
            (self.contrast, _color.contrast),
            (self.saturation, _color.saturation),
        ):
            if strength:
                light = operation(light, uniform(1 - strength, 1 + strength, len(images), images, generator))
        return pixels.from_light(light)
