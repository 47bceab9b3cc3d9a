"""What all trials of a phase share, and how a trainable is found and told what to do. No Ray here."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from search import families
from search.seeds import SEARCH
from spaces import Arm, BadInput, Choice, Study
from spaces.families import FULL_BATCH, LEAST_BATCH
from trainables.by_path import Unloadable
from trainables.by_path import load as load_by_path
from trainables.context import Context, EpochResult, TrialConfig
from trainables.datasets import BadData, Dataset, Rows, load, refuse_overlap
from trainables.dry import BadVariant, Examined, examine
from trainables.names import is_own
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
    trainable: Trainable
    module, _, name = families.of(study).TRAINABLE.rpartition(":")
    trainable = load_by_path(study.trainable) if study.trainable else getattr(importlib.import_module(module), name)
    return trainable


def device() -> str:
    """`auto`: CUDA where the worker was given a GPU, then Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def refuse_unusable(study: Study, say: Callable[[str], None]) -> dict[str, Examined]:
    """Raise BadInput for what the networks, the data or the machine cannot do, before any work starts.

    Returns what a dry batch says of every arm with a variant of the user's own.
    """
    from trainables.layers import UnusableLayer
    from trainables.models.networks import Unusable
    from trainables.teachers.cached import CacheTooLarge

    try:
        families.of(study).refuse_unusable(study, say)
        if study.trainable is not None:
            load_by_path(study.trainable)
    except (BadData, Unusable, UnusableLayer, CacheTooLarge, Unloadable) as error:
        raise BadInput(str(error)) from None
    return examine_own_variants(study)


def examine_own_variants(study: Study) -> dict[str, Examined]:
    """What a dry batch says of every arm with a variant of the user's own, under its default and each end of its space.

    Raises BadInput for what cannot be trained with. Under a trainable of the user's own, which shows a variant what it
    likes, the variant is only loaded.
    """
    own = {name: arm for name, arm in study.arms.items() if is_own(arm.variant)}
    if not own:
        return {}
    dataset = load(asdict(study.data))
    examined = {}
    for name, arm in own.items():
        family = families.of(study)
        settings = []
        for hp in _corners(arm):
            config = trial_config(study, name, hp, (SEARCH,))
            settings.append((hp, *family.shapes(study, config, dataset)))
        try:
            if study.trainable is None:
                last = {size for size in _last_batches(arm, len(dataset.train)) if size >= LEAST_BATCH[study.family]}
                examined[name] = examine(arm.variant, settings, arm.dead_terms, last, family.PACKS)
            else:
                load_by_path(arm.variant)
        except (Unloadable, BadVariant) as error:
            raise BadInput(f"arms.{name}: {error}") from None
    return examined


def _corners(arm: Arm) -> list[dict[str, Any]]:
    """The arm's default, its published settings, and its default with one hyperparameter at an end of its space."""
    found = [dict(arm.default)] + ([dict(arm.published.config)] if arm.published else [])
    for hp, dimension in arm.space.items():
        ends = dimension.choices if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        found += [{**arm.default, hp: end} for end in ends if end != arm.default[hp]]
    return found


def _last_batches(arm: Arm, rows: int) -> set[int]:
    """Sizes that a last batch can have where it is so small that a variant may not be able to compute with it."""
    size = arm.space.get("batch_size")
    sizes = size.choices if isinstance(size, Choice) else (arm.default["batch_size"],)
    return {rows % int(s) for s in sizes if s != FULL_BATCH} & {1, 2, 3}


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
