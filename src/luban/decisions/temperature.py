"""Temperature scaling: one number that makes probabilities mean what they say (Guo et al., 2017)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import PrivateAttr

from luban.data.contracts import Array, Processor
from luban.decisions._base import Decision
from luban.registry import register

__all__ = ["Temperature", "negative_log_likelihood"]


@register("decisions")
class Temperature(Decision):
    """Logits are divided by the temperature at which validation rows are most probable.

    The order of classes does not change, so neither does accuracy (with a threshold other than 0.5, decisions do).
    """

    kinds: ClassVar[tuple[str, ...]] = ("category", "binary", "set")

    _temperature: float = PrivateAttr(default=1.0)

    def fit(self, processor: Processor, output: Array, truth: Array, rows: pl.DataFrame) -> str:
        from scipy.optimize import minimize_scalar

        # The loss is convex in 1 / T, so a search by halves finds it; between 1/20 and 20 lies whatever makes sense.
        found = minimize_scalar(
            lambda log: negative_log_likelihood(output / np.exp(log), truth),
            bounds=(-3.0, 3.0),
            method="bounded",
            options={"xatol": 1e-5},
        )
        self._temperature = float(np.exp(found.x))
        before, after = negative_log_likelihood(output, truth), float(found.fun)
        return f"temperature of '{self.column}': {self._temperature:.3f}, by {len(output):,} validation rows (log loss {before:.4f} → {after:.4f})"

    def outputs(self, output: Array, rows: pl.DataFrame) -> Array:
        return (output / np.float32(self._temperature)).astype(output.dtype)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "temperature": self._temperature}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._temperature = float(state["temperature"])


def negative_log_likelihood(logits: Array, truth: Array) -> float:
    """Return the mean loss: of classes (n, width) and their numbers (n,), or of yes-or-no logits and truths alike."""
    logits = logits.astype(np.float64)
    if logits.shape[1] > 1 and truth.ndim == 1:
        top = logits.max(1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        return float((log_sum - logits[np.arange(len(truth)), truth]).mean())
    wanted = truth.reshape(logits.shape)
    return float((np.logaddexp(0, logits) - wanted * logits).mean())
