"""Embeddings: the vector that the model makes of each row, its neighbours, and a map of all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import Field as Option

from luban import files
from luban.data.processors._base import as_words
from luban.errors import DataError
from luban.explaining._base import Explainer, Survey
from luban.explaining._case import Case
from luban.explaining._rows import batch_of, mixed, outputs_of, sample, step_of
from luban.registry import register
from luban.sentences import say

__all__ = ["Embeddings", "features_of", "nearest"]

Floats = npt.NDArray[np.float32]

_CELLS = 2**22  # similarities made at a time: 16 MB
_TRUSTED = 2000  # rows on which the map is judged, at most: it compares all with all
_FEWEST = 3


@register("explainers")
class Embeddings(Explainer):
    """The features that the heads read (of a model without a target, its vector of a text), a row.

    They are written as Parquet where `file` says so; each row's nearest rows are found exactly, by cosine, and all rows are
    laid out in two dimensions. What the map keeps of the neighbourhoods is measured (trustworthiness: Venna and Kaski,
    2001), and so is how often a row's nearest neighbour has its label.

    Example:
        >>> Embeddings(map="tsne").neighbours
        5
    """

    paper: ClassVar = say("Pearson, 1901 (PCA); van der Maaten and Hinton, 2008 (t-SNE)")
    limits: ClassVar = say(
        "a map of two dimensions cannot keep all distances: in t-SNE the sizes of clusters and the gaps between them mean nothing"
    )
    scope: ClassVar[Literal["row", "set"]] = "set"

    file: str | None = None
    """Where the vectors are written as Parquet, with their row and label; nowhere if left out."""
    neighbours: Annotated[int, Option(ge=0)] = 5
    """Nearest rows that are named for each."""
    map: Literal["pca", "tsne", "none"] = "pca"
    """How rows are laid out: by their two main directions, or by t-SNE, which shows groups better and takes longer."""
    perplexity: Annotated[float, Option(gt=1)] = 30.0
    """Neighbours that t-SNE keeps near, about; at most a third of the rows."""
    label: str | None = None
    """Column that rows are labelled by; by default the target where the rows hold it, else what is predicted."""
    rows: Annotated[int, Option(ge=1)] = 5000
    """Rows that are looked at, at most."""

    def refusal(self, case: Case) -> str | None:
        """It fits whatever makes one vector a row."""
        if not case.target and case.predictor.pipeline.written:
            return say("it needs a model that makes one vector a row, and this one writes texts")
        return None

    def into(self, folder: Path) -> Self:
        """Write the vectors as embeddings.parquet, where no other place is named."""
        return (
            self.model_copy(update={"file": str(folder / "embeddings.parquet")})
            if self.file is None
            else self
        )

    def survey(self, case: Case) -> Survey:
        """Make the vectors, and what is to be said of them.

        Raises:
            DataError: if there is no column to label rows by.
            MachineError: if the file cannot be written.
        """
        case, notes = sample(case, self.rows, np.random.default_rng(case.seed))
        vectors = features_of(case)
        labels = self._labels(case)
        tables: dict[str, list[dict[str, Any]]] = {}
        quality = {"width": float(vectors.shape[1])}
        if self.neighbours and len(case) > 1:
            places, similarities = nearest(vectors, min(self.neighbours, len(case) - 1))
            tables["neighbours"] = [
                {
                    "row": number,
                    "neighbours": [case.numbers[j] for j in own.tolist()],
                    "cosine": near.tolist(),
                }
                for number, own, near in zip(case.numbers, places, similarities, strict=True)
            ]
            if labels is not None:
                named = np.asarray([str(one) for one in labels])
                quality["nearest_has_same_label"] = float((named[places[:, 0]] == named).mean())
                _, counts = np.unique(named, return_counts=True)
                pairs = counts * (counts - 1) / (len(named) * (len(named) - 1))
                quality["same_label_by_chance"] = float(pairs.sum())
        if len(case) < 2:
            notes.append(say("1 row alone has no neighbours; hand over more rows"))
        if self.map != "none" and len(case) >= _FEWEST:
            points, own = self._map(vectors, case.seed)
            quality |= own
            tables["map"] = [
                {"row": number, "x": x, "y": y, "label": None if labels is None else labels[i]}
                for i, (number, (x, y)) in enumerate(zip(case.numbers, points.tolist(), strict=True))
            ]
        if self.file is not None:
            write(Path(self.file), case.numbers, labels, vectors)
            notes.append(
                say(
                    "{n:,} vectors of {width} numbers are in '{file}'",
                    n=len(case),
                    width=vectors.shape[1],
                    file=Path(self.file).name,
                )
            )
        return Survey(self.type, case.target, len(case), tables, quality, notes)

    def _labels(self, case: Case) -> list[Any] | None:
        """Return a label a row; None where there is none."""
        column = self.label or case.target
        if column and column in case.frame.columns:
            values = case.frame[column]
            numeric = column == case.target and not case.classes
            return values.to_list() if numeric else as_words(values).to_list()
        if self.label is not None:
            raise DataError(
                say(
                    "there is no column '{label}' to label rows by; columns are {columns}",
                    label=self.label,
                    columns=[*case.frame.columns],
                )
            )
        if not case.target:
            return None
        decoded = case.processor.decode(case.decided(outputs_of(case, case.encoded), case.frame))
        return [
            "; ".join(one["value"]) if isinstance(one["value"], list) else one["value"] for one in decoded
        ]

    def _map(self, vectors: Floats, seed: int) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
        """Return a place for each row, (n, 2), and how much of the vectors it keeps."""
        from sklearn.manifold import trustworthiness

        quality: dict[str, float] = {}
        centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
        if self.map == "tsne":
            from sklearn.manifold import TSNE

            perplexity = min(self.perplexity, max(1.0, (len(vectors) - 1) / 3))
            points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed % 2**32).fit_transform(
                centred
            )
        else:
            points, shares = principal(centred)
            quality["variance_in_map"] = float(shares.sum())
        some = np.random.default_rng(seed).permutation(len(vectors))[:_TRUSTED]
        near = min(10, (len(some) - 1) // 2)
        if near >= 1 and np.ptp(centred[some]) > 0:
            quality["trustworthiness"] = float(trustworthiness(centred[some], points[some], n_neighbors=near))
        return np.asarray(points, np.float64), quality


def features_of(case: Case) -> Floats:
    """Return the features of the case's rows, (n, D)."""
    encoded, step, parts = case.encoded, step_of(case.encoded), []
    with torch.inference_mode():
        for start in range(0, len(case), step):
            rows = np.arange(start, min(len(case), start + step))
            batch = batch_of(case, mixed(encoded, dict.fromkeys(case.inputs, rows)))
            parts.append(case.predictor.model(batch)["features"].float().cpu())
    result: Floats = torch.cat(parts).numpy()
    return result


def nearest(vectors: Floats, count: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the rows of the largest cosine with each row, the nearest first, and these cosines; each (n, count).

    A row is no neighbour of its own. All pairs are compared, some rows at a time. A vector of zeros is like no other.

    Example:
        >>> nearest(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0]], np.float32), 1)[0].tolist()
        [[1], [0], [1]]
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places, cosines = [], []
    step = max(1, _CELLS // len(unit))
    for start in range(0, len(unit), step):
        similar = unit[start : start + step] @ unit.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        best = np.argpartition(-similar, min(count, len(unit) - 1) - 1, axis=1)[:, :count]
        own = np.take_along_axis(similar, best, 1)
        order = np.lexsort((best, -own), axis=1)  # of equals, the first row
        places.append(np.take_along_axis(best, order, 1))
        cosines.append(np.take_along_axis(own, order, 1))
    return np.concatenate(places).astype(np.int64), np.concatenate(cosines)


def principal(centred: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return each row's place along the two main directions, (n, 2), and the share of the variance along each, (2,).

    A direction has no sign of its own: its largest weight is made positive, so that a map looks the same each time.
    """
    covariance = centred.T @ centred
    values, directions = np.linalg.eigh(covariance)
    order = np.argsort(-values)[:2]
    main = directions[:, order]  # (D, 2)
    main = main * np.where(main[np.abs(main).argmax(0), np.arange(main.shape[1])] < 0, -1.0, 1.0)
    points, total = centred @ main, max(float(values.sum()), 1e-30)
    if points.shape[1] < 2:  # vectors of a single number
        points = np.concatenate([points, np.zeros((len(points), 1))], 1)
    return points, np.maximum(values[order], 0.0) / total


def write(path: Path, numbers: list[int], labels: list[Any] | None, vectors: Floats) -> None:
    """Write ``row``, ``label`` and ``embedding`` (an array of float32) as Parquet; complete, or not at all.

    Raises:
        MachineError: if the place cannot be written.
    """
    columns = [pl.Series("row", numbers, dtype=pl.Int64)]
    if labels is not None:
        columns.append(pl.Series("label", labels, strict=False))
    columns.append(pl.Series("embedding", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])))
    with files.new_file(path) as beside:
        pl.DataFrame(columns).write_parquet(beside)
