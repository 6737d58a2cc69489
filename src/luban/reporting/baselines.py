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
difference gets a paired interval (Dror et al. 2018). Where a recipe decides something on validation rows (a temperature, thresholds),
that is fitted for a baseline anew, in the same way and on the same rows; and both say yes from the same probability.

Memory is bounded: pictures are shrunk some at a time, long texts cut to what fits into `TEXT` characters in all, and the compressor
reads 4 MiB of either side, drawn by lot.
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
from luban.decisions._base import Decision
from luban.errors import RecipeError
from luban.evaluation.metrics import Task, compare_paired, measure
from luban.evaluation.run import threshold_of
from luban.reporting._absent import Absent

__all__ = ["TEXT", "baselines_of", "weights_of", "xz"]

TEXT = 2**24
"""Characters of a column that TF-IDF reads at the most, those of the rows to measure on included."""
_FEATURES = 50_000  # of TF-IDF, the most frequent ones
_SIDE = 16  # pixels
_CATEGORIES = 255  # what the trees tell apart in a column
_LABELS = 50  # of a set, at most: each gets a model of its own
_CLASSES = 100  # beyond, a linear model or trees for each class would take longer than the large model
_CJK = 0.2  # share of characters from which a column is cut into characters
_RESAMPLES = 500
_BLOCKS = 4  # the compressor takes the texts in so many parts
_READ = 4 * 2**20  # bytes of training text that it reads before each
_PRICED = 4 * 2**20  # bytes of text that it is measured on
_PICTURES = 256  # shrunk at a time
_SURE = 1e-7  # a probability is no nearer to 0 or 1 where it is turned into a logit


def baselines_of(
    pipeline: Pipeline,
    target: str,
    train: Sample,
    test: pl.DataFrame,
    scores: Array,
    *,
    decisions: Sequence[Decision] = (),
    validation: pl.DataFrame | None = None,
    seed: int = 0,
) -> dict[str, Any] | Absent:
    """Train and score the baselines of one target.

    Args:
        pipeline: fitted, of the artefact.
        target: a column that is read off an output.
        train: training rows, cleaned, all of whose targets are known.
        test: rows to measure on, cleaned, all of whose targets are known.
        scores: the model's for `test`: (n,) or (n, classes), as metrics compare them.
        decisions: the artefact's.
        validation: rows that these are fitted on for a baseline, cleaned, all of whose targets are known; None where they cannot
            be had.
        seed: of the trees.

    Returns:
        ``rows``, ``train_rows``, ``of`` (training rows there are), ``metrics`` of the model on these rows, and ``each``: name,
        metrics, differences (model minus baseline, with paired intervals), seconds; ``threshold``, from which a yes is said;
        ``decided``: ``steps`` that were fitted anew, on how many ``rows`` (0 if they could not be for one of the baselines, and then
        are for none), None where there are none;
        ``cut``: text column → its characters that were read of a row at the most; or why there is no baseline.
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
    steps = [one for one in decisions if one.column == target and not one.untouched]
    deciding = validation if steps and validation is not None and len(validation) else None
    asked = test if deciding is None else pl.concat([test, deciding], how="diagonal_relaxed")
    cut = _cuts(pipeline, train.rows, asked)
    found: list[dict[str, Any]] = []
    refused: dict[str, Any] | None = None
    # What each says of all rows it is asked about, after how many seconds.
    made: dict[str, tuple[Array, float]] = {}
    for name in ("constant", *_learner(pipeline, task, processor)):
        started = time.perf_counter()
        if name in ("many_labels", "many_classes"):
            refused = Absent(name, {"n": len(processor.classes())}).to_json()
            continue
        if name == "constant":
            said = _constant(task, known, len(processor.classes()), len(asked), heavy)
        else:
            said = _learnt(name, pipeline, task, processor, train.rows, asked, known, heavy, seed, cut)
        made[name] = said, time.perf_counter() - started
    decided: dict[str, Array] = {}
    if deciding is not None:
        for name, (said, seconds) in made.items():
            started = time.perf_counter()
            one = _decided(processor, target, steps, said, test, deciding)
            if one is None:  # then nothing is decided for any, else these would not be alike
                decided, deciding = {}, None
                break
            decided[name] = one
            made[name] = said, seconds + time.perf_counter() - started
    for name, (said, seconds) in made.items():
        said = decided.get(name, said[: len(test)])
        own = measure(task, truth, said, weights, threshold=threshold, details=False, **options)
        compared = compare_paired(task, truth, said, scores, weights, threshold=threshold, **options)
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
        "threshold": threshold if task in ("binary", "multilabel") else None,
        "decided": {"steps": [one.type for one in steps], "rows": 0 if deciding is None else len(deciding)}
        if steps
        else None,
        "cut": cut,
    }


def _decided(
    processor: Processor,
    target: str,
    steps: Sequence[Decision],
    said: Array,
    test: pl.DataFrame,
    validation: pl.DataFrame,
) -> Array | None:
    """Return what a baseline says of the test rows, as it is decided by steps that are fitted on what it says of the validation rows.

    Args:
        processor, target: of the target.
        steps: as the artefact has them; copies are fitted.
        said: of the test rows and the validation rows behind them, (n + m,) or (n + m, classes).
        test, validation: cleaned, (n,) and (m,).

    Returns:
        As metrics compare it, (n,) or (n, classes); None where the validation rows are too few for a step.
    """
    share = np.clip(said.astype(np.float64), _SURE, 1 - _SURE)
    logits = np.log(share) if processor.task == "multiclass" else np.log(share) - np.log1p(-share)
    logits = logits.reshape(len(said), -1)
    mine, others = logits[: len(test)], logits[len(test) :]
    truth = _truth(processor, validation[target])
    for step in steps:
        fresh = step.model_copy(deep=True)
        try:
            fresh.fit(processor, others, truth, validation)
        except RecipeError:
            return None
        mine, others = fresh.outputs(mine, test), fresh.outputs(others, validation)
    return processor.scores(mine)


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
    cut: dict[str, int],
) -> Array:
    """Return what a baseline says of the test rows, as metrics compare it."""
    from sklearn.exceptions import ConvergenceWarning

    x, y, categorical = _features(pipeline, train, test, cut, linear=name != "trees")
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
    pipeline: Pipeline, train: pl.DataFrame, test: pl.DataFrame, cut: dict[str, int], *, linear: bool
) -> tuple[Any, Any, npt.NDArray[np.bool_]]:
    """Return features of the training and of the test rows, and which columns of them are numbers of categories."""
    from scipy import sparse

    parts: list[tuple[Any, Any]] = []
    categorical: list[bool] = []
    for column, processor in pipeline.inputs.items():
        if processor.type in ("text", "chat"):
            texts, others = (_texts(rows[column], cut.get(column)) for rows in (train, test))
            parts.append(_tfidf(texts, others))
            continue
        if processor.type == "image":
            pictures = [_shrunk(processor, rows[column]) for rows in (train, test)]
            parts.append((pictures[0], pictures[1]))
            categorical += [False] * pictures[0].shape[1]
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
    """Return features (n, k)."""
    return values.reshape(len(values), -1).astype(np.float64)


def _shrunk(processor: Processor, values: pl.Series) -> Array:
    """Return grey means of blocks of pictures, from 0 to 1, (n, k); only some pictures are in memory at a time."""
    parts: list[Array] = []
    for start in range(0, max(1, len(values)), _PICTURES):
        (pixels,) = processor.encode(values.slice(start, _PICTURES)).values()  # (n, H, W, C)
        assert not isinstance(pixels, Flat)
        grey = pixels.mean(-1) / 255
        n, height, width = grey.shape
        rows, columns = -(-height // _SIDE), -(-width // _SIDE)
        grey = grey[:, : height // rows * rows, : width // columns * columns]
        blocks = grey.reshape(n, height // rows, rows, width // columns, columns)
        parts.append(_flat(blocks.mean((2, 4))))
    return np.concatenate(parts)


def _texts(values: pl.Series, longest: int | None = None) -> list[str]:
    texts = values.cast(pl.String, strict=False).fill_null("")
    return (texts if longest is None else texts.str.head(longest)).to_list()


def _cuts(pipeline: Pipeline, train: pl.DataFrame, test: pl.DataFrame) -> dict[str, int]:
    """Return text column → the length to which its longest texts are cut, so that all fit into `TEXT` characters."""
    found: dict[str, int] = {}
    for column, processor in pipeline.inputs.items():
        if processor.type in ("text", "chat"):
            lengths = [
                rows[column].cast(pl.String, strict=False).fill_null("").str.len_chars().to_numpy()
                for rows in (train, test)
            ]
            longest = longest_of(np.concatenate(lengths), TEXT)
            if longest is not None:
                found[column] = longest
    return found


def longest_of(lengths: npt.NDArray[Any], room: int) -> int | None:
    """Return the length to which texts are cut so that all fit into a room; short ones stay whole. None if all do.

    Example:
        >>> longest_of(np.array([1, 50, 9, 90]), 60), longest_of(np.array([1, 9]), 60)
        (25, None)
    """
    if int(lengths.sum()) <= room:
        return None
    ordered = np.sort(lengths.astype(np.int64))
    shorter = np.cumsum(ordered) - ordered
    # What is left to each, once shorter ones are whole.
    share = (room - shorter) // np.arange(len(ordered), 0, -1)
    return max(0, int(share[np.argmax(share < ordered)]))


def _tfidf(texts: list[str], others: list[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

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
    Texts go in four blocks, so that they learn from each other, which favours the compressor. Of many texts some are drawn by lot,
    until 4 MiB are full on either side; the last one may be cut.

    Args:
        train, texts: cleaned, as the model is shown them.

    Returns:
        ``bits_per_byte``; ``rows`` and ``bytes`` of the texts that were compressed, and how many these were drawn ``of``;
        ``train_rows``, ``train_bytes`` and ``train_of``; ``seconds``.
    """
    started = time.perf_counter()
    train_of, of = len(train), len(texts)
    train, texts = within(train, _READ), within(texts, _PRICED)
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
        "of": of,
        "bytes": length,
        "train_rows": len(train),
        "train_of": train_of,
        "train_bytes": len(before),
        "seconds": round(time.perf_counter() - started, 2),
    }


def within(texts: Sequence[str], room: int, seed: int = 0) -> list[str]:
    """Return texts, drawn by lot and in their order, that fit into so many bytes of UTF-8 with a line's end behind each; the last one
    drawn is cut to what is left.

    Example:
        >>> within(["好好好", "好好好"], 6)
        ['好']
    """
    taken: dict[int, str] = {}
    for i in np.random.default_rng(seed).permutation(len(texts)).tolist():
        data = texts[i].encode()
        if len(data) + 1 > room:
            if part := data[: max(0, room - 1)].decode(errors="ignore"):
                taken[i] = part
            break
        room -= len(data) + 1
        taken[i] = texts[i]
    return [taken[i] for i in sorted(taken)]
