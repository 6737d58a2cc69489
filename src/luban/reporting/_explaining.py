"""Explanations of rows for the report: by the first method that fits, or why none does."""

from __future__ import annotations

from typing import Any, cast

import polars as pl

from luban.errors import LubanError
from luban.explaining._base import Explainer
from luban.explaining._case import Case
from luban.predict import Predictor
from luban.recipe import Section
from luban.registry import names
from luban.reporting._absent import Absent
from luban.sentences import say

__all__ = ["explain"]

_METHODS = {
    "image": ("grad_cam", "integrated_gradients", "occlusion"),
    "tokens": ("integrated_gradients", "gradient_x_input", "occlusion"),
    "": ("shapley", "integrated_gradients", "occlusion"),
}
"""Form of an input → the methods to try, in turn; the last line is for tables."""


def explain(
    predictor: Predictor, rows: pl.DataFrame, target: str, background: pl.DataFrame | None = None
) -> list[dict[str, Any] | None] | Absent:
    """Explain what was predicted of a target.

    Args:
        predictor: the loaded artefact.
        rows: some dozen, as the user has them.
        target: a column that is read off an output.
        background: other rows, cleaned, that stand for the data.

    Returns:
        An explanation a row (`Explanation.to_json`, with ``paper``, ``limits`` and ``attributes`` of the method), None for a row that
        cannot be explained; or why there is none at all.
    """
    refused = ""
    try:
        case = Case.of(predictor, rows, target=target, background=background)
    except LubanError as error:
        return Absent("no_explainer", {"error": str(error)})
    form = next((form for form in _METHODS if form in case.forms.values()), "")
    for name in _METHODS[form]:
        if name not in names("explainers"):
            continue
        method = cast(Explainer, Section("explainers").parse(name))
        reason = method.refusal(case)
        if reason is None:
            try:
                found = method.explain(case)
            except LubanError as error:
                reason = str(error)
            else:
                about = {"paper": method.paper, "limits": method.limits, "attributes": method.attributes}
                by_row = {one.row: {**one.to_json(), **about} for one in found}
                return [by_row.get(i) for i in range(len(rows))]
        refused = refused or say("{method}: {why}", method=name, why=reason)
    return Absent("no_explainer", {"error": refused})
