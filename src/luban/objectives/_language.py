"""What the objectives over a text's own tokens share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr
from torch import Tensor

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.pipeline import Pipeline
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Loss, Objective, Outputs, TargetFacts
from luban.recipe import Data

__all__ = ["LanguageObjective"]


class LanguageObjective(Objective):
    """Predicts tokens of a text column; long documents are cut into windows, and no token is thrown away."""

    column: str | None = None
    """The text column; the only one, if left out."""
    length: Annotated[int, Option(ge=8)] | None = None
    """Tokens of an example, at the most: longer documents become several. As many as the model takes, but at most 512, if left
    out."""

    CHATS: ClassVar[bool] = False
    """Whether the column may hold conversations, which are examples as they are: no window cuts a question off its answer."""

    _text: Text | None = PrivateAttr(default=None)
    _positions: int = PrivateAttr(default=0)

    @property
    def name(self) -> str:
        """The column it reads."""
        assert self.column is not None, "bind() comes first"
        return self.column

    @property
    def text(self) -> Text:
        """The column's processor."""
        assert self._text is not None, "bind() comes first"
        return self._text

    @property
    def chats(self) -> bool:
        """Whether the column holds conversations, of which the answers are to be learnt."""
        return isinstance(self.text, Chat)

    def complete(self, data: Data) -> list[str]:
        texts = [column for column, processor in data.inputs.items() if isinstance(processor, Text)]
        if self.column is None:
            if len(texts) != 1:
                raise RecipeError(
                    f"objective {self.type} reads one text column, and the inputs have {len(texts)}"
                    + (
                        f" ({', '.join(texts)}); say which by `column`"
                        if texts
                        else "; add one to data.inputs"
                    )
                )
            self.column = texts[0]
        elif self.column not in texts:
            raise RecipeError(
                f"objective {self.type}: '{self.column}' is no text input; text inputs are {', '.join(texts) or 'none'}"
            )
        text = data.inputs[self.column]
        assert isinstance(text, Text)
        if isinstance(text, Chat):
            return self._complete_chat(data, text)
        if "max_length" in text.model_fields_set:
            return []
        data.inputs[self.column] = text.model_copy(update={"max_length": None})
        data.inputs[self.column].model_fields_set.add("max_length")
        return [f"{self.column}: max_length null, since {self.type} cuts documents into windows"]

    def _complete_chat(self, data: Data, text: Chat) -> list[str]:
        """Take `length` for the longest conversation: longer ones are cut, not made into several."""
        if not self.CHATS:
            raise RecipeError(
                f"objective {self.type} reads plain texts, and '{self.column}' holds conversations; take causal_lm or dpo, or read it as text"
            )
        if self.length is None or text.max_length == self.length:
            return []
        if "max_length" in text.model_fields_set:
            raise RecipeError(
                f"objective {self.type}: length is {self.length}, and max_length of '{self.column}' is {text.max_length}; a conversation is "
                "one example, so remove one of them"
            )
        data.inputs[self.name] = text.model_copy(update={"max_length": self.length})
        data.inputs[self.name].model_fields_set.add("max_length")
        return [f"{self.column}: max_length {self.length}, the length of objective {self.type}"]

    def bind(self, pipeline: Pipeline, limit: int | None) -> dict[str, Field]:
        text = pipeline.inputs[self.name]
        assert isinstance(text, Text)
        self._text = text
        if isinstance(text, Chat):
            self.length = text.max_length
        self._positions = min(512 if limit is None else limit, 512) if self.length is None else self.length
        if limit is not None and self._positions > limit:
            raise RecipeError(
                f"objective {self.type}: length is {self._positions}, and the model takes {limit} positions; lower it, or raise model.max_positions"
            )
        if not self.chats:
            self.length = self._positions
        size = text.trained.get_vocab_size()
        return {f"{self.name}.labels": Field(self.name, "tokens", "target", "int64", None, size=size)}

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        """Nothing: the targets are the text's own."""

    def ends(self) -> tuple[int, int]:
        """Return how many tokens the column puts before and after a document."""
        before, after = self.text.frame
        closed = self.text.end and self.text.end_id is not None and after[-1:] != [self.text.end_id]
        return len(before), len(after) + closed

    def ids(self, batch: Batch) -> Ragged:
        """Return the tokens of a batch."""
        value = batch[f"{self.name}.ids"]
        assert isinstance(value, Ragged)
        return value

    def labels(self, batch: Batch) -> Tensor:
        """Return the tokens to be predicted, (M,)."""
        value = batch[f"{self.name}.labels"]
        assert isinstance(value, Tensor)
        return value

    @abstractmethod
    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Choose what is read (``column.read``) and what is to be predicted there (``column.labels``)."""

    def weights(self, batch: Batch) -> Tensor | None:
        """Return the weight of each token to be predicted, (M,), that of its row; None where all weigh 1."""
        weight, places = batch.get("row.weight"), batch[f"{self.name}.read"]
        if weight is None:
            return None
        assert isinstance(weight, Tensor)
        assert isinstance(places, Tensor)
        return weight[self.ids(batch).rows[places]]

    def count(self, batch: Batch) -> dict[str, Tensor]:
        labels, weights = self.labels(batch), self.weights(batch)
        if weights is not None:
            return {self.name: weights.sum()}
        return {self.name: torch.tensor(float(len(labels)), device=labels.device)}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        labels, weights = self.labels(batch), self.weights(batch)
        projection = outputs[f"{self.name}.tokens"]
        total = projection.total(labels) if weights is None else (projection.losses(labels) * weights).sum()
        return {self.name: Loss(total, self.count(batch)[self.name], self.weight)}

    def describe(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The perplexity, e to the mean loss."""
        loss = figures.get(f"{self.name}.loss", math.nan)
        return {f"{self.name}.perplexity": math.exp(min(loss, 700.0)) if not math.isnan(loss) else math.nan}
