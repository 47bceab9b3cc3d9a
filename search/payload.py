"""What all trials of a phase share, and how a trainable is found and told what to do. No Ray here."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from spaces import Arm, Study
from trainables.context import Context, EpochResult, TeacherOutputs, TrialConfig
from trainables.datasets import Dataset, Rows, refuse_overlap
from trainables.streams import Streams
from trainables.teachers import ensemble

TRAIN = "train"
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


def build_teacher(study: Study, seed: int, dataset: Dataset, fit: str, teacher_set: int) -> ensemble.Ensemble:
    """One teacher set on the rows `fit`, from the cache or trained now. Raises Leak if it saw rows it may not."""
    import torch

    torch.set_num_threads(1)
    streams = Streams(study.name, seed)
    teacher = ensemble.build(asdict(study.teacher), dataset.fit_rows(fit), dataset.classes, teacher_set, streams)
    if fit == TRAIN:
        refuse_overlap("the teacher", teacher.fitted_on, "validation", dataset.validation)
    if dataset.test is not None:
        refuse_overlap("the teacher", teacher.fitted_on, "test", dataset.test)
    return teacher


def teacher_sets(study: Study) -> list[tuple[str, int]]:
    """(fit, set) of every teacher that a sweep needs: one to search with, `confirm_teachers` to confirm with."""
    wanted = [(TRAIN, 0), *((study.confirm_on, k) for k in range(study.confirm_teachers))]
    return list(dict.fromkeys(wanted))
