"""A sweep from beginning to end: prepare, search, re-evaluate, confirm. Resuming takes the same path."""

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search import confirm, prepare, records, revisions, tuning
from search.cluster.connection import Interrupted, connected, handling
from search.cluster.placement import Code, Parcel
from search.deadline import Deadline
from search.ledger import FILE, OUT_OF_TIME, Ledger, Revision, unusable
from search.lock import driving
from search.options import Options
from search.payload import TRAIN, refuse_unusable, teacher_sets
from search.prepare import Prepared, TeacherBuilt
from search.progress import Progress
from search.selection import search_spend
from search.shortage import what_is_full
from search.state import SearchState
from search.storage import Storage
from spaces import BadInput, Extension, Study, extended, load_study, to_yaml
from trainables.models.networks import Unusable

__all__ = ["Interrupted", "Options", "SweepFailed", "default_run_folder", "extend", "resume", "start"]


class SweepFailed(RuntimeError):
    """The sweep cannot go on; what it has done is in its ledger."""


def start(study: Study, run: Path, seed: int, options: Options, progress: Progress) -> None:
    """Run a new sweep into the folder `run`, which must not exist. Raises BadInput before anything is written."""
    run = run.absolute()  # Ray and its workers may stand elsewhere
    _refuse_existing(run)
    if options.storage is not None:
        options = replace(options, storage=records.new_place(options.storage, run.name).uri)
    refuse_unusable(study, progress.say)
    with connected(options, progress.say) as concurrent, _says_why(run), _new(run), driving(run):
        revisions.write_study(run, to_yaml(study))
        with Ledger.create(run, {"study": study.name, "seed": seed, "options": asdict(options)}) as ledger:
            revisions.begin(ledger, study)
            _phases(study, run, ledger, seed, options, concurrent, progress)


def resume(run: Path, progress: Progress, force: bool = False, given: Mapping[str, Any] | None = None) -> None:
    """Go on with an unfinished sweep from its ledger; a finished one is left as it is.

    force: also where the code that trains has changed since it began. given: options that are other than they were,
    such as the address of another cluster. Raises BadInput where the code has changed and for a run that another
    process works on, NotALedger for one whose ledger cannot be used.
    """
    run = run.absolute()
    with _held(run) as ledger:
        if ledger.finished:
            progress.say(f"{run} is finished: nothing to resume (`distune extend` gives it more to do)")
            return
        _go_on(revisions.current(ledger, run, force), run, ledger, progress, given=given)


def extend(
    run: Path,
    extension: Extension,
    progress: Progress,
    force: bool = False,
    given: Mapping[str, Any] | None = None,
) -> None:
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
        _go_on(study, run, ledger, progress, revision, given)


@contextlib.contextmanager
def _held(run: Path) -> Iterator[Ledger]:
    """The ledger of a run that nobody else works on."""
    Ledger.open(run, check=True).close()  # before anything is written into a folder that may be no run
    with _says_why(run), driving(run), Ledger.open(run) as ledger:
        yield ledger


def _go_on(
    study: Study,
    run: Path,
    ledger: Ledger,
    progress: Progress,
    extension: Revision | None = None,
    given: Mapping[str, Any] | None = None,
) -> None:
    """Take the sweep up where its ledger stands. extension: what it is from now on, entered once Ray is there."""
    meta = ledger.meta
    options = Options(**{**meta["options"], "time_budget": None, **(given or {})})
    with connected(options, progress.say) as concurrent:
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
    study: Study,
    run: Path,
    ledger: Ledger,
    seed: int,
    options: Options,
    concurrent: Callable[[], int],
    progress: Progress,
) -> None:
    with _snapshots(run, options, progress) as snapshot:
        prepared = _prepare(study, ledger, seed, options, progress)
        with _phase(ledger, "search"):
            _search(study, run, ledger, seed, options, concurrent, prepared, progress)
        with _phase(ledger, "re-evaluation"):
            confirm.reevaluate(study, ledger, prepared, options, run, progress)
        with _phase(ledger, "confirmation"):
            confirm.confirm(study, ledger, prepared, seed, options, run, progress, snapshot)
            if options.storage is not None:
                records.fetch_students(Storage(options.storage), run)


@contextlib.contextmanager
def _snapshots(run: Path, options: Options, progress: Progress) -> Iterator[Callable[[], None]]:
    """Copies of the ledger in the storage, if there is one beside the run folder."""
    if options.storage is None:
        yield lambda: None
    else:
        with records.snapshots(run, Storage(options.storage), progress.say) as snapshot:
            yield snapshot


def _search(
    study: Study,
    run: Path,
    ledger: Ledger,
    seed: int,
    options: Options,
    concurrent: Callable[[], int],
    prepared: Prepared,
    progress: Progress,
) -> None:
    """Spend every arm's budget, or as much of it as there is time for. Raises SweepFailed and Interrupted."""
    if ledger.out_of_time:
        return
    state = SearchState(study, ledger, seed, options.attempts)
    deadline = Deadline(study, options.time_budget)
    with _stops_on_signal(state, tuning.place_of(run, options), progress):
        tuning.search(state, prepared.search, options, concurrent, run, progress, deadline)
    if state.failure:
        raise SweepFailed(state.failure)
    if deadline.passed:
        ledger.clock("search", OUT_OF_TIME)
        ledger.note(deadline.note(state))
        progress.say(deadline.note(state))
        return
    if state.stopping:
        raise Interrupted
    spent = search_spend(study, ledger.trials(), ledger.epochs())
    short = [a for a, s in spent.items() if s < study.budget.search_seed_epochs]
    if short:
        raise SweepFailed(f"the search ended before {', '.join(short)} had spent their budget")


def _prepare(study: Study, ledger: Ledger, seed: int, options: Options, progress: Progress) -> Prepared:
    """Data and teachers into the cluster, and every arm's first step audited."""
    label_rows = confirm.remote(prepare.label_rows, options, alone=True, returns=3)
    with _phase(ledger, "preparation"):
        code = None if options.address is None else Code.of(study)
        dataset = prepare.load_dataset.options(**_beside_the_driver(options)).remote(study)
        wanted = teacher_sets(study)
        tick = progress.phase("data and teachers", len(wanted))
        outputs: dict[tuple[str, int], Any] = {}
        files: dict[tuple[str, int], Any] = {}
        asked = {}
        for fit, k in wanted:
            task = label_rows.remote(study, seed, dataset, fit, k, code)
            outputs[fit, k], record, files[fit, k] = task
            asked[record] = (fit, k)
        parcels = {}
        for record, built in confirm._as_they_finish(asked, tick):
            assert isinstance(built, TeacherBuilt)
            about = asdict(built)
            for note in about.pop("notes"):
                ledger.note(note)
            parcels[asked[record]] = Parcel(about.pop("folders"), files[asked[record]])
            _refuse_other_rows(ledger, built)
            ledger.teacher(**about)
        confirm_sets = [(study.confirm_on, k) for k in range(study.confirm_teachers)]

        def shared(fit: str, sets: Sequence[tuple[str, int]]) -> list[Any]:
            payload = prepare.make_payload.remote(study, seed, dataset, fit, *[outputs[which] for which in sets])
            return [payload, *([] if code is None else [code]), *[parcels[which] for which in sets]]

        searched, confirmed = shared(TRAIN, [(TRAIN, 0)]), shared(study.confirm_on, confirm_sets)
        ray.get(confirm.remote(prepare.audit_first_step, options).remote(searched[0], searched[1:]))
    return Prepared(dataset, searched, {TRAIN: searched} | {study.confirm_on: confirmed})


def _beside_the_driver(options: Options) -> dict[str, Any]:
    """On a cluster, where a task must run that reads the user's files: they lie where the sweep was begun."""
    if options.address is None:
        return {}
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


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
def _stops_on_signal(state: SearchState, place: Storage, progress: Progress) -> Iterator[None]:
    """The first SIGINT or SIGTERM turns every trial's next decision into a stop; the second leaves at once."""

    def stop(number: int, frame: object) -> None:
        if state.stopping:
            raise KeyboardInterrupt
        tuning.stop(state, place)
        progress.say("stopping at the next report of each running trial; press Ctrl-C again to leave at once")

    with handling(stop):
        yield


def default_run_folder(study: str) -> Path:
    return Path("runs") / f"{study}-{time.strftime('%Y%m%d-%H%M%S')}"
