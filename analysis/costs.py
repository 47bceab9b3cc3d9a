"""What a sweep cost: seed-epochs, trials and seconds of every arm, and the wall time of every phase."""

import math
from collections import defaultdict
from typing import Any

from search.ledger import Ledger
from spaces import Study

CONFIRMED = ("tuned", "as_published", "fixed")
FLAG_SECONDS = 1.2  # an arm that costs more than this times the baseline's seconds is said to


def by_arm(study: Study, ledger: Ledger) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{searched arm: seed_epochs, trials, seconds, how its trials ended}, and notes on arms that cost more."""
    trials, ends = ledger.trials(), ledger.ends()
    arm_of = {t.trial: t.arm for t in trials}
    result: dict[str, dict[str, Any]] = {
        a: {"seed_epochs": 0, "trials": 0, "seconds": 0.0, "ended": {}} for a in study.searched
    }
    for trial in trials:
        result[trial.arm]["trials"] += 1
        how = ends[trial.trial].how if trial.trial in ends else "unfinished"
        result[trial.arm]["ended"][how] = result[trial.arm]["ended"].get(how, 0) + 1
    for row in ledger.epochs():
        result[arm_of[row.trial]]["seed_epochs"] += row.seeds
        result[arm_of[row.trial]]["seconds"] += row.seconds
    for run in ledger.runs("reevaluation"):
        result[run.arm]["seed_epochs"] += run.epochs
        result[run.arm]["seconds"] += run.seconds
    cost = {a: b["seconds"] / b["seed_epochs"] for a, b in result.items() if b["seed_epochs"]}
    usual = {arm: cost.get(study.baseline_of(arm), math.inf) for arm in cost}
    notes = [
        f"{arm}: a seed-epoch costs {seconds / usual[arm]:.2f} times the baseline's (batch sizes may differ)"
        for arm, seconds in cost.items()
        if seconds > FLAG_SECONDS * usual[arm]
    ]
    return result, notes


def of_confirmation(ledger: Ledger) -> dict[str, Any]:
    runs = [run for run in ledger.runs() if run.purpose in CONFIRMED]
    return {"seed_epochs": sum(r.epochs for r in runs), "seconds": sum(r.seconds for r in runs)}


def seconds(ledger: Ledger) -> dict[str, float]:
    """Wall seconds of each phase, over all lives of the sweep, and what the teachers cost when they were built."""
    open_at: dict[str, float] = {}
    total: dict[str, float] = defaultdict(float)
    for phase, event, at in ledger.phases():
        if event == "begin":
            open_at[phase] = at
        elif event == "end" and phase in open_at:
            total[phase] += at - open_at.pop(phase)
    return {**total, "teachers": sum(t["seconds"] for t in ledger.teachers())}


def of_gpus(ledger: Ledger) -> str | None:
    """One sentence on the GPU hours that all training took, and on their price where one is known; None without."""
    options = ledger.meta.get("options", {})
    gpus = options.get("gpus_per_trial") or 0.0
    if not gpus:
        return None
    trained = sum(row.seconds for row in ledger.epochs()) + sum(run.seconds for run in ledger.runs())
    hours = gpus * (trained + sum(t["seconds"] for t in ledger.teachers())) / 3600
    price = options.get("cost_per_gpu_hour")
    paid = f", {hours * price:.2f} at {price:g} an hour" if price else ""
    return f"training took {hours:.2f} GPU hours{paid} (waiting and starting are not counted)"
