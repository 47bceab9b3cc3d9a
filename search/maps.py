"""Where teacher and students look on a few test images, kept beside an image run for its report."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search.ledger import Ledger
from search.students import load_student
from spaces import BadInput, Study, load_study
from spaces.outside import LOGITS_ONLY
from trainables.datasets import Rows, load
from trainables.losses import attention_map
from trainables.masks import causal_mask, layer_cam
from trainables.models.networks import HasMaps, map_shapes
from trainables.models.resnet import ResNet
from trainables.teachers import resnet
from trainables.views import as_tensor
from trainables.vision import Student

FILE = "maps.npz"
IMAGES = 6
SMALLEST = 4  # maps below 4x4 show nothing
LOOK = "maps"


def write(run: Path) -> Path:
    """Write RUN/maps.npz: attention maps of the deployed students and of their teacher at one layer, and the mask.

    images (n, channels, height, width) uint8, the first test image of each of up to 6 classes; classes (n,); arms (A,);
    teacher, mask (n, h, w) and students (A, n, h, w) float16 in [0, 1], each map scaled to its own maximum; layer. The
    look at the test split is recorded. Raises BadInput where there is nothing to show, with the reason.
    """
    study = load_study(run / "study.yaml")
    if study.family != "vision":
        raise BadInput(f"{run} has no maps: {study.name} is no study of images")
    students = {arm: load_student(run, arm) for arm in study.searched}
    with Ledger.open(run) as ledger:
        built = [t["artefact"] for t in ledger.teachers() if (t["fit"], t["teacher_set"]) == (study.confirm_on, 0)]
        labels = ledger.labels("test")
        if not built or labels is None:
            raise BadInput(f"{run} has no maps yet: its teacher or its test split has not been opened")
        try:
            if study.teacher.kind in LOGITS_ONLY:
                raise BadInput(f"{run} has no maps: its teacher says logits only")
            teacher = resnet.reopen(built[0], asdict(study.compute), "cpu")
        except FileNotFoundError:
            raise BadInput(f"{run} has no maps: its teacher is not in the cache any more") from None
        if LOOK not in [look["purpose"] for look in ledger.looks()]:
            ledger.look("test", labels, LOOK)
    rows = _shown(study)
    images = as_tensor(rows.x)
    layer = _layer([teacher.model, *(s.model for s in students.values() if isinstance(s, Student))], images)
    theirs, mask = _of_teacher(teacher, images, torch.from_numpy(rows.y), layer)
    size = theirs.shape[-2:]
    with torch.no_grad():
        maps = [
            _scaled(attention_map(s.model.forward_features((images / 255 - s.mean) / s.std, layer)), size)
            for s in students.values()
            if isinstance(s, Student)
        ]
    path = run / FILE
    new = path.with_suffix(".tmp.npz")
    np.savez_compressed(
        new,
        images=rows.x,
        classes=rows.y,
        arms=np.array(list(students)),
        layer=np.array(layer),
        teacher=theirs.numpy().astype(np.float16),
        mask=mask.numpy().astype(np.float16),
        students=torch.stack(maps).numpy().astype(np.float16),
    )
    new.replace(path)
    return path


def _shown(study: Study) -> Rows:
    test = load(asdict(study.data)).test
    assert test is not None  # only `without_test` takes it away
    first = [int(np.flatnonzero(test.y == label)[0]) for label in np.unique(test.y)[:IMAGES]]
    return test.taken(np.array(first))


def _layer(models: Sequence[ResNet | HasMaps], images: Tensor) -> str:
    """The deepest layer of this name whose maps are large enough in every network."""
    shapes = [map_shapes(model, *images.shape[1:]) for model in models]
    fit = [name for name in shapes[0] if all(name in s and min(s[name][1:]) >= SMALLEST for s in shapes)]
    if not fit:
        raise BadInput(f"no maps: no stage of every network has maps of {SMALLEST}x{SMALLEST} on images of this size")
    return fit[-1]


def _of_teacher(teacher: resnet.ResNetTeacher, images: Tensor, labels: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Attention map and causal mask, (n, h, w) each."""
    shown = teacher.normalise(images).requires_grad_(True)
    with torch.enable_grad():
        logits, outputs = teacher.model(shown, [layer])
        evidence = logits.gather(1, labels.unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(evidence, [outputs[layer]])
    features = outputs[layer].detach()
    size = (features.shape[-2], features.shape[-1])
    mask, _ = causal_mask(layer_cam(features, gradient), size, percentile=0, hard=False)
    return _scaled(attention_map(features), size), mask


def _scaled(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(n, h, w) resized to `size`, each divided by its maximum."""
    if tuple(maps.shape[-2:]) != tuple(size):
        maps = F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False).squeeze(1)
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
