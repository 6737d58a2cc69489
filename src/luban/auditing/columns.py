"""What is wrong with single columns: gaps that depend on the answer, constants, far-off and lopsided numbers, one word for all."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option

from luban.auditing._base import Audit, AuditResult, Case
from luban.data.cleaning._base import is_missing
from luban.data.contracts import Array
from luban.data.processors._base import as_numbers, as_words
from luban.registry import register
from luban.sentences import say

__all__ = ["Columns"]


@register("audits")
class Columns(Audit):
    """Bias and noise of each column, of inputs, targets and groups.

    A number lies far off if it is more than `far` times the range of the middle half beyond that half (Tukey, 1977).
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "Tukey, 1977; Rubin, 1976"

    missing: Annotated[float, Option(gt=0, le=1)] = 0.2
    """Share of missing values from which a column is worth a word."""
    far: Annotated[float, Option(gt=0)] = 3.0
    """Ranges of the middle half beyond which a number lies far off."""
    outliers: Annotated[float, Option(gt=0, le=1)] = 0.01
    """Share of far-off numbers that is worth a word."""
    dominant: Annotated[float, Option(gt=0.5, le=1)] = 0.98
    """Share of one value from which a column says next to nothing."""
    rare: Annotated[float, Option(gt=0, lt=0.5)] = 0.02
    """Share of rows below which a class is rare."""

    def run(self, case: Case) -> AuditResult:
        pipeline = case.predictor.pipeline
        result = AuditResult(self.type, rows=len(case.rows))
        result.notes.append(say("looked at {sample}", sample=case.sample))
        table: list[dict[str, Any]] = []
        for column in dict.fromkeys([*pipeline.given, *pipeline.targets, *case.by]):
            if column not in case.rows.columns:
                continue
            values = case.rows[column]
            if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
                continue
            processor = {**pipeline.inputs, **pipeline.targets}.get(column)
            kind = processor.type if processor is not None else "group"
            if kind in ("image", "vector", "chat"):
                continue
            row = self._look(result, column, kind, values)
            table.append(row)
            for target, one in case.targets.items():
                if target != column and target in case.rows.columns and one.task in ("binary", "multiclass"):
                    self._gaps(result, row, column, values, target, case.rows[target])
        result.tables["columns"] = table
        result.figures["missing_share"] = max((row["missing_share"] for row in table), default=None)
        for target, one in case.targets.items():
            if target in case.rows.columns and one.task in ("binary", "multiclass"):
                self._classes(result, target, case.rows[target])
        return result

    def _look(self, result: AuditResult, column: str, kind: str, values: pl.Series) -> dict[str, Any]:
        gaps = is_missing(values)
        share = float(gaps.to_numpy().mean()) if len(gaps) else 0.0
        row: dict[str, Any] = {"column": column, "kind": kind, "missing_share": share}
        if share >= self.missing:
            result.find(
                "medium" if share >= 0.5 else "low",
                say("'{column}' is empty in {share:.0%} of the rows", column=column, share=share),
                say(
                    "Ask why; fill it (data.clean: missing) with an indicator beside it, or leave the column out."
                ),
                {"missing_share": share},
                column,
            )
        present = values.filter(~gaps)
        if not len(present):
            return row
        words = as_words(present)
        common = words.alias("word").value_counts(sort=True).row(0)
        most = common[1] / len(words)
        row |= {"distinct": words.n_unique(), "commonest": str(common[0])[:60], "commonest_share": most}
        if words.n_unique() == 1 or (kind != "text" and most >= self.dominant):
            result.find(
                "low",
                say(
                    "'{column}' is '{word}' in {share:.1%} of the rows, so it says next to nothing",
                    column=column,
                    word=str(common[0])[:60],
                    share=most,
                ),
                say("Leave it out, or find out whether it was filled in by default."),
                {"commonest_share": most},
                column,
            )
        if kind == "number":
            row |= self._numbers(result, column, as_numbers(present).drop_nulls().to_numpy())
        return row

    def _numbers(self, result: AuditResult, column: str, numbers: Array) -> dict[str, Any]:
        if len(numbers) < 10 or np.ptp(numbers) == 0:
            return {}
        low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75])
        reach = self.far * (high - low)
        off = (
            (numbers < low - reach) | (numbers > high + reach) if reach > 0 else np.zeros(len(numbers), bool)
        )
        z = (numbers - numbers.mean()) / numbers.std()
        row = {
            "mean": float(numbers.mean()),
            "median": float(middle),
            "skew": float((z**3).mean()),
            "outlier_share": float(off.mean()),
        }
        if row["outlier_share"] >= self.outliers:
            result.find(
                "low",
                say(
                    "{share:.1%} of the values of '{column}' lie far off (up to {farthest:.4g}; the middle half is {low:.4g} to {high:.4g})",
                    share=row["outlier_share"],
                    column=column,
                    farthest=numbers[np.abs(z).argmax()],
                    low=low,
                    high=high,
                ),
                say(
                    "Look at them: mistakes are repaired or cut off (data.clean: outliers), honest ones bear normalize: log or robust."
                ),
                {"outlier_share": row["outlier_share"], "skew": row["skew"]},
                column,
            )
        return row

    def _gaps(
        self,
        result: AuditResult,
        row: dict[str, Any],
        column: str,
        values: pl.Series,
        target: str,
        truth: pl.Series,
    ) -> None:
        """Look whether the answer decides where the column is empty."""
        frame = pl.DataFrame({"gap": is_missing(values), "class": as_words(truth)}).drop_nulls("class")
        if not frame["gap"].any():
            return
        by_class = frame.group_by("class").agg(pl.col("gap").mean(), pl.len()).filter(pl.col("len") >= 30)
        if len(by_class) < 2:
            return
        least, most = by_class.sort("gap").rows()[0], by_class.sort("gap").rows()[-1]
        difference = most[1] - least[1]
        spread = 1.96 * float(np.sqrt(sum(g * (1 - g) / n for _, g, n in (least, most))))
        row[f"missing_difference_by_{target}"] = difference
        if difference >= 0.1 and difference - spread > 0:
            high = difference >= 0.5
            words = {
                "column": column,
                "target": target,
                "most": most[1],
                "most_word": most[0],
                "least": least[1],
                "least_word": least[0],
            }
            result.find(
                "high" if high else "medium",
                say(
                    "'{column}' is empty in {most:.0%} of the rows of '{target}' {most_word}, and in {least:.0%} of those of {least_word}: its being empty tells the answer",
                    **words,
                )
                if high
                else say(
                    "'{column}' is empty in {most:.0%} of the rows of '{target}' {most_word}, and in {least:.0%} of those of {least_word}: its being empty goes with the answer",
                    **words,
                ),
                say(
                    "Find out when it is filled in. If that is after the answer is known, the gap leaks it: leave the column out."
                ),
                {"difference": difference, "half_width": spread},
                column,
            )

    def _classes(self, result: AuditResult, target: str, truth: pl.Series) -> None:
        words = as_words(truth).drop_nulls()
        counts = words.alias("class").value_counts(sort=True)
        result.tables[f"{target}.classes"] = [
            {"class": str(word), "rows": n, "share": n / len(words)} for word, n in counts.rows()[:200]
        ]
        rare = [(str(word), n) for word, n in counts.rows() if n < self.rare * len(words)]
        if rare and len(counts) <= 50:
            result.find(
                "low",
                say(
                    "{n} of {of} classes of '{target}' are rare: {rare}",
                    n=len(rare),
                    of=len(counts),
                    target=target,
                    rare=[f"{word} ({n})" for word, n in rare[:5]],
                ),
                say(
                    "Accuracy hides how these fare: look at recall and F1 of each class; bring more rows, or train with class_weights."
                ),
                {"rare_classes": len(rare)},
                target,
            )
