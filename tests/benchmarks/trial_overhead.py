"""What a trial costs the driver: no-op trials of four reports through the whole of `search`, beside plain Ray Tune.

    python -m tests.benchmarks.trial_overhead --trials 2000 --json
    python -m tests.benchmarks.trial_overhead --trials 60 --json          # does it run

distune's side is a search as `distune sweep` runs it (Optuna, rungs, ledger and progress on, two workers), of a
trainable that trains nothing and reports the same value at each of four rungs, so that no trial is stopped. The plain
side is a Ray Tune user's: OptunaSearch, ASHA, default callbacks, the same number of workers and of reports. Both note,
as each trial ends, the wall clock, the driver's own CPU time and its resident memory. `ms` and `driver_cpu_ms` are
means over the 100 trials (a tenth, of fewer) that end at each count.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUNGS = (1, 2, 4, 8)
WORKERS = 2
NO_OP = """
from trainables.context import EpochResult


def train(config, context):
    metrics = {"val_accuracy": [0.5], "val_nll": [0.7]}
    for epoch in range(1, config.epochs + 1):
        yield EpochResult(epoch, metrics, 1, {}, False, dict, lambda x: x)
"""


def noted() -> tuple[float, float, float]:
    """(wall clock, CPU seconds of this process, its resident memory in MB)."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return time.perf_counter(), time.process_time(), pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def distune_side(trials: int) -> dict[str, Any]:
    import ray

    from search import tuning
    from search.ledger import Ledger
    from search.payload import Payload
    from search.progress import Progress
    from search.state import SearchState
    from search.sweep import Options, _ray
    from spaces import Budget, load_study
    from trainables.datasets import load

    ends: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "no_op.py"
        path.write_text(NO_OP)
        # Two arms are searched, each with half of the trials; nothing is re-evaluated.
        budget = Budget(
            seed_epochs_per_arm=trials // 2 * RUNGS[-1],
            seeds_per_trial=1,
            confirm_seeds=8,
            max_epochs=RUNGS[-1],
            reevaluate_share=0.0,
            reduction_factor=2,
        )
        study = load_study("mlp-ensemble")
        arms = {name: study.arms[name] for name in ("hard_labels", "hard_labels_again")}
        bare: dict[str, Any] = {"contrasts": (), "claims": (), "trainable": f"{path}:train"}
        study = dataclasses.replace(study, arms=arms, budget=budget, **bare)
        dataset = load(dataclasses.asdict(study.data)).without_test()
        run = Path(folder) / "run"
        run.mkdir()
        with _ray(Options(max_concurrent=WORKERS)), Ledger.create(run, {"study": study.name, "seed": 0}) as ledger:
            payload = ray.put(Payload(study, 0, dataset.train, dataset.validation, dataset.classes, ()))
            state = SearchState(study, ledger, 0)
            end = ledger.end

            def noting(*args: Any, **kwargs: Any) -> bool:
                ends.append(noted())
                return end(*args, **kwargs)

            ledger.end = noting  # type: ignore[method-assign]
            tuning.search(state, payload, {"cpu": 1, "gpu": 0}, WORKERS, run, Progress(quiet=True))
            size = (run / "ledger.sqlite").stat().st_size
        return {"ends": ends, "ledger_mb": size / 1e6}


def plain_side(trials: int) -> dict[str, Any]:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    ends: list[tuple[float, float, float]] = []

    class Noting(tune.Callback):
        def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
            ends.append(noted())

    def no_op(config: dict[str, Any]) -> None:
        for epoch in RUNGS:
            tune.report({"epoch": epoch, "val_accuracy": 0.5})

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        searcher = ConcurrencyLimiter(OptunaSearch(metric="val_accuracy", mode="max"), max_concurrent=WORKERS)
        scheduler = ASHAScheduler(time_attr="epoch", metric="val_accuracy", mode="max", max_t=RUNGS[-1] + 1)
        tune.Tuner(
            tune.with_resources(no_op, {"cpu": 1}),
            param_space={"lr": tune.loguniform(3e-4, 3e-2), "weight_decay": tune.loguniform(1e-6, 1e-2)},
            tune_config=tune.TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=trials),
            run_config=tune.RunConfig(storage_path=storage, verbose=0, callbacks=[Noting()]),
        ).fit()
    ray.shutdown()
    return {"ends": ends}


def summary(found: dict[str, Any], counts: list[int]) -> dict[str, Any]:
    """At each count of trials: milliseconds a trial, of them the driver's CPU, and its memory."""
    ends, at = found.pop("ends"), {}
    for count in counts:
        window = min(100, count // 10)
        (began, cpu, _), (ended, cpu_ended, memory) = ends[count - window - 1], ends[count - 1]
        each = 1000 / window
        at[count] = {
            "ms": (ended - began) * each,
            "driver_cpu_ms": (cpu_ended - cpu) * each,
            "driver_mb": memory,
        }
    return {"at": at, "trials": len(ends), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--plain-trials", type=int, default=200, help="of the plain side, which is slow")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--side", choices=["distune", "plain"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if given.side:
        side = {"distune": distune_side, "plain": plain_side}[given.side]
        with contextlib.redirect_stdout(sys.stderr):
            found = side(given.trials)
        counts = [c for c in (200, 1000) if c < given.trials] + [given.trials]
        print(json.dumps(summary(found, counts)))
        return
    results = {}
    for side, trials in (("distune", given.trials), ("plain", given.plain_trials)):
        command = [sys.executable, "-m", "tests.benchmarks.trial_overhead", "--side", side, "--trials", str(trials)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        results[side] = json.loads(done.stdout.strip().splitlines()[-1])
    last = {side: result["at"][max(result["at"], key=int)] for side, result in results.items()}
    ratio = last["plain"]["ms"] / last["distune"]["ms"]
    whole = {"n": 1, "workers": WORKERS, "reports": len(RUNGS), "ratio": ratio, **results}
    print(json.dumps(whole) if given.json else json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
