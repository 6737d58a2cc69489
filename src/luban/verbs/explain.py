"""The verb `explain`: why an artefact says what it says about rows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from luban import files
from luban.artefact import Artefact, write_json
from luban.console import Console
from luban.data.contracts import Flat
from luban.data.sampling import Sample
from luban.errors import DataError, InputError, LubanError, did_you_mean
from luban.explaining import _render
from luban.explaining._base import Explainer, Explanation, Survey
from luban.explaining._case import Background, Case, quickly, require_rows
from luban.explaining._hidden import explain_hidden, fills, hidden_cases
from luban.explaining._quality import measure
from luban.explaining._tokens import TokenCase
from luban.explaining._written import explain_written, writes, written_case
from luban.origin import Origin, Unknown
from luban.predict import Predictor, frame_of, of_artefact
from luban.recipe import options_from
from luban.registry import lookup, names
from luban.reporting._words import Words
from luban.sentences import say
from luban.verbs.rows import chunks_of

__all__ = ["explain", "explain_rows"]

SECTION = "explainers"
AT_ONCE = 64
"""Rows that are explained at a time."""
ROWS, SET = 100, 2_000
"""Rows that are looked at unless a limit is given: the first ones one by one, or a sample as a whole."""
BACKGROUND = 1_000
"""Training rows that stand for the data, at most."""
READ = 200_000
"""Training rows that these are drawn from, at most: a larger file is not read to its end for them."""
MANY = 0.05
"""A completeness error that the reader is told of."""


def explain(
    artefact: str | Path,
    data: str,
    options: Sequence[str] = (),
    *,
    target: str | None = None,
    method: str | None = None,
    label: str | None = None,
    target_text: str | None = None,
    max_tokens: int = 20,
    quality: bool = False,
    limit: int | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    force: bool = False,
    lang: str = "en",
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Explain predictions.

    Args:
        artefact: the artefact's directory.
        data: a file, ``-`` for JSON lines on standard input, JSON rows, or the value of the only input column.
        options: ``key=value`` options of the explainer.
        target: the column to explain; the first one by default.
        method: type of the explainer; by default one that suits the model (see `default`).
        label: the class to explain; by default the one that is predicted for each row.
        target_text: for a model that writes: the text whose tokens are explained; by default what the model writes. For a masked
            language model: the words at the hidden places, a token each; by default the most probable ones.
        max_tokens: for a model that writes: how many tokens it writes, at most.
        quality: whether to measure how well explanations explain the model (`luban.explaining._quality`).
        limit: rows that are looked at; 0 for all. By default the first 100, or a sample of 2,000 for what is about a whole set.
        seed: of everything that is drawn.
        output: a folder to write: explanations.jsonl, summary.json, pictures, and index.html with all of it.
        force: replace a folder that was written before.
        lang: ``en`` or ``zh``; of the page, where `output` asks for one. What is returned, and the JSON beside the page, is English.
        device: ``cpu`` or ``cuda``.
        console: who is told what should be known.

    Returns:
        ``method`` with its ``paper`` and ``limits``, ``target``, ``rows``, ``explanations`` (of each row; none with `output`, where
        they are in the files) or ``survey`` (of the set), ``quality`` (means over the rows), ``unreadable`` (row → why), ``notes``.

    Raises:
        InputError: if the explainer does not fit the model; the sentence names those that do.
        LubanError: in one sentence.

    Example:
        >>> luban.explain("runs/reviews", "物流很快")["explanations"][0]["parts"]["review"]      # doctest: +SKIP
        {'kind': 'tokens', 'values': [0.02, ...], 'pieces': [{'text': '物', 'start': 0, 'end': 1}, ...], ...}
    """
    console = console or Console()
    Words(lang)  # refuses what is no language
    if output is not None:
        files.require_place(Path(output), force, lambda folder: (folder / "summary.json").is_file())
    if limit is not None and limit < 0:
        raise InputError(
            say("received --limit {limit}, but it is a number of rows, or 0 for all", limit=limit)
        )
    loaded = Artefact.load(artefact)
    predictor = of_artefact(loaded, device=device)
    chunks = chunks_of(data, list(predictor.pipeline.inputs))
    first = next(chunks, None)
    if first is None or not len(first):
        raise DataError(say("there is no row to explain"))
    training = training_of(loaded, predictor)
    run = _Run(
        predictor,
        target,
        label,
        seed,
        quality,
        target_text,
        max_tokens,
        training,
        background_of(training, lambda: _sampled(loaded, predictor)),
        console,
    )
    explainer = run.choose(method, list(options), first)
    result: dict[str, Any] = {
        "artefact": str(artefact),
        "method": explainer.type,
        "paper": explainer.paper,
        "limits": explainer.limits,
        "options": explainer.model_dump(),
    }
    console.say(
        say(
            "{method} ({paper}): {limits}",
            method=_render.method_name(explainer.type, console.language),
            paper=explainer.paper,
            limits=explainer.limits,
        )
    )
    everything = chain([first], chunks)
    if explainer.scope == "set":
        rows = SET if limit is None else limit
        if output is None:
            return result | run.survey(explainer, everything, rows)
        return _write_survey(
            Path(output), result, explainer, lambda own: run.survey(own, everything, rows), force, lang
        )
    found = run.rows(explainer, everything, ROWS if limit is None else limit)
    if output is None:
        explanations = [one.to_json() for one in found]
    else:
        explanations = []
        _write_rows(Path(output), result, found, run, force, lang)
    if not run.count:
        reason = next(iter(run.unreadable.values()), say("there is no row"))
        raise DataError(say("no row can be explained: {reason}", reason=reason))
    result |= {"explanations": explanations} if output is None else {}
    return result | run.summary()


def explain_rows(
    predictor: Predictor,
    rows: pl.DataFrame,
    *,
    method: str | None = None,
    options: Sequence[str] = (),
    target: str | None = None,
    label: str | None = None,
    background: pl.DataFrame | None = None,
    seed: int = 0,
) -> list[Explanation]:
    """Explain some rows, each by itself, with a loaded artefact, as `explain` does; for who holds both already.

    Raises:
        InputError: if the explainer does not fit the model, or is about the whole set; the sentence names those that do.
    """
    run = _Run(predictor, target, label, seed, False, None, 20, None, background, Console())
    explainer = run.choose(method, list(options), rows, each=True)
    return list(run.rows(explainer, iter([rows]), 0))


class _Run:
    """One call of the verb."""

    def __init__(
        self,
        predictor: Predictor,
        target: str | None,
        label: str | None,
        seed: int,
        quality: bool,
        target_text: str | None,
        max_tokens: int,
        training: Callable[[], Iterator[pl.DataFrame]] | None,
        background: pl.DataFrame | Callable[[], Background | None] | None,
        console: Console,
    ) -> None:
        if seed < 0:
            raise InputError(say("received --seed {seed}, but it is 0 or more", seed=seed))
        self.predictor, self.target, self.label, self.seed = predictor, target, label, seed
        self.quality, self.target_text, self.max_tokens = quality, target_text, max_tokens
        self.training, self.background, self.console = training, background, console
        scored = predictor.pipeline.scored
        speaks = predictor.writer or predictor.speaker
        columns = [*scored, *([] if speaks is None else [speaks.column])]
        if speaks is not None and target is not None and target not in columns:
            raise InputError(
                say(
                    "there is no target '{target}' to explain; targets are {targets}{hint}",
                    target=target,
                    targets=[*columns],
                    hint=did_you_mean(target, columns),
                )
            )
        of_tokens = speaks is not None and (target or columns[0]) == speaks.column
        self.written = of_tokens and writes(predictor)
        self.hidden = of_tokens and fills(predictor)
        if (self.written or self.hidden) and label is not None:
            what = say("writes a text") if self.written else say("fills in hidden words")
            raise InputError(
                say(
                    "the model {what}, so there is no class '{label}' to explain; leave --class out",
                    what=what,
                    label=label,
                )
            )
        if not (self.written or self.hidden) and target_text is not None:
            raise InputError(
                say(
                    "--target-text is for a model that writes texts or fills in hidden words; this artefact predicts {targets}",
                    targets=[*scored] or say("vectors"),
                )
            )
        self.count = 0
        self.of: int | None = None
        self.unreadable: dict[int, str] = {}
        self.notes: list[str] = []
        self._qualities: dict[str, list[float]] = {}
        self._totals: dict[str, list[float]] = {}
        self._shown_target = target or next(iter(scored), "")

    def case(self, rows: pl.DataFrame, first: int) -> Case:
        """Return a case of rows whose first has the number `first`."""
        return Case.of(
            self.predictor,
            rows,
            target=self.target,
            label=self.label,
            first=first,
            background=self.background,
            training=self.training,
            seed=self.seed,
        )

    # --- the explainer -------------------------------------------------------------------------------------

    def choose(
        self, method: str | None, options: list[str], rows: pl.DataFrame, *, each: bool = False
    ) -> Explainer:
        """Return the explainer that is asked for, or one that suits; with `each`, only one that explains each row by itself.

        Raises:
            InputError: if it does not fit; the sentence names those that do.
        """
        if method is not None and method not in names(SECTION):
            raise InputError(
                say(
                    "there is no explainer '{method}'; explainers are {known}{hint}",
                    method=method,
                    known=names(SECTION),
                    hint=did_you_mean(method, names(SECTION)),
                )
            )
        trial = self._trial(rows)
        if method is None:
            method = default(trial)
        explainer = cast(Explainer, options_from(lookup(SECTION, method), options, f"explainer {method}"))
        why = refusal(explainer, trial)
        if why is None and each and explainer.scope == "set":
            why = say("it looks at the rows together and explains none by itself; luban.explain asks it")
        if why is not None:
            fitting = [
                name
                for name in names(SECTION)
                if name != method
                and _fits(name, trial)
                and not (each and lookup(SECTION, name).scope == "set")
            ]
            raise InputError(
                say(
                    "explainer '{method}' does not fit this artefact: {why}; those that fit are {fitting}",
                    method=method,
                    why=why,
                    fitting=[*fitting] or say("none"),
                )
            )
        return explainer

    def _trial(self, rows: pl.DataFrame) -> Case:
        """Return a case of the first row that can be read, to ask explainers about."""
        if self.written or self.hidden:
            problem: DataError | None = None
            for i in range(min(len(rows), AT_ONCE)):
                row = rows[i : i + 1]
                try:
                    if self.hidden:
                        return hidden_cases(self.predictor, row, i, self.target_text, self.seed)[0]
                    return written_case(self.predictor, row, i, 1, self.target_text, self.seed).part(0, 1)
                except DataError as error:
                    problem = problem or error
            raise problem or DataError("there is no row to explain")
        case = self.case(rows[:1], 0)
        for i in range(1, min(len(rows), AT_ONCE)):
            if len(case):
                break
            case = self.case(rows[i : i + 1], i)
        require_rows(case)
        return case

    # --- row by row ------------------------------------------------------------------------------------------

    def rows(self, explainer: Explainer, chunks: Iterator[pl.DataFrame], limit: int) -> Iterator[Explanation]:
        """Yield an explanation for each row that can be read, in order."""
        seen = 0
        at_once = 1 if self.written or self.hidden else AT_ONCE
        for chunk in chunks:
            for start in range(0, len(chunk), at_once):
                left = limit - seen if limit else at_once
                if left <= 0:
                    self.notes.append(
                        say(
                            "the first {n:,} rows are explained, and there are more; --limit 0 explains all of them",
                            n=limit,
                        )
                    )
                    return
                part = chunk[start : start + min(at_once, left)]
                with quickly(self.predictor):
                    found = self._some(explainer, part, seen)
                for one in found:
                    self.count += 1
                    self._remember(one)
                    yield one
                seen += len(part)
                self.console.stage(say("explaining"), seen, limit or None)
        self.console.end_stage()

    def _some(self, explainer: Explainer, rows: pl.DataFrame, first: int) -> list[Explanation]:
        if self.written or self.hidden:
            return self._of_tokens(explainer, rows, first)
        try:
            case = self.case(rows, first)
        except pl.exceptions.PolarsError as error:
            # A cell of a kind that no processor foresees: its row alone is at fault.
            if len(rows) == 1:
                self.unreadable[first] = say(
                    "a cell cannot be read: {error}", error=" ".join(str(error).split())[:120]
                )
                return []
            alone = (self._some(explainer, rows[i : i + 1], first + i) for i in range(len(rows)))
            return [one for found in alone for one in found]
        self.unreadable |= case.unreadable
        if not len(case):
            return []
        found = explainer.explain(case)
        if self.quality:
            measure(case, explainer, found)
        show_images(case, found)
        return found

    def _of_tokens(self, explainer: Explainer, rows: pl.DataFrame, number: int) -> list[Explanation]:
        try:
            if self.hidden:
                hidden = hidden_cases(self.predictor, rows, number, self.target_text, self.seed)
            else:
                case = written_case(
                    self.predictor, rows, number, self.max_tokens, self.target_text, self.seed
                )
        except DataError as error:
            self.unreadable[number] = str(error)
            return []
        if self.hidden:
            return [explain_hidden(hidden, explainer, quality=self.quality)]
        return [explain_written(case, explainer, quality=self.quality)]

    def _remember(self, one: Explanation) -> None:
        error = one.quality.get("completeness_error", 0.0)
        if error > MANY:
            one.notes.append(
                say(
                    "the values miss the difference of the scores by {error:.0%}; more steps, or samples, come nearer",
                    error=error,
                )
            )
        for key, value in one.quality.items():
            if np.isfinite(value):
                self._qualities.setdefault(key, []).append(value)
        self._shown_target = one.target
        for column, part in one.parts.items():
            self._totals.setdefault(column, []).append(part.total)

    def summary(self) -> dict[str, Any]:
        """Return what is said of all rows together."""
        return {
            "target": self._shown_target,
            "rows": self.count,
            **({"tables": {"columns": self._columns()}} if self.count > 1 and len(self._totals) > 1 else {}),
            "quality": {key: float(np.mean(values)) for key, values in self._qualities.items()},
            "unreadable": {str(row): why for row, why in self.unreadable.items()},
            "notes": self.notes,
        }

    def _columns(self) -> list[dict[str, Any]]:
        """Return how much each column mattered over all rows, most first: the mean of what it contributed, without its sign."""
        sizes = {column: float(np.abs(each).sum()) / self.count for column, each in self._totals.items()}
        whole = sum(sizes.values())
        lines = [
            {
                "column": column,
                "importance": size,
                "share": size / whole if whole else 0.0,
                "mean": float(np.sum(self._totals[column])) / self.count,
            }
            for column, size in sizes.items()
        ]
        return sorted(lines, key=lambda line: -cast(float, line["importance"]))

    # --- the set ---------------------------------------------------------------------------------------------

    def survey(self, explainer: Explainer, chunks: Iterator[pl.DataFrame], limit: int) -> dict[str, Any]:
        """Return what an explainer finds about a sample of the rows."""
        sample = Sample.draw(chunks, limit or None, lambda rows: self.console.stage(say("reading"), rows))
        self.console.end_stage()
        self.console.say(say("looking at {sample}", sample=sample))
        with quickly(self.predictor):
            case = self.case(sample.rows, 0)
            require_rows(case)
            found: Survey = explainer.survey(case)
        if len(sample.rows) < sample.total:
            found.notes.append(str(sample))
        return {
            "target": found.target,
            "rows": found.rows,
            "of": sample.total,
            "survey": found.to_json(),
            "quality": dict(found.quality),
            "unreadable": {str(sample.places[i]): why for i, why in case.unreadable.items()},
            "notes": found.notes,
        }


def default(case: Case) -> str:
    """Return the type of an explainer that suits a case: of what is written gradient × input, since each token has its own
    gradients; of a table Shapley values; else integrated gradients, which work for texts, images and several inputs, and whose sum
    is checked."""
    wanted = ["integrated_gradients", "occlusion"]
    if case.writes:
        wanted = ["gradient_x_input", "occlusion"]
    elif {*case.forms.values()} <= {"number", "category", "set", "vector"}:
        wanted = ["shapley", *wanted]
    elif not case.target:
        wanted = ["embeddings"]
    return next((name for name in wanted if name in names(SECTION) and _fits(name, case)), wanted[0])


def refusal(explainer: Explainer, case: Case) -> str | None:
    """Return why an explainer does not fit a case; None if it does."""
    if isinstance(case, TokenCase) and not explainer.of_written:
        if case.writes:
            return say("the model writes texts, and it explains no tokens that are written")
        return say("the model fills in hidden words, and it explains none")
    return explainer.refusal(case)


def _fits(name: str, case: Case) -> bool:
    try:
        return refusal(lookup(SECTION, name)(), case) is None
    except (LubanError, ValueError):  # it has an option that it cannot do without, or a package is missing
        return False


# --- the artefact's own rows ------------------------------------------------------------------------------


def training_of(artefact: Artefact, predictor: Predictor) -> Callable[[], Iterator[pl.DataFrame]] | None:
    """Return what yields the training rows of an artefact, cleaned; None where they are not to be had."""
    found = Origin.find(artefact.recipe, artefact.lineage, predictor.pipeline)
    if isinstance(found, Unknown):
        return None

    def chunks() -> Iterator[pl.DataFrame]:
        for chunk in found.split("train"):
            cleaned = predictor.clean(chunk)
            yield cleaned.filter(pl.Series(predictor.pipeline.readable(cleaned, targets=False)))

    return chunks


def background_of(
    training: Callable[[], Iterator[pl.DataFrame]] | None, instead: Callable[[], pl.DataFrame | None]
) -> Callable[[], Background | None]:
    """Return what draws rows that stand for the data, once, when an explainer first asks for them.

    They are drawn by lot from the first `READ` training rows, which are all of most files: a file is often sorted by class, so its
    first rows would not do.

    Args:
        training: yields the training rows, cleaned; None where they are not to be had.
        instead: returns other rows, where these cannot be read.
    """

    def some(chunks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        left = READ
        for chunk in chunks:
            yield chunk.head(left)
            left -= len(chunk)
            if left <= 0:
                return

    @cache
    def draw() -> Background | None:
        if training is not None:
            try:
                drawn = Sample.draw(some(training()), BACKGROUND)
            except (LubanError, OSError):
                drawn = None
            if drawn is not None and drawn.total:
                what = (
                    say("the first {n:,} training rows", n=READ)
                    if drawn.total == READ
                    else say("{n:,} training rows", n=drawn.total)
                )
                return Background(drawn.rows, what)
        rows = instead()
        return None if rows is None else Background(rows, say("the sample that the artefact keeps"))

    return draw


def _sampled(artefact: Artefact, predictor: Predictor) -> pl.DataFrame | None:
    """Return the artefact's frozen rows, which stand for the data where the training rows are not to be had."""
    rows = [{**dict.fromkeys(predictor.pipeline.given), **one["row"]} for one in artefact.sample]
    if len(rows) < 2 or predictor.speaker is not None:
        return None
    try:
        cleaned = predictor.clean(frame_of(rows))
        return cleaned.filter(pl.Series(predictor.pipeline.readable(cleaned, targets=False)))
    except (LubanError, pl.exceptions.PolarsError):  # a stranger's sample may hold anything
        return None


# --- what is written --------------------------------------------------------------------------------------


def show_images(case: Case, explanations: Sequence[Explanation]) -> None:
    """Give each part of an image the picture that the model saw, as a data URL, so that it can be drawn from the data alone."""
    from PIL import Image as Pillow

    row_of = {number: row for row, number in enumerate(case.numbers)}
    for one in explanations:
        for column, part in one.parts.items():
            if case.forms.get(column) != "image" or part.shown is not None:
                continue
            pixels = case.encoded[next(iter(case.inputs[column]))]
            assert not isinstance(pixels, Flat)
            own = pixels[row_of[one.row]]
            file = io.BytesIO()
            Pillow.fromarray(own[..., 0] if own.shape[2] == 1 else own).save(file, "PNG")
            part.shown = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _write_rows(
    target: Path, about: dict[str, Any], found: Iterator[Explanation], run: _Run, force: bool, lang: str
) -> None:
    """Write explanations as they come: lines of JSON, pictures, and a page."""
    with files.new_folder(target, replace=force) as folder:
        page = _render.Page(folder, about, lang)
        with (folder / "explanations.jsonl").open("w", encoding="utf-8") as lines:
            for one in found:
                plain = one.to_json()
                lines.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")
                page.add(plain)
        summary = run.summary()
        page.close(summary)
        write_json(folder / "summary.json", {**about, **summary})


def _write_survey(
    target: Path,
    about: dict[str, Any],
    explainer: Explainer,
    survey: Callable[[Explainer], dict[str, Any]],
    force: bool,
    lang: str,
) -> dict[str, Any]:
    """Make a survey, whose own files lie beside the page, and write the page."""
    with files.new_folder(target, replace=force) as folder:
        result = about | survey(explainer.into(folder))
        page = _render.Page(folder, result, lang)
        page.survey(result["survey"])
        page.close({key: result[key] for key in ("target", "rows", "quality", "unreadable", "notes")})
        write_json(folder / "summary.json", result)
    return result
