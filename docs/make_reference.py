"""Write docs/reference.md: every section, type and key, from the classes themselves.

Usage: ``python docs/make_reference.py`` writes the page; a test compares it with what the classes say.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from luban import recipe, registry
from luban.models.interop import KINDS

PAGE = Path(__file__).parent / "reference.md"


def kind(schema: dict[str, Any]) -> str:
    """Describe a JSON Schema in few words."""
    if "luban_section" in schema:
        return f"one of {schema['luban_section']}"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(part) for part in schema["anyOf"]))
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[-1]
    name = schema.get("type", "anything")
    if name == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if (
        name == "object"
        and "additionalProperties" in schema
        and isinstance(schema["additionalProperties"], dict)
    ):
        return f"mapping to {kind(schema['additionalProperties'])}"
    return {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "nothing"}.get(
        name, name
    )


def table(cls: type[Any]) -> list[str]:
    """Return the table of a class's keys."""
    schema = cls.model_json_schema()
    required = set(schema.get("required", []))
    lines = []
    for name, one in schema.get("properties", {}).items():
        default = (
            "required"
            if name in required
            else f"`{json.dumps(one['default'])}`"
            if "default" in one
            else "derived"
        )
        meaning = " ".join(one.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {kind(one).replace('|', chr(92) + '|')} | {default} | {meaning} |")
    return ["| key | kind | default | meaning |", "|---|---|---|---|", *lines] if lines else ["No keys."]


def checkpoints() -> list[str]:
    """Return the table of the checkpoints of Hugging Face that are read and written."""
    lines = []
    for name, (one, _) in KINDS.items():
        classes = [f"`{cls}`" for cls in (one.bare, one.language, one.classifier, one.pretraining) if cls]
        types = ", ".join(f"`{family}`" for family in one.read_by)
        lines.append(f"| `{name}` | {types} | {', '.join(classes)} |")
    return ["| model_type | read by | written as |", "|---|---|---|", *lines]


def page() -> str:
    """Return the whole page."""
    lines = [
        "# Reference",
        "",
        "Every section, type and key. This page is made by `python docs/make_reference.py` from the classes themselves.",
        "",
    ]
    for title, cls in (("recipe", recipe.Recipe), ("data", recipe.Data), ("train", recipe.Train)):
        lines += [f"## {title}", "", *table(cls), ""]
    for section in registry.SECTIONS:
        lines += [f"## {section}", ""]
        for name in registry.names(section):
            cls = registry.lookup(section, name)
            lines += [
                f"### {section}: {name}",
                "",
                (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
                "",
                *table(cls),
                "",
            ]
    lines += [
        "## checkpoints",
        "",
        "What config.json calls a model, the model types that read it, and the classes of transformers that load what "
        "`luban export` writes. Any other is run by model type `huggingface`.",
        "",
        *checkpoints(),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
