"""A sweep that is killed again and again, at random moments, ends as if nobody had touched it.

    python -m tests.chaos.kill_and_resume --kills 20 --json      # minutes
    python -m tests.chaos.kill_and_resume --kills 3 --json       # does it run; also in tests/test_chaos.py

A real sweep on real Ray, of a small study whose epochs are slowed down, is killed with SIGKILL, the driver and
everything that Ray has started for it, and resumed with `distune resume`, `--kills` times; then it is resumed until it
ends. About half of the kills fall into the search, half into re-evaluation and confirmation, some into the time before.
What is checked, at every kill and at the end, must be zero or true, or the exit status is 1:

    finished_trials_lost   rows of the ledger, of any table, that a kill left and that are gone or changed later
    repeated               trials and seeds trained although they had ended, or more than once in the ledger; the
                           trainable notes every epoch that it trains in a log of its own
    identity_errors        training that belongs to no trial or seed, that left epochs out, that nobody did, or that
                           a kill made a crash of
    zombies                trials without an end, in the ledger and in Optuna's studies; processes that outlive a kill
    budget_errors          arms whose spend is not what their epochs add up to, or lies outside of its bounds
    complete               every arm, winner and published configuration has all that it was promised
    test_looks             how often each split was opened: once
    second_driver_refused  `distune resume` while a driver is alive, without anything written
    finished_is_left_alone `distune resume` of the finished sweep changes nothing

`--keep FOLDER` keeps everything: the ledger as each kill left it (`kills/`), what each driver said, the log.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.chaos import checks
from tests.chaos.checks import NOTHING, Found, Snapshot
from tests.chaos.processes import GONE_WITHIN_S, Process, kill_session, of_session

ROOT = Path(__file__).resolve().parents[2]
ARMS, CONCURRENT = "kd", 2
START, PREPARATION, SEARCH, REEVALUATION, CONFIRMATION = (
    "start", "preparation", "search", "re-evaluation", "confirmation"
)  # fmt: skip
PHASES = (START, PREPARATION, SEARCH, REEVALUATION, CONFIRMATION)
SLEEP_S = 0.02  # of each epoch: most kills shall meet a trial in its middle
AFTERWARDS_S = 0.4  # the longest wait between the work that a kill waits for and the kill: some epochs
BEFORE_THE_LEDGER_S = 4.0
FAILED_STARTS = 5
POLL_S = 0.03
PATIENCE_S = 1800.0  # for any one thing to happen; a loaded computer is slow, and only a hanging sweep takes so long
WORDS = 30  # of what is wrong, in the result

TRAINABLE = '''
"""The family's own trainable, slowed down, which notes in a log what it trains."""
import json
import os
import time

from search import runner
from trainables import mlp

# Hundredths of a second stand for the half-minutes of a real trial: there are reports between rungs, and checkpoints
# to go on from.
runner.REPORT_EVERY_S, runner.SAVE_AFTER_S = 0.05, 0.1


def note(config, context, what, epoch):
    line = {"life": int(os.environ["CHAOS_LIFE"]), "pid": os.getpid(), "at": time.time(), "what": what, "epoch": epoch}
    fit = "train+validation" if context.validation is None else "train"
    line |= {"variant": config.variant, "fit": fit, "hp": dict(config.hp), "replicates": list(config.replicates)}
    log = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, (json.dumps(line) + "\\n").encode())
    os.close(log)


def train(config, context):
    audit_only = config.epochs == 0
    if not audit_only:
        note(config, context, "began", context.resume_epoch)
    for result in mlp.train(config, context):
        if not audit_only:
            time.sleep(float(os.environ["CHAOS_SLEEP_S"]))
            note(config, context, "trained", result.epoch)
        yield result
'''


def study_of(kills: int) -> dict[str, Any]:
    """A study with work for so many kills: one that resumes does not do again what is finished.

    The published settings are no arm's default, so that every line of the log belongs to one configuration only.
    """
    published = {"published": {"config": {"learning_rate": 0.0011}}}
    return {
        "extends": "mlp-ensemble",
        "name": "chaos",
        "trainable": "noting.py:train",
        "data": {"n_samples": 800, "fresh_rows": 500},
        "teacher": {"members": 2, "hidden": [16], "dropout": [0.1], "epochs": 3},
        "student": {"hidden": [8]},
        "confirm_teachers": 2,
        "arms": {"hard_labels": published, "kd": published},
        "budget": {
            "seed_epochs_per_arm": 360 + 36 * max(0, kills - 3),
            "reevaluate_share": 0.4,
            "reevaluate_top": 3,  # the rung that decides has three trials or more
            "seeds_per_trial": 2,
            "confirm_seeds": 8 + 4 * (kills // 5),
            "max_epochs": 18,
            "subsearches": 2,
        },
    }


def plan(kills: int, rng: random.Random) -> list[str]:
    """The phase that each kill is meant for, in order: what is done is done, so they can only go forwards.

    Start and preparation come again with every resume, so those kills lie anywhere.
    """
    before = kills // 10
    search = (kills - before) // 2
    late = kills - before - search
    reevaluation = late // 2
    phases = [SEARCH] * search + [REEVALUATION] * reevaluation + [CONFIRMATION] * (late - reevaluation)
    for number in range(before):
        phases.insert(rng.randint(0, len(phases)), (START, PREPARATION)[number % 2])
    return phases


class Broken(RuntimeError):
    """The sweep did not come to where it can be killed, or did not finish; the message says what it did."""


@dataclass
class Life:
    """One driver, from its start to its end. known: clock entries of the ledger that were there before it.

    gone: nothing of its session lives any more, so that its number may be another process's by now.
    """

    number: int
    process: subprocess.Popen[bytes]
    said: Path
    known: int
    gone: bool = False

    def ended(self) -> bool:
        return self.process.poll() is not None


@dataclass
class Standing:
    """Where a sweep is: the phase of this life, and how much of each phase is done over all lives."""

    phase: str
    done: Counter[str]


class Sweep:
    """A sweep and its folder. lives: of each driver that there has been."""

    def __init__(self, folder: Path, kills: int, ray_folder: Path) -> None:
        self.folder, self.run, self.log = folder, folder / "run", folder / "trained.jsonl"
        self.lives: list[Life] = []
        self.killed = self.failed_starts = 0
        self.outlived = Found()
        (folder / "said").mkdir(parents=True)
        (folder / "noting.py").write_text(TRAINABLE)
        self.study_file = folder / "study.yaml"
        self.study_file.write_text(yaml.safe_dump(study_of(kills), sort_keys=False))
        self._environment = {
            **os.environ,
            "DISTUNE_CACHE": str(folder / "cache"),
            "RAY_TMPDIR": str(ray_folder),
            "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": CONCURRENT}),  # as much at once on any computer
            "CHAOS_LOG": str(self.log),
            "CHAOS_SLEEP_S": str(SLEEP_S),
        }

    def begin_or_resume(self) -> Life:
        """A new driver: the first one's command as long as there is no run folder, else `distune resume`."""
        begin = ["sweep", str(self.study_file), "--arms", ARMS, "--out", str(self.run)]
        life = self._start(self.killed + 1, ["resume", str(self.run)] if self.run.exists() else begin)
        self.lives.append(life)
        return life

    def begin_again(self, life: Life) -> Life:
        """Another driver in the place of one that could not start: Ray gives up after 30 s on a loaded computer."""
        self.failed_starts += 1
        if self.failed_starts > FAILED_STARTS:
            raise Broken(f"{self.failed_starts} drivers could not start; the last one said: {_tail(life.said)}")
        self._end(life)
        return self.begin_or_resume()

    def could_not_start(self, life: Life) -> bool:
        """Whether the driver ended with a failure before it had done anything."""
        return life.ended() and life.process.returncode == 1 and self.standing(life).phase == START

    def try_second_driver(self, life: Life) -> tuple[bool, str]:
        """Whether `distune resume` is refused while a driver lives, which is stopped so that it lets time pass."""
        life.process.send_signal(signal.SIGSTOP)
        before = self._clock_entries()
        second = self._start(life.number, ["resume", str(self.run)], "second")
        try:
            with self.patience("a second driver did nothing"):
                while not second.ended() and self._clock_entries() == before:
                    time.sleep(0.05)
        finally:
            self._end(second)
        refused = second.process.returncode == 2 and self._clock_entries() == before
        text = _tail(second.said)
        return refused and "is being worked on by process" in text, text

    def resume_finished(self) -> Found:
        """`distune resume` of the finished sweep."""
        found, before = Found(), checks.tables_of(self.copied("finished"))
        life = self._start(self.killed + 1, ["resume", str(self.run)], "finished")
        with self.patience("resuming a finished sweep did not end"):
            code = life.process.wait()
        if code != 0 or "nothing to resume" not in life.said.read_text():
            found.add(f"resuming the finished sweep: exit status {code}, {_tail(life.said)}")
        if checks.tables_of(self.copied("resumed-when-finished")) != before:
            found.add("resuming the finished sweep changed its ledger")
        return found

    def kill(self, life: Life) -> None:
        """SIGKILL of the driver and of everything that belongs to it."""
        self._end(life)
        self.killed += 1

    def copied(self, name: str) -> Path:
        """A folder with a copy of the ledger, its write-ahead log included, of a sweep of which nothing runs."""
        to = self.folder / "kills" / name
        to.mkdir(parents=True)
        for path in self.run.glob("ledger.sqlite*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, to)
        return to

    def standing(self, life: Life) -> Standing:
        """Read from the ledger, beside the driver that writes it."""
        done: Counter[str] = Counter()
        if not self.has_ledger():
            return Standing(START, done)
        with self._reading() as db:
            entries = [phase for (phase,) in db.execute("SELECT phase FROM clock ORDER BY rowid")][life.known :]
            (done[SEARCH],) = db.execute("SELECT coalesce(sum(seeds), 0) FROM epochs").fetchone()
            for purpose, count in db.execute("SELECT purpose, count(*) FROM runs GROUP BY purpose"):
                done[REEVALUATION if purpose == "reevaluation" else CONFIRMATION] += count
        phase = entries[-1] if entries else START
        return Standing(START if phase == "sweep" else phase, done)

    @contextlib.contextmanager
    def patience(self, what: str) -> Iterator[None]:
        """Raise Broken where something takes so long that it will never happen."""

        def give_up(number: int, frame: object) -> None:
            said = _tail(self.lives[-1].said) if self.lives else ""
            raise Broken(f"{what} within {PATIENCE_S:g} s; the last driver said: {said}")

        before = signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def wait_for_processes(self, life: Life) -> None:
        """Until nothing of a driver that has ended lives; what still does after a minute has outlived it."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while (left := of_session(life.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._outlived(life, left)
        life.gone = not left

    def kill_all(self) -> None:
        for life in self.lives:
            if not life.gone:
                self._end(life)

    def _end(self, life: Life) -> None:
        left = kill_session(life.process.pid)  # before its process is asked for, which gives its number away
        life.process.wait()
        self._outlived(life, left)
        life.gone = not left

    def _outlived(self, life: Life, left: list[Process]) -> None:
        if left:
            self.outlived.add(f"life {life.number}: {', '.join(f'{p.pid} {p.name}' for p in left)} lives", len(left))

    def has_ledger(self) -> bool:
        return (self.run / "ledger.sqlite").exists()

    def _start(self, number: int, command: list[str], name: str = "driver") -> Life:
        known = self._clock_entries()
        said = self.folder / "said" / f"{number:02d}-{name}.txt"
        with said.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "distune", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**self._environment, "CHAOS_LIFE": str(number)},
                start_new_session=True,
            )
        return Life(number, process, said, known)

    def _clock_entries(self) -> int:
        if not self.has_ledger():
            return 0
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM clock").fetchone()[0])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(f"file:{self.run / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
            yield db


@dataclass
class Moments:
    """When to kill. left: kills to come by the phase that they are meant for; total: all the work of each phase."""

    rng: random.Random
    left: Counter[str]
    total: Counter[str] = field(default_factory=Counter)

    def wait(self, sweep: Sweep, life: Life, phase: str) -> None:
        """Until the moment for this kill: some part of the work that is left, and then any time.

        A part, not a time, so that the work lasts for all kills, on any computer. No kill may use up what is left:
        there is always one part more than there are kills.
        """
        share, afterwards = self.rng.random(), self.rng.random()
        if phase == START:
            time.sleep(share * BEFORE_THE_LEDGER_S)
            return
        with sweep.patience(f"life {life.number} did not come to the {phase}"):
            done = self._when_in(sweep, life, phase).done[phase]
            until = done + share * (self.total[phase] - done) / (self.left[phase] + 1)
            while (now := sweep.standing(life)).phase == phase and now.done[phase] < until and not life.ended():
                time.sleep(POLL_S)
        time.sleep(afterwards * AFTERWARDS_S)

    def _when_in(self, sweep: Sweep, life: Life, phase: str) -> Standing:
        while PHASES.index((now := sweep.standing(life)).phase) < PHASES.index(phase):
            if life.ended():
                break
            time.sleep(POLL_S)
        return now


def main(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill and resume in the folder, which is empty; returns what is printed."""
    from spaces import adjust, load_study

    began, rng = time.monotonic(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ray") as ray_folder:  # short: sockets' paths may not be long
        sweep = Sweep(folder, kills, Path(ray_folder))
        study = adjust(load_study(sweep.study_file), arms=ARMS.split(","))
        result = Result(study, sweep, seed)
        phases = plan(kills, rng)
        moments = Moments(rng, Counter(phases), work_of(study))
        try:
            for phase in phases:
                life = sweep.begin_or_resume()
                moments.wait(sweep, life, phase)
                while sweep.could_not_start(life):
                    life = sweep.begin_again(life)
                    moments.wait(sweep, life, phase)
                moments.left[phase] -= 1
                result.kill(life, phase)
            result.finish(sweep.begin_or_resume())
        except Broken as error:
            result.violations.append(str(error))
        finally:
            sweep.kill_all()
    return {**result.as_json(), "seconds": round(time.monotonic() - began, 1)}


def work_of(study: Any) -> Counter[str]:
    """How much there is to do in each phase: seed-epochs of the search, then seeds."""
    budget, searched = study.budget, len(study.searched)
    top, fresh = budget.reevaluation
    published = sum(study.arms[arm].published is not None for arm in study.arms)
    fits = len({study.confirm_on, "train"})
    return Counter(
        {
            SEARCH: searched * budget.search_seed_epochs,
            REEVALUATION: searched * budget.subsearches * top * fresh,
            CONFIRMATION: (searched * fits + published) * budget.confirm_seeds,
        }
    )


class Result:
    """What has been found, kill by kill."""

    def __init__(self, study: Any, sweep: Sweep, seed: int) -> None:
        self.study, self.sweep, self.seed = study, sweep, seed
        self.kills = Counter(dict.fromkeys(PHASES, 0))
        self.at_kill: list[Snapshot] = []
        self.lost, self.repeated, self.identities = Found(), Found(), Found()
        self.zombies, self.budget, self.missing, self.others = Found(), Found(), Found(), Found()
        self.second_refused: bool | None = None
        self.left_alone: bool | None = None
        self.looks: dict[str, int] = {}
        self.trained: dict[str, int] = {}
        self.violations: list[str] = []

    def kill(self, life: Life, meant: str) -> None:
        """Kill the driver where it is, and look at what it left."""
        if meant == SEARCH and self.second_refused is None and not life.ended():
            self.second_refused, said = self.sweep.try_second_driver(life)
            if not self.second_refused:
                self.others.add(f"a second driver was not refused; it said: {said}")
        if life.ended():
            raise Broken(
                f"life {life.number} ended with status {life.process.returncode} before kill {len(self.at_kill) + 1}, "
                f"which was meant for the {meant}: {_tail(life.said)}"
            )
        self.sweep.kill(life)
        self.kills[self.sweep.standing(life).phase] += 1
        self._look(Snapshot.of(self.sweep.copied(f"{life.number:02d}")) if self._has_ledger() else NOTHING)

    def finish(self, life: Life) -> None:
        """Let the sweep end, and hold everything against everything."""
        with self.sweep.patience("the sweep did not finish"):
            while life.process.wait() != 0 and self.sweep.could_not_start(life):
                life = self.sweep.begin_again(life)
        if code := life.process.returncode:
            raise Broken(f"the last resume ended with status {code}: {_tail(life.said)}")
        self.sweep.wait_for_processes(life)
        self._merge(self.zombies, self.sweep.outlived)
        final = self.sweep.copied("end")
        self._look(Snapshot.of(final))
        run, seed = self.sweep.run, 0
        found = checks.training(self.study, final, checks.read_log(self.sweep.log), self.at_kill)
        self._merge(self.repeated, checks.said_twice(self.at_kill[-1].tables))
        self._merge(self.repeated, found.repeated)
        for part in (found.strangers, found.skipped, found.untrained, checks.gaps(final), checks.crashed(final)):
            self._merge(self.identities, part)
        self._merge(self.zombies, checks.zombies(self.study, self.sweep.copied("end-rebuilt"), seed))
        self._merge(self.budget, checks.budget_errors(self.study, self.sweep.copied("end-spend"), CONCURRENT, seed))
        import distune

        compared = distune.open_run(run).compare()
        self._merge(self.missing, checks.missing(self.study, final, compared))
        self.looks = dict(Counter(look["split"] for look in compared["looks_at_test"]))
        if set(self.looks.values()) != {1}:
            self.others.add(f"looks at the test splits: {self.looks}")
        self.trained = {
            "trials": sum(b["trials"] for b in compared["budget"].values()),
            "continued_from_checkpoint": found.continued,
            "restarted": found.restarted,
            "seed_epochs_trained": found.seed_epochs,
            "seed_epochs_trained_again": found.again,
        }
        left_alone = self.sweep.resume_finished()
        self.left_alone = not left_alone.wrong
        self._merge(self.others, left_alone)

    def as_json(self) -> dict[str, Any]:
        parts = (
            self.lost, self.repeated, self.identities, self.zombies, self.budget, self.missing, self.others
        )  # fmt: skip
        violations = [*self.violations, *(words for part in parts for words in part.words)]
        return {
            "n": self.kills.total(),
            "seed": self.seed,
            "kills": dict(self.kills),
            "finished_trials_lost": self.lost.wrong,
            "repeated": self.repeated.wrong,
            "identity_errors": self.identities.wrong,
            "zombies": self.zombies.wrong,
            "budget_errors": self.budget.wrong,
            "complete": bool(self.looks) and not self.missing.wrong,
            "test_looks": self.looks,
            "second_driver_refused": self.second_refused,
            "finished_is_left_alone": self.left_alone,
            **self.trained,
            "failed_starts": self.sweep.failed_starts,
            "violations": violations[:WORDS],
        }

    def _look(self, now: Snapshot) -> None:
        self._merge(self.lost, checks.lost(self.at_kill[-1].tables if self.at_kill else {}, now.tables))
        self.at_kill.append(now)

    def _has_ledger(self) -> bool:
        if self.sweep.has_ledger():
            return True
        if self.sweep.run.exists():
            self.others.add("a kill left a run folder without a ledger, which can be neither resumed nor begun")
            shutil.rmtree(self.sweep.run)
        return False

    @staticmethod
    def _merge(into: Found, found: Found) -> None:
        into.wrong += found.wrong
        into.words += found.words


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return " | ".join(lines[-4:])[-800:]


def show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:26s} {value}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="a new folder to keep everything in")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.kills < 1:
        parser.error(f"--kills must be 1 or more, got {given.kills}")
    if given.keep is not None and given.keep.exists():
        parser.error(f"--keep {given.keep} exists already: give a new folder")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and nothing is left behind
    with tempfile.TemporaryDirectory() as temporary:
        found = main(given.kills, given.seed, given.keep.absolute() if given.keep else Path(temporary) / "chaos")
    print(json.dumps(found)) if given.json else show(found)
    sys.exit(1 if found["violations"] or not found["complete"] else 0)
