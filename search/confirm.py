"""After the search: re-evaluate the best on validation, retrain the chosen, and read the test split once.

Each piece of work is one Ray task: one configuration under one pack of fresh seeds. What the ledger already holds is
not done again, so that this can be interrupted anywhere.
"""

import faulthandler
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError
from safetensors.torch import save

from search import families, prepare, records, seeds
from search.cluster import placement
from search.ledger import ENSEMBLE, Ledger
from search.options import Options
from search.payload import TRAIN, Payload, load_trainable, threads, trial_config
from search.prepare import Prepared
from search.progress import Progress
from search.selection import candidates, fair_limit, search_spend, select, within
from search.shortage import NodeFull, another_node_may_have_room, is_out_of_memory
from search.storage import Storage
from search.weights import pack_name
from spaces import Published, Study
from trainables.datasets import Rows
from trainables.evaluation import validation_metrics

logger = logging.getLogger(__name__)
PACK = 10  # seeds of one configuration trained together where no sub-search divides them
ALL_SUBSEARCHES = -1  # the sub-search number of what no sub-search chose: published and fixed configurations
TRAINING_ONLY = {"optimiser", "extras"}  # parts of a state that a student to deploy has not
LOOK, PEEKS = "confirmation", "peeks"
BEST_OF_EPOCHS = "max_over_epochs_on_test"


@dataclass(frozen=True)
class Job:
    """One pack to train to the end. purpose: reevaluation | tuned | as_published | fixed. judge: read the test rows.

    peek: at every epoch, because the published number is the best of epochs on the test set and is compared as such.
    epochs: how far to train; None for as far as the study says, with its patience, as a published run is and as one is
    whose best epoch is asked.
    """

    purpose: str
    arm: str
    subsearch: int
    fit: str
    trial: str
    config: Mapping[str, Any]
    replicates: tuple[int, ...]
    judge: bool
    peek: bool = False
    epochs: int | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What the ledger enters of it with each seed."""
        names = ("purpose", "arm", "subsearch", "fit", "trial")
        return {name: getattr(self, name) for name in names} | {"config": dict(self.config)}


@dataclass(frozen=True)
class Keeping:
    """Where a worker keeps what it has trained. students: the weights go into its folder `models`; records: each seed.

    epoch_timeout: seconds after which an epoch that has not ended ends its worker; Ray tries the task again.
    """

    students: Storage | None
    records: Storage | None
    epoch_timeout: float


@another_node_may_have_room()
def train_to_end(
    job: Job,
    payload: Payload,
    parcels: Sequence[placement.Parcel | placement.Code],
    judged: Mapping[str, Rows] | None,
    keeping: Keeping,
) -> list[dict[str, Any]]:
    """For each seed of the pack: its metrics and predictions, after the last epoch and with nothing selected.

    parcels: what this node must have. judged: test rows by split, or None where they are not to be read.
    """
    import torch

    placement.place(parcels)

    torch.set_num_threads(threads())
    study, began = payload.study, time.monotonic()
    config = trial_config(study, job.arm, job.config, job.replicates, job.epochs)
    if config.patience is None:
        config = replace(config, evaluate_from=config.epochs)  # nothing is selected on the way there
    config = replace(config, audit_at=())  # the search has audited
    test = judged["test"] if judged is not None else None
    peeked: list[list[float]] = []
    spent = 0
    faulthandler.dump_traceback_later(keeping.epoch_timeout, exit=True)
    for last in load_trainable(study)(config, payload.context()):
        faulthandler.dump_traceback_later(keeping.epoch_timeout, exit=True)
        spent += len(job.replicates) if last.trained is None else last.trained
        if job.peek and test is not None and not last.diverged:
            labels = torch.from_numpy(np.asarray(test.y))
            peeked.append(validation_metrics(last.logits(test.x).cpu(), labels)["val_accuracy"])
    faulthandler.cancel_dump_traceback_later()
    if last.diverged and len(job.replicates) > 1:  # one seed's divergence must not cost the others theirs
        alone = [Job(**{**vars(job), "replicates": (r,)}) for r in job.replicates]
        return [row for one in alone for row in train_to_end(one, payload, parcels, judged, keeping)]
    metrics = {k: v for k, v in last.metrics.items() if k.startswith("val_") or k == "best_epoch"}
    predictions = {}
    for split, rows in (judged or {}).items():
        found, predictions[split] = families.of(study).judge(study, config, last, rows, split, payload.validation)
        metrics |= found
    if peeked:
        metrics[f"test_{study.metric}_best_epoch"] = np.max(peeked, axis=0).tolist()
    metrics["parameters"] = [float(last.parameters)] * len(job.replicates)
    metrics["diverged"] = [float(last.diverged)] * len(job.replicates)
    weights = {k: v.contiguous().cpu() for k, v in last.state().items() if not TRAINING_ONLY & set(k.split(".")[:2])}
    if keeping.students is not None and job.judge and weights and not last.diverged:
        keeping.students.write(f"models/{pack_name(job, job.replicates[0])}.safetensors", save(weights))
    seconds = (time.monotonic() - began) / len(job.replicates)
    finished: list[dict[str, Any]] = [
        {
            "replicate": replicate,
            "epochs": round(spent / len(job.replicates)),
            "seconds": seconds,
            "metrics": {k: _finite(v[i]) for k, v in metrics.items() if len(v) == len(job.replicates)},
            "predictions": {k: v[i] for k, v in predictions.items()},
        }
        for i, replicate in enumerate(job.replicates)
    ]
    if keeping.records is not None:
        for replicate, row in zip(job.replicates, finished, strict=True):
            name = f"{pack_name(job, replicate)}-{job.trial}"
            try:
                records.write_run(keeping.records, name, job.key, row)
            except OSError as error:
                logger.warning("no record of %s: %s", name, error)
    return finished


def reevaluation_jobs(study: Study, ledger: Ledger) -> list[Job]:
    """The best few trials of every sub-search, under fresh seeds, on validation."""
    top, fresh = study.budget.reevaluation
    trials, epochs = ledger.trials(), ledger.epochs()
    kept, _ = within(fair_limit(study, search_spend(study, trials, epochs)), trials, epochs)
    jobs = []
    for (arm, g), ranked in sorted(candidates(study, trials, kept, ledger.ends()).items()):
        for c in ranked[:top]:
            for replicates in _packs(study, seeds.of_reevaluation(study, arm, g)):
                jobs.append(Job("reevaluation", arm, g, TRAIN, c.trial, c.config, replicates, judge=False))
    return jobs if fresh else []


def confirmation_jobs(study: Study, ledger: Ledger) -> list[Job]:
    """Every winner under its share of the fresh seeds, every published and fixed configuration under all of them."""
    jobs, number = [], ledger.round
    for (arm, g), winner in sorted(select(study, ledger).items()):
        chosen = winner.candidate
        for fit in dict.fromkeys((study.confirm_on, TRAIN)):
            for replicates in _packs(study, seeds.of_confirmation(study, arm, g, number)):
                jobs.append(
                    Job(
                        *("tuned", arm, g, fit, chosen.trial, chosen.config, replicates),
                        judge=True,
                        epochs=winner.epochs or study.budget.max_epochs,
                    )
                )
    for arm, definition in study.arms.items():
        published = definition.published
        configs = {"as_published": published.config} if published else {}
        if definition.kind == "fixed":
            configs["fixed"] = definition.default
            if published and published.config == definition.default:
                del configs["as_published"]
        for purpose, config in configs.items():
            peek = study.peeks == "test" and _reports_best_of_epochs(published, config)
            for replicates in _packs(study, seeds.of_given(study, arm)):
                jobs.append(
                    Job(purpose, arm, ALL_SUBSEARCHES, study.confirm_on, "", config, replicates, judge=True, peek=peek)
                )
    return jobs


def _reports_best_of_epochs(published: Published | None, config: Mapping[str, Any]) -> bool:
    return published is not None and published.config == config and published.statistic == BEST_OF_EPOCHS


def _packs(study: Study, replicates: range) -> list[tuple[int, ...]]:
    """Seeds to train in one task: several where they pack, else one, so that what is finished is kept at once."""
    packs = math.ceil(len(replicates) / PACK) if families.of(study).PACKS else len(replicates)
    edges = [len(replicates) * i // packs for i in range(packs + 1)]
    return [tuple(replicates[a:b]) for a, b in itertools.pairwise(edges)]


def reevaluate(
    study: Study, ledger: Ledger, prepared: Prepared, options: Options, run: Path, progress: Progress
) -> None:
    jobs = _unfinished(reevaluation_jobs(study, ledger), ledger)
    _run(jobs, ledger, prepared, options, run, {}, progress.phase("re-evaluation", len(jobs)))


def confirm(
    study: Study,
    ledger: Ledger,
    prepared: Prepared,
    seed: int,
    options: Options,
    run: Path,
    progress: Progress,
    looked: Callable[[], None],
) -> None:
    """Open the test split, judge the teachers on it, and train and judge every configuration that goes to it.

    looked: is called once the look is in the ledger, before anything is read.
    """
    open_test = remote(prepare.open_test, options, returns=2)
    judged = {f: open_test.remote(study, seed, prepared.dataset, f, near[1:]) for f, near in prepared.by_fit.items()}
    known = ray.get(judged[study.confirm_on][1])
    open_splits(study, ledger, known)
    looked()
    jobs = _unfinished(confirmation_jobs(study, ledger), ledger)
    if any(job.peek for job in jobs) and PEEKS not in [look["purpose"] for look in ledger.looks()]:
        ledger.look("test", known["test"][0], PEEKS)
    tick = progress.phase("confirmation", len(jobs) + study.confirm_teachers)
    judge_teacher = remote(prepare.judge_teacher, options)
    teachers = {
        judge_teacher.remote(
            study, seed, prepared.dataset, study.confirm_on, k, prepared.by_fit[study.confirm_on][1:]
        ): k
        for k in range(study.confirm_teachers)
        if (k, ENSEMBLE) not in ledger.teacher_predictions(study.confirm_on, "test")
    }
    by_fit = {fit: rows for fit, (rows, _) in judged.items()}
    _run(jobs, ledger, prepared, options, run, by_fit, tick)
    for task, (predicted, facts) in _as_they_finish(teachers, tick):
        ledger.teacher_predicts(study.confirm_on, teachers[task], predicted, facts)


def open_splits(study: Study, ledger: Ledger, known: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> None:
    """Record a look at every split, {split: (labels, segments)}, unless an earlier life of this one has."""
    looks = [look for look in ledger.looks() if look["purpose"] == LOOK and look["about"] is not None]
    about = {"arms": list(study.arms), "confirm_seeds": study.budget.confirm_seeds, "round": ledger.round}
    for split, (labels, segments) in known.items():
        if (split, about) not in [(look["split"], look["about"]) for look in looks]:
            ledger.look(split, labels, LOOK, segments, seeds=_seeds_so_far(looks, about), about=about)


def _seeds_so_far(looks: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> int:
    """Confirmation seeds that a tuned arm has been judged by, over all rounds, with those of the look to come."""
    rounds = {about["round"]: about["confirm_seeds"]}
    for look in looks:
        number, seeds = look["about"]["round"], look["about"]["confirm_seeds"]
        rounds[number] = max(seeds, rounds.get(number, 0))
    return sum(rounds.values())


def _run(
    jobs: Sequence[Job],
    ledger: Ledger,
    prepared: Prepared,
    options: Options,
    run: Path,
    judged: Mapping[str, Any],
    tick: Callable[[], None],
) -> None:
    kept = None if options.storage is None else Storage(options.storage)
    keeping = Keeping(kept or Storage(run), kept, options.epoch_timeout)
    beside, by_itself = remote(train_to_end, options), remote(train_to_end, options, alone=True)

    def begin(job: Job, alone: bool = False) -> Any:
        payload, *parcels = prepared.by_fit[job.fit] if job.judge else prepared.search
        rows = judged[job.fit] if job.judge else None
        return (by_itself if alone else beside).remote(job, payload, parcels, rows, keeping)

    tasks = {begin(job): job for job in jobs}
    retried: set[int] = set()

    def once_more(task: Any, error: RayTaskError) -> Any:
        """A pack that ran out of memory beside others has a GPU to itself, once."""
        job = tasks[task]
        if id(job) in retried or not 0 < options.gpus_per_trial < 1 or not is_out_of_memory(str(error)):
            return None
        retried.add(id(job))
        task = begin(job, alone=True)
        tasks[task] = job
        return task

    for task, rows in _as_they_finish(tasks, tick, once_more):
        for row in rows:
            ledger.finish_run(**tasks[task].key, **row)


def remote(function: Callable[..., Any], options: Options, alone: bool = False, returns: int = 1) -> Any:
    """A function as a task with a trial's resources, on a cluster tried again elsewhere where a node's disk is full.

    alone: with a GPU that it shares with nobody, if with one. Ray gives each GPU task a process of its own only where
    the GPUs are asked for here, not in a later `.options`. A process that served two would leave CUDA on the first
    one's GPU.
    """
    gpus = max(1.0, options.gpus_per_trial) if alone and options.gpus_per_trial else options.gpus_per_trial
    resources = {"num_cpus": options.cpus_per_trial, "num_gpus": gpus, "max_retries": options.attempts}
    elsewhere = {"retry_exceptions": [NodeFull], "scheduling_strategy": "SPREAD"} if options.address else {}
    return ray.remote(**resources, **elsewhere, num_returns=returns)(function)


def _as_they_finish(
    tasks: Iterable[Any], tick: Callable[[], None], once_more: Callable[[Any, RayTaskError], Any] = lambda *_: None
) -> Iterator[tuple[Any, Any]]:
    """Results in the order in which they come; what still runs when the caller leaves is cancelled.

    once_more: is asked for another task in the place of one that failed.
    """
    waiting = list(tasks)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=0.25)
            for task in done:
                try:
                    result = ray.get(task)
                except RayTaskError as error:
                    other = once_more(task, error)
                    if other is None:
                        raise
                    waiting.append(other)
                    continue
                yield task, result
                tick()
    finally:
        for task in waiting:
            ray.cancel(task)


def _unfinished(jobs: Iterable[Job], ledger: Ledger) -> list[Job]:
    """The jobs without the seeds that the ledger has."""
    have = {(r.purpose, r.arm, r.subsearch, r.fit, r.trial, r.replicate) for r in ledger.runs()}
    left = []
    for job in jobs:
        key = (job.purpose, job.arm, job.subsearch, job.fit, job.trial)
        replicates = tuple(r for r in job.replicates if (*key, r) not in have)
        if replicates:
            left.append(Job(**{**vars(job), "replicates": replicates}))
    return left


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
