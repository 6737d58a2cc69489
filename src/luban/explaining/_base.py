"""What every explainer promises, and what it returns.

::

    rows ──▶ Case ──▶ Explainer.explain ──▶ one Explanation a row ──▶ one Part an input column: values over pieces
                 └──▶ Explainer.survey  ──▶ a Survey: tables about the whole set

An explainer is a component (registry section ``explainers``): a file, whose typed fields are its options. It is handed a
`luban.explaining._case.Case`, which knows the rows, the model and what is to be explained, and returns plain data; pictures are
drawn from that data elsewhere (`_render`). A new kind of input or output needs a kind of `Part` at most, never another contract.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from luban.recipe import Component

if TYPE_CHECKING:
    from luban.explaining._case import Case

__all__ = ["Explainer", "Explanation", "Part", "Piece", "Survey", "plain"]

DIGITS = 6
"""Significant digits of a value in JSON: what float32 holds, nearly."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a text that has a value of its own.

    Attributes:
        text: how it reads in the text that the user gave; of a token that stands for no text, its name (``[CLS]``).
        start, end: its place in that text, in characters; both equal where it has none.
    """

    text: str
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"text": self.text, "start": self.start, "end": self.end}


@dataclass
class Part:
    """What one input column contributed.

    Attributes:
        column: the input.
        kind: how the values lie. ``tokens``: (T,), one for each of the `pieces`. ``image``: (H, W). ``value``: a single number,
            (). ``vector``: (N,). ``matrix``: (O, T), one for each of the `outputs` and each of the `pieces`. ``maps``: (N, H, W),
            named by `names`.
        values: positive where the input speaks for what is explained, negative where against. Where an explainer attributes,
            they add up to ``score - baseline`` over all parts, as far as the method can.
        pieces: of a text, in order.
        outputs: of a matrix, the tokens that were written.
        names: of several maps.
        shown: what the user gave, as far as it is shown: a text, a number, a word; of an image, what the model saw of it, as a data
            URL, once it is to be drawn.
        of_original: of a text, whether places are in what the user gave; otherwise in the cleaned text, which is then `shown`.
    """

    column: str
    kind: str
    values: npt.NDArray[Any]
    pieces: list[Piece] = field(default_factory=list)
    outputs: list[Piece] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    shown: Any = None
    of_original: bool = True

    def __post_init__(self) -> None:
        self.values = np.asarray(self.values, dtype=np.float64)
        shapes: dict[str, tuple[int, ...]] = {
            "tokens": (len(self.pieces),),
            "matrix": (len(self.outputs), len(self.pieces)),
            "value": (),
        }
        expected = shapes.get(self.kind)
        assert expected is None or self.values.shape == expected, (self.kind, self.values.shape, expected)

    @property
    def total(self) -> float:
        """The sum of the values: what the column contributed in all."""
        return float(self.values.sum())

    @property
    def mass(self) -> float:
        """The sum of the absolute values: how much the column matters, for or against."""
        return float(np.abs(self.values).sum())

    def to_json(self) -> dict[str, Any]:
        """Return plain data; what is empty is left out."""
        result: dict[str, Any] = {"kind": self.kind, "values": plain(self.values)}
        if self.pieces or self.kind in ("tokens", "matrix"):  # a text of blanks has none
            result["pieces"] = [one.to_json() for one in self.pieces]
        if self.outputs or self.kind == "matrix":
            result["outputs"] = [one.to_json() for one in self.outputs]
        if self.names:
            result["names"] = self.names
        if self.shown is not None:
            result["shown"] = self.shown
        if not self.of_original:
            result["of_original"] = False
        return result


@dataclass
class Explanation:
    """Why one row got its score.

    Attributes:
        row: its number among the rows that were asked about, from 0.
        method: type of the explainer.
        target: the column that is predicted; of a language model, the text column.
        chosen: the class whose score is explained; None for a number.
        score: the model's own: the logit of the class, or the number in the user's unit; of a text that is written, the log
            probability of its tokens.
        baseline: the score of the neutral input that the row is compared with; None where the method has none.
        probability: of the chosen class; None where there is none.
        parts: input column → what it contributed.
        tables: name → lines of what is no value of a part: the training rows that mattered, the changes that flip a decision.
        quality: measures of how well this explains the model (`luban.explaining._quality`).
        notes: what the reader should know, each one sentence.
    """

    row: int
    method: str
    target: str
    chosen: str | None
    score: float
    baseline: float | None = None
    probability: float | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each column: its part of all absolute values, from 0 to 1; empty where nothing matters."""
        masses = {column: part.mass for column, part in self.parts.items()}
        whole = sum(masses.values())
        return {column: mass / whole for column, mass in masses.items()} if whole > 0 else {}

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without NaN; without tables where there are none."""
        return {
            "row": self.row,
            "method": self.method,
            "target": self.target,
            "chosen": self.chosen,
            "score": plain(self.score),
            "baseline": plain(self.baseline),
            "probability": plain(self.probability),
            "shares": plain(self.shares),
            "parts": {column: part.to_json() for column, part in self.parts.items()},
            **({"tables": plain(self.tables)} if self.tables else {}),
            "quality": plain(self.quality),
            "notes": list(self.notes),
        }


@dataclass
class Survey:
    """What was found about a whole set of rows.

    Attributes:
        method: type of the explainer.
        target: the column that is predicted.
        rows: how many rows were looked at.
        tables: name → its lines, each a mapping of plain values (``{"column": "age", "importance": 0.12, "low": ..., "high": ...}``).
        quality: measures of how far this can be trusted.
        notes: what the reader should know, each one sentence; where rows were sampled, how many of how many.
    """

    method: str
    target: str
    rows: int
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without NaN."""
        return {
            "method": self.method,
            "target": self.target,
            "rows": self.rows,
            "tables": plain(self.tables),
            "quality": plain(self.quality),
            "notes": list(self.notes),
        }


class Explainer(Component):
    """A way of explaining a model: of each row by itself (`explain`), or of a set of rows as a whole (`survey`).

    A class overrides the one that its `scope` names. It looks at the model from outside and leaves it as it was.
    """

    paper: ClassVar[str] = ""
    """Authors and year of the method, as it is cited."""
    limits: ClassVar[str] = ""
    """What the method cannot tell, in one sentence."""
    scope: ClassVar[Literal["row", "set"]] = "row"
    """Whether it explains each row, or the set."""
    attributes: ClassVar[bool] = True
    """Whether the values say what each piece contributed to the score; maps of a layer, or attention, do not."""

    of_written: ClassVar[bool] = False
    """Whether it also explains tokens that a model chooses, each as a row (`luban.explaining._tokens`)."""

    @abstractmethod
    def refusal(self, case: Case) -> str | None:
        """Return why it does not fit this model or these inputs, a clause such as ``it needs an image``; None if it fits.

        Only the model and the kinds of its inputs are looked at, not the rows.
        """

    def explain(self, case: Case) -> list[Explanation]:
        """Explain each row of a case, in order; for scope ``row``."""
        raise NotImplementedError(f"'{self.type}' explains no single row")

    def into(self, folder: Path) -> Self:
        """Return the explainer as it is asked when a folder is written: files of its own go there."""
        return self

    def survey(self, case: Case) -> Survey:
        """Explain the rows of a case together; for scope ``set``."""
        raise NotImplementedError(f"'{self.type}' explains no set of rows")


def plain(value: Any) -> Any:
    """Return data as JSON holds it: arrays as lists, numbers with `DIGITS` digits, None for what is not finite.

    Example:
        >>> plain({"a": np.float32(0.1), "b": [float("nan"), 2]})
        {'a': 0.1, 'b': [None, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
