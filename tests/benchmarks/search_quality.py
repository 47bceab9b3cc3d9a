"""How good a configuration a budget buys: regret on test of what is chosen, by plain Ray Tune, random search, distune.

    python -m tests.benchmarks.search_quality --json
    python -m tests.benchmarks.search_quality --json --repeats 4          # does it run
    python -m tests.benchmarks.search_quality --json --curves RUN         # on the finished trials of one's own sweep

Everything is searched on recorded curves (`record_curves`), so that a repetition takes seconds and the truth is known:
a configuration's value is its mean over all recorded seeds, after the last epoch, on 60,000 fresh rows that no search
has seen; regret is how far the chosen one is below the best recorded one, in points. distune's side is a search and
re-evaluation by its own classes under the study's budget. The others are given what distune has spent: the same
seed-epochs; as many epochs of one seed as distune trained epochs of a pack; the same seconds of work, by what an epoch
of each kind costs here and now (`costs`: medians of 5, measured by turns). Starting trials costs nothing here, which
favours plain Ray Tune. Its side is Ray's own OptunaSearch and ASHAScheduler at their defaults, one seed a trial, and
`get_best_result`'s rule: the best last report.
"""

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from search.ledger import FILE, Ledger
from search.tabulated import Curves, Table, TabulatedSweep, from_ledger
from spaces import A_A_CONTROL, Choice, Study, adjust, load_study

CURVES = Path(__file__).parent / "curves"
ARMS = {A_A_CONTROL: "hard_labels"}  # arms that are searched on the curves of another
BATCHES, PACKS, REPEATS = (32, 64, 128, 256), (1, 2, 4, 8, 16), 5
BUDGETS = ("seed_epochs", "pack_epochs", "seconds")
Cost = Callable[..., float]
Spent = Mapping[str, float]


# What an epoch costs.


def measure_costs() -> dict[str, dict[str, float]]:
    """{"plain" or pack size: {batch size: seconds of one epoch}}, on one core; the sides take turns."""
    import torch

    from search import families
    from search.payload import TRAIN, load_trainable, payload_of, trial_config
    from tests.benchmarks import plain_loop
    from trainables.datasets import load

    torch.set_num_threads(1)
    study = load_study("mlp-ensemble")
    dataset = load(dataclasses.asdict(study.data))
    context = payload_of(study, 0, dataset, TRAIN, [families.of(study).made_up(study, dataset, Path())]).context()
    data = plain_loop.load_data()
    logits = plain_loop.teacher_logits(data)

    def plain(batch: int) -> Iterator[Any]:
        yield from plain_loop.train({**plain_loop.PUBLISHED, "batch_size": batch}, data, logits, epochs=REPEATS + 1)

    def pack(batch: int, size: int) -> Iterator[Any]:
        hp = {**study.arms["kd"].default, "batch_size": batch}
        config = trial_config(study, "kd", hp, range(size), epochs=REPEATS + 1)
        yield from load_trainable(study)(dataclasses.replace(config, audit_at=()), context)

    costs: dict[str, dict[str, float]] = {name: {} for name in ("plain", *map(str, PACKS))}
    for batch in BATCHES:
        running = {"plain": plain(batch), **{str(s): pack(batch, s) for s in PACKS}}
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for turn in range(REPEATS + 1):
            for name, results in running.items():
                began = time.perf_counter()
                next(results)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        for name, found in seconds.items():
            costs[name][str(batch)] = statistics.median(found)
    return costs


def cost_of_a_pack(costs: Mapping[str, Mapping[str, float]]) -> Cost:
    """Seconds of one epoch of a pack, between the measured sizes by straight lines."""

    def cost(arm: str, config: Mapping[str, Any], seeds: int) -> float:
        batch = str(int(config["batch_size"]))
        return float(np.interp(seeds, PACKS, [costs[str(s)][batch] for s in PACKS]))

    return cost


# The three sides. Each returns the number of the chosen configuration by arm.


def distune_side(
    study: Study, tables: Mapping[str, Table], seed: int, cost: Cost
) -> tuple[dict[str, int], dict[str, Spent]]:
    """What distune chooses, and what each arm has spent."""
    with tempfile.TemporaryDirectory() as run, Ledger.create(Path(run), {"study": study.name, "seed": seed}) as ledger:
        sweep = TabulatedSweep(study, ledger, tables, seed, cost)
        sweep.run()
        arm_of = {t.trial: t.arm for t in ledger.trials()}
        seed_epochs: dict[str, float] = dict.fromkeys(study.searched, 0.0)
        for row in ledger.epochs():
            seed_epochs[arm_of[row.trial]] += row.seeds
        for again in ledger.runs("reevaluation"):
            seed_epochs[again.arm] += again.epochs
        spent = {
            arm: {"seed_epochs": seed_epochs[arm], "pack_epochs": sweep.epochs[arm], "seconds": sweep.seconds[arm]}
            for arm in study.searched
        }
        return {arm: sweep.chosen(arm) for arm in study.searched}, spent


def plain_side(study: Study, arm: str, table: Table, seed: int, budget: float, cost: Cost) -> int:
    """Ray Tune's OptunaSearch and ASHAScheduler at their defaults, one seed a trial, two trials at a time."""
    from optuna.samplers import TPESampler
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler
    from ray.tune.search.optuna import OptunaSearch

    space = {n: _in_ray(d) for n, d in study.arms[arm].space.items()}
    searcher = OptunaSearch(sampler=TPESampler(seed=seed), metric="score", mode="max")
    searcher.set_search_properties("score", "max", space)
    scheduler = ASHAScheduler(metric="score", mode="max", max_t=study.budget.max_epochs)
    rng = np.random.default_rng(seed)
    last: dict[str, tuple[float, int]] = {}
    spent, running = 0.0, []
    while spent < budget:
        while len(running) < 2:
            name = f"t{len(last):05d}"
            config = searcher.suggest(name)
            trial = SimpleNamespace(trial_id=name)
            scheduler.on_trial_add(None, trial)
            number = table.nearest(config)
            curve = table.curves.score[number, rng.integers(table.curves.score.shape[1])]
            last[name] = (-np.inf, number)
            running.append([0.0, 0, trial, number, curve, cost(config)])
        entry = min(running, key=lambda e: e[0])
        _, epoch, trial, number, curve, seconds = entry
        entry[0] += seconds
        entry[1] = epoch + 1
        spent += seconds
        score = float(curve[epoch])
        last[trial.trial_id] = (score if np.isfinite(score) else -np.inf, number)
        result = {"score": score, "training_iteration": epoch + 1, "trial_id": trial.trial_id}
        searcher.on_trial_result(trial.trial_id, result)
        if not np.isfinite(score) or scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            scheduler.on_trial_complete(None, trial, result)
            searcher.on_trial_complete(trial.trial_id, result)
            running.remove(entry)
    return max(last.values(), key=lambda r: r[0])[1]


def random_side(study: Study, arm: str, table: Table, seed: int, budget: float, cost: Cost) -> int:
    """Uniform draws, each trained to the end under one seed; the best last report wins."""
    rng = np.random.default_rng(seed)
    best, spent = (-np.inf, 0), 0.0
    while spent < budget:
        config = {n: d.at(float(rng.random())) for n, d in study.arms[arm].space.items()}
        number = table.nearest(config)
        score = float(table.curves.score[number, rng.integers(table.curves.score.shape[1]), -1])
        spent += cost(config) * study.budget.max_epochs
        if spent <= budget or best[0] == -np.inf:
            best = max(best, (score if np.isfinite(score) else -np.inf, number))
    return best[1]


def _in_ray(dimension: Any) -> Any:
    from ray import tune

    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.choices))
    return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)


# One repetition, and all of them.

SHARED: dict[str, Any] = {}


def share(study: Study, curves: Mapping[str, Curves], costs: Mapping[str, Mapping[str, float]]) -> None:
    """costs: of `measure_costs`, or empty where nobody knows them: then nothing is compared at equal seconds."""
    arms = {arm: curves[arm if arm in curves else ARMS[arm]] for arm in study.searched}
    tables = {arm: Table.of(found, study.arms[arm].space, study.val_metric) for arm, found in arms.items()}
    SHARED.update(study=study, tables=tables, costs=costs)


def of_a_run(run: Path) -> tuple[Study, dict[str, Curves], dict[str, dict[str, float]]]:
    """One's own sweep, with half of its seeds to search by and none for a re-evaluation; nobody knows its costs."""
    study = load_study(run / "study.yaml")
    curves = {arm: from_ledger(run, arm) for arm in study.searched}
    seeds = min(found.score.shape[1] for found in curves.values())
    budget = dataclasses.replace(study.budget, seeds_per_trial=seeds, reevaluate_share=0.0)
    return dataclasses.replace(study, budget=budget), curves, {}


def repetition(seed: int) -> dict[str, Any]:
    """{side: {arm: regret in points}}; the sides that are given distune's spending once for each kind of it."""
    study, tables, costs = SHARED["study"], SHARED["tables"], SHARED["costs"]
    chosen, spent = distune_side(study, tables, seed, cost_of_a_pack(costs) if costs else lambda *given: 1.0)
    tables = {arm: table for arm, table in tables.items() if arm != A_A_CONTROL}  # it has no answer of its own
    regrets = {"distune": {arm: regret(tables[arm].curves, chosen[arm]) for arm in tables}}
    for unit in BUDGETS if costs else BUDGETS[:2]:
        cost = _plain_cost(costs) if unit == "seconds" else lambda config: 1.0
        for name, side in (("plain", plain_side), ("random", random_side)):
            regrets[f"{name} {unit}"] = {
                arm: regret(table.curves, side(study, arm, table, seed, spent[arm][unit], cost))
                for arm, table in tables.items()
            }
    return {"regret": regrets, "spent": spent}


def _plain_cost(costs: Mapping[str, Mapping[str, float]]) -> Cost:
    return lambda config: costs["plain"][str(int(config["batch_size"]))]


def regret(curves: Curves, chosen: int) -> float:
    """Points of accuracy below the best recorded configuration."""
    value = np.nanmean(curves.truth, axis=1)
    return float(100 * (np.nanmax(value) - value[chosen]))


def summary(found: list[dict[str, Any]], arms: list[str]) -> dict[str, Any]:
    """Means over repetitions with 95 % intervals, and the ratio of distune's regret to each other side's."""
    rng = np.random.default_rng(0)
    sides = found[0]["regret"]
    raw = {s: np.array([[f["regret"][s][a] for a in arms] for f in found]) for s in sides}  # (repetitions, arms)
    draws = rng.integers(len(found), size=(2000, len(found)))
    result: dict[str, Any] = {}
    for side, values in raw.items():
        means = values.mean(axis=1)
        about = {"regret": float(means.mean()), "ci95": _interval(means[draws].mean(axis=1))}
        about |= {"by_arm": dict(zip(arms, values.mean(axis=0).tolist(), strict=True))}
        if side != "distune":
            ours = raw["distune"].mean(axis=1)
            ratios = ours[draws].mean(axis=1) / means[draws].mean(axis=1)
            about |= {"ratio": float(ours.mean() / means.mean()), "ratio_ci95": _interval(ratios)}
        result[side] = about
    return result


def _interval(draws: Any) -> list[float]:
    return np.quantile(draws, [0.025, 0.975]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--curves", type=Path, default=CURVES, help="folder of ARM.parquet, or a run folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `distune sweep`")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    given = parser.parse_args()
    if (given.curves / FILE).is_file():
        study, curves, costs = of_a_run(given.curves)
    else:
        study = adjust(load_study("mlp-ensemble", given.set), arms=("kd",))
        curves = {arm: Curves.read(given.curves / f"{arm}.parquet") for arm in ("kd", "hard_labels")}
        costs = measure_costs()
    with multiprocessing.get_context("spawn").Pool(given.workers, share, (study, curves, costs)) as pool:
        found = pool.map(repetition, range(given.repeats))
    sides = summary(found, [arm for arm in study.searched if arm != A_A_CONTROL])
    headline = sides["plain seconds" if costs else "plain pack_epochs"]
    spent = [of_arm for f in found for of_arm in f["spent"].values()]
    result = {
        "n": given.repeats,
        "ratio": headline["ratio"],
        "spread": headline["ratio_ci95"],
        "sides": sides,
        "spent_by_an_arm": {unit: statistics.mean(s[unit] for s in spent) for unit in BUDGETS},
        "costs": costs,
    }
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
