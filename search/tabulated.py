"""Learning curves that were recorded once, to search over again and again without training."""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.confirm import reevaluation_jobs
from search.ledger import EpochRecord, Ledger, TrialRecord
from search.seeds import arm_offset
from search.selection import deployed, select
from search.state import SearchState
from spaces import BadInput, Choice, Space, Study, load_study

FEWEST = 10  # recorded configurations that are worth a search
FAR = 2.0  # between two values of a choice: farther than any two ends of a range


@dataclass(frozen=True)
class Curves:
    """Recorded configurations of one arm, each under the same seeds.

    configs: by number. score, nll: (configs, seeds, epochs) on validation, NaN from where a pack diverged. test,
    population: (configs, seeds) after the last epoch on the test rows and on fresh rows; NaN where it was not measured.
    """

    configs: Sequence[Mapping[str, Any]]
    score: NDArray[np.floating[Any]]
    nll: NDArray[np.floating[Any]]
    test: NDArray[np.floating[Any]]
    population: NDArray[np.floating[Any]]

    @property
    def truth(self) -> NDArray[np.floating[Any]]:
        """(configs, seeds) what a configuration is worth: on fresh rows where there are any, else on test rows."""
        return self.test if np.isnan(self.population).all() else self.population

    def write(self, path: Path) -> None:
        """One Parquet row a (configuration, seed); curves as lists."""
        rows = [
            {
                "config": c,
                "seed": s,
                **hp,
                "score": self.score[c, s].astype(np.float32),
                "nll": self.nll[c, s].astype(np.float32).round(4),
                "test": self.test[c, s],
                "population": self.population[c, s],
            }
            for c, hp in enumerate(self.configs)
            for s in range(self.score.shape[1])
        ]
        pd.DataFrame(rows).to_parquet(path, compression="zstd", index=False)

    @staticmethod
    def read(path: Path) -> "Curves":
        """What `write` wrote."""
        table = pd.read_parquet(path).sort_values(["config", "seed"])
        seeds = table["seed"].nunique()
        names = [c for c in table.columns if c not in ("config", "seed", "score", "nll", "test", "population")]
        first = table[table["seed"] == table["seed"].min()]
        configs = [dict(zip(names, row, strict=True)) for row in first[names].itertuples(index=False, name=None)]

        def stacked(name: str) -> NDArray[np.floating[Any]]:
            return np.stack(table[name].to_list()).reshape(len(configs), seeds, *np.shape(table[name].iloc[0]))

        return Curves(configs, stacked("score"), stacked("nll"), stacked("test"), stacked("population"))


def from_ledger(run: Path, arm: str) -> Curves:
    """The finished trials of one's own sweep: half of each pack's seeds to search by, the other half as the truth.

    What a search is judged by is then those seeds' validation after the last epoch, which the search has not seen; the
    test rows stay closed. Raises BadInput where fewer than FEWEST trials of two seeds or more came to the end.
    """
    with Ledger.open(run) as ledger:
        metric = load_study(run / "study.yaml").val_metric
        finished = {name for name, end in ledger.ends().items() if end.how == "finished"}
        trials = [t for t in ledger.trials() if t.arm == arm and t.trial in finished]
        by_trial: dict[str, list[EpochRecord]] = defaultdict(list)
        for row in ledger.epochs():
            by_trial[row.trial].append(row)
    found = [[row.metrics for row in sorted(by_trial[t.trial], key=lambda r: r.epoch)] for t in trials]
    seeds = min((len(row.get(metric, ())) for curve in found for row in curve), default=0)
    if len(found) < FEWEST or seeds < 2:
        raise BadInput(
            f"{run} has {len(found)} finished trials of {arm} under {seeds} seeds: to search over them again takes "
            f"{FEWEST} or more, of at least 2 seeds, measured at every epoch"
        )
    shown = seeds // 2

    def stacked(name: str) -> NDArray[np.float64]:
        return np.array([[row[name][:seeds] for row in curve] for curve in found], dtype=float).swapaxes(1, 2)

    score, nll = stacked(metric), stacked("val_nll")
    held_out = score[:, shown:, -1]
    return Curves(
        [t.config for t in trials], score[:, :shown], nll[:, :shown], held_out, np.full_like(held_out, np.nan)
    )


class Nearest:
    """Finds the recorded configuration nearest to any point of a space.

    Distance: Euclidean in fractions of each range (of its logarithm where it is searched so); another choice is farther
    than the ends of a range.
    """

    def __init__(self, space: Space, configs: Sequence[Mapping[str, Any]]) -> None:
        self._space = space
        self._recorded = np.array([self._place(c) for c in configs])

    def __call__(self, config: Mapping[str, Any]) -> int:
        """The number of the recorded configuration."""
        return int(np.square(self._recorded - self._place(config)).sum(axis=1).argmin())

    def _place(self, config: Mapping[str, Any]) -> NDArray[np.float64]:
        place: list[float] = []
        for name, dimension in self._space.items():
            if isinstance(dimension, Choice):
                place += [FAR / 2**0.5 * (config[name] == choice) for choice in dimension.choices]
            else:
                place.append(dimension.fraction(config[name]))
        return np.array(place)


@dataclass(frozen=True)
class Table:
    """One arm's curves with its space: what any configuration of it would have reported."""

    curves: Curves
    nearest: Nearest
    metric: str

    @staticmethod
    def of(curves: Curves, space: Space, metric: str) -> "Table":
        return Table(curves, Nearest(space, curves.configs), metric)

    def rows(self, number: int, seeds: NDArray[np.integer[Any]], epochs: range) -> tuple[list[dict[str, Any]], bool]:
        """What a pack of these recorded seeds reports at these epochs, up to where it diverged, and whether it did."""
        found: list[dict[str, Any]] = []
        for epoch in epochs:
            score = self.curves.score[number, seeds, epoch - 1].astype(float)
            diverged = not np.isfinite(score).all()
            found.append(
                {
                    "epoch": epoch,
                    "seeds": len(seeds),
                    "seconds": 0.0,
                    "score": None if diverged else float(score.mean()),
                    "se": float(score.std(ddof=1) / len(seeds) ** 0.5) if len(seeds) > 1 and not diverged else None,
                    "nll": None if diverged else float(self.curves.nll[number, seeds, epoch - 1].mean()),
                    "metrics": {},
                }
            )
            if diverged:
                return found, True
        return found, False


class TabulatedSweep:
    """A sweep's search and re-evaluation on recorded curves, under a clock of its own; nothing is trained.

    `SearchState`, its sub-searches and the selection are those of a real sweep: only the workers are not. seed: which
    recorded seeds a pack gets; those that re-evaluate are others. cost(arm, config, seeds): seconds of one epoch.
    """

    def __init__(
        self, study: Study, ledger: Ledger, tables: Mapping[str, Table], seed: int, cost: Callable[..., float]
    ) -> None:
        self.study, self.ledger, self.tables, self._seed, self._cost = study, ledger, tables, seed, cost
        self.seconds = dict.fromkeys(study.searched, 0.0)  # of work, by arm
        self.epochs = dict.fromkeys(study.searched, 0)  # of packs, by arm

    def run(self, concurrent: int = 2) -> None:
        """Search until every arm has spent its budget, then re-evaluate."""
        state = SearchState(self.study, self.ledger, self._seed)
        busy: list[tuple[float, int, str, int, list[dict[str, Any]], bool]] = []  # what comes in next, by time
        clock, started = 0.0, itertools.count()
        while True:
            while len(state.live) < concurrent and (live := state.next_trial()) is not None:
                heapq.heappush(busy, self._next_report(clock, next(started), live.record, live.epoch))
            if not busy:
                break
            clock, order, trial, _, rows, diverged = heapq.heappop(busy)
            record = state.live[trial].record
            if state.report(trial, rows, diverged):
                heapq.heappush(busy, self._next_report(clock, order, record, rows[-1]["epoch"]))
        self._reevaluate()

    def _next_report(
        self, clock: float, order: int, record: TrialRecord, epoch: int
    ) -> tuple[float, int, str, int, list[dict[str, Any]], bool]:
        table, seeds = self.tables[record.arm], self._of_search(record.arm, record.subsearch)
        rung = next(r for r in self.study.budget.rungs if r > epoch)
        rows, diverged = table.rows(table.nearest(record.config), seeds, range(epoch + 1, rung + 1))
        return (
            clock + self._spend(record.arm, record.config, len(seeds), len(rows)),
            order,
            record.trial,
            epoch,
            rows,
            diverged,
        )

    def _spend(self, arm: str, config: Mapping[str, Any], seeds: int, epochs: int) -> float:
        seconds = epochs * self._cost(arm, config, seeds)
        self.seconds[arm] += seconds
        self.epochs[arm] += epochs
        return seconds

    def _reevaluate(self) -> None:
        for job in reevaluation_jobs(self.study, self.ledger):
            table, last = self.tables[job.arm], self.study.budget.max_epochs
            number = table.nearest(job.config)
            seeds = self._fresh(job.arm, job.subsearch)[: len(job.replicates)]
            self._spend(job.arm, job.config, len(seeds), last)
            for replicate, seed in zip(job.replicates, seeds, strict=True):
                score, nll = (float(c[number, seed, last - 1]) for c in (table.curves.score, table.curves.nll))
                measured = {} if np.isnan(score) else {table.metric: score, "val_nll": nll}
                self.ledger.finish_run(
                    job.purpose,
                    job.arm,
                    job.subsearch,
                    job.fit,
                    replicate,
                    trial=job.trial,
                    config=job.config,
                    epochs=last,
                    seconds=0.0,
                    metrics=measured,
                    predictions={},
                )

    def chosen(self, arm: str) -> int:
        """The number of the recorded configuration that the arm would deploy."""
        return self.tables[arm].nearest(deployed(select(self.study, self.ledger), arm).candidate.config)

    def _order(self, arm: str, subsearch: int) -> NDArray[np.integer[Any]]:
        recorded = self.tables[arm].curves.score.shape[1]
        return np.random.default_rng([self._seed, subsearch, arm_offset(arm)]).permutation(recorded)

    def _of_search(self, arm: str, subsearch: int) -> NDArray[np.integer[Any]]:
        return self._order(arm, subsearch)[: self.study.budget.seeds_per_trial]

    def _fresh(self, arm: str, subsearch: int) -> NDArray[np.integer[Any]]:
        return self._order(arm, subsearch)[self.study.budget.seeds_per_trial :]
