"""Which trial an arm goes to confirmation with. Pure functions of the ledger: an interrupted sweep is judged the same.

The rule (DESIGN, "Selection"; METHOD, "Search"): of every arm only what it had reported by the spend of the poorest
arm, B*; in each sub-search the highest rung that at least three trials reached; there the best seed means. The best of
them are re-evaluated under fresh seeds, and where that has happened the fresh seeds alone decide.
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
    """A sub-search's choice. search_score: what the search measured; fresh_score: under fresh seeds, or None.

    epochs: how far to train it, where that is not to the end: the best epoch under the fresh seeds, or of the search.
    """

    candidate: Candidate
    fresh_score: float | None
    fresh_nll: float | None
    epochs: int | None = None

    @property
    def value(self) -> float:
        """What the choice was made by."""
        return self.candidate.score if self.fresh_score is None else self.fresh_score


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
    ranked: Mapping[tuple[str, int], Sequence[Candidate]], reevaluations: Iterable[RunRecord], metric: str
) -> dict[tuple[str, int], Winner]:
    """For each (arm, sub-search) the candidate with the best mean under fresh seeds, else under the search's seeds.

    Of those within one standard error of the best, the one with the lowest negative log-likelihood.
    """
    fresh: dict[str, list[RunRecord]] = defaultdict(list)
    for run in reevaluations:
        fresh[run.trial].append(run)
    chosen = {}
    for key, choices in ranked.items():
        again = [_refreshed(c, fresh[c.trial], metric) for c in choices if _all_measured(fresh[c.trial], metric)]
        left = [c for c in choices if not fresh[c.trial]] or list(choices)
        pool = again or [Winner(c, None, None, c.best_epoch) for c in left]
        best = max(pool, key=lambda w: w.value)
        margin = (
            best.candidate.se
            if best.fresh_score is None
            else _standard_error([r.metrics[metric] for r in fresh[best.candidate.trial]])
        )
        margin = margin if math.isfinite(margin) else 0.0  # a trial of one seed has no standard error
        near = [w for w in pool if w.value >= best.value - margin]
        chosen[key] = min(near, key=lambda w: w.candidate.nll if w.fresh_nll is None else w.fresh_nll)
    return chosen


def select(study: Study, ledger: Ledger) -> dict[tuple[str, int], Winner]:
    """The winners of everything that the ledger holds now."""
    trials, epochs = ledger.trials(), ledger.epochs()
    kept, _ = within(fair_limit(study, search_spend(study, trials, epochs)), trials, epochs)
    return winners(candidates(study, trials, kept, ledger.ends()), ledger.runs("reevaluation"), study.val_metric)


def deployed(chosen: Mapping[tuple[str, int], Winner], arm: str) -> Winner:
    """The arm's one student to deploy: the winner with the best re-evaluated score, ties to the first sub-search."""
    own = [chosen[key] for key in sorted(chosen) if key[0] == arm]
    return max(own, key=lambda w: w.value)


def _all_measured(runs: Sequence[RunRecord], metric: str) -> bool:
    """Whether there are fresh seeds and none of them diverged: what diverges under one seed never wins."""
    return bool(runs) and all(r.metrics.get(metric) is not None for r in runs)


def _refreshed(candidate: Candidate, runs: Sequence[RunRecord], metric: str) -> Winner:
    score = sum(r.metrics[metric] for r in runs) / len(runs)
    nll = sum(r.metrics["val_nll"] for r in runs) / len(runs)
    epochs = [r.metrics["best_epoch"] for r in runs if "best_epoch" in r.metrics]
    return Winner(candidate, score, nll, round(statistics.median(epochs)) if epochs else None)


def _best_epoch(metrics: Mapping[str, Any]) -> int | None:
    return int(metrics["best_epoch"][0]) if "best_epoch" in metrics else None


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
