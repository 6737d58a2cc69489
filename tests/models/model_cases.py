"""Specifications and batches of every kind of input, small enough for hundreds of models."""

from __future__ import annotations

import torch
from torch import Tensor

from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged

ROWS = 6


def image(column: str = "照片", side: int = 12, channels: int = 3) -> tuple[dict[str, Field], Batch]:
    field = Field(column, "image", "input", "uint8", (side, side, channels), mean=(0.0,), std=(255.0,))
    pixels = torch.rand(ROWS, side, side, channels).permute(0, 3, 1, 2)
    return {f"{column}.pixels": field}, {f"{column}.pixels": pixels}


def text(column: str = "评论 文本", size: int = 30) -> tuple[dict[str, Field], Batch]:
    rows = [torch.randint(size, (length,)) for length in (7, 1, 0, 4, 7, 3)]
    field = Field(column, "text", "input", "int32", None, size=size)
    return {f"{column}.ids": field}, {f"{column}.ids": Ragged.from_rows(rows)}


def table() -> tuple[dict[str, Field], Batch]:
    """Columns whose names try what names can be: dots, spaces, Chinese, attributes of a ModuleDict."""
    fields = {
        "年龄.value": Field("年龄", "number", "input", "float32"),
        "年龄.missing": Field("年龄", "number", "input", "float32"),
        "capital gain.value": Field("capital gain", "number", "input", "float32"),
        "is.member.value": Field("is.member", "binary", "input", "float32"),
        "values.index": Field("values", "category", "input", "int32", size=4),
        "城市.index": Field("城市", "category", "input", "int32", size=40),
        "tags.ids": Field("tags", "set", "input", "int32", None, size=9),
        "day.value": Field("day", "date", "input", "float32", (5,)),
        "embedding.value": Field("embedding", "vector", "input", "float32", (7,)),
    }
    batch: Batch = {
        "年龄.value": torch.randn(ROWS),
        "年龄.missing": torch.tensor([0.0, 1, 0, 0, 1, 0]),
        "capital gain.value": torch.randn(ROWS),
        "is.member.value": torch.tensor([0.0, 1, 1, 0, 1, 0]),
        "values.index": torch.randint(4, (ROWS,)),
        "城市.index": torch.randint(40, (ROWS,)),
        "tags.ids": Ragged.from_rows([torch.randint(9, (length,)) for length in (2, 0, 1, 3, 0, 1)]),
        "day.value": torch.randn(ROWS, 5),
        "embedding.value": torch.randn(ROWS, 7),
    }
    return fields, batch


def written(column: str = "译文", size: int = 30) -> tuple[dict[str, Field], Batch]:
    """A text to be written."""
    rows = [torch.randint(size, (length,)) for length in (2, 5, 1, 0, 3, 4)]
    field = Field(column, "text", "target", "int32", None, size=size)
    return {f"{column}.ids": field}, {f"{column}.ids": Ragged.from_rows(rows)}


TARGETS = {
    "标签.index": Field("标签", "category", "target", "int32", size=3, output="logits", width=3),
    "price.value": Field("price", "number", "target", "float32", output="value", width=1),
}


def case(
    *parts: tuple[dict[str, Field], Batch], targets: dict[str, Field] | None = None
) -> tuple[Spec, Batch]:
    """Join inputs and add targets."""
    fields: dict[str, Field] = {}
    batch: Batch = {}
    for part_fields, part_batch in parts:
        fields |= part_fields
        batch |= part_batch
    return Spec(fields | (TARGETS if targets is None else targets)), batch


def tensor(value: Tensor | Ragged) -> Tensor:
    assert isinstance(value, Tensor)
    return value
