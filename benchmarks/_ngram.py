"""An n-gram model with interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1998, 'An empirical study of smoothing
techniques for language modeling', TR-10-98), counted by sorting, so that tens of millions of tokens take a minute or two.

    p(w | h) = (c(hw) - D(c(hw))) / c(h)  +  (D1 N1(h) + D2 N2(h) + D3 N3(h)) / c(h) · p(w | h without its first token)

N1, N2 and N3 are how many tokens follow h once, twice, and three times or more; c is how often, for the longest n-grams, and for shorter
ones how many different tokens stand before (N-grams that open a document have nothing before them: they keep their frequency).
Below single tokens every one of the vocabulary is as probable as another. Discounts are Chen and Goodman's, from the n-grams seen one to
four times:

    Y = n1 / (n1 + 2 n2),  D1 = 1 - 2 Y n2 / n1,  D2 = 2 - 3 Y n3 / n2,  D3 = 3 - 4 Y n4 / n3

Where a text is too short for these to lie between 0 and 1, 2 and 3, they are 0.5, 1 and 1.5, as in KenLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["KneserNey"]

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length, in the order of their keys: number of the n-gram without its last token · symbols + that token."""

    keys: Ints  # (G,), rising
    discounted: Floats  # (G,): (c - D(c)) / c(h)
    spare: Floats  # (H + 1,), by h: what the shorter context distributes; 1 where h was never seen, and at the end
    discounts: tuple[float, ...]


class KneserNey:
    """Probabilities of a document's tokens from the `order` - 1 tokens before each.

    A document is opened by a symbol of its own, which is never predicted.

    Args:
        tokens: documents one after the other, (T,), numbers below `vocabulary`.
        offsets: where each begins, and the end of the last, (D + 1,).
        vocabulary: how many tokens there are, seen or not.
        order: tokens of the longest n-gram.
    """

    def __init__(self, tokens: npt.NDArray[Any], offsets: Ints, vocabulary: int, order: int = 5) -> None:
        self.vocabulary, self.order = vocabulary, order
        self.orders = self._counted(*self._opened(tokens, offsets))

    def _opened(self, tokens: npt.NDArray[Any], offsets: Ints) -> tuple[Ints, Ints]:
        """Return the tokens with the opening symbol before each document, and how many symbols of its document stand before each."""
        lengths = np.diff(offsets)
        starts = offsets[:-1] + np.arange(len(lengths))
        symbols = np.full(int(offsets[-1] - offsets[0]) + len(lengths), self.vocabulary, dtype=np.int64)
        places = np.arange(len(symbols)) - np.repeat(starts - offsets[0], lengths + 1)
        symbols[places > 0] = tokens[offsets[0] : offsets[-1]]
        return symbols, places

    def _counted(self, symbols: Ints, places: Ints) -> list[_Order]:
        numbers, contexts = symbols, self.vocabulary + 1
        found: list[
            tuple[Ints, npt.NDArray[np.bool_], Ints]
        ] = []  # keys, whether it opens a document, counts
        for length in range(1, self.order + 1):
            ends = np.flatnonzero(places >= length - 1)  # where an n-gram of this length ends
            before = numbers[ends - 1] if length > 1 else np.zeros(len(ends), dtype=np.int64)
            keys, first, own, times = np.unique(
                before * (self.vocabulary + 1) + symbols[ends],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            if length > 1:
                # How many n-grams there are that only differ in the first token; the last of them is known now.
                shorter, opens, raw = found[-1]
                different = np.bincount(numbers[ends[first]], minlength=len(shorter))
                found[-1] = shorter, opens, np.where(opens, raw, different)
            found.append((keys, places[ends[first]] == length - 1, times))
            numbers = np.full(len(symbols), -1, dtype=np.int64)
            numbers[ends] = own
        orders = []
        for length, (keys, _, counts) in enumerate(found, 1):
            if length == 1:
                counts = np.where(keys == self.vocabulary, 0, counts)  # the opening symbol is not predicted
            orders.append(self._smoothed(keys, counts, contexts if length > 1 else 1))
            contexts = len(keys)
        return orders

    def _smoothed(self, keys: Ints, counts: Ints, contexts: int) -> _Order:
        of = keys // (self.vocabulary + 1)
        n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
        pairs = enumerate(((n1, n2), (n2, n3), (n3, n4)), 1)
        discounts = FALLBACK
        if n1 and n2 and n3:
            y = n1 / (n1 + 2 * n2)
            own = tuple(i - (i + 1) * y * b / a for i, (a, b) in pairs)
            if all(0 < d < i for i, d in enumerate(own, 1)):
                discounts = own
        each = np.array([0.0, *discounts])[np.minimum(counts, 3)]
        total = np.bincount(of, weights=counts, minlength=contexts)
        spare = np.bincount(of, weights=each, minlength=contexts)
        seen = total > 0
        spare = np.append(np.where(seen, spare / np.maximum(total, 1), 1.0), 1.0)
        return _Order(keys, (counts - each) / np.maximum(total, 1)[of], spare, discounts)

    def probabilities(self, tokens: npt.NDArray[Any], offsets: Ints) -> Floats:
        """Return the probability of each token given those before it in its document, (T,)."""
        symbols, places = self._opened(tokens, offsets)
        numbers, result = symbols, np.full(len(symbols), 1.0 / self.vocabulary)
        for length, one in enumerate(self.orders, 1):
            ends = np.flatnonzero(places >= length - 1)
            before = numbers[ends - 1] if length > 1 else np.zeros(len(ends), dtype=np.int64)
            keys = before * (self.vocabulary + 1) + symbols[ends]
            at = np.minimum(np.searchsorted(one.keys, keys), len(one.keys) - 1)
            known = (before >= 0) & (one.keys[at] == keys)
            # A context that was never seen, number -1, takes the last place: all is left to the shorter one.
            result[ends] = result[ends] * one.spare[before] + np.where(known, one.discounted[at], 0.0)
            numbers = np.full(len(symbols), -1, dtype=np.int64)
            numbers[ends] = np.where(known, at, -1)
        return result[places > 0]

    def distribution(self, context: npt.ArrayLike) -> Floats:
        """Return the probability of every token after the first tokens of a document, (V,)."""
        begun = np.asarray(context, dtype=np.int64)
        documents = np.empty((self.vocabulary, len(begun) + 1), dtype=np.int64)
        documents[:, :-1], documents[:, -1] = begun, np.arange(self.vocabulary)
        offsets = np.arange(self.vocabulary + 1) * documents.shape[1]
        return self.probabilities(documents.ravel(), offsets).reshape(documents.shape)[:, -1]
