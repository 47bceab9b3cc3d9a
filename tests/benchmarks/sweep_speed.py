"""Seed-epochs a second of a whole distune sweep beside a plain Ray Tune and a plain Optuna search of the same study.

Each repeat runs the three sides one after the other, each in its own process. distune's seed-epochs are those of every
student that it trains, in search, re-evaluation and confirmation; its clock runs over its whole command, from start of
the interpreter to the table. The plain sides' clocks start after their imports. Nobody pays for a teacher: the plain
sides get fixed logits, distune's six teacher sets are put into a cache of the benchmark's own first.
`*_whole_command` times all three sides alike; `ratio_search_only` counts only the seed-epochs of distune's search and
re-evaluation, over the same clock.
`pack_ratio` is the time of a trial of 8 packed seeds over that of one seed in the plain loop, 50 epochs each.
Run: python -m tests.benchmarks.sweep_speed --json [--repeats 3]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from search.payload import Payload, trial_config
from spaces import load_study
from tests.benchmarks.plain_loop import load_data, solo_seconds, teacher_logits
from trainables import mlp
from trainables.context import TeacherOutputs
from trainables.datasets import load

# On 2 quiet cores 16 trials of Ray Tune last about 90 s and 100 of Optuna about 40 s. Of 8, 10, 16 and 25 trials, 16
# gave Ray Tune its best median (1.2, 2.4, 2.7, 2.1 seed-epochs a second): a trial costs 5 to 6 s however short it is.
RAY_TUNE_TRIALS = 16
OPTUNA_TRIALS = 100
PACKED_SEEDS = 8
PACK_REPEATS = 5


def run_module(*arguments: str) -> tuple[str, float]:
    """Standard output and wall seconds of `python -m ARGUMENTS`; SystemExit with its last lines where it fails."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-10:])
        raise SystemExit(f"python -m {' '.join(arguments)} exited {done.returncode}:\n{tail}")
    return done.stdout, seconds


def plain_sweep(module: str, trials: int) -> dict[str, Any]:
    output, seconds = run_module(f"tests.benchmarks.{module}", "--trials", str(trials), "--json")
    return json.loads(output) | {"seconds_command": seconds}


def distune_sweep(out: Path) -> dict[str, Any]:
    """One default sweep into the run folder `out`; `seconds` covers everything that the command does."""
    _, seconds = run_module("distune", "sweep", "mlp-ensemble", "--out", str(out))
    compared = json.loads(run_module("distune", "compare", str(out), "--json")[0])
    return {
        "seed_epochs": compared["budget_used"] + compared["confirmation"]["seed_epochs"],
        "seed_epochs_search": compared["budget_used"],
        "seconds": seconds,
        "seconds_command": seconds,
        "phases": compared["seconds"],
    }


def warm_cache(folder: Path) -> None:
    """Train the teachers that a sweep needs into a cache of their own."""
    os.environ["DISTUNE_CACHE"] = str(folder / "cache")
    say("training the teachers")
    run_module("distune", "sweep", "mlp-ensemble", "--quick", "--arms", "hard_labels", "--out", str(folder / "warm"))


def packed_trial_seconds(seeds: int) -> float:
    """Wall seconds of one trial of `seeds` packed seeds for 50 epochs at the published configuration."""
    study = load_study("mlp-ensemble")
    dataset = load(asdict(study.data))
    logits = np.random.default_rng(0).normal(size=(len(dataset.train), 2)).astype(np.float32)
    teacher = TeacherOutputs(logits, np.zeros(0, dtype=np.int64))
    payload = Payload(study, 0, dataset.train, dataset.validation, dataset.classes, (teacher,))
    arm = study.arms["kd"]
    config = trial_config(arm, arm.default, range(seeds), study, epochs=50)
    started = time.perf_counter()
    for _ in mlp.train(config, payload.context()):
        pass
    return time.perf_counter() - started


def measure_sweeps(repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Raw figures by side; the sides alternate, so that a drift of the machine meets all of them."""
    raw: dict[str, list[dict[str, Any]]] = {"plain_ray_tune": [], "plain_optuna": [], "distune": []}
    with tempfile.TemporaryDirectory() as folder:
        warm_cache(Path(folder))
        for repeat in range(repeats):
            sides: dict[str, Callable[[], dict[str, Any]]] = {
                "plain_ray_tune": lambda: plain_sweep("plain_ray_tune", RAY_TUNE_TRIALS),
                "plain_optuna": lambda: plain_sweep("plain_optuna", OPTUNA_TRIALS),
                "distune": lambda run=Path(folder) / f"run{repeat}": distune_sweep(run),
            }
            for side, measure in sides.items():
                figures = measure()
                raw[side].append(figures)
                say(f"{repeat + 1}/{repeats} {side}: {rate(figures):.2f} seed-epochs a second")
    return raw


def measure_packs() -> list[dict[str, float]]:
    data = load_data()
    teacher = teacher_logits(data)
    raw = []
    for repeat in range(PACK_REPEATS):
        solo, packed = solo_seconds(data, teacher), packed_trial_seconds(PACKED_SEEDS)
        raw.append({"solo_seconds": solo, "packed_seconds": packed})
        say(f"{repeat + 1}/{PACK_REPEATS} pack: {PACKED_SEEDS} seeds {packed:.2f} s, one seed {solo:.2f} s")
    return raw


def rate(figures: dict[str, Any], clock: str = "seconds") -> float:
    """Seed-epochs a second."""
    return figures["seed_epochs"] / figures[clock]


def ratios(raw: dict[str, list[dict[str, Any]]], plain: str, clock: str) -> list[float]:
    return [rate(ours, clock) / rate(theirs, clock) for ours, theirs in zip(raw["distune"], raw[plain], strict=True)]


def summarise(raw: dict[str, list[dict[str, Any]]], packs: list[dict[str, float]]) -> dict[str, Any]:
    """The object that is printed: medians, n, spread ([lowest, highest]) and both sides' raw figures."""
    values = {
        "ratio": ratios(raw, "plain_ray_tune", "seconds"),
        "ratio_optuna": ratios(raw, "plain_optuna", "seconds"),
        "ratio_whole_command": ratios(raw, "plain_ray_tune", "seconds_command"),
        "ratio_optuna_whole_command": ratios(raw, "plain_optuna", "seconds_command"),
        "ratio_search_only": [
            r * d["seed_epochs_search"] / d["seed_epochs"]
            for r, d in zip(ratios(raw, "plain_ray_tune", "seconds"), raw["distune"], strict=True)
        ],
        "pack_ratio": [pack["packed_seconds"] / pack["solo_seconds"] for pack in packs],
    }
    return {
        **{name: median(each) for name, each in values.items()},
        "n": len(raw["distune"]),
        "pack_n": len(packs),
        "spread": {name: [min(each), max(each)] for name, each in values.items()},
        **raw,
        "packs": packs,
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="the object on one line")
    args = parser.parse_args()
    packs = measure_packs()
    result = summarise(measure_sweeps(args.repeats), packs)
    print(json.dumps(result, indent=None if args.json else 2))
