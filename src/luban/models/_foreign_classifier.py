"""Sequence classifiers of `transformers` behind our contracts, whole but for their last layer.

::

    text.ids (T,) ──▶ rectangle (B, L), mask ──▶ transformers, its last linear layer taken off ──▶ features (B, D)
                                                                                                       │
                                                     our head, with that layer's weights if they are read ──▶ logits (B, C)

Which states are read, and what is done to them before the last layer (a dense layer, tanh, GELU, the last token that is no padding,
the end token of a decoder), is the architecture's affair, and so is the dropout in between.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import DataError, RecipeError
from luban.models._encoders import Features
from luban.models._foreign import CLASSES, ForeignEncoder

__all__ = ["ForeignClassifier"]

_NO_TOKEN = -1
_SHORT = 16  # tokens: no architecture needs more
_NEAR = 1e-4  # of the largest logit: rounding


class ForeignClassifier(ForeignEncoder):
    """A sequence classifier without its last layer: a text's vector is what that layer read. It has no state a token.

    Args:
        config: of the architecture.
        positions: tokens of a text that it takes, None where it does not say.
        segments: the tokens of segment 1, those of segment 2 and so on; all others are of segment 0.
        name: the field of ids.
        field: what is known about it.

    Raises:
        RecipeError: if the architecture classifies in a way that one linear layer behind a vector a text does not end.
    """

    TASK = "classifier"
    decision: str
    """Name of the layer that was taken off, in the module of transformers."""
    biased: bool
    """Whether that layer has a bias."""
    names_padding: bool
    """Whether the configuration says which token is padding."""
    segments: Sequence[Sequence[int]] = ()
    _end: int | None = None
    """The token whose state is read, where there is such a one: texts go through together that have as many of it."""
    _fewest = 1
    """Tokens that a text needs for transformers to read it at all; a shorter one is padded to as many."""

    def __init__(
        self,
        config: Mapping[str, Any],
        positions: int | None,
        segments: Sequence[Sequence[int]],
        name: str,
        field: Field,
    ) -> None:
        super().__init__(config, positions, "mean", name, field)
        self.segments = self._known_segments(segments)
        self.save_once()

    @property
    def looks_up_once(self) -> bool:
        """Not where texts go through by length, which may be more than they have; and a decoder looks the same text up again."""
        return self.masks_padding and not cast(Any, self.model).config.is_encoder_decoder

    def _width(self) -> int:
        return self._last()[1].in_features

    def _last(self) -> tuple[str, nn.Linear]:
        """Return the layer that makes the logits, and its name, before it is taken off."""
        found = [
            (name, part)
            for name, part in self.model.named_modules()
            if isinstance(part, nn.Linear) and part.out_features == CLASSES
        ]
        if len(found) != 1:
            raise self._refusal(f"it has {len(found)} linear layers of one output a class")
        return found[0]

    def _known_segments(self, segments: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """Return the segments, if the architecture can be told of them.

        Raises:
            RecipeError: if there are more than it has.
        """
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
            return ()
        size = getattr(cast(Any, self.model).config, "type_vocab_size", None)
        if segments and isinstance(size, int) and len(segments) >= size:
            raise RecipeError(
                f"model.segments names {len(segments)} segments beside the first, and an architecture of type '{self.architecture}' has {size} in "
                "all by its type_vocab_size; name the tokenizer of the model, or remove the key"
            )
        return segments

    def _refusal(self, why: str) -> RecipeError:
        return RecipeError(
            f"an architecture of type '{self.architecture}' cannot be run as a classifier: {why}; take task encoder, or another model"
        )

    # --- what it is asked when it is made ---------------------------------------------------------------------

    def _examine(self) -> None:
        """Take the last layer off, and see that what it read is a vector a text from which it alone makes the logits; then as of
        any module."""
        config = cast(Any, self.model).config
        self.names_padding = isinstance(config.pad_token_id, int)
        if not self.names_padding:
            # Without one some take a single text; with one that no text has they read the last token of each, as they do then.
            config.pad_token_id = _NO_TOKEN
        self.decision, last = self._last()
        self.biased = last.bias is not None
        self._end = self._read_at()
        self._fewest = self._least()
        long, _ = self._samples()
        with torch.no_grad():
            expected = self._made_of(long)
            above, _, own = self.decision.rpartition(".")
            setattr(self.model.get_submodule(above), own, nn.Identity())
            found = self._made_of(long)
            if found.shape != (1, self.width):
                raise self._refusal(f"its last layer reads no vector of {self.width} values a text")
            if not torch.allclose(last(found), expected, rtol=0, atol=_NEAR * float(expected.abs().max())):
                raise self._refusal("its last layer is not the last thing that is done")
        super()._examine()

    def _read_at(self) -> int | None:
        """Return the end token, if a text without one cannot be read."""
        config = cast(Any, self.model).config
        if not (config.is_encoder_decoder and isinstance(config.eos_token_id, int)):
            return None
        text = self._samples()[0]
        with torch.no_grad():
            try:
                self._made_of(text[text != config.eos_token_id])
            except Exception:  # of any kind: the demand is not ours
                return int(config.eos_token_id)
        return None

    def _least(self) -> int:
        """Return how many tokens a text has, at the least, that can be read without padding; 1 if none of a few can."""
        longest = min(_SHORT, self.positions or _SHORT)
        text, _ = self._samples()
        for length in range(1, longest + 1):
            with torch.no_grad():
                try:
                    self._made_of(text.repeat(length)[-length:])
                except Exception:  # of any kind: layers that pool tokens may be left with too few of them
                    continue
            return length
        return 1

    def _samples(self) -> tuple[Tensor, Tensor]:
        """As of any module, neither of them too short, and each with one end token if there has to be one."""
        known = range(min(self._known, _SHORT))
        tokens = [token for token in known if token not in (self.padding, self._end)] or [0]
        length = min(self._fewest + 4, self.positions or _SHORT)
        long = torch.tensor((tokens * length)[:length], device=next(self.parameters()).device)
        short = long.flip(0)[: max(self._fewest, length // 2)]
        if self._end is not None:
            long[-1] = short[-1] = self._end
        return long, short

    def _made_of(self, text: Tensor, *others: Tensor) -> Tensor:
        """Return what a text becomes beside others, (1, D)."""
        return self.features(Ragged.from_rows([text, *others]).to(text.device))[:1]

    def _through(self, texts: Ragged) -> Tensor:
        return self.features(texts)

    def behind(self) -> set[nn.Parameter]:
        """Return the parameters between the architecture's own states and the last layer, such as those of a dense layer."""
        core = {*cast(Any, self.model).base_model.parameters()}
        return {one for one in self.model.parameters() if one not in core}

    # --- texts ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Features:
        """Return (B, width), and no states: where they are read is the architecture's affair."""
        return self.features(self._ids(batch)), None

    def features(self, texts: Ragged) -> Tensor:
        """Return what the last layer read of each text, (B, D); zeros of a text without a token."""
        parts, rows = [], []
        for some, where in self._groups(texts):
            parts.append(self.model(**self.inputs(some)).logits)
            rows.append(where)
        if not parts:
            return next(self.parameters()).new_zeros(len(texts), self.width)
        made = torch.cat(parts)
        has_tokens = (texts.lengths > 0).view(-1, *[1] * (made.dim() - 1))
        found = made.new_zeros(len(texts), *made.shape[1:]).index_copy(0, torch.cat(rows), made)
        return torch.where(has_tokens, found, 0.0)

    def _groups(self, texts: Ragged) -> Iterator[tuple[Ragged, Tensor]]:
        """Yield the texts that go through together, and which rows of the batch they are, (B',); not always those without a token."""
        lengths = texts.lengths
        if self.masks_padding and self._end is None:
            if len(texts):
                yield texts, torch.arange(len(texts), device=lengths.device)
            return
        group = torch.zeros_like(lengths) if self.masks_padding else lengths
        if self._end is not None:
            ends = torch.zeros_like(lengths).index_add(0, texts.rows, (texts.values == self._end).long())
            if bool(((ends == 0) & (lengths > 0)).any()):
                raise DataError(
                    f"a text has no end token (number {self._end}), at which an architecture of type '{self.architecture}' is read; name the "
                    "tokenizer of the model by 'tokenizer', or set 'end' of the text in data.inputs"
                )
            group = group * (len(texts.values) + 1) + ends
        for number in group[lengths > 0].unique().tolist():
            rows = ((group == number) & (lengths > 0)).nonzero().squeeze(1)
            of = torch.isin(texts.rows, rows)  # (T,)
            yield Ragged(texts.values[of], F.pad(lengths[rows].cumsum(0), (1, 0))), rows

    def inputs(self, texts: Ragged) -> dict[str, Any]:
        """Return texts as the module of transformers is called with them, padded, (B, L)."""
        given = self.rectangle(texts)
        more = (0, max(0, self._fewest - given.ids.shape[1]))
        ids = F.pad(given.ids, more, value=self.padding)
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": F.pad(given.seen, more), **self._once}
        if self.segments:
            segments = torch.zeros_like(ids)
            for segment, tokens in enumerate(self.segments, 1):
                segments[torch.isin(ids, ids.new_tensor(tokens))] = segment
            found["token_type_ids"] = segments
        return found
