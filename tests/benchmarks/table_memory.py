"""Memory and speed of the table family at 1,000,000 rows x 20 columns: does it train within 4 GB?

    python -m tests.benchmarks.table_memory --json
    python -m tests.benchmarks.table_memory --rows 50000 --models xgboost --json      # seconds: does it run

A Parquet file of 16 numbers and 4 categories with a label that depends on them is written, and one process then does
what a sweep does, one step after another: reads and splits it, fits the teachers out of fold, encodes it, trains
attention_blend (8 seeds, a gate, two teachers) on full batches and on batches of 1,024, and again on rows that it was
handed read-only, as Ray hands them to a worker. `peak_gb` is the process's highest resident memory so far, so a step's
own need is the rise from the step before. `bound_gb`: what is asked for.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

BOUND_GB = 4.0
SEEDS = 8


def write_table(path: Path, rows: int) -> None:
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {f"number_{i}": random.standard_normal(rows) for i in range(16)}
    columns |= {f"name_{i}": random.choice(["a", "b", "c", "d", "e"], rows) for i in range(4)}
    logit = columns["number_0"] - columns["number_1"] * columns["number_2"] + (columns["name_0"] == "a") - 2
    columns["target"] = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    pd.DataFrame(columns).to_parquet(path)


def measure(path: str, models: list[str]) -> list[dict[str, Any]]:
    """One process, step after step; each with its seconds and the peak so far."""
    import torch

    from search.payload import TRAIN, build_teacher, payload_of, trial_config
    from spaces import load_study
    from trainables.datasets import load
    from trainables.tabular import train

    torch.set_num_threads(1)
    study = load_study(
        "promo-attention",
        [f"data={{kind: csv, path: {path}, target: target, duplicates: keep}}", f"teacher.models={json.dumps(models)}"],
    )
    from dataclasses import asdict

    steps: list[dict[str, Any]] = []
    began = time.perf_counter()

    def done(step: str, **more: Any) -> None:
        nonlocal began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        steps.append({"step": step, "seconds": time.perf_counter() - began, "peak_gb": peak, **more})
        print(steps[-1], file=sys.stderr)
        began = time.perf_counter()

    done("libraries")
    dataset = load(asdict(study.data))
    done("read and split", rows=len(dataset.train))
    teacher = build_teacher(study, 0, dataset, TRAIN, 0)
    done("teachers, out of fold and refitted")
    payload = payload_of(study, 0, dataset, TRAIN, [teacher.outputs(dataset.validation.x)])
    payload.fit.x.setflags(write=False)
    del dataset, teacher
    done("encoded", features=payload.fit.x.shape[1], features_gb=payload.fit.x.nbytes / 1e9)
    for size in ("full", 1024):
        config = trial_config(study, "attention_blend", study.arms["attention_blend"].default, range(SEEDS), epochs=1)
        config = replace(config, hp={**config.hp, "batch_size": size, "dropout": 0.1})
        for result in train(config, payload.context()):
            auc = float(np.mean(result.metrics["val_auc"]))
        done(f"an epoch of {SEEDS} seeds, batch {size}", val_auc=auc)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--models", nargs="+", default=["xgboost", "random_forest"])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.models)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, given.rows)
        command = [sys.executable, "-m", "tests.benchmarks.table_memory", "--measure", str(path)]
        done = subprocess.run([*command, "--models", *given.models], check=True, stdout=subprocess.PIPE, text=True)
    steps = json.loads(done.stdout)
    peak = steps[-1]["peak_gb"]
    result = {"rows": given.rows, "n": 1, "peak_gb": peak, "bound_gb": BOUND_GB, "holds": peak <= BOUND_GB}
    if given.json:
        print(json.dumps({**result, "steps": steps}))
    else:
        for step in steps:
            print(f"{step['step']:40} {step['seconds']:8.1f} s   peak so far {step['peak_gb']:.2f} GB")


if __name__ == "__main__":
    main()
