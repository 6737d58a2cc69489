"""How well an explanation explains the model: measured on the model, not judged by eye.

``deletion``            mean probability of the class, as the model itself has it, while units are switched off, those that speak most for it first (Petsiuk et
                        al., 2018, 'RISE'): the lower, the better; ``deletion_random`` is the same in random order
``insertion``           the same while they are switched on, from nothing: the higher, the better
``comprehensiveness``   what the probability loses, on the mean, without the 10, 20 and 50 % of units that speak most for the class
                        (DeYoung et al., 2020, 'ERASER'): the higher, the better
``sufficiency``         what it loses if nothing but these is kept: the lower, the better
``randomised``          rank correlation of the values with those of the same model with its weights shuffled (Adebayo et al., 2018,
                        'Sanity Checks for Saliency Maps'): near 0 for a method that explains the model; near 1, it explains the row

For a target that is a number, the score takes the place of the probability. An explanation by columns, words or segments is judged
by columns, words or segments.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from luban.explaining._base import Explainer, Explanation
from luban.explaining._case import Case
from luban.explaining._units import Switches
from luban.predict import Predictor

__all__ = ["SHARES", "measure", "rank_correlation", "shuffled"]

SHARES = (0.1, 0.2, 0.5)
STEPS = 10
"""Steps from all units to none."""


def measure(case: Case, explainer: Explainer, explanations: Sequence[Explanation]) -> None:
    """Add measures of quality to explanations of a case's rows.

    Args:
        case: the rows.
        explainer: what explained them.
        explanations: one a row; what has no value for a unit of the row (maps of a layer, tokens that were written, training rows,
            a change that was not found) is left out.
    """
    kinds = {"tokens", "value", "vector", "image"}
    found = [part for one in explanations for part in one.parts.values()]
    if not found or not all(part.kind in kinds for part in found):
        return
    draw = np.random.default_rng(case.seed)
    for row, one in enumerate(explanations):
        if not one.parts:
            continue
        switches = Switches(case, row, "word", "remove", "grid")
        if len(switches) < 2:
            continue
        values = switches.values(one.parts)
        one.quality |= _curves(switches, values, draw)
    other = replace(case, predictor=shuffled(case.predictor, case.seed))
    for one, random in zip(explanations, explainer.explain(other), strict=True):
        pairs = [
            (part.values.reshape(-1), random.parts[column].values.reshape(-1))
            for column, part in one.parts.items()
            if column in random.parts and random.parts[column].values.shape == part.values.shape
        ]
        if not pairs:
            continue
        both = [np.abs(np.concatenate(side)) for side in zip(*pairs, strict=True)]
        alike = rank_correlation(both[0], both[1])
        if np.isfinite(alike):  # of a single unit, or of values that are all the same, there are no ranks
            one.quality["randomised"] = alike


def _curves(
    switches: Switches, values: npt.NDArray[np.float64], draw: np.random.Generator
) -> dict[str, float]:
    """Return what deletion, insertion and the like come to for a row."""
    count = len(values)
    order = np.argsort(-values, kind="stable")
    ranks = np.empty(count, dtype=np.int64)
    ranks[order] = np.arange(count)
    chance = draw.permutation(count)
    sizes = np.unique(np.round(np.linspace(0, count, min(STEPS, count) + 1)).astype(np.int64))
    tops = [max(1, round(share * count)) for share in SHARES]
    states = np.stack(
        [ranks >= n for n in sizes]  # deletion: the first n are off
        + [ranks < n for n in sizes]  # insertion: the first n are on
        + [chance >= n for n in sizes]
        + [ranks >= n for n in tops]
        + [ranks < n for n in tops]
    )
    found = switches.chances(states)
    parts = np.split(found, np.cumsum([len(sizes)] * 3 + [len(tops)]))
    whole = float(parts[0][0])
    share = sizes / count

    def area(curve: npt.NDArray[np.float64]) -> float:
        return float(np.trapezoid(curve, share))

    return {
        "deletion": area(parts[0]),
        "deletion_random": area(parts[2]),
        "insertion": area(parts[1]),
        "comprehensiveness": whole - float(parts[3].mean()),
        "sufficiency": whole - float(parts[4].mean()),
    }


def shuffled(predictor: Predictor, seed: int) -> Predictor:
    """Return the predictor with the entries of each weight in random order: as large as they were, and nothing learnt."""
    model: nn.Module = copy.deepcopy(predictor.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.detach().cpu().flatten()
            mixed = flat[torch.randperm(len(flat), generator=generator)].view(parameter.shape)
            parameter.copy_(mixed.to(parameter.device))
    return replace(predictor, model=model)


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; NaN where one side is constant.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
        0.5
    """
    ranks = [_ranks(x) - (len(x) - 1) / 2 for x in (a, b)]
    scale = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale else float("nan")


def _ranks(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    result: npt.NDArray[np.float64] = ((ends - counts + ends - 1) / 2)[inverse]
    return result
