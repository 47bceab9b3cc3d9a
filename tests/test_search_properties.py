"""The search without Ray, under any order of reports, repeats, failures, late messages, kills and restarts.

The machine keeps books of its own of what it sent and what it was answered: which trials there are and which are live,
what each epoch cost, how each trial ended. After every step the state, the ledger and Optuna's studies must agree.
"""

import contextlib
import json
import random
import sqlite3
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from optuna.trial import TrialState
from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from search.ledger import FILE, Ledger, TrialRecord
from search.options import Options
from search.scheduler import ArmScheduler
from search.searcher import ArmSearcher
from search.selection import ENOUGH, fair_limit, search_spend, select, within
from search.shortage import NodeOutOfMemory
from search.state import CRASHES_IN_A_ROW, MAX_ATTEMPTS, SearchState
from search.storage import Storage
from tests.made_ledgers import new_run, row, small_study
from tests.test_search_state import STATES, optuna_trials, rungs_of, unfinished, what_optuna_knows

STUDY = small_study(("kd",), seed_epochs_per_arm=40, subsearches=2)
RUNGS, SEEDS, BUDGET = STUDY.budget.rungs, STUDY.budget.seeds_per_trial, STUDY.budget.search_seed_epochs
SUBSEARCHES = STUDY.budget.subsearches
LARGEST_STEP = SEEDS * max(b - a for a, b in pairwise((0, *RUNGS)))
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


class Attempt:
    """As much of a Ray trial as the scheduler looks at. at: the epoch that its worker has trained to.

    fewer: trials at once than might have been when it started.
    """

    def __init__(self, config, at, fewer):
        self.config, self.name, self.at, self.fewer = config, config["trial"], at, fewer
        self.status, self.pickled_error_file = Trial.RUNNING, None
        self.last_result, self.metric_analysis, self.metric_n_steps = {"rows": "[]"}, {"epoch": {}}, {"epoch": {}}
        self.sent = None  # its last report


class Killed(BaseException):
    pass


def to_next_rung(epoch):
    return SEEDS * (min(r for r in RUNGS if r > epoch) - epoch)


def standing_of(state):
    """Of every arm, as text, in which NaN equals NaN."""
    return {arm: str({**vars(s), "how": sorted(s.how.items())}) for arm, s in state.standing.items()}


class Search(RuleBasedStateMachine):
    @initialize(concurrent=st.integers(1, 5))
    def begin(self, concurrent):
        self.folder = TemporaryDirectory()
        self.run = Path(self.folder.name) / "run"
        self.bug, self.killed = self.run / "error.pkl", self.run / "killed.pkl"
        self.concurrent = concurrent
        self.arm_of = {}  # of every trial that was asked
        self.rows = {}  # what came first for each (trial, epoch)
        self.ended = {}
        self.most = {}  # of each arm that has spent its budget: what it had spent and reserved when it had
        new_run(self.run, STUDY).close()
        self.bug.write_bytes(cloudpickle.dumps(RayTaskError("run_trial", "ValueError: a bug", ValueError("a bug"))))
        self.killed.write_bytes(cloudpickle.dumps(NodeOutOfMemory("Ray has killed a worker")))
        self.next_life()

    def next_life(self):
        self.live, self.stopping = {}, False  # {trial: its attempt}
        self.fewer = 0  # at once than may be, since memory ran out
        self.attempts, self.starts, self.crashes = [], Counter(), Counter()
        self.ledger = Ledger.open(self.run)
        self.state = SearchState(STUDY, self.ledger, seed=0)
        self.scheduler = ArmScheduler(
            self.state,
            self.run,
            Storage(self.run / "ray"),
            Options(),
            self.state.limited(lambda: self.concurrent),
            print,
        )
        self.searcher = ArmSearcher(self.state, self.state.limited(lambda: self.concurrent))

    # The machine's own books.

    def at_once(self):
        return max(1, self.concurrent - self.fewer)

    def reached(self, trial):
        return max((epoch for name, epoch in self.rows if name == trial), default=0)

    def waiting(self):
        return self.arm_of.keys() - self.ended.keys() - self.live.keys()

    def spent(self):
        total = dict.fromkeys(STUDY.searched, 0)
        for (trial, _), sent in self.rows.items():
            total[self.arm_of[trial]] += sent["seeds"]
        return total

    def committed(self):
        total = self.spent()
        for trial in self.waiting() | self.live.keys():
            total[self.arm_of[trial]] += to_next_rung(self.reached(trial))
        return total

    def enter(self, trial, rows):
        for r in rows:
            self.rows.setdefault((trial, r["epoch"]), r)

    def end_of(self, trial, known, rows, diverged):
        """How these rows, once entered, end the trial; None if it goes on. known: what it had reached before them."""
        epoch, score, se = (rows[-1][key] for key in ("epoch", "score", "se"))
        if diverged or score is None:
            return "diverged"
        if epoch not in RUNGS or epoch <= known:
            return None
        if epoch == RUNGS[-1]:
            return "finished"
        others = [r["score"] for (t, e), r in self.rows.items() if e == epoch and t in self.rivals(trial)]
        others = [s for s in others if s is not None]
        if others and score + (se or 0) < np.percentile(others, 100 * (1 - 1 / STUDY.budget.reduction_factor)):
            return "stopped"
        return "budget" if self.spent()[self.arm_of[trial]] >= BUDGET else None

    def rivals(self, trial):
        """The other trials of its sub-search."""
        same = (self.arm_of[trial], int(trial[-5:]) % SUBSEARCHES)
        return {t for t, arm in self.arm_of.items() if (arm, int(t[-5:]) % SUBSEARCHES) == same and t != trial}

    def note_end(self, trial, how):
        """The ledger says that this trial has ended like this, or not at all, and nothing new of any other."""
        ends = self.ledger.ends()
        assert (ends[trial].how if trial in ends else None) == how
        assert ends == self.ended | ({trial: ends[trial]} if how else {})
        if how:
            self.ended = ends
            assert ends[trial].epoch == self.reached(trial)
            if trial in self.live:
                self.live.pop(trial).status = Trial.TERMINATED
            arm = self.arm_of[trial]
            self.crashes[arm] = self.crashes[arm] + 1 if how == "crashed" else 0
            self.stopping |= self.crashes[arm] == CRASHES_IN_A_ROW

    # Ray Tune's part.

    def ask(self, behind=0):
        """behind: epochs that the worker's checkpoint is older than the ledger. Returns what Ray Tune is answered."""
        waiting, committed = self.waiting(), self.committed()
        config = self.searcher.suggest(f"attempt-{len(self.attempts)}")
        all_spent = not waiting and min(committed.values()) >= BUDGET
        if config is None:
            assert self.live
            assert self.stopping or all_spent or len(self.live) >= self.at_once()
        elif config == Searcher.FINISHED:
            assert not self.live
            assert self.stopping or all_spent
        else:
            trial, arm = config["trial"], config["asked"]["arm"]
            note(f"{trial} starts, {behind} epochs behind {config['resume_from']}")
            assert not self.stopping
            assert len(self.live) < self.at_once()
            if waiting:
                assert trial in waiting
            else:
                assert trial not in self.arm_of
                assert committed[arm] == min(committed.values()) < BUDGET
            assert self.arm_of.setdefault(trial, arm) == arm
            assert config["resume_from"] == self.reached(trial)
            self.live[trial] = Attempt(config, max(0, self.reached(trial) - behind), self.fewer)
            self.attempts.append(self.live[trial])
            self.starts[trial] += 1
            self.scheduler.on_trial_add(None, self.live[trial])
        return config

    def train(self, attempt, rng, short=(0, 0, 0, 1, 2, 4), well=30):
        """What the worker sends next. short: epochs before its next rung; well: reports for every 3 that diverge."""
        to = min((r for r in RUNGS if r > attempt.at), default=RUNGS[-1] + 1)
        to = max(attempt.at + 1, to - rng.choice(short))
        score, se = round(rng.random(), 1), rng.choice((0.0, 0.15, None))  # coarse, so that there are ties
        rows = [row(e, score, seeds=SEEDS, se=se) for e in range(attempt.at + 1, to + 1)]
        if to in RUNGS:
            for r in rows[rng.randint(0, len(rows)) :]:
                r["seeds"] = 1  # the other has stopped early
        diverged = rng.choice((*[""] * well, "yes", "the student has collapsed", "no word"))
        if diverged:
            rows[-1] |= {"score": None, "se": None}
        attempt.at = to
        attempt.sent = rows, diverged.replace("no word", "")
        return attempt.sent

    def answer(self, attempt, rows, diverged):
        note(f"{attempt.name} reports {rows[0]['epoch']} to {rows[-1]['epoch']}: {rows[-1]['score']} {diverged}")
        return self.scheduler.on_trial_result(None, attempt, {"rows": json.dumps(rows), "diverged": diverged})

    def send(self, attempt, rows, diverged):
        trial, known = attempt.name, self.reached(attempt.name)
        was_live = trial in self.live
        answer = self.answer(attempt, rows, diverged)
        if was_live:
            self.enter(trial, rows)
            self.note_end(trial, self.end_of(trial, known, rows, diverged))
        if self.stopping:
            self.live.pop(trial, None)
        assert answer == (CONTINUE if trial in self.live else STOP)

    # What may happen.

    def report(self, rng):
        if self.live:
            attempt = rng.choice(list(self.live.values()))
            self.send(attempt, *self.train(attempt, rng))

    def repeat(self, rng):
        """A report arrives again: of a live trial, of one that has ended, or of an attempt that was given up."""
        attempts = [a for a in self.attempts if a.sent]
        if attempts:
            attempt = rng.choice(attempts)
            self.send(attempt, *attempt.sent)

    def late(self, rng):
        """A trial that has ended, or waits, is heard of again."""
        attempts = [a for a in self.attempts if a.name not in self.live]
        if attempts:
            attempt = rng.choice(attempts)
            self.send(attempt, *self.train(attempt, rng))
            self.scheduler.on_trial_error(None, attempt)
            self.scheduler.on_trial_complete(None, attempt, {})
            self.scheduler.on_trial_remove(None, attempt)

    def fail(self, rng):
        """What fails once may fail again and again."""
        how = rng.choice(("bug", "node lost", "worker lost", "no memory", "returned"))
        for _ in range(rng.choice((1, 1, 1, 6))):
            self.ask()
            if self.live:
                self.fail_one(rng.choice(list(self.live.values())), how)

    def fail_one(self, attempt, how):
        note(f"{attempt.name}: {how}")
        attempt.status = Trial.ERROR
        if how == "bug":
            attempt.pickled_error_file = str(self.bug)
        if how == "no memory":
            attempt.pickled_error_file = str(self.killed)
        if how == "worker lost":
            self.scheduler.find_lost()
        elif how == "returned":
            self.scheduler.on_trial_complete(None, attempt, {})
        else:
            self.scheduler.on_trial_error(None, attempt)
        if how == "no memory" and (attempt.fewer < self.fewer or self.at_once() > 1):
            self.fewer = max(self.fewer, attempt.fewer + 1)
            self.starts[attempt.name] -= 1
        tried_again = how not in ("bug", "returned") and self.starts[attempt.name] < MAX_ATTEMPTS
        self.note_end(attempt.name, None if tried_again else "crashed")
        self.live.pop(attempt.name, None)

    def stop(self, rng):
        """Ray Tune drops a trial that it has not yet started, some others report, and the process is gone."""
        self.state.stopping = self.stopping = True
        for trial, attempt in list(self.live.items())[: rng.randint(0, 1)]:
            self.scheduler.on_trial_remove(None, attempt)
            del self.live[trial]
        for _ in range(rng.randint(0, self.concurrent)):
            self.ask()
            self.report(rng)
        self.restart(rng)

    def restart(self, rng):
        self.ledger.close()
        before = self.state
        self.next_life()
        assert standing_of(self.state) == standing_of(before)
        assert rungs_of(self.state) == rungs_of(before)
        assert what_optuna_knows(self.state) == what_optuna_knows(before)
        assert unfinished(self.state).items() >= unfinished(before).items()
        assert self.state.live == {}

    @contextlib.contextmanager
    def cut_off(self, write, dies):
        """The process dies right after this write to the ledger, or the disk is full and the write is refused."""
        original = getattr(self.ledger, write)

        def last(*args, **kwargs):
            note(f"{write} {'and dies' if dies else 'refused'}")
            tried.append(write)
            if not dies:
                raise sqlite3.OperationalError("database or disk is full")
            original(*args, **kwargs)
            raise Killed

        tried = []
        setattr(self.ledger, write, last)
        with contextlib.suppress(Killed):
            yield
        if tried and not dies:
            assert self.state.stopping
            assert "disk is full" in self.state.failure
        self.ledger.close()

    def cut_off_when_asking(self, rng):
        waiting, committed, dies = self.waiting(), self.committed(), rng.random() < 0.5
        with self.cut_off("ask", dies):
            self.searcher.suggest("attempt")
        self.next_life()
        new = [t for t in self.ledger.trials() if t.trial not in self.arm_of]
        assert len(new) <= (dies and not waiting)
        for t in new:
            assert committed[t.arm] == min(committed.values()) < BUDGET
            self.arm_of[t.trial] = t.arm

    def cut_off_when_reporting(self, rng):
        if not self.live:
            return
        write, dies = rng.choice(("report", "end")), rng.random() < 0.5
        attempt = rng.choice((min, max))(self.live.values(), key=lambda a: a.at)
        trial, known = attempt.name, self.reached(attempt.name)
        rows, diverged = self.train(attempt, rng, short=(0,), well=9)
        with self.cut_off(write, dies):
            self.answer(attempt, rows, diverged)
        how = None
        if dies or write == "end":
            self.enter(trial, rows)
            how = self.end_of(trial, known, rows, diverged)
            if dies == (write == "report"):  # its end was not written: what is known of its epochs decides again
                how = None if rows[-1]["epoch"] <= known else how
                if how == "budget":  # a spent budget is not looked at again before the next rung
                    how = None
                    self.most.pop(self.arm_of[trial], None)
        self.next_life()
        self.note_end(trial, how)

    @rule(rng=st.randoms(use_true_random=True), events=st.integers(1, 16))
    def advance(self, rng, events):
        """One drawn number stands for all that is random in it, or a search would not get far in what may be drawn."""
        share = {
            self.report: 30,
            self.repeat: 4,
            self.late: 2,
            self.fail: 1.5,
            self.cut_off_when_reporting: 4,
            self.cut_off_when_asking: 0.7,
            self.restart: 0.7,
            self.stop: 0.7,
        }
        for happens in rng.choices(list(share), list(share.values()), k=events):
            if self.stopping:  # an arm's trials have crashed in a row
                self.restart(rng)
            while rng.random() < 0.7 and isinstance(self.ask(rng.choice((0, 0, 1, 3, 9))), dict):
                pass
            self.scheduler.find_lost()  # as at every step of Ray Tune's loop; there is none
            happens(rng)

    # What holds after every step.

    @invariant()
    def budgets_add_up(self):
        epochs = self.ledger.epochs()
        assert len(epochs) == len(self.rows)
        assert {(r.trial, r.epoch): r.seeds for r in epochs} == {key: r["seeds"] for key, r in self.rows.items()}
        spent = self.spent()
        assert {arm: s.spent for arm, s in self.state.standing.items()} == spent
        assert search_spend(STUDY, self.ledger.trials(), epochs) == spent
        for arm, committed in self.committed().items():
            assert committed < BUDGET + self.concurrent * LARGEST_STEP
            if spent[arm] >= BUDGET:  # its trials go on to their next rungs and no further
                assert committed <= self.most.setdefault(arm, committed)

    @invariant()
    def every_trial_is_in_one_place(self):
        assert [t.trial for t in self.ledger.trials()] == list(self.arm_of)
        assert self.ledger.ends() == self.ended
        assert self.state.live.keys() == self.live.keys()
        waiting = [w.record.trial for w in self.state.waiting]
        assert len(waiting) == len(set(waiting))
        assert set(waiting) == self.waiting() or (self.stopping and set(waiting) < self.waiting())
        for trial, known in {**self.state.live, **{w.record.trial: w for w in self.state.waiting}}.items():
            assert (known.epoch, known.reserved) == (self.reached(trial), to_next_rung(self.reached(trial)))
        for arm, standing in self.state.standing.items():
            own = [t for t, of in self.arm_of.items() if of == arm]
            assert standing.asked == len(own)
            assert standing.how == Counter(self.ended[t].how for t in own if t in self.ended)
            assert standing.ended == sum(standing.how.values())
        assert self.state.stopping == self.stopping

    @invariant()
    def optuna_is_told_how_a_trial_ended_and_nothing_before(self):
        scores = defaultdict(dict)
        for (trial, epoch), r in self.rows.items():
            if epoch in RUNGS:
                scores[trial][epoch] = r["score"]
        for trial, told in optuna_trials(self.state, self.ledger.trials()).items():
            how = self.ended[trial].how if trial in self.ended else None
            assert told.state == (STATES[how] if how else TrialState.RUNNING)
            if how == "finished":
                assert told.value == scores[trial][RUNGS[-1]]
            elif how in ("stopped", "budget"):
                assert told.intermediate_values == scores[trial]
            elif how == "diverged":
                assert told.intermediate_values == {}

    @invariant()
    def what_selection_keeps_of_an_arm_costs_at_most_the_fair_limit(self):
        spent = self.spent()
        limit = fair_limit(STUDY, spent)
        assert limit == min(BUDGET, *spent.values())
        kept, past = within(limit, self.ledger.trials(), self.ledger.epochs())
        cost = Counter()
        for r in kept:
            cost[self.arm_of[r.trial]] += r.seeds
        for arm in STUDY.searched:
            assert cost[arm] <= limit
            assert cost[arm] + past.get(arm, 0) == spent[arm]

    @invariant()
    def what_a_richer_arm_reports_past_the_fair_limit_is_not_chosen_by(self):
        spent, chosen = self.spent(), str(select(STUDY, self.ledger))  # as text, for its NaN
        poorest = min(spent, key=lambda arm: spent[arm])
        copy = sqlite3.connect(":memory:", isolation_level=None)
        with contextlib.closing(sqlite3.connect(self.run / FILE)) as own:
            own.backup(copy)
        with Ledger(copy, self.run / FILE) as ledger:
            for arm in STUDY.searched:
                if arm == poorest and spent[arm] < BUDGET:
                    continue
                for trial in [t for t, of in self.arm_of.items() if of == arm and t not in self.ended]:
                    self.finish_brilliantly(ledger, trial)
                for n in range(ENOUGH * SUBSEARCHES):
                    trial, subsearch = f"{arm}-late-{n}", n % SUBSEARCHES
                    ledger.ask(TrialRecord(trial, arm, subsearch, "tpe", STUDY.arms[arm].default, 0.0))
                    self.finish_brilliantly(ledger, trial)
            assert str(select(STUDY, ledger)) == chosen

    def finish_brilliantly(self, ledger, trial):
        ledger.report(trial, [row(e, 1.0, nll=0.01) for e in range(self.reached(trial) + 1, RUNGS[-1] + 1)])
        ledger.end(trial, "finished", RUNGS[-1])

    # At the end of it all.

    def run_to_the_end(self):
        rng = random.Random(0)
        if self.stopping:
            self.restart(rng)
        while (answered := self.ask()) != Searcher.FINISHED:
            if answered is None:
                self.report(rng)
        assert self.ended.keys() == self.arm_of.keys()
        assert fair_limit(STUDY, self.spent()) == BUDGET
        for _ in range(2):
            self.budgets_add_up()
            self.every_trial_is_in_one_place()
            self.optuna_is_told_how_a_trial_ended_and_nothing_before()
            self.what_selection_keeps_of_an_arm_costs_at_most_the_fair_limit()
            self.what_a_richer_arm_reports_past_the_fair_limit_is_not_chosen_by()
            self.restart(rng)

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        try:
            if sys.exc_info()[0] is None:  # else a step has failed, and that is what is to be seen
                self.run_to_the_end()
        finally:
            self.ledger.close()
            self.folder.cleanup()


def test_a_search_keeps_its_promises_whatever_happens_in_whatever_order():
    run_state_machine_as_test(
        Search,
        settings=settings(
            max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
