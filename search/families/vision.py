"""Convolutional networks on images: one seed a program, teachers cached on every view."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.families import mlp, outside
from spaces import Arm, Study
from spaces.families import ORDINARY
from trainables import vision
from trainables.context import EpochResult, TrialConfig
from trainables.datasets import Dataset, Rows, load
from trainables.evaluation import latency, robustness
from trainables.layers import UnusableLayer, Use, layer_pairs, wanted
from trainables.layers import refuse_unusable as refuse_unusable_layers
from trainables.models.networks import Unusable, described, map_shapes, refuse_untrainable
from trainables.names import is_own
from trainables.own_variants import Shapes, reads_features
from trainables.streams import Streams
from trainables.teachers import cached, resnet
from trainables.teachers.cached import Wanted, wanted_shapes
from trainables.teachers.outside import LogitsTable
from trainables.views import as_tensor

TRAINABLE = "trainables.vision:train"
PACKS = False
SAMPLE = 256  # images that an estimate of time is made from

inputs, judged, judge_teacher = mlp.inputs, mlp.judged, mlp.judge_teacher


def build_teacher(
    study: Study, seed: int, fit: Rows, dataset: Dataset, teacher_set: int, device: str
) -> resnet.ResNetTeacher | LogitsTable:
    spec, views, compute = asdict(study.teacher), asdict(study.views), asdict(study.compute)
    if study.teacher_fitted_on is not None:
        artefact = outside.artefact_of(study, dataset, fit)
        return LogitsTable(artefact) if spec["kind"] == "logits" else resnet.opened(artefact, compute, device)
    return resnet.build(spec, views, compute, fit, dataset.classes, teacher_set, Streams(study.name, seed), device)


def label(
    study: Study,
    teacher: resnet.ResNetTeacher | LogitsTable,
    fit: Rows,
    dataset: Dataset,
    validation: Rows | None = None,
) -> cached.TeacherViews:
    shapes = {} if isinstance(teacher, LogitsTable) else map_shapes(teacher.model, *fit.x.shape[1:])
    layers = wanted(uses(study), tuple(shapes))
    return cached.build(teacher, fit, asdict(study.views), layers, dataset.classes)


def notes(study: Study, teacher: Any, outputs: Any, fit: Rows) -> tuple[str, ...]:
    found: list[str] = []
    if study.teacher_fitted_on is not None:
        said = outputs.logits(0, torch.arange(len(fit))).numpy()
        found += outside.notes(study, outside.right(said, fit.y))
    if isinstance(teacher, LogitsTable) and (study.views.pad or study.views.flip):
        found.append("the teacher's logits are of the images as they are, also where students see a view of them")
    if asdict(study.teacher).get("pretrained") and not teacher.artefact.about["pretrained"]:
        found.append("the teacher was trained from scratch: its ImageNet weights could not be downloaded or do not fit")
    for name, share in outputs.degenerate.items():
        if share > 0:
            found.append(f"{share:.1%} of the teacher's {name} maps are flat or zero; there the mask is 1 everywhere")
    return tuple(found)


def is_built(study: Study, seed: int, fit: Rows, dataset: Dataset, teacher_set: int) -> bool:
    if study.teacher_fitted_on is not None:
        return True  # reading it costs nothing beside training one
    return resnet.is_built(asdict(study.teacher), asdict(study.views), fit, teacher_set, Streams(study.name, seed))


def teacher_seconds(study: Study, dataset: Dataset) -> float:
    """With its views; a pass over a view costs about what an epoch does, or less."""
    spec = asdict(study.teacher)
    small, share = sample(study, dataset)
    model = resnet.untrained(spec, small.train, dataset.classes)
    views, compute = asdict(study.views), asdict(study.compute)
    learner = resnet.learner(spec, views, compute, small.train, model, 0, Streams(study.name), "cpu")
    began = time.perf_counter()
    learner.train_epoch(1, resnet.labels_only(learner.labels))
    return float(spec["epochs"] + study.views.count) * (time.perf_counter() - began) / share


def judge(
    study: Study, config: TrialConfig, last: EpochResult, rows: Rows, split: str, validation: Rows | None
) -> tuple[dict[str, list[float]], NDArray[Any]]:
    metrics, predicted = mlp.judge(study, config, last, rows, split, validation)
    if not last.diverged:
        seeds = len(config.replicates)
        metrics |= robustness(last.logits, rows)
        metrics |= {name: [ms / seeds] * seeds for name, ms in latency(last.logits, rows).items()}
    return metrics, predicted


def sample(study: Study, dataset: Dataset) -> tuple[Dataset, float]:
    if len(dataset.train) <= SAMPLE:
        return dataset, 1.0
    share = SAMPLE / len(dataset.train)

    def part(rows: Rows) -> Rows:
        n = max(1, round(share * len(rows)))
        return Rows(rows.x[:n], rows.y[:n])

    return replace(dataset, train=part(dataset.train), validation=part(dataset.validation)), share


def student(study: Study, arm: str, state: Mapping[str, Tensor], place: int) -> nn.Module:
    return vision.Student(state, place, study.student_of(arm))


def shapes(study: Study, config: TrialConfig, dataset: Dataset) -> tuple[Shapes, Shapes | None]:
    student, teacher = _layers_of(config.student, dataset), _teacher_layers(study, dataset)
    channels = study.views.alignment_channels
    pairs = layer_pairs(str(config.hp.get("layers", "")))
    layers = tuple(p.teacher for p in pairs)
    kept = Wanted(attention=layers, features=layers)
    widest = max((c for c, _, _ in teacher.values()), default=1) if channels == "live" else channels
    return vision.shapes(config, dataset.classes, student, wanted_shapes(kept, dataset.classes, teacher, widest))


def _layers_of(spec: Mapping[str, Any], dataset: Dataset) -> dict[str, tuple[int, int, int]]:
    """(C, H, W) of every layer of a network on these images; built once for each spec: deep ones take a while."""
    return _map_shapes(json.dumps(dict(spec), sort_keys=True), dataset.train.x.shape[1:], dataset.classes)


@lru_cache(maxsize=32)
def _map_shapes(spec: str, image: tuple[int, ...], classes: int) -> dict[str, tuple[int, int, int]]:
    one = Rows(np.zeros((1, *image), np.uint8), np.zeros(1, np.int64))
    return map_shapes(resnet.untrained(json.loads(spec), one, classes), *image)


def _teacher_layers(study: Study, dataset: Dataset) -> dict[str, tuple[int, int, int]]:
    """Of a teacher whose layers can be read; none of one that says logits only."""
    return {} if outside.says_logits_only(study) else _layers_of(asdict(study.teacher), dataset)


def made_up(study: Study, dataset: Dataset, folder: Path) -> cached.TeacherViews:
    """As it would be cached: a study that runs its teacher live must say otherwise."""
    teacher, views = _teacher_layers(study, dataset), study.views
    arrays = wanted_shapes(wanted(uses(study), tuple(teacher)), dataset.classes, teacher, views.alignment_channels)
    return cached.made_up(folder, arrays, views.count if views.pad or views.flip else 1, len(dataset.train))


def without_teacher(study: Study, config: TrialConfig) -> TrialConfig:
    """The arm as its student would train on labels, which costs about the same: its teacher's views are cached.

    What a user's variant costs is not known, and so it is left as it is.
    """
    if is_own(config.variant):
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
            found.append(Use(name, student, layers, masks, reads_features(arm.variant), dead))
    return found


def _values(arm: Arm, name: str) -> tuple[Any, ...]:
    """Every value that a hyperparameter of this arm can take: those of its space, of its default, as published."""
    choices = getattr(arm.space.get(name), "choices", ())
    configs = [arm.default, *([arm.published.config] if arm.published else [])]
    return tuple(dict.fromkeys([*choices, *(c[name] for c in configs if name in c)]))


def refuse_unusable(study: Study, say: Callable[[str], None]) -> None:
    """Raise ValueError for networks that cannot be used, layers that do not exist or are too small, too large a cache.

    Decodes a folder of images, or downloads CIFAR-10, where that has not been done yet.
    """
    dataset = load(asdict(study.data), say)
    fit = dataset.fit_rows(study.confirm_on)
    _refuse_unusable_student(study, fit, dataset.classes)
    teacher = _teacher_shapes(study, dataset, fit)
    for use in uses(study):
        refuse_unusable_layers(use, _layers_of(use.student, dataset), teacher)
    views = study.views
    arrays = wanted_shapes(wanted(uses(study), tuple(teacher)), dataset.classes, teacher, views.alignment_channels)
    count = views.count if views.pad or views.flip else 1
    cached.refuse_too_large(arrays, count, len(fit), views.cache_limit_mb)


def _refuse_unusable_student(study: Study, fit: Rows, classes: int) -> None:
    for spec in study.students:
        if spec["kind"] == "resnet":
            continue
        if study.compute.compile:
            raise Unusable("compute.compile=true is for the built-in ResNets: leave it out with a student from outside")
        model, images = resnet.untrained(spec, fit, classes), as_tensor(fit.x[:2]).float() / 255
        refuse_untrainable(f"the student {described(spec)}", model, images, classes)


def _teacher_shapes(study: Study, dataset: Dataset, fit: Rows) -> dict[str, tuple[int, int, int]]:
    """The teacher's layers with maps; raises ValueError for one that cannot be used and for arms that need more."""
    spec = asdict(study.teacher)
    if outside.says_logits_only(study):
        if compared := [use.arm for use in uses(study)]:
            others = [name for name in study.arms if name not in compared]
            raise UnusableLayer(
                f"{', '.join(compared)} compare layers with the teacher's, and a teacher of kind {spec['kind']} says "
                f"logits only: leave them out (--arms {','.join(others)}), or give the teacher as a module with a "
                "checkpoint"
            )
        build_teacher(study, 0, fit, dataset, 0, "cpu")
        return {}
    if study.teacher_fitted_on is not None:
        opened = build_teacher(study, 0, fit, dataset, 0, "cpu")
        assert not isinstance(opened, LogitsTable)
        return map_shapes(opened.model, *fit.x.shape[1:])
    model = resnet.untrained(spec, fit, dataset.classes)
    if spec["kind"] != "resnet":
        if study.compute.compile:
            raise Unusable("compute.compile=true is for the built-in ResNets: leave it out with a teacher from outside")
        images = as_tensor(fit.x[:2]).float() / 255
        refuse_untrainable(f"the teacher {described(spec)}", model, images, dataset.classes)
    return map_shapes(model, *fit.x.shape[1:])
