"""Changes of rows that people, scanners and other programs make: what a model should bear, and what nobody can."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import polars as pl

from luban.data.augment.char_noise import CharNoise
from luban.data.contracts import Array, Processor
from luban.data.processors._base import as_numbers, as_words
from luban.data.processors.image import Image

__all__ = ["Perturbation", "perturbations"]

UNSEEN = "never seen before"
Draw = np.random.Generator


@dataclass(frozen=True)
class Perturbation:
    """One change of rows.

    Attributes:
        name: as options and tables have it.
        harmless: whether a person would give the same answer as before.
        change: rows and random numbers → changed rows.
    """

    name: str
    harmless: bool
    change: Callable[[pl.DataFrame, Draw], pl.DataFrame]


def perturbations(inputs: dict[str, Processor], share: float) -> list[Perturbation]:
    """Return the changes that fit the inputs.

    Args:
        inputs: column → its processor.
        share: of cells, or of characters times ten, that are changed.
    """
    kinds: dict[str, list[str]] = {}
    for column, processor in inputs.items():
        kinds.setdefault(processor.type, []).append(column)
    found: list[Perturbation] = []
    texts = kinds.get("text", [])
    if texts:
        typos = CharNoise(share=min(1.0, share / 4))
        many = CharNoise(share=min(1.0, share))
        found += [
            Perturbation("typos", True, _texts(texts, typos.text)),
            Perturbation("many_typos", False, _texts(texts, many.text)),
            Perturbation("case", True, _texts(texts, _each(str.swapcase))),
            Perturbation("width", True, _texts(texts, _each(_other_width))),
            Perturbation("punctuation", True, _texts(texts, _each(_no_punctuation))),
            Perturbation("whitespace", True, _texts(texts, _each(_spaced))),
        ]
        if find_spec("opencc") is not None:
            found.append(Perturbation("script", True, _texts(texts, _other_script())))
    numbers = kinds.get("number", [])
    if numbers:
        found += [
            Perturbation("number_noise", True, _numbers(numbers, share / 4, _shaken)),
            Perturbation("out_of_range", False, _numbers(numbers, share, _far)),
        ]
    words = kinds.get("category", [])
    if words:
        found.append(Perturbation("unseen_category", False, _cells(words, share, UNSEEN)))
    cells = [*numbers, *words, *kinds.get("binary", []), *texts, *kinds.get("date", [])]
    if cells:
        found.append(Perturbation("missing", False, _cells(cells, share, None)))
    pictures = {name: one for name, one in inputs.items() if isinstance(one, Image)}
    if pictures:
        found += [
            Perturbation("noise", True, _pictures(pictures, _noisy(share / 4))),
            Perturbation("much_noise", False, _pictures(pictures, _noisy(share))),
            Perturbation("blur", True, _pictures(pictures, _blurred(1))),
            Perturbation("dark", True, _pictures(pictures, lambda pixels, draw: pixels * (1 - share))),
        ]
    return found


# --- texts ---


def _texts(
    columns: list[str], change: Callable[[list[str], Draw], list[str]]
) -> Callable[[pl.DataFrame, Draw], pl.DataFrame]:
    def changed(rows: pl.DataFrame, draw: Draw) -> pl.DataFrame:
        series = []
        for column in columns:
            values = rows[column].cast(pl.String, strict=False)
            new = change(values.fill_null("").to_list(), draw)
            series.append(
                pl.select(pl.when(values.is_null()).then(None).otherwise(pl.Series(new)))
                .to_series()
                .alias(column)
            )
        return rows.with_columns(series)

    return changed


def _each(change: Callable[[str], str]) -> Callable[[list[str], Draw], list[str]]:
    return lambda texts, draw: [change(text) for text in texts]


def _other_width(text: str) -> str:
    """Return text with half-width letters made full-width, and the other way round: the same word to a reader.

    Example:
        >>> _other_width("Ａb。")
        'Aｂ。'
    """
    return "".join(
        chr(ord(c) + 0xFEE0)
        if "!" <= c <= "~"
        else unicodedata.normalize("NFKC", c)
        if "！" <= c <= "～"
        else c
        for c in text
    )


def _no_punctuation(text: str) -> str:
    """Return text without the marks that end it and with no more than one of those inside: half the punctuation of a text."""
    plain = re.sub(r"([^\w\s])\1+", r"\1", text)
    return re.sub(r"[^\w\s]+\s*$", "", plain) or text


def _spaced(text: str) -> str:
    return "  " + re.sub(r"(?<=\s)", " ", text) + "\n"


def _other_script() -> Callable[[list[str], Draw], list[str]]:
    """Return what writes simplified characters as traditional ones; a text in traditional ones becomes simplified."""
    import opencc

    # Two packages bring this module, and name their tables with and without an ending.
    def converter(name: str) -> Callable[[str], str]:
        try:
            made = opencc.OpenCC(name)
        except (OSError, ValueError, RuntimeError):
            made = opencc.OpenCC(f"{name}.json")
        return made.convert  # type: ignore[no-any-return]

    forth, back = converter("s2t"), converter("t2s")

    def change(texts: list[str], draw: Draw) -> list[str]:
        changed = []
        for text in texts:
            other = forth(text)
            changed.append(other if other != text else back(text))
        return changed

    return change


# --- tables ---


def _cells(
    columns: list[str], share: float, value: str | None
) -> Callable[[pl.DataFrame, Draw], pl.DataFrame]:
    def changed(rows: pl.DataFrame, draw: Draw) -> pl.DataFrame:
        series = []
        for column in columns:
            # As the processor reads them: of 3.0 it knows the word 3.
            values = rows[column] if value is None else as_words(rows[column])
            hit = pl.Series(draw.random(len(rows)) < share)
            new = pl.lit(value, dtype=values.dtype)
            series.append(pl.select(pl.when(hit).then(new).otherwise(values)).to_series().alias(column))
        return rows.with_columns(series)

    return changed


def _numbers(
    columns: list[str], share: float, move: Callable[[Array, Draw], Array]
) -> Callable[[pl.DataFrame, Draw], pl.DataFrame]:
    everywhere = move is _shaken

    def changed(rows: pl.DataFrame, draw: Draw) -> pl.DataFrame:
        series = []
        for column in columns:
            values = as_numbers(rows[column]).to_numpy()
            hit = np.full(len(rows), True) if everywhere else draw.random(len(rows)) < share
            moved = np.where(hit, values + (share if everywhere else 1.0) * move(values, draw), values)
            series.append(pl.Series(column, moved).fill_nan(None))
        return rows.with_columns(series)

    return changed


def _shaken(values: Array, draw: Draw) -> Array:
    """Return noise as wide as the column is."""
    spread = np.nanstd(values) if np.isfinite(values).any() else 0.0
    noise: Array = draw.normal(size=len(values)) * spread
    return noise


def _far(values: Array, draw: Draw) -> Array:
    """Return steps that lead ten times the column's range beyond it."""
    if not np.isfinite(values).any():
        return np.zeros(len(values))
    reach = 10 * (float(np.nanmax(values) - np.nanmin(values)) or 1.0)
    steps: Array = np.where(draw.random(len(values)) < 0.5, reach, -reach)
    return steps


# --- pictures ---


def _pictures(
    columns: dict[str, Image], change: Callable[[Array, Draw], Array]
) -> Callable[[pl.DataFrame, Draw], pl.DataFrame]:
    def changed(rows: pl.DataFrame, draw: Draw) -> pl.DataFrame:
        series = []
        for column, processor in columns.items():
            pixels = processor.encode(rows[column])["pixels"]
            assert isinstance(pixels, np.ndarray)
            new = np.clip(np.rint(change(pixels.astype(np.float64), draw)), 0, 255).astype(np.uint8)
            series.append(pl.Series(column, new, dtype=pl.Array(pl.UInt8, new.shape[1:])))
        return rows.with_columns(series)

    return changed


def _noisy(share: float) -> Callable[[Array, Draw], Array]:
    return lambda pixels, draw: pixels + draw.normal(size=pixels.shape) * 255 * share


def _blurred(radius: int) -> Callable[[Array, Draw], Array]:
    def change(pixels: Array, draw: Draw) -> Array:
        for axis in (1, 2):  # a mean over neighbours, rows first, then columns
            width = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
            padded = np.pad(pixels, width, mode="edge")
            size = pixels.shape[axis]
            near = [np.take(padded, range(i, i + size), axis) for i in range(2 * radius + 1)]
            pixels = np.mean(near, axis=0)
        return pixels

    return change
