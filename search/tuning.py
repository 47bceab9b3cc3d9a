"""The search phase: one Ray Tune Tuner for all arms."""

import os
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig
from ray.tune.execution.class_cache import DEFAULT_ENV_VARS, ENV_VARS_TO_PROPAGATE

from search.progress import Progress
from search.runner import STOPPING, run_trial
from search.scheduler import ArmScheduler
from search.searcher import ArmSearcher
from search.state import SearchState

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
}
# Read in the workers: at its default of 2 s a trial that leaves slowly takes the next, innocent one down with it.
# What Ray Tune sets for its own actors is set for all workers, since a worker is used again only where its environment
# is the same: trials then start at once on workers that the preparation has left, with torch in memory. Without it a
# trial of 2 s is over before a second worker has started, takes over the trial that waited for that one, and so on:
# one worker runs the whole search.
WORKER_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "OMP_NUM_THREADS": "1",
    **DEFAULT_ENV_VARS,
    **{name: ENVIRONMENT[name] for name in ENV_VARS_TO_PROPAGATE if name in ENVIRONMENT},
}


def checkpoints(run: Path) -> Path:
    """The folder of a run with a folder for each trial's checkpoints."""
    return run / "ray" / "checkpoints"


def stopping_marker(run: Path) -> Path:
    """The file that is there while a sweep is being stopped."""
    return checkpoints(run) / STOPPING


def search(
    state: SearchState,
    payload: Any,
    resources: dict[str, float],
    concurrent: int,
    run: Path,
    epoch_timeout: float,
    progress: Progress,
) -> None:
    """Run trials until every arm has spent its budget, or `state.stopping`.

    payload: reference to the `Payload` of all trials. resources: `cpu` and `gpu` of a trial. epoch_timeout: seconds.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrent)  # ask for all workers at once, not one by one
    storage, kept = run / "ray", checkpoints(run)
    kept.mkdir(parents=True, exist_ok=True)
    stopping_marker(run).unlink(missing_ok=True)
    given = {"shared": [payload], "checkpoints": str(kept), "epoch_timeout": epoch_timeout}
    trainable = tune.with_resources(tune.with_parameters(run_trial, **given), resources)
    scheduler = ArmScheduler(state, kept)
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=ArmSearcher(state, concurrent), scheduler=scheduler, num_samples=-1, reuse_actors=True
        ),
        run_config=RunConfig(
            name="search", storage_path=str(storage), verbose=0, callbacks=[_EveryStep(state, scheduler, progress)]
        ),
    )
    progress.search(state)
    try:
        tuner.fit()
    finally:
        progress.end_search(state)


class _EveryStep(Callback):
    """Shows progress, and compares the ledger's live trials with Ray's at every step of its loop."""

    def __init__(self, state: SearchState, scheduler: ArmScheduler, progress: Progress) -> None:
        self._state, self._scheduler, self._progress = state, scheduler, progress

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray Tune's snapshots: a sweep resumes from its ledger."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._scheduler.find_lost()
        self._progress.search(self._state)
