"""Networks on tables: packed seeds, classical models as teachers, AUC."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.families import outside
from search.ledger import ENSEMBLE
from spaces import BadInput, Study
from spaces.families import BLENDS, REFERENCES
from spaces.outside import LogitsTeacher
from trainables import tabular
from trainables.binary import auc, best_threshold, binary_metrics, mean_of_teachers
from trainables.context import EpochResult, TableOutputs, TrialConfig
from trainables.datasets import Dataset, Rows, load
from trainables.encoding import Encoder
from trainables.evaluation import latency
from trainables.models.networks import Unusable
from trainables.own_variants import Shapes
from trainables.streams import Streams
from trainables.teachers import table_models
from trainables.teachers.outside import LogitsTable

Teacher = table_models.TableModels | LogitsTable
TRAINABLE = "trainables.tabular:train"
PACKS = True
SEGMENTS = 12  # values of a column by which results are broken down, at most


def build_teacher(study: Study, seed: int, fit: Rows, dataset: Dataset, teacher_set: int, device: str) -> Teacher:
    if study.teacher_fitted_on is not None:
        return LogitsTable(outside.artefact_of(study, dataset, fit))
    spec, streams = asdict(study.teacher), Streams(study.name, seed)
    return table_models.build(spec, dataset.columns, fit, teacher_set, streams)


def label(study: Study, teacher: Teacher, fit: Rows, dataset: Dataset, validation: Rows | None = None) -> TableOutputs:
    if not isinstance(teacher, LogitsTable):
        return teacher.outputs(None if validation is None else validation.x)
    said, as_they_are = _of_class_1(teacher.of(fit)), np.array([[1.0, 0.0]], np.float32)
    beside = None if validation is None else _said(teacher, validation)
    return TableOutputs(study.teachers, said, said, teacher.fitted_on, as_they_are, beside)


def notes(study: Study, teacher: Any, outputs: Any, fit: Rows) -> tuple[str, ...]:
    if study.teacher_fitted_on is None:
        return ()
    quality = f"has an AUC of {auc(outputs.fit.T, fit.y)[0]:.3f} on {len(fit):,} rows"
    as_given = (
        "the teacher's logits are learned from as they are given, not calibrated; where it was fitted on the training "
        "rows they are in sample there, and surer than of rows that it has not seen"
    )
    return (*outside.notes(study, quality), as_given)


def is_built(study: Study, seed: int, fit: Rows, dataset: Dataset, teacher_set: int) -> bool:
    if study.teacher_fitted_on is not None:
        return True
    return table_models.is_built(asdict(study.teacher), dataset.columns, fit, teacher_set, Streams(study.name, seed))


def teacher_seconds(study: Study, dataset: Dataset) -> float:
    """From one set fitted on two thousand rows; trees take time in proportion."""
    spec, rows = asdict(study.teacher), dataset.train.taken(np.arange(min(2000, len(dataset.train))))
    began = time.perf_counter()
    table_models.fitted(spec, dataset.columns, rows, 0, Streams(study.name))
    return (time.perf_counter() - began) * len(dataset.train) / len(rows)


def inputs(dataset: Dataset, fit: Rows, teachers: Sequence[TableOutputs]) -> tuple[Rows, Rows, Mapping[str, Tensor]]:
    """Encoded by what is fitted on `fit`; of validation rows also what every teacher set says."""
    encoder = Encoder.fit(dataset.columns, fit.x)
    said = [t.validation for t in teachers if t.validation is not None]
    validation = _encoded(encoder, dataset.validation, np.stack(said) if said else None)
    return _encoded(encoder, fit, None), validation, encoder.state_dict()


def judged(study: Study, seed: int, dataset: Dataset, fit: str) -> dict[str, Rows]:
    assert dataset.test is not None
    rows = dataset.fit_rows(fit)
    sets = [build_teacher(study, seed, rows, dataset, k, "cpu") for k in range(study.confirm_teachers)]
    said = [s for s in (_said(teacher, dataset.test) for teacher in sets) if s is not None]
    test = _encoded(Encoder.fit(dataset.columns, rows.x), dataset.test, np.stack(said) if said else None)
    return {"test": replace(test, segments=_segments(dataset, dataset.test))}


def _said(teacher: Teacher, rows: Rows) -> NDArray[np.float32] | None:
    """(n, teachers) logits of class 1; None where a table of logits has not all of these rows, as it need not."""
    if not isinstance(teacher, LogitsTable):
        return teacher.logits(rows.x)
    try:
        return _of_class_1(teacher.of(rows))
    except Unusable:
        return None


def _of_class_1(logits: Tensor) -> NDArray[np.float32]:
    """(n, 2) -> (n, 1)."""
    return np.asarray((logits[:, 1:] - logits[:, :1]).numpy(), dtype=np.float32)


def _encoded(encoder: Encoder, rows: Rows, said: NDArray[np.float32] | None) -> Rows:
    return Rows(encoder.encode(rows.x), rows.y, rows.fingerprints(), said)


def judge(
    study: Study, config: TrialConfig, last: EpochResult, rows: Rows, split: str, validation: Rows | None
) -> tuple[dict[str, list[float]], NDArray[Any]]:
    scores = last.logits(rows.x, rows.teachers)[..., 1].cpu().numpy()
    threshold = None
    if validation is not None and not last.diverged:
        own = last.logits(validation.x, validation.teachers)[..., 1].cpu().numpy()
        threshold = best_threshold(own, validation.y)
    metrics = binary_metrics(scores, rows.y, split, threshold)
    seeds = len(config.replicates)
    untimed = isinstance(study.teacher, LogitsTeacher) and config.variant in (*BLENDS, *REFERENCES)
    if not last.diverged and not untimed:
        metrics |= {name: [ms / seeds] * seeds for name, ms in latency(_speak(last, rows), rows).items()}
    gates = None if last.gates is None or last.diverged else last.gates(rows.x)
    if gates is not None:
        metrics |= _mean_gates(study.teachers, gates.cpu().numpy(), rows)
    return metrics, scores.astype(np.float32)


def judge_teacher(
    study: Study, teacher: Teacher, rows: Rows, split: str
) -> tuple[dict[int, NDArray[Any]], dict[int, dict[str, Any]]]:
    """Each model's logits and those of their plain average; facts: name, quality, bytes and milliseconds a row.

    Nothing of a table of logits that lacks a row, and of none its size and speed.
    """
    logits = _said(teacher, rows)
    if logits is None:
        return {}, {}
    predicted = {ENSEMBLE: mean_of_teachers(logits).astype(np.float32)}
    predicted |= {m: logits[:, m] for m in range(len(study.teachers))}
    facts: dict[int, dict[str, Any]] = {}
    for member, scores in predicted.items():
        name = "plain average" if member == ENSEMBLE else study.teachers[member]
        found = {k: v[0] for k, v in binary_metrics(scores[None].astype(np.float64), rows.y, split).items()}
        facts[member] = {"name": name, **found}
        if isinstance(teacher, LogitsTable):
            continue
        one = teacher if member == ENSEMBLE else teacher.alone(name)

        def speak(x: NDArray[Any], one: table_models.TableModels = one) -> Tensor:
            return torch.from_numpy(one.logits(x))

        facts[member] |= {**latency(speak, rows), "bytes": sum(one.sizes().values())}
    return predicted, facts


def sample(study: Study, dataset: Dataset) -> tuple[Dataset, float]:
    return dataset, 1.0


def without_teacher(study: Study, config: TrialConfig) -> TrialConfig:
    return config


def made_up(study: Study, dataset: Dataset, folder: Path) -> TableOutputs:
    names, random = study.teachers, np.random.default_rng(0)

    def said(rows: Rows) -> NDArray[np.float32]:
        return random.normal(size=(len(rows), len(names))).astype(np.float32)

    platt = np.tile(np.array([1.0, 0.0], np.float32), (len(names), 1))
    fit, none = said(dataset.train), np.zeros(0, dtype=np.int64)
    return TableOutputs(names, fit, fit, none, platt, said(dataset.validation))


def refuse_unusable(study: Study, say: Callable[[str], None]) -> None:
    """Raise ValueError for a student that cannot be trained, and for teachers that cannot be had; says what to know."""
    if study.teacher_fitted_on is None:
        table_models.refuse_uninstalled(study.teachers)
    dataset = load(asdict(study.data), say)
    for note in dataset.notes:
        say(f"data: {note}")
    rows = Encoder.fit(dataset.columns, dataset.train.x).encode(dataset.train.x[:8])
    outside.refuse_unusable_students(study, torch.from_numpy(rows), dataset.classes, say)
    if study.teacher_fitted_on is not None:
        _refuse_unusable_table(study, dataset)


def _refuse_unusable_table(study: Study, dataset: Dataset) -> None:
    """Raise Unusable for a table of logits that cannot be read, or has not the rows that the study's arms need."""
    teacher = build_teacher(study, 0, dataset.fit_rows(study.confirm_on), dataset, 0, "cpu")
    needing = [name for name, arm in study.arms.items() if arm.role != "student"]
    for split, rows in {"validation": dataset.validation, "test": dataset.test}.items():
        if needing and rows is not None and _said(teacher, rows) is None:
            others = [name for name in study.arms if name not in needing]
            raise Unusable(
                f"{', '.join(needing)} predict with the teacher, and its table lacks {split} rows: give all rows, or "
                f"leave these arms out (--arms {','.join(others)})"
            )


def shapes(study: Study, config: TrialConfig, dataset: Dataset) -> tuple[Shapes, Shapes | None]:
    return tabular.shapes(config, len(study.teachers))


def student(study: Study, arm: str, state: Mapping[str, Tensor], place: int) -> nn.Module:
    if study.arms[arm].role != "student":
        alone = [name for name in study.searched if study.arms[name].role == "student"]
        raise BadInput(f"{arm} needs its teachers at inference; those that run alone are {', '.join(alone)}")
    return tabular.Student(state, place, study.student_of(arm))


def _speak(last: EpochResult, rows: Rows) -> Callable[[NDArray[Any]], Tensor]:
    """A trained pack's logits, with what its teachers say taken from the first rows: how long it takes is the same."""

    def speak(x: NDArray[Any]) -> Tensor:
        said = rows.teachers
        if said is not None:
            said = np.resize(said, (len(said), len(x), said.shape[2]))
        logits: Tensor = last.logits(x, said)
        return logits

    return speak


def _mean_gates(names: Sequence[str], gates: NDArray[Any], rows: Rows) -> dict[str, list[float]]:
    """`gate <teacher>`, `gate <teacher> | <segment>`: the gates (S, n, teachers) as means over rows, one a seed."""
    parts: dict[str, Any] = {"": slice(None), **{f" | {name}": mask for name, mask in rows.segments.items()}}
    return {
        f"gate {name}{part}": gates[:, where, j].mean(axis=1).tolist()
        for part, where in parts.items()
        for j, name in enumerate(names)
    }


def _segments(dataset: Dataset, rows: Rows) -> dict[str, NDArray[np.bool_]]:
    """{`column=value`: mask (n,)} of every value of the segment columns; a column of too many values has none."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for i, column in enumerate(dataset.columns):
        values = np.unique(rows.x[:, i][~np.isnan(rows.x[:, i])])
        if column.name in dataset.segments and len(values) <= SEGMENTS:
            for value in values:
                text = column.categories[int(value)] if column.categories else f"{value:g}"
                masks[f"{column.name}={text}"] = rows.x[:, i] == value
    return masks
