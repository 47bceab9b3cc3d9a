"""What every trainable is given and what it gives back, one epoch at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainables.audit import TermAudit
from trainables.datasets import Rows
from trainables.streams import Streams


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says of the rows to fit on, and which rows it was fitted on itself.

    logits: (N, classes), in the order of the rows; fitted_on: fingerprints of rows.
    """

    logits: NDArray[np.float32]
    fitted_on: NDArray[np.int64]


@dataclass(frozen=True)
class TableOutputs:
    """What several models of a table say, each as the logit of class 1 and calibrated but for `in_sample`.

    names: of the models; fit: (N, teachers) out of fold, on the rows to fit on; in_sample: (N, teachers) of models
    that were fitted on these very rows; fitted_on: fingerprints of rows; platt: (teachers, 2) slope and intercept of
    the calibration, calibrated = slope x logit + intercept; validation: (n, teachers), where there are such rows.
    """

    names: tuple[str, ...]
    fit: NDArray[np.float32]
    in_sample: NDArray[np.float32]
    fitted_on: NDArray[np.int64]
    platt: NDArray[np.float32]
    validation: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class TrialConfig:
    """One configuration to train under the replicates of one pack.

    hp: hyperparameters by name. teacher_rows: `none`, `own` or `shuffled_within_class`. epochs: how far to
    train; of 0 only the first step is audited. horizon: epochs that the learning rate's schedule is laid out for.
    audit_at: epochs whose end is audited, besides the first step. dead_terms: terms declared to send no gradient.
    student: what the arm's student is, as in the study's `student`. evaluate_from: the first epoch that is measured on
    validation. patience: epochs without a better validation metric after which a seed stops, of families that can.
    in_sample: whether it learns from what a table's teachers say of the rows that they were fitted on.
    """

    variant: str
    hp: Mapping[str, Any]
    replicates: tuple[int, ...]
    epochs: int
    student: Mapping[str, Any]
    horizon: int = 0
    evaluate_from: int = 1
    patience: int | None = None
    teacher_rows: str = "none"
    in_sample: bool = False
    audit_at: tuple[int, ...] = ()
    dead_terms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a trial trains on. It holds no test rows: whoever may read them does so with `EpochResult.logits`.

    teachers: replicate r learns from teacher set r mod their number; of the image family each is a `TeacherViews`.
    validation: None where nothing is selected. views, compute: the study's, for images. encoder: state of the `Encoder`
    that made the rows of a table; it is kept with the student.
    resume: the state of an earlier `EpochResult`, of epoch `resume_epoch`.
    """

    fit: Rows
    validation: Rows | None
    classes: int
    teachers: Sequence[Any]
    streams: Streams
    views: Mapping[str, Any] = field(default_factory=dict)
    compute: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Tensor] = field(default_factory=dict)
    device: str = "cpu"
    resume_epoch: int = 0
    resume: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch.

    metrics: by name, one value per seed: `val_accuracy`, `val_nll` and `loss_<term>`.
    parameters: of one student. audits: by epoch, 0 for the first step, then by term; empty where none was made.
    diverged: a loss or a parameter is no number, or the student has collapsed, and this is the last result; reason: in
    words, where it is not the numbers. state: what a resumed run needs.
    logits: inputs (n, ...) as they come, scaled or not as the dataset has them -> (S, n, classes); of a table also what
    the teachers say of them, `Rows.teachers`. trained: seeds that trained in this epoch, None for all of them.
    gates: inputs of a table -> (S, n, teachers), or None for a student without a gate.
    """

    epoch: int
    metrics: dict[str, list[float]]
    parameters: int
    audits: dict[int, dict[str, TermAudit]]
    diverged: bool
    state: Callable[[], dict[str, Tensor]]
    logits: Callable[..., Tensor]
    reason: str = ""
    trained: int | None = None
    gates: Callable[[NDArray[Any]], Tensor | None] | None = None
