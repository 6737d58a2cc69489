"""Embeddings are the features, neighbours are exact, the map keeps what it says it keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from table_cases import reviews, table_case, text_case

from luban.errors import DataError, MachineError
from luban.explaining._case import Case
from luban.explaining.embeddings import Embeddings, features_of, nearest, principal


@pytest.fixture(scope="module")
def texts() -> Case:
    return text_case(rows=60)


def test_the_vectors_are_what_the_heads_read(texts: Case, tmp_path: Path) -> None:
    survey = Embeddings(file=str(tmp_path / "deep" / "e.parquet"), rows=50).survey(texts)
    table = pl.read_parquet(tmp_path / "deep" / "e.parquet")
    assert table.columns == ["row", "label", "embedding"]
    assert len(table) == survey.rows == 50
    assert not list((tmp_path / "deep").glob(".*"))
    vectors = table["embedding"].to_numpy()
    network = texts.predictor.model
    with torch.no_grad():
        outputs = network(texts.batch())
        head = next(iter(network.heads.values()))  # type: ignore[union-attr]
        again = head(torch.from_numpy(vectors.copy()))  # type: ignore[operator]
    rows = table["row"].to_list()
    assert torch.allclose(again, outputs[texts.output][rows], atol=1e-5)
    assert table["label"].to_list() == [texts.given["label"][i] for i in rows]
    assert any("50 vectors of" in note for note in survey.notes)


def test_neighbours_are_those_of_the_full_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    similar = cosine_similarity(vectors)
    np.fill_diagonal(similar, -2)
    expected = np.argsort(-similar, axis=1)[:, :4]
    for cells in (2**22, 120):  # at once, and three rows at a time
        monkeypatch.setattr("luban.explaining.embeddings._CELLS", cells)
        places, cosines = nearest(vectors, 4)
        assert places.tolist() == expected.tolist()
        assert cosines == pytest.approx(np.take_along_axis(similar, expected, 1), abs=1e-5)
    assert nearest(vectors[:2], 1)[0].tolist() == [[1], [0]]


def test_the_map_is_that_of_principal_components() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 6)) * np.arange(1, 7)
    centred = vectors - vectors.mean(0)
    points, shares = principal(centred)
    theirs = PCA(2).fit(vectors)
    assert np.abs(points) == pytest.approx(np.abs(theirs.transform(vectors)), abs=1e-8)
    assert shares == pytest.approx(theirs.explained_variance_ratio_)


def test_reviews_of_one_kind_lie_together(texts: Case) -> None:
    survey = Embeddings(neighbours=3).survey(texts)
    assert survey.quality["nearest_has_same_label"] > 0.9
    assert survey.quality["same_label_by_chance"] == pytest.approx((30 * 29 * 2) / (60 * 59))
    assert survey.quality["variance_in_map"] > 0.5
    assert len(survey.tables["neighbours"][0]["neighbours"]) == 3
    points = survey.tables["map"]
    sides = {
        name: np.mean([p["x"] for p in points if p["label"] == name]) for name in ("positive", "negative")
    }
    spread = np.std([p["x"] for p in points])
    assert abs(sides["positive"] - sides["negative"]) > spread


def test_tsne_keeps_neighbourhoods(texts: Case) -> None:
    one = Embeddings(map="tsne", perplexity=10).survey(texts)
    assert one.quality["trustworthiness"] > 0.85
    again = Embeddings(map="tsne", perplexity=10).survey(texts)
    assert one.tables["map"] == again.tables["map"]
    assert Embeddings(map="tsne", perplexity=5).survey(texts).tables["map"] != one.tables["map"]


def test_labels_and_few_rows() -> None:
    case = table_case(rows=5, steps=1)
    assert {p["label"] for p in Embeddings(label="city").survey(case).tables["map"]} <= {
        "Oslo",
        "Rome",
        "Kyiv",
    }
    bare = Case.of(case.predictor, case.given.drop("paid"))
    assert {p["label"] for p in Embeddings().survey(bare).tables["map"]} <= {"yes", "no"}  # what is predicted
    with pytest.raises(DataError, match="no column 'nothing'"):
        Embeddings(label="nothing").survey(case)
    two = Embeddings(neighbours=9).survey(case.part(0, 2))
    assert len(two.tables["neighbours"][0]["neighbours"]) == 1
    assert "map" not in two.tables
    assert Embeddings(neighbours=0, map="none").survey(case).tables == {}


def test_a_place_that_cannot_be_written_is_named(texts: Case, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(MachineError, match="could not be written"):
        Embeddings(file=str(tmp_path / "taken" / "e.parquet")).survey(texts)
    assert Embeddings().refusal(texts) is None
    assert len(features_of(texts)) == 60 < len(reviews())
