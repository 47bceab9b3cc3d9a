"""A small piece of tests/benchmarks/calibration.py: under no effect few verdicts are wrong, a known one is found."""

import numpy as np
import pytest

from analysis.statistics import clopper_pearson
from tests.benchmarks.calibration import (
    ACCURACY,
    Sweep,
    ability_for,
    accuracy_of,
    detectable_effect,
    judged,
    known_effect,
    no_effect,
)


def holds(rate, truth):
    """Whether a rate of so many sweeps may be `truth`, at 99.9 %: a test that fails once in a thousand seeds."""
    low, high = clopper_pearson(round(rate["rate"] * rate["n"]), rate["n"], 0.999)
    return low <= truth <= high


def test_under_no_effect_at_most_five_percent_of_sweeps_are_wrong_and_under_one_its_power_is_as_stated():
    rng, sweeps = np.random.default_rng(0), 250
    none, found = no_effect(rng, sweeps)
    any_wrong = none["any of 4 arms called better or worse"]
    assert clopper_pearson(round(any_wrong["rate"] * sweeps), sweeps, 0.999)[0] <= 0.05
    assert holds(none["ci95 covers the true difference"], 0.95)
    assert holds(none["one arm, p below 0.05"], 0.05)
    effect = detectable_effect(found)
    some = known_effect(rng, sweeps, effect)
    assert holds(some["called better"], 0.8)
    assert some["power stated"] == pytest.approx(0.8, abs=0.03)
    assert some["called worse"]["rate"] == 0
    assert holds(some["ci95 covers the true difference"], 0.95)


def test_without_holm_any_of_four_arms_would_be_called_too_often():
    """The simulation has the power to see a broken rule."""
    rng, sweeps = np.random.default_rng(1), 250
    raw = [judged(rng, 0.0).p_adjusted for _ in range(sweeps)]
    uncorrected = sum(min(p) / 4 < 0.05 for p in raw)  # the smallest of four is multiplied by four
    assert clopper_pearson(uncorrected, sweeps)[0] > 0.05


def test_the_truth_of_the_simulated_arms_is_what_they_score():
    rng = np.random.default_rng(2)
    ability = ability_for(ACCURACY)
    assert accuracy_of(ability) == pytest.approx(ACCURACY)
    scores = []
    for _ in range(200):
        sweep = Sweep(rng)
        scores.append(np.mean([g.mean() for g in sweep.winners(ability, sweep.taste(), 2)]))
    assert np.mean(scores) == pytest.approx(ACCURACY, abs=4 * np.std(scores) / len(scores) ** 0.5)
