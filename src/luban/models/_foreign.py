"""Modules of `transformers` behind our contracts: a flat batch goes in, states or logits come out.

::

    text.ids (T,) ──▶ rectangle (B, L), mask ──▶ transformers ──▶ (B, L, D) ──▶ states (T, D) ──▶ features (B, D)
                                                      │
                                                      └─ its own head, at the places that are asked for ──▶ logits (M, V)

Texts are padded at this door and nowhere else; where an architecture would see the padding, which is asked of it when it is made,
texts of one length go through together instead. Only what the package itself brings is run: code that lies beside somebody's
weights never is, and weights are read from safetensors alone.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
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

__all__ = [
    "CLASSES",
    "Asked",
    "ForeignEncoder",
    "ForeignLanguageModel",
    "ForeignMaskedModel",
    "ForeignSpeaker",
    "Made",
    "Pool",
    "Rectangle",
    "cleaned",
    "configuration_of",
    "even",
    "gradients_of",
    "has_segments",
    "joined",
    "looked_up",
    "near",
    "positions_of",
    "pretrained",
    "probing",
]

Pool = Literal["first", "mean", "last", "max"]

# Where others keep what is no part of the architecture, or what would fetch or run something.
_NO_PART = {
    "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "_attn_implementation",
    "_attn_implementation_internal", "attn_implementation", "id2label", "label2id", "problem_type", "num_labels", "custom_pipelines",
}  # fmt: skip
_CLASSES = {
    "encoder": "AutoModel",
    "classifier": "AutoModelForSequenceClassification",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
"""Task → what transformers makes it of."""
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What architectures call the number of their positions."""
_ENOUGH = 512  # positions, for any architecture to be made
_CALLED = {
    "classifier": ("SEQUENCE_CLASSIFICATION", "sequence classifier"),
    "causal_lm": ("CAUSAL_LM", "causal language model"),
    "masked_lm": ("MASKED_LM", "masked language model"),
    "seq2seq": ("SEQ_TO_SEQ_CAUSAL_LM", "encoder-decoder language model"),
}
CLASSES = 1009
"""Of a new classifier, whose last layer is told by a size that no other layer has, and then taken off."""


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


def configuration_of(config: Mapping[str, Any]) -> Any:
    """Return transformers' object of a configuration; one that names code of its own is not known to it."""
    transformers = _transformers()
    options = cleaned(config)  # an artefact may come from a stranger
    if options.get("pad_token_id", 0) is None and _kept(options):
        del options["pad_token_id"]  # which those cannot do without: the class has its own
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
                f"transformers has no {called} of type '{configuration.model_type}'; take task encoder, or another model"
            )
    if task == "masked_lm" and configuration.is_encoder_decoder:
        raise RecipeError(
            f"an architecture of type '{configuration.model_type}' has an encoder and a decoder, which reads the tokens that are hidden; "
            "take task encoder, or another model"
        )
    return getattr(transformers, _CLASSES[task])


def has_segments(config: Mapping[str, Any]) -> bool:
    """Whether the sequence classifier of an architecture can be told which segment a token is of; transformers drops it else."""
    configuration = configuration_of(config)
    made = _transformers().MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(configuration), nn.Module)
    one = made[0] if isinstance(made, tuple | list) else made
    return "token_type_ids" in inspect.signature(one.forward).parameters


def _made(task: str, configuration: Any) -> nn.Module:
    """Return a module with new weights."""
    if task == "classifier":
        configuration.num_labels = CLASSES
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
        # A class that can be made without one asks whether there is one.
        made.pooler = None if "add_pooling_layer" in inspect.signature(type(made)).parameters else _NoPooler()
    return cast(nn.Module, made)


class _NoPooler(nn.Module):
    """Stands where a pooler was that is called whether there is one or not."""

    def forward(self, *_: Any, **__: Any) -> None:
        """Return nothing."""


@cache
def _kept_positions(config: str) -> int:
    """Return how many of its positions an architecture keeps for padding: those that number tokens from behind that of the padding
    token have a table of positions that knows it. A module without weights tells."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        made = _made("encoder", configuration_of(json.loads(config)))
    tables = [
        part.padding_idx
        for name, part in made.named_modules()
        if name.endswith("position_embeddings") and isinstance(getattr(part, "padding_idx", None), int)
    ]
    return max(tables, default=-1) + 1


def _kept(config: Mapping[str, Any]) -> int:
    """Return the same of a configuration, whatever its padding and however few its positions."""
    options = {key: value for key, value in config.items() if key != "pad_token_id" or value is not None}
    options |= {key: max(_ENOUGH, options[key]) for key in _POSITIONS if isinstance(options.get(key), int)}
    try:
        return _kept_positions(json.dumps(options, sort_keys=True, default=str))
    except LubanError:  # which is said where the model is made
        return 0


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens of a text an architecture takes; None where it does not say, as its positions are relative.

    Raises:
        RecipeError: if that is none.
    """
    key = next((key for key in _POSITIONS if isinstance(config.get(key), int)), None)
    if key is None:
        return None
    kept = _kept(config)
    if config[key] <= kept:
        of_these = f", of which an architecture of type '{config.get('model_type')}' keeps {kept} for padding"
        raise RecipeError(
            f"model.config: {key} is {config[key]}{of_these if kept else ''}, so that no text has room; give {kept + 1} or more"
        )
    return int(config[key]) - kept


def pretrained(
    path: str, task: str, config: Mapping[str, Any], without: str | None = None
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the weights of a directory by the names of its module, and the parts that it lacks.

    Args:
        path: the directory.
        task: what the module is for.
        config: of the architecture.
        without: the layer that is left out, of whatever size.

    Raises:
        ArtefactError: if it has none of them, or of other sizes.
        RecipeError: if transformers cannot read it.
    """
    configuration = configuration_of(config)
    with _said_by_transformers(path):
        made, report = _class_of(task, configuration).from_pretrained(
            Path(path).resolve(),
            config=configuration,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=without is not None,
            **_attention(task),
        )
    own = {
        name: tensor
        for name, tensor in _reader(task, made).state_dict().items()
        if name.rpartition(".")[0] != without
    }
    if wrong := sorted({name for name, *_ in report["mismatched_keys"]} & own.keys()):
        raise ArtefactError(f"'{path}' does not fit its config.json: '{wrong[0]}' has another size there")
    missing = {name for name in report["missing_keys"] if name in own or name.partition(".")[2] in own}
    if len(missing) == len(own):
        raise ArtefactError(f"'{path}' does not fit its config.json: it has none of the model's tensors")
    return own, {name.rpartition(".")[0] or name for name in missing}


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- the rectangle ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rectangle:
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
        configuration = configuration_of(config)
        known = self._vocabulary(configuration)
        if known is None:
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
        self.architecture = str(configuration.model_type)
        """The model type, as transformers calls it."""
        self.model = _made(self.TASK, configuration)
        accepted = inspect.signature(self.model.forward).parameters
        self._places = "position_ids" in accepted
        """Whether it can be told where tokens stand, so that texts may have padding before them."""
        self._once = (
            {"use_cache": False} if "use_cache" in inspect.signature(self.reader.forward).parameters else {}
        )
        """What is said of a pass that none goes on from."""
        self._caches = "past_key_values" in accepted and not getattr(self.model, "_is_stateful", False)
        """Whether it keeps keys and values, whose rows can be chosen from; a recurrent state is none."""
        self._known = known
        self.masks_padding = True
        """Whether what it makes of a text stays the same with padding behind it; if not, texts of one length go through together."""
        with probing(self), _said_by_transformers(self.architecture):
            self.width = self._width()
            self._examine()

    @staticmethod
    def _vocabulary(configuration: Any) -> int | None:
        """Return how many tokens a configuration has vectors for, None where it is not of texts."""
        known = getattr(configuration, "vocab_size", None)
        return known if isinstance(known, int) else None

    @property
    def reader(self) -> nn.Module:
        """The module that reads the texts of its column."""
        return self.model

    def _width(self) -> int:
        return int(cast(Any, self.reader).config.hidden_size)

    @property
    def looks_up_once(self) -> bool:
        """Whether the tokens of a batch are looked up in one place, all rows at once where they are of one length, so that gradients
        can attach there."""
        return True

    def head(self) -> nn.Module | None:
        """Return what turns states into logits over the tokens, where there is such a thing."""
        return None

    def save_once(self) -> None:
        """From now on save what is tied under its first name only."""
        seen: dict[int, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        self._tied = {name: first for name, one in named if (first := seen.setdefault(id(one), name)) != name}
        """Further name of a parameter → its first."""
        self.register_state_dict_post_hook(_without_tied)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_tied)  # type: ignore[no-untyped-call]

    # --- what it is asked when it is made ---------------------------------------------------------------------

    def _examine(self) -> None:
        """Ask a new module, by a few tokens, what no configuration says reliably."""
        long, short = self._samples()
        if not self._apart(short, long):
            self.masks_padding = False
            if not self._apart(short, short, short):
                raise RecipeError(
                    f"an architecture of type '{self.architecture}' reads the texts of a batch as one, so that a text's states depend on "
                    "those beside it; take another model"
                )

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Return a text that fills a few positions, and a shorter one."""
        tokens = [token for token in range(min(self._known, _SAMPLE + 1)) if token != self.padding] or [0]
        length = min(_SAMPLE, self.positions or _SAMPLE)
        long = torch.tensor((tokens * length)[:length], device=next(self.parameters()).device)
        return long, long.flip(0)[: max(1, length // 2)]

    def _apart(self, text: Tensor, *others: Tensor) -> bool:
        """Whether the states of a text are the same beside others, and depend on nothing but its own tokens.

        Two questions: an initialisation may be so small that what comes from the padding is lost in rounding, but a gradient is
        then small and not zero; and what depends on the length of the rectangle alone has no gradient.
        """
        with torch.no_grad():
            alone = self._made_of(text)
        with looked_up(self.reader) as seen:
            beside = self._made_of(text, *others)
        rows = 1 + len(others)
        # Some have the tokens first, (L, B, D).
        gradients = [
            one.transpose(0, 1) if len(one) != rows == one.shape[1] else one
            for one in gradients_of(beside, seen)
        ]
        longest = max(map(len, (text, *others)))
        # The text stands at the end of what was looked up: some put vectors of their own before it.
        outside = [one[:, -longest:][:, len(text) :] for one in gradients] + [one[1:] for one in gradients]
        return near(beside, alone) and not any(bool(one.any()) for one in outside)

    def _made_of(self, text: Tensor, *others: Tensor) -> Tensor:
        """Return what a text becomes beside others, (T, D)."""
        return self.states(Ragged.from_rows([text, *others]).to(text.device))[: len(text)]

    def read_past(self) -> set[nn.Linear]:
        """Return the linear layers whose weight is read while the layer itself is not called, so that nothing that takes the layer's
        place is called either.

        One pass over a few tokens tells. An expert that it does not reach is neither called nor read, and is none of them.
        """
        layers = {part for part in self.model.modules() if type(part) is nn.Linear}
        wanted = {layer: layer.weight.requires_grad for layer in layers}
        called: set[nn.Module] = set()
        handles = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers]
        try:
            with probing(self), _said_by_transformers(self.architecture):
                for layer in layers:
                    layer.weight.requires_grad_(True)
                text, _ = self._samples()
                states = self._through(Ragged.from_rows([text]).to(text.device))
                rest = [layer for layer in layers if layer not in called]
                found = torch.autograd.grad(
                    states.sum(), [layer.weight for layer in rest], allow_unused=True
                ) if rest else ()  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
            for layer, before in wanted.items():
                layer.weight.requires_grad_(before)
        return {layer for layer, gradient in zip(rest, found, strict=True) if gradient is not None}

    def _through(self, texts: Ragged) -> Tensor:
        """Return what all of the module makes of texts."""
        return self.states(texts)

    # --- texts ------------------------------------------------------------------------------------------------

    def _ids(self, batch: Batch) -> Ragged:
        ids = read_ragged(batch, self.names[0])
        longest = self._too_long(ids)
        if longest is not None:
            raise DataError(
                f"a text has {longest} tokens, and the model takes {self.positions}: set max_length of the text in data.inputs"
            )
        return ids

    def _too_long(self, texts: Ragged) -> int | None:
        """Return the tokens of the longest text if there are fewer positions."""
        longest = int(texts.lengths.max()) if len(texts) else 0
        return longest if self.positions is not None and longest > self.positions else None

    def rectangle(self, texts: Ragged) -> Rectangle:
        """Return texts that go through together, padded."""
        return Rectangle.of(texts, self.padding)

    def together(self, texts: Ragged) -> Iterator[tuple[Ragged, Tensor]]:
        """Yield the texts that go through together, and where their tokens stand in the batch, (T',)."""
        if self.masks_padding or even(texts):
            if len(texts):
                yield texts, torch.arange(len(texts.values), device=texts.values.device)
            return
        for length in texts.lengths.unique().tolist():
            first = texts.offsets[:-1][texts.lengths == length]  # (B',)
            within = torch.arange(length, device=first.device)
            places = (first[:, None] + within).flatten()
            yield (
                Ragged(texts.values[places], torch.arange(len(first) + 1, device=first.device) * length),
                places,
            )

    def states(self, texts: Ragged) -> Tensor:
        """Return the state of each token, (T, D)."""
        parts, places = [], []
        for some, where in self.together(texts):
            given = self.rectangle(some)
            found: Tensor = self.reader(
                input_ids=given.ids, attention_mask=given.seen, **self._once
            ).last_hidden_state  # (B, L, D)
            parts.append(found[some.rows, given.columns])
            places.append(where)
        return self._in_order(parts, places)

    def _in_order(self, parts: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
        """Join what was made of texts that went through together, (T', D) each, in the order of the batch, (T, D)."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return next(self.parameters()).new_empty(0, self.width)
        return torch.cat([*parts])[torch.cat([*places]).argsort()]

    def forward(self, batch: Batch) -> Features:
        """Return (B, width) and a state a token."""
        ids = self._ids(batch)
        states = Ragged(self.states(ids), ids.offsets)
        return pooled(states, self.pool), states


_SAMPLE = 5  # tokens that a new module is asked about
_NEAR = 1e-4  # of the largest state: rounding, which differs between rectangles


@contextmanager
def probing(encoder: nn.Module) -> Iterator[None]:
    """Let a module be asked, within the block: nothing is dropped, gradients are there, and no random number is used up."""
    modes = {part: part.training for part in encoder.modules()}
    encoder.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def looked_up(model: nn.Module) -> Iterator[list[Tensor]]:
    """Note the vectors that a module looks up for its tokens, within the block, (B, L, D) each, as what gradients are of."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        vectors = output[0] if isinstance(output, tuple) else output  # with the scale of a quantised table
        seen.append(vectors.detach().requires_grad_())
        given_on = seen[-1].clone()  # which may be changed in place
        return (given_on, *output[1:]) if isinstance(output, tuple) else given_on

    table = cast(Any, model).get_input_embeddings()
    weight = getattr(table, "weight", table)
    # An encoder and its decoder may look up in one table, each by a layer of its own.
    tables = {part for part in model.modules() if isinstance(part, nn.Embedding) and part.weight is weight}
    handles = [part.register_forward_hook(hook) for part in {table, *tables}]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def near(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by rounding alone."""
    return bool((found - expected).abs().max() <= _NEAR * expected.abs().max())


def gradients_of(states: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of states, (T, D), with respect to vectors of theirs and of others, where there are any.

    What is derived is a sum with uneven weights, since the even one of normalised states does not depend on anything.
    """
    if not vectors:
        return []
    size = states.shape[-1]
    weights = torch.arange(1, size + 1, device=states.device).to(states.dtype).cos()
    found = torch.autograd.grad((states * weights).sum(), [*vectors], allow_unused=True)
    return [one for one in found if one is not None]


# --- language models --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Asked:
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


_ASKED: ContextVar[Asked | None] = ContextVar("_ASKED", default=None)
"""What the pass of this thread asks for: models are shared between threads."""


def _narrow(head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Let a head read only the states that are asked for, (1, M, D) of (B, L, D); whatever follows the head is done to their logits."""
    asked = _ASKED.get()
    if asked is None or asked.states is not None or given[0].dim() != 3:
        return None
    asked.states = given[0][asked.rows, asked.columns]
    read = asked.states if asked.read is None else asked.states.index_select(0, asked.read)
    return (read[None],)


@dataclass(kw_only=True)
class Made(Projection):
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


class ForeignSpeaker(ForeignEncoder, LanguageModel):
    """What puts out tokens, by its own head.

    A table that is tied is saved under one name, as everywhere in Luban, and found again under all when it is loaded. One that
    comes with weights of its own is tied no longer, as in transformers, whatever the configuration says.
    """

    def __init__(
        self, config: Mapping[str, Any], positions: int | None, pool: Pool, name: str, field: Field
    ) -> None:
        super().__init__(config, positions, pool, name, field)
        self.save_once()
        self.ties = frozenset({*self._tied, *self._tied.values()})
        """Names of the parameters that the architecture ties, though weights may come that part them."""

    def _width(self) -> int:
        head = self.head()
        if head is None or not isinstance(getattr(head, "weight", None), Tensor):
            raise RecipeError(
                f"an architecture of type '{self.architecture}' names no layer that makes logits of its states; take another model"
            )
        return int(cast(Tensor, head.weight).shape[1])

    @property
    def kind(self) -> str:
        """The type of the family, and the architecture."""
        return f"huggingface ({self.architecture})"

    def head(self) -> nn.Module | None:
        """Return what turns states into logits over the tokens."""
        return cast("nn.Module | None", cast(Any, self.model).get_output_embeddings())

    def answered(self, asked: Asked, given: Mapping[str, Any]) -> tuple[Made, Any]:
        """Run the model.

        Args:
            asked: which logits are wanted; gets the states.
            given: arguments of the model.

        Returns:
            The way to the logits asked for, and what the model returned beside them.
        """
        head = cast(Any, self.head())
        if _narrow not in head._forward_pre_hooks.values():  # a new head, or one that an adapter replaced
            head.register_forward_pre_hook(_narrow)
        token = _ASKED.set(asked)
        try:
            found = self.model(**given)
        finally:
            _ASKED.reset(token)
        if asked.states is None:
            raise RecipeError(
                f"an architecture of type '{self.architecture}' makes its logits otherwise than by its output layer from a state a token, so they "
                "cannot be made at some places alone; take task encoder, or another model"
            )
        states = asked.states if asked.read is None else asked.states.index_select(0, asked.read)
        return Made(states, head.weight, getattr(head, "bias", None), made=found.logits[0]), found


class ForeignLanguageModel(ForeignSpeaker):
    """A language model, whose states are what the last layer of its head reads."""

    TASK = "causal_lm"
    speaks = True
    _has_vocabulary = False

    def _examine(self) -> None:
        """As of any module; and some classes are causal only if their configuration says so."""
        super()._examine()
        if not self.causal:
            return
        long, short = self._samples()
        with looked_up(self.model) as seen:
            first = self.states(Ragged.from_rows([long]).to(long.device))[:1]
        gradients = gradients_of(first, seen)
        if not gradients or any(bool(one[:, -len(long) :][:, 1:].any()) for one in gradients):
            raise RecipeError(
                f"with this configuration an architecture of type '{self.architecture}' looks both ways, so it is no causal language model; take task encoder"
            )
        self._places = self._places and self.masks_padding and self._shifts(short, long)
        self._caches = self._caches and self.masks_padding and (len(long) == 1 or self._goes_on(long))

    def _shifts(self, text: Tensor, other: Tensor) -> bool:
        """Whether a text's states are the same with padding before it, if its positions are told."""
        texts = Ragged.from_rows([text, other]).to(text.device)
        given = Rectangle.of(texts, self.padding, left=True)
        asked = Asked(texts.rows, given.columns, None)
        with torch.no_grad():
            self.run(given.ids, given.seen, asked, {**self._once, "position_ids": _numbered(given.seen)})
            alone = self.states(Ragged.from_rows([text]).to(text.device))
        assert asked.states is not None
        return near(asked.states[: len(text)], alone)

    def _goes_on(self, text: Tensor) -> bool:
        """Whether a text goes on from the cache as if it were read anew, its row chosen among others; some keep a state there, and
        cannot have its rows chosen."""
        decoding = self.begin(2, len(text))
        with torch.no_grad():
            whole = self.projected(Ragged.from_rows([text]).to(text.device), None)[0].logits()
            try:
                decoding.read(Ragged.from_rows([text[-1:], text[:-1]]).to(text.device))
                decoding.select([1, 1, 0])
                found = decoding.step(text[-1:].expand(3))
            except Exception:  # of any kind: the cache is not ours
                return False
        return near(found[0], whole[-1]) and near(found[1], whole[-1])

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
        projection, values = self.projected(ids, read)
        states = Ragged(values, ids.offsets)
        return pooled(states, self.pool), states, {f"{column}.tokens": projection}

    def states(self, texts: Ragged) -> Tensor:
        """Return the state of each token, (T, D)."""
        return self.projected(texts, None)[1]

    def projected(self, texts: Ragged, read: Tensor | None) -> tuple[Projection, Tensor]:
        """Return the way to the logits of some tokens, (M,), or of all, and the states of all, (T, D)."""
        head = cast(Any, self.head())
        logits, states, chosen, places = [], [], [], []
        for some, where in self.together(texts):
            given = Rectangle.of(some, self.padding)
            wanted = read
            if read is not None and not self.masks_padding:
                here = torch.full_like(texts.values, -1)  # (T,)
                here[where] = torch.arange(len(where), device=where.device)
                wanted = here[read]
                chosen.append((wanted >= 0).nonzero().squeeze(1))
                wanted = wanted[chosen[-1]]
            asked = Asked(some.rows, given.columns, wanted)
            projection, _ = self.run(given.ids, given.seen, asked, self._once)
            assert asked.states is not None
            logits.append(projection.made)
            states.append(asked.states)
            places.append(where)
        found = self._in_order(states, places)
        if not logits:
            made = found.new_empty(0, head.weight.shape[0])
        elif len(logits) == 1:
            made = logits[0]
        else:
            made = torch.cat(logits)[torch.cat(places if read is None else chosen).argsort()]
        kept = found if read is None else found.index_select(0, read)
        return Made(kept, head.weight, getattr(head, "bias", None), made=made), found

    def run(self, ids: Tensor, mask: Tensor, asked: Asked, how: Mapping[str, Any]) -> tuple[Made, Any]:
        """Run the model over a rectangle, (B, L).

        Args:
            ids: tokens, (B, L).
            mask: 1 where a token is, 0 where padding is, cached ones included, (B, S).
            asked: which logits are wanted; gets the states.
            how: further arguments of the model.

        Returns:
            The way to the logits asked for, and what the model returned beside them.
        """
        return self.answered(asked, {"input_ids": ids, "attention_mask": mask, **how})

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
    architecture can look past; it reads the texts anew, and so does every pass of a model that keeps no keys and values, or that sees padding.
    """

    def __init__(self, model: ForeignLanguageModel, texts: Ragged) -> None:
        self._model, self._texts = model, texts
        self._cache: Any = None
        self._mask = torch.empty(0)

    def read(self, inputs: Ragged, *, last: bool = False) -> Projection:
        """Read some tokens a row; see `Decoding.read`."""
        model = self._model
        new = inputs.lengths
        whole = joined(self._texts, inputs)
        longest = model._too_long(whole)
        if longest is not None:
            raise DataError(
                f"a prompt and what was written behind it have {longest} tokens, and the model takes {model.positions}: shorten the prompt, "
                "or lower max_tokens"
            )
        if last:
            asked_for = whole.offsets[1:] - 1
        else:
            asked_for = (whole.positions >= (whole.lengths - new)[whole.rows]).nonzero().squeeze(1)
        if not model.masks_padding:
            self._texts = whole
            return model.projected(whole, asked_for)[0]
        goes_on = self._cache is not None and even(inputs)
        given = inputs if goes_on else whole
        left = model._places or even(given)
        rectangle = Rectangle.of(given, model.padding, left=left)
        mask = torch.cat([self._mask, rectangle.seen], 1) if goes_on else rectangle.seen
        how: dict[str, Any] = {"use_cache": True} if model._caches and left else dict(model._once)
        if goes_on:
            how["past_key_values"] = self._cache
        if model._places and left:
            how["position_ids"] = _numbered(mask)[:, -rectangle.ids.shape[1] :]
        wanted = asked_for
        if goes_on:
            wanted = given.offsets[1:] - 1 if last else torch.arange(len(given.values), device=mask.device)
        asked = Asked(given.rows[wanted], rectangle.columns[wanted], None)
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


def even(texts: Ragged) -> bool:
    """Whether all rows have as many tokens."""
    return bool((texts.lengths == texts.lengths[:1]).all())


def _numbered(mask: Tensor) -> Tensor:
    """Return the positions of tokens of which some have padding before them, (B, S), given where they are."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def joined(texts: Ragged, more: Ragged) -> Ragged:
    """Return each text with more tokens behind it."""
    pairs = zip(texts.unbind(), more.unbind(), strict=True)
    return Ragged.from_rows([torch.cat(pair) for pair in pairs]).to(texts.values.device)


def _without_tied(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(module, ForeignEncoder)
    for name in module._tied:
        del state[prefix + name]


def _with_tied(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, ForeignEncoder)
    for name, first in [*module._tied.items()]:
        if prefix + first not in state:
            continue
        own = state.get(prefix + name)
        if own is not None and not torch.equal(own, state[prefix + first]):
            owner, short = name.rpartition(".")[::2]
            tied = module.get_parameter(name)
            apart = nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad)
            setattr(module.get_submodule(owner), short, apart)
            del module._tied[name]
        else:
            state[prefix + name] = state[prefix + first]
