"""analysis/power.py against scipy's noncentral t, limits worked by hand, and simulated comparisons."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.power import detectable, power, seeds_for
from analysis.statistics import arm_verdict, clopper_pearson, over_seeds


@pytest.mark.parametrize("df", [1.5, 3, 6, 40])
@pytest.mark.parametrize("effect", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("level", [0.95, 0.9875])
def test_without_a_margin_power_is_the_tail_of_the_noncentral_t(effect, df, level):
    critical = stats.t.ppf((1 + level) / 2, df)
    assert power(effect, 1.0, df, level) == pytest.approx(stats.nct.sf(critical, df, effect), abs=1e-3)


def test_no_effect_is_called_one_in_half_of_alpha_and_a_loss_is_mirrored():
    assert power(0.0, 1.0, 6) == pytest.approx(0.025, abs=1e-3)
    assert power(-3.0, 2.0, 6) == power(3.0, 2.0, 6)


def test_with_many_degrees_of_freedom_it_is_the_normals():
    # found where the mean passes 1.96 standard errors; with a margin of 3, where it passes that
    assert power(2.8, 1.0, 1e7) == pytest.approx(stats.norm.sf(1.96 - 2.8), abs=1e-4)
    assert power(2.8, 1.0, 1e7, margin=3.0) == pytest.approx(stats.norm.sf(3.0 - 2.8), abs=1e-4)


def test_units_scale_and_a_certain_difference_is_found_past_the_margin():
    assert power(0.02, 0.01, 5, margin=0.005) == pytest.approx(power(2.0, 1.0, 5, margin=0.5))
    assert [power(e, 0.0, 3, margin=0.1) for e in (0.05, 0.1, 0.2)] == [0, 0, 1]
    assert detectable(0.0, 3, margin=0.1) == 0.1


@pytest.mark.parametrize("margin", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("df", [2, 6, 30])
def test_the_detectable_effect_has_the_power_asked_for(df, margin):
    assert power(detectable(1.5, df, 0.9875, margin), 1.5, df, 0.9875, margin) == pytest.approx(0.8)
    assert power(detectable(1.5, df, margin=margin, wanted=0.5), 1.5, df, margin=margin) == pytest.approx(0.5)


def test_an_effect_of_2_8_standard_errors_has_80_percent():
    assert detectable(1.0, 1e7) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-3)


def test_the_stated_power_is_how_often_the_verdict_falls():
    rng, seeds, effect, margin, sweeps = np.random.default_rng(0), 6, 1.0, 0.7, 1500
    better = sum(
        arm_verdict(over_seeds(effect + rng.standard_normal(seeds)), 0.0, 0.95, margin) == "better"
        for _ in range(sweeps)
    )
    low, high = clopper_pearson(better, sweeps)
    assert low <= power(effect, 1 / math.sqrt(seeds), seeds - 1, margin=margin) <= high


def test_seeds_for_by_the_normals_formula():
    # 2.8016 standard errors: (0.02² · 20 / n + 0.003²) = (0.01 / 2.8016)², which n = 2139 gives
    n = 0.02**2 * 20 / ((0.01 / (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))) ** 2 - 0.003**2)
    assert n == pytest.approx(2139, abs=1)
    assert seeds_for(0.01, math.hypot(0.02, 0.003), 0.02, 1e6, 20) == pytest.approx(n, rel=5e-3)


def test_seeds_for_is_the_first_number_with_the_power_asked_for():
    effect, error, df, seeds = 0.02, 0.011, 6, 20
    n = seeds_for(effect, error, error, df, seeds, 0.9875, 0.002)
    assert n > seeds
    for m, enough in ((n, True), (n - 1, False)):
        at = power(effect, error * math.sqrt(seeds / m), df * m / seeds, 0.9875, 0.002)
        assert (at >= 0.8) == enough


def test_seeds_for_has_no_answer_where_the_rows_alone_forbid_it_or_the_effect_lies_within_the_margin():
    assert seeds_for(0.01, math.hypot(0.02, 0.006), 0.02, 6, 20) is None
    assert seeds_for(0.001, 0.001, 0.001, 6, 20, margin=0.002) is None
    assert seeds_for(0.0, 0.001, 0.001, 6, 20) is None
    assert seeds_for(1.0, 0.001, 0.001, 6, 20) == 20
    assert seeds_for(1.0, 0.0, 0.0, 6, 20) == 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power(1, -1, 3), "0 or more"),
        (lambda: power(1, 1, 0), "df above 0"),
        (lambda: power(1, math.inf, 3), "standard_error"),
        (lambda: power(1, 1, 3, level=1.0), "between 0 and 1"),
        (lambda: power(1, 1, 3, margin=-1), "margin must be 0 or more"),
        (lambda: detectable(1, 3, wanted=1.0), "wanted must lie"),
        (lambda: seeds_for(1, 1, 1, 3, 0), "seeds must be 1 or more"),
    ],
)
def test_errors_say_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()
