"""Ledgers made by hand: what a sweep would have written, without the sweep."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.ledger import Ledger, TrialRecord
from spaces import Budget, Study, adjust, load_study, to_yaml

# Rungs 1, 3 and 9; four trials to the last rung, one a sub-search, spend an arm's 72 seed-epochs.
SMALL = {
    "seed_epochs_per_arm": 72,
    "seeds_per_trial": 2,
    "confirm_seeds": 16,
    "max_epochs": 9,
    "subsearches": 4,
    "reevaluate_share": 0.0,
}


def small_study(arms: tuple[str, ...] = (), **budget: Any) -> Study:
    """`mlp-ensemble`, with some of its arms if they are named, under SMALL with `budget` laid over it."""
    study = adjust(load_study("mlp-ensemble"), arms=arms)
    return dataclasses.replace(study, budget=Budget(**{**SMALL, **budget}))


def new_run(run: Path, study: Study) -> Ledger:
    """An empty ledger beside its study, as `distune sweep` begins."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "study.yaml").write_text(to_yaml(study), encoding="utf-8")
    return Ledger.create(run, {"study": study.name, "seed": 0})


def row(epoch: int, score: float | None = None, *, seeds: int = 2, se: float | None = 0.0, nll: float = 0.5) -> Any:
    """One epoch as a trial reports it."""
    return {"epoch": epoch, "seeds": seeds, "seconds": 0.1, "score": score, "se": se, "nll": nll, "metrics": {}}


def asked(trial: str, arm: str, subsearch: int = 0, config: Mapping[str, Any] | None = None) -> TrialRecord:
    defaults = load_study("mlp-ensemble").arms[arm].default
    return TrialRecord(trial, arm, subsearch, "sobol", dict(config or defaults), 0.0)


def add_trial(
    ledger: Ledger,
    trial: str,
    arm: str,
    rungs: Mapping[int, float],
    *,
    subsearch: int = 0,
    how: str = "",
    **of_row: Any,
) -> None:
    """A trial that scored `rungs` (score by epoch) and reported every epoch up to the last of them; how: its end."""
    ledger.ask(asked(trial, arm, subsearch))
    ledger.report(trial, [row(e, rungs.get(e, math.nan), **of_row) for e in range(1, max(rungs) + 1)])
    if how:
        ledger.end(trial, how, max(rungs))


def spend(ledger: Ledger, arm: str, seed_epochs: int) -> None:
    """Let an arm spend so much without reaching a rung."""
    name = f"{arm}-spends-{len(ledger.trials())}"
    ledger.ask(asked(name, arm))
    ledger.report(name, [row(2, seeds=seed_epochs)])
