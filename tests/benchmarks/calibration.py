"""Whether the verdicts keep their promises: simulated sweeps whose truth is known, through the real comparison.

    python -m tests.benchmarks.calibration --sweeps 1000 --json

A sweep here has the baseline, its A/A control and four candidates of about 97 % on 1,000 test rows. Each arm has four
sub-searches; each tries 12 configurations, takes the best by a noisy validation score, and its winner is confirmed
under 5 seeds: rows differ in difficulty, arms and winners in the rows they are good at, and every seed is drawn anew.
The truth is the arm's expected accuracy over winners, seeds and rows, from the normal integral; an effect is made by
drawing an arm of another ability, never by adding a constant to its results. Differences, Holm, family level, margin
and verdict are those of `analysis.statistics`, put together as `analysis.comparison` does. Levels: S0
intervals alone, S1 one configuration against itself, S2 no effect, S3 known effects. S4 (fresh training sets and
teachers) takes real training and is not in here.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

from analysis.performance import expected_best_intervals, n_with_interval
from analysis.power import detectable, power, seeds_for
from analysis.statistics import (
    MANY,
    Difference,
    arm_verdict,
    between_arms,
    claim_verdict,
    clopper_pearson,
    family_level,
    holm,
    over_seeds,
    paired,
)

Array = np.ndarray[Any, np.dtype[np.float64]]
Json = dict[str, Any]
ALPHA, MARGIN, ACCURACY = 0.05, 0.002, 0.97
CANDIDATES, WINNERS, SEEDS, ROWS = 4, 4, 5, 1000
TRIED, LOSS, NOISE = 12, 0.3, 0.05  # configurations of a sub-search; what one lacks, what its score is off by
ROW, ARM_ROW, WINNER_ROW, LUCK = 1.0, 0.2, 0.2, 0.5  # deviations of ability: easy rows, tastes, and the seed's luck
ALL = math.sqrt(ROW**2 + ARM_ROW**2 + WINNER_ROW**2 + LUCK**2)


def winners_of(rng: np.random.Generator, searches: int) -> Array:
    """What the winner of each of so many searches lacks of the best configuration there is: (searches,), 0 or less."""
    quality = -LOSS * rng.exponential(size=(searches, TRIED))
    chosen = (quality + NOISE * rng.standard_normal(quality.shape)).argmax(axis=1)
    found: Array = quality[np.arange(searches), chosen]
    return found


POOL = winners_of(np.random.default_rng(0), 200_000)


def accuracy_of(ability: float) -> float:
    """The expected accuracy of an arm's winners, over seeds and rows."""
    return float(special.ndtr((ability + POOL) / ALL).mean())


@functools.cache
def ability_for(accuracy: float) -> float:
    return float(optimize.brentq(lambda a: accuracy_of(a) - accuracy, -5, 10, xtol=1e-12))


@dataclass
class Sweep:
    """Rows of one difficulty each; the arms of a sweep are confirmed on the same ones."""

    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.row = ROW * self.rng.standard_normal(ROWS)

    def taste(self) -> Array:
        return ARM_ROW * self.rng.standard_normal(ROWS)

    def winners(self, ability: float, taste: Array, groups: int) -> list[Array]:
        """An arm's winners: (seeds, rows) correctness of each."""
        lacking = self.rng.choice(POOL, groups)
        own = WINNER_ROW * self.rng.standard_normal((groups, ROWS))
        good_at = ability + self.row + taste + lacking[:, None] + own
        luck = LUCK * self.rng.standard_normal((groups, SEEDS, ROWS), dtype=np.float32)
        return [(luck[g] + good_at[g] > 0).astype(np.float64) for g in range(groups)]


@dataclass(frozen=True)
class Judged:
    """What a sweep said: of the first candidate, of the others, and of the A/A control."""

    first: Difference
    again: Difference
    verdicts: list[str]
    p_adjusted: list[float]
    margin: float


def judged(rng: np.random.Generator, effect: float, groups: int = WINNERS) -> Judged:
    """One sweep whose first candidate is better than the baseline by `effect`, and the others as good.

    groups: sub-searches of each arm, with SEEDS confirmation seeds of each winner.
    """
    sweep = Sweep(rng)
    base, better = ability_for(ACCURACY), ability_for(ACCURACY + effect)
    taste = sweep.taste()
    baseline = sweep.winners(base, taste, groups)
    again = between_arms(sweep.winners(base, taste, groups), baseline)
    arms = [better, *[base] * (CANDIDATES - 1)]
    differences = [between_arms(sweep.winners(a, sweep.taste(), groups), baseline) for a in arms]
    raw = [d.total.p_value() for d in differences]
    adjusted = holm(raw)
    margin = max(MARGIN, abs(again.total.mean))
    verdicts = [
        arm_verdict(d.total, q, family_level(p, q, CANDIDATES, ALPHA), margin, ALPHA, equivalence_margin=MARGIN)
        for d, p, q in zip(differences, raw, adjusted, strict=True)
    ]
    return Judged(differences[0], again, [str(v) for v in verdicts], [q or 0.0 for q in adjusted], margin)


def rate(events: Iterable[bool]) -> Json:
    found = [bool(e) for e in events]
    low, high = clopper_pearson(sum(found), len(found))
    return {"rate": sum(found) / len(found), "ci95": [low, high], "n": len(found)}


def covers(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


def no_effect(rng: np.random.Generator, sweeps: int) -> tuple[Json, list[Judged]]:
    """S2: nothing differs, so every `better` or `worse` is wrong."""
    found = [judged(rng, 0.0) for _ in range(sweeps)]
    decided = ("better", "worse")
    return {
        "any of 4 arms called better or worse": rate(any(v in decided for v in j.verdicts) for j in found),
        "any of 4 with adjusted p below 0.05": rate(min(j.p_adjusted) < ALPHA for j in found),
        "one arm called better or worse": rate(j.verdicts[0] in decided for j in found),
        "one arm, p below 0.05": rate((j.first.total.p_value() or 0) < ALPHA for j in found),
        "A/A control, p below 0.05": rate((j.again.total.p_value() or 0) < ALPHA for j in found),
        "ci95 covers the true difference": rate(covers(j.first.total.interval(), 0.0) for j in found),
        "ci95_seeds covers it": rate(covers(j.first.without_rows.interval(), 0.0) for j in found),
        "one arm called equivalent": rate(j.verdicts[0] == "equivalent" for j in found),
    }, found


def known_effect(rng: np.random.Generator, sweeps: int, effect: float) -> Json:
    """S3: the first candidate is better by `effect`.

    stated: the mean of what each sweep says, from its own estimate of the noise; the true spread is that of the
    sweeps' differences.
    """
    found = [judged(rng, effect) for _ in range(sweeps)]
    level = 1 - ALPHA / CANDIDATES
    stated = [
        power(effect, math.sqrt(j.first.total.variance), j.first.total.df, level, j.margin)
        for j in found
        if j.first.total.variance > 0
    ]
    means, df = [j.first.total.mean for j in found], [j.first.total.df for j in found]
    margin = float(np.median([j.margin for j in found]))
    return {
        "effect": effect,
        "called better": rate(j.verdicts[0] == "better" for j in found),
        "power stated": float(np.mean(stated)),
        "power from the true spread": power(effect, float(np.std(means)), float(np.median(df)), level, margin),
        "called worse": rate(j.verdicts[0] == "worse" for j in found),
        "called equivalent": rate(j.verdicts[0] == "equivalent" for j in found),
        "ci95 covers the true difference": rate(covers(j.first.total.interval(), effect) for j in found),
        "any of the 3 others called better or worse": rate(
            any(v in ("better", "worse") for v in j.verdicts[1:]) for j in found
        ),
    }


def detectable_effect(found: list[Judged]) -> float:
    """The median of what sweeps state as the smallest effect found with 80 % power."""
    level = 1 - ALPHA / CANDIDATES
    stated = [
        detectable(math.sqrt(j.first.total.variance), j.first.total.df, level, j.margin)
        for j in found
        if j.first.total.variance > 0
    ]
    return float(np.median(stated))


def enough_seeds(rng: np.random.Generator, sweeps: int, found: list[Judged], effect: float) -> Json:
    """What sweeps of 20 seeds state as the number with 80 % power at `effect`, and what that many seeds find."""
    level, total = 1 - ALPHA / CANDIDATES, WINNERS * SEEDS
    stated = []
    for j in found:
        whole, units = j.first.total, j.first.without_rows
        errors = math.sqrt(whole.variance), math.sqrt(units.variance)
        stated.append(seeds_for(effect, *errors, units.df, total, level, j.margin) or MANY)
    seeds = float(np.median(stated))
    groups = round(seeds / SEEDS)
    low, high = np.quantile(stated, [0.25, 0.75], method="nearest")
    return {
        "effect": effect,
        "seeds stated, median": seeds,
        "quartiles": [float(low), float(high)],
        "called better with so many": rate(judged(rng, effect, groups).verdicts[0] == "better" for _ in range(sweeps)),
    }


def one_configuration(rng: np.random.Generator, sweeps: int) -> Json:
    """S1: one configuration under two disjoint sets of 20 seeds: claims are compared so, paired seed by seed."""
    differences = []
    for _ in range(sweeps):
        sweep, ability = Sweep(rng), ability_for(ACCURACY)
        good_at = ability + sweep.row + sweep.taste()
        a, b = ((LUCK * rng.standard_normal((2, 20, ROWS)) + good_at) > 0).astype(np.float64)
        differences.append(paired(a, b).total)
    return {
        "p below 0.05": rate((d.p_value() or 0) < ALPHA for d in differences),
        "ci95 covers 0": rate(covers(d.interval(), 0.0) for d in differences),
    }


def claims(rng: np.random.Generator, sweeps: int, published: float) -> list[Json]:
    """A published gain that is nothing, half or all true: what its claim is called, 20 paired seeds each."""
    rows = []
    for share in (0.0, 0.5, 1.0):
        verdicts = []
        for _ in range(sweeps):
            sweep = Sweep(rng)
            spread = math.sqrt(ROW**2 + ARM_ROW**2 + LUCK**2)
            students = []
            for accuracy in (ACCURACY, ACCURACY + share * published):
                good_at = float(special.ndtri(accuracy)) * spread + sweep.row + sweep.taste()
                students.append((LUCK * rng.standard_normal((20, ROWS)) + good_at > 0).astype(np.float64))
            low, high = paired(students[1], students[0]).total.interval() or (math.nan, math.nan)
            verdicts.append(claim_verdict(published, low, high))
        names = ("replicates", "smaller", "inconclusive", "not distinguishable from noise", "reversed")
        called = {name: rate(v == name for v in verdicts) for name in names}
        rows.append({"published": published, "true": share * published, **called})
    return rows


def intervals(rng: np.random.Generator, draws: int) -> Json:
    """S0: coverage of the t interval over seeds, by the shape of what a seed gives and their number."""
    shapes: dict[str, tuple[Callable[[int], Array], float]] = {
        "normal": (lambda n: rng.standard_normal(n), 0.0),
        "quantised": (lambda n: np.round(rng.standard_normal(n) * 1.5) / 1.5, 0.0),
        "skewed (exponential)": (lambda n: rng.exponential(size=n), 1.0),
        "heavy tails (t with 3 df)": (lambda n: rng.standard_t(3, size=n), 0.0),
    }
    return {
        f"{name}, {n} seeds": rate(covers(over_seeds(draw(n)).interval(), mean) for _ in range(draws))
        for name, (draw, mean) in shapes.items()
        for n in (10, 20)
    }


def equivalence(rng: np.random.Generator, draws: int) -> Json:
    """S0: how often a difference just at the margin is called equivalent, which is wrong, by what 8 seeds spread."""
    return {
        f"8 seeds, deviation {deviation:g} margins": rate(
            arm_verdict(over_seeds(1 + deviation * rng.standard_normal(8)), 1.0, 1 - ALPHA, 1.0) == "equivalent"
            for _ in range(draws)
        )
        for deviation in (0.1, 0.5, 1.0)
    }


def tuning_curves(rng: np.random.Generator, draws: int) -> Json:
    """Coverage of the intervals of expected validation performance, for a quarter and all of N random trials."""
    shapes: dict[str, Callable[[Any], Array]] = {
        "scores with a ceiling": lambda shape: -rng.exponential(size=shape),
        "normal scores": lambda shape: rng.standard_normal(shape),
    }
    found = {}
    for name, draw in shapes.items():
        for size in (24, 100):
            for part, n in (("a quarter", n_with_interval(size)), ("all", size)):
                truth = float(draw((100_000, n)).max(axis=1).mean())
                ends = (expected_best_intervals(draw(size), [n], rng)[0] for _ in range(draws))
                covered = rate(covers((low, high), truth) for low, high in ends)
                found[f"{name}, best of {n}, {part} of {size} trials"] = covered
    return found


def calibrate(sweeps: int, seed: int) -> Json:
    rng = np.random.default_rng(seed)
    none, found = no_effect(rng, sweeps)
    smallest = detectable_effect(found)
    return {
        "sweeps": sweeps,
        "seed": seed,
        "S0 coverage of the t interval over seeds": intervals(rng, 4 * sweeps),
        "S0 called equivalent, differing by the margin": equivalence(rng, 4 * sweeps),
        "S1 one configuration against itself": one_configuration(rng, sweeps),
        "S2 no effect": none,
        "detectable, median stated": smallest,
        "S3 known effects": [known_effect(rng, sweeps, e) for e in (MARGIN, 0.005, 0.01, smallest)],
        "seeds for 80 % power": enough_seeds(rng, sweeps, found, 0.006),
        "claims": claims(rng, sweeps, 0.007),
        "expected validation performance, coverage": tuning_curves(rng, sweeps),
    }


def _show(value: Any, indent: str = "") -> None:
    for name, inside in value.items() if isinstance(value, dict) else enumerate(value, 1):
        if isinstance(inside, dict) and "rate" in inside:
            low, high = inside["ci95"]
            print(f"{indent}{name}: {100 * inside['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] (n={inside['n']})")
        elif isinstance(inside, list) and not isinstance(inside[0], dict):
            print(f"{indent}{name}: {', '.join(f'{v:g}' for v in inside)}")
        elif isinstance(inside, dict | list):
            print(f"{indent}{name}")
            _show(inside, indent + "  ")
        else:
            print(f"{indent}{name}: {inside:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps for each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    given = parser.parse_args()
    result = calibrate(given.sweeps, given.seed)
    print(json.dumps(result)) if given.json else _show(result)


if __name__ == "__main__":
    main()
