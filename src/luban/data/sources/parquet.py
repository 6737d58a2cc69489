"""Parquet, the format to prefer for large tables: typed, packed and quick to read."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from luban.data.sources._files import File, local_copy, reading
from luban.data.sources._tables import Files, Schema
from luban.registry import register
from luban.sentences import say

__all__ = ["Parquet"]


@register("sources")
class Parquet(Files):
    """Parquet files; columns keep their types. At least one row group is held in memory at a time.

    Example:
        >>> Parquet(path="part-*.parquet").columns()      # doctest: +SKIP
        ['review', 'label']
    """

    def _schema(self, file: File) -> Schema:
        with reading(file.name, say("a Parquet file")):
            return dict(self._lazy(file).collect_schema())

    def _frames(self, file: File, schema: Schema) -> Iterator[pl.DataFrame]:
        with reading(file.name, say("a Parquet file")):
            yield from self._lazy(file).collect_batches(maintain_order=True, lazy=True)

    def _lazy(self, file: File) -> pl.LazyFrame:
        return pl.scan_parquet(local_copy(file), glob=False, hive_partitioning=False)
