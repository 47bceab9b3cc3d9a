"""Which trial an arm goes to confirmation with. Pure functions of the ledger: an interrupted sweep is judged the same.

The rule: of every arm only what it had reported by the spend of the poorest
arm, B*; in each sub-search the highest rung that at least three trials reached; there the best seed means. The best of
them are re-evaluated under fresh seeds, and of those the mean over all seeds decides, the search's and the fresh ones:
with few fresh seeds, they alone choose worse (`python -m tests.benchmarks.search_quality`: regret of the deployed
configuration 0.146 against 0.115 points at the budget of `mlp-ensemble`, 0.123 against 0.100 at three times as much;
80 and 30 repetitions, standard errors 0.006 to 0.010). What the choice flatters, the confirmation does not see.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.ledger import EndRecord, EpochRecord, Ledger, RunRecord, TrialRecord
from spaces import Study

ENOUGH = 3  # trials at a rung before it decides
NEVER_WINS = ("diverged", "crashed")


@dataclass(frozen=True)
class Candidate:
    """A trial at the rung that decides. score, se: seed mean of the validation metric and its standard error.

    best_epoch: where the seed-mean curve of a trial that stops early was best, once it has come to the end; else None.
    """

    trial: str
    arm: str
    subsearch: int
    config: dict[str, Any]
    epoch: int
    score: float
    se: float
    nll: float
    best_epoch: int | None = None


@dataclass(frozen=True)
class Winner:
    """A sub-search's choice. value, se, nll: what the choice was made by; fresh_score: under fresh seeds, or None.

    epochs: how far to train it, where that is not to the end: the best epoch under the fresh seeds, or of the search.
    """

    candidate: Candidate
    value: float
    se: float
    nll: float
    fresh_score: float | None = None
    epochs: int | None = None


def search_spend(study: Study, trials: Iterable[TrialRecord], epochs: Iterable[EpochRecord]) -> dict[str, int]:
    """Seed-epochs that each searched arm's trials have reported."""
    arm_of = {t.trial: t.arm for t in trials}
    spent = dict.fromkeys(study.searched, 0)
    for row in epochs:
        spent[arm_of[row.trial]] += row.seeds
    return spent


def fair_limit(study: Study, spent: Mapping[str, int]) -> int:
    """B*, as far as the search goes: the smallest arm's spend, and never more than the search was given."""
    return min(study.budget.search_seed_epochs, *spent.values())


def within(
    limit: int, trials: Iterable[TrialRecord], epochs: Iterable[EpochRecord]
) -> tuple[list[EpochRecord], dict[str, int]]:
    """The reports that each arm had made when it had spent at most `limit`, and what each spent past it."""
    arm_of = {t.trial: t.arm for t in trials}
    spent: dict[str, int] = defaultdict(int)
    kept: list[EpochRecord] = []
    past: dict[str, int] = defaultdict(int)
    for row in epochs:
        arm = arm_of[row.trial]
        spent[arm] += row.seeds
        if spent[arm] <= limit:
            kept.append(row)
        else:
            past[arm] += row.seeds
    return kept, dict(past)


def candidates(
    study: Study, trials: Sequence[TrialRecord], kept: Iterable[EpochRecord], ends: Mapping[str, EndRecord]
) -> dict[tuple[str, int], list[Candidate]]:
    """For each (arm, sub-search) the trials at the rung that decides, best first, ties to the earlier trial."""
    at_rung: dict[tuple[str, int], dict[int, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    asked = {t.trial: (number, t) for number, t in enumerate(trials)}
    for row in kept:
        trial = asked[row.trial][1]
        lost = row.trial in ends and ends[row.trial].how in NEVER_WINS
        if row.epoch in study.budget.rungs and not lost and math.isfinite(row.score):
            at_rung[trial.arm, trial.subsearch][row.epoch].append(
                Candidate(
                    *(trial.trial, trial.arm, trial.subsearch, trial.config, row.epoch, row.score, row.se, row.nll),
                    best_epoch=_best_epoch(row.metrics) if row.epoch == study.budget.max_epochs else None,
                )
            )
    ranked = {}
    for key, rungs in at_rung.items():
        reached = [epoch for epoch in sorted(rungs, reverse=True) if len(rungs[epoch]) >= ENOUGH]
        rung = reached[0] if reached else max(rungs)
        ranked[key] = sorted(rungs[rung], key=lambda c: (-c.score, asked[c.trial][0]))
    return ranked


def winners(
    study: Study, ranked: Mapping[tuple[str, int], Sequence[Candidate]], reevaluations: Iterable[RunRecord]
) -> dict[tuple[str, int], Winner]:
    """For each (arm, sub-search) the candidate with the best mean over all of its seeds, of those with fresh ones.

    Of those within one standard error of the best, the one with the lowest negative log-likelihood.
    """
    metric = study.val_metric
    fresh: dict[str, list[RunRecord]] = defaultdict(list)
    for run in reevaluations:
        fresh[run.trial].append(run)
    chosen = {}
    for key, choices in ranked.items():
        again = [_refreshed(study, c, fresh[c.trial]) for c in choices if _all_measured(fresh[c.trial], metric)]
        left = [c for c in choices if not fresh[c.trial]] or list(choices)
        pool = again or [Winner(c, c.score, c.se, c.nll, epochs=c.best_epoch) for c in left]
        best = max(pool, key=lambda w: w.value)
        margin = best.se if math.isfinite(best.se) else 0.0  # a trial of one seed has no standard error
        near = [w for w in pool if w.value >= best.value - margin]
        chosen[key] = min(near, key=lambda w: w.nll)
    return chosen


def select(study: Study, ledger: Ledger) -> dict[tuple[str, int], Winner]:
    """The winners of everything that the ledger holds now."""
    return choose(study, ledger.trials(), ledger.epochs(), ledger.ends(), ledger.runs("reevaluation"))


def choose(
    study: Study,
    trials: Sequence[TrialRecord],
    epochs: Sequence[EpochRecord],
    ends: Mapping[str, EndRecord],
    reevaluations: Iterable[RunRecord],
) -> dict[tuple[str, int], Winner]:
    """The winners of these records, for whoever has read them already."""
    kept, _ = within(fair_limit(study, search_spend(study, trials, epochs)), trials, epochs)
    return winners(study, candidates(study, trials, kept, ends), reevaluations)


def deployed(chosen: Mapping[tuple[str, int], Winner], arm: str) -> Winner:
    """The arm's one student to deploy: the winner with the best value, ties to the first sub-search."""
    own = [chosen[key] for key in sorted(chosen) if key[0] == arm]
    return max(own, key=lambda w: w.value)


def _all_measured(runs: Sequence[RunRecord], metric: str) -> bool:
    """Whether there are fresh seeds and none of them diverged: what diverges under one seed never wins."""
    return bool(runs) and all(r.metrics.get(metric) is not None for r in runs)


def _refreshed(study: Study, candidate: Candidate, runs: Sequence[RunRecord]) -> Winner:
    """The candidate with its fresh seeds; those of the search count where they were measured at the same epoch."""
    scores, nlls = [r.metrics[study.val_metric] for r in runs], [r.metrics["val_nll"] for r in runs]
    epochs = [r.metrics["best_epoch"] for r in runs if "best_epoch" in r.metrics]
    searched = study.budget.seeds_per_trial if candidate.epoch == study.budget.max_epochs else 0
    fresh, seeds = statistics.fmean(scores), searched + len(scores)
    value = (searched * candidate.score + len(scores) * fresh) / seeds
    spread = sum((s - value) ** 2 for s in scores) + searched * (candidate.score - value) ** 2
    if searched > 1 and math.isfinite(candidate.se):
        spread += candidate.se**2 * searched * (searched - 1)
    return Winner(
        candidate,
        value,
        math.sqrt(spread / (seeds - 1) / seeds) if seeds > 1 else math.nan,
        (searched * candidate.nll + sum(nlls)) / seeds,
        fresh,
        round(statistics.median(epochs)) if epochs else None,
    )


def _best_epoch(metrics: Mapping[str, Any]) -> int | None:
    return int(metrics["best_epoch"][0]) if "best_epoch" in metrics else None
