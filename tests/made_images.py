"""What the tests of the image family stand on: a small digits study, random pictures, teachers that never trained."""

from dataclasses import asdict

import numpy as np
import torch

from spaces import load_study
from trainables import datasets
from trainables.artefacts import Artefact
from trainables.context import Context
from trainables.datasets import Rows
from trainables.models.resnet import ResNet
from trainables.streams import Streams
from trainables.teachers.cached import TeacherViews
from trainables.teachers.resnet import ResNetTeacher
from trainables.views import Normalise

SMALL = ("data.train_limit=200", "teacher.epochs=2", "teacher.width=8", "budget.max_epochs=3")


def digits(*overrides):
    """The digits study with little to do, and its rows without those to test on."""
    study = load_study("digits-attention-transfer", [*SMALL, *overrides])
    return study, datasets.load(asdict(study.data)).without_test()


def context_of(study, fit, validation, *teachers, **more):
    compute, views = asdict(study.compute), asdict(study.views)
    return Context(fit, validation, 10, teachers, Streams(study.name), views, compute, **more)


def pictures(n, side, channels=1, seed=0):
    """Random uint8 images of ten classes in turn."""
    x = np.random.default_rng(seed).integers(256, size=(n, channels, side, side), dtype=np.uint8)
    return Rows(x, np.arange(n) % 10)


def untrained_teacher(rows, *, width=4, stem="cifar", precision="fp32"):
    """A frozen ResNet-8 with CBAM as it was initialised, its batch norms' statistics random."""
    generator = torch.Generator().manual_seed(1)
    model = ResNet(8, 10, stem=stem, width=width, cbam=True, channels=rows.x.shape[1])
    model.initialise(generator)
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.uniform_(-0.2, 0.2, generator=generator)
        if "running_var" in name:
            buffer.uniform_(0.5, 1.5, generator=generator)
    model.fc.weight.data.abs_()  # every activation speaks for every class: few class activation maps are zero
    model.requires_grad_(False).eval()
    artefact = Artefact(f"untrained {width} {stem}", {}, rows.fingerprints(), {})
    return ResNetTeacher(artefact, model, Normalise.of(rows.x), precision)


def telling_teacher(folder, labels, views, sign=1):
    """A cache by hand in which everything tells whose it is: see `told_row` and `told_map`.

    Row r's first logit is sign x (r + 1 + 250 x view); its features are that everywhere; its maps are r + 1 in binary.
    """
    n = len(labels)
    number = sign * (np.arange(n) + 1 + 250.0 * np.arange(views)[:, None])
    assert np.abs(number).max() <= 2048, "half precision could not tell them apart"
    bits = (np.arange(1, n + 1)[:, None] >> np.arange(16)) & 1
    maps = np.broadcast_to(bits.reshape(1, n, 4, 4), (views, n, 4, 4))
    arrays = {"logits": np.zeros((views, n, 10)), "features.layer2": np.ones((views, n, 3, 4, 4))}
    arrays["logits"][:, :, 0] = number
    arrays["features.layer2"] *= number[:, :, None, None, None]
    arrays |= {f"{kind}.layer2": maps for kind in ("attention", "layer_cam")}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.astype(np.float16))
    nobody = np.zeros(0, dtype=np.int64)
    return TeacherViews(str(folder), fitted_on=nobody, deviation={}, degenerate={}, teacher="made by hand")


def told_row(numbers, view):
    """(batch,) the rows whose logits or features these are at this view."""
    return (numbers - 250 * view).long() - 1


def told_map(maps):
    """(batch,) the rows whose maps (batch, 4, 4) these are."""
    return (maps.flatten(1) * 2.0 ** torch.arange(16)).sum(dim=1).long() - 1
