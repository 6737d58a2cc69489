"""Does the model keep its answer when rows change a little, and how little must they change until it does not?"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, cast

import numpy as np
from pydantic import Field as Option

from luban.auditing._attack import Kind, attacked, kinds_of
from luban.auditing._base import SEED, Audit, AuditResult, Case, Scored, Severity, losses, right
from luban.auditing._perturbations import perturbations
from luban.data.contracts import Array
from luban.errors import InputError, RecipeError, did_you_mean
from luban.registry import register
from luban.sentences import Sentence, say

__all__ = ["Robustness"]

_FEWEST = 10  # rows from which what is lost may be a finding; the table tells of fewer


@register("audits")
class Robustness(Audit):
    """Accuracy under changes that people, scanners and attackers make, on the same rows before and after.

    Texts: typing errors, case, full and half width, punctuation, white space, traditional for simplified characters. Tables:
    noise, gaps, numbers far out of range, words never seen. Pictures: noise, blur, darkness. And the gradient's own changes: FGSM
    (Goodfellow et al., 2015) and PGD (Madry et al., 2018) of pixels, of numbers, and of the vectors of tokens and categories,
    which bound what a clever enemy could do to tokens. A row that cannot be read any more counts as wrong.
    """

    family: ClassVar[str] = "robustness"
    paper: ClassVar[str] = "Goodfellow et al., 2015; Madry et al., 2018; Belinkov & Bisk, 2018"
    guarded: ClassVar[tuple[str, ...]] = ("steps",)

    rows: Annotated[int, Option(ge=10)] = 1000
    """Rows looked at, at the most."""
    share: Annotated[float, Option(gt=0, le=1)] = 0.2
    """Share of cells that are changed; the strength of noise and typing errors goes with it."""
    changes: list[str] | None = None
    """Changes to try, by name; all that fit if left out. Attacks are `fgsm_pixels`, `pgd_vectors` and so on."""
    pixels: Annotated[float, Option(gt=0)] = 8.0
    """How far an attack may move a pixel, of 255."""
    numbers: Annotated[float, Option(gt=0)] = 0.1
    """How far it may move a number, in deviations of its column."""
    vectors: Annotated[float, Option(gt=0)] = 0.1
    """How far it may move a vector's values, in units of their mean size."""
    steps: Annotated[int, Option(ge=2)] = 10
    """Steps of PGD."""
    tolerance: Annotated[float, Option(gt=0, lt=1)] = 0.05
    """Loss of accuracy by a change that leaves the meaning alone from which a finding is medium; high from twice that. For a number,
    the share by which its error grows."""

    def refusal(self, case: Case) -> str | None:
        if case.targets:
            return None
        return say("the artefact predicts no column whose truth could be kept or lost")

    def run(self, case: Case) -> AuditResult:
        whole = case.scored.take(self.rows)
        n, rows = len(whole.rows), whole.rows
        result = AuditResult(self.type, rows=n)
        result.notes.append(
            say(
                "{n:,} rows with a known truth, of {sample}, before and after each change",
                n=n,
                sample=case.sample,
            )
        )
        inputs = {name: one for name, one in case.predictor.pipeline.given.items() if name in rows.columns}
        known = {one.name: one for one in perturbations(inputs, self.share)}
        attacks = [f"{method}_{kind}" for kind in kinds_of(case.predictor) for method in ("fgsm", "pgd")]
        wanted = self.changes if self.changes is not None else [*known, *attacks]
        for name in wanted:
            if name not in known and name not in attacks:
                raise InputError(
                    say(
                        "audit robustness: '{name}' is no change of these inputs; changes are {known}{hint}",
                        name=name,
                        known=[*known, *attacks],
                        hint=did_you_mean(name, [*known, *attacks]),
                    )
                )
        table: list[dict[str, Any]] = []
        before = {
            target: right(one, whole.truth[target], whole.scores[target])
            for target, one in case.targets.items()
        }
        for number, name in enumerate(wanted):
            case.report(say("changing rows"), number, len(wanted))

            def measure(name: str = name) -> list[dict[str, Any]]:
                after = (
                    self._attack(case, name, whole)
                    if name in attacks
                    else self._change(case, known[name], rows, n)
                )
                return [
                    self._row(case, name, target, before[target], *after[target]) for target in case.targets
                ]

            try:
                own = case.store(f"{self.type}/{name}", measure)
            except RecipeError as error:
                if self.changes is not None or name not in attacks:
                    raise
                result.notes.append(say("{name} is left out: {why}", name=name, why=error))
                continue
            table += own
            harmless = name in known and known[name].harmless
            for row in own:
                self._tell(result, row, harmless, name in attacks)
        result.tables["changes"] = table
        return result

    def _change(self, case: Case, change: Any, rows: Any, n: int) -> dict[str, tuple[Array, float]]:
        changed = change.change(rows, np.random.default_rng([SEED, 8]))
        scored = case.score(changed)
        after = {}
        for target, processor in case.targets.items():
            truth, scores = scored.truth[target], scored.scores[target]
            kept = np.full(n, np.nan if processor.task == "regression" else 0.0)
            kept[scored.places] = right(processor, truth, scores)
            after[target] = kept, float(losses(processor, truth, scores).mean())
        return after

    def _attack(self, case: Case, name: str, whole: Scored) -> dict[str, tuple[Array, float]]:
        method, kind = name.split("_", 1)
        rows, truth = case.predictor.clean(whole.rows), whole.truth
        steps = 1 if method == "fgsm" else self.steps
        outputs = attacked(case.predictor, rows, truth, cast(Kind, kind), getattr(self, kind), steps)
        after = {}
        for target, one in case.targets.items():
            scores = one.scores(outputs[target])
            after[target] = (
                right(one, truth[target], scores),
                float(losses(one, truth[target], scores).mean()),
            )
        return after

    def _row(
        self, case: Case, name: str, target: str, before: Array, after: Array, loss: float
    ) -> dict[str, Any]:
        known = np.isfinite(after)
        lost = before[known] - after[known]
        half = float(1.96 * lost.std() / np.sqrt(max(1, len(lost))))
        number = case.targets[target].task == "regression"
        scale = float(-before.mean()) or 1.0 if number else 1.0
        return {
            "change": name, "target": target, "measure": "mean absolute error" if number else "accuracy",
            "before": float(abs(before.mean())), "after": float(abs(after[known].mean())), "lost": float(lost.mean()) / scale,
            "lost_low": (float(lost.mean()) - half) / scale, "lost_high": (float(lost.mean()) + half) / scale,
            "loss": loss, "unreadable": int((~known).sum()),
        }  # fmt: skip

    def _tell(self, result: AuditResult, row: dict[str, Any], harmless: bool, attack: bool) -> None:
        lost, low, name = row["lost"], row["lost_low"], row["change"]
        result.figures[f"{name}.lost"] = max(lost, result.figures.get(f"{name}.lost") or -1.0)
        if harmless:
            result.figures["harmless_lost"] = max(lost, result.figures.get("harmless_lost") or 0.0)
        limit = self.tolerance if harmless else 4 * self.tolerance
        # The interval has no width where all rows are lost, be it one.
        if lost < limit or low <= 0 or result.rows < _FEWEST:
            return
        severity: Severity = "high" if harmless and lost >= 2 * limit else "medium"
        if not harmless and not attack:
            severity = "low"
        what = (
            say(
                "accuracy on '{target}' falls from {before:.1%} to {after:.1%}",
                target=row["target"],
                before=row["before"],
                after=row["after"],
            )
            if row["measure"] == "accuracy"
            else say(
                "the mean absolute error of '{target}' grows from {before:.4g} to {after:.4g}",
                target=row["target"],
                before=row["before"],
                after=row["after"],
            )
        )
        why, advice = _WORDS.get(
            name,
            (
                say("an attack that knows the model ({attack})", attack=name),
                say(
                    "Where somebody gains by deceiving the model, train with objective adversarial, and do not give its weights away."
                ),
            ),
        )
        result.find(
            severity,
            say("{what} under {why}", what=what, why=why),
            advice,
            {key: row[key] for key in ("before", "after", "lost", "lost_low", "lost_high")},
            name,
        )


_CLEAN = say(
    "Even such spellings out before the model (data.clean: text), or show it both in training (data.augment)."
)
_TYPOS = say("Train with data.augment: char_noise, or on texts as your users type them.")
_GAPS = say(
    "Let rows with such values be seen: count them where the model is used, and train with data that has them."
)
_NOISE = say("Train with data.augment: noise, blur by crop and color, as the pictures of your users are.")
_DIGITS = say("Do not trust digits that the source does not; train with noise, or with coarser numbers.")
_RANGE = say("Refuse such rows before the model (data.clean: invalid, outliers).")
_WORDS: dict[str, tuple[Sentence, Sentence]] = {
    "typos": (say("a few typing errors"), _TYPOS),
    "many_typos": (say("many typing errors"), _TYPOS),
    "case": (say("other capitals"), _CLEAN),
    "width": (say("full-width for half-width letters"), _CLEAN),
    "punctuation": (say("missing punctuation"), _CLEAN),
    "whitespace": (say("more white space"), _CLEAN),
    "script": (say("traditional for simplified characters"), _CLEAN),
    "number_noise": (say("small errors of measurement"), _DIGITS),
    "out_of_range": (say("numbers far out of range"), _RANGE),
    "unseen_category": (say("words never seen"), _GAPS),
    "missing": (say("missing cells"), _GAPS),
    "noise": (say("a little noise"), _NOISE),
    "much_noise": (say("much noise"), _NOISE),
    "blur": (say("a slight blur"), _NOISE),
    "dark": (say("less light"), _NOISE),
}
