"""The n-gram model that language models are held against: by hand, against the formula written out, and as a distribution."""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "_ngram.py"


@pytest.fixture(scope="module")
def kneser_ney() -> Any:
    spec = importlib.util.spec_from_file_location("luban_bench_ngram", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
    return module.KneserNey


def flat(documents: list[list[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.array([token for document in documents for token in document]), np.cumsum(
        [0, *map(len, documents)]
    )


def documents(seed: int, count: int, vocabulary: int = 300) -> list[list[int]]:
    """Draws by Zipf's law, of which some repeat what stands two places before, as text does."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, vocabulary + 1)
    found = []
    for length in rng.integers(1, 12, size=count):
        document = rng.choice(vocabulary, size=length, p=share / share.sum()).tolist()
        for i in range(2, length):
            if rng.random() < 0.3:
                document[i] = document[i - 2]
        found.append(document)
    return found


def written_out(train: list[list[int]], vocabulary: int, order: int) -> Any:
    """Chen and Goodman's formula as it stands, with dictionaries."""
    opened = [[-1, *document] for document in train]
    raw = [
        Counter(tuple(d[i : i + n]) for d in opened for i in range(len(d) - n + 1))
        for n in range(1, order + 1)
    ]
    counts: list[dict[tuple[int, ...], int]] = []
    for n in range(1, order):
        left = Counter(gram[1:] for gram in raw[n])
        counts.append({gram: c if gram[0] == -1 else left[gram] for gram, c in raw[n - 1].items()})
    counts.append(dict(raw[-1]))
    counts[0].pop((-1,), None)
    discounts, followers = [], []
    for table in counts:
        n1, n2, n3, n4 = (sum(c == k for c in table.values()) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        discounts.append([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        after: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for gram, c in table.items():
            after[gram[:-1]].append(c)
        followers.append(after)

    def probability(token: int, history: tuple[int, ...]) -> float:
        lower = probability(token, history[1:]) if history else 1 / vocabulary
        n = len(history)
        after = followers[n].get(history, [])
        if not after:
            return lower
        d = discounts[n]
        c = counts[n].get((*history, token), 0)
        spare = sum(d[min(3, each)] for each in after)
        return (c - d[min(3, c)] + spare * lower) / sum(after)

    return lambda token, before: probability(token, (-1, *before)[-(order - 1) :] if order > 1 else ())


def test_a_value_by_hand(kneser_ney: Any) -> None:
    """Two documents, a b and a c, of a vocabulary of four.

    So little has no four-fold pair, and the discounts are 1/2, 1 and 3/2. Each of a, b and c has one token before it: each gets
    (1 - 1/2) / 3 and a third of what is spared, 1/2, for all four alike: 1/6 + 1/8 = 7/24, and d 1/8. (open a) occurs twice,
    a b and a c once: after either context half is spared.
    """
    model = kneser_ney(*flat([[0, 1], [0, 2]]), 4, order=2)
    single = np.array([7 / 24, 7 / 24, 7 / 24, 1 / 8])
    opening, after_a = single / 2 + [1 / 2, 0, 0, 0], single / 2 + [0, 1 / 4, 1 / 4, 0]
    np.testing.assert_allclose(model.distribution([]), opening, rtol=1e-15)
    np.testing.assert_allclose(model.distribution([0]), after_a, rtol=1e-15)
    np.testing.assert_allclose(model.distribution([3]), single, rtol=1e-15)
    found = model.probabilities(*flat([[0, 1], [0]]))
    np.testing.assert_allclose(found, [opening[0], after_a[1], opening[0]], rtol=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_is_the_formula(kneser_ney: Any, order: int) -> None:
    train, held_out = documents(0, 1500), documents(1, 30)
    model = kneser_ney(*flat(train), 320, order=order)
    assert all(one.discounts != (0.5, 1.0, 1.5) for one in model.orders)
    expected = written_out(train, 320, order)
    found = model.probabilities(*flat(held_out))
    wanted = [expected(d[i], d[:i]) for d in held_out for i in range(len(d))]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_probabilities_sum_to_one(kneser_ney: Any) -> None:
    train = documents(0, 500, 40)
    model = kneser_ney(*flat(train), 50, order=5)
    rng = np.random.default_rng(2)
    contexts = [d[: rng.integers(len(d) + 1)] for d in train[:20]]  # seen
    contexts += [rng.integers(50, size=rng.integers(7)).tolist() for _ in range(20)]  # mostly not
    for context in contexts:
        probabilities = model.distribution(context)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert (probabilities > 0).all()


def test_a_longer_context_helps_where_text_repeats_itself(kneser_ney: Any) -> None:
    train, held_out = flat(documents(0, 3000, 30)), flat(documents(1, 200, 30))
    two, three = (-np.log2(kneser_ney(*train, 30, order=n).probabilities(*held_out)).mean() for n in (2, 3))
    assert three < 0.95 * two
