"""Attention rollout: how far each token is reached from where the model reads its answer, through all layers of attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from luban.models._attention import Plan
from luban.models._core import Attention, Block, Core
from luban.models._language import LanguageEncoder
from luban.registry import register

__all__ = ["AttentionRollout"]

BUDGET = 2048


@register("explainers")
class AttentionRollout(Explainer):
    """The product over layers of ``(1 - r) · attention + r · identity``, read off where the model pools its states.

    Attention is computed again from the queries and keys of each layer. For Luban's own Transformers, over texts and patches of
    images; of a causal one nobody looks ahead.

    Example:
        >>> AttentionRollout(heads="max").residual
        0.5
    """

    paper: ClassVar[str] = "Abnar and Zuidema, 2020, 'Quantifying Attention Flow in Transformers'"
    limits: ClassVar[str] = (
        "it shows where information could flow, for every class alike, and cannot tell what speaks for a class from what speaks against it"
    )
    of_written: ClassVar[bool] = True
    attributes: ClassVar[bool] = False

    heads: Literal["mean", "max", "min"] = "mean"
    """How the heads of a layer become one."""
    residual: Annotated[float, Option(ge=0, lt=1)] = 0.5
    """Part of a state that goes on past the attention."""

    def refusal(self, case: Case) -> str | None:
        if not _readers(case.predictor.model):
            return "it needs the attention of a Transformer of Luban's own"
        if case.predictor.writer is not None and case.writes:
            return (
                "the model reads one text and writes another, and attention between the two is not followed"
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
            for rows, _, _ in runs(costs(case.encoded, len(case)), 1, BUDGET):
                batch = to_batch(take_rows(case.encoded, rows), case.predictor.spec, case.predictor.device)
                for reader in _readers(case.predictor.model):
                    names = _names(reader)
                    read |= {*names}
                    with _whole(reader), _queries(reader) as seen:
                        if case.target:
                            scores[rows] = case.score(batch, case.chosen[rows]).double().cpu().numpy()
                        else:
                            case.predictor.model(batch)
                    self._add(values, case, batch, rows, reader, seen)
        kept = {name: value for name, value in values.items() if name in read}
        return case.explanations(self.type, scores.tolist(), parts_of(case, kept))

    def _add(
        self,
        values: dict[str, npt.NDArray[np.float64] | Flat],
        case: Case,
        batch: Batch,
        rows: npt.NDArray[np.int64],
        reader: nn.Module,
        seen: list[tuple[Tensor, Tensor]],
    ) -> None:
        """Add what some rows came to."""
        names = _names(reader)
        places, lengths = _places(reader, batch)
        ends = np.cumsum(lengths)
        # A token that is written is read off the last one before it.
        pool = "last" if case.writes else str(getattr(reader, "pool", "mean"))
        for i, (row, end, length) in enumerate(zip(rows, ends, lengths, strict=True)):
            if not length:
                continue
            span = slice(int(end - length), int(end))
            flow = self._flow([(q[span], k[span]) for q, k in seen], _core(reader).shape.causal)
            reach = flow[0] if pool in ("first", "pooler") else flow[-1] if pool == "last" else flow.mean(0)
            numbers = reach.double().cpu().numpy()
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

    def _flow(self, layers: list[tuple[Tensor, Tensor]], causal: bool) -> Tensor:
        """Return how far each place of a row is reached from each, (L, L), of the queries and keys of all layers."""
        length = len(layers[0][0])
        identity = torch.eye(length, dtype=torch.float64)
        flow = identity
        for q, k in layers:
            weights = attention(q, k, causal).double().cpu()
            if self.heads == "mean":
                one = weights.mean(0)
            else:
                one = weights.amax(0) if self.heads == "max" else weights.amin(0)
                one = one / one.sum(1, keepdim=True).clamp(min=1e-12)
            flow = ((1 - self.residual) * one + self.residual * identity) @ flow
        return flow

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
    """Return the weights of attention of a row, (heads, L, L), of its queries (L, heads, d) and keys (L, key heads, d)."""
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
    return [module for module in model.modules() if isinstance(getattr(module, "core", None), Core)]


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


@contextmanager
def _queries(reader: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note the queries and keys of each layer's attention of a row to itself, in the order of the batch."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        q, k, _, how = args
        assert isinstance(how, Plan)
        seen.append((how.leave(q), how.leave(k)))

    blocks = [block for block in _core(reader).layers if isinstance(block, Block)]
    attentions: list[Attention] = [block.attention for block in blocks]
    handles = [one.register_forward_pre_hook(hook) for one in attentions]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
