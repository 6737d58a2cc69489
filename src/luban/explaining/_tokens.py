"""Tokens that a model chooses: those that it writes, and those that it puts where some were hidden.

Each such token is a row of its own, whose score is the log-probability of the token, so every explainer of texts explains it without
knowing what it is. Afterwards the rows of one text are put together: a matrix, token chosen × token read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luban.data.contracts import Encoded, Flat
from luban.data.processors.text import Text
from luban.errors import InputError
from luban.explaining._base import Explanation, Part
from luban.explaining._case import Case
from luban.explaining._text import Pieces
from luban.sentences import say

__all__ = ["TokenCase", "flat", "together"]


@dataclass
class TokenCase(Case):
    """Tokens of one text that the model chooses, each a row."""

    @property
    @abstractmethod
    def text(self) -> Text:
        """The processor of the text whose tokens are chosen."""

    @abstractmethod
    def place(self, length: int) -> int:
        """Return the place, in a row of so many tokens, whose state the token is read off."""

    @property
    def classes(self) -> list[str]:
        """Tokens are no classes with names of their own."""
        return []

    @property
    def labels(self) -> list[str | None]:
        """The token that each row is about, as text."""
        return [self.text.decode_ids([int(token)], skip_special=False) for token in self.chosen]

    def chances_of_encoded(self, encoded: Encoded, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the probability of the token that each row is about, (n,)."""
        chances: npt.NDArray[np.float64] = np.exp(self.scores_of_encoded(encoded, chosen))
        return chances

    def probabilities(self) -> list[float | None]:
        """Return the probability of the token that each row is about."""
        return [float(one) for one in self.chances_of_encoded(self.encoded, self.chosen)]


def flat(rows: Sequence[Sequence[int]]) -> Flat:
    """Return rows of tokens one behind the other."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Flat(np.asarray([token for row in rows for token in row], dtype=np.int64), offsets)


def together(case: TokenCase, each: Sequence[Explanation], output: Pieces, chosen: str) -> Explanation:
    """Put the explanations of a text's tokens together to one: a matrix for each text that was read.

    Scores and baselines are sums over the tokens, measures of quality means.

    Args:
        case: of any of the tokens.
        each: one a token, at least one.
        output: the tokens as pieces; several may be one piece, whose values are their sum.
        chosen: all of them as text.

    Raises:
        InputError: if the explainer gives no value a token.
    """
    parts: dict[str, Part] = {}
    for column in each[0].parts:
        pieces = max((one.parts[column].pieces for one in each), key=len)
        rows = np.zeros((len(each), len(pieces)))
        for i, one in enumerate(each):
            own = one.parts[column]
            if own.kind != "tokens":
                raise InputError(
                    say(
                        "explainer '{method}' gives no value a token, so it cannot say which led to which",
                        method=one.method,
                    )
                )
            # What was read comes first, and what was written in order.
            rows[i, : len(own.pieces)] = own.values
        parts[column] = Part(
            column,
            "matrix",
            output.gather(rows.T).T,
            pieces,
            output.pieces,
            shown=each[-1].parts[column].shown,
            of_original=each[-1].parts[column].of_original,
        )
    bases = [one.baseline for one in each if one.baseline is not None]
    return Explanation(
        case.numbers[0],
        each[0].method,
        case.target,
        chosen,
        sum(one.score for one in each),
        sum(bases) if len(bases) == len(each) else None,
        each[0].probability if len(each) == 1 else None,
        parts,
        quality={
            key: float(np.mean([one.quality[key] for one in each if key in one.quality]))
            for key in dict.fromkeys(key for one in each for key in one.quality)
        },
        notes=list(dict.fromkeys(note for one in each for note in one.notes)),
    )
