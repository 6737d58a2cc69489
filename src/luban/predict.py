"""The Predictor: rows in, decoded predictions out, the same for every verb."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import nn

from luban import language
from luban.adapt.lora import merge
from luban.artefact import Artefact
from luban.data.batch import Batch, to_batch
from luban.data.contracts import Array, Encoded, Spec
from luban.data.pipeline import Pipeline
from luban.data.store import slice_rows
from luban.decisions._base import Decision
from luban.errors import ArtefactError, DataError, InputError, LubanError, ParityError
from luban.generation.int8 import to_int8
from luban.generation.options import Generation
from luban.generation.reader import Piece
from luban.language import Speaker, speaker_of
from luban.machine import inference
from luban.recipe import Component, Section, options_from, read_yaml
from luban.sentences import say
from luban.writing import Writer, writer_of

__all__ = ["TOLERANCE", "Predictor", "drift", "frame_of", "load", "of_artefact"]

_SPEAKING = ("causal_lm", "masked_lm")  # objectives whose targets are the text's own tokens
_SPOKEN = 32  # texts continued at a time: as many caches of keys and values
_ENCODED = (
    1024  # rows encoded at a time: many, because polars has a price a call, but not a gigabyte of images
)

TOLERANCE = 1e-4
"""Largest drift of a score (or of a number, in deviations of its target) between machines; on one machine there is none."""


@dataclass
class Predictor:
    """A model together with what makes batches of rows and rows of outputs.

    Attributes:
        model: the module, in evaluation mode.
        pipeline: fitted processors and cleaning.
        spec: fields of a batch.
        device: where the model is.
        objective: what a language model was trained with, if that is known; it says how texts are measured.
        decisions: what was fitted on validation rows; it changes outputs, or adds to predictions.
    """

    model: nn.Module
    pipeline: Pipeline
    spec: Spec
    device: torch.device
    objective: Component | None = None
    decisions: list[Decision] = field(default_factory=list)

    @cached_property
    def speaker(self) -> Speaker | None:
        """What the model makes of texts where tokens are its target; None for any other."""
        return speaker_of(self.model, self.pipeline, self.spec, self.device, self.objective)

    @cached_property
    def writer(self) -> Writer | None:
        """What writes the target that is a text; None where there is none."""
        return writer_of(self.model, self.pipeline, self.spec, self.device)

    def replay(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return what the parity contract compares, a row: predictions, and for a language model how probable the text is.

        A text that was generated would not do: where two tokens are about as probable, machines differ. So rows bring the
        texts of a target that is written.
        """
        predictions: list[dict[str, Any]] = [{} for _ in rows]
        if self.pipeline.scored or (self.speaker is None and self.writer is None):
            predictions = self._predict(frame_of(list(rows)), 256, None, None, 0, write=False)
        if self.writer is not None:
            for prediction, own in zip(predictions, self._scored_texts(frame_of(list(rows))), strict=True):
                prediction.update(own)
        if self.speaker is not None:
            values = self.clean(frame_of(list(rows)))[self.speaker.column]
            for prediction, own in zip(predictions, language.replay(self.speaker, values), strict=True):
                prediction.update(own)
        for processor in (*self.pipeline.inputs.values(), *self.pipeline.targets.values()):
            processor.counts()  # what was cut of the sample is no news of the rows that follow
        return predictions

    def predict(
        self,
        rows: Iterable[Mapping[str, Any]] | pl.DataFrame,
        *,
        batch_size: int = 256,
        generation: Generation | Mapping[str, Any] | None = None,
        candidates: Sequence[str] = (),
        per_token: bool = False,
        on_piece: Callable[[Piece], None] | None = None,
        first: int = 0,
    ) -> list[dict[str, Any]]:
        """Return one prediction a row.

        For a target ``label`` a prediction has ``label`` (the value), and for classes ``label.score`` (the probability of that
        value) and ``label.scores``; for a text ``label.finish_reason``, which is ``length`` where it was cut, ``label.tokens`` and
        ``label.log_probability``. A row that cannot be read gets ``error`` instead; it is never left out. A causal language
        model gives ``completion``, or ``answer`` where there are candidates; a masked one ``filled``; a model without any target
        ``embedding``.

        Args:
            rows: mappings of column → value, or a DataFrame; columns the model does not read are ignored.
            batch_size: rows at a time.
            generation: how a language model continues a text, or a text is written (`luban.generation.options.Generation`).
            candidates: answers that a language model chooses from, instead of continuing.
            per_token: whether candidates are compared by the mean log-probability of their tokens, so that long ones have a chance.
            on_piece: is shown a continuation as it comes.
            first: number of the first row where these rows go on a stream: pieces and the seeds of draws are counted from it.

        Raises:
            DataError: if a column that the model reads is missing.
            InputError: if the model cannot do what is asked of it.

        Example:
            >>> luban.load("runs/reviews").predict([{"review": "很好看"}])      # doctest: +SKIP
            [{'label': 'positive', 'label.score': 0.97, 'label.scores': {...}}]
        """
        frame = rows if isinstance(rows, pl.DataFrame) else frame_of(list(rows))
        predictions: list[dict[str, Any]] = []
        options = generation
        if options is not None and not isinstance(options, Generation):
            options = options_from(Generation, options, "generation")
        if self.speaker is not None and not self.pipeline.targets:
            cleaned = self.clean(frame)
            texts = cleaned[self.speaker.column].to_list()
            for start in range(0, len(texts), _SPOKEN):
                some = texts[start : start + _SPOKEN]
                predictions += self.speaker.predict(
                    some, options, candidates, on_piece, first + start, per_token
                )
            return predictions
        if (generation is not None and self.writer is None) or candidates or per_token:
            raise InputError(
                f"only a language model generates or chooses among answers; this artefact predicts {', '.join(self.pipeline.targets) or 'vectors'}"
            )
        return self._predict(frame, batch_size, options, on_piece, first)

    def _predict(
        self,
        frame: pl.DataFrame,
        batch_size: int,
        options: Generation | None,
        on_piece: Callable[[Piece], None] | None,
        first: int,
        *,
        write: bool = True,
    ) -> list[dict[str, Any]]:
        """Return one prediction a row, the first of which has the number `first`, of the targets that are columns; `write` those
        that are written too."""
        predictions: list[dict[str, Any]] = []
        for start in range(0, len(frame), _ENCODED):
            part = frame.slice(start, _ENCODED)
            try:
                cleaned = self.clean(part)
                encoded, kept = self.pipeline.encode(cleaned, targets=False)
            except pl.exceptions.PolarsError as error:
                # A cell of a kind that no processor foresees (a list where a number belongs): its row alone is at fault.
                if len(part) == 1:
                    predictions.append(
                        {"error": f"a cell cannot be read: {' '.join(str(error).split())[:120]}"}
                    )
                else:
                    alone = [frame_of([row]) for row in part.to_dicts()]
                    predictions += [
                        p
                        for i, row in enumerate(alone, first + start)
                        for p in self._predict(row, batch_size, options, on_piece, i, write=write)
                    ]
                continue
            needed = self.pipeline.scored or not self.pipeline.written
            outputs = self._outputs(encoded, kept, batch_size, cleaned) if needed else {}
            decoded: list[dict[str, Any]] = [{} for _ in range(int(kept.sum()))]
            if not self.pipeline.targets:
                for prediction, vector in zip(decoded, outputs["features"].tolist(), strict=True):
                    prediction["embedding"] = vector
            for column, processor in self.pipeline.scored.items():
                values = processor.decode(outputs[f"{column}.{processor.output}"])
                for prediction, value in zip(decoded, values, strict=True):
                    prediction[column] = value.pop("value")
                    prediction.update({f"{column}.{name}": one for name, one in value.items()})
            for decision in self.decisions:
                processor = self.pipeline.targets[decision.column]
                more = decision.extend(processor, outputs[f"{decision.column}.{processor.output}"])
                for prediction, value in zip(decoded, more, strict=False):  # most add nothing
                    prediction.update({f"{decision.column}.{name}": one for name, one in value.items()})
            if self.writer is not None and write and decoded:
                numbers = (first + start + np.flatnonzero(kept)).tolist()
                written = self.writer.predict(encoded, options, batch_size, on_piece, numbers)
                for prediction, value in zip(decoded, written, strict=True):
                    prediction.update(value)
            readable = iter(decoded)
            reasons = None if kept.all() else self.reasons(part)
            predictions += [
                next(readable) if good else {"error": reasons[i] if reasons else ""}
                for i, good in enumerate(kept.tolist())
            ]
        return predictions

    def _scored_texts(self, frame: pl.DataFrame) -> list[dict[str, Any]]:
        """Return how probable the texts of the target that is written are, where rows can be read."""
        assert self.writer is not None
        column = self.writer.column
        if column not in frame.columns:
            raise DataError(f"there is no column '{column}', whose texts are to be compared")
        cleaned = self.clean(frame)
        encoded, kept = self.pipeline.encode(cleaned, targets=False)
        given = cleaned.filter(pl.Series(kept))[column]
        found = iter(
            language.losses(column, self.writer.score(encoded, *self.writer.text.encode_measured(given)))
        )
        return [next(found) if good else {} for good in kept.tolist()]

    def outputs(
        self, rows: pl.DataFrame, batch_size: int = 256
    ) -> tuple[dict[str, Array], npt.NDArray[np.bool_]]:
        """Return the model's outputs for the rows that can be read, by name, and which rows those are.

        All rows are encoded at once, so hand over some thousand at the most.
        """
        return self.outputs_of_cleaned(self.clean(rows), batch_size)

    def outputs_of_cleaned(
        self, rows: pl.DataFrame, batch_size: int = 256
    ) -> tuple[dict[str, Array], npt.NDArray[np.bool_]]:
        """As `outputs`, for rows that `clean` returned."""
        encoded, kept = self.pipeline.encode(rows, targets=False)
        return self._outputs(encoded, kept, batch_size, rows), kept

    def _outputs(
        self, encoded: Encoded, kept: npt.NDArray[np.bool_], batch_size: int, rows: pl.DataFrame
    ) -> dict[str, Array]:
        wanted = [f"{column}.{processor.output}" for column, processor in self.pipeline.scored.items()]
        wanted = wanted or ["features"]
        if not kept.any():
            return {"features": np.empty((0, 0), np.float32)} | {
                f"{c}.{p.output}": np.empty((0, max(1, p.head_width)), np.float32)
                for c, p in self.pipeline.scored.items()
            }
        parts: dict[str, list[Array]] = {name: [] for name in wanted}
        with inference(self.model, self.device):
            for start in range(0, int(kept.sum()), batch_size):
                batch = to_batch(slice_rows(encoded, start, start + batch_size), self.spec, self.device)
                outputs = self.model(batch)
                for name in wanted:
                    parts[name].append(outputs[name].float().cpu().numpy())
        result = {name: np.concatenate(own) for name, own in parts.items()}
        return self.decided(result, rows, kept)

    def decided(
        self, outputs: dict[str, Array], rows: pl.DataFrame, kept: npt.NDArray[np.bool_]
    ) -> dict[str, Array]:
        """Return outputs of the rows that are kept as the decisions change them; rows are cleaned, (n,), and `kept` is (n,).

        Of targets that `outputs` does not name nothing is decided.
        """
        mine = rows if kept.all() else rows.filter(pl.Series(kept))
        for decision in self.decisions:
            name = f"{decision.column}.{self.pipeline.targets[decision.column].output}"
            if name in outputs:
                outputs[name] = decision.outputs(outputs[name], mine)
        return outputs

    def clean(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Clean rows as training did, without dropping any."""
        self.pipeline.require(rows.columns, targets=False)
        return self.pipeline.clean(rows, predicting=True)

    def encode(self, rows: pl.DataFrame) -> tuple[Encoded, npt.NDArray[np.bool_]]:
        """Clean and encode rows as training did, without dropping any."""
        return self.pipeline.encode(self.clean(rows), targets=False)

    def batch(self, rows: Sequence[Mapping[str, Any]] | pl.DataFrame) -> Batch:
        """Return the batch that the model would see."""
        frame = rows if isinstance(rows, pl.DataFrame) else frame_of(list(rows))
        return to_batch(self.encode(frame)[0], self.spec, self.device)

    def reasons(self, rows: pl.DataFrame) -> list[str]:
        """Return why each row cannot be read, a sentence; empty where it can."""
        cleaned = self.pipeline.clean(rows, predicting=True)
        reasons = [""] * len(rows)
        for column, processor in self.pipeline.inputs.items():
            for i, bad in enumerate(processor.invalid(cleaned[column]).to_list()):
                if bad:
                    reasons[i] = reasons[i] or say(
                        "column '{column}': {cell!r} cannot be read as {kind}",
                        column=column,
                        cell=str(cleaned[column][i])[:60],
                        kind=processor.type,
                    )
        return reasons

    def verify(self, sample: Sequence[Mapping[str, Any]], what: str) -> float:
        """Replay frozen rows and compare with the predictions made when they were frozen.

        Returns:
            The largest drift seen.

        Raises:
            ParityError: if it is beyond `TOLERANCE`.
            ArtefactError: if the rows are none that the model reads.
        """
        if not sample:
            return 0.0
        try:
            now = self.replay([one["row"] for one in sample])
        except DataError as error:
            raise ArtefactError(f"{what} is damaged: its sample cannot be predicted ({error})") from None
        scales = {column: p.unit for column, p in self.pipeline.targets.items()}
        worst, where = 0.0, 0
        for i, (one, prediction) in enumerate(zip(sample, now, strict=True)):
            own = drift(one["prediction"], prediction, scales)
            if own > worst:
                worst, where = own, i
        if worst > TOLERANCE:
            raise ParityError(
                f"{what} does not predict what it predicted when it was made: sample row {where} drifted by {worst:.2g} "
                f"(at most {TOLERANCE:g} is allowed); its weights or its preprocessing were changed. Train again, or restore the original files"
            )
        return worst


def drift(a: Mapping[Any, Any], b: Mapping[Any, Any], units: Mapping[Any, Callable[[float], float]]) -> float:
    """Return the largest difference between two predictions: of scores, or of numbers in their target's `unit`."""
    worst = 0.0
    for name, value in a.items():
        other = b.get(name)
        if str(name).endswith(".set") and f"{str(name).removesuffix('.set')}.scores" in a:
            continue  # a class may leave a set when its score stands at the bound; the scores tell the truth
        if isinstance(value, Mapping):
            worst = max(worst, drift(value, other, {}) if isinstance(other, Mapping) else math.inf)
        elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
            own = units.get(str(name).removesuffix(".interval"))
            ends = dict.fromkeys(range(len(value)), own) if own is not None else {}
            worst = max(worst, drift(dict(enumerate(value)), dict(enumerate(other)), ends))
        elif (
            isinstance(value, float | int) and not isinstance(value, bool) and isinstance(other, float | int)
        ):
            unit = units[name](value) if name in units else 1.0
            difference = abs(value - other) / max(abs(unit), 1e-12)
            worst = max(worst, math.inf if math.isnan(difference) else difference)
        # A label alone may flip when its score stands at the threshold; the scores beside it tell the truth.
        elif other != value and f"{name}.scores" not in a and name != "error":
            return math.inf
    return worst


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Make a DataFrame of rows of Python values, whatever they mix.

    Raises:
        DataError: if a row is no mapping.
    """
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {i} is {type(row).__name__} {str(row)[:40]!r}, but a row is a mapping of column → value"
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame([_series(name, [row.get(name) for row in rows]) for name in names])


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if (
        len(kinds) > 1
        and not kinds <= {int, float}
        and not any(issubclass(k, list | dict | bytes | np.ndarray) for k in kinds)
    ):
        values = [None if value is None else str(value) for value in values]
    try:
        return pl.Series(name, values, strict=False)
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        return pl.Series(name, values, dtype=pl.Object)


def load(path: str | Path, *, device: str = "cpu", weights: str = "stored", verify: bool = True) -> Predictor:
    """Load an artefact, ready to predict.

    Args:
        path: the artefact's directory.
        device: ``cpu`` or ``cuda``.
        weights: ``stored``, or ``int8``: those of a causal language model are rounded once the sample was replayed, which makes it
            generate several times as fast on a CPU; `luban evaluate --weights int8` says what that costs.
        verify: replay the frozen sample first.

    Raises:
        ArtefactError: if it is missing or damaged.
        ParityError: if it does not predict what it predicted when it was made.
        InputError: if there is no such device, or the weights cannot be rounded.
    """
    return of_artefact(Artefact.load(path), device=device, weights=weights, verify=verify)


def of_artefact(
    artefact: Artefact, *, device: str = "cpu", weights: str = "stored", verify: bool = True
) -> Predictor:
    """As `load`, for an artefact that was read."""
    if weights not in ("stored", "int8"):
        raise InputError(f"received weights '{weights}', but weights are stored and int8")
    if weights == "int8" and device != "cpu":
        raise InputError("int8 weights are for a CPU; on cuda take the stored ones")
    if device not in ("cpu", "cuda"):
        raise InputError(f"received device '{device}', but devices are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("the device is cuda, but torch sees no CUDA device here; use cpu")
    where = torch.device(device)
    predictor = Predictor(
        artefact.build().to(where),
        artefact.pipeline,
        artefact.spec,
        where,
        _objective_of(artefact),
        artefact.decisions,
    )
    if verify:
        try:
            predictor.verify(artefact.sample, f"'{artefact.path}'")
        except (LubanError, OSError, MemoryError):
            raise
        except Exception as error:  # files that are well formed by themselves may still contradict each other
            raise ArtefactError(
                f"'{artefact.path}' is damaged: its files do not fit together ({type(error).__name__}: {error})"
            ) from error
        artefact.verify_weights()
    if weights == "int8":
        if predictor.speaker is None or not predictor.speaker.causal:
            raise InputError(
                f"int8 weights are for causal language models, and '{artefact.path}' is none; take the stored ones"
            )
        to_int8(merge(predictor.model))
    return predictor


def _objective_of(artefact: Artefact) -> Component | None:
    """Return the objective over a text's own tokens that the recipe of an artefact has, None where there is none."""
    try:
        data = read_yaml(artefact.recipe, "recipe.yaml").data
        entry = _spoken_in(data.get("objective") if isinstance(data, dict) else None)
        return None if entry is None else Section("objectives").parse(entry)
    except (LubanError, ValueError, TypeError) as error:
        raise ArtefactError(
            f"'{artefact.path}' is damaged: its recipe.yaml names no objective ({' '.join(str(error).split())[:120]})"
        ) from None


def _spoken_in(objective: Any) -> Any:
    """Return the entry of a causal or masked language model among objectives, those that others wrap included."""
    if isinstance(objective, list):
        return next((found for one in objective if (found := _spoken_in(one)) is not None), None)
    if isinstance(objective, str):
        return objective if objective in _SPEAKING else None
    if not isinstance(objective, dict):
        return None
    return objective if objective.get("type") in _SPEAKING else _spoken_in(objective.get("objective"))
