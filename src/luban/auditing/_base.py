"""What every audit shares: findings that a manager understands, figures that gates read, and the case at hand.

::

    artefact + rows ──▶ Case ──▶ Audit.run ──▶ AuditResult: findings, figures, tables

An audit looks at a sample of the rows, drawn by lot from the whole stream, and says of how many it is.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl

from luban.data.contracts import Array, Processor
from luban.data.pipeline import row_keys
from luban.data.processors._deciding import said
from luban.data.sampling import Sample
from luban.errors import DataError, LubanError
from luban.gates import SEVERITIES
from luban.origin import Origin, Unknown
from luban.predict import Predictor
from luban.recipe import Component, Recipe, load, read_yaml
from luban.sentences import say

__all__ = [
    "ROOM",
    "SEED",
    "Audit",
    "AuditResult",
    "Case",
    "Finding",
    "Scored",
    "Severity",
    "losses",
    "quoted",
    "right",
    "said",
    "score",
]

Severity = Literal["high", "medium", "low", "info"]
SEED = 0
"""Of every draw an audit makes: the same rows give the same figures."""
ROOM = 2**28
"""Bytes of the rows drawn from any stream, at the most: fewer rows are, where cells hold pictures or long texts."""
_PART = 1024  # rows encoded at a time
_KEYED = 8192  # rows hashed at a time


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        audit: which audit found it.
        severity: high, medium, low or info.
        sentence: what it is, for somebody who does not know the method.
        figures: the numbers behind it.
        advice: what to do.
        where: the column, group or rows that it is about.
    """

    audit: str
    severity: Severity
    sentence: str
    figures: dict[str, Any]
    advice: str
    where: str = ""


@dataclass
class AuditResult:
    """What an audit came to.

    Attributes:
        audit: its name.
        findings: the worst first.
        figures: name → number, which gates may name as ``audit.name``; None where it is not defined.
        tables: name → rows of plain data.
        rows: rows that were looked at.
        notes: what should be known of how it was done: sample sizes, what was left out.
    """

    audit: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rows: int = 0
    notes: list[str] = field(default_factory=list)

    def find(
        self,
        severity: Severity,
        sentence: str,
        advice: str,
        figures: Mapping[str, Any] | None = None,
        where: str = "",
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding(self.audit, severity, sentence, dict(figures or {}), advice, where))

    def to_json(self) -> dict[str, Any]:
        """Return plain data that is valid JSON: what is not finite is null."""
        self.findings.sort(key=lambda one: SEVERITIES.index(one.severity))
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        return cls(**{**data, "findings": [Finding(**one) for one in data["findings"]]})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Rows whose truth is known, with what the artefact makes of them.

    Attributes:
        rows: as the user has them, (n,).
        places: which rows of the frame that was scored these are, (n,).
        outputs: target → the model's output as it is decided by, (n, width).
        truth: target → truth, as `Processor.truth` gives it.
        scores: target → probabilities or numbers, as `Processor.scores` gives them.
    """

    rows: pl.DataFrame
    places: Array
    outputs: dict[str, Array]
    truth: dict[str, Array]
    scores: dict[str, Array]

    def take(self, count: int) -> Self:
        """Return fewer of these rows, drawn by lot: a file is often sorted by class. All of them where there are no more."""
        if len(self.rows) <= count:
            return self
        mine = Sample.of(self.rows).take(count).places
        return type(self)(
            self.rows[mine.tolist()],
            self.places[mine],
            *(
                {column: values[mine] for column, values in one.items()}
                for one in (self.outputs, self.truth, self.scores)
            ),
        )


def score(
    predictor: Predictor, frame: pl.DataFrame, told: Callable[[int], None] = lambda rows: None
) -> Scored:
    """Predict those rows whose truth is known and that can be read, some at a time.

    Args:
        predictor: the artefact.
        frame: rows as the user has them.
        told: is told how many rows are done.

    Raises:
        DataError: if a target's column is missing.
    """
    targets = predictor.pipeline.scored
    for column in targets:
        if column not in frame.columns:
            raise DataError(
                say(
                    "there is no column '{column}', the truth to audit by; columns are {columns}",
                    column=column,
                    columns=frame.columns,
                )
            )
    outputs: dict[str, list[Array]] = {column: [] for column in targets}
    truth: dict[str, list[Array]] = {column: [] for column in targets}
    places: list[Array] = []
    for start in range(0, max(1, len(frame)), _PART):
        cleaned = predictor.clean(frame.slice(start, _PART))
        known = np.ones(len(cleaned), dtype=bool)
        for column, processor in targets.items():
            known &= processor.known(cleaned[column]).to_numpy()
        cleaned = cleaned.filter(pl.Series(known))
        found, readable = predictor.outputs_of_cleaned(cleaned)
        cleaned = cleaned.filter(pl.Series(readable))
        places.append(start + np.flatnonzero(known)[readable])
        for column, processor in targets.items():
            outputs[column].append(found[f"{column}.{processor.output}"])
            (encoded,) = processor.encode_target(cleaned[column]).values()
            truth[column].append(processor.truth(encoded))
        told(min(start + _PART, len(frame)))
    where = np.concatenate(places)
    joined = {column: np.concatenate(parts) for column, parts in outputs.items()}
    return Scored(
        frame[where.tolist()],
        where,
        joined,
        {column: np.concatenate(parts) for column, parts in truth.items()},
        {column: targets[column].scores(output) for column, output in joined.items()},
    )


# --- the case ---------------------------------------------------------------------------------------------


@dataclass
class Case:
    """What an audit may look at.

    Attributes:
        predictor: the artefact, ready to predict.
        sample: rows to look at, as the user has them.
        by: columns of groups.
        recipe: text of the artefact's recipe.yaml.
        lineage: contents of its lineage.json.
        against: other rows to compare with, instead of the training rows.
        limit: rows drawn at most, of any stream; fewer where these would take more than `ROOM`.
        report: is told what is being done, how far, and of how much.
        store: keeps plain data by name, so that an interrupted audit goes on where it was.
        caution: what makes figures on these rows look better than they are; every result says it.
    """

    predictor: Predictor
    sample: Sample
    by: list[str] = field(default_factory=list)
    recipe: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    against: Sample | None = None
    limit: int = 20_000
    report: Callable[[str, int, int | None], None] = lambda stage, done, total: None
    store: Callable[[str, Callable[[], Any]], Any] = lambda name, make: make()
    caution: str = ""
    why_no_training: str = ""

    @property
    def rows(self) -> pl.DataFrame:
        """The rows to look at, as the user has them."""
        return self.sample.rows

    @property
    def targets(self) -> dict[str, Processor]:
        """The targets that are read off an output."""
        return self.predictor.pipeline.scored

    @cached_property
    def resolved(self) -> Recipe | None:
        """The artefact's recipe, None where it has none that can be read here."""
        try:
            data = read_yaml(self.recipe, "recipe.yaml").data if self.recipe else None
            if not data:
                return None
            # Nothing of a stranger's is imported unasked.
            return load({key: value for key, value in data.items() if key != "imports"})
        except (LubanError, AttributeError):
            return None

    @cached_property
    def origin(self) -> Origin | Unknown:
        """The rows that the artefact was made of, or why they are not to be had."""
        return Origin.find(self.recipe, self.lineage, self.predictor.pipeline)

    @cached_property
    def training(self) -> Sample | None:
        """Rows that the artefact was trained on; None where they cannot be had, with the reason in `why_no_training`."""
        if isinstance(self.origin, Unknown):
            self.why_no_training = str(self.origin)
            return None
        try:
            return Sample.draw(
                self.origin.split("train"),
                self.limit,
                lambda rows: self.report(say("reading training rows"), rows, None),
                SEED,
                ROOM,
            )
        except (LubanError, OSError) as error:
            self.why_no_training = say("the training data cannot be read ({error})", error=error)
            return None

    @cached_property
    def training_keys(self) -> Array:
        """The key of each row that the artefact was trained on, of its inputs, (n,): of all of them, where `training` is a sample.

        Eight bytes a row: what was not drawn was trained on none the less.
        """
        assert self.training is not None
        chunks: Iterable[pl.DataFrame] = [self.training.rows]
        if len(self.training.rows) < self.training.total and isinstance(self.origin, Origin):
            chunks = self.origin.split("train")
        keys, seen = [np.empty(0, np.uint64)], 0
        for chunk in chunks:
            keys.append(self.keys(chunk))
            seen += len(chunk)
            self.report(say("reading training rows"), seen, None)
        return np.concatenate(keys)

    def keys(self, frame: pl.DataFrame) -> Array:
        """Return what tells rows by their inputs, (n,): equal inputs, equal keys."""
        found = [
            row_keys(self.predictor.clean(frame.slice(start, _KEYED)), self.predictor.pipeline.given)
            for start in range(0, max(1, len(frame)), _KEYED)
        ]
        return np.concatenate(found)

    @cached_property
    def scored(self) -> Scored:
        """The rows whose truth is known, with predictions."""
        return self.score(self.rows, say("predicting"))

    def score(self, frame: pl.DataFrame, stage: str = "") -> Scored:
        """Predict rows whose truth is known and that can be read.

        Raises:
            DataError: if there are none, or a target's column is missing.
        """
        scored = score(
            self.predictor, frame, lambda rows: self.report(stage, rows, len(frame)) if stage else None
        )
        if not len(scored.places):
            raise DataError(
                say(
                    "no row can be audited: the targets are missing or of classes that the model does not know"
                )
            )
        return scored

    def said(self, column: str, scores: Array) -> Array:
        """Return what is predicted of scores: class numbers (n,), 0 and 1 for each word of a set (n, width), or numbers (n,)."""
        return said(self.targets[column], scores)

    def group_columns(self) -> list[str]:
        """Return the columns of groups that the rows bring."""
        return [name for name in self.by if name in self.rows.columns]


def quoted(word: str) -> str:
    """Return a value of a column as a sentence has it: what stands for a gap, or for all the others, can be translated."""
    return {"(missing)": say("(missing)"), "(others)": say("(others)")}.get(word, word)


def losses(processor: Processor, truth: Array, scores: Array) -> Array:
    """Return the loss of each row, (n,): minus the log of the truth's probability, or the squared error in units of the target."""
    if processor.task == "regression":
        units = np.array([processor.unit(float(one)) for one in truth])
        squared: Array = ((scores - truth) / units) ** 2
        return squared
    if processor.task == "multiclass":
        chance = scores[np.arange(len(truth)), truth]
    else:
        chance = np.where(truth == 1, scores, 1 - scores)
    each: Array = -np.log(np.clip(chance, 1e-12, 1))
    return each if each.ndim == 1 else np.asarray(each.mean(1))


def right(processor: Processor, truth: Array, scores: Array) -> Array:
    """Return how well each row was predicted, (n,): 1 or 0 for classes (all words of a set), minus the absolute error of a number."""
    if processor.task == "regression":
        near: Array = -np.abs(scores - truth)
        return near
    hits = np.asarray(said(processor, scores) == truth)
    return np.asarray(hits if hits.ndim == 1 else hits.all(1), dtype=np.float64)


class Audit(Component):
    """One audit: its options, and how it is done."""

    family: ClassVar[str]
    """What it belongs to: fairness, robustness, privacy, data, calibration or generation; `--only` takes families too."""
    paper: ClassVar[str] = ""
    """Authors and year."""
    guarded: ClassVar[tuple[str, ...]] = ()
    """Options that read files or take long: only the user sets them, not the recipe of an artefact, which may be a stranger's."""

    def refusal(self, case: Case) -> str | None:
        """Return why it does not fit this artefact and these rows; None where it does."""
        return None

    @abstractmethod
    def run(self, case: Case) -> AuditResult:
        """Do it.

        Raises:
            DataError: if the rows lack what it needs.
        """
