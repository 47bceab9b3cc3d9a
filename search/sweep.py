"""A sweep from beginning to end: prepare, search, re-evaluate, confirm. Resuming takes the same path."""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from search import confirm, prepare, tuning
from search.ledger import Ledger
from search.payload import TRAIN, refuse_unusable, teacher_sets
from search.prepare import Prepared, TeacherBuilt
from search.progress import Progress
from search.selection import search_spend
from search.state import SearchState
from spaces import BadInput, Study, load_study, to_yaml

STUDY_FILE = "study.yaml"


class SweepFailed(RuntimeError):
    """The sweep cannot go on; what it has done is in its ledger."""


class Interrupted(RuntimeError):
    """The sweep was stopped by a signal and can be resumed."""


@dataclass(frozen=True)
class Options:
    """How a sweep runs, as opposed to what it asks: none of it changes a result.

    address: of a Ray cluster, or None for this machine. max_concurrent: trials at once, or None for as many as fit.
    """

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None
    address: str | None = None
    verbose: bool = False


def start(study: Study, run: Path, seed: int, options: Options, progress: Progress) -> None:
    """Run a new sweep into the folder `run`, which must not exist. Raises BadInput before anything is written."""
    run = run.absolute()  # Ray and its workers may stand elsewhere
    _refuse_existing(run)
    refuse_unusable(study, progress.say)
    with _ray(options) as concurrent:
        run.mkdir(parents=True)
        (run / STUDY_FILE).write_text(to_yaml(study), encoding="utf-8")
        with Ledger.create(run, {"study": study.name, "seed": seed, "options": asdict(options)}) as ledger:
            _run(study, run, ledger, seed, options, concurrent, progress)


def resume(run: Path, progress: Progress, options: Options | None = None) -> None:
    """Go on with an unfinished sweep from its ledger; a finished one is left as it is."""
    run = run.absolute()
    with Ledger.open(run) as ledger:
        meta = ledger.meta
        study = load_study(run / STUDY_FILE)
        if is_finished(ledger):
            progress.say(f"{run} is finished: nothing to resume")
            return
        options = options or Options(**meta["options"])
        with _ray(options) as concurrent:
            ledger.clock("sweep", "resumed")
            _run(study, run, ledger, meta["seed"], options, concurrent, progress)


def _refuse_existing(run: Path) -> None:
    if run.exists():
        what = "resume it with `distune resume`, or give another --out" if run.is_dir() else "give another --out"
        raise BadInput(f"{run} exists already: {what}")


def is_finished(ledger: Ledger) -> bool:
    return ("confirmation", "end") in [(p, e) for p, e, _ in ledger.phases()]


def _run(
    study: Study, run: Path, ledger: Ledger, seed: int, options: Options, concurrent: int, progress: Progress
) -> None:
    resources = {"num_cpus": options.cpus_per_trial, "num_gpus": options.gpus_per_trial}
    prepared = _prepare(study, ledger, seed, resources, progress)
    with _phase(ledger, "search"):
        state = SearchState(study, ledger, seed)
        with _stops_on_signal(state, progress):
            tune_resources = {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial}
            tuning.search(state, prepared.by_fit[TRAIN], tune_resources, concurrent, run, progress)
        if state.failure:
            raise SweepFailed(state.failure)
        if state.stopping:
            raise Interrupted
        short = [
            a
            for a, s in search_spend(study, ledger.trials(), ledger.epochs()).items()
            if s < study.budget.search_seed_epochs
        ]
        if short:
            raise SweepFailed(f"the search ended before {', '.join(short)} had spent their budget")
    with _raises_on_signal():
        with _phase(ledger, "re-evaluation"):
            confirm.reevaluate(study, ledger, prepared, resources, progress)
        with _phase(ledger, "confirmation"):
            confirm.confirm(study, ledger, prepared, seed, resources, run, progress)


def _prepare(study: Study, ledger: Ledger, seed: int, resources: dict[str, float], progress: Progress) -> Prepared:
    """Data and teachers into the cluster, and every arm's first step audited."""
    with _raises_on_signal(), _phase(ledger, "preparation"):
        dataset = prepare.load_dataset.remote(study)
        wanted = teacher_sets(study)
        tick = progress.phase("data and teachers", len(wanted))
        outputs: dict[tuple[str, int], Any] = {}
        records = {}
        for fit, k in wanted:
            outputs[fit, k], record = prepare.label_rows.options(**resources).remote(study, seed, dataset, fit, k)
            records[record] = (fit, k)
        for _, built in confirm._as_they_finish(records, tick):
            assert isinstance(built, TeacherBuilt)
            about = asdict(built)
            for note in about.pop("notes"):
                ledger.note(note)
            ledger.teacher(**about)
        confirm_sets = [outputs[study.confirm_on, k] for k in range(study.confirm_teachers)]
        by_fit = {
            study.confirm_on: prepare.make_payload.remote(study, seed, dataset, study.confirm_on, *confirm_sets),
            TRAIN: prepare.make_payload.remote(study, seed, dataset, TRAIN, outputs[TRAIN, 0]),
        }
        ray.get(prepare.audit_first_step.remote(by_fit[TRAIN]))
    return Prepared(dataset, by_fit)


@contextlib.contextmanager
def _phase(ledger: Ledger, name: str) -> Iterator[None]:
    ledger.clock(name, "begin")
    yield
    ledger.clock(name, "end")


@contextlib.contextmanager
def _ray(options: Options) -> Iterator[int]:
    """Ray, started here or joined; yields how many trials run at once. Raises BadInput for what no node can give."""
    _refuse_unreachable(options.address)
    os.environ.update(tuning.ENVIRONMENT)
    level = logging.INFO if options.verbose else logging.ERROR
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(level)
    try:
        ray.init(
            address=options.address or "local",
            include_dashboard=False,
            log_to_driver=options.verbose,
            logging_level=level,
            runtime_env={"env_vars": tuning.WORKER_ENVIRONMENT},
        )
    except ConnectionError as error:
        raise BadInput(f"--address {options.address}: no Ray cluster answers there ({error})") from None
    try:
        have = ray.cluster_resources()
        for resource, wanted in (("CPU", options.cpus_per_trial), ("GPU", options.gpus_per_trial)):
            if wanted > have.get(resource, 0):
                raise BadInput(f"a trial asks for {wanted:g} {resource}, and Ray has {have.get(resource, 0):g}")
        fits = have["CPU"] / options.cpus_per_trial if options.cpus_per_trial else float("inf")
        if options.gpus_per_trial:
            fits = min(fits, have["GPU"] / options.gpus_per_trial)
        yield min(options.max_concurrent or sys.maxsize, max(1, int(fits)) if fits != float("inf") else 1)
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str | None) -> None:
    """Raise BadInput where nothing listens at the address: Ray would try for minutes."""
    if address is None or address in ("auto", "local"):
        return
    if address.startswith("ray://"):
        raise BadInput(
            f"--address {address}: the sweep's driver runs in the cluster; "
            f"use `ray job submit --address http://HEAD:8265 -- distune sweep ... --address auto`"
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise BadInput(f"--address {address}: no Ray cluster answers there ({error}); give HOST:PORT or auto") from None


@contextlib.contextmanager
def _stops_on_signal(state: SearchState, progress: Progress) -> Iterator[None]:
    """The first SIGINT or SIGTERM turns every trial's next decision into a stop; the second leaves at once."""

    def stop(number: int, frame: object) -> None:
        if state.stopping:
            raise KeyboardInterrupt
        state.stopping = True
        progress.say("stopping at the next report of each running trial; press Ctrl-C again to leave at once")

    with _handling(stop):
        yield


@contextlib.contextmanager
def _raises_on_signal() -> Iterator[None]:
    """Between trials there is nothing to wait for: finished seeds are in the ledger, so leave at once."""

    def leave(number: int, frame: object) -> None:
        raise Interrupted

    with _handling(leave):
        yield


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, old in before.items():
            signal.signal(s, old)


def default_run_folder(study: str) -> Path:
    return Path("runs") / f"{study}-{time.strftime('%Y%m%d-%H%M%S')}"
