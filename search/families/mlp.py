"""MLPs on generated tables: packed seeds, ensembles as teachers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.families import outside
from search.ledger import ENSEMBLE
from spaces import Study
from trainables import mlp
from trainables.context import EpochResult, TeacherOutputs, TrialConfig
from trainables.datasets import Dataset, Rows, load
from trainables.evaluation import test_metrics
from trainables.models.networks import Unusable
from trainables.own_variants import Shapes
from trainables.streams import Streams
from trainables.teachers import ensemble
from trainables.teachers.outside import LogitsTable, TableTeacher, table_teacher

TRAINABLE = "trainables.mlp:train"
PACKS = True


def build_teacher(
    study: Study, seed: int, fit: Rows, dataset: Dataset, teacher_set: int, device: str
) -> ensemble.Ensemble | TableTeacher | LogitsTable:
    torch.set_num_threads(1)
    if study.teacher_fitted_on is not None:
        return table_teacher(outside.artefact_of(study, dataset, fit))
    return ensemble.build(asdict(study.teacher), fit, dataset.classes, teacher_set, Streams(study.name, seed))


def label(
    study: Study,
    teacher: ensemble.Ensemble | TableTeacher | LogitsTable,
    fit: Rows,
    dataset: Dataset,
    validation: Rows | None = None,
) -> TeacherOutputs:
    return TeacherOutputs(teacher.logits(fit.x).numpy(), teacher.fitted_on)


def notes(study: Study, teacher: Any, outputs: Any, fit: Rows) -> tuple[str, ...]:
    return outside.notes(study, outside.right(outputs.logits, fit.y))


def is_built(study: Study, seed: int, fit: Rows, dataset: Dataset, teacher_set: int) -> bool:
    if study.teacher_fitted_on is not None:
        return True  # reading it costs nothing beside training one
    return ensemble.is_built(asdict(study.teacher), fit, teacher_set, Streams(study.name, seed))


def teacher_seconds(study: Study, dataset: Dataset) -> float:
    spec = asdict(study.teacher)
    began = time.perf_counter()
    pack = ensemble.untrained(spec, dataset.train, dataset.classes, 0, Streams(study.name))
    pack.train_epoch(1, ensemble.labels_only)
    return float(spec["epochs"]) * (time.perf_counter() - began)


def inputs(dataset: Dataset, fit: Rows, teachers: Sequence[Any]) -> tuple[Rows, Rows, Mapping[str, Tensor]]:
    return fit, dataset.validation, {}


def judged(study: Study, seed: int, dataset: Dataset, fit: str) -> dict[str, Rows]:
    assert dataset.test is not None
    return {"test": dataset.test} | ({"population": dataset.population} if dataset.population else {})


def judge(
    study: Study, config: TrialConfig, last: EpochResult, rows: Rows, split: str, validation: Rows | None
) -> tuple[dict[str, list[float]], NDArray[Any]]:
    logits = last.logits(rows.x).cpu()
    metrics = test_metrics(logits, torch.from_numpy(np.asarray(rows.y)), split)
    return metrics, logits.argmax(dim=-1).numpy().astype(np.int64)


def judge_teacher(
    study: Study, teacher: Any, rows: Rows, split: str
) -> tuple[dict[int, NDArray[Any]], dict[int, dict[str, Any]]]:
    if isinstance(teacher, LogitsTable):
        try:
            members = teacher.member_logits(rows.x)
        except Unusable:  # a table need not speak of rows that nobody learns from
            return {}, {}
    else:
        members = teacher.member_logits(rows.x)
    predicted = {ENSEMBLE: members.mean(dim=0).argmax(dim=-1).numpy()}
    if split == "test" and len(members) > 1:
        predicted |= {m: logits.argmax(dim=-1).numpy() for m, logits in enumerate(members)}
    return predicted, {}


def sample(study: Study, dataset: Dataset) -> tuple[Dataset, float]:
    return dataset, 1.0


def without_teacher(study: Study, config: TrialConfig) -> TrialConfig:
    return config


def refuse_unusable(study: Study, say: Callable[[str], None]) -> None:
    """Raise ValueError for a student or a teacher from outside that cannot be used; says how the student trains."""
    if study.student.kind == "mlp" and study.teacher.kind == "mlp_ensemble":
        return
    dataset = load(asdict(study.data), say)
    outside.refuse_unusable_students(study, torch.from_numpy(dataset.train.x[:8]).float(), dataset.classes, say)
    if study.teacher_fitted_on is not None:
        build_teacher(study, 0, dataset.fit_rows(study.confirm_on), dataset, 0, "cpu")
    elif study.teacher.kind != "mlp_ensemble":
        raise Unusable(f"a table's teacher of kind {study.teacher.kind} is not trained here: give it a checkpoint")


def shapes(study: Study, config: TrialConfig, dataset: Dataset) -> tuple[Shapes, Shapes | None]:
    return mlp.shapes(config, dataset.classes)


def student(study: Study, arm: str, state: Mapping[str, Tensor], place: int) -> nn.Module:
    return mlp.Student(state, place, study.student_of(arm))


def made_up(study: Study, dataset: Dataset, folder: Path) -> TeacherOutputs:
    logits = np.random.default_rng(0).normal(size=(len(dataset.train), dataset.classes)).astype(np.float32)
    return TeacherOutputs(logits, np.zeros(0, dtype=np.int64))
