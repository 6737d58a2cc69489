"""SmolLM2 (Allal et al., 2025): Llama's shape, deep and thin, in sizes that a laptop serves."""

from __future__ import annotations

from typing import ClassVar

from luban.models._layers import Count, Positive
from luban.models.llama import Llama
from luban.registry import register

__all__ = ["SmolLM"]


@register("models")
class SmolLM(Llama):
    """A causal language model in the sizes of SmolLM2: small is 135 M parameters, medium 360 M, large 1.7 B.

    Example:
        >>> SmolLM().layers, SmolLM(size="tiny").layers
        (30, 4)
    """

    SIZES: ClassVar = {
        "tiny": {"layers": 4, "hidden_size": 192, "heads": 3, "kv_heads": 1, "intermediate": 512},
        "small": {"layers": 30, "hidden_size": 576, "heads": 9, "kv_heads": 3, "intermediate": 1536},
        "medium": {"layers": 32, "hidden_size": 960, "heads": 15, "kv_heads": 5, "intermediate": 2560},
        "large": {"layers": 24, "hidden_size": 2048, "heads": 32, "kv_heads": 32, "intermediate": 8192},
    }

    max_positions: Count = 8192
    """Tokens of a text, at the most."""
    rope_theta: Positive = 100_000.0
    """Base of the rotary positions: the slowest pair turns once in 2π times as many tokens."""
