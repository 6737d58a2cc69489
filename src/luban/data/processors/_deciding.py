"""From scores to what is said: the one place that knows thresholds, and which class wins.

``scores`` are what `Processor.scores` makes of outputs: of a yes or no the probability of the positive word (n,), of classes
those of all (n, classes), of a set that of each word (n, width), of a number the number (n,).
"""

from __future__ import annotations

import numpy as np

from luban.data.contracts import Array, Processor
from luban.data.processors.binary import Binary
from luban.data.processors.set import Set

__all__ = ["class_shares", "said", "threshold_of"]


def threshold_of(processor: Processor) -> float:
    """Return the probability from which a target's word is predicted."""
    return processor.threshold if isinstance(processor, Binary | Set) else 0.5


def said(processor: Processor, scores: Array) -> Array:
    """Return what is predicted of scores: class numbers (n,), 0 and 1 for each word of a set (n, width), or numbers (n,)."""
    if processor.task in ("binary", "multilabel"):
        return np.asarray(scores >= threshold_of(processor), dtype=np.int64)
    return np.asarray(scores.argmax(1), dtype=np.int64) if scores.ndim == 2 else scores


def class_shares(scores: Array) -> Array:
    """Return the probability of each class or word, (n, classes), of the scores of a target that has classes.

    Example:
        >>> class_shares(np.array([0.25])).tolist()
        [[0.75, 0.25]]
    """
    return np.stack([1 - scores, scores], 1) if scores.ndim == 1 else scores
