"""Influence: the training rows that mattered most for a prediction."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Array, Encoded, Flat
from luban.errors import DataError, InputError
from luban.explaining._base import Explainer, Explanation, Part
from luban.explaining._case import Case, require_rows
from luban.explaining._rows import batch_of, mixed, shown, step_of, with_truth
from luban.registry import register
from luban.sentences import say
from luban.training.checkpoint import join

__all__ = ["Influence"]

Floats = npt.NDArray[np.float64]

_CHUNK = 2048  # training rows compared at a time


@register("explainers")
class Influence(Explainer):
    """The training rows whose gradient points as the row's own does: an update on them moved this prediction most.

    Only the last layer, the head, is looked at, whose gradient is known without a backward pass: the error times the features
    that the head reads. Influence is the product of two such gradients: positive where an update on the training row
    lowers the loss of this prediction, negative where it raises it.

    Example:
        >>> Influence(top=5).of
        'prediction'
    """

    paper: ClassVar = say("Pruthi et al., 2020 (TracIn, last layer); Barshan et al., 2020 (why to normalise)")
    limits: ClassVar = say(
        "it looks at the head's gradient at the weights that were kept, not at the whole way that training went; "
        "with cosine off, rows that the model is far off on stand on top for every prediction"
    )
    scope: ClassVar[Literal["row", "set"]] = "row"
    attributes: ClassVar = False

    top: Annotated[int, Option(ge=1)] = 10
    """Training rows that are named, for and against each."""
    of: Literal["prediction", "truth"] = "prediction"
    """Whose loss is looked at: that of the class that is explained, or that of the value in the row's own target column. Of
    a number only the truth has a loss."""
    cosine: bool = True
    """Compare directions only, so that rows with large gradients count no more than others; false is the plain product of
    TracIn."""
    rows: Annotated[int, Option(ge=1)] = 20_000
    """Training rows that are looked at, at most; drawn evenly where there are more."""
    checkpoints: str | None = None
    """Folder of a run's checkpoints (``train`` in the artefact). Influence is then the mean over their weights, each counting as
    much as its learning rate (TracIn's sum over the rates' sum); at the artefact's own weights alone if left out."""

    _counted: tuple[Callable[[], Iterator[pl.DataFrame]], int] | None = PrivateAttr(default=None)

    def refusal(self, case: Case) -> str | None:
        """It needs a target that a linear head reads off the features."""
        if not case.target:
            return say("it needs a target that is a column")
        return (
            None
            if _head_of(case) is not None
            else say("it needs a head that reads one vector a row, as Luban's own families have")
        )

    def explain(self, case: Case) -> list[Explanation]:
        """Find the rows.

        Raises:
            DataError: if the training rows cannot be found, or a truth is asked for that the rows do not hold.
        """
        require_rows(case)
        if case.training is None:
            raise DataError(
                say(
                    "the training rows are not found: the file that the recipe names is gone, or is not the one that was trained on; put it back where the recipe says, or hand over the data"
                )
            )
        truth = self._truth(case)
        models, shares = _models(case, self.checkpoints)
        ours = [_gradients(case, model, case.encoded, truth) for model in models]
        best = _Best(len(case), self.top)
        seen = looked = 0
        generator = np.random.default_rng(case.seed)
        total = self._count(case)
        for chunk in case.training():
            numbers = np.arange(seen, seen + len(chunk))
            seen += len(chunk)
            if total > self.rows:
                drawn = generator.random(len(chunk)) < self.rows / total
                chunk, numbers = chunk.filter(pl.Series(drawn)), numbers[drawn]
            for start in range(0, len(chunk), _CHUNK):
                part, places = chunk[start : start + _CHUNK], numbers[start : start + _CHUNK]
                known = case.processor.known(part[case.target]).fill_null(False).to_numpy()
                readable = case.predictor.pipeline.readable(part, targets=False)
                part, places = part.filter(pl.Series(known & readable)), places[known & readable]
                if not len(part):
                    continue
                looked += len(part)
                encoded = case.predictor.pipeline.encode(part, targets=False)[0]
                values = _target_of(case, part)
                influence = np.zeros((len(case), len(part)))
                for model, share, own in zip(models, shares, ours, strict=True):
                    theirs = _gradients(case, model, encoded, values)
                    influence += share * own.dot(theirs, cosine=self.cosine)
                best.add(influence, places, part)
        if not looked:
            raise DataError(say("no training row can be read, so none can be said to have mattered"))
        return self._tell(case, best, looked, seen, len(models))

    def _truth(self, case: Case) -> Array:
        """Return what the loss compares with, of the rows explained."""
        if self.of == "truth" or not case.classes:
            if case.target not in case.frame.columns:
                raise DataError(
                    say(
                        "the loss of {what} is asked for, and the rows have no column '{target}'; hand over rows that hold it",
                        what=say("the truth") if case.classes else say("a number"),
                        target=case.target,
                    )
                )
            known, _, notes = with_truth(case)
            if notes:
                raise DataError(
                    say(
                        "the loss of the truth is asked for, and the '{target}' of {n} rows is unknown; leave them out",
                        target=case.target,
                        n=len(case) - len(known),
                    )
                )
            return _target_of(case, case.frame)
        if case.processor.task == "multilabel":
            outputs = case.own_outputs
            hot = (case.processor.scores(outputs) >= 0.5).astype(np.float64)
            hot[np.arange(len(case)), case.chosen] = 1.0
            return hot
        return case.chosen.astype(np.float64)

    def _count(self, case: Case) -> int:
        """Return how many training rows there are; they are counted once, though rows may come in several cases."""
        assert case.training is not None
        if self._counted is None or self._counted[0] is not case.training:
            self._counted = (case.training, sum(len(chunk) for chunk in case.training()))
        return self._counted[1]

    def _tell(self, case: Case, best: _Best, looked: int, seen: int, models: int) -> list[Explanation]:
        scores = [float(one) for one in case.scores_of(case.frame)]
        nothing: list[dict[str, Part]] = [{} for _ in range(len(case))]
        columns = [*case.predictor.pipeline.given, case.target]
        result = case.explanations(self.type, scores, nothing)
        for i, found in enumerate(result):
            for name, entries in (("for", best.highest(i)), ("against", best.lowest(i))):
                found.tables[name] = [
                    {
                        "row": entry.number,
                        "influence": entry.influence,
                        "values": {c: shown(entry.values.get(c)) for c in columns if c in entry.values},
                    }
                    for entry in entries
                ]
            for name in ("for", "against"):
                if lines := found.tables[name]:
                    about = {
                        "row": lines[0]["row"],
                        "target": case.target,
                        "label": shown(lines[0]["values"].get(case.target)),
                        "influence": lines[0]["influence"],
                    }
                    found.notes.append(
                        say(
                            "training row {row} ({target} {label}) speaks for it most ({influence:.3g})",
                            **about,
                        )
                        if name == "for"
                        else say(
                            "training row {row} ({target} {label}) speaks against it most ({influence:.3g})",
                            **about,
                        )
                    )
            drawn = say("{n:,} of {of:,}", n=looked, of=seen) if looked < seen else say("all {n:,}", n=looked)
            found.notes.append(
                say(
                    "{drawn} training rows were looked at, at {n} sets of weights, each by its learning rate; "
                    "rows are counted from 0 among those of training",
                    drawn=drawn,
                    n=models,
                )
                if models > 1
                else say(
                    "{drawn} training rows were looked at, at 1 set of weights; rows are counted from 0 among those of training",
                    drawn=drawn,
                )
            )
        return result


# --- gradients of the head --------------------------------------------------------------------------------


@dataclass
class _Gradients:
    """Gradients of the head's weights, as the two vectors that they are the outer product of.

    Attributes:
        errors: of the loss with respect to the head's output, (n, K).
        features: what the head reads, and a 1 for its bias where it has one, (n, D).
    """

    errors: Floats
    features: Floats

    def dot(self, other: _Gradients, *, cosine: bool) -> Floats:
        """Return the product of each gradient with each of the others, (n, m)."""
        product: Floats = (self.errors @ other.errors.T) * (self.features @ other.features.T)
        if cosine:
            product = product / np.maximum(self.norms[:, None] * other.norms, 1e-30)
        return product

    @property
    def norms(self) -> Floats:
        """Their lengths, (n,)."""
        lengths: Floats = np.linalg.norm(self.errors, axis=1) * np.linalg.norm(self.features, axis=1)
        return lengths


def _gradients(case: Case, model: nn.Module, encoded: Encoded, truth: Array) -> _Gradients:
    """Return the gradients of rows' losses, given what they are compared with."""
    rows, step = len(truth), step_of(encoded)
    errors, features = [], []
    head = _head_of(case)
    bias = getattr(head, "bias", None) is not None
    with torch.inference_mode():
        for start in range(0, rows, step):
            index = np.arange(start, min(rows, start + step))
            batch: Batch = batch_of(case, mixed(encoded, dict.fromkeys(case.inputs, index)))
            outputs = model(batch)
            own = outputs["features"].double().cpu().numpy()
            features.append(np.concatenate([own, np.ones((len(own), 1))], 1) if bias else own)
            errors.append(_errors(case, outputs[case.output].double().cpu(), truth[index]))
    return _Gradients(np.concatenate(errors), np.concatenate(features))


def _errors(case: Case, output: Tensor, truth: Array) -> Floats:
    """Return the gradient of the usual loss of a target with respect to its output, (n, K): what was said minus what is."""
    match case.processor.task:
        case "multiclass":
            said = output.softmax(1).numpy()
            said[np.arange(len(said)), truth.astype(np.int64)] -= 1.0
        case "binary":
            said = output.sigmoid().numpy() - truth[:, None]
        case "multilabel":
            said = output.sigmoid().numpy() - truth
        case _:
            said = output.numpy() - truth[:, None]
    result: Floats = said
    return result


def _target_of(case: Case, frame: pl.DataFrame) -> Array:
    """Return targets as the losses compare them: class numbers, 0 and 1, or normalised numbers."""
    (encoded,) = case.processor.encode_target(frame[case.target]).values()
    if isinstance(encoded, Flat):
        return case.processor.truth(encoded).astype(np.float64)
    return encoded.astype(np.float64)


def _head_of(case: Case) -> nn.Module | None:
    """Return the layer that reads the target off the features; None where the model has none."""
    from luban.models._network import Network, module_key

    model = case.predictor.model
    return model.heads[module_key(case.target)] if isinstance(model, Network) else None


def _models(case: Case, folder: str | None) -> tuple[list[nn.Module], list[float]]:
    """Return the model at the weights of each checkpoint, and the share of each in the sum of their learning rates; the model as it
    is, if there is no folder."""
    if folder is None:
        return [case.predictor.model], [1.0]
    import safetensors.torch

    found = sorted(Path(folder).glob("step-*/tensors.safetensors"))
    if not found:
        raise InputError(
            say(
                "'{folder}' holds no checkpoint of a run; name the folder 'train' of an artefact, or leave checkpoints out",
                folder=folder,
            )
        )
    models, rates = [], []
    for path in found:
        saved = safetensors.torch.load_file(path)
        prefix = "/step/model/"
        weights = {name.removeprefix(prefix): one for name, one in saved.items() if name.startswith(prefix)}
        model = copy.deepcopy(case.predictor.model)
        try:
            model.load_state_dict(weights)
        except RuntimeError:
            raise InputError(
                say(
                    "'{path}' holds weights of another form than the artefact's (an adapter was merged, perhaps); leave checkpoints out",
                    path=path,
                )
            ) from None
        models.append(model.eval())
        rates.append(_rate_of(path.with_name("state.json")))
    # A schedule that has come down to zero leaves its last weights without a say; where all have, they are alike.
    total = sum(rates)
    return models, [rate / total if total else 1 / len(rates) for rate in rates]


def _rate_of(path: Path) -> float:
    """Return the learning rate of a checkpoint, by its state.json: that of the optimizer's first group, since a schedule moves all
    alike.

    Raises:
        InputError: if it names none.
    """
    try:
        state = join(json.loads(path.read_text(encoding="utf-8")), defaultdict(lambda: torch.empty(0)))
        return float(state["step"]["optimizer"]["param_groups"][0]["lr"])
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(
            say(
                "'{path}' names no learning rate, by which its weights would count; leave checkpoints out",
                path=path,
            )
        ) from None


# --- the highest and the lowest ---------------------------------------------------------------------------


@dataclass
class _Entry:
    """A training row: its number, its influence, and its cells."""

    number: int
    influence: float
    values: dict[str, Any]


@dataclass
class _Best:
    """The training rows of the highest and of the lowest influence on each row, as chunks come.

    Attributes:
        rows: how many rows are explained.
        top: how many are kept.
    """

    rows: int
    top: int
    _kept: list[list[_Entry]] = field(default_factory=list)

    def add(self, influence: Floats, numbers: npt.NDArray[np.int64], frame: pl.DataFrame) -> None:
        """Take in a chunk.

        Args:
            influence: of each training row on each row, (rows, m).
            numbers: of the training rows, (m,).
            frame: their cells.
        """
        self._kept = self._kept or [[] for _ in range(self.rows)]
        for i, own in enumerate(influence):
            order = np.argsort(own, kind="stable")
            ends = np.unique(np.concatenate([order[: self.top], order[::-1][: self.top]]))
            fresh = [_Entry(int(numbers[j]), float(own[j]), frame.row(int(j), named=True)) for j in ends]
            kept = sorted(self._kept[i] + fresh, key=lambda one: (-one.influence, one.number))
            self._kept[i] = kept if len(kept) <= 2 * self.top else kept[: self.top] + kept[-self.top :]

    def highest(self, row: int) -> list[_Entry]:
        """Return those that speak for the prediction, the strongest first."""
        return [one for one in self._kept[row] if one.influence > 0][: self.top]

    def lowest(self, row: int) -> Sequence[_Entry]:
        """Return those that speak against it, the strongest first."""
        return [one for one in reversed(self._kept[row]) if one.influence < 0][: self.top]
