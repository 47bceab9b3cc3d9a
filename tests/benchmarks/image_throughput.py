"""Images a second of a `kd` trial in distune beside the loop that a user would write, and what the audit costs.

    python -m tests.benchmarks.image_throughput --data FOLDER --json                  # both figures
    python -m tests.benchmarks.image_throughput --images 128 --repeats 1 --json      # noise images: does it run
    python -m tests.benchmarks.image_throughput --audit --json                        # the audit alone

FOLDER holds `train/<class>/...` and `test/<class>/...` of 32x32 colour images; without it images are noise.

`ratio`: a ResNet-18 without max-pool distilled from a ResNet-50, batch 128, random crops and flips, SGD with momentum,
on the CPU. distune reads its teacher's logits from the cache of views, built before (`cache` says at what cost);
`plain_image_kd.py` runs the teacher in every step, in float32. Both have all cores and train on the same images, which
the plain side holds decoded. Sides alternate; left out are distune's first epoch, which has the audit, and the plain
side's first step, which starts its DataLoader's workers. Teachers are untrained: speed does not depend on weights.

`audit_share`: what the gradient audit (first step and every rung) takes of a full-length trial of the digits study, on
one thread as in a sweep: (with - without) / with, for trials in alternation. Seconds are of CPU time, which other work
on the machine disturbs less than the wall's. `inside` is the share that a clock around the audits themselves measures
in the trials with audits: the difference of two trials is noisier than what it measures.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from search.payload import Payload, trial_config
from spaces import Study, load_study
from spaces.families import ResNetTeacher, Views
from tests.benchmarks import plain_image_kd
from trainables import vision
from trainables.artefacts import build_once
from trainables.context import Context, TrialConfig
from trainables.datasets import Rows, load
from trainables.learner import autocast
from trainables.streams import Streams
from trainables.teachers import cached, resnet
from trainables.views import Normalise

BATCH = plain_image_kd.BATCH
VIEWS = 2
WANTED = {True: 4.0, False: 2.5}  # ratio, by whether the processor has bf16
AUDITED = ("kd_fa_at", "hard_labels")


class Pictures(Dataset):
    """PIL images in memory with the user's transforms: what the plain side's workers load."""

    def __init__(self, rows: Rows) -> None:
        self.images = [Image.fromarray(image.transpose(1, 2, 0)) for image in rows.x]
        self.labels = rows.y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return plain_image_kd.AUGMENT(self.images[i]), self.labels[i]


def read_images(folder: Path | None, count: int) -> tuple[Rows, int]:
    """`count` training images (count, 3, 32, 32) uint8 and the number of classes; SystemExit for other images."""
    if folder is None:
        random = np.random.default_rng(0)
        return Rows(random.integers(256, size=(count, 3, 32, 32), dtype=np.uint8), random.integers(10, size=count)), 10
    spec = {"kind": "image_folder", "path": str(folder), "size": None, "grayscale": False, "skip_broken": False}
    limits = {"validation_fraction": 0.1, "train_limit": count, "test_limit": None, "split_seed": 0}
    data = load({**spec, **limits}, say)
    if data.train.x.shape != (count, 3, 32, 32):
        raise SystemExit(f"{folder} gives {data.train.x.shape}, expected {count} images (3, 32, 32): lower --images?")
    return data.train, data.classes


def untrained_teacher(study: Study, fit: Rows, classes: int) -> resnet.ResNetTeacher:
    """The study's teacher as it is before it is trained, in the cache like any other."""
    spec = asdict(study.teacher)

    def build() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        model, normalise = resnet.untrained(spec, fit, classes), Normalise.of(fit.x)
        model.initialise(Streams(study.name).generator("init", 0))
        normal = {"normalise.mean": normalise.mean.flatten(), "normalise.std": normalise.std.flatten()}
        return model.state_dict() | normal, {}

    artefact = build_once(resnet.KIND, {"what": "untrained", "spec": spec}, fit.fingerprints(), build)
    return resnet.reopen(artefact.key, asdict(study.compute), "cpu")


def context_of(payload: Payload) -> Context:
    return replace(payload.context(), device="cpu")


def measure_throughput(folder: Path | None, images: int, epochs: int, repeats: int) -> dict[str, Any]:
    """The first figure: `epochs` timed passes over the images, of each side in every repeat."""
    torch.set_num_threads(os.cpu_count() or 1)
    study = load_study("cifar10-attention-transfer")  # its student is the ResNet-18 without max-pool
    teacher = ResNetTeacher(depth=50, stem="no_maxpool", cbam=False)
    study = replace(study, teacher=teacher, views=Views(count=VIEWS, pad=4, flip=True))
    fit, classes = read_images(folder, images)
    ours, plain = [], []
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, {"DISTUNE_CACHE": cache}):
        frozen = untrained_teacher(study, fit, classes)
        views, built = build_views(study, frozen, fit, classes)
        say(f"cache: {built['seconds']:.1f} s for {VIEWS} views of {images} images")
        hp = {**study.arms["kd"].default, "batch_size": BATCH}
        config = replace(trial_config(study, "kd", hp, (0,), epochs=1 + epochs), audit_at=())
        context = context_of(Payload(study, 0, fit, None, classes, (views,)))
        pictures = Pictures(fit)
        for repeat in range(repeats):
            plain.append(images * epochs / plain_seconds(pictures, classes, images * epochs // BATCH))
            ours.append(images * epochs / our_seconds(config, context))
            say(f"{repeat + 1}/{repeats}: distune {ours[-1]:.0f} images a second, plain {plain[-1]:.0f}")
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    bf16 = isinstance(autocast(study.compute.precision, "cpu", 32 * 32), torch.autocast)
    return {
        "ratio": median(ratios),
        "n": repeats,
        "spread": [min(ratios), max(ratios)],
        "ours": ours,
        "plain": plain,
        "cache": built,
        "bf16": bf16,
        "threads": torch.get_num_threads(),
        "wanted": WANTED[bf16],
    }


def build_views(
    study: Study, teacher: resnet.ResNetTeacher, fit: Rows, classes: int
) -> tuple[cached.TeacherViews, dict[str, float]]:
    """The cache of the teacher's logits, and what it cost; `images_per_second` counts each view of an image."""
    started = time.perf_counter()
    views = cached.build(teacher, fit, asdict(study.views), cached.Wanted(), classes)
    seconds = time.perf_counter() - started
    return views, {
        "seconds": seconds,
        "images": len(fit),
        "views": VIEWS,
        "mb": sum(path.stat().st_size for path in Path(views.folder).glob("*.npy")) / 1e6,
        "seconds_per_view": seconds / VIEWS,
        "images_per_second": VIEWS * len(fit) / seconds,
    }


def our_seconds(config: TrialConfig, context: Context) -> float:
    """Wall seconds of every epoch of a trial but the first."""
    results = vision.train(config, context)
    next(results)
    started = time.perf_counter()
    if any(result.diverged for result in results):
        raise SystemExit("the trial diverged, so that it says nothing of speed")
    return time.perf_counter() - started


def plain_seconds(pictures: Pictures, classes: int, steps: int) -> float:
    """Wall seconds of `steps` steps of the plain loop after its first."""
    trained = plain_image_kd.train(pictures, classes)
    next(trained)
    started = time.perf_counter()
    for _ in islice(trained, steps):
        pass
    seconds = time.perf_counter() - started
    trained.close()  # ends the workers before the other side's turn
    return seconds


def measure_audits(repeats: int) -> dict[str, Any]:
    """The second figure, for one arm with every term and one with a single term."""
    torch.set_num_threads(1)
    study = load_study("digits-attention-transfer")
    data = load(asdict(study.data))
    shares = {}
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, {"DISTUNE_CACHE": cache}):
        teacher = untrained_teacher(study, data.train, data.classes)
        layers = (study.arms["kd_fa_at"].default["layers"],)
        wanted = cached.Wanted(attention=layers, features=layers)
        views = cached.build(teacher, data.train, asdict(study.views), wanted, data.classes)
        context = context_of(Payload(study, 0, data.train, data.validation, data.classes, (views,)))
        for name in AUDITED:
            config = trial_config(study, name, study.arms[name].default, range(study.budget.seeds_per_trial))
            trial_seconds(replace(config, epochs=1), context, audits=True)
            trials, without = [], []
            for repeat in range(repeats):
                trials.append(trial_seconds(config, context, audits=True))
                without.append(trial_seconds(config, context, audits=False)[0])
                say(f"{repeat + 1}/{repeats} {name}: {trials[-1][0]:.2f} s with audits, {without[-1]:.2f} s without")
            found = [(seconds - w) / seconds for (seconds, _), w in zip(trials, without, strict=True)]
            inside = [auditing / seconds for seconds, auditing in trials]
            shares[name] = {
                "share": median(found),
                "spread": [min(found), max(found)],
                "inside": median(inside),
                "inside_spread": [min(inside), max(inside)],
                "n": repeats,
                "audits": 1 + len(config.audit_at),
                "epochs": config.epochs,
                "seeds": len(config.replicates),
                "with": [seconds for seconds, _ in trials],
                "without": without,
            }
    return shares


def trial_seconds(config: TrialConfig, context: Context, audits: bool) -> tuple[float, float]:
    """CPU seconds of a whole trial, and those of its audits. Without audits they are replaced by nothing."""
    auditing, real = 0.0, vision._Replicate.audit

    def audit(replicate: Any, declared: Any) -> Any:
        nonlocal auditing
        if not audits:
            return {}
        began = time.process_time()
        found = real(replicate, declared)
        auditing += time.process_time() - began
        return found

    with mock.patch.object(vision._Replicate, "audit", audit):
        started = time.process_time()
        *_, last = vision.train(config, context)
        seconds = time.process_time() - started
    if last.epoch != config.epochs or last.diverged:
        raise SystemExit("the trial diverged, so that it says nothing of the audit's share")
    return seconds, auditing


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="image folder; without it images are noise")
    parser.add_argument("--images", type=int, default=1024, help=f"a multiple of {BATCH}")
    parser.add_argument("--steps", type=int, default=1, help="at least so many timed steps, in whole passes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--audit", action="store_true", help="only what the audit costs")
    parser.add_argument("--json", action="store_true", help="the object on one line")
    args = parser.parse_args()
    if args.images < BATCH or args.images % BATCH:
        parser.error(f"--images {args.images}: give a multiple of {BATCH}, the batch, so that all steps are alike")
    epochs = max(1, math.ceil(args.steps * BATCH / args.images))
    result = {} if args.audit else measure_throughput(args.data, args.images, epochs, args.repeats)
    result["audit_share"] = measure_audits(args.repeats)
    print(json.dumps(result, indent=None if args.json else 2))
