"""The model card: README.md of an artefact, made from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luban.evaluation import HEADLINES
from luban.recipe import Recipe

__all__ = ["write"]


def write(
    folder: Path, *, metrics: dict[str, Any], lineage: dict[str, Any], recipe: Recipe, parameters: int
) -> None:
    """Write the card into a folder."""
    (folder / "README.md").write_text(text(metrics, lineage, recipe, parameters), encoding="utf-8")


def text(metrics: dict[str, Any], lineage: dict[str, Any], recipe: Recipe, parameters: int) -> str:
    """Return the card as Markdown."""
    inputs = ", ".join(f"`{name}` ({p.type})" for name, p in recipe.data.inputs.items())
    targets = ", ".join(f"`{name}` ({p.type})" for name, p in recipe.data.targets.items())
    does = f"predicts {targets}" if targets else "was trained on the tokens of its text"
    lines = [
        f"# {' + '.join(recipe.data.targets or recipe.data.inputs)} by {recipe.model.type}",
        "",
        f"A `{recipe.model.type}` of {parameters:,} parameters that reads {inputs} and {does}.",
        "Made by Luban.",
        "",
        "## Use",
        "",
        "```bash",
        "luban predict . rows.csv            # or one literal row: '{"
        + ", ".join(f'"{n}": ...' for n in list(recipe.data.inputs)[:3])
        + "}'",
        "luban evaluate . labelled.csv",
        "luban report . -o report.html       # all of this beside simple baselines, with errors and explanations",
        "```",
        "",
        "For rows like those it was trained on, and for somebody who can look at its errors; not for deciding about people without a",
        "person in charge.",
        "",
        "## Measured",
        "",
    ]
    if "rows" in metrics:  # gates alone were judged, but on no rows
        chosen = _kept(lineage["progress"], recipe) if metrics["measured_on"] == "validation" else ""
        lines += [
            f"On {metrics['rows']:,} {metrics['measured_on']} rows, which it was not trained on{' but its weights were chosen by' if chosen else ''} ({metrics['when']}); 95 % bootstrap intervals.",
            "",
            "| metric | value | from | to |",
            "|---|---:|---:|---:|",
        ]
        known = {name: m for name, m in metrics["metrics"].items() if m["value"] is not None}
        shown = [name for name in known if name.rsplit(".", 1)[-1] in HEADLINES]
        for name in shown:
            metric = known[name]
            low, high = (f"{metric[k]:.4f}" if metric[k] is not None else "" for k in ("low", "high"))
            lines.append(f"| {name} | {metric['value']:.4f} | {low} | {high} |")
        lines += [
            "",
            f"`metrics.json` has {len(known)} metrics, the confusion matrix, calibration, curves and slices.",
        ]
    else:
        lines.append("Nothing: there were neither validation nor test rows.")
    rows = lineage["rows"]
    lines += [
        "",
        "## Data",
        "",
        f"- {rows['train']:,} rows to train, {rows['validation']:,} to choose by, {rows['test']:,} to report on.",
        *(f"- {what}: {n:,}." for what, n in lineage["prepared"]["counts"].items()),
        *(f"- hash of {name}: `{value[:16]}`." for name, value in lineage["data"].items()),
        "",
        "## How it was made",
        "",
        f"- {lineage['progress']['step']:,} updates{_kept(lineage['progress'], recipe)}, seed {lineage['seed']}, {lineage['cost']['seconds']:,.1f} s, {lineage['cost']['peak_memory_mb']:,.0f} MB at most.",
        f"- {lineage['hardware']['device']}, {lineage['hardware']['precision']}.",
        f"- {', '.join(f'{name} {v}' for name, v in lineage['versions'].items())}.",
        "- `recipe.yaml` holds every option, `sample.jsonl` the frozen predictions that each later use is checked against.",
        "",
        "## Limits",
        "",
        "- It knows what its training rows showed; measure it on rows of your own before relying on it.",
        *(
            [
                f"- Figures by group ({', '.join(recipe.data.groups)}): `luban evaluate . DATA --by {recipe.data.groups[0]}`."
            ]
            if recipe.data.groups
            else []
        ),
        "",
    ]
    return "\n".join(lines)


def _kept(progress: dict[str, Any], recipe: Recipe) -> str:
    if recipe.train.keep == "last" or progress["best"] is None:
        return ""
    return (
        f" (the weights after update {progress['best_step']:,} did best on the validation rows and were kept)"
    )


_TASKS = {
    "classification": "classifies texts",
    "causal_lm": "goes on with texts",
    "chat": "answers conversations",
    "seq2seq": "reads a text and writes another",
    "masked_lm": "fills in what is masked in texts",
    "embedding": "makes vectors of texts",
}


def write_imported(
    folder: Path, *, lineage: dict[str, Any], recipe: Recipe, parameters: int, task: str
) -> None:
    """Write the card of a model that somebody else trained."""
    column = next(iter(recipe.data.inputs))
    parent = lineage["parents"][0]
    hashes = "; ".join(f"{name} `{value[:16]}`" for name, value in parent["sha256"].items())
    lines = [
        f"# {Path(parent['path']).name}, imported",
        "",
        f"A `{recipe.model.type}` of {parameters:,} parameters that {_TASKS[task]}. It was not trained here: {hashes}.",
        "",
        "## Use",
        "",
        "```bash",
        f'luban predict . \'{{"{column}": "..."}}\'',
        "```",
        "",
        "## Measured",
        "",
        "Nothing yet: measure it on rows of your own, `luban evaluate . rows.csv`.",
        "",
        "## How it was made",
        "",
        f"- {', '.join(f'{name} {v}' for name, v in lineage['versions'].items())}.",
        "- `sample.jsonl` holds what the imported weights make of a few sentences; each later use is checked against it.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
