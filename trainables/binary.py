"""What a classifier of two classes is judged by, from one logit a row: ranking, accuracy, calibration, thresholds.

Shapes: S seeds, n rows; logits (S, n) are log-odds of class 1, labels (n,) are 0 or 1. A seed of which a logit is not
finite has diverged, and what would be said of it is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from sklearn.metrics import average_precision_score

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

CALIBRATION_BINS = 15
SMALLEST = 1e-7  # a mean of probabilities is kept so far from 0 and 1


def mean_of_teachers(logits: ArrayLike) -> Array:
    """The plain average of probabilities as a logit: logits (n, teachers) of class 1 -> (n,), finite."""
    mean = special.expit(np.asarray(logits, dtype=np.float64)).mean(axis=1)
    return np.asarray(special.logit(mean.clip(SMALLEST, 1 - SMALLEST)))


def auc(scores: ArrayLike, labels: ArrayLike) -> Array:
    """Area under the ROC curve: how often a row of class 1 is ranked above one of class 0, ties counting half.

    scores (S, n): logits, or anything that orders rows alike; labels (n,). Returns (S,), NaN for a seed with a score
    that is not finite, and for all where a class has no row.
    Raises ValueError for shapes that do not fit, no rows, or labels other than 0 and 1.
    Source: Mann & Whitney, Ann. Math. Statist. 18 (1947): the sum of the positives' midranks.
    """
    x, positive, finite = _checked(scores, labels)
    m = int(positive.sum())
    k = positive.size - m
    if min(m, k) == 0:
        return np.full(len(x), np.nan)
    ranks = stats.rankdata(x, axis=-1)[:, positive].sum(axis=-1)
    return np.where(finite, (ranks - m * (m + 1) / 2) / (m * k), np.nan)


def binary_metrics(
    logits: ArrayLike, labels: ArrayLike, split: str, threshold: ArrayLike | None = None
) -> dict[str, list[float]]:
    """All that is said of a split, as `{split}_{measure}` with one value per seed.

    logits (S, n), labels (n,), threshold (S,): probabilities, from `best_threshold` on other rows.
    auc, average_precision, ks: of the ranking, NaN where a class has no row. average_precision is the sum of precision
    over steps of recall, without interpolation; ks the largest |TPR - FPR| (Kolmogorov-Smirnov).
    accuracy: class 1 where p > 1/2; accuracy_at_threshold, if there is one: where p > threshold; majority: the share of
    the more frequent class, which a constant answer would get right.
    nll in nats; brier: mean (p - y)², half of what Brier (Mon. Weather Rev. 78, 1950) sums over both classes.
    ece: over 15 bins of equal width, mean |mean p - share of positives| weighted by the bins' rows. This is the binary
    form (Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015); the other, in
    `trainables.evaluation`, bins the confidence in whichever class is predicted, and the two differ in general.
    Raises ValueError for shapes that do not fit, no rows, or labels other than 0 and 1.
    """
    x, positive, finite = _checked(logits, labels)
    p: Array = special.expit(x)
    found = {
        "auc": auc(x, positive),
        "average_precision": np.full(len(x), np.nan),
        "ks": np.full(len(x), np.nan),
        "accuracy": _accuracy(p, positive, np.full(len(x), 0.5)),
        "brier": np.mean((p - positive) ** 2, axis=-1),
        "nll": np.logaddexp(0, np.where(positive, -x, x)).mean(axis=-1),
        "ece": _calibration_error(p, positive),
    }
    if 0 < positive.sum() < positive.size:
        found["average_precision"] = np.array([average_precision_score(positive, row) for row in x])
        found["ks"] = np.array([_kolmogorov_smirnov(row, positive) for row in x])
    if threshold is not None:
        found["accuracy_at_threshold"] = _accuracy(p, positive, np.asarray(threshold, dtype=np.float64))
    metrics = {f"{split}_{name}": np.where(finite, values, np.nan).tolist() for name, values in found.items()}
    majority = max(positive.sum(), (~positive).sum()) / positive.size
    return metrics | {f"{split}_majority": [float(majority)] * len(x)}


def best_threshold(logits: ArrayLike, labels: ArrayLike) -> Array:
    """The probability above which to answer class 1 for the best accuracy on these (validation) rows.

    logits (S, n), labels (n,). Returns (S,) in (0, 1]: midpoints between neighbouring probabilities, or between an
    outermost one and 0 or 1; of those equally good the one nearest to 1/2. NaN for a seed with a logit that is not
    finite.
    Raises ValueError for shapes that do not fit, no rows, or labels other than 0 and 1.
    """
    x, positive, finite = _checked(logits, labels)
    found = np.full(len(x), np.nan)
    for seed in np.flatnonzero(finite):
        p = special.expit(x[seed])
        edges = np.unique(np.concatenate([[0.0, 1.0], p]))
        between = (edges[1:] + edges[:-1]) / 2
        # What is right at a threshold, less the positives, which are a constant: negatives up to it less positives.
        right = np.searchsorted(np.sort(p[~positive]), between, "right")
        right -= np.searchsorted(np.sort(p[positive]), between, "right")
        best = between[right == right.max()]
        found[seed] = best[np.abs(best - 0.5).argmin()]
    return found


def platt(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Platt's calibration: (slope, intercept) such that sigmoid(slope x logit + intercept) is the probability.

    logits (n,), labels (n,): rows on which the model was not fitted. Logistic regression without a penalty on Platt's
    targets (m + 1) / (m + 2) for the m positives and 1 / (k + 2) for the k negatives, so that classes which the logit
    separates, or a class without rows, have a finite answer too. Logits that are all equal get slope 0.
    Raises ValueError for shapes that do not fit, no rows, labels other than 0 and 1, or a logit that is not finite.
    Source: Platt, "Probabilistic Outputs for Support Vector Machines", Advances in Large Margin Classifiers (1999).
    """
    x, positive, finite = _checked(np.asarray(logits)[None], labels)
    if not finite.all():
        raise ValueError("logits to calibrate must be finite, and some are not")
    m = int(positive.sum())
    target = np.where(positive, (m + 1) / (m + 2), 1 / (positive.size - m + 2))
    if np.ptp(x[0]) == 0:
        return 0.0, float(special.logit(target.mean()))
    centre, scale = float(x[0].mean()), float(x[0].std())
    design = np.stack([(x[0] - centre) / scale, np.ones(positive.size)])

    def loss(weights: Array) -> tuple[float, Array]:
        z = weights @ design
        return float(np.mean(np.logaddexp(0, z) - target * z)), design @ (special.expit(z) - target) / target.size

    def curvature(weights: Array) -> Array:
        p = special.expit(weights @ design)
        hessian: Array = (design * (p * (1 - p))) @ design.T / target.size
        return hessian

    fit = optimize.minimize(loss, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    slope = float(fit.x[0]) / scale
    return slope, float(fit.x[1]) - slope * centre


def _kolmogorov_smirnov(scores: Array, positive: Flags) -> float:
    """The largest |TPR - FPR| of one seed; both rates are complements of their classes' distribution functions."""
    at, of_positives, of_negatives = np.sort(scores), np.sort(scores[positive]), np.sort(scores[~positive])
    missed = np.searchsorted(of_positives, at, "right") / of_positives.size
    rejected = np.searchsorted(of_negatives, at, "right") / of_negatives.size
    return float(np.abs(missed - rejected).max())


def _accuracy(p: Array, positive: Flags, threshold: Array) -> Array:
    """p (S, n), threshold (S,) -> (S,): how often p > threshold says the label; NaN for a NaN threshold."""
    if threshold.shape != (len(p),):
        raise ValueError(f"threshold needs one probability a seed, shape ({len(p)},), got shape {threshold.shape}")
    right = ((p > threshold[:, None]) == positive).mean(axis=-1)
    return np.where(np.isnan(threshold), np.nan, right)


def _calibration_error(p: Array, positive: Flags) -> Array:
    """p (S, n) -> (S,); a probability between two bins belongs to the lower."""
    seeds, n = p.shape
    bins = np.clip(np.ceil(p * CALIBRATION_BINS).astype(int), 1, CALIBRATION_BINS) - 1
    of_seed = np.arange(seeds)[:, None] * CALIBRATION_BINS
    gaps = np.bincount((bins + of_seed).ravel(), (positive - p).ravel(), seeds * CALIBRATION_BINS)
    errors: Array = np.abs(gaps.reshape(seeds, CALIBRATION_BINS)).sum(axis=-1) / n
    return errors


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Flags, Flags]:
    """Scores (S, n), 0 throughout for a seed that is not finite; whether labels are 1 (n,), and seeds finite (S,)."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or x.size == 0 or y.shape != x.shape[1:]:
        raise ValueError(
            f"scores (seeds, rows) and labels (rows,) must fit and not be empty, got shapes {x.shape} and {y.shape}"
        )
    positive: Flags = y == 1
    if not (positive | (y == 0)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(y)[:5].tolist()}")
    finite: Flags = np.asarray(np.isfinite(x).all(axis=-1))
    return np.where(finite[:, None], x, 0.0), positive, finite
