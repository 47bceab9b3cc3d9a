"""From a trainable, which is a generator, to a Ray Tune function trainable.

Three clocks. Decisions are made at rungs only. A report is made at rungs, at the end, and when 15 s have passed.
A checkpoint is written when more than 30 s of training are unsaved, and on a stop that comes in between.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from spaces import Arm, Study
from trainables.artefacts import write_atomically
from trainables.context import Context, EpochResult, TeacherOutputs, TrialConfig
from trainables.datasets import Rows
from trainables.streams import Streams

logger = logging.getLogger(__name__)
REPORT_EVERY_S = 15.0
SAVE_AFTER_S = 30.0
UNSAVED_S = 1.0  # on a stop, less training than this is cheaper to repeat than to store
FAMILIES = {"mlp": "trainables.mlp:train"}
Trainable = Callable[[TrialConfig, Context], Iterator[EpochResult]]


@dataclass(frozen=True)
class Payload:
    """What all trials of a phase share: rows, teachers and the study. It holds no test rows."""

    study: Study
    seed: int
    fit: Rows
    validation: Rows | None
    classes: int
    teachers: tuple[TeacherOutputs, ...]

    def context(self, resume_epoch: int = 0, resume: Mapping[str, Any] | None = None) -> Context:
        return Context(
            fit=self.fit,
            validation=self.validation,
            classes=self.classes,
            student=asdict(self.study.student),
            teachers=self.teachers,
            streams=Streams(self.study.name, self.seed),
            device=device(),
            resume_epoch=resume_epoch,
            resume=resume or {},
        )


def run_trial(config: dict[str, Any], shared: list[Any], checkpoints: str) -> None:
    """Ray Tune's function trainable: run the generator, report, and leave when told to."""
    import ray
    import torch

    torch.set_num_threads(1)
    payload: Payload = ray.get(shared[0])
    study, folder = payload.study, Path(checkpoints) / config["trial"]
    saved_epoch, saved = newest_checkpoint(folder) if config["resume_from"] else (0, None)
    trial = trial_config(study.arms[config["arm"]], config["hp"], config["replicates"], study)
    results = load_trainable(study)(trial, payload.context(saved_epoch, saved))
    rows: list[dict[str, Any]] = []
    began = reported = stored = time.monotonic()
    last: EpochResult | None = None
    with _closing(results):
        for result in results:
            last, now = result, time.monotonic()
            rows.append(as_row(result, study.val_metric, len(trial.replicates), now - began))
            began = now
            decides = result.diverged or result.epoch in study.budget.rungs
            if not decides and now - reported < REPORT_EVERY_S:
                continue
            if now - stored > SAVE_AFTER_S and not result.diverged:
                save_checkpoint(folder, result)
                stored = now
            try:
                tune.report({"rows": json.dumps(rows), "diverged": result.diverged})
            except SystemExit:
                if last is not None and not decides and time.monotonic() - stored > UNSAVED_S:
                    save_checkpoint(folder, last)
                raise
            rows, reported, began = [], time.monotonic(), time.monotonic()


def trial_config(arm: Arm, hp: Mapping[str, Any], replicates: Any, study: Study, epochs: int = 0) -> TrialConfig:
    return TrialConfig(
        variant=arm.variant,
        hp=hp,
        replicates=tuple(replicates),
        epochs=epochs or study.budget.max_epochs,
        teacher_rows=arm.teacher_rows,
        audit_at=study.budget.rungs,
        dead_terms=arm.dead_terms,
    )


def as_row(result: EpochResult, metric: str, seeds: int, seconds: float) -> dict[str, Any]:
    """One epoch as the ledger keeps it: the mean over the pack, its standard error, and every seed's value."""
    score, nll = result.metrics.get(metric, []), result.metrics.get("val_nll", [])
    if len(score) != seeds and not result.diverged:
        raise ValueError(
            f"the trainable must report metrics['{metric}'] with one value for each of {seeds} seeds, got {score}"
        )
    return {
        "epoch": result.epoch,
        "seeds": seeds,
        "seconds": seconds,
        "score": statistics.fmean(score) if score else None,
        "se": statistics.stdev(score) / math.sqrt(len(score)) if len(score) > 1 else None,
        "nll": statistics.fmean(nll) if nll else None,
        "metrics": {name: [_number(v) for v in values] for name, values in result.metrics.items()},
        "audit": {t: {k: _number(v) for k, v in asdict(a).items()} for t, a in (result.audit or {}).items()},
    }


def load_trainable(study: Study) -> Trainable:
    """The family's trainable, or the user's: `path/to/file.py:function`, loaded by path."""
    source, _, name = (study.trainable or FAMILIES[study.family]).rpartition(":")
    if not study.trainable:
        module = importlib.import_module(source)
    else:
        spec = importlib.util.spec_from_file_location("distune_user_trainable", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    trainable: Trainable = getattr(module, name)
    return trainable


def device() -> str:
    """`auto`: CUDA where the worker was given a GPU, then Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def save_checkpoint(folder: Path, result: EpochResult) -> None:
    """Write the state of an epoch atomically, then drop older ones."""
    older = list(folder.glob("*.safetensors"))
    tensors = {k: v.contiguous().cpu() for k, v in result.state().items()}
    write_atomically(folder / f"{result.epoch:06d}.safetensors", save(tensors))
    for path in older:
        path.unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> tuple[int, dict[str, Any] | None]:
    """(epoch, state) of the newest intact checkpoint, or (0, None): then the trial starts again, as it began."""
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        try:
            return int(path.stem), load_file(path)
        except (SafetensorError, OSError, ValueError):
            logger.warning("checkpoint %s is not intact and is passed over", path)
    return 0, None


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
