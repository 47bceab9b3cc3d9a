"""Which hyperparameters decided the score, by PED-ANOVA, and whether temperature and weight act on each other."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from scipy import optimize, special

optuna.logging.set_verbosity(optuna.logging.WARNING)
Array = npt.NDArray[np.float64]

TOP = 0.1  # PED-ANOVA asks what is special about the best tenth
FEWEST = 10  # configurations: below, the best tenth is one of them
ENOUGH_IN_TOP = 5  # as Optuna's documentation advises
MOST = 1000  # configurations that are looked at: a random choice of more tells the same
COEFFICIENTS = 6  # of the surface with the interaction: 1, x, y, x², y², xy


@dataclass(frozen=True)
class Importance:
    """Each hyperparameter's share, summing to 1; empty with the reason in `caveat` where there is none to give."""

    parameters: dict[str, float]
    n: int
    caveat: str | None


@dataclass(frozen=True)
class Interaction:
    """gain: share of the scores' variance that x·y explains beside x, y and their squares, and its 95 % interval."""

    gain: float
    low: float
    high: float
    n: int


def importance(
    configs: Sequence[Mapping[str, Any]],
    scores: npt.ArrayLike,
    space: Mapping[str, BaseDistribution],
    rng: np.random.Generator,
) -> Importance:
    """How much each hyperparameter tells the best tenth of the configurations from all of them.

    configs (n,): values of the names in `space`; scores (n,), finite, higher is better.
    Measured over the configurations that the search tried, so a value that its sampler liked counts as usual, not as
    good. Above MOST configurations a random choice of so many.
    Source: Watanabe, Bansal & Hutter, PED-ANOVA, IJCAI 2023, as Optuna has it (`PedAnovaImportanceEvaluator`).
    """
    y = np.asarray(scores, dtype=np.float64)
    n = y.size
    if n < FEWEST:
        return Importance({}, n, f"{n} scored trials are too few: importance needs {FEWEST} or more")
    if np.ptp(y) == 0:
        return Importance({}, n, "all scores are equal, so nothing decides between them")
    shown = np.sort(rng.choice(n, MOST, replace=False)) if n > MOST else np.arange(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params={name: configs[i][name] for name in space}, distributions=dict(space), value=float(y[i])
                )
                for i in shown
            ]
        )
        found = optuna.importance.get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), params=list(space)
        )
    if not all(math.isfinite(v) for v in found.values()):
        return Importance({}, n, "the best tenth differs from the rest in nothing")
    return Importance({k: float(v) for k, v in found.items()}, n, _caveat(n, shown.size))


def _caveat(n: int, shown: int) -> str | None:
    top = math.ceil(TOP * shown)
    if top < ENOUGH_IN_TOP:
        return f"few trials: the best tenth is {top} of {n}, so read this as a hint"
    return f"a random choice of {shown:,} of {n:,} trials" if shown < n else None


def interaction(x: npt.ArrayLike, y: npt.ArrayLike, scores: npt.ArrayLike) -> Interaction | None:
    """Whether the effect of x on the score depends on y: x, y and scores (n,), coordinates in [0, 1] of their ranges.

    Least squares of the scores on 1, x, y, x², y² and on x·y beside them. The gain is ε² = (SS of the added term - MSE)
    / SS total, which is 0 in the mean where there is no interaction and may come out below 0. The interval is of the
    share at the points given: the noncentral F's for that term, its f² = λ / n beside what else varies. It starts at 0
    exactly where the term is not significant at 2.5 %. None for fewer than 12 points, one value of x or y, or scores
    without variance.
    Source: Smithson, Educ. Psychol. Meas. 61 (2001), confidence intervals by the noncentral F; ε² of Kelley, PNAS 1935.
    """
    x, y, z = (np.asarray(v, dtype=np.float64) for v in (x, y, scores))
    n = z.size
    if n < 2 * COEFFICIENTS or min(np.ptp(x), np.ptp(y), np.ptp(z)) == 0:
        return None
    columns = np.stack([np.ones(n), x, y, x**2, y**2, x * y], axis=1)
    if np.linalg.matrix_rank(columns) < COEFFICIENTS:
        return None
    without, whole = _residual(columns[:, :-1], z), _residual(columns, z)
    total, df = float(((z - z.mean()) ** 2).sum()), n - COEFFICIENTS
    error = whole / df
    if error <= 1e-12 * total:
        return Interaction((without - whole) / total, (without - whole) / total, (without - whole) / total, n)
    added = without - whole
    others = (total - added) / whole  # the variance that is not of the term, beside the residual's
    shares = (lam / n for lam in _noncentralities(added / error, df))
    low, high = (share / (share + others) for share in shares)
    return Interaction((added - error) / total, low, high, n)


def _noncentralities(f: float, df: float, level: float = 0.95) -> tuple[float, float]:
    """The λ (low, high) for which an F of (1, df) as large, or as small, as f has probability (1 - level) / 2."""
    tail = (1 - level) / 2

    def solve(probability: float) -> float:
        if special.fdtr(1, df, f) <= probability:
            return 0.0
        high = 1.0
        while special.ncfdtr(1, df, high, f) > probability:
            high *= 2
        return float(optimize.brentq(lambda lam: special.ncfdtr(1, df, lam, f) - probability, 0.0, high))

    return solve(1 - tail), solve(tail)


def _residual(columns: Array, z: Array) -> float:
    """The residual sum of squares of z (n,) on columns (n, k)."""
    fitted = columns @ np.linalg.lstsq(columns, z, rcond=None)[0]
    return float(((z - fitted) ** 2).sum())
