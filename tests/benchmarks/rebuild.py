"""How long a resumed sweep takes to stand where it stood: the whole search rebuilt from a ledger of many trials.

    python -m tests.benchmarks.rebuild --trials 10000 --json

The ledger is written here: trials of `mlp-ensemble` that stop and finish as ASHA decides, every epoch with 8 seeds'
metrics, then read as `distune resume` and `distune compare` do: `SearchState` (Optuna's studies, rungs, budgets), the
selection, and `quick_check`. One process, `n` repeats of the reading.
"""

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.ledger import FILE, Ledger
from search.selection import select
from search.state import SearchState
from spaces import Study, adjust, load_study

REPEATS = 3


def study_for(trials: int) -> Study:
    """Two arms and the A/A control, with a budget that so many trials spend."""
    study = adjust(load_study("mlp-ensemble"), arms=("kd",))
    search = int(trials / len(study.searched) * study.budget.mean_trial_cost)
    return dataclasses.replace(study, budget=dataclasses.replace(study.budget, seed_epochs_per_arm=search))


def write(ledger: Ledger, study: Study, trials: int) -> None:
    """A search that asks and reports as a real one; its scores are drawn."""
    rng = random.Random(0)
    state = SearchState(study, ledger, 0)
    for subsearch in state._subsearches.values():  # TPE would take minutes, and what it proposes is not the point
        subsearch.study.sampler = __import__("optuna").samplers.RandomSampler(seed=0)
    seeds = study.budget.seeds_per_trial
    for _ in range(trials):
        live = state.next_trial()
        if live is None:
            return
        quality, epoch = rng.gauss(0.95, 0.02), 0
        for rung in study.budget.rungs:
            rows = []
            for e in range(epoch + 1, rung + 1):
                scores = [quality + rng.gauss(0, 0.003) for _ in range(seeds)]
                metrics = {"val_accuracy": scores, "val_nll": scores, "loss_kd": scores, "loss_ce": scores}
                mean = statistics.fmean(scores)
                rows.append({"epoch": e, "seeds": seeds, "seconds": 0.05, "score": mean, "se": 0.001, "nll": 0.2})
                rows[-1] |= {"metrics": metrics, "audits": []}
            epoch = rung
            if not state.report(live.record.trial, rows, ""):
                break


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    given = parser.parse_args()
    study = study_for(given.trials)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        with Ledger.create(run, {"study": study.name, "seed": 0}) as ledger:
            write(ledger, study, given.trials)
            trials = len(ledger.trials())
        seconds: dict[str, list[float]] = {"check": [], "rebuild": [], "select": []}
        for _ in range(REPEATS):
            seconds["check"].append(timed(lambda: Ledger.open(run, check=True).close()))
            with Ledger.open(run) as ledger:
                seconds["rebuild"].append(timed(lambda: SearchState(study, ledger, 0)))
                seconds["select"].append(timed(lambda: select(study, ledger)))
        size = (run / FILE).stat().st_size / 1e6
    result = {
        "n": REPEATS,
        "trials": trials,
        "ledger_mb": size,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "spread": {name: [min(found), max(found)] for name, found in seconds.items()},
    }
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
