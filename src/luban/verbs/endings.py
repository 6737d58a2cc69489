"""How a training ends: what is decided by the validation rows, what is audited, and whether the gates are met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import polars as pl

from luban import registry
from luban.auditing._base import ROOM, AuditResult, Case, Scored, score
from luban.auditing._run import choose, figures_of, run
from luban.console import Console
from luban.data.prepare import Prepared
from luban.data.sampling import Sample
from luban.decisions._base import Decision
from luban.errors import DataError, RecipeError, did_you_mean
from luban.evaluation.metrics import Task, names
from luban.gates import Gate, Verdict, judge
from luban.predict import Predictor
from luban.recipe import Recipe

__all__ = ["Ending", "decide", "examine", "require", "require_fit"]

_LIMIT = 20_000  # rows audited at the most
_DECIDING = 200_000  # rows that decisions are fitted on, about, at the most
_SEED = 0  # of the rows that decisions are fitted on
_PLACE = "__luban_place__"  # a column that is always there: without any, a table has no rows


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
        RecipeError: if a decision needs a column that is no group, or changes what one before it made a promise about.
    """
    decisions = [cast(Decision, one) for one in recipe.decide]
    for i, one in enumerate(decisions):
        after = next((later for later in decisions[i + 1 :] if not later.untouched), None)
        if one.untouched and after is not None:
            raise RecipeError(
                f"decide: {after.type} stands after {one.type}, and would change the outputs that {one.type} makes its promise about; write {one.type} last"
            )
        for column in one.needs:
            if column not in recipe.data.groups:
                raise RecipeError(
                    f"decide {one.type}: '{column}' is none of data.groups ({', '.join(recipe.data.groups) or 'empty'}); add it there"
                )


def require_fit(recipe: Recipe, prepared: Prepared) -> None:
    """Check decisions and gates against the targets and the splits, before hours of training.

    Raises:
        RecipeError: if a decision does not fit or could not be measured, or a gate names what will not be measured.
    """
    targets, rows = prepared.pipeline.scored, prepared.rows
    folds = recipe.data.split is not None and recipe.data.split.type == "folds"
    for one in recipe.decide:
        cast(Decision, one).model_copy(deep=True).bind(targets)
        if not rows["validation"]:
            raise RecipeError(
                f"decide {one.type}: it is fitted on validation rows, but there are none; give data.validation or a share in data.split"
            )
        if folds or not rows["test"]:
            raise RecipeError(
                f"decide {one.type}: what is fitted on the validation rows says nothing about new ones until it is measured on others, and "
                + (
                    "a fold is both; take another data.split, with shares of validation and test"
                    if folds
                    else "there are no test rows; give data.test or a share in data.split.test"
                )
            )
    if recipe.gates and not rows["validation"] and not rows["test"]:
        raise RecipeError(
            f"gate '{recipe.gates[0]}': there are neither validation nor test rows to judge it by; give data.test or a share in data.split.test"
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
    """Fit the decisions of a recipe on the validation rows, each upon those before it.

    Of a chunk of rows only outputs, truth and the columns of groups are kept: pictures would not fit into memory.
    """
    targets = predictor.pipeline.scored
    kinds = {cast(Decision, one).untouched for one in recipe.decide}
    needs = list(dict.fromkeys(name for one in recipe.decide for name in cast(Decision, one).needs))
    generator = np.random.default_rng(_SEED)
    share = _DECIDING / max(1, prepared.rows["validation"])
    parts: list[Scored] = []
    for chunk in prepared.raw("validation"):
        drawn = chunk.filter(pl.Series(generator.random(len(chunk)) < share)) if share < 1 else chunk
        scored = score(predictor, drawn)
        cleaned = predictor.clean(scored.rows)
        kept = {_PLACE: pl.Series(scored.places), **{name: cleaned[name] for name in needs}}
        parts.append(replace(scored, rows=pl.DataFrame(kept)))
    if not sum(len(part.places) for part in parts):
        raise DataError(
            "no decision can be fitted: of no validation row the targets are known and the inputs readable"
        )
    rows = pl.concat([part.rows for part in parts], how="vertical_relaxed")
    whole = {column: np.concatenate([part.outputs[column] for part in parts]) for column in targets}
    truth = {column: np.concatenate([part.truth[column] for part in parts]) for column in targets}
    # A promise about new rows is fitted on rows that nothing else was fitted to: they are dealt by lot.
    lots = generator.permutation(len(rows)) % 2 == 0
    fitted: list[Decision] = []
    for one in recipe.decide:
        decision = cast(Decision, one.model_copy(deep=True))
        decision.bind(targets)
        column = decision.column
        mine = np.flatnonzero(lots == decision.untouched if len(kinds) > 1 else lots | ~lots)
        console.say(decision.fit(targets[column], whole[column][mine], truth[column][mine], rows[mine]))
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
    """Run the audits that the recipe names, or that its gates need, on the rows that were measured, and judge the gates.

    Of many rows some are drawn by lot, and that is said; the gates over metrics are those of all rows.
    """
    gates = [Gate.parse(one) for one in recipe.gates]
    known = registry.names("audits")
    named = [one.type for one in recipe.audits] + [one.audit for one in gates if one.audit in known]
    everything = any(one.sign == "no" for one in gates) and not recipe.audits
    ending = Ending()
    if (named or everything) and split is not None:
        chosen, _ = choose([] if everything else list(dict.fromkeys(named)), recipe.audits)
        sample = Sample.draw(prepared.raw(split), _LIMIT, room=ROOM)
        if len(sample.rows) < sample.total:
            console.say(f"audits look at {sample}")
        case = Case(predictor, sample, list(predictor.pipeline.groups), text)
        case.lineage = {"split": prepared.split_state, "data": prepared.fingerprints}
        case.report = console.stage
        ending.results, ending.left = run(case, chosen, console, asked=[one.type for one in recipe.audits])
        console.end_stage()
    figures: dict[str, float | None] = {
        name: metric["value"] for name, metric in metrics.get("metrics", {}).items()
    }
    figures |= figures_of(ending.results)
    severities = [finding.severity for one in ending.results for finding in one.findings]
    ending.verdicts = judge(gates, figures, severities if ending.results else None)
    for result in ending.results:
        for finding in result.findings:
            if finding.severity in ("high", "medium"):
                console.say(f"{finding.severity}: {result.audit}: {finding.sentence}")
    return ending
