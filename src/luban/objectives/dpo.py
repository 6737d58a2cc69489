"""Preferences without a reward model (Rafailov et al., 2023, 'Direct preference optimization').

::

    chosen.ids, rejected.ids ──▶ one ragged batch (2 B rows) ──┬──▶ model ──────▶ log π(answer), (2 B,)
                                                               └──▶ reference ──▶ log π₀(answer), (2 B,)   no gradient

    h = (log π(chosen) - log π(rejected)) - (log π₀(chosen) - log π₀(rejected)),  loss = - log σ(β h)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.pipeline import Pipeline
from luban.data.processors.chat import Chat
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Loss, Objective, Outputs, TargetFacts
from luban.recipe import Data
from luban.registry import register

__all__ = ["DPO"]


@register("objectives")
class DPO(Objective):
    """Makes the answer that people chose more probable than the one they rejected, measured from where the model began.

    Two columns hold conversations that differ in their answers (processor `chat`; source `conversations` makes them of most
    files). Log-probabilities are summed over the tokens of the answers; turns that both conversations share cancel out. The
    reference is the model as it began: pretrained weights and new adapters, also in a run that goes on. Of it only what is
    trained is kept twice, so that with LoRA it costs next to nothing. It is read without dropout.

    Rows of validation also give ``dpo.accuracy``, the share of pairs in which the chosen answer gained more (a pair in which
    neither did counts for nothing), and ``dpo.margin``, by how much: the difference of their rewards β log(π / π₀).

    Example:
        >>> DPO(beta=0.3).variant
        'sigmoid'
    """

    chosen: str = "chosen"
    """The column of conversations with the better answer: what the model reads, before and after."""
    rejected: str = "rejected"
    """The column of those with the worse answer; no part of the artefact."""
    beta: Annotated[float, Option(gt=0)] = 0.1
    """How dearly a move away from the reference is bought: high values stay near it."""
    variant: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: -log σ(β h); ipo: (h - 1 / 2β)², which stops at a margin instead of following certain pairs for ever (Azar et al.,
    2023, 'A general theoretical paradigm to understand learning from human preferences')."""
    label_smoothing: Annotated[float, Option(ge=0, lt=0.5)] = 0.0
    """Share of the pairs that are taken to be the wrong way round ('conservative DPO', Mitchell, 2023); for sigmoid."""

    causal: ClassVar = True
    PART: ClassVar = "dpo"
    _FIGURES: ClassVar = ("accuracy", "margin")

    _model: list[nn.Module] = PrivateAttr(default_factory=list)
    _reference: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.variant == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing belongs to variant sigmoid; remove it")
        if self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected are both '{self.chosen}', and they are two columns")
        return self

    def complete(self, data: Data) -> list[str]:
        for key, column in (("chosen", self.chosen), ("rejected", self.rejected)):
            processor = data.inputs.get(column)
            if not isinstance(processor, Chat):
                found = f"'{column}' is {processor.type}" if processor else f"there is no input '{column}'"
                raise RecipeError(
                    f"objective dpo compares conversations, and {found}: give data.inputs {{{self.chosen}: chat, {self.rejected}: chat}}, "
                    f"or name the column by '{key}'"
                )
        other = data.inputs.pop(self.rejected)
        chosen = data.inputs[self.chosen]
        for name in other.model_fields_set:
            if getattr(other, name) != getattr(chosen, name):
                raise RecipeError(
                    f"objective dpo reads '{self.rejected}' as '{self.chosen}', and their '{name}' differ ({getattr(other, name)!r} and "
                    f"{getattr(chosen, name)!r}); remove it from '{self.rejected}'"
                )
        data.inputs[self.rejected] = other  # the last one, as set_aside wants it
        return []

    def aside(self) -> dict[str, str]:
        return {self.rejected: self.chosen}

    def bind(self, pipeline: Pipeline, limit: int | None) -> dict[str, Field]:
        chat = pipeline.inputs[self.chosen]
        assert isinstance(chat, Chat)
        if chat.tokenizer is None:
            raise RecipeError(
                "objective dpo starts from a model that was trained, and this one is new, with a tokenizer of its own for each column: "
                "name a model by model.from, such as an artefact of objective causal_lm"
            )
        if limit is not None and (chat.max_length or 0) > limit:
            raise RecipeError(
                f"objective dpo: max_length of '{self.chosen}' is {chat.max_length}, and the model takes {limit} positions; lower it, or raise model.max_positions"
            )
        size = chat.trained.get_vocab_size()
        return {f"{self.chosen}.labels": Field(self.chosen, "tokens", "target", "int64", None, size=size)}

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        """Nothing: what is preferred is the order of the columns."""

    def begin(self, model: nn.Module) -> None:
        # What is frozen stays as it is; only what is trained must be kept as it was.
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._model = [model]
        self._reference = {
            name: one.detach().clone() for name, one in {**trained, **dict(model.named_buffers())}.items()
        }

    # --- a batch -----------------------------------------------------------------------------------------

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Find the places of the answers' tokens in both columns, the rejected ones behind the chosen ones."""
        places, labels, rows = [], [], []
        before = first = 0
        for column in (self.chosen, self.rejected):
            ids, answer = _ragged(batch, f"{column}.ids"), batch[f"{column}.answer"]
            assert isinstance(answer, Ragged)
            place = answer.values.nonzero().squeeze(1)
            place = place[place > ids.offsets[ids.rows[place]]]  # a first token is predicted by nothing
            places.append(place - 1 + before)
            labels.append(ids.values[place])
            rows.append(ids.rows[place] + first)
            before, first = before + len(ids.values), first + len(ids)
        for name, parts in (("read", places), ("labels", labels), ("rows", rows)):
            batch[f"{self.PART}.{name}"] = torch.cat(parts)
        return batch

    def _joined(self, batch: Batch) -> Batch:
        """Return the batch of 2 B rows that the model reads."""
        first, second = (_ragged(batch, f"{column}.ids") for column in (self.chosen, self.rejected))
        ids = Ragged(
            torch.cat([first.values, second.values]),
            torch.cat([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        )
        return {f"{self.chosen}.ids": ids, f"{self.chosen}.read": _tensor(batch, f"{self.PART}.read")}

    def _log_probabilities(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the log-probability of each answer, (2 B,) in float32: those chosen, then those rejected."""
        labels, rows = (_tensor(batch, f"{self.PART}.{name}") for name in ("labels", "rows"))
        each: Tensor = outputs[f"{self.chosen}.tokens"].losses(labels)
        size = 2 * len(_ragged(batch, f"{self.chosen}.ids"))
        return -each.new_zeros(size).index_add(0, rows, each)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        joined = self._joined(batch)
        now = self._log_probabilities(model(joined), batch)
        return self._parts(now, self._of_reference(joined, batch), batch)

    @torch.no_grad()
    def _of_reference(self, joined: Batch, batch: Batch) -> Tensor:
        assert self._model, "begin() comes first"
        model = self._model[0]
        with _evaluating(model):
            return self._log_probabilities(functional_call(model, self._reference, (joined,)), batch)

    # --- the loss ----------------------------------------------------------------------------------------

    def _parts(self, now: Tensor, then: Tensor, batch: Batch) -> dict[str, Loss]:
        (chosen, rejected), (chosen_then, rejected_then) = now.chunk(2), then.chunk(2)
        h = (chosen - rejected) - (chosen_then - rejected_then)  # (B,)
        figures = {
            self.PART: self._rowwise(h),
            f"{self.PART}.accuracy": (h.detach() > 0).to(h.dtype),
            f"{self.PART}.margin": self.beta * h.detach(),
        }
        weight = self._weight(batch)
        return {
            name: Loss((one * weight).sum(), weight.sum(), self.weight if name == self.PART else 0.0)
            for name, one in figures.items()
        }

    def _rowwise(self, h: Tensor) -> Tensor:
        if self.variant == "ipo":
            return (h - 1 / (2 * self.beta)) ** 2
        x = self.beta * h
        return -(1 - self.label_smoothing) * F.logsigmoid(x) - self.label_smoothing * F.logsigmoid(-x)

    def _weight(self, batch: Batch) -> Tensor:
        ids = _ragged(batch, f"{self.chosen}.ids")
        weight = batch.get("row.weight")
        return weight if isinstance(weight, Tensor) else torch.ones(len(ids), device=ids.values.device)

    def count(self, batch: Batch) -> dict[str, Tensor]:
        total = self._weight(batch).sum()
        return {self.PART: total} | {f"{self.PART}.{name}": total for name in self._FIGURES}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        """Return the parts, given outputs for the joined batch and, as ``reference``, the log-probabilities of it, (2 B,)."""
        return self._parts(self._log_probabilities(outputs, batch), outputs["reference"], batch)

    def describe(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Accuracy and margin."""
        names = [f"{self.PART}.{name}" for name in self._FIGURES]
        return {name: figures.get(f"{name}.loss", math.nan) for name in names}


def _ragged(batch: Batch, name: str) -> Ragged:
    value = batch[name]
    assert isinstance(value, Ragged)
    return value


def _tensor(batch: Batch, name: str) -> Tensor:
    value = batch[name]
    assert isinstance(value, Tensor)
    return value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[Any]:
    """Switch dropout off for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
