"""The verb `import`: somebody else's model → an artefact that every other verb takes."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from luban import artefact, files, machine
from luban._version import __version__
from luban.artefact import Artefact
from luban.console import Console
from luban.data.contracts import Field, Processor, Spec
from luban.data.pipeline import Pipeline
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.errors import ArtefactError, DataError, RecipeError
from luban.models._foreign_classifier import ForeignClassifier
from luban.models._language import Language
from luban.models._network import Network, module_key
from luban.models.huggingface import HuggingFace
from luban.models.interop import FAMILIES, KINDS, Checkpoint, open_checkpoint
from luban.predict import load, of_artefact
from luban.recipe import Recipe, Section, dump, options_from
from luban.registry import lookup
from luban.verbs import card
from luban.verbs.lineage import versions

__all__ = ["import_model"]

# Rows of the parity sample: nobody's data, in both languages, short and long.
_SAMPLE = (
    "The capital of France is",
    "鲁班是木匠的祖师。",
    "A good tool improves the way you work; a great tool improves the way you think.",
    "工欲善其事，必先利其器。",
    "Yes.",
    "今天天气不错，我们去公园走走，然后回家做饭。",
    "Numbers such as 3.14159 and 2,718 matter, and so do emoji 🙂.",
    "第一次来这里，服务很好，下次还会再来。",
)
_TALKS = (_SAMPLE[:2], _SAMPLE[2:4], _SAMPLE[4:])
"""Of a model that chats: who speaks takes turns."""
_PAIRS = ("ForConditionalGeneration", "MTModel", "ForTextToText", "EncoderDecoderModel")
"""How the names end of architectures that read one text and write another."""
_POOLS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
}


def import_model(
    source: str | Path,
    output: str | Path,
    *,
    column: str | None = None,
    target: str | None = None,
    pool: str | None = None,
    chat: bool | None = None,
    force: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Make an artefact of a Hugging Face directory or a GGUF file.

    What the model is for follows from its architecture: a sequence classifier predicts `target`, a causal language model
    generates, a masked one fills masks, an encoder with a decoder writes `target`, and a model without a head embeds texts. A
    causal model that brings a chat template answers conversations.

    Args:
        source: the directory or the .gguf file.
        output: the artefact's directory.
        column: name of the text column; ``messages`` where it holds conversations and else ``text`` if left out.
        target: name of the column that is predicted or written; ``label`` of a classifier and else ``written`` if left out.
        pool: how a model without a head makes one vector of a text; as its files say by default.
        chat: whether a causal model answers conversations or continues texts as they stand; by default it answers where it brings
            a template of conversations.
        force: replace what is there.
        console: who is told what happens.

    Returns:
        ``artefact``, ``model``, ``parameters``, ``task`` (classification, causal_lm, chat, masked_lm, seq2seq or embedding),
        ``column``.

    Raises:
        LubanError: in one sentence, if the source is none that can be read.

    Example:
        >>> luban.import_model("models/minilm", "runs/minilm")["task"]      # doctest: +SKIP
        'embedding'
    """
    console = console or Console()
    started = time.perf_counter()
    place = Path(output)
    files.require_place(place, force, artefact.is_artefact)
    checkpoint = open_checkpoint(source)
    if checkpoint.kind == "luban":
        raise RecipeError(f"'{source}' is an artefact already; every verb takes it as it is")
    task = _task(checkpoint)
    family = _family(checkpoint, task, pool)
    if task == "embedding" and "Normalize" in _modules(checkpoint):
        console.say(
            f"'{source}' is followed by Normalize, which is left out: vectors have the length that the model gives them"
        )
    text = _text(family, checkpoint)
    if (talks := _chat(text, checkpoint, task, chat, console)) is not None:
        text = talks
    column = column or ("text" if talks is None else "messages")
    processor: Processor | None = None
    if task == "classification":
        processor, target = _target(checkpoint), target or "label"
    elif task == "seq2seq":
        limit = family.longest_written if isinstance(family, HuggingFace) else text.max_length
        opening = getattr(family, "forced_first", None)
        processor, target = _written(text, column, limit, opening), target or "written"
    targets = {} if processor is None or target is None else {target: processor}
    pipeline = Pipeline({column: text}, targets)
    spec = pipeline.spec
    if task in ("causal_lm", "masked_lm"):
        size = text.trained.get_vocab_size()
        spec = Spec(
            {**spec.fields, f"{column}.labels": Field(column, "tokens", "target", "int64", None, size=size)}
        )
    module = family.build(spec)
    missing = family.load_pretrained(module)
    if missing and task == "classification":
        raise ArtefactError(
            f"'{source}' is incomplete: it lacks {', '.join(missing)}, so that what it predicts would be chance; start a recipe from it by model.from, "
            "which trains what is new"
        )
    if missing and not (missing == ["pooler"] and processor is None and family.pool != "pooler"):
        console.say(f"new weights, which '{source}' lacks: {', '.join(missing)}")
    if task == "classification" and processor is not None and target is not None:
        _load_head(module, target, checkpoint, processor)
    options: dict[str, Any] = {
        "data": {
            "train": {"type": "text", "path": str(source)},
            "inputs": {column: text.model_dump()},
            "targets": {name: one.model_dump() for name, one in targets.items()},
        },
        "model": family.portable().model_dump(),
    }
    if task in ("causal_lm", "masked_lm"):
        options["objective"] = {"type": task, "column": column}
    recipe = Recipe.model_validate(options)
    with files.new_folder(place, replace=place.exists()) as folder:
        weights = artefact.write(
            folder,
            version=__version__,
            model=family,
            adapt=[],
            spec=spec,
            pipeline=pipeline,
            weights=module.state_dict(),
            recipe=dump(recipe),
        )
        for name in ("metrics.json", "lineage.json"):
            artefact.write_json(folder / name, {})
        (folder / "sample.jsonl").write_text("", encoding="utf-8")
        predictor = of_artefact(Artefact.load(folder), verify=False)
        rows: list[dict[str, Any]] = [{column: sentence} for sentence in _SAMPLE]
        if talks is not None:
            rows = [{column: _talk(one)} for one in _TALKS]
        elif task == "seq2seq" and target is not None:
            rows = [{**row, target: other} for row, other in zip(rows, _SAMPLE[1:], strict=False)]
        sample = [
            {"row": row, "prediction": prediction}
            for row, prediction in zip(rows, predictor.replay(rows), strict=True)
        ]
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in sample)
        (folder / "sample.jsonl").write_text(lines, encoding="utf-8")
        parameters = sum(p.numel() for p in module.parameters())
        lineage = {
            "verb": "import",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "parents": [{"path": str(source), "sha256": _hashes(checkpoint)}],
            "weights": weights,
            "versions": versions(),
            "cost": {
                "seconds": round(time.perf_counter() - started, 2),
                "peak_memory_mb": round(machine.peak_memory_mb(), 1),
            },
        }
        artefact.write_json(folder / "lineage.json", lineage)
        task = task if talks is None else "chat"
        card.write_imported(folder, lineage=lineage, recipe=recipe, parameters=parameters, task=task)
        load(folder)  # the parity contract, before anybody relies on it
    return {
        "artefact": str(place), "model": family.type, "parameters": parameters, "task": task, "column": column,
    }  # fmt: skip


def _task(checkpoint: Checkpoint) -> str:
    """Return what a model is for: classification, causal_lm, masked_lm, seq2seq or embedding."""
    architecture = str(([*(checkpoint.said("architectures", list) or []), ""])[0])
    if checkpoint.kind == "gguf":
        return "causal_lm"
    if architecture.endswith("ForSequenceClassification"):
        return "classification"
    if architecture.endswith("LMHeadModel") and checkpoint.said("is_encoder_decoder", bool):
        return "seq2seq"  # as T5's was called once
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal_lm"
    known = checkpoint.config.get("model_type") in KINDS
    if architecture.endswith("ForMaskedLM") or (known and architecture.endswith("ForPreTraining")):
        return "masked_lm"
    if architecture.endswith("ForPreTraining"):  # of another kind, such as telling apart replaced tokens
        return "embedding"
    if architecture.endswith(_PAIRS):
        return "seq2seq"
    if "For" in architecture:
        raise RecipeError(
            f"'{checkpoint.path}' is a {architecture}; those that can be imported are sequence classifiers, causal and masked language models, encoders with a decoder, and models without a head"
        )
    return "embedding"


def _family(checkpoint: Checkpoint, task: str, pool: str | None) -> Language | HuggingFace:
    kind = str(checkpoint.config.get("model_type"))
    name = next((name for name, kinds in FAMILIES.items() if kind in kinds), None)
    if name == "seq2seq" and task == "classification":
        name = None  # which writes nothing: transformers' own reads its decoder's state at the end token
    if name == "seq2seq" and task != "seq2seq":
        raise RecipeError(
            f"'{checkpoint.path}' holds an encoder and a decoder, and not what turns their states into tokens; start a recipe from it, with model: {{type: seq2seq, from: {checkpoint.path}}}"
        )
    if name is None:
        options: dict[str, Any] = {
            "task": {"embedding": "encoder", "classification": "classifier"}.get(task, task),
            "from": str(checkpoint.path),
        }
        if pool is not None or task == "embedding":
            options["pool"] = pool or _pooling(checkpoint)
        return options_from(HuggingFace, options, f"'{checkpoint.path}'")
    options = {"from": str(checkpoint.path)}
    if pool is not None or task == "embedding":
        options["pool"] = pool or _pooling(checkpoint)
    family = options_from(cast(type[Language], lookup("models", name)), options, f"'{checkpoint.path}'")
    if task == "causal_lm" and not family.CAUSAL:
        raise RecipeError(
            f"'{checkpoint.path}' says it is causal, and model type '{name}' looks both ways; take type 'huggingface'"
        )
    return family


def _modules(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what sentence-transformers runs one after another, and in which folder each lies."""
    path = checkpoint.path / "modules.json"
    if not path.is_file():
        return {}
    listed = _json(path)
    if not isinstance(listed, list) or not all(
        isinstance(one, dict) and isinstance(one.get("type"), str) for one in listed
    ):
        raise RecipeError(f"'{path}' is no list of modules with a type each")
    return {one["type"].rpartition(".")[2]: str(one.get("path", "")) for one in listed}


def _pooling(checkpoint: Checkpoint) -> str:
    """Return how texts become vectors: as sentence-transformers wrote it beside the model; else their mean.

    Raises:
        RecipeError: if it is in a way that no family here has.
    """
    modules = _modules(checkpoint)
    if other := [name for name in modules if name not in ("Transformer", "Pooling", "Normalize")]:
        raise RecipeError(
            f"'{checkpoint.path}' makes vectors with a module {other[0]}, and those that are followed are Transformer, Pooling and Normalize; name a pool with --pool to leave it out"
        )
    path = checkpoint.path / Path(modules.get("Pooling") or "1_Pooling").name / "config.json"
    said = _said(path)
    modes = [key for key, value in said.items() if key.startswith("pooling_mode_") and value]
    if isinstance(one := said.get("pooling_mode"), str):  # newer releases
        long = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
        modes = [f"pooling_mode_{long.get(one, one)}"]
    if len(modes) > 1 or not set(modes) <= set(_POOLS):
        raise RecipeError(
            f"'{path}' asks for {' and '.join(modes)}, and the pools here are one of {', '.join(_POOLS)}; name one with --pool"
        )
    return _POOLS[modes[0]] if modes else "mean"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"'{path}' is damaged: {' '.join(str(error).split())[:120]}") from None


def _said(path: Path) -> dict[str, Any]:
    """Return what a file beside a model says, nothing where there is none."""
    if not path.is_file():
        return {}
    said = _json(path)
    return said if isinstance(said, dict) else {}


def _text(family: Language | HuggingFace, checkpoint: Checkpoint) -> Text:
    limit = family.max_positions
    # How much of a text sentence-transformers reads of it.
    said = _said(checkpoint.path / "sentence_bert_config.json").get("max_seq_length")
    if isinstance(said, int) and said > 0:
        limit = said if limit is None else min(limit, said)
    text = Text(tokenizer=str(checkpoint.path), lowercase=False, max_length=limit)
    text.finish()
    return text


def _written(text: Text, column: str, limit: int | None, opening: int | None) -> Text:
    """Return what holds texts that are written, of at most so many tokens, with the tokenizer of those that are read; each ends with
    an end token, and begins with the one that it is made to begin with, if any."""
    written = Text(like=column, end=text.end_id is not None, max_length=limit, opening=opening)
    written.share(text)
    return written


def _chat(text: Text, checkpoint: Checkpoint, task: str, asked: bool | None, console: Console) -> Chat | None:
    """Return what reads conversations, where these are what the model is for or what was asked for."""
    if asked is False:
        return None
    if task != "causal_lm" or text.chat_template is None:
        if asked:
            raise RecipeError(
                f"'{checkpoint.path}' brings no chat template, so nobody can tell how it reads conversations; leave --chat out, or tune "
                "it on conversations by a recipe"
                if task == "causal_lm"
                else f"'{checkpoint.path}' is for {task.replace('_', ' ')} and answers nobody; leave --chat out"
            )
        return None
    chat = Chat(tokenizer=text.tokenizer, lowercase=False, max_length=text.max_length)
    try:
        chat.finish()
    except DataError as error:
        if asked:
            raise
        console.say(f"{error}; so the artefact continues texts, and answers no conversations")
        return None
    if asked is None:
        console.say(
            f"'{checkpoint.path}' brings a chat template, so the artefact answers conversations; with --plain it continues texts as they stand"
        )
    return chat


def _talk(contents: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for role, content in zip(itertools.cycle(("user", "assistant")), contents, strict=False)
    ]


def _target(checkpoint: Checkpoint) -> Processor:
    """Return the fitted target of a sequence classifier."""
    names = _labels(checkpoint)
    kind = checkpoint.said("problem_type", str)
    if kind == "multi_label_classification":
        target = cast(Processor, Section("processors").parse("set"))
        target.restore({"words": names})
    elif kind == "regression" or len(names) == 1:
        raise RecipeError(
            f"'{checkpoint.path}' is a regression model, whose numbers have no unit that could be known; take its weights by model.from in a recipe"
        )
    else:
        target = cast(Processor, Section("processors").parse("category"))
        target.restore({"words": names})
    return target


def _labels(checkpoint: Checkpoint) -> list[str]:
    """Return the names of a classifier's classes, by their numbers."""
    labels = checkpoint.said("id2label", dict)
    if not labels:
        count = checkpoint.said("num_labels", int)
        count = 2 if count is None else count
        if not 0 < count <= max((max(shape, default=0) for shape in checkpoint.shapes.values()), default=0):
            raise RecipeError(f"'{checkpoint.path}' has num_labels {count}, which its tensors do not have")
        return [f"LABEL_{i}" for i in range(count)]
    names = [labels.get(str(i)) for i in range(len(labels))]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise RecipeError(
            f"'{checkpoint.path}' has an id2label whose keys are not 0 to {len(labels) - 1}, or whose names are not unique texts; correct it in config.json"
        )
    return cast(list[str], names)


def _load_head(module: nn.Module, target: str, checkpoint: Checkpoint, processor: Processor) -> None:
    assert isinstance(module, Network)
    head = module.heads[module_key(target)]
    assert isinstance(head, nn.Linear)
    reader = next(iter(module.encoders.values()))
    if isinstance(reader, ForeignClassifier):
        stem = reader.decision
    else:
        stem = KINDS[checkpoint.config["model_type"]][1].classifier
    if f"{stem}.weight" not in checkpoint:
        raise ArtefactError(f"'{checkpoint.path}' is incomplete: there is no tensor '{stem}.weight'")
    with torch.no_grad():
        weight = checkpoint[f"{stem}.weight"]
        if weight.shape != head.weight.shape:
            raise ArtefactError(
                f"'{checkpoint.path}': tensor '{stem}.weight' is {tuple(weight.shape)}, and {len(processor.classes())} classes need {tuple(head.weight.shape)}"
            )
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(
                checkpoint[f"{stem}.bias"] if f"{stem}.bias" in checkpoint else torch.zeros(len(weight))
            )


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    path = checkpoint.path
    found = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {one.name: files.sha256_of(one) for one in found}
