"""analysis/importance.py: what decides the score is found, and the interaction against least squares by hand."""

import numpy as np
import pytest
from scipy import stats

from analysis.importance import MOST, importance, interaction
from analysis.statistics import clopper_pearson
from search.distributions import distributions
from spaces import Choice, Range

SPACE = {"lr": Range(1e-4, 1e-1, log=True), "decay": Range(0.0, 1.0), "batch": Choice((32, 64, 128))}


def drawn(rng, n):
    return [{name: d.at(float(rng.random())) for name, d in SPACE.items()} for _ in range(n)]


def measured(n, score, seed=0):
    rng = np.random.default_rng(seed)
    configs = drawn(rng, n)
    return importance(configs, [score(c) for c in configs], distributions(SPACE), rng)


def test_what_decides_the_score_has_nearly_all_of_the_importance():
    found = measured(400, lambda c: -abs(np.log(c["lr"] / 3e-3)))
    assert sum(found.parameters.values()) == pytest.approx(1)
    assert found.parameters["lr"] > 0.8
    assert (found.n, found.caveat) == (400, None)
    assert measured(400, lambda c: c["batch"] == 64).parameters["batch"] > 0.8


def test_higher_scores_are_the_better_ones():
    """The best are those with little decay, the worst those with a high lr: turned round, lr would decide."""
    found = measured(400, lambda c: 1.0 - c["decay"] if c["decay"] < 0.15 else -c["lr"])
    assert found.parameters["decay"] > 0.8


def test_few_trials_are_said_and_too_few_have_none():
    assert "best tenth is 3 of 30" in measured(30, lambda c: c["lr"]).caveat
    few = measured(9, lambda c: c["lr"])
    assert few.parameters == {}
    assert "9 scored trials are too few" in few.caveat
    none = measured(0, lambda c: c["lr"])
    assert (none.parameters, none.n) == ({}, 0)


def test_equal_scores_decide_nothing():
    assert measured(50, lambda c: 0.5).caveat == "all scores are equal, so nothing decides between them"


def test_of_very_many_trials_a_random_choice_is_looked_at_and_said_to_be():
    found = measured(MOST + 500, lambda c: -c["decay"])
    assert found.n == MOST + 500
    assert "a random choice of 1,000 of 1,500" in found.caveat
    assert found.parameters["decay"] > 0.8


def test_an_interaction_is_the_r2_that_the_product_adds_less_what_chance_would():
    rng, n = np.random.default_rng(1), 40
    x, y = rng.random(n), rng.random(n)
    z = 0.3 * x + 2.0 * (x - 0.5) * (y - 0.5) + 0.1 * rng.standard_normal(n)
    without = np.stack([np.ones(n), x, y, x**2, y**2], axis=1)
    residual = [z - a @ np.linalg.pinv(a) @ z for a in (without, np.column_stack([without, x * y]))]
    rss = [float(r @ r) for r in residual]
    total, error = float(((z - z.mean()) ** 2).sum()), rss[1] / (n - 6)
    found = interaction(x, y, z)
    assert found.gain == pytest.approx((rss[0] - rss[1] - error) / total)
    assert found.low > 0
    assert found.low < found.gain < found.high


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_leaves_zero_out_where_the_f_test_of_the_product_is_significant(seed):
    rng, n = np.random.default_rng(seed), 30
    x, y = rng.random(n), rng.random(n)
    z = seed / 4 * (x - 0.5) * (y - 0.5) + 0.1 * rng.standard_normal(n)
    columns = np.stack([np.ones(n), x, y, x**2, y**2, x * y], axis=1)
    solution, (rss,), *_ = np.linalg.lstsq(columns, z, rcond=None)
    error = rss / (n - 6) * np.linalg.inv(columns.T @ columns)[5, 5]
    p = 2 * stats.t.sf(abs(solution[5]) / np.sqrt(error), n - 6)
    assert (interaction(x, y, z).low > 0) == (p < 0.025)


def test_without_an_interaction_the_gain_is_nothing_in_the_mean_and_the_interval_holds_zero():
    rng, n, sweeps = np.random.default_rng(3), 30, 300
    found = []
    for _ in range(sweeps):
        x, y = rng.random(n), rng.random(n)
        found.append(interaction(x, y, x + (y - 0.4) ** 2 + 0.3 * rng.standard_normal(n)))
    assert abs(np.mean([f.gain for f in found])) < 0.005
    assert 0.95 <= np.mean([f.low == 0 for f in found]) <= 1.0


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_the_interval_covers_the_share_that_the_product_has_at_the_points_given(strength):
    rng, n, sweeps, noise = np.random.default_rng(4), 40, 400, 0.1
    x, y = rng.random((2, n))
    without = np.stack([np.ones(n), x, y, x**2, y**2], axis=1)
    of_product = strength * (x * y - without @ np.linalg.pinv(without) @ (x * y))
    signal = (x - 0.5) ** 2 + strength * x * y
    truth = of_product.var() / (signal.var() + noise**2)
    covered = 0
    for _ in range(sweeps):
        found = interaction(x, y, signal + noise * rng.standard_normal(n))
        covered += found.low <= truth <= found.high
    assert clopper_pearson(covered, sweeps)[1] > 0.95
    assert covered / sweeps > 0.92


def test_too_few_points_or_none_that_differ_have_no_interaction():
    x = np.linspace(0, 1, 11)
    assert interaction(x, x**2, x) is None
    many = np.linspace(0, 1, 30)
    assert interaction(many, np.full(30, 0.5), many) is None
    assert interaction(many, many, many**2) is None  # x and y are one: their product is no new term
