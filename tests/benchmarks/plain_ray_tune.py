"""The KD search of `mlp-ensemble` as a Ray Tune user writes it: OptunaSearch, ASHAScheduler, defaults otherwise.

Claim: 16 trials train 2.7 seed-epochs a second on 2 cores (median, n=5, 1.9 to 3.3; the one undisturbed run 3.3).
Starts cost more than training: Tune starts one trial's worker at a time, and each imports torch and Ray for 5 s.
Run: python -m tests.benchmarks.plain_ray_tune --trials 16 --json
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from tests.benchmarks.plain_loop import EPOCHS, Data, load_data, teacher_logits, train

SPACE = {
    "lr": tune.loguniform(3e-4, 3e-2),
    "weight_decay": tune.loguniform(1e-6, 1e-2),
    "batch_size": tune.choice([32, 64, 128, 256]),
    "temperature": tune.loguniform(1.0, 20.0),
    "kd_weight": tune.uniform(0.0, 1.0),
}


def trial(config: dict[str, Any], data: Data, teacher: np.ndarray) -> None:
    for _, accuracy in train(config, data, teacher):
        tune.report({"val_accuracy": accuracy})


def sweep(trials: int) -> dict[str, float]:
    """Seed-epochs trained over all trials, and wall seconds from before `ray.init` to the end of `fit`."""
    started = time.perf_counter()
    ray.init()
    data = load_data()
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, data=data, teacher=teacher_logits(data)), {"cpu": 1}),
            param_space=SPACE,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(metric="val_accuracy", mode="max"),
                scheduler=ASHAScheduler(metric="val_accuracy", mode="max", max_t=EPOCHS),
                num_samples=trials,
            ),
            run_config=tune.RunConfig(storage_path=storage),
        )
        results = tuner.fit()
        seconds = time.perf_counter() - started
    ray.shutdown()
    if results.errors:
        raise results.errors[0]
    seed_epochs = sum(result.metrics["training_iteration"] for result in results)
    return {"seed_epochs": seed_epochs, "seconds": seconds, "trials": len(results)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, Ray's tables on stderr")
    args = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a benchmark calls nobody
    with contextlib.redirect_stdout(sys.stderr):
        figures = sweep(args.trials)
    rate = figures["seed_epochs"] / figures["seconds"]
    print(json.dumps(figures) if args.json else f"{rate:.2f} seed-epochs a second: {figures}")
