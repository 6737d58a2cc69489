"""Residual network for small images (He et al., 'Identity Mappings in Deep Residual Networks', 2016)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field as Limit
from torch import Tensor, nn

from luban.data.contracts import Field
from luban.models._convolution import image_norm
from luban.models._encoders import Encoder, Image, is_image
from luban.models._layers import Activation, Count, activation_of, in_channels_last
from luban.models._network import Family
from luban.registry import register

__all__ = ["ResNet"]


@register("models")
class ResNet(Family):
    """Pre-activation residual blocks in stages, each of half the size and twice the channels of the one before.

    Example:
        >>> ResNet(blocks=[3, 3, 3], width=16).norm             # the 20-layer network of the paper
        'batch'
    """

    made_for: ClassVar = "images"
    SIZES: ClassVar = {
        "tiny": {"width": 8, "blocks": [1, 1, 1]},
        "small": {"width": 16, "blocks": [1, 1, 1]},
        "medium": {"width": 32, "blocks": [2, 2, 2]},
        "large": {"width": 64, "blocks": [2, 2, 2, 2]},
    }

    width: Count
    """Channels of the first stage."""
    blocks: Annotated[list[Count], Limit(min_length=1)]
    """Residual blocks of two convolutions in each stage."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation; `group` depends on no other image of the batch, which private training needs."""
    stem: Literal["auto", "full", "quarter"] = "auto"
    """Size at which the first stage works: the image's own, or a quarter of it; auto takes a quarter from 96 pixels on."""

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read images."""
        if not is_image(field):
            return None
        height, width, channels = field.shape or ()
        quarter = self.stem == "quarter" or (self.stem == "auto" and min(height, width) >= 96)
        network, out = _residual_network(
            channels, self.width, self.blocks, self.norm, self.activation, quarter
        )
        return Image(name, in_channels_last(network), out)


def _residual_network(
    channels: int,
    width: int,
    blocks: list[int],
    norm: Literal["batch", "group"],
    activation: Activation,
    quarter: bool,
) -> tuple[nn.Module, int]:
    """Return the module (B, C, H, W) → (B, out), and out."""
    if quarter:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
    else:
        layers = [nn.Conv2d(channels, width, 3, 1, 1, bias=False)]
    inside = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            out = width * 2**stage
            layers.append(_Block(inside, out, 2 if stage and not block else 1, norm, activation))
            inside = out
    return nn.Sequential(*layers, _norm(norm, inside), activation_of(activation), _Average()), inside


def _norm(kind: Literal["batch", "group"], channels: int) -> nn.Module:
    norm = image_norm(kind, channels)
    assert norm is not None
    return norm


class _Average(nn.Module):
    """The mean of each channel's map; of any size, also 1×1."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        return maps.mean((2, 3))


class _Block(nn.Module):
    """``x + conv(act(norm(conv(act(norm(x))))))``; where size or channels change, x passes a 1×1 convolution."""

    def __init__(
        self, inside: int, out: int, stride: int, norm: Literal["batch", "group"], activation: Activation
    ) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(norm, inside), activation_of(activation))
        self.inner = nn.Sequential(
            nn.Conv2d(inside, out, 3, stride, 1, bias=False),
            _norm(norm, out),
            activation_of(activation),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(inside, out, 1, stride, bias=False) if stride > 1 or inside != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        ready: Tensor = self.before(x)
        result: Tensor = self.inner(ready) + (x if self.shortcut is None else self.shortcut(ready))
        return result
