"""What a trial costs the driver: no-op trials of four reports through the whole of `search`, beside plain Ray Tune.

    python -m tests.benchmarks.trial_overhead --trials 2000 --repeats 3 --json
    python -m tests.benchmarks.trial_overhead --trials 60 --plain-trials 20 --json     # does it run

distune's side is a search as `distune sweep` runs it (Optuna, rungs, ledger and progress on, two workers), of a
trainable that trains nothing and reports the same value at each of four rungs, so that no trial is stopped. The plain
side is a Ray Tune user's: OptunaSearch, ASHA, default callbacks, the same number of workers and of reports. Both note,
as each trial ends, the wall clock, the driver's own CPU time and its resident memory. `ms` and `driver_cpu_ms` are
means over the 100 trials (a tenth, of fewer) that end at each count; `ours_ms` is what of `ms` was spent in distune's
own code (Optuna, rungs, ledger), the rest being Ray Tune's loop and waiting for workers. `transaction_ms`: how long one
write to the ledger takes, median and 99 of 100. The sides take turns; figures are medians over the repeats.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
    from search.cluster.connection import connected
    from search.ledger import Ledger
    from search.options import Options
    from search.payload import Payload
    from search.progress import Progress
    from search.state import SearchState
    from spaces import Budget, load_study
    from trainables.datasets import load

    ends: list[tuple[float, float, float]] = []
    ours: list[float] = []  # seconds in distune's own code, so far, as each trial ends
    spent, transactions = [0.0], []

    def timed(work: Callable[..., Any], into: Callable[[float], Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                into(time.perf_counter() - began)

        return run

    def add(seconds: float) -> None:
        spent[0] += seconds

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
        options = Options(max_concurrent=WORKERS)
        with connected(options, print) as concurrent, Ledger.create(run, {"study": study.name, "seed": 0}) as ledger:
            payload = ray.put(Payload(study, 0, dataset.train, dataset.validation, dataset.classes, ()))
            state = SearchState(study, ledger, 0)
            end = ledger.end

            def noting(*args: Any, **kwargs: Any) -> bool:
                ends.append(noted())
                ours.append(spent[0])
                return end(*args, **kwargs)

            ledger.end = noting  # type: ignore[method-assign]
            ledger.report = timed(ledger.report, transactions.append)  # type: ignore[method-assign]
            state.report = timed(state.report, add)  # type: ignore[method-assign]
            state.next_trial = timed(state.next_trial, add)  # type: ignore[method-assign]
            tuning.search(state, [payload], options, concurrent, run, Progress(quiet=True))
            workers = worker_memory()
            ledger._db.execute("PRAGMA wal_checkpoint")
            size = (run / "ledger.sqlite").stat().st_size
        return {
            "ends": ends,
            "ours": ours,
            "ledger_mb": size / 1e6,
            "workers_mb": workers,
            "transaction_ms": [1000 * float(np.quantile(transactions, q)) for q in (0.5, 0.99)],
        }


def worker_memory() -> list[float]:
    """Resident MB of each of Ray's worker processes on this machine, largest first."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(b"ray::"):
                pages = int((process / "statm").read_text().split()[1])
                found.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return sorted(found, reverse=True)


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
    ends, ours, at = found.pop("ends"), found.pop("ours", None), {}
    for count in counts:
        window = min(100, count // 10)
        (began, cpu, _), (ended, cpu_ended, memory) = ends[count - window - 1], ends[count - 1]
        each = 1000 / window
        at[count] = {
            "ms": (ended - began) * each,
            "driver_cpu_ms": (cpu_ended - cpu) * each,
            "driver_mb": memory,
        }
        if ours:
            at[count]["ours_ms"] = (ours[count - 1] - ours[count - window - 1]) * each
    return {"at": at, "trials": len(ends), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--plain-trials", type=int, default=200, help="of the plain side, which is slow")
    parser.add_argument("--repeats", type=int, default=1)
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
    results: dict[str, list[dict[str, Any]]] = {"distune": [], "plain": []}
    for _ in range(given.repeats):
        for side, trials in (("distune", given.trials), ("plain", given.plain_trials)):
            command = [sys.executable, "-m", "tests.benchmarks.trial_overhead", "--side", side, "--trials", str(trials)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            results[side].append(json.loads(done.stdout.strip().splitlines()[-1]))

    def ms(result: dict[str, Any]) -> float:
        """Of the last trials, so of the most that a side has run."""
        return float(result["at"][max(result["at"], key=int)]["ms"])

    ratios = [ms(plain) / ms(ours) for ours, plain in zip(results["distune"], results["plain"], strict=True)]
    whole = {
        "n": given.repeats,
        "workers": WORKERS,
        "reports": len(RUNGS),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        **{side: medians(runs) for side, runs in results.items()},
        "raw": results,
    }
    print(json.dumps(whole) if given.json else json.dumps(whole, indent=1))


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """{count: {figure: [lowest, median, highest]}} over the repeats of a side."""
    return {
        count: {
            figure: [f(run["at"][count][figure] for run in runs) for f in (min, statistics.median, max)]
            for figure in runs[0]["at"][count]
        }
        for count in runs[0]["at"]
    }


if __name__ == "__main__":
    main()
