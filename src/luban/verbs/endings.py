"""How a training ends: what is decided by the validation rows, what is audited, and whether the gates are met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from luban import registry
from luban.auditing._base import SEED, AuditResult, Case
from luban.auditing._run import choose, figures_of, run
from luban.console import Console
from luban.data.prepare import Prepared
from luban.data.sampling import Sample
from luban.decisions._base import Decision
from luban.errors import RecipeError, did_you_mean
from luban.evaluation.metrics import Task, names
from luban.gates import Gate, Verdict, judge
from luban.predict import Predictor
from luban.recipe import Recipe

__all__ = ["Ending", "decide", "examine", "require", "require_fit"]

_LIMIT = 20_000  # rows audited at the most
_DECIDING = 200_000  # rows that decisions are fitted on at the most


@dataclass
class Ending:
    """What an ended training was found to be.

    Attributes:
        results: of the audits.
        left: audits that did not fit, and why.
        verdicts: of the gates.
    """

    results: list[AuditResult] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what audit.json holds; the keys are those of `luban audit --json`."""
        return {
            "findings": [one for result in self.results for one in result.to_json()["findings"]],
            "figures": figures_of(self.results),
            "gates": [one.to_json() for one in self.verdicts],
            "audits": {one.audit: one.to_json() for one in self.results},
            "left_out": self.left,
        }


def require(recipe: Recipe) -> None:
    """Check what can be told before the data is read.

    Raises:
        RecipeError: if a decision needs a column that is no group.
    """
    for one in recipe.decide:
        for column in cast(Decision, one).needs:
            if column not in recipe.data.groups:
                raise RecipeError(
                    f"decide {one.type}: '{column}' is none of data.groups ({', '.join(recipe.data.groups) or 'empty'}); add it there"
                )


def require_fit(recipe: Recipe, prepared: Prepared) -> None:
    """Check decisions and gates against the targets, before hours of training.

    Raises:
        RecipeError: if a decision does not fit, or a gate names what will not be measured.
    """
    targets = prepared.pipeline.scored
    for one in recipe.decide:
        cast(Decision, one).model_copy(deep=True).bind(targets)
        if not prepared.rows["validation"]:
            raise RecipeError(
                f"decide {one.type}: it is fitted on validation rows, but there are none; give data.validation or a share in data.split"
            )
    known = [
        f"{column}.{name}"
        for column, p in targets.items()
        for name in names(cast(Task, p.task), len(p.classes()))
    ]
    audits = registry.names("audits")
    for gate in map(Gate.parse, recipe.gates):
        if gate.sign == "no" or gate.audit in audits or not known or prepared.pipeline.written:
            continue
        if gate.name not in known:
            raise RecipeError(
                f"gate '{gate.text}': '{gate.name}' is not measured; metrics are {', '.join(known)}, and audits {', '.join(audits)}{did_you_mean(gate.name, known)}"
            )


def decide(recipe: Recipe, predictor: Predictor, prepared: Prepared, console: Console) -> list[Decision]:
    """Fit the decisions of a recipe on the validation rows, each upon those before it."""
    targets = predictor.pipeline.scored
    scored = Case(predictor, Sample.draw(prepared.raw("validation"), _DECIDING)).scored
    rows = predictor.clean(scored.rows)
    whole = dict(scored.outputs)
    # A promise about new rows is fitted on rows that nothing else was fitted to: they are dealt by lot.
    kinds = {cast(Decision, one).untouched for one in recipe.decide}
    lots = np.random.default_rng(SEED).permutation(len(rows)) % 2 == 0
    fitted: list[Decision] = []
    for one in recipe.decide:
        decision = cast(Decision, one.model_copy(deep=True))
        decision.bind(targets)
        column = decision.column
        mine = np.flatnonzero(lots == decision.untouched if len(kinds) > 1 else lots | ~lots)
        console.say(
            decision.fit(targets[column], whole[column][mine], scored.truth[column][mine], rows[mine])
        )
        whole[column] = decision.outputs(whole[column], rows)
        fitted.append(decision)
    return fitted


def examine(
    recipe: Recipe,
    predictor: Predictor,
    prepared: Prepared,
    split: str | None,
    metrics: Mapping[str, Any],
    text: str,
    console: Console,
) -> Ending:
    """Run the audits that the recipe names, or that its gates need, on the rows that were measured, and judge the gates."""
    gates = [Gate.parse(one) for one in recipe.gates]
    known = registry.names("audits")
    named = [one.type for one in recipe.audits] + [one.audit for one in gates if one.audit in known]
    everything = any(one.sign == "no" for one in gates) and not recipe.audits
    ending = Ending()
    if (named or everything) and split is not None:
        chosen, _ = choose([] if everything else list(dict.fromkeys(named)), recipe.audits)
        case = Case(
            predictor, Sample.draw(prepared.raw(split), _LIMIT), list(predictor.pipeline.groups), text
        )
        case.lineage = {"split": prepared.split_state, "data": prepared.fingerprints}
        case.report = console.stage
        ending.results, ending.left = run(case, chosen, console, asked=[one.type for one in recipe.audits])
        console.end_stage()
    figures: dict[str, float | None] = {
        name: metric["value"] for name, metric in metrics.get("metrics", {}).items()
    }
    figures |= figures_of(ending.results)
    severities = [finding.severity for one in ending.results for finding in one.findings]
    ending.verdicts = judge(gates, figures, severities)
    for result in ending.results:
        for finding in result.findings:
            if finding.severity in ("high", "medium"):
                console.say(f"{finding.severity}: {result.audit}: {finding.sentence}")
    return ending
