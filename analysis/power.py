"""What a comparison could have found: its power at a given effect, and the smallest effect that it finds.

The rule is that of `statistics.arm_verdict`: an arm is called better (worse) if its t interval at the family's level
leaves 0 out and its mean is past the margin. standard_error and df are those of the difference's t interval.
"""

import math

import numpy as np
from scipy import optimize, special

from analysis.statistics import MANY, ROUNDING

CERTAIN = 1e9  # degrees of freedom at which t is the normal
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


def seeds_for(
    effect: float,
    standard_error: float,
    standard_error_seeds: float,
    df_seeds: float,
    seeds: int,
    level: float = 0.95,
    margin: float = 0.0,
    wanted: float = ENOUGH,
) -> int | None:
    """How many seeds, `seeds` or more, give a true difference `effect` the power `wanted`; None if no number does.

    standard_error is that of `seeds` seeds, standard_error_seeds its part without the rows, with df_seeds. More seeds
    are added in proportion over winners and arms: that part's variance falls as 1/k, its df grow as k, and the rows'
    part stays. `statistics.seeds_to_settle` asks for less: an interval that leaves 0 out if the next mean is this one's
    again, which at best every second sweep's is.
    Raises ValueError as `power` does, and for fewer than 1 seed.
    """
    _check(standard_error, df_seeds, level, margin)
    if seeds < 1 or not standard_error_seeds >= 0:
        raise ValueError(
            f"seeds must be 1 or more and standard_error_seeds 0 or more, got {seeds} and {standard_error_seeds:g}"
        )
    rows = max(standard_error**2 - standard_error_seeds**2, 0.0)

    def found(n: float) -> float:
        part = standard_error_seeds**2 * seeds / n
        if part <= ROUNDING * rows or part == 0:
            return power(effect, math.sqrt(rows), CERTAIN, level, margin)
        df = df_seeds * (n / seeds) * ((part + rows) / part) ** 2
        return power(effect, math.sqrt(part + rows), min(df, CERTAIN), level, margin)

    if found(MANY) < wanted:
        return None
    if found(seeds) >= wanted:
        return seeds
    short, enough = seeds, MANY
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if found(middle) >= wanted else (middle, enough)
    return enough


def _check(standard_error: float, df: float, level: float, margin: float) -> None:
    if not standard_error >= 0 or not margin >= 0 or not df > 0 or not math.isfinite(standard_error):
        raise ValueError(
            f"standard_error and margin must be 0 or more and df above 0, got {standard_error:g}, {margin:g}, {df:g}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level:g}")
