"""One network for every family: encoders by input, a trunk, heads by target.

::

    photo.pixels ──▶ encoder ──┐
    review.ids   ──▶ encoder ──┼─ concatenate ──▶ trunk ──▶ features ──┬──▶ head ──▶ label.logits
    age.value ┐                │                                       └──▶ head ──▶ price.value
    fare.value┴────▶ numbers ──┘

A family brings the encoder of the input it is made for and the width of its trunk. Whatever else the recipe has as input is
read by the default encoders, so that several inputs of several kinds fuse without a class of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field, Processor, Spec
from luban.errors import RecipeError, did_you_mean
from luban.models._base import Model
from luban.models._encoders import (
    ONE_HOT_UP_TO,
    Encoder,
    Features,
    Numbers,
    OneHot,
    default_encoder,
    is_category,
    is_image,
    is_number,
    is_sequence,
)
from luban.models._layers import Activation, Count, Init, Rate, dense, initialise, per_layer
from luban.recipe import Component, Data, Section

__all__ = ["TOKENS", "Family", "Network", "module_key"]

TOKENS = "tokens"
"""Kind of a target field that asks for tokens of an input column: the next ones, or those that were masked."""


def module_key(column: str) -> str:
    """Return a name for a column's module: no dot, which a ModuleDict refuses, and no name that one already has.

    Example:
        >>> module_key("a.b"), module_key("价格"), module_key("values")
        ('@a%2Eb', '@价格', '@values')
    """
    return "@" + column.replace("%", "%25").replace(".", "%2E")


def column_of(key: str) -> str:
    """Undo `module_key`."""
    return key[1:].replace("%2E", ".").replace("%25", "%")


class Network(nn.Module):
    """Encoders, concatenated; a trunk; a linear head for each target.

    Args:
        encoders: by `module_key` of the column, and `numbers` and `classes` for those that share one.
        trunk: (B, sum of the encoders' widths) → (B, D).
        heads: target column → (name of its output, layer from D to the output's width).
    """

    def __init__(
        self, encoders: dict[str, Encoder], trunk: nn.Module, heads: dict[str, tuple[str, nn.Module]]
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.trunk = trunk
        self.heads = nn.ModuleDict({module_key(column): head for column, (_, head) in heads.items()})
        self.outputs = {module_key(column): f"{column}.{output}" for column, (output, _) in heads.items()}

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return ``target.output`` (B, width) for each target, ``features`` (B, D) and, where there are positions, states.

        States are named ``column.states``, and plainly ``states`` where a single input has them. A language model whose
        tokens are a target adds ``column.tokens``, a `Projection`.
        """
        parts: list[Tensor] = []
        outputs: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for key, encoder in self.encoders.items():
            assert isinstance(encoder, Encoder)
            encoded, states, extra = encoder.outputs(batch)
            parts.append(encoded)
            if states is not None:
                outputs[f"{column_of(key)}.states"] = states
            others.update(extra)
        if len(outputs) == 1:
            outputs["states"] = next(iter(outputs.values()))
        outputs.update(others)
        features = self.trunk(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        outputs["features"] = features
        for key, head in self.heads.items():
            outputs[self.outputs[key]] = head(features).float()
        return outputs


class _Refined(Encoder):
    """An encoder with dense layers of its own behind it."""

    def __init__(self, encoder: Encoder, layers: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.layers, self.width = encoder, layers, width

    def forward(self, batch: Batch) -> Features:
        """Return (B, width)."""
        features, states = self.encoder(batch)
        return self.layers(features), states


class Family(Model):
    """The keys that all families share, and how their parts become one `Network`.

    A family overrides `encoder`, and `trunk` if its dense layers have more options.
    """

    made_for: ClassVar[str] = ""
    """What the family reads, for messages (``images``); empty if it is made for anything."""
    HEAD_BIAS: ClassVar[bool] = True
    """Whether the heads have a bias."""

    hidden: list[Count] = []
    """Widths of the dense layers between the encoded inputs and the heads."""
    activation: Activation = "relu"
    """Activation of every layer that has one."""
    dropout: Rate | list[Rate] = 0.0
    """Dropout after each hidden layer, one for all or one for each; without hidden layers, on what the heads read."""
    init: Init = "default"
    """Initial weights; `default` is what PyTorch draws."""
    init_scale: float | None = None
    """Value of `constant`, bound of `uniform`, standard deviation of `normal`; a factor for the other inits."""
    numbers: Literal["plain", "periodic"] = "plain"
    """How numbers of a table enter: as they are, or embedded by learned sines and cosines as well."""
    embeddings: Count | None = None
    """Width of the learned vectors of categories and sets; derived from how many values there are (few: one-hot)."""
    encoders: dict[str, Annotated[Component, Section("models")]] = {}
    """Input column → the family that reads it instead, with that family's own keys."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.dropout, list):
            per_layer(self.dropout, max(1, len(self.hidden)), "dropout")
        if self.init == "zeros" and self.init_scale is not None:
            raise ValueError("init_scale does nothing with init 'zeros'; remove it, or take init 'constant'")
        for column, other in self.encoders.items():
            if not isinstance(other, Family):
                raise ValueError(f"encoders.{column}: type '{other.type}' cannot read a single column")
            if other.writes:
                raise ValueError(
                    f"encoders.{column}: type '{other.type}' would write a text from another, and a single column is only read; take "
                    "another type or task"
                )
        return self

    @property
    def writes(self) -> bool:
        """Whether a target may be a text, which the family writes."""
        return False

    def complete(self, data: Data) -> list[str]:
        """Let the families of single columns fill in what they need; see `Model.complete`."""
        said: list[str] = []
        for column, other in self._others().items():
            if column in data.inputs:
                alone = data.model_copy(update={"inputs": {column: data.inputs[column]}})
                said += other.complete(alone)
                data.inputs[column] = alone.inputs[column]
        return said

    def follow(self, inputs: Mapping[str, Processor]) -> list[str]:
        """Let the families of single columns take what they need from these; see `Model.follow`."""
        others = self._others().items()
        return [
            said
            for column, one in others
            if column in inputs
            for said in one.follow({column: inputs[column]})
        ]

    def portable(self) -> Self:
        """Return the options without the files that families of single columns were started from."""
        others = {column: other.portable() for column, other in self._others().items()}
        return self.model_copy(update={"encoders": {**self.encoders, **others}}) if others else self

    def load_pretrained(self, module: nn.Module) -> list[str]:
        """Let the families of single columns load their weights; see `Model.load_pretrained`."""
        assert isinstance(module, Network)
        missing: list[str] = []
        for column, other in self._others().items():
            part = module.encoders[module_key(column)]
            assert isinstance(part, _Refined)
            missing += [f"{name} of {column}" for name in other.load_part(part.encoder)]
        return missing

    def load_part(self, encoder: Encoder) -> list[str]:
        """Give the encoder of an input the weights that the options name; return which parts start anew instead."""
        return []

    def _others(self) -> dict[str, Family]:
        return {column: other for column, other in self.encoders.items() if isinstance(other, Family)}

    def encoder(self, name: str, field: Field) -> Encoder | None:
        """Return the encoder of an input that this family is made for, None for any other."""
        return None

    def trunk(self, width: int) -> tuple[nn.Module, int]:
        """Return the layers from `width` encoded values to the features, and how many these are."""
        return dense(width, self.hidden, self.activation, self.dropout)

    def build(self, spec: Spec) -> Network:
        """Make the network; see `Model.build`."""
        inputs = {name: field for name, field in spec.fields.items() if field.role == "input"}
        columns = {field.column for field in inputs.values()}
        for column in self.encoders:
            if column not in columns:
                raise RecipeError(
                    f"model.encoders names '{column}', which is no input; inputs are {', '.join(sorted(columns))}"
                    + did_you_mean(column, columns)
                )
        encoders = self._encoders(inputs)
        if not encoders:
            raise RecipeError("there is no input field to read; name at least one column in data.inputs")
        trunk, width = self.trunk(sum(encoder.width for encoder in encoders.values()))
        heads: dict[str, tuple[str, nn.Module]] = {
            field.column: (field.output, nn.Linear(width, field.width, bias=self.HEAD_BIAS))
            for field in spec.fields.values()
            if field.role == "target" and field.output is not None
        }
        for field in spec.fields.values():
            if field.role == "target" and is_sequence(field) and field.kind != TOKENS and not self.writes:
                raise RecipeError(
                    f"model type '{self.type}' writes no text, and target '{field.column}' is a {field.kind}; take type 'seq2seq', or 'huggingface' with task seq2seq"
                )
            if field.role == "target" and field.kind == TOKENS:
                reader = encoders.get(module_key(field.column))
                if reader is None or not reader.speaks:
                    raise RecipeError(
                        f"model type '{self.type}' cannot put out the tokens of '{field.column}'; "
                        "take a language model: bert, gpt2, llama, qwen2, qwen3, smollm, or huggingface with task causal_lm or masked_lm"
                    )
                reader.add_vocabulary()
        for part in (trunk, *(head for _, head in heads.values())):
            initialise(part, self.init, self.init_scale)
        return Network(encoders, trunk, heads)

    def _encoders(self, inputs: dict[str, Field]) -> dict[str, Encoder]:
        """Return the encoders by module key: the family's own, those asked for, and the default ones for the rest."""
        numbers: dict[str, Field] = {}
        classes: dict[str, int] = {}
        result: dict[str, Encoder] = {}
        claimed = not self.made_for
        for name, field in inputs.items():
            other = self.encoders.get(field.column)
            if isinstance(other, Family):
                key, encoder = module_key(field.column), other._single(name, field)
            elif (own := self.encoder(name, field)) is not None:
                key, encoder, claimed = module_key(field.column), own, True
            elif is_number(field):
                numbers[name] = field
                continue
            elif is_category(field) and self.embeddings is None and (field.size or 0) <= ONE_HOT_UP_TO:
                classes[name] = field.size or 0
                continue
            else:
                key, encoder = (
                    module_key(field.column),
                    default_encoder(name, field, self.embeddings, flat=not self.made_for),
                )
            if not isinstance(other, Family):
                initialise(encoder, self.init, self.init_scale)
            while key in result:  # a column of several fields
                key += "+"
            result[key] = encoder
        if not claimed:
            left = {name: field for name, field in inputs.items() if field.column not in self.encoders}
            raise RecipeError(
                f"model type '{self.type}' is made for {self.made_for}, and the inputs left to it are "
                f"{_describe(left)}; {_advice(left)}"
            )
        if numbers:
            periodic = [n for n, f in numbers.items() if f.kind == "number" and not n.endswith(".missing")]
            result["numbers"] = Numbers(list(numbers), periodic if self.numbers == "periodic" else ())
        if classes:
            result["classes"] = OneHot(classes)
        return result

    def _single(self, name: str, field: Field) -> Encoder:
        """Return what reads one column on its own: this family's encoder, and its dense layers behind it."""
        encoder = self.encoder(name, field)
        if encoder is None and not self.made_for:
            if is_number(field):
                encoder = Numbers([name], [name] if self.numbers == "periodic" else ())
            else:
                encoder = default_encoder(name, field, self.embeddings, flat=True)
        if encoder is None:
            raise RecipeError(
                f"model.encoders: type '{self.type}' is made for {self.made_for}, and '{field.column}' is a {field.kind}; "
                + _advice({name: field})
            )
        layers, width = self.trunk(encoder.width)
        refined = _Refined(encoder, layers, width)
        initialise(refined, self.init, self.init_scale)
        return refined


def _describe(inputs: dict[str, Field]) -> str:
    kinds = {field.column: field.kind for field in inputs.values()}
    shown = [f"'{column}' ({kind})" for column, kind in list(kinds.items())[:5]]
    return (", ".join(shown) or "none") + (f" and {len(kinds) - 5} more" if len(kinds) > 5 else "")


def _advice(inputs: dict[str, Field]) -> str:
    if any(is_image(field) for field in inputs.values()):
        return "for images take type 'cnn' or 'resnet'"
    if any(is_sequence(field) for field in inputs.values()):
        return "for texts take type 'textcnn', 'rnn', 'fasttext' or 'transformer'"
    return "for tables take type 'mlp'"
