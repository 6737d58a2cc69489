"""Encoder and decoder (Vaswani et al., 2017): a text is read in both directions, and another one written token by token.

::

    en.ids  (S,) ──▶ core ──▶ memory (S, D) ─────┐                       which every block of the decoder attends to
    zh.ids  (T,) ──▶ start token before each ──▶ decoder ──▶ states (T, D) ──▶ vocabulary ──▶ zh.tokens

With norms after each part it is the Transformer of 2017, BART (Lewis et al., 2019) and Marian (Junczys-Dowmunt et al., 2018);
with norms before (Xiong et al., 2020), mBART (Liu et al., 2020). It reads and writes these three's checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._cache import Cache
from luban.models._core import Core, Projection, Shape, Vocabulary
from luban.models._decoding import Decoding, PairModel, pair_of, shifted
from luban.models._encoders import Encoder, is_sequence, read_ragged
from luban.models._language import Language, LanguageEncoder
from luban.models._layers import Activation, Count, Positive, pooled
from luban.models._network import Network
from luban.models._pair import Token, new_tokenizer, opened_by, texts_of, written_of
from luban.recipe import Data
from luban.registry import register

__all__ = ["Seq2Seq", "Seq2SeqEncoder"]


@register("models")
class Seq2Seq(Language):
    """A Transformer that reads one text column and writes another: translation, summaries, corrections.

    Further targets (a category, a number) are read off the pooled states of the encoder.

    Example:
        >>> Seq2Seq(size="tiny").decoder_layers, Seq2Seq(layers=6, size="tiny").decoder_layers
        (2, 6)
    """

    SIZES: ClassVar = {
        "tiny": {"layers": 2, "hidden_size": 128, "heads": 2},
        "small": {"layers": 4, "hidden_size": 256, "heads": 4},
        "medium": {"layers": 6, "hidden_size": 512, "heads": 8},
        "large": {"layers": 6, "hidden_size": 1024, "heads": 16},
    }
    FREE: ClassVar = Language.FREE | {"start", "forced_first", "forced_last"}
    decoder_layers: Count | None = None
    """Blocks of the decoder; as many as `layers` if left out."""
    norm: Literal["pre", "post"] = "pre"
    """Where the norms stand: before each part, which trains without a warm-up, or after its sum, as in the paper of 2017."""
    positions: Literal["sinusoidal", "learned", "rotary"] = "rotary"
    """How a position is known: by sines and cosines (2017), by learned vectors (BART), or by turning queries and keys (Su et
    al., 2021)."""
    embedding_norm: bool = False
    """Whether the sums of token and position vectors are normalised (BART)."""
    scale_embedding: bool | None = None
    """Whether token vectors are multiplied by the root of `hidden_size`; by default where positions are sinusoidal, as in the
    paper of 2017."""
    shared: bool | None = None
    """Whether encoder and decoder have one table of tokens; by default where both columns have one tokenizer."""
    tied: bool = True
    """Whether the decoder's table of tokens is also what reads tokens off its states (Press and Wolf, 2017)."""
    output_bias: bool = False
    """Whether each token has a bias in the output (Marian)."""
    decoder_vocabulary: Count | None = None
    """Rows of the decoder's token table, if more than the target's tokenizer has tokens; `vocabulary` where it is shared."""
    start: Token | None = None
    """Number of the token that the decoder begins with; the padding token if left out, as in Marian."""
    forced_first: Token | None = None
    """Number of the token that every written text begins with (BART's <s>, the language of mBART)."""
    forced_last: Token | None = None
    """Number of the token that is written last where a text becomes as long as is allowed (BART's </s>)."""
    max_positions: Count = 1024
    """Tokens of a text, at the most."""
    pool: Literal["first", "mean", "last", "max"] = "mean"
    """What of the encoder's states is the text's vector, which other targets are read off."""
    activation: Activation = "gelu"
    """Activation of the feed-forward part, and of hidden layers."""
    eps: Positive = 1e-5
    """Added to the variance in the norms."""

    @model_validator(mode="after")
    def _consistent_sizes(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        if self.positions == "rotary" and (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"rotary positions turn pairs of values, and a head has {self.hidden_size // self.heads}: take another number of heads"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(
                f"sinusoidal positions are pairs of values, and hidden_size is {self.hidden_size}"
            )
        if self.shared and self.decoder_vocabulary not in (None, self.vocabulary):
            raise ValueError(
                f"decoder_vocabulary {self.decoder_vocabulary} would do nothing, because the table is shared: set vocabulary"
            )
        if self.decoder_layers is None:
            self.decoder_layers = self.layers
        return self

    @property
    def writes(self) -> bool:
        """A text column among the targets."""
        return True

    @property
    def scaled(self) -> bool:
        """Whether token vectors are multiplied by the root of the width."""
        return self.positions == "sinusoidal" if self.scale_embedding is None else self.scale_embedding

    def shape(self, vocabulary: int) -> Shape:
        """Return what the encoder looks like."""
        return Shape(
            vocabulary,
            self.layers,
            self.hidden_size,
            self.heads,
            self.heads,
            self.hidden_size // self.heads,
            self.intermediate or 4 * self.hidden_size,
            norm_place=self.norm,
            first_norm=self.embedding_norm,
            last_norm=self.norm == "pre",
            eps=self.eps,
            positions=self.positions,
            max_positions=self.max_positions,
            activation=self.activation,
            embedding_scale=math.sqrt(self.hidden_size) if self.scaled else 1.0,
            dropout=self.layer_dropout,
            attention_dropout=self.attention_dropout,
            recompute=self.recompute,
        )

    def decoder_shape(self, vocabulary: int) -> Shape:
        """Return what the decoder looks like."""
        return replace(
            self.shape(vocabulary), layers=self.decoder_layers or self.layers, causal=True, cross=True
        )

    def complete(self, data: Data) -> list[str]:
        """Give both texts the tokenizer and the options that this model needs, where the recipe leaves them out."""
        source, target = texts_of(self, data)
        said = []
        for column, columns in ((source, data.inputs), (target, data.targets)):
            text = columns[column]
            assert isinstance(text, Text)
            options = self._options_of(text)
            if column == target:
                options |= opened_by(self.forced_first, text)
            columns[column] = type(text).model_validate(
                {**{key: getattr(text, key) for key in text.model_fields_set}, **options}
            )
            if options:
                shown = ", ".join(f"{key} {value}" for key, value in options.items())
                said.append(f"{column}: {shown}, for model type '{self.type}'")
        one, other = data.inputs[source], data.targets[target]
        assert isinstance(one, Text)
        assert isinstance(other, Text)
        same = other.like == source or (one.tokenizer is not None and one.tokenizer == other.tokenizer)
        if self.shared and not same:
            raise RecipeError(
                f"model.shared is true, and '{source}' and '{target}' have tokenizers of their own; write '{target}: "
                f"{{type: text, like: {source}}}' to train one on both, name the same tokenizer in both, or remove the key"
            )
        if self.shared is None:
            self.shared = same
            said.append(
                f"model.shared: {str(same).lower()}, since the columns have {'one tokenizer' if same else 'tokenizers of their own'}"
            )
        return said

    def _options_of(self, text: Text) -> dict[str, Any]:
        given = text.model_fields_set
        if text.like is not None:
            options: dict[str, Any] = {"end": True}
        elif self.from_ is not None and "tokenizer" not in given:
            if "tokens" in given:
                raise RecipeError(
                    "tokens asks for a new tokenizer, but model.from brings weights that were trained with their own; "
                    "remove one of them"
                )
            options = {"tokenizer": self.from_, "lowercase": False, "end": True}
        else:
            options = new_tokenizer(text)
        options["max_length"] = min(512, self.max_positions)
        return {key: value for key, value in options.items() if key not in given}

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Read texts."""
        return Seq2SeqEncoder(self, [name], field.size or 0) if is_sequence(field) else None

    def build(self, spec: Spec) -> Network:
        """Make the network; see `Model.build`."""
        name, field = written_of(self, spec)
        network = super().build(spec)
        pair_of(network).add_decoder(name, field)
        return network


class Seq2SeqEncoder(LanguageEncoder, PairModel):
    """The encoder, whose states other targets may be read off, and the decoder beside it.

    The decoder has no table of tokens where it shares the encoder's: a shared weight has one name only and is saved once.
    """

    speaks = False  # tokens of what it reads; those of the target come from the decoder
    options: Seq2Seq
    decoder: Core

    @property
    def causal(self) -> bool:
        """The decoder is."""
        return self.decoder.shape.causal

    @property
    def room(self) -> int | None:
        """As many as the decoder has learned positions; sines go on."""
        shape = self.decoder.shape
        return shape.max_positions if shape.positions == "learned" else None

    def begin(self, rows: int, expected: int, sources: Ragged | None = None) -> Decoding:
        """Read the sources, and begin to write; see `LanguageModel.begin`."""
        assert sources is not None
        return _PairDecoding(self, sources, expected)

    def add_decoder(self, name: str, field: Field) -> None:
        """Add what writes the target `name`."""
        options, own = self.options, self.core.embedding.tokens
        assert own is not None
        size = field.size or 0
        if options.shared:
            if size > own.num_embeddings:
                raise RecipeError(
                    f"model.shared is true, and the tokenizer of '{field.column}' has {size:,} tokens where that of the input has "
                    f"{own.num_embeddings:,}: they are not the same; remove the key"
                )
            size = own.num_embeddings
        else:
            size = max(size, options.decoder_vocabulary or 0)
        self.edges(name, field, size, options.start, options.forced_first, options.forced_last)
        shape = options.decoder_shape(size)
        self.decoder = Core(replace(shape, vocabulary=0) if options.shared else shape)
        self.decoder.reset()
        tied = self._table if options.tied else None
        self.language = Vocabulary(shape, tied, bias=options.output_bias)

    @property
    def _table(self) -> nn.Embedding:
        """The decoder's vectors of tokens."""
        table = self.core.embedding.tokens if self.options.shared else self.decoder.embedding.tokens
        assert table is not None
        return table

    def outputs(self, batch: Batch) -> tuple[Tensor, Ragged | None, dict[str, Any]]:
        """Return (B, D), the states of the text that was read, (S, D), and, where the batch has the text to be written,
        ``column.tokens``: the way from the states before each of its tokens, (T, D), to the vocabulary."""
        memory = self.remember(read_ragged(batch, self.names[0]))
        extra: dict[str, Any] = {}
        if self.target in batch:
            inputs = shifted(read_ragged(batch, self.target), self.start)
            extra[f"{self.target.rsplit('.', 1)[0]}.tokens"] = self.write(inputs, memory)
        return pooled(memory, self.options.pool), memory, extra

    def remember(self, ids: Ragged) -> Ragged:
        """Return the encoder's states of texts, (S, D)."""
        return ids.like(self.core(ids))

    def write(
        self,
        inputs: Ragged,
        memory: Ragged,
        *,
        read: Tensor | None = None,
        readers: Tensor | None = None,
        cache: Any = None,
    ) -> Projection:
        """Return the way from the decoder's states, (T, D), to what follows each token of `inputs`; see `Core.forward`."""
        assert self.language is not None
        given = inputs.like(self._table(inputs.values)) if self.options.shared else inputs
        result: Projection = self.language(
            self.decoder(given, read=read, memory=memory, readers=readers, cache=cache)
        )
        return result


class _PairDecoding(Decoding):
    """A decoder with its cache, and the states of what its encoder read once: rows with the same source share them."""

    def __init__(self, encoder: Seq2SeqEncoder, sources: Ragged, expected: int) -> None:
        self.encoder = encoder
        self.cache = Cache.empty(len(sources), expected=expected, device=sources.values.device)
        with torch.inference_mode():
            self.memory = encoder.remember(sources)
        self._sources = list(range(len(sources)))
        """Which row of the memory each row reads: in order, so that rows with the same one are neighbours."""

    def read(self, inputs: Ragged, *, last: bool = False) -> Projection:
        """Read some tokens a row; see `Decoding.read`."""
        counts = torch.bincount(torch.tensor(self._sources), minlength=len(self.memory))
        readers = F.pad(counts.cumsum(0), (1, 0)).to(inputs.offsets.device)
        read = inputs.offsets[1:] - 1 if last else None
        return self.encoder.write(inputs, self.memory, read=read, readers=readers, cache=self.cache)

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token a row; see `Decoding.step`."""
        return self.read(Ragged(tokens, torch.arange(len(tokens) + 1, device=tokens.device))).logits()

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, and let go of the sources that none of them reads."""
        sources = [self._sources[row] for row in rows]
        assert sources == sorted(sources), "rows with the same source must stay neighbours"
        kept = sorted(set(sources))
        self._sources = [kept.index(source) for source in sources]
        places = None
        if len(kept) < len(self.memory):
            stays = torch.zeros(len(self.memory), dtype=torch.bool, device=self.memory.offsets.device)
            stays[kept] = True
            places = stays[self.memory.rows].nonzero().squeeze(1)
            lengths = self.memory.lengths[stays]
            self.memory = Ragged(self.memory.values[places], F.pad(lengths.cumsum(0), (1, 0)))
        index = torch.tensor(rows, dtype=torch.int64, device=self.cache.lengths.device)
        self.cache.select(index, places)

    def copy(self) -> Self:
        """Return the same texts with a cache of their own; what the encoder read stays shared."""
        other = copy.copy(self)
        other.cache = self.cache.copy()
        return other

    def forced(self, place: int, limit: int) -> int | None:
        """Return the token that every text begins or ends with."""
        return self.encoder.forced(place, limit)
