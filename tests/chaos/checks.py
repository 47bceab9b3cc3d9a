"""What must hold of a sweep that was killed, read off its ledger and off what its trainable noted of every epoch.

Nothing here runs a sweep: each check takes ledgers as they were left at the kills, each a copy, and lines of the log.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from search import seeds
from search.ledger import Ledger
from search.selection import candidates, fair_limit, search_spend, within
from search.state import SearchState
from spaces import Study

Tables = dict[str, Counter[tuple[Any, ...]]]
RunKey = tuple[str, str, int, str, int, str]  # purpose, arm, sub-search, fit, replicate, trial
EVERY_TABLE = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


@dataclass(frozen=True)
class Line:
    """What the trainable notes: that it began to train, after `epoch` epochs of an earlier attempt, or an epoch's end.

    life: which of the sweep's drivers it belongs to, from 1. fit: `train` or `train+validation`.
    """

    life: int
    pid: int
    at: float
    what: str
    epoch: int
    variant: str
    fit: str
    hp: Mapping[str, Any]
    replicates: tuple[int, ...]

    @property
    def configuration(self) -> tuple[str, str, str]:
        return self.variant, self.fit, _frozen(self.hp)


@dataclass
class Found:
    """What a check has found: how many things are wrong, and some of them in words."""

    wrong: int = 0
    words: list[str] = field(default_factory=list)

    def add(self, words: str, count: int = 1) -> None:
        self.wrong += count
        self.words.append(words)


@dataclass(frozen=True)
class Snapshot:
    """A ledger as a kill left it. reached: the last epoch that each trial had reported."""

    tables: Tables
    ended: frozenset[str] = frozenset()
    reached: Mapping[str, int] = field(default_factory=dict)
    runs: frozenset[RunKey] = frozenset()

    @staticmethod
    def of(run: Path) -> "Snapshot":
        """run: a folder with a copy of the ledger; reading it is the only thing that may happen to it."""
        with Ledger.open(run) as ledger:
            reached: dict[str, int] = defaultdict(int)
            for row in ledger.epochs():
                reached[row.trial] = max(reached[row.trial], row.epoch)
            keys = frozenset(_key(r) for r in ledger.runs())
            ended = frozenset(ledger.ends())
        return Snapshot(tables_of(run), ended, dict(reached), keys)


NOTHING = Snapshot({})


def read_log(path: Path) -> list[Line]:
    """Lines in the order in which they were written; there is none before the first worker has begun."""
    if not path.exists():
        return []
    raw = [json.loads(text) for text in path.read_text().splitlines()]
    return [Line(**{**line, "replicates": tuple(line["replicates"])}) for line in raw]


def tables_of(run: Path) -> Tables:
    """Every row of every table, with how often it is there."""
    db = sqlite3.connect(run / "ledger.sqlite")
    try:
        names = [name for (name,) in db.execute(EVERY_TABLE)]
        return {name: Counter(db.execute(f"SELECT * FROM {name}")) for name in names}
    finally:
        db.close()


def lost(before: Tables, after: Tables) -> Found:
    """Rows that were in the ledger and are not any more, or are not what they were."""
    found = Found()
    for table, rows in before.items():
        for row in (rows - after.get(table, Counter())).elements():
            found.add(f"lost or changed in {table}: {row[:6]}")
    return found


def said_twice(tables: Tables) -> Found:
    """What may be in the ledger once and is there more often, whether or not the ledger's own keys prevent it."""
    found = Found()
    for table, width in (("trials", 1), ("ends", 1)):
        for key, count in Counter(row[:width] for row in tables[table].elements()).items():
            if count > 1:
                found.add(f"{count} times in {table}: {key}", count - 1)
    epochs = Counter((trial, epoch) for _, trial, epoch, *_ in tables["epochs"].elements())
    runs = Counter((*row[:5], row[5]) for row in tables["runs"].elements())
    for table, counted in (("epochs", epochs), ("runs", runs)):
        for key, count in counted.items():
            if count > 1:
                found.add(f"{count} times in {table}: {key}", count - 1)
    return found


@dataclass
class Training:
    """What the log proves. repeated: trials and seeds trained although they had ended. strangers: of no trial at all.

    skipped: trials that went on behind what the ledger knew of them. untrained: paid epochs that nobody trained.
    continued, restarted: unfinished trials taken up from a checkpoint, and from their beginning. seed_epochs: all that
    was trained; again: what of it had been trained before and was lost with a kill.
    """

    repeated: Found = field(default_factory=Found)
    strangers: Found = field(default_factory=Found)
    skipped: Found = field(default_factory=Found)
    untrained: Found = field(default_factory=Found)
    continued: int = 0
    restarted: int = 0
    seed_epochs: int = 0
    again: int = 0


def training(study: Study, run: Path, lines: Sequence[Line], at_kill: Sequence[Snapshot]) -> Training:
    """Hold what was trained against what the ledger said when each life began. at_kill: what kill 1, 2, ... left."""
    with Ledger.open(run) as ledger:
        trials, epochs, runs = ledger.trials(), ledger.epochs(), ledger.runs()
    name_of: dict[Any, str] = {}
    for t in trials:
        pack = tuple(seeds.of_search(study, t.arm, t.subsearch))
        name_of[(study.arms[t.arm].variant, "train", _frozen(t.config)), pack] = t.trial
    runs_of: dict[Any, set[RunKey]] = defaultdict(set)
    for r in runs:
        runs_of[(study.arms[r.arm].variant, r.fit, _frozen(r.config)), r.replicate].add(_key(r))
    found = Training()
    if len(name_of) < len(trials):
        found.strangers.add("two trials share configuration and seeds, so that nobody can tell them apart")
    trained: Counter[Any] = Counter()
    begun: set[tuple[int, str]] = set()
    for line in lines:
        before = at_kill[line.life - 2] if line.life > 1 else NOTHING
        trial = name_of.get((line.configuration, line.replicates))
        if line.what == "trained":
            trained.update((trial or line.configuration, r, line.epoch) for r in line.replicates)
        if trial is None:
            _check_pack(line, [runs_of[line.configuration, r] for r in line.replicates], before, found)
        elif trial in before.ended:
            found.repeated.add(f"life {line.life} trained {trial} to epoch {line.epoch}, which had ended")
        elif line.what == "began" and (line.life, trial) not in begun:
            begun.add((line.life, trial))
            _check_taken_up(line, trial, before, found)
    really = {(name, epoch) for name, _, epoch in trained}
    for row in epochs:
        if (row.trial, row.epoch) not in really:
            found.untrained.add(f"{row.trial} reported epoch {row.epoch}, which nobody trained")
    found.seed_epochs = trained.total()
    found.again = found.seed_epochs - len(trained)
    return found


def _check_pack(line: Line, of_seeds: Iterable[set[RunKey]], before: Snapshot, found: Training) -> None:
    for replicate, keys in zip(line.replicates, of_seeds, strict=True):
        where = f"life {line.life} trained seed {replicate} of {line.variant} {dict(line.hp)} on {line.fit}"
        if not keys:
            found.strangers.add(f"{where}, which is in no trial and no run of the ledger")
        elif keys <= before.runs:
            found.repeated.add(f"{where}, which had been confirmed")


def _check_taken_up(line: Line, trial: str, before: Snapshot, found: Training) -> None:
    asked = {row[0] for row in before.tables.get("trials", ())}
    if line.epoch > before.reached.get(trial, 0):
        known = before.reached.get(trial, 0)
        found.skipped.add(f"{trial} went on behind epoch {line.epoch}, and the ledger had reports to epoch {known}")
    if trial in asked and line.epoch:
        found.continued += 1
    elif trial in asked:
        found.restarted += 1


def gaps(run: Path) -> Found:
    """Trials whose reported epochs are not 1, 2, 3, ..."""
    found = Found()
    reported: dict[str, list[int]] = defaultdict(list)
    with Ledger.open(run) as ledger:
        for row in ledger.epochs():
            reported[row.trial].append(row.epoch)
    for trial, epochs in reported.items():
        if epochs != list(range(1, len(epochs) + 1)):
            found.add(f"{trial} reported the epochs {epochs}")
    return found


def crashed(run: Path) -> Found:
    """Trials that count as crashed; no trial of this study does by itself."""
    found = Found()
    with Ledger.open(run) as ledger:
        for end in ledger.ends().values():
            if end.how == "crashed":
                found.add(f"{end.trial} crashed after epoch {end.epoch}: {end.message}")
    return found


def zombies(study: Study, run: Path, seed: int) -> Found:
    """Trials that nobody ended: in the ledger, and in Optuna's studies as a resumed sweep would rebuild them.

    run: a folder with a copy of the ledger, because a state may write to it.
    """
    found = Found()
    with Ledger.open(run) as ledger:
        trials, ends = ledger.trials(), ledger.ends()
        for t in trials:
            if t.trial not in ends:
                found.add(f"{t.trial} was asked and has not ended")
        state = SearchState(study, ledger, seed)
        for live in state.waiting:
            found.add(f"{live.record.trial} would be taken up by a resumed sweep")
    proposed = 0
    for (arm, g), subsearch in state._subsearches.items():
        told = subsearch.study.get_trials(deepcopy=False)
        proposed += len(told)
        for t in told:
            if t.state in (TrialState.RUNNING, TrialState.WAITING):
                found.add(f"Optuna's trial {t.number} of {arm}, sub-search {g}, is {t.state.name}")
    if proposed != len(trials):
        found.add(f"Optuna's studies have {proposed} trials, the ledger {len(trials)}", abs(proposed - len(trials)))
    return found


def budget_errors(study: Study, run: Path, concurrent: int, seed: int) -> Found:
    """Arms that spent too little, more than running trials could, or another sum than their epochs add up to.

    run: a folder with a copy of the ledger.
    """
    found, budget = Found(), study.budget
    largest_step = budget.seeds_per_trial * max(b - a for a, b in pairwise((0, *budget.rungs)))
    with Ledger.open(run) as ledger:
        trials, epochs = ledger.trials(), ledger.epochs()
        state = SearchState(study, ledger, seed)
    arm_of = {t.trial: t.arm for t in trials}
    paid = dict.fromkeys(study.searched, 0)
    for (trial, _), cost in {(row.trial, row.epoch): row.seeds for row in epochs}.items():
        paid[arm_of[trial]] += cost
        if cost != budget.seeds_per_trial:
            found.add(f"an epoch of {trial} cost {cost}, and its pack has {budget.seeds_per_trial} seeds")
    counted, rebuilt = search_spend(study, trials, epochs), {arm: s.spent for arm, s in state.standing.items()}
    for arm, cost in paid.items():
        wanted = budget.search_seed_epochs
        if not cost == counted[arm] == rebuilt[arm]:
            found.add(f"{arm}: epochs cost {cost}, the spend is {counted[arm]}, rebuilt {rebuilt[arm]}")
        if not wanted <= cost < wanted + concurrent * largest_step:
            found.add(f"{arm} spent {cost} of {wanted}, where {concurrent} trials may go {largest_step} beyond it each")
    return found


def missing(study: Study, run: Path, result: Mapping[str, Any]) -> Found:
    """What a finished sweep lacks, or has too much of. result: `compare`'s."""
    found, budget = Found(), study.budget
    if not result["complete"]:
        found.add("compare says that the sweep is not complete")
    share = budget.confirm_seeds // budget.subsearches
    top, fresh = budget.reevaluation
    with Ledger.open(run) as ledger:
        runs, trials, epochs = ledger.runs(), ledger.trials(), ledger.epochs()
        kept, _ = within(fair_limit(study, search_spend(study, trials, epochs)), trials, epochs)
        ranked = candidates(study, trials, kept, ledger.ends())  # a sub-search may have fewer of them than `top`
    have: dict[Any, list[Any]] = defaultdict(list)
    for r in runs:
        have[r.purpose, r.arm, r.subsearch, r.fit].append((r.trial, r.replicate))
    for key, most, of_each in _wanted(study, share, top, fresh):
        got = have.pop(key, [])
        count = min(most, len(ranked[key[1], key[2]])) if key[0] == "reevaluation" else most
        if len({trial for trial, _ in got}) != count or len(got) != count * of_each:
            found.add(f"{key} has {len(got)} seeds of {len({t for t, _ in got})} trials, not {of_each} of {count}")
    for key, got in have.items():
        found.add(f"{key} has {len(got)} seeds that nobody asked for")
    for arm in result["arms"]:
        for purpose in ("tuned", *(["as_published"] if study.arms[arm["arm"]].published else [])):
            n = (arm[purpose] or {}).get("n")
            if n != budget.confirm_seeds:
                found.add(f"compare has {n} seeds of {arm['arm']} {purpose}, not {budget.confirm_seeds}")
    return found


def _wanted(study: Study, share: int, top: int, fresh: int) -> Iterator[tuple[Any, int, int]]:
    """((purpose, arm, sub-search, fit), trials, seeds of each) of everything after the search; all arms searched."""
    for arm in study.searched:
        for g in range(study.budget.subsearches):
            if fresh:
                yield ("reevaluation", arm, g, "train"), top, fresh
            for fit in dict.fromkeys((study.confirm_on, "train")):
                yield ("tuned", arm, g, fit), 1, share
        if study.arms[arm].published:
            yield ("as_published", arm, -1, study.confirm_on), 1, study.budget.confirm_seeds


def _key(run: Any) -> RunKey:
    return run.purpose, run.arm, run.subsearch, run.fit, run.replicate, run.trial


def _frozen(hp: Mapping[str, Any]) -> str:
    return json.dumps(dict(hp), sort_keys=True)
