"""What of a row can be switched off: words of a text, patches of an image, words of a set, columns of a table.

Explainers that ask a black box what happens without something (occlusion, LIME, Kernel SHAP), and the measures of quality, all
switch the same units. A token that is off is taken out of the unpadded sequence, or hidden; nothing is encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from luban.data.contracts import Array, Encoded, Flat
from luban.data.processors.text import Text
from luban.data.store import take_rows
from luban.explaining._base import Part
from luban.explaining._case import Case
from luban.explaining._gradients import BUDGET, costs, part_of
from luban.explaining._text import Pieces, by_word

__all__ = ["Replace", "Segments", "Switches", "grid", "superpixels"]

Replace = Literal["remove", "mask"]
"""What becomes of a token that is off."""
Segments = Literal["superpixels", "grid"]
"""How an image is cut."""


@dataclass
class Switches:
    """The units of one row of a case.

    Args:
        case: the case.
        row: which of its rows.
        unit: what a text is cut into, ``word`` or ``token`` (a piece, that is: a whole character at least).
        replace: ``remove`` takes a token out; ``mask`` puts the mask token in its place, or the unknown or padding one.
        segments: how an image is cut.
        count: into about how many segments.
    """

    case: Case
    row: int
    unit: Literal["word", "token"] = "word"
    replace: Replace = "remove"
    segments: Segments = "superpixels"
    count: int = 64

    @cached_property
    def base(self) -> Encoded:
        """The row alone."""
        return take_rows(self.case.encoded, np.asarray([self.row]))

    @cached_property
    def texts(self) -> dict[str, Pieces]:
        """Text column → its pieces, of the wanted unit."""
        one = self.case.part(self.row, self.row + 1)
        found = {c: one.pieces(c)[0] for c, form in self.case.forms.items() if form == "tokens"}
        return {c: by_word(pieces) if self.unit == "word" else pieces for c, pieces in found.items()}

    @cached_property
    def labels(self) -> dict[str, npt.NDArray[np.int64]]:
        """Image column → the segment of each pixel, (H, W), from 0."""
        result = {}
        for column, form in self.case.forms.items():
            if form == "image":
                (name,) = self.case.inputs[column]
                pixels = self.base[name]
                assert not isinstance(pixels, Flat)
                cut = superpixels if self.segments == "superpixels" else grid
                result[column] = cut(pixels[0], self.count)
        return result

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Input column → how many units it has."""
        result = {}
        for column, form in self.case.forms.items():
            if form == "tokens":
                result[column] = int((~self.texts[column].special).sum())
            elif form == "image":
                result[column] = int(self.labels[column].max()) + 1
            elif form == "set":
                (name,) = self.case.inputs[column]
                ids = self.base[name]
                result[column] = len(ids.values) if isinstance(ids, Flat) else 0
            else:
                result[column] = 1
        return result

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def scores(self, on: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return the score of the row with only some units on, (P,), given which ones, (P, M)."""
        return self._each(on, self.case.scores_of_encoded)

    def chances(self, on: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """As `scores`, but the probability of a class."""
        return self._each(on, self.case.chances_of_encoded)

    def _each(
        self,
        on: npt.NDArray[np.bool_],
        what: Callable[[Encoded, npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    ) -> npt.NDArray[np.float64]:
        chosen = int(self.case.chosen[self.row])
        at_once = max(1, 4 * BUDGET // int(costs(self.base, 1)[0]))
        parts = [
            what(self.encoded(some), np.full(len(some), chosen))
            for some in np.split(on, range(at_once, len(on), at_once))
        ]
        return np.concatenate(parts)

    def encoded(self, on: npt.NDArray[np.bool_]) -> Encoded:
        """Return the row once for each line of `on`, (P, M), with what is off switched off."""
        result = dict(take_rows(self.base, np.zeros(len(on), dtype=np.int64)))
        first = 0
        for column, size in self.sizes.items():
            own = on[:, first : first + size]
            first += size
            form = self.case.forms[column]
            for name in self.case.inputs[column]:
                value = self.base[name]
                if isinstance(value, Flat):
                    units = np.arange(size) if form == "set" else self._tokens(column)
                    result[name] = self._without(column, value, own, units, hidden=form == "tokens")
                elif form == "image":
                    result[name] = self._covered(value[0], own, self.labels[column])
                else:
                    neutral = self._neutral(name, value)
                    result[name] = np.where(own.reshape(-1, *[1] * (value.ndim - 1)), value, neutral).astype(
                        value.dtype
                    )
        return result

    def _tokens(self, column: str) -> npt.NDArray[np.int64]:
        """Return the unit that each token belongs to, -1 for none."""
        pieces = self.texts[column]
        number = np.where(pieces.special, -1, np.cumsum(~pieces.special) - 1)
        return number[pieces.groups] if len(pieces.groups) else pieces.groups

    def _without(
        self, column: str, value: Flat, on: npt.NDArray[np.bool_], units: npt.NDArray[np.int64], hidden: bool
    ) -> Flat:
        """Return a ragged row once for each line of `on` (P, U), without the values whose unit is off, or with them hidden."""
        kept = np.ones((len(on), len(units)), dtype=bool)
        kept[:, units >= 0] = on[:, units[units >= 0]]
        each = np.broadcast_to(value.values, kept.shape)
        if hidden and self.replace == "mask":
            text = self.case.predictor.pipeline.inputs[column]
            assert isinstance(text, Text)
            tokens = (text.mask_id, text.unk_id, text.pad_id, 0)
            stand_in = next(token for token in tokens if token is not None)
            offsets = np.arange(len(on) + 1, dtype=np.int64) * len(units)
            return Flat(np.where(kept, each, stand_in).astype(value.values.dtype).reshape(-1), offsets)
        offsets = np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int64)
        return Flat(each[kept], offsets)

    def _covered(self, pixels: Array, on: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> Array:
        """Return an image (H, W, C) once for each line of `on`, segments that are off in the image's mean colour."""
        mean = pixels.reshape(-1, pixels.shape[2]).mean(0).round().astype(pixels.dtype)
        return np.where(on[:, labels][..., None], pixels, mean)

    def _neutral(self, name: str, value: Array) -> Any:
        """Return what stands for no value: of the other rows the mean, or the most frequent class; else 0, which is the training
        rows' mean, or an unknown class."""
        others = self.case.encoded_background
        if others is None or name not in others:
            return 0
        column = others[name]
        assert not isinstance(column, Flat)
        if column.dtype.kind == "f":
            return column.mean(0)
        return np.bincount(column.astype(np.int64).reshape(-1)).argmax()

    def parts(self, values: npt.NDArray[np.float64]) -> dict[str, Part]:
        """Return what each column contributed, given a value for each unit, (M,)."""
        result: dict[str, Part] = {}
        first = 0
        for column, size in self.sizes.items():
            own = values[first : first + size]
            first += size
            form = self.case.forms[column]
            if form == "tokens":
                pieces = self.texts[column]
                each = np.zeros(len(pieces.pieces))
                each[~pieces.special] = own
                result[column] = Part(
                    column, "tokens", each, pieces.pieces, shown=pieces.shown, of_original=pieces.of_original
                )
            elif form == "image":
                labels = self.labels[column]
                sizes = np.bincount(labels.reshape(-1), minlength=size)
                result[column] = Part(column, "image", (own / np.maximum(sizes, 1))[labels])
            else:
                result[column] = part_of(self.case, column, own, self.row)
        return result

    def values(self, parts: dict[str, Part]) -> npt.NDArray[np.float64]:
        """Return a value for each unit, (M,), of what an explanation has: of an image the sum over each segment, of a text that
        over the pieces that begin in each word."""
        result: list[npt.NDArray[np.float64]] = []
        for column, size in self.sizes.items():
            part = parts.get(column)
            form = self.case.forms[column]
            if part is None:
                result.append(np.zeros(size))
            elif form == "image" and part.kind == "image":
                labels = self.labels[column].reshape(-1)
                result.append(np.bincount(labels, part.values.reshape(-1), minlength=size).astype(np.float64))
            elif form == "tokens" and part.kind == "tokens":
                own = [
                    p
                    for p, special in zip(self.texts[column].pieces, self.texts[column].special, strict=True)
                    if not special
                ]
                starts = np.asarray([piece.start for piece in own])
                each = np.zeros(size)
                for piece, value in zip(part.pieces, part.values, strict=True):
                    if piece.start < piece.end and size:
                        each[max(0, int(np.searchsorted(starts, piece.start, side="right")) - 1)] += value
                result.append(each)
            elif part.values.size == size:
                result.append(part.values.reshape(-1))
            else:
                result.append(np.full(size, part.total / max(size, 1)))
        return np.concatenate(result) if result else np.empty(0)


# --- images -----------------------------------------------------------------------------------------------


def grid(pixels: Array, count: int) -> npt.NDArray[np.int64]:
    """Cut an image (H, W, C) into about `count` rectangles: the number of each pixel's, (H, W)."""
    height, width = pixels.shape[:2]
    side = max(1.0, (height * width / count) ** 0.5)
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    y = np.arange(height) * rows // height
    x = np.arange(width) * columns // width
    result: npt.NDArray[np.int64] = y[:, None] * columns + x
    return result


def superpixels(
    pixels: Array, count: int, compactness: float = 20.0, rounds: int = 5
) -> npt.NDArray[np.int64]:
    """Cut an image (H, W, C) into about `count` segments of like colour, (H, W): SLIC (Achanta et al., 2012), in RGB or grey."""
    height, width = pixels.shape[:2]
    start = grid(pixels, count)
    cells = int(start.max()) + 1
    y, x = np.mgrid[:height, :width]
    step = max(1.0, (height * width / cells) ** 0.5)
    places = np.stack([y, x], 2).reshape(-1, 2) * (compactness / step)
    features = np.concatenate([places, pixels.reshape(height * width, -1).astype(np.float64)], 1)
    labels = start.reshape(-1)
    columns = int(start[0].max()) + 1
    # A pixel belongs to its own cell or to one of the eight around it.
    row, column = np.divmod(labels, columns)
    rows = cells // columns
    around = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near_y, near_x = row + dy, column + dx
            inside = (near_y >= 0) & (near_y < rows) & (near_x >= 0) & (near_x < columns)
            around.append(np.where(inside, near_y * columns + near_x, labels))
    near = np.stack(around)  # (9, H·W)
    for _ in range(rounds):
        sizes = np.bincount(labels, minlength=cells)
        sums = np.stack([np.bincount(labels, f, minlength=cells) for f in features.T], 1)
        centres = sums / np.maximum(sizes, 1)[:, None]
        centres[sizes == 0] = np.inf
        with np.errstate(invalid="ignore"):
            distances = np.stack([((features - centres[n]) ** 2).sum(1) for n in near])
        labels = near[distances.argmin(0), np.arange(len(labels))]
    return np.unique(labels, return_inverse=True)[1].reshape(height, width)
