"""Intervals, tests and verdicts of means, differences and published claims, as pure functions (docs/statistics.md).

Shapes: S seeds, N test rows, G winners of an arm's independent sub-searches, C_g confirmation seeds of winner g.
`correct` is 1 where a student labels a row rightly and 0 where not; any per-row score works the same way, and AUC does
through `auc_units`.
A *unit* is what was drawn independently: a seed where the configuration is given, a winner where it was searched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
ArmVerdict = Literal["better", "worse", "equivalent", "indistinguishable"]
ClaimVerdict = Literal["replicates", "smaller", "not distinguishable from noise", "reversed", "inconclusive"]

EXACT_UP_TO = 20  # differences in a sign-flip test: 2^20 sign patterns
ROUNDING = 1e-20  # a variance this small beside another is 0: the means of `auc_units` that tie differ by about 1e-16
EQUIVALENCE_LEVEL = 0.90  # of the interval that must lie within the margin, as in two one-sided 5 % tests
MANY = 1_000_000  # seeds: more than this is "no number" to whoever must train them


@dataclass(frozen=True)
class Spread:
    """A mean with the variance of that mean, its degrees of freedom, and the number of units behind it.

    With one unit `variance` and `df` are NaN: interval and p are undefined, and None is what comes back.
    """

    mean: float
    variance: float
    df: float
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """The two-sided t interval (low, high) at `level`; a point if the variance is 0; None with one unit.

        Raises ValueError for a level outside (0, 1).
        """
        _require_share("level", level)
        if self.n == 1:
            return None
        half = _t_quantile(level, self.df) * math.sqrt(self.variance) if self.variance > 0 else 0.0
        return self.mean - half, self.mean + half

    def p_value(self) -> float | None:
        """Two-sided p of "the mean is 0" from the same t; with variance 0: 1 for mean 0, else 0; None with one unit."""
        if self.n == 1:
            return None
        if self.variance == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * special.stdtr(self.df, -abs(self.mean) / math.sqrt(self.variance)))


@dataclass(frozen=True)
class Difference:
    """One difference, twice: `total` (ci95) counts rows as a sample, `without_rows` (ci95_seeds) does not."""

    total: Spread
    without_rows: Spread


@dataclass(frozen=True)
class Ratio:
    """A ratio of means with Fieller's limits; `reason` says in words why `value` or the limits are None."""

    value: float | None
    low: float | None
    high: float | None
    bounded: bool
    reason: str | None


def pair(interval: tuple[float, float] | None) -> list[float] | None:
    """An interval as JSON has it: [low, high] or None."""
    return None if interval is None else [float(interval[0]), float(interval[1])]


def over_seeds(values: npt.ArrayLike) -> Spread:
    """Mean of `values` (S,), one a seed, with variance s^2 / S and S - 1 degrees of freedom.

    Raises ValueError for an empty, non-finite or not one-dimensional array.
    """
    x = _finite(values, 1, "values")
    if x.size == 1:
        return _one_unit(float(x[0]))
    return Spread(_mean(x), _variance_of_mean(x), x.size - 1, x.size)


def over_seeds_and_rows(d: npt.ArrayLike) -> Spread:
    """Mean of `d` (S, N), per seed and test row, when seeds and rows are both samples of a larger population.

    `d` is `correct` of one configuration, or `correct_a - correct_b` of two, paired by seed. With row means a, column
    means b (both centred) and residual e: V_S = Σa²/(S(S-1)), V_R = Σb²/(N(N-1)), V_SR = Σe²/((S-1)(N-1)SN),
    V = max(V_S, V_S + V_R - V_SR), df = V²/(V_S²/(S-1) + V_R²/(N-1)).
    One seed gives an undefined interval. Raises ValueError for fewer than 2 rows or non-finite entries.
    Source: the two-way random-effects mean with the method-of-moments components (Searle,
    Casella & McCulloch, Variance Components, 1992, ch. 4) and Satterthwaite's df.
    """
    matrix = _matrix(d, "d")
    return _crossed(over_seeds(matrix.mean(axis=1)), matrix.mean(axis=0), _interaction(matrix))


def over_winners(groups: Sequence[npt.ArrayLike]) -> Spread:
    """Accuracy of one searched arm: G matrices (C_g, N) of per-row correctness, one for each sub-search's winner.

    The unit is the winner's mean over its seeds, so the interval holds what tuning adds to the noise; each winner
    counts once, however many seeds confirmed it. With G = 1 that noise is unknown, and the interval is the only
    configuration's: `over_seeds_and_rows(groups[0])`.
    Raises ValueError for no group, differing N, fewer than 2 rows or non-finite entries.
    """
    means, rows = _units(groups, "groups")
    return _crossed(over_seeds(means), rows.mean(axis=0), _interaction(rows))


def between_arms(groups_a: Sequence[npt.ArrayLike], groups_b: Sequence[npt.ArrayLike]) -> Difference:
    """Arm a minus arm b, each given as its winners' matrices (C_g, N) over the same N test rows.

    `without_rows` is Welch's t on the winner means: V_W = s_a²/G_a + s_b²/G_b with the Welch-Satterthwaite df_W.
    `total` adds the rows: b_i = mean over winners of a - of b at row i, centred; V_R = Σb²/(N(N-1)); V_SR = for each
    arm Σe²/((G-1)(N-1)GN) of its winner x row residuals, summed; V = max(V_W, V_W + V_R - V_SR),
    df = V²/(V_W²/df_W + V_R²/(N-1)). `n` is the smaller arm's number of units.

    One winner in both arms: `paired` over their common seeds (equal numbers required), which compares two
    configurations and says nothing of tuning. One winner in one arm only (a fixed arm, say): its seeds are its units.
    Raises ValueError for no group, differing N, fewer than 2 rows or non-finite entries.
    Source: Welch, Biometrika 34 (1947).
    """
    if len(groups_a) == 1 and len(groups_b) == 1:
        return paired(groups_a[0], groups_b[0])
    means_a, rows_a = _units(groups_a, "groups_a")
    means_b, rows_b = _units(groups_b, "groups_b")
    if rows_a.shape[1] != rows_b.shape[1]:
        raise ValueError(f"both arms need the same test rows, got {rows_a.shape[1]} and {rows_b.shape[1]}")
    welch = _welch(over_seeds(means_a), over_seeds(means_b))
    by_row = rows_a.mean(axis=0) - rows_b.mean(axis=0)
    return Difference(_crossed(welch, by_row, _interaction(rows_a) + _interaction(rows_b)), welch)


def paired(a: npt.ArrayLike, b: npt.ArrayLike) -> Difference:
    """Configuration a minus configuration b from two correctness matrices (S, N), row k of both under seed k.

    Raises ValueError if the shapes differ, for fewer than 2 rows, or for non-finite entries.
    """
    first, second = _matrix(a, "a"), _matrix(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"a and b are paired by seed and row and need one shape, got {first.shape} and {second.shape}")
    d = first - second
    return Difference(over_seeds_and_rows(d), over_seeds(d.mean(axis=1)))


def auc_units(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """AUC as a mean over test rows: units (S, N) that stand in for `correct`, in `paired` and wherever else it goes.

    scores (S, N): any real numbers, higher for class 1, ties allowed; labels (N,): 0 or 1. With m positives and k
    negatives, V10 of a positive is the share of negatives it is ranked above, V01 of a negative the share of positives
    ranked above it, ties counting half; both average to θ, the seed's AUC. The units are θ + c (V - θ) with
    c = √(N(N-1) / (m(m-1))) for positives and √(N(N-1) / (k(k-1))) for negatives, about N/m and N/k.

    A seed's units average to its AUC, and their s²/N is DeLong's variance S10/m + S01/k with its m-1 and k-1; a
    difference of two configurations' units likewise has DeLong's variance of the difference: rows count as drawn within
    their class. Compare units of the same rows only, since c depends on the class sizes. With few rows of a class the
    95 % interval is too short, most of all that of a single AUC: with 15 positives in 600 rows it covers 89 % (a
    difference 94 %), with 8 it covers 87 % (92 %); simulated, 10 seeds, AUC 0.82 (n=2,000).
    Raises ValueError for fewer than 2 rows of a class (which has no variance), non-finite scores or shapes that differ.
    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988); counting in sorted order as in Sun & Xu, IEEE Signal
    Processing Letters 21 (2014).
    """
    matrix = _matrix(scores, "scores")
    y = _binary(labels, matrix.shape[1])
    n, m = y.size, int(y.sum())
    k = n - m
    if min(m, k) < 2:
        raise ValueError(f"AUC and its variance need 2 rows of each class or more, got {m} positive and {k} negative")
    weight = np.where(y, math.sqrt(n * (n - 1) / (m * (m - 1))), math.sqrt(n * (n - 1) / (k * (k - 1))))
    units = np.empty_like(matrix)
    for unit, score in zip(units, matrix, strict=True):
        order = np.argsort(score)
        positive, ascending = y[order], score[order]
        edges = np.concatenate([[0], np.flatnonzero(ascending[1:] != ascending[:-1]) + 1, [n]])  # of runs of ties
        positives = np.concatenate([[0], np.cumsum(positive)])[edges]
        # The middle of a run has half its rows below: with ties as halves, so many rows of each class are below it.
        below = np.repeat((positives[1:] + positives[:-1]) / 2, np.diff(edges))
        negatives_below = np.repeat((edges[1:] + edges[:-1]) / 2, np.diff(edges)) - below
        area = negatives_below[positive].sum() / (m * k)
        unit[order] = np.where(positive, negatives_below / k, 1 - below / m) - area
        unit *= weight
        unit += area
    return units


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike, level: float = 0.95) -> Ratio:
    """mean(numerator) / mean(denominator) of paired samples (S,), (S,) with Fieller's interval.

    The interval holds every ρ for which a paired t-test does not reject mean(numerator - ρ denominator) = 0. It has
    two ends only if the denominator's mean differs from 0 at 1 - level; otherwise the limits are None, `bounded` is
    False and the reason is "unbounded". A denominator whose mean is not positive has no share to take: value None.
    Raises ValueError if the shapes differ or entries are not finite.
    Source: Fieller, J. R. Statist. Soc. B 16 (1954): the roots of (x - ρy)² = t² (V_xx - 2ρ V_xy + ρ² V_yy).
    """
    _require_share("level", level)
    x, y = _finite(numerator, 1, "numerator"), _finite(denominator, 1, "denominator")
    if x.shape != y.shape:
        raise ValueError(f"numerator and denominator are paired and need one length, got {x.size} and {y.size}")
    mean_x, mean_y, n = _mean(x), _mean(y), x.size
    if mean_y <= 0:
        return Ratio(None, None, None, False, "the mean of the denominator is not positive")
    value = mean_x / mean_y
    if n == 1:
        return Ratio(value, None, None, False, "one seed has no interval")
    t2 = _t_quantile(level, n - 1) ** 2
    covariance = float((x - mean_x) @ (y - mean_y)) / (n * (n - 1))
    a = mean_y**2 - t2 * _variance_of_mean(y)
    b = mean_x * mean_y - t2 * covariance
    c = mean_x**2 - t2 * _variance_of_mean(x)
    if a <= 0:
        return Ratio(value, None, None, False, "unbounded")
    root = math.sqrt(max(b**2 - a * c, 0.0))  # at least 0 where a > 0, but for rounding
    return Ratio(value, (b - root) / a, (b + root) / a, True, None)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values of one family, in the order given.

    None (a comparison that could not be tested) stays None and does not count: the family is the p values present.
    Raises ValueError for a p outside [0, 1]. Source: Holm, Scand. J. Statist. 6 (1979).
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        if not 0 <= p <= 1:
            raise ValueError(f"a p value lies in [0, 1], got {p:g}")
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def family_level(p: float | None, p_adjusted: float | None, family_size: int, alpha: float = 0.05) -> float:
    """The level at which a comparison's interval excludes 0 exactly when its adjusted p is below `alpha`.

    It is 1 - alpha p / p_adjusted: the interval excludes 0 where p < 1 - level, which is p_adjusted < alpha. Where p is
    0 or None that quotient says nothing, and the level is the strictest of the family's, 1 - alpha / family_size.
    Raises ValueError for alpha outside (0, 1), family_size below 1, or p_adjusted below p.
    """
    _require_share("alpha", alpha)
    if family_size < 1:
        raise ValueError(f"family_size counts comparisons and is at least 1, got {family_size}")
    if p is None or p_adjusted is None or p == 0:
        return 1 - alpha / family_size
    if p_adjusted < p:
        raise ValueError(f"p_adjusted is never below p, got p={p:g} and p_adjusted={p_adjusted:g}")
    return 1 - alpha * (p / p_adjusted)


def sign_flip_p(values: npt.ArrayLike) -> float | None:
    """Exact two-sided p of "the paired differences are symmetric about 0": values (S,); None above 20 differences.

    The share of all 2^S sign patterns whose sum is at least as far from 0 as the observed one; sums equal but for
    rounding count as equal. The patterns of the two halves are met by sorting, so 20 differences cost 2^10 searches.
    Raises ValueError for an empty or non-finite array. Source: Fisher, The Design of Experiments (1935), section 21.
    """
    x = _finite(values, 1, "values")
    if x.size > EXACT_UP_TO:
        return None
    observed = abs(float(x.sum())) - 1e-12 * float(np.abs(x).sum())
    if observed <= 0:
        return 1.0
    left, right = _signed_sums(x[: x.size // 2]), np.sort(_signed_sums(x[x.size // 2 :]))
    above = right.size - np.searchsorted(right, observed - left, side="left")
    below = np.searchsorted(right, -observed - left, side="right")
    return float(above.sum() + below.sum()) / 2.0**x.size


def arm_verdict(
    difference: Spread,
    p_adjusted: float | None,
    level: float,
    margin: float,
    alpha: float = 0.05,
    equivalence_margin: float | None = None,
) -> ArmVerdict:
    """What a tuned arm is, compared with the baseline; `margin` is in the metric's units.

    better: p_adjusted < alpha, the interval at `level` (from `family_level`) above 0 and the mean above the margin;
    worse: the mirror image; equivalent: the interval at 1 - 2 alpha (two one-sided tests) within the margin, or
    within `equivalence_margin` if that is given: noise that widens the one is no reason to call more things equal;
    else, and with one unit, indistinguishable. Raises ValueError for a negative margin or a level outside (0, 1).
    """
    if not margin >= 0:
        raise ValueError(f"margin must be 0 or more, got {margin:g}")
    interval, inner = difference.interval(level), difference.interval(1 - 2 * alpha)
    if interval is None or inner is None:
        return "indistinguishable"
    decided = p_adjusted is not None and p_adjusted < alpha
    if decided and interval[0] > 0 and difference.mean > margin:
        return "better"
    if decided and interval[1] < 0 and difference.mean < -margin:
        return "worse"
    within = margin if equivalence_margin is None else equivalence_margin
    return "equivalent" if -within <= inner[0] and inner[1] <= within else "indistinguishable"


def claim_verdict(published_gain: float, low: float | None, high: float | None) -> ClaimVerdict:
    """What the measured interval [low, high] says of a published gain D; a published loss is judged mirrored.

    reversed: high < 0; replicates: low >= D/2; smaller: 0 < low < D/2 and high < D; not distinguishable from noise:
    low <= 0 and high < D/2; else, and without an interval, inconclusive.
    Raises ValueError if D is 0 (it claims no direction, so nothing can be reversed) or low > high.
    """
    if published_gain == 0 or not math.isfinite(published_gain):
        raise ValueError(f"a claim needs a published gain other than 0, got {published_gain:g}")
    if low is None or high is None:
        return "inconclusive"
    if not low <= high:
        raise ValueError(f"an interval needs low <= high, got [{low:g}, {high:g}]")
    if published_gain < 0:
        published_gain, low, high = -published_gain, -high, -low
    if high < 0:
        return "reversed"
    if low >= published_gain / 2:
        return "replicates"
    if low > 0 and high < published_gain:
        return "smaller"
    if low <= 0 and high < published_gain / 2:
        return "not distinguishable from noise"
    return "inconclusive"


def seeds_to_settle(difference: Difference, seeds: int, margin: float, level: float = 0.95) -> int | None:
    """About how many seeds, `seeds` or more, would settle a verdict of `indistinguishable`.

    A mean past the margin is settled once the interval at `level` leaves 0 out; one within it, once the 90 % interval
    lies within the margin (`equivalent`): its half-width must fall below |mean|, or below margin - |mean|.
    None if no number does, since the test rows alone are too few (or MANY seeds would not do), and where there is no
    estimate (one unit, or a mean just at the margin). Seeds are added in proportion over winners and arms: k times the
    seeds are k times the winners.

    An approximation, for a hint and never for a verdict: the mean stays as observed; the units' part of the variance
    falls as 1/k and its df grow as k; the rows' part (total - without_rows) stays, and counts as known exactly.
    Raises ValueError for fewer than 1 seed, a negative margin or a level outside (0, 1).
    """
    _require_share("level", level)
    if seeds < 1 or not margin >= 0:
        raise ValueError(f"seeds must be 1 or more and margin 0 or more, got {seeds} and {margin:g}")
    units = difference.without_rows
    size = abs(difference.total.mean)
    target, level = (size, level) if size > margin else (margin - size, EQUIVALENCE_LEVEL)
    if units.n == 1 or target == 0:
        return None
    rows = max(difference.total.variance - units.variance, 0.0)
    if _t_quantile(level, math.inf) * math.sqrt(rows) >= target:
        return None

    def half_width(n: int) -> float:
        part = units.variance * seeds / n
        if part == 0:
            return _t_quantile(level, math.inf) * math.sqrt(rows)
        df = units.df * (n / seeds) * ((part + rows) / part) ** 2
        return _t_quantile(level, df) * math.sqrt(part + rows)

    enough = seeds
    while half_width(enough) >= target:
        enough *= 2
        if enough > MANY:
            return None
    short = max(enough // 2, seeds - 1)
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if half_width(middle) < target else (middle, enough)
    return enough


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval (low, high) of a rate from k events in n trials; at least `level` coverage at every true rate.

    Raises ValueError unless 0 <= k <= n, n >= 1 and 0 < level < 1. Source: Clopper & Pearson, Biometrika 26 (1934).
    """
    _require_share("level", level)
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"a rate needs n >= 1 trials and 0 <= k <= n events, got k={k} and n={n}")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def _crossed(units: Spread, by_row: Array, v_interaction: float) -> Spread:
    """`units` with the rows' part added: `by_row` (N,) is the mean over units at each row."""
    if units.n == 1:
        return units
    v_rows = _variance_of_mean(by_row)
    variance = max(units.variance, units.variance + v_rows - v_interaction)
    if v_interaction > 0 and variance <= ROUNDING * v_interaction:
        # Units that tie in their totals but not row by row are no evidence of certainty: the crossed V would be 0.
        return Spread(units.mean, v_interaction, units.df, units.n)
    if variance == 0:
        return units
    df = variance**2 / (units.variance**2 / units.df + v_rows**2 / (by_row.size - 1))
    return Spread(units.mean, variance, df, units.n)


def _welch(a: Spread, b: Spread) -> Spread:
    """The difference of two independent means with the Welch-Satterthwaite df."""
    if min(a.n, b.n) == 1:
        return _one_unit(a.mean - b.mean)
    variance = a.variance + b.variance
    parts = a.variance**2 / a.df + b.variance**2 / b.df
    df = variance**2 / parts if parts > 0 else a.df + b.df
    return Spread(a.mean - b.mean, variance, df, min(a.n, b.n))


def _units(groups: Sequence[npt.ArrayLike], name: str) -> tuple[Array, Array]:
    """An arm's units: their means (U,) and their rows (U, N). U is G, or the only group's number of seeds."""
    matrices = [_matrix(group, f"{name}[{g}]") for g, group in enumerate(groups)]
    if not matrices:
        raise ValueError(f"{name} needs at least one winner's matrix, got none")
    widths = {matrix.shape[1] for matrix in matrices}
    if len(widths) > 1:
        raise ValueError(f"{name} needs the same test rows for every winner, got {sorted(widths)}")
    if len(matrices) == 1:
        return matrices[0].mean(axis=1), matrices[0]
    # Means over a whole matrix are sums of whole numbers, so winners with equal accuracy tie exactly.
    return np.array([m.mean() for m in matrices]), np.stack([m.mean(axis=0) for m in matrices])


def _interaction(matrix: Array) -> float:
    """V_SR of (U, N): the variance that unit x row residuals lend to the grand mean; NaN with one unit."""
    u, n = matrix.shape
    if u == 1:
        return math.nan
    residual = matrix - matrix.mean(axis=1, keepdims=True)
    residual -= residual.mean(axis=0)
    return float(np.vdot(residual, residual) / ((u - 1) * (n - 1) * u * n))


def _mean(x: Array) -> float:
    """The mean of (n,), exact where all are equal."""
    return float(x[0] + (x - x[0]).mean())


def _variance_of_mean(x: Array) -> float:
    """s²/n of (n,); exactly 0 where all are equal, which a plain mean misses by rounding."""
    shifted = x - x[0]
    centred = shifted - shifted.mean()
    return float(centred @ centred) / (x.size * (x.size - 1))


def _signed_sums(x: Array) -> Array:
    """The 2^n sums ±x_1 ±x_2 ... of (n,)."""
    sums = np.zeros(1)
    for value in x:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def _t_quantile(level: float, df: float) -> float:
    """The t with probability `level` between -t and t; the normal's for infinite df."""
    return -float(special.stdtrit(df, (1 - level) / 2))


def _one_unit(mean: float) -> Spread:
    return Spread(mean, math.nan, math.nan, 1)


def _matrix(d: npt.ArrayLike, name: str) -> Array:
    matrix = _finite(d, 2, name)
    if matrix.shape[1] < 2:
        raise ValueError(f"{name} needs at least 2 test rows (seeds x rows), got shape {matrix.shape}")
    return matrix


def _binary(labels: npt.ArrayLike, n: int) -> npt.NDArray[np.bool_]:
    """Labels (n,) of 0 and 1 as whether each is 1."""
    y = np.asarray(labels)
    if y.shape != (n,):
        raise ValueError(f"labels must have one entry a row, shape ({n},), got shape {y.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(y)[:5].tolist()}")
    positive: npt.NDArray[np.bool_] = y == 1
    return positive


def _finite(values: npt.ArrayLike, ndim: int, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} must have {ndim} dimension(s) and at least one entry, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise ValueError(f"{name} must be finite; {bad} of {array.size} entries are not")
    return array


def _require_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value:g}")
