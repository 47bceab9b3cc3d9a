"""The search phase: one Ray Tune Tuner for all arms."""

import contextlib
import os
from collections.abc import Callable as Function
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, PlacementGroupFactory, RunConfig, TuneConfig
from ray.tune.execution.class_cache import DEFAULT_ENV_VARS, ENV_VARS_TO_PROPAGATE

from search.deadline import Deadline
from search.options import Options
from search.progress import Progress
from search.runner import CHECKPOINTS, STOPPING, run_trial
from search.scheduler import ArmScheduler
from search.searcher import ArmSearcher
from search.shortage import one_killed_for_memory_is_one_lost
from search.state import SearchState
from search.storage import Storage

# Ray's own logging and snapshots cost more than the trials; the ledger is what is kept.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "10",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Of a Ray that is started here: processes of the preparation wait for the confirmation beside those of trials.
    "RAY_num_workers_soft_limit": str(2 * (os.cpu_count() or 1)),
}
PENDING = 4096  # trials that may wait for a worker: the searcher gives out no more than are to run
# Read in the workers: at its default of 2 s a trial that leaves slowly takes the next, innocent one down with it.
# What Ray Tune sets for its own actors is set for all workers, since a process is used only where its environment is
# the same: trials then start at once in those that Ray has begun and not used (an actor is given none that has run a
# task). Without it a trial of 2 s is over before a second worker has started, takes over the trial that waited for that
# one, and so on: one worker runs the whole search.
WORKER_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "OMP_NUM_THREADS": "1",
    **DEFAULT_ENV_VARS,
    **{name: ENVIRONMENT[name] for name in ENV_VARS_TO_PROPAGATE if name in ENVIRONMENT},
}


STOPPING_MARKER = f"{CHECKPOINTS}/{STOPPING}"  # the name of what is in the storage while a sweep is being stopped


def place_of(run: Path, options: Options) -> Storage:
    """Where checkpoints go, and records and students with them where that is not the run folder."""
    return Storage(options.storage or run / "ray")


def search(
    state: SearchState,
    shared: list[Any],
    options: Options,
    concurrent: Function[[], int],
    run: Path,
    progress: Progress,
    deadline: Deadline | None = None,
) -> None:
    """Run trials until every arm has spent its budget, or `state.stopping`, or the deadline has passed.

    shared: a reference to the `Payload` of all trials, and the parcels that every node must have. concurrent: says how
    many trials run at once, now.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(PENDING)
    place = place_of(run, options)
    place.remove(STOPPING_MARKER)
    trainable = tune.with_resources(
        tune.with_parameters(
            run_trial,
            shared=shared,
            place=place,
            keep_records=options.storage is not None,
            epoch_timeout=options.epoch_timeout,
        ),
        lambda config: PlacementGroupFactory([resources(options, config["alone"])]),
    )
    at_once = state.limited(concurrent)
    scheduler = ArmScheduler(state, run, place, options, at_once, progress.say)
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=ArmSearcher(state, at_once), scheduler=scheduler, num_samples=-1, reuse_actors=True
        ),
        run_config=RunConfig(
            name="search",
            storage_path=str(run / "ray"),
            verbose=0,
            callbacks=[_EveryStep(state, scheduler, place, progress, deadline)],
        ),
    )
    progress.search(state)
    try:
        with one_killed_for_memory_is_one_lost():
            tuner.fit()
    finally:
        progress.end_search(state)


def stop(state: SearchState, place: Storage) -> None:
    """Let every running trial leave at its next report, with a checkpoint of what it has trained."""
    state.stopping = True
    with contextlib.suppress(OSError):  # that is worth less than an end
        place.write(STOPPING_MARKER, b"", patience=1.0)


def resources(options: Options, alone: bool) -> dict[str, float]:
    """Of one trial, as Ray Tune counts them; alone: with a GPU that it shares with nobody."""
    gpus = max(1.0, options.gpus_per_trial) if alone else options.gpus_per_trial
    return {"CPU": options.cpus_per_trial} | ({"GPU": gpus} if gpus else {})


class _EveryStep(Callback):
    """Shows progress, and compares the ledger's live trials with Ray's at every step of its loop."""

    def __init__(
        self, state: SearchState, scheduler: ArmScheduler, place: Storage, progress: Progress, deadline: Deadline | None
    ) -> None:
        self._state, self._scheduler, self._progress = state, scheduler, progress
        self._place, self._deadline = place, deadline

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray Tune's snapshots: a sweep resumes from its ledger."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._scheduler.find_lost()
        if self._deadline is not None and not self._state.stopping and self._deadline.has_passed(self._state):
            stop(self._state, self._place)
        self._progress.search(self._state)
