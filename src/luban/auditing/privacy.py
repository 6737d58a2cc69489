"""Can somebody tell who was in the training data? Membership inference by the loss, alone or beside how hard a row is by itself."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import field_validator

from luban.auditing._base import SEED, Audit, AuditResult, Case, Scored, Severity, losses
from luban.auditing._shadow import shadows
from luban.auditing._small import auc
from luban.data._messages import ANSWER, UnreadableError, read
from luban.data.contracts import Array
from luban.data.processors.chat import Chat
from luban.data.sampling import Sample
from luban.errors import DataError
from luban.evaluation.intervals import Metric, interval
from luban.predict import Predictor, load
from luban.registry import register
from luban.sentences import Sentence, say

__all__ = ["Privacy", "attack", "likelihood_ratio"]

_RESAMPLES = 300
_FALSE = 0.001  # of false alarms that the attacker accepts
_OWN_DEVIATION = 64  # models from which a row's deviation is its own


@register("audits")
class Privacy(Audit):
    """Attacks that guess from the model's loss on a row whether it was trained on it.

    The loss-threshold attack (Yeom et al., 2018) takes rows of low loss for members. With `references`, models are trained by the
    same recipe on halves of the members looked at, keeping the weights that the recipe would keep, and a row's confidence is
    compared with that of the models that never saw it, all before any decision: the offline attack of Carlini et al., 2022 (LiRA),
    which finds those few whom the average hides. Its deviation is one for all rows below 64 references, and each row's own from
    there on: with fewer models, the paper finds, single deviations are too rough to help (section VI-C).

    Of a language model, a text is a row, and its loss is that of its tokens. Beside it stand how well zlib compresses the text, and,
    with `reference`, how probable another model finds it, both as ratios of Carlini et al., 2021: a text that is easy for everybody
    is no trace of training. They take sums over a text, so that the other model may have a tokenizer of its own.

    AUC is 0.5 where nothing leaks; what matters to people is the share of members found at 0.1 % false alarms, which takes at
    least 1,000 rows on either side.
    """

    family: ClassVar[str] = "privacy"
    paper: ClassVar[str] = "Yeom et al., 2018; Carlini et al., 2021, 2022"
    guarded: ClassVar[tuple[str, ...]] = ("references", "reference")

    rows: Annotated[int, Option(ge=100)] = 5_000
    """Members looked at, and as many others, at the most."""
    references: Annotated[int, Option(ge=0)] = 0
    """Models trained for the likelihood-ratio attack, at least 2; each costs a training on half of `rows`. Below 4 they tell little."""
    reference: str | None = None
    """Of a language model: another one, an artefact that was not trained on these rows (such as the one that tuning began with)."""
    tolerance: Annotated[float, Option(gt=0, lt=0.5)] = 0.05
    """AUC above 0.5 from which a finding is medium; high from three times that."""

    @field_validator("references")
    @classmethod
    def _of_whom_a_mean_is_known(cls, references: int) -> int:
        if references == 1:
            raise ValueError(
                "a row is compared with models that were not trained on it, and 1 model leaves too few; take 0 (no such attack) or 2 and more"
            )
        return references

    def refusal(self, case: Case) -> str | None:
        if not case.targets and case.predictor.speaker is None:
            return say("the artefact has no loss on a row: it predicts no column and no token")
        if case.training is None:
            return say("the rows it was trained on are not at hand: {why}", why=case.why_no_training)
        return None

    def run(self, case: Case) -> AuditResult:
        training = case.training
        assert training is not None, "refusal() comes first"
        others = self._others(case)
        n = min(self.rows, len(training.rows), len(others))
        members, others = training.take(n).rows, Sample.of(others).take(n).rows
        result = AuditResult(self.type, rows=2 * n)
        result.notes.append(
            say(
                "{n:,} training rows (of {training}) and {n:,} rows that it was not trained on (of {sample})",
                n=n,
                training=training,
                sample=case.sample,
            )
        )
        if n < 50:
            result.notes.append(say("too few rows on one side to say anything"))
            return result
        if n < 1 / _FALSE:
            result.notes.append(
                say(
                    "{rate:.1%} false alarms of {n:,} rows is less than one row, so how many are found at that is not said",
                    rate=_FALSE,
                    n=n,
                )
            )
        if self.reference is not None and case.targets:
            result.notes.append(
                say(
                    "privacy.reference is for language models, and this artefact predicts columns: it was not asked"
                )
            )
        if case.targets:
            inside, outside = case.score(members), case.score(others)
            scores = [-_summed(case, one) for one in (inside, outside)]
            self._tell(result, "loss", say("its loss alone"), *scores)
        else:
            self._tell_of_texts(result, case, members, others)
        if self.references:
            self._tell(
                result,
                "likelihood_ratio",
                say("its loss beside {n} reference models", n=self.references),
                *self._ratio(case, members, others),
            )
        return result

    def _others(self, case: Case) -> pl.DataFrame:
        """Return the rows to look at without those whose inputs are a training row's."""
        return case.rows.filter(pl.Series(~np.isin(case.keys(case.rows), case.training_keys)))

    def _tell_of_texts(
        self, result: AuditResult, case: Case, members: pl.DataFrame, others: pl.DataFrame
    ) -> None:
        """Attack a language model by single texts."""
        sides = [_texts(case.predictor, rows) for rows in (members, others)]
        alone = [-one.loss / one.tokens for one in sides]
        self._tell(result, "loss", say("its loss alone"), *alone)
        sizes = [_compressed(case.predictor, rows) for rows in (members, others)]
        beside = [-one.loss / size for one, size in zip(sides, sizes, strict=True)]
        self._tell(result, "zlib", say("its loss beside how well zlib compresses a text"), *beside)
        if self.reference is None:
            return
        other = load(Path(self.reference), device=case.predictor.device.type)
        if other.speaker is None or case.predictor.speaker is None:
            raise DataError(
                say(
                    "privacy.reference names '{path}', which is no language model; name one that was not trained on these texts",
                    path=self.reference,
                )
            )
        column = case.predictor.speaker.column
        theirs = [
            # Of all columns the text alone goes over: another one may have the name that the other model asks for.
            _texts(
                other,
                rows.select(pl.col(column).alias(other.speaker.column)) if column in rows.columns else rows,
            )
            for rows in (members, others)
        ]
        ratio = [-own.loss / their.loss for own, their in zip(sides, theirs, strict=True)]
        self._tell(result, "reference", say("its loss beside that of '{path}'", path=self.reference), *ratio)

    def _ratio(self, case: Case, members: pl.DataFrame, others: pl.DataFrame) -> tuple[Array, Array]:
        rows = pl.concat([members, others.select(members.columns)], how="vertical_relaxed")
        # Reference models have no decisions: what a temperature changes is no trace of training.
        bare = Case(replace(case.predictor, decisions=[]), case.sample)
        own = _confident(bare, rows)
        seen: list[Array] = []
        found: list[Array] = []
        generator = np.random.default_rng([SEED, 12])
        for predictor, inside in shadows(case, members, self.references):
            # Texts are measured in the windows that the artefact's own are.
            predictor = replace(predictor, objective=case.predictor.objective)
            found.append(_confident(Case(predictor, case.sample), rows))
            # No model saw the others, but the mean of more models is surer: of them, too, half of the models are asked.
            seen.append(np.concatenate([inside, generator.random(len(others)) < 0.5]))
        scores = likelihood_ratio(own, np.stack(found), np.stack(seen))
        return scores[: len(members)], scores[len(members) :]

    def _tell(self, result: AuditResult, name: str, how: Sentence, members: Array, others: Array) -> None:
        looked = len(members) + len(others)
        members, others = members[np.isfinite(members)], others[np.isfinite(others)]
        if left := looked - len(members) - len(others):
            result.notes.append(
                say("from {how} {n:,} of {of:,} rows could not be told", how=how, n=left, of=looked)
            )
        if not len(members) or not len(others):
            return
        found = attack(members, others)
        area, rate = found["auc"], found["tpr"]
        result.figures |= {f"{name}.auc": area.value, f"{name}.tpr_at_0.1%_fpr": rate.value}
        result.figures["auc"] = max(area.value or 0.0, result.figures.get("auc") or 0.0)
        result.tables.setdefault("attacks", []).append(
            {"attack": name, "members": len(members), "others": len(others)}
            | {key: {"value": m.value, "low": m.low, "high": m.high} for key, m in found.items()}
        )
        above = (area.value or 0.5) - 0.5
        sure = (area.low or 0.0) > 0.5
        severity: Severity = (
            "high" if above >= 3 * self.tolerance else "medium" if above >= self.tolerance else "low"
        )
        many = (rate.value or 0.0) >= 10 * _FALSE and (rate.low or 0.0) > _FALSE
        if many and severity == "low":
            severity = "medium"
        if (above < self.tolerance or not sure) and not many:
            return
        result.find(
            severity,
            say(
                "from {how} one can tell rows it was trained on from others (AUC {auc:.3f}, 0.5 is not at all)",
                how=how,
                auc=area.value,
            )
            if rate.value is None
            else say(
                "from {how} one can tell rows it was trained on from others (AUC {auc:.3f}, 0.5 is not at all; {rate:.2%} of its training rows are found at 0.1 % false alarms)",
                how=how,
                auc=area.value,
                rate=rate.value,
            ),
            say(
                "The model remembers single rows: stop earlier, make it smaller, add dropout or weight decay, drop duplicates; where the rows "
                "are about people, do not give the model or its scores away before this is mended."
            ),
            {"auc": area.value, "low": area.low, "high": area.high, "tpr": rate.value},
        )


def attack(members: Array, others: Array) -> dict[str, Metric]:
    """Return AUC and true positive rate at 0.1 % false positives of a score that is higher for members, with intervals.

    The rate is None below 1,000 others, of which 0.1 % is less than one.

    Args:
        members: scores of rows trained on, (n,).
        others: scores of rows that were not, (m,).
    """
    generator = np.random.default_rng([SEED, 10])
    draws: dict[str, list[float]] = {"auc": [], "tpr": []}
    for _ in range(_RESAMPLES):
        some = [side[generator.integers(len(side), size=len(side))] for side in (members, others)]
        for name, value in _measured(*some).items():
            draws[name].append(value)
    values = _measured(members, others)
    return {name: interval(values[name], np.array(own), bounds=(0, 1)) for name, own in draws.items()}


def _measured(members: Array, others: Array) -> dict[str, float]:
    scores = np.concatenate([members, others])
    mine = np.arange(len(scores)) < len(members)
    allowed = int(_FALSE * len(others) + 1e-9)
    if not allowed:  # above the highest of few others there is more than the 0.1 % that nobody could count
        return {"auc": auc(mine, scores), "tpr": math.nan}
    bound = np.sort(others)[::-1][allowed]  # so many of the others lie above it, and no more
    return {"auc": auc(mine, scores), "tpr": float((members > bound).mean())}


def likelihood_ratio(own: Array, references: Array, seen: Array) -> Array:
    """Return how unusual each row's confidence is among models that did not see it, (n,), in deviations; NaN where fewer than two
    did not.

    Below 64 models the deviation is one for all rows, as Carlini et al., 2022, section VI-C, find best; from there on, each row's own.

    How many did not must have the same law for members and others, or the means of one are surer than those of the other.

    Args:
        own: confidence of the model that is attacked, (n,).
        references: that of each reference model, (models, n).
        seen: which model was trained on which row, boolean, (models, n).
    """
    outside = np.where(seen, np.nan, references)
    enough = (~seen).sum(0) >= 2
    mean = np.full(own.shape, np.nan)
    if not enough.any():
        return mean
    mean[enough] = np.nanmean(outside[:, enough], 0)
    whole = float(np.sqrt(np.nanmean((outside[:, enough] - mean[enough]) ** 2))) or 1.0
    if len(references) < _OWN_DEVIATION:
        spread = np.full(own.shape, whole)
    else:
        spread = np.full(own.shape, np.nan)
        # Models that are all alike sure of a row, to the last bit, are no reason to divide by nothing.
        spread[enough] = np.maximum(np.nanstd(outside[:, enough], 0, ddof=1), 1e-3 * whole)
    scores: Array = (own - mean) / spread
    return scores


def _summed(case: Case, scored: Scored) -> Array:
    each = [losses(one, scored.truth[name], scored.scores[name]) for name, one in case.targets.items()]
    return np.asarray(np.sum(each, 0))


def _confidence(case: Case, scored: Scored, n: int) -> Array:
    """Return log p / (1 - p) of the truth, which is about normal; minus the loss for a number, (n,). NaN where it has none."""
    total = np.zeros(len(scored.places))
    for name, processor in case.targets.items():
        loss = losses(processor, scored.truth[name], scored.scores[name])
        if processor.task == "regression":
            total -= loss
        else:
            total += -loss - np.log(np.maximum(-np.expm1(-loss), 1e-12))
    result: Any = np.full(n, np.nan)
    result[scored.places] = total
    return np.asarray(result)


def _confident(case: Case, rows: pl.DataFrame) -> Array:
    """Return how sure a model is of the truth of rows, (n,): `_confidence`, or of texts minus the loss for each byte."""
    if case.targets:
        return _confidence(case, case.score(rows), len(rows))
    found = _texts(case.predictor, rows)
    return -found.loss / found.bytes


@dataclass(frozen=True)
class _Texts:
    """What a language model makes of texts; NaN where it predicts no token of one.

    Attributes:
        loss: minus the log of the probability of the tokens that are predicted, (n,).
        tokens, bytes: how many these are, (n,).
    """

    loss: Array
    tokens: Array
    bytes: Array


def _texts(predictor: Predictor, rows: pl.DataFrame) -> _Texts:
    speaker = predictor.speaker
    assert speaker is not None
    scores = speaker.measure(predictor.clean(rows)[speaker.column])
    known = np.array([one.tokens > 0 and one.bytes > 0 for one in scores])
    loss, tokens, sizes = (
        np.where(known, [getattr(one, name) for one in scores], np.nan)
        for name in ("loss", "tokens", "bytes")
    )
    return _Texts(loss, tokens, sizes)


def _compressed(predictor: Predictor, rows: pl.DataFrame) -> Array:
    """Return the bytes to which zlib brings what a language model predicts: texts, or of conversations the answers, (n,)."""
    speaker = predictor.speaker
    assert speaker is not None
    cells = predictor.clean(rows)[speaker.column].to_list()
    texts = [_answers(cell) for cell in cells] if isinstance(speaker.text, Chat) else map(str, cells)
    return np.array([len(zlib.compress(text.encode(errors="replace"), 9)) for text in texts], dtype=float)


def _answers(cell: Any) -> str:
    """Return the answers of a conversation as one text; nothing of what is none, which no model is measured on."""
    try:
        return "\n".join(message["content"] for message in read(cell) if message["role"] == ANSWER)
    except UnreadableError:
        return ""
