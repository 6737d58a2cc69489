"""Shapley values of the columns: what each contributed to a row's score, fairly shared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field as Option
from torch import from_numpy

from luban.data.contracts import Encoded
from luban.explaining._base import Explainer, Explanation, Part
from luban.explaining._case import Case, require_rows
from luban.explaining._rows import Index, background, joined, outputs_of, shown
from luban.registry import register
from luban.sentences import say

__all__ = ["Shapley", "shapley_values"]

Floats = npt.NDArray[np.float64]

_MANY = 100_000  # mixed rows scored at a time


@register("explainers")
class Shapley(Explainer):
    """The mean change of the score when a column's own value joins those of other columns, over all orders of the columns.

    What is not yet there has the values of background rows; a text or a picture is one column like any other. The values add
    up to the score minus the mean score of the background (efficiency). With up to `exact` columns all their coalitions are
    tried; beyond, orders are drawn in antithetic pairs (an order and its reverse: Mitchell et al., 2022).

    Example:
        >>> Shapley(background=20).exact
        10
    """

    paper: ClassVar = say(
        "Shapley, 1953; Štrumbelj and Kononenko, 2014; Lundberg and Lee, 2017 (interventional values)"
    )
    limits: ClassVar = say(
        "columns that go together are torn apart, so the model is asked about rows that may not exist; "
        "and another background gives other values"
    )
    scope: ClassVar[Literal["row", "set"]] = "row"

    background: Annotated[int, Option(ge=1)] = 50
    """Rows that stand for 'not known', at most."""
    exact: Annotated[int, Option(ge=0, le=14)] = 10
    """Columns up to which all coalitions are tried."""
    permutations: Annotated[int, Option(ge=2)] = 400
    """Orders that are drawn for a row where there are more columns, half of them the others reversed."""

    def refusal(self, case: Case) -> str | None:
        """It needs a target, and something to share."""
        if not case.target:
            return say("it needs a target that is a column")
        if len(case.inputs) < 2:
            return say("it shares a score among columns, and the model reads a single one")
        return None

    def explain(self, case: Case) -> list[Explanation]:
        """Explain each row."""
        require_rows(case)
        generator = np.random.default_rng(case.seed)
        others, said = background(case, self.background, generator)
        pool = joined(case.encoded, case.predictor.pipeline.encode(others, targets=False)[0])
        columns = list(case.inputs)
        exact = len(columns) <= self.exact
        how = (
            say("all {n:,} coalitions", n=2 ** len(columns))
            if exact
            else say("{n:,} orders drawn", n=self._pairs * 2)
        )
        found = []
        for i in range(len(case)):
            game = _Game(case, pool, columns, i, len(others))
            found.append(game.exact() if exact else game.drawn(self._pairs, generator))
        parts = [
            {
                column: Part(column, "value", np.asarray(value), shown=shown(_cell(case, column, i)))
                for column, value in zip(columns, one.values, strict=True)
            }
            for i, one in enumerate(found)
        ]
        result = case.explanations(
            self.type, [one.score for one in found], parts, [one.base for one in found]
        )
        for explanation, one in zip(result, found, strict=True):
            gap, whole = one.values.sum() - (one.score - one.base), abs(one.score - one.base)
            explanation.quality["completeness_error"] = float(abs(gap) / max(whole, 1e-6))
            if not exact:
                explanation.quality["standard_error"] = float(one.error.max())
            explanation.notes.append(say("{said}; {how}", said=said, how=how))
        return result

    @property
    def _pairs(self) -> int:
        return self.permutations // 2


@dataclass
class _Values:
    """What was found for a row: a value a column, (N,), and how uncertain it is, the score, and that of the background."""

    values: Floats
    score: float
    base: float
    error: Floats


@dataclass
class _Game:
    """A row, whose columns are the players.

    Attributes:
        case: the model.
        pool: encoded rows of the case, then of the background.
        columns: the players.
        row: the row's place.
        others: how many rows the background has.
    """

    case: Case
    pool: Encoded
    columns: list[str]
    row: int
    others: int

    def worth(self, there: npt.NDArray[np.bool_], other: Index) -> Floats:
        """Return the score of mixed rows, (n,).

        Args:
            there: which columns have the row's own values, (n, N).
            other: number of the background row that the others are taken from, (n,).
        """
        first, parts = len(self.case), []
        for start in range(0, len(there), _MANY):
            own, rest = there[start : start + _MANY], first + other[start : start + _MANY]
            choice = {c: np.where(own[:, i], self.row, rest) for i, c in enumerate(self.columns)}
            outputs = from_numpy(outputs_of(self.case, self.pool, choice))
            chosen = np.full(len(own), self.case.chosen[self.row])
            parts.append(self.case.pick(outputs, chosen).numpy())
        result: Floats = np.concatenate(parts)
        return result

    def exact(self) -> _Values:
        """Return the values over all coalitions."""
        n = len(self.columns)
        there = (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1  # (2^N, N): bit i of a coalition's number
        other = np.tile(np.arange(self.others), 2**n)
        worth = self.worth(np.repeat(there, self.others, 0), other).reshape(2**n, -1).mean(1)
        return _Values(shapley_values(worth), float(worth[-1]), float(worth[0]), np.zeros(n))

    def drawn(self, pairs: int, generator: np.random.Generator) -> _Values:
        """Return the values over orders that are drawn; each pair starts at another background row."""
        n = len(self.columns)
        orders = generator.permuted(np.tile(np.arange(n), (pairs, 1)), axis=1)
        orders = np.stack([orders, orders[:, ::-1]], 1)  # (P, 2, N)
        rank = orders.argsort(2)
        there = rank[:, :, None, :] < np.arange(n + 1)[:, None]  # (P, 2, N + 1, N): after k columns
        starts = generator.permutation(self.others)[np.arange(pairs) % self.others]
        other = np.repeat(starts, 2 * (n + 1))
        worth = self.worth(there.reshape(-1, n), other).reshape(pairs, 2, n + 1)
        gains = np.take_along_axis(np.diff(worth, axis=2), rank, 2).mean(1)  # (P, N): by column
        error = gains.std(0, ddof=1) / math.sqrt(pairs) if pairs > 1 else np.full(n, np.nan)
        return _Values(gains.mean(0), float(worth[..., -1].mean()), float(worth[..., 0].mean()), error)


def shapley_values(worth: Floats) -> Floats:
    """Return the Shapley value of each player, (N,).

    Args:
        worth: of each coalition, (2^N,); player i is in coalition c if bit i of c is set.

    Example:
        >>> shapley_values(np.array([0.0, 1.0, 2.0, 5.0])).tolist()      # nobody, the first, the second, both
        [2.0, 3.0]
    """
    n = len(worth).bit_length() - 1
    coalitions = np.arange(len(worth))
    sizes = np.bitwise_count(coalitions)
    weights = np.asarray([1 / (n * math.comb(n - 1, size)) for size in range(n)])
    values = []
    for i in range(n):
        without = coalitions[coalitions >> i & 1 == 0]
        values.append(weights[sizes[without]] @ (worth[without | 1 << i] - worth[without]))
    return np.asarray(values)


def _cell(case: Case, column: str, row: int) -> Any:
    frame = case.given if column in case.given.columns else case.frame
    return frame[column][row]
