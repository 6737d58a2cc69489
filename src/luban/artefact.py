"""The artefact: a directory that holds a model and the evidence for it, without pickle.

::

    config.json          format version, model, adapt steps, fields
    model.safetensors    weights
    preprocessing.json   processors and cleaning with what they learnt (a tokenizer lies beside it as tokenizer.json)
    recipe.yaml          the resolved recipe: every default written out
    metrics.json         what was measured, on which rows
    sample.jsonl         frozen rows with the predictions made when training ended: the parity contract
    lineage.json         data, versions, seed, hardware, cost
    README.md            the model card, made from the files above
    train/               checkpoints and logs; may be deleted

Loading is one path for every kind of model: build from config, replay the adapt steps, load the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor, nn

from luban import files
from luban.adapt._base import Adaptation
from luban.data.contracts import Spec
from luban.data.pipeline import Pipeline
from luban.decisions._base import Decision
from luban.errors import ArtefactError, MissingError, RecipeError
from luban.models._base import Model
from luban.recipe import Component, Section, read_yaml
from luban.sentences import kept, revived, say
from luban.tensors import write_tensors

__all__ = [
    "FORMAT",
    "Artefact",
    "build_model",
    "finish_model",
    "is_artefact",
    "write",
    "write_decisions",
    "write_json",
]

FORMAT = 1
_TOKENIZER = "tokenizer.json"


def build_model(
    model: Component,
    adapt: Sequence[Component],
    spec: Spec,
    *,
    pretrained: bool = False,
    said: list[str] | None = None,
) -> nn.Module:
    """Build the module of a recipe: the family's, with the adapt steps applied in order.

    Args:
        model: options of the family.
        adapt: options of the steps.
        spec: fields of a batch.
        pretrained: whether to read the weights that the options name; an artefact has its own.
        said: is told which parts these weights lack.
    """
    family = cast(Model, model)
    module = family.build(spec)
    if pretrained and (missing := family.load_pretrained(module)) and said is not None:
        said.append(f"new weights, which the pretrained model lacks: {', '.join(missing)}")
    for step in adapt:
        module = cast(Adaptation, step).apply(module)
        if said is not None:
            said += cast(Adaptation, step).notes()
    return module


def finish_model(module: nn.Module, adapt: Sequence[Component]) -> tuple[nn.Module, list[Component]]:
    """Return what an artefact holds of a trained module: itself, or without the adapters that were merged into it; and the
    steps that are still to be replayed when it is loaded."""
    kept: list[Component] = []
    for step in adapt:
        module, left = cast(Adaptation, step).finish(module)
        kept += [left] if left is not None else []
    return module, kept


@dataclass
class Artefact:
    """An artefact that was read; `build` makes its model.

    Attributes:
        path: the directory.
        model: options of the model.
        adapt: options of the adapt steps.
        spec: fields of a batch.
        pipeline: fitted processors and cleaning.
        recipe: text of recipe.yaml.
        metrics, lineage: contents of these files.
        sample: frozen rows, each with ``row`` and ``prediction``.
        decisions: what was fitted on validation rows.
    """

    path: Path
    model: Component
    adapt: list[Component]
    spec: Spec
    pipeline: Pipeline
    recipe: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    sample: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    @classmethod
    def load(cls, path: str | Path) -> Artefact:
        """Read an artefact; nothing in it is executed.

        Raises:
            ArtefactError: if it is missing, incomplete, damaged, or of a newer format.
        """
        folder = Path(path)
        if not folder.exists():
            raise ArtefactError(
                say("there is no artefact '{path}'; 'luban train RECIPE' makes one", path=path)
            )
        if not is_artefact(folder):
            raise ArtefactError(
                say(
                    "'{path}' is no artefact: it has no config.json of Luban's; name the directory that 'luban train' printed",
                    path=path,
                )
            )
        config = _read_json(folder, "config.json")
        found = config.get("format")
        if found != FORMAT:
            raise ArtefactError(
                say(
                    "'{path}' has format {found!r}, but this Luban reads format {own}; use the Luban that wrote it ({luban})",
                    path=path,
                    found=found,
                    own=FORMAT,
                    luban=config.get("luban"),
                )
            )
        preprocessing = _read_json(folder, "preprocessing.json")
        try:
            for part in _parts(preprocessing):
                name = part["state"].get("tokenizer_file")
                if name is not None:
                    part["state"]["tokenizer"] = _inside(folder, name).read_text(encoding="utf-8")
            pipeline = Pipeline.restore(preprocessing)
            model = Section("models").parse(config["model"])
            adapt = [Section("adapt").parse(step) for step in config["adapt"]]
            spec = Spec.from_json(config["spec"])
            decisions = [_decision(saved, pipeline) for saved in config.get("decide", [])]
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RecipeError) as error:
            if isinstance(error, RecipeError) and (modules := _imports_of(folder)):
                # Nothing of a stranger's is imported unasked, so the user must say it.
                raise MissingError(
                    say(
                        "'{path}' needs components of {modules} ({error}); import it first, with 'luban --import {first} ...' or an import statement",
                        path=path,
                        modules=[*modules],
                        error=error,
                        first=modules[0],
                    )
                ) from None
            raise ArtefactError(
                say(
                    "'{path}' is damaged: config.json and preprocessing.json do not fit together ({error})",
                    path=path,
                    error=_brief(error),
                )
            ) from None
        except ArtefactError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            raise ArtefactError(
                say(
                    "'{path}' is damaged: its preprocessing cannot be read ({error})",
                    path=path,
                    error=_brief(error),
                )
            ) from None
        metrics, lineage = (revived(_read_json(folder, name)) for name in ("metrics.json", "lineage.json"))
        for name, part in [("metrics.json", metrics.get("metrics", {}))] + [
            ("lineage.json", lineage.get(key, {})) for key in ("data", "rows", "split", "cost")
        ]:
            if not isinstance(part, dict):
                raise ArtefactError(
                    say(
                        "'{file}' is damaged: it holds {part} where a mapping belongs",
                        file=folder / name,
                        part=repr(part),
                    )
                )
        return cls(
            folder,
            model,
            adapt,
            spec,
            pipeline,
            (folder / "recipe.yaml").read_text(encoding="utf-8")
            if (folder / "recipe.yaml").is_file()
            else "",
            metrics,
            lineage,
            _read_lines(folder, "sample.jsonl"),
            decisions,
        )

    def build(self) -> nn.Module:
        """Build the model and load its weights, in evaluation mode.

        Raises:
            ArtefactError: if the weights are missing, damaged, or do not fit the configuration.
        """
        try:
            module = build_model(self.model, self.adapt, self.spec)
        except MissingError:
            raise
        except (
            Exception
        ) as error:  # the options were checked, but a stranger's specification may hold anything
            raise ArtefactError(
                say(
                    "'{path}' is damaged: no model can be built of its config.json ({error})",
                    path=self.path,
                    error=_brief(error),
                )
            ) from error
        path = self.path / "model.safetensors"
        try:
            weights = safetensors.torch.load_file(path)
        except FileNotFoundError:
            raise ArtefactError(
                say("'{folder}' is incomplete: {name} is missing", folder=self.path, name="model.safetensors")
            ) from None
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise ArtefactError(say("'{file}' is damaged: {error}", file=path, error=_brief(error))) from None
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ArtefactError(
                say("'{path}' does not fit config.json: {error}", path=path, error=_brief(error))
            ) from None
        return module.eval()

    def verify_weights(self) -> None:
        """Check that the weights are the file that was written.

        Raises:
            ArtefactError: if a single bit differs.
        """
        expected = self.lineage.get("weights")
        if expected is not None and files.sha256_of(self.path / "model.safetensors") != expected:
            raise ArtefactError(
                say(
                    "'{file}' is damaged: it is not the file that was written when the artefact was made",
                    file=self.path / "model.safetensors",
                )
            )


def _imports_of(folder: Path) -> list[str]:
    """Return the modules that the recipe of an artefact imported."""
    try:
        data = read_yaml((folder / "recipe.yaml").read_text(encoding="utf-8")).data
        return [str(name) for name in data.get("imports") or []]
    except (OSError, ValueError, AttributeError, TypeError, RecipeError):
        return []


def is_artefact(path: Path) -> bool:
    """Whether a directory is an artefact of ours."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (path / "model.safetensors").is_file() and (path / "preprocessing.json").is_file()
    return isinstance(config, dict) and "luban" in config


def write(
    folder: Path,
    *,
    version: str,
    model: Component,
    adapt: Sequence[Component],
    spec: Spec,
    pipeline: Pipeline,
    weights: Mapping[str, Tensor],
    recipe: str,
) -> str:
    """Write the parts of an artefact that prediction needs into a folder.

    Returns:
        sha256 of the weights.
    """
    write_json(
        folder / "config.json",
        {
            "luban": version,
            "format": FORMAT,
            "model": cast(Model, model).portable().model_dump(),
            "adapt": [a.model_dump() for a in adapt],
            "spec": spec.to_json(),
        },
    )
    state = pipeline.state()
    for i, part in enumerate(part for part in _parts(state) if "tokenizer" in part["state"]):
        name = _TOKENIZER if i == 0 else f"tokenizer-{i}.json"
        (folder / name).write_text(part["state"].pop("tokenizer"), encoding="utf-8")
        part["state"]["tokenizer_file"] = name
    write_json(folder / "preprocessing.json", state)
    write_tensors(
        {name: value.detach().cpu().contiguous() for name, value in weights.items()},
        folder / "model.safetensors",
    )
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return files.sha256_of(folder / "model.safetensors")


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> None:
    """Add to an artefact's config.json what was fitted on validation rows."""
    config = _read_json(folder, "config.json")
    config["decide"] = [{"options": one.model_dump(), "state": one.state()} for one in decisions]
    write_json(folder / "config.json", config)


def _decision(saved: dict[str, Any], pipeline: Pipeline) -> Decision:
    decision = cast(Decision, Section("decisions").parse(saved["options"]))
    decision.restore(saved["state"])
    if decision.column not in pipeline.scored:
        raise ValueError(f"'{decision.column}' is decided, and is no target")
    return decision


def _parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [*state["inputs"].values(), *state["targets"].values(), *state["clean"]]


def _inside(folder: Path, name: str) -> Path:
    """Return a file of the artefact; one from a stranger must not point elsewhere."""
    path = folder / name
    if Path(name).name != name:
        raise ArtefactError(
            say("'{folder}' is damaged: it refers to '{name}' outside itself", folder=folder, name=name)
        )
    return path


def write_json(path: Path, data: Any) -> None:
    """Write JSON as people and diffs like it; of sentences also how they were made (`luban.sentences.kept`)."""
    data = kept(data) if isinstance(data, dict) else data
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(
            say("'{folder}' is incomplete: {name} is missing", folder=folder, name=name)
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(
            say("'{file}' is damaged: {error}", file=folder / name, error=_brief(error))
        ) from None
    if not isinstance(data, dict):
        raise ArtefactError(say("'{file}' is damaged: it holds no mapping", file=folder / name))
    return data


def _read_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        raise ArtefactError(
            say(
                "'{folder}' is incomplete: {name} is missing, so nobody can tell whether it still predicts what it did",
                folder=folder,
                name=name,
            )
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(
            say("'{file}' is damaged: {error}", file=folder / name, error=_brief(error))
        ) from None
    if not all(
        isinstance(one, dict) and all(isinstance(one.get(key), dict) for key in ("row", "prediction"))
        for one in lines
    ):
        raise ArtefactError(
            say("'{file}' is damaged: each line holds a row and its prediction", file=folder / name)
        )
    return lines


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
