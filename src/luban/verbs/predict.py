"""The verb `predict`: rows → predictions, in a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luban.artefact import Artefact
from luban.predict import of_artefact
from luban.verbs.rows import chunks_of

__all__ = ["predict"]


def predict(
    artefact: str | Path, data: str, *, device: str = "cpu", batch_size: int = 256
) -> Iterator[dict[str, Any]]:
    """Yield one prediction a row, in order; holds one chunk of rows at a time.

    Args:
        artefact: the artefact's directory.
        data: a file, ``-`` for JSON lines on standard input, JSON rows, or the value of the only input column.
        device: ``cpu`` or ``cuda``.
        batch_size: rows at a time.

    Raises:
        ArtefactError: if the artefact is missing or damaged.
        ParityError: if it does not predict what it did.
        DataError: if the rows cannot be read.

    Example:
        >>> list(predict("runs/reviews", "物流很快"))      # doctest: +SKIP
        [{'label': 'positive', ...}]
    """
    predictor = of_artefact(Artefact.load(artefact), device=device)
    for chunk in chunks_of(data, list(predictor.pipeline.inputs)):
        yield from predictor.predict(chunk, batch_size=batch_size)
