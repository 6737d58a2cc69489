"""The verb `evaluate`: what an artefact is worth on rows whose truth is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import polars as pl

from luban.data.batch import Batch
from luban.data.contracts import Array, Flat, Processor
from luban.data.pipeline import WEIGHT, Pipeline
from luban.data.processors._deciding import threshold_of
from luban.data.ragged import Ragged
from luban.errors import DataError, did_you_mean
from luban.evaluation.language import LanguageCollector
from luban.evaluation.metrics import Collector, Measured, Task
from luban.evaluation.records import Pool
from luban.language import Score, Speaker
from luban.predict import Predictor
from luban.sentences import say

__all__ = ["Evaluation", "TrainingScorer", "collector_of", "evaluate", "threshold_of"]

_SLICES = 50  # values of a slicing column, at most; the rarer ones are put together
_OTHERS = "(others)"
_PART = 1024  # rows encoded at a time


def collector_of(processor: Processor, pool: Pool) -> Collector:
    """Return a collector for a target, whose records are kept in a pool."""
    return Collector(
        cast(Task, processor.task), processor.classes() or None, threshold=threshold_of(processor), pool=pool
    )


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        targets: target → its metrics.
        slices: slicing column → value → target → metrics.
        rows: rows that were scored.
        skipped: rows that could not be, by reason; these and the rows scored are all rows.
        cleaned: values that were changed before rows were scored, by what was done.
    """

    targets: dict[str, Measured]
    slices: dict[str, dict[str, dict[str, Measured]]] = field(default_factory=dict)
    rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    cleaned: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return ``target.metric`` → value, low, high."""
        return {
            f"{target}.{name}": asdict(metric)
            for target, measured in self.targets.items()
            for name, metric in measured.metrics.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "metrics": self.metrics(),
            "rows": self.rows,
            "skipped": self.skipped,
            "cleaned": self.cleaned,
            "details": {target: measured.details for target, measured in self.targets.items()},
            "slices": {
                by: {
                    value: {
                        "rows": next(iter(targets.values())).rows,
                        "metrics": {
                            f"{t}.{n}": asdict(m)
                            for t, measured in targets.items()
                            for n, m in measured.metrics.items()
                        },
                    }
                    for value, targets in values.items()
                }
                for by, values in self.slices.items()
            },
        }


def evaluate(
    predictor: Predictor,
    chunks: Iterable[pl.DataFrame],
    *,
    by: Iterable[str] = (),
    resamples: int = 1000,
    batch_size: int = 256,
) -> Evaluation:
    """Score a stream of rows; what is kept of a row is its truth and its scores, on disk where they are many.

    Targets and slices share one limit on what is held in memory (`luban.evaluation.records`), so memory does not grow with
    the rows.

    Args:
        predictor: a loaded artefact.
        chunks: rows with inputs and targets.
        by: columns whose values each get metrics of their own.
        resamples: bootstrap resamples behind the intervals.
        batch_size: rows at a time.

    Raises:
        DataError: if a column is missing, or no row can be scored.
    """
    if predictor.speaker is not None:
        return _of_language(predictor, predictor.speaker, chunks, list(by), resamples)
    pipeline = predictor.pipeline
    if not pipeline.targets:
        raise DataError(
            "the artefact predicts no column: it makes vectors of texts, and there is no truth to compare these with"
        )
    by = list(by)
    pool = Pool()
    collectors = {column: collector_of(p, pool) for column, p in pipeline.scored.items()}
    written = {column: LanguageCollector(causal=True) for column in pipeline.written}
    slices: dict[str, dict[str, dict[str, Collector | LanguageCollector]]] = {column: {} for column in by}
    rows, before = 0, +pipeline.counts
    for chunk in chunks:
        pipeline.require(chunk.columns, targets=True)
        for column in by:
            if column not in chunk.columns:
                raise DataError(
                    f"there is no column '{column}' to slice by; columns are {', '.join(chunk.columns)}{did_you_mean(column, chunk.columns)}"
                )
        for start in range(0, len(chunk), _PART):
            part = chunk.slice(start, _PART)
            outputs, truth, texts, weights, kept = _score(predictor, part, batch_size)
            if not kept.any():
                continue
            rows += int(kept.sum())
            values = {column: _words(part.filter(pl.Series(kept))[column], slices[column]) for column in by}
            for column, whole in written.items():
                whole.update(texts[column], weights)
                for slicing, words in values.items():
                    for word in np.unique(words):
                        one = slices[slicing].setdefault(str(word), {})
                        mine = one.setdefault(column, LanguageCollector(causal=True))
                        assert isinstance(mine, LanguageCollector)
                        _add_part(mine, texts[column], weights, words == word)
            for column, processor in pipeline.scored.items():
                scores = processor.scores(outputs[f"{column}.{processor.output}"])
                collectors[column].update(truth[column], scores, weights)
                for slicing, words in values.items():
                    for word in np.unique(words):
                        mine = words == word
                        own = slices[slicing].setdefault(str(word), {})
                        collector = own.setdefault(column, collector_of(processor, pool))
                        assert isinstance(collector, Collector)
                        collector.update(
                            truth[column][mine], scores[mine], None if weights is None else weights[mine]
                        )
    if not rows:
        raise DataError(
            "no row can be scored: the targets are missing or of classes that the model does not know"
        )
    reasons = {say("{column}: unreadable", column=column) for column in pipeline.inputs} | {
        *map(_unknown, pipeline.targets)
    }
    counts = {name: n for name, n in (pipeline.counts - before).items() if n}
    return Evaluation(
        {c: one.compute(resamples=resamples) for c, one in collectors.items()}
        | {c: one.compute(count=resamples) for c, one in written.items()},
        {
            slicing: {
                word: {c: _measured(one, resamples) for c, one in own.items()}
                for word, own in sorted(words.items())
            }
            for slicing, words in slices.items()
        },
        rows,
        {name: n for name, n in counts.items() if name in reasons},
        {name: n for name, n in counts.items() if name not in reasons},
    )


def _of_language(
    predictor: Predictor, speaker: Speaker, chunks: Iterable[pl.DataFrame], by: list[str], resamples: int
) -> Evaluation:
    """Measure how probable the model holds texts."""
    pipeline, column = predictor.pipeline, speaker.column
    whole = LanguageCollector(speaker.causal)
    slices: dict[str, dict[str, LanguageCollector]] = {name: {} for name in by}
    before, skipped = +pipeline.counts, 0
    for chunk in chunks:
        pipeline.require([*chunk.columns], targets=False)
        for name in by:
            if name not in chunk.columns:
                raise DataError(
                    f"there is no column '{name}' to slice by; columns are {', '.join(chunk.columns)}{did_you_mean(name, chunk.columns)}"
                )
        for start in range(0, len(chunk), _PART):
            part = predictor.clean(chunk.slice(start, _PART))
            bad = speaker.text.invalid(part[column])  # of conversations, those that hold no answer
            skipped += int(bad.sum())
            part = part.filter(~bad)
            scores, weights = speaker.measure(part[column]), _weights(pipeline, part)
            for what, n in speaker.text.counts().items():
                pipeline.counts[say("{column}: {what}", column=column, what=what)] += n
            whole.update(scores, weights)
            for name in by:
                words = _words(part[name], slices[name])
                for word in np.unique(words):
                    own = slices[name].get(str(word)) or LanguageCollector(speaker.causal)
                    slices[name][str(word)] = own
                    _add_part(own, scores, weights, words == word)
    if not whole.rows:
        raise DataError("there is no text to measure on")
    return Evaluation(
        {column: whole.compute(count=resamples)},
        {
            name: {word: {column: one.compute(count=resamples)} for word, one in sorted(words.items())}
            for name, words in slices.items()
        },
        whole.rows,
        {say("{column}: unreadable", column=column): skipped} if skipped else {},
        {name: n for name, n in (pipeline.counts - before).items() if n},
    )


def _add_part(collector: LanguageCollector, scores: list[Score], weights: Array | None, mine: Array) -> None:
    """Add the texts of a slice."""
    collector.update(
        [score for score, its in zip(scores, mine, strict=True) if its],
        None if weights is None else weights[mine],
    )


def _measured(collector: Collector | LanguageCollector, resamples: int) -> Measured:
    if isinstance(collector, LanguageCollector):
        return collector.compute(count=resamples)
    return collector.compute(resamples=resamples)


def _unknown(target: str) -> str:
    return say("{column}: target missing, unreadable or of an unknown class", column=target)


def _score(
    predictor: Predictor, part: pl.DataFrame, batch_size: int
) -> tuple[dict[str, Array], dict[str, Array], dict[str, list[Score]], Array | None, Array]:
    """Return outputs, truths, how probable written texts are, and weights of the rows that can be scored, and which these are."""
    pipeline = predictor.pipeline
    part = predictor.clean(part)
    known = np.ones(len(part), dtype=bool)
    for column, processor in pipeline.targets.items():
        good = processor.known(part[column]).to_numpy()
        pipeline.counts[_unknown(column)] += int((~good & known).sum())
        known &= good
    scored = part.filter(pl.Series(known))
    outputs, readable = predictor.outputs_of_cleaned(scored, batch_size)
    scored = scored.filter(pl.Series(readable))
    kept = known.copy()
    kept[known] = readable
    truth = {}
    for column, processor in pipeline.scored.items():
        (encoded,) = processor.encode_target(scored[column]).values()
        truth[column] = processor.truth(encoded)
    texts: dict[str, list[Score]] = {}
    if predictor.writer is not None:
        writer = predictor.writer
        given = scored[writer.column]
        inputs, _ = pipeline.encode(scored, targets=False)
        texts[writer.column] = writer.score(inputs, *writer.text.encode_measured(given))
        for what, n in writer.text.counts().items():
            pipeline.counts[say("{column}: {what}", column=writer.column, what=what)] += n
    return outputs, truth, texts, _weights(pipeline, scored), kept


def _weights(pipeline: Pipeline, rows: pl.DataFrame) -> Array | None:
    """Return the weight of each row, (n,); None where all weigh 1."""
    if pipeline.weight is None or pipeline.weight not in rows.columns:
        return None
    # As in training, a weight that is missing or negative makes no sense; here the row then counts for nothing.
    values = rows[pipeline.weight].cast(pl.Float64, strict=False).fill_null(-1.0).to_numpy()
    sound = np.isfinite(values) & (values >= 0)
    what = say("{column}: weight missing or negative, taken as 0", column=pipeline.weight)
    pipeline.counts[what] += int((~sound).sum())
    found: Array = np.where(sound, values, 0.0)
    return found


def _words(values: pl.Series, known: dict[str, Any]) -> Array:
    words = values.cast(pl.String, strict=False).fill_null("(missing)").to_list()
    fresh = len([w for w in known if w != _OTHERS])
    for i, word in enumerate(words):
        if word not in known:
            if fresh >= _SLICES:
                words[i] = _OTHERS
            else:
                known[word], fresh = {}, fresh + 1
    return np.asarray(words, dtype=object).astype(str)


class TrainingScorer:
    """Metrics of the validation rows while training: values only, no intervals.

    Args:
        pipeline: whose targets are scored.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._names = {
            column: next(iter(p.fields(column, "target"))) for column, p in pipeline.scored.items()
        }
        pool = Pool()
        self._collectors = {column: collector_of(p, pool) for column, p in pipeline.scored.items()}

    def update(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Take in one more batch."""
        weights = batch.get(WEIGHT)
        for column, processor in self._pipeline.scored.items():
            value = batch[f"{column}.{self._names[column]}"]
            encoded: Array | Flat
            if isinstance(value, Ragged):
                encoded = Flat(value.values.cpu().numpy(), value.offsets.cpu().numpy())
            else:
                encoded = value.cpu().numpy()
            output = outputs[f"{column}.{processor.output}"].float().cpu().numpy()
            own = None if weights is None else cast(Any, weights).cpu().numpy()
            self._collectors[column].update(processor.truth(encoded), processor.scores(output), own)

    def compute(self) -> dict[str, float]:
        """Return ``target.metric`` → value; what is not defined is left out."""
        return {
            f"{column}.{name}": metric.value
            for column, collector in self._collectors.items()
            for name, metric in collector.compute(resamples=0, details=False).metrics.items()
            if metric.value is not None
        }
