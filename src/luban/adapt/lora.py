"""Low-rank adapters: a small update beside each frozen linear layer (Hu et al., 2021, 'LoRA').

::

    x ──┬──▶ W x + b ─────────────────(+)──▶ y          W (out, in) frozen
        └──▶ A ──▶ · scale ──▶ B ──────┘                 A (r, in), B (out, r) trained; B begins at zero
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field as Option
from pydantic import PrivateAttr, model_validator
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from luban.adapt._base import Adaptation
from luban.adapt._peft import (
    LowRank,
    alpha_of,
    layers_of,
    read_adapter,
    whole_of,
    write_adapter,
)
from luban.adapt._surgery import replace_modules
from luban.errors import RecipeError
from luban.models._core import Core, Vocabulary
from luban.models._foreign import ForeignEncoder, ForeignSpeaker
from luban.models._foreign_classifier import ForeignClassifier
from luban.models._language import LanguageEncoder
from luban.models._layers import Count, Dropout, Rate
from luban.models._low_rank import merged_weight, norms_of
from luban.models._network import Network
from luban.recipe import Config
from luban.registry import register

__all__ = ["LoRA", "LowRankLinear", "merge", "write_peft"]


class LowRankLinear(nn.Linear):
    """A frozen linear layer with a trained update of low rank; the names of its weight and bias stay.

    With `dora`, the update also turns the length of each row of the weight into a parameter of its own (Liu et al., 2024,
    'DoRA'); that length's own dependence on A and B gets no gradient, as in section 4.3 of the paper.

    Args:
        base: the layer, whose parameters are taken over.
        rank: of the update.
        scale: its factor.
        dropout: of what the update reads.
        dora: whether rows have lengths of their own.
    """

    lora_scale: Tensor

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, dora: bool) -> None:
        nn.Module.__init__(self)  # nn.Linear would draw a weight that nobody needs
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as the authors' code draws it
        # Among the tensors, so that weights and adapters can be merged by whoever reads a file.
        self.register_buffer("lora_scale", base.weight.new_tensor(scale))
        self.dropout = Dropout(dropout)
        self.lora_magnitude = nn.Parameter(self.norms()) if dora else None

    def norms(self) -> Tensor:
        """Return the length of each row of the adapted weight, (out,); no gradient goes through it."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            return norms_of(self.weight, self.lora_a, self.lora_b, self.lora_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y = F.linear(x, self.weight, self.bias)
        read = self.dropout(x)
        update = F.linear(F.linear(read, self.lora_a) * self.lora_scale, self.lora_b)
        if self.lora_magnitude is None:
            return y + update
        share = self.lora_magnitude / self.norms()  # (out,); exactly 1 at first
        if read is x:
            plain = y if self.bias is None else y - self.bias
        else:
            plain = F.linear(read, self.weight)
        return y + ((share - 1) * plain + share * update)

    def merged(self) -> nn.Linear:
        """Return a plain layer that does the same, but for rounding."""
        layer = nn.Linear(1, 1, device="meta")
        layer.in_features, layer.out_features = self.in_features, self.out_features
        with torch.no_grad():
            weight = merged_weight(
                self.weight, self.lora_a, self.lora_b, self.lora_scale, self.lora_magnitude
            )
        layer.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        layer.bias = self.bias
        return layer

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"{super().extra_repr()}, rank={len(self.lora_a)}, scale={float(self.lora_scale):g}"


def merge(model: nn.Module) -> nn.Module:
    """Add each update to its weight, in place: plain layers again, which cost what they did before and which anything reads.

    Results move in their last digits, since ``(W + s B A) x`` is rounded otherwise than ``W x + s B (A x)``. What was frozen
    stays frozen.

    Example:
        >>> merge(LoRA(rank=1).apply(nn.Sequential(nn.Linear(2, 2))))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
        )
    """

    def plain(name: str, module: nn.Module) -> nn.Module:
        assert isinstance(module, LowRankLinear)
        return module.merged()

    return replace_modules(model, lambda name, module: isinstance(module, LowRankLinear), plain)


class Layer(Config):
    """What differs in some layers."""

    rank: Count | None = None
    """Rank of the update."""
    alpha: float | None = Option(default=None, gt=0)
    """What the scale is derived from; as for the other layers, twice the rank (16 with `rslora`), if left out."""


@register("adapt")
class LoRA(Adaptation):
    """Low-rank updates beside frozen linear layers (Hu et al., 2021); what is trained and stored shrinks by a hundred times.

    At first the model puts out what it did before, bit for bit. All linear layers get one: updates of queries and values
    alone, as in the first paper, stay behind full fine-tuning even at the same number of parameters, and updates of all layers
    do not (Dettmers et al., 2023, 'QLoRA', section 4; Biderman et al., 2024, 'LoRA learns less and forgets less'). They
    want about ten times the learning rate of full fine-tuning.

    Example:
        >>> net = LoRA(rank=2).apply(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['0.lora_a', '0.lora_b', '2.lora_a', '2.lora_b']
    """

    from_: str | None = Option(default=None, alias="from")
    """A directory of PEFT's (adapter_config.json, adapter_model.safetensors) whose adapters to start from; a head that was
    saved with them is taken over if it has as many classes."""
    rank: Count = 8
    """Rank of the updates; no more than the smaller side of each weight."""
    alpha: float | None = Option(default=None, gt=0)
    """The update is scaled by this / rank; twice the rank if left out (Biderman et al., 2024), 16 with `rslora`."""
    dropout: Rate = 0.0
    """Dropout of what the updates read."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the layers, with * and ? (``*.attention.q``); all-linear: every linear layer in the blocks of a Transformer (of a
    model of transformers, all but its way to the vocabulary and layers whose weight it reads without calling them), or of the whole model where there is none, but for those that
    `train` trains."""
    layers: dict[str, Layer] = {}
    """Names of layers, with * and ? → their own rank and alpha; the first that fits counts."""
    rslora: bool = False
    """Scale by alpha / √rank instead, which keeps high ranks learning (Kalajdzievski, 2023, 'rsLoRA')."""
    dora: bool = False
    """Also train the length of each row of the weights (Liu et al., 2024, 'DoRA'): better at low ranks, and slower."""
    train: list[str] | None = None
    """Names of parameters that are trained whole, with * and ?. By default whatever is not inside a Transformer (heads, pooler,
    dense layers, other inputs), since it is new; where there is none, the heads."""
    merge: bool = False
    """Whether the artefact holds plain layers with the updates added; without, the adapters can still be told apart, trained
    further and exported as PEFT's."""

    FREE: ClassVar[frozenset[str]] = frozenset({"dropout"})
    """Keys that `from` suggests and a recipe may change."""

    _anew: list[str] = PrivateAttr(default_factory=list)
    _left: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_adapter(cls, values: Any) -> Any:
        """With `from`, take the options from there."""
        if not isinstance(values, dict) or not isinstance(values.get("from"), str):
            return values
        found = read_adapter(values["from"], tensors=False).options()
        for key, value in found.items():
            if values.get(key, value) != value and key not in cls.FREE:
                raise ValueError(
                    f"{key} is {values[key]!r}, but the adapter in '{values['from']}' has {value!r}; remove the key to take what is there"
                )
        for key in ("targets", "layers"):
            if key in values and values[key] != cls.model_fields[key].default:
                raise ValueError(
                    f"{key} says what to adapt, but from '{values['from']}' says so too; remove one"
                )
        return {**found, **values}

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze the model and put updates beside its layers."""
        whole = self._trained_whole(model)
        given: dict[str, LowRank] = {}
        if self.from_ is not None:
            given, values = self._read(model)
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for name, value in values.items():
                    parameters[name].copy_(value)
        chosen = set(given) if self.from_ is not None else self._chosen(model, whole)
        if self.train is None:  # a layer that was named has an update beside it instead
            whole = {name for name in whole if name.rpartition(".")[0] not in chosen}
        for name, parameter in model.named_parameters():
            if name not in whole and ".lora_" not in f".{name}":
                parameter.requires_grad_(False)

        def low(name: str, module: nn.Module) -> nn.Module:
            assert isinstance(module, nn.Linear)
            own = given.get(name)
            rank, alpha = self._shape_of(name) if own is None else (len(own.a), own.alpha)
            most = min(module.weight.shape)
            if rank > most:
                raise RecipeError(
                    f"lora: rank {rank} is more than layer '{name}' can use, whose weight is {' by '.join(map(str, module.weight.shape))}; "
                    f"take a rank of {most} or less, or give this layer one of its own by layers: {{'{name}': {{rank: {most}}}}}"
                )
            scale = alpha / (math.sqrt(rank) if self.rslora else rank)
            layer = LowRankLinear(module, rank, scale, self.dropout, self.dora)
            if own is not None:
                with torch.no_grad():
                    layer.lora_a.copy_(own.a)
                    layer.lora_b.copy_(own.b)
                    if layer.lora_magnitude is not None and own.magnitude is not None:
                        layer.lora_magnitude.copy_(own.magnitude)
            return layer

        return replace_modules(model, lambda name, module: name in chosen, low)

    def finish(self, model: nn.Module) -> tuple[nn.Module, Adaptation | None]:
        """Merge, if that was asked for; else name the layers, so that the directory of `from` is not needed again."""
        if self.merge:
            return merge(model), None
        if self.from_ is None:
            return model, self
        shapes: dict[tuple[int, float], list[str]] = {}
        for name, part in model.named_modules():
            if isinstance(part, LowRankLinear):
                rank = len(part.lora_a)
                shape = rank, alpha_of(float(part.lora_scale), rank, self.rslora)
                shapes.setdefault(shape, []).append(name)
        adapted = [name for names in shapes.values() for name in names]
        known = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        layers = {
            pattern: Layer(rank=rank, alpha=alpha)
            for (rank, alpha), names in shapes.items()
            if (rank, alpha) != (self.rank, self.alpha)
            for pattern in _patterns(names, adapted)
        }
        changes = {"from_": None, "targets": _patterns(adapted, known), "layers": layers}
        return model, self.model_copy(update=changes)

    def notes(self) -> list[str]:
        """Return what the user should know about how the adapter of `from` was taken over."""
        said = [f"lora: '{name}' of '{self.from_}' does not fit and starts anew" for name in self._anew]
        if self._left:
            said.append(
                f"lora: no update beside {', '.join(self._left)}, since these weights are read in other ways than by calling a linear layer"
            )
        return said

    def _shape_of(self, name: str) -> tuple[int, float]:
        """Return rank and alpha of a layer."""
        own = next(
            (one for pattern, one in self.layers.items() if fnmatch.fnmatchcase(name, pattern)), Layer()
        )
        rank = own.rank or self.rank
        return rank, own.alpha or self.alpha or (16.0 if self.rslora else 2.0 * rank)

    def _trained_whole(self, model: nn.Module) -> set[str]:
        names = [name for name, _ in model.named_parameters()]
        if self.train is not None:
            for pattern in self.train:
                _require(pattern, names, "train", "parameter")
            return {name for name in names if _fits(name, self.train)}
        inside = _inside(model, Core, Vocabulary, ForeignEncoder)
        # What a classifier does behind its pretrained part is new more often than not, and small.
        own = {
            one for part in model.modules() if isinstance(part, ForeignClassifier) for one in part.behind()
        }
        if inside:
            return {
                name for name, one in model.named_parameters() if one in own or not name.startswith(inside)
            }
        return {name for name in names if name.startswith("heads.")}

    def _chosen(self, model: nn.Module, whole: set[str]) -> set[str]:
        """Return the names of the layers to adapt."""
        linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
        foreign = [part for part in model.modules() if isinstance(part, ForeignEncoder)]
        past = {layer for part in foreign for layer in part.read_past()}
        if self.targets != "all-linear":
            for pattern in self.targets:
                _require(pattern, linear, "targets", "linear layer")
            chosen = {name for name in linear if _fits(name, self.targets)}
            if unused := sorted(name for name in chosen if model.get_submodule(name) in past):
                raise RecipeError(
                    f"adapt lora: transformers reads the weight of '{unused[0]}' without calling the layer, so that an update beside it would "
                    "do nothing; leave it out of targets"
                )
            both = sorted(name for name in chosen if f"{name}.weight" in whole)
            if both and self.train is not None:
                raise RecipeError(
                    f"adapt lora: '{both[0]}' is to be trained whole and to have an update beside it; remove it from train or from targets"
                )
        else:
            cores = _inside(model, Core, ForeignEncoder)
            ways = {part.head() for part in foreign}
            chosen = {
                name
                for name in linear
                if f"{name}.weight" not in whole
                and (not cores or name.startswith(cores))
                and model.get_submodule(name) not in ways | past
            }
            self._left = _without(model, _inside(model, ForeignEncoder), ways, past)
        if not chosen:
            kinds = ", ".join(
                sorted({type(one).__name__ for one in model.modules() if _is_other_matrix(one)})
            )
            raise RecipeError(
                "adapt lora: the model has no linear layer besides what is trained whole"
                + (
                    f", but for layers of kinds of their own ({kinds}), beside which no update is put"
                    if kinds
                    else ""
                )
                + "; LoRA is for models of many, such as bert, llama or transformer"
            )
        places = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
        if tied := [name for name in sorted(chosen) if places[id(model.get_parameter(f"{name}.weight"))] > 1]:
            raise RecipeError(
                f"adapt lora: the weight of '{tied[0]}' is another layer's as well (tied), and an update beside one would part them; leave it out of targets"
            )
        speakers = [(name, part) for name, part in model.named_modules() if isinstance(part, ForeignSpeaker)]
        ties = {f"{name}.{one}".removesuffix(".weight") for name, part in speakers for one in part.ties}
        if apart := sorted(chosen & ties):
            raise RecipeError(
                f"adapt lora: the weight of '{apart[0]}' came apart from another that its architecture ties it to, so that the adapted model could not be "
                "built again; leave it out of targets"
            )
        for pattern in self.layers:
            _require(pattern, sorted(chosen), "layers", "adapted layer")
        return chosen

    def _read(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if not isinstance(model, Network):
            raise RecipeError("adapt lora: `from` needs a language model, such as bert, gpt2 or llama")
        if any(isinstance(part, ForeignEncoder) for part in model.encoders.values()):
            raise RecipeError(
                "adapt lora: `from` reads adapters of Luban's own families, such as bert, gpt2 or llama, and this model is of type "
                "'huggingface'; merge them into their model with PEFT first, and start from that"
            )
        languages = [part for part in model.encoders.values() if isinstance(part, LanguageEncoder)]
        if len(languages) != 1:
            raise RecipeError(
                f"adapt lora: `from` needs one language model, and the model has {len(languages)}"
            )
        assert self.from_ is not None
        adapter = read_adapter(self.from_)
        values, self._anew = whole_of(adapter, model)
        return layers_of(adapter, model), values

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.targets == []:
            raise ValueError(
                "targets is empty, so nothing would be adapted; leave it out for all linear layers"
            )
        return self


def write_peft(
    model: nn.Module, steps: list[Any], folder: str | Path, base: str | None = None
) -> dict[str, Any]:
    """Write the adapters of a model in PEFT's format; see `luban.adapt._peft.write_adapter`.

    Args:
        model: as it was built.
        steps: its adapt steps.
        folder: where to.
        base: what the adapters belong to.

    Raises:
        RecipeError: if there are none, or the format cannot hold them.
    """
    own = [step for step in steps if isinstance(step, LoRA)]
    if len({(step.dropout, step.rslora) for step in own}) > 1:
        raise RecipeError(
            "several lora steps differ in dropout or rslora, which the format peft cannot hold in one adapter"
        )
    how: dict[str, Any] = {"dropout": own[0].dropout, "rslora": own[0].rslora} if own else {}
    return write_adapter(model, folder, base=base, **how)


def _is_other_matrix(module: nn.Module) -> bool:
    """Whether a layer multiplies by a matrix in a way of its own, such as GPT-2's in `transformers`."""
    weight = getattr(module, "weight", None)
    usual = type(module) is nn.Linear or isinstance(module, nn.Embedding | nn.EmbeddingBag)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not usual


def _without(
    model: nn.Module, inside: tuple[str, ...], ways: Set[nn.Module | None], past: Set[nn.Module]
) -> list[str]:
    """Return the weights of a model of `transformers` that are multiplied by and can have no update beside them, one for all blocks:
    of layers that are not called, of kinds of its own, and those of several experts in one."""
    names: dict[str, None] = {}
    for name, module in model.named_modules():
        if not inside or not name.startswith(inside) or module in ways:
            continue
        own = dict(module.named_parameters(recurse=False))
        several = [key for key, one in own.items() if one.dim() > 2 and not isinstance(module, _ConvNd)]
        for key in ["weight"] if module in past or _is_other_matrix(module) else several:
            names[re.sub(r"\.\d+(?=\.)", ".*", f"{name}.{key}")] = None
    return list(names)


def _inside(model: nn.Module, *kinds: type[nn.Module]) -> tuple[str, ...]:
    """Return what the names of all that is inside modules of these kinds begin with."""
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, kinds))


def _fits(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require(pattern: str, names: list[str], key: str, what: str) -> None:
    if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise RecipeError(f"adapt lora: {key} '{pattern}' matches no {what}; there are {shown or 'none'}")


def _patterns(names: list[str], among: list[str]) -> list[str]:
    """Return patterns that match `names` and nothing else `among` others: one for all blocks where that is so.

    Example:
        >>> _patterns(["e.layers.0.q", "e.layers.1.q"], ["e.layers.0.q", "e.layers.0.k", "e.layers.1.q"])
        ['e.layers.*.q']
    """
    result: dict[str, None] = {}
    for name in names:
        exact = re.sub(r"([\[*?])", r"[\1]", name)
        pattern = re.sub(r"\.layers\.\d+\.", ".layers.*.", exact, count=1)
        others = (one for one in among if one not in names)
        result[exact if any(fnmatch.fnmatchcase(one, pattern) for one in others) else pattern] = None
    return list(result)
