"""Attention rollout: how far each token is reached from where the model reads its answer, through all layers of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field as Option
from torch import Tensor, nn

from luban.data.batch import Batch, to_batch
from luban.data.contracts import Flat
from luban.data.ragged import Ragged
from luban.data.store import take_rows
from luban.explaining._base import Explainer, Explanation
from luban.explaining._case import Case
from luban.explaining._gradients import costs, parts_of, runs
from luban.explaining._tokens import TokenCase
from luban.models._attention import Plan
from luban.models._core import Attention, Block, Core
from luban.models._decoding import PairModel
from luban.models._foreign import ForeignEncoder
from luban.models._foreign_classifier import ForeignClassifier
from luban.models._foreign_pair import ForeignPair
from luban.models._language import LanguageEncoder
from luban.registry import register
from luban.sentences import say

__all__ = ["AttentionRollout"]

BUDGET = 2048
_OF_DECODERS = ("decoder_attentions", "cross_attentions")
"""What transformers calls the attention of a decoder to its own text, and to the one that the encoder read."""

Weights = Callable[[slice, int], Sequence[Tensor]]
"""Given where a row lies in the flat sequence, and its number in the batch: the attention of each layer, (heads, L, L) each."""
Crossing = Callable[[slice, slice, int], Sequence[Tensor]]
"""Given where a row lies among the texts that are written and among those that are read, and its number: the attention of each layer
of a decoder to the text that was read, (heads, L, S) each."""


@register("explainers")
class AttentionRollout(Explainer):
    """The product over layers of ``(1 - r) · attention + r · identity``, read off where the model pools its states, or at the token
    that is asked about.

    Luban's own Transformers, over texts and patches of images, compute attention again from the queries and keys of each layer;
    those of type `huggingface` tell theirs (`output_attentions`), but for classifiers, which pool in ways of their own. Of an encoder
    with a decoder both are one graph: a state of the decoder takes part ``r`` of itself past each attention, be it to its own text or
    to the encoder's, whose rollout goes on from there. What does not reach the text that was read then reaches what was written
    before.

    Example:
        >>> AttentionRollout(heads="max").residual
        0.5
    """

    paper: ClassVar[str] = say("Abnar and Zuidema, 2020, 'Quantifying Attention Flow in Transformers'")
    limits: ClassVar[str] = say(
        "it shows where information could flow, for every class alike, and cannot tell what speaks for a class from what speaks against it"
    )
    of_written: ClassVar[bool] = True
    attributes: ClassVar[bool] = False

    heads: Literal["mean", "max", "min"] = "mean"
    """How the heads of a layer become one."""
    residual: Annotated[float, Option(ge=0, lt=1)] = 0.5
    """Part of a state that goes on past the attention."""

    def refusal(self, case: Case) -> str | None:
        readers = _readers(case.predictor.model)
        if not readers:
            return say("it needs the attention of a Transformer, of Luban's own or of type huggingface")
        decided = [one for one in readers if isinstance(one, ForeignClassifier)]
        if decided:
            return say(
                "the architecture '{kind}' pools in a way of its own as a classifier, so nobody can tell where attention is read off",
                kind=decided[0].architecture,
            )
        silent = [one for one in readers if isinstance(one, ForeignEncoder) and not _tells(one)]
        if silent:
            kind = getattr(silent[0].model.config, "model_type", "unknown")
            return say(
                "transformers gives no attention of each token to each for the architecture '{kind}'",
                kind=kind,
            )
        apart = [one for one in readers if isinstance(one, ForeignEncoder) and not one.masks_padding]
        if apart:
            return say(
                "the architecture '{kind}' sees padding, so its texts go through by their lengths, and attention is told of whole batches",
                kind=apart[0].architecture,
            )
        return None

    def explain(self, case: Case) -> list[Explanation]:
        values: dict[str, npt.NDArray[np.float64] | Flat] = {}
        for name in (name for own in case.inputs.values() for name in own):
            one = case.encoded[name]
            if isinstance(one, Flat):
                values[name] = Flat(np.zeros(len(one.values)), one.offsets)
        scores = np.zeros(len(case))
        read: set[str] = set()
        with torch.inference_mode():
            for rows, _ in runs(costs(case.encoded, len(case)), 1, BUDGET):
                batch = to_batch(take_rows(case.encoded, rows), case.predictor.spec, case.predictor.device)
                for reader in _readers(case.predictor.model):
                    read |= {*_names(reader)}
                    # What is written is read off the decoder; anything else off the encoder, as of any model.
                    pair = reader if case.writes and isinstance(reader, PairModel) else None
                    with _whole(reader), _watched(reader) as seen, _decoder(pair) as decoded:
                        if case.target:
                            scores[rows] = case.score(batch, case.chosen[rows]).double().cpu().numpy()
                        else:
                            case.predictor.model(batch)
                    reach = partial(self._reached, case, reader, seen)
                    if pair is not None:
                        reach = partial(self._written, pair, batch, seen, decoded)
                    self._add(values, case, batch, rows, reader, reach)
        kept = {name: value for name, value in values.items() if name in read}
        return case.explanations(self.type, scores.tolist(), parts_of(case, kept))

    def _add(
        self,
        values: dict[str, npt.NDArray[np.float64] | Flat],
        case: Case,
        batch: Batch,
        rows: npt.NDArray[np.int64],
        reader: nn.Module,
        reach: Callable[[slice, int], Tensor],
    ) -> None:
        """Add what some rows came to."""
        names = _names(reader)
        places, lengths = _places(reader, batch)
        ends = np.cumsum(lengths)
        for i, (row, end, length) in enumerate(zip(rows, ends, lengths, strict=True)):
            if not length:
                continue
            span = slice(int(end - length), int(end))
            numbers = reach(span, i).double().cpu().numpy()
            if places is None:  # patches of an image
                values[names[0]] = self._picture(
                    values.get(names[0]), case, reader, names[0], int(row), numbers
                )
                continue
            own = places.values[span].cpu().numpy()
            first = 0
            for name in names:
                ragged = batch[name]
                flat = values[name]
                assert isinstance(ragged, Ragged)
                assert isinstance(flat, Flat)
                start = int(ragged.offsets[i])
                inside = (own >= first) & (own < first + len(ragged.values))
                np.add.at(flat.values, own[inside] - first - start + flat.offsets[row], numbers[inside])
                first += len(ragged.values)

    def _reached(self, case: Case, reader: nn.Module, weights: Weights, span: slice, row: int) -> Tensor:
        """Return how far each place of a row is reached from where its answer is read, (L,)."""
        flow = self._flow(weights(span, row))
        if isinstance(case, TokenCase):
            return flow[case.place(len(flow))]
        pool = str(getattr(reader, "pool", "mean"))
        return flow[0] if pool in ("first", "pooler") else flow[-1] if pool == "last" else flow.mean(0)

    def _written(
        self,
        reader: PairModel,
        batch: Batch,
        weights: Weights,
        decoded: tuple[Weights, Crossing],
        span: slice,
        row: int,
    ) -> Tensor:
        """Return how far each place of the text that was read is reached from the last token of the one that is written, (S,)."""
        target = batch[reader.target]
        assert isinstance(target, Ragged)
        asking = slice(int(target.offsets[row]), int(target.offsets[row + 1]))
        length, first = asking.stop - asking.start, self._flow(weights(span, row))
        own = torch.eye(length, dtype=torch.float64)  # from each place of the decoder to each of its own, and
        other = torch.zeros(length, len(first), dtype=torch.float64)  # to each of the text that was read
        for inner, cross in zip(decoded[0](asking, row), decoded[1](asking, span, row), strict=True):
            step = self._layer(inner)
            own, other = step @ own, step @ other
            own = self.residual * own
            other = self.residual * other + (1 - self.residual) * self._one(cross) @ first
        return other[-1]

    def _flow(self, layers: Iterable[Tensor]) -> Tensor:
        """Return how far each place of a row is reached from each, (L, L), of the attention of all layers."""
        flow: Tensor | None = None
        for weights in layers:
            step = self._layer(weights)
            flow = step if flow is None else step @ flow
        assert flow is not None, "a Transformer has a layer"
        return flow

    def _layer(self, weights: Tensor) -> Tensor:
        """Return what a layer passes on to each place, (L, L), of its attention, (heads, L, L)."""
        one = self._one(weights)
        return (1 - self.residual) * one + self.residual * torch.eye(len(one), dtype=torch.float64)

    def _one(self, weights: Tensor) -> Tensor:
        """Return the attention of a layer's heads as one, (Q, K), whose rows add up to 1."""
        weights = weights.double().cpu()
        if self.heads == "mean":
            return weights.mean(0)
        one = weights.amax(0) if self.heads == "max" else weights.amin(0)
        return one / one.sum(1, keepdim=True).clamp(min=1e-12)

    def _picture(
        self,
        known: Any,
        case: Case,
        reader: nn.Module,
        name: str,
        row: int,
        numbers: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Put a row's patches in their places, each pixel with its part of its patch's value."""
        height, width = (case.predictor.spec.fields[name].shape or ())[:2]
        side = int(getattr(reader, "patch", 1))
        if known is None:
            known = np.zeros((len(case), height, width))
        patches = numbers.reshape(height // side, width // side) / side**2
        known[row] = patches.repeat(side, 0).repeat(side, 1)
        result: npt.NDArray[np.float64] = known
        return result


def attention(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Return the weights of attention of a row, (heads, Q, K), of its queries (Q, heads, d) and keys (K, key heads, d)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("ihd,jhd->hij", q.float(), k.float()) / q.shape[2] ** 0.5
    if causal:
        ahead = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    weights: Tensor = scores.softmax(2)
    return weights


def _core(reader: nn.Module) -> Core:
    core = getattr(reader, "core", None)
    assert isinstance(core, Core)
    return core


def _readers(model: nn.Module) -> list[nn.Module]:
    """Return the encoders that hold a Transformer."""
    return [
        module
        for module in model.modules()
        if isinstance(module, ForeignEncoder) or isinstance(getattr(module, "core", None), Core)
    ]


def _tells(reader: ForeignEncoder) -> bool:
    """Whether an encoder tells the attention of each token to each."""
    ids = torch.full((1, 4), reader.padding, device=next(reader.parameters()).device)
    given: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "output_attentions": True,
    }
    with torch.inference_mode(), _in_steps(reader.model):
        told = [getattr(reader.reader(**given), "attentions", None)]
        if isinstance(reader, ForeignPair):
            output = reader.model(**given, decoder_input_ids=ids, decoder_attention_mask=torch.ones_like(ids))
            told += [getattr(output, name, None) for name in _OF_DECODERS]
    # Others (of a window, of a state) have another form, which the rows of a batch could not be cut from.
    return all(found and all(one.dim() == 4 and one.shape[2:] == (4, 4) for one in found) for found in told)


def _names(reader: nn.Module) -> list[str]:
    return list(getattr(reader, "names", None) or [getattr(reader, "name", "")])


def _places(reader: nn.Module, batch: Batch) -> tuple[Ragged | None, list[int]]:
    """Return where each position comes from (in the first field's sequence, or behind it in the second's), and how many positions
    each row has; None for patches of an image."""
    names = _names(reader)
    texts = [batch[name] for name in names]
    if not all(isinstance(text, Ragged) for text in texts):
        (pixels,) = texts
        side = int(getattr(reader, "patch", 1))
        assert isinstance(pixels, Tensor)
        rows, _, height, width = pixels.shape
        return None, [(height // side) * (width // side)] * rows
    numbered: dict[str, Tensor | Ragged] = {}
    first = 0
    for name, text in zip(names, texts, strict=True):
        assert isinstance(text, Ragged)
        numbered[name] = text.like(torch.arange(first, first + len(text.values), device=text.values.device))
        first += len(text.values)
    where = numbered[names[0]]
    if isinstance(reader, LanguageEncoder):
        where, _ = reader.joined(numbered)
    assert isinstance(where, Ragged)
    return where, where.lengths.tolist()


@contextmanager
def _whole(reader: nn.Module) -> Iterator[None]:
    """Have the last layer computed for all tokens, not only for those that the heads read."""
    if not isinstance(reader, LanguageEncoder):
        yield
        return
    before, reader.keep_states = reader.keep_states, True
    try:
        yield
    finally:
        reader.keep_states = before


def _watched(reader: nn.Module) -> AbstractContextManager[Weights]:
    """Note the attention of each layer of a row to itself, within the block."""
    return _told(reader) if isinstance(reader, ForeignEncoder) else _computed(_core(reader))


@contextmanager
def _computed(core: Core) -> Iterator[Weights]:
    """Note the queries and keys of each layer of a Transformer of ours."""
    blocks = [block for block in core.layers if isinstance(block, Block)]
    with _queries([block.attention for block in blocks]) as seen:
        yield lambda span, row: [attention(q[span], k[span], core.shape.causal) for q, k in seen]


@contextmanager
def _told(reader: ForeignEncoder) -> Iterator[Weights]:
    """Have a model of transformers tell its attention, (B, heads, L, L) of each layer."""
    with _in_steps(reader.model), _asked(reader.reader, "attentions") as seen:
        yield lambda span, row: _cut(seen["attentions"], span, span, row)


@contextmanager
def _asked(model: nn.Module, *names: str) -> Iterator[dict[str, Sequence[Tensor]]]:
    """Have a module of transformers tell its attention, within the block, by the names that it has in its output."""
    seen: dict[str, Sequence[Tensor]] = {}

    def ask(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return args, {**options, "output_attentions": True}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.update({name: getattr(output, name, None) or () for name in names})

    handles = [model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(keep)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _cut(layers: Sequence[Tensor], asking: slice, asked: slice, row: int) -> list[Tensor]:
    """Return the attention of a row that lies so in the flat sequences, (heads, Q, K), of that of rectangles, (B, heads, Q', K')."""
    return [each[row, :, : asking.stop - asking.start, : asked.stop - asked.start] for each in layers]


@contextmanager
def _in_steps(model: Any) -> Iterator[None]:
    """Have a model of transformers compute attention step by step, within the block: a fused kernel has no weights to tell."""
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _decoder(
    reader: PairModel | None,
) -> Iterator[tuple[Weights, Crossing]]:
    """Note the attention of a decoder's layers to its own text, and to the one that the encoder read; of no reader, nothing."""
    if isinstance(reader, ForeignPair):
        own, other = _OF_DECODERS
        with _in_steps(reader.model), _asked(reader.model, own, other) as seen:
            yield (
                lambda span, row: _cut(seen[own], span, span, row),
                lambda asking, asked, row: _cut(seen[other], asking, asked, row),
            )
        return
    core = getattr(reader, "decoder", None)
    blocks = [block for block in core.layers if isinstance(block, Block)] if isinstance(core, Core) else []
    crossing = [block.cross for block in blocks if block.cross is not None]
    with _queries([block.attention for block in blocks]) as inner, _queries(crossing) as outer:
        yield (
            lambda span, row: [attention(q[span], k[span], True) for q, k in inner],
            lambda asking, asked, row: [attention(q[asking], k[asked], False) for q, k in outer],
        )


@contextmanager
def _queries(attentions: Sequence[Attention]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note the queries and keys of some layers, in the order of the batch."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        q, k, _, how = args
        assert isinstance(how, Plan)
        seen.append((how.leave(q), how.leave(k)))

    handles = [one.register_forward_pre_hook(hook) for one in attentions]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
