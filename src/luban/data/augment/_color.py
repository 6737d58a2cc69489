"""Operations on light (B, C, H, W) between 0 and 1, with a factor (B,) for each image; 1 changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "autocontrast",
    "brightness",
    "contrast",
    "equalize",
    "gray",
    "posterize",
    "saturation",
    "sharpness",
    "solarize",
]


def gray(light: Tensor) -> Tensor:
    """Return the luminance (ITU-R BT.601), (B, 1, H, W); the mean of the channels unless there are three."""
    if light.shape[1] != 3:
        return light.mean(1, keepdim=True)
    weights = light.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (light * weights).sum(1, keepdim=True)


def _blend(light: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return (light * factor + other * (1 - factor)).clamp(0, 1)


def brightness(light: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(light, 0.0, factor)


def contrast(light: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luminance."""
    return _blend(light, gray(light).mean((1, 2, 3), keepdim=True), factor)


def saturation(light: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luminance; images of one channel stay."""
    return light if light.shape[1] == 1 else _blend(light, gray(light), factor)


def sharpness(light: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed image; the outermost pixels stay."""
    channels = light.shape[1]
    if min(light.shape[-2:]) < 3:
        return light
    kernel = light.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(channels, 1, 3, 3)
    smooth = light.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(light, kernel, groups=channels)
    return _blend(light, smooth, factor)


def posterize(light: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` (B,) of eight."""
    step = torch.exp2(8 - bits).view(-1, 1, 1, 1)
    return (light * 255).round().div(step).floor().mul(step).div(255)


def solarize(light: Tensor, threshold: Tensor) -> Tensor:
    """Turn light from `threshold` (B,) on into its negative."""
    return torch.where(light >= threshold.view(-1, 1, 1, 1), 1 - light, light)


def autocontrast(light: Tensor) -> Tensor:
    """Stretch each channel from black to white; a channel of one value stays."""
    low, high = light.amin((2, 3), keepdim=True), light.amax((2, 3), keepdim=True)
    return torch.where(high > low, (light - low) / (high - low).clamp(min=1e-6), light)


def equalize(light: Tensor) -> Tensor:
    """Make the 256 levels of each channel equally frequent, as Pillow does."""
    levels = (light * 255).round().to(torch.int64).flatten(2)  # (B, C, H * W)
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add(2, levels, torch.ones_like(levels))
    last = levels.amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, last)) // 255  # (B, C, 1)
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(0, 255), torch.arange(256, device=light.device))
    return table.gather(2, levels).view_as(light).to(light.dtype) / 255
