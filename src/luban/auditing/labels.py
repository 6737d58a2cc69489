"""Labels that are probably wrong: confident learning (Northcutt, Jiang & Chuang, 2021)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field as Option

from luban.auditing._base import Audit, AuditResult, Case
from luban.auditing._small import Features, out_of_fold
from luban.data.contracts import Array
from luban.data.processors._deciding import class_shares
from luban.registry import register

__all__ = ["Labels", "suspects"]


@register("audits")
class Labels(Audit):
    """Rows whose label contradicts a confident second opinion, most suspicious first.

    The opinion is that of a small model that did not see the row (out of fold), or the artefact's own, which says something only
    of rows it was not trained on. How many rows of a class are rather of another is estimated from the rows on which that opinion is
    confident; so many are suspect, those first whose other class is the most probable.
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "Northcutt, Jiang & Chuang, 2021"
    guarded: ClassVar[tuple[str, ...]] = ("folds",)

    predictions: Literal["small", "own"] = "small"
    """Whose opinion: a small model's, out of fold, or the artefact's own."""
    folds: Annotated[int, Option(ge=2)] = 5
    """Parts of the rows that take turns in being held out of the small model."""
    rows: Annotated[int, Option(ge=10)] = 10_000
    """Rows looked at, at the most."""
    tolerance: Annotated[float, Option(gt=0, lt=1)] = 0.03
    """Share of suspect labels from which the finding is medium; high from three times that."""
    shown: Annotated[int, Option(ge=1)] = 100
    """Suspect rows in the table."""

    def refusal(self, case: Case) -> str | None:
        if not any(one.task in ("binary", "multiclass") for one in case.targets.values()):
            return "it looks at classes, and no target is a category or binary"
        return None

    def run(self, case: Case) -> AuditResult:
        scored = case.scored.take(self.rows)
        n = len(scored.rows)
        result = AuditResult(self.type, rows=n)
        result.notes.append(
            f"{n:,} rows with a known truth, of {case.sample}; second opinion: "
            + (
                "the artefact's own"
                if self.predictions == "own"
                else f"a small model, {self.folds} folds, out of fold"
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
            severity = (
                "high"
                if share >= 3 * self.tolerance
                else "medium"
                if share >= self.tolerance
                else "low"
                if len(places)
                else "info"
            )
            if len(places):
                result.find(
                    severity,  # type: ignore[arg-type]
                    f"{len(places):,} of {n:,} labels of '{target}' ({share:.1%}) contradict a confident second opinion and may be wrong",
                    "Look at the rows of the table, most suspicious first, and correct those that are; what is measured on wrong labels is wrong too. "
                    f"The opinion itself is right in {accuracy:.0%}, so some of these rows are merely difficult.",
                    {"suspects": len(places), "rows": n, "share": share, "opinion_accuracy": accuracy},
                    target,
                )
        return result


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
