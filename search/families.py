"""What the search must know of each family of students: its trainable, its teachers, and what cannot work."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from spaces import Arm, Study
from spaces.families import ORDINARY
from trainables.context import TeacherOutputs, TrialConfig
from trainables.datasets import Dataset, Rows, load
from trainables.layers import Use, wanted
from trainables.layers import refuse_unusable as refuse_unusable_layers
from trainables.models.resnet import feature_shapes
from trainables.streams import Streams
from trainables.teachers import cached, ensemble, resnet
from trainables.variants import READS_FEATURES

TRAINABLES = {"mlp": "trainables.mlp:train", "vision": "trainables.vision:train"}
SAMPLE = 256  # images that an estimate of time is made from
PACKABLE = ("mlp",)  # whose seeds train in one program


def build_teacher(study: Study, seed: int, fit: Rows, classes: int, teacher_set: int, device: str) -> Any:
    """One teacher set on these rows, from the cache or trained now."""
    streams, spec = Streams(study.name, seed), asdict(study.teacher)
    if study.family == "mlp":
        torch.set_num_threads(1)
        return ensemble.build(spec, fit, classes, teacher_set, streams)
    views, compute = asdict(study.views), asdict(study.compute)
    return resnet.build(spec, views, compute, fit, classes, teacher_set, streams, device)


def label(study: Study, teacher: Any, fit: Rows, classes: int) -> Any:
    """What a trial is given of a teacher: its outputs on the rows to fit on, for images on every view of them."""
    if study.family == "mlp":
        return TeacherOutputs(teacher.logits(fit.x).numpy(), teacher.fitted_on)
    return cached.build(teacher, fit, asdict(study.views), wanted(uses(study), teacher.model.layer_names), classes)


def teacher_notes(study: Study, teacher: Any, outputs: Any) -> tuple[str, ...]:
    """What a reader of the result must know of a teacher and of its masks."""
    if study.family == "mlp":
        return ()
    notes = []
    if asdict(study.teacher)["pretrained"] and not teacher.artefact.about["pretrained"]:
        notes.append("the teacher was trained from scratch: its ImageNet weights could not be downloaded or do not fit")
    for name, share in outputs.degenerate.items():
        if share > 0:
            notes.append(f"{share:.1%} of the teacher's {name} maps are flat or zero; there the mask is 1 everywhere")
    return tuple(notes)


def is_built(study: Study, seed: int, fit: Rows, teacher_set: int) -> bool:
    """Whether `build_teacher` would find this teacher in the cache."""
    streams, spec = Streams(study.name, seed), asdict(study.teacher)
    if study.family == "mlp":
        return ensemble.is_built(spec, fit, teacher_set, streams)
    return resnet.is_built(spec, asdict(study.views), fit, teacher_set, streams)


def seconds_per_teacher_epoch(study: Study, dataset: Dataset) -> float:
    """Measured now; of images on a sample."""
    spec, streams = asdict(study.teacher), Streams(study.name)
    small, share = sample(study, dataset)
    began = time.perf_counter()
    if study.family == "mlp":
        ensemble.untrained(spec, small.train, dataset.classes, 0, streams).train_epoch(1, ensemble.labels_only)
    else:
        model = resnet.untrained(spec, small.train, dataset.classes)
        views, compute = asdict(study.views), asdict(study.compute)
        learner = resnet.learner(spec, views, compute, small.train, model, 0, streams, "cpu")
        learner.train_epoch(1, resnet.labels_only(learner.labels))
    return (time.perf_counter() - began) / share


def sample(study: Study, dataset: Dataset) -> tuple[Dataset, float]:
    """Of an image dataset a few rows, and their share of all; of a table all: to estimate how long things take."""
    if study.family in PACKABLE or len(dataset.train) <= SAMPLE:
        return dataset, 1.0
    share = SAMPLE / len(dataset.train)

    def part(rows: Rows) -> Rows:
        n = max(1, round(share * len(rows)))
        return Rows(rows.x[:n], rows.y[:n])

    return replace(dataset, train=part(dataset.train), validation=part(dataset.validation)), share


def without_teacher(study: Study, config: TrialConfig) -> TrialConfig:
    """An image arm as its student would train on labels, which costs about the same; of a table as it is."""
    if study.family in PACKABLE:
        return config
    hp = {name: config.hp[name] for name in ORDINARY[study.family]}
    return replace(config, variant="hard_labels", hp=hp, teacher_rows="none", dead_terms=(), audit_at=())


def uses(study: Study) -> list[Use]:
    """What each arm of an image study may do with maps, over its space, its default and its published settings."""
    found = []
    for name, arm in study.arms.items():
        layers = _values(arm, "layers")
        if layers:
            masks = _values(arm, "mask") or ("none",)
            student, dead = study.student_of(name), bool(arm.dead_terms)
            found.append(Use(name, student, layers, masks, arm.variant in READS_FEATURES, dead))
    return found


def _values(arm: Arm, name: str) -> tuple[Any, ...]:
    """Every value that a hyperparameter of this arm can take: those of its space, of its default, as published."""
    choices = getattr(arm.space.get(name), "choices", ())
    configs = [arm.default, *([arm.published.config] if arm.published else [])]
    return tuple(dict.fromkeys([*choices, *(c[name] for c in configs if name in c)]))


def refuse_unusable(study: Study, say: Callable[[str], None]) -> None:
    """Raise ValueError for layers that do not exist or are too small, and for a cache above its limit.

    Decodes a folder of images, or downloads CIFAR-10, where that has not been done yet.
    """
    if study.family != "vision":
        return
    dataset = load(asdict(study.data), say)
    fit = dataset.fit_rows(study.confirm_on)
    teacher = feature_shapes(resnet.untrained(asdict(study.teacher), fit, dataset.classes), *fit.x.shape[1:])
    for use in uses(study):
        student = feature_shapes(resnet.untrained(use.student, fit, dataset.classes), *fit.x.shape[1:])
        refuse_unusable_layers(use, student, teacher)
    views = study.views
    arrays = cached.wanted_shapes(
        wanted(uses(study), tuple(teacher)), dataset.classes, teacher, views.alignment_channels
    )
    count = views.count if views.pad or views.flip else 1
    cached.refuse_too_large(arrays, count, len(fit), views.cache_limit_mb)
