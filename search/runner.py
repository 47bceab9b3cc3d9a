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
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from search.payload import Payload, load_trainable, threads, trial_config
from trainables.artefacts import write_atomically
from trainables.context import EpochResult

logger = logging.getLogger(__name__)
REPORT_EVERY_S = 15.0
SAVE_AFTER_S = 30.0
STOPPING = "stopping"  # a file beside the checkpoints, there while the sweep is being stopped
HUNG = "hung.txt"  # where a trial stood that took too long over an epoch
UNSAVED_S = 1.0  # on a stop, less training than this is cheaper to repeat than to store


def run_trial(config: dict[str, Any], shared: list[Any], checkpoints: str, epoch_timeout: float) -> None:
    """Ray Tune's function trainable: run the generator, report, and leave when told to."""
    import ray
    import torch

    torch.set_num_threads(threads())
    payload: Payload = ray.get(shared[0])
    study, folder = payload.study, Path(checkpoints) / config["trial"]
    saved_epoch, saved = newest_checkpoint(folder, config["resume_from"])
    trial = trial_config(study, config["arm"], config["hp"], config["replicates"])
    results = load_trainable(study)(trial, payload.context(saved_epoch, saved))
    rows: list[dict[str, Any]] = []
    began = reported = stored = time.monotonic()
    last: EpochResult | None = None
    with _closing(results), Watchdog(epoch_timeout, folder) as watchdog:
        for result in results:
            watchdog.rest()
            last, now = result, time.monotonic()
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
                save_checkpoint(folder, result)
                stored = now
            try:
                tune.report({"rows": json.dumps(rows), "diverged": (result.reason or "yes") if result.diverged else ""})
            except SystemExit:
                goes_on_later = not decides or (Path(checkpoints) / STOPPING).exists()
                unsaved = goes_on_later and time.monotonic() - stored > UNSAVED_S
                if unsaved and not result.diverged and result.epoch < trial.epochs:
                    save_checkpoint(folder, last)
                raise
            rows, reported, began = [], time.monotonic(), time.monotonic()
            watchdog.watch()


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


def save_checkpoint(folder: Path, result: EpochResult) -> None:
    """Write the state of an epoch atomically, then drop all others but the one before.

    That one counts until the ledger has heard of the epoch. A full disk costs the checkpoint, not the trial.
    """
    path, others = folder / f"{result.epoch:06d}.safetensors", sorted(folder.glob("*.safetensors"))
    kept = [path, *[other for other in others if other < path][-1:]]
    tensors = {k: v.contiguous().cpu() for k, v in result.state().items()}
    try:
        write_atomically(path, save(tensors))
    except OSError as error:
        logger.warning("no checkpoint of epoch %d: %s", result.epoch, error)
        return
    for other in set(others) - set(kept):
        other.unlink(missing_ok=True)


def newest_checkpoint(folder: Path, reported: float = math.inf) -> tuple[int, dict[str, Any] | None]:
    """(epoch, state) of the newest intact checkpoint, or (0, None): then the trial starts again, as it began.

    reported: the last epoch that the ledger has. One of a later epoch would leave out those that were never reported.
    """
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        try:
            if int(path.stem) <= reported:
                return int(path.stem), load_file(path)
        except (SafetensorError, OSError, ValueError):
            logger.warning("checkpoint %s is not intact and is passed over", path)
    return 0, None


class Watchdog:
    """Ends this process when an epoch takes longer than `limit` seconds, and leaves a note of where it stood.

    A hanging epoch cannot be interrupted from inside, and what its worker's death looks like to Ray is what a lost
    machine looks like: the trial is tried again elsewhere.
    """

    def __init__(self, limit: float, folder: Path) -> None:
        self._limit, self._path = limit, folder / HUNG

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
