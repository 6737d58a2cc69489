"""Any other architecture, by the `transformers` package: its states become our features, and our heads read them.

::

    text.ids (T,) ──▶ rectangle (B, L) and mask ──▶ transformers ──▶ (B, L, D) ──▶ states (T, D) ──▶ features (B, D)

Texts are padded at this door and nowhere else. Only what the package itself brings is run: code that lies beside somebody's
weights never is, and weights are read from safetensors alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.errors import ArtefactError, DataError, LubanError, MissingError, RecipeError
from luban.models._encoders import Encoder, Features, is_sequence, read_ragged
from luban.models._layers import Count, Rate, pooled
from luban.models._network import Family, Network
from luban.models.interop.checkpoint import located, open_checkpoint
from luban.recipe import Data
from luban.registry import register

__all__ = ["HuggingFace"]

# Where others keep what is no part of the architecture, or what would fetch or run something.
_NO_PART = {
    "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "_attn_implementation",
    "_attn_implementation_internal", "attn_implementation", "id2label", "label2id", "problem_type", "num_labels", "custom_pipelines",
}  # fmt: skip
# Those that number positions from that of the padding token on.
_FROM_PADDING = {"roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "xlm-roberta-xl", "mpnet", "longformer", "data2vec-text", "xmod", "ibert"}  # fmt: skip
_LONGEST = 512  # tokens of a text, where the configuration names no limit


@register("models")
class HuggingFace(Family):
    """A model of `transformers`, whatever its architecture, as an encoder of texts.

    With `from`, configuration, weights and tokenizer are read from a directory; with `config` alone the weights are new. The
    artefact holds all three and needs no other directory. An architecture that has an encoder and a decoder gives its encoder.

    Example:
        >>> HuggingFace.model_validate({"config": {"model_type": "electra", "vocab_size": 99}}).pool
        'mean'
    """

    made_for: ClassVar = "a text"

    from_: str | None = Option(default=None, alias="from")
    """A directory of Hugging Face or `dataset:NAME`, whose weights and tokenizer to start from; new weights if left out."""
    config: dict[str, Any] | None = None
    """The configuration, as config.json has it; that of `from` if left out."""
    pool: Literal["first", "mean", "last", "max"] = "mean"
    """What of the states is a text's vector: the first token's, the last one's, their mean or maximum."""
    dropout: Rate | list[Rate] = 0.1
    """Dropout after hidden layers; without any, on what the heads read."""
    max_positions: Count | None = None
    """Tokens of a text, at the most; as the configuration says, but no more than 512, if left out."""

    @model_validator(mode="before")
    @classmethod
    def _read_config(cls, values: Any) -> Any:
        """With `from`, take the configuration from there."""
        if not isinstance(values, dict) or not isinstance(values.get("from"), str):
            return values
        values = {**values, "from": located(values["from"])}
        found = _config_of(values["from"])
        if values.get("config") not in (None, found):
            raise ValueError(f"config is not that of '{values['from']}'; remove it to take what is there")
        return {**values, "config": found}

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
        if self.size != "small":
            raise ValueError(
                "size does nothing here: an architecture has the sizes that its config names; remove it"
            )
        return self

    def complete(self, data: Data) -> list[str]:
        """Give the text input the tokenizer that came with the weights, and a length that the model takes."""
        said: list[str] = []
        texts = {c: p for c, p in data.inputs.items() if isinstance(p, Text) and c not in self.encoders}
        for column, text in texts.items():
            given = text.model_fields_set
            options: dict[str, Any] = {"max_length": self._limit()}
            if self.from_ is not None and "tokenizer" not in given:
                if "tokens" in given:
                    raise RecipeError(
                        f"data.inputs.{column}.tokens asks for a new tokenizer, but model.from brings weights that were trained "
                        "with their own; remove one of them"
                    )
                options |= {"tokenizer": self.from_, "lowercase": False}
            options = {key: value for key, value in options.items() if key not in given}
            data.inputs[column] = type(text).model_validate(
                {**{k: getattr(text, k) for k in given}, **options}
            )
            if shown := ", ".join(f"{key} {value}" for key, value in options.items()):
                said.append(f"{column}: {shown}, for model type '{self.type}'")
        return said + super().complete(data)

    def _positions(self) -> int | None:
        """Return how many tokens the architecture takes; None where its positions are relative."""
        assert self.config is not None
        known = self.config.get("max_position_embeddings") or self.config.get("n_positions")
        if not isinstance(known, int):
            return None
        return known - (
            self.config.get("pad_token_id", 1) + 1 if self.config["model_type"] in _FROM_PADDING else 0
        )

    def _limit(self) -> int:
        return self.max_positions or min(_LONGEST, self._positions() or _LONGEST)

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
        return _Foreign(self, name, field) if is_sequence(field) else None

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
        own = [part for part in module.encoders.values() if isinstance(part, _Foreign)]
        return [name for part in own for name in self.load_part(part)] + super().load_pretrained(module)

    def load_part(self, encoder: Encoder) -> list[str]:
        """Copy the weights of `from` into an encoder."""
        if self.from_ is None:
            return []
        assert isinstance(encoder, _Foreign)
        checkpoint = open_checkpoint(self.from_)
        missing: set[str] = set()
        if checkpoint.kind == "luban":
            places = {
                name.partition(".model.")[2]: name for name in checkpoint if name.startswith("encoders.")
            }
            tensors = {short: checkpoint[name] for short, name in places.items()}
        else:
            assert self.config is not None
            tensors, missing = _pretrained(self.from_, self.config)
        try:
            encoder.model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ArtefactError(f"'{self.from_}' does not fit its config.json: {_brief(error)}") from None
        return sorted(missing)


class _Foreign(Encoder):
    """Somebody else's module between a rectangle and states.

    Args:
        options: the family.
        name: the field of ids.
        field: what is known about it.
    """

    def __init__(self, options: HuggingFace, name: str, field: Field) -> None:
        super().__init__()
        assert options.config is not None
        self.name, self.pool, self.positions = name, options.pool, options._positions()
        config = _configuration(options.config)
        known = getattr(config, "vocab_size", None)
        if not isinstance(known, int):
            raise RecipeError(
                f"model type 'huggingface' reads texts, and an architecture of type '{config.model_type}' does not"
            )
        if (field.size or 0) > known:
            raise RecipeError(
                f"the tokenizer of '{field.column}' has {field.size:,} tokens, and model.config has vectors for {known:,}: "
                "they do not belong together; name the tokenizer of the model by 'tokenizer'"
            )
        self.width = int(config.hidden_size)
        padding = getattr(config, "pad_token_id", None)
        self.padding = int(field.pad if padding is None else padding)
        with _said_by_transformers(str(config.model_type)):
            made = _transformers().AutoModel.from_config(
                config, trust_remote_code=False, attn_implementation="eager", dtype=torch.float32
            )
        self.model: nn.Module = _reader(made)

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a token."""
        ids = read_ragged(batch, self.name)
        rectangle, mask = ids.padded(self.padding)  # (B, L)
        if self.positions is not None and rectangle.shape[1] > self.positions:
            raise DataError(
                f"a text has {rectangle.shape[1]} tokens, and the model takes {self.positions}: set max_length of the text in data.inputs"
            )
        if not rectangle.shape[1]:
            rectangle = rectangle.new_full((len(ids), 1), self.padding)
            mask = torch.zeros_like(rectangle, dtype=torch.bool)
        # A text without a token is read as one of padding, since attention to nothing is no number; nothing of it is kept.
        seen = mask.clone()
        seen[:, 0] |= ids.lengths == 0
        found: Tensor = self.model(
            input_ids=rectangle, attention_mask=seen.long()
        ).last_hidden_state  # (B, L, D)
        states = Ragged(found[mask], ids.offsets)
        return pooled(states, self.pool), states


def _transformers() -> Any:
    try:
        module = importlib.import_module("transformers")
    except ImportError:
        raise MissingError(
            "model type 'huggingface' needs the transformers package, which is not installed: pip install 'luban[hf]'"
        ) from None
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@contextmanager
def _said_by_transformers(what: str) -> Iterator[None]:
    """Turn what transformers raises into one sentence."""
    try:
        yield
    except (LubanError, MemoryError):
        raise
    except ImportError as error:
        raise MissingError(f"'{what}' cannot be built: {_brief(error)}") from error
    except Exception as error:  # of any kind: the options were written for a program that is not ours
        raise RecipeError(f"transformers cannot make '{what}': {_brief(error)}") from error


def _config_of(path: str) -> dict[str, Any]:
    """Return the configuration of a directory, without what is no part of the architecture."""
    found = open_checkpoint(path)
    if found.kind == "gguf":
        raise RecipeError(f"'{path}' is a GGUF file; take type 'llama', 'qwen2' or 'qwen3', which read it")
    if found.kind == "luban":
        model = found.config.get("model", {})
        if model.get("type") != HuggingFace.type:
            raise RecipeError(
                f"'{path}' is an artefact of type '{model.get('type')}', and model.type is '{HuggingFace.type}'"
            )
        return dict(model["config"])
    return _cleaned(found.config)


def _cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _cleaned(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NO_PART
    }


def _configuration(config: dict[str, Any]) -> Any:
    """Return transformers' object of a configuration; one that names code of its own is not known to it."""
    transformers = _transformers()
    options = _cleaned(config)  # an artefact may come from a stranger
    kind = str(options.pop("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise RecipeError(
            f"transformers {transformers.__version__} has no architecture '{kind}'; code that lies beside somebody's weights is never run"
        )
    with _said_by_transformers(kind):
        return transformers.AutoConfig.for_model(kind, **options)


def _reader(made: Any) -> nn.Module:
    """Return what makes states of a text: the encoder alone, without a pooler, which nothing here would train."""
    if made.config.is_encoder_decoder:
        made = made.get_encoder()
    if getattr(made, "pooler", None) is not None:
        made.pooler = None
    return cast(nn.Module, made)


def _pretrained(path: str, config: dict[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
    """Return the weights of a directory by the names of its module, and the parts that it lacks."""
    with _said_by_transformers(path):
        made, report = _transformers().AutoModel.from_pretrained(
            Path(path).resolve(),
            config=_configuration(config),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    reader = _reader(made)
    own = reader.state_dict()
    missing = {name for name in report["missing_keys"] if name in own or name.partition(".")[2] in own}
    if len(missing) == len(own):
        raise ArtefactError(f"'{path}' does not fit its config.json: it has none of the model's tensors")
    return own, {name.rpartition(".")[0] or name for name in missing}


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
