"""The verb `compare`: two artefacts side by side."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import polars as pl

from luban.artefact import Artefact
from luban.console import Console
from luban.data.contracts import Array
from luban.errors import ArtefactError, DataError, InputError
from luban.evaluation.language import OF_TOKENS, LanguageCollector, compare_texts
from luban.evaluation.metrics import Task, compare_paired
from luban.evaluation.run import threshold_of
from luban.objectives.masked_lm import MaskedLM
from luban.predict import Predictor, of_artefact
from luban.recipe import read_yaml
from luban.reporting._comparing import page_of_two
from luban.reporting._words import Words
from luban.reporting.baselines import weights_of
from luban.reporting.gather import Options, gather
from luban.sentences import say
from luban.verbs.evaluate import trained_on
from luban.verbs.report import audits_of, is_private, require_page, write
from luban.verbs.rows import read_again

__all__ = ["compare"]

_PART = 256  # rows scored at a time
_TIMED_ROWS = 256
_TIMED_TEXTS = 32  # measured by a language model
_TIMED_WRITTEN = 4  # written, a token after the other
_RUNS = 5
_NO_MASKING = {"type", "column", "weight"}  # options of masked_lm that do not decide which tokens are hidden

_Read = Callable[[list[str]], Iterator[pl.DataFrame]]


def compare(
    a: str | Path,
    b: str | Path,
    data: str | None = None,
    *,
    output: str | Path | None = None,
    lang: str = "en",
    format: str | None = None,
    baselines: bool = True,
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Put two artefacts side by side: size, speed on the same rows, and quality.

    With `data`, both score the same rows and the differences get a paired bootstrap interval (and, for classes, McNemar's
    test): far sharper than two separate intervals. Without it, what each artefact recorded is shown, and said to be of
    different rows where it is. Language models are compared by what they pay for the same texts; where they cut these into tokens
    otherwise, only bits per byte can be compared, and that is said. Masked ones that hide tokens otherwise are both asked for those
    that the first hides.

    Args:
        a, b: artefacts.
        data: rows with inputs and targets of both.
        output: a file for the page of both (``.html``, ``.md`` or ``.json``).
        lang: ``en`` or ``zh``; of the page.
        format: ``html``, ``md`` or ``json``; by default as the ending of `output` says.
        baselines: whether simple models are trained for the page, to stand beside both.
        device: ``cpu`` or ``cuda``.
        console: who is told what is being done.

    Returns:
        ``a`` and ``b`` (parameters, size, speed, metrics), ``targets`` that both predict (or the text that both read), ``warnings``,
        ``incomparable`` (metric → why it says nothing of the two beside each other), ``curves_apart`` (why the losses that were
        recorded in training cannot be compared; None where they can) and, with data, ``rows`` that were scored,
        ``skipped`` (rows that were not, by reason), ``differences`` (b minus a) and ``weighted``: whether these are, as the recipes'
        ``data.weight`` says; McNemar's test counts rows, each once.

    Raises:
        ArtefactError: if the two predict different things.
        DataError: if no row can be scored by both.
    """
    written = require_page(output, format)
    words = Words(lang)
    artefacts = [Artefact.load(a), Artefact.load(b)]
    predictors = [of_artefact(one, device=device) for one in artefacts]
    names = (str(a), str(b))
    shared = _shared(names, predictors)
    sides = [
        _side(name, artefact, predictor)
        for name, artefact, predictor in zip(names, artefacts, predictors, strict=True)
    ]
    apart, curves_apart = _apart(predictors, shared, data), _curves_apart(artefacts, predictors, shared)
    warnings = _warnings(names, artefacts, predictors, shared, data)
    if data is not None and apart is None:
        predictors = _hiding_alike(predictors, shared)
    result: dict[str, Any] = {
        "a": sides[0],
        "b": sides[1],
        "targets": shared.columns,
        "warnings": warnings,
        "incomparable": {}
        if apart is None
        else {f"{text}.{name}": apart for text in shared.texts for name in OF_TOKENS},
        "curves_apart": curves_apart,
    }
    console = console or Console()
    for warning in warnings:
        console.say(say("careful: {what}", what=warning))
    options = Options(examples=0, baselines=baselines, private=any(is_private(one) for one in artefacts))
    pairs = list(zip(artefacts, predictors, strict=True))
    if data is None:
        measured = [one["measured_on"] for one in sides]
        result["same_rows"] = measured[0] is not None and measured[0] == measured[1]
        if output is not None:
            _write(result, pairs, None, "", Path(output), written, words.language, options, console)
        return result
    weighted = artefacts[0].pipeline.weight == artefacts[1].pipeline.weight
    with read_again(data) as read:
        chunks = read(list(dict.fromkeys(c for one in artefacts for c in one.pipeline.inputs)))
        first = next(chunks, None)
        if first is None:
            raise DataError("there is no row to compare on")
        scored = _both(predictors, chain([first], chunks), shared, weighted)
        result |= scored.result(predictors, shared, apart)
        if scored.skipped[_OTHERWISE]:
            warnings.append(
                say(
                    "{n:,} rows are left out, since the two clean the truth of them otherwise",
                    n=scored.skipped[_OTHERWISE],
                )
            )
            console.say(say("careful: {what}", what=warnings[-1]))
        for side, speed in zip(sides, _speeds(predictors, first, shared), strict=True):
            side |= speed
        if output is not None:
            _write(result, pairs, read, data, Path(output), written, words.language, options, console)
    return result


# --- what they have in common -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What both predict.

    Attributes:
        scored: targets that are read off an output, with the same classes.
        written: targets that are texts.
        spoken: the text column of two language models, None for any other.
    """

    scored: list[str]
    written: list[str]
    spoken: str | None = None

    @property
    def texts(self) -> list[str]:
        """Columns whose tokens both predict."""
        return [*self.written, *([self.spoken] if self.spoken is not None else [])]

    @property
    def columns(self) -> list[str]:
        return [*self.scored, *self.texts]


def _shared(names: tuple[str, str], predictors: list[Predictor]) -> _Shared:
    """Return what both predict.

    Raises:
        ArtefactError: if there is nothing.
    """
    a, b = names
    first, second = (one.pipeline for one in predictors)
    scored = [
        name
        for name, p in first.scored.items()
        if name in second.scored
        and (p.type, p.classes()) == (second.scored[name].type, second.scored[name].classes())
    ]
    written = [name for name in first.written if name in second.written]
    if scored or written:
        return _Shared(scored, written)
    speakers = [one.speaker for one in predictors]
    if speakers[0] is not None and speakers[1] is not None:
        if speakers[0].causal != speakers[1].causal:
            causal, masked = names if speakers[0].causal else names[::-1]
            raise ArtefactError(
                f"'{causal}' is a causal language model and '{masked}' a masked one: one pays for every token of a text, the other for those that are hidden, so there is nothing to compare"
            )
        if speakers[0].column != speakers[1].column:
            raise ArtefactError(
                f"'{a}' reads the text '{speakers[0].column}' and '{b}' the text '{speakers[1].column}': they have no text in common, so there is nothing to compare"
            )
        return _Shared([], [], speakers[0].column)
    if not first.targets and not second.targets:
        raise ArtefactError(
            f"neither '{a}' nor '{b}' predicts a column, or both a text's tokens: there is nothing to compare row by row; look at 'luban evaluate' of each"
        )
    raise ArtefactError(
        f"'{a}' predicts {', '.join(first.targets) or 'no column'} and '{b}' predicts {', '.join(second.targets) or 'no column'}: they have no target with the same classes in common, so there is nothing to compare"
    )


def _side(name: str, artefact: Artefact, predictor: Predictor) -> dict[str, Any]:
    size = sum(f.stat().st_size for f in artefact.path.iterdir() if f.is_file())
    return {
        "artefact": name,
        "model": artefact.model.type,
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "megabytes": round(size / 2**20, 3),
        "train_seconds": artefact.lineage.get("cost", {}).get("seconds"),
        "metrics": artefact.metrics.get("metrics", {}),
        "measured_on": artefact.metrics.get("data"),
    }


def _warnings(
    names: tuple[str, str],
    artefacts: list[Artefact],
    predictors: list[Predictor],
    shared: _Shared,
    data: str | None,
) -> list[str]:
    a, b = names
    found: list[str] = []
    if _tokens_differ(predictors, shared):
        found.append(
            say(
                "'{a}' and '{b}' cut texts into tokens otherwise, so their loss and perplexity, which are of a token, cannot be compared; bits per byte can",
                a=a,
                b=b,
            )
            if _causal(predictors[0], shared)
            else say(
                "'{a}' and '{b}' cut texts into tokens otherwise, so their loss and perplexity, which are of a token, cannot be compared, and masked models have nothing else to be compared by, on no rows: tune both for the same task and compare what comes of it, or train both with one tokenizer",
                a=a,
                b=b,
            )
        )
    elif maskings := _maskings(predictors, shared):
        found.append(
            say(
                "'{a}' and '{b}' hide tokens otherwise ({masking_a}; {masking_b}), so what was recorded of each is of other tokens and cannot be compared; give DATA to ask both for the same",
                a=a,
                b=b,
                masking_a=maskings[0],
                masking_b=maskings[1],
            )
            if data is None
            else say(
                "'{a}' and '{b}' hide tokens otherwise ({masking_a}; {masking_b}), so both are asked for those that the first hides",
                a=a,
                b=b,
                masking_a=maskings[0],
                masking_b=maskings[1],
            )
        )
    if data is None:
        return found
    for name, artefact in dict(zip(names, artefacts, strict=True)).items():
        if trained_on(artefact, data):
            found.append(
                say(
                    "'{path}' was trained on rows of this very file, so its figures are flattered; compare on rows that neither has seen",
                    path=name,
                )
            )
    weigh = [one.pipeline.weight for one in artefacts]
    if weigh[0] != weigh[1]:
        # Beside each other stand figures weighted as each artefact says; a difference needs one weight for a row.
        found.append(
            say(
                "'{a}' weighs rows by {weight_a} and '{b}' by {weight_b}, so the paired differences are unweighted",
                a=a,
                b=b,
                weight_a=_column(weigh[0]),
                weight_b=_column(weigh[1]),
            )
        )
    return found


def _tokenizer(predictor: Predictor, shared: _Shared) -> str:
    """Return what cuts the texts that are compared; nothing where none are."""
    if shared.spoken is not None:
        assert predictor.speaker is not None
        return predictor.speaker.text.trained.to_str()
    if shared.written:
        assert predictor.writer is not None
        return predictor.writer.text.trained.to_str()
    return ""


def _tokens_differ(predictors: list[Predictor], shared: _Shared) -> bool:
    return len({_tokenizer(one, shared) for one in predictors}) > 1


def _apart(predictors: list[Predictor], shared: _Shared, data: str | None) -> str | None:
    """Return why the two predict other tokens of the same texts; None where they predict the same."""
    if _tokens_differ(predictors, shared):
        return say("the two cut texts into tokens otherwise")
    if data is None and _maskings(predictors, shared):
        return say("the two were asked for other tokens")
    return None


def _curves_apart(artefacts: list[Artefact], predictors: list[Predictor], shared: _Shared) -> str | None:
    """Return why the losses that the two recorded while they were trained are of other things; None where they are of the same.

    What both are asked for on given rows plays no part: training asked each for what its own recipe says.
    """
    apart = _apart(predictors, shared, None)
    if apart is not None:
        return apart
    objectives = [_objectives(one) for one in artefacts]
    if shared.texts:  # of tokens, options but for the masking do not change what is measured
        objectives = [[{"type": part.get("type")} for part in one] for one in objectives]
    if all(objectives) and objectives[0] != objectives[1]:
        return say("the two were trained by other losses")
    return None


def _objectives(artefact: Artefact) -> list[dict[str, Any]]:
    """Return what an artefact was trained by, as its recipe has it; nothing where it has none that can be read."""
    try:
        data = read_yaml(artefact.recipe, "recipe.yaml").data
    except InputError:
        return []
    found = data.get("objective") if isinstance(data, dict) else None
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _masked(predictor: Predictor) -> MaskedLM:
    assert predictor.speaker is not None
    objective = predictor.speaker.objective
    assert isinstance(objective, MaskedLM)
    return objective


def _maskings(predictors: list[Predictor], shared: _Shared) -> list[str]:
    """Return the options by which the two hide other tokens of the same text, of each as a recipe has them; nothing where they do not."""
    if _causal(predictors[0], shared):
        return []
    one, other = (_masked(predictor).model_dump(exclude=_NO_MASKING) for predictor in predictors)
    differing = [name for name in one if one[name] != other[name]]
    said = [", ".join(f"{name} {json.dumps(own[name])}" for name in differing) for own in (one, other)]
    return said if differing else []


def _hiding_alike(predictors: list[Predictor], shared: _Shared) -> list[Predictor]:
    """Return both, hiding what the first hides, in windows as long as the shorter of both; as they are where they do so already."""
    if not _maskings(predictors, shared):
        return predictors
    lengths = [length for one in predictors if (length := _masked(one).length) is not None]
    common = _masked(predictors[0]).model_copy(update={"length": min(lengths)})
    return [replace(one, objective=common) for one in predictors]


def _causal(predictor: Predictor, shared: _Shared) -> bool:
    return shared.spoken is None or (predictor.speaker is not None and predictor.speaker.causal)


def _column(name: str | None) -> str:
    return say("no column") if name is None else say("'{column}'", column=name)


# --- both on the same rows --------------------------------------------------------------------------------

_UNKNOWN, _UNREADABLE = "the target is missing or of an unknown class", "an input cannot be read"
_OTHERWISE = "the two clean the truth otherwise"


@dataclass
class _Scored:
    """What both make of the same rows.

    Attributes:
        truth: target → what is true, of all rows.
        scores: of each model, target → what it says.
        texts: of each model, column → how probable it holds the texts.
        weights: of the rows; empty where all weigh 1.
        rows: how many were scored.
        skipped: rows that were not, by reason.
    """

    truth: dict[str, list[Array]]
    scores: list[dict[str, list[Array]]]
    texts: list[dict[str, LanguageCollector]]
    weights: list[Array] = field(default_factory=list)
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def result(self, predictors: list[Predictor], shared: _Shared, apart: str | None) -> dict[str, Any]:
        """Return the differences, and of how many rows they are.

        Args:
            predictors: both.
            shared: what they have in common.
            apart: why they predict other tokens of the same texts, if they do.

        Raises:
            DataError: if there is no row that counts.
        """
        if not self.rows:
            raise DataError(
                "no row can be scored by both artefacts"
                + ("".join(f"; {why}: {n:,} rows" for why, n in self.skipped.items() if n))
            )
        weights = np.concatenate(self.weights) if self.weights else None
        if weights is not None and not weights.any():
            raise DataError("the rows that both can score weigh nothing; give rows whose weight is above 0")
        differences: dict[str, Any] = {}
        for name in shared.scored:
            own = [one.pipeline.targets[name] for one in predictors]
            compared = compare_paired(
                cast(Task, own[0].task),
                np.concatenate(self.truth[name]),
                np.concatenate(self.scores[0][name]),
                np.concatenate(self.scores[1][name]),
                weights,
                classes=own[0].classes() or None,
                threshold=(threshold_of(own[0]), threshold_of(own[1])),
            )
            differences[name] = asdict(compared)
        for name in self.texts[0]:
            differences[name] = asdict(compare_texts(self.texts[0][name], self.texts[1][name], apart=apart))
        return {
            "rows": self.rows,
            "skipped": {why: n for why, n in self.skipped.items() if n},
            "weighted": weights is not None,
            "differences": differences,
        }


def _both(
    predictors: list[Predictor], chunks: Iterator[pl.DataFrame], shared: _Shared, weighted: bool
) -> _Scored:
    """Score the same rows with both: those that both can read and that mean the same to both once each has cleaned them."""
    causal = _causal(predictors[0], shared)
    found = _Scored(
        {name: [] for name in shared.scored},
        [{name: [] for name in shared.scored} for _ in predictors],
        [{name: LanguageCollector(causal) for name in shared.texts} for _ in predictors],
    )
    for chunk in chunks:
        for name in (*shared.scored, *shared.written):
            if name not in chunk.columns:
                raise DataError(
                    f"there is no column '{name}', the target to compare by; columns are {', '.join(chunk.columns)}"
                )
        for start in range(0, len(chunk), _PART):
            _add(found, predictors, chunk.slice(start, _PART), shared, weighted)
    return found


def _add(
    found: _Scored, predictors: list[Predictor], rows: pl.DataFrame, shared: _Shared, weighted: bool
) -> None:
    """Score some rows with both."""
    cleaned = [one.clean(rows) for one in predictors]
    known, readable = (np.ones(len(rows), dtype=bool) for _ in range(2))
    for predictor, own in zip(predictors, cleaned, strict=True):
        for name in (*shared.scored, *shared.written):
            known &= predictor.pipeline.targets[name].known(own[name]).to_numpy()
        readable &= predictor.pipeline.readable(own, targets=False)
        if shared.spoken is not None:
            assert predictor.speaker is not None
            readable &= ~predictor.speaker.text.invalid(own[shared.spoken]).to_numpy()
    both = known & readable
    alike = np.ones(len(rows), dtype=bool)
    alike[both] = _alike(predictors, [own.filter(pl.Series(both)) for own in cleaned], shared)
    found.skipped[_UNKNOWN] += int((~known).sum())
    found.skipped[_UNREADABLE] += int((known & ~readable).sum())
    found.skipped[_OTHERWISE] += int((both & ~alike).sum())
    kept = both & alike
    found.rows += int(kept.sum())
    if not kept.any():
        return
    parts = [own.filter(pl.Series(kept)) for own in cleaned]
    weights = weights_of(predictors[0].pipeline, parts[0]) if weighted else None
    if weights is not None:
        found.weights.append(weights)
    for name in shared.scored:
        found.truth[name].append(_truth(predictors[0], parts[0], name))
    for predictor, part, scores, texts in zip(predictors, parts, found.scores, found.texts, strict=True):
        if shared.scored:
            outputs, _ = predictor.outputs_of_cleaned(part)
            for name in shared.scored:
                processor = predictor.pipeline.targets[name]
                scores[name].append(processor.scores(outputs[f"{name}.{processor.output}"]))
        if shared.written:
            writer = predictor.writer
            assert writer is not None
            inputs, _ = predictor.pipeline.encode(part, targets=False)
            given = writer.text.encode_measured(part[writer.column])
            texts[writer.column].update(writer.score(inputs, *given), weights)
        if shared.spoken is not None:
            assert predictor.speaker is not None
            texts[shared.spoken].update(predictor.speaker.measure(part[shared.spoken]), weights)


def _alike(predictors: list[Predictor], cleaned: list[pl.DataFrame], shared: _Shared) -> Array:
    """Return of which rows the truth is the same to both, each of which has cleaned them, boolean, (n,)."""
    alike = np.ones(len(cleaned[0]), dtype=bool)
    for name in shared.scored:
        one, other = (_truth(p, own, name) for p, own in zip(predictors, cleaned, strict=True))
        if predictors[0].pipeline.targets[name].task == "regression":
            # Each undoes a scaling of its own.
            same = np.isclose(one, other, rtol=1e-4, atol=1e-6 * float(np.abs(one).max(initial=0.0)))
        else:
            same = one == other
        alike &= same if same.ndim == 1 else same.all(1)
    for name in shared.texts:
        cells = zip(*(own[name].to_list() for own in cleaned), strict=True)
        alike &= np.array([x == y for x, y in cells], dtype=bool)
    return alike


def _truth(predictor: Predictor, rows: pl.DataFrame, name: str) -> Array:
    processor = predictor.pipeline.targets[name]
    (encoded,) = processor.encode_target(rows[name]).values()
    return processor.truth(encoded)


# --- speed, and the page ----------------------------------------------------------------------------------


def _speeds(predictors: list[Predictor], rows: pl.DataFrame, shared: _Shared) -> list[dict[str, float]]:
    """Return rows a second, and where there are tokens these: measured in turns, so that both meet the same machine.

    Tokens are those of texts whose probability is measured (of a masked model they are not counted: it is asked for few of them), or
    those that are written.
    """
    work = [_work(predictor, rows, shared) for predictor in predictors]
    times: list[list[float]] = [[] for _ in work]
    done: list[tuple[int, int]] = [(0, 0) for _ in work]
    for _ in range(_RUNS):
        for i, once in enumerate(work):
            started = time.perf_counter()
            done[i] = once()
            times[i].append(time.perf_counter() - started)
    found = []
    for (count, tokens), own in zip(done, times, strict=True):
        speed = {"rows_per_second": round(count / median(own), 1)}
        if tokens:
            speed["tokens_per_second"] = round(tokens / median(own), 1)
        found.append(speed)
    return found


def _work(predictor: Predictor, rows: pl.DataFrame, shared: _Shared) -> Callable[[], tuple[int, int]]:
    """Return what is timed; it returns rows and tokens."""
    if shared.spoken is not None:
        speaker = predictor.speaker
        assert speaker is not None
        texts = predictor.clean(rows)[shared.spoken]
        texts = texts.filter(~speaker.text.invalid(texts)).head(_TIMED_TEXTS)

        def measured() -> tuple[int, int]:
            scores = speaker.measure(texts)
            return len(texts), sum(one.tokens for one in scores) if speaker.causal else 0

        return measured
    part = rows.head(_TIMED_WRITTEN if shared.written else _TIMED_ROWS)

    def predicted() -> tuple[int, int]:
        made = predictor.predict(part)
        return len(part), sum(one.get(f"{name}.tokens", 0) for one in made for name in shared.written)

    return predicted


def _write(
    result: dict[str, Any],
    pairs: list[tuple[Artefact, Predictor]],
    read: _Read | None,
    data: str,
    output: Path,
    format: str,
    lang: str,
    options: Options,
    console: Console,
) -> None:
    """Write the page of both."""
    reports = [
        gather(
            artefact,
            predictor,
            chunks=None if read is None else read(list(predictor.pipeline.inputs)),
            data=data,
            audits=audits_of((), artefact.path),
            options=options,
            console=console,
        )
        for artefact, predictor in pairs
    ]
    content = {"compared": result, "a": reports[0], "b": reports[1]}
    write(content, output, format, lambda: page_of_two(reports[0], reports[1], result, lang))
