"""Vectors and images: arrays, files, damage."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from luban.data.processors.image import Image
from luban.data.processors.vector import Vector
from luban.errors import DataError
from luban.testing import check_processor

rng = np.random.default_rng(0)


def pixels(side: int = 8, channels: int = 3) -> Any:
    return rng.integers(0, 256, (side, side, channels) if channels > 1 else (side, side), dtype=np.uint8)


def packed(array: Any, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(array).save(file, kind)
    return file.getvalue()


def fitted(processor: Any, values: Any) -> Any:
    processor.update(values if isinstance(values, pl.Series) else pl.Series(values))
    processor.finish()
    return processor


# --- vectors ----------------------------------------------------------------------------------------------


def test_vectors_are_scaled_together() -> None:
    values = pl.Series([[0.0, 2.0], [4.0, 6.0]])
    for normalize, expected in (("minmax", [[0, 1 / 3], [2 / 3, 1]]), ("none", [[0, 2], [4, 6]])):
        assert np.allclose(fitted(Vector(normalize=normalize), values).encode(values)["value"], expected)
    scaled = fitted(Vector(), values).encode(values)["value"]
    assert np.allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-6)


def test_vectors_that_cannot_be_read() -> None:
    processor = fitted(Vector(), [[1.0, 2.0], [3.0, 4.0]])
    cells = pl.Series([[1.0, 2.0], [1.0], None, [1.0, float("nan")], [1e300, 0.0]])
    assert processor.invalid(cells).to_list() == [False, True, True, True, True]
    with pytest.raises(DataError, match="list of numbers"):
        fitted(Vector(), pl.Series([None, None], dtype=pl.List(pl.Float64)))


@given(
    st.lists(
        st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=3, max_size=3), min_size=3, max_size=8
    ),
    st.sampled_from(["zscore", "minmax", "none"]),
)
def test_any_vectors(rows: list[list[float]], normalize: Any) -> None:
    for dtype in (pl.List(pl.Float64), pl.Array(pl.Float64, 3)):
        check_processor(Vector(normalize=normalize), pl.Series("c", rows, dtype=dtype))


# --- images -----------------------------------------------------------------------------------------------


def test_bytes_paths_urls_and_arrays_are_the_same_picture(tmp_path: Path) -> None:
    array = pixels()
    (tmp_path / "a.png").write_bytes(packed(array))
    processor = fitted(Image(), [packed(array)])
    url = processor.portable(pl.Series([packed(array)]))[0]
    for cells in (
        pl.Series([packed(array)]),
        pl.Series([str(tmp_path / "a.png")]),
        pl.Series([url]),
        pl.Series([{"bytes": packed(array), "path": None}]),
        pl.Series(array[None]),
        pl.Series([array.tolist()]),
    ):
        assert not processor.invalid(cells).any()
        assert (processor.encode(cells)["pixels"] == array).all()


def test_size_and_channels_follow_the_first_picture() -> None:
    assert fitted(Image(), [packed(pixels(8, 1))]).fields("c", "input")["pixels"].shape == (8, 8, 1)
    assert fitted(Image(), [packed(pixels(6))]).fields("c", "input")["pixels"].shape == (6, 6, 3)
    own = fitted(Image(height=4, width=5, channels=1), [packed(pixels(6))])
    assert own.encode(pl.Series([packed(pixels(9))]))["pixels"].shape == (1, 4, 5, 1)


def test_fit_keeps_the_proportions() -> None:
    tall = np.full((20, 10), 255, np.uint8)
    got = fitted(Image(height=10, width=10, resize="fit"), [packed(tall)]).encode(pl.Series([packed(tall)]))[
        "pixels"
    ][0, :, :, 0]
    assert (got[:, [0, 1, 8, 9]] == 0).all()
    assert (got[:, 3:7] == 255).all()


def test_zscore_is_by_channel() -> None:
    array = np.stack([np.zeros((4, 4)), np.full((4, 4), 100), np.arange(16).reshape(4, 4)], -1).astype(
        np.uint8
    )
    field = fitted(Image(normalize="zscore"), [packed(array)]).fields("c", "input")["pixels"]
    assert field.mean == (0, 100, 7.5)
    assert field.std == (1, 1, pytest.approx(np.arange(16).std()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_a_damaged_picture_is_counted_and_stops_nobody(kind: str) -> None:
    whole = packed(pixels(40), kind)
    cells = pl.Series([whole, whole[: len(whole) // 2], b"", b"text", None])
    processor = fitted(Image(), [whole])
    assert processor.invalid(cells).to_list() == [False, True, True, True, True]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"]), data=st.data())
def test_what_is_let_through_can_be_decoded(kind: str, data: st.DataObject) -> None:
    broken = bytearray(packed(np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * 9, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cells = pl.Series([bytes(broken)])
    processor = fitted(Image(), [packed(pixels(4))])
    if not processor.invalid(cells)[0]:
        assert processor.encode(cells)["pixels"].shape == (1, 4, 4, 3)


def test_missing_files_and_other_arrays() -> None:
    processor = fitted(Image(), [packed(pixels())])
    assert processor.invalid(pl.Series(["no/such.png", "data:image/png;base64,???"])).all()
    for shape in ((8,), (8, 8, 2), (3, 8, 8), (0, 8)):
        assert processor.invalid(pl.Series([np.zeros(shape).tolist()], dtype=pl.Object)).all()


def test_sixteen_bits_keep_their_shades() -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    got = fitted(Image(), [packed(ramp)]).encode(pl.Series([packed(ramp)]))["pixels"][0, :, :, 0]
    assert (got == ramp >> 8).all()


def test_pixels_on_another_scale_are_refused() -> None:
    with pytest.raises(DataError, match="lie between 0 and 0"):
        fitted(Image(), pl.Series(rng.random((3, 8, 8)) * 0.9))
    with pytest.raises(DataError, match="white is 255"):
        fitted(Image(), pl.Series(np.full((3, 8, 8), 4000, np.uint16)))
    fitted(Image(), pl.Series(np.full((3, 8, 8), 255.0)))


def test_beyond_the_range_of_the_training_rows() -> None:
    processor = fitted(Image(), pl.Series(np.full((3, 2, 2), 200, np.int32)))
    for cells in (pl.Series(np.full((1, 2, 2), 300, np.int32)), pl.Series([[[300, 300], [300, 300]]])):
        assert (processor.encode(cells)["pixels"] == 255).all()


def test_files_are_not_left_open(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(packed(pixels()))
    processor = fitted(Image(), [str(path)] * 3)
    processor.encode(pl.Series([str(path)]))  # an open file is a warning, and so an error here
    assert json.dumps(processor.state())


def test_the_same_contents_are_the_same_row(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(packed(np.zeros((4, 4), np.uint8)))
    same = fitted(Image(), [str(tmp_path / "a.png")]).identity(
        pl.Series([str(tmp_path / f"{n}.png") for n in "ab"])
    )
    assert same[0] == same[1]


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    n=st.integers(2, 4),
    seed=st.integers(0, 9),
    normalize=st.sampled_from(["unit", "zscore", "none"]),
)
def test_any_images(height: int, width: int, channels: int, n: int, seed: int, normalize: Any) -> None:
    shape = (n, height, width) if channels == 1 else (n, height, width, channels)
    stack = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    check_processor(Image(normalize=normalize), pl.Series("c", stack))
    check_processor(Image(normalize=normalize), pl.Series("c", [packed(one) for one in stack] + [None]))
