"""A sweep as ordinary Optuna studies, one for each sub-search of each arm.

`optuna.journal` in the run folder is a projection of the ledger: it follows a running sweep and is rebuilt wherever it
is not what the ledger says, so deleting it loses nothing. A study is `<study>/<run folder>/<arm>/<sub-search>`; its
trials are numbered as they were asked and are

- RUNNING until the ledger knows how they ended, with the scores at rungs as intermediate values;
- COMPLETE if they finished, with the score at the last rung;
- PRUNED if a rung stopped them or the budget was spent, with the last score as value: `Study.tell` gives them one too,
  and optuna-dashboard draws no curve without. PRUNED without a value if they diverged: Optuna takes nothing back that
  was reported before, but what has no value is neither ranked nor drawn;
- FAIL if they crashed.
"""

import contextlib
import math
import os
import sqlite3
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from analysis.optuna_journal import BatchedJournal
from search.distributions import distributions
from search.ledger import EndRecord, EpochRecord, Ledger, NotALedger, TrialRecord, unusable
from spaces import BadInput, load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

JOURNAL, WRITER = "optuna.journal", "optuna.writer.lock"
RANKED = ("finished", "stopped", "budget")
# What comes of a journal that is damaged, cut, gone, of another ledger, or was changed through the dashboard.
_UNFIT = (
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError, FileNotFoundError),
    optuna.exceptions.OptunaError,
)


@dataclass
class _Trial:
    """A trial that may change yet. told: what Optuna has of it, under `key`. rungs: rows with a finite score."""

    record: TrialRecord
    key: int | None = None
    told: FrozenTrial | None = None
    rungs: dict[int, EpochRecord] = field(default_factory=dict)


class Projection:
    """Keeps RUN/optuna.journal up to date. One process writes; in any other, `update` waits for it to leave.

    Raises NotALedger for a folder that is no run, BadInput for one whose study.yaml cannot be used.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / JOURNAL
        self._run = run.resolve()
        self._ledger = Ledger.open(run)
        self._study = load_study(run / "study.yaml")
        self._spaces: dict[str, dict[str, BaseDistribution]] = {}
        self._created = datetime.fromtimestamp(self._ledger.meta["created"], UTC).isoformat()
        self._writer = filelock.FileLock(run / WRITER, timeout=0)
        self._journal: BatchedJournal | None = None

    def __enter__(self) -> "Projection":
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.close()
        self._writer.release()

    def studies(self) -> dict[str, int]:
        """{name: trials} of every study, as the ledger has them."""
        return dict(Counter(self._name(t.arm, t.subsearch) for t in self._ledger.trials()))

    def update(self) -> bool:
        """Tell Optuna what the ledger has had since the last call; False where another process does so.

        Raises BadInput where the journal cannot be written, NotALedger where the ledger cannot be read.
        """
        try:
            if not self._writer.is_locked:
                self._writer.acquire()
            self._update()
        except filelock.Timeout:
            return False
        except sqlite3.Error as error:
            raise NotALedger(unusable(self._ledger.path, error)) from None
        except OSError as error:
            self._journal = None  # nobody knows how much of the batch it holds
            raise BadInput(f"{self.path} cannot be written: {error.strerror}") from None
        return True

    def _update(self) -> None:
        with contextlib.suppress(*_UNFIT):
            if self._journal is None or self._journal.path != self.path:
                self._journal = self._begin(self.path)
            self._follow(self._journal)
            return
        new = self.path.with_suffix(".rebuilt")
        new.write_bytes(b"")
        self._journal = self._begin(new)
        self._follow(self._journal)
        os.replace(new, self.path)
        self._journal.path = self.path

    def _begin(self, path: Path) -> BatchedJournal:
        """Take up a journal as it is. Raises one of _UNFIT where it is not this ledger's."""
        journal = BatchedJournal(path)
        with journal.batch():
            self._storage = JournalStorage(journal)
        self._asked, self._ended, self._seq = 0, 0, 0  # how much of the ledger is known
        self._open: dict[str, _Trial] = {}
        self._studies: dict[tuple[str, int], int] = {}
        self._numbers: Counter[int] = Counter()  # trials of each study
        self._found: dict[tuple[str, int, str], tuple[int, FrozenTrial]] = {}
        for study in self._storage.get_all_studies():
            arm, g = study.user_attrs["arm"], study.user_attrs["subsearch"]
            if (study.study_name, study.user_attrs) != (self._name(arm, g), self._about(arm, g)):
                raise ValueError(f"the study {study.study_name} is of another ledger")
            key = self._studies[arm, g] = self._storage.get_study_id_from_name(study.study_name)
            for told in self._storage.get_all_trials(key, deepcopy=False):
                trial = arm, g, told.user_attrs["trial"]
                if trial in self._found:
                    raise ValueError(f"the trial {trial} is there twice")
                self._found[trial] = self._storage.get_trial_id_from_study_id_trial_number(key, told.number), told
                self._numbers[key] += 1
        return journal

    def _follow(self, journal: BatchedJournal) -> None:
        """Tell Optuna all that is new. Raises one of _UNFIT where the journal is not what the ledger says."""
        journal.check()
        ends = self._ledger.ends(self._ended)  # first, so that all that led to them is in what is read next
        rows = self._ledger.epochs(self._seq)
        records = self._ledger.trials(self._asked)
        for r in records:
            self._open[r.trial] = _Trial(r, *self._found.pop((r.arm, r.subsearch, r.trial), ()))
        if self._found:
            raise ValueError(f"the ledger has no trial {next(iter(self._found))}")
        news = dict.fromkeys(r.trial for r in records)  # in the order in which they were asked
        for row in rows:
            if row.trial in self._open and row.epoch in self._study.budget.rungs and math.isfinite(row.score):
                self._open[row.trial].rungs[row.epoch] = row
                news[row.trial] = None
        news |= dict.fromkeys(ends)
        if news:
            with journal.batch():
                for trial in news:
                    self._tell(self._open[trial], ends.get(trial), journal)
        for trial in ends:
            del self._open[trial]
        self._asked, self._ended = self._asked + len(records), self._ended + len(ends)
        self._seq = rows[-1].seq if rows else self._seq

    def _tell(self, trial: _Trial, end: EndRecord | None, journal: BatchedJournal) -> None:
        """Tell Optuna what it does not have of a trial."""
        new, told = self._frozen(trial, end), trial.told
        if told is None or trial.key is None:
            study = self._study_key(trial.record.arm, trial.record.subsearch)
            trial.key, number = self._storage.create_new_trial(study, new), self._numbers[study]
            if self._storage.get_trial_id_from_study_id_trial_number(study, number) != trial.key:
                raise ValueError("somebody else adds trials")
            self._numbers[study] += 1
        else:
            if not _leads_to(told, new):
                raise ValueError(f"{trial.record.trial} is not what the ledger says")
            for epoch, score in new.intermediate_values.items():
                if epoch not in told.intermediate_values:
                    self._storage.set_trial_intermediate_value(trial.key, epoch, score)
            for name, value in new.user_attrs.items():
                if name not in told.user_attrs:
                    self._storage.set_trial_user_attr(trial.key, name, value)
            if end is not None and not told.state.is_finished():
                self._storage.set_trial_state_values(trial.key, new.state, new.values)
                # Optuna notes when it was told, and this is when it was.
                journal.pending[-1]["datetime_complete"] = datetime.fromtimestamp(end.at, UTC).isoformat()
        trial.told = new

    def _frozen(self, trial: _Trial, end: EndRecord | None) -> FrozenTrial:
        """A trial as Optuna is to have it."""
        record, how = trial.record, "" if end is None else end.how
        rungs = {epoch: row for epoch, row in trial.rungs.items() if end is None or epoch <= end.epoch}
        last = rungs[max(rungs)] if rungs else None
        value = last.score if last is not None and how in RANKED else None
        complete = TrialState.COMPLETE if value is not None else TrialState.PRUNED
        states = {"": TrialState.RUNNING, "finished": complete, "crashed": TrialState.FAIL}
        about: dict[str, Any] = {
            "trial": record.trial,
            "origin": record.origin,
            "seeds": self._study.budget.seeds_per_trial,
        }
        if end is not None:
            about["ended"] = how
            if end.message:
                about["message"] = end.message
            if last is not None and math.isfinite(last.se):
                about["standard_error"] = last.se
            if last is not None and "best_epoch" in last.metrics:
                about["best_epoch"] = int(last.metrics["best_epoch"][0])
        space = self._space(record.arm)
        return FrozenTrial(
            number=-1,
            trial_id=-1,
            state=states.get(how, TrialState.PRUNED),
            value=value,
            datetime_start=datetime.fromtimestamp(record.asked),
            datetime_complete=None if end is None else datetime.fromtimestamp(end.at),
            params={name: record.config[name] for name in space},
            distributions=space,
            user_attrs=about,
            system_attrs={},
            intermediate_values={epoch: row.score for epoch, row in rungs.items()},
        )

    def _space(self, arm: str) -> dict[str, BaseDistribution]:
        """What an arm searches over. An arm that is not known was added by `distune extend` since."""
        if arm not in self._spaces:
            if arm not in self._study.arms:
                self._study = load_study(self._run / "study.yaml")
            if arm not in self._study.arms:
                raise BadInput(f"{self._run / 'study.yaml'} has no arm {arm}, which the ledger has trials of")
            self._spaces[arm] = distributions(self._study.arms[arm].space)
        return self._spaces[arm]

    def _study_key(self, arm: str, subsearch: int) -> int:
        """Optuna's key of a study, which is created with its first trial."""
        if (arm, subsearch) not in self._studies:
            study = optuna.create_study(
                storage=self._storage, study_name=self._name(arm, subsearch), direction="maximize"
            )
            study.set_metric_names([self._study.val_metric])
            for name, value in self._about(arm, subsearch).items():
                study.set_user_attr(name, value)
            self._studies[arm, subsearch] = self._storage.get_study_id_from_name(study.study_name)
        return self._studies[arm, subsearch]

    def _name(self, arm: str, subsearch: int) -> str:
        return f"{self._study.name}/{self._run.name}/{arm}/{subsearch}"

    def _about(self, arm: str, subsearch: int) -> dict[str, Any]:
        """What tells the studies of one ledger from those of another."""
        of_run = {"study": self._study.name, "run": self._run.name, "ledger_created": self._created}
        return {**of_run, "arm": arm, "subsearch": subsearch}


def _leads_to(told: FrozenTrial, new: FrozenTrial) -> bool:
    """Whether what Optuna has of a trial is what it is to have, or an earlier state of it."""
    if told.state.is_finished():
        facts = ("state", "values", "datetime_complete", "intermediate_values", "user_attrs")
        as_far = all(getattr(told, fact) == getattr(new, fact) for fact in facts)
    else:
        scores, about = new.intermediate_values, new.user_attrs
        as_far = {**scores, **told.intermediate_values} == scores and {**about, **told.user_attrs} == about
    asked = ("params", "distributions", "datetime_start")
    return as_far and all(getattr(told, fact) == getattr(new, fact) for fact in asked)
