"""What a comparison could have found: its power at a given effect, and the smallest effect that it finds.

The rule is that of `statistics.arm_verdict`: an arm is called better (worse) if its t interval at the family's level
leaves 0 out and its mean is past the margin. standard_error and df are those of the difference's t interval.
"""

import math

import numpy as np
from scipy import optimize, special

ENOUGH = 0.80  # the power at which an effect counts as one that the sweep finds
NODES = (np.arange(400) + 0.5) / 400  # of the integral over how large the standard error comes out


def power(effect: float, standard_error: float, df: float, level: float = 0.95, margin: float = 0.0) -> float:
    """The probability that a true difference `effect` > 0 is called so, by an interval at `level` past `margin`.

    The mean is normal about the effect, s² is χ² with df about standard_error², both independent, so that without a
    margin this is the upper tail of the noncentral t; with one, the mean must also exceed it. A negative effect is
    mirrored. Good to 1e-3; a standard error of 0 finds every effect past the margin.
    Raises ValueError for a negative standard error or margin, df not above 0, or a level outside (0, 1).
    """
    _check(standard_error, df, level, margin)
    size = abs(effect)
    if standard_error == 0:
        return float(size > margin)
    estimated = standard_error * np.sqrt(2 * special.gammaincinv(df / 2, NODES) / df)  # quantiles of s
    needed = np.maximum(-special.stdtrit(df, (1 - level) / 2) * estimated, margin)
    return float(special.ndtr((size - needed) / standard_error).mean())


def detectable(
    standard_error: float, df: float, level: float = 0.95, margin: float = 0.0, wanted: float = ENOUGH
) -> float:
    """The smallest effect whose `power` is `wanted`. Raises ValueError as `power` does, and for wanted outside (0, 1).

    Where the standard error is 0 that is the margin itself.
    """
    _check(standard_error, df, level, margin)
    if not 0 < wanted < 1:
        raise ValueError(f"wanted must lie strictly between 0 and 1, got {wanted:g}")
    if standard_error == 0:
        return margin
    high = margin + standard_error
    while power(high, standard_error, df, level, margin) < wanted:
        high *= 2
    if power(0.0, standard_error, df, level, margin) >= wanted:
        return 0.0
    found = optimize.brentq(lambda e: power(e, standard_error, df, level, margin) - wanted, 0.0, high)
    return float(found)


def _check(standard_error: float, df: float, level: float, margin: float) -> None:
    if not standard_error >= 0 or not margin >= 0 or not df > 0 or not math.isfinite(standard_error):
        raise ValueError(
            f"standard_error and margin must be 0 or more and df above 0, got {standard_error:g}, {margin:g}, {df:g}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level:g}")
