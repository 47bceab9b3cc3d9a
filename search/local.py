"""What runs in this process, without Ray: the audit of a study, and how long its sweep would take here."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from search.payload import TRAIN, Payload, build_teacher, load_trainable, teacher_sets, trial_config
from spaces import Study
from trainables.context import TeacherOutputs
from trainables.datasets import Dataset, load
from trainables.streams import SEARCH, Streams
from trainables.teachers import ensemble

MEASURED_EPOCHS = 3  # the first is left out: it warms up
BUSY = 0.8  # share of a core that trains once the driver, Ray and the gaps between trials have had theirs
START_SECONDS = 12.0  # Ray and its workers


def audit_study(study: Study, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every arm at its default, trained to the first rung: one row a term at the first step (epoch 0) and there."""
    dataset = load(asdict(study.data))
    say("teacher: from the cache or trained now")
    teacher = build_teacher(study, 0, dataset, TRAIN, 0)
    payload = _payload(study, dataset, TeacherOutputs(teacher.logits(dataset.train.x).numpy(), teacher.fitted_on))
    rows = []
    for name, arm in study.arms.items():
        say(f"audit: {name}")
        config = trial_config(arm, arm.default, (SEARCH,), study, epochs=study.budget.rungs[0])
        for result in load_trainable(study)(config, payload.context()):
            for epoch, terms in result.audits.items():
                for term, audited in terms.items():
                    numbers = {k: v if math.isfinite(v) else None for k, v in asdict(audited).items()}
                    declared = term in arm.dead_terms
                    rows.append({"arm": name, "term": term, "epoch": epoch, **numbers, "declared_dead": declared})
    return rows


def estimate(study: Study, concurrent: int | None) -> dict[str, Any]:
    """Seconds that a sweep would take on this machine, from a few epochs of every arm measured now."""
    torch.set_num_threads(1)
    dataset = load(asdict(study.data))
    zeros = np.zeros((len(dataset.train), dataset.classes), dtype=np.float32)
    payload = _payload(study, dataset, TeacherOutputs(zeros, np.zeros(0, dtype=np.int64)))
    budget, workers = study.budget, min(concurrent or 10**9, os.cpu_count() or 1)
    per_epoch = {name: _seconds_per_seed_epoch(study, payload, name) for name in study.arms}
    searched = sum(budget.seed_epochs_per_arm * per_epoch[name] for name in study.searched)
    confirmed = sum(
        budget.confirm_seeds * runs * budget.max_epochs * per_epoch[n] for n, runs in _confirmed(study).items()
    )
    missing = [(fit, k) for fit, k in teacher_sets(study) if not _is_built(study, dataset, fit, k)]
    teachers = len(missing) * study.teacher.epochs * _seconds_per_teacher_epoch(study, dataset) if missing else 0.0
    seconds = START_SECONDS + (searched + confirmed + teachers) / workers / BUSY
    return {
        "seconds": seconds,
        "workers": workers,
        "teachers_to_train": len(missing),
        "seed_epochs_per_second": workers * BUSY / (sum(per_epoch.values()) / len(per_epoch)),
    }


def _confirmed(study: Study) -> dict[str, int]:
    """How often each arm is trained under all confirmation seeds."""
    refits = 1 if study.confirm_on == "train" else 2
    return {n: (refits if a.kind == "searched" else 1) + (a.published is not None) for n, a in study.arms.items()}


def _payload(study: Study, dataset: Dataset, teacher: TeacherOutputs) -> Payload:
    shown = dataset.without_test()
    return Payload(study, 0, shown.train, shown.validation, shown.classes, (teacher,))


def _seconds_per_seed_epoch(study: Study, payload: Payload, arm: str) -> float:
    seeds = range(SEARCH, SEARCH + study.budget.seeds_per_trial)
    config = trial_config(study.arms[arm], study.arms[arm].default, seeds, study, epochs=MEASURED_EPOCHS)
    began, count = time.perf_counter(), 0
    for count, _ in enumerate(load_trainable(study)(config, payload.context())):
        if count == 0:
            began = time.perf_counter()
    return (time.perf_counter() - began) / count / len(seeds)


def _is_built(study: Study, dataset: Dataset, fit: str, teacher_set: int) -> bool:
    return ensemble.is_built(asdict(study.teacher), dataset.fit_rows(fit), teacher_set, Streams(study.name))


def _seconds_per_teacher_epoch(study: Study, dataset: Dataset) -> float:
    pack = ensemble.untrained(asdict(study.teacher), dataset.train, dataset.classes, 0, Streams(study.name))
    began = time.perf_counter()
    pack.train_epoch(1, ensemble.labels_only)
    return time.perf_counter() - began
