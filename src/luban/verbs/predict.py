"""The verb `predict`: rows → predictions, in a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luban.artefact import Artefact
from luban.generation.options import Generation
from luban.generation.reader import Piece
from luban.predict import of_artefact
from luban.recipe import options_from
from luban.verbs.rows import chunks_of

__all__ = ["predict"]


def predict(
    artefact: str | Path,
    data: str,
    generation: Sequence[str] = (),
    *,
    candidates: Sequence[str] = (),
    per_token: bool = False,
    device: str = "cpu",
    weights: str = "stored",
    batch_size: int = 256,
    on_piece: Callable[[Piece], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one prediction a row, in order; holds one chunk of rows at a time.

    Args:
        artefact: the artefact's directory.
        data: a file, ``-`` for JSON lines on standard input, JSON rows, or the value of the only input column.
        generation: ``key=value`` options of how a language model continues a text (`luban.generation.options.Generation`).
        candidates: answers that a language model chooses from, instead of continuing.
        per_token: whether candidates are compared by the mean log-probability of their tokens, so that long ones have a chance.
        device: ``cpu`` or ``cuda``.
        weights: ``stored``, or ``int8`` for a causal language model.
        batch_size: rows at a time.
        on_piece: is shown a continuation as it comes.

    Raises:
        ArtefactError: if the artefact is missing or damaged.
        ParityError: if it does not predict what it did.
        DataError: if the rows cannot be read.

    Example:
        >>> list(predict("runs/reviews", "物流很快"))      # doctest: +SKIP
        [{'label': 'positive', ...}]
    """
    predictor = of_artefact(Artefact.load(artefact), device=device, weights=weights)
    options = options_from(Generation, list(generation), "generation") if generation else None
    first = 0
    for chunk in chunks_of(data, list(predictor.pipeline.inputs)):
        yield from predictor.predict(
            chunk,
            batch_size=batch_size,
            generation=options,
            candidates=candidates,
            per_token=per_token,
            on_piece=on_piece,
            first=first,
        )
        first += len(chunk)
