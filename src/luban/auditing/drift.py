"""Are these rows still like those the model learnt from? Column by column, and all columns together."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option

from luban.auditing._base import SEED, Audit, AuditResult, Case, Severity, quoted
from luban.auditing._small import Features, auc, out_of_fold
from luban.data.contracts import Array
from luban.data.processors._base import as_numbers, as_words
from luban.data.processors.image import Image
from luban.data.sampling import Sample
from luban.evaluation.intervals import Metric, interval
from luban.registry import register
from luban.sentences import say

__all__ = ["Drift", "population_stability"]

_EXACT = 50  # rows of the smaller side below which the test is exact
_KINDS = 50  # words counted one by one; the others count together
_RESAMPLES = 300
_MEASURES = {"brightness": say("brightness"), "length": say("length"), "value": say("value")}


@register("audits")
class Drift(Audit):
    """How far columns have moved from the training rows, or from the rows given by ``--against``.

    Numbers and lengths of texts by the test of Kolmogorov (1933) and Smirnov, words by the chi-squared test (Pearson, 1900), both
    also by the population stability index; all columns together by how well a small model tells the two files apart (Lopez-Paz
    & Oquab, 2017), where 0.5 is not at all. With many rows the smallest move is significant, so severity goes by its size.
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "Kolmogorov, 1933; Pearson, 1900; Lopez-Paz & Oquab, 2017"

    moderate: Annotated[float, Option(gt=0)] = 0.1
    """Stability index from which a column has moved a little (medium)."""
    large: Annotated[float, Option(gt=0)] = 0.25
    """Stability index from which a column has moved much (high)."""
    rows: Annotated[int, Option(ge=50)] = 5_000
    """Rows of each file that the small model looks at, at the most; 0.75 and 0.65 are bounds of its 95 % interval's lower end for
    high and medium."""

    def refusal(self, case: Case) -> str | None:
        if case.against is None and case.training is None:
            return say(
                "there is nothing to compare with: {why}; give rows by --against FILE",
                why=case.why_no_training,
            )
        return None

    def run(self, case: Case) -> AuditResult:
        reference = case.against if case.against is not None else case.training
        assert reference is not None, "refusal() comes first"
        result = AuditResult(self.type, rows=len(case.rows))
        result.notes.append(
            say("{sample}, compared with {reference}", sample=case.sample, reference=reference)
            if case.against is not None
            else say(
                "{sample}, compared with {reference} of the training rows",
                sample=case.sample,
                reference=reference,
            )
        )
        pipeline = case.predictor.pipeline
        columns = dict.fromkeys([*pipeline.given, *pipeline.targets, *case.by])
        table: list[dict[str, Any]] = []
        for column in columns:
            if column not in case.rows.columns:
                result.notes.append(say("'{column}' is not in these rows", column=column))
                continue
            if column not in reference.rows.columns:
                result.notes.append(say("'{column}' is not in those compared with", column=column))
                continue
            row = self._compare(case, column, reference.rows[column], case.rows[column])
            if row is not None:
                table.append(row)
                self._tell(result, row)
        table.sort(key=lambda row: -row["stability_index"])
        result.tables["columns"] = table
        result.figures["stability_index"] = max((row["stability_index"] for row in table), default=None)
        self._together(result, case, reference)
        return result

    def _compare(self, case: Case, column: str, before: pl.Series, after: pl.Series) -> dict[str, Any] | None:
        processor = {**case.predictor.pipeline.inputs, **case.predictor.pipeline.targets}.get(column)
        if isinstance(processor, Image):
            measure, old, new = "brightness", _brightness(processor, before), _brightness(processor, after)
        elif processor is not None and processor.type == "text":
            lengths = [values.cast(pl.String, strict=False).str.len_chars() for values in (before, after)]
            measure, old, new = "length", *(one.cast(pl.Float64).drop_nulls().to_numpy() for one in lengths)
        elif processor is not None and processor.type == "number":
            measure, old, new = "value", *(as_numbers(v).drop_nulls().to_numpy() for v in (before, after))
        elif before.dtype.is_nested() or before.dtype in (pl.Binary, pl.Object):
            return None
        else:
            return _words(column, before, after)
        if not len(old) or not len(new):
            return None
        from scipy.stats import ks_2samp

        # The limit law of the statistic is none of a few rows.
        test = ks_2samp(old, new, method="exact" if min(len(old), len(new)) < _EXACT else "asymp")
        edges = np.unique(np.quantile(old, np.linspace(0, 1, 11)[1:-1]))
        counts = [
            np.bincount(np.searchsorted(edges, v, side="right"), minlength=len(edges) + 1) for v in (old, new)
        ]
        return {
            "column": column, "measure": measure, "test": "Kolmogorov-Smirnov", "statistic": float(test.statistic), "p": float(test.pvalue),
            "stability_index": population_stability(*counts), "before": float(np.mean(old)), "after": float(np.mean(new)),
            "missing_before": float(before.null_count() / len(before)), "missing_after": float(after.null_count() / len(after)),
        }  # fmt: skip

    def _tell(self, result: AuditResult, row: dict[str, Any]) -> None:
        index = row["stability_index"]
        severity: Severity = "high" if index >= self.large else "medium"
        if index < self.moderate or row["p"] > 0.01:
            return
        moved = (
            say(
                "its mean {measure} went from {before:.4g} to {after:.4g}",
                measure=_MEASURES[row["measure"]],
                before=row["before"],
                after=row["after"],
            )
            if row["test"] == "Kolmogorov-Smirnov"
            else say(
                "'{word}' went from {before:.1%} to {after:.1%} of the rows",
                word=quoted(row["most_moved"]),
                before=row["before"],
                after=row["after"],
            )
        )
        result.find(
            severity,
            say(
                "'{column}' is no longer what the model learnt from: {moved}",
                column=row["column"],
                moved=moved,
            ),
            say(
                "Find out what changed (another source, unit, time or clientele). If it is to stay, train again with rows such as these."
            ),
            {key: row[key] for key in ("stability_index", "statistic", "p")},
            row["column"],
        )

    def _together(self, result: AuditResult, case: Case, reference: Sample) -> None:
        case.report(say("telling the two files apart"), 0, None)
        missing = [name for name in case.predictor.pipeline.given if name not in reference.rows.columns]
        if missing:
            result.notes.append(
                say("the files are not told apart, since '{column}' is missing in one", column=missing[0])
            )
            return
        parts = [
            Features.of(case.predictor, rows.sample(min(self.rows, len(rows)), seed=SEED, shuffle=True))
            for rows in (reference.rows, case.rows)
        ]
        sizes = [len(part.dense) for part in parts]
        if parts[0].empty or min(sizes) < 20:
            result.notes.append(say("too few rows to tell the files apart"))
            return
        labels = np.repeat([0, 1], sizes)
        shares = out_of_fold(parts[0].join(parts[1]), labels)[:, 1]
        metric = _area(shares[labels == 1], shares[labels == 0])
        value, low = metric.value or 0.0, metric.low or 0.0
        result.figures["domain_auc"] = value
        # Few rows tell files apart by chance.
        severity: Severity = "high" if low >= 0.75 else "medium" if low >= 0.65 else "info"
        if severity != "info":
            result.find(
                severity,
                say(
                    "a simple model tells these rows from those the model learnt from (AUC {auc:.2f}, 95 % interval {low:.2f} to {high:.2f}; 0.5 is not at all)",
                    auc=value,
                    low=low,
                    high=metric.high or 1.0,
                ),
                say(
                    "Figures measured on the old rows do not hold for these; measure anew, and see the columns that moved."
                ),
                {"auc": value, "low": low, "high": metric.high, "rows": sizes},
            )


def _area(new: Array, old: Array) -> Metric:
    """Return by how many pairs new rows score higher than old ones, with the interval of resampled rows."""
    generator = np.random.default_rng([SEED, 14])
    draws = np.empty(_RESAMPLES)
    mine = np.arange(len(new) + len(old)) < len(new)
    for i in range(_RESAMPLES):
        some = [side[generator.integers(len(side), size=len(side))] for side in (new, old)]
        draws[i] = auc(mine, np.concatenate(some))
    return interval(auc(mine, np.concatenate([new, old])), draws, bounds=(0, 1))


def population_stability(before: Array, after: Array) -> float:
    """Return the population stability index of counts by bin: the symmetric divergence of the two distributions.

    Half a row is added to each bin, so that an empty one does not make it infinite.

    Example:
        >>> population_stability(np.array([50, 50]), np.array([50, 50]))
        0.0
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before, after))
    return float(((q - p) * np.log(q / p)).sum())


def _words(column: str, before: pl.Series, after: pl.Series) -> dict[str, Any] | None:
    """Compare words."""
    from scipy.stats import chi2_contingency

    old, new = (as_words(values).fill_null("(missing)") for values in (before, after))
    kinds = pl.concat([old, new]).alias("word").value_counts(sort=True)["word"].to_list()
    few = kinds[:_KINDS]
    places = {word: i for i, word in enumerate(few)}
    width = len(few) + (len(kinds) > len(few))
    counts = [
        np.bincount([places.get(word, len(few)) for word in v.to_list()], minlength=width) for v in (old, new)
    ]
    table = np.stack(counts)
    if table.shape[1] < 2:
        statistic, p = 0.0, 1.0
    else:
        tested = chi2_contingency(table)
        statistic, p = float(tested.statistic), float(tested.pvalue)
    shares = table / table.sum(1, keepdims=True)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    return {
        "column": column, "measure": "word", "test": "chi-squared", "statistic": statistic, "p": p,
        "stability_index": population_stability(*counts), "most_moved": few[most] if most < len(few) else "(others)",
        "before": float(shares[0, most]), "after": float(shares[1, most]),
        "missing_before": float(before.null_count() / len(before)), "missing_after": float(after.null_count() / len(after)),
    }  # fmt: skip


def _brightness(processor: Image, values: pl.Series) -> Array:
    readable = values.filter(~processor.invalid(values))
    pixels = processor.encode(readable)["pixels"]
    assert isinstance(pixels, np.ndarray)
    return np.asarray(pixels.reshape(len(pixels), -1).mean(1))
