"""Labels that are probably wrong: confident learning (Northcutt, Jiang & Chuang, 2021).

Which rows to look at and how bad it is are two questions. A weak second opinion contradicts many right labels, so severity does
not go by how many rows it names, but by how many contradictions its own doubt leaves unexplained.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field as Option

from luban.auditing._base import SEED, Audit, AuditResult, Case, Severity
from luban.auditing._small import Features, out_of_fold
from luban.data.contracts import Array
from luban.data.processors._deciding import class_shares
from luban.errors import DataError
from luban.registry import register
from luban.sentences import Sentence, say

__all__ = ["Labels", "informed", "noise", "noise_high", "suspects"]

# Shares of wrong labels that are tried first.
_SHARES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.24, 0.32, 0.4)
_EXACT = 5e-4  # of such a share, and of the ends of its interval
_FLOOR = 1e-3  # of a probability: a few neighbours or trees that agree are not surer
_HALF_CHI_SQUARED = (
    1.9207  # half of the 95 % quantile of chi-squared with one degree of freedom (Wilks, 1938)
)

_INFORMED = 10.83  # 99.9 % quantile of the same
_COPIES = 0.01  # share of rows that stand there again, from which it is said
_SUREST = (2, 4, 8, 16)
"""Parts of the rows that an opinion is surest of: a half, a quarter and so on."""


@register("audits")
class Labels(Audit):
    """Rows whose label contradicts a confident second opinion, most suspicious first.

    The opinion is that of a small model that did not see the row (out of fold), or the artefact's own, which says something only
    of rows it was not trained on. How many rows of a class are rather of another is estimated from the rows on which that opinion is
    confident; so many are suspect, those first whose other class is the most probable.

    Severity goes by the estimated share of wrong labels (see `noise`): what remains of the contradictions once the opinion's own doubt
    is taken off, as far as wrong labels strike easy and difficult rows alike (Patrini et al., 2017). Where the opinion tells no
    more of the labels than how common each class is (see `informed`) it is no witness: severity stays low, and ``noise`` is not
    measured, neither that target's nor the highest of all, so that no gate on it is met.

    ``noise`` is what is shown to be wrong, and ``noise_high`` what cannot be ruled out, at 95 % (see `noise_high`). Of a weak opinion
    the one may be 0 and the other a quarter, so a gate that only good labels are to meet names ``noise_high``.
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "Northcutt, Jiang & Chuang, 2021; Patrini et al., 2017; Menon et al., 2015"
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
        if self.predictions == "small" and n < 2 * self.folds:
            raise DataError(
                say(
                    "a second opinion of {folds} folds needs {least} rows at least, and {n} have a known truth; hand over more, or lower labels.folds",
                    folds=self.folds,
                    least=2 * self.folds,
                    n=n,
                )
            )
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
        if self.predictions == "small":
            again = n - len(np.unique(case.keys(scored.rows)))
            if again > _COPIES * n:
                result.notes.append(
                    say(
                        "{n:,} of {of:,} rows have the inputs of an earlier one: if they are copies, the second opinion has seen their labels, and too few are said to be wrong; leave copies out",
                        n=again,
                        of=n,
                    )
                )
        features = Features.of(case.predictor, scored.rows) if self.predictions == "small" else None
        shares: list[tuple[float, float] | None] = []
        for target, processor in case.targets.items():
            if processor.task not in ("binary", "multiclass"):
                continue
            labels = scored.truth[target]
            if features is None:
                opinion = class_shares(scored.scores[target])
            else:
                case.report(say("a second opinion on '{target}'", target=target), 0, None)
                opinion = out_of_fold(features, labels, self.folds)
            places = suspects(labels, opinion)
            names = processor.classes()
            share = len(places) / n
            accuracy = float((opinion.argmax(1) == labels).mean())
            result.figures[f"{target}.suspect_share"] = share
            result.figures["suspect_share"] = max(share, result.figures.get("suspect_share") or 0.0)
            result.figures[f"{target}.opinion_accuracy"] = accuracy
            wrong, low, high = noise(labels, opinion)
            most = max(wrong, noise_high(labels, opinion))
            witness = informed(labels, opinion)
            result.figures[f"{target}.noise"] = wrong if witness else None
            result.figures[f"{target}.noise_high"] = most if witness else None
            shares.append((wrong, most) if witness else None)
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
                    self._severity(wrong, low) if witness else "low",
                    _sentence(target, wrong, low, high, most, len(places), n, witness),
                    say(
                        "Look at the rows of the table, most suspicious first, and correct those that are wrong; what is measured on wrong labels is wrong too. "
                        "The opinion agrees with {accuracy:.0%} of all labels, so many of these rows may merely be difficult.",
                        accuracy=accuracy,
                    ),
                    {
                        **({"noise": wrong, "low": low, "high": high, "noise_high": most} if witness else {}),
                        "suspects": len(places),
                        "rows": n,
                        "opinion_accuracy": accuracy,
                    },
                    target,
                )
            elif not witness:
                result.notes.append(
                    say(
                        "a second opinion on '{target}' is no surer of labels than how common each class is, so it cannot tell how many are wrong",
                        target=target,
                    )
                )
        told = [share for share in shares if share is not None]
        # A gate on all labels is not met by those of one target while nothing is known of another's.
        for place, name in enumerate(("noise", "noise_high")):
            result.figures[name] = max(one[place] for one in told) if len(told) == len(shares) else None
        return result

    def _severity(self, wrong: float, low: float) -> Severity:
        if wrong >= 3 * self.tolerance and low >= self.tolerance:
            return "high"
        return "medium" if wrong >= self.tolerance and low >= self.tolerance / 2 else "low"


def _sentence(
    target: str, wrong: float, low: float, high: float, most: float, suspects: int, n: int, witness: bool
) -> Sentence:
    """Return what was found of a target: how many labels are wrong is said only where the opinion can tell."""
    look = (
        say("1 of {of:,} rows is worth a look", of=n)
        if suspects == 1
        else say("{n:,} of {of:,} rows are worth a look", n=suspects, of=n)
    )
    if not witness:
        return say(
            "a second opinion on '{target}' is no surer of labels than how common each class is, so it cannot tell how many are wrong; {look}",
            target=target,
            look=look,
        )
    if not wrong:
        return say(
            "a second opinion contradicts labels of '{target}' no more often than its own doubt explains (wrong: at most {most:.1%}, at 95 %); {look}",
            target=target,
            most=most,
            look=look,
        )
    return say(
        "about {noise:.1%} of the labels of '{target}' are probably wrong (95 % interval {low:.1%} to {high:.1%}, and at most {most:.1%} wherever its doubt lies): a second opinion contradicts more than its own doubt explains; {look}",
        noise=wrong,
        target=target,
        low=low,
        high=high,
        most=most,
        look=look,
    )


def noise(labels: Array, opinion: Array) -> tuple[float, float, float]:
    """Return the share of wrong labels that explains how often an opinion is contradicted, with its 95 % interval.

    A contradiction is a wrong label or a mistake of the opinion. The surer the opinion, the fewer its mistakes, while wrong labels
    strike rows that it is sure of as often as others: that tells them apart. Both are fitted at once, by maximum likelihood. The
    opinion, tempered (Guo et al., 2017) and drawn to the shares of the classes as far as these labels demand, gives the right label,
    and a share of these is taken for any other class, up to 40 % (the forward model of Patrini et al., 2017, with a single rate).
    The interval is that of the profile likelihood (Venzon & Moolgavkar, 1988): the shares that the likelihood-ratio test (Wilks, 1938)
    does not reject at 5 %. Where it reaches 0, the opinion's own doubt explains all contradictions, and the share is 0: of an opinion
    that knows nothing the interval is wide, and accuses nobody. Nor does one that learnt from as many wrong labels how many there are,
    and doubts for their sake: of that only `noise_high` is an upper bound.

    Args:
        labels: class numbers, (n,).
        opinion: probability of each class by a model that did not see the row, (n, classes).

    Returns:
        The share, and the lower and the upper end of its interval, each from 0 to 0.4.

    Example:
        >>> chance = np.repeat([0.02, 0.3, 0.7, 0.98], 500)
        >>> right = np.concatenate([np.arange(500) < 500 * one for one in (0.02, 0.3, 0.7, 0.98)]).astype(int)
        >>> opinion = np.stack([1 - chance, chance], 1)
        >>> noise(right, opinion)[0]
        0.0
        >>> wrong = np.arange(2000) % 10 == 0
        >>> abs(noise(np.where(wrong, 1 - right, right), opinion)[0] - 0.1) < 0.02
        True
    """
    from scipy.optimize import brentq, minimize_scalar

    if opinion.shape[1] < 2:
        return 0.0, 0.0, 0.0
    model = _Contradiction(labels, opinion)
    # The likelihood may have more than one top, so a grid comes first.
    losses = np.array([model(share) for share in _SHARES])
    best = int(losses.argmin())
    low, high = _SHARES[max(0, best - 1)], _SHARES[min(best + 1, len(_SHARES) - 1)]
    found = minimize_scalar(model, bounds=(low, high), method="bounded", options={"xatol": _EXACT})
    value, least = (
        (float(found.x), float(found.fun)) if found.fun < losses[best] else (_SHARES[best], losses[best])
    )

    def above(share: float) -> float:
        return model(share) - least - _HALF_CHI_SQUARED

    # From the first to the last share that is not rejected, whatever lies between two tops.
    kept = [
        value,
        *(share for share, loss in zip(_SHARES, losses, strict=True) if loss - least <= _HALF_CHI_SQUARED),
    ]
    below = [share for share in _SHARES if share < min(kept)]
    beyond = [share for share in _SHARES if share > max(kept)]
    low = float(brentq(above, below[-1], min(kept), xtol=_EXACT)) if below else 0.0
    high = float(brentq(above, max(kept), beyond[0], xtol=_EXACT)) if beyond else _SHARES[-1]
    return (value if below else 0.0), low, high


def noise_high(labels: Array, opinion: Array) -> float:
    """Return an upper bound, at 95 %, of the share of wrong labels, whatever the opinion is worth.

    Of rows that an opinion is sure of no smaller share contradicts it than is wrong: a wrong label contradicts whoever knows the right
    one, and who does not know it is contradicted more often, as long as each label is as likely wrong as any other, and not more
    often wrong than right (Menon et al., 2015, who read the rate off the surest rows). So the exact upper bound (Clopper & Pearson,
    1934) of the contradicted share bounds that of wrong labels. It is taken among the surest half, quarter, eighth and sixteenth of the
    rows, each at a quarter of 5 % (Bonferroni), and the least holds. Who is surest depends on no row's own label: the opinion must not
    have seen it, and of rows that it is equally sure of the lot decides, since the order of a file may well be that of its labels.

    Args:
        labels: class numbers, (n,).
        opinion: probability of each class by a model that did not see the row, (n, classes).

    Example:
        >>> labels = np.arange(1000) % 2
        >>> opinion = np.stack([1.0 - labels, labels], 1)
        >>> round(noise_high(labels, opinion), 4), round(noise_high(labels, np.full((1000, 2), 0.5)), 2)
        (0.0087, 0.56)
    """
    from scipy.stats import beta

    lot = np.random.default_rng([SEED, 15]).permutation(len(labels))
    surest = lot[np.argsort(-opinion[lot].max(1), kind="stable")]
    contradicted = (opinion.argmax(1) != labels)[surest]
    bounds = []
    for part in _SUREST:
        rows = max(1, len(labels) // part)
        count = int(contradicted[:rows].sum())
        bounds.append(
            float(beta.ppf(1 - 0.05 / len(_SUREST), count + 1, rows - count)) if count < rows else 1.0
        )
    return min(bounds)


def informed(labels: Array, opinion: Array) -> bool:
    """Return whether an opinion tells more of the labels than how common each class is.

    The likelihood-ratio test (Wilks, 1938), at 0.1 %, of whether the tempered opinion is followed at all. Unlike its accuracy it does
    not ask that a rare class is ever the most probable one.

    Args:
        labels: class numbers, (n,).
        opinion: probability of each class by a model that did not see the row, (n, classes).

    Example:
        >>> chance = np.repeat([0.01, 0.3], [900, 100])
        >>> labels = np.concatenate([np.arange(900) < 9, np.arange(100) < 30]).astype(int)
        >>> informed(labels, np.stack([1 - chance, chance], 1)), informed(labels, np.full((1000, 2), [0.96, 0.04]))
        (True, False)
    """
    return opinion.shape[1] > 1 and 2 * _Contradiction(labels, opinion).told() > _INFORMED


class _Contradiction:
    """Minus the log-likelihood of labels, given the share of them that is wrong, under the best tempering of an opinion.

    Args:
        labels: class numbers, (n,).
        opinion: probability of each class, (n, classes).
    """

    def __init__(self, labels: Array, opinion: Array) -> None:
        n, classes = opinion.shape
        self._labels, self._rows, self._others = labels, np.arange(n), classes - 1
        self._logs = np.log(np.clip(opinion, _FLOOR, 1))  # (n, classes)
        # One row more, a part of it of each class, so that there is a logarithm of one that no row has: with a row of each,
        # classes that the model knows and these rows lack would make whoever leaves them out seem to know something.
        shares = np.bincount(labels, minlength=classes) + 1.0 / classes
        self._prior = np.log(shares / shares.sum())  # (classes,)

    def __call__(self, share: float) -> float:
        from scipy.optimize import minimize

        # It begins with the opinion as it is, and with none at all: there may be more than one top.
        found = [
            minimize(self._loss, start, args=(share,), jac=True, method="L-BFGS-B", bounds=[(0, 10), (-2, 2)])
            for start in ([1.0, 0.0], [0.0, 1.0])
        ]
        return min(float(one.fun) for one in found)

    def told(self) -> float:
        """Return by how many nats the labels are likelier by the opinion than by the shares of the classes alone."""
        return self._loss(np.array([0.0, 1.0]), 0.0)[0] - self(0.0)

    def _loss(self, tempering: Array, share: float) -> tuple[float, Array]:
        logits = tempering[0] * self._logs + tempering[1] * self._prior
        logits -= logits.max(1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(1, keepdims=True)
        right = chances[self._rows, self._labels]
        seen = np.maximum((1 - share) * right + share * (1 - right) / self._others, 1e-300)
        slope = (1 - share - share / self._others) * right / seen  # of log(seen) by log(right), (n,)
        by_opinion = self._logs[self._rows, self._labels] - (chances * self._logs).sum(1)
        by_prior = self._prior[self._labels] - chances @ self._prior
        return -float(np.log(seen).sum()), -np.array([slope @ by_opinion, slope @ by_prior])


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
