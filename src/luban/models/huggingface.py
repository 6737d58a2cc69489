"""Any other architecture, by the `transformers` package: an encoder whose states our heads read, a classifier, a language model, or
an encoder with a decoder.

The modules themselves, and how a flat batch goes through them, are in `luban.models._foreign`, `_foreign_classifier` and
`_foreign_pair`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field as Option
from pydantic import model_validator
from torch import nn

from luban.data.contracts import Field, Processor, Spec
from luban.data.processors.text import Text
from luban.errors import ArtefactError, RecipeError
from luban.models._decoding import pair_of
from luban.models._encoders import Encoder, is_sequence
from luban.models._foreign import (
    ForeignEncoder,
    ForeignLanguageModel,
    ForeignMaskedModel,
    cleaned,
    configuration_of,
    has_segments,
    positions_of,
    pretrained,
)
from luban.models._foreign_classifier import ForeignClassifier
from luban.models._foreign_pair import ForeignPair, lengths_of, with_defaults
from luban.models._foreign_tokens import following
from luban.models._layers import Count, Rate
from luban.models._low_rank import merging
from luban.models._network import TOKENS, Family, Network
from luban.models._pair import Token, new_tokenizer, opened_by, texts_of, written_of
from luban.models.interop.checkpoint import located, open_checkpoint
from luban.models.interop.seq2seq import edges_of
from luban.recipe import Data
from luban.registry import register

__all__ = ["HuggingFace"]

Task = Literal["encoder", "classifier", "causal_lm", "masked_lm", "seq2seq"]

_LONGEST = 512  # tokens of a text, where the configuration names no limit
_EDGES = ("start", "forced_first", "forced_last")
_TWO = ("target_vocab.json", "vocab-tgt.json")  # of a tokenizer that reads one vocabulary and writes another


@register("models")
class HuggingFace(Family):
    """A model of `transformers`, whatever its architecture: an encoder of texts, a classifier, a language model, or what writes a text
    from another.

    With `from`, configuration, weights and tokenizer are read from a directory; with `config` alone the weights are new. The
    artefact holds all three and needs no other directory.

    As an `encoder` its states are pooled and read by our heads; an architecture that has an encoder and a decoder gives its
    encoder. As a `classifier` it is transformers' own sequence classifier but for its last linear layer, in whose place our heads
    stand: pooling, and what follows it, are the architecture's. As a language model (`causal_lm`, `masked_lm`) it is trained by the
    objectives over a text's own tokens, and generates, chooses, fills in and is measured as our own families are, with transformers'
    cache. As an encoder with a decoder (`seq2seq`: T5, Pegasus, M2M100, ...) it reads one text column and writes another, as type
    `seq2seq` does, with one tokenizer for both; further targets are read off the pooled states of the encoder. Its own head makes the
    logits of all tokens to be predicted at once, so that a large vocabulary takes more memory than theirs.

    Example:
        >>> HuggingFace.model_validate({"config": {"model_type": "electra", "vocab_size": 99}}).pool
        'mean'
    """

    made_for: ClassVar = "a text"

    task: Task = "encoder"
    """What it is: an `encoder` of texts, a `classifier` with the architecture's own pooling, a language model, of the next token
    (`causal_lm`) or of masked ones (`masked_lm`), or what writes a text from another (`seq2seq`)."""
    from_: str | None = Option(default=None, alias="from")
    """A directory of Hugging Face or `dataset:NAME`, whose weights and tokenizer to start from; new weights if left out."""
    config: dict[str, Any] | None = None
    """The configuration, as config.json has it; that of `from` if left out. Of new weights, what it leaves out of its vocabulary (its size,
    and which tokens fill, begin and end texts) is the tokenizer's, not that of the published model which the architecture's class has."""
    pool: Literal["first", "mean", "last", "max"] = "mean"
    """What of the states is a text's vector: the first token's, the last one's, their mean or maximum. A classifier has a way of
    its own."""
    segments: list[list[Annotated[int, Option(ge=0)]]] = []
    """Of a classifier: the tokens of segment 1, those of segment 2 and so on, where not all are of segment 0 (XLNet's and Funnel's
    [CLS] may be of segment 2); if left out, as the tokenizer of `from` has it where its `model_input_names` lists token_type_ids and
    the architecture takes them. transformers leaves them out of one that does not, to which all tokens are alike."""
    dropout: Rate | list[Rate] = 0.1
    """Dropout after hidden layers; without any, on what the heads read. 0 for a classifier, which has its own, if left out."""
    max_positions: Count | None = None
    """Tokens of a text, at the most; as the configuration says, but no more than 512 for an encoder, if left out."""
    start: Token | None = None
    """For task `seq2seq`, number of the token that the decoder begins with; as generation_config.json says, else the padding token,
    if left out."""
    forced_first: Token | None = None
    """For task `seq2seq`, number of the token that every written text begins with (the language of M2M100 and NLLB); as
    generation_config.json says if left out."""
    forced_last: Token | None = None
    """For task `seq2seq`, number of the token that is written last where a text becomes as long as is allowed; as
    generation_config.json says if left out."""

    @model_validator(mode="before")
    @classmethod
    def _read_config(cls, values: Any) -> Any:
        """With `from`, take the configuration from there."""
        if not isinstance(values, dict):
            return values
        task = values.get("task")
        if task is not None and task not in get_args(Task):
            raise ValueError(f"task is {task!r}, and tasks are {', '.join(get_args(Task))}")
        if isinstance(values.get("from"), str):
            values = {**values, "from": located(values["from"])}
            found, known = _config_of(values["from"])
            if values.get("config") not in (None, found):
                raise ValueError(f"config is not that of '{values['from']}'; remove it to take what is there")
            if known is not None and task not in (None, known):
                raise ValueError(
                    f"task is '{task}', and the artefact '{values['from']}' is for task '{known}'; remove the key"
                )
            values = {**values, "config": found, **({} if known is None else {"task": known})}
            if values.get("task") == "classifier" and "segments" not in values:
                told = _segments_of(values["from"])  # transformers leaves them out where the model has none
                values["segments"] = told if any(told) and has_segments(found) else []
        if values.get("task") == "classifier" and "dropout" not in values and not values.get("hidden"):
            values = {**values, "dropout": 0.0}
        config = values.get("config")
        if isinstance(config, dict) and values.get("task") == "seq2seq":
            source = values.get("from")
            edges = _edges_of(source if isinstance(source, str) else None, config)
            return {"max_positions": lengths_of(config)[0], **edges, **values}
        if isinstance(config, dict) and values.get("task", "encoder") != "encoder":
            return values if "max_positions" in values else {**values, "max_positions": positions_of(config)}
        return values

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.config is None:
            raise ValueError(
                "neither 'from' nor 'config' says which architecture; name a directory by 'from'"
            )
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config has no model_type, so nobody can tell what architecture it is")
        if self.config.get("quantization_config"):
            raise ValueError(
                "config is that of quantised weights, which cannot be trained; take the model as it was before"
            )
        if self.task == "classifier" and self.pool != "mean":
            raise ValueError(
                "pool does nothing for task classifier: the architecture pools as it always does; remove it, or take task encoder"
            )
        if self.task != "classifier" and self.segments:
            raise ValueError("segments are for task classifier; remove the key")
        given = [key for key in _EDGES if getattr(self, key) is not None]
        if given and self.task != "seq2seq":
            raise ValueError(
                f"{given[0]} does nothing with task '{self.task}', which writes no text from another; remove it"
            )
        known = None
        if self.max_positions is not None:
            known = lengths_of(self.config)[0] if self.task == "seq2seq" else positions_of(self.config)
        if known is not None and (self.max_positions or 0) > known:
            raise ValueError(
                f"max_positions is {self.max_positions}, and the architecture takes {known} tokens; lower it"
            )
        if self.size != "small":
            raise ValueError(
                "size does nothing here: an architecture has the sizes that its config names; remove it"
            )
        return self

    def complete(self, data: Data) -> list[str]:
        """Give the texts the tokenizer that came with the weights, and a length that the model takes."""
        if self.task == "seq2seq":
            return self._complete_pair(data) + super().complete(data)
        if self.config is not None and any(self.segments) and not has_segments(self.config):
            raise RecipeError(
                f"model.segments does nothing with an architecture of type '{self.config['model_type']}', which has no token_type_ids: all tokens are "
                "alike to it, those of a second text too; remove the key"
            )
        said: list[str] = []
        texts = {c: p for c, p in data.inputs.items() if isinstance(p, Text) and c not in self.encoders}
        for column, text in texts.items():
            given = text.model_fields_set
            options: dict[str, Any] = {"max_length": self._longest()}
            if self.from_ is not None and "tokenizer" not in given:
                if "tokens" in given:
                    raise RecipeError(
                        f"data.inputs.{column}.tokens asks for a new tokenizer, but model.from brings weights that were trained "
                        "with their own; remove one of them"
                    )
                options |= {"tokenizer": self.from_, "lowercase": False}
            if self.from_ is None and self._read_at_end:
                options["end"] = True
                if text.like is None:  # else a text that is cut would have no end to be read at
                    options["special"] = True
            options = {key: value for key, value in options.items() if key not in given}
            data.inputs[column] = type(text).model_validate(
                {**{k: getattr(text, k) for k in given}, **options}
            )
            if shown := ", ".join(f"{key} {value}" for key, value in options.items()):
                said.append(f"{column}: {shown}, for model type '{self.type}'")
        return said + super().complete(data)

    def _complete_pair(self, data: Data) -> list[str]:
        """As `complete`, for the text that is read and the one that is written, which have one tokenizer."""
        assert self.config is not None
        source, target = texts_of(self, data)
        if self.from_ is not None and (two := [name for name in _TWO if (Path(self.from_) / name).is_file()]):
            raise RecipeError(
                f"'{self.from_}' has one vocabulary to read and another to write ('{two[0]}'), and model type '{self.type}' has one for both; take type 'seq2seq', "
                "or another model"
            )
        one, other = data.inputs[source], data.targets[target]
        assert isinstance(one, Text)
        assert isinstance(other, Text)
        wanted: dict[str, dict[str, Any]] = {source: {"max_length": self._longest()}, target: {"end": True}}
        if self.from_ is not None and one.tokenizer is None:
            if "tokens" in one.model_fields_set:
                raise RecipeError(
                    f"data.inputs.{source}.tokens asks for a new tokenizer, but model.from brings weights that were trained "
                    "with their own; remove one of them"
                )
            wanted[source] |= {"tokenizer": self.from_, "lowercase": False}
        elif one.tokenizer is None:
            wanted[source] |= new_tokenizer(one)
        wanted[target]["max_length"] = min(_LONGEST, self.longest_written or _LONGEST)
        wanted[target] |= opened_by(self.forced_first, other)
        if not {"like", "tokenizer", "tokens"} & other.model_fields_set:
            wanted[target]["like"] = source
        said: list[str] = []
        for column, text, columns in ((source, one, data.inputs), (target, other, data.targets)):
            given = {key: getattr(text, key) for key in text.model_fields_set}
            options = {key: value for key, value in wanted[column].items() if key not in given}
            columns[column] = type(text).model_validate({**given, **options})
            if shown := ", ".join(f"{key} {value}" for key, value in options.items()):
                said.append(f"{column}: {shown}, for model type '{self.type}'")
        one, other = data.inputs[source], data.targets[target]
        assert isinstance(one, Text)
        assert isinstance(other, Text)
        if other.like != source and (other.tokenizer is None or other.tokenizer != one.tokenizer):
            raise RecipeError(
                f"model type '{self.type}' has one table of tokens, and '{source}' and '{target}' would have tokenizers of their own; write "
                f"'{target}: {{type: text, like: {source}}}', or take type 'seq2seq'"
            )
        return said

    def follow(self, inputs: Mapping[str, Processor]) -> list[str]:
        """Let new weights have the tokens of the tokenizer; see `Model.follow`."""
        said = super().follow(inputs)
        texts = {c: p for c, p in inputs.items() if isinstance(p, Text) and c not in self.encoders}
        if self.from_ is not None or self.config is None or len(texts) != 1:
            return said  # of several texts, `build` says so
        ((column, text),) = texts.items()
        said += _padding_read(self.config, column, text)
        if not (found := following(self.config, column, text)):
            return said
        if self._read_at_end and found.get("eos_token_id", 0) is None:
            raise RecipeError(
                f"a classifier of type '{self.config['model_type']}' is read at the end token, and '{column}' has none; set its 'end' to true"
            )
        before, self.config = self.config, {**self.config, **found}
        if self.task == "seq2seq":
            self.start = found.get("decoder_start_token_id") if self.start is None else self.start
        else:
            self._lower_positions(positions_of(before), column, text)
        shown = ", ".join(f"{key} {value}" for key, value in found.items() if isinstance(value, int))
        return [*said, f"model.config: {shown}, as the tokenizer of '{column}'"]

    def _lower_positions(self, before: int | None, column: str, text: Text) -> None:
        """Take fewer positions than with the padding that the class has: some count them from the number of the padding token."""
        assert self.config is not None
        room = positions_of(self.config)
        if room is None or before is None or room >= before:
            return
        if text.max_length is not None and text.max_length > room:
            raise RecipeError(
                f"the padding token of '{column}' is number {self.config['pad_token_id']}, from which an architecture of type "
                f"'{self.config['model_type']}' counts its positions, so that it takes {room} tokens of a text; set max_length of {column} to as many, or "
                "raise max_position_embeddings in model.config"
            )
        if self.max_positions is not None:
            self.max_positions = min(self.max_positions, room)

    @property
    def writes(self) -> bool:
        """A text column among the targets, as an encoder with a decoder."""
        return self.task == "seq2seq"

    @property
    def CAUSAL(self) -> bool | None:  # noqa: N802  # as the families have it, of which some are always causal
        """Whether a token sees only those before it; None for an encoder or a classifier, which may be of either kind."""
        return None if self.task in ("encoder", "classifier") else self.task == "causal_lm"

    @property
    def _speaks(self) -> bool:
        """Whether it is a language model."""
        return self.task in ("causal_lm", "masked_lm")

    @property
    def longest_written(self) -> int | None:
        """Tokens of a text that an encoder with a decoder writes, None where nobody says."""
        assert self.config is not None
        limits = (self.max_positions, lengths_of(self.config)[1])
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def _read_at_end(self) -> bool:
        """Whether it is a classifier that reads its decoder's state at the end token."""
        assert self.config is not None
        return self.task == "classifier" and bool(configuration_of(self.config).is_encoder_decoder)

    def _longest(self) -> int:
        """Return the tokens of a text where the recipe names no number."""
        assert self.config is not None
        if self.task != "encoder":
            return min(_LONGEST, self.max_positions or _LONGEST)
        return self.max_positions or min(_LONGEST, positions_of(self.config) or _LONGEST)

    def usual(self, adapted: bool) -> dict[str, Any]:
        """Pretrained weights want small steps that begin smaller (Devlin et al., 2018); new ones a warm-up."""
        rate = 5e-4 if self.from_ is None else 3e-4 if adapted else 5e-5
        usual: dict[str, Any] = {
            "optimizer": {"type": "adamw", "learning_rate": rate},
            "schedule": {"type": "linear", "warmup": 0.1},
        }
        return usual if self.from_ is None else {**usual, "epochs": 3}

    def portable(self) -> Self:
        """Return the options without the directory, whose configuration they hold."""
        return super().portable().model_copy(update={"from_": None})

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read a text."""
        if not is_sequence(field):
            return None
        assert self.config is not None
        if self.task == "seq2seq":
            edges = (self.start, self.forced_first, self.forced_last)
            return ForeignPair(self.config, self.max_positions, self.pool, name, field, edges)
        if self.task == "classifier":
            return ForeignClassifier(self.config, self.max_positions, self.segments, name, field)
        if self.task != "encoder":
            made = ForeignLanguageModel if self.task == "causal_lm" else ForeignMaskedModel
            return made(self.config, self.max_positions, self.pool, name, field)
        return ForeignEncoder(self.config, positions_of(self.config), self.pool, name, field)

    def build(self, spec: Spec) -> Network:
        """Make the network; see `Model.build`."""
        if self.task == "seq2seq":
            name, field = written_of(self, spec)
            network = super().build(spec)
            pair_of(network).add_decoder(name, field)
            return network
        asked = [f.column for f in spec.fields.values() if f.role == "target" and f.kind == TOKENS]
        if asked and not self._speaks:
            raise RecipeError(
                f"model type '{self.type}' with task '{self.task}' cannot put out the tokens of '{asked[0]}'; set model.task to causal_lm or masked_lm, as the objective is"
            )
        if self._speaks and not asked:
            raise RecipeError(
                f"model type '{self.type}' with task '{self.task}' puts out tokens, and no objective asks for them; take objective {self.task}, or model.task=encoder"
            )
        network = super().build(spec)
        readers = [*network.encoders.values()]
        if len(readers) == 1 and isinstance(readers[0], ForeignClassifier) and not self.hidden:
            for head in network.heads.values():  # each in the place of the layer that was taken off
                if not readers[0].biased:
                    head.register_parameter("bias", None)
        return network

    def _encoders(self, inputs: dict[str, Field]) -> dict[str, Encoder]:
        """As any family, but one text alone."""
        texts = [f.column for f in inputs.values() if is_sequence(f) and f.column not in self.encoders]
        if len(texts) > 1:
            raise RecipeError(
                f"model type '{self.type}' reads one text, and there are {len(texts)}: {', '.join(texts)}; take type 'bert' for a pair, "
                "type 'transformer', or give the others a family of their own in model.encoders"
            )
        return super()._encoders(inputs)

    def load_pretrained(self, module: nn.Module) -> list[str]:
        """Copy the weights of `from` into a new module; return what was not there and starts anew."""
        assert isinstance(module, Network)
        own = [part for part in module.encoders.values() if isinstance(part, ForeignEncoder)]
        return [name for part in own for name in self.load_part(part)] + super().load_pretrained(module)

    def load_part(self, encoder: Encoder) -> list[str]:
        """Copy the weights of `from` into an encoder."""
        if self.from_ is None:
            return []
        assert isinstance(encoder, ForeignEncoder)
        assert self.config is not None
        checkpoint = open_checkpoint(self.from_)
        missing: set[str] = set()
        if checkpoint.kind == "luban":
            places = {
                name.partition(".model.")[2]: read
                for name, read in checkpoint.places.items()
                if name.startswith("encoders.")
            }
            tensors = {short: read() for short, read in merging(places).items()}
        else:
            without = encoder.decision if isinstance(encoder, ForeignClassifier) else None
            tensors, missing = pretrained(self.from_, self.task, self.config, without)
        try:
            encoder.load_state_dict({f"model.{name}": tensor for name, tensor in tensors.items()})
        except RuntimeError as error:
            raise ArtefactError(
                f"'{self.from_}' does not fit its config.json: {' '.join(str(error).split())[:200]}"
            ) from None
        return sorted(missing)


def _padding_read(config: dict[str, Any], column: str, text: Text) -> list[str]:
    """Return a sentence if a configuration fills with a token that texts have, as one copied from a published model may."""
    known = configuration_of(config)
    named = {type(known).attribute_map.get(key, key) for key, value in config.items() if value is not None}
    pad = known.pad_token_id if "pad_token_id" in named else None
    if not isinstance(pad, int) or pad < 0 or pad == text.pad_id or pad in text.end_ids:
        return []
    token = text.trained.id_to_token(pad)
    if token is None:
        return []
    return [
        f"model.config names number {pad} for padding, which is '{token}' to the tokenizer of '{column}', and many architectures never learn the "
        "vector of padding; leave pad_token_id out to have the tokenizer's own"
    ]


def _edges_of(path: str | None, config: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens that texts begin and end with, by the names of the options: as a directory says, or a configuration alone."""
    if path is None:
        # What the class has besides are tokens of a published tokenizer, and with new weights the tokenizer is another.
        return edges_of(config, None)
    found = open_checkpoint(path)
    if found.kind == "luban":
        return {key: found.config["model"].get(key) for key in _EDGES}
    return edges_of(with_defaults(config), found.path)


def _config_of(path: str) -> tuple[dict[str, Any], str | None]:
    """Return the configuration of a directory, without what is no part of the architecture, and the task of an artefact."""
    found = open_checkpoint(path)
    if found.kind == "gguf":
        raise RecipeError(f"'{path}' is a GGUF file; take type 'llama', 'qwen2' or 'qwen3', which read it")
    if found.kind == "luban":
        model = found.config.get("model", {})
        if model.get("type") != HuggingFace.type:
            raise RecipeError(
                f"'{path}' is an artefact of type '{model.get('type')}', and model.type is '{HuggingFace.type}'"
            )
        return dict(model["config"]), str(model.get("task", "encoder"))
    return cleaned(found.config), None


def _segments_of(path: str) -> list[list[int]]:
    """Return the tokens of segment 1, those of segment 2 and so on, if the tokenizer of a directory is to tell its model of them."""
    found = open_checkpoint(path)
    if found.kind == "luban":
        return [*found.config["model"].get("segments", [])]
    settings = found.path / "tokenizer_config.json"
    try:
        names = json.loads(settings.read_text(encoding="utf-8"))["model_input_names"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # transformers then tells of none, and what is wrong with a file is said where the tokenizer is read
    if not (isinstance(names, list) and "token_type_ids" in names):
        return []
    text = Text(tokenizer=path)
    text.finish()
    read = text.trained.encode("a")
    return [
        sorted({token for token, own in zip(read.ids, read.type_ids, strict=True) if own == segment})
        for segment in range(1, max(read.type_ids, default=0) + 1)
    ]
