"""From a trainable, which is a generator, to a Ray Tune function trainable.

Three clocks. Decisions are made at rungs only. A report is made at rungs, at the end, and when 15 s have passed.
A checkpoint is written when more than 30 s of training are unsaved, and on a stop that comes in between.
"""

import contextlib
import faulthandler
import json
import logging
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from safetensors import SafetensorError
from safetensors.torch import load, save

from search import records
from search.cluster import placement
from search.ledger import DIVERGED
from search.payload import Payload, load_trainable, threads, trial_config
from search.storage import Storage
from trainables.context import EpochResult

logger = logging.getLogger(__name__)
REPORT_EVERY_S = 15.0
SAVE_AFTER_S = 30.0
STOPPING = "stopping"  # a file beside the checkpoints, there while the sweep is being stopped
HUNG = "hung.txt"  # where a trial stood that took too long over an epoch
CHECKPOINTS = "checkpoints"  # the folder with one for each trial
UNSAVED_S = 1.0  # on a stop, less training than this is cheaper to repeat than to store


def run_trial(
    config: dict[str, Any], shared: list[Any], place: Storage, keep_records: bool, epoch_timeout: float
) -> None:
    """Ray Tune's function trainable: run the generator, report, and leave when told to.

    shared: a reference to the payload, and the parcels that this node must have. place: of the checkpoints.
    keep_records: there, too, of what this trial has reported.
    """
    import ray
    import torch

    torch.set_num_threads(threads())
    placement.place(shared[1:])
    payload: Payload = ray.get(shared[0])
    asked = config["asked"]
    study, checkpoints = payload.study, Checkpoints(place, asked["trial"])
    saved_epoch, saved = checkpoints.newest(config["resume_from"])
    trial = trial_config(study, asked["arm"], asked["config"], config["replicates"])
    results = load_trainable(study)(trial, payload.context(saved_epoch, saved))
    rows: list[dict[str, Any]] = []
    told = records.rows_until(place, asked["trial"], saved_epoch) if keep_records else []
    began = reported = stored = time.monotonic()

    def record(ended: str = "", message: str = "") -> None:
        if keep_records:
            with _missed(f"no record of {asked['trial']}"):
                records.write_trial(place, records.TrialWritten(asked, [*told, *rows], ended, message))

    def save_now(result: EpochResult) -> None:
        record()  # first: a checkpoint of a trial of which nobody knows would be another's in the end
        checkpoints.save(result)

    with _closing(results), Watchdog(epoch_timeout, checkpoints.noted) as watchdog:
        for result in results:
            watchdog.rest()
            now = time.monotonic()
            rows.append(as_row(result, study.val_metric, len(trial.replicates), now - began))
            began = now
            if result.epoch >= trial.epochs:
                watchdog.watch()
                deque(results, maxlen=0)  # let it end by itself: its last report is answered with a stop
                watchdog.rest()
            decides = result.diverged or result.epoch in study.budget.rungs
            if not decides and now - reported < REPORT_EVERY_S:
                watchdog.watch()
                continue
            if now - stored > SAVE_AFTER_S and not result.diverged:
                save_now(result)
                stored = now
            why = (result.reason or "yes") if result.diverged else ""
            if result.diverged or result.epoch >= trial.epochs:
                record(
                    "diverged" if result.diverged else "finished",
                    result.reason or (DIVERGED if result.diverged else ""),
                )
            try:
                tune.report({"rows": json.dumps(rows), "diverged": why, **({} if told else _memory())})
            except SystemExit:
                if not result.diverged and result.epoch < trial.epochs:
                    if decides and not _is_stopping(place):
                        record("stopped")
                    elif time.monotonic() - stored > UNSAVED_S:
                        save_now(result)
                raise
            told, rows, reported, began = [*told, *rows], [], time.monotonic(), time.monotonic()
            watchdog.watch()


def _is_stopping(place: Storage) -> bool:
    """Whether the sweep is being stopped, as opposed to this trial; no where that cannot be known."""
    try:
        return place.exists(f"{CHECKPOINTS}/{STOPPING}")
    except OSError:
        return False


def _memory() -> dict[str, float]:
    """Bytes of a GPU that this process has taken at most, and what that GPU has; nothing without one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "gpu_peak": float(torch.cuda.max_memory_reserved()),
        "gpu_total": float(torch.cuda.get_device_properties(0).total_memory),
    }


@contextlib.contextmanager
def _missed(what: str) -> Iterator[None]:
    """Storage that cannot be written costs what was to be kept there, not the trial."""
    try:
        yield
    except OSError as error:
        logger.warning("%s: %s", what, error)


def as_row(result: EpochResult, metric: str, seeds: int, seconds: float) -> dict[str, Any]:
    """One epoch as the ledger keeps it: the mean over the pack, its standard error, and every seed's value."""
    score, nll = result.metrics.get(metric, []), result.metrics.get("val_nll", [])
    if len(score) != seeds and not result.diverged:
        raise ValueError(
            f"the trainable must report metrics['{metric}'] with one value for each of {seeds} seeds, got {score}"
        )
    return {
        "epoch": result.epoch,
        "seeds": seeds if result.trained is None else result.trained,
        "seconds": seconds,
        "score": statistics.fmean(score) if score else None,
        "se": statistics.stdev(score) / math.sqrt(len(score)) if len(score) > 1 else None,
        "nll": statistics.fmean(nll) if nll else None,
        "metrics": {name: [_number(v) for v in values] for name, values in result.metrics.items()},
        "audits": [
            {"epoch": epoch, "term": term, **{k: _number(v) for k, v in asdict(audited).items()}}
            for epoch, terms in result.audits.items()
            for term, audited in terms.items()
        ],
    }


class Checkpoints:
    """The checkpoints of one trial, by epoch, in a storage's folder of its own."""

    def __init__(self, place: Storage, trial: str) -> None:
        self._place, self._folder = place, f"{CHECKPOINTS}/{trial}"

    @property
    def noted(self) -> Path:
        """The file for where a trial stood that hung: beside its checkpoints, or, of a bucket, on this node."""
        folder = self._place.folder or Path(tempfile.gettempdir()) / "distune"
        return folder / self._folder / HUNG

    def save(self, result: EpochResult) -> None:
        """Write the state of an epoch atomically, then drop all others but the one before.

        That one counts until the ledger has heard of the epoch. A full disk costs the checkpoint, not the trial.
        """
        name, tensors = f"{result.epoch:06d}.safetensors", {k: v.contiguous().cpu() for k, v in result.state().items()}
        with _missed(f"no checkpoint of epoch {result.epoch}"):
            others = self._names()
            self._place.write(f"{self._folder}/{name}", save(tensors))
            kept = [name, *[other for other in others if other < name][-1:]]
            for other in set(others) - set(kept):
                self._place.remove(f"{self._folder}/{other}")

    def newest(self, reported: float = math.inf) -> tuple[int, dict[str, Any] | None]:
        """(epoch, state) of the newest intact checkpoint, or (0, None): then the trial starts again, as it began.

        reported: the last epoch that the ledger has. One of a later epoch would leave out those that were never
        reported.
        """
        if reported < 1:
            return 0, None
        for name in reversed(self._names()):
            try:
                epoch = int(name.partition(".")[0])
                if epoch <= reported:
                    return epoch, load(self._place.read(f"{self._folder}/{name}"))
            except (SafetensorError, OSError, ValueError):
                logger.warning("checkpoint %s/%s is not intact and is passed over", self._folder, name)
        return 0, None

    def _names(self) -> list[str]:
        return [name for name in self._place.names(self._folder) if name.endswith(".safetensors")]


class Watchdog:
    """Ends this process when an epoch takes longer than `limit` seconds, and leaves a note of where it stood.

    A hanging epoch cannot be interrupted from inside, and what its worker's death looks like to Ray is what a lost
    machine looks like: the trial is tried again elsewhere.
    """

    def __init__(self, limit: float, path: Path) -> None:
        self._limit, self._path = limit, path

    def __enter__(self) -> "Watchdog":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        self.watch()
        return self

    def watch(self) -> None:
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._file)

    def rest(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._file.close()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()  # unless there is a checkpoint


@contextlib.contextmanager
def _closing(results: Iterator[EpochResult]) -> Iterator[None]:
    """Close the generator on the way out; one that will not stop, or fails at it, is left behind with a warning."""
    try:
        yield
    finally:
        try:
            getattr(results, "close", lambda: None)()
        except Exception as error:
            logger.warning("the trainable did not close cleanly: %s", error)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
