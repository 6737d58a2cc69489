"""What the families of language models share: keys, pretrained weights, pooling, and the way to the vocabulary."""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._cache import Cache
from luban.models._core import Core, Projection, Shape, Vocabulary
from luban.models._decoding import Decoding, LanguageModel
from luban.models._encoders import Encoder, Features, is_sequence, read_ragged
from luban.models._layers import Count, Rate, pooled
from luban.models._network import Family, Network, module_key
from luban.models._step import Stepper
from luban.models.interop import load_into, located, options_of
from luban.recipe import Data

__all__ = ["Language", "LanguageEncoder", "encoder_of"]

Pool = Literal["first", "mean", "last", "max", "pooler"]

SEGMENTS_OF_PAIRS = 2


class Language(Family):
    """A Transformer over texts, new or with somebody's weights.

    With `from`, sizes, weights and tokenizer are read from a directory: of Hugging Face (config.json and safetensors), of
    Luban (an artefact), or a GGUF file. Several text inputs are read as one sequence, the second after the first.
    """

    attends: ClassVar = True
    made_for: ClassVar = "texts"
    TEXT: ClassVar[dict[str, Any]] = {}
    """Options of a text input that this family takes where the recipe leaves them out."""
    CAUSAL: ClassVar[bool] = False
    """Whether a token sees only those before it, so that the family can generate."""

    from_: str | None = Option(default=None, alias="from")
    """A directory, a .gguf file or `dataset:NAME`, whose weights and tokenizer to start from; new weights if left out."""
    layers: Count
    """Blocks of attention and feed-forward; fewer than `from` has takes the first ones."""
    hidden_size: Count
    """Width of a token's vector."""
    heads: Count
    """Attention heads."""
    intermediate: Count | None = None
    """Width inside the feed-forward part; derived from `hidden_size` if left out."""
    vocabulary: Count | None = None
    """Rows of the token table, if more than the tokenizer has tokens."""
    max_positions: Count = 512
    """Tokens of a text, at the most."""
    pool: Pool
    """What of the states is a text's vector: the first token's, the last one's, their mean or maximum, or, as BERT was
    trained, the first one's through a dense layer (`pooler`)."""
    layer_dropout: Rate = 0.1
    """Dropout of embeddings and of each part's output."""
    attention_dropout: Rate = 0.1
    """Dropout of attention weights."""
    recompute: bool = False
    """Whether the inner values of a block are computed again for the gradient instead of kept: a third more time, much less
    memory (Chen et al., 2016)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_checkpoint(cls, values: Any) -> Any:
        """With `from`, take the sizes from there."""
        if not isinstance(values, dict) or not isinstance(values.get("from"), str):
            return values
        values = {**values, "from": located(values["from"])}
        found = options_of(cls.type, values["from"])
        for key, value in found.items():
            given = values.get(key, value)
            fewer = key == "layers" and isinstance(given, int) and 0 < given < value
            if given != value and key not in cls.FREE and not fewer:
                raise ValueError(
                    f"{key} is {given!r}, but '{values['from']}' has {value!r}; remove the key to take what is there"
                )
        return {**found, **values}

    FREE: ClassVar[frozenset[str]] = frozenset({"layer_dropout", "attention_dropout", "dropout", "pool"})
    """Keys that a checkpoint suggests and a recipe may change."""

    @model_validator(mode="after")
    def _pool_has_seen_the_text(self) -> Self:
        if self.CAUSAL and self.pool in ("first", "pooler"):
            raise ValueError(
                f"pool is '{self.pool}', but the first token of a causal model has seen nothing but itself; take last, mean or max"
            )
        return self

    @abstractmethod
    def shape(self, vocabulary: int) -> Shape:
        """Return what the core looks like."""

    def complete(self, data: Data) -> list[str]:
        """Give text inputs the tokenizer and the options that this model needs, where the recipe leaves them out."""
        texts = {c: p for c, p in data.inputs.items() if isinstance(p, Text) and c not in self.encoders}
        said: list[str] = []
        first = next((column for column, text in texts.items() if text.like is None), None)
        for column, text in texts.items():
            given = text.model_fields_set
            options = dict(self.TEXT)
            if self.from_ is not None and not {"tokenizer", "like"} & given:
                if "tokens" in given:
                    raise RecipeError(
                        f"data.inputs.{column}.tokens asks for a new tokenizer, but model.from brings weights that were trained "
                        "with their own; remove one of them"
                    )
                options = {"tokenizer": self.from_, "lowercase": False}
            elif "like" in given:
                options = {}
            elif column != first and "tokenizer" not in given:
                options = {"like": first}  # a pair is read as one sequence, which needs one tokenizer
            options["max_length"] = min(512, self.max_positions) // len(texts)
            options = {key: value for key, value in options.items() if key not in given}
            data.inputs[column] = type(text).model_validate(
                {**{k: getattr(text, k) for k in given}, **options}
            )
            shown = ", ".join(f"{key} {value}" for key, value in options.items())
            if shown:
                said.append(f"{column}: {shown}, for model type '{self.type}'")
        if len(texts) > 1 and not self.CAUSAL:
            self._require_ends([*texts], data)
        return said + super().complete(data)

    def _require_ends(self, texts: list[str], data: Data) -> None:
        """Refuse a pair whose texts nothing would part."""
        for column in texts:
            text = data.inputs[column]
            assert isinstance(text, Text)
            if text.like is not None or (text.tokenizer is None and text.special):
                continue
            if text.tokenizer is not None:
                named = Text(tokenizer=text.tokenizer)
                named.finish()
                if all(named.frame):
                    continue
            raise RecipeError(
                f"model type '{self.type}' reads {' and '.join(texts)} as one sequence, in which opening and closing tokens part them, "
                + (
                    f"and '{text.tokenizer}' puts none around a text; take another tokenizer"
                    if text.tokenizer is not None
                    else f"and data.inputs.{column}.special is false; remove the key"
                )
            )

    def usual(self, adapted: bool) -> dict[str, Any]:
        """Pretrained weights want small steps that begin smaller (Devlin et al., 2018; Hu et al., 2021); new ones a warm-up."""
        rate = 5e-4 if self.from_ is None else 3e-4 if adapted else 5e-5
        usual: dict[str, Any] = {
            "optimizer": {"type": "adamw", "learning_rate": rate},
            "schedule": {"type": "linear", "warmup": 0.1},
        }
        return usual if self.from_ is None else {**usual, "epochs": 3}

    def portable(self) -> Self:
        """Return the options of the module as built: sizes are written out, so that no other directory is needed."""
        return super().portable().model_copy(update={"from_": None})

    def load_pretrained(self, module: nn.Module) -> list[str]:
        """Copy the weights of `from` into a new module; return what was not there and starts anew."""
        own = [] if self.from_ is None else self.load_part(encoder_of(module))
        return own + super().load_pretrained(module)

    def load_part(self, encoder: Encoder) -> list[str]:
        """Copy the weights of `from` into an encoder."""
        if self.from_ is None:
            return []
        assert isinstance(encoder, LanguageEncoder)
        return load_into(self, encoder, Path(self.from_))

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts."""
        return LanguageEncoder(self, [name], field.size or 0) if is_sequence(field) else None

    def _encoders(self, inputs: dict[str, Field]) -> dict[str, Encoder]:
        """As any family, but all texts together."""
        texts = {n: f for n, f in inputs.items() if is_sequence(f) and f.column not in self.encoders}
        if len(texts) < 2:
            return super()._encoders(inputs)
        if len(texts) > SEGMENTS_OF_PAIRS:
            raise RecipeError(
                f"model type '{self.type}' reads one text or a pair, and there are {len(texts)}: "
                f"{', '.join(f.column for f in texts.values())}; give the others a family of their own in model.encoders"
            )
        first, second = texts
        if inputs[first].size != inputs[second].size:
            raise RecipeError(
                f"model type '{self.type}' reads a pair of texts as one sequence, but '{inputs[first].column}' and '{inputs[second].column}' have "
                "tokenizers of their own: share one by 'like', name one by 'tokenizer' in both or by model.from, or take type 'transformer', which reads each by itself"
            )
        others = {n: f for n, f in inputs.items() if n != second}
        result = super()._encoders(others)
        joint = result[module_key(inputs[first].column)]
        assert isinstance(joint, LanguageEncoder)
        joint.names.append(second)
        return result


class LanguageEncoder(LanguageModel):
    """A core, what pools its states, and, where a target asks for tokens, what turns states into them.

    Args:
        options: the family.
        names: the field of ids; of two, for a pair.
        size: tokens that the tokenizer has.
    """

    def __init__(self, options: Language, names: list[str], size: int) -> None:
        super().__init__()
        self.options, self.names, self.pool = options, list(names), options.pool
        shape = options.shape(max(size, options.vocabulary or 0))
        self.width = shape.hidden_size
        self.core = Core(shape)
        self.core.reset()
        self.pooler = nn.Linear(self.width, self.width) if options.pool == "pooler" else None
        if self.pooler is not None:
            nn.init.normal_(self.pooler.weight, std=0.02)
            nn.init.zeros_(self.pooler.bias)
        self.language: Vocabulary | None = None
        self.keep_states = False
        """Whether states are wanted of every token, not only where the heads read (to explain, to probe)."""

    speaks = True

    @property
    def kind(self) -> str:
        """The type of the family."""
        return self.options.type

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.core.shape.causal

    @property
    def has_vocabulary(self) -> bool:
        """Whether a target asked for tokens."""
        return self.language is not None

    @property
    def limit(self) -> int | None:
        """Tokens of a text that it was made for."""
        return self.options.max_positions

    @property
    def room(self) -> int | None:
        """As many as there are learned positions; turned ones go on."""
        shape = self.core.shape
        return shape.max_positions if shape.positions == "learned" else None

    def begin(self, rows: int, expected: int, sources: Ragged | None = None) -> Decoding:
        """Begin to read texts; see `LanguageModel.begin`."""
        return _CoreDecoding(self, rows, expected)

    def add_vocabulary(self) -> None:
        """Add what turns states into tokens."""
        self.language = self.vocabulary_of(self.core.shape, self.core.embedding.tokens)

    def vocabulary_of(self, shape: Shape, tokens: nn.Embedding | None) -> Vocabulary:
        """Make it."""
        return Vocabulary(shape, tokens)

    def forward(self, batch: Batch) -> Features:
        """Return (B, width), and the states if those of all tokens were computed."""
        features, states, _ = self.outputs(batch)
        return features, states

    def outputs(self, batch: Batch) -> tuple[Tensor, Ragged | None, dict[str, Any]]:
        """Return (B, width), states (T, D) where there are any, and `column.tokens`, the way to the vocabulary.

        A batch may say by `column.read`, places in the flat sequence that rise, (M,), where tokens are wanted; else they are
        wanted everywhere.
        """
        ids, segments = self.joined(batch)
        asked = batch.get(f"{self._column}.read")
        assert asked is None or isinstance(asked, Tensor)
        places, back = self._places(ids, asked)
        states = self.core(ids, segments, read=places)
        whole = ids.like(states) if places is None else None
        read = states if asked is None else states.index_select(0, asked if back is None else back)
        extra: dict[str, Any] = {}
        if self.language is not None:
            extra[f"{self._column}.tokens"] = self.language(read)
        return self._pooled(ids, states, whole, places), whole, extra

    @property
    def _column(self) -> str:
        return self.names[0].rsplit(".", 1)[0]

    def _places(self, ids: Ragged, asked: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the places whose states are needed (None for all), rising, and where among them those asked for are."""
        everywhere = self.keep_states or self.pool in ("mean", "max")
        if everywhere or (self.language is not None and asked is None) or bool((ids.lengths == 0).any()):
            return None, None
        ends = ids.offsets[:-1] if self.pool in ("first", "pooler") else ids.offsets[1:] - 1
        if asked is None:
            return ends, None
        places, inverse = torch.cat([ends, asked]).unique(return_inverse=True)
        return places, inverse[len(ends) :]

    def _pooled(self, ids: Ragged, states: Tensor, whole: Ragged | None, places: Tensor | None) -> Tensor:
        if whole is None:
            assert places is not None
            ends = ids.offsets[:-1] if self.pool in ("first", "pooler") else ids.offsets[1:] - 1
            features = (
                states
                if len(places) == len(ends)
                else states.index_select(0, torch.searchsorted(places, ends))
            )
        else:
            how: Any = "first" if self.pool == "pooler" else self.pool
            features = pooled(whole, how)
        return features if self.pooler is None else self.pooler_activation(self.pooler(features))

    def pooler_activation(self, x: Tensor) -> Tensor:
        """Applied behind the pooler."""
        return x.tanh()

    def joined(self, batch: Batch) -> tuple[Ragged, Tensor | None]:
        """Return the ids of the text or of both texts of a pair, and which of the two each token belongs to."""
        first = read_ragged(batch, self.names[0])
        given = batch.get(f"{self._column}.segments")
        if given is not None:
            assert isinstance(given, Tensor)
            return first, given if self.core.shape.segments > 1 else None
        if len(self.names) == 1:
            return first, None
        second = read_ragged(batch, self.names[1])
        ids = join(first, second, "whole" if self.core.shape.causal else "both" if self.separated else "one")
        segments = (ids.positions >= first.lengths[ids.rows]).long()
        return ids, segments if self.core.shape.segments > 1 and not self.separated else None

    separated = False
    """Whether two separators stand between the texts of a pair (RoBERTa), not one (BERT)."""


class _CoreDecoding(Decoding):
    """A core with a cache of keys and values; a token a row goes through `Stepper` where that is possible."""

    def __init__(self, encoder: LanguageEncoder, rows: int, expected: int) -> None:
        assert encoder.language is not None
        self.core, self.language = encoder.core, encoder.language
        device = next(itertools.chain(encoder.parameters(), encoder.buffers())).device
        self.cache = Cache.empty(rows, expected=expected, device=device)
        self.stepper = Stepper.of(self.core, self.language)

    def read(self, inputs: Ragged, *, last: bool = False) -> Projection:
        """Read some tokens a row; see `Decoding.read`."""
        states = self.core(inputs, read=inputs.offsets[1:] - 1 if last else None, cache=self.cache)
        result: Projection = self.language(states)
        return result

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token a row; see `Decoding.step`."""
        if self.stepper is not None and len(tokens) <= self.stepper.most:
            return self.stepper.step(tokens, self.cache)
        return self.read(Ragged(tokens, torch.arange(len(tokens) + 1, device=tokens.device))).logits()

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        self.cache.select(torch.tensor(rows, dtype=torch.int64, device=self.cache.lengths.device))

    def copy(self) -> Self:
        """Return the same texts with a cache of their own."""
        other = copy.copy(self)
        other.cache = self.cache.copy()
        return other


def join(first: Ragged, second: Ragged, separators: Literal["one", "both", "whole"]) -> Ragged:
    """Put the second text of each pair behind the first.

    Args:
        first, second: ids, each text between an opening and a closing token; for ``whole``, as they come.
        separators: ``one``: the first text's closing token parts them, and the second's opening one is left out; ``both``: a
            closing token stands in its place; ``whole``: all of both texts is kept (causal models, whose texts may have no
            opening token).

    Example:
        >>> a, b = Ragged(torch.tensor([1, 7, 2]), torch.tensor([0, 3])), Ragged(torch.tensor([1, 8, 2]), torch.tensor([0, 3]))
        >>> [join(a, b, how).values.tolist() for how in ("one", "both", "whole")]
        [[1, 7, 2, 8, 2], [1, 7, 2, 2, 8, 2], [1, 7, 2, 1, 8, 2]]
    """
    kept, offsets = second.values.clone(), second.offsets
    some = second.lengths > 0  # a text without any token has no opening one
    starts = second.offsets[:-1][some]
    if separators == "both":
        ends = (first.offsets[1:] - 1)[some].clamp(min=0)
        kept[starts] = first.values[ends] if len(first.values) else kept[starts]
    elif separators == "one":
        inner = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
        inner[starts] = False
        kept = kept[inner]
        offsets = second.offsets - torch.nn.functional.pad(some.cumsum(0), (1, 0))
    rest = Ragged(kept, offsets)
    values = kept.new_empty(len(first.values) + len(kept))
    # A token of the first text moves by what stands of second texts before its row, and the other way round.
    values[torch.arange(len(first.values), device=kept.device) + rest.offsets[first.rows]] = first.values
    values[torch.arange(len(kept), device=kept.device) + first.offsets[1:][rest.rows]] = kept
    return Ragged(values, first.offsets + rest.offsets)


def encoder_of(module: nn.Module) -> LanguageEncoder:
    """Return the language model inside a network."""
    assert isinstance(module, Network)
    found = [part for part in module.encoders.values() if isinstance(part, LanguageEncoder)]
    assert len(found) == 1, f"{len(found)} language models"
    return found[0]
