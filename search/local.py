"""What runs in this process, without Ray: the audit of a study, its check, and how long its sweep would take here."""

import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from search import families
from search.payload import (
    TRAIN,
    Payload,
    build_teacher,
    label,
    load_trainable,
    payload_of,
    refuse_unusable,
    teacher_sets,
    trial_config,
)
from search.seeds import SEARCH
from spaces import BASELINE, BadInput, Study
from spaces.families import FULL_BATCH, NAMES, ORDINARY
from trainables.audit import STARVED, DeadTerm, TermAudit
from trainables.by_path import described, place
from trainables.context import Context, TrialConfig
from trainables.datasets import Dataset, load
from trainables.dry import Examined

MEASURED_EPOCHS = 3  # the first is left out: it warms up
BUSY = 0.8  # share of a core that trains once the driver, Ray and the gaps between trials have had theirs
START_SECONDS = 12.0  # Ray and its workers
RAY_BYTES = 24_000  # of Ray's folder of one trial
EPOCH_BYTES, METRIC_BYTES, METRICS = 200, 22, 4  # of one row of the ledger, of one number in it, and numbers a seed
LIMITS_OF_MASKS = ("mask_percentile",)  # which the trainer reads, as it does names
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
    for name in study.arms:
        say(f"audit: {name}")
        rows += _audited(study, name, payload, study.budget.rungs[0])
    return rows


def _audited(study: Study, name: str, payload: Payload, epochs: int) -> list[dict[str, Any]]:
    """One arm at its default, one row a term at every epoch that is audited."""
    arm, rows = study.arms[name], []
    config = trial_config(study, name, arm.default, (SEARCH,), epochs=epochs)
    for result in load_trainable(study)(config, payload.context()):
        for epoch, terms in result.audits.items():
            for term, audited in terms.items():
                numbers = {k: v if math.isfinite(v) else None for k, v in asdict(audited).items()}
                status = _status(audited, term in arm.dead_terms)
                about = {"status": status, "declared_dead": term in arm.dead_terms}
                rows.append({"arm": name, "term": term, "epoch": epoch, **numbers, **about})
    return rows


def check_study(study: Study, concurrent: int | None, say: Callable[[str], None]) -> dict[str, Any]:
    """What can be known of a sweep without training for it, as JSON-like data.

    arms: how each variant runs on a pack and why not faster, the audit of its first step under a made-up teacher, and
    seconds of a seed-epoch; estimate: of `estimate`; memory_mb: the most that this process has held with every arm at
    its largest batch, which is what each of the workers will hold; notes: what deserves a look. Raises BadInput for
    what a sweep would refuse, and for a term that sends the student no gradient.
    """
    torch.set_num_threads(1)
    own = refuse_unusable(study, say)
    dataset, family = load(asdict(study.data)), families.of(study)
    sample, _ = family.sample(study, dataset)
    arms: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        made_up = _without_a_live_teacher(study)
        payload = payload_of(made_up, 0, sample, TRAIN, [family.made_up(made_up, sample, Path(folder))])
        for name, arm in study.arms.items():
            say(f"check: gradients of {name}")
            try:
                terms = _audited(made_up, name, payload, 0)
            except DeadTerm as error:
                raise BadInput(f"arms.{name}: {error}") from None
            except Exception as error:
                if study.trainable is None:
                    raise
                where = place(error, study.trainable.rpartition(":")[0])
                raise BadInput(f"arms.{name}: the trainable raised at {where}: {described(error)}") from error
            runs, why = _runs(study, name, own)
            arms[name] = {"variant": arm.variant, "runs": runs, "why": why, "terms": terms}
        for config in {repr(c): c for c in _largest(study)}.values():
            next(iter(load_trainable(study)(config, payload.context())), None)
    say("check: seconds of an epoch")
    found = estimate(study, concurrent)
    for name, seconds in found["seconds_per_seed_epoch"].items():
        arms[name]["seconds_per_seed_epoch"] = seconds
    memory = _peak_mb()
    return {
        "study": study.name,
        "arms": arms,
        "rows": {"train": len(dataset.train), "validation": len(dataset.validation), "classes": dataset.classes},
        "estimate": found,
        "memory_mb": memory,
        "notes": _notes(study, own, len(dataset.train), memory * found["workers"]),
    }


def _runs(study: Study, name: str, own: Mapping[str, Examined]) -> tuple[str, str]:
    """How the seeds of a trial of this arm run, and why not faster."""
    if study.arms[name].role == "reference":
        return "teachers alone", "no student is trained"
    if study.trainable is not None:
        return "as your trainable says", ""
    if not families.of(study).PACKS:
        return "one by one", "convolutions gain little from packing; trials share a GPU by --gpus-per-trial"
    return (own[name].how, own[name].why) if name in own else ("packed", "")


def _largest(study: Study) -> Iterator[TrialConfig]:
    """One epoch of every arm that trains, at the largest batch of its space."""
    for name, arm in study.arms.items():
        if arm.role == "reference":
            continue
        sizes = [arm.default["batch_size"], *getattr(arm.space.get("batch_size"), "choices", ())]
        largest = max(sizes, key=lambda s: math.inf if s == FULL_BATCH else int(s))
        seeds = range(SEARCH, SEARCH + study.budget.seeds_per_trial)
        hp = {**arm.default, "batch_size": largest}
        yield families.of(study).without_teacher(study, trial_config(study, name, hp, seeds, epochs=1))


def _peak_mb() -> float:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _notes(study: Study, own: Mapping[str, Examined], rows: int, memory_mb: float) -> list[str]:
    """What is no error and deserves a look."""
    notes = []
    for name, examined in own.items():
        unread = set(study.arms[name].space) - examined.reads - {*ORDINARY[study.family], *NAMES, *LIMITS_OF_MASKS}
        if unread:
            notes.append(f"{name} searches {', '.join(sorted(unread))}, which its variant does not read")
    sizes = getattr(study.arms[BASELINE].space.get("batch_size"), "choices", ())
    alike = [str(s) for s in sizes if s == FULL_BATCH or int(s) >= rows]
    if len(alike) > 1:
        notes.append(f"batch sizes {', '.join(alike)} are one and the same: there are {rows} rows to train on")
    budget = study.budget
    trials = budget.search_seed_epochs / budget.mean_trial_cost / budget.subsearches
    if trials < 3:
        notes.append(f"about {trials:.1f} trials a sub-search: too few to choose by, raise budget.seed_epochs_per_arm")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    if memory_mb > 0.8 * machine:
        notes.append(f"the workers together need about {memory_mb:.0f} MB, and this machine has {machine:.0f} MB")
    return notes


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
        "seconds_per_seed_epoch": per_epoch,
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
    with tempfile.TemporaryDirectory() as folder:
        study = _without_a_live_teacher(study)
        context = payload_of(study, 0, sample, TRAIN, [family.made_up(study, sample, Path(folder))]).context()
        return _measured_on(study, context, share)


def _without_a_live_teacher(study: Study) -> Study:
    """The study with its teacher's features from a cache, which can be made up."""
    live = study.views.alignment_channels == "live"
    return replace(study, views=replace(study.views, alignment_channels=12)) if live else study


def _measured_on(study: Study, context: Context, share: float) -> tuple[dict[str, float], int]:
    family = families.of(study)
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
