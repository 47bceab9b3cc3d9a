"""What outlives the driver's machine: snapshots of its ledger, and what workers have finished since the newest one.

    ledger.sqlite, study.yaml, driver.json      written by the driver, every SNAPSHOT_S while there is news
    records/trials/<trial>.json                 written by a trial's worker, with each checkpoint and at its end
    records/runs/<purpose>-<arm>-...npz         written by a worker for each confirmed or re-evaluated seed

A sweep whose driver is lost is resumed from these: the snapshot, with the records that it does not have.
"""

import contextlib
import io
import json
import os
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.ledger import FILE, Ledger, TrialRecord
from search.storage import Storage
from spaces import BadInput

RECORDS = "records"
TRIALS, RUNS = f"{RECORDS}/trials", f"{RECORDS}/runs"
STUDY, DRIVER, PROBE = "study.yaml", "driver.json", "probe"
SNAPSHOT_S = 20.0
ALIVE_S = 120.0  # a driver that has not signed for so long is taken to be gone


@dataclass(frozen=True)
class TrialWritten:
    """A trial as its worker knows it. rows: its epochs. ended: finished | stopped | diverged, or nothing yet."""

    asked: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    ended: str = ""
    message: str = ""


def new_place(storage: str, name: str) -> Storage:
    """The place of a new sweep in a storage. Raises BadInput where another has it, or it cannot be written."""
    place = Storage(f"{str(storage).rstrip('/')}/{name}")
    try:
        taken = place.exists(FILE)
        place.write(PROBE, b".", patience=10.0)
        place.remove(PROBE)
    except OSError as error:
        raise BadInput(f"--storage {storage} cannot be written from here: {error}") from None
    if taken:
        raise BadInput(
            f"{place.uri} holds a sweep already: resume it with `distune resume {place.uri}`, or give another --out"
        )
    return place


def write_trial(storage: Storage, written: TrialWritten) -> None:
    storage.write(f"{TRIALS}/{written.asked['trial']}.json", json.dumps(asdict(written)).encode())


def rows_until(storage: Storage, trial: str, epoch: int) -> list[dict[str, Any]]:
    """What an earlier attempt at the trial has recorded up to the epoch that this one goes on from."""
    if not epoch:
        return []
    try:
        return [row for row in json.loads(storage.read(f"{TRIALS}/{trial}.json"))["rows"] if row["epoch"] <= epoch]
    except (OSError, ValueError):
        return []


def write_run(storage: Storage, name: str, key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """One seed of `confirm.train_to_end`, as the driver enters it. name: of the file, different for each seed."""
    about = {**key, **{k: v for k, v in row.items() if k != "predictions"}}
    file = io.BytesIO()
    np.savez_compressed(file, about=json.dumps(about), **row["predictions"])
    storage.write(f"{RUNS}/{name}.npz", file.getvalue())


def merge(storage: Storage, ledger: Ledger) -> tuple[int, int]:
    """Enter what the ledger does not have yet; the new trials or parts of trials, and the new seeds."""
    known, ends = {t.trial: t for t in ledger.trials()}, ledger.ends()
    trials = runs = 0
    for name in storage.names(TRIALS):
        if name.removesuffix(".json") not in ends:
            trials += _merge_trial(TrialWritten(**json.loads(storage.read(f"{TRIALS}/{name}"))), known, ledger)
    have = {_run_key(asdict(r)) for r in ledger.runs()}
    for name in storage.names(RUNS):
        with np.load(io.BytesIO(storage.read(f"{RUNS}/{name}")), allow_pickle=False) as file:
            row = json.loads(str(file["about"]))
            if _run_key(row) not in have:
                ledger.finish_run(**row, predictions={k: file[k] for k in file.files if k != "about"})
                runs += 1
    return trials, runs


def _run_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("purpose", "arm", "subsearch", "fit", "replicate", "trial"))


def _merge_trial(written: TrialWritten, known: Mapping[str, TrialRecord], ledger: Ledger) -> bool:
    asked = TrialRecord(**written.asked)
    if asked.trial not in known:
        ledger.ask(asked)
    elif known[asked.trial].config != asked.config:
        return False  # of another life of the sweep, which did not know of this one
    new = ledger.report(asked.trial, written.rows) > 0
    if written.ended:
        new |= ledger.end(asked.trial, written.ended, written.rows[-1]["epoch"], written.message)
    return new


@contextlib.contextmanager
def snapshots(run: Path, storage: Storage, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Keep the storage's copy of the ledger up to date, and what comes back writes one at once.

    A storage that does not answer stops nothing: that is said once, and it is tried again.
    """
    writer = _Snapshots(run, storage, say)
    writer.write()
    thread = threading.Thread(target=writer.go_on, daemon=True)
    thread.start()
    try:
        yield writer.write
    finally:
        writer.stopped.set()
        thread.join()
        with contextlib.suppress(OSError):
            writer.write()
            storage.remove(DRIVER)


class _Snapshots:
    def __init__(self, run: Path, storage: Storage, say: Callable[[str], None]) -> None:
        self._run, self._storage, self._say = run, storage, say
        self._written: bytes | None = None
        self._complained = False
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def go_on(self) -> None:
        wait = SNAPSHOT_S
        while not self.stopped.wait(wait):
            began = time.monotonic()
            try:
                self.write()
                self._complained = False
            except (OSError, sqlite3.Error) as error:
                if not self._complained:
                    self._complained = True
                    self._say(f"the storage does not take the ledger's snapshot, the sweep goes on: {error}")
            wait = max(SNAPSHOT_S, 10 * (time.monotonic() - began))

    def write(self) -> None:
        with self._lock:
            content = copied(self._run / FILE)
            if content != self._written:
                with contextlib.suppress(FileNotFoundError):
                    self._storage.write(STUDY, (self._run / STUDY).read_bytes())
                self._storage.write(FILE, content)
                self._written = content
            about = {"host": socket.gethostname(), "process": os.getpid(), "folder": str(self._run), "at": time.time()}
            self._storage.write(DRIVER, json.dumps(about).encode())


def copied(ledger: Path) -> bytes:
    """The whole ledger as one file, as it is at this moment, beside whoever writes it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / FILE
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
            db.execute("VACUUM INTO ?", (str(copy),))
        return copy.read_bytes()


def fetch(storage: Storage, run: Path) -> tuple[int, int]:
    """Make the run folder of a sweep whose driver is lost; how many trials and seeds came from records.

    run: a folder that does not exist yet. Raises BadInput where the storage holds no sweep, or its driver is alive.
    """
    _refuse_alive(storage)
    try:
        snapshot = storage.read(FILE)
    except FileNotFoundError:
        raise BadInput(
            f"{storage.uri} holds no sweep: there is no {FILE} in it. Give what --storage was, with the sweep's name "
            "at its end"
        ) from None
    except OSError as error:
        raise BadInput(f"{storage.uri} cannot be read: {error}") from None
    run.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{run.name}", dir=run.parent) as folder:
        new = Path(folder) / run.name
        new.mkdir()
        (new / FILE).write_bytes(snapshot)
        with contextlib.suppress(FileNotFoundError):
            (new / STUDY).write_bytes(storage.read(STUDY))
        with Ledger.open(new, check=True) as ledger:
            merged = merge(storage, ledger)
        fetch_students(storage, new)
        new.rename(run)
    return merged


def _refuse_alive(storage: Storage) -> None:
    try:
        driver = json.loads(storage.read(DRIVER))
    except (FileNotFoundError, ValueError):
        return
    except OSError as error:
        raise BadInput(f"{storage.uri} cannot be read: {error}") from None
    age = time.time() - driver["at"]
    if age < ALIVE_S:
        raise BadInput(
            f"the driver of {storage.uri} signed {age:.0f} s ago (process {driver['process']} on {driver['host']}, in "
            f"{driver['folder']}): stop it first, or wait until {ALIVE_S:g} s have passed since it died"
        )


def fetch_students(storage: Storage, run: Path) -> None:
    """The confirmed students that are not in the run folder yet."""
    place = run / "models"
    for name in storage.names("models"):
        if not (place / name).exists():
            place.mkdir(exist_ok=True)
            new = place / f".{name}"
            new.write_bytes(storage.read(f"models/{name}"))
            new.rename(place / name)
