"""A sweep from beginning to end: prepare, search, re-evaluate, confirm. Resuming takes the same path."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from search import confirm, prepare, revisions, tuning
from search.disk import what_is_full
from search.ledger import FILE, Ledger, Revision, unusable
from search.lock import driving
from search.payload import TRAIN, refuse_unusable, teacher_sets
from search.prepare import Prepared, TeacherBuilt
from search.progress import Progress
from search.selection import search_spend
from search.state import SearchState
from spaces import BadInput, Extension, Study, extended, load_study, to_yaml
from trainables.models.networks import Unusable


class SweepFailed(RuntimeError):
    """The sweep cannot go on; what it has done is in its ledger."""


class Interrupted(RuntimeError):
    """The sweep was stopped by a signal and can be resumed."""


@dataclass(frozen=True)
class Options:
    """How a sweep runs, as opposed to what it asks: none of it changes a result.

    address: of a Ray cluster, or None for this machine. max_concurrent: trials at once, or None for as many as fit.
    epoch_timeout: seconds after which an epoch that has not ended counts as hanging: its worker is killed.
    """

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None
    address: str | None = None
    verbose: bool = False
    epoch_timeout: float = 3600.0


def start(study: Study, run: Path, seed: int, options: Options, progress: Progress) -> None:
    """Run a new sweep into the folder `run`, which must not exist. Raises BadInput before anything is written."""
    run = run.absolute()  # Ray and its workers may stand elsewhere
    _refuse_existing(run)
    refuse_unusable(study, progress.say)
    with _ray(options) as concurrent, _says_why(run), _new(run), driving(run):
        revisions.write_study(run, to_yaml(study))
        with Ledger.create(run, {"study": study.name, "seed": seed, "options": asdict(options)}) as ledger:
            revisions.begin(ledger, study)
            _phases(study, run, ledger, seed, options, concurrent, progress)


def resume(run: Path, progress: Progress, force: bool = False) -> None:
    """Go on with an unfinished sweep from its ledger; a finished one is left as it is.

    force: also where the code that trains has changed since it began. Raises BadInput where it has and for a run that
    another process works on, NotALedger for one whose ledger cannot be used.
    """
    run = run.absolute()
    with _held(run) as ledger:
        if ledger.finished:
            progress.say(f"{run} is finished: nothing to resume (`distune extend` gives it more to do)")
            return
        _go_on(revisions.current(ledger, run, force), run, ledger, progress)


def extend(run: Path, extension: Extension, progress: Progress, force: bool = False) -> None:
    """Give a sweep more seeds, budget or arms, and go on with it; what is finished is not done again.

    Raises as `resume` does, and BadInput for an extension that takes something away or adds nothing.
    """
    run = run.absolute()
    with _held(run) as ledger:
        if not ledger.revisions():
            raise BadInput(f"{run} was begun by an earlier version, which did not record enough to extend it")
        if force:  # it writes, so what cannot be is refused before
            extended(load_study(run / revisions.STUDY_FILE), extension)
        before = revisions.current(ledger, run, force)
        study, why = extended(before, extension)
        refuse_unusable(study, progress.say)
        looked = any(look["purpose"] == confirm.LOOK for look in ledger.looks())
        more_budget = study.budget.seed_epochs_per_arm > before.budget.seed_epochs_per_arm  # may choose other winners
        revision = Revision(to_yaml(study), revisions.code_of(study), why, ledger.round + (more_budget and looked))
        _go_on(study, run, ledger, progress, revision)


@contextlib.contextmanager
def _held(run: Path) -> Iterator[Ledger]:
    """The ledger of a run that nobody else works on."""
    Ledger.open(run, check=True).close()  # before anything is written into a folder that may be no run
    with _says_why(run), driving(run), Ledger.open(run) as ledger:
        yield ledger


def _go_on(study: Study, run: Path, ledger: Ledger, progress: Progress, extension: Revision | None = None) -> None:
    """Take the sweep up where its ledger stands. extension: what it is from now on, entered once Ray is there."""
    meta = ledger.meta
    options = Options(**meta["options"])
    with _ray(options) as concurrent:
        if extension is not None:
            ledger.revise(extension)
            revisions.write_study(run, extension.study)
            progress.say(f"{run}: {extension.why}")
        ledger.clock("sweep", "resumed")
        _phases(study, run, ledger, meta["seed"], options, concurrent, progress)


def _refuse_existing(run: Path) -> None:
    if run.exists():
        what = "resume it with `distune resume`, or give another --out" if run.is_dir() else "give another --out"
        raise BadInput(f"{run} exists already: {what}")


@contextlib.contextmanager
def _new(run: Path) -> Iterator[None]:
    """A new folder, gone again if no ledger comes into it: it could be neither resumed nor begun again."""
    run.mkdir(parents=True)
    try:
        yield
    finally:
        if not (run / FILE).exists():
            shutil.rmtree(run, ignore_errors=True)


def _phases(
    study: Study, run: Path, ledger: Ledger, seed: int, options: Options, concurrent: int, progress: Progress
) -> None:
    resources = {"num_cpus": options.cpus_per_trial, "num_gpus": options.gpus_per_trial}
    prepared = _prepare(study, ledger, seed, resources, progress)
    with _phase(ledger, "search"):
        state = SearchState(study, ledger, seed)
        with _stops_on_signal(state, tuning.stopping_marker(run), progress):
            tune_resources = {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial}
            payload, limit = prepared.search, options.epoch_timeout
            tuning.search(state, payload, tune_resources, concurrent, run, limit, progress)
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
    with _phase(ledger, "re-evaluation"):
        confirm.reevaluate(study, ledger, prepared, resources, options.epoch_timeout, progress)
    with _phase(ledger, "confirmation"):
        confirm.confirm(study, ledger, prepared, seed, resources, options.epoch_timeout, run, progress)


def _prepare(study: Study, ledger: Ledger, seed: int, resources: dict[str, float], progress: Progress) -> Prepared:
    """Data and teachers into the cluster, and every arm's first step audited."""
    with _phase(ledger, "preparation"):
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
            _refuse_other_rows(ledger, built)
            ledger.teacher(**about)
        confirm_sets = [outputs[study.confirm_on, k] for k in range(study.confirm_teachers)]
        searched = prepare.make_payload.remote(study, seed, dataset, TRAIN, outputs[TRAIN, 0])
        confirmed = prepare.make_payload.remote(study, seed, dataset, study.confirm_on, *confirm_sets)
        ray.get(prepare.audit_first_step.remote(searched))
    return Prepared(dataset, searched, {TRAIN: searched} | {study.confirm_on: confirmed})


def _refuse_other_rows(ledger: Ledger, built: TeacherBuilt) -> None:
    """A teacher's address says what it is and which rows it was fitted on: it may not change under a sweep."""
    for known in ledger.teachers():
        if (known["fit"], known["teacher_set"]) == (built.fit, built.teacher_set) and known[
            "artefact"
        ] != built.artefact:
            raise SweepFailed(
                f"the data or the teacher is not what the sweep began with: the teacher on {built.fit} was "
                f"{known['artefact']} and is {built.artefact} now. Put back the data that it began with, or start a "
                "new sweep"
            )


@contextlib.contextmanager
def _says_why(run: Path) -> Iterator[None]:
    """What is wrong with the machine, and not with the sweep, ends it with one sentence; it can be resumed."""
    try:
        yield
    except sqlite3.Error as error:
        raise SweepFailed(unusable(run / FILE, error)) from error
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise SweepFailed(
            "a worker died every time that the same task was tried: it ran out of memory, or an epoch took longer than "
            "--epoch-timeout allows"
        ) from error
    except Unusable as error:  # a teacher's file that was changed or taken away under the sweep
        raise SweepFailed(str(getattr(error, "cause", error))) from error
    except Exception as error:
        full = what_is_full(error, run)
        if full is None:
            raise
        raise SweepFailed(full) from error


@contextlib.contextmanager
def _phase(ledger: Ledger, name: str) -> Iterator[None]:
    ledger.clock(name, "begin")
    yield
    ledger.clock(name, "end")


@contextlib.contextmanager
def _ray(options: Options) -> Iterator[int]:
    """Ray, started here or joined, while a signal raises Interrupted; yields how many trials run at once.

    Raises BadInput for what no node can give.
    """
    _refuse_unreachable(options.address)
    os.environ.update(tuning.ENVIRONMENT)
    level = logging.INFO if options.verbose else logging.ERROR
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(level)
    if not options.verbose:  # a snapshot that a full disk prevents is nobody's loss
        logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
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
    except SystemExit:  # Ray's own answer to SIGTERM
        raise Interrupted from None
    try:
        have = ray.cluster_resources()
        for resource, wanted in (("CPU", options.cpus_per_trial), ("GPU", options.gpus_per_trial)):
            if wanted > have.get(resource, 0):
                raise BadInput(f"a trial asks for {wanted:g} {resource}, and Ray has {have.get(resource, 0):g}")
        fits = have["CPU"] / options.cpus_per_trial if options.cpus_per_trial else float("inf")
        if options.gpus_per_trial:
            fits = min(fits, have["GPU"] / options.gpus_per_trial)
        with _raises_on_signal():
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
def _stops_on_signal(state: SearchState, marker: Path, progress: Progress) -> Iterator[None]:
    """The first SIGINT or SIGTERM turns every trial's next decision into a stop; the second leaves at once.

    marker: a file that tells the workers why they are stopped: what they have trained is then worth a checkpoint.
    """

    def stop(number: int, frame: object) -> None:
        if state.stopping:
            raise KeyboardInterrupt
        state.stopping = True
        with contextlib.suppress(OSError):
            marker.touch()
        progress.say("stopping at the next report of each running trial; press Ctrl-C again to leave at once")

    with _handling(stop):
        yield


@contextlib.contextmanager
def _raises_on_signal() -> Iterator[None]:
    """Where no trial trains there is nothing to wait for: finished seeds are in the ledger, so leave at once."""

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
