"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama's shape with a bias on queries, keys and values."""

from __future__ import annotations

from luban.models._layers import Positive
from luban.models.llama import Llama
from luban.registry import register

__all__ = ["Qwen2"]


@register("models")
class Qwen2(Llama):
    """A causal language model of Qwen2's shape.

    Example:
        >>> Qwen2(size="tiny").attention_bias
        True
    """

    attention_bias: bool = True
    """Whether queries, keys and values have a bias."""
    eps: Positive = 1e-6
    """Added to the mean square in the norms."""
    rope_theta: Positive = 1_000_000.0
    """Base of the rotary positions: the slowest pair turns once in 2π times as many tokens."""
