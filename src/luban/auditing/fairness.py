"""Are groups of people treated alike? Rates by group and their intersections, with intervals.

Figures are those of fairlearn (Bird et al., 2020; Weerts et al., 2023), which the tests compare them with: demographic parity
(Dwork et al., 2012), equalised odds and equal opportunity (Hardt et al., 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Option

from luban.auditing._base import SEED, Audit, AuditResult, Case, Scored, Severity, quoted, said
from luban.data.contracts import Array, Processor
from luban.data.processors._base import as_words
from luban.errors import DataError, did_you_mean
from luban.evaluation.intervals import Metric, interval
from luban.registry import register
from luban.sentences import say

__all__ = ["Fairness", "differences", "rates"]

_CELLS = ("true_negative", "false_positive", "false_negative", "true_positive")
_MANY = 200  # groups at most
_SHOWN = 20  # classes at most that are looked at one by one


@register("audits")
class Fairness(Audit):
    """Selection rate, true and false positive rate, accuracy and calibration by group; how far groups differ, and how surely.

    Of a target with several classes each class is looked at in turn, and each figure is that of the class that differs most in it.
    Of a number, the mean error by group counts. Groups of fewer than `min_rows` rows are shown and left out of the differences.
    """

    family: ClassVar[str] = "fairness"
    paper: ClassVar[str] = "Dwork et al., 2012; Hardt et al., 2016"
    guarded: ClassVar[tuple[str, ...]] = ("resamples",)

    by: list[str] | None = None
    """Columns of groups; the recipe's ``data.groups`` if left out."""
    intersections: bool = True
    """Whether all columns together also make groups, such as women of one age."""
    min_rows: Annotated[int, Option(ge=1)] = 30
    """Rows that a group needs to count in a difference; of a true positive rate, positive rows, of a false one, the others."""
    resamples: Annotated[int, Option(ge=100)] = 1000
    """Bootstrap resamples behind the 95 % intervals."""
    tolerance: Annotated[float, Option(gt=0, lt=1)] = 0.1
    """Difference of rates from which a finding is medium, and twice that for high."""
    ratio: Annotated[float, Option(gt=0, lt=1)] = 0.8
    """Ratio of selection rates below which a finding is at least medium: the four-fifths rule of US employment law."""

    def refusal(self, case: Case) -> str | None:
        if not case.targets:
            return say("the artefact predicts no column whose truth could be compared by group")
        if any(one.task == "multilabel" for one in case.targets.values()) and len(case.targets) == 1:
            return say("its target is a set of words; make each word a binary target of its own")
        if not (self.by or case.group_columns()):
            return say(
                "neither the recipe (data.groups) nor --by names a column of groups that the rows have"
            )
        return None

    def run(self, case: Case) -> AuditResult:
        scored = case.scored
        columns = self.by or case.group_columns()
        for name in columns:
            if name not in scored.rows.columns:
                known = scored.rows.columns
                raise DataError(
                    say(
                        "there is no column '{name}' of groups; columns are {columns}{hint}",
                        name=name,
                        columns=[*known],
                        hint=did_you_mean(name, known),
                    )
                )
        result = AuditResult(self.type, rows=len(scored.rows))
        result.notes.append(
            say(
                "measured on {n:,} rows with a known truth, of {sample}; 95 % intervals by {resamples:,} resamples",
                n=len(scored.rows),
                sample=case.sample,
                resamples=self.resamples,
            )
        )
        words = {name: _words(scored, name) for name in columns}
        if self.intersections and len(columns) > 1:
            joined = [" · ".join(parts) for parts in zip(*words.values(), strict=True)]
            words[" × ".join(columns)] = np.array(joined, dtype=object)
        several = len(case.targets) > 1
        for target, processor in case.targets.items():
            if processor.task == "multilabel":
                result.notes.append(
                    say(
                        "'{target}' is a set of words, which is left out; make each word a target of its own",
                        target=target,
                    )
                )
                continue
            for by, groups in words.items():
                names, member = np.unique(groups.astype(str), return_inverse=True)
                if len(names) > _MANY:
                    result.notes.append(
                        say(
                            "'{by}' has {n:,} values, which are no groups; it is left out beyond {most}",
                            by=by,
                            n=len(names),
                            most=_MANY,
                        )
                    )
                    continue
                large = np.bincount(member, minlength=len(names)) >= self.min_rows
                truth, scores = scored.truth[target], scored.scores[target]
                key = f"{target}.{by}" if several else by
                self._look(result, _Grouped(target, processor, by, key, names, member, large, truth, scores))
        return result

    def _look(self, result: AuditResult, one: _Grouped) -> None:
        few = [
            say("{group} ({n})", group=quoted(name), n=n)
            for name, n in one.sizes.items()
            if n < self.min_rows
        ]
        if few:
            more = [say("and {n} more", n=len(few) - 8)] if len(few) > 8 else []
            result.notes.append(
                say(
                    "{by}: fewer than {n} rows, shown but left out of the differences: {groups}",
                    by=one.by,
                    n=self.min_rows,
                    groups=[*few[:8], *more],
                )
            )
        if not one.comparable:
            result.notes.append(
                say(
                    "{by}: fewer than two groups have {n} rows, so none are compared",
                    by=one.by,
                    n=self.min_rows,
                )
            )
        if one.processor.task == "regression":
            self._numbers(result, one)
        else:
            self._classes(result, one)

    # --- classes ---

    def _classes(self, result: AuditResult, rows: _Grouped) -> None:
        processor, scores = rows.processor, rows.scores
        predicted = said(processor, scores)
        classes = processor.classes()
        looked = [1] if processor.task == "binary" else list(range(min(len(classes), _SHOWN)))
        if len(classes) > _SHOWN:
            result.notes.append(
                say(
                    "'{target}' has {n} classes; the first {shown} are looked at by group",
                    target=rows.target,
                    n=len(classes),
                    shown=_SHOWN,
                )
            )
        worst: dict[str, _Worst] = {}
        for number in looked:
            positive = scores if processor.task == "binary" else scores[:, number]
            one = Counts.of(rows.truth == number, predicted == number, positive, rows.member, len(rows.names))
            table = one.table(rows.names, self.resamples)
            for row in table:
                row["class"] = classes[number]
            result.tables.setdefault(rows.key, []).extend(table)
            if not rows.comparable:
                continue
            figures = one.differences(rows.large, self.resamples, self.min_rows)
            shown = rows.compared(table)
            for name, metric in figures.items():
                known = worst[name].metric.value if name in worst else None
                if name not in worst or (
                    metric.value is not None and (known is None or _worse(name, metric.value, known))
                ):
                    worst[name] = _Worst(metric, classes[number], figures, shown)
        if not worst:
            return
        for name, own in worst.items():
            value = result.figures[f"{rows.key}.{name}"] = own.metric.value
            known = result.figures.get(name)
            if value is not None and (known is None or _worse(name, value, known)):
                result.figures[name] = value
        result.tables.setdefault("differences", []).append(
            {"by": rows.by, "target": rows.target, "class": worst["demographic_parity_difference"].label}
            | {
                name: {"value": own.metric.value, "low": own.metric.low, "high": own.metric.high}
                | ({"class": own.label} if len(looked) > 1 else {})
                for name, own in worst.items()
            }
        )
        self._tell(result, rows.by, worst)

    def _tell(self, result: AuditResult, by: str, worst: Mapping[str, _Worst]) -> None:
        """Tell of each difference by the class in which it is largest."""
        told = [worst["demographic_parity_difference"]]
        rare = worst[
            "demographic_parity_ratio"
        ]  # perhaps of a class so rare that no difference of its is large
        parity = rare.figures["demographic_parity_difference"]
        if rare.label != told[0].label and (parity.low or 0) > 0 and (parity.value or 0) > self.tolerance / 4:
            told.append(rare)
        for one in told:
            label, parity = one.label, one.figures["demographic_parity_difference"]
            ratio = one.figures["demographic_parity_ratio"]
            severity = self._severity(parity)
            if severity in ("info", "low") and ratio.value is not None and ratio.value < self.ratio:
                severity = (
                    "medium" if (parity.low or 0) > 0 and (parity.value or 0) > self.tolerance / 4 else "low"
                )
            if severity == "info":
                continue
            low, high = _ends(one.table, "selection_rate")
            result.find(
                severity,
                say(
                    "'{label}' is predicted for {high:.0%} of the rows of {by} '{most}', but for {low:.0%} of '{least}'{sure}",
                    label=label,
                    by=by,
                    **_named(low, high, "selection_rate"),
                    sure=_sure(parity),
                ),
                say(
                    "Find out whether the difference is in the world, in the labels or in the model; if it must shrink, train with "
                    "objective reweigh, fair or fair_adversary, or with decide: thresholds, and look at the accuracy that it costs."
                ),
                {"difference": parity.value, "low": parity.low, "high": parity.high, "ratio": ratio.value},
                by,
            )
        own = worst["equalized_odds_difference"]
        odds, label, figures = own.metric, own.label, own.figures
        severity = self._severity(odds)
        if severity != "info":
            name = max(
                ("true_positive_rate", "false_positive_rate"),
                key=lambda one: figures[f"{one}_difference"].value or 0.0,
            )
            rightly = name == "true_positive_rate"
            enough = [
                row
                for row in own.table
                if (row["positive"] if rightly else row["rows"] - row["positive"]) >= self.min_rows
            ]
            low, high = _ends(enough, name)
            values = {"label": label, "by": by, **_named(low, high, name), "sure": _sure(odds)}
            result.find(
                severity,
                say(
                    "'{label}' is rightly predicted for {high:.0%} of the rows of {by} '{most}' that are '{label}', but for {low:.0%} of '{least}'{sure}",
                    **values,
                )
                if rightly
                else say(
                    "'{label}' is wrongly predicted for {high:.0%} of the rows of {by} '{most}' that are not '{label}', but for {low:.0%} of '{least}'{sure}",
                    **values,
                ),
                say(
                    "The model errs differently by group: look at the labels of these groups, bring more rows of the one it errs on, or "
                    "train with objective fair or fair_adversary (constraint: equalized_odds)."
                ),
                {"difference": odds.value, "low": odds.low, "high": odds.high},
                by,
            )
        own = worst["calibration_difference"]
        gap, label = own.metric, own.label
        severity = self._severity(gap)
        if severity != "info":
            low, high = _ends(own.table, "calibration_gap")
            result.find(
                severity,
                say(
                    "the probability of '{label}' is {high:+.0%} off for {by} '{most}' and {low:+.0%} for '{least}': the same score means different things{sure}",
                    label=label,
                    by=by,
                    **_named(low, high, "calibration_gap"),
                    sure=_sure(gap),
                ),
                say(
                    "Do not compare scores across these groups; check that the labels of each were made in the same way."
                ),
                {"difference": gap.value, "low": gap.low, "high": gap.high},
                by,
            )

    def _severity(self, metric: Metric) -> Severity:
        """How much a difference matters; one step less where the interval reaches below the tolerance."""
        value, low = metric.value or 0.0, metric.low if metric.low is not None else metric.value or 0.0
        if value < self.tolerance:
            return "info"
        if value >= 2 * self.tolerance:
            return "high" if low >= self.tolerance else "medium"
        return "medium" if low >= self.tolerance / 2 else "low"

    # --- numbers ---

    def _numbers(self, result: AuditResult, rows: _Grouped) -> None:
        error, member = rows.scores - rows.truth, rows.member
        table = []
        for number, name in enumerate(rows.names):
            mine = error[member == number]
            mean, half = float(mine.mean()), _half(mine)
            table.append(
                {
                    "group": str(name), "rows": len(mine), "mean_prediction": float(rows.scores[member == number].mean()),
                    "mean_error": mean, "mean_error_low": mean - half, "mean_error_high": mean + half,
                    "mean_absolute_error": float(np.abs(mine).mean()),
                }
            )  # fmt: skip
        result.tables[rows.key] = table
        if not rows.comparable:
            return
        kept = np.isin(member, np.flatnonzero(rows.large))
        own, mine = np.unique(member[kept], return_inverse=True)
        figures = {
            name: _difference_of_means(values[kept], mine, len(own), self.resamples)
            for name, values in (
                ("mean_error_difference", error),
                ("mean_absolute_error_difference", np.abs(error)),
            )
        }
        scale = float(np.std(rows.truth)) or 1.0
        for name, metric in figures.items():
            result.figures[f"{rows.key}.{name}"] = metric.value
            known = result.figures.get(name)
            result.figures[name] = max(metric.value or 0.0, known or 0.0)
        shown = rows.compared(table)
        for name, metric in figures.items():
            value, low, high = (
                None if one is None else one / scale for one in (metric.value, metric.low, metric.high)
            )
            relative = Metric(value, low, high)
            severity = self._severity(relative)
            if severity == "info":
                continue
            column = name.removesuffix("_difference")
            least, most = _ends(shown, column)
            values = {
                "target": rows.target,
                "by": rows.by,
                **_named(least, most, column),
                "sure": _sure(metric, own_units=True),
            }
            result.find(
                severity,
                say(
                    "'{target}' is predicted too high by {high:.4g} on average for {by} '{most}', and by {low:.4g} for '{least}'{sure}",
                    **values,
                )
                if column == "mean_error"
                else say(
                    "'{target}' is missed by {high:.4g} on average for {by} '{most}', and by {low:.4g} for '{least}'{sure}",
                    **values,
                ),
                say(
                    "Look at the rows of the group that fares worse: too few of them, other units, or labels made in another way."
                ),
                {
                    "difference": metric.value,
                    "low": metric.low,
                    "high": metric.high,
                    "deviation_of_target": scale,
                },
                rows.by,
            )


@dataclass(frozen=True)
class _Grouped:
    """Rows whose truth is known, dealt into the groups of a column.

    Attributes:
        target, processor: what is predicted.
        by: the column, or several joined.
        key: what its figures and its table are called.
        names: of the groups, (groups,).
        member: the group of each row, (n,).
        large: which groups have enough rows to count in a difference, boolean, (groups,).
        truth, scores: of the rows, as metrics compare them.
    """

    target: str
    processor: Processor
    by: str
    key: str
    names: Array
    member: Array
    large: Array
    truth: Array
    scores: Array

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each group."""
        counts = np.bincount(self.member, minlength=len(self.names))
        return dict(zip(map(str, self.names), counts.tolist(), strict=True))

    @property
    def comparable(self) -> bool:
        """Whether two groups or more have enough rows."""
        return bool(self.large.sum() >= 2)

    def compared(self, table: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the lines of a table by group whose groups count."""
        return [row for row, big in zip(table, self.large, strict=True) if big]


@dataclass(frozen=True)
class _Worst:
    """The class in which groups differ most by one figure.

    Attributes:
        metric: the figure.
        label: the class.
        figures: all figures of that class.
        table: its rates by group, of the groups that count.
    """

    metric: Metric
    label: str
    figures: Mapping[str, Metric]
    table: list[dict[str, Any]]


@dataclass(frozen=True)
class Counts:
    """What rates are made of.

    Attributes:
        cells: rows by group and outcome, (groups, 4), in the order of `_CELLS`.
        gap, spread: mean and standard error of score minus truth by group, (groups,).
        ece: calibration error by group, (groups,).
    """

    cells: Array
    gap: Array
    spread: Array
    ece: Array

    @classmethod
    def of(cls, truth: Array, predicted: Array, scores: Array, member: Array, groups: int) -> Counts:
        """Count rows."""
        outcome = 2 * truth.astype(np.int64) + predicted.astype(np.int64)
        cells = np.bincount(member * 4 + outcome, minlength=4 * groups).reshape(groups, 4)
        sizes = np.maximum(cells.sum(1), 1)
        off = scores.astype(np.float64) - truth
        gap = np.bincount(member, off, minlength=groups) / sizes
        square = np.bincount(member, off**2, minlength=groups) / sizes
        bins = np.minimum((scores * 10).astype(np.int64), 9)
        summed = np.bincount(member * 10 + bins, off, minlength=10 * groups).reshape(groups, 10)
        return cls(cells, gap, np.sqrt(np.maximum(square - gap**2, 0) / sizes), np.abs(summed).sum(1) / sizes)

    def resampled(self, count: int) -> Array:
        """Return bootstrap resamples of the cells, (count, groups, 4): drawing rows is drawing cells."""
        total = int(self.cells.sum())
        generator = np.random.default_rng([SEED, 3])
        drawn = generator.multinomial(total, (self.cells / total).ravel(), size=count)
        return drawn.reshape(count, *self.cells.shape)

    def table(self, names: Array, resamples: int) -> list[dict[str, Any]]:
        """Return one row a group, with intervals."""
        values, draws = rates(self.cells), rates(self.resampled(resamples))
        table = []
        for i, name in enumerate(names):
            n = int(self.cells[i].sum())
            row: dict[str, Any] = {"group": str(name), "rows": n, "positive": int(self.cells[i, 2:].sum())}
            of = {"true_positive_rate": row["positive"], "false_positive_rate": n - row["positive"]}
            for rate, value in values.items():
                trials = float(of.get(rate, n))
                metric = interval(float(value[i]), draws[rate][:, i], trials=trials, bounds=(0, 1))
                row |= {rate: metric.value, f"{rate}_low": metric.low, f"{rate}_high": metric.high}
            row |= {
                "calibration_gap": float(self.gap[i]),
                "calibration_gap_low": float(self.gap[i] - 1.96 * self.spread[i]),
                "calibration_gap_high": float(self.gap[i] + 1.96 * self.spread[i]),
                "ece": float(self.ece[i]),
            }
            table.append(row)
        return table

    def differences(self, large: Array, resamples: int, min_rows: int = 1) -> dict[str, Metric]:
        """Return how far the large groups differ, with intervals; a rate counts where it is of at least `min_rows` rows."""
        cells, draws = self.cells[large], self.resampled(resamples)[:, large]
        own, again = rates(cells), rates(draws)
        for rate, truth in (("true_positive_rate", slice(2, 4)), ("false_positive_rate", slice(0, 2))):
            few = cells[:, truth].sum(1) < min_rows
            own[rate][few], again[rate][:, few] = np.nan, np.nan
        values, drawn = differences(own), differences(again)
        found = {name: interval(float(v), drawn[name], bounds=(0, 1)) for name, v in values.items()}
        generator = np.random.default_rng([SEED, 4])
        gaps = generator.normal(self.gap[large], self.spread[large], (resamples, int(large.sum())))
        found["calibration_difference"] = interval(
            float(np.ptp(self.gap[large])), np.ptp(gaps, axis=1), bounds=(0, 2)
        )
        return found


def rates(cells: Array) -> dict[str, Array]:
    """Return rates of cells (..., 4) as arrays (...): NaN where nothing can be divided by.

    Example:
        >>> rates(np.array([4, 1, 2, 3]))["selection_rate"].item()
        0.4
    """
    tn, fp, fn, tp = np.moveaxis(np.asarray(cells, dtype=np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "selection_rate": (tp + fp) / (tn + fp + fn + tp),
            "true_positive_rate": tp / (tp + fn),
            "false_positive_rate": fp / (fp + tn),
            "accuracy": (tp + tn) / (tn + fp + fn + tp),
        }


def differences(by_group: Mapping[str, Array]) -> dict[str, Array]:
    """Return how far rates (..., groups) differ, (...); groups where a rate is not defined do not count in it.

    Named as in fairlearn: `equalized_odds_difference` is the larger of the differences of true and of false positive rates.
    """

    def spread(rate: str) -> Array:
        values = by_group[rate]
        high = np.where(np.isnan(values), -np.inf, values).max(-1)
        low = np.where(np.isnan(values), np.inf, values).min(-1)
        return np.where(np.isfinite(high) & np.isfinite(low), high - low, np.nan)

    selected = by_group["selection_rate"]
    lowest, highest = (
        np.nan_to_num(selected, nan=np.inf).min(-1),
        np.nan_to_num(selected, nan=-np.inf).max(-1),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(highest > 0, lowest / highest, np.nan)
    tpr, fpr = spread("true_positive_rate"), spread("false_positive_rate")
    return {
        "demographic_parity_difference": spread("selection_rate"),
        "demographic_parity_ratio": ratio,
        "true_positive_rate_difference": tpr,
        "false_positive_rate_difference": fpr,
        "equalized_odds_difference": np.fmax(tpr, fpr),
        "accuracy_difference": spread("accuracy"),
    }


def _words(scored: Scored, name: str) -> Array:
    return as_words(scored.rows[name]).fill_null("(missing)").to_numpy()


def _worse(name: str, value: float, known: float) -> bool:
    return value < known if name.endswith("ratio") else value > known


def _ends(table: list[dict[str, Any]], column: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rows with the lowest and the highest value."""
    known = [row for row in table if row[column] is not None]
    return min(known, key=lambda row: row[column]), max(known, key=lambda row: row[column])


def _named(low: dict[str, Any], high: dict[str, Any], column: str) -> dict[str, Any]:
    """Return what fills a sentence about the two groups that differ most."""
    least, most = quoted(low["group"]), quoted(high["group"])
    return {"low": low[column], "least": least, "high": high[column], "most": most}


def _sure(metric: Metric, *, own_units: bool = False) -> str:
    """Return a difference with its interval: of rates, or of a number in its own units, which may be of any size."""
    if metric.value is None or metric.low is None:
        return ""
    values = {"value": metric.value, "low": metric.low, "high": metric.high}
    if own_units:
        return say(" (difference {value:.3g}, 95 % interval {low:.3g} to {high:.3g})", **values)
    return say(" (difference {value:.3f}, 95 % interval {low:.3f} to {high:.3f})", **values)


def _half(values: Array) -> float:
    return float(1.96 * values.std() / np.sqrt(max(1, len(values))))


def _difference_of_means(values: Array, member: Array, groups: int, resamples: int) -> Metric:
    """Return the largest difference of group means, with the interval of the means' normal distribution."""
    sizes = np.bincount(member, minlength=groups)
    means = np.bincount(member, values, minlength=groups) / sizes
    spread = np.array([values[member == g].std() for g in range(groups)]) / np.sqrt(sizes)
    drawn = np.random.default_rng([SEED, 5]).normal(means, spread, (resamples, groups))
    return interval(float(np.ptp(means)), np.ptp(drawn, axis=1), bounds=(0, np.inf))
