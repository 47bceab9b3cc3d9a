"""What runs in this process, without Ray: the audit of a study, and how long its sweep would take here."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from search import families
from search.payload import (
    TRAIN,
    build_teacher,
    label,
    load_trainable,
    payload_of,
    refuse_unusable,
    teacher_sets,
    trial_config,
)
from search.seeds import SEARCH
from spaces import Study
from trainables.audit import STARVED, TermAudit
from trainables.datasets import Dataset, load

MEASURED_EPOCHS = 3  # the first is left out: it warms up
BUSY = 0.8  # share of a core that trains once the driver, Ray and the gaps between trials have had theirs
START_SECONDS = 12.0  # Ray and its workers
RAY_BYTES = 24_000  # of Ray's folder of one trial
EPOCH_BYTES, METRIC_BYTES, METRICS = 200, 22, 4  # of one row of the ledger, of one number in it, and numbers a seed
CLASS_BYTES, LOGIT_BYTES = 0.3, 3.7  # of one compressed prediction


def audit_study(study: Study, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every arm at its default, trained to the first rung: one row a term at the first step (epoch 0) and there."""
    refuse_unusable(study, say)
    dataset = load(asdict(study.data))
    say("teacher: from the cache or trained now")
    teacher = build_teacher(study, 0, dataset, TRAIN, 0)
    outputs = label(study, teacher, dataset, TRAIN)
    payload = payload_of(study, 0, dataset, TRAIN, [outputs])
    rows = []
    for name, arm in study.arms.items():
        say(f"audit: {name}")
        config = trial_config(study, name, arm.default, (SEARCH,), epochs=study.budget.rungs[0])
        for result in load_trainable(study)(config, payload.context()):
            for epoch, terms in result.audits.items():
                for term, audited in terms.items():
                    numbers = {k: v if math.isfinite(v) else None for k, v in asdict(audited).items()}
                    status = _status(audited, term in arm.dead_terms)
                    about = {"status": status, "declared_dead": term in arm.dead_terms}
                    rows.append({"arm": name, "term": term, "epoch": epoch, **numbers, **about})
    return rows


def _status(audited: TermAudit, declared: bool) -> str:
    """alive | starved | trains the gate | no weight | dead | dead, declared: an undeclared one stops the audit."""
    if audited.weight == 0:
        return "no weight"
    if audited.norm == 0:
        return "dead, declared" if declared else "dead"
    if math.isnan(audited.share):
        return "trains the gate"
    return "starved" if audited.share < STARVED else "alive"


def estimate(study: Study, concurrent: int | None) -> dict[str, Any]:
    """Seconds that a sweep would take on this machine, from a few epochs of every kind of arm measured now.

    Of images a few hundred are trained on, and arms with a teacher count as those without: their teacher's views come
    from a cache.
    """
    torch.set_num_threads(1)
    refuse_unusable(study, lambda line: None)
    dataset = load(asdict(study.data))
    budget, workers = study.budget, min(concurrent or 10**9, os.cpu_count() or 1)
    per_epoch, parameters = _measured(study, dataset)
    searched = sum(budget.seed_epochs_per_arm * per_epoch[name] for name in study.searched)
    confirmed = sum(
        budget.confirm_seeds * runs * budget.max_epochs * per_epoch[n] for n, runs in _confirmed(study).items()
    )
    family = families.of(study)
    missing = [(f, k) for f, k in teacher_sets(study) if not family.is_built(study, 0, dataset.fit_rows(f), dataset, k)]
    teachers = len(missing) * family.teacher_seconds(study, dataset) if missing else 0.0
    seconds = START_SECONDS + (searched + confirmed + teachers) / workers / BUSY
    return {
        "seconds": seconds,
        "workers": workers,
        "teachers_to_train": len(missing),
        "seed_epochs_per_second": workers * BUSY / (sum(per_epoch.values()) / len(per_epoch)),
        "disk_mb": _disk(study, dataset, parameters) / 1e6,
    }


def _disk(study: Study, dataset: Dataset, parameters: int) -> float:
    """About how many bytes a run folder will hold: ledger, students, Ray's folders. Teachers lie in the cache."""
    budget, runs = study.budget, sum(study.budget.confirm_seeds * n for n in _confirmed(study).values())
    epochs = len(study.searched) * budget.search_seed_epochs / budget.seeds_per_trial
    rows = sum(len(r) for r in (dataset.test, dataset.population) if r is not None)
    ledger = epochs * (EPOCH_BYTES + METRIC_BYTES * METRICS * budget.seeds_per_trial)
    ledger += runs * rows * (LOGIT_BYTES if study.metric == "auc" else CLASS_BYTES)
    trials = len(study.searched) * budget.search_seed_epochs / budget.mean_trial_cost
    return ledger + runs * parameters * 4 + trials * RAY_BYTES


def _confirmed(study: Study) -> dict[str, int]:
    """How often each arm is trained under all confirmation seeds."""
    refits = 1 if study.confirm_on == "train" else 2
    return {n: refits + (a.published is not None) if a.kind == "searched" else 1 for n, a in study.arms.items()}


def _measured(study: Study, dataset: Dataset) -> tuple[dict[str, float], int]:
    """Seconds of a seed-epoch by arm, measured once for each kind of student, and parameters of the largest one."""
    family = families.of(study)
    sample, share = family.sample(study, dataset)
    context = payload_of(study, 0, sample, TRAIN, [family.silent(study, sample)]).context()
    seconds: dict[str, float] = {}
    measured: dict[str, float] = {}
    parameters = 0
    for name, arm in study.arms.items():
        if arm.role == "reference":
            seconds[name] = 0.0
            continue
        seeds = range(SEARCH, SEARCH + (study.budget.seeds_per_trial if family.PACKS else 1))
        config = family.without_teacher(study, trial_config(study, name, arm.default, seeds, epochs=MEASURED_EPOCHS))
        key = repr(config)
        if key not in measured:
            began, count = time.perf_counter(), 0
            for count, result in enumerate(load_trainable(study)(config, context)):
                parameters = max(parameters, result.parameters)
                if count == 0:
                    began = time.perf_counter()
            measured[key] = (time.perf_counter() - began) / count / len(seeds) / share
        seconds[name] = measured[key]
    return seconds, parameters
