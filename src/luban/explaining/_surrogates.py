"""Local models over switches, fitted by captum: what LIME and Kernel SHAP share."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.errors import MissingError
from luban.explaining._base import Explanation
from luban.explaining._case import Case
from luban.explaining._units import Switches
from luban.sentences import say

__all__ = ["captum", "explain_by"]

AT_ONCE = 64
"""Perturbed rows that captum asks for at a time."""


def captum() -> Any:
    """Return captum's methods.

    Raises:
        MissingError: if the package is not installed.
    """
    try:
        return importlib.import_module("captum.attr")
    except ImportError:
        raise MissingError(
            say(
                "LIME and Kernel SHAP are computed by the captum package, which is not installed: pip install 'luban[explain]'"
            )
        ) from None


def explain_by(
    case: Case, method: str, make: Any, samples: int, switches: Any, *, adds_up: bool
) -> list[Explanation]:
    """Explain each row by a captum method over its switches.

    Args:
        case: the rows.
        method: type of the explainer.
        make: makes the captum method of a function of switches, (P, M) → scores (P,).
        samples: perturbed rows.
        switches: makes the `Switches` of a row.
        adds_up: whether values are to add up to the score minus that of the row with all switched off.
    """
    scores, bases, parts = [], [], []
    for row in range(len(case)):
        own: Switches = switches(row)
        count = len(own)
        ends = own.scores(np.stack([np.ones(count, dtype=bool), np.zeros(count, dtype=bool)]))
        if count < 2:  # nothing to fit
            values = np.full(count, ends[0] - ends[1])
        else:

            def score(on: Tensor, own: Switches = own) -> Tensor:
                return torch.from_numpy(own.scores(on.numpy() > 0.5))

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(case.seed)
                found = make(score).attribute(
                    torch.ones(1, count),
                    baselines=torch.zeros(1, count),
                    n_samples=samples,
                    perturbations_per_eval=AT_ONCE,
                )
            values = found[0].double().numpy()
        scores.append(float(ends[0]))
        bases.append(float(ends[1]))
        parts.append(own.parts(values))
    result = case.explanations(method, scores, parts, bases if adds_up else None)
    for one, base in zip(result, bases, strict=True):
        if adds_up:
            gap = abs(sum(part.total for part in one.parts.values()) - (one.score - base))
            one.quality["completeness_error"] = gap / max(abs(one.score - base), 1e-6)
    return result
