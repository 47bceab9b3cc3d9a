"""analysis/performance.py by hand, by enumeration of subsets, and by simulation."""

import itertools
import math

import numpy as np
import pytest

from analysis.performance import (
    best_so_far,
    budget_grid,
    expected_best,
    expected_best_intervals,
    gain_of_doubling,
    n_with_interval,
)
from analysis.statistics import clopper_pearson


def test_expected_best_of_three_values_by_hand():
    # of {1, 2, 4}: one, (1 + 2 + 4) / 3; two, the pairs' maxima 2, 4, 4; all three, 4
    assert expected_best([4, 1, 2], [1, 2, 3]) == pytest.approx([7 / 3, 10 / 3, 4])


def test_expected_best_is_the_mean_over_all_subsets():
    values = np.random.default_rng(0).normal(size=9)
    values[3] = values[4]  # a tie
    by_enumeration = [np.mean([max(s) for s in itertools.combinations(values, n)]) for n in range(1, 10)]
    assert expected_best(values, range(1, 10)) == pytest.approx(by_enumeration)


def test_expected_best_is_unbiased_where_the_plug_in_estimate_is_too_low():
    # of n uniform draws the best is n / (n + 1) in the mean
    rng, size, n, draws = np.random.default_rng(1), 10, 8, 4000
    samples = rng.random((draws, size))
    unbiased = np.mean([expected_best(s, [n])[0] for s in samples])
    plug_in = np.mean(np.sort(samples, axis=1) @ np.diff((np.arange(size + 1) / size) ** n))
    standard_error = 0.1 / math.sqrt(draws)
    assert abs(unbiased - n / (n + 1)) < 4 * standard_error
    assert plug_in < n / (n + 1) - 0.02


def test_many_values_neither_overflow_nor_lose_the_ends():
    values = np.arange(5000.0)
    first, last = expected_best(values, [1, 5000])
    assert (first, last) == (pytest.approx(values.mean()), pytest.approx(4999))


def test_intervals_of_a_quarter_cover_as_the_docstring_says_and_those_of_all_do_not():
    rng, size, sweeps = np.random.default_rng(2), 40, 300
    covered = {n_with_interval(size): 0, size: 0}
    for _ in range(sweeps):
        values = 1 - rng.exponential(size=size)
        for n in covered:
            low, high = expected_best_intervals(values, [n], rng, draws=300)[0]
            truth = 1 - 1 / n  # the least of n exponentials is exponential with mean 1 / n
            covered[n] += low <= truth <= high
    quarter, whole = covered.values()
    assert clopper_pearson(quarter, sweeps)[1] > 0.90
    assert clopper_pearson(quarter, sweeps)[0] > 0.82
    assert clopper_pearson(whole, sweeps)[1] < 0.90


def test_equal_values_have_a_point_for_an_interval():
    found = expected_best_intervals([0.5] * 8, [1, 4], np.random.default_rng(0))
    assert found == pytest.approx(np.full((2, 2), 0.5))


def test_intervals_are_moved_by_what_resampling_loses():
    # of two resampled from {0, 1} the best is 1 in three of four: 0.75 in the mean, and of both values it is 1
    (ends,) = expected_best_intervals([0, 1], [2], np.random.default_rng(0), draws=20_000)
    assert ends == pytest.approx([0.25, 1.25], abs=0.02)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 60, 61, 1000, 12345])
def test_the_grid_goes_from_one_to_all_through_the_half(n):
    grid = budget_grid(n).tolist()
    assert grid == sorted(set(grid))
    assert len(grid) <= 62
    if n:
        assert (grid[0], grid[-1]) == (1, n)
    if n > 1:
        assert n // 2 in grid


def test_gain_of_doubling_by_hand():
    # of {0, 0, 0, 4} all have 4, and of the six pairs three
    assert gain_of_doubling([0, 4, 0, 0]) == pytest.approx(2)
    assert gain_of_doubling([1, 1, 1, 1, 1]) == pytest.approx(0)
    assert gain_of_doubling([0, 1, 4]) is None


def test_best_so_far_keeps_what_was_better_than_all_before_and_what_everything_cost():
    reports = [("a", 2, 1.0, 0.5), ("b", 2, 1.0, math.nan), ("b", 3, 2.0, 0.5), ("c", 1, 1.0, 0.7), ("d", 4, 3.0, 0.6)]
    steps = [(s.trial, s.seed_epochs, s.seconds, s.best) for s in best_so_far(reports)]
    assert steps == [("a", 2, 1.0, 0.5), ("c", 8, 5.0, 0.7), ("c", 12, 8.0, 0.7)]
    assert best_so_far([("a", 2, 1.0, math.nan)]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_best([], [1]), "one or more finite scores"),
        (lambda: expected_best([1, math.nan], [1]), "one or more finite scores"),
        (lambda: expected_best([1, 2], [3]), "from 1 to 2, got"),
        (lambda: expected_best([1, 2], [0]), "from 1 to 2, got"),
        (lambda: expected_best_intervals([1, 2], [1], np.random.default_rng(0), level=1.0), "between 0 and 1"),
    ],
)
def test_errors_say_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()
