"""Qwen3 (Yang et al., 2025): Llama's shape with queries and keys normalised by head."""

from __future__ import annotations

from typing import ClassVar

from luban.models._layers import Positive
from luban.models.llama import Llama
from luban.registry import register

__all__ = ["Qwen3"]


@register("models")
class Qwen3(Llama):
    """A causal language model of Qwen3's shape.

    Example:
        >>> Qwen3(size="tiny").rope_theta
        1000000.0
    """

    NORM_QUERIES: ClassVar = True

    eps: Positive = 1e-6
    """Added to the mean square in the norms."""
    rope_theta: Positive = 1_000_000.0
    """Base of the rotary positions: the slowest pair turns once in 2π times as many tokens."""
