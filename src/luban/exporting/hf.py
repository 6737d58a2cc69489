"""A directory that `transformers` loads: config.json, model.safetensors, tokenizer, generation config, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from luban.adapt.lora import merge
from luban.artefact import Artefact, write_json
from luban.data._messages import dump, read
from luban.data.contracts import Processor
from luban.data.processors._deciding import threshold_of
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.errors import InputError, ParityError
from luban.models._foreign import ForeignEncoder, ForeignLanguageModel, ForeignSpeaker
from luban.models._foreign_classifier import ForeignClassifier
from luban.models._foreign_pair import ForeignPair
from luban.models._language import Language, LanguageEncoder, encoder_of
from luban.models._network import Network, module_key
from luban.models.huggingface import HuggingFace
from luban.models.interop import KINDS, config_of, tensors_of
from luban.objectives.next_sentence import NextSentence
from luban.predict import TOLERANCE, Predictor, frame_of
from luban.tensors import write_tensors
from luban.writing import Writer

__all__ = ["write"]

_OFFSET = 2  # of positions that are counted from the padding, in a module of ours
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
        ``architecture``; ``notes``, what the artefact does and the files cannot; ``drift``, the largest difference of a logit
        over the sample (of a number in deviations), None where `transformers` is not installed.

    Raises:
        InputError: if `transformers` has no model of this form.
        ParityError: if the logits differ.
    """
    merge(predictor.model)  # transformers knows no adapters of ours
    if predictor.writer is not None:
        return _write_pair(artefact, predictor, predictor.writer, folder)
    if isinstance(artefact.model, HuggingFace):
        wrote = _write_classifier if artefact.model.task == "classifier" else _write_foreign
        return wrote(artefact, artefact.model, predictor, folder)
    encoder, column, text = _parts(artefact, predictor)
    encoder.keep_states = True  # of every token, which is what is compared where there is no head
    model = encoder.options
    config = config_of(model, encoder.core.shape.vocabulary)
    tensors = tensors_of(model, encoder)
    kind, layout = KINDS[config["model_type"]]
    heads = {key: head for key, head in predictor.model.heads.items() if isinstance(head, nn.Linear)}  # type: ignore[union-attr,operator]
    target = next(iter(artefact.pipeline.targets), None)
    notes: list[str] = []
    if encoder.language is not None:
        architecture = kind.language
        pairs = heads.get(module_key(NextSentence.FIELD))
        if pairs is not None and kind.pretraining and encoder.pooler is not None:
            architecture = kind.pretraining
            tensors |= {f"{layout.pairs}.{name}": value for name, value in _plain(pairs).items()}
        elif pairs is not None:
            notes.append(
                f"{kind.language} has no place for what tells whether a text goes on; it is left out"
            )
    elif target is None:
        architecture = kind.bare
        prefix = layout.tensors.prefix  # which the names of a model without a head do not have
        tensors = {
            name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }
    else:
        architecture = kind.classifier
        processor = artefact.pipeline.targets[target]
        config |= _labels(processor)
        tensors |= _head(
            layout.classifier, heads[module_key(target)], target, processor, config["model_type"]
        )
    notes += _beside(artefact)
    special = _special(text)
    if layout.tensors.pads_positions:
        tensors = _counting_from_padding(tensors, special["pad_token_id"])
        config["max_position_embeddings"] = model.max_positions + special["pad_token_id"] + 1
    config |= {"architectures": [architecture], "torch_dtype": "float32", **special}
    write_json(folder / "config.json", config)
    write_tensors(tensors, folder / "model.safetensors")
    speaks = encoder.language is not None
    _write_tokenizer(text, model.max_positions, folder, speaks=speaks)
    if encoder.core.shape.causal and speaks:
        _write_generation(text, special, folder)
    return {
        "architecture": architecture,
        "notes": notes,
        "drift": _drift(artefact, predictor, folder, column, text, architecture, speaks=speaks),
    }


def _write_foreign(
    artefact: Artefact, options: HuggingFace, predictor: Predictor, folder: Path
) -> dict[str, Any]:
    """Write back a language model whose layers are those of transformers; as `write`."""
    network, pipeline = predictor.model, artefact.pipeline
    assert isinstance(network, Network)
    assert options.config is not None
    encoder = next(iter(network.encoders.values()))
    if not isinstance(encoder, ForeignLanguageModel):
        raise InputError(
            f"this artefact of type '{options.type}' is an encoder, whose pooling and heads transformers has no class for; format hf takes tasks "
            "classifier, causal_lm, masked_lm and seq2seq, and bert, gpt2, llama, qwen2, qwen3, smollm and seq2seq"
        )
    if len(network.encoders) > 1 or pipeline.targets or options.hidden:
        raise InputError(
            "transformers' language model reads one text and puts out its tokens, and this artefact has more inputs, a target or "
            "hidden layers; format hf cannot hold them"
        )
    ((column, text),) = pipeline.inputs.items()
    assert isinstance(text, Text)
    architecture = type(encoder.model).__name__
    tensors = _own(encoder)
    special = _special(text)
    if text.pad_id is None and options.config.get("pad_token_id") is not None:
        special["pad_token_id"] = options.config["pad_token_id"]
    said = {key: value for key, value in special.items() if value is not None}
    if isinstance(made_with := getattr(encoder.model.config, "pad_token_id", None), int):
        said["pad_token_id"] = made_with  # from which some count positions, whatever the tokenizer calls it
    write_json(
        folder / "config.json",
        {**_config_of(encoder, options), "architectures": [architecture], "torch_dtype": "float32", **said},
    )
    write_tensors(tensors, folder / "model.safetensors")
    _write_tokenizer(text, options.max_positions, folder, speaks=True)
    if encoder.causal:
        _write_generation(text, special, folder)
    return {
        "architecture": architecture,
        "notes": _beside(artefact),
        "drift": _drift(artefact, predictor, folder, column, text, architecture, speaks=True),
    }


def _write_classifier(
    artefact: Artefact, options: HuggingFace, predictor: Predictor, folder: Path
) -> dict[str, Any]:
    """Write back a sequence classifier whose layers are those of transformers, with our head in its place; as `write`."""
    network, pipeline = predictor.model, artefact.pipeline
    assert isinstance(network, Network)
    assert options.config is not None
    if len(network.encoders) > 1 or len(pipeline.targets) != 1 or options.hidden:
        raise InputError(
            "transformers' sequence classifier reads one text and has one linear head, and this artefact has more inputs, another number of "
            "targets or hidden layers; format hf cannot hold them"
        )
    encoder = next(iter(network.encoders.values()))
    assert isinstance(encoder, ForeignClassifier)
    ((column, text),), ((target, processor),) = pipeline.inputs.items(), pipeline.targets.items()
    assert isinstance(text, Text)
    head = network.heads[module_key(target)]
    assert isinstance(head, nn.Linear)
    own = _head(encoder.decision, head, target, processor, encoder.architecture)
    architecture = type(encoder.model).__name__
    config = {
        **_config_of(encoder, options),
        **_labels(processor),
        "architectures": [architecture],
        "torch_dtype": "float32",
    }
    if encoder.names_padding:
        config["pad_token_id"] = encoder.padding  # of those that cannot do without, what the class has
    elif text.pad_id is not None:
        config["pad_token_id"] = text.pad_id  # without one transformers takes one text at a time
    write_json(folder / "config.json", config)
    tensors = {name.removeprefix("model."): value for name, value in encoder.state_dict().items()}
    write_tensors(tensors | own, folder / "model.safetensors")
    _write_tokenizer(text, options.max_positions, folder, speaks=False, segments=bool(encoder.segments))
    return {
        "architecture": architecture,
        "notes": _beside(artefact),
        "drift": _drift(artefact, predictor, folder, column, text, architecture, speaks=False),
    }


def _write_generation(text: Text, special: dict[str, Any], folder: Path) -> None:
    """Write where texts end that a causal language model generates."""
    ids = {key: value for key, value in special.items() if value is not None}
    if ends := _ends(text):
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    write_json(folder / "generation_config.json", ids)


def _beside(artefact: Artefact) -> list[str]:
    """Return what the artefact does before and after its model, which no files of transformers hold."""
    notes = [
        f"'{target}' is decided at {threshold:g} here and at 0.5 there"
        + ("" if artefact.decisions else "; the probabilities are the same")
        for target, processor in artefact.pipeline.targets.items()
        if (threshold := threshold_of(processor)) != 0.5
    ]
    if steps := ", ".join(step.type for step in artefact.pipeline.cleaners):
        notes.append(f"the artefact cleans rows ({steps}), and transformers does not: clean them before")
    if decided := ", ".join(one.type for one in artefact.decisions):
        notes.append(
            f"the artefact decides by what was fitted behind the model ({decided}), and transformers does not: its scores are the model's own"
        )
    return notes


def _write_pair(artefact: Artefact, predictor: Predictor, writer: Writer, folder: Path) -> dict[str, Any]:
    """Write an encoder with its decoder; as `write`."""
    model, encoder, pipeline = artefact.model, writer.encoder, artefact.pipeline
    assert isinstance(model, Language | HuggingFace)
    if len(pipeline.inputs) > 1 or pipeline.scored or model.hidden:
        raise InputError(
            "transformers reads one text and writes one, and this artefact has more inputs, more targets or hidden layers; format hf cannot hold them"
        )
    ((column, text),) = pipeline.inputs.items()
    assert isinstance(text, Text)
    if text.trained.to_str() != writer.text.trained.to_str():
        raise InputError(
            f"format hf writes one tokenizer, and '{column}' and '{writer.column}' have tokenizers of their own; train with "
            f"data.targets.{writer.column}: {{type: text, like: {column}}}"
        )
    special = _special(text)
    if isinstance(model, HuggingFace):
        assert isinstance(encoder, ForeignPair)
        config, tensors = _config_of(encoder, model), _own(encoder)
        architecture = type(encoder.model).__name__
        # Some number their positions by what fills, which is what the model was made with, whatever the tokenizer calls it.
        special = {key: one for key, one in special.items() if one is not None} | {
            "pad_token_id": encoder.padding
        }
    else:
        config, tensors, architecture = _pair_of_ours(predictor, model)
        if special["pad_token_id"] is None:
            special["pad_token_id"] = encoder.start
    said = {
        **special,
        "decoder_start_token_id": encoder.start,
        "forced_bos_token_id": encoder.forced_first,
        "forced_eos_token_id": encoder.forced_last,
    }
    write_json(
        folder / "config.json", {**config, "architectures": [architecture], "torch_dtype": "float32", **said}
    )
    write_tensors(tensors, folder / "model.safetensors")
    _write_tokenizer(text, model.max_positions, folder, speaks=False)
    ends = _ends(writer.text)
    longest = 1 + writer.options().max_tokens  # theirs counts the token that the decoder begins with
    generation = {**said, **({"eos_token_id": ends} if ends else {}), "max_length": longest}
    write_json(
        folder / "generation_config.json", {key: one for key, one in generation.items() if one is not None}
    )
    return {
        "architecture": architecture,
        "notes": _beside(artefact),
        "drift": _pair_drift(artefact, predictor, writer, folder, column, architecture),
    }


def _pair_of_ours(predictor: Predictor, model: Language) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Return configuration, tensors and architecture of an encoder with a decoder of Luban's own."""
    encoder = encoder_of(predictor.model)
    tensors = tensors_of(model, encoder)
    config = config_of(model, encoder.core.shape.vocabulary)
    rows = len(tensors["lm_head.weight"])
    if "decoder_vocab_size" in config:
        config["decoder_vocab_size"] = rows
    elif rows != config["vocab_size"]:
        raise InputError(
            f"transformers' '{config['model_type']}' has as many tokens to write as to read, and this model has {rows:,} and {config['vocab_size']:,}; train with model.shared true"
        )
    return config, tensors, KINDS[config["model_type"]][0].language


def _config_of(encoder: ForeignEncoder, options: HuggingFace) -> dict[str, Any]:
    """Return the configuration of a model whose layers are those of transformers, as it is run here."""
    config = dict(options.config or {})
    kinds = {getattr(part, "attention_type", None) for part in encoder.model.modules()} - {None}
    if kinds == {"original_full"}:  # BigBird's, which is sparse no more once it has read a short text
        config["attention_type"] = "original_full"
    return config


def _own(encoder: ForeignSpeaker) -> dict[str, Tensor]:
    """Return the tensors of a model whose layers are those of transformers, by the names that it has there."""
    return {name.removeprefix("model."): value for name, value in encoder.state_dict().items()}


def _parts(artefact: Artefact, predictor: Predictor) -> tuple[LanguageEncoder, str, Text]:
    """Return the language model of an artefact, its column and its text processor, if it has the form that is known there."""
    if not isinstance(artefact.model, Language) or not isinstance(predictor.model, Network):
        raise InputError(
            f"an artefact of type '{artefact.model.type}' has no counterpart in transformers; format hf takes bert, gpt2, llama, qwen2, qwen3, smollm and seq2seq, and huggingface with tasks causal_lm, masked_lm and seq2seq"
        )
    encoder = encoder_of(predictor.model)
    if len(predictor.model.encoders) > 1 or len(artefact.pipeline.inputs) > 1:
        raise InputError(
            "transformers reads one text, and this artefact has more inputs; format hf cannot hold them"
        )
    if len(artefact.pipeline.targets) + (encoder.language is not None) > 1 or artefact.model.hidden:
        raise InputError(
            "transformers has one linear head, and this artefact has several targets, tokens and a target, or hidden layers; format hf cannot hold them"
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


def _labels(processor: Processor) -> dict[str, Any]:
    names = processor.classes() or ["value"]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": _PROBLEMS[processor.type],
    }


def _plain(layer: nn.Linear) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in layer.state_dict().items()}


def _head(stem: str, head: nn.Linear, target: str, processor: Processor, kind: str) -> dict[str, Tensor]:
    found = _plain(head)
    if processor.type == "binary":
        found = {name: torch.cat([torch.zeros_like(value), value]) for name, value in found.items()}
    elif processor.type == "number":
        center, scale = _unit(target, processor)
        if center and "bias" not in found:
            raise InputError(
                f"transformers' '{kind}' has no bias that could bring '{target}' back to its unit; train with data.targets.{target}.normalize none, or another model type"
            )
        found = {name: value * scale for name, value in found.items()}
        if "bias" in found:
            found["bias"] = found["bias"] + center
    return {f"{stem}.{name}": value.contiguous() for name, value in found.items()}


def _unit(target: str, processor: Processor) -> tuple[float, float]:
    """Return what a number's output of zero means, and by how much one more raises it."""
    if getattr(processor, "normalize", None) == "log":
        raise InputError(
            f"'{target}' is learnt as a logarithm (normalize log), which transformers cannot undo; train with data.targets.{target}.normalize zscore"
        )
    low, high = processor.scores(np.array([[0.0], [1.0]])).tolist()
    return low, high - low


def _counting_from_padding(tensors: dict[str, Tensor], pad: int | None) -> dict[str, Tensor]:
    """Return RoBERTa's tensors with the table of positions where transformers looks: behind the number of the padding."""
    if pad is None:
        raise InputError(
            "RoBERTa counts positions from its padding token, and this artefact's tokenizer has none"
        )
    found = dict(tensors)
    for name, table in tensors.items():
        if name.endswith("embeddings.position_embeddings.weight"):
            unused = table.new_zeros(pad + 1, table.shape[1])
            found[name] = torch.cat([unused, table[_OFFSET:]])
    return found


def _special(text: Text) -> dict[str, Any]:
    found = {"pad_token_id": text.pad_id, "eos_token_id": text.end_id, "bos_token_id": text.begin_id}
    if found["pad_token_id"] is None:  # transformers' classifiers need one to find the last token
        found["pad_token_id"] = text.end_id
    return found


def _ends(text: Text) -> list[int]:
    """Return the tokens at which a text that is written ends, the usual one first."""
    return sorted(text.end_ids, key=lambda i: (i != text.end_id, i))


def _closing(text: Text) -> int | None:
    """Return the token by which the column closes a text and the tokenizer does not."""
    return text.end_id if text.end and text.frame[1][-1:] != [text.end_id] else None


def _write_tokenizer(
    text: Text, longest: int | None, folder: Path, *, speaks: bool, segments: bool = False
) -> None:
    """Write the tokenizer of a model that takes `longest` tokens, None for any number, and that is told of segments or not."""
    written = text.trained.to_str()
    if not speaks and (closing := _closing(text)) is not None:
        # A text that is to be continued has no end; one that is classified is read at it.
        from tokenizers import Tokenizer, processors

        before, after = text.frame
        spelt = {i: str(text.trained.id_to_token(i)) for i in (*before, *after, closing)}
        template = [*(spelt[i] for i in before), "$A", *(spelt[i] for i in (*after, closing))]
        tokenizer = Tokenizer.from_str(written)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template), special_tokens=[(name, i) for i, name in spelt.items()]
        )
        written = tokenizer.to_str()
    (folder / "tokenizer.json").write_text(written, encoding="utf-8")
    names = {
        "pad_token": text.pad_id,
        "unk_token": text.unk_id,
        "cls_token": text.cls_id,
        "sep_token": text.sep_id,
        "mask_token": text.mask_id,
        "eos_token": text.end_id,
        "bos_token": text.begin_id,
    }
    limits = [longest] if speaks else [longest, text.max_length]
    limit = min((one for one in limits if one is not None), default=None)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if limit is None else {"model_max_length": limit}),
        "clean_up_tokenization_spaces": False,
        **{name: text.trained.id_to_token(i) for name, i in names.items() if i is not None},
    }
    if segments:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if text.chat_template:
        settings["chat_template"] = text.chat_template
    write_json(folder / "tokenizer_config.json", settings)


def _drift(
    artefact: Artefact,
    predictor: Predictor,
    folder: Path,
    column: str,
    text: Text,
    architecture: str,
    *,
    speaks: bool,
) -> float | None:
    """Return the largest difference of a logit over the sample between the two, row by row."""
    if (read_back := _loaded(folder, architecture)) is None:
        return None
    theirs, tokenizer = read_back
    reader = next((one for one in predictor.model.modules() if isinstance(one, ForeignClassifier)), None)
    worst = 0.0
    rows = [one["row"] for one in artefact.sample]
    cells = predictor.clean(frame_of(rows))[column].to_list() if rows else []
    for row, cell in zip(rows, cells, strict=True):
        value = str(cell or "")
        if isinstance(text, Chat):
            value = dump(read(row[column]))
        flat = (
            text.encode_texts([value])
            if isinstance(text, Chat)
            else text.encode_texts([value], end=False if speaks else None)
        )
        ids = flat["ids"].values.tolist()  # type: ignore[union-attr]
        if not ids:
            continue
        if isinstance(text, Chat):  # its tokens are cut where answers begin; what must agree is the text
            written = tokenizer.apply_chat_template(read(value), tokenize=False)
            own = ids if written == text.text_of(value) else tokenizer(written)["input_ids"]
        else:
            own = tokenizer(value, truncation=True, max_length=text.max_length)["input_ids"]
        _require_same(value, own, ids, folder)
        alone = Ragged.from_rows([torch.tensor(ids)])
        inputs = {"input_ids": alone.values[None]} if reader is None else reader.inputs(alone)
        with torch.inference_mode():
            outputs = predictor.model({f"{column}.ids": alone.to(predictor.device)})
            found = theirs(**inputs)
            ours, other = _comparable(outputs, found, column, artefact)
        worst = max(worst, float((ours - other).abs().max()))
    return _bounded(worst, folder)


def _pair_drift(
    artefact: Artefact, predictor: Predictor, writer: Writer, folder: Path, column: str, architecture: str
) -> float | None:
    """As `_drift`, of the tokens that are written."""
    if (read_back := _loaded(folder, architecture)) is None:
        return None
    theirs, tokenizer = read_back
    text, target = artefact.pipeline.inputs[column], writer.encoder.target
    assert isinstance(text, Text)
    worst = 0.0
    frame = predictor.clean(frame_of([one["row"] for one in artefact.sample])) if artefact.sample else None
    cells = [] if frame is None else zip(frame[column].to_list(), frame[writer.column].to_list(), strict=True)
    for cell, wanted in cells:
        source = text.encode_texts([str(cell or "")])["ids"].values.tolist()  # type: ignore[union-attr]
        labels = writer.text.encode_target(pl.Series([wanted], dtype=pl.String))["ids"].values.tolist()  # type: ignore[union-attr]
        if not source or not labels:
            continue
        own = tokenizer(str(cell or ""), truncation=True, max_length=text.max_length)["input_ids"]
        _require_same(str(cell), own, source, folder)
        ragged = {
            f"{column}.ids": Ragged.from_rows([torch.tensor(source)]).to(predictor.device),
            target: Ragged.from_rows([torch.tensor(labels)]).to(predictor.device),
        }
        with torch.inference_mode():
            ours = predictor.model(ragged)[f"{writer.column}.tokens"].logits().cpu()
            given = torch.tensor([[writer.encoder.start, *labels[:-1]]])
            other = theirs(input_ids=torch.tensor([source]), decoder_input_ids=given).logits[0]
        worst = max(worst, float((ours - other).abs().max()))
    return _bounded(worst, folder)


def _loaded(folder: Path, architecture: str) -> tuple[Any, Any] | None:
    """Return the model and the tokenizer that `transformers` makes of the files; None where it is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()  # its remarks are for those who train with it
    transformers.logging.disable_progress_bar()
    theirs = getattr(transformers, architecture).from_pretrained(folder).eval()
    return theirs, transformers.AutoTokenizer.from_pretrained(folder)


def _require_same(value: str, theirs: list[int], ours: list[int], folder: Path) -> None:
    if theirs != ours:
        raise ParityError(
            f"transformers reads {value[:40]!r} as other tokens than the artefact ({theirs[:8]} and {ours[:8]}): '{folder}' was not kept"
        )


def _bounded(worst: float, folder: Path) -> float:
    if worst > 10 * TOLERANCE:
        raise ParityError(
            f"transformers' logits differ from the artefact's by {worst:.2g}; '{folder}' was not kept"
        )
    return worst


def _comparable(outputs: Any, found: Any, column: str, artefact: Artefact) -> tuple[Tensor, Tensor]:
    if f"{column}.tokens" in outputs:
        ours = outputs[f"{column}.tokens"].logits().cpu()
        if "seq_relationship_logits" not in found:
            return ours, found.logits[0]
        pairs = outputs[f"{NextSentence.FIELD}.logits"].cpu().flatten()
        return torch.cat([ours.flatten(), pairs]), torch.cat(
            [found.prediction_logits.flatten(), found.seq_relationship_logits.flatten()]
        )
    target = next(iter(artefact.pipeline.targets), None)
    if target is None:
        return outputs[f"{column}.states"].values.cpu(), found.last_hidden_state[0]
    processor = artefact.pipeline.targets[target]
    ours = outputs[f"{target}.{processor.output}"].cpu()
    if processor.type == "binary":
        return ours, found.logits[:, 1:] - found.logits[:, :1]
    if processor.type == "number":
        center, scale = _unit(target, processor)
        return ours, (found.logits - center) / scale
    return ours, found.logits
