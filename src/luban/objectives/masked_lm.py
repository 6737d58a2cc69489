"""Tokens that were hidden (Devlin et al., 2018)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.pipeline import Pipeline
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._language import LanguageObjective
from luban.registry import register

__all__ = ["MaskedLM", "between"]


@register("objectives")
class MaskedLM(LanguageObjective):
    """Minus the log of the probability of hidden tokens, given the rest of the text.

    Which tokens are hidden is drawn anew each time a text is seen (Liu et al., 2019). Of those chosen, 80 % are replaced by the
    mask, 10 % by a random token and 10 % stay, so that the model cannot trust what it sees.

    Example:
        >>> MaskedLM(share=0.15, whole_word=True).share
        0.15
    """

    turn: ClassVar = 1
    causal: ClassVar = False

    share: Annotated[float, Option(gt=0, lt=1)] = 0.15
    """Share of a text's tokens that are chosen; at least one."""
    masked: Annotated[float, Option(ge=0, le=1)] = 0.8
    """Share of the chosen that become the mask."""
    random: Annotated[float, Option(ge=0, le=1)] = 0.1
    """Share of the chosen that become a random token; the rest stays as it is."""
    whole_word: bool = False
    """Whether the pieces of a word are hidden together. Each Chinese character is a word of its own here."""

    _inner: Tensor | None = PrivateAttr(default=None)
    _ordinary: Tensor | None = PrivateAttr(default=None)

    def bind(self, pipeline: Pipeline, limit: int | None) -> dict[str, Field]:
        if self.masked + self.random > 1:
            raise RecipeError(
                f"objective {self.type}: masked {self.masked:g} and random {self.random:g} are shares of the chosen tokens, and add up to more than 1"
            )
        fields = super().bind(pipeline, limit)
        if self.text.mask_id is None:
            raise RecipeError(
                f"objective {self.type}: the tokenizer of '{self.name}' has no mask token; train a new one, or take one of a masked model"
            )
        if self.text.cls_id is None or self.text.sep_id is None:
            raise RecipeError(
                f"objective {self.type}: the tokenizer of '{self.name}' has no tokens that open and close a text; train a new one"
            )
        vocabulary = self.text.trained.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(vocabulary.values()) + 1)
        for piece, number in vocabulary.items():
            pieces[number] = piece
        self._inner = torch.tensor([_goes_on(piece, self.text.trained) for piece in pieces])
        special = self.text.special_ids
        self._ordinary = torch.tensor([i for i, piece in enumerate(pieces) if piece and i not in special])
        return fields

    def window(self) -> Any:
        assert self.length is not None, "bind() comes first"
        return f"{self.name}.ids", self.length - 2, 0, self.ends()

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        assert self._inner is not None
        assert self._ordinary is not None
        if f"{self.name}.segments" not in batch:  # else another objective has made pairs already
            assert self.text.cls_id is not None
            assert self.text.sep_id is not None
            batch[f"{self.name}.ids"] = between(self.ids(batch), self.text.cls_id, self.text.sep_id)
        ids = self.ids(batch)
        special = torch.isin(ids.values, torch.tensor(sorted(self.text.special_ids)))
        chosen = _choose(
            ids, special, self._inner[ids.values] if self.whole_word else None, self.share, generator
        )
        labels = ids.values[chosen]
        draw = torch.rand(len(chosen), generator=generator)
        other = self._ordinary[torch.randint(len(self._ordinary), (len(chosen),), generator=generator)]
        values = ids.values.clone()
        values[chosen] = torch.where(
            draw < self.masked,
            torch.full_like(labels, self.text.mask_id or 0),
            torch.where(draw < self.masked + self.random, other, labels),
        )
        batch[f"{self.name}.ids"] = ids.like(values)
        batch[f"{self.name}.read"] = chosen
        batch[f"{self.name}.labels"] = labels
        return batch


def between(ids: Ragged, first: int, last: int) -> Ragged:
    """Return each row between two tokens.

    Example:
        >>> between(Ragged(torch.tensor([7, 8]), torch.tensor([0, 1, 2])), 1, 2).values.tolist()
        [1, 7, 2, 1, 8, 2]
    """
    offsets = ids.offsets + 2 * torch.arange(len(ids) + 1)
    values = ids.values.new_empty(len(ids.values) + 2 * len(ids))
    values[torch.arange(len(ids.values)) + 2 * ids.rows + 1] = ids.values
    values[offsets[:-1]], values[offsets[1:] - 1] = first, last
    return Ragged(values, offsets)


def _choose(
    ids: Ragged, special: Tensor, inner: Tensor | None, share: float, generator: torch.Generator
) -> Tensor:
    """Return the places of the tokens to be hidden, rising, (M,).

    Words are taken in random order until the share of a row's tokens is reached, so that every row has its share, to a word.
    """
    rows = ids.rows
    starts = torch.ones(len(ids.values), dtype=torch.bool)
    if inner is not None:
        starts = ~inner
        starts[ids.offsets[:-1].clamp(max=max(0, len(starts) - 1))] = True
    word = starts.cumsum(0) - 1  # (T,)
    words = int(word[-1]) + 1 if len(word) else 0
    row_of = torch.zeros(words, dtype=torch.int64).scatter_(0, word, rows)
    size = torch.zeros(words, dtype=torch.int64).index_add_(0, word, (~special).long())
    budget = (
        (torch.zeros(len(ids), dtype=torch.int64).index_add_(0, rows, (~special).long()) * share)
        .round()
        .clamp(min=1)
    )
    order = (row_of + torch.rand(words, generator=generator, dtype=torch.float64)).argsort()
    order = order[size[order] > 0]
    taken = size[order].cumsum(0)
    before = taken - size[order]  # tokens of words drawn earlier, all rows together
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = row_of[order][1:] != row_of[order][:-1]
    begin = before[first][first.cumsum(0) - 1] if len(order) else before
    hidden = torch.zeros(words, dtype=torch.bool)
    hidden[order] = (before - begin) < budget[row_of[order]]
    return (hidden[word] & ~special).nonzero().squeeze(1)


def _goes_on(piece: str, tokenizer: Any) -> bool:
    """Whether a token goes on within a word: ``##ing`` of word pieces, ``ing`` where words begin with a space's mark."""
    if type(tokenizer.model).__name__ == "WordPiece":
        prefix: str = tokenizer.model.continuing_subword_prefix
        return piece.startswith(prefix) and len(piece) > len(prefix)
    if type(tokenizer.model).__name__ == "WordLevel":
        return False
    return bool(piece) and piece[0] not in "Ġ▁" and piece[0].isascii() and piece[0].isalnum()
