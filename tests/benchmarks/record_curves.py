"""Record the learning curves that `search_quality` searches over: configurations of `mlp-ensemble`, many seeds each.

    python -m tests.benchmarks.record_curves --arm kd --configs 400 --seeds 20 --out tests/benchmarks/curves

The first configuration is the arm's default, the others are points of a scrambled Sobol sequence over its space. Each
is trained by the study's own trainable, all seeds in one pack, with a teacher and random streams of their own: under
a sweep seed that no sweep of this project uses. Validation is measured at every epoch; the test rows and 60,000 fresh
rows of the same population after the last. One Parquet row a (configuration, seed).
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc

from search import families
from search.payload import TRAIN, Payload, build_teacher, load_trainable, payload_of, trial_config
from search.tabulated import Curves
from spaces import load_study
from trainables.datasets import load

STUDY = "mlp-ensemble"
SWEEP_SEED = 20_261_122
SHARED: dict[str, Any] = {}


def points(arm: str, count: int) -> list[dict[str, Any]]:
    """The arm's default, then a Sobol sequence over its space."""
    definition = load_study(STUDY).arms[arm]
    sobol = qmc.Sobol(len(definition.space), scramble=True, rng=SWEEP_SEED).random(count)
    drawn = [{n: d.at(float(u)) for u, (n, d) in zip(p, definition.space.items(), strict=True)} for p in sobol]
    return [{**definition.default, **p} for p in [{}, *drawn[: count - 1]]]


def prepare(arm: str, configs: int, seeds: int) -> None:
    """What all configurations share, once a process."""
    torch.set_num_threads(1)
    study = load_study(STUDY)
    dataset = load(asdict(study.data))
    teacher = build_teacher(study, SWEEP_SEED, dataset, TRAIN, 0)
    outputs = families.of(study).label(study, teacher, dataset.train, dataset, dataset.validation)
    payload = payload_of(study, SWEEP_SEED, dataset, TRAIN, [outputs])
    SHARED.update(study=study, arm=arm, payload=payload, dataset=dataset, seeds=seeds, points=points(arm, configs))


def record(number: int) -> dict[str, Any]:
    """One configuration under all seeds."""
    study, payload, dataset = SHARED["study"], SHARED["payload"], SHARED["dataset"]
    hp, replicates = SHARED["points"][number], range(SHARED["seeds"])
    assert isinstance(payload, Payload)
    config = trial_config(study, SHARED["arm"], hp, replicates, epochs=study.budget.max_epochs)
    score, nll = (np.full((len(replicates), config.epochs), np.nan, np.float32) for _ in range(2))
    began = time.perf_counter()
    for result in load_trainable(study)(config, payload.context()):
        if result.diverged:
            break
        score[:, result.epoch - 1] = result.metrics["val_accuracy"]
        nll[:, result.epoch - 1] = result.metrics["val_nll"]
    seconds = time.perf_counter() - began
    rows = {"test": dataset.test, "population": dataset.population}
    found = {}
    for split, given in rows.items():
        right = result.logits(given.x).argmax(dim=-1) == torch.from_numpy(given.y)
        found[split] = np.full(len(replicates), np.nan) if result.diverged else right.double().mean(dim=-1).numpy()
    return {"hp": hp, "score": score, "nll": nll, **found, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", default="kd")
    parser.add_argument("--configs", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for ARM.parquet")
    given = parser.parse_args()
    began = time.monotonic()
    prepare(given.arm, 1, 1)  # the teacher is trained once, before there are several processes
    shared = (given.arm, given.configs, given.seeds)
    recorded = []
    with multiprocessing.get_context("spawn").Pool(given.workers, prepare, shared) as pool:
        for found in pool.imap(record, range(given.configs)):
            recorded.append(found)
            if len(recorded) % 10 == 0:
                print(f"{len(recorded)} of {given.configs}, {time.monotonic() - began:.0f} s", flush=True)
    curves = Curves(
        configs=[r["hp"] for r in recorded],
        score=np.stack([r["score"] for r in recorded]),
        nll=np.stack([r["nll"] for r in recorded]),
        test=np.stack([r["test"] for r in recorded]),
        population=np.stack([r["population"] for r in recorded]),
    )
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{given.arm}.parquet"
    curves.write(path)
    seconds = [r["seconds"] for r in recorded]
    print(json.dumps({"file": str(path), "bytes": path.stat().st_size, "seconds_a_configuration": np.mean(seconds)}))


if __name__ == "__main__":
    main()
