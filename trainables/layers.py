"""Which layers of student and teacher are compared, what that needs of the teacher, and whether their maps can serve.

On a map of 1x1 attention transfer and its gradient are exactly 0, and a mask of 2x2 says next to nothing of where: both
are refused before anything trains.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.datasets import shortened
from trainables.names import nearest
from trainables.teachers.cached import TeacherViews, Wanted

LEAST_ATTENTION, LEAST_MASK = 2, 4  # pixels a side
Shapes = Mapping[str, tuple[int, int, int]]


class UnusableLayer(ValueError):
    """A layer that does not exist, or whose map is too small for what an arm does with it."""


@dataclass(frozen=True)
class Pair:
    """A student's layer and the teacher's that it is compared with."""

    student: str
    teacher: str


@dataclass(frozen=True)
class Use:
    """What one arm may do with maps. layers, masks: every value that its hyperparameters of that name can take.

    dead: the arm declares its terms dead (as-released arms), so that the size of its maps does not matter.
    """

    arm: str
    student: Mapping[str, Any]
    layers: tuple[str, ...]
    masks: tuple[str, ...] = ("none",)
    aligns: bool = False
    dead: bool = False


def layer_pairs(layers: str) -> tuple[Pair, ...]:
    """`layer2+layer3` compares layers of one name; `layer3:layer4` the student's layer3 with the teacher's layer4."""
    pairs = []
    for part in filter(None, layers.split("+")):
        student, _, teacher = part.partition(":")
        pairs.append(Pair(student, teacher or student))
    return tuple(pairs)


def wanted(uses: Iterable[Use], teacher_layers: tuple[str, ...]) -> Wanted:
    """What the cache must hold for these arms."""
    attention: set[str] = set()
    features: set[str] = set()
    activations: set[tuple[str, str]] = set()
    for use in uses:
        for pair in (p for layers in use.layers for p in layer_pairs(layers)):
            attention.add(pair.teacher)
            if use.aligns:
                features.add(pair.teacher)
            activations |= {mask_source(mask, pair, teacher_layers) for mask in use.masks if mask != "none"}
    return Wanted(tuple(sorted(attention)), tuple(sorted(features)), tuple(sorted(activations)))


def mask_source(mask: str, pair: Pair, teacher_layers: tuple[str, ...]) -> tuple[str, str]:
    """(kind, teacher's layer) of the class activation map behind a mask: Grad-CAM speaks of the last stage only."""
    return ("grad_cam", teacher_layers[-1]) if mask == "grad_cam" else ("layer_cam", pair.teacher)


def refuse_unusable(use: Use, student: Shapes, teacher: Shapes) -> None:
    """Raise UnusableLayer, naming the layers that exist or would do, for any setting that the arm may be given.

    student, teacher: (C, H, W) of every layer.
    """
    for layers in use.layers:
        pairs = layer_pairs(layers)
        if not pairs:
            raise UnusableLayer(f"{use.arm}: layers must name one, such as {next(iter(student))}, got {layers!r}")
        if len({p.student for p in pairs}) < len(pairs):
            raise UnusableLayer(f"{use.arm}: layers={layers} names a layer of the student twice")
        for pair in pairs:
            _refuse_unknown(use.arm, "student", pair.student, student)
            _refuse_unknown(use.arm, "teacher", pair.teacher, teacher)
            if use.dead:
                continue
            sides = (("student", pair.student, student), ("teacher", pair.teacher, teacher))
            for who, layer, shapes in sides:
                _refuse_small(use.arm, who, layer, shapes, LEAST_ATTENTION, "attention transfer and alignment")
                if set(use.masks) - {"none"}:
                    _refuse_small(use.arm, who, layer, shapes, LEAST_MASK, "a causal mask")
    if "grad_cam" in use.masks:
        last = list(teacher)[-1]
        _refuse_small(use.arm, "teacher", last, teacher, LEAST_MASK, "grad_cam, which reads the last stage,")


def cached_mask_source(mask: str, pair: Pair, teacher: TeacherViews) -> tuple[str, str]:
    """The same from a built cache, which holds Grad-CAM of one layer only."""
    if mask != "grad_cam":
        return "layer_cam", pair.teacher
    return "grad_cam", next(name.split(".", 1)[1] for name in teacher.names() if name.startswith("grad_cam."))


def _refuse_unknown(arm: str, who: str, layer: str, shapes: Shapes) -> None:
    if layer not in shapes:
        names = shortened(list(shapes), 12) if shapes else "none with maps of 2x2 or more"
        raise UnusableLayer(f"{arm}: the {who} has no layer {layer!r}; it has {names}{nearest(layer, shapes)}")


def _refuse_small(arm: str, who: str, layer: str, shapes: Shapes, least: int, what: str) -> None:
    _, height, width = shapes[layer]
    if min(height, width) < least:
        fit = [name for name, (_, h, w) in shapes.items() if min(h, w) >= least]
        raise UnusableLayer(
            f"{arm}: the {who}'s {layer} is {height}x{width}, and {what} needs at least {least}x{least}; "
            + (f"use {' or '.join(fit)}" if fit else "no layer of it is that large: use another stem or larger images")
        )
