"""The recipe: what a user asks for, typed, with every mistake located.

A recipe is YAML 1.2 (``3e-4`` is a number, ``no`` is a string, a repeated key is an error, a Python tag is refused) or plain
Python data. `load` reads it, applies ``key=value`` overrides and returns a `Recipe`; every error names file and line.

Three ideas carry the file:

* `Config` is a strict pydantic model whose attribute docstrings become the JSON Schema.
* `Component` is a `Config` that a registry `type` names; its fields are its keys, declared once.
* `Section` is the annotation that turns ``{type: cnn, ...}`` (or just ``cnn``) into the component of that type.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from luban import registry
from luban.errors import RecipeError, did_you_mean
from luban.gates import Gate
from luban.sentences import say

__all__ = [
    "Component",
    "Config",
    "Data",
    "Document",
    "Recipe",
    "Section",
    "Sized",
    "Train",
    "dump",
    "load",
    "options_from",
    "read_yaml",
    "schema",
]

Where = tuple[str | int, ...]
"""The keys that lead to a place in a recipe."""

# --- the building blocks ----------------------------------------------------------------------------------


class Config(BaseModel):
    """Options, declared once as typed fields: unknown keys refuse and nothing is converted behind the user's back."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=False,
        allow_inf_nan=False,
        validate_by_name=False,
        validate_by_alias=True,
        serialize_by_alias=True,  # a key may be a Python keyword: `from`
    )


class Component(Config):
    """Options with a `type`: what a recipe section names and `registry.lookup` finds.

    Attributes:
        section: the registry section; set by `registry.register`.
        type: the name in recipes; set by `registry.register`.
    """

    section: ClassVar[str]
    type: ClassVar[str]

    @model_serializer(mode="wrap")
    def _with_type(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"type": self.type, **handler(self)}

    def __eq__(self, other: object) -> bool:
        """Whether the options are equal; what was fitted to data is no option."""
        if not isinstance(other, Component) or type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).model_fields)


Size = Literal["tiny", "small", "medium", "large"]


class Sized(Component):
    """A component with one dial: `size` fills in whatever the recipe leaves out.

    `SIZES` maps each size to the values of the fields it derives; what the recipe says wins.
    """

    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    size: Size = "small"
    """One dial for everything that is left out: tiny, small, medium or large."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = values.get("size", cls.model_fields["size"].default)
        derived = (
            cls.SIZES.get(size, {}) if isinstance(size, str) else {}
        )  # else the validation says what it should be
        return {**derived, **values}


class Section:
    """Annotation of a field that holds a component of a registry section.

    Args:
        name: the registry section.
        default: the `type` meant when a mapping has none.
        short: turns a short form (a string or a list) into a mapping; without it a string is the `type`.
    """

    def __init__(
        self, name: str, *, default: str | None = None, short: Callable[[Any], Any] | None = None
    ) -> None:
        self.name = name
        self.default = default
        self.short = short

    def parse(self, value: Any) -> Component:
        """Build the component from a mapping, a short form, or return a component as it is."""
        if isinstance(value, Component):
            if value.section != self.name:
                raise PydanticCustomError(
                    "section", f"received a component of '{value.section}' where one of '{self.name}' belongs"
                )
            return value
        if isinstance(value, str | list) and self.short is not None:
            try:
                value = self.short(value)
            except RecipeError as error:
                raise _as_pydantic(error) from None
        elif isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError(
                "section",
                "received {value}, but a mapping with 'type' belongs here; types are {types}",
                {"value": _received(value), "types": ", ".join(registry.names(self.name))},
            )
        options = dict(value)
        name = options.pop("type", self.default)
        if not isinstance(name, str):
            raise PydanticCustomError(
                "section",
                "key 'type' is missing; types are {types}",
                {"types": ", ".join(registry.names(self.name))},
            )
        try:
            cls = registry.lookup(self.name, name)
        except RecipeError as error:
            raise _as_pydantic(error) from None
        component: Component = cls.model_validate(options)
        return component

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            metadata={"luban_section": self},
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda component: component.model_dump()
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        # A mark of ours instead of a $ref, which pydantic would insist on resolving; `schema` puts the choices in.
        return {"luban_section": self.name, "short": self.short is not None, "default": self.default}


def _as_pydantic(error: RecipeError) -> PydanticCustomError:
    return PydanticCustomError("luban", "{message}", {"message": str(error)})


# --- the sections -----------------------------------------------------------------------------------------

_ENDINGS = {
    "csv": "csv", "tsv": "tsv", "tab": "tsv", "txt": "text", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl",
    "parquet": "parquet", "pq": "parquet", "arrow": "arrow", "feather": "arrow", "ipc": "arrow",
    "npz": "npz", "npy": "npz",
}  # fmt: skip
_DATABASES = ("sqlite", "postgresql", "postgres", "mysql", "mssql", "oracle", "duckdb")


def source_from(value: Any) -> dict[str, Any]:
    """Turn the short form of a source (a path, a glob, a URL, or a list of them) into its mapping.

    Raises:
        RecipeError: if the kind of data cannot be told from the ending.

    Example:
        >>> source_from("reviews.csv.gz")
        {'type': 'csv', 'path': 'reviews.csv.gz'}
    """
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str) or not first:
        raise RecipeError(f"received {value!r} where a path, a glob or a URL of data belongs")
    if first.startswith("dataset:"):
        from luban import datasets

        return source_from(str(datasets.main_file(first.removeprefix("dataset:"))))
    if "://" in first and first.split("://")[0].split("+")[0] in _DATABASES:
        raise RecipeError(
            f"'{first}' is a database: write {{type: sql, connection: '{first}', query: 'select ...'}}"
        )
    parts = [part.lower() for part in first.rstrip("/").rsplit("/", 1)[-1].split(".")[1:]]
    if parts and parts[-1] in ("gz", "zst", "bz2", "xz"):
        parts.pop()
    if parts and parts[-1] in _ENDINGS:
        return {"type": _ENDINGS[parts[-1]], "path": value}
    if not parts or first.endswith("/"):
        return {"type": "images", "path": value}
    raise RecipeError(
        f"the kind of '{first}' cannot be told from its ending; endings known are {', '.join(sorted(_ENDINGS))} "
        "(also with .gz or .zst), a folder is read as images, anything else needs {type: ..., path: ...}"
    )


Source = Annotated[Component, Section("sources", short=source_from)]
ProcessorOptions = Annotated[Component, Section("processors")]


class Data(Config):
    """Where the rows come from, which columns are read as what, and what is done to them before a model sees them."""

    train: Source
    """The rows to train on: a path, a glob, a URL, a list of them, or {type: ...}."""
    validation: Source | None = None
    """Rows to choose by (early stopping, the parity sample); by default split off the training rows."""
    test: Source | None = None
    """Rows to report on; by default split off the training rows."""
    inputs: Annotated[dict[str, ProcessorOptions], Field(min_length=1)]
    """Column (or a pattern such as 'mean *') → how it is read."""
    targets: dict[str, ProcessorOptions] = {}
    """Column → what is to be predicted; none where an objective makes its own of the inputs (masked_lm, causal_lm)."""
    groups: list[str] = []
    """Columns by whose values figures are broken down; no model sees them unless they are inputs too."""
    weight: str | None = None
    """A column of row weights, zero or more."""
    clean: list[Annotated[Component, Section("cleaning")]] = []
    """Cleaning steps, each counted and reported; those that need no fitting act first, else the order is kept."""
    split: Annotated[Component, Section("splits", default="random")] | None = None
    """How rows become training, validation and test rows; by default 10 % each, at random, duplicates kept together."""
    augment: list[Annotated[Component, Section("augment")]] = []
    """Random changes of the training rows, drawn anew for every epoch."""
    max_invalid: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of rows that may be unreadable (dropped, counted, reported) before the run refuses."""


class Train(Config):
    """How the parameters are found."""

    epochs: Annotated[int, Field(gt=0)] | None = None
    """Passes over the training rows; 10 if `steps` is left out too."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Updates of the parameters, instead of `epochs`."""
    batch_size: Annotated[int, Field(gt=0)] | None = None
    """Rows in a batch; derived from the number of rows if left out."""
    batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in a batch at the most, instead of `batch_size`: short texts make batches of more rows."""
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Batches in one update; the result equals one batch of that many rows."""
    optimizer: Annotated[Component, Section("optimizers", default="adamw")] | None = None
    """How a gradient becomes an update; adamw by default."""
    schedule: Annotated[Component, Section("schedules", default="constant")] | None = None
    """How the learning rate moves; constant by default."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Gradients of a larger norm are scaled down to this norm."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights; the average is what is scored and saved."""
    callbacks: list[Annotated[Component, Section("callbacks")]] = []
    """What happens beside the updates: early_stopping, tensorboard, ..."""
    evaluate_every: Annotated[int, Field(gt=0)] | None = None
    """Updates between two looks at the validation rows; an epoch by default."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the artefact: those of the best look at the validation rows, or the last."""
    metric: str | None = None
    """What 'best' means: `loss`, or a metric such as `label.accuracy`; `loss` by default."""
    checkpoint_every: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two checkpoints; one is also written at the end and on Ctrl-C."""
    checkpoint_steps: Annotated[int, Field(gt=0)] | None = None
    """Updates between two checkpoints, instead of seconds."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of the rows, dropout and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the work is done; auto takes a CUDA device if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; auto takes what this machine is measurably quicker at."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """What computes attention on a CPU: Luban's own code where a compiler is found (built once, in the background of the first
    run, for the next), or PyTorch alone."""
    products: Literal["auto", "onednn", "blas"] = "auto"
    """What multiplies matrices in fp32 on a CPU: oneDNN or the BLAS, both of which are inside PyTorch; auto takes what this
    machine is measurably quicker at."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """CPU threads; by default all cores, or one where an update is too little work to share."""


class Recipe(Config):
    """Everything that makes an artefact."""

    data: Data
    """Rows, columns, cleaning, splits."""
    model: Annotated[Component, Section("models")]
    """The family and its sizes."""
    adapt: list[Annotated[Component, Section("adapt")]] = []
    """Conversions of the model before training, in order."""
    objective: (
        Annotated[Component, Section("objectives")] | list[Annotated[Component, Section("objectives")]] | None
    ) = None
    """What is minimised; by default what each target's kind brings."""
    train: Annotated[Train, Field(default_factory=Train, description="How the parameters are found.")]
    decide: list[Annotated[Component, Section("decisions")]] = []
    """How outputs become decisions, fitted on the validation rows after training, in order: temperature, thresholds, conformal."""
    audits: list[Annotated[Component, Section("audits")]] = []
    """What is looked for in the finished artefact, on the rows that it is measured on; `luban audit` takes the same options."""
    gates: list[str] = []
    """What must be true in the end, or `luban train` ends with exit code 1: 'label.accuracy >= 0.85', a figure of an audit, or
    'no high', which is about the findings of all audits that fit."""
    sample: Literal["validation", "synthetic"] = "validation"
    """Where the frozen rows of the parity contract come from."""
    imports: list[str] = []
    """Python modules that register components of your own."""

    @field_validator("gates")
    @classmethod
    def _sentences(cls, gates: list[str]) -> list[str]:
        try:
            for gate in gates:
                Gate.parse(gate)
        except RecipeError as error:
            raise _as_pydantic(error) from None
        return gates

    @model_validator(mode="after")
    def _compositions(self) -> Self:
        overlap = sorted(set(self.data.inputs) & set(self.data.targets))
        if overlap:
            raise _composition(
                f"column '{overlap[0]}' is both an input and a target: the model would read the answer; remove it from one",
                ("data", "inputs", overlap[0]),
            )
        for one, other in (("epochs", "steps"), ("batch_size", "batch_tokens")):
            if getattr(self.train, one) is not None and getattr(self.train, other) is not None:
                raise _composition(
                    f"train.{one} and train.{other} are both given; keep one", ("train", other)
                )
        return self


def _composition(message: str, where: Where) -> PydanticCustomError:
    """An error about several keys, which stands at one of them."""
    return PydanticCustomError("composition", "{message}", {"message": message, "where": where})


# --- reading ----------------------------------------------------------------------------------------------

_MAX_NODES = 100_000  # far above any recipe; anchors that multiply into millions of nodes stop here


@dataclass
class Document:
    """A recipe as read: plain data, and where each of its keys stands.

    Attributes:
        data: mappings, lists and scalars.
        lines: path of keys → line, from 1.
        name: what to call the file in messages.
        overrides: path of keys → the ``key=value`` that set it.
    """

    data: Any
    lines: dict[Where, int] = field(default_factory=dict)
    name: str = "recipe"
    overrides: dict[Where, str] = field(default_factory=dict)

    def at(self, where: Where) -> str:
        """Return ``file:line`` of the closest key at or above `where`, or the override that put it there."""
        above = [path for path in self.overrides if where[: len(path)] == path]
        if above:
            return f"override '{self.overrides[max(above, key=len)]}'"
        for length in range(len(where), 0, -1):
            if where[:length] in self.lines:
                return f"{self.name}:{self.lines[where[:length]]}"
            for path, text in self.overrides.items():
                if path[:length] == where[:length]:
                    return f"override '{text}'"
        return f"{self.name}:{self.lines[()]}" if () in self.lines else self.name


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2 in place of YAML 1.1's guesses."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def _resolvers() -> Iterator[tuple[str, str, str]]:
    yield "tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN\0"
    yield "tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"
    yield "tag:yaml.org,2002:int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"
    yield (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    )


def _install_resolvers() -> None:
    for tag, pattern, first in _resolvers():
        _Loader.add_implicit_resolver(
            tag, re.compile(pattern), [*first.replace("\0", ""), *([""] if "\0" in first else [])]
        )


_install_resolvers()


def _joined(text: str, at: str | None) -> str:
    """Return text with pairs of surrogates joined: JSON writes 😀 as two escapes, and YAML reads JSON.

    Raises:
        RecipeError: for a half of such a pair, which no file could hold.
    """
    if text.isascii():
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise RecipeError(
            f"{text[:60]!r} holds half a character (a lone surrogate); remove it", at=at
        ) from None


def _scalar(node: yaml.ScalarNode, at: str) -> Any:
    text, tag = _joined(node.value, at), node.tag.removeprefix("tag:yaml.org,2002:")
    try:
        match tag:
            case "str":
                return text
            case "null" if text.lower() in ("", "~", "null"):
                return None
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "null" | "bool":
                raise ValueError
            case "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise RecipeError(f"'{text[:60]}' is not a valid {tag}", at=at) from None
    raise RecipeError(f"tag '{node.tag}' is refused: a recipe holds plain data only; remove the tag", at=at)


def _construct(node: yaml.Node, where: Where, document: Document, depth: int = 0) -> Any:
    line = node.start_mark.line + 1
    at = f"{document.name}:{line}"
    document.lines.setdefault(where, line)
    if len(document.lines) > _MAX_NODES:
        raise RecipeError(
            f"the document has more than {_MAX_NODES:,} nodes, which no recipe needs; anchors may multiply them",
            at=at,
        )
    if depth > 64:
        raise RecipeError(
            "the document is nested more than 64 levels deep, or an anchor contains itself", at=at
        )
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, at)
    if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise RecipeError(
            f"tag '{node.tag}' is refused: a recipe holds plain data only; remove the tag", at=at
        )
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*where, i), document, depth + 1) for i, child in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        at = f"{document.name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError("a key must be a plain word, not a list or a mapping", at=at)
        _scalar(key_node, at)  # refuses tags
        key = _joined(key_node.value, at)
        if key in result:
            raise RecipeError(
                f"key '{key}' is repeated; its first value stands in line {document.lines[(*where, key)]}",
                at=at,
            )
        document.lines[(*where, key)] = key_node.start_mark.line + 1
        result[key] = _construct(child, (*where, key), document, depth + 1)
    return result


def read_yaml(text: str, name: str = "recipe") -> Document:
    """Parse YAML 1.2 into plain data with line numbers.

    Raises:
        RecipeError: for anything that is not one YAML document of plain data.

    Example:
        >>> read_yaml("rate: 3e-4\\nanswer: no").data
        {'rate': 0.0003, 'answer': 'no'}
    """
    document = Document(data=None, name=name)
    try:
        node = yaml.compose(text, Loader=_Loader)
        document.data = {} if node is None else _construct(node, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it is not YAML"
        if problem.startswith("but ") and error.context:
            problem = f"{error.context}, {problem}"
        raise RecipeError(
            f"not valid YAML: {problem}", at=f"{name}:{mark.line + 1}" if mark else name
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"not valid YAML: character U+{ord(text[error.position]):04X} may not stand in it",
            at=f"{name}:{line}",
        ) from None
    except RecursionError:
        raise RecipeError("the document is nested too deeply for a recipe", at=name) from None
    return document


def _override(document: Document, text: str) -> None:
    """Apply one ``dotted.key=value``."""
    dotted, sign, value_text = text.partition("=")
    if not sign or not dotted.strip():
        raise RecipeError(f"override '{text}' is not of the form key=value, such as train.epochs=3")
    try:
        value = read_yaml(value_text, f"override '{text}'").data if value_text.strip() else None
    except RecipeError as error:
        raise RecipeError(str(error)) from None
    keys = [part.strip() for part in dotted.split(".")]
    here: Any = document.data
    where: list[str | int] = []
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise RecipeError(
                    f"override '{text}': '{'.'.join(keys[:i])}' is a list of {len(here)}; received '{key}' where an index from 0 belongs"
                )
            index: Any = int(key)
        elif isinstance(here, dict):
            index = key
        else:
            raise RecipeError(
                f"override '{text}': '{'.'.join(keys[:i])}' is {here!r}, which has no key '{key}'"
            )
        where.append(index)
        if last:
            here[index] = value
        else:
            child = here.get(index) if isinstance(here, dict) else here[index]
            if child is None:
                child = {}
            elif isinstance(child, str | list):
                child = _grown(child, where, keys[i + 1], text)
            here[index] = child
            here = child
    document.overrides[tuple(where)] = text


def _grown(short: Any, where: list[str | int], key: str, text: str) -> Any:
    """Return the long form of a short one that gets a `key` of its own; a list that `key` points into stays."""
    if where not in (["data", "train"], ["data", "validation"], ["data", "test"]):
        return {"type": short} if isinstance(short, str) else short
    try:
        return short if isinstance(short, list) and key.isdecimal() else source_from(short)
    except RecipeError as error:
        raise RecipeError(f"override '{text}': {error}") from None


def load(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: list[str] | tuple[str, ...] = ()
) -> Recipe:
    """Read a recipe from a YAML file, or from plain Python data.

    Paths inside it are taken relative to the file's folder (to the working folder for Python data).

    Args:
        source: path of a YAML file, a mapping, or a recipe.
        overrides: ``key=value`` strings with dotted keys; values are YAML.

    Raises:
        RecipeError: with file, line, the value received and the values accepted.

    Example:
        >>> recipe = load("reviews.yaml", ["train.epochs=1"])      # doctest: +SKIP
    """
    if isinstance(source, Recipe) and not overrides:
        return source
    return read(source, overrides)[0]


def read(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: list[str] | tuple[str, ...] = ()
) -> tuple[Recipe, Document]:
    """As `load`; return also the document, which knows where each key stands."""
    if isinstance(source, Recipe):
        source = source.model_dump()
    if isinstance(source, Mapping):
        document = Document(data=_copy(source))
        folder = Path.cwd()
    else:
        path = Path(source)
        document = read_yaml(_read_text(path), str(source))
        folder = path.resolve().parent
    if not isinstance(document.data, dict):
        raise RecipeError(
            f"received {type(document.data).__name__} where a mapping with data, model and train belongs",
            at=document.name,
        )
    for text in overrides:
        _override(document, text)
    _import_modules(document, folder)
    _anchor_paths(document.data, folder)
    try:
        return Recipe.model_validate(document.data), document
    except ValidationError as error:
        raise _explain(error, document) from None


_PLACES = {
    "objective": ("objective",), "augment": ("data", "augment"), "adapt": ("adapt",), "model": ("model",),
    "models": ("model",), "optimizer": ("train", "optimizer"), "schedule": ("train", "schedule"),
    "callback": ("train", "callbacks"), "target": ("data", "targets"), "class_weights": ("objective",),
    "decide": ("decide",), "gate": ("gates",), "audit": ("audits",),
}  # fmt: skip


@contextmanager
def located(document: Document) -> Iterator[None]:
    """Give file and line to what only a later stage can know, such as an objective that does not fit its target.

    Such a message begins with the key (``train.metric: ...``) or with what it is about (``objective focal: ...``).
    """
    try:
        yield
    except RecipeError as error:
        if error.at is not None or not document.lines:
            raise
        first = re.split(r"[\s:]", str(error), maxsplit=1)[0]
        where = (
            tuple(first.split("."))
            if first.startswith(("train.", "data.", "model."))
            else _PLACES.get(first, ())
        )
        raise RecipeError(str(error), at=document.at(where)) from None


def _copy(value: Any) -> Any:
    if isinstance(value, str):
        return _joined(value, None)
    if isinstance(value, Mapping):
        return {_joined(str(k), None): _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list | tuple) else value


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(
            f"there is no file '{path}'; 'luban init DATA' writes a recipe for your data"
        ) from None
    except IsADirectoryError:
        raise RecipeError(f"'{path}' is a folder; name the recipe file in it") from None
    except OSError as error:
        raise RecipeError(f"'{path}' cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError(
            "a recipe is UTF-8 text, and this line is not; save the file as UTF-8", at=f"{path}:{line}"
        ) from None


def _import_modules(document: Document, folder: Path) -> None:
    modules = document.data.get("imports") or []
    if not isinstance(modules, list):
        return  # the validation says what belongs here
    for i, name in enumerate(modules):
        if not isinstance(name, str):
            return
        added = str(folder) not in sys.path
        if added:
            sys.path.insert(0, str(folder))
        try:
            importlib.import_module(name)
        except RecipeError as error:
            raise RecipeError(str(error), at=document.at(("imports", i))) from None
        except (
            Exception,
            SystemExit,
        ) as error:  # the user's own module: whatever it raises is news for the user
            raise RecipeError(
                f"imports: module '{name}' cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}); it must lie beside the recipe or be installed",
                at=document.at(("imports", i)),
            ) from None
        finally:
            if added:
                sys.path.remove(str(folder))


def anchor(path: str, folder: Path) -> str:
    """Return a local path as an absolute one, relative to `folder`; URLs and data set names stay."""
    if "://" in path or path.startswith("dataset:") or not path:
        return path
    try:
        return str(folder / Path(path).expanduser())
    except RuntimeError:  # ~somebody who is no user of this machine
        return str(folder / path)


_PATH_KEYS = ("path", "table", "root", "from", "tokenizer", "template")
_SQLITE = "sqlite:///"


def _anchor_paths(data: dict[str, Any], folder: Path) -> None:
    """Make paths of data and of pretrained weights absolute, so that the resolved recipe means the same from anywhere."""
    section = data.get("data")
    if isinstance(section, dict):
        for key in ("train", "validation", "test"):
            value = section.get(key)
            if isinstance(value, str):
                section[key] = anchor(value, folder)
            elif isinstance(value, list):
                section[key] = [anchor(v, folder) if isinstance(v, str) else v for v in value]
        for value in [section.get(k) for k in ("train", "validation", "test")] + [
            v
            for k in ("inputs", "targets")
            for v in (section[k].values() if isinstance(section.get(k), dict) else [])
        ]:
            if isinstance(value, dict):
                for key in _PATH_KEYS:
                    if key == "template" and "." not in str(value.get(key)):
                        continue  # the name of one, not a file
                    if isinstance(value.get(key), str):
                        value[key] = anchor(value[key], folder)
                    elif isinstance(value.get(key), list):
                        value[key] = [anchor(v, folder) if isinstance(v, str) else v for v in value[key]]
                database = value.get("connection")
                if isinstance(database, str) and database.startswith(_SQLITE):
                    value["connection"] = _SQLITE + anchor(database.removeprefix(_SQLITE), folder)
    adapt = data.get("adapt")
    for part in (data.get("model"), *(adapt if isinstance(adapt, list) else ())):
        if isinstance(part, dict) and isinstance(part.get("from"), str):
            part["from"] = anchor(part["from"], folder)


# --- explaining -------------------------------------------------------------------------------------------


def _fields_at(where: Where, document: Document) -> tuple[str, list[str]]:
    """Return what the mapping at `where` is called and which keys it takes."""
    cls: type[BaseModel] = Recipe
    label = "a recipe"
    value: Any = document.data
    annotation: Any = None
    for key in where:
        if isinstance(value, list) and isinstance(key, int):
            value = value[key]
        else:
            value = value.get(key) if isinstance(value, dict) else None
        if annotation is None and isinstance(key, str) and key in cls.model_fields:
            info = cls.model_fields[key]
            annotation = (info.annotation, *info.metadata)
            model = info.annotation
        else:  # an entry of a mapping or of a list
            model = next(
                reversed(get_args(annotation[0] if isinstance(annotation, tuple) else annotation)), None
            )
            model = get_args(model)[0] if get_origin(model) is Annotated else model
        found = _section_in(annotation)
        name = value.get("type", found.default) if found is not None and isinstance(value, dict) else value
        if found is not None and isinstance(name, str) and name in registry.names(found.name):
            cls, annotation = registry.lookup(found.name, name), None
            label = f"{found.name} type '{name}'"
        elif isinstance(model, type) and issubclass(model, BaseModel) and model is not Component:
            cls, label, annotation = model, f"'{key}'", None
    return label, [*cls.model_fields]


def _section_in(annotation: Any) -> Section | None:
    if isinstance(annotation, Section):
        return annotation
    for part in (
        annotation
        if isinstance(annotation, tuple)
        else (*get_args(annotation), *getattr(annotation, "__metadata__", ()))
    ):
        if (found := _section_in(part)) is not None:
            return found
    return None


def _keys_of(problem: Any, data: Any) -> tuple[Where, Where]:
    """Return the user's keys that lead to a problem, and how far alternatives (of a union) share them.

    pydantic puts names of its own between the keys where a value may be of several kinds.
    """
    where: list[str | int] = []
    shared: Where | None = None
    value, loc = data, problem["loc"]
    for i, part in enumerate(loc):
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            value = value[part]
        elif not (problem["type"] == "missing" and i == len(loc) - 1):
            shared = tuple(where) if shared is None else shared
            continue
        where.append(part)
    return tuple(where), tuple(where) if shared is None else shared


_OWN = ("section", "luban", "composition", "value_error")
_PLAIN = {
    r"a valid dictionary( or instance of \w+)?": "a mapping",
    r"a valid (list|string)": r"a \1",
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    " after validation, not .*": "",
}
"""pydantic's words → a user's."""


def _expected(problem: Any) -> str:
    """Return what should stand there, to follow 'it should'."""
    text = problem["msg"].partition("should ")[2] or f"be something else ({problem['msg']})"
    for pattern, words in _PLAIN.items():
        text = re.sub(pattern, words, text)
    return str(text)


def _received(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _explain(error: ValidationError, document: Document) -> RecipeError:
    found: dict[Where, list[tuple[Where, Any]]] = {}
    for problem in error.errors(include_url=False):
        where, shared = _keys_of(problem, document.data)
        found.setdefault(shared, []).append((where, problem))
    # Of alternatives that all failed, the user meant the one that went deepest.
    alternatives = next(iter(found.values()))
    where, first = max(alternatives, key=lambda one: (len(one[0]), one[1]["type"] in _OWN))
    dotted = ".".join(map(str, where))
    match first["type"]:
        case "extra_forbidden":
            label, known = _fields_at(where[:-1], document)
            message = f"key '{dotted}' is unknown; {label} takes {', '.join(known)}{did_you_mean(str(where[-1]), known)}"
        case "missing":
            label, _ = _fields_at(where[:-1], document)
            message = f"key '{dotted}' is missing; {label} cannot do without it"
        case "composition":
            message, where = first["msg"], first["ctx"]["where"]
        case "section" | "luban" | "value_error":
            text = first["msg"].removeprefix("Value error, ")
            message = f"{dotted}: {text}" if dotted else text
        case _:
            expected = dict.fromkeys(_expected(one) for at, one in alternatives if at == where)
            wanted = " or ".join(expected).replace(" or be ", " or ")
            message = f"{dotted}: received {_received(first.get('input'))}, but it should {wanted}"
    if len(found) > 1:
        message += f" (and {len(found) - 1} more)"
    return RecipeError(message, at=document.at(where))


_Options = TypeVar("_Options", bound=Config)


def options_from(
    cls: type[_Options], values: Mapping[str, Any] | list[str] | tuple[str, ...], label: str
) -> _Options:
    """Build options that stand in no recipe, from a mapping or from ``key=value`` strings.

    Args:
        cls: what they are.
        values: the options; the values of strings are YAML.
        label: what to call them in a message.

    Raises:
        RecipeError: with the value received and the values accepted.

    Example:
        >>> options_from(Train, ["epochs=3"], "train").epochs
        3
    """
    document = Document(data=dict(values) if isinstance(values, Mapping) else {})
    for text in () if isinstance(values, Mapping) else values:
        if "=" not in text:
            raise RecipeError(
                say(
                    "option '{text}' is not of the form key=value; {label} takes {known}",
                    text=text,
                    label=label,
                    known=[*cls.model_fields],
                )
            )
        _override(document, text)
    try:
        return cls.model_validate(document.data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message: str
        match first["type"]:
            case "extra_forbidden":
                known = [*cls.model_fields]
                message = say(
                    "key '{key}' is unknown; {label} takes {known}{hint}",
                    key=key,
                    label=label,
                    known=known,
                    hint=did_you_mean(key, known),
                )
            case "value_error":
                message = f"{label}: {first['msg'].removeprefix('Value error, ')}"
            case _:
                message = f"{label}: {key}: received {_received(first.get('input'))}, but it should {_expected(first)}"
        raise RecipeError(message) from None


# --- writing ----------------------------------------------------------------------------------------------


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default written out; `load` reads the same recipe back."""
    return str(yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.2 would read as something else than the string it is."""


_LINE_ENDS = frozenset("\r\x85\u2028\u2029")


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _Loader("").resolve(yaml.ScalarNode, text, (True, False)) == "tag:yaml.org,2002:str"  # type: ignore[no-untyped-call]
    style = None if plain else "'"
    if not _LINE_ENDS.isdisjoint(text):  # outside double quotes YAML reads them as a plain line feed
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)  # with a point: YAML 1.1 takes 1e-05 for a string, and the emitter would write a tag
    return dumper.represent_scalar(
        "tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e", 1)
    )


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(float, _represent_float)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, plug-ins included; editors complete from it."""
    root = Recipe.model_json_schema()
    definitions = root.setdefault("$defs", {})
    for section in registry.SECTIONS:
        for name in registry.names(section):
            cls = registry.lookup(section, name)
            own = cls.model_json_schema()
            definitions.update(own.pop("$defs", {}))
            derived = {key for values in getattr(cls, "SIZES", {}).values() for key in values}
            own["required"] = [key for key in own.get("required", ()) if key not in derived]
            own["properties"] = {"type": {"const": name}, **own.get("properties", {})}
            definitions[f"{section}.{name}"] = own
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "title": "Luban recipe"}
    filled: dict[str, Any] = _with_choices(whole)
    return filled


def _with_choices(node: Any) -> Any:
    """Replace the mark of each section by the components that may stand there."""
    if isinstance(node, list):
        return [_with_choices(part) for part in node]
    if not isinstance(node, dict):
        return node
    if "luban_section" not in node:
        return {key: _with_choices(part) for key, part in node.items()}
    section = node["luban_section"]
    choices: list[Any] = []
    for name in registry.names(section):
        reference = {"$ref": f"#/$defs/{section}.{name}"}
        choices.append(reference if name == node["default"] else {**reference, "required": ["type"]})
    if node["short"]:
        choices += [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    else:
        choices.append({"enum": registry.names(section)})
    return {"anyOf": choices, **{key: node[key] for key in ("description", "title") if key in node}}
