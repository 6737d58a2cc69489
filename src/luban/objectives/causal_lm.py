"""The next token of a text (Radford et al., 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from luban.data.batch import Batch
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.objectives._language import LanguageObjective
from luban.recipe import Data
from luban.registry import register

__all__ = ["CausalLM"]


@register("objectives")
class CausalLM(LanguageObjective):
    """Minus the log of the probability of each token, given those before it in its document.

    Documents stand in a batch one after the other without padding, and none sees another. A document of more than `length`
    tokens becomes several examples that share one token, so that each token but the first is predicted exactly once.

    Of conversations (processor `chat`), only the tokens of the answers are predicted, those that end them among them (Ouyang et
    al., 2022, 'Training language models to follow instructions', step 1); a conversation is one example.

    Example:
        >>> CausalLM(length=256).type
        'causal_lm'
    """

    CHATS: ClassVar = True
    causal: ClassVar = True

    def complete(self, data: Data) -> list[str]:
        said = super().complete(data)
        text = data.inputs[self.name]
        if type(text) is Text and "end" not in text.model_fields_set:
            # Without it a model never learns where a text ends, and does not stop.
            data.inputs[self.name] = text.model_copy(update={"end": True})
            data.inputs[self.name].model_fields_set.add("end")
            said.append(f"{self.name}: end true, so that the model learns to stop")
        return said

    def window(self) -> Any:
        if self.chats:
            return None
        assert self.length is not None, "bind() comes first"
        return f"{self.name}.ids", self.length, 1, (0, 0)

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        ids = self.ids(batch)
        places = torch.arange(len(ids.values))
        # A row's last token predicts nothing, and its first is predicted by nothing.
        read = places[places + 1 < ids.offsets[1:][ids.rows]]
        if self.chats:
            answer = batch[f"{self.name}.answer"]
            assert isinstance(answer, Ragged)
            read = read[answer.values[read + 1] > 0]
        batch[f"{self.name}.read"] = read
        batch[f"{self.name}.labels"] = ids.values[read + 1]
        return batch
