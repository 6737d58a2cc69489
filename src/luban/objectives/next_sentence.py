"""Whether a text goes on as it should (Devlin et al., 2018; Lan et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.pipeline import Pipeline
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Loss, Outputs, TargetFacts
from luban.objectives._language import LanguageObjective
from luban.registry import register

__all__ = ["NextSentence"]

_ENDS = frozenset("。！？!?.…；;\n")


@register("objectives")
class NextSentence(LanguageObjective):
    """Cross entropy of a yes or no: is the second part of a pair what follows the first?

    Each text is cut in two at the end of a sentence near its middle. For half of the pairs, `next` takes the second part from
    another text of the batch, and `order` (Lan et al., 2020) swaps the two parts. With `next`, second parts are cut to the length
    of the shorter of the two that could stand there. Stands beside `masked_lm` in a list of objectives: pairs are made first, then
    tokens are hidden.

    Example:
        >>> NextSentence(pairs="order").pairs
        'order'
    """

    causal: ClassVar = False

    pairs: Literal["next", "order"] = "next"
    """What a false pair is: a second part from elsewhere, or the two parts in the wrong order."""

    _ends: Tensor | None = PrivateAttr(default=None)

    FIELD: ClassVar = "next_sentence"

    def bind(self, pipeline: Pipeline, limit: int | None) -> dict[str, Field]:
        super().bind(pipeline, limit)
        if self.text.cls_id is None or self.text.sep_id is None:
            raise RecipeError(
                f"objective {self.type}: the tokenizer of '{self.name}' has no tokens that open and close a text; train a new one"
            )
        tokenizer = self.text.trained
        self._ends = torch.tensor(
            [
                bool(token := tokenizer.decode([i]).strip(" ")) and token[-1] in _ENDS
                for i in range(tokenizer.get_vocab_size())
            ]
        )
        return {
            f"{self.FIELD}.index": Field(
                self.FIELD, "category", "target", "int64", (), size=2, output="logits", width=2
            )
        }

    def window(self) -> Any:
        assert self.length is not None, "bind() comes first"
        return f"{self.name}.ids", self.length - 3, 0, self.ends()

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        assert self._ends is not None
        assert self.length is not None
        halves = [self._halves(row, generator) for row in self.ids(batch).unbind()]
        # Each text that can be parted has a partner. Whichever second part is taken, it is cut to the shorter of both, since a
        # pair that could be told by its length would teach the model nothing.
        able = [i for i, (_, second) in enumerate(halves) if len(second)]
        partner = dict(zip(able, able[1:] + able[:1], strict=True))
        false = torch.zeros(len(halves), dtype=torch.bool)
        if self.pairs == "order" or len(able) > 1:  # else there is nobody to take from
            false[able] = torch.rand(len(able), generator=generator) < 0.5
        opening = torch.tensor([self.text.cls_id])
        closing = torch.tensor([self.text.sep_id])
        joined, segments = [], []
        for i, (first, second) in enumerate(halves):
            if self.pairs == "order":
                first, second = (second, first) if false[i] else (first, second)
            elif i in partner:
                other = halves[partner[i]][1]
                room = min(len(second), len(other))
                second = (other if false[i] else second)[:room]
            joined.append(torch.cat([opening, first, closing, second, closing]))
            segments.append(torch.arange(len(joined[-1])) >= len(first) + 2)
        batch[f"{self.name}.ids"] = Ragged.from_rows(joined)
        batch[f"{self.name}.segments"] = torch.cat(segments).long()
        batch[f"{self.FIELD}.index"] = false.long()
        return batch

    def _halves(self, row: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cut a text at the end of the sentence that ends nearest to a point drawn from its middle half."""
        assert self._ends is not None
        n = len(row)
        if n < 2:
            return row, row[:0]
        low, high = max(1, n // 4), max(2, n - n // 4)
        aim = int(torch.randint(low, high, (1,), generator=generator))
        ends = self._ends[row[: n - 1]].nonzero().squeeze(1) + 1
        cut = int(ends[(ends - aim).abs().argmin()]) if len(ends) else aim
        return row[:cut], row[cut:]

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        """Nothing: the targets are made of the text."""

    def count(self, batch: Batch) -> dict[str, Tensor]:
        truth, weight = batch[f"{self.FIELD}.index"], batch.get("row.weight")
        if weight is not None:
            assert isinstance(weight, Tensor)
            return {self.FIELD: weight.sum()}
        assert isinstance(truth, Tensor)
        return {self.FIELD: torch.tensor(float(len(truth)), device=truth.device)}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        truth, weight = batch[f"{self.FIELD}.index"], batch.get("row.weight")
        assert isinstance(truth, Tensor)
        assert weight is None or isinstance(weight, Tensor)
        each = F.cross_entropy(outputs[f"{self.FIELD}.logits"], truth, reduction="none")
        total = each.sum() if weight is None else (each * weight).sum()
        return {self.FIELD: Loss(total, self.count(batch)[self.FIELD], self.weight)}

    def describe(self, figures: Mapping[str, float]) -> dict[str, float]:
        return {}
