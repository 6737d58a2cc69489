"""Classification without training: how probable a language model finds each candidate answer behind a prompt.

With no worked example in the prompt this is zero-shot classification, with some it is few-shot (Brown et al., 2020).

::

    prompts  ──▶ what all have in common ──▶ the rest of each ──▶ each candidate     log-probability
                 read once                   read once            read once a prompt
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from luban.errors import DataError
from luban.generation.reader import Reader

__all__ = ["demonstrated", "score"]

_TOKENS = 2**16
"""Cached tokens at a time: what bounds the memory of candidates, each of which continues a copy of its prompt."""


@torch.inference_mode()
def score(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    how: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Return the log-probability of each candidate behind each prompt, (prompts, candidates), float32.

    Args:
        module: a network with one causal language model.
        prompts: tokens of each, at least one.
        candidates: tokens of each answer, at least one, as they follow a prompt (with the space before them, if there is one).
        how: ``sum`` is the log-probability of the whole answer; ``mean`` divides by its tokens, so that long ones have a chance.

    Raises:
        DataError: if a prompt or a candidate is empty, or longer than the model can read.
        RecipeError: if the model is not causal, or has no way to tokens.

    Example:
        >>> score(module, [[5, 8, 2]], [[7], [9, 4]]).softmax(1)      # doctest: +SKIP
        tensor([[0.8, 0.2]])
    """
    for name, texts in (("prompt", prompts), ("candidate", candidates)):
        for i, text in enumerate(texts):
            if not len(text):
                raise DataError(f"{name} {i} has no token")
    if not prompts or not candidates:
        return torch.empty(len(prompts), len(candidates))
    was_training = module.training
    module.eval()
    try:
        longest = max(map(len, prompts)) + max(map(len, candidates))
        shared = _shared(prompts)
        common = Reader(module, 1, longest)
        if shared:
            common.read([prompts[0][:shared]])
        copies = max(1, _TOKENS // (longest * len(candidates)))
        parts = []
        for first in range(0, len(prompts), copies):
            some = prompts[first : first + copies]
            reader = common.fork([0] * len(some))
            parts.append(_sums(reader, [prompt[shared:] for prompt in some], candidates))
    finally:
        module.train(was_training)
    sums = torch.cat(parts)
    lengths = torch.tensor([len(candidate) for candidate in candidates])
    return sums / lengths if how == "mean" else sums


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with; each keeps one of its own, and a single one has none to share."""
    if len(prompts) == 1:
        return 0
    # What the least and the greatest begin with, all between them do too.
    first, last = min(prompts, key=list), max(prompts, key=list)
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(len(list(equal)), min(map(len, prompts)) - 1)


def _sums(reader: Reader, rests: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probability of each candidate, (rows, candidates), given what of each prompt is still to be read."""
    logprobs = reader.read(rests).log_softmax(1)
    sums = logprobs[:, [candidate[0] for candidate in candidates]].cpu()
    longer = [i for i, candidate in enumerate(candidates) if len(candidate) > 1]
    if longer:
        reader.keep([row for row in range(len(rests)) for _ in longer])
        texts = [candidates[i] for _ in rests for i in longer]
        losses = reader.losses([text[:-1] for text in texts], [text[1:] for text in texts])
        sums[:, longer] -= losses.view(len(rests), len(longer)).cpu()
    return sums


def demonstrated(
    examples: Sequence[tuple[str, str]], text: str, template: str = "{text}\n{answer}\n\n"
) -> str:
    """Return a prompt of worked examples and a text whose answer is to come.

    Args:
        examples: texts and their answers, none for a zero-shot prompt.
        text: the text to answer.
        template: how a text and its answer stand; the prompt ends where the answer would begin.

    Raises:
        DataError: if the template lacks one of its two places.

    Example:
        >>> demonstrated([("物流很快", "好")], "坏了", "评论：{text}\\n评价：{answer}\\n")
        '评论：物流很快\\n评价：好\\n评论：坏了\\n评价：'
    """
    if template.count("{text}") != 1 or template.count("{answer}") != 1:
        raise DataError(
            f"template {template!r} needs {{text}} once and {{answer}} once, to say where they go"
        )
    before, after = template.split("{answer}")
    if "{text}" in after:
        raise DataError(
            f"template {template!r} has the answer before the text, and the text is what is known"
        )
    # Not by str.format: a text may have braces of its own.
    shots = [before.replace("{text}", shown) + answer + after for shown, answer in examples]
    return "".join(shots) + before.replace("{text}", text)
