"""Rows that the model has already seen: exact and near duplicates between what it was trained on and what it is measured on."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import polars as pl
from pydantic import Field as Option

from luban.auditing._base import Audit, AuditResult, Case, Severity
from luban.data.cleaning.near_duplicates import NearDuplicates
from luban.data.contracts import Array
from luban.data.processors._base import as_words
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.registry import register
from luban.sentences import Sentence, say

__all__ = ["Duplicates"]

_SAME = 0.99  # share of rows that are training rows from which on they are the training rows


@register("audits")
class Duplicates(Audit):
    """Rows to measure on whose inputs are those of a training row, texts that nearly are, and equal inputs of different labels.

    Texts are compared by the share of character n-grams that they have in common, which MinHash estimates (Broder, 1997).
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "Broder, 1997; Lee et al., 2022"

    threshold: Annotated[float, Option(ge=0.3, le=1)] = 0.8
    """Share of common n-grams from which on two texts are alike."""
    ngram: Annotated[int, Option(ge=1, le=32)] = 4
    """Characters in an n-gram."""
    tolerance: Annotated[float, Option(gt=0, lt=1)] = 0.01
    """Share of rows from which a finding is medium; high from ten times that."""

    def run(self, case: Case) -> AuditResult:
        predictor, rows = case.predictor, case.rows
        result = AuditResult(self.type, rows=len(rows))
        result.notes.append(say("looked at {sample}", sample=case.sample))
        inputs = {**predictor.pipeline.given}
        keys = case.keys(rows)
        self._contradictions(result, case, keys)
        training = case.training
        if training is None:
            result.notes.append(say("not compared with training rows: {why}", why=case.why_no_training))
            return result
        known, counts = np.unique(case.training_keys, return_counts=True)
        result.notes.append(
            say(
                "equal inputs are looked for among all {n:,} training rows, texts that are nearly equal among {sample}",
                n=counts.sum(),
                sample=training,
            )
        )
        exact = np.isin(keys, known)
        # Where rows are few numbers and words, people who have nothing to do with each other look alike.
        usual = float(counts[counts > 1].sum() / max(1, counts.sum()))
        result.figures["usual_share"] = usual
        if exact.mean() > _SAME and usual < _SAME:
            result.figures["exact_share"] = share = float(exact.mean())
            result.find(
                "high",
                say(
                    "these are the training rows themselves ({share:.1%} of them): all that is measured on them flatters the model",
                    share=share,
                ),
                say("Measure on rows that it was not trained on (--split test of the same file)."),
                {"rows": int(exact.sum()), "share": share},
            )
            return result
        natural = usual >= exact.mean() / 2
        what = (
            say(
                "have exactly the inputs of a training row (but {usual:.1%} of the training rows have those of another, too)",
                usual=usual,
            )
            if natural
            else say("have exactly the inputs of a training row")
        )
        self._tell(result, case, "exact", exact, what, natural=natural)
        for column in [
            name for name, one in inputs.items() if isinstance(one, Text) and not isinstance(one, Chat)
        ]:
            case.report(say("comparing texts of '{column}'", column=column), 0, None)
            near = self._near(training.rows[column], rows[column], column) & ~exact
            what = say("have nearly the '{column}' of a training row", column=column)
            self._tell(result, case, f"{column}.near", near, what, column)
        return result

    def _near(self, known: pl.Series, asked: pl.Series, column: str) -> Array:
        """Return which texts resemble one of the known, (n,)."""
        index = NearDuplicates(column=column, threshold=self.threshold, ngram=self.ngram)
        index.resemblances(known)
        return index.resemblances(asked, among=index.remembered)

    def _contradictions(self, result: AuditResult, case: Case, keys: Array) -> None:
        for target in case.targets:
            if target not in case.rows.columns or case.targets[target].task == "regression":
                continue
            frame = pl.DataFrame({"key": keys, "label": as_words(case.rows[target])}).drop_nulls()
            mixed = frame.group_by("key").agg(pl.col("label").n_unique().alias("kinds"), pl.len())
            several = mixed.filter(pl.col("kinds") > 1)
            rows = int(several["len"].sum())
            share = rows / max(1, len(frame))
            result.figures[f"{target}.contradictions"] = share
            if rows:
                result.find(
                    self._severity(share),
                    say(
                        "{n:,} rows ({share:.1%}) have the same inputs as another row with another '{target}'",
                        n=rows,
                        share=share,
                        target=target,
                    ),
                    say(
                        "Decide which label is right, or bring the column that tells these rows apart; no model can get them all right."
                    ),
                    {"rows": rows, "share": share},
                    target,
                )

    def _tell(
        self,
        result: AuditResult,
        case: Case,
        name: str,
        found: Array,
        what: Sentence,
        where: str = "",
        natural: bool = False,
    ) -> None:
        share = float(found.mean()) if len(found) else 0.0
        result.figures[f"{name}_share"] = share
        places = case.sample.places[np.flatnonzero(found)[:100]]
        result.tables[name] = [{"row": int(place)} for place in places]
        if found.any():
            result.find(
                "low" if natural else self._severity(share),
                say(
                    "{n:,} of {of:,} rows ({share:.1%}) {what}: {then}",
                    n=found.sum(),
                    of=len(found),
                    share=share,
                    what=what,
                    then=say("rows of so few values look alike")
                    if natural
                    else say("the model knows them already, and figures on them flatter it"),
                ),
                say(
                    "Measure on other rows, or drop these (data.clean: near_duplicates, duplicates) and train again."
                ),
                {"rows": int(found.sum()), "share": share},
                where,
            )

    def _severity(self, share: float) -> Severity:
        return "high" if share >= 10 * self.tolerance else "medium" if share >= self.tolerance else "low"
