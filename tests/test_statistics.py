"""analysis/statistics.py against hand-worked cases, independent references, properties and small simulations."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import (
    Difference,
    Spread,
    arm_verdict,
    between_arms,
    claim_verdict,
    clopper_pearson,
    family_level,
    holm,
    over_seeds,
    over_seeds_and_rows,
    over_winners,
    paired,
    ratio,
    seeds_to_settle,
    sign_flip_p,
)

FOUR_BY_TWO = [[1, 0], [1, 0], [1, 1], [1, 0]]


def anova_variance_of_mean(d):
    """Var of the grand mean of a seeds x rows table from its three mean squares, in exact fractions and plain loops."""
    seeds, rows = len(d), len(d[0])
    x = [[Fraction(int(v)) for v in row] for row in d]
    grand = sum(map(sum, x)) / (seeds * rows)
    by_seed = [sum(row) / rows for row in x]
    by_row = [sum(row[i] for row in x) / seeds for i in range(rows)]
    ms_seed = rows * sum((m - grand) ** 2 for m in by_seed) / (seeds - 1)
    ms_row = seeds * sum((m - grand) ** 2 for m in by_row) / (rows - 1)
    ss_rest = sum((x[s][i] - by_seed[s] - by_row[i] + grand) ** 2 for s in range(seeds) for i in range(rows))
    ms_rest = ss_rest / ((seeds - 1) * (rows - 1))
    variance = max(ms_seed, ms_seed + ms_row - ms_rest) / (seeds * rows)
    parts = (ms_seed / (seeds * rows)) ** 2 / (seeds - 1) + (ms_row / (seeds * rows)) ** 2 / (rows - 1)
    return float(variance), float(variance**2 / parts) if parts else None


# over_seeds


def test_over_seeds_is_the_one_sample_t():
    values = [0.01, 0.03, -0.02, 0.04, 0.02]
    reference = stats.ttest_1samp(values, 0)
    spread = over_seeds(values)
    assert (spread.df, spread.n) == (4, 5)
    assert spread.p_value() == pytest.approx(reference.pvalue)
    assert spread.interval(0.9) == pytest.approx(tuple(reference.confidence_interval(0.9)))


def test_over_seeds_by_hand():
    spread = over_seeds([1, 2, 3, 6])  # deviations -2 -1 0 3: squares sum to 14
    assert (spread.mean, spread.variance, spread.df) == pytest.approx((3, 14 / 12, 3))


@pytest.mark.parametrize(("value", "p"), [(0.1, 0.0), (0.0, 1.0)])
def test_equal_values_are_a_point_despite_rounding(value, p):
    spread = over_seeds([value] * 3)  # a plain mean of three 0.1 is not 0.1
    assert spread.interval() == (value, value)
    assert spread.p_value() == p


@pytest.mark.parametrize("spread", [over_seeds([0.3]), over_seeds_and_rows([[1, 0, 1]]), over_winners([[[1, 0]]])])
def test_one_seed_has_a_mean_but_no_interval_and_no_p(spread):
    assert math.isfinite(spread.mean)
    assert spread.n == 1
    assert spread.interval() is None
    assert spread.p_value() is None


# over_seeds_and_rows


def test_crossed_variance_by_hand():
    # seed means .5 .5 1 .5 -> V_S = 1/64; row means 1, 1/4 -> V_R = 9/64; residual squares 3/8 -> V_SR = 1/64
    spread = over_seeds_and_rows(FOUR_BY_TWO)
    assert spread.mean == 0.625
    assert spread.variance == pytest.approx(9 / 64)
    assert spread.df == pytest.approx(243 / 244)
    assert spread.n == 4


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(2, 6), st.integers(2, 8)).flatmap(
        lambda shape: st.lists(
            st.lists(st.sampled_from([-1, 0, 1]), min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        )
    )
)
def test_crossed_variance_equals_the_anova_mean_squares(d):
    variance, df = anova_variance_of_mean(d)
    spread = over_seeds_and_rows(np.array(d))
    if variance > 1e-14:
        assert spread.variance == pytest.approx(variance)
        assert spread.df == pytest.approx(df)
    else:  # METHOD's V is 0, though the seeds may differ row by row
        assert (spread.variance > 0) == (len(np.unique(d, axis=0)) > 1 and len(np.unique(np.sum(d, axis=1))) == 1)


def test_crossed_variance_is_never_below_the_seeds_alone():
    rng = np.random.default_rng(0)
    for _ in range(50):
        d = rng.integers(-1, 2, (4, 6))
        assert over_seeds_and_rows(d).variance >= over_seeds(d.mean(axis=1)).variance


def test_seeds_that_all_agree_leave_the_rows_as_the_sample():
    row = [1, 0, 0, 1, 1, 1, 0, 1]
    spread = over_seeds_and_rows(np.tile(row, (3, 1)))
    assert spread.df == 7
    assert spread.interval() == pytest.approx(tuple(stats.ttest_1samp(row, 0).confidence_interval(0.95)))


def test_rows_that_all_agree_leave_the_seeds_as_the_sample():
    values = [1, 0, 1, 1]
    spread, seeds = over_seeds_and_rows(np.repeat(np.array(values)[:, None], 5, axis=1)), over_seeds(values)
    assert spread.interval() == pytest.approx(seeds.interval())


@pytest.mark.parametrize("value", [0, 1])
def test_a_constant_table_is_a_point(value):
    spread = over_seeds_and_rows(np.full((3, 7), value))
    assert spread.interval() == (value, value)


def test_booleans_are_correctness_too():
    assert over_seeds_and_rows(np.array(FOUR_BY_TWO, dtype=bool)) == over_seeds_and_rows(FOUR_BY_TWO)
    assert paired(np.array(FOUR_BY_TWO, dtype=bool), np.zeros((4, 2), dtype=bool)).total.mean == 0.625


# paired, over_winners, between_arms


def test_paired_takes_the_difference_within_each_seed():
    a = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
    b = np.array([[1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1]])
    difference = paired(a, b)
    assert difference.total == over_seeds_and_rows(a - b)
    assert difference.without_rows.interval() == (0.25, 0.25)  # every seed gains one row of four


def test_over_winners_takes_the_winner_as_the_unit():
    # Each winner's two seeds average to the rows of FOUR_BY_TWO; three more copies of winner 0's seeds change nothing.
    groups = [np.array([row, row]) for row in FOUR_BY_TWO]
    groups[0] = np.repeat(groups[0], 4, axis=0)
    assert over_winners(groups) == over_seeds_and_rows(FOUR_BY_TWO)


def test_over_winners_averages_a_winners_seeds():
    groups = [[[1, 0], [0, 0]], [[1, 1], [1, 0]]]  # winner rows (.5, 0) and (1, .5): residuals 0, means .25 and .75
    spread = over_winners(groups)
    assert (spread.mean, spread.n) == (0.5, 2)
    # V_S = (1/16 + 1/16) / 2 = 1/16; V_R = the same; V_SR = 0
    assert spread.variance == pytest.approx(1 / 8)
    assert spread.df == pytest.approx(2)


def test_the_only_winner_is_judged_over_its_seeds():
    assert over_winners([FOUR_BY_TWO]) == over_seeds_and_rows(FOUR_BY_TWO)


def test_between_arms_by_hand():
    a, b = [[[1, 0]], [[1, 1]]], [[[0, 0]], [[0, 1]]]
    difference = between_arms(a, b)
    # winner means (1/2, 1) and (0, 1/2): V_W = 1/16 + 1/16, df 2
    assert difference.without_rows == Spread(0.5, 0.125, 2.0, 2)
    # row differences (1, 0): V_R = 1/4; residuals all +-1/4: V_SR = 1/16 + 1/16; V = 1/8 + 1/4 - 1/8
    assert difference.total.variance == pytest.approx(1 / 4)
    assert difference.total.df == pytest.approx(8 / 9)
    assert difference.total.mean == 0.5


def test_between_arms_without_rows_is_welchs_t_on_winner_means():
    rng = np.random.default_rng(1)
    a = [rng.random((seeds, 40)) < 0.7 for seeds in (5, 5, 5, 5)]
    b = [rng.random((seeds, 40)) < 0.8 for seeds in (2, 9, 4)]
    welch = stats.ttest_ind([g.mean() for g in a], [g.mean() for g in b], equal_var=False)
    spread = between_arms(a, b).without_rows
    assert spread.df == pytest.approx(welch.df)
    assert spread.p_value() == pytest.approx(welch.pvalue)
    assert spread.interval() == pytest.approx(tuple(welch.confidence_interval(0.95)))


def test_between_arms_total_by_loops():
    rng = np.random.default_rng(2)
    chances = ([0.9, 0.9, 0.1, 0.5, 0.5], [0.1, 0.5, 0.9, 0.5, 0.5])
    arms = [[rng.random((2, 5)) < chance for _ in range(g)] for g, chance in zip((3, 4), chances, strict=True)]
    rows = [[[sum(map(int, column)) / 2 for column in zip(*winner, strict=True)] for winner in arm] for arm in arms]
    v_w, v_sr, df_parts, by_row = 0.0, 0.0, 0.0, [0.0] * 5
    for sign, arm in zip((1, -1), rows, strict=True):
        g = len(arm)
        means = [sum(w) / 5 for w in arm]
        columns = [sum(w[i] for w in arm) / g for i in range(5)]
        grand = sum(means) / g
        v = sum((m - grand) ** 2 for m in means) / (g - 1) / g
        v_w, df_parts = v_w + v, df_parts + v**2 / (g - 1)
        v_sr += sum((arm[k][i] - means[k] - columns[i] + grand) ** 2 for k in range(g) for i in range(5)) / (
            (g - 1) * 4 * g * 5
        )
        by_row = [r + sign * c for r, c in zip(by_row, columns, strict=True)]
    centre = sum(by_row) / 5
    v_r = sum((r - centre) ** 2 for r in by_row) / (5 * 4)
    variance = max(v_w, v_w + v_r - v_sr)
    assert v_r > v_sr  # the case is one in which rows matter
    total = between_arms(*arms).total
    assert total.mean == pytest.approx(centre)
    assert total.variance == pytest.approx(variance)
    assert total.df == pytest.approx(variance**2 / (df_parts + v_r**2 / 4))


def test_between_arms_changes_sign_with_the_order():
    rng = np.random.default_rng(3)
    a, b = ([rng.random((3, 30)) < p for _ in range(4)] for p in (0.6, 0.8))
    forward, backward = between_arms(a, b).total, between_arms(b, a).total
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.interval() == pytest.approx(tuple(-end for end in reversed(backward.interval())))


def test_one_winner_in_both_arms_is_compared_by_seed():
    rng = np.random.default_rng(4)
    a, b = rng.random((6, 30)) < 0.7, rng.random((6, 30)) < 0.8
    assert between_arms([a], [b]) == paired(a, b)
    with pytest.raises(ValueError, match="paired"):
        between_arms([a], [b[:5]])


def test_one_winner_in_one_arm_lends_its_seeds_as_units():
    rng = np.random.default_rng(5)
    searched, fixed = [rng.random((5, 30)) < 0.7 for _ in range(4)], rng.random((20, 30)) < 0.8
    difference = between_arms(searched, [fixed])
    assert difference == between_arms(searched, list(fixed[:, None, :]))
    assert difference.total.n == 4
    assert between_arms(searched, [fixed[:1]]).total.interval() is None


def test_winners_with_equal_accuracy_on_different_rows_tie_exactly():
    first = [[1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 1]]  # thirds: means of rows would round
    second = [[0, 0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0]]
    assert between_arms([first, second], [second, first]).without_rows == Spread(0.0, 0.0, 2, 2)


def test_identical_constant_arms_differ_by_exactly_nothing():
    ones = [np.ones((5, 9))] * 4
    difference = between_arms(ones, ones)
    assert difference.total.interval() == (0.0, 0.0)
    assert difference.total.p_value() == 1.0
    assert arm_verdict(difference.total, 1.0, 0.95, 0.002) == "equivalent"


# families of tests


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_holm_keeps_the_order_of_p_and_lies_between_p_and_bonferroni(p_values):
    adjusted = holm(p_values)
    assert [a is None for a in adjusted] == [p is None for p in p_values]
    pairs = sorted((p, a) for p, a in zip(p_values, adjusted, strict=True) if p is not None)
    assert all(earlier[1] <= later[1] for earlier, later in itertools.pairwise(pairs))
    assert all(p <= a <= min(1, len(pairs) * p) for p, a in pairs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        step = (len(p_values) - rank) * p_values[i]
        assume(abs(step - 0.05) > 1e-9)
        if step > 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p < 0.05} == rejected


spreads = st.builds(
    Spread,
    mean=st.floats(-1, 1).map(lambda x: round(x, 6)),
    variance=st.one_of(st.just(0.0), st.floats(1e-8, 1)),
    df=st.floats(1, 1e5),
    n=st.one_of(st.just(20), st.integers(1, 3)),
)


@settings(max_examples=300)
@given(st.lists(spreads, min_size=1, max_size=8), st.sampled_from([0.0, 0.002, 0.1]))
def test_interval_p_and_verdict_never_disagree(family, margin):
    p_values = [spread.p_value() for spread in family]
    tested = sum(p is not None for p in p_values)
    for spread, p, adjusted in zip(family, p_values, holm(p_values), strict=True):
        level = family_level(p, adjusted, max(tested, 1))
        verdict = arm_verdict(spread, adjusted, level, margin)
        if adjusted is None:
            assert spread.interval(level) is None
            assert verdict == "indistinguishable"
            continue
        assume(abs(adjusted - 0.05) > 1e-9)
        low, high = spread.interval(level)
        assert (low > 0 or high < 0) == (adjusted < 0.05)
        assert (verdict == "better") == (low > 0 and spread.mean > margin)
        assert (verdict == "worse") == (high < 0 and spread.mean < -margin)


def test_the_family_level_without_a_usable_p_is_the_strictest():
    assert family_level(0.0, 0.0, 5) == pytest.approx(0.99)
    assert family_level(None, None, 5) == pytest.approx(0.99)
    assert family_level(0.01, 0.05, 5) == pytest.approx(0.99)  # the smallest of five: Bonferroni
    assert family_level(0.03, 0.03, 5) == pytest.approx(0.95)  # the largest of five: not corrected


def sign_flip_by_enumeration(values):
    observed = abs(sum(values))
    flips = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in _signs(len(values))]
    return sum(flip >= observed for flip in flips) / len(flips)


def _signs(n):
    return list(itertools.product([-1, 1], repeat=n))


@settings(deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
def test_sign_flip_p_equals_full_enumeration(values):
    assert sign_flip_p(values) == sign_flip_by_enumeration(values)
    assert sign_flip_p([0.001 * v for v in values]) == sign_flip_by_enumeration(values)  # ties survive rounding


def test_sign_flip_p_at_its_limits():
    assert sign_flip_p([1.0] * 20) == 2.0**-19
    assert sign_flip_p([0.0] * 20) == 1.0
    assert sign_flip_p([1.0] * 21) is None
    assert sign_flip_p([1.0, 2.0, 3.0]) == 0.25


# verdicts


@pytest.mark.parametrize(
    ("mean", "sd", "p_adjusted", "verdict"),
    [
        (0.01, 0.001, 0.001, "better"),
        (-0.01, 0.001, 0.001, "worse"),
        (0.01, 0.001, 0.06, "indistinguishable"),  # the family decides, not the interval alone
        (0.0015, 0.0002, 0.001, "equivalent"),  # above 0 for certain, and below the margin for certain
        (0.0019, 0.0003, 0.001, "indistinguishable"),  # above 0 for certain, on either side of the margin
        (0.0, 0.0005, 1.0, "equivalent"),
        (0.0, 0.01, 1.0, "indistinguishable"),
        (0.0, 0.0005, None, "equivalent"),
        (0.01, 0.001, None, "indistinguishable"),
    ],
)
def test_arm_verdict(mean, sd, p_adjusted, verdict):
    assert arm_verdict(Spread(mean, sd**2, 19, 20), p_adjusted, 0.95, 0.002) == verdict


def test_arm_verdict_uses_the_interval_at_the_level_given():
    spread = Spread(0.01, 0.004**2, 19, 20)  # t = 2.5
    assert arm_verdict(spread, 0.02, 0.95, 0.002) == "better"
    assert arm_verdict(spread, 0.02, 0.99, 0.002) == "indistinguishable"


def test_equivalence_uses_the_ninety_percent_interval():
    spread = Spread(0.0, 1.0, 19, 20)  # half-widths: 1.73 at 90 %, 2.09 at 95 %
    assert arm_verdict(spread, 1.0, 0.95, 1.8) == "equivalent"
    assert arm_verdict(spread, 1.0, 0.95, 1.7) == "indistinguishable"


def test_one_seed_is_indistinguishable():
    assert arm_verdict(over_seeds([0.5]), None, 0.95, 0.002) == "indistinguishable"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.3, -0.1, "reversed"),
        (-0.3, 0.0, "not distinguishable from noise"),
        (-0.1, 0.49, "not distinguishable from noise"),
        (0.0, 0.49, "not distinguishable from noise"),
        (-0.1, 0.5, "inconclusive"),
        (-0.1, 2.0, "inconclusive"),
        (0.1, 0.99, "smaller"),
        (0.1, 0.2, "smaller"),
        (0.1, 1.0, "inconclusive"),
        (0.5, 0.6, "replicates"),
        (0.5, 3.0, "replicates"),
        (2.0, 3.0, "replicates"),
    ],
)
def test_claim_verdict_for_a_published_gain_of_one(low, high, verdict):
    assert claim_verdict(1.0, low, high) == verdict
    assert claim_verdict(-1.0, -high, -low) == verdict


def test_a_claim_without_an_interval_is_inconclusive():
    assert claim_verdict(0.007, None, None) == "inconclusive"


def test_the_published_kd_gain_of_study_1_replicates():
    assert claim_verdict(0.007, 0.0049, 0.0075) == "replicates"
    assert claim_verdict(0.007, 0.0012, 0.0088) == "inconclusive"  # METHOD's crossed interval on a thousand rows


# seeds_to_settle


def half_width_of(variance, df, level=0.95):
    return stats.t.ppf((1 + level) / 2, df) * math.sqrt(variance)


def test_seeds_to_settle_is_the_first_number_whose_half_width_is_below_the_mean():
    spread = Spread(0.002, 0.002**2, 9, 10)
    n = seeds_to_settle(Difference(spread, spread), 10, 0.001)
    assert half_width_of(spread.variance * 10 / n, 9 * n / 10) < 0.002
    assert half_width_of(spread.variance * 10 / (n - 1), 9 * (n - 1) / 10) >= 0.002
    assert 38 < n < 45  # (1.96 to 2.05)^2 x 10


def test_seeds_to_settle_keeps_the_rows_part():
    units, rows = 0.002**2, 0.0008**2
    total, seeds = Spread(0.002, units + rows, 12, 10), Spread(0.002, units, 9, 10)
    n = seeds_to_settle(Difference(total, seeds), 10, 0.0)
    alone = seeds_to_settle(Difference(seeds, seeds), 10, 0.0)
    # 1.96^2 (units x 10/n + rows) = mean^2
    assert alone < n
    assert n == pytest.approx(10 * units / (0.002**2 / 1.96**2 - rows), rel=0.05)


def test_seeds_to_settle_is_none_where_the_rows_alone_forbid_it():
    total, seeds = Spread(0.001, 2e-6, 12, 10), Spread(0.001, 1e-6, 9, 10)  # rows alone: 1.96 x 0.001 > 0.001
    assert seeds_to_settle(Difference(total, seeds), 10, 0.0) is None
    assert seeds_to_settle(Difference(total, seeds), 10, 0.005) is not None


def test_seeds_to_settle_a_mean_within_the_margin_asks_for_equivalence():
    spread = Spread(0.0015, 0.002**2, 9, 10)
    n = seeds_to_settle(Difference(spread, spread), 10, 0.002)
    assert half_width_of(spread.variance * 10 / n, 9 * n / 10, level=0.90) < 0.002 - 0.0015
    assert half_width_of(spread.variance * 10 / (n - 1), 9 * (n - 1) / 10, level=0.90) >= 0.002 - 0.0015


def test_units_that_tie_in_total_but_not_by_row_are_not_certain():
    spread = over_seeds_and_rows([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    assert spread.variance > 0
    low, high = spread.interval()
    assert low < spread.mean < high


def test_seeds_to_settle_has_no_answer_without_an_estimate():
    one, zero = over_seeds([0.1]), Spread(0.0, 1e-6, 9, 10)
    assert seeds_to_settle(Difference(one, one), 1, 0.002) is None
    assert seeds_to_settle(Difference(zero, zero), 10, 0.0) is None
    faint = Spread(1e-9, 1e-6, 9, 10)
    assert seeds_to_settle(Difference(faint, faint), 10, 0.0) is None


def test_seeds_to_settle_is_the_present_number_where_it_suffices():
    spread = Spread(0.01, 1e-6, 9, 10)
    assert seeds_to_settle(Difference(spread, spread), 10, 0.002) == 10
    point = Spread(0.01, 0.0, 9, 10)
    assert seeds_to_settle(Difference(point, point), 10, 0.002) == 10


# ratio


def test_fiellers_limits_are_where_the_paired_t_test_turns():
    rng = np.random.default_rng(6)
    y = rng.normal(1.0, 0.5, 12)
    x = 0.6 * y + rng.normal(0, 0.2, 12)
    share = ratio(x, y)
    assert share.bounded
    assert share.value == pytest.approx(x.mean() / y.mean())
    assert share.low < share.value < share.high
    for end in (share.low, share.high):
        assert stats.ttest_1samp(x - end * y, 0).pvalue == pytest.approx(0.05)


def test_a_denominator_that_may_be_zero_gives_no_bounds():
    share = ratio([1.0, 2.0, 3.0], [-1.0, 1.0, 1.0])
    assert share.value == pytest.approx(6)
    assert (share.low, share.high, share.bounded, share.reason) == (None, None, False, "unbounded")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-2, 9)), min_size=3, max_size=8))
def test_the_ratio_is_bounded_exactly_where_the_denominator_is_significant(pairs):
    x, y = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    assume(y.mean() > 0 and np.ptp(y) > 0)
    assert ratio(x, y).bounded == (stats.ttest_1samp(y, 0).pvalue < 0.05)


def test_no_share_of_a_denominator_that_is_not_positive():
    for y in ([0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]):
        share = ratio([1.0, 2.0, 3.0], y)
        assert (share.value, share.bounded) == (None, False)
        assert "not positive" in share.reason


def test_the_ratio_of_constants_is_a_point_and_of_one_seed_has_no_interval():
    point = ratio([0.3] * 3, [0.6] * 3)
    assert (point.value, point.low, point.high) == pytest.approx((0.5, 0.5, 0.5))
    one = ratio([0.3], [0.6])
    assert (one.value, one.low, one.bounded) == (0.5, None, False)


# clopper_pearson


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
@settings(deadline=None)
def test_clopper_pearson_equals_scipys(k_n, level):
    k, n = k_n
    reference = stats.binomtest(k, n).proportion_ci(level, method="exact")
    assert clopper_pearson(k, n, level) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_clopper_pearson_of_nothing_is_the_rule_of_three():
    low, high = clopper_pearson(0, 100)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 100))


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over_seeds([]), "at least one entry"),
        (lambda: over_seeds([0.1, math.nan]), "1 of 2"),
        (lambda: over_seeds([[0.1]]), "1 dimension"),
        (lambda: over_seeds_and_rows([[1], [0]]), "2 test rows"),
        (lambda: over_seeds_and_rows([1, 0]), "2 dimension"),
        (lambda: over_winners([]), "at least one winner"),
        (lambda: over_winners([[[1, 0]], [[1, 0, 1]]]), r"\[2, 3\]"),
        (lambda: between_arms([[[1, 0]], [[1, 1]]], [[[1, 0, 1]], [[1, 1, 1]]]), "2 and 3"),
        (lambda: paired([[1, 0]], [[1, 0, 1]]), "one shape"),
        (lambda: ratio([1.0, 2.0], [1.0]), "2 and 1"),
        (lambda: holm([0.5, 1.5]), "1.5"),
        (lambda: family_level(0.5, 0.1, 3), "never below p"),
        (lambda: family_level(0.01, 0.01, 0), "at least 1"),
        (lambda: over_seeds([0.1, 0.2]).interval(95), "between 0 and 1"),
        (lambda: arm_verdict(over_seeds([0.1, 0.2]), 0.5, 0.95, -1.0), "margin"),
        (lambda: claim_verdict(0.0, -1.0, 1.0), "other than 0"),
        (lambda: claim_verdict(0.1, 1.0, -1.0), "low <= high"),
        (lambda: clopper_pearson(5, 4), "k=5 and n=4"),
    ],
)
def test_errors_say_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# small simulations: what the intervals promise. Each also shows that the simpler interval fails in the same draws.


def test_the_crossed_interval_covers_the_population_value_and_the_seeds_alone_do_not():
    rng, replicates = np.random.default_rng(20), 1000
    mean, row_sd, seed_sd = 1.5, 1.0, 0.05
    truth = stats.norm.cdf(mean / math.sqrt(1 + row_sd**2 + seed_sd**2))
    covered = {"crossed": 0, "seeds": 0}
    for _ in range(replicates):
        ability = mean + seed_sd * rng.standard_normal((10, 1)) + row_sd * rng.standard_normal(300)
        correct = rng.standard_normal((10, 300)) < ability
        for name, spread in (("crossed", over_seeds_and_rows(correct)), ("seeds", over_seeds(correct.mean(axis=1)))):
            low, high = spread.interval()
            covered[name] += low <= truth <= high
    assert 0.93 <= covered["crossed"] / replicates <= 0.97
    assert covered["seeds"] / replicates < 0.80


def test_two_searches_of_one_arm_are_called_different_in_five_percent_of_sweeps():
    rng, replicates, (winners, seeds, rows) = np.random.default_rng(21), 600, (4, 5, 200)
    rejected = {"winners": 0, "seeds": 0}
    for _ in range(replicates):
        ability = 1.5 + rng.standard_normal(rows)
        arms = []
        for _ in range(2):
            arm_row = 0.2 * rng.standard_normal(rows)  # what makes an arm good at some rows and bad at others
            winner = 0.1 * rng.standard_normal((winners, 1, 1)) + 0.2 * rng.standard_normal((winners, 1, rows))
            luck = 0.5 * rng.standard_normal((winners, seeds, rows))
            arms.append(luck < ability + arm_row + winner)
        rejected["winners"] += between_arms(list(arms[0]), list(arms[1])).total.p_value() < 0.05
        as_seeds = paired(arms[0].reshape(-1, rows), arms[1].reshape(-1, rows))
        rejected["seeds"] += as_seeds.total.p_value() < 0.05
    low, high = clopper_pearson(rejected["winners"], replicates)
    assert low <= 0.05 <= high
    assert clopper_pearson(rejected["seeds"], replicates)[0] > 0.06
