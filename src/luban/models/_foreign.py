"""Modules of `transformers` behind our contracts: a flat batch goes in, states or logits come out.

::

    text.ids (T,) ──▶ rectangle (B, L), mask ──▶ transformers ──▶ (B, L, D) ──▶ states (T, D) ──▶ features (B, D)
                                                      │
                                                      └─ its own head, at the places that are asked for ──▶ logits (M, V)

Texts are padded at this door and nowhere else. Only what the package itself brings is run: code that lies beside somebody's
weights never is, and weights are read from safetensors alone.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.errors import ArtefactError, DataError, LubanError, MissingError, RecipeError
from luban.models._core import Projection
from luban.models._decoding import Decoding, LanguageModel
from luban.models._encoders import Encoder, Features, read_ragged
from luban.models._layers import pooled

__all__ = ["ForeignEncoder", "ForeignLanguageModel", "ForeignMaskedModel", "cleaned", "pretrained"]

Pool = Literal["first", "mean", "last", "max"]

# Where others keep what is no part of the architecture, or what would fetch or run something.
_NO_PART = {
    "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "_attn_implementation",
    "_attn_implementation_internal", "attn_implementation", "id2label", "label2id", "problem_type", "num_labels", "custom_pipelines",
}  # fmt: skip
_CLASSES = {"encoder": "AutoModel", "causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM"}
"""Task → what transformers makes it of."""
_CALLED = {"causal_lm": ("CAUSAL_LM", "causal"), "masked_lm": ("MASKED_LM", "masked")}


# --- the package ------------------------------------------------------------------------------------------


def _transformers() -> Any:
    try:
        module = importlib.import_module("transformers")
    except ImportError:
        raise MissingError(
            "model type 'huggingface' needs the transformers package, which is not installed: pip install 'luban[hf]'"
        ) from None
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@contextmanager
def _said_by_transformers(what: str) -> Iterator[None]:
    """Turn what transformers raises into one sentence."""
    try:
        yield
    except (LubanError, MemoryError):
        raise
    except ImportError as error:
        raise MissingError(f"'{what}' cannot be built: {_brief(error)}") from error
    except Exception as error:  # of any kind: the options were written for a program that is not ours
        raise RecipeError(f"transformers cannot make '{what}': {_brief(error)}") from error


def cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what is no part of the architecture."""
    return {
        key: cleaned(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NO_PART
    }


def _configuration(config: Mapping[str, Any]) -> Any:
    """Return transformers' object of a configuration; one that names code of its own is not known to it."""
    transformers = _transformers()
    options = cleaned(config)  # an artefact may come from a stranger
    kind = str(options.pop("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise RecipeError(
            f"transformers {transformers.__version__} has no architecture '{kind}'; code that lies beside somebody's weights is never run"
        )
    with _said_by_transformers(kind):
        return transformers.AutoConfig.for_model(kind, **options)


def _class_of(task: str, configuration: Any) -> Any:
    """Return what makes and reads modules for a task."""
    transformers = _transformers()
    if task in _CALLED:
        table, called = _CALLED[task]
        if type(configuration) not in getattr(transformers, f"MODEL_FOR_{table}_MAPPING"):
            raise RecipeError(
                f"transformers has no {called} language model of type '{configuration.model_type}'; take task encoder, or another model"
            )
    return getattr(transformers, _CLASSES[task])


def _made(task: str, configuration: Any) -> nn.Module:
    """Return a module with new weights."""
    how = {"trust_remote_code": False, "dtype": torch.float32, **_attention(task)}
    with _said_by_transformers(str(configuration.model_type)):
        made = _class_of(task, configuration).from_config(configuration, **how)
    return _reader(task, made)


def _attention(task: str) -> dict[str, str]:
    """Return how attention is computed: an encoder's so that an explainer can look into it, a generator's the quickest way."""
    return {"attn_implementation": "eager"} if task == "encoder" else {}


def _reader(task: str, made: Any) -> nn.Module:
    """Return the module that is used: of an encoder without a decoder, and without a pooler, which nothing here would train."""
    if task != "encoder":
        return cast(nn.Module, made)
    if made.config.is_encoder_decoder:
        made = made.get_encoder()
    if getattr(made, "pooler", None) is not None:
        made.pooler = None
    return cast(nn.Module, made)


def pretrained(path: str, task: str, config: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
    """Return the weights of a directory by the names of its module, and the parts that it lacks.

    Raises:
        ArtefactError: if it has none of them.
        RecipeError: if transformers cannot read it.
    """
    configuration = _configuration(config)
    with _said_by_transformers(path):
        made, report = _class_of(task, configuration).from_pretrained(
            Path(path).resolve(),
            config=configuration,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **_attention(task),
        )
    own = _reader(task, made).state_dict()
    missing = {name for name in report["missing_keys"] if name in own or name.partition(".")[2] in own}
    if len(missing) == len(own):
        raise ArtefactError(f"'{path}' does not fit its config.json: it has none of the model's tensors")
    return own, {name.rpartition(".")[0] or name for name in missing}


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- the rectangle ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rectangle:
    """Texts as transformers reads them.

    Attributes:
        ids: (B, L), padded.
        mask: where a token is, bool, (B, L).
        columns: where in its row each token of the flat batch stands, (T,).
    """

    ids: Tensor
    mask: Tensor
    columns: Tensor

    @classmethod
    def of(cls, texts: Ragged, padding: int, *, left: bool = False) -> Self:
        """Pad texts, behind them or before them."""
        ids, mask = texts.padded(padding)
        if not ids.shape[1]:
            ids = ids.new_full((len(texts), 1), padding)
            mask = torch.zeros_like(ids, dtype=torch.bool)
        columns = texts.positions
        if left:
            before = ids.shape[1] - texts.lengths  # (B,)
            places = (torch.arange(ids.shape[1], device=ids.device) - before[:, None]) % ids.shape[1]
            ids, mask = ids.gather(1, places), mask.gather(1, places)
            columns = columns + before[texts.rows]
        return cls(ids, mask, columns)

    @property
    def seen(self) -> Tensor:
        """The mask as transformers takes it, (B, L): a text without a token is read as one of padding, since attention to nothing
        is no number; nothing of it is kept."""
        seen = self.mask.clone()
        seen[:, 0] |= ~seen.any(1)
        return seen.long()


# --- encoders ---------------------------------------------------------------------------------------------


class ForeignEncoder(Encoder):
    """A module between a rectangle and states.

    Args:
        config: of the architecture.
        positions: tokens of a text that it takes, None where it does not say.
        pool: what of the states is a text's vector.
        name: the field of ids.
        field: what is known about it.
    """

    TASK: ClassVar[str] = "encoder"
    model: nn.Module

    def __init__(
        self, config: Mapping[str, Any], positions: int | None, pool: Pool, name: str, field: Field
    ) -> None:
        super().__init__()
        self.names, self.positions, self.pool = [name], positions, pool
        configuration = _configuration(config)
        known = getattr(configuration, "vocab_size", None)
        if not isinstance(known, int):
            raise RecipeError(
                f"model type 'huggingface' reads texts, and an architecture of type '{configuration.model_type}' does not"
            )
        if (field.size or 0) > known:
            raise RecipeError(
                f"the tokenizer of '{field.column}' has {field.size:,} tokens, and model.config has vectors for {known:,}: "
                "they do not belong together; name the tokenizer of the model by 'tokenizer'"
            )
        padding = getattr(configuration, "pad_token_id", None)
        self.padding = padding if isinstance(padding, int) and 0 <= padding < known else int(field.pad)
        self.model = _made(self.TASK, configuration)
        self.width = self._width()

    def _width(self) -> int:
        return int(cast(Any, self.model).config.hidden_size)

    def head(self) -> nn.Module | None:
        """Return what turns states into logits over the tokens, where there is such a thing."""
        return None

    def _ids(self, batch: Batch) -> Ragged:
        ids = read_ragged(batch, self.names[0])
        self.require_room(ids)
        return ids

    def require_room(self, texts: Ragged) -> None:
        """Refuse texts that are longer than there are positions."""
        longest = int(texts.lengths.max()) if len(texts) else 0
        if self.positions is not None and longest > self.positions:
            raise DataError(
                f"a text has {longest} tokens, and the model takes {self.positions}: set max_length of the text in data.inputs"
            )

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a token."""
        ids = self._ids(batch)
        given = _Rectangle.of(ids, self.padding)
        found: Tensor = self.model(
            input_ids=given.ids, attention_mask=given.seen
        ).last_hidden_state  # (B, L, D)
        states = Ragged(found[ids.rows, given.columns], ids.offsets)
        return pooled(states, self.pool), states


# --- language models --------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Asked:
    """Which states one pass takes to the vocabulary.

    Attributes:
        rows, columns: of each token whose state is kept, (T,).
        read: which of these are taken to the vocabulary, (M,); None for all.
        states: what the head would have read of the tokens, (T, D).
    """

    rows: Tensor
    columns: Tensor
    read: Tensor | None
    states: Tensor | None = None


_ASKED: ContextVar[_Asked | None] = ContextVar("_ASKED", default=None)
"""What the pass of this thread asks for: models are shared between threads."""


def _narrow(head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Let a head read only the states that are asked for, (1, M, D) of (B, L, D); whatever follows the head is done to their logits."""
    asked = _ASKED.get()
    if asked is None or asked.states is not None:
        return None
    asked.states = given[0][asked.rows, asked.columns]
    read = asked.states if asked.read is None else asked.states.index_select(0, asked.read)
    return (read[None],)


@dataclass(kw_only=True)
class _Made(Projection):
    """Logits that are made already, since what follows a head (a cap, a factor) is the model's own affair.

    Attributes:
        made: (M, V).
    """

    made: Tensor

    def logits(self) -> Tensor:
        """Return all logits, (M, V), in float32."""
        return self.made.float()

    def total(self, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross entropy summed over the states, a scalar, given the true tokens (M,)."""
        return self.losses(labels, label_smoothing).sum()

    def losses(self, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross entropy of each state, (M,), given the true tokens (M,)."""
        return F.cross_entropy(self.logits(), labels, reduction="none", label_smoothing=label_smoothing)


class ForeignLanguageModel(ForeignEncoder, LanguageModel):
    """A language model, whose states are what the last layer of its head reads.

    A table that is tied is saved under one name, as everywhere in Luban, and found again under all when it is loaded.
    """

    TASK = "causal_lm"
    speaks = True

    def __init__(
        self, config: Mapping[str, Any], positions: int | None, pool: Pool, name: str, field: Field
    ) -> None:
        super().__init__(config, positions, pool, name, field)
        self._has_vocabulary = False
        accepted = inspect.signature(self.model.forward).parameters
        self._places = "position_ids" in accepted
        """Whether it can be told where tokens stand, so that texts may have padding before them."""
        self._caches = "past_key_values" in accepted and not getattr(self.model, "_is_stateful", False)
        """Whether it keeps keys and values, whose rows can be chosen from; a recurrent state is none."""
        seen: dict[int, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        self._tied = {name: first for name, one in named if (first := seen.setdefault(id(one), name)) != name}
        """Further name of a parameter → its first."""
        self.register_state_dict_post_hook(_without_tied)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_tied)  # type: ignore[no-untyped-call]
        if self.causal:
            self._require_causal()

    def _width(self) -> int:
        head = self.head()
        if head is None or not isinstance(getattr(head, "weight", None), Tensor):
            raise RecipeError(
                f"an architecture of type '{self.architecture}' names no layer that makes logits of its states; take another model"
            )
        return int(cast(Tensor, head.weight).shape[1])

    def _require_causal(self) -> None:
        """Refuse a model in which a token sees those behind it: some classes are causal only if their configuration says so."""
        device = next(self.parameters()).device
        texts = torch.tensor([[0, 0, 0], [0, 0, 1]], device=device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), _said_by_transformers(self.architecture):
            one, other = self.model(input_ids=texts, attention_mask=torch.ones_like(texts)).logits[:, :2]
        self.model.train(was_training)
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
            raise RecipeError(
                f"with this configuration an architecture of type '{self.architecture}' looks both ways, so it is no causal language model; take task encoder"
            )

    @property
    def architecture(self) -> str:
        """The model type, as transformers calls it."""
        return str(cast(Any, self.model).config.model_type)

    @property
    def kind(self) -> str:
        """The type of the family, and the architecture."""
        return f"huggingface ({self.architecture})"

    @property
    def causal(self) -> bool:
        """Whether it is made for the next token, not for masked ones."""
        return self.TASK == "causal_lm"

    @property
    def has_vocabulary(self) -> bool:
        """Whether a target asked for tokens."""
        return self._has_vocabulary

    @property
    def limit(self) -> int | None:
        """Tokens of a text that it was made for."""
        return self.positions

    @property
    def room(self) -> int | None:
        """The same: whether its positions go on beyond, nobody says."""
        return self.positions

    def add_vocabulary(self) -> None:
        """Use its own."""
        self._has_vocabulary = True

    def head(self) -> nn.Module | None:
        """Return what turns states into logits over the tokens."""
        return cast("nn.Module | None", cast(Any, self.model).get_output_embeddings())

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a token."""
        features, states, _ = self.outputs(batch)
        return features, states

    def outputs(self, batch: Batch) -> tuple[Tensor, Ragged | None, dict[str, Any]]:
        """Return (B, width), states (T, D) and `column.tokens`, the logits where `column.read` asks for them, else everywhere."""
        ids = self._ids(batch)
        column = self.names[0].rpartition(".")[0]
        read = batch.get(f"{column}.read")
        assert read is None or isinstance(read, Tensor)
        given = _Rectangle.of(ids, self.padding)
        asked = _Asked(ids.rows, given.columns, read)
        how = {"use_cache": False} if self._caches else {}
        projection, _ = self.run(given.ids, given.seen, asked, how)
        assert asked.states is not None
        states = Ragged(asked.states, ids.offsets)
        return pooled(states, self.pool), states, {f"{column}.tokens": projection}

    def run(self, ids: Tensor, mask: Tensor, asked: _Asked, how: Mapping[str, Any]) -> tuple[Projection, Any]:
        """Run the model over a rectangle, (B, L).

        Args:
            ids: tokens, (B, L).
            mask: 1 where a token is, 0 where padding is, cached ones included, (B, S).
            asked: which logits are wanted; gets the states.
            how: further arguments of the model.

        Returns:
            The way to the logits asked for, and what the model returned beside them.
        """
        head = cast(Any, self.head())
        if _narrow not in head._forward_pre_hooks.values():  # a new head, or one that an adapter replaced
            head.register_forward_pre_hook(_narrow)
        token = _ASKED.set(asked)
        try:
            found = self.model(input_ids=ids, attention_mask=mask, **how)
        finally:
            _ASKED.reset(token)
        assert asked.states is not None
        states = asked.states if asked.read is None else asked.states.index_select(0, asked.read)
        return _Made(states, head.weight, getattr(head, "bias", None), made=found.logits[0]), found

    def begin(self, rows: int, expected: int, sources: Ragged | None = None) -> Decoding:
        """Begin to read texts; see `LanguageModel.begin`."""
        device = next(self.parameters()).device
        return _ForeignDecoding(self, Ragged.from_rows([torch.empty(0, dtype=torch.int64)] * rows).to(device))


class ForeignMaskedModel(ForeignLanguageModel):
    """A masked language model."""

    TASK = "masked_lm"


class _ForeignDecoding(Decoding):
    """Texts with transformers' own cache.

    ::

        read   .  .  a  b          step   .  .  a  b  c        padding stands before the first tokens, as transformers' own
               d  e  f  g                 d  e  f  g  h        generation has it; a row's positions count from its first token

    A pass over as many tokens in every row goes on from the cache. Any other would leave holes in it, which not every
    architecture can look past; it reads the texts anew, and so does every pass of a model that keeps no keys and values.
    """

    def __init__(self, model: ForeignLanguageModel, texts: Ragged) -> None:
        self._model, self._texts = model, texts
        self._cache: Any = None
        self._mask = torch.empty(0)

    def read(self, inputs: Ragged, *, last: bool = False) -> Projection:
        """Read some tokens a row; see `Decoding.read`."""
        model = self._model
        new = inputs.lengths
        whole = _joined(self._texts, inputs)
        model.require_room(whole)
        goes_on = self._cache is not None and _even(inputs)
        given = inputs if goes_on else whole
        left = model._places or _even(given)
        rectangle = _Rectangle.of(given, model.padding, left=left)
        mask = torch.cat([self._mask, rectangle.seen], 1) if goes_on else rectangle.seen
        how: dict[str, Any] = {"use_cache": model._caches and left} if model._caches else {}
        if goes_on:
            how["past_key_values"] = self._cache
        if model._places and left:
            how["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -rectangle.ids.shape[1] :]
        if last:
            wanted = given.offsets[1:] - 1
        elif goes_on:
            wanted = torch.arange(len(given.values), device=given.values.device)
        else:
            wanted = (given.positions >= (given.lengths - new)[given.rows]).nonzero().squeeze(1)
        asked = _Asked(given.rows[wanted], rectangle.columns[wanted], None)
        projection, found = model.run(rectangle.ids, mask, asked, how)
        cache = getattr(found, "past_key_values", None) if how.get("use_cache") else None
        self._cache = cache if hasattr(cache, "reorder_cache") else None
        self._texts, self._mask = whole, mask
        return projection

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token a row; see `Decoding.step`."""
        return self.read(Ragged(tokens, torch.arange(len(tokens) + 1, device=tokens.device))).logits()

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows."""
        each = self._texts.unbind()
        self._texts = Ragged.from_rows([each[row] for row in rows]).to(self._texts.values.device)
        if self._cache is not None:
            index = torch.tensor(rows, dtype=torch.int64, device=self._mask.device)
            self._mask = self._mask.index_select(0, index)
            self._cache.reorder_cache(index)

    def copy(self) -> Self:
        """Return the same texts with a cache of their own."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        return other


def _even(texts: Ragged) -> bool:
    return bool((texts.lengths == texts.lengths[0]).all())


def _joined(texts: Ragged, more: Ragged) -> Ragged:
    """Return each text with more tokens behind it."""
    pairs = zip(texts.unbind(), more.unbind(), strict=True)
    return Ragged.from_rows([torch.cat(pair) for pair in pairs]).to(texts.values.device)


def _without_tied(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(module, ForeignLanguageModel)
    for name in module._tied:
        del state[prefix + name]


def _with_tied(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, ForeignLanguageModel)
    for name, first in module._tied.items():
        if prefix + first in state:
            state[prefix + name] = state[prefix + first]
