"""Where gradients attach, from outside: at the numbers of a batch, or, for what is only a number of something (a token, a category),
at the vector that a module looks up for it.

::

    price.value ──────────────────────▶ ┐
    photo.pixels ─────────────────────▶ ├─▶ the model ──▶ score
    review.ids ──▶ table ──▶ vectors ─▶ ┘
                             ▲
                             └── a hook puts other vectors here, and asks for their gradient

A layer knows nothing of this. Which look-up belongs to which column is told by the numbers that it looks up, so it works for flat
sequences, for rectangles, for pairs of texts that are read as one, and for bags of n-grams alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.data.batch import Batch, rows_in
from luban.data.contracts import Spec
from luban.data.ragged import Ragged
from luban.explaining._case import form_of
from luban.models._encoders import OneHot
from luban.models._foreign import ForeignEncoder
from luban.models._language import LanguageEncoder
from luban.models.fasttext import NGrams

__all__ = ["Change", "Probe", "Site", "frozen"]


@dataclass(eq=False)
class Site:
    """One place where a gradient attaches, in one pass.

    Attributes:
        name: the field (``review.ids``); of a pair read as one, the first.
        form: as `luban.explaining._case.form_of` has it.
        actual: what the model itself has there, (N, ...).
        rows: the row of the batch that each belongs to, (N,).
        collect: turns contributions, shaped as `actual`, into field → (T,) for what is ragged, (B, ...) for what is not.
        ids: numbers that were looked up, (N,); None for what is a number itself.
        table: what they were looked up in, (V, D).
        values: what the model got instead, and what the gradient is of, shaped as `actual`.
    """

    name: str
    form: str
    actual: Tensor
    rows: Tensor
    collect: Callable[[Tensor], dict[str, Tensor]]
    ids: Tensor | None = None
    table: Tensor | None = None
    values: Tensor = field(default_factory=lambda: torch.empty(0))


Change = Callable[[Site], Tensor]
"""Says what the model gets at a site, shaped as `actual`."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let gradients pass through a model, and none reach its parameters; afterwards it is as it was.

    It is in evaluation mode inside. PyTorch's recurrent layers then have no backward pass on a GPU but the plain one.
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            model.eval()
            yield
    finally:
        model.train(training)
        for parameter in wanted:
            parameter.requires_grad_(True)


class Probe:
    """Attaches to the inputs of a model.

    Args:
        model: the module.
        spec: fields of a batch.
    """

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        self.model = model
        self.fields = {name: one for name, one in spec.fields.items() if one.role == "input"}
        kinds = nn.Embedding | nn.EmbeddingBag | OneHot
        self.tables = [module for module in model.modules() if isinstance(module, kinds)]
        self.pairs = [m for m in model.modules() if isinstance(m, LanguageEncoder) and len(m.names) > 1]
        self.bags = {m.embedding: m for m in model.modules() if isinstance(m, NGrams)}

    def missing(self, batch: Batch) -> list[str]:
        """Return the columns at which no gradient can attach, as one pass over a batch shows.

        An architecture that reads texts of one length together looks up some rows of a batch of several lengths at a time, so there no
        gradient attaches.
        """
        with frozen(self.model), self.attached(batch, lambda site: site.actual) as (changed, sites):
            self.model(changed)
        found = {name for site in sites for name in site.collect(torch.zeros_like(site.actual))}
        # Of texts without a token nothing is looked up, nor would anything be attributed.
        found |= {
            name for name, value in batch.items() if isinstance(value, Ragged) and not len(value.values)
        }
        for part in self.model.modules():
            if isinstance(part, ForeignEncoder) and not part.looks_up_once:
                found -= {*part.names}
        return list(dict.fromkeys(one.column for name, one in self.fields.items() if name not in found))

    @contextmanager
    def attached(self, batch: Batch, change: Change) -> Iterator[tuple[Batch, list[Site]]]:
        """Give the model what `change` says, within the block.

        Yields:
            The batch to hand to the model, and the sites, which are complete once the model has read it.
        """
        sites: list[Site] = []
        changed: Batch = dict(batch)
        pending: list[str] = []
        rows = torch.arange(rows_in(batch))
        for name, one in self.fields.items():
            if name not in batch:
                continue
            value = batch[name]
            if form_of(one) in ("tokens", "set", "category"):
                pending.append(name)
                continue
            assert isinstance(value, Tensor)
            site = Site(name, form_of(one), value.float(), rows.to(value.device), _whole(name))
            changed[name] = self._enter(site, change, sites)
        joint = self._joint(batch)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(module, OneHot):
                hot = output[0]
                site = Site(module.names[0], "category", hot, rows.to(hot.device), _one_hot(module))
                for name in module.names:
                    pending.remove(name)
                return self._enter(site, change, sites), None
            if isinstance(module, nn.EmbeddingBag):
                return self._bag(module, args, batch, pending, change, sites)
            assert isinstance(module, nn.Embedding)
            made = self._looked_up(module, args[0], output, batch, pending, joint)
            if made is None:
                return None
            site, shape = made
            return self._enter(site, change, sites).view(shape)

        handles = [module.register_forward_hook(hook) for module in self.tables]
        try:
            yield changed, sites
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, site: Site, change: Change, sites: list[Site]) -> Tensor:
        site.actual = site.actual.detach()
        site.values = change(site).detach().requires_grad_()
        sites.append(site)
        return site.values

    # --- look-ups --------------------------------------------------------------------------------------------

    def _joint(self, batch: Batch) -> list[tuple[list[str], Tensor, Ragged]]:
        """Return, of each pair of texts that is read as one, its fields, the numbers as they are read, and where each stands:
        its place in the first field's sequence, or behind that in the second's."""
        result = []
        for encoder in self.pairs:
            names = encoder.names
            texts = [_ragged(batch, name) for name in names]
            first = len(texts[0].values)
            places = [text.like(_count(text.values)) for text in texts]
            places[1] = places[1].like(places[1].values + first)
            # The same code that joins tokens joins their places.
            where, _ = encoder.joined(dict(zip(names, places, strict=True)))
            ids, _ = encoder.joined(batch)
            result.append((list(names), ids.values, where))
        return result

    def _looked_up(
        self,
        module: nn.Embedding,
        ids: Tensor,
        output: Tensor,
        batch: Batch,
        pending: list[str],
        joint: list[tuple[list[str], Tensor, Ragged]],
    ) -> tuple[Site, torch.Size] | None:
        """Return the site of a look-up, and the shape of what it gives; None if no column is looked up here."""
        table, shape = module.weight, output.shape
        flat = output.flatten(0, -2)
        for names, numbers, where in joint:
            if names[0] in pending and _same(ids, numbers):
                for name in names:
                    pending.remove(name)
                lengths = [len(_ragged(batch, name).values) for name in names]
                collect = _scattered(names, lengths, where.values)
                return Site(names[0], "tokens", flat, where.rows, collect, ids, table), shape
        for name in pending:
            value = batch[name]
            if isinstance(value, Tensor):
                if _same(ids, value):
                    pending.remove(name)
                    return Site(name, "category", flat, _count(value), _summed(name), ids, table), shape
                continue
            total = [len(value.values)]
            if _same(ids, value.values):
                pending.remove(name)
                collect = _scattered([name], total, _count(ids))
                return Site(name, form_of(self.fields[name]), flat, value.rows, collect, ids, table), shape
            if ids.dim() == 2 and len(ids) == len(value) and (taken := _taken(ids, value)) is not None:
                pending.remove(name)
                places = torch.full_like(ids, -1)
                places[taken] = _count(value.values)
                rows = _count(ids[:, 0])[:, None].expand_as(ids).flatten()
                collect = _scattered([name], total, places.flatten())
                return Site(name, "tokens", flat, rows, collect, ids.flatten(), table), shape
        return None

    def _bag(
        self,
        module: nn.EmbeddingBag,
        args: tuple[Any, ...],
        batch: Batch,
        pending: list[str],
        change: Change,
        sites: list[Site],
    ) -> Tensor | None:
        """Return the mean or sum of vectors that `change` may change one by one; None if no column is looked up here."""
        indices, offsets = args[:2]
        owner = self.bags.get(module)
        name = next(
            (
                name
                for name in pending
                if (owner is not None and owner.name == name)
                or (isinstance(value := batch[name], Ragged) and _same(indices, value.values))
            ),
            None,
        )
        if name is None or module.mode == "max":
            return None
        pending.remove(name)
        ids = _ragged(batch, name)
        bags = Ragged(indices, offsets)
        if owner is None:
            collect = _scattered([name], [len(ids.values)], _count(indices))
        else:
            collect = _of_ngrams(name, owner, ids, bags)
        vectors = F.embedding(indices, module.weight)
        site = Site(
            name, "set" if owner is None else "ngrams", vectors, bags.rows, collect, indices, module.weight
        )
        values = self._enter(site, change, sites)
        if module.padding_idx is not None:
            values = values * (indices != module.padding_idx)[:, None]
        total = bags.like(values).sum()
        if module.mode == "sum":
            return total
        counted = (
            torch.ones_like(indices) if module.padding_idx is None else (indices != module.padding_idx).long()
        )
        return total / bags.like(counted[:, None]).sum().clamp(min=1).to(total.dtype)


def _ragged(batch: Batch, name: str) -> Ragged:
    value = batch[name]
    assert isinstance(value, Ragged), f"'{name}' is not ragged"
    return value


def _count(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of numbers hold the same; the very same one is told without looking."""
    if a.shape != b.shape:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def _taken(ids: Tensor, value: Ragged) -> Tensor | None:
    """Return where the rows of a ragged field lie in a rectangle, (B, L), beginning at the left; None if they do not."""
    longest = int(value.lengths.max()) if len(value) else 0
    if ids.shape[1] < longest or not longest:
        return None
    taken = torch.arange(ids.shape[1], device=ids.device) < value.lengths[:, None]
    return taken if torch.equal(ids[taken], value.values) else None


# --- what contributions come to ---------------------------------------------------------------------------


def _whole(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
    return lambda x: {name: x}


def _summed(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """Of vectors (B, D), one number a row."""
    return lambda x: {name: x.sum(-1)}


def _scattered(names: list[str], lengths: list[int], places: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
    """Of vectors (N, D) that stand at `places` in the sequences of some fields, which follow one another, one number a place.

    A place of -1 is none; what stands at two places in the model (the separator of a pair) adds up.
    """

    def collect(x: Tensor) -> dict[str, Tensor]:
        each = x.sum(-1)
        kept = places >= 0
        total = each.new_zeros(sum(lengths)).index_add(0, places[kept], each[kept])
        return dict(zip(names, total.split(lengths), strict=True))

    return collect


def _one_hot(module: OneHot) -> Callable[[Tensor], dict[str, Tensor]]:
    """Of one-hot vectors side by side, (B, width), one number a row and field."""
    ends = [*module.offsets.tolist(), module.width]
    sizes = [b - a for a, b in pairwise(ends)]
    return lambda x: {name: part.sum(1) for name, part in zip(module.names, x.split(sizes, 1), strict=True)}


def _of_ngrams(name: str, owner: NGrams, ids: Ragged, bags: Ragged) -> Callable[[Tensor], dict[str, Tensor]]:
    """Of the vectors of n-grams, one number a token: an n-gram's goes to its tokens in equal parts.

    An n-gram that a text repeats may have been counted once: all its places then share.
    """
    own = owner.indices(ids)  # (T, n)
    none = owner.size + owner.buckets
    keys = (ids.rows[:, None] * (none + 1) + own).flatten()
    known, inverse, counts = keys.unique(return_inverse=True, return_counts=True)
    found = torch.searchsorted(known, bags.rows * (none + 1) + bags.values).clamp(max=max(0, len(known) - 1))
    real = (own != none).flatten()

    def collect(x: Tensor) -> dict[str, Tensor]:
        each = x.sum(-1) * (bags.values != none)
        totals = each.new_zeros(len(known)).index_add(0, found, each)
        shares = ((totals / counts)[inverse] * real).view(own.shape)  # (T, n): of the n-gram that begins here
        result = each.new_zeros(len(own))
        for n in range(1, own.shape[1] + 1):
            part = shares[:, n - 1] / n
            for step in range(min(n, len(own))):
                # Where fewer tokens are left there is no n-gram, and its share is zero.
                result[step:] += part[: len(own) - step]
        return {name: result}

    return collect
