"""What the image augmentations share: which fields are images, what black is, and moving pixels.

Everything acts on a whole batch (B, C, H, W) at once, with other parameters for each image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field as Limits
from torch import Generator, Tensor
from torch.nn import functional as F

from luban.data.augment._base import Augmenter
from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.errors import RecipeError, did_you_mean

__all__ = [
    "ImageAugmenter",
    "Pixels",
    "Probability",
    "Span",
    "boxes",
    "inputs",
    "inside",
    "moved",
    "uniform",
    "warp",
]

Probability = Annotated[float, Limits(ge=0, le=1)]
Span = Annotated[list[float], Limits(min_length=2, max_length=2)]
"""A range: [low, high]."""


def uniform(low: float, high: float, n: int, like: Tensor, generator: Generator) -> Tensor:
    """Draw `n` numbers between two, (n,), on the device of `like`."""
    drawn = torch.rand(n, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(like.device)


def inputs(batch: Batch, spec: Spec, columns: list[str] | None) -> Iterator[tuple[str, Field]]:
    """Yield the input fields of the chosen columns.

    Raises:
        RecipeError: if a column is no input.
    """
    known = spec.select("input")
    for column in columns or ():
        if column not in known:
            raise RecipeError(
                f"augment: column '{column}' is no input; inputs are {', '.join(known)}"
                f"{did_you_mean(column, known)}"
            )
    for column, fields in known.items():
        if columns is None or column in columns:
            yield from ((name, field) for name, field in fields.items() if name in batch)


@dataclass(frozen=True)
class Pixels:
    """How the pixels of a field were normalised.

    Attributes:
        mean, std: of each channel, or one for all, in the units that are stored.
        white: the largest value that is stored; black is 0.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    white: float = 1.0

    @classmethod
    def of(cls, field: Field) -> Self:
        """Read it off a field."""
        return cls(field.mean or (0.0,), field.std or (1.0,), 255.0 if field.dtype == "uint8" else 1.0)

    def _channels(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, -1, 1, 1)

    def black(self, like: Tensor) -> Tensor:
        """Return normalised black, (1, C or 1, 1, 1)."""
        return -self._channels(self.mean, like) / self._channels(self.std, like)

    def to_light(self, images: Tensor) -> Tensor:
        """Return light between 0 (black) and 1 (white)."""
        return (images * self._channels(self.std, images) + self._channels(self.mean, images)) / self.white

    def from_light(self, light: Tensor) -> Tensor:
        """Return normalised values of light, which is cut off at black and white."""
        stored = light.clamp(0, 1) * self.white
        return (stored - self._channels(self.mean, light)) / self._channels(self.std, light)


class ImageAugmenter(Augmenter):
    """A change of images."""

    @abstractmethod
    def change(self, images: Tensor, pixels: Pixels, generator: Generator) -> Tensor:
        """Return changed images (B, C, H, W); the received ones stay as they are."""

    def batch(self, batch: Batch, spec: Spec, generator: Generator) -> Batch:
        """Return the batch with its images changed.

        Raises:
            RecipeError: if there is no image to change.
        """
        changed = dict(batch)
        for name, field in inputs(batch, spec, self.columns):
            images = batch[name]
            if field.kind == "image" and isinstance(images, Tensor):
                new = self.change(images, Pixels.of(field), generator)
                changed[name] = new.to(images.dtype).contiguous(memory_format=torch.channels_last)
            elif self.columns is not None:
                raise RecipeError(
                    f"augment type '{self.type}' changes images, but column '{field.column}' is {field.kind}"
                )
        if all(changed[name] is batch[name] for name in batch):
            raise RecipeError(f"augment type '{self.type}' changes images, but no input is an image")
        return changed


def warp(images: Tensor, matrix: Tensor, offset: Tensor, black: Tensor | None) -> Tensor:
    """Look up each pixel at ``matrix @ place + offset``, bilinearly.

    Args:
        images: (B, C, H, W).
        matrix: (B, 2, 2), for places (x, y) in pixels from the centre.
        offset: (B, 2), in pixels.
        black: (1, C or 1, 1, 1), what lies outside; the outermost pixels go on there if left out.
    """
    height, width = images.shape[-2:]
    half = images.new_tensor([width / 2, height / 2])  # grid_sample counts from -1 to 1
    theta = torch.cat([matrix * half / half[:, None], (offset / half)[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if black is None:
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    # Zero is what grid_sample pads with, so black is made zero for the while.
    return F.grid_sample(images - black, grid, align_corners=False).add_(black)


def moved(images: Tensor, right: Tensor, down: Tensor, black: Tensor) -> Tensor:
    """Move each image by whole pixels, int64 (B,) each; what comes in from outside is black."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device) - down[:, None]  # (B, H)
    x = torch.arange(width, device=images.device) - right[:, None]  # (B, W)
    outside = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    taken = images.permute(0, 2, 3, 1)[
        rows, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]
    ]
    return torch.where(outside[:, None], black, taken.permute(0, 3, 1, 2))


def boxes(
    n: int, scale: tuple[float, float], ratio: tuple[float, float], like: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draw boxes that lie within a unit square.

    Args:
        n: how many.
        scale: their area, at least and at most.
        ratio: their width by their height, at least and at most, drawn on a logarithmic scale.
        like: gives the device.
        generator: the source of randomness.

    Returns:
        Upper left corners and sizes, (n, 2) each, as (x, y).
    """
    area = uniform(*scale, n, like, generator)
    low, high = torch.tensor(ratio).log().tolist()
    shape = uniform(low, high, n, like, generator).exp()
    size = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], dim=1).clamp(max=1)
    free = torch.rand(n, 2, generator=generator, device=generator.device).to(like.device)
    return free * (1 - size), size


def inside(corner: Tensor, size: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels have their centre in the box of each image, boolean, (B, 1, H, W)."""
    x = (torch.arange(width, device=corner.device) + 0.5) / width
    y = (torch.arange(height, device=corner.device) + 0.5) / height
    across = (x >= corner[:, :1]) & (x < corner[:, :1] + size[:, :1])  # (B, W)
    down = (y >= corner[:, 1:]) & (y < corner[:, 1:] + size[:, 1:])  # (B, H)
    return (down[:, :, None] & across[:, None, :])[:, None]
