"""What is to be explained: a model, some rows, and which of its outputs.

The score of a row is one number that the model gives it: of a class its logit, of a word of a set likewise, of a number the number
itself, in the user's unit. Explainers that need gradients call `Case.score` on a batch; those that treat the model as a black box
call `Case.scores_of` on rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from luban.data.batch import Batch, to_batch
from luban.data.contracts import Array, Encoded, Field, Flat, Processor
from luban.data.processors._deciding import class_shares, said
from luban.data.processors.number import Number
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.data.store import slice_rows
from luban.errors import DataError, InputError, did_you_mean
from luban.explaining._base import Explanation, Part
from luban.explaining._text import Pieces, pieces_of, strings
from luban.machine import quick_products, reuse_memory
from luban.models._encoders import is_category, is_image, is_sequence
from luban.predict import Predictor
from luban.sentences import say

__all__ = ["Background", "Case", "form_of", "quickly"]

BATCH = 256
"""Rows that a black box reads at a time."""


def form_of(one: Field) -> str:
    """Return how a field of an input lies: ``tokens``, ``image``, ``set``, ``category``, ``number`` or ``vector``.

    A flag, and whether a number was missing, are numbers.
    """
    if is_sequence(one):
        return "tokens"
    if is_image(one):
        return "image"
    if one.shape is None:
        return "set"
    if is_category(one):
        return "category"
    return "number" if one.shape == () else "vector"


class Background(NamedTuple):
    """Rows that stand for the data, cleaned and readable, and what they are rows of, as a sentence says it."""

    rows: pl.DataFrame
    of: str = say("the data")


@dataclass
class Case:
    """Rows, a model, and the output of it that is explained.

    Attributes:
        predictor: the loaded artefact.
        given: the rows as the user gave them, those alone that can be read.
        frame: the same rows, cleaned as training did; what the processors read. Columns that the model does not read (truths,
            groups) are still there.
        numbers: number of each of these rows among all that were asked about.
        target: the column that is predicted; empty where the model predicts none.
        chosen: which output of the target is explained, a row, (n,): the predicted class unless one was asked for; 0 for a number.
        background: other rows, cleaned and readable, that stand for the data (those of training, where the artefact can still find
            them), at most some thousand, or what draws them when they are first asked for (`others`); None where there are none.
        training: yields all training rows, cleaned, in chunks, targets included; None where the artefact cannot find them.
        seed: of everything that is drawn.
        notes: what the reader should know about all of this, each one sentence.
        unreadable: rows that cannot be explained, by number, and why.
    """

    writes: ClassVar[bool] = False
    """Whether what is explained are tokens that the model writes, one after the other."""

    predictor: Predictor
    given: pl.DataFrame
    frame: pl.DataFrame
    numbers: list[int]
    target: str
    chosen: npt.NDArray[np.int64]
    background: pl.DataFrame | Callable[[], Background | None] | None = None
    training: Callable[[], Iterator[pl.DataFrame]] | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        predictor: Predictor,
        rows: pl.DataFrame,
        *,
        target: str | None = None,
        label: str | None = None,
        first: int = 0,
        background: pl.DataFrame | Callable[[], Background | None] | None = None,
        training: Callable[[], Iterator[pl.DataFrame]] | None = None,
        seed: int = 0,
    ) -> Case:
        """Make a case of rows as a user gives them; hand over some hundred at the most, since all are encoded at once.

        Args:
            predictor: a loaded artefact.
            rows: with the columns that the model reads.
            target: the column to explain; the first one by default.
            label: the class to explain, for all rows; by default the one that is predicted for each.
            first: number of the first row.
            background, training, seed: see `Case`.

        Raises:
            InputError: if there is no such target or class.
            DataError: if a column is missing.
        """
        pipeline = predictor.pipeline
        if target is not None and target not in pipeline.scored:
            raise InputError(
                say(
                    "there is no target '{target}' to explain; targets are {targets}{hint}",
                    target=target,
                    targets=[*pipeline.scored] or say("none"),
                    hint=did_you_mean(target, pipeline.scored),
                )
            )
        target = target or next(iter(pipeline.scored), "")
        cleaned = predictor.clean(rows)
        reasons = predictor.reasons(rows)
        kept = np.asarray([not reason for reason in reasons], dtype=bool)
        mask = pl.Series(kept)
        case = cls(
            predictor,
            rows.filter(mask),
            cleaned.filter(mask),
            (first + np.flatnonzero(kept)).tolist(),
            target,
            np.zeros(int(kept.sum()), dtype=np.int64),
            background,
            training,
            seed,
            unreadable={first + i: reason for i, reason in enumerate(reasons) if reason},
        )
        case.chosen = case._choose(label)
        return case

    def _choose(self, label: str | None) -> npt.NDArray[np.int64]:
        """Return the output to explain of each row."""
        classes = self.classes
        if label is not None:
            if not classes:
                what = (
                    say("'{target}' is a number", target=self.target)
                    if self.target
                    else say("the model predicts no class")
                )
                raise InputError(
                    say(
                        "{what}, so there is no class '{label}' to explain; leave --class out",
                        what=what,
                        label=label,
                    )
                )
            if label not in classes:
                raise InputError(
                    say(
                        "'{target}' has no class '{label}'; classes are {classes}{hint}",
                        target=self.target,
                        label=label,
                        classes=classes[:20],
                        hint=did_you_mean(label, classes),
                    )
                )
            return np.full(len(self), classes.index(label), dtype=np.int64)
        if not classes or not len(self):
            return np.zeros(len(self), dtype=np.int64)
        return self.said(self.own_outputs)

    # --- what it is about --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def processor(self) -> Processor:
        """The target's processor."""
        return self.predictor.pipeline.targets[self.target]

    @property
    def classes(self) -> list[str]:
        """The target's classes; none for a number, or without a target."""
        return self.processor.classes() if self.target else []

    @property
    def labels(self) -> list[str | None]:
        """The class that is explained, a row; None for a number."""
        return [self.classes[i] if self.classes else None for i in self.chosen.tolist()]

    @property
    def output(self) -> str:
        """Name of the model's output for the target."""
        return f"{self.target}.{self.processor.output}"

    @cached_property
    def inputs(self) -> dict[str, dict[str, Field]]:
        """Input column → its fields by full name (``review.ids``)."""
        return self.predictor.spec.select("input")

    @cached_property
    def forms(self) -> dict[str, str]:
        """Input column → how it lies, see `form_of`; of a column of several fields, the first one's."""
        return {column: form_of(next(iter(fields.values()))) for column, fields in self.inputs.items()}

    @cached_property
    def encoded(self) -> Encoded:
        """The rows' inputs as arrays."""
        return self.predictor.pipeline.encode(self.frame, targets=False)[0]

    @property
    def others(self) -> Background | None:
        """The rows that stand for the data; None where there are none."""
        if isinstance(self.background, pl.DataFrame):
            return Background(self.background)
        return None if self.background is None else self.background()

    @cached_property
    def encoded_background(self) -> Encoded | None:
        """The inputs of the rows that stand for the data, as arrays; None where there are none."""
        others = self.others
        return None if others is None else self.predictor.pipeline.encode(others.rows, targets=False)[0]

    def batch(self, start: int = 0, stop: int | None = None) -> Batch:
        """Return rows as the model sees them."""
        rows = slice_rows(self.encoded, start, len(self) if stop is None else stop)
        return to_batch(rows, self.predictor.spec, self.predictor.device)

    def pieces(self, column: str) -> list[Pieces]:
        """Return the tokens of a text column as pieces of the texts that the user gave, a row each."""
        processor = self.predictor.pipeline.inputs[column]
        assert isinstance(processor, Text)
        cleaned = strings(self.frame[column])
        given = strings(self.given[column]) if column in self.given.columns else cleaned
        ids = self.encoded[f"{column}.ids"]
        assert isinstance(ids, Flat)
        rows = np.split(ids.values, ids.offsets[1:-1])
        return [
            pieces_of(processor, own.tolist(), places, text, original)
            for own, places, text, original in zip(
                rows, processor.places(cleaned), cleaned, given, strict=True
            )
        ]

    def framing_ids(self, text: Text) -> list[int]:
        """Return the tokens that stand in a neutral text too: those that are no text themselves; what is unknown or hidden is."""
        return sorted(text.special_ids - {text.unk_id, text.mask_id})

    def part(self, start: int, stop: int) -> Self:
        """Return a case of some of the rows."""
        rows = slice(start, stop)
        return replace(
            self,
            given=self.given[rows],
            frame=self.frame[rows],
            numbers=self.numbers[rows],
            chosen=self.chosen[rows],
        )

    # --- the score ---------------------------------------------------------------------------------------

    def score(self, batch: Batch, chosen: npt.NDArray[np.int64] | Tensor | None = None) -> Tensor:
        """Return the score of each row of a batch, (B,), which a gradient can be taken of.

        Args:
            batch: what the model reads.
            chosen: which output is explained, a row, (B,); the case's own where the batch is that of its rows.
        """
        return self.pick(self.predictor.model(batch)[self.output], self.chosen if chosen is None else chosen)

    def pick(self, output: Tensor, chosen: npt.NDArray[np.int64] | Tensor) -> Tensor:
        """Return the score of each row, (B,), of the model's output for the target, (B, width)."""
        index = torch.as_tensor(chosen, device=output.device)
        match self.processor.task:
            case (
                "binary"
            ):  # one logit, which speaks for the positive word; for the other one it is turned round
                return output[:, 0] * (2 * index - 1).to(output.dtype)
            case "regression":
                slope, shift = self._unit
                return output[:, 0] * slope + shift
            case _:
                return output.gather(1, index[:, None])[:, 0]

    @cached_property
    def _unit(self) -> tuple[float, float]:
        """By what a normalised number is multiplied, and what is then added; of a `log` number, its logarithm's own."""
        if isinstance(self.processor, Number) and self.processor.normalize == "log":
            # In the user's unit it would be an exponential, and no sum of contributions.
            return self.processor._scale, self.processor._center
        zero, one = self.processor.scores(np.asarray([[0.0], [1.0]])).tolist()
        return one - zero, zero

    def outputs_of(self, frame: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Return what cleaned rows are predicted from, (n, width); NaN for a row that cannot be read.

        These are the model's outputs after whatever was fitted behind it (a temperature, thresholds).
        """
        found, kept = self.predictor.outputs_of_cleaned(frame, BATCH)
        own = found[self.output]
        result = np.full((len(frame), own.shape[1]), np.nan)
        result[kept] = own
        return result

    @property
    def needs(self) -> list[str]:
        """Columns whose values decisions about the target go by."""
        own = (one.needs for one in self.predictor.decisions if one.column == self.target)
        return list(dict.fromkeys(chain.from_iterable(own)))

    def decided(self, outputs: Array, rows: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Return outputs for the target, (n, width), as the decisions that were fitted behind the model change them.

        Args:
            outputs: the model's own.
            rows: cleaned, (n,), with the columns that the decisions need (`needs`) as they are in the rows asked about.
        """
        everything = np.ones(len(outputs), dtype=bool)
        changed = self.predictor.decided({self.output: outputs}, rows, everything)[self.output]
        return np.asarray(changed, dtype=np.float64)

    def said(self, outputs: Array) -> npt.NDArray[np.int64]:
        """Return the number of the class that is predicted, (n,), of what is decided by, (n, width); of a set its likeliest word."""
        scores = self.processor.scores(outputs)
        classes: npt.NDArray[np.int64] = (
            scores.argmax(1) if self.processor.task == "multilabel" else said(self.processor, scores)
        )
        return classes

    def scores_of(
        self, frame: pl.DataFrame, chosen: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float64]:
        """Return the score of each of other cleaned rows, (n,): the model as a black box, without gradients.

        The score is the model's own, as `score` has it; NaN for a row that cannot be read.

        Args:
            frame: rows as `frame` holds them; some thousand at the most.
            chosen: which output is explained, a row; the case's own where there are as many rows.
        """
        chosen = self.chosen if chosen is None else chosen
        encoded, kept = self.predictor.pipeline.encode(frame, targets=False)
        result = np.full(len(frame), np.nan)
        result[kept] = self.scores_of_encoded(encoded, chosen[kept])
        return result

    def scores_of_encoded(self, encoded: Encoded, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """As `scores_of`, for n encoded rows and the output that is explained of each, (n,)."""
        return self._each(encoded, chosen, self.score)

    def chances_of_encoded(self, encoded: Encoded, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """As `scores_of_encoded`, but the probability of a class, as the model itself has it; of a number the score."""

        def chance(batch: Batch, own: npt.NDArray[np.int64]) -> Tensor:
            outputs = self.predictor.model(batch)[self.output]
            if not self.classes:
                return self.pick(outputs, own)
            shares = self.shares_of(outputs.double().cpu().numpy())
            return torch.from_numpy(shares[np.arange(len(own)), own])

        return self._each(encoded, chosen, chance)

    def _each(
        self,
        encoded: Encoded,
        chosen: npt.NDArray[np.int64],
        what: Callable[[Batch, npt.NDArray[np.int64]], Tensor],
    ) -> npt.NDArray[np.float64]:
        """Return a number for each row, a batch at a time, without gradients."""
        parts: list[npt.NDArray[np.float64]] = []
        with torch.inference_mode():
            for start in range(0, len(chosen), BATCH):
                rows = slice_rows(encoded, start, start + BATCH)
                batch = to_batch(rows, self.predictor.spec, self.predictor.device)
                parts.append(what(batch, chosen[start : start + BATCH]).double().cpu().numpy())
        return np.concatenate(parts) if parts else np.empty(0)

    def shares_of(self, outputs: Array) -> npt.NDArray[np.float64]:
        """Return the probability of each class, (n, classes), of the outputs for a target of classes, (n, width)."""
        return class_shares(np.asarray(self.processor.scores(outputs), dtype=np.float64))

    @cached_property
    def own_outputs(self) -> npt.NDArray[np.float64]:
        """The model's output for the target of the case's rows, (n, width)."""
        return self.outputs_of(self.frame)

    def probabilities(self) -> list[float | None]:
        """Return the probability of the class that is explained, a row; None for a number."""
        if not self.classes:
            return [None] * len(self)
        shares = self.shares_of(self.own_outputs)
        return [float(row[i]) for row, i in zip(shares, self.chosen.tolist(), strict=True)]

    # --- the result --------------------------------------------------------------------------------------

    def explanations(
        self,
        method: str,
        scores: Sequence[float],
        parts: Sequence[dict[str, Part]],
        baselines: Sequence[float | None] | None = None,
    ) -> list[Explanation]:
        """Put together what an explainer found: of each row its score, its parts, and the score of its baseline."""
        return [
            Explanation(number, method, self.target, label, float(score), base, share, own)
            for number, label, score, base, share, own in zip(
                self.numbers,
                self.labels,
                scores,
                baselines or [None] * len(self),
                self.probabilities(),
                parts,
                strict=True,
            )
        ]


def quickly(predictor: Predictor) -> AbstractContextManager[object]:
    """Keep large blocks of memory from pass to pass, and have matrix products made by the quicker library."""
    reuse_memory()
    return quick_products(predictor.model, predictor.device)


def ragged(batch: Batch, name: str) -> Ragged:
    """Return a field of a batch whose rows differ in length."""
    value = batch[name]
    assert isinstance(value, Ragged), f"'{name}' is not ragged"
    return value


def require_rows(case: Case) -> None:
    """Refuse a case without any row.

    Raises:
        DataError: naming why the first row cannot be read, where there was one.
    """
    if not len(case):
        reason = next(iter(case.unreadable.values()), "")
        raise DataError(
            say("there is no row to explain: {reason}", reason=reason)
            if reason
            else say("there is no row to explain")
        )
