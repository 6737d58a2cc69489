"""What a language model is worth on texts that it has not seen: perplexity and bits per byte, with intervals.

==================  =================================================================================================
metric              meaning
==================  =================================================================================================
loss                mean of minus the log of a token's probability (of the hidden tokens, for a masked model)
perplexity          e to the loss
bits_per_byte       bits needed for a byte of what was predicted, whatever its tokens are; causal models only
==================  =================================================================================================

The first token of a text is predicted by nothing, unless the tokenizer has one that begins texts; so its bytes do not count.
Where rows have weights, each token and byte counts as much as its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from luban.evaluation.intervals import Floats, Metric, deal, interval, resamples, units_of
from luban.evaluation.metrics import Comparison, Measured
from luban.language import Score
from luban.sentences import say

__all__ = ["OF_TOKENS", "LanguageCollector", "compare_texts"]

OF_TOKENS = ("loss", "perplexity")
"""Metrics that are of a token, so that they say nothing of two models where other things were predicted."""
_BITS = 1 / math.log(2)
_SUMS = 3  # loss, tokens, bytes


@dataclass
class LanguageCollector:
    """Gathers three sums a text; a resample draws whole texts, since the tokens of one hang together.

    Attributes:
        causal: whether every token was predicted, so that a price in bits can be named.
        rows: texts so far.
    """

    causal: bool
    rows: int = 0
    _sums: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _plain: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(_SUMS))

    def update(self, scores: list[Score], weights: npt.NDArray[Any] | None = None) -> None:
        """Add texts, whose tokens and bytes count as much as their `weights`, (n,), say."""
        self.rows += len(scores)
        sums = np.array([[s.loss, s.tokens, s.bytes] for s in scores], dtype=np.float64).reshape(-1, _SUMS)
        self._plain = self._plain + sums.sum(0)
        self._sums.append(sums if weights is None else sums * weights[:, None])

    def compute(self, *, count: int = 1000, seed: int = 0) -> Measured:
        """Measure all texts so far.

        Args:
            count: resamples of the bootstrap; 0 leaves the intervals out.
            seed: of the draws.
        """
        whole, draws = self.draws(count, seed)
        if not whole[1]:
            return Measured(
                {name: Metric(None, note=say("no token was predicted")) for name in self._names},
                {},
                self.rows,
            )
        values, drawn = self._figures(whole[None]), self._figures(draws)
        metrics = {
            name: interval(float(values[name][0]), drawn[name], bounds=(0.0, np.inf)) for name in values
        }
        metrics["perplexity"] = _exponential(
            metrics["loss"]
        )  # so that neither end leaves what a perplexity can be
        return Measured(metrics, {"tokens": int(self._plain[1]), "bytes": int(self._plain[2])}, self.rows)

    def draws(self, count: int, seed: int) -> tuple[Floats, Floats]:
        """Return the sums of all texts, (3,), and those of each resample, (count, 3); as many texts are drawn alike, whose they are."""
        sums = np.concatenate(self._sums) if self._sums else np.zeros((0, _SUMS))
        units = units_of(len(sums), _SUMS)
        grouped = np.zeros((units, _SUMS))
        np.add.at(grouped, deal(slice(0, len(sums)), len(sums), units, seed), sums)
        drawn = [*self._drawn(grouped, count, seed)] if len(sums) else []
        return sums.sum(0), np.concatenate([*drawn, np.zeros((0, _SUMS))])

    @property
    def _names(self) -> list[str]:
        return list(self._figures(np.ones((1, _SUMS))))

    @staticmethod
    def _drawn(grouped: npt.NDArray[np.float64], count: int, seed: int) -> Iterator[Floats]:
        for times in resamples(len(grouped), count, seed, _SUMS):
            yield times @ grouped

    def _figures(self, sums: Floats) -> dict[str, Floats]:
        """Return each metric of rows of sums, (n, 3)."""
        loss = _over(sums[:, 0], sums[:, 1])
        found = {"loss": loss, "perplexity": np.exp(np.minimum(loss, 700.0))}
        if self.causal:
            found["bits_per_byte"] = _BITS * _over(sums[:, 0], sums[:, 2])
        return found


def _over(sums: Floats, counts: Floats) -> Floats:
    result: Floats = sums / np.where(counts > 0, counts, 1.0)
    return result


def _exponential(metric: Metric) -> Metric:
    """Return e to a metric and to the ends of its interval."""
    value, low, high = (
        None if one is None else math.exp(min(one, 700.0)) for one in (metric.value, metric.low, metric.high)
    )
    return Metric(value, low, high, metric.note)


def compare_texts(
    a: LanguageCollector,
    b: LanguageCollector,
    *,
    apart: str | None = None,
    count: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same texts, each resample holding the same texts for both.

    A text that is hard for one is mostly hard for the other, so a paired interval is narrower than the two models' own
    intervals suggest (Dror et al. 2018).

    Args:
        a, b: have gathered the same texts in the same order, with the same weights.
        apart: why the tokens of the two are not the same, if they are not: loss and perplexity then get no value, and this note.
        count: resamples of the bootstrap.
        seed: of the draws.

    Returns:
        The second's metrics minus the first's, with intervals.

    Example:
        >>> a, b = LanguageCollector(causal=True), LanguageCollector(causal=True)
        >>> a.update([Score(8.0, 4, 8), Score(16.0, 8, 16)])
        >>> b.update([Score(6.0, 4, 8), Score(12.0, 8, 16)])
        >>> found = compare_texts(a, b).differences["loss"]
        >>> found.value, found.low, found.high
        (-0.5, -0.5, -0.5)
    """
    assert a.rows == b.rows, f"{a.rows} texts and {b.rows}"
    assert a.causal == b.causal, "one predicts all tokens, the other hidden ones"
    (whole_a, drawn_a), (whole_b, drawn_b) = a.draws(count, seed), b.draws(count, seed)
    if not whole_a[1] or not whole_b[1]:
        return Comparison({name: Metric(None, note=say("no token was predicted")) for name in a._names})
    values = [one._figures(whole[None]) for one, whole in ((a, whole_a), (b, whole_b))]
    draws = [one._figures(drawn) for one, drawn in ((a, drawn_a), (b, drawn_b))]
    found = {
        name: interval(float(values[1][name][0] - values[0][name][0]), draws[1][name] - draws[0][name])
        for name in values[0]
    }
    if apart is not None:
        found |= {name: Metric(None, note=apart) for name in OF_TOKENS}
    return Comparison(found)
