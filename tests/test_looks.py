"""analysis/looks.py against published boundaries, limits worked by hand, an integral in one variable and simulation."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from analysis import looks
from analysis.looks import false_alarm, level_at_last_look, sentence

# Two-sided, alpha 0.05, equally spaced looks, O'Brien-Fleming-type spending: as gsDesign and ldbounds print them.
PUBLISHED = {1: [1.960], 2: [2.963, 1.969], 3: [3.710, 2.511, 1.993], 5: [4.877, 3.357, 2.680, 2.290, 2.031]}


def z_of(level):
    return stats.norm.isf(level / 2)


def walks(seeds, n, rng):
    """n random walks without drift: their z statistics (n, K) after `seeds` steps, drawn step by step between looks."""
    steps = rng.standard_normal((n, len(seeds))) * np.sqrt(np.diff(seeds, prepend=0))
    return np.cumsum(steps, axis=1) / np.sqrt(seeds)


def either_of_two(first, second, fraction):
    """P(|z_1| > first or |z_2| > second) at correlation √fraction: one integral over z_1, by adaptive quadrature."""
    rho, rest = math.sqrt(fraction), math.sqrt(1 - fraction)

    def both_within(z):
        high, low = (second - rho * z) / rest, (-second - rho * z) / rest
        return stats.norm.pdf(z) * (stats.norm.cdf(high) - stats.norm.cdf(low))

    return 1 - integrate.quad(both_within, -first, first, epsabs=1e-12)[0]


# level_at_last_look


@pytest.mark.parametrize("seeds", [[1], [20], [20, 20, 20]])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_only_look_is_judged_at_alpha_itself(seeds, alpha):
    assert level_at_last_look(seeds, alpha) == alpha


@pytest.mark.parametrize("number", PUBLISHED)
def test_equally_spaced_looks_have_the_published_boundaries(number):
    seeds = [20 * k for k in range(1, number + 1)]
    assert looks._boundaries(np.array(seeds, dtype=float), 0.05) == pytest.approx(PUBLISHED[number], abs=5.1e-4)
    assert z_of(level_at_last_look(seeds)) == pytest.approx(PUBLISHED[number][-1], abs=5.1e-4)


@pytest.mark.parametrize("seeds", [[20, 60], [5, 45], [10, 11], [300, 301]])
def test_two_looks_spend_alpha_between_them(seeds):
    fraction = seeds[0] / seeds[1]
    # The first look's boundary needs no integral: each side spends 2 - 2Φ(z_{1-α/4} / √t).
    first = stats.norm.isf(2 * stats.norm.sf(stats.norm.isf(0.05 / 4) / math.sqrt(fraction)))
    assert either_of_two(first, z_of(level_at_last_look(seeds)), fraction) == pytest.approx(0.05, abs=1e-8)


def test_only_the_shares_of_the_seeds_count():
    assert level_at_last_look([20, 40, 100]) == pytest.approx(level_at_last_look([1, 2, 5]), abs=1e-9)


def test_a_look_without_new_seeds_is_no_other_look():
    assert level_at_last_look([20, 20, 60, 60]) == level_at_last_look([20, 60])
    assert false_alarm([20, 20, 60, 60]) == false_alarm([20, 60])


def test_a_tiny_first_look_costs_the_second_nothing():
    assert level_at_last_look([1, 400]) == pytest.approx(0.05, abs=1e-9)


def test_the_later_the_first_of_two_looks_the_stricter_the_second():
    levels = [level_at_last_look([first, 100]) for first in (1, 30, 40, 50, 60, 70, 80, 90)]
    assert levels == sorted(levels, reverse=True)
    assert max(levels) <= 0.05


def test_the_more_equally_spaced_looks_the_stricter_the_last():
    levels = [level_at_last_look(range(10, 10 * number + 1, 10)) for number in range(1, 11)]
    assert levels == sorted(set(levels), reverse=True)


def test_the_level_grows_with_alpha():
    levels = [level_at_last_look([20, 60, 100], alpha) for alpha in (0.001, 0.01, 0.05, 0.1, 0.5, 0.99)]
    assert levels == sorted(set(levels))


@pytest.mark.parametrize("number", [2, 3, 5])
def test_walks_cross_the_published_boundaries_and_the_last_level_in_alpha_of_cases(number):
    earlier, last = PUBLISHED[number][:-1], z_of(level_at_last_look(range(1, number + 1)))
    z = np.abs(walks(np.arange(1, number + 1), 400_000, np.random.default_rng(0)))
    assert np.mean((z > [*earlier, last]).any(axis=1)) == pytest.approx(0.05, abs=0.001)  # 3 standard errors


# false_alarm


def test_the_only_look_raises_alpha_false_alarms():
    assert false_alarm([20]) == pytest.approx(0.05, abs=1e-9)
    assert false_alarm([20, 20], 0.01) == pytest.approx(0.01, abs=1e-9)


def test_looks_that_share_next_to_nothing_are_independent_tests():
    assert false_alarm([1, 100_000]) == pytest.approx(1 - 0.95**2, abs=1e-4)


def test_a_look_with_next_to_nothing_new_raises_few_more():
    assert 0.05 < false_alarm([2000, 2001]) < 0.051


@pytest.mark.parametrize("seeds", [[20, 60], [5, 45], [10, 11]])
def test_two_looks_are_the_first_at_alpha_and_the_second_at_its_level(seeds):
    exact = either_of_two(z_of(0.05), z_of(level_at_last_look(seeds)), seeds[0] / seeds[1])
    assert false_alarm(seeds) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize(("number", "repeated_at_alpha"), [(2, 0.0831), (3, 0.1072), (4, 0.1262), (5, 0.1417)])
def test_spending_raises_fewer_than_repeated_tests_at_alpha_and_more_than_one(number, repeated_at_alpha):
    """The chances of repeated tests, all at 5 %, are Armitage, McPherson & Rowe's (1969)."""
    assert 0.05 < false_alarm([10 * k for k in range(1, number + 1)]) < repeated_at_alpha


def test_every_look_adds_to_the_chance():
    chances = [false_alarm([20, 40, 80, 90, 200][:number]) for number in range(1, 6)]
    assert chances == sorted(set(chances))


@pytest.mark.parametrize("seeds", [[20, 60], [20, 40, 80], [5, 45, 85, 90]])
def test_walks_judged_look_by_look_raise_as_many_as_said(seeds):
    judged_at = z_of(np.array([level_at_last_look(seeds[: k + 1]) for k in range(len(seeds))]))
    z = np.abs(walks(np.array(seeds), 400_000, np.random.default_rng(1)))
    assert np.mean((z > judged_at).any(axis=1)) == pytest.approx(false_alarm(seeds), abs=0.0015)  # 3 standard errors


@pytest.mark.parametrize("seeds", [[20, 60], [5, 6, 7, 50, 51], list(range(10, 210, 10))])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_a_plan_that_knew_all_looks_would_raise_alpha(seeds, alpha):
    assert false_alarm(seeds, alpha, first_at_alpha=False) == pytest.approx(alpha, abs=1e-8)


# sentence


def test_one_look_needs_no_sentence():
    assert sentence([20]) is None
    assert sentence([20, 20]) is None


def test_the_sentence_says_which_look_at_which_level_and_what_stopping_early_risked():
    assert sentence([20, 20, 40, 80]) == (
        "This is look 3 at the test split (20, then 40, then 80 confirmation seeds): a difference is judged at 4.90 % "
        "in place of 5 % (O'Brien-Fleming spending), yet for anyone who would have stopped at an earlier look, the "
        "chance that any of the 3 looks calls pure noise a difference is 11.2 %."
    )


# What is refused


@pytest.mark.parametrize("function", [level_at_last_look, false_alarm, sentence])
@pytest.mark.parametrize(
    ("seeds", "alpha", "message"),
    [
        ([], 0.05, "one look or more, got none"),
        ([0, 20], 0.05, r"1 confirmation seed or more, got \[0, 20\]"),
        ([20, -20], 0.05, r"1 confirmation seed or more, got \[20, -20\]"),
        ([20, 60, 40], 0.05, r"never decrease, got \[20, 60, 40\]"),
        ([20, 60], 0.0, "strictly between 0 and 1, got 0"),
        ([20], 1.0, "strictly between 0 and 1, got 1"),
        ([20], math.nan, "strictly between 0 and 1, got nan"),
    ],
)
def test_what_is_no_row_of_looks_is_refused(function, seeds, alpha, message):
    with pytest.raises(ValueError, match=message):
        function(seeds, alpha)
