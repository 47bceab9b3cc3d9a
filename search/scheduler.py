"""Ray Tune's scheduler: enters what trials report, and stops them at rungs as their sub-search decides."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.options import Options
from search.runner import Checkpoints
from search.shortage import NodeOutOfMemory, is_out_of_memory, what_is_full
from search.state import SearchState
from search.storage import Storage

GIB = 2**30
CONTEXT = 0.6 * GIB  # what CUDA takes for each process beside torch's own
USABLE = 0.95  # of a GPU's memory
LARGER = 1.25  # a trial that takes so many times more is worth another sentence


class ArmScheduler(FIFOScheduler):
    """Decides at rungs only. A report carries the epochs since the last one as one JSON string, `rows`.

    place: of the checkpoints. at_once: says how many trials may run. say: is told how much of a GPU a trial takes, and
    what there is too little of.
    """

    def __init__(
        self,
        state: SearchState,
        run: Path,
        place: Storage,
        options: Options,
        at_once: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._state, self._run, self._place, self._options = state, run, place, options
        self._at_once, self._say = at_once, say
        self._largest = 0.0  # bytes of a GPU that a trial has taken, of those that have been spoken of
        self._full: set[str] = set()  # what has been said of full disks
        self._ray_trials: dict[str, Any] = {}  # by our name, for the trials that are live

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray Tune's snapshots: a sweep resumes from its ledger."""
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Ray Tune starts pending trials by itself, and looking through all of them costs more with each."""
        return None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._ray_trials[trial.config["trial"]] = trial

    def find_lost(self) -> None:
        """Ray Tune ends a trial without a word where its worker could not be reset; such a trial is tried again.

        It keeps all trials, so of one that has ended it is made to forget what was reported: the ledger has that.
        """
        for name, ray_trial in list(self._ray_trials.items()):
            ended = ray_trial.status in (Trial.TERMINATED, Trial.ERROR)
            if name in self._state.live:
                self._state.live[name].runs = ray_trial.status == Trial.RUNNING
                if ended:
                    self._state.crash(name, "Ray Tune ended the trial before it reported", own_fault=False)
            if ended:
                if ray_trial.metric_analysis:  # it has reported
                    del ray_trial.last_result["rows"]
                    ray_trial.metric_analysis.clear()
                    ray_trial.metric_n_steps.clear()
                del self._ray_trials[name]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name = trial.config["trial"]
        if name not in self._state.live:
            return str(TrialScheduler.STOP)
        if result.get("gpu_peak", 0.0) > LARGER * self._largest:
            self._largest = result["gpu_peak"]
            self._say(on_sharing(result["gpu_peak"], result["gpu_total"], self._options.gpus_per_trial))
        goes_on = self._state.report(name, json.loads(result["rows"]), result["diverged"])
        if not goes_on:
            self._state.leave(name)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial whose function returned before its last rung did not do what it was asked."""
        name = trial.config["trial"]
        if name in self._state.live:
            reached = self._state.live[name].epoch
            message = f"the trainable returned after epoch {reached}, before the last rung"
            self._state.crash(name, message, own_fault=True)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        name = trial.config["trial"]
        if name in self._state.live:
            error = _error_of(trial)
            if full := what_is_full(error, self._run):
                if self._options.address:
                    if full not in self._full:
                        self._full.add(full)
                        self._say(f"warning: a node's disk is full: {full}")
                    self._state.no_room(name, full)
                else:
                    self._state.give_up(name, full)
                return
            if isinstance(error, NodeOutOfMemory):
                self._state.node_out_of_memory(name, str(error), self._at_once())
                self._say(f"warning: {error}; trials at once from now on: {self._at_once()}")
                return
            own_fault, message = isinstance(error, RayTaskError), _last_line(error)
            if own_fault and 0 < self._options.gpus_per_trial < 1 and is_out_of_memory(message):
                self._state.out_of_memory(name, message)
                return
            hung = Checkpoints(self._place, name).noted
            if not own_fault and hung.is_file() and hung.stat().st_size:
                message = f"an epoch took longer than --epoch-timeout allows; where it stood: {hung}"
            self._state.crash(name, message, own_fault)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._state.leave(trial.config["trial"])


def _error_of(trial: Any) -> Exception | None:
    """The exception that Ray Tune wrote beside the trial's logs on this machine, or None."""
    path = trial.pickled_error_file
    if not path or not Path(path).is_file():
        return None
    error: Exception = cloudpickle.loads(Path(path).read_bytes())
    return error


def on_sharing(peak: float, total: float, share: float) -> str:
    """One sentence on how many trials like this one fit on a GPU. peak, total: bytes; share: of it that a trial has."""
    fit = max(1, math.floor(USABLE * total / (peak + CONTEXT)))
    now = max(1, math.floor(1 / share + 1e-9)) if share else 1
    text = f"a trial takes {peak / GIB:.1f} of a GPU's {total / GIB:.1f} GiB: {fit} fit, {now} run at once there"
    if fit < now:
        return f"{text}; where memory runs out a trial is tried again alone: --gpus-per-trial {1 / fit:.3g} avoids it"
    return f"{text}; more do with --gpus-per-trial {1 / fit:.3g}" if fit > now else text


def _last_line(error: Exception | None) -> str:
    """The sentence at the end of a remote traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if error is not None and lines else "it gave no reason"
