"""A small model of any rows, fitted in seconds: what an audit asks when it needs a second opinion.

Tables go to boosted trees, texts to TF-IDF of the artefact's own tokens with logistic regression, pictures to their nearest
neighbours. Rows are read as the artefact reads them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from luban.auditing._base import SEED
from luban.data.contracts import Array, Flat
from luban.predict import Predictor

__all__ = ["Features", "auc", "out_of_fold"]

_SIDE = 32  # pixels of a picture's side at most
_NEIGHBOURS = 10
_SHARP = 8  # power of the likeness by which neighbours are weighed: recall of flipped labels rose from 0.82 to 0.88
_BLOCK = 2048  # rows compared with all others at a time
_PART = 1024  # rows encoded at a time


@dataclass(frozen=True)
class Features:
    """Rows as a small model reads them.

    Attributes:
        dense: numbers and class numbers, (n, d), float32.
        classes: how many classes each column of `dense` has, 0 for a number, (d,).
        words: tokens of all texts, a sparse count matrix (n, vocabulary), or None.
        pictures: whether `dense` holds pixels.
        kept: which of the rows could be read, boolean.
    """

    dense: Array
    classes: Array
    words: Any
    pictures: bool
    kept: Array

    @classmethod
    def of(cls, predictor: Predictor, rows: pl.DataFrame) -> Features:
        """Encode rows as the artefact does, some at a time: of a picture only every so many pixels are kept."""
        parts = [cls._some(predictor, rows.slice(i, _PART)) for i in range(0, max(1, len(rows)), _PART)]
        return parts[0].join(*parts[1:])

    @classmethod
    def _some(cls, predictor: Predictor, rows: pl.DataFrame) -> Features:
        from scipy import sparse

        encoded, kept = predictor.encode(rows)
        dense: list[Array] = []
        classes: list[int] = []
        words: list[Any] = []
        pictures = False
        for name, value in encoded.items():
            field = predictor.spec.fields.get(name) or predictor.pipeline.spec.fields[name]
            if isinstance(value, Flat):
                if field.size is not None and value.values.ndim == 1:
                    ones = np.ones(len(value.values), np.float32)
                    counts = sparse.csr_matrix(
                        (ones, value.values.astype(np.int32), value.offsets), shape=(len(value), field.size)
                    )
                    counts.sum_duplicates()
                    words.append(counts)
                continue
            if field.kind == "image":
                step = max(1, -(-max(value.shape[1:3]) // _SIDE))
                value, pictures = value[:, ::step, ::step], True
            flat = value.reshape(len(value), -1).astype(np.float32)
            dense.append(flat)
            classes += [(field.size or 0) if value.ndim == 1 else 0] * flat.shape[1]
        whole = np.concatenate(dense, 1) if dense else np.zeros((int(kept.sum()), 0), np.float32)
        text = sparse.hstack(words, format="csr") if words else None
        return cls(whole, np.array(classes, np.int64), text, pictures, kept)

    def join(self, *others: Features) -> Features:
        """Put other rows below these."""
        from scipy import sparse

        parts = [self, *others]
        words = None if self.words is None else sparse.vstack([one.words for one in parts], format="csr")
        return Features(
            np.concatenate([one.dense for one in parts]),
            self.classes,
            words,
            self.pictures,
            np.concatenate([one.kept for one in parts]),
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read."""
        return self.words is None and not self.dense.shape[1]


def out_of_fold(features: Features, labels: Array, folds: int = 5) -> Array:
    """Return the probability of each class for each row, by a small model that did not see the row, (n, classes).

    Args:
        features: the rows.
        labels: class numbers, (n,).
        folds: parts that take turns; rows are dealt by lot, class by class.
    """
    classes = int(labels.max()) + 1
    order = np.random.default_rng([SEED, 6]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    shares = np.zeros((len(labels), classes))
    for number in range(folds):
        held = np.flatnonzero(fold == number)
        seen = np.flatnonzero(fold != number)
        shares[held] = _fitted(features, labels, seen, held, classes)
    return shares


def _fitted(features: Features, labels: Array, seen: Array, held: Array, classes: int) -> Array:
    if len(np.unique(labels[seen])) == 1:
        return np.asarray(np.eye(classes)[np.full(len(held), labels[seen][0])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model that has not quite converged is good enough here
        if features.pictures:
            return _neighbours(features.dense[seen], labels[seen], features.dense[held], classes)
        if features.words is not None:
            return _regression(features, labels, seen, held, classes)
        return _trees(features, labels, seen, held, classes)


def _trees(features: Features, labels: Array, seen: Array, held: Array, classes: int) -> Array:
    from sklearn.ensemble import HistGradientBoostingClassifier

    few = (features.classes > 0) & (features.classes <= 255)
    model = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.1, categorical_features=few if few.any() else None, random_state=SEED
    )
    model.fit(features.dense[seen], labels[seen])
    shares = np.zeros((len(held), classes))
    shares[:, model.classes_] = model.predict_proba(features.dense[held])
    return shares


def _regression(features: Features, labels: Array, seen: Array, held: Array, classes: int) -> Array:
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    parts = [TfidfTransformer(sublinear_tf=True).fit(features.words[seen]).transform(features.words)]
    coded = features.classes > 0
    if coded.any():
        one_hot = OneHotEncoder(handle_unknown="ignore").fit(features.dense[seen][:, coded])
        parts.append(one_hot.transform(features.dense[:, coded]))
    if (~coded).any():
        scaler = StandardScaler().fit(features.dense[seen][:, ~coded])
        parts.append(sparse.csr_matrix(scaler.transform(features.dense[:, ~coded])))
    whole = sparse.hstack(parts, format="csr")
    model = LogisticRegression(C=10.0, max_iter=200).fit(whole[seen], labels[seen])
    shares = np.zeros((len(held), classes))
    shares[:, model.classes_] = model.predict_proba(whole[held])
    return shares


def _neighbours(known: Array, labels: Array, asked: Array, classes: int) -> Array:
    """Return the share of each class among the nearest rows, by the angle between what differs from the mean."""
    middle = known.mean(0)
    known, asked = _unit(known - middle), _unit(asked - middle)
    shares = np.zeros((len(asked), classes))
    k = min(_NEIGHBOURS, len(known))
    for start in range(0, len(asked), _BLOCK):
        near = asked[start : start + _BLOCK] @ known.T
        best = np.argpartition(-near, k - 1, axis=1)[:, :k]
        weight = np.maximum(np.take_along_axis(near, best, 1), 1e-6)
        weight = (weight / weight.max(1, keepdims=True)) ** _SHARP
        for place in range(k):
            np.add.at(shares, (np.arange(start, start + len(near)), labels[best[:, place]]), weight[:, place])
    result: Array = shares / shares.sum(1, keepdims=True)
    return result


def _unit(values: Array) -> Array:
    result: Array = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return result


def auc(positive: Array, scores: Array) -> float:
    """Return the probability that a positive row scores higher than a negative one; ties count half (Mann & Whitney, 1947)."""
    from scipy.stats import rankdata

    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))
