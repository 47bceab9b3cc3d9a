"""AUC as a mean over rows (analysis.statistics.auc_units): DeLong by loops, METHOD's bootstrap, and the coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from analysis.statistics import (
    auc_units,
    between_arms,
    clopper_pearson,
    over_seeds,
    over_seeds_and_rows,
    over_winners,
    paired,
)


def kernel(scores, labels):
    """1 where a positive (row) is ranked above a negative (column), 1/2 where they tie: (m, k)."""
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return (positive > negative) + (positive == negative) / 2


def delong_covariance(scores, labels):
    """AUC (S,) and their covariance (S, S) for scores (S, N) on the same rows, one pair of classifiers at a time."""
    kernels = [kernel(s, labels) for s in scores]
    m, k = kernels[0].shape
    covariance = np.zeros((len(scores), len(scores)))
    for a, b in itertools.product(range(len(scores)), repeat=2):
        first, second = kernels[a] - kernels[a].mean(), kernels[b] - kernels[b].mean()
        s10 = sum(first[i].mean() * second[i].mean() for i in range(m)) / (m - 1)
        s01 = sum(first[:, j].mean() * second[:, j].mean() for j in range(k)) / (k - 1)
        covariance[a, b] = s10 / m + s01 / k
    return [one.mean() for one in kernels], covariance


def drawn(rng, labels, seeds, mu, *, seed_sd, shared, own=0.4, luck=0.4):
    """Scores of two configurations (seeds, N), and what each has for its mean AUC in the population of seeds and rows.

    score = slope of the seed x label + noise of the row that both share + of the row + of the row and the seed. All is
    normal, so that a seed of slope v has AUC Φ(v / √2σ), with σ² the noises' sum, and seeds Φ(mu / √(2σ² + seed_sd²)).
    """
    n, common = labels.size, shared * rng.standard_normal(labels.size)
    found = [
        (mean + seed_sd * rng.standard_normal((seeds, 1))) * labels
        + common
        + own * rng.standard_normal(n)
        + luck * rng.standard_normal((seeds, n))
        for mean in mu
    ]
    noise = shared**2 + own**2 + luck**2
    return found, [stats.norm.cdf(mean / math.sqrt(2 * noise + seed_sd**2)) for mean in mu]


def few(seeds, n, seed, decimals=1):
    """Scores with many ties (seeds, n) and labels of which each class has 2 or more."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([[0, 0, 1, 1], rng.integers(2, size=n - 4)]))
    return np.round(rng.standard_normal((seeds, n)) + labels, decimals), labels


# what a unit is


def test_four_rows_with_a_tie_by_hand():
    # The positives 3 and 2 meet the negatives 2 and 1: V10 = 1 and (1/2 + 1) / 2, V01 = (1 + 1/2) / 2 and 1.
    units = auc_units([[3, 2, 2, 1]], [1, 1, 0, 0])
    step = math.sqrt(4 * 3 / (2 * 1)) / 8  # each V is 1/8 from AUC 7/8
    assert units == pytest.approx(np.array([[7 / 8 + step, 7 / 8 - step, 7 / 8 - step, 7 / 8 + step]]))
    # S10 = S01 = 2 (1/8)² / 1, each over 2 rows
    assert np.var(units, ddof=1) / 4 == pytest.approx(1 / 64 + 1 / 64)


@settings(deadline=None)
@given(
    st.integers(0, 2**31), st.integers(4, 40), st.sampled_from([0, 1, 15]), st.sampled_from([np.float32, float, int])
)
def test_units_average_to_the_auc_and_vary_as_delong_says(seed, n, decimals, dtype):
    scores, labels = few(2, n, seed, decimals)
    scores = scores.astype(dtype)
    units = auc_units(scores, labels)
    assert units.dtype == np.float64
    assert units.shape == scores.shape
    assert units.mean(axis=1) == pytest.approx([roc_auc_score(labels, s) for s in scores], abs=1e-12)
    auc, covariance = delong_covariance(scores.astype(float), labels)
    assert units.mean(axis=1) == pytest.approx(auc, abs=1e-12)
    assert np.cov(units) / n == pytest.approx(covariance, abs=1e-12)


def test_a_class_of_fifteen_percent_in_forty_thousand_rows_averages_to_its_auc():
    rng = np.random.default_rng(0)
    labels = (rng.random(40_000) < 0.15).astype(int)
    scores = (rng.standard_normal((3, 40_000)) + labels).astype(np.float32)
    assert auc_units(scores, labels).mean(axis=1) == pytest.approx(
        [roc_auc_score(labels, s) for s in scores], abs=1e-12
    )


def test_seeds_that_all_agree_have_delongs_variance_of_one_auc_and_of_a_difference():
    scores, labels = few(2, 60, 1)
    auc, covariance = delong_covariance(scores, labels)
    a, b = (auc_units(np.tile(s, (3, 1)), labels) for s in scores)
    one, difference = over_seeds_and_rows(a), paired(a, b).total
    assert (one.mean, one.variance) == pytest.approx((auc[0], covariance[0, 0]))
    assert difference.mean == pytest.approx(auc[0] - auc[1])
    assert difference.variance == pytest.approx(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def test_only_the_order_of_scores_counts_and_neither_that_of_rows():
    scores, labels = few(3, 50, 2)
    units = auc_units(scores, labels)
    assert np.array_equal(auc_units(np.exp(scores), labels), units)
    assert np.array_equal(auc_units(scores, labels == 1), units)
    shuffled = np.random.default_rng(3).permutation(50)
    assert np.array_equal(auc_units(scores[:, shuffled], labels[shuffled]), units[:, shuffled])
    assert auc_units(-scores, labels).mean(axis=1) == pytest.approx(1 - units.mean(axis=1))


def test_classes_that_never_meet_are_certain_and_scores_that_say_nothing_are_a_half():
    labels = np.array([0, 1, 0, 1, 1])
    assert over_seeds_and_rows(auc_units(np.tile(labels, (3, 1)), labels)).interval() == (1.0, 1.0)
    assert np.array_equal(auc_units(np.zeros((2, 5)), labels), np.full((2, 5), 0.5))


def test_the_scores_are_left_alone():
    scores, labels = few(2, 20, 4)
    before = scores.copy()
    auc_units(scores, labels)
    assert np.array_equal(scores, before)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1, 2, 3]], [0, 0, 0], "0 positive and 3 negative"),
        ([[1, 2, 3]], [0, 1, 1], "2 positive and 1 negative"),
        ([[1, math.nan, 3, 4]], [0, 0, 1, 1], "1 of 4"),
        ([[1, 2, 3, math.inf]], [0, 0, 1, 1], "1 of 4"),
        ([1, 2, 3, 4], [0, 0, 1, 1], "2 dimension"),
        ([[1, 2, 3, 4]], [0, 0, 1], r"\(4,\), got shape \(3,\)"),
        ([[1, 2, 3, 4]], [[0, 0, 1, 1]], r"\(4,\), got shape \(1, 4\)"),
        ([[1, 2, 3, 4]], [1, 1, 2, 2], r"0 or 1, got \[1, 2\]"),
        ([[1, 2, 3, 4]], [0, 1, 1, math.nan], "0 or 1"),
    ],
)
def test_errors_say_what_was_given(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        auc_units(scores, labels)


# in the machinery of seeds, winners and arms


def test_arms_and_winners_take_units_in_place_of_correctness():
    rng = np.random.default_rng(5)
    labels = (rng.random(200) < 0.3).astype(int)
    winners, _ = drawn(rng, labels, 5, [1.5] * 4 + [1.0] * 3, seed_sd=0.2, shared=0.8)
    arms = [auc_units(w, labels) for w in winners]
    means = [np.mean([roc_auc_score(labels, s) for s in w]) for w in winners]
    welch = stats.ttest_ind(means[:4], means[4:], equal_var=False)
    difference = between_arms(arms[:4], arms[4:])
    assert over_winners(arms[:4]).mean == pytest.approx(np.mean(means[:4]))
    assert difference.without_rows.p_value() == pytest.approx(welch.pvalue)
    assert difference.total.mean == pytest.approx(np.mean(means[:4]) - np.mean(means[4:]))
    assert difference.total.variance > difference.without_rows.variance


def test_seeds_that_tie_in_auc_but_not_row_by_row_are_no_evidence_of_certainty():
    rng = np.random.default_rng(6)
    labels = np.repeat([0, 1], 10)
    ties = 0
    for _ in range(400):
        a, b = (auc_units(rng.standard_normal((2, 20)) + labels, labels) for _ in range(2))
        difference = paired(a, b)
        if difference.without_rows.variance < 1e-25:
            ties += 1
            assert difference.total.variance > 1e-5
    assert ties > 3


def bootstrap_error(rng, a, b, labels, draws=2000):
    """METHOD's standard error of the mean difference in AUC: seeds and, within each class, rows are drawn anew."""
    m, k = int(labels.sum()), int((1 - labels).sum())
    of_positives = rng.multinomial(m, [1 / m] * m, draws).astype(np.float32)
    of_negatives = rng.multinomial(k, [1 / k] * k, draws).astype(np.float32)
    by_seed = np.empty((draws, len(a)))
    for seed, (first, second) in enumerate(zip(a, b, strict=True)):
        above = (kernel(first, labels) - kernel(second, labels)).astype(np.float32)
        by_seed[:, seed] = np.einsum("dk,dk->d", of_positives @ above, of_negatives) / (m * k)
    of_seeds = rng.multinomial(len(a), [1 / len(a)] * len(a), draws)
    return np.std((by_seed * of_seeds).sum(axis=1) / len(a), ddof=1)


@pytest.mark.parametrize("seed_sd", [0.02, 0.15])  # the rows make most of the variance; seeds and rows about half each
def test_the_crossed_error_is_that_of_the_bootstrap_over_seeds_and_rows(seed_sd):
    rng = np.random.default_rng(7)
    labels = (rng.random(2000) < 0.15).astype(int)
    (a, b), _ = drawn(rng, labels, 20, (1.3, 1.2), seed_sd=seed_sd, shared=0.8)
    total = paired(auc_units(a, labels), auc_units(b, labels)).total
    assert math.sqrt(total.variance) == pytest.approx(bootstrap_error(rng, a, b, labels), rel=0.1)


def test_the_crossed_interval_covers_the_populations_difference_in_auc_and_the_seeds_alone_do_not():
    rng, replicates = np.random.default_rng(8), 2000
    covered = {"crossed": 0, "seeds": 0}
    for _ in range(replicates):
        labels = (rng.random(600) < 0.15).astype(int)
        (a, b), truth = drawn(rng, labels, 10, (1.3, 1.2), seed_sd=0.1, shared=0.8)
        difference = paired(auc_units(a, labels), auc_units(b, labels))
        for name, spread in (("crossed", difference.total), ("seeds", difference.without_rows)):
            low, high = spread.interval()
            covered[name] += low <= truth[0] - truth[1] <= high
    low, high = clopper_pearson(covered["crossed"], replicates)
    assert low > 0.93
    assert high < 0.97
    assert covered["seeds"] / replicates < 0.85


def test_one_configurations_interval_covers_its_auc_in_the_population():
    rng, replicates = np.random.default_rng(9), 1000
    covered = {"crossed": 0, "seeds": 0}
    for _ in range(replicates):
        labels = (rng.random(600) < 0.15).astype(int)
        (scores,), (truth,) = drawn(rng, labels, 10, (1.3,), seed_sd=0.1, shared=0.8)
        units = auc_units(scores, labels)
        for name, spread in (("crossed", over_seeds_and_rows(units)), ("seeds", over_seeds(units.mean(axis=1)))):
            low, high = spread.interval()
            covered[name] += low <= truth <= high
    assert clopper_pearson(covered["crossed"], replicates)[0] > 0.92
    assert covered["seeds"] / replicates < 0.7
