"""The image family's trainable: convolutional students on cached teacher views, by any variant.

Convolutions do not pack: the seeds of one trial train one after another, epoch by epoch, each as it would alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.audit import BATCH, DeadTerm, TermAudit, audit, audit_batches
from trainables.context import Context, EpochResult, TrialConfig
from trainables.datasets import refuse_overlap
from trainables.evaluation import validation_metrics
from trainables.layers import Pair, cached_mask_source, layer_pairs
from trainables.learner import Learner
from trainables.losses import cross_entropy
from trainables.masks import causal_mask
from trainables.models.networks import classes_of, map_shapes, network
from trainables.models.resnet import parameter_count
from trainables.own_variants import Shapes, extras_of, reads_features, variant_of
from trainables.packing import shuffled_within_class
from trainables.streams import Streams
from trainables.teachers.cached import TeacherViews
from trainables.teachers.outside import Graph
from trainables.teachers.resnet import ResNetTeacher, reopen, untrained
from trainables.variants import Outputs, Terms
from trainables.views import Normalise, Views, as_tensor


def train(config: TrialConfig, context: Context) -> Iterator[EpochResult]:
    """Train every seed epoch by epoch; every result is complete, so that a caller may stop after any.

    Raises Leak if a teacher has seen validation rows, DeadTerm if a weighted term sends no gradient at the first step.
    """
    replicates = [_Replicate(config, context, r) for r in config.replicates]
    if context.resume:
        for i, one in enumerate(replicates):
            one.learner.load_state(_of_seed(context.resume, i))
    parameters = parameter_count(replicates[0].learner.model)
    if context.validation is not None:
        val_x = as_tensor(context.validation.x, context.device)
        val_y = as_tensor(context.validation.y, context.device)

    def state() -> dict[str, Tensor]:
        each = {f"{i}.{k}": v for i, one in enumerate(replicates) for k, v in one.learner.state().items()}
        normalise = replicates[0].learner.normalise
        return each | {"normalise.mean": normalise.mean.flatten(), "normalise.std": normalise.std.flatten()}

    def predict(x: NDArray[Any]) -> Tensor:
        images = as_tensor(x)
        return torch.stack([one.learner.logits(images) for one in replicates])

    audits = {0: replicates[0].audit(config.dead_terms)} if context.resume_epoch == 0 else {}
    if config.epochs == 0:
        yield EpochResult(0, {}, parameters, audits, False, state, predict)
    for epoch in range(context.resume_epoch + 1, config.epochs + 1):
        losses = [one.learner.train_epoch(epoch, one.loss) for one in replicates]
        finite = all(np.isfinite(v) for values in losses for v in values.values())
        diverged = not finite or not all(one.learner.finite() for one in replicates)
        metrics = {f"loss_{name}": [values[name] for values in losses] for name in losses[0]}
        collapsed = ""
        if epoch in config.audit_at and not diverged:
            try:
                audits[epoch] = replicates[0].audit(config.dead_terms)
            except DeadTerm as error:  # alive at the first step: no fault of the variant, but of a student that is dead
                diverged, collapsed = True, f"the student has collapsed by epoch {epoch}: {error}"
        if context.validation is not None and epoch >= config.evaluate_from and not diverged:
            metrics |= validation_metrics(torch.stack([one.learner.logits(val_x) for one in replicates]), val_y)
        yield EpochResult(epoch, metrics, parameters, audits, diverged, state, predict, collapsed)
        audits = {}
        if diverged:
            return


def shapes(
    config: TrialConfig, classes: int, student: Mapping[str, tuple[int, ...]], teacher: Shapes | None
) -> tuple[Shapes, Shapes | None]:
    """What a variant is given of one image, by the student's layers.

    student: (C, H, W) by layer; teacher: shapes of what is kept of it, such as `attention.layer3`, or None.
    """
    pairs = layer_pairs(config.hp.get("layers", ""))
    own: dict[str, tuple[int, ...]] = {"logits": (config.student.get("outputs") or classes,)}
    own |= {f"features.{p.student}": student[p.student] for p in pairs}
    if teacher is None or config.teacher_rows == "none":
        return own, None
    shown: dict[str, tuple[int, ...]] = {"logits": (classes,)}
    for pair in pairs:
        map_ = teacher[f"attention.{pair.teacher}"]
        shown[f"attention.{pair.student}"] = map_
        if f"features.{pair.teacher}" in teacher:
            features = shown[f"features.{pair.student}"] = teacher[f"features.{pair.teacher}"]
            if "fa_weight" in config.hp:
                own[f"aligned.{pair.student}"] = (features[0], *student[pair.student][1:])
        if config.hp.get("mask", "none") != "none":
            size = map(min, student[pair.student][1:], map_)
            shown[f"masks.{pair.student}"] = tuple(size)
    return own, shown


class Student(nn.Module):
    """One trained student: images (n, channels, height, width) as floats in [0, 1] -> logits (n, outputs)."""

    mean: Tensor
    std: Tensor

    def __init__(self, state: Mapping[str, Tensor], seed: int, student: Mapping[str, Any]) -> None:
        """state: of an `EpochResult`; seed: its place in the pack; student: what it is, as in the study."""
        super().__init__()
        weights = {k.removeprefix("model."): v for k, v in _of_seed(state, seed).items() if k.startswith("model.")}
        self.model = network(student, state["normalise.mean"].numel(), classes_of(weights))
        self.model.load_state_dict(weights)
        self.model.eval()
        self.register_buffer("mean", state["normalise.mean"].reshape(1, -1, 1, 1))
        self.register_buffer("std", state["normalise.std"].reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)[0]
        return logits


class _Replicate:
    """One seed of a trial: its learner and what it is shown of its teacher."""

    def __init__(self, config: TrialConfig, context: Context, replicate: int) -> None:
        fit, streams = context.fit, context.streams
        self._config, self._variant = config, variant_of(config.variant)
        self._pairs = layer_pairs(config.hp.get("layers", ""))
        self._teacher: TeacherViews | None = None
        self._live: ResNetTeacher | None = None
        labels, device = as_tensor(fit.y, context.device), context.device
        model = untrained(config.student, fit, context.classes)
        shapes = map_shapes(model, *fit.x.shape[1:]) if self._pairs else {}
        extras: dict[str, nn.Module] = {}
        if config.teacher_rows != "none":
            self._teacher = context.teachers[replicate % len(context.teachers)]
            if context.validation is not None:
                refuse_overlap("the teacher", self._teacher.fitted_on, "validation", context.validation)
            self._rows = _teacher_rows(config, streams, replicate, fit.y).to(device)
            self._mask_rows = _others(len(fit), streams.generator("mask rows", replicate)).to(device)
            if reads_features(config.variant) and context.views["alignment_channels"] == "live":
                self._live = reopen(self._teacher.teacher, context.compute, device)
            if "fa_weight" in config.hp:
                extras = _regressors(self._pairs, shapes, self._aligned_channels(fit.x), streams, replicate)
        self._sizes = {p.student: shapes[p.student][1:] for p in self._pairs}
        extras |= extras_of(config.variant, *self._about(config, context, shapes, fit.x), config.hp, streams, replicate)
        self.learner = Learner(
            model,
            Views(as_tensor(fit.x, device), context.views),
            labels,
            Normalise.of(fit.x),
            config.hp,
            config.horizon or config.epochs,
            streams,
            replicate,
            context.compute,
            layers=[p.student for p in self._pairs],
            extras=extras,
        )

    def loss(self, student: Outputs, rows: Tensor, view: int) -> Terms:
        """The variant's terms for one batch."""
        shown = None if self._teacher is None else self._shown(self._teacher, rows, view)
        return self._variant(student, shown, self.learner.labels[rows], self._config.hp)

    def audit(self, declared: Sequence[str]) -> dict[str, TermAudit]:
        """Audit the first rows; where a weighted term looks dead, three more batches decide whether it is."""
        weights = list(self.learner.model.parameters())

        def of_batch(number: int) -> dict[str, TermAudit]:
            n = len(self.learner.labels)
            rows = torch.arange(number * BATCH, min((number + 1) * BATCH, n), device=self.learner.device)
            images = self.learner.show(rows, 0)
            student = self.learner.untracked(images)
            terms = self.loss(student, rows, 0)
            packed = {name: replace(term, value=term.value.unsqueeze(0)) for name, term in terms.items()}
            ce = cross_entropy(student.logits, self.learner.labels[rows]).unsqueeze(0)
            return audit(packed, ce, weights, list(self.learner.extras.parameters()))

        return audit_batches(of_batch, len(self.learner.labels), declared)

    def _shown(self, teacher: TeacherViews, rows: Tensor, view: int) -> Outputs:
        """What the teacher says of this view of the rows, or of others of their class; its masks are of the images."""
        theirs = self._rows[rows]
        features, attention, masks = {}, {}, {}
        for pair in self._pairs:
            if f"attention.{pair.teacher}" in teacher:
                attention[pair.student] = teacher.attention(pair.teacher, view, theirs)
            if f"features.{pair.teacher}" in teacher:
                features[pair.student] = teacher.features(pair.teacher, view, theirs)
            masks[pair.student] = self._mask(teacher, pair, view, rows)
        if self._live is not None:
            features = {p.student: self._run(self._live, theirs, view, p.teacher) for p in self._pairs}
            features = {p.student: features[p.student] / teacher.deviation[p.teacher] for p in self._pairs}
        return Outputs(teacher.logits(view, theirs), features, attention=attention, masks=masks)

    @torch.no_grad()
    def _run(self, teacher: ResNetTeacher, rows: Tensor, view: int, layer: str) -> Tensor:
        """The teacher's features at a layer, on the views that its cache was made of and as large as its maps there."""
        assert self._teacher is not None
        shown = teacher.normalise(self.learner.views(rows, view)).contiguous(memory_format=torch.channels_last)
        with teacher.autocast(shown):
            assert not isinstance(teacher.model, Graph)
            features = teacher.model.forward_features(shown, layer).float()
        height, width = self._teacher.shape(f"attention.{layer}")
        return features if features.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(features, (height, width))

    def _mask(self, teacher: TeacherViews, pair: Pair, view: int, rows: Tensor) -> Tensor | None:
        hp = self._config.hp
        if hp.get("mask", "none") == "none":
            return None
        kind, layer = cached_mask_source(hp["mask"], pair, teacher)
        whose = self._mask_rows[rows] if hp["mask"] == "random_mask" else rows
        size = tuple(map(min, self._sizes[pair.student], teacher.shape(f"attention.{pair.teacher}")))
        activation = teacher.activation(kind, layer, view, whose)
        mask, _ = causal_mask(activation, (size[0], size[1]), hp["mask_percentile"], hp["mask_edge"] == "hard")
        return mask

    def _about(
        self, config: TrialConfig, context: Context, student: Mapping[str, tuple[int, ...]], images: NDArray[Any]
    ) -> tuple[Shapes, Shapes | None]:
        if self._teacher is None:
            return shapes(config, context.classes, student, None)
        cached = {name: self._teacher.shape(name) for name in self._teacher.names()}
        if self._live is not None:
            channels = self._aligned_channels(images)
            sizes = {p: cached[f"attention.{p.teacher}"] for p in self._pairs}
            cached |= {f"features.{p.teacher}": (channels[p.student], *size) for p, size in sizes.items()}
        return shapes(config, context.classes, student, cached)

    def _aligned_channels(self, images: NDArray[Any]) -> dict[str, int]:
        """Channels of the teacher's features by the student's layer, cached or from the teacher that runs live."""
        assert self._teacher is not None
        if self._live is None:
            return {p.student: self._teacher.shape(f"features.{p.teacher}")[0] for p in self._pairs}
        shapes = map_shapes(self._live.model, *images.shape[1:])
        return {p.student: shapes[p.teacher][0] for p in self._pairs}


def _teacher_rows(config: TrialConfig, streams: Streams, replicate: int, labels: NDArray[np.int64]) -> Tensor:
    """(N,) which row of the teacher each sample sees."""
    if config.teacher_rows == "shuffled_within_class":
        return shuffled_within_class(labels, streams.generator("teacher rows", replicate))
    return torch.arange(len(labels))


def _others(n: int, generator: torch.Generator) -> Tensor:
    """(n,) for each sample another one: a single random cycle through all of them."""
    order = torch.randperm(n, generator=generator)
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def _regressors(
    pairs: Sequence[Pair],
    shapes: Mapping[str, tuple[int, int, int]],
    channels: Mapping[str, int],
    streams: Streams,
    replicate: int,
) -> dict[str, nn.Module]:
    """A 1x1 convolution for each layer, from the student's channels to the teacher's, from a stream of its own."""
    generator = streams.generator("regressors", replicate)
    modules: dict[str, nn.Module] = {}
    for pair in pairs:
        regressor = nn.Conv2d(shapes[pair.student][0], channels[pair.student], kernel_size=1)
        bound = shapes[pair.student][0] ** -0.5
        for p in regressor.parameters():
            nn.init.uniform_(p, -bound, bound, generator=generator)
        modules[pair.student] = regressor
    return modules


def _of_seed(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    prefix = f"{seed}."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
