"""A directory that `transformers` loads: config.json, model.safetensors, tokenizer, generation config, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luban.adapt.lora import merge
from luban.artefact import Artefact, write_json
from luban.data._messages import dump, read
from luban.data.contracts import Processor
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.errors import InputError, ParityError
from luban.models._language import Language, LanguageEncoder, encoder_of
from luban.models._network import Network, module_key
from luban.models.interop import config_of, tensors_of
from luban.predict import TOLERANCE, Predictor
from luban.tensors import write_tensors

__all__ = ["write"]

_CLASSES = {
    "bert": ("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
    "roberta": ("RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"),
    "distilbert": ("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    "llama": ("LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification"),
    "qwen2": ("Qwen2Model", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification"),
    "qwen3": ("Qwen3Model", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
}
_PROBLEMS = {
    "category": "single_label_classification",
    "binary": "single_label_classification",
    "set": "multi_label_classification",
    "number": "regression",
}


def write(artefact: Artefact, predictor: Predictor, folder: Path) -> dict[str, Any]:
    """Write the directory and compare what `transformers` makes of it with what the artefact makes.

    A yes-or-no target, which has one logit here, has two there: zero and that logit, whose softmax is the same probability.

    Args:
        artefact: what is exported.
        predictor: the artefact, loaded.
        folder: where the files go; it exists and is empty.

    Returns:
        ``architecture`` and ``drift``, the largest difference of a logit over the sample, None where `transformers` is not
        installed.

    Raises:
        InputError: if `transformers` has no model of this form.
        ParityError: if the logits differ.
    """
    merge(predictor.model)  # transformers knows no adapters of ours
    encoder, column, text = _parts(artefact, predictor)
    model = encoder.options
    config = config_of(model, encoder.core.shape.vocabulary)
    tensors = tensors_of(model, encoder)
    base, language, classifier = _CLASSES[config["model_type"]]
    target = next(iter(artefact.pipeline.targets), None)
    if encoder.language is not None:
        architecture = language
    elif target is None:
        architecture = base
        tensors = _bare(tensors, config["model_type"])
    else:
        architecture = classifier
        processor = artefact.pipeline.targets[target]
        config |= _labels(processor)
        head = predictor.model.heads[module_key(target)]  # type: ignore[index]
        assert isinstance(head, nn.Linear)
        tensors |= _head(model, config["model_type"], head, processor)
    config |= {"architectures": [architecture], "torch_dtype": "float32", **_special(text)}
    write_json(folder / "config.json", config)
    write_tensors(tensors, folder / "model.safetensors")
    _write_tokenizer(text, model, folder)
    if encoder.core.shape.causal:
        ids = {key: value for key, value in _special(text).items() if value is not None}
        write_json(folder / "generation_config.json", ids)
    return {
        "architecture": architecture,
        "drift": _drift(artefact, predictor, folder, column, text, architecture),
    }


def _parts(artefact: Artefact, predictor: Predictor) -> tuple[LanguageEncoder, str, Text]:
    """Return the language model of an artefact, its column and its text processor, if it has the form that is known there."""
    if not isinstance(artefact.model, Language) or not isinstance(predictor.model, Network):
        raise InputError(
            f"an artefact of type '{artefact.model.type}' has no counterpart in transformers; format hf takes bert, gpt2, llama, qwen2, qwen3 and smollm"
        )
    encoder = encoder_of(predictor.model)
    if artefact.pipeline.written:
        raise InputError(
            f"an artefact of type '{artefact.model.type}' has two texts, and format hf writes the tokenizer of one; it takes bert, gpt2, llama, qwen2, qwen3 and smollm"
        )
    if len(predictor.model.encoders) > 1 or len(artefact.pipeline.inputs) > 1:
        raise InputError(
            "transformers reads one text, and this artefact has more inputs; format hf cannot hold them"
        )
    if len(artefact.pipeline.targets) > 1 or artefact.model.hidden:
        raise InputError(
            "transformers has one linear head, and this artefact has several targets or hidden layers; format hf cannot hold them"
        )
    wanted = "last" if encoder.core.shape.causal else "pooler"
    if artefact.pipeline.targets and encoder.pool != wanted:
        raise InputError(
            f"transformers' classifier reads the {'last token' if wanted == 'last' else 'pooler'}, and this artefact pools '{encoder.pool}'; train with model.pool={wanted}"
        )
    column = next(iter(artefact.pipeline.inputs))
    text = artefact.pipeline.inputs[column]
    assert isinstance(text, Text)
    return encoder, column, text


def _bare(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors of a model without a head, whose names have no prefix."""
    prefix = {"gpt2": "transformer.", "llama": "model.", "qwen2": "model.", "qwen3": "model."}.get(
        kind, f"{kind}."
    )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _labels(processor: Processor) -> dict[str, Any]:
    names = processor.classes() or ["value"]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": _PROBLEMS[processor.type],
    }


def _head(model: Language, kind: str, head: nn.Linear, processor: Processor) -> dict[str, Tensor]:
    stem = {"bert": "classifier", "distilbert": "classifier", "roberta": "classifier.out_proj"}.get(
        kind, "score"
    )
    weight = head.weight.detach().cpu()
    bias = None if head.bias is None else head.bias.detach().cpu()
    if processor.type == "binary":
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = None if bias is None else torch.cat([torch.zeros_like(bias), bias])
    found = {f"{stem}.weight": weight.contiguous()}
    return found if bias is None else {**found, f"{stem}.bias": bias}


def _special(text: Text) -> dict[str, Any]:
    found = {"pad_token_id": text.pad_id, "eos_token_id": text.end_id, "bos_token_id": text.begin_id}
    if found["pad_token_id"] is None:  # transformers' classifiers need one to find the last token
        found["pad_token_id"] = text.end_id
    return found


def _write_tokenizer(text: Text, model: Language, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(text.trained.to_str(), encoding="utf-8")
    names = {
        "pad_token": text.pad_id,
        "unk_token": text.unk_id,
        "cls_token": text.cls_id,
        "sep_token": text.sep_id,
        "mask_token": text.mask_id,
        "eos_token": text.end_id,
        "bos_token": text.begin_id,
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_positions,
        "clean_up_tokenization_spaces": False,
        **{name: text.trained.id_to_token(i) for name, i in names.items() if i is not None},
    }
    if text.chat_template:
        settings["chat_template"] = text.chat_template
    write_json(folder / "tokenizer_config.json", settings)


def _drift(
    artefact: Artefact, predictor: Predictor, folder: Path, column: str, text: Text, architecture: str
) -> float | None:
    """Return the largest difference of a logit over the sample between the two, row by row."""
    try:
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()  # its remarks are for those who train with it
    transformers.logging.disable_progress_bar()
    theirs = getattr(transformers, architecture).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    worst = 0.0
    for one in artefact.sample:
        value = str(one["row"].get(column) or "")
        if isinstance(text, Chat):
            value = dump(read(one["row"][column]))
        ids = text.encode_texts([value])["ids"].values.tolist()  # type: ignore[union-attr]
        if not ids:
            continue
        if isinstance(text, Chat):  # its tokens are cut where answers begin; what must agree is the text
            written = tokenizer.apply_chat_template(read(value), tokenize=False)
            own = ids if written == text.text_of(value) else tokenizer(written)["input_ids"]
        else:
            own = tokenizer(value, truncation=True, max_length=text.max_length)["input_ids"]
        if own != ids:
            raise ParityError(
                f"transformers reads {value[:40]!r} as other tokens than the artefact ({own[:8]} and {ids[:8]}): '{folder}' was not kept"
            )
        batch = predictor.batch([one["row"]])
        with torch.inference_mode():
            outputs = predictor.model(batch)
            found = theirs(torch.tensor([ids], device="cpu"))
            ours, other = _comparable(outputs, found, column, artefact)
        worst = max(worst, float((ours - other).abs().max()))
    if worst > 10 * TOLERANCE:
        raise ParityError(
            f"transformers' logits differ from the artefact's by {worst:.2g}; '{folder}' was not kept"
        )
    return worst


def _comparable(outputs: Any, found: Any, column: str, artefact: Artefact) -> tuple[Tensor, Tensor]:
    if f"{column}.tokens" in outputs:
        return outputs[f"{column}.tokens"].logits().cpu(), found.logits[0]
    target = next(iter(artefact.pipeline.targets), None)
    if target is None:
        states = outputs.get(f"{column}.states")
        if states is not None:
            return states.values.cpu(), found.last_hidden_state[0]
        return outputs["features"].cpu(), found.last_hidden_state[
            0, -1:
        ] if artefact.model.pool == "last" else found.last_hidden_state[0, :1]  # type: ignore[attr-defined]
    processor = artefact.pipeline.targets[target]
    ours = outputs[f"{target}.{processor.output}"].cpu()
    return ours, found.logits[:, 1:] - found.logits[:, :1] if processor.type == "binary" else found.logits
