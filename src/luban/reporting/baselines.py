"""What simple methods reach on the same split: what does the large model bring?

==============================  ===========================================================================================
inputs                          baselines
==============================  ===========================================================================================
any                             ``constant``: the shares of the classes among the training rows, or their mean
some text                       ``tfidf``: TF-IDF of characters (1 to 3, where the text is Chinese, Japanese or Korean) or of words
                                (1 and 2), other columns beside it; logistic regression, or ridge regression for a number
images                          ``pixels``: grey pixels, 16 by 16 at most; logistic or ridge regression
all else                        ``trees``: scikit-learn's HistGradientBoosting, as it comes
a causal language model's text  ``xz``: what the compressor LZMA needs for the texts, having read training texts before
==============================  ===========================================================================================

A baseline learns from the training rows alone, cleaned and weighted as the model's were, and both are scored on the same rows; so the
difference gets a paired interval (Dror et al. 2018).
"""

from __future__ import annotations

import lzma
import time
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from luban.data.contracts import Array, Flat, Processor
from luban.data.pipeline import Pipeline
from luban.data.sampling import Sample
from luban.evaluation.metrics import Task, compare_paired, measure
from luban.evaluation.run import threshold_of
from luban.reporting._absent import Absent

__all__ = ["baselines_of", "weights_of", "xz"]

_FEATURES = 50_000  # of TF-IDF, the most frequent ones
_SIDE = 16  # pixels
_CATEGORIES = 255  # what the trees tell apart in a column
_LABELS = 50  # of a set, at most: each gets a model of its own
_CLASSES = 100  # beyond, a linear model or trees for each class would take longer than the large model
_CJK = 0.2  # share of characters from which a column is cut into characters
_RESAMPLES = 500
_BLOCKS = 4  # the compressor takes the texts in so many parts
_READ = 4 * 2**20  # bytes of training text that it reads before each


def baselines_of(
    pipeline: Pipeline, target: str, train: Sample, test: pl.DataFrame, scores: Array, seed: int = 0
) -> dict[str, Any] | Absent:
    """Train and score the baselines of one target.

    Args:
        pipeline: fitted, of the artefact.
        target: a column that is read off an output.
        train: training rows, cleaned, all of whose targets are known.
        test: rows to measure on, cleaned, all of whose targets are known.
        scores: the model's for `test`: (n,) or (n, classes), as metrics compare them.
        seed: of the trees.

    Returns:
        ``rows``, ``train_rows``, ``of`` (training rows there are), ``metrics`` of the model on these rows, and ``each``: name,
        metrics, differences (model minus baseline, with paired intervals), seconds; or why there is no baseline.
    """
    processor = pipeline.targets[target]
    task = cast(Task, processor.task)
    known, truth = _truth(processor, train.rows[target]), _truth(processor, test[target])
    weights, heavy = weights_of(pipeline, test), weights_of(pipeline, train.rows)
    if heavy is not None and not heavy.any():
        heavy = None  # nothing can be learnt from rows of which none counts
    options: dict[str, Any] = {"classes": processor.classes() or None, "resamples": _RESAMPLES}
    threshold = threshold_of(processor)
    measured = measure(task, truth, scores, weights, threshold=threshold, details=False, **options)
    found: list[dict[str, Any]] = []
    refused: dict[str, Any] | None = None
    for name in ("constant", *_learner(pipeline, task, processor)):
        started = time.perf_counter()
        if name in ("many_labels", "many_classes"):
            refused = Absent(name, {"n": len(processor.classes())}).to_json()
            continue
        if name == "constant":
            said = _constant(task, known, len(processor.classes()), len(test), heavy)
        else:
            said = _learnt(name, pipeline, task, processor, train.rows, test, known, heavy, seed)
        seconds = time.perf_counter() - started
        own = measure(task, truth, said, weights, details=False, **options)
        compared = compare_paired(task, truth, said, scores, weights, threshold=(0.5, threshold), **options)
        found.append(
            {
                "name": name,
                "seconds": round(seconds, 2),
                "metrics": {key: asdict(one) for key, one in own.metrics.items()},
                **asdict(compared),
            }
        )
    return {
        "rows": len(test),
        "train_rows": len(train.rows),
        "of": train.total,
        "metrics": {key: asdict(one) for key, one in measured.metrics.items()},
        "each": found,
        "refused": refused,
    }


def _truth(processor: Processor, values: pl.Series) -> Array:
    (encoded,) = processor.encode_target(values).values()
    return processor.truth(encoded)


def weights_of(pipeline: Pipeline, rows: pl.DataFrame) -> Array | None:
    """Return the weight of each cleaned row, (n,), 0 where it makes no sense; None where all weigh 1."""
    if pipeline.weight is None or pipeline.weight not in rows.columns:
        return None
    values = rows[pipeline.weight].cast(pl.Float64, strict=False).fill_null(0.0).to_numpy()
    return np.where(np.isfinite(values) & (values > 0), values, 0.0)


def _learner(pipeline: Pipeline, task: Task, processor: Processor) -> Sequence[str]:
    """Return the name of the baseline that learns, or of the reason why there is none."""
    kinds = {p.type for p in pipeline.inputs.values()}
    if task == "multilabel" and len(processor.classes()) > _LABELS:
        return ("many_labels",)
    if len(processor.classes()) > _CLASSES:
        return ("many_classes",)
    if kinds & {"text", "chat"}:
        return ("tfidf",)
    return ("pixels",) if "image" in kinds else ("trees",)


def _constant(task: Task, known: Array, classes: int, rows: int, weights: Array | None) -> Array:
    if task in ("regression", "binary"):
        return np.full(rows, np.average(known, weights=weights))
    shares = (
        np.average(known, axis=0, weights=weights)
        if task == "multilabel"
        else np.bincount(known, weights=weights, minlength=classes)
    )
    return np.tile(shares if task == "multilabel" else shares / shares.sum(), (rows, 1))


# --- what learns ------------------------------------------------------------------------------------------


def _learnt(
    name: str,
    pipeline: Pipeline,
    task: Task,
    processor: Processor,
    train: pl.DataFrame,
    test: pl.DataFrame,
    known: Array,
    weights: Array | None,
    seed: int,
) -> Array:
    """Return what a baseline says of the test rows, as metrics compare it."""
    from sklearn.exceptions import ConvergenceWarning

    x, y, categorical = _features(pipeline, train, test, linear=name != "trees")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that stops early is one still
        warnings.simplefilter("ignore", FutureWarning)
        if task == "multilabel":
            each = [
                _fitted("binary", name, x, known[:, k], weights, categorical, seed)
                for k in range(known.shape[1])
            ]
            return np.stack([_chances(one, y, 2)[:, 1] for one in each], axis=1)
        model = _fitted(task, name, x, known, weights, categorical, seed)
    if task == "regression":
        said: Array = model.predict(y)
        return said
    shares = _chances(model, y, max(2, len(processor.classes())))
    return shares[:, 1] if task == "binary" else shares


def _fitted(
    task: str, name: str, x: Any, known: Array, weights: Array | None, categorical: Array, seed: int
) -> Any:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge

    if task != "regression" and len(np.unique(known)) < 2:
        return DummyClassifier(strategy="prior").fit(x, known, sample_weight=weights)
    if name == "trees":
        trees = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
        return trees(random_state=seed, categorical_features=categorical).fit(x, known, sample_weight=weights)
    if task == "regression":
        return Ridge(random_state=seed).fit(x, known, sample_weight=weights)
    return LogisticRegression(max_iter=200, C=5.0 if name == "tfidf" else 0.1).fit(
        x, known, sample_weight=weights
    )


def _chances(model: Any, x: Any, classes: int) -> Array:
    """Return probabilities of all classes, those that the training sample lacks included, (n, classes)."""
    shares = np.zeros((x.shape[0], classes))
    shares[:, model.classes_.astype(int)] = model.predict_proba(x)
    return shares


def _features(
    pipeline: Pipeline, train: pl.DataFrame, test: pl.DataFrame, *, linear: bool
) -> tuple[Any, Any, npt.NDArray[np.bool_]]:
    """Return features of the training and of the test rows, and which columns of them are numbers of categories."""
    from scipy import sparse

    parts: list[tuple[Any, Any]] = []
    categorical: list[bool] = []
    for column, processor in pipeline.inputs.items():
        if processor.type in ("text", "chat"):
            parts.append(_tfidf(train[column], test[column]))
            continue
        both = [processor.encode(rows[column]) for rows in (train, test)]
        for name, one in both[0].items():
            pair = [_flat(_dense(values[name], one)) for values in both]
            if processor.type == "category":
                size = len(processor.state()["words"]) + 1
                if linear or size > _CATEGORIES:
                    size = min(size, _CATEGORIES)
                    pair = [np.eye(size)[np.minimum(values[:, 0].astype(int), size - 1)] for values in pair]
                    categorical += [False] * size
                else:
                    categorical.append(True)
            else:
                categorical += [False] * pair[0].shape[1]
            if processor.type == "image":
                pair = [values / 255 for values in pair]
            parts.append((pair[0], pair[1]))
    if any(sparse.issparse(one) for one, _ in parts):
        return (
            *(sparse.hstack([sparse.csr_array(pair[k]) for pair in parts]).tocsr() for k in (0, 1)),
            np.array([], dtype=bool),
        )
    stacked = [np.concatenate([pair[k] for pair in parts], axis=1) for k in (0, 1)]
    return stacked[0], stacked[1], np.array(categorical, dtype=bool)


def _dense(values: Array | Flat, like: Array | Flat) -> Array:
    """Return an array of what a column was encoded as: of a set of words, 1 for each that is there."""
    if not isinstance(values, Flat):
        return values
    assert isinstance(like, Flat)
    width = 1 + int(like.values.max()) if len(like.values) else 1
    dense = np.zeros((len(values), width), np.float32)
    rows = np.repeat(np.arange(len(values)), np.diff(values.offsets))
    inside = values.values < width
    dense[rows[inside], values.values[inside].astype(int)] = 1
    return dense


def _flat(values: Array) -> Array:
    """Return features (n, k); of pictures (n, H, W, C) or (n, H, W), grey means of blocks."""
    if values.ndim in (3, 4) and min(values.shape[1:3]) > 1:
        grey = values.mean(-1) if values.ndim == 4 else values.astype(np.float64)
        n, height, width = grey.shape
        rows, columns = -(-height // _SIDE), -(-width // _SIDE)
        grey = grey[:, : height // rows * rows, : width // columns * columns]
        grey = grey.reshape(n, height // rows, rows, width // columns, columns)
        return cast(Array, grey.mean((2, 4)).reshape(n, -1))
    return values.reshape(len(values), -1).astype(np.float64)


def _tfidf(train: pl.Series, test: pl.Series) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, others = (one.cast(pl.String, strict=False).fill_null("").to_list() for one in (train, test))
    options: dict[str, Any] = (
        {"analyzer": "char", "ngram_range": (1, 3)}
        if is_cjk(texts)
        else {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
    )
    for fewest in (2, 1):  # of a handful of rows nothing may occur twice
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=fewest, max_features=_FEATURES, **options)
        try:
            return vectorizer.fit_transform(texts), vectorizer.transform(others)
        except ValueError:  # no word at all
            continue
    return np.zeros((len(texts), 1)), np.zeros((len(others), 1))


def is_cjk(texts: Sequence[str]) -> bool:
    """Whether a fair part of the letters of texts are Chinese, Japanese or Korean.

    Example:
        >>> is_cjk(["物流很快 ok"]), is_cjk(["fast delivery"])
        (True, False)
    """
    letters = [c for text in texts[:500] for c in text[:500] if c.isalpha()]
    wide = sum(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for c in letters)
    return wide > _CJK * max(1, len(letters))


# --- language ---------------------------------------------------------------------------------------------


def xz(train: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """Return what LZMA needs for texts, having read training texts before: a price in bits per byte to compare a model's with.

    It compresses the training texts alone, and again with some of the texts behind them; the difference is what these cost.
    Texts go in four blocks, so that they learn from each other, which favours the compressor.

    Returns:
        ``bits_per_byte``, ``rows``, ``bytes``, ``train_bytes``, ``seconds``.
    """
    started = time.perf_counter()
    before = "\n".join(train).encode()[:_READ]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": max(2**20, 2 * len(before))}]

    def size(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))

    alone, paid, length = size(before), 0, 0
    step = max(1, -(-len(texts) // _BLOCKS))
    for block in (texts[i : i + step] for i in range(0, len(texts), step)):
        data = "\n".join(block).encode()
        paid += size(before + data) - alone
        length += len(data)
    return {
        "bits_per_byte": 8 * paid / max(1, length),
        "rows": len(texts),
        "bytes": length,
        "train_bytes": len(before),
        "seconds": round(time.perf_counter() - started, 2),
    }
