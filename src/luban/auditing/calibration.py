"""Do probabilities mean what they say, and do sets and intervals hold the truth as often as they promise?"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, cast

import numpy as np
from pydantic import Field as Option

from luban.auditing._base import Audit, AuditResult, Case, Severity
from luban.decisions.conformal import Conformal
from luban.errors import DataError
from luban.evaluation.metrics import Task, measure
from luban.evaluation.run import threshold_of
from luban.registry import register
from luban.sentences import say

__all__ = ["Calibration", "coverage_interval"]

_FEWEST = 30  # as few rows as a group of the audit fairness may have


@register("audits")
class Calibration(Audit):
    """Reliability by confidence, the expected calibration error with its interval (Guo et al., 2017), coverage of conformal sets.

    The calibration error is the mean distance of confidence from accuracy over 15 bins; the interval is corrected for its bias.
    """

    family: ClassVar[str] = "calibration"
    paper: ClassVar[str] = "Guo et al., 2017; Angelopoulos & Bates, 2021"
    guarded: ClassVar[tuple[str, ...]] = ("resamples",)

    tolerance: Annotated[float, Option(gt=0, lt=1)] = 0.05
    """Calibration error, or missing coverage, from which a finding is medium; high from twice that."""
    resamples: Annotated[int, Option(ge=100)] = 1000
    """Bootstrap resamples behind the 95 % interval."""

    def refusal(self, case: Case) -> str | None:
        if not case.targets:
            return say("the artefact puts out no probability of a class and no interval of a number")
        decided = {one.column for one in case.predictor.decisions if isinstance(one, Conformal)}
        if all(one.task == "regression" and name not in decided for name, one in case.targets.items()):
            return say("a number has no probability; train with decide: conformal to predict intervals")
        return None

    def run(self, case: Case) -> AuditResult:
        scored = case.scored
        if len(scored.rows) < _FEWEST:
            raise DataError(
                say(
                    "calibration is a matter of {least} rows at least, and {n} have a known truth; hand over more",
                    least=_FEWEST,
                    n=len(scored.rows),
                )
            )
        result = AuditResult(self.type, rows=len(scored.rows))
        result.notes.append(
            say(
                "measured on {n:,} rows with a known truth, of {sample}",
                n=len(scored.rows),
                sample=case.sample,
            )
        )
        for target, processor in case.targets.items():
            if processor.task in ("binary", "multiclass"):
                measured = measure(
                    cast(Task, processor.task),
                    scored.truth[target],
                    scored.scores[target],
                    classes=processor.classes(),
                    threshold=threshold_of(processor),
                    resamples=self.resamples,
                )
                ece = measured.metrics["ece"]
                bins = measured.details["reliability"]
                result.tables[target] = bins if isinstance(bins, list) else [bins]
                self._errors(result, target, ece.value, ece.low, ece.high, scored, case)
            for one in case.predictor.decisions:
                if isinstance(one, Conformal) and one.column == target:
                    self._coverage(result, case, one)
        return result

    def _errors(
        self,
        result: AuditResult,
        target: str,
        value: float | None,
        low: float | None,
        high: float | None,
        scored: Any,
        case: Case,
    ) -> None:
        result.tables.setdefault("ece", []).append(
            {"target": target, "value": value, "low": low, "high": high}
        )
        result.figures[f"{target}.ece"] = value
        result.figures["ece"] = max(value or 0.0, result.figures.get("ece") or 0.0)
        if value is None or value < self.tolerance:
            return
        scores, truth = scored.scores[target], scored.truth[target]
        confidence = np.maximum(scores, 1 - scores) if scores.ndim == 1 else scores.max(1)
        hit = case.said(target, scores) == truth
        over = float(confidence.mean() - hit.mean())
        result.find(
            self._severity(value, low),
            say(
                "the model of '{target}' is on average {sure:.0%} sure and {right:.0%} right: it is {how} (calibration error {ece:.3f}, 95 % interval {low:.3f} to {high:.3f})",
                target=target,
                sure=confidence.mean(),
                right=hit.mean(),
                how=say("overconfident") if over > 0 else say("underconfident"),
                ece=value,
                low=low or 0.0,
                high=high or 0.0,
            ),
            say(
                "Do not use its probabilities as they are: train again with decide: temperature, which changes no decision (of a binary target with a threshold of 0.5)."
            ),
            {"ece": value, "low": low, "high": high, "overconfidence": over},
            target,
        )

    def _coverage(self, result: AuditResult, case: Case, decision: Conformal) -> None:
        scored, target = case.scored, decision.column
        processor, output, truth = case.targets[target], scored.outputs[target], scored.truth[target]
        held = decision.covers(processor, output, truth)
        share, (low, high) = float(held.mean()), coverage_interval(int(held.sum()), len(held))
        result.figures[f"{target}.coverage"] = share
        row: dict[str, Any] = {
            "target": target,
            "level": decision.level,
            "coverage": share,
            "low": low,
            "high": high,
        }
        if processor.task == "regression":
            row["mean_width"] = float(np.diff(decision.intervals(processor, output)[:2], axis=1).mean())
        else:
            row["mean_size"] = float(decision.sets(processor, output).sum(1).mean())
        result.tables.setdefault("coverage", []).append(row)
        if high < decision.level:
            result.find(
                self._severity(decision.level - share, decision.level - high),
                say(
                    "the {what} of '{target}' promise to hold the truth in {level:.0%} of the rows and do so in {share:.1%}",
                    what=say("intervals") if processor.task == "regression" else say("sets"),
                    target=target,
                    level=decision.level,
                    share=share,
                ),
                say(
                    "These rows differ from the validation rows that the promise was made on: see the audit drift, and train again with rows such as these."
                ),
                {"coverage": share, "low": low, "high": high, "level": decision.level},
                target,
            )

    def _severity(self, value: float, low: float | None) -> Severity:
        if value >= 2 * self.tolerance:
            return "high" if low is None or low >= self.tolerance else "medium"
        return "medium" if value >= self.tolerance and (low is None or low >= self.tolerance / 2) else "low"


def coverage_interval(hits: int, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of rows (Clopper & Pearson, 1934)."""
    from scipy.special import betaincinv

    low = float(betaincinv(hits, rows - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, rows - hits, 0.975)) if hits < rows else 1.0
    return low, high
