"""The distillation variants: each is a pure function, about as long as its formula.

`variant(student, teacher, labels, hp) -> {name: Term}`. Shapes broadcast over leading dimensions: logits
(..., batch, classes), labels (..., batch), each term's value (..., batch). What an arm's teacher rows are (its own, or
another sample's of the same class) is the arm's business: a variant takes the teacher as it comes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from trainables.losses import cross_entropy, hinton_kd


@dataclass(frozen=True)
class Outputs:
    """What a network says of a batch: logits (..., batch, classes), and features by layer where a variant asks."""

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One named part of a loss: its value per sample (..., batch) and its weight in the sum."""

    value: Tensor
    weight: float


Terms = dict[str, Term]
HyperParameters = Mapping[str, Any]
Variant = Callable[[Outputs, Outputs | None, Tensor, HyperParameters], Terms]


def hard_labels(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """Cross-entropy on the labels alone: the baseline of every study."""
    return {"ce": Term(cross_entropy(student.logits, labels), 1.0)}


def label_smoothing(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """Cross-entropy on labels smoothed by hp["smoothing"]: soft targets without a teacher."""
    return {"ce_smoothed": Term(cross_entropy(student.logits, labels, hp["smoothing"]), 1.0)}


def kd(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """kd_weight x T² KL(teacher || student) + (1 - kd_weight) x cross-entropy (arXiv 1503.02531)."""
    assert teacher is not None
    weight = hp["kd_weight"]
    return {
        "ce": Term(cross_entropy(student.logits, labels), 1.0 - weight),
        "kd": Term(hinton_kd(student.logits, teacher.logits, hp["temperature"]), weight),
    }


VARIANTS: dict[str, Variant] = {"hard_labels": hard_labels, "label_smoothing": label_smoothing, "kd": kd}
