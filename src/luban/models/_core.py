"""One Transformer for every family: embeddings, blocks, and what reads vocabulary off the states.

::

    ids (T,) ──▶ Embedding ──▶ Block ──▶ ... ──▶ Block ──▶ norm ──▶ states (T, D) ──▶ Vocabulary ──▶ logits (T, V)

A batch of texts is one flat sequence with offsets (`Ragged`): dense layers see T real tokens and nothing else, and
attention sees each row by itself. What distinguishes BERT from GPT-2 from Llama is a `Shape`: where the norms stand and
which, how a position is known, whether the feed-forward part is gated, and what a token may look at. What only one family
has (a pooler, the transform before BERT's vocabulary) lives in that family's file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luban.data.ragged import Ragged
from luban.errors import DataError
from luban.models._attention import Plan, attend, plan
from luban.models._kernels import GELU, add_norm
from luban.models._layers import Activation, Dropout, activation_of
from luban.models._products import alike, product
from luban.models._settled import Parts, bare, hooked, is_settled, settled_block

__all__ = ["Block", "Core", "Projection", "Rope", "Shape", "Vocabulary", "rotate"]


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al., 2021).

    Attributes:
        base: wavelengths grow to 2π · base.
        scaling: ``none``; ``linear`` divides positions by `factor` (Chen et al., 2023); ``llama3`` divides the slow
            frequencies only, smoothly between `low` and `high` turns in `trained` positions (Llama 3, 2024).
    """

    base: float = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    trained: int = 8192

    def frequencies(self, width: int, device: torch.device | str) -> Tensor:
        """Return the angle by which a position turns each pair of a head, (width / 2,)."""
        steps = torch.arange(0, width, 2, device=device, dtype=torch.int64).float() / width
        speeds = 1.0 / (self.base**steps)
        if self.scaling == "linear":
            speeds = speeds / self.factor
        elif self.scaling == "llama3":
            turns = self.trained * speeds / (2 * math.pi)  # of each pair, over the positions seen in training
            share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
            speeds = share * speeds + (1 - share) * speeds / self.factor
        return speeds


@dataclass(frozen=True)
class Shape:
    """What distinguishes one Transformer from another.

    Attributes:
        vocabulary: tokens; 0 where vectors come in that are no tokens (patches of an image).
        layers, hidden_size, heads: the usual.
        kv_heads: heads of keys and values; fewer than `heads` is grouped-query attention (Ainslie et al., 2023).
        head_size: width of a head.
        intermediate: width inside the feed-forward part.
        causal: whether a token sees only those before it.
        cross: whether blocks also attend to another sequence (the decoder of an encoder-decoder).
        norm: layer normalisation (Ba et al., 2016), or by the root mean square alone (Zhang and Sennrich, 2019).
        norm_place: before each part (Xiong et al., 2020) or after its sum (Vaswani et al., 2017).
        first_norm, last_norm: whether the embeddings, and the states, are normalised.
        eps: added to the variance.
        positions: learned vectors, sines, rotations of queries and keys, or none.
        max_positions: how many learned vectors there are.
        position_offset: the number of the first position (2 in RoBERTa and BART, whose tables begin with padding).
        segments: learned vectors for the first and second text of a pair.
        activation, gated: ``act(up(x))``, or ``act(gate(x)) * up(x)`` (Shazeer, 2020).
        attention_bias, out_bias, feed_bias: which linear layers have one.
        norm_queries: whether queries and keys are normalised by head (Qwen3).
        embedding_scale: factor of the token vectors (the 2017 paper: the root of `hidden_size`).
        dropout, attention_dropout: of the embeddings and each part's output; of attention weights.
        recompute: whether a block's inner values are computed again for the gradient instead of kept.
    """

    vocabulary: int
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    causal: bool = False
    cross: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "post"] = "pre"
    first_norm: bool = False
    last_norm: bool = True
    eps: float = 1e-5
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = "rotary"
    max_positions: int = 512
    position_offset: int = 0
    rope: Rope = Rope()
    segments: int = 0
    activation: Activation = "gelu"
    gated: bool = False
    attention_bias: bool = True
    out_bias: bool = True
    feed_bias: bool = True
    norm_queries: bool = False
    embedding_scale: float = 1.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    recompute: bool = False

    def norm_of(self, width: int) -> nn.Module:
        """Make a normalisation."""
        return nn.LayerNorm(width, self.eps) if self.norm == "layer" else nn.RMSNorm(width, self.eps)


Turns = tuple[Tensor, Tensor]
"""Cosines and sines of each position's angles, (T, 1, head_size / 2) each."""


class Attention(nn.Module):
    """Multi-head attention of each row to itself, or to another sequence."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = shape.heads, shape.kv_heads, shape.head_size
        self.dropout = shape.attention_dropout
        width, inner = shape.hidden_size, shape.heads * shape.head_size
        kv = shape.kv_heads * shape.head_size
        # Apart, not fused: adapters and foreign checkpoints name each one, and three products of this size cost as one.
        self.q = nn.Linear(width, inner, bias=shape.attention_bias)
        self.k = nn.Linear(width, kv, bias=shape.attention_bias)
        self.v = nn.Linear(width, kv, bias=shape.attention_bias)
        self.out = nn.Linear(inner, width, bias=shape.out_bias)
        self.q_norm = shape.norm_of(shape.head_size) if shape.norm_queries else None
        self.k_norm = shape.norm_of(shape.head_size) if shape.norm_queries else None

    def queries(self, x: Tensor, turns: Turns | None) -> Tensor:
        """(T, D) to (T, heads, d)."""
        q = self.q(x).view(len(x), self.heads, self.head_size)
        q = self.q_norm(q) if self.q_norm is not None else q
        return q if turns is None else rotate(q, *turns)

    def keys_values(self, x: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor]:
        """(S, D) to keys and values, (S, kv_heads, d) each."""
        k = self.k(x).view(len(x), self.kv_heads, self.head_size)
        k = self.k_norm(k) if self.k_norm is not None else k
        v = self.v(x).view(len(x), self.kv_heads, self.head_size)
        return (k if turns is None else rotate(k, *turns)), v

    def forward(self, q: Tensor, k: Tensor, v: Tensor, how: Plan) -> Tensor:
        """(T, heads, d) and (S, kv_heads, d) to (T, D)."""
        result: Tensor = self.out(attend(q, k, v, how, self.dropout if self.training else 0.0))
        return result

    def can_glance(self, how: Plan, turns: Turns | None) -> bool:
        """Return whether `glance` says what `forward` does, in half the multiplications or fewer: where few places ask, and keys
        and values are linear in what is read. It is for weights that stay as they are: those that learn want gradients of their
        own, and a model's outputs should not depend on which of its weights do, not even in their last bits."""
        # A GPU's kernels for half precision take no head as wide as the tokens, nor, under autocast, queries in another type than
        # the tokens.
        if not is_settled() or how.keys.device.type != "cpu":
            return False
        learns = torch.is_grad_enabled() and any(
            p.requires_grad for p in (*self.k.parameters(), *self.v.parameters())
        )
        plain = bare(self.k, self.v) and not hooked(self) and self.k_norm is None and turns is None
        few = 2 * how.pairs * self.heads <= int(how.keys[-1]) * self.kv_heads * self.head_size
        return plain and few and not learns and not (self.training and self.dropout)

    def glance(self, q: Tensor, x: Tensor, how: Plan) -> Tensor:
        """Attend from few places, (M, heads, d), to vectors (S, D) as they are, without their keys and values; to (M, D).

        Of a score ``q · (K x + b) = (Kᵀ q) · x + q · b`` the last part is the same for all x, so that no softmax sees it; and
        ``Σ a (V x + c) = V (Σ a x) + c``, since weights a add up to one. So all heads of a place are queries of a single head.
        """
        groups, shared = self.kv_heads, self.heads // self.kv_heads
        width, places = x.shape[1], len(q)
        keys, values = (part.weight.view(groups, self.head_size, width) for part in (self.k, self.v))
        asked = (
            q.view(places, groups, shared, self.head_size).transpose(0, 1).flatten(1, 2) @ keys
        )  # (groups, M · shared, D)
        asked = (
            asked.view(groups, places, shared, width).transpose(0, 1).reshape(-1, 1, width)
        )  # (M · heads, 1, D)
        rows = plan(Ragged(asked, how.queries * self.heads), keys=Ragged(x, how.keys))
        mixed = attend(asked, x[:, None], x[:, None], rows, scale=self.head_size**-0.5)  # (M · heads, D)
        mixed = mixed.view(places, groups, shared, width).transpose(0, 1).flatten(1, 2) @ values.transpose(
            1, 2
        )
        seen = mixed.view(groups, places, shared, self.head_size).transpose(0, 1).flatten(1)
        if self.v.bias is not None:
            seen = seen + self.v.bias.view(groups, 1, -1).expand(-1, shared, -1).flatten()
        result: Tensor = self.out(seen)
        return result


class FeedForward(nn.Module):
    """Two linear layers with an activation between, or three with a gate."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.hidden_size, shape.intermediate, bias=shape.feed_bias)
        self.gate = (
            nn.Linear(shape.hidden_size, shape.intermediate, bias=shape.feed_bias) if shape.gated else None
        )
        self.down = nn.Linear(shape.intermediate, shape.hidden_size, bias=shape.feed_bias)
        self.activation = GELU() if shape.activation == "gelu" else activation_of(shape.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        inside = self.up(x) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        result: Tensor = self.down(self.activation(inside) if self.gate is None else inside)
        return result


@dataclass
class Step:
    """What all blocks of one pass share.

    Attributes:
        how: plan of the attention of a row to itself; the cache's own where there is one (`luban.models._cache.Reach`).
        turns: of the positions, where they are rotary.
        memory: states of the other sequence, (S, D), and the plan of the attention to it.
        cache: keys and values of earlier tokens, by layer.
    """

    how: Any
    turns: Turns | None = None
    memory: tuple[Tensor, Plan] | None = None
    cache: Any = None


class Block(nn.Module):
    """Attention (to itself, then to another sequence if there is one) and feed-forward, with residuals and norms."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.pre = shape.norm_place == "pre"
        self.attention = Attention(shape)
        self.attention_norm = shape.norm_of(shape.hidden_size)
        self.cross = Attention(shape) if shape.cross else None
        self.cross_norm = shape.norm_of(shape.hidden_size) if shape.cross else None
        self.feed = FeedForward(shape)
        self.feed_norm = shape.norm_of(shape.hidden_size)
        self.dropout = Dropout(shape.dropout)

    def forward(self, x: Tensor, step: Step, layer: int, read: tuple[Tensor, Any] | None = None) -> Tensor:
        """(T, D) to (T, D), or to (M, D) where only the places `read` are wanted: the others are keys and values only."""
        if read is None and (whole := self._settled(x, step)) is not None:
            return whole
        source = self.attention_norm(x) if self.pre else x
        asking, turns, how = source, step.turns, step.how
        if read is not None:
            places, how = read
            x, asking = x.index_select(0, places), source.index_select(0, places)
            turns = (
                None
                if turns is None
                else (turns[0].index_select(0, places), turns[1].index_select(0, places))
            )
        q = self.attention.queries(asking, turns)
        if step.cache is not None:
            k, v = self.attention.keys_values(source, step.turns)
            seen = self.attention.out(step.cache.attend(layer, q, k, v, how))
        elif read is not None and self.attention.can_glance(how, turns):
            seen = self.attention.glance(q, source, how)
        else:
            seen = self.attention(q, *self.attention.keys_values(source, step.turns), how)
        x = self._add(x, seen, self.attention_norm)
        if self.cross is not None and self.cross_norm is not None and step.memory is not None:
            source = self.cross_norm(x) if self.pre else x
            memory, how = step.memory
            q = self.cross.queries(source, None)
            if step.cache is None:
                seen = self.cross(q, *self.cross.keys_values(memory, None), how)
            else:
                seen = self.cross(q, *step.cache.memory(layer, self.cross, memory), how)
            x = self._add(x, seen, self.cross_norm)
        return self._add(x, self.feed(self.feed_norm(x) if self.pre else x), self.feed_norm)

    def _settled(self, x: Tensor, step: Step) -> Tensor | None:
        """Return what a block is on weights that stay as they are (`luban.models._settled`), where it is of the kind that can."""
        attention, feed = self.attention, self.feed
        alone = step.cache is None and step.memory is None and step.turns is None and not self.training
        if (
            self.pre
            or not alone
            or feed.gate is not None
            or type(feed.activation) is not GELU
            or attention.k_norm is not None
        ):
            return None
        linear = attention.q, attention.k, attention.v, attention.out, feed.up, feed.down
        parts = Parts(attention.heads, attention.head_size, *linear, self.attention_norm, self.feed_norm)
        found = settled_block(self, parts, x)
        how: Plan = step.how
        return None if found is None else found(x, how.native(attention.head_size**-0.5))

    def _add(self, x: Tensor, part: Tensor, norm: nn.Module) -> Tensor:
        """Add a part to the stream; after-norm normalises the sum."""
        if self.pre:
            return torch.add(x, self.dropout(part))
        if isinstance(norm, nn.LayerNorm):
            rate = self.dropout.p if self.training else 0.0
            return add_norm(x, part, norm.weight, norm.bias, norm.eps, rate)
        summed: Tensor = norm(x + self.dropout(part))
        return summed


class Embedding(nn.Module):
    """Tokens as vectors, with what says where they stand."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.hidden_size
        self.tokens = nn.Embedding(shape.vocabulary, width) if shape.vocabulary else None
        learned = shape.positions == "learned"
        self.positions = nn.Embedding(shape.max_positions + shape.position_offset, width) if learned else None
        self.segments = nn.Embedding(shape.segments, width) if shape.segments else None
        self.norm = shape.norm_of(width) if shape.first_norm else None
        self.dropout = Dropout(shape.dropout)

    def forward(self, inputs: Tensor, where: Tensor, segments: Tensor | None = None) -> Tensor:
        """Ids (T,), or vectors (T, D) in their stead, and positions (T,) to (T, D)."""
        x = inputs if inputs.is_floating_point() or self.tokens is None else self.tokens(inputs)
        if self.shape.embedding_scale != 1.0:
            x = x * self.shape.embedding_scale
        if self.positions is not None:
            x = x + self.positions(where + self.shape.position_offset)
        elif self.shape.positions == "sinusoidal":
            x = x + sinusoids(where, self.shape.hidden_size)
        if self.segments is not None:
            # A single text is all first segment: a row of the table, added without a look-up.
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        if self.norm is not None:
            x = self.norm(x)
        result: Tensor = self.dropout(x)
        return result


class Core(nn.Module):
    """Embeddings and blocks.

    Args:
        shape: what it looks like.
        tokens: another core's token vectors, to share.
    """

    def __init__(self, shape: Shape, tokens: nn.Embedding | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = Embedding(shape)
        if tokens is not None:
            self.embedding.tokens = tokens
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = shape.norm_of(shape.hidden_size) if shape.last_norm else None

    def reset(self, std: float = 0.02) -> None:
        """Draw weights as BERT and GPT-2 do: N(0, std²), biases zero; what adds to the stream starts smaller before norms
        (Radford et al., 2019)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.shape.norm_place == "pre":
            for block in self.layers:
                assert isinstance(block, Block)
                crossing = [] if block.cross is None else [block.cross.out]
                for out in (block.attention.out, *crossing, block.feed.down):
                    parts = (2 + len(crossing)) * self.shape.layers
                    nn.init.normal_(out.weight, std=std / math.sqrt(parts))

    def forward(
        self,
        inputs: Ragged,
        segments: Tensor | None = None,
        *,
        read: Tensor | None = None,
        memory: Ragged | None = None,
        readers: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return the states of all tokens, (T, D), or of the places `read`, (M, D).

        Args:
            inputs: ids (T,), or vectors (T, D) in their stead.
            segments: 0 or 1 for each token, (T,); all 0 by default.
            read: places in the flat sequence, rising, (M,): the last block is computed for these alone.
            memory: states of the other sequence, (S, D), row by row.
            readers: where rows share a row of the memory, as beams do: which rows each of its M rows is read by, as offsets,
                (M + 1,). By default each row has one of its own.
            cache: keys and values of earlier tokens (`luban.models._cache.Cache`); extended by these.
        """
        self._refuse_longer(inputs, cache)
        how: Any  # a Plan, or the cache's own
        if cache is None:
            # Beside another sequence the order of the batch is kept, so that both sides of a row stay together.
            keys = None if memory is None else inputs
            where, how = inputs.positions, plan(inputs, keys=keys, causal=self.shape.causal)
        else:
            how = cache.plan(inputs, causal=self.shape.causal)
            where = how.positions
        x = self.embedding(inputs.values, where, segments)
        if cache is None:
            x, where = how.enter(x), how.enter(where)
        step = Step(how, self.turns(where, x), cache=cache)
        if memory is not None:
            asking = inputs if readers is None else Ragged(inputs.values, inputs.offsets[readers])
            step.memory = (memory.values, plan(asking, keys=memory))
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            new = cache is None or how.fresh
            if i == last and read is not None and new and (short := self._short(inputs, read)):
                # The last block needs queries only where somebody reads; keys and values come from everywhere.
                if cache is None:
                    x = how.leave(x)
                    if step.turns is not None:
                        # A step of its own: the blocks before this one look theirs up again where they are recomputed.
                        step = replace(step, turns=(how.leave(step.turns[0]), how.leave(step.turns[1])))
                x = self._run(block, x, step, i, (read, short if cache is None else how.reading(short)))
                break
            x = self._run(block, x, step, i, None)
        else:
            x = how.leave(x) if cache is None else x
            x = x if read is None else x.index_select(0, read)
        if cache is not None:
            cache.advance(inputs.lengths)
        if self.norm is not None:
            x = self.norm(x)
        result: Tensor = x
        return result

    def turns(self, where: Tensor, x: Tensor) -> Turns | None:
        """Return by how much positions (T,) turn queries and keys, as `x` is typed; None where they do not."""
        if self.shape.positions != "rotary":
            return None
        angles = where[:, None].float() * self.shape.rope.frequencies(self.shape.head_size, x.device)
        return angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)

    def _run(
        self, block: nn.Module, x: Tensor, step: Step, layer: int, read: tuple[Tensor, Any] | None
    ) -> Tensor:
        if self.shape.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, step, layer, read, use_reentrant=False, context_fn=alike)  # type: ignore[no-any-return]
        return block(x, step, layer, read)  # type: ignore[no-any-return]

    def _short(self, inputs: Ragged, read: Tensor) -> Plan | None:
        """Return the plan of the places read, as queries, to all tokens; None where it saves nothing or cannot be said."""
        if self.shape.cross or 2 * len(read) > len(inputs.values):
            return None
        rows = inputs.rows.index_select(0, read)
        lengths = torch.bincount(rows, minlength=len(inputs))
        if self.shape.causal:
            # Queries are aligned to the end of their row, so only a row's last token can be read alone.
            ends = inputs.offsets[1:] - 1
            if len(read) != len(inputs) or not torch.equal(read, ends):
                return None
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        return plan(Ragged(read, offsets), keys=inputs, causal=self.shape.causal)

    def _refuse_longer(self, inputs: Ragged, cache: Any) -> None:
        if self.shape.positions != "learned" or not len(inputs):
            return
        lengths = inputs.lengths if cache is None else inputs.lengths + cache.lengths
        longest = int(lengths.max())
        if longest > self.shape.max_positions:
            raise DataError(
                f"a text has {longest} tokens, and the model has vectors for {self.shape.max_positions} positions: "
                "set max_length of the text in data.inputs, or raise model.max_positions"
            )


# --- vocabulary -------------------------------------------------------------------------------------------

LOGITS = 2**24
"""Logits made at a time where they are not kept: 64 MiB of float32."""


@dataclass
class Projection:
    """States on their way to the vocabulary: logits are made only as far as somebody needs them.

    The logits of a batch over a large vocabulary are by far its largest tensor, so losses are taken chunk by chunk.

    Attributes:
        states: (M, D).
        weight, bias: (V, D), and (V,) or None.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def logits(self) -> Tensor:
        """Return all logits, (M, V), in float32."""
        return F.linear(self.states, self.weight, self.bias).float()

    def total(self, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross entropy summed over the states, a scalar, given the true tokens (M,)."""
        large = len(labels) * len(self.weight) > LOGITS and not label_smoothing
        if large and torch.is_grad_enabled():
            if self.states.device.type == "cpu" and not torch._C._are_functorch_transforms_active():
                total: Tensor = _Total.apply(self.states, self.weight, self.bias, labels)  # type: ignore[no-untyped-call]
                return total
            if hasattr(F, "linear_cross_entropy"):  # makes all logits at once where labels are smoothed
                result: Tensor = F.linear_cross_entropy(
                    self.states,
                    self.weight,
                    labels,
                    linear_bias=self.bias,
                    reduction="sum",
                    options=torch.nn.LinearCrossEntropyOptions(),
                )
                return result
        return self.losses(labels, label_smoothing).sum()

    def losses(self, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross entropy of each state, (M,), given the true tokens (M,)."""
        rows = max(1, LOGITS // len(self.weight))
        if len(labels) <= rows:
            return _losses(self.states, self.weight, self.bias, labels, label_smoothing)
        chunks = zip(self.states.split(rows), labels.split(rows), strict=True)
        if not torch.is_grad_enabled():
            parts = [_losses(x, self.weight, self.bias, y, label_smoothing) for x, y in chunks]
        else:  # logits are made again for the gradient
            parts = [
                checkpoint(
                    _losses,
                    x,
                    self.weight,
                    self.bias,
                    y,
                    label_smoothing,
                    use_reentrant=False,
                    context_fn=alike,
                )
                for x, y in chunks
            ]
        return torch.cat(parts)


def _losses(
    states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, label_smoothing: float
) -> Tensor:
    logits = F.linear(states, weight, bias).float()
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


class _Total(torch.autograd.Function):
    """The summed cross entropy over a large vocabulary, whose gradients are made together with it, chunk by chunk.

    Logits are made once and never kept: three products, as with logits that are kept, where making them again takes four.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        of_states, of_weight, of_bias = ctx.needs_input_grad[:3]
        half = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if half else states.dtype
        rows = max(1, LOGITS // len(weight))
        with torch.autocast("cpu", enabled=False):
            matrix = weight.detach().to(dtype)
            d_states = torch.empty_like(states) if of_states else None
            d_weight = torch.zeros_like(weight) if of_weight else None
            d_bias = torch.zeros_like(bias) if of_bias and bias is not None else None
            total = states.new_zeros((), dtype=torch.float32)
            places = zip(states.detach().to(dtype).split(rows), labels.split(rows), strict=True)
            for i, (x, y) in enumerate(places):
                logits = product(x, matrix).float()
                logits = logits if bias is None else logits.add_(bias)
                truth = logits.gather(1, y[:, None])
                top = logits.amax(1, keepdim=True)
                d_logits = logits.softmax(1)
                # The likeliest token has 1 / Σ exp(logit - top).
                total += (top - truth - d_logits.amax(1, keepdim=True).log()).sum()
                d_logits.scatter_add_(1, y[:, None], d_logits.new_full((len(y), 1), -1.0))
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                d_logits = d_logits.to(dtype)
                if d_states is not None:
                    d_states[i * rows : (i + 1) * rows] = product(d_logits, matrix.T)
                if d_weight is not None:
                    d_weight += product(d_logits.T, x.T)
        ctx.save_for_backward(d_states, d_weight, d_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = (None if part is None else part * gradient for part in ctx.saved_tensors)
        return *parts, None


class Vocabulary(nn.Module):
    """What turns states into logits over the tokens.

    Args:
        shape: of the core.
        tokens: the core's token vectors, whose weight is used (tied, Press and Wolf, 2017), or None for a weight of its own.
        transform: whether a dense layer, the activation and a norm come first (BERT).
        bias: whether each token has a bias.
    """

    def __init__(
        self, shape: Shape, tokens: nn.Embedding | None, *, transform: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        width = shape.hidden_size
        self.transform = (
            nn.Sequential(
                nn.Linear(width, width), activation_of(shape.activation), nn.LayerNorm(width, shape.eps)
            )
            if transform
            else None
        )
        self.weight = nn.Parameter(torch.empty(shape.vocabulary, width)) if tokens is None else None
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary)) if bias else None
        # In a list, so that a tied weight has one name only and is saved once.
        self._tied = [] if tokens is None else [tokens]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.weight is not None:
            nn.init.normal_(self.weight, std=0.02)

    @property
    def matrix(self) -> Tensor:
        """What states are multiplied by, (V, D), tied or not."""
        return self.weight if self.weight is not None else self._tied[0].weight

    def forward(self, states: Tensor) -> Projection:
        """(M, D) to logits yet to be made."""
        return Projection(
            states if self.transform is None else self.transform(states), self.matrix, self.bias
        )


# --- positions --------------------------------------------------------------------------------------------


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the vectors of Vaswani et al. (2017), (T, width): first all sines, then all cosines."""
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None] * torch.exp(steps * (-math.log(10_000.0) / width))
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :width]


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (i, i + d/2) of (T, heads, d) by its position's angle (Su et al., 2021)."""
    left, right = x.chunk(2, 2)
    return torch.cat([left * cosines - right * sines, right * cosines + left * sines], 2)
