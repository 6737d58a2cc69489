"""Intervals: how often they hold the truth, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from luban.evaluation.intervals import UNITS, deal, interval, mcnemar, resamples, units_of
from luban.evaluation.metrics import measure


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Scores are 80 % right by construction; normal errors have a mean absolute value of √(2/π)."""
    generator = np.random.default_rng(0)
    trials, held_accuracy, held_error = 200, 0, 0
    for seed in range(trials):
        right = generator.random(150) < 0.8
        truth = generator.integers(0, 2, 150)
        said = np.where(right, truth, 1 - truth)
        accuracy = measure("binary", truth, said, resamples=300, seed=seed, details=False).metrics["accuracy"]
        held_accuracy += (accuracy.low or 0) <= 0.8 <= (accuracy.high or 0)
        mae = measure(
            "regression", np.zeros(150), generator.normal(size=150), resamples=300, seed=seed
        ).metrics["mae"]
        held_error += (mae.low or 0) <= np.sqrt(2 / np.pi) <= (mae.high or 0)
    assert 0.89 < held_accuracy / trials < 0.99
    assert 0.89 < held_error / trials < 0.99


def test_the_width_is_that_of_the_binomial() -> None:
    truth = np.r_[np.ones(900, int), np.zeros(100, int)]
    accuracy = measure("binary", truth, np.ones(1000)).metrics["accuracy"]
    assert accuracy.value == 0.9
    assert accuracy.low == pytest.approx(0.9 - 1.96 * np.sqrt(0.9 * 0.1 / 1000), abs=0.003)
    assert accuracy.high == pytest.approx(0.9 + 1.96 * np.sqrt(0.9 * 0.1 / 1000), abs=0.003)


def test_no_mistake_is_not_certainty() -> None:
    truth = np.array([0, 1] * 10)
    metrics = measure("binary", truth, truth).metrics
    expected = stats.binomtest(20, 20).proportion_ci(0.95).low
    assert (metrics["accuracy"].low, metrics["accuracy"].high) == pytest.approx((expected, 1.0))
    assert metrics["recall"].low == pytest.approx(stats.binomtest(10, 10).proportion_ci(0.95).low)
    none_right = measure("binary", truth, 1 - truth).metrics["accuracy"]
    assert (none_right.low, none_right.high) == pytest.approx((0.0, 1 - expected))
    assert "all resamples agree" in (metrics["f1_macro"].note or "")


def test_bias_is_taken_out_and_bounds_hold() -> None:
    """A perfectly calibrated model: the measured error is all bias, and the interval reaches down to zero."""
    generator = np.random.default_rng(0)
    scores = generator.random(300)
    error = measure("binary", (generator.random(300) < scores).astype(int), scores).metrics["ece"]
    assert error.value is not None
    assert error.value > 0.02
    assert error.low == 0.0


def test_what_is_mostly_not_defined_has_no_interval() -> None:
    draws = np.where(np.arange(100) < 60, np.nan, 0.5)
    assert interval(0.5, draws).low is None
    assert "most resamples" in (interval(0.5, draws).note or "")
    assert interval(float("nan"), draws, note="why").value is None


def test_resamples_draw_as_many_as_there_are() -> None:
    chunks = list(resamples(7, 1000, 0))
    drawn = np.concatenate(chunks)
    assert drawn.shape == (1000, 7)
    assert (drawn.sum(1) == 7).all()
    assert drawn.mean(0) == pytest.approx(np.ones(7), abs=0.1)
    assert drawn.var(0) == pytest.approx(np.full(7, 6 / 7), abs=0.15)
    few = list(resamples(7, 1000, 0, width=10_000))  # fewer at a time, but the same
    assert max(map(len, few)) == 200
    assert (np.concatenate(few) == drawn).all()


def test_rows_are_dealt_by_lot_whatever_part_is_asked_for() -> None:
    whole = deal(slice(0, 50_000), 50_000, 100, 7)
    assert (deal(slice(12_345, 12_400), 50_000, 100, 7) == whole[12_345:12_400]).all()
    sizes = np.bincount(whole, minlength=100)
    assert len(sizes) == 100
    assert stats.chisquare(sizes).pvalue > 1e-3
    assert (deal(slice(3, 6), 9, 9, 0) == [3, 4, 5]).all()  # each row its own unit


def test_sums_of_all_units_fit_into_memory() -> None:
    assert units_of(5, 10) == 5
    assert units_of(10**7, 20) == units_of(10**7, 800) == UNITS
    assert units_of(10**7, 15_000) * 15_000 <= 2**24
    assert units_of(10**7, 10**6) == 1_000


def test_rows_in_order_have_the_intervals_of_rows_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose right rows come first: dealt out evenly along it, its groups would be too much alike."""
    monkeypatch.setattr("luban.evaluation.intervals.UNITS", 500)
    truth = np.ones(10_000, int)
    accuracy = measure("binary", truth, np.repeat([0.9, 0.1], 5_000), details=False).metrics["accuracy"]
    assert accuracy.low == pytest.approx(0.5 - 1.96 * 0.005, abs=0.0015)
    assert accuracy.high == pytest.approx(0.5 + 1.96 * 0.005, abs=0.0015)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 9), (9, 1), (5, 5), (30, 60), (0, 4)])
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)
