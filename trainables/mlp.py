"""The MLP family's trainable: a pack of small students on table rows, by any variant."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.audit import BATCH, TermAudit, audit, audit_batches
from trainables.context import Context, EpochResult, TrialConfig
from trainables.datasets import Scaling, refuse_overlap
from trainables.evaluation import validation_metrics
from trainables.losses import cross_entropy, is_finite
from trainables.models.mlp import parameter_count, single_of
from trainables.models.stacked import StackedModule, module_of_seed, stacked_of
from trainables.own_variants import Shapes, extras_of, packed_parts, packed_variant
from trainables.packing import Loss, Pack, shuffled_within_class
from trainables.variants import Outputs


def train(config: TrialConfig, context: Context) -> Iterator[EpochResult]:
    """Train the pack epoch by epoch; every result is complete, so that a caller may stop after any.

    Raises Leak if a teacher has seen validation rows, DeadTerm if a weighted term sends no gradient.
    """
    fit, dtype = context.fit, torch.get_default_dtype()
    scaling = Scaling.of(fit)

    def scaled(x: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(scaling(x)).to(context.device, dtype)

    y = torch.from_numpy(fit.y).to(context.device)
    network, parameters = _network(config.student, fit.x.shape[1], context.classes, len(config.replicates))
    widths = () if network is not None else _widths(config.student, fit.x.shape[1], context.classes)
    teacher = _teacher_logits(config, context)
    teacher = None if teacher is None else teacher.to(context.device, dtype)
    about = shapes(config, context.classes)
    extras = [extras_of(config.variant, *about, config.hp, context.streams, r) for r in config.replicates]
    parts = packed_parts(extras, context.device, dtype)
    pack = Pack(widths, (), config.replicates, context.streams, config.hp, scaled(fit.x), y, teacher, parts, network)
    if context.resume:
        pack.load_state(context.resume)

    variant = packed_variant(config.variant, *pack.first_rows(slice(0, BATCH)), config.hp)

    def loss(student: Outputs, shown: Outputs | None, labels: Tensor):  # type: ignore[no-untyped-def]
        return variant(student, shown, labels, config.hp)

    def state() -> dict[str, Tensor]:
        return pack.state() | {
            "scaling.mean": torch.from_numpy(scaling.mean),
            "scaling.scale": torch.from_numpy(scaling.scale),
        }

    def predict(x: NDArray[np.float64]) -> Tensor:
        return pack.logits(scaled(x))

    if context.validation is not None:
        val_x, val_y = scaled(context.validation.x), torch.from_numpy(context.validation.y).to(context.device)
    audits = {0: _audit(pack, loss, config.dead_terms)} if context.resume_epoch == 0 else {}
    if config.epochs == 0:
        yield EpochResult(0, {}, parameters, audits, False, state, predict)
    for epoch in range(context.resume_epoch + 1, config.epochs + 1):
        losses = pack.train_epoch(epoch, loss)
        diverged = not all(bool(is_finite(v).all()) for v in losses.values()) or not pack.finite()
        metrics = {f"loss_{name}": value.tolist() for name, value in losses.items()}
        if context.validation is not None and epoch >= config.evaluate_from and not diverged:
            metrics |= validation_metrics(pack.logits(val_x), val_y)
        if epoch in config.audit_at and not diverged:
            audits[epoch] = _audit(pack, loss, config.dead_terms)
        yield EpochResult(epoch, metrics, parameters, audits, diverged, state, predict)
        audits = {}
        if diverged:
            return


def shapes(config: TrialConfig, classes: int) -> tuple[Shapes, Shapes | None]:
    """What a variant is given of one sample, of student and teacher."""
    student: Shapes = {"logits": (classes,)}
    if config.student["kind"] == "mlp":
        student = {**student, "features.hidden": (config.student["hidden"][-1],)}
    return student, None if config.teacher_rows == "none" else {"logits": (classes,)}


class Student(nn.Module):
    """One trained student as an ordinary module: features as they come, (n, features) -> logits (n, classes)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, state: Mapping[str, Tensor], seed: int, student: Mapping[str, Any] | None = None) -> None:
        """state: of an `EpochResult`; seed: its place in the pack; student: what it is, unless a perceptron."""
        super().__init__()
        self.layers = layers_of(state, seed, student)
        self.register_buffer("mean", state["scaling.mean"].float())
        self.register_buffer("scale", state["scaling.scale"].float())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers((x - self.mean) / self.scale)
        return logits


def layers_of(state: Mapping[str, Tensor], seed: int, student: Mapping[str, Any] | None = None) -> nn.Module:
    """One seed's network from a pack's state: standardised features (n, features) -> logits (n, classes)."""
    if student is None or student["kind"] == "mlp":
        return single_of(state, seed)
    return module_of_seed(student, state["scaling.mean"].numel(), int(state["model.classes"]), state, seed)


def _network(student: Mapping[str, Any], features: int, classes: int, seeds: int) -> tuple[StackedModule | None, int]:
    """The user's module packed, or None for a perceptron; and the parameters of one."""
    if student["kind"] == "mlp":
        return None, parameter_count(_widths(student, features, classes))
    stacked = stacked_of(student, features, classes, seeds)
    return stacked, sum(p[0].numel() for p in stacked.parameters())


def _widths(student: Mapping[str, Any], features: int, classes: int) -> list[int]:
    return [features, *student["hidden"], classes]


def _teacher_logits(config: TrialConfig, context: Context) -> Tensor | None:
    """(S, N, classes): for each seed its teacher's logits, in the row order that the arm asks for."""
    if config.teacher_rows == "none":
        return None
    for teacher in context.teachers:
        if context.validation is not None:
            refuse_overlap("the teacher", teacher.fitted_on, "validation", context.validation)
    sets = torch.stack([torch.from_numpy(teacher.logits) for teacher in context.teachers])
    rows = sets[[r % len(sets) for r in config.replicates]]
    if config.teacher_rows == "shuffled_within_class":
        generators = [context.streams.generator("teacher rows", r) for r in config.replicates]
        order = torch.stack([shuffled_within_class(context.fit.y, g) for g in generators])
        rows = rows.take_along_dim(order.unsqueeze(-1), dim=1)
    return rows


def _audit(pack: Pack, loss: Loss, declared: tuple[str, ...]) -> dict[str, TermAudit]:
    """Audit the first rows; where a weighted term looks dead, three more batches decide whether it is."""

    def of_batch(number: int) -> dict[str, TermAudit]:
        student, shown, labels = pack.first_rows(slice(number * BATCH, (number + 1) * BATCH))
        ce = cross_entropy(student.logits, labels)
        return audit(loss(student, shown, labels), ce, list(pack.model.parameters()), pack.extras)

    return audit_batches(of_batch, len(pack.y), declared)
