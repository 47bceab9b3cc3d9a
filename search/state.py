"""Who may spend what: budgets, identities and rungs of all arms while the search runs.

The state is a projection of the ledger. A new sweep starts it empty, a resumed one replays the ledger into it; from
then on the searcher and the scheduler change both together, here.
"""

import contextlib
import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search import seeds
from search.ledger import DIVERGED, Ledger, TrialRecord, unusable
from search.subsearch import SubSearch, dimension_order
from spaces import Study
from trainables.streams import Streams

MAX_ATTEMPTS = 3
CRASHES_IN_A_ROW = 3  # of one arm: then its code is at fault, and a crash that costs nothing would be repeated for ever


@dataclass
class Live:
    """A trial that is asked and has not ended. reserved: what it may still spend up to its next rung.

    alone: it has run out of memory beside others, and has a whole GPU to itself from now on. runs: it has a worker.
    fewer: the state's when it was last started.
    """

    record: TrialRecord
    epoch: int = 0
    reserved: int = 0
    attempts: int = 0
    alone: bool = False
    runs: bool = False
    fewer: int = 0


@dataclass
class Standing:
    """What the terminal shows of an arm. score, se: the best so far at the highest rung that a trial has reached."""

    spent: int = 0
    asked: int = 0
    ended: int = 0
    best_rung: int = 0
    best_score: float = float("nan")
    best_se: float = float("nan")
    how: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class SearchState:
    """Budgets, live trials and sub-searches of one sweep.

    attempts: at a trial whose worker or machine is lost again and again.
    """

    def __init__(self, study: Study, ledger: Ledger, seed: int, attempts: int = MAX_ATTEMPTS) -> None:
        self.study, self.ledger, self._attempts = study, ledger, attempts
        self.budget = study.budget
        self.live: dict[str, Live] = {}
        self.waiting: list[Live] = []  # unfinished trials of an earlier life, taken up before anything new
        self.standing = {arm: Standing() for arm in study.searched}
        self.fewer = 0  # trials at once than may be, since there was not memory enough
        self.stopping = False
        self.failure: str | None = None
        self._unwritable = False  # the ledger is, so that nothing more can be decided
        self._crashes: dict[str, int] = defaultdict(int)
        self._lost: dict[str, list[int]] = defaultdict(list)  # numbers of trials of which a lost driver left no record
        self._streams = Streams(study.name, seed)
        self._subsearches = self._make_subsearches()
        self._replay()

    def replicates(self, trial: TrialRecord) -> tuple[int, ...]:
        """The seeds of the trial's pack: the same in every arm and every trial of a sub-search."""
        return tuple(seeds.of_search(self.study, trial.arm, trial.subsearch))

    def limited(self, concurrent: Callable[[], int]) -> Callable[[], int]:
        """How many trials may run at once, of so many as there is place for."""
        return lambda: max(1, concurrent() - self.fewer)

    # Asking.

    def next_trial(self) -> Live | None:
        """The next trial to start: an unfinished one, else a new one of the arm that has spent and reserved least."""
        if self.waiting:
            live = self.waiting.pop(0)
        else:
            arm = self._poorest_arm()
            record = None
            with self._stopping_if_unwritable():
                record = None if arm is None else self._ask(arm)
            if record is None:
                return None
            live = Live(record)
        live.attempts += 1
        live.runs, live.fewer = False, self.fewer
        live.reserved = self._cost_to_next_rung(live.epoch)
        self.live[live.record.trial] = live
        return live

    def attempt(self, attempt: str, live: Live) -> None:
        """Note under which of Ray's names a trial was started."""
        with self._stopping_if_unwritable():
            self.ledger.attempt(attempt, live.record.trial)

    def _poorest_arm(self) -> str | None:
        committed = {arm: s.spent for arm, s in self.standing.items()}
        for live in (*self.live.values(), *self.waiting):
            committed[live.record.arm] += live.reserved
        arm = min(committed, key=lambda a: committed[a])
        return arm if committed[arm] < self.budget.search_seed_epochs else None

    def _ask(self, arm: str) -> TrialRecord:
        standing, lost = self.standing[arm], self._lost[arm]
        number = lost.pop(0) if lost else standing.asked
        subsearch = number % self.budget.subsearches
        name = f"{arm}-{number:05d}"
        standing.asked += 1
        config, origin = self._subsearches[arm, subsearch].ask(name, number // self.budget.subsearches)
        record = TrialRecord(name, arm, subsearch, origin, config, self.ledger.now())
        self.ledger.ask(record)
        return record

    def _cost_to_next_rung(self, epoch: int) -> int:
        return self.budget.seeds_per_trial * (next(r for r in self.budget.rungs if r > epoch) - epoch)

    # Reporting.

    def report(self, trial: str, rows: Sequence[Mapping[str, Any]], diverged: str | bool) -> bool:
        """Enter what a trial reports; True if it goes on. diverged: whether this is its end, or why."""
        goes_on = False
        with self._stopping_if_unwritable():
            goes_on = not self._unwritable and self._enter(self.live[trial], trial, rows, diverged)
        return goes_on

    def _enter(self, live: Live, trial: str, rows: Sequence[Mapping[str, Any]], diverged: str | bool) -> bool:
        cost = self.ledger.report(trial, rows)
        last = rows[-1]
        known = live.epoch
        live.epoch = max(known, last["epoch"])
        live.reserved = max(0, live.reserved - cost)
        standing = self.standing[live.record.arm]
        standing.spent += cost
        if diverged or not _is_number(last["score"]):
            self._end(live, "diverged", DIVERGED if diverged in (True, False, "", "yes") else str(diverged))
            return False
        if last["epoch"] not in self.budget.rungs or last["epoch"] <= known:
            return not self.stopping  # between rungs, or a repeat of what was decided before
        return self._at_rung(live, last["score"], math.nan if last["se"] is None else last["se"])

    def _at_rung(self, live: Live, score: float, se: float) -> bool:
        standing, subsearch = self.standing[live.record.arm], self._of(live)
        if (live.epoch, score) > (standing.best_rung, standing.best_score) or live.epoch > standing.best_rung:
            standing.best_rung, standing.best_score, standing.best_se = live.epoch, score, se
        survives = subsearch.survives(live.record.trial, live.epoch, score, se)
        if live.epoch >= self.budget.max_epochs:
            self._end(live, "finished", score=score)
        elif not survives:
            self._end(live, "stopped", score=score)
        elif standing.spent >= self.budget.search_seed_epochs:
            self._end(live, "budget", "the arm had spent its budget", score=score)
        else:
            subsearch.passed(live.record.trial, live.epoch, score)
            live.reserved = self._cost_to_next_rung(live.epoch)
            return not self.stopping
        return False

    def crash(self, trial: str, message: str, own_fault: bool) -> None:
        """A trial's process or code failed. What is not its own fault is tried again, under the same identity."""
        live = self.live[trial]
        if not own_fault and live.attempts < self._attempts:
            del self.live[trial]
            self.waiting.append(live)
        else:
            with self._stopping_if_unwritable():
                self._end(live, "crashed", message)

    def out_of_memory(self, trial: str, message: str) -> None:
        """A GPU that it shares was too small for the trial: it is tried once more with a GPU to itself."""
        live = self.live[trial]
        if live.alone:
            self.crash(trial, message, own_fault=True)
        else:
            live.alone = True
            del self.live[trial]
            self.waiting.append(live)

    def node_out_of_memory(self, trial: str, message: str, at_once: int) -> None:
        """Its worker was killed for its node's memory: tried again, with one trial fewer at once than it ran among.

        at_once: how many may run now. Where that is one, it is a worker lost like others.
        """
        live = self.live[trial]
        if live.fewer == self.fewer:
            if at_once == 1:
                self.crash(trial, message, own_fault=False)
                return
            self.fewer += 1
        live.attempts -= 1
        self.waiting.append(self.live.pop(trial))

    def no_room(self, trial: str, why: str) -> None:
        """A node's disk is full: other nodes have other disks, and where none has room nothing can go on."""
        if self.live[trial].attempts < self._attempts:
            self.crash(trial, why, own_fault=False)
        else:
            self.give_up(trial, why)

    @contextlib.contextmanager
    def _stopping_if_unwritable(self) -> Iterator[None]:
        """What cannot be entered in the ledger has not happened: the search stops, and a resumed one goes on there."""
        try:
            yield
        except sqlite3.Error as error:
            self.failure, self.stopping, self._unwritable = unusable(self.ledger.path, error), True, True

    def give_up(self, trial: str, why: str) -> None:
        """Nothing is wrong with the trial, and nothing can go on here: the search stops, for a resumed one to go on."""
        self.failure, self.stopping = why, True
        self.leave(trial)

    def leave(self, trial: str) -> None:
        """The sweep is stopping: the trial stays unfinished, for a resumed sweep to take up."""
        self.live.pop(trial, None)

    def _end(self, live: Live, how: str, message: str = "", score: float | None = None) -> None:
        trial, standing, subsearch = live.record.trial, self.standing[live.record.arm], self._of(live)
        del self.live[trial]
        self.ledger.end(trial, how, live.epoch, message)
        standing.ended += 1
        standing.how[how] += 1
        self._crashes[live.record.arm] = self._crashes[live.record.arm] + 1 if how == "crashed" else 0
        if self._crashes[live.record.arm] == CRASHES_IN_A_ROW:
            self.failure = f"{CRASHES_IN_A_ROW} trials of {live.record.arm} in a row crashed, the last with: {message}"
            self.stopping = True
        if how == "finished":
            assert score is not None
            subsearch.finished(trial, score)
        elif how in ("stopped", "budget"):
            assert score is not None
            subsearch.stopped(trial, live.epoch, score)
        elif how == "diverged":
            subsearch.diverged(trial)
        else:
            subsearch.crashed(trial)

    def _of(self, live: Live) -> SubSearch:
        return self._subsearches[live.record.arm, live.record.subsearch]

    # Beginning, and beginning again.

    def _make_subsearches(self) -> dict[tuple[str, int], SubSearch]:
        arms = {name: self.study.arms[name] for name in self.study.searched}
        order = dimension_order([arm.space for arm in arms.values()])
        expected = self.budget.search_seed_epochs / self.budget.mean_trial_cost / self.budget.subsearches
        random = max(3, round(expected / 3))
        return {
            (name, g): SubSearch(
                arm,
                self.budget,
                random,
                order,
                sobol_seed=self._streams.number("sobol", seeds.arm_offset(name) + g),
                tpe_seed=self._streams.number(f"tpe/{name}", g),
            )
            for name, arm in arms.items()
            for g in range(self.budget.subsearches)
        }

    def _replay(self) -> None:
        """Rebuild everything from the ledger: spends, rungs in ledger order, Optuna's studies, unfinished trials."""
        trials = {t.trial: t for t in self.ledger.trials()}
        if not trials:
            return
        ends, rungs = self.ledger.ends(), set(self.budget.rungs)
        scores: dict[str, dict[int, float]] = defaultdict(dict)
        reached: dict[str, int] = defaultdict(int)
        survived: dict[str, bool] = {}
        for row in self.ledger.epochs():
            arm = trials[row.trial].arm
            standing = self.standing[arm]
            standing.spent += row.seeds
            reached[row.trial] = max(reached[row.trial], row.epoch)
            survived[row.trial] = math.isfinite(row.score)
            if row.epoch in rungs and math.isfinite(row.score):
                scores[row.trial][row.epoch] = row.score
                subsearch = self._subsearches[arm, trials[row.trial].subsearch]
                survived[row.trial] = subsearch.replay_rung(row.trial, row.epoch, row.score, row.se)
                if (row.epoch, row.score) > (standing.best_rung, standing.best_score) or row.epoch > standing.best_rung:
                    standing.best_rung, standing.best_score, standing.best_se = row.epoch, row.score, row.se
        for name, trial in trials.items():
            standing, subsearch = self.standing[trial.arm], self._subsearches[trial.arm, trial.subsearch]
            standing.asked += 1
            if name in ends:
                standing.ended += 1
                standing.how[ends[name].how] += 1
                subsearch.replay(name, trial.config, scores[name], ends[name].how)
            else:
                self._take_up(trial, reached[name], scores[name], survived.get(name, True))
        for arm in self.standing:
            numbers = {int(name.rpartition("-")[2]) for name, trial in trials.items() if trial.arm == arm}
            self._lost[arm] = sorted(set(range(max(numbers, default=-1))) - numbers)
        for subsearch in self._subsearches.values():
            subsearch.begin_again()

    def _take_up(self, trial: TrialRecord, reached: int, scores: Mapping[int, float], survived: bool) -> None:
        """An unfinished trial waits to go on, unless what it reported had ended it and only that was not written."""
        subsearch = self._subsearches[trial.arm, trial.subsearch]
        subsearch.reopen(trial.trial, trial.config)
        for epoch, score in scores.items():
            subsearch.passed(trial.trial, epoch, score)
        live = Live(trial, epoch=reached)
        self.live[trial.trial] = live
        if reached and reached not in scores and not survived:
            self._end(live, "diverged", DIVERGED)
        elif reached >= self.budget.max_epochs:
            self._end(live, "finished", score=scores[reached])
        elif not survived:
            self._end(live, "stopped", score=scores[reached])
        else:
            del self.live[trial.trial]
            live.reserved = self._cost_to_next_rung(reached)
            self.waiting.append(live)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
