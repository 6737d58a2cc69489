"""Which audits are run, in what order, and how an interrupted one goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from luban import files, registry
from luban.auditing._base import Audit, AuditResult, Case
from luban.console import Console
from luban.errors import InputError, LubanError, did_you_mean
from luban.recipe import Component, Section, options_from
from luban.sentences import kept, named, revived, say

__all__ = ["FAMILIES", "Store", "choose", "figures_of", "guarded", "run"]

FAMILIES = ("fairness", "robustness", "privacy", "data", "calibration", "generation")


class Store:
    """Plain data by name in a folder, each written at once, so that what was finished is not done again.

    Args:
        folder: where; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what is kept under a name, or make and keep it."""
        path = self.folder / f"{name.replace('/', '~')}.json"
        try:
            return revived(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            pass
        value = make()
        with files.new_file(path) as beside:
            text = json.dumps(
                kept(value) if isinstance(value, dict) else value, ensure_ascii=False, allow_nan=False
            )
            beside.write_text(text, encoding="utf-8")
        return value

    def forget(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def choose(
    only: Sequence[str],
    given: Iterable[Component] = (),
    options: Sequence[str] = (),
    *,
    foreign: bool = False,
) -> tuple[list[Audit], set[str]]:
    """Return the audits to run, and the names of those that were asked for by name.

    Args:
        only: names of audits or families; all if empty.
        given: audits with options, as a recipe has them.
        options: ``audit.key=value`` strings.
        foreign: whether `given` may come from a stranger: then options that read files or take long are not taken (`guarded`).

    Raises:
        InputError: if a name is unknown.
        RecipeError: if an option is.
    """
    known = registry.names("audits")
    own = {one.type: one.model_dump(exclude_unset=True) for one in given}
    for name, values in own.items():
        values.pop("type", None)
        for key in registry.lookup("audits", name).guarded if foreign else ():
            values.pop(key, None)
    parts: dict[str, list[str]] = {}
    for text in options:
        name, dot, rest = text.partition(".")
        if not dot or "=" not in rest or name not in known:
            raise InputError(
                say(
                    "option '{text}' is not of the form audit.key=value; audits are {known}{hint}",
                    text=text,
                    known=[*known],
                    hint="" if name in known else did_you_mean(name, known),
                )
            )
        parts.setdefault(name, []).append(rest)
    wanted: list[str] = []
    for name in only:
        if name in FAMILIES and name not in known:
            wanted += [one for one in known if registry.lookup("audits", one).family == name]
        elif name in FAMILIES:
            wanted += [name, *(o for o in known if o != name and registry.lookup("audits", o).family == name)]
        elif name in known:
            wanted.append(name)
        else:
            names = [*known, *(family for family in FAMILIES if family not in known)]
            raise InputError(
                say(
                    "there is no audit '{name}'; audits and families of them are {names}{hint}",
                    name=name,
                    names=[*names],
                    hint=did_you_mean(name, names),
                )
            )
    chosen: list[Audit] = []
    for name in dict.fromkeys(wanted or known):
        audit = cast(Audit, Section("audits").parse({"type": name, **own.get(name, {})}))
        if name in parts:
            audit = _changed(audit, parts[name])
        chosen.append(audit)
    return chosen, {name for name in only if name in known} | set(parts)


def guarded(given: Iterable[Component]) -> list[str]:
    """Return the options of audits that read files or take long, as `luban audit` takes them."""
    return [
        f"{one.type}.{key}={getattr(one, key)}"
        for one in cast(Iterable[Audit], given)
        for key in one.guarded
        if key in one.model_fields_set
    ]


def _changed(audit: Audit, options: list[str]) -> Audit:
    """Return the audit with ``key=value`` options upon its own."""
    changed = options_from(type(audit), options, f"audit {audit.type}")
    return audit.model_copy(update={key: getattr(changed, key) for key in changed.model_fields_set})


def run(
    case: Case, audits: Sequence[Audit], console: Console, *, asked: Iterable[str] = ()
) -> tuple[list[AuditResult], dict[str, str]]:
    """Run audits one after the other; what `case.store` has of an earlier attempt is taken as it is.

    Args:
        case: what they look at.
        audits: which.
        console: who is told what happens.
        asked: audits that must not be left out.

    Returns:
        The results, and why others were left out, by name.

    Raises:
        InputError: if an audit that was asked for does not fit.
    """
    results: list[AuditResult] = []
    left: dict[str, str] = {}
    asked = set(asked)
    refusals = {audit.type: audit.refusal(case) for audit in audits}
    for audit in audits:
        reason = refusals[audit.type]
        if reason is None:
            continue
        if audit.type in asked:
            fit = [name for name, why in refusals.items() if why is None] or [
                name
                for name in registry.names("audits")
                if name != audit.type and Section("audits").parse(name).refusal(case) is None  # type: ignore[attr-defined]
            ]
            raise InputError(
                say(
                    "audit '{name}' does not fit: {reason}; those that do are {fit}",
                    name=audit.type,
                    reason=reason,
                    fit=[*fit],
                )
            )
        left[audit.type] = reason
    for audit in audits:
        if audit.type in left:
            continue
        name = named(audit.type, console.language, "audits")
        console.say(say("auditing: {audit}", audit=name))

        def result_of(audit: Audit = audit) -> dict[str, Any]:
            try:
                result = audit.run(case)
                result.notes += [case.caution] if case.caution else []
                return result.to_json()
            except LubanError as error:
                if audit.type in asked:
                    raise
                left[audit.type] = str(error)
                raise _LeftOut from error

        try:
            results.append(AuditResult.from_json(case.store(audit.type, result_of)))
        except _LeftOut:
            console.say(say("  left out: {why}", why=left[audit.type]))
    return results, left


class _LeftOut(Exception):  # noqa: N818
    """An audit that nobody asked for by name met rows that it cannot do."""


def figures_of(results: Iterable[AuditResult]) -> dict[str, float | None]:
    """Return ``audit.figure`` → number of all results."""
    found: Mapping[str, float | None] = {
        f"{one.audit}.{name}": value for one in results for name, value in one.figures.items()
    }
    return dict(found)
