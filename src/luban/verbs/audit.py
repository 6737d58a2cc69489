"""The verb `audit`: what may be wrong with an artefact, or with rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from luban import files
from luban._version import __version__
from luban.artefact import Artefact, write_json
from luban.auditing._base import ROOM, Audit, Case
from luban.auditing._run import Store, choose, figures_of, guarded, run
from luban.console import Console
from luban.data.sampling import Sample
from luban.errors import DataError, InputError, LubanError, did_you_mean
from luban.gates import SEVERITIES, Gate, judge
from luban.origin import Unknown, of_split, require_split
from luban.predict import Predictor, of_artefact
from luban.recipe import Component
from luban.sentences import say
from luban.verbs.evaluate import trained_on
from luban.verbs.rows import chunks_of, is_literal, open_data

__all__ = ["LIMIT", "audit"]

_FILES = ("model.safetensors", "config.json", "preprocessing.json", "recipe.yaml", "lineage.json")
LIMIT = 20_000
"""Rows of each stream that are looked at, at the most."""


def audit(
    artefact: str | Path,
    data: str,
    options: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    by: Sequence[str] = (),
    split: str | None = None,
    against: str | None = None,
    limit: int = LIMIT,
    fail_on: str | None = None,
    output: str | Path | None = None,
    fresh: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Look for faults of an artefact on rows, and of the rows themselves.

    Audits that were finished before an interruption are not done again, if artefact, rows and options are the same.

    Args:
        artefact: the artefact's directory.
        data: rows, as `luban evaluate` takes them. Of the very file that the artefact was trained on, the test rows.
        options: ``audit.key=value``, such as ``fairness.min_rows=100``.
        only: names of audits, or of families of them; all that fit by default.
        by: columns of groups; the recipe's ``data.groups`` by default.
        split: only rows that were ``train``, ``validation`` or ``test`` when the artefact was trained.
        against: rows to look for drift from; the training rows by default.
        limit: rows looked at, of `data`, `against` and the training rows each, drawn by lot; of rows with pictures or long texts in
            their cells as many as 256 MiB hold, which is said.
        fail_on: severity from which a finding makes `passed` false: high, medium or low.
        output: a JSON file to write.
        fresh: do everything anew.
        device: ``cpu`` or ``cuda``.
        console: who is told what happens.

    Returns:
        ``findings`` (the worst first), ``figures``, ``audits`` (each with findings, figures, tables, rows, notes), ``left_out``
        (audit → why), ``gates``, ``passed``.

    Raises:
        LubanError: in one sentence.

    Example:
        >>> luban.audit("runs/adult", "dataset:adult", only=["fairness"])["passed"]      # doctest: +SKIP
        True
    """
    console = console or Console()
    if fail_on is not None and fail_on not in SEVERITIES[:3]:
        raise InputError(
            say(
                "received --fail-on '{fail_on}', but severities are {severities}{hint}",
                fail_on=fail_on,
                severities=SEVERITIES[:3],
                hint=did_you_mean(fail_on, SEVERITIES[:3]),
            )
        )
    if limit < 1:
        raise InputError(say("received --limit {limit}, but at least one row must be looked at", limit=limit))
    if output is not None and Path(output).is_dir():
        raise InputError(say("'{output}' is a folder; name a file with -o", output=output))
    loaded = Artefact.load(artefact)
    predictor = of_artefact(loaded, device=device)
    case = Case(predictor, Sample.of(pl.DataFrame()))
    case.recipe, case.lineage, case.limit, case.report = loaded.recipe, loaded.lineage, limit, console.stage
    recipe = case.resolved
    given = recipe.audits if recipe is not None else ()
    chosen, asked = choose(only, given, options, foreign=True)
    _tell_guarded(given, chosen, options, console)
    split, case.caution = _split_of(loaded, data, split, console)
    case.sample = _drawn(loaded, predictor, data, split, limit, console)
    case.by = list(by) or list(predictor.pipeline.groups)
    for name in by:
        if name not in case.rows.columns:
            raise DataError(
                say(
                    "there is no column '{name}' of groups; columns are {columns}{hint}",
                    name=name,
                    columns=[*case.rows.columns],
                    hint=did_you_mean(name, case.rows.columns),
                )
            )
    if against is not None:
        case.against = _drawn(loaded, predictor, against, None, limit, console)
    store = Store(_work(loaded, case, chosen, data, split, against))
    if fresh:
        store.forget()
    case.store = store
    results, left = run(case, chosen, console, asked=asked)
    console.end_stage()
    figures = figures_of(results)
    gates = [Gate.parse(text) for text in (recipe.gates if recipe is not None else [])]
    # Gates about metrics are the business of training, those about audits left out by --only of the next audit.
    done = {one.type for one in chosen}
    gates = [one for one in gates if one.sign == "no" or one.audit in done]
    findings = sorted(
        (finding for one in results for finding in one.to_json()["findings"]),
        key=lambda one: SEVERITIES.index(one["severity"]),
    )
    verdicts = judge(gates, figures, [one["severity"] for one in findings] if results else None)
    bad = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on else ()
    result = {
        "artefact": str(artefact),
        "data": data,
        "split": split,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": len(case.rows),
        "of": case.sample.total,
        # Where nothing was looked at, nothing was found, and that is no yes.
        "passed": all(one.passed for one in verdicts)
        and not any(f["severity"] in bad for f in findings)
        and (fail_on is None or bool(results)),
        "findings": findings,
        "figures": figures,
        "gates": [one.to_json() for one in verdicts],
        "audits": {one.audit: one.to_json() for one in results},
        "left_out": left,
    }
    if output is not None:
        with files.new_file(Path(output)) as beside:
            write_json(beside, result)
    store.forget()
    return result


def _tell_guarded(
    given: Sequence[Component], chosen: Sequence[Audit], options: Sequence[str], console: Console
) -> None:
    """Say which options of the artefact's recipe are not taken unasked, since they read files or take long."""
    names, said = {one.type for one in chosen}, {text.partition("=")[0] for text in options}
    left = [
        text
        for text in guarded(given)
        if text.partition(".")[0] in names and text.partition("=")[0] not in said
    ]
    if left:
        console.say(
            say("not taken from the artefact's recipe unless you say it: {options}", options=" ".join(left))
        )


def _split_of(loaded: Artefact, data: str, split: str | None, console: Console) -> tuple[str | None, str]:
    """Return the split whose rows are looked at, and what flatters the artefact there.

    It is the split that was asked for, or of the training file itself what was held out.
    """
    caution = ""
    if split is not None:
        require_split(loaded.lineage, split, loaded.path)
    elif trained_on(loaded, data):
        rows, own = loaded.lineage.get("rows", {}), loaded.lineage.get("data", {})
        # A split with data of its own lies in another file.
        split = next((s for s in ("test", "validation") if rows.get(s) and s not in own), None)
        split = split if "split" in loaded.lineage else None
        if split is None:
            caution = say("the artefact was trained on this very file, so what is found flatters it")
        else:
            console.say(
                say(
                    "the artefact was trained on this very file: its {split} rows are looked at (--split says otherwise)",
                    split=split,
                )
            )
    if split == "train":
        caution = say("these rows are those that the artefact was trained on, so what is found flatters it")
    if split == "validation" and loaded.decisions:
        caution = say(
            "{decisions} of the artefact were fitted on these rows, so what is found flatters it",
            decisions=list(dict.fromkeys(one.type for one in loaded.decisions)),
        )
    if caution:
        console.say(say("careful: {what}", what=caution))
    return split, caution


def _drawn(
    loaded: Artefact, predictor: Predictor, data: str, split: str | None, limit: int, console: Console
) -> Sample:
    chunks: Iterator[pl.DataFrame] = chunks_of(data, list(predictor.pipeline.inputs))
    if split is not None:
        chunks = of_split(predictor.pipeline, loaded.lineage, chunks, split)
    sample = Sample.draw(chunks, limit, lambda rows: console.stage(say("reading"), rows), room=ROOM)
    console.end_stage()
    if not len(sample.rows):
        raise DataError(
            say("there is no row to look at in split '{split}'", split=split)
            if split
            else say("there is no row to look at")
        )
    predictor.pipeline.require(sample.rows.columns, targets=False)
    console.say(say("looking at {sample}", sample=sample))
    return sample


def _work(
    loaded: Artefact, case: Case, audits: Sequence[Audit], data: str, split: str | None, against: str | None
) -> Path:
    """Return the folder of what is finished: another for another artefact, other rows or other options."""
    what = [
        __version__,
        *(files.sha256_of(loaded.path / name) for name in _FILES if (loaded.path / name).is_file()),
        str(case.origin) if isinstance(case.origin, Unknown) else "its training rows are at hand",
        _fingerprint(data) or _hash_of(case.rows),
        None
        if against is None or case.against is None
        else _fingerprint(against) or _hash_of(case.against.rows),
        split,
        case.limit,
        case.by,
        [one.model_dump() for one in audits],
        [files.sha256_of(path) for one in audits for path in _named_by(one)],
    ]
    text = json.dumps(what, sort_keys=True, ensure_ascii=False, default=str)
    return files.cache_folder() / "audits" / hashlib.sha256(text.encode()).hexdigest()[:24]


def _named_by(audit: Audit) -> list[Path]:
    """Return the files that the options of an audit name: of words, of prompts, of secrets, or those of an artefact."""
    values = [getattr(audit, key) for key in audit.guarded]
    paths = [Path(value) for value in values if isinstance(value, str)]
    inside = [one for path in paths if path.is_dir() for one in sorted(path.iterdir())]
    return [path for path in [*paths, *inside] if path.is_file()]


def _fingerprint(data: str) -> str | None:
    if data == "-" or is_literal(data):
        return None
    try:
        return open_data(data).fingerprint()
    except LubanError:  # whatever is wrong with the data is said when it is read
        return None


def _hash_of(rows: pl.DataFrame) -> str:
    return hashlib.sha256(repr(rows.to_dicts()).encode()).hexdigest()
