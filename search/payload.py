"""What all trials of a phase share, and how a trainable is found and told what to do. No Ray here."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from search import families
from spaces import Arm, BadInput, Study
from trainables.context import Context, EpochResult, TrialConfig
from trainables.datasets import BadData, Dataset, Rows, refuse_overlap
from trainables.streams import Streams

TRAIN = "train"
Trainable = Callable[[TrialConfig, Context], Iterator[EpochResult]]


@dataclass(frozen=True)
class Payload:
    """What all trials of a phase share: rows, teachers and the study. It holds no test rows."""

    study: Study
    seed: int
    fit: Rows
    validation: Rows | None
    classes: int
    teachers: tuple[Any, ...]
    encoder: Mapping[str, Any] = field(default_factory=dict)

    def context(self, resume_epoch: int = 0, resume: Mapping[str, Any] | None = None) -> Context:
        return Context(
            fit=self.fit,
            validation=self.validation,
            classes=self.classes,
            teachers=self.teachers,
            streams=Streams(self.study.name, self.seed),
            views=asdict(self.study.views),
            compute=asdict(self.study.compute),
            encoder=self.encoder,
            device=device(),
            resume_epoch=resume_epoch,
            resume=resume or {},
        )


def payload_of(study: Study, seed: int, dataset: Dataset, fit: str, teachers: Sequence[Any]) -> Payload:
    """What to train on; without validation rows where they are trained on."""
    shown = dataset.without_test()
    rows, validation, encoder = families.of(study).inputs(shown, shown.fit_rows(fit), teachers)
    kept = validation if fit == TRAIN else None
    return Payload(study, seed, rows, kept, shown.classes, tuple(teachers), encoder)


def trial_config(
    study: Study, name: str, hp: Mapping[str, Any], replicates: Any, epochs: int | None = None
) -> TrialConfig:
    """What to tell the trainable of the arm `name`. epochs: how far to train, if not to the end.

    Seeds stop early only where how far to train is not given: an epoch that was chosen is trained to.
    """
    arm: Arm = study.arms[name]
    return TrialConfig(
        variant=arm.variant,
        hp=hp,
        replicates=tuple(replicates),
        epochs=study.budget.max_epochs if epochs is None else epochs,
        student=study.student_of(name),
        horizon=study.budget.max_epochs,
        teacher_rows="own" if arm.teacher_rows == "in_sample" else arm.teacher_rows,
        in_sample=study.learns_in_sample(name),
        patience=study.budget.patience if epochs is None else None,
        audit_at=study.budget.rungs,
        dead_terms=arm.dead_terms,
    )


def load_trainable(study: Study) -> Trainable:
    """The family's trainable, or the user's: `path/to/file.py:function`, loaded by path."""
    source, _, name = (study.trainable or families.of(study).TRAINABLE).rpartition(":")
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


def refuse_unusable(study: Study, say: Callable[[str], None]) -> None:
    """Raise BadInput for what the networks, the data or the machine cannot do, before any work starts."""
    from trainables.layers import UnusableLayer
    from trainables.models.networks import Unusable
    from trainables.teachers.cached import CacheTooLarge

    try:
        families.of(study).refuse_unusable(study, say)
    except (BadData, Unusable, UnusableLayer, CacheTooLarge) as error:
        raise BadInput(str(error)) from None


def build_teacher(study: Study, seed: int, dataset: Dataset, fit: str, teacher_set: int) -> Any:
    """One teacher set on the rows `fit`, from the cache or trained now. Raises Leak if it saw rows it may not."""
    teacher = families.of(study).build_teacher(study, seed, dataset.fit_rows(fit), dataset, teacher_set, device())
    if fit == TRAIN and not study.accept_contaminated_validation:
        refuse_overlap("the teacher", teacher.fitted_on, "validation", dataset.validation)
    if dataset.test is not None:
        refuse_overlap("the teacher", teacher.fitted_on, "test", dataset.test)
    return teacher


def label(study: Study, teacher: Any, dataset: Dataset, fit: str) -> Any:
    """What a trial is given of the teacher: what it says of the rows `fit`, and which rows it was fitted on.

    Validation rows that the study accepts as contaminated are not among these.
    """
    validation = dataset.validation if fit == TRAIN else None
    outputs = families.of(study).label(study, teacher, dataset.fit_rows(fit), dataset, validation)
    if not study.accept_contaminated_validation:
        return outputs
    return replace(outputs, fitted_on=np.setdiff1d(outputs.fitted_on, dataset.validation.fingerprints()))


def threads() -> int:
    """CPUs that Ray has given to this worker, at least one."""
    import ray

    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def teacher_sets(study: Study) -> list[tuple[str, int]]:
    """(fit, set) of every teacher that a sweep needs: one to search with, `confirm_teachers` to confirm with."""
    wanted = [(TRAIN, 0), *((study.confirm_on, k) for k in range(study.confirm_teachers))]
    return list(dict.fromkeys(wanted))
