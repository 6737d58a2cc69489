"""The command line: thin. It reads arguments, calls the verb of the Python API, and prints.

Results go to stdout and everything else to stderr. With ``--json`` stdout holds one JSON object and nothing else. An error is
one sentence on stderr (an object with ``error`` as well, with ``--json``) and an exit code: 0 good, 1 a budget or gate not met,
2 the input is wrong, 3 a bug or a fault of the machine, 130 interrupted.

Verbs are imported when they are called, so that ``luban --help`` needs neither torch nor polars.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luban._version import __version__
from luban.errors import InputError, LubanError
from luban.files import finite
from luban.imports import own_process, uncollected
from luban.sentences import LANGUAGES, kept, named, say, translate

if TYPE_CHECKING:
    from luban.console import Console

__all__ = ["app", "main"]

app = typer.Typer(
    name="luban",
    help="A workshop for large models: one recipe, one artefact, one command per verb.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
datasets_app = typer.Typer(
    help="Open data and small models, through the package index you already have.",
    rich_markup_mode=None,
)
app.add_typer(datasets_app, name="datasets")

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
ArtefactDir = Annotated[str, typer.Argument(metavar="ARTEFACT", help="The directory of an artefact.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.epochs=3.")
]
Output = Annotated[str | None, typer.Option("-o", "--output", help="Where the result goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Lang = Annotated[str, typer.Option(help="Language of the page: en or zh.")]
PageFormat = Annotated[
    str | None, typer.Option(help="html, md or json; by default what the ending of -o says.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Weights = Annotated[
    str,
    typer.Option(
        help="stored, or int8: a causal language model rounded as it is loaded, several times as fast on a CPU."
    ),
]


def _console(language: str = "en") -> Console:
    from luban.console import Terminal

    return Terminal(language)


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")


def _json(data: Any) -> None:
    _out(json.dumps(data, ensure_ascii=False, default=str, allow_nan=False))


# --- verbs ------------------------------------------------------------------------------------------------


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="A data file, a folder, a glob, a URL, or dataset:NAME.")],
    target: Annotated[
        list[str] | None, typer.Option("-t", "--target", help="A column to predict; may be repeated.")
    ] = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Look at data and write a commented recipe for it."""
    from luban.verbs.init import init as verb

    report = verb(data, targets=target or None, output=output, force=force)
    if as_json:
        _json(finite(report.to_json()))
        return
    console = _console()
    for problem in report.problems:
        console.say(str(problem))
    _out(str(report.path) if report.path else report.recipe.rstrip())
    if report.path:
        console.say(f"next: luban check {report.path}")


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Also run the learning-rate range test.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Resolve a recipe, try the worst batch, estimate time and memory; writes nothing."""
    with uncollected():
        from luban.console import duration
        from luban.verbs.check import check as verb

    console = _console()
    result = verb(recipe, overrides or [], find_lr=find_lr, console=console)
    if as_json:
        _json(finite(result))
        return
    rows = result["rows"]
    _out(result["recipe"].rstrip())
    for sentence in result["derived"]:
        console.say(f"derived: {sentence}")
    for what, n in result["data"]["counts"].items():
        console.say(f"data: {what}: {n:,}")
    for notes in result["data"]["notes"].values():
        for note in notes:
            console.say(f"data: {note}")
    worst = result["worst_batch"]
    console.say(
        f"rows: {rows['train']:,} to train, {rows['validation']:,} to choose by, {rows['test']:,} to report on"
    )
    console.say(
        f"model: {result['model']}, {result['parameters']:,} parameters, {result['trainable']:,} of them trained"
    )
    tokens = f" and {worst['tokens']:,} tokens" if worst["tokens"] else ""
    console.say(
        f"worst batch: {worst['rows']:,} rows{tokens}: fits; {result['peak_memory_mb']:,.0f} MB so far"
    )
    console.say(
        f"time: {result['updates']:,} updates of {result['seconds_per_update'] * 1000:.1f} ms, about {duration(result['seconds'])} in all"
    )
    if find_lr:
        console.say(
            f"learning rate: {result['learning_rate']['suggested']:g} (a tenth of where the loss is lowest); set train.optimizer.learning_rate"
        )


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Output = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew instead of going on with an interrupted run.")
    ] = False,
    force: Force = False,
    report: Annotated[
        str | None, typer.Option(help="A file for the page of 'luban report', written when all is done.")
    ] = None,
    lang: Lang = "en",
    as_json: Json = False,
) -> None:
    """Train what a recipe describes; go on where an interrupted run stopped."""
    with uncollected():
        from luban.verbs.train import train as verb

    console = _console()
    try:
        result = verb(
            recipe,
            overrides or [],
            output=output,
            resume=not fresh,
            force=force,
            report=report,
            lang=lang,
            console=console,
        )
    except KeyboardInterrupt as error:
        from luban.training.engine import Interrupted

        if isinstance(error, Interrupted):
            again = shlex.join(
                [
                    "luban",
                    "train",
                    recipe,
                    *(overrides or []),
                    *(["-o", output] if output else []),
                    *(["--force"] if force else []),
                    *(["--report", report] if report else []),
                    *(["--lang", lang] if lang != "en" else []),
                ]
            )
            console.say(f"stopped; a checkpoint is saved. Go on with: {again}")
        raise
    if as_json:
        _json(finite(result))
        if not result.get("passed", True):
            raise typer.Exit(1)
        return
    if result.get("stopped"):
        console.say(f"ended early: {result['stopped']}")
    _show_metrics(console, result["metrics"], result["measured_on"])
    console.say(f"{result['seconds']:,.1f} s, {result['peak_memory_mb']:,.0f} MB at most")
    _out(result["artefact"])
    console.say(
        f"model card: {result['artefact']}/README.md"
        if "card" in result
        else f"folds: {', '.join(result['folds'])}"
    )
    if report is not None:
        console.say(f"report: {report}")
    _show_gates(result.get("gates", []))
    if not result.get("passed", True):
        raise typer.Exit(1)


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Hugging Face directory, or a .gguf file.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Where the artefact goes.")],
    column: Annotated[
        str | None, typer.Option(help="Name of the text column; messages or text if left out.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Name of what is predicted or written; label or written if left out.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(help="How a model without a head makes one vector of a text: first, mean, last or max."),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--plain",
            help="Answer conversations, as by default where there is a chat template, or continue texts.",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make an artefact of somebody else's model."""
    from luban import import_model as verb

    console = _console()
    result = verb(
        source, output, column=column, target=target, pool=pool, chat=chat, force=force, console=console
    )
    if as_json:
        _json(result)
        return
    console.say(
        f"{result['model']}, {result['parameters']:,} parameters, for {result['task'].replace('_', ' ')}"
    )
    _out(result["artefact"])


@app.command()
def export(
    artefact: ArtefactDir,
    output: Annotated[str, typer.Option("-o", "--output", help="The directory to write.")],
    format: Annotated[str, typer.Option(help="hf: what transformers loads; peft: a LoRA adapter.")] = "hf",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write another runtime's files, checked against the artefact's own sample."""
    from luban import export as verb

    console = _console()
    result = verb(artefact, output, format=format, force=force, console=console)
    if as_json:
        _json(finite(result))
        return
    if result.get("drift") is not None:
        console.say(f"the same answers to {result['drift']:.1e} on the artefact's sample")
    _out(result["output"])


@app.command()
def predict(
    artefact: ArtefactDir,
    data: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A file, '-' for JSON lines on stdin, a JSON row, or the value of the only input.",
        ),
    ],
    generation: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="For a language model: max_tokens=50 temperature=0.7 ..."
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option("-c", "--candidate", help="For a language model: an answer to choose from; repeat it."),
    ] = None,
    per_token: Annotated[
        bool,
        typer.Option(
            "--per-token",
            help="Compare answers by the mean of their tokens, so that long ones have a chance.",
        ),
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="For a language model: show the text on stderr as it comes.")
    ] = False,
    output: Output = None,
    device: Device = "cpu",
    weights: Weights = "stored",
    as_json: Json = False,
) -> None:
    """Predict rows, one JSON object a line."""
    from luban import files
    from luban.verbs.predict import predict as verb

    if candidate and (generation or stream):
        raise InputError(
            f"an answer is chosen from candidates and nothing is generated, so {'options of generation' if generation else '--stream'} "
            "would do nothing: remove it, or the candidates"
        )

    def show(piece: Any) -> None:
        sys.stderr.write(piece.text + ("\n" if piece.finish_reason else ""))
        sys.stderr.flush()

    predictions = verb(
        artefact,
        data,
        generation or (),
        candidates=candidate or (),
        per_token=per_token,
        device=device,
        weights=weights,
        on_piece=show if stream else None,
    )
    if as_json and output is None:
        _json({"artefact": artefact, "predictions": [finite(one) for one in predictions]})
        return
    if output is None:
        for one in predictions:
            _out(json.dumps(finite(one), ensure_ascii=False))
        return
    target = Path(output)
    if target.is_dir():
        raise InputError(f"'{output}' is a folder; name a file with -o")
    count = 0
    with files.new_file(target) as beside, beside.open("w", encoding="utf-8") as file:
        for one in predictions:
            file.write(json.dumps(finite(one), ensure_ascii=False) + "\n")
            count += 1
    if as_json:
        _json({"artefact": artefact, "output": output, "rows": count})
    else:
        _console().say(f"{count:,} predictions in {output}")


@app.command()
def evaluate(
    artefact: ArtefactDir,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows with inputs and targets.")],
    split: Annotated[
        str | None,
        typer.Option(help="Only rows that were train, validation or test when the artefact was trained."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="A column whose values get figures of their own; may be repeated."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap resamples behind the intervals.")] = 1000,
    device: Device = "cpu",
    weights: Weights = "stored",
    as_json: Json = False,
) -> None:
    """Measure an artefact, with 95 % intervals, per class and per slice."""
    with uncollected():
        from luban.verbs.evaluate import evaluate as verb

    console = _console()
    result = verb(
        artefact,
        data,
        split=split,
        by=by or [],
        resamples=resamples,
        device=device,
        weights=weights,
        console=console,
    )
    if as_json:
        _json(finite(result))
        return
    _show_metrics(None, result["metrics"], f"{result['rows']:,} rows")
    for reason, n in result["skipped"].items():
        console.say(f"not scored: {reason}: {n:,}")
    for column, values in result["slices"].items():
        for value, part in values.items():
            shown = "  ".join(
                f"{name} {m['value']:.4f}"
                for name, m in list(part["metrics"].items())[:4]
                if m["value"] is not None
            )
            _out(f"{column}={value}  {part['rows']:,} rows  {shown}")


@app.command()
def audit(
    artefact: ArtefactDir,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Rows with inputs and targets; of the training file the test rows."
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[AUDIT.KEY=VALUE]...", help="Options, such as fairness.min_rows=100."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="An audit, or a family: fairness, robustness, privacy, data, ...; may be repeated."
        ),
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="A column of groups; may be repeated.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Only rows that were train, validation or test when the artefact was trained."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Rows to look for drift from, instead of the training rows.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Rows looked at, drawn by lot.")] = 20_000,
    fail_on: Annotated[
        str | None, typer.Option(help="high, medium or low: exit code 1 if there is such a finding.")
    ] = None,
    output: Output = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Do anew what an interrupted audit has done.")
    ] = False,
    lang: Annotated[str, typer.Option(help="Language of what is found: en or zh.")] = "en",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Look for faults: unfairness, brittleness, leaks, wrong labels, drift, false confidence."""
    with uncollected():
        from luban.reporting._words import Words
        from luban.verbs.audit import audit as verb

    words = Words(lang)
    console = _console(lang)
    result = verb(
        artefact,
        data,
        options or [],
        only=only or [],
        by=by or [],
        split=split,
        against=against,
        limit=limit,
        fail_on=fail_on,
        output=output,
        fresh=fresh,
        device=device,
        console=console,
    )
    if as_json:
        _json(finite(kept(result)))
    else:

        def told(name: str, what: str) -> str:
            return words.sentence(say("{step}: {what}", step=name, what=what))

        audits = {name: named(name, lang, "audits") for name in (*result["audits"], *result["left_out"])}
        for one in result["audits"].values():
            for note in one["notes"]:
                console.say(told(audits[one["audit"]], note))
        for name, reason in result["left_out"].items():
            what = words("with_kind", name=audits[name], kind=words.sentence(reason))
            console.say(words("left_out", what=what))
        for finding in result["findings"]:
            # In English by the word that --fail-on takes.
            severity = finding["severity"] if lang == "en" else words(f"severity.{finding['severity']}")
            _out(f"{severity:<7} {told(audits[finding['audit']], finding['sentence'])}")
            console.say(f"        {words.sentence(finding['advice'])}")
        if result["audits"] and not result["findings"]:
            _out(words("nothing_found", audit=words.listed([audits[name] for name in result["audits"]])))
        _show_gates(result["gates"], lang)
        if output is not None:
            console.say(say("all figures and tables: {file}", file=output))
    if not result["passed"]:
        raise typer.Exit(1)


@app.command()
def explain(
    artefact: ArtefactDir,
    data: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A file, '-' for JSON lines on stdin, a JSON row, or the value of the only input.",
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the explainer, such as steps=64."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("-t", "--target", help="The column to explain; the first one if left out.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("-m", "--method", help="An explainer; one that suits the model if left out.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", help="The class to explain; the predicted one if left out.")
    ] = None,
    target_text: Annotated[
        str | None,
        typer.Option(
            help="For a model that writes: the text to explain, instead of what it writes; for a masked one: the hidden words."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="For a model that writes: tokens, at most.")] = 20,
    quality: Annotated[
        bool, typer.Option("--quality", help="Measure how well the explanations explain the model.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(help="Rows that are looked at, 0 for all; 100, or a sample of 2,000 for a whole set."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="A folder for pictures, a page and the JSON.")
    ] = None,
    force: Force = False,
    lang: Annotated[str, typer.Option(help="Language of the page and of what is printed: en or zh.")] = "en",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Say why: which words, pixels or columns speak for a prediction, and which against."""
    with uncollected():
        from luban.explaining import _render
        from luban.reporting._words import Words
        from luban.verbs.explain import explain as verb

    Words(lang)  # refuses what is no language
    console = _console(lang)
    result = verb(
        artefact,
        data,
        options or [],
        target=target,
        method=method,
        label=label,
        target_text=target_text,
        max_tokens=max_tokens,
        quality=quality,
        limit=limit,
        seed=seed,
        output=output,
        force=force,
        lang=lang,
        device=device,
        console=console,
    )
    if as_json:
        _json(finite(result))
        return
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for one in result.get("explanations", []):
        _out(_render.terminal(one, color=color, language=lang))
    if "survey" in result and output is None:
        _out(_render.tables_text(result["survey"]["tables"], language=lang))
    if result.get("tables") and output is None:
        _out(_render.tables_text(result["tables"], language=lang))
    for row, why in result["unreadable"].items():
        console.say(_render.unexplained(row, why))
    for note in result["notes"]:
        console.say(note)
    if output is not None:
        _out(str(Path(output) / "index.html"))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="An artefact.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Rows to score both on; sharper than two separate figures."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="A file for the page of both (.html, .md or .json).")
    ] = None,
    lang: Lang = "en",
    format: PageFormat = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Whether simple models are trained for the page."),
    ] = True,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Put two artefacts side by side: quality, size, speed."""
    from luban.verbs.compare import compare as verb

    console = _console(lang)
    result = verb(
        a,
        b,
        data,
        output=output,
        lang=lang,
        format=format,
        baselines=baselines,
        device=device,
        console=console,
    )
    if output is not None:
        console.say(f"page: {output}")
    if as_json:
        _json(finite(result))
        return
    for key in ("model", "parameters", "megabytes", "train_seconds", "rows_per_second", "tokens_per_second"):
        left, right = (result[side].get(key) for side in ("a", "b"))
        if left is not None:
            _out(f"{key:<28} {left!s:>14} {right!s:>14}")
    if data is None:
        other = {name: metric["value"] for name, metric in result["b"]["metrics"].items()}
        known = {
            name: (metric["value"], other[name])
            for name, metric in result["a"]["metrics"].items()
            if metric["value"] is not None and other.get(name) is not None
        }
        told = {name: values for name, values in known.items() if name not in result["incomparable"]}
        # Where all that both measured is incomparable, the warnings have said what helps.
        if not result["same_rows"] and (told or not known):
            console.say(
                "careful: the two were measured on different rows; give DATA to score both on the same"
            )
        for name, (left, right) in told.items():
            _out(f"{name:<28} {left:>14.4f} {right:>14.4f}")
        return
    for target, compared in result["differences"].items():
        for name, difference in compared["differences"].items():
            if difference["value"] is not None and difference["low"] is not None:
                sure = "" if difference["low"] <= 0 <= difference["high"] else "  *"
                _out(
                    f"{target + '.' + name:<28} b - a = {difference['value']:+.4f}  ({difference['low']:+.4f} to {difference['high']:+.4f}){sure}"
                )


@app.command()
def report(
    artefact: ArtefactDir,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="Rows to measure on; by default what was measured after training counts."
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="The file to write (.html, .md or .json).")
    ] = "report.html",
    lang: Lang = "en",
    format: PageFormat = None,
    audit: Annotated[
        list[str] | None,
        typer.Option(
            help="A file that 'luban audit -o' wrote; by default audit.json in the artefact. May be repeated."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of DATA, only rows that were train, validation or test in training."),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Rows drawn for baselines and examples; of training rows four times as many.")
    ] = 5000,
    examples: Annotated[int, typer.Option(help="Rows shown of each kind; 0 for none.")] = 6,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Whether to train simple models beside it.")
    ] = True,
    private: Annotated[
        bool | None,
        typer.Option("--private/--open", help="Whether no row is shown; as the recipe says if left out."),
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Write all that is known of an artefact as one offline page: figures beside baselines, errors, explanations, audits."""
    with uncollected():
        from luban.verbs.report import report as verb

    console = _console(lang)
    result = verb(
        artefact,
        data,
        output=output,
        lang=lang,
        format=format,
        audit=audit or (),
        split=split,
        limit=limit,
        examples=examples,
        baselines=baselines,
        private=private,
        device=device,
        console=console,
    )
    if as_json:
        _json(finite(result))
        return
    for sentence in result["verdict"]:
        console.say(sentence)
    _out(output)


@app.command()
def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of recipes, plug-ins included."""
    from luban.recipe import schema as verb

    if as_json:
        _json(verb())
    else:
        _out(json.dumps(verb(), ensure_ascii=False, indent=2))


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the self-test.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has and what is missing, and test Luban on it."""
    from luban.verbs.doctor import doctor as verb

    report = verb(self_test=not quick)
    if as_json:
        _json(finite(report))
    else:
        hardware = report["hardware"]
        _out(
            f"{hardware['system']}, {hardware['cores']} cores, {hardware['memory_gb']} GB, CUDA: {', '.join(hardware['cuda']) or 'none'}"
        )
        _out(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
        for name, extra in report["extras"].items():
            _out(
                f"extra {name:<12} {'installed' if extra['installed'] else 'not installed: ' + extra['install']}  ({extra['for']})"
            )
        for name, program in report["programs"].items():
            _out(f"program {name:<10} {'found' if program['found'] else 'not found'}  ({program['for']})")
        cache = report["cache"]
        _out(f"cache {cache['folder']}: {cache['megabytes']:,} MB, {cache['free_gb']} GB free")
        if "self_test" in report:
            test = report["self_test"]
            _out(
                f"self-test: {'passed in ' + str(test['seconds']) + ' s' if test['passed'] else 'failed: ' + test['error']}"
            )
        _out(
            "all is well"
            if not report["problems"]
            else "\n".join(f"problem: {problem}" for problem in report["problems"])
        )
    if report["problems"]:
        raise typer.Exit(1)


@datasets_app.command("list")
def datasets_list(as_json: Json = False) -> None:
    """List what can be fetched."""
    from dataclasses import asdict

    from luban import datasets

    known = [datasets.describe(name) for name in datasets.names()]
    if as_json:
        _json({"datasets": [asdict(one) for one in known]})
        return
    for one in known:
        _out(f"{one.name:<18} {one.summary}  [{one.licence}]")


@datasets_app.command("fetch")
def datasets_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `luban datasets list`.")],
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Fetch a data set; offline and at once the second time."""
    from luban import datasets

    folder = datasets.fetch(name, Path(output) if output else None)
    main = folder / datasets.describe(name).main
    if as_json:
        _json({"name": name, "folder": str(folder), "main": str(main)})
    else:
        _out(str(main))


# --- printing ---------------------------------------------------------------------------------------------


def _show_metrics(console: Console | None, metrics: dict[str, Any], on: str | None) -> None:
    from luban.evaluation import HEADLINES

    write: Callable[[str], None] = console.say if console is not None else _out
    if not metrics:
        return
    write(f"measured on {on}:")
    for name, metric in metrics.items():
        if name.rsplit(".", 1)[-1] not in HEADLINES:
            continue
        if metric["value"] is None:
            write(f"  {name:<28} not defined: {metric.get('note')}")
            continue
        interval = f"  ({metric['low']:.4f} to {metric['high']:.4f})" if metric["low"] is not None else ""
        write(f"  {name:<28} {metric['value']:.4f}{interval}")


def _show_gates(gates: list[dict[str, Any]], language: str = "en") -> None:
    for gate in gates:
        verdict = translate(say("pass") if gate["passed"] else say("FAIL"), language)
        _out(f"{verdict:<7} {translate(gate['why'], language)}")


# --- the outermost edge -----------------------------------------------------------------------------------


def _version(show: bool) -> None:
    if show:
        _out(__version__)
        raise typer.Exit


def _import(modules: list[str] | None) -> None:
    import importlib

    if modules:
        sys.path.insert(0, os.getcwd())
    for name in modules or []:
        try:
            importlib.import_module(name)
        except Exception as error:  # the user's own module: whatever it raises is news for the user
            raise InputError(
                f"--import: module '{name}' cannot be imported ({type(error).__name__}: {error})"
            ) from None


@app.callback()
def _root(
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import", callback=_import, help="A module of yours that registers components; may be repeated."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _language(arguments: list[str]) -> str:
    """Return the language that is asked for, whatever else is wrong with the arguments."""
    asked = [after for before, after in pairwise(arguments) if before == "--lang"]
    asked += [one.removeprefix("--lang=") for one in arguments if one.startswith("--lang=")]
    return asked[-1] if asked and asked[-1] in LANGUAGES else "en"


@contextmanager
def _one_sentence(as_json: bool, language: str) -> Iterator[None]:
    """Turn whatever goes wrong into one sentence and an exit code: no traceback reaches a user. JSON stays English."""
    code, message = 0, ""
    try:
        yield
    except LubanError as error:
        code, message = error.exit_code, str(error)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it exits
        code = 0
    except (OSError, MemoryError) as error:
        code, message = 3, f"the machine failed: {str(error) or 'it has not enough memory'}"
    except Exception as error:  # a bug of ours: said, and kept where it can be reported from
        if os.environ.get("LUBAN_DEBUG"):
            raise
        asked = re.search(r"tried to allocate ([^.;]+)", str(error))
        if isinstance(error, RuntimeError) and asked:  # torch says so by the kind of its sentence only
            code, message = (
                3,
                f"the machine has not enough memory ({asked[1]} were asked for); lower train.batch_size, data.inputs.<column>.max_length or the sizes of the model",
            )
        else:
            code, message = (
                3,
                f"a bug in Luban ({type(error).__name__}: {' '.join(str(error).split())[:300]}); run again with LUBAN_DEBUG=1 for the details, and report it",
            )
    if message:
        if as_json:
            _json({"error": message, "exit_code": code})
        sys.stderr.write(f"luban: {translate(message, language)}\n")
    if code:
        raise SystemExit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with an exit code."""
    if arguments is None:
        own_process()
        arguments = sys.argv[1:]
    # On a busy machine, threads that spin while they wait for each other cost more than they save: two runs of a small
    # CNN side by side took 17.8 s each, and 11.4 s with this; alone it makes no difference. Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Whatever the locale: a Chinese sentence on a Latin terminal must not be a crash.
            stream.reconfigure(encoding="utf-8", errors="replace")
    result: Any = 0
    with _one_sentence("--json" in arguments, _language(arguments)):
        try:
            result = app(arguments, prog_name="luban", standalone_mode=False)
        except (
            SystemExit
        ) as ended:  # click's answer to a reader that went away (`| head`), which is no failure
            if isinstance(ended.__context__, BrokenPipeError):
                raise ended.__context__ from None
            raise
        except Exception as error:
            usage = _usage_error(error)
            if usage is None:
                raise
            raise usage from None
    raise SystemExit(result if isinstance(result, int) else 0)


def _usage_error(error: Exception) -> InputError | None:
    """Return click's complaint about the arguments as an error of ours."""
    if not any(cls.__name__ == "ClickException" for cls in type(error).__mro__):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "luban"
    message = error.format_message().rstrip(".?")  # type: ignore[attr-defined]
    cause = error.__cause__
    if cause is not None and hasattr(cause, "errors"):  # typer asks pydantic, which knows what was received
        message = f"{message}; received {cause.errors()[0].get('input')!r}"
    verbs = getattr(getattr(context, "command", None), "commands", None)
    if verbs and (message.startswith("No such command") or message == "Missing command"):
        message = f"{message.replace('Missing command', 'no verb was given')}; verbs are {', '.join(verbs)}"
    return InputError(f"{message}; see '{command} --help'")
