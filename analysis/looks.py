"""Looking at the test split more than once: which level a later look deserves, and what stopping early would have cost.

A look is its number of confirmation seeds, all so far; seeds are only ever added, so the z statistics of the looks are
those of one random walk: under no effect jointly normal, with correlation √(n_i / n_j) for n_i <= n_j seeds. What all
looks share (the test rows, the winners of a search) ties them closer together, which makes false alarms rarer. A sweep
that was given more search budget is judged by fresh seeds in place of its first: such looks agree less, and
`false_alarm_at_most` bounds what they raise (20 and then 20 others: 9.7 % where 20 and then 20 more give 8.2 %; whoever
planned both looks risks 5.2 % in place of 5 %).
A verdict is by t, so what is handed on is a level and not a z (Pocock, Biometrika 64, 1977). With few seeds that is
approximate: at 5, 10 and 20 of them t calls 11.9 % of pure noise a difference, z 11.2 %; at 20, 40 and 80 11.3 % and
11.2 % (simulated, n=400,000).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Array = npt.NDArray[np.float64]

ALPHA = 0.05  # the level of a sweep that has looked once
FAR = 8.0  # a z that pure noise passes with probability 1e-15: where the integrals end
NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)  # of each panel, no wider than the smallest step's deviation


def level_at_last_look(seeds: Sequence[int], alpha: float = 0.05) -> float:
    """The two-sided level to judge the last look at, in place of alpha; alpha itself where it is the only one.

    seeds (K,): the number of confirmation seeds at each look, in order; a look without new seeds is no other look.
    With t_k = n_k / n_K, each side may have spent 2 - 2Φ(z_{1-α/4} / √t_k) of its α/2 by look k. The boundary of a
    look is the |z| that spends just that if every look before it kept to its own; the level is the last one's tail.
    So the error over all looks is alpha for whoever kept to those boundaries. Earlier looks, each judged as the last
    of its time, did not: `false_alarm` says what that amounts to. Good to 1e-9.
    Raises ValueError for no look, seeds below 1 or decreasing, or alpha outside (0, 1).
    Source: Lan & DeMets, Biometrika 70 (1983), the spending that resembles O'Brien & Fleming, Biometrics 35 (1979);
    half of alpha on each side, as in the R packages gsDesign and ldbounds.
    """
    looks = _looks(seeds, alpha)
    if looks.size == 1:
        return alpha
    return min(alpha, 2 * float(special.ndtr(-_boundaries(looks, alpha)[-1])))  # never above it but for rounding


def false_alarm(seeds: Sequence[int], alpha: float = 0.05, first_at_alpha: bool = True) -> float:
    """The probability that any of the looks calls a difference where there is none: one comparison, two-sided.

    seeds (K,) as in `level_at_last_look`. Each look is judged as distune does, at `level_at_last_look` of the looks up
    to it, hence the first at alpha: this is what somebody risks who extends until satisfied. With `first_at_alpha`
    false, each look is judged at the boundary of a plan that knew of all of them, and the probability is alpha.
    That any of m comparisons under Holm is a false alarm is a little likelier, since the looks agree less in the
    tails: 20, 40 and 80 seeds give 11.2 % for one comparison, and for ten at most 12.7 % (Bonferroni over them).
    Raises ValueError as `level_at_last_look` does.
    Source: Armitage, McPherson & Rowe, J. R. Statist. Soc. A 132 (1969), for repeated tests and the recursion.
    """
    looks = _looks(seeds, alpha)
    if first_at_alpha:
        z = np.array([_boundaries(looks[: k + 1], alpha)[-1] for k in range(looks.size)])
    else:
        z = _boundaries(looks, alpha)
    at, mass = _start()
    for k in range(looks.size):
        at, mass = _stay(at, mass, looks, k, z[k])
    return 1 - float(mass.sum())


def false_alarm_at_most(seeds: Sequence[int], alpha: float = 0.05) -> float:
    """What `false_alarm` is at most, whatever the looks (K,) have in common: 1 - Π(1 - level of look k).

    Raises ValueError as `level_at_last_look` does.
    Source: Šidák, J. Am. Stat. Assoc. 62 (1967): two-sided intervals of jointly normal means hold together at least as
    often as independent ones.
    """
    looks = _looks(seeds, alpha).astype(int).tolist()
    return 1 - math.prod(1 - level_at_last_look(looks[: k + 1], alpha) for k in range(len(looks)))


def sentence(seeds: Sequence[int], alpha: float = 0.05, replaced: bool = False) -> str | None:
    """The looks so far in one sentence for the report: which this is, its level, `false_alarm`; None for one look.

    seeds (K,) as in `level_at_last_look`. replaced: whether a look did not keep the seeds of the look before it, so
    that the bound is given. Raises ValueError as `level_at_last_look` does.
    """
    looks = _looks(seeds, alpha)
    if looks.size == 1:
        return None
    level, chance = level_at_last_look(seeds, alpha), false_alarm(seeds, alpha)
    if replaced:
        chance = false_alarm_at_most(seeds, alpha)
    counts = ", then ".join(f"{n:.0f}" for n in looks)
    return (
        f"This is look {looks.size} at the test split ({counts} confirmation seeds): a difference is judged at "
        f"{100 * level:.2f} % in place of {100 * alpha:g} % (O'Brien-Fleming spending), yet for anyone who would have "
        f"stopped at an earlier look, the chance that any of the {looks.size} looks calls pure noise a difference is "
        f"{'at most ' if replaced else ''}{100 * chance:.1f} %."
    )


def _looks(seeds: Sequence[int], alpha: float) -> Array:
    """The seeds at each look, (K,) and strictly increasing, once what was given has been checked."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha:g}")
    given = [int(n) for n in seeds]
    if not given:
        raise ValueError("seeds must name the confirmation seeds at one look or more, got none")
    if min(given) < 1:
        raise ValueError(f"every look has 1 confirmation seed or more, got {given}")
    if given != sorted(given):
        raise ValueError(f"a look keeps the seeds of the look before it, so their numbers never decrease, got {given}")
    return np.array(sorted(set(given)), dtype=np.float64)


def _boundaries(looks: Array, alpha: float) -> Array:
    """The |z| (K,) past which each look rejects when it spends what its share of the last look's seeds allows."""
    spent = 4 * special.ndtr(special.ndtri(alpha / 4) / np.sqrt(looks / looks[-1]))
    z = np.empty(looks.size)
    at, mass = _start()
    for k, share in enumerate(np.diff(spent, prepend=0.0)):
        z[k] = _boundary(share, at, mass, looks, k)
        at, mass = _stay(at, mass, looks, k, z[k])
    return z


def _boundary(share: float, at: Array, mass: Array, looks: Array, k: int) -> float:
    """The |z| that the walk is past at look k with probability `share`; FAR where that is too little to matter."""
    if _left(FAR, at, mass, looks, k) >= share:
        return FAR
    return float(optimize.brentq(lambda z: _left(z, at, mass, looks, k) - share, 0.0, FAR))


def _start() -> tuple[Array, Array]:
    """The walk before the first look: where it is (M,) and with which probability (M,)."""
    return np.zeros(1), np.ones(1)


def _left(z: float, at: Array, mass: Array, looks: Array, k: int) -> float:
    """The probability that the walk, not stopped before look k (from 0), is past |z| at it."""
    deviation, edge = math.sqrt(_steps(looks)[k]), z * math.sqrt(looks[k])
    return float(mass @ (special.ndtr((at - edge) / deviation) + special.ndtr((-at - edge) / deviation)))


def _stay(at: Array, mass: Array, looks: Array, k: int, z: float) -> tuple[Array, Array]:
    """Where the walk is, and with which probability, if it goes on after look k (from 0): within |z|.

    The density there is that of the look before, convolved with the normal of the seeds added, by Gauss-Legendre
    quadrature over panels narrow enough for the steps to this look and to the next.
    """
    steps, edge = _steps(looks), z * math.sqrt(looks[k])
    panels = math.ceil(2 * edge / math.sqrt(steps[k : k + 2].min()))
    half = edge / panels
    there = (np.linspace(-edge + half, edge - half, panels)[:, None] + half * NODES).ravel()
    density = np.exp(-((there[:, None] - at) ** 2) / (2 * steps[k])) @ mass / math.sqrt(2 * math.pi * steps[k])
    return there, np.tile(half * WEIGHTS, panels) * density


def _steps(looks: Array) -> Array:
    """The seeds that each look (K,) adds, which is the variance of the walk's step to it."""
    return np.diff(looks, prepend=0.0)
