"""A search without Ray: trials that report, repeat themselves, diverge, crash and get lost, all by a seed."""

import dataclasses
import math
import random
from collections import Counter
from itertools import pairwise

from tests.made_ledgers import row, small_study

CONCURRENT = 4
STUDY = small_study(
    ("kd",),
    seed_epochs_per_arm=600,
    seeds_per_trial=4,
    confirm_seeds=8,
    max_epochs=24,
    subsearches=2,
    reduction_factor=3,
)
BUDGET = STUDY.budget
RUNGS, SEEDS = BUDGET.rungs, BUDGET.seeds_per_trial
LARGEST_STEP = SEEDS * max(b - a for a, b in pairwise((0, *RUNGS)))


class Fate:
    """What becomes of a trial under its name, whenever and however often it is started."""

    def __init__(self, trial, seed):
        rng = random.Random(f"{trial}/{seed}")
        self.quality, self.se = rng.gauss(0.8, 0.03), rng.uniform(0, 0.02)
        self.diverges_at = rng.randint(1, RUNGS[-1]) if rng.random() < 0.2 else math.inf
        self.crashes_at = rng.randint(1, RUNGS[-1]) if rng.random() < 0.15 else math.inf

    def row(self, epoch):
        if epoch == self.diverges_at:
            return row(epoch, None, seeds=SEEDS, se=None)
        return row(epoch, self.quality * (1 - math.exp(-(epoch + 3) / 4)), seeds=SEEDS, se=self.se)


@dataclasses.dataclass(frozen=True)
class Decision:
    """A trial's first report at a rung."""

    trial: str
    rung: int
    score: float
    se: float


class Simulator:
    """Keeps CONCURRENT trials live: room is filled before anything reports.

    seed: of the trials' fates; events: of the order in which they meet them, another one in another life of a search.
    """

    def __init__(self, state, seed, events=0):
        self.state, self.seed = state, seed
        self.rng = random.Random(f"{seed}/{events}")
        self.worker_at = {}  # the epoch that each live trial's worker has trained to
        self.reached = Counter()  # the epoch that the ledger has of each trial
        for r in state.ledger.epochs():
            self.reached[r.trial] = max(self.reached[r.trial], r.epoch)
        self.arm_of = {t.trial: t.arm for t in state.ledger.trials()}
        self.decisions: list[Decision] = []
        self.asked: list[tuple[str, dict[str, int]]] = []  # (arm, what each arm had spent and reserved), new trials

    def run(self, steps=math.inf):
        while steps > 0 and self.step():
            steps -= 1

    def step(self):
        """Start a trial, or let a live one act; False once the search is over."""
        if len(self.state.live) < CONCURRENT and not self.state.stopping:
            known, committed = set(self.arm_of), self.committed()
            live = self.state.next_trial()
            if live is not None:
                name = live.record.trial
                self.arm_of[name] = live.record.arm
                # Some workers find no checkpoint, or an older one; none was written of a divergence.
                checkpoint = self.rng.choice([live.epoch, self.rng.randint(0, live.epoch), 0])
                self.worker_at[name] = min(checkpoint, Fate(name, self.seed).diverges_at - 1)
                if name not in known:
                    self.asked.append((live.record.arm, committed))
                return True
        if not self.state.live:
            return False
        self.act(self.rng.choice(sorted(self.state.live)))
        return True

    def committed(self):
        """Spent + reserved of every arm, from what was reported and not from what the state says."""
        total = dict.fromkeys(STUDY.searched, 0)
        ended = self.state.ledger.ends()
        for trial, arm in self.arm_of.items():
            done = self.reached[trial]
            total[arm] += SEEDS * (done if trial in ended else min(r for r in RUNGS if r > done))
        return total

    def act(self, name):
        fate, at = Fate(name, self.seed), self.worker_at[name]
        to = min(r for r in RUNGS if r > at)
        if self.rng.random() < 0.2:
            to = self.rng.randint(at + 1, to)  # 15 s have passed since the last report
        if self.rng.random() < 0.03:
            return self.state.crash(name, "its node was lost", own_fault=False)
        if at < fate.crashes_at <= to:
            return self.state.crash(name, "ValueError: a bug", own_fault=True)
        to = min(to, fate.diverges_at)
        self.worker_at[name] = to
        rows = [fate.row(e) for e in range(at + 1, to + 1)]
        first_time = to > self.reached[name]
        self.reached[name] = max(self.reached[name], to)
        diverged = to == fate.diverges_at
        goes_on = self.state.report(name, rows, diverged)
        if to in RUNGS and first_time and not diverged:
            self.decisions.append(Decision(name, to, rows[-1]["score"], rows[-1]["se"]))
        if not goes_on:
            self.state.leave(name)
