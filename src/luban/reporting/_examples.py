"""Rows that are shown: the worst errors and typical ones, what was said of them, and why."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl

from luban.data.contracts import Array, Processor
from luban.data.processors.image import _open
from luban.explaining._render import AGAINST, FOR, striped
from luban.predict import Predictor
from luban.reporting._absent import Absent

__all__ = ["Explain", "choose", "examples", "picture", "speech"]

Explain = Callable[[Predictor, pl.DataFrame, str], "list[dict[str, Any] | None] | Absent"]
"""Explains rows' predictions of a target: one explanation a row, or why there is none (`luban.reporting._explaining`)."""

_TEXT = 600  # characters of a text that are shown
_CELLS = 24  # columns of a row that are shown
_SIDE = 160  # pixels of a picture that is shown
_PROMPT = 24  # characters of a text that a language model goes on from
_WRITTEN = 40  # tokens it then writes


def choose(task: str, truth: Array, scores: Array, threshold: float, count: int) -> dict[str, list[int]]:
    """Return the numbers of the rows to show: the worst errors, worst first, and typical ones.

    Of classes, the worst errors are those that the model was surest of; typical is, for each class in turn, the rightly predicted
    row of median probability. Of numbers, the worst are the largest errors; typical are rows of usual error at low, middle and high
    predictions.

    Args:
        task: the family of metrics.
        truth, scores: as metrics compare them.
        threshold: from which a probability is a yes.
        count: rows of each kind at most.
    """
    if not len(truth):
        return {"worst": [], "typical": []}
    if task == "regression":
        error = np.abs(scores - truth)
        worst = np.argsort(-error, kind="stable")[:count]
        usual = np.flatnonzero(error <= np.quantile(error, 0.6))
        usual = usual[np.argsort(scores[usual], kind="stable")]
        places = np.linspace(0, len(usual) - 1, min(count, len(usual), 3)).round().astype(int)
        return {"worst": worst.tolist(), "typical": usual[places].tolist()}
    if task == "multilabel":
        said = scores >= threshold
        surprise = np.where(truth, 1 - scores, scores).max(1)
        wrong = np.flatnonzero((said != truth.astype(bool)).any(1))
        right = np.flatnonzero((said == truth.astype(bool)).all(1))
        worst = wrong[np.argsort(-surprise[wrong], kind="stable")][:count]
        middle = right[np.argsort(surprise[right], kind="stable")]
        places = np.linspace(0, len(middle) - 1, min(count, len(middle), 3)).round().astype(int)
        return {"worst": worst.tolist(), "typical": middle[places].tolist() if len(middle) else []}
    if task == "binary":
        chances = np.stack([1 - scores, scores], axis=1)
        said = (scores >= threshold).astype(int)
    else:
        chances, said = scores, scores.argmax(1)
    sure = chances[np.arange(len(said)), said]
    own = chances[np.arange(len(said)), truth]
    wrong = np.flatnonzero(said != truth)
    worst = wrong[np.argsort(own[wrong] - sure[wrong], kind="stable")][:count]
    typical: list[int] = []
    for k in np.argsort(-np.bincount(truth, minlength=chances.shape[1]), kind="stable").tolist():
        right = np.flatnonzero((truth == k) & (said == k))
        if len(right) and len(typical) < min(count, 4):
            typical.append(int(right[np.argsort(sure[right], kind="stable")][len(right) // 2]))
    return {"worst": worst.tolist(), "typical": typical}


def examples(
    predictor: Predictor,
    rows: pl.DataFrame,
    target: str,
    chosen: dict[str, list[int]],
    truth: Array,
    explain: Explain,
) -> dict[str, Any]:
    """Describe chosen rows: their cells, what is true, what was said, and the explanation.

    Args:
        predictor: the loaded artefact.
        rows: as the user has them; `truth` belongs to them.
        target: a column that is read off an output.
        chosen: kind → numbers of rows, what `choose` returned.
        truth: as metrics compare it.
        explain: what explains.
    """
    numbers = list(dict.fromkeys(i for own in chosen.values() for i in own))
    if not numbers:
        return {"worst": [], "typical": [], "explained": None}
    processor = predictor.pipeline.targets[target]
    part = rows[numbers]
    predictions = predictor.predict(part)
    explained = explain(predictor, part, target)
    found: dict[int, dict[str, Any]] = {}
    for place, i in enumerate(numbers):
        prediction = predictions[place]
        found[i] = {
            "target": target,
            "truth": _truth_of(processor, truth[i]),
            "said": prediction.get(target),
            "score": prediction.get(f"{target}.score"),
            "cells": [
                _cell(c, p, part[c][place]) for c, p in list(predictor.pipeline.given.items())[:_CELLS]
            ],
            "columns": len(predictor.pipeline.given),
            "explanation": None if isinstance(explained, Absent) else explained[place],
        }
        _draw(found[i], part, place)
    return {
        **{kind: [found[i] for i in own] for kind, own in chosen.items()},
        "explained": explained.to_json() if isinstance(explained, Absent) else None,
    }


def _draw(one: dict[str, Any], rows: pl.DataFrame, place: int) -> None:
    """Sum up what each column contributed, and turn maps over pictures into pictures: as numbers they would fill the file."""
    explanation = one["explanation"]
    if explanation is None:
        return
    parts = explanation["parts"]
    if explanation.get("attributes"):
        explanation["totals"] = {
            c: float(np.nansum(np.asarray(p["values"], float))) for c, p in parts.items()
        }
    for cell in one["cells"]:
        part = parts.get(cell["column"], {})
        if cell["kind"] == "image" and part.get("kind") == "image":
            heat = part.pop("values")
            if np.any(np.asarray(heat, float)):  # a map that says nothing is not shown
                cell["heat"] = picture(rows[cell["column"]][place], heat)


def _truth_of(processor: Processor, value: Any) -> Any:
    names = processor.classes()
    if processor.task == "multilabel":
        return [name for name, there in zip(names, value.tolist(), strict=True) if there]
    return names[int(value)] if names else float(value)


def _cell(column: str, processor: Processor, value: Any) -> dict[str, Any]:
    if processor.type == "image":
        return {"column": column, "kind": "image", "picture": picture(value)}
    if isinstance(value, pl.Series):
        value = value.to_list()
    text = "" if value is None else str(value)
    return {"column": column, "kind": processor.type, "text": text[:_TEXT], "cut": len(text) > _TEXT}


def picture(value: Any, heat: Sequence[Sequence[float]] | None = None) -> str:
    """Return a picture as a data URL (PNG, 160 pixels wide or high at most), tinted by a heat map if there is one.

    Args:
        value: a cell that `image` reads.
        heat: (H, W), positive where the picture speaks for what was said.

    Returns:
        The data URL; empty if the picture cannot be read.
    """
    from PIL import Image

    found = None
    with suppress(OSError, ValueError, SyntaxError):
        found = _open(value.to_list() if isinstance(value, pl.Series) else value).convert("RGB")
    if found is None:
        return ""
    scale = _SIDE / max(found.size)
    size = (max(1, round(found.width * scale)), max(1, round(found.height * scale)))
    # Small pictures stay pixels, so that what the model sees is what is shown.
    found = found.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    if heat is not None:
        values = np.asarray(heat, dtype=np.float64)
        values = values / (np.abs(values).max() or 1.0)
        signed = np.asarray(
            Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR), np.float64
        )
        mask = np.zeros((*signed.shape, 4), np.uint8)
        mask[signed > 0, :3], mask[signed < 0, :3] = FOR, AGAINST
        mask[..., 3] = np.round(200 * striped(signed)).astype(np.uint8)
        grey = found.convert("L").convert("RGBA")
        found = Image.alpha_composite(grey, Image.fromarray(mask)).convert("RGB")
    stream = io.BytesIO()
    found.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _begun(text: str) -> str:
    """Return the beginning of a text, half of it at most, whole words where there are any.

    Example:
        >>> _begun("the old cat is here"), _begun("白日依山尽")
        ('the old', '白日')
    """
    start = text[: min(_PROMPT, max(1, len(text) // 2))]
    return start.rsplit(" ", 1)[0] if " " in start.strip() else start


def speech(predictor: Predictor, texts: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return what a language model makes of the beginnings of texts (or, a masked one, of texts with something hidden).

    Args:
        predictor: of a language model.
        texts: some of the data, or the artefact's own sample.
        count: how many.
    """
    speaker = predictor.speaker
    assert speaker is not None
    shown: list[dict[str, Any]] = []
    if speaker.causal:
        prompts = list(dict.fromkeys(_begun(text) for text in texts if text.strip()))[:count]
        options = {"max_tokens": _WRITTEN, "temperature": 0.0}  # the likeliest token each time
        rows = [{speaker.column: prompt} for prompt in prompts]
        for prompt, one in zip(
            prompts, predictor.predict(rows, generation=options) if rows else [], strict=True
        ):
            if "completion" in one:
                shown.append(
                    {
                        "prompt": prompt,
                        "written": one["completion"],
                        "finish": one["completion.finish_reason"],
                    }
                )
        return shown
    mask = (
        speaker.text.trained.id_to_token(speaker.text.mask_id) if speaker.text.mask_id is not None else None
    )
    for text in [text[: 4 * _PROMPT] for text in texts if text.strip()][: count if mask else 0]:
        words = text.split(" ")
        hidden = words if len(words) > 2 else list(text)
        place = len(hidden) // 2
        between = " " if hidden is words else ""
        asked = between.join([*hidden[:place], str(mask), *hidden[place + 1 :]])
        (one,) = predictor.predict([{speaker.column: asked}])
        if one.get("fills"):
            shown.append({"prompt": asked, "hidden": hidden[place], "fills": one["fills"][0]})
    return shown
