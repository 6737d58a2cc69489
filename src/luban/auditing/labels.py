"""Labels that are probably wrong: confident learning (Northcutt, Jiang & Chuang, 2021).

Which rows to look at and how bad it is are two questions. A weak second opinion contradicts many right labels, so severity does
not go by how many rows it names, but by how often it is contradicted where it is surest.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field as Option

from luban.auditing._base import Audit, AuditResult, Case, Severity
from luban.auditing._small import Features, out_of_fold
from luban.auditing.calibration import coverage_interval
from luban.data.contracts import Array
from luban.data.processors._deciding import class_shares
from luban.registry import register
from luban.sentences import say

__all__ = ["Labels", "noise", "suspects"]

_SUREST = 0.2  # share of the rows said to be of a class that stand for those about which there is no doubt


@register("audits")
class Labels(Audit):
    """Rows whose label contradicts a confident second opinion, most suspicious first.

    The opinion is that of a small model that did not see the row (out of fold), or the artefact's own, which says something only
    of rows it was not trained on. How many rows of a class are rather of another is estimated from the rows on which that opinion is
    confident; so many are suspect, those first whose other class is the most probable.

    Severity goes by the share of contradictions among the rows of which the opinion is surest, as at anchor points (Liu & Tao, 2016):
    there its own errors are fewest, and what remains is the rate of wrong labels, as far as these strike easy and difficult rows alike.
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "Northcutt, Jiang & Chuang, 2021; Liu & Tao, 2016"
    guarded: ClassVar[tuple[str, ...]] = ("folds",)

    predictions: Literal["small", "own"] = "small"
    """Whose opinion: a small model's, out of fold, or the artefact's own."""
    folds: Annotated[int, Option(ge=2)] = 5
    """Parts of the rows that take turns in being held out of the small model."""
    rows: Annotated[int, Option(ge=10)] = 10_000
    """Rows looked at, at the most."""
    tolerance: Annotated[float, Option(gt=0, lt=1)] = 0.03
    """Estimated share of wrong labels from which the finding is medium; high from three times that."""
    shown: Annotated[int, Option(ge=1)] = 100
    """Suspect rows in the table."""

    def refusal(self, case: Case) -> str | None:
        if not any(one.task in ("binary", "multiclass") for one in case.targets.values()):
            return say("it looks at classes, and no target is a category or binary")
        return None

    def run(self, case: Case) -> AuditResult:
        scored = case.scored.take(self.rows)
        n = len(scored.rows)
        result = AuditResult(self.type, rows=n)
        result.notes.append(
            say(
                "{n:,} rows with a known truth, of {sample}; second opinion: {whose}",
                n=n,
                sample=case.sample,
                whose=say("the artefact's own")
                if self.predictions == "own"
                else say("a small model, {folds} folds, out of fold", folds=self.folds),
            )
        )
        features = Features.of(case.predictor, scored.rows) if self.predictions == "small" else None
        for target, processor in case.targets.items():
            if processor.task not in ("binary", "multiclass"):
                continue
            labels = scored.truth[target]
            if features is None:
                opinion = class_shares(scored.scores[target])
            else:
                case.report(f"a second opinion on '{target}'", 0, None)
                opinion = out_of_fold(features, labels, self.folds)
            places = suspects(labels, opinion)
            names = processor.classes()
            share = len(places) / n
            accuracy = float((opinion.argmax(1) == labels).mean())
            result.figures[f"{target}.suspect_share"] = share
            result.figures["suspect_share"] = max(share, result.figures.get("suspect_share") or 0.0)
            result.figures[f"{target}.opinion_accuracy"] = accuracy
            wrong, low, high = noise(labels, opinion)
            result.figures[f"{target}.noise"] = wrong
            result.figures["noise"] = max(wrong, result.figures.get("noise") or 0.0)
            result.tables[target] = [
                {
                    "row": int(case.sample.places[scored.places[i]]),
                    "label": names[labels[i]],
                    "rather": names[int(opinion[i].argmax())],
                    "probability_of_label": float(opinion[i, labels[i]]),
                    "probability_of_other": float(opinion[i].max()),
                }
                for i in places[: self.shown].tolist()
            ]
            if len(places):
                result.find(
                    self._severity(wrong, low),
                    say(
                        "a second opinion contradicts {noise:.1%} of the labels of '{target}' where it is surest (95 % interval {low:.1%} to {high:.1%}), so about as many may be wrong; {n:,} of {of:,} rows are worth a look",
                        noise=wrong,
                        target=target,
                        low=low,
                        high=high,
                        n=len(places),
                        of=n,
                    ),
                    say(
                        "Look at the rows of the table, most suspicious first, and correct those that are wrong; what is measured on wrong labels is wrong too. "
                        "The opinion agrees with {accuracy:.0%} of all labels, so many of these rows may merely be difficult.",
                        accuracy=accuracy,
                    ),
                    {
                        "noise": wrong,
                        "low": low,
                        "high": high,
                        "suspects": len(places),
                        "rows": n,
                        "opinion_accuracy": accuracy,
                    },
                    target,
                )
        return result

    def _severity(self, wrong: float, low: float) -> Severity:
        if wrong >= 3 * self.tolerance and low >= self.tolerance:
            return "high"
        return "medium" if wrong >= self.tolerance and low >= self.tolerance / 2 else "low"


def noise(labels: Array, opinion: Array) -> tuple[float, float, float]:
    """Return the share of labels that an opinion contradicts where it is surest, with its 95 % interval.

    Of the rows said to be of each class the surest fifth counts, so that a rare class is not forgotten. It is the share of wrong labels
    if these strike easy and difficult rows alike: an opinion that is weak elsewhere does not raise it.

    Args:
        labels: class numbers, (n,).
        opinion: probability of each class by a model that did not see the row, (n, classes).

    Example:
        >>> opinion = np.repeat([[0.99, 0.01], [0.6, 0.4]], [20, 80], axis=0)
        >>> labels = np.repeat([0, 1, 0, 1], [19, 1, 48, 32])     # one in twenty is wrong, two in five are difficult
        >>> round(noise(labels, opinion)[0], 3)
        0.05
    """
    said, sure = opinion.argmax(1), opinion.max(1)
    wrong = rows = 0
    for number in np.unique(said):
        mine = np.flatnonzero(said == number)
        surest = mine[np.argsort(-sure[mine], kind="stable")[: max(1, round(_SUREST * len(mine)))]]
        wrong, rows = wrong + int((labels[surest] != number).sum()), rows + len(surest)
    return wrong / rows, *coverage_interval(wrong, rows)


def suspects(labels: Array, opinion: Array) -> Array:
    """Return the rows whose label is probably wrong, the most suspicious first.

    The confident joint says how many rows with label i are rather of class j: those to which j is at least as probable as it
    usually is to rows labelled j. So many are taken of each pair (i, j), by the margin of j over i ('prune by noise rate').

    Args:
        labels: class numbers, (n,).
        opinion: probability of each class by a model that did not see the row, (n, classes).

    Example:
        >>> suspects(np.array([0, 0, 1, 1, 1]), np.array([[.9, .1], [.8, .2], [.1, .9], [.2, .8], [.95, .05]])).tolist()
        [4]
    """
    n, classes = opinion.shape
    usual = np.array(
        [opinion[labels == c, c].mean() if (labels == c).any() else np.inf for c in range(classes)]
    )
    confident = opinion >= usual
    likely = np.where(confident, opinion, -1.0).argmax(1)
    sure = confident.any(1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[sure], likely[sure]), 1)
    # Rows that no class is confident about are taken to be as wrong as the others with their label.
    joint *= (np.bincount(labels, minlength=classes) / np.maximum(joint.sum(1), 1))[:, None]
    margins = np.full(n, np.inf)
    for label, other in zip(*np.nonzero(np.round(joint)), strict=True):
        if label == other:
            continue
        mine = np.flatnonzero(labels == label)
        margin = opinion[mine, label] - opinion[mine, other]
        chosen = np.argsort(margin, kind="stable")[: round(joint[label, other])]
        chosen = chosen[margin[chosen] < 0]
        margins[mine[chosen]] = np.minimum(margins[mine[chosen]], margin[chosen])
    places = np.flatnonzero(np.isfinite(margins))
    return places[np.argsort(margins[places], kind="stable")]
