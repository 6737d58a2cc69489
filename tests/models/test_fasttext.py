"""What a bag of n-grams makes of a text: its mean, or nearer to TF-IDF."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import case, text
from torch import Tensor

from luban.data.contracts import Field
from luban.data.ragged import Ragged
from luban.models.fasttext import FastText

SIZE, BUCKETS, NONE = 20, 100, 120
FIELD = Field("t", "text", "input", "int32", None, size=SIZE)
TEXTS = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=5)


def encoder(**options: Any) -> Any:
    torch.manual_seed(0)
    return FastText(**{"embedding": 16, "buckets": BUCKETS, **options}).encoder("t.ids", FIELD)


def ragged(texts: list[list[int]]) -> Ragged:
    return Ragged.from_rows([torch.tensor(row, dtype=torch.int64) for row in texts])


def expected(reader: Any, ids: Ragged) -> Tensor:
    """Text by text, by hand."""
    rows = []
    for found in ids.like(reader.indices(ids)).unbind():
        present = [i for i in found.flatten().tolist() if i != NONE]
        present = sorted(set(present)) if reader.once else present
        n = max(1, len(present))
        rows.append(reader.embedding.weight[present].sum(0) / (n if reader.bag == "mean" else n**0.5))
    return torch.stack(rows)


@pytest.mark.parametrize("ngrams", [1, 3])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("bag", ["mean", "sqrt"])
@given(texts=TEXTS)
def test_a_text_is_the_sum_of_its_ngrams_over_their_number_or_its_root(
    bag: str, once: bool, ngrams: int, texts: list[list[int]]
) -> None:
    reader, ids = encoder(bag=bag, once=once, ngrams=ngrams), ragged(texts)
    features, states = reader({"t.ids": ids})
    assert states is None
    assert torch.allclose(features, expected(reader, ids), atol=1e-6)


@pytest.mark.parametrize("bag", ["mean", "sqrt"])
def test_gradients_are_those_of_the_sum(bag: str) -> None:
    reader, ids = encoder(bag=bag, once=True), ragged([[1, 2, 1, 2, 1], [], [3], [1, 1, 1, 1]])
    direction = torch.randn(4, 16)
    ours, theirs = (
        torch.autograd.grad((x * direction).sum(), reader.embedding.weight)[0]
        for x in (reader({"t.ids": ids})[0], expected(reader, ids))
    )
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not ours[NONE].any()


def test_the_length_of_a_vector_depends_on_the_length_of_a_text_only_as_a_mean() -> None:
    torch.manual_seed(0)
    spans: dict[str, list[float]] = {"mean": [], "sqrt": []}
    texts = ragged([torch.randperm(SIZE)[:n].repeat(3).tolist() for n in (2, 20)])
    for bag, found in spans.items():
        reader = encoder(bag=bag, ngrams=1, once=True, embedding=512)
        found += reader({"t.ids": texts})[0].norm(dim=1).tolist()
    assert spans["sqrt"][0] == pytest.approx(spans["sqrt"][1], rel=0.15)
    assert spans["mean"][0] == pytest.approx(spans["mean"][1] * 10**0.5, rel=0.15)


def test_once_makes_a_repeated_text_the_text_but_for_the_seam() -> None:
    reader = encoder(once=True, bag="sqrt", ngrams=1)
    one, two = (reader({"t.ids": ragged([row])})[0] for row in ([5, 6, 7], [7, 6, 5, 5, 6, 7, 7]))
    assert torch.allclose(one, two, atol=1e-6)


def test_a_batch_without_a_token_is_zeros() -> None:
    reader = encoder(once=True, bag="sqrt")
    features, _ = reader({"t.ids": ragged([[], []])})
    assert features.shape == (2, 16)
    assert not features.any()


def test_defaults_are_the_mean_of_the_article() -> None:
    spec, batch = case(text())
    torch.manual_seed(0)
    plain = FastText(embedding=4, buckets=50).build(spec)(batch)
    torch.manual_seed(0)
    same = FastText(embedding=4, buckets=50, bag="mean", once=False).build(spec)(batch)
    assert all(torch.equal(plain[name], same[name]) for name in plain)
