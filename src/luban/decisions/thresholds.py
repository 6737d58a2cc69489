"""A threshold for each group, so that decisions treat groups alike whatever the model learnt (Hardt et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.data.contracts import Array, Processor
from luban.data.processors._base import as_words
from luban.data.processors.binary import Binary
from luban.decisions._base import Decision
from luban.errors import DataError, RecipeError
from luban.registry import register

__all__ = ["Thresholds"]

_MISSING = "(missing)"
_STEPS = 400  # rates tried
_FEW = 50  # rates of a group that are tried besides


@register("decisions")
class Thresholds(Decision):
    """Logits of each group are shifted, so that the one threshold of the target means another one for each group.

    Of all shifts under which groups differ by at most `max_difference` on the validation rows, those with the most right
    decisions are taken. Scores are shifted with the decisions: they say how far a row is from its group's threshold and are no
    probabilities any more. Rows to predict must bring the column of the groups, and deciding by it may be against the law where
    you are: ask before you use it. A group that was not seen, or too seldom, gets the threshold of the whole.

    Example:
        ``decide: [{type: thresholds, by: sex, max_difference: 0.05}]``
    """

    kinds: ClassVar[tuple[str, ...]] = ("binary",)

    by: str
    """The column whose values are the groups; one of ``data.groups``."""
    constraint: Literal["demographic_parity", "equal_opportunity"] = "demographic_parity"
    """What is to be alike: the share predicted positive, or that share among the rows that are positive."""
    max_difference: Annotated[float, Option(ge=0, le=1)] = 0.0
    """How far groups may differ on the validation rows, within one row of each group."""
    min_rows: Annotated[int, Option(ge=1)] = 20
    """Rows (positive ones, for equal_opportunity) that a group needs to have a threshold of its own."""

    _shifts: dict[str, float] = PrivateAttr(default_factory=dict)

    @property
    def needs(self) -> list[str]:
        return [self.by]

    def _words(self, rows: pl.DataFrame) -> Array:
        if self.by not in rows.columns:
            raise DataError(
                f"there is no column '{self.by}', by whose values '{self.column}' is decided; bring it along, or train without decide: thresholds"
            )
        words: Array = as_words(rows[self.by]).fill_null(_MISSING).to_numpy()
        return words

    def fit(self, processor: Processor, output: Array, truth: Array, rows: pl.DataFrame) -> str:
        assert isinstance(processor, Binary)
        words, logits, own = self._words(rows), output[:, 0].astype(np.float64), _logit(processor.threshold)
        curves: dict[str, tuple[Array, Array, Array]] = {}
        counts: dict[str, int] = {}
        for word in np.unique(words):
            mine = words == word
            counted = mine if self.constraint == "demographic_parity" else mine & (truth == 1)
            if counted.sum() >= self.min_rows:
                curves[str(word)] = _curve(logits[mine], truth[mine], counted[mine])
                counts[str(word)] = int(counted.sum())
        if len(curves) < 2:
            raise RecipeError(
                f"decide thresholds: fewer than two groups of '{self.by}' have {self.min_rows} validation rows; lower min_rows or raise data.split.validation"
            )
        best: tuple[float, dict[str, int]] | None = None
        for low in self._lows([rates for _, rates, _ in curves.values()]):
            chosen, right = {}, 0.0
            for word, (_, rates, hits) in curves.items():
                inside = np.flatnonzero((rates >= low - 1e-12) & (rates <= low + self.max_difference + 1e-12))
                # No cut may give just this rate; one that is off by half a row at the most then serves.
                at = inside[hits[inside].argmax()] if len(inside) else int(np.abs(rates - low).argmin())
                if not len(inside) and abs(rates[at] - low) > 0.5 / counts[word] + 1e-12:
                    break
                chosen[word], right = int(at), right + float(hits[at])
            else:
                if best is None or right > best[0]:
                    best = right, chosen
        assert best is not None, "a rate of 0 is there for every group"
        cuts = {word: float(curves[word][0][at]) for word, at in best[1].items()}
        reached = [float(curves[word][1][at]) for word, at in best[1].items()]
        self._shifts = {word: own - cut for word, cut in cuts.items()}
        shown = ", ".join(f"{word} {_chance(cut):.3f}" for word, cut in cuts.items())
        return (
            f"thresholds of '{self.column}' by {self.by}: {shown}, by {len(output):,} validation rows, "
            f"where groups differ by {max(reached) - min(reached):.3f}"
        )

    def _lows(self, rates: Sequence[Array]) -> Array:
        """Return lowest rates to try: a grid, and where a group has few rates, those."""
        few = [own for own in rates if len(own) <= _FEW]
        tried = np.concatenate(
            [np.linspace(0, 1, _STEPS + 1), *few, *(own - self.max_difference for own in few)]
        )
        return np.unique(tried[tried >= 0].round(12))

    def outputs(self, output: Array, rows: pl.DataFrame) -> Array:
        shifts = np.array([self._shifts.get(str(word), 0.0) for word in self._words(rows)])
        shifted: Array = (output + shifts[:, None]).astype(output.dtype)
        return shifted

    def groups(self) -> list[str]:
        """Return the groups that have a threshold of their own."""
        return list(self._shifts)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "shifts": self._shifts}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._shifts = {str(word): float(shift) for word, shift in state["shifts"].items()}


def _curve(logits: Array, truth: Array, counted: Array) -> tuple[Array, Array, Array]:
    """Return cuts between the logits of a group, the rate that each gives among the counted rows, and the right decisions."""
    order = np.argsort(logits)
    sorted_logits, positive, mine = logits[order], truth[order] == 1, counted[order]
    middle = (sorted_logits[1:] + sorted_logits[:-1]) / 2
    cuts = np.concatenate([[sorted_logits[0] - 1], middle, [sorted_logits[-1] + 1]])
    usable = np.concatenate([[True], sorted_logits[1:] > sorted_logits[:-1], [True]])
    above = mine.sum() - np.concatenate([[0], np.cumsum(mine)])
    # Rows below a cut are right where they are negative, those above it where they are positive.
    right = np.concatenate([[0], np.cumsum(~positive)]) + (
        positive.sum() - np.concatenate([[0], np.cumsum(positive)])
    )
    return cuts[usable], (above / max(1, mine.sum()))[usable], right[usable].astype(np.float64)


def _logit(chance: float) -> float:
    return float(np.log(chance / (1 - chance)))


def _chance(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
