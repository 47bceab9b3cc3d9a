"""What a budget buys: the best of n configurations to be expected, and the best found so far at every cost.

`values` are validation scores, higher is better, one a configuration drawn at random.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]

DRAWS = 1000  # of the bootstrap
GRID = 60  # points of a curve: all budgets up to some 40 configurations, spread by their logarithm beyond


@dataclass(frozen=True)
class Step:
    """The best score so far has become `best`, by `trial`, after so many seed-epochs and seconds of training."""

    seed_epochs: int
    seconds: float
    best: float
    trial: str


def expected_best(values: npt.ArrayLike, budgets: npt.ArrayLike) -> Array:
    """Expected maximum of n configurations out of `values` (N,), for each n of `budgets` (K,): (K,).

    The mean of the maximum over all subsets of n of the N, which is unbiased for the maximum of n independent draws:
    the k-th smallest value is that of C(k-1, n-1) of the C(N, n) subsets.
    Raises ValueError for no or non-finite values, or an n outside 1 to N, which no unbiased estimate exists for.
    Source: Tang et al., "Showing Your Work Doesn't Always Work", ACL 2020 (arXiv 2004.13705), section 4: a U-statistic
    in place of the plug-in estimate of Dodge et al. (2019), which is too low.
    """
    x, n = _drawn(values), _budgets(budgets, np.asarray(values).size)
    best: Array = _weights(x.size, n) @ np.sort(x)
    return best


def expected_best_intervals(
    values: npt.ArrayLike, budgets: npt.ArrayLike, rng: np.random.Generator, level: float = 0.95, draws: int = DRAWS
) -> Array:
    """Bootstrap intervals (K, 2) of `expected_best(values, budgets)`: values (N,), budgets (K,).

    Percentiles, moved by what the resamples' mean lies beside the estimate: a resample repeats values, and so misses
    the best. No resample holds a value above the best one seen, so with n near N they are too short: 95 % intervals
    cover 84 to 93 % at n = N / 4, by how long the tail of good scores is, and 55 to 75 % at N (docs/statistics.md).
    Draw them up to `n_with_interval(N)`.
    Raises ValueError as `expected_best` does, and for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level:g}")
    x, n = _drawn(values), _budgets(budgets, np.asarray(values).size)
    resampled = np.sort(x[rng.integers(0, x.size, (draws, x.size))], axis=1)
    weights = _weights(x.size, n)
    found = resampled @ weights.T
    tail = (1 - level) / 2
    ends: Array = (np.quantile(found, [tail, 1 - tail], axis=0) - found.mean(axis=0) + weights @ np.sort(x)).T
    return ends


def n_with_interval(size: int) -> int:
    """The largest n whose expected best of `size` values has an interval worth drawing."""
    return size // 4


def budget_grid(n: int, most: int = GRID) -> npt.NDArray[np.int64]:
    """Numbers of configurations from 1 to n, n and n // 2 among them: all, or about `most`, even on a log scale."""
    if n < 1:
        return np.zeros(0, dtype=np.int64)
    if n <= most:
        return np.arange(1, n + 1)
    spread = np.geomspace(1, n, most).round().astype(np.int64)
    return np.unique(np.concatenate([spread, [n // 2]]))


def gain_of_doubling(values: npt.ArrayLike) -> float | None:
    """Expected best of all N `values` (N,) minus that of half of them: what the second half of a budget bought.

    None for fewer than 4 values. Below the margin the search is called saturated.
    """
    n = np.asarray(values).size
    if n < 4:
        return None
    half, whole = expected_best(values, [n // 2, n])
    return float(whole - half)


def best_so_far(reports: Iterable[tuple[str, int, float, float]]) -> list[Step]:
    """Each report (trial, seed-epochs, seconds, score) that beat all before it, and where the budget ended.

    Costs add up; a score that is not finite only costs. The last step repeats the best at the whole cost.
    """
    steps: list[Step] = []
    spent, took = 0, 0.0
    for trial, cost, seconds, score in reports:
        spent, took = spent + cost, took + seconds
        if math.isfinite(score) and (not steps or score > steps[-1].best):
            steps.append(Step(spent, took, score, trial))
    if steps and steps[-1].seed_epochs < spent:
        steps.append(Step(spent, took, steps[-1].best, steps[-1].trial))
    return steps


def _weights(size: int, budgets: npt.NDArray[np.int64]) -> Array:
    """(K, N): the share of the subsets of n whose maximum is the k-th smallest value."""
    k, n = np.arange(1, size + 1)[None, :], budgets[:, None]
    held = np.where(k >= n, _log_choose(k - 1, np.minimum(n - 1, k - 1)), -np.inf)
    weights: Array = np.exp(held - _log_choose(np.full_like(n, size), n))
    return weights


def _log_choose(n: npt.NDArray[np.int64], k: npt.NDArray[np.int64]) -> Array:
    found: Array = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return found


def _drawn(values: npt.ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"values must be one or more finite scores, got shape {x.shape}")
    return x


def _budgets(budgets: npt.ArrayLike, size: int) -> npt.NDArray[np.int64]:
    n = np.asarray(budgets, dtype=np.int64)
    if n.ndim != 1 or (n < 1).any() or (n > size).any():
        raise ValueError(f"a budget is a number of configurations from 1 to {size}, got {n.tolist()}")
    return n
