"""Images: files, bytes or arrays of pixels."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.data.contracts import Array, Encoded, Field, Processor, Role
from luban.data.statistics import Moments
from luban.errors import DataError
from luban.registry import register

if TYPE_CHECKING:
    from PIL import Image as Pillow

__all__ = ["Image"]

_DATA_URL = "data:image/png;base64,"


@register("processors")
class Image(Processor):
    """A picture, brought to one size.

    A cell is the path of a file, its bytes, a ``data:image/...;base64,`` URL, or an array (H, W) or (H, W, C) of 0 to 255.
    Field ``pixels`` is stored as bytes (H, W, C) and normalised on the device.
    """

    height: Annotated[int, Option(ge=1)] | None = None
    """Rows of pixels; those of the first training image if left out."""
    width: Annotated[int, Option(ge=1)] | None = None
    """Columns of pixels; those of the first training image if left out."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: red, green, blue; as in the first training image if left out."""
    resize: Literal["stretch", "fit"] = "stretch"
    """stretch: to the size, whatever the proportions; fit: inside the size, with black beside it."""
    normalize: Literal["unit", "zscore", "none"] = "unit"
    """unit: ÷ 255, so 0 to 1; zscore: by the mean and deviation of the training images' channels; none: 0 to 255."""

    _size: tuple[int, int, int] | None = PrivateAttr(default=None)
    _moments: list[Moments] = PrivateAttr(default_factory=list)
    _mean: list[float] = PrivateAttr(default_factory=lambda: [0.0])
    _std: list[float] = PrivateAttr(default_factory=lambda: [1.0])
    _high: float = PrivateAttr(default=0.0)
    _fractions: bool = PrivateAttr(default=False)

    def update(self, values: pl.Series) -> None:
        if _is_pixels(values) and (stack := values.drop_nulls().to_numpy()).dtype != np.uint8:
            finite = stack[np.isfinite(stack)]
            self._high = max(self._high, float(finite.max(initial=0.0)))
            self._fractions |= bool((np.mod(finite, 1) > 0).any())
        if self._size is None:
            first = next(
                (picture for picture in map(_open_or_none, _cells(values)) if picture is not None), None
            )
            if first is None:
                return
            channels = self.channels or (
                1 if first.mode in ("1", "L", "I", "F", "LA") or first.mode.startswith("I;") else 3
            )
            self._size = (self.height or first.height, self.width or first.width, channels)
            self._moments = [Moments() for _ in range(channels)]
        if self.normalize == "zscore":
            pixels = self._pixels(values.filter(~self.invalid(values)))
            for channel, moments in enumerate(self._moments):
                moments.update(pixels[..., channel].reshape(-1).astype(np.float64))

    def finish(self) -> None:
        if self._size is None:
            raise DataError(
                "no training row holds an image that can be opened; a cell is a file's path, its bytes or an array of pixels"
            )
        if self._high > 255 or (self._high <= 1 and self._fractions):
            raise DataError(
                f"its pixels lie between 0 and {self._high:g}, but white is 255 here; bring the arrays to 0 ... 255 first"
            )
        if self.normalize == "unit":
            self._mean, self._std = [0.0], [255.0]
        elif self.normalize == "zscore":
            self._mean = [m.mean for m in self._moments]
            self._std = [m.std or 1.0 for m in self._moments]

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        return {
            "pixels": Field(
                column, self.type, role, "uint8", self._size, mean=tuple(self._mean), std=tuple(self._std)
            )
        }

    def invalid(self, values: pl.Series) -> pl.Series:
        if _is_pixels(values) and values.dtype.is_nested() and _leaf(values.dtype).is_float():
            return pl.Series([cell is None or not np.isfinite(cell).all() for cell in _cells(values)])
        if _is_pixels(values):
            return values.is_null()
        return pl.Series([not _readable(cell) for cell in values.to_list()], dtype=pl.Boolean)

    def identity(self, values: pl.Series) -> pl.Series:
        if values.dtype != pl.String:
            return values
        return pl.Series([_content(path) for path in values.to_list()], dtype=pl.String)

    def portable(self, values: pl.Series) -> list[Any]:
        from PIL import Image as Pillow

        result: list[Any] = []
        for pixels in self._pixels(values):
            file = io.BytesIO()
            Pillow.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
            result.append(_DATA_URL + base64.b64encode(file.getvalue()).decode())
        return result

    def encode(self, values: pl.Series) -> Encoded:
        return {"pixels": self._pixels(values)}

    def _pixels(self, values: pl.Series) -> Array:
        """Return (n, H, W, C) bytes."""
        assert self._size is not None, "the processor is not fitted"
        height, width, channels = self._size
        if _is_pixels(values) and not values.null_count():
            stack = values.to_numpy()
            if stack.ndim == 3:
                stack = stack[..., None]
            if stack.ndim == 4 and stack.shape[1:] == self._size:
                stack = stack if stack.dtype == np.uint8 else np.clip(stack, 0, 255).astype(np.uint8)
                return np.ascontiguousarray(stack)
        result = np.zeros((len(values), height, width, channels), dtype=np.uint8)
        for i, cell in enumerate(_cells(values)):
            try:
                picture = _open(cell)
                result[i] = self._fit(picture)
            except (OSError, ValueError, SyntaxError) as error:
                name = cell if isinstance(cell, str) else f"row {i} of the chunk"
                raise DataError(f"image '{name}' is damaged and cannot be decoded: {error}") from None
        return result

    def _fit(self, picture: Pillow.Image) -> Array:
        from PIL import Image as Pillow
        from PIL import ImageOps

        assert self._size is not None
        height, width, channels = self._size
        if picture.mode.startswith("I;16"):  # convert would make all but the darkest white
            picture = Pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            if self.resize == "fit":
                picture = ImageOps.pad(picture, (width, height), Pillow.Resampling.BILINEAR)
            else:
                picture = picture.resize((width, height), Pillow.Resampling.BILINEAR)
        return np.asarray(picture, dtype=np.uint8).reshape(height, width, channels)

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        assert self._size is not None, "the processor is not fitted"
        return self.portable(
            pl.Series(
                [generator.integers(256, size=self._size, dtype=np.uint8) for _ in range(n)], dtype=pl.Object
            )
        )

    def state(self) -> dict[str, Any]:
        return {"size": self._size, "mean": self._mean, "std": self._std}

    def restore(self, state: dict[str, Any]) -> None:
        height, width, channels = state["size"]
        self._size, self._mean, self._std = (height, width, channels), list(state["mean"]), list(state["std"])


def _is_pixels(values: pl.Series) -> bool:
    return isinstance(values.dtype, pl.Array)


def _cells(values: pl.Series) -> list[Any]:
    return list(values.to_numpy()) if _is_pixels(values) and not values.null_count() else values.to_list()


def _open(cell: Any) -> Pillow.Image:
    """Open a path, a data URL, bytes, the {'bytes': ..., 'path': ...} of Parquet image columns, or an array."""
    from PIL import Image as Pillow

    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell.startswith("data:image/"):
        cell = base64.b64decode(cell.partition(",")[2])
    if isinstance(cell, str):
        cell = Path(cell).read_bytes()  # Pillow would keep the file open until it is collected
    if isinstance(cell, bytes):
        try:
            return Pillow.open(io.BytesIO(cell))
        except Pillow.DecompressionBombError as error:
            raise ValueError(str(error)) from None
    array = np.asarray(cell)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if (
        array.dtype.kind not in "buif"
        or not array.size
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    ):
        raise ValueError("it is neither a path, nor bytes, nor an array of pixels (H, W) or (H, W, 3)")
    if not np.isfinite(array).all():
        raise ValueError("it holds pixels that are no numbers")
    return Pillow.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def _leaf(dtype: Any) -> pl.DataType:
    while isinstance(dtype, pl.Array):
        dtype = dtype.inner
    return cast(pl.DataType, dtype)


def _open_or_none(cell: Any) -> Pillow.Image | None:
    try:
        return _open(cell) if cell is not None else None
    except (OSError, ValueError, SyntaxError):
        return None


def _content(path: str | None) -> str | None:
    try:
        return None if path is None else hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return path  # it will be counted as unreadable


def _readable(cell: Any) -> bool:
    """Whether the image can be decoded, as cheaply as its format allows: one damaged file must not stop the others."""
    if cell is None:
        return False
    try:
        picture = _open(cell)
        if picture.format == "PNG":
            picture.verify()  # checksums
        elif picture.format is not None:
            picture.draft(picture.mode, (1, 1))  # a JPEG at an eighth of its size
            picture.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True
