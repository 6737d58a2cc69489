"""An encoder with a decoder of `transformers` behind our contracts: one text is read, another is written.

::

    en.ids (S,) ──▶ rectangle ──▶ its encoder ──▶ states (S, D) ──────┐
    zh.ids (T,) ──▶ start token before each ──▶ rectangle (B, L) ──▶ its decoder, its own head ──▶ logits (T, V)

The encoder runs once for a text, whatever is written from it; the decoder runs inside the whole model, which is given the encoder's
states, so that whatever stands before and behind its head (a scale, a bias) is its own affair.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import DataError, LubanError, RecipeError
from luban.models._core import Projection
from luban.models._decoding import Decoding, PairModel, shifted
from luban.models._encoders import read_ragged
from luban.models._foreign import (
    Asked,
    ForeignEncoder,
    ForeignSpeaker,
    Made,
    Pool,
    Rectangle,
    configuration_of,
    even,
    gradients_of,
    joined,
    looked_up,
    near,
    positions_of,
    probing,
)
from luban.models._layers import pooled

__all__ = ["ForeignPair", "lengths_of", "with_defaults"]

_POSITIONS = ("max_position_embeddings", "n_positions")
_READ = ("max_encoder_position_embeddings", *_POSITIONS)
_WRITTEN = ("max_decoder_position_embeddings", *_POSITIONS)
"""What architectures call the number of positions of each side."""


def lengths_of(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return how many tokens of a text an architecture reads, and how many it writes; None where it does not say.

    A key counts where the architecture knows it: old files of T5, whose positions are relative, say how long its texts were.
    """
    try:
        known = configuration_of(config)
    except LubanError:  # which is said where the model is made
        return None, None
    if sides := _sides_of(known):
        return positions_of(sides[0].to_dict()), positions_of(sides[1].to_dict())
    found: list[int | None] = []
    for keys in (_READ, _WRITTEN):
        named = (key for key in keys if hasattr(type(known), key) or key in type(known).attribute_map)
        numbers = (getattr(known, key, None) for key in named)
        found.append(next((number for number in numbers if isinstance(number, int)), None))
    return found[0], found[1]


def _sides_of(configuration: Any) -> list[Any]:
    """Return the configurations of both sides, where each has one of its own."""
    sides = [getattr(configuration, name, None) for name in ("encoder", "decoder")]
    return sides if all(hasattr(side, "to_dict") for side in sides) else []


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, with the tokens that its class begins and ends texts with where it names none and has so many."""
    try:
        known = configuration_of(config)
    except LubanError:
        return dict(config)
    keys = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
    size = ForeignPair._vocabulary(known) or 0
    usual = {key: one for key in keys if isinstance(one := getattr(known, key, None), int) and one < size}
    return {**usual, **config}


class ForeignPair(ForeignSpeaker, PairModel):
    """An encoder and a decoder; the states are the encoder's.

    Args:
        config: of the architecture.
        positions: tokens of a text that it reads, None where it does not say.
        pool: what of the encoder's states is a text's vector, which other targets are read off.
        name: the field of ids that are read.
        field: what is known about it.
        edges: the tokens that a text begins and ends with: `start`, `forced_first` and `forced_last` of `PairModel`, None where they
            are not named.
    """

    TASK = "seq2seq"

    def __init__(
        self,
        config: Mapping[str, Any],
        positions: int | None,
        pool: Pool,
        name: str,
        field: Field,
        edges: tuple[int | None, int | None, int | None] = (None, None, None),
    ) -> None:
        written = lengths_of(config)[1]
        self._longest = min((one for one in (positions, written) if one is not None), default=None)
        self._edges = edges
        super().__init__(config, positions, pool, name, field)

    @staticmethod
    def _vocabulary(configuration: Any) -> int | None:
        """Return how many tokens a configuration has vectors for, be it one of two; that both read as many is asked of the module."""
        sides = _sides_of(configuration) or [configuration]
        return ForeignSpeaker._vocabulary(sides[-1])

    @property
    def reader(self) -> nn.Module:
        """Its encoder."""
        return cast(nn.Module, cast(Any, self.model).get_encoder())

    def _width(self) -> int:
        super()._width()  # which asks for a head
        sides = (self.reader, cast(Any, self.model).get_decoder())
        if not all(hasattr(side, "get_input_embeddings") for side in sides):
            raise RecipeError(
                f"an architecture of type '{self.architecture}' names no table of the tokens that it reads; take another model"
            )
        tables = [cast(Any, side).get_input_embeddings().num_embeddings for side in sides]
        if tables[0] != tables[1]:
            raise RecipeError(
                f"this architecture of type '{self.architecture}' has {tables[0]:,} tokens to read and {tables[1]:,} to write, and type 'huggingface' has one "
                "tokenizer for both; take type 'seq2seq', or a model whose texts share one"
            )
        return int(cast(Any, self.reader).config.get_text_config().hidden_size)

    @property
    def causal(self) -> bool:
        """The decoder is."""
        return True

    @property
    def has_vocabulary(self) -> bool:
        """It always has."""
        return True

    @property
    def limit(self) -> int | None:
        """Tokens of a text that it writes."""
        return self._longest

    @property
    def room(self) -> int | None:
        """The same: whether its positions go on beyond, nobody says."""
        return self._longest

    def add_decoder(self, name: str, field: Field) -> None:
        """Have its decoder write the target `name`."""
        if (field.size or 0) > self._known:
            raise RecipeError(
                f"the tokenizer of '{field.column}' has {field.size:,} tokens, and model.config has vectors for {self._known:,}: "
                "they do not belong together; write 'like' and the name of the text that is read in its place"
            )
        start, first, last = self._edges
        self.edges(name, field, self._known, self.padding if start is None else start, first, last)
        if self._caches and self.start == self.padding:
            # Some give what fills no position of its own, but count it in a cache.
            text, _ = self._samples()
            with probing(self):
                self._caches = self._writes_on(torch.cat([text.new_tensor([self.start]), text[:-1]]))

    # --- what it is asked when it is made -----------------------------------------------------------------

    def _examine(self) -> None:
        """Of the encoder as of any; of the decoder, whether what it writes depends on the tokens before it and its own source alone."""
        ForeignEncoder._examine(self)
        long, short = self._samples()
        if not self._pairs_apart(short, long):
            self.masks_padding = False
            if not self._pairs_apart(short, short):
                raise RecipeError(
                    f"an architecture of type '{self.architecture}' writes the texts of a batch as one, so that a text depends on those "
                    "beside it; take another model"
                )
        source = Ragged.from_rows([long]).to(long.device)
        memory = source.like(self.states(source))
        with looked_up(cast(Any, self.model).get_decoder()) as seen:
            first = self.written(source, memory).logits()[:1]
        if any(bool(one[:, -len(long) :][:, 1:].any()) for one in gradients_of(first, seen)):
            raise RecipeError(
                f"with this configuration the decoder of type '{self.architecture}' looks ahead, so that it cannot write; take task encoder"
            )
        self._caches = self._caches and self.masks_padding and (len(long) == 1 or self._writes_on(long))

    def _pairs_apart(self, text: Tensor, other: Tensor) -> bool:
        """Whether what is written from a text is the same beside another one; as `_apart`."""
        rows = Ragged.from_rows([text, other]).to(text.device)
        with torch.no_grad():
            alone = self._through(Ragged.from_rows([text]).to(text.device))
        with looked_up(self.reader) as read, looked_up(cast(Any, self.model).get_decoder()) as put:
            beside = self._through(rows)[: len(text)]
        gradients = gradients_of(beside, [*read, *put])
        longest = max(len(text), len(other))
        outside = [one[:, -longest:][:, len(text) :] for one in gradients] + [one[1:] for one in gradients]
        return near(beside, alone) and not any(bool(one.any()) for one in outside)

    def _writes_on(self, text: Tensor) -> bool:
        """Whether a text goes on from the cache as if it were read anew, its row chosen among others."""
        sources = Ragged.from_rows([text[:2], text]).to(text.device)
        with torch.no_grad():
            try:
                decoding = self.begin(2, len(text), sources)
                decoding.read(Ragged.from_rows([text[:-1], text[:-1]]).to(text.device))
                decoding.select([1, 1])
                decoding.select([0, 0, 1])
                found = decoding.step(text[-1:].expand(3))
            except Exception:  # of any kind: the cache is not ours
                return False
            whole = self._through(Ragged.from_rows([text]).to(text.device))[-1]
        return all(near(row, whole) for row in found)

    def _through(self, texts: Ragged) -> Tensor:
        """Return the logits of texts that are written from themselves, (T, V)."""
        return self.written(texts, texts.like(self.states(texts))).logits()

    # --- texts --------------------------------------------------------------------------------------------

    def outputs(self, batch: Batch) -> tuple[Tensor, Ragged | None, dict[str, Any]]:
        """Return (B, width), the encoder's states (S, D) and, where the batch has the text to be written, `column.tokens`."""
        ids = self._ids(batch)
        memory = ids.like(self.states(ids))
        extra: dict[str, Any] = {}
        if self.target in batch:
            wanted = read_ragged(batch, self.target)
            longest = int(wanted.lengths.max()) if len(wanted) else 0
            if self._longest is not None and longest > self._longest:
                raise DataError(
                    f"a text to be written has {longest} tokens, and the model takes {self._longest}: set max_length of the text in data.targets"
                )
            column = self.target.rpartition(".")[0]
            extra[f"{column}.tokens"] = self.written(shifted(wanted, self.start), memory)
        return pooled(memory, self.pool), memory, extra

    def written(self, inputs: Ragged, memory: Ragged, read: Tensor | None = None) -> Projection:
        """Return the way to what follows tokens of texts.

        Args:
            inputs: what the decoder reads, (T,).
            memory: what the encoder made of the text of each row, (S, D).
            read: places whose logits are wanted, (M,); all by default.
        """
        wanted = torch.arange(len(inputs.values), device=inputs.values.device) if read is None else read
        parts: list[Made] = []
        places: list[Tensor] = []
        for rows in self._alike(inputs, memory):
            some, where = _rows_of(inputs, rows)
            states, _ = _rows_of(memory, rows)
            here = torch.full_like(inputs.values, -1)
            here[where] = torch.arange(len(where), device=where.device)
            chosen = (here[wanted] >= 0).nonzero().squeeze(1)
            given = Rectangle.of(some, self.padding)
            own = here[wanted[chosen]]
            asked = Asked(some.rows[own], given.columns[own], None)
            part, _ = self.decoded(given.ids, given.mask, *_remembered(states), asked, {"use_cache": False})
            parts.append(part)
            places.append(chosen)
        if len(parts) == 1:
            return parts[0]
        weight = cast(Any, self.head()).weight
        if not parts:
            return Made(weight.new_empty(0, weight.shape[1]), weight, made=weight.new_empty(0, len(weight)))
        order = torch.cat(places).argsort()
        found, made = (torch.cat([getattr(one, name) for one in parts])[order] for name in ("states", "made"))
        return Made(found, weight, parts[0].bias, made=made)

    def _alike(self, inputs: Ragged, memory: Ragged) -> Iterator[Tensor]:
        """Yield the rows that go through together, of those that have a token: all of them, or those of one length on both sides."""
        lengths = torch.stack([inputs.lengths, memory.lengths], 1)
        rows = (inputs.lengths > 0).nonzero().squeeze(1)
        if self.masks_padding:
            if len(rows):
                yield rows
            return
        kinds, of = lengths[rows].unique(dim=0, return_inverse=True)
        for kind in range(len(kinds)):
            yield rows[of == kind]

    def decoded(
        self, ids: Tensor, mask: Tensor, states: Tensor, seen: Tensor, asked: Asked, how: Mapping[str, Any]
    ) -> tuple[Made, Any]:
        """Run the decoder over a rectangle.

        Args:
            ids: tokens, (B, L).
            mask: where a token is and no padding, cached ones included, (B, K): some take the token that they begin with for padding.
            states: what the encoder made of the text of each row, (B, S, D), and
            seen: where a token of it is, (B, S).
            asked: which logits are wanted.
            how: further arguments of the model.

        Returns:
            The way to the logits asked for, and what the model returned beside them.
        """
        from transformers.modeling_outputs import MoEModelOutput

        given = {
            "encoder_outputs": MoEModelOutput(
                last_hidden_state=states
            ),  # which has all that any decoder asks for
            "attention_mask": seen,
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask.long(),
        }
        return self.answered(asked, {**given, **how})

    def begin(self, rows: int, expected: int, sources: Ragged | None = None) -> Decoding:
        """Read the sources, and begin to write; see `LanguageModel.begin`."""
        assert sources is not None
        return _ForeignPairDecoding(self, sources)


class _ForeignPairDecoding(Decoding):
    """Texts that are written, with transformers' own cache, and what the encoder made of each source once.

    A pass over as many tokens in every row goes on from the cache; any other reads what is written anew, as does every pass of a
    model whose cache cannot have rows chosen. Cached keys and values of a source stay where rows change places that have the same one.
    """

    def __init__(self, model: ForeignPair, sources: Ragged) -> None:
        self._model = model
        longest = model._too_long(sources)
        if longest is not None:
            raise DataError(
                f"a text has {longest} tokens, and the model takes {model.positions}: set max_length of the text in data.inputs"
            )
        with torch.inference_mode():
            self._memory = sources.like(model.states(sources))
        self._sources = list(range(len(sources)))
        """Which row of the memory each row is written from."""
        self._spread = _remembered(self._memory)
        """The memory of each row, (B, S, D), and where it is, (B, S)."""
        empty = torch.empty(0, dtype=torch.int64)
        self._texts = Ragged.from_rows([empty] * len(sources)).to(sources.values.device)
        self._cache: Any = None

    def read(self, inputs: Ragged, *, last: bool = False) -> Projection:
        """Read some tokens a row; see `Decoding.read`."""
        model, whole = self._model, joined(self._texts, inputs)
        longest = int(whole.lengths.max())
        if model.room is not None and longest > model.room:
            raise DataError(
                f"what was written has {longest} tokens, and the model takes {model.room}: lower max_tokens"
            )
        goes_on = self._cache is not None and even(inputs)
        given = inputs if goes_on else whole
        if last:
            wanted = given.offsets[1:] - 1
        else:
            new = (given.lengths - inputs.lengths)[given.rows]  # of each row, how many were read before
            wanted = (given.positions >= new).nonzero().squeeze(1)
        self._texts = whole
        if not model.masks_padding:
            return model.written(whole, self._each, wanted)
        rectangle = Rectangle.of(given, model.padding)
        how: dict[str, Any] = {"use_cache": model._caches and even(given)}
        if goes_on:
            how["past_key_values"] = self._cache
        asked = Asked(given.rows[wanted], rectangle.columns[wanted], None)
        mask = whole.offsets.new_ones(len(whole), longest) if goes_on else rectangle.mask
        projection, found = model.decoded(rectangle.ids, mask, *self._spread, asked, how)
        cache = getattr(found, "past_key_values", None) if how["use_cache"] else None
        self._cache = cache if hasattr(cache, "reorder_cache") else None
        return projection

    @property
    def _each(self) -> Ragged:
        """What the encoder made of the source of each row, (S, D)."""
        return _rows_of(self._memory, torch.tensor(self._sources, device=self._memory.offsets.device))[0]

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token a row; see `Decoding.step`."""
        return self.read(Ragged(tokens, torch.arange(len(tokens) + 1, device=tokens.device))).logits()

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._texts.offsets.device)
        sources = [self._sources[row] for row in rows]
        self._texts, _ = _rows_of(self._texts, index)
        stays = sources == self._sources
        if not stays:
            self._sources = sources
            self._spread = (self._spread[0].index_select(0, index), self._spread[1].index_select(0, index))
        if self._cache is not None:
            own = getattr(self._cache, "self_attention_cache", None) if stays else None
            (self._cache if own is None else own).reorder_cache(index)

    def copy(self) -> Self:
        """Return the same texts with a cache of their own; what the encoder read stays shared."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        return other

    def forced(self, place: int, limit: int) -> int | None:
        """Return the token that every text begins or ends with."""
        return self._model.forced(place, limit)


def _rows_of(texts: Ragged, rows: Tensor) -> tuple[Ragged, Tensor]:
    """Return some rows, (B',), and where their tokens stand in the batch, (T',)."""
    lengths = texts.lengths[rows]
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    first = (texts.offsets[:-1][rows] - offsets[:-1]).repeat_interleave(lengths)
    places = first + torch.arange(len(first), device=first.device)
    return Ragged(texts.values[places], offsets), places


def _remembered(memory: Ragged) -> tuple[Tensor, Tensor]:
    """Return states as a decoder takes them, (B, S, D), and where they are, (B, S): a text without a token is one of zeros, since
    attention to nothing is no number."""
    states, mask = memory.padded()
    if not states.shape[1]:
        states, mask = states.new_zeros(len(memory), 1, states.shape[2]), mask.new_zeros(len(memory), 1)
    seen = mask.clone()
    seen[:, 0] |= ~mask.any(1)
    return states, seen.long()
