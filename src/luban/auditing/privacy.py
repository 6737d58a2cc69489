"""Can somebody tell who was in the training data? Membership inference by the loss, and by its likelihood ratio."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option

from luban.auditing._base import SEED, Audit, AuditResult, Case, Scored, Severity, losses
from luban.auditing._shadow import shadows
from luban.auditing._small import auc
from luban.data.contracts import Array
from luban.data.sampling import Sample
from luban.evaluation.intervals import Metric, interval
from luban.registry import register

__all__ = ["Privacy", "attack", "likelihood_ratio"]

_RESAMPLES = 300
_FALSE = 0.001  # of false alarms that the attacker accepts


@register("audits")
class Privacy(Audit):
    """Attacks that guess from the model's loss on a row whether it was trained on it.

    The loss-threshold attack (Yeom et al., 2018) takes rows of low loss for members. With `references`, models are trained by the
    same recipe on halves of the members looked at, to their last weights, and a row's confidence is compared with that of the
    models that never saw it, all before any decision: the offline attack of Carlini et al., 2022 (LiRA), which finds those few
    whom the average hides. AUC is 0.5 where nothing leaks; what matters to people is the share of members found at 0.1 % false
    alarms, which takes at least 1,000 rows on either side.
    """

    family: ClassVar[str] = "privacy"
    paper: ClassVar[str] = "Yeom et al., 2018; Carlini et al., 2022"
    guarded: ClassVar[tuple[str, ...]] = ("references",)

    rows: Annotated[int, Option(ge=100)] = 5_000
    """Members looked at, and as many others, at the most."""
    references: Annotated[int, Option(ge=0)] = 0
    """Models trained for the likelihood-ratio attack; each costs a training on half of `rows`. Below 4 it tells little."""
    tolerance: Annotated[float, Option(gt=0, lt=0.5)] = 0.05
    """AUC above 0.5 from which a finding is medium; high from three times that."""

    def refusal(self, case: Case) -> str | None:
        if not case.targets and case.predictor.speaker is None:
            return "the artefact has no loss on a row: it predicts no column and no token"
        if case.training is None:
            return f"the rows it was trained on are not at hand: {case.why_no_training}"
        return None

    def run(self, case: Case) -> AuditResult:
        training = case.training
        assert training is not None, "refusal() comes first"
        others = self._others(case)
        n = min(self.rows, len(training.rows), len(others))
        members, others = training.take(n).rows, Sample.of(others).take(n).rows
        result = AuditResult(self.type, rows=2 * n)
        result.notes.append(
            f"{n:,} training rows (of {training}) and {n:,} rows that it was not trained on (of {case.sample})"
        )
        if n < 50:
            result.notes.append("too few rows on one side to say anything")
            return result
        if n < 1 / _FALSE:
            result.notes.append(
                f"{_FALSE:.1%} false alarms of {n:,} rows is less than one row, so how many are found at that is not said"
            )
        if self.references and not case.targets:
            result.notes.append("reference models are for targets that are columns; only the loss is used")
        if case.targets:
            inside, outside = case.score(members), case.score(others)
            scores = [-_summed(case, one) for one in (inside, outside)]
        else:
            scores = [-_texts(case, rows) for rows in (members, others)]
        self._tell(result, "loss", "its loss alone", *scores)
        if self.references and case.targets:
            self._tell(
                result,
                "likelihood_ratio",
                f"its loss beside {self.references} reference models",
                *self._ratio(case, members, others),
            )
        return result

    def _others(self, case: Case) -> pl.DataFrame:
        """Return the rows to look at without those whose inputs are a training row's."""
        return case.rows.filter(pl.Series(~np.isin(case.keys(case.rows), case.training_keys)))

    def _ratio(self, case: Case, members: pl.DataFrame, others: pl.DataFrame) -> tuple[Array, Array]:
        rows = pl.concat([members, others.select(members.columns)], how="vertical_relaxed")
        # Reference models have no decisions: what a temperature changes is no trace of training.
        bare = Case(replace(case.predictor, decisions=[]), case.sample)
        own = _confidence(bare, bare.score(rows), len(rows))
        seen: list[Array] = []
        found: list[Array] = []
        generator = np.random.default_rng([SEED, 12])
        for predictor, inside in shadows(case, members, self.references):
            reference = Case(predictor, case.sample)
            found.append(_confidence(reference, reference.score(rows), len(rows)))
            # No model saw the others, but the mean of more models is surer: of them, too, half of the models are asked.
            seen.append(np.concatenate([inside, generator.random(len(others)) < 0.5]))
        scores = likelihood_ratio(own, np.stack(found), np.stack(seen))
        return scores[: len(members)], scores[len(members) :]

    def _tell(self, result: AuditResult, name: str, how: str, members: Array, others: Array) -> None:
        members, others = members[np.isfinite(members)], others[np.isfinite(others)]
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
            f"from {how} one can tell rows it was trained on from others (AUC {area.value:.3f}, 0.5 is not at all"
            + (
                ")"
                if rate.value is None
                else f"; {rate.value:.2%} of its training rows are found at 0.1 % false alarms)"
            ),
            "The model remembers single rows: stop earlier, make it smaller, add dropout or weight decay, drop duplicates; where the rows "
            "are about people, do not give the model or its scores away before this is mended.",
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
    """Return how unusual each row's confidence is among models that did not see it, (n,); NaN where fewer than two did not.

    How many did not must have the same law for members and others, or the means of one are surer than those of the other.

    Args:
        own: confidence of the model that is attacked, (n,).
        references: that of each reference model, (models, n).
        seen: which model was trained on which row, boolean, (models, n).
    """
    outside = np.where(seen, np.nan, references)
    enough = (~seen).sum(0) >= 2
    mean = np.full(own.shape, np.nan)
    mean[enough] = np.nanmean(outside[:, enough], 0)
    # One deviation for all rows: few models cannot tell one for each (Carlini et al., 2022, section VI-C).
    spread = float(np.sqrt(np.nanmean((outside[:, enough] - mean[enough]) ** 2))) or 1.0
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


def _texts(case: Case, rows: pl.DataFrame) -> Array:
    """Return the loss of each text for each of its tokens, (n,)."""
    speaker = case.predictor.speaker
    assert speaker is not None
    scores = speaker.measure(case.predictor.clean(rows)[speaker.column])
    return np.array([one.loss / one.tokens if one.tokens else np.nan for one in scores])
