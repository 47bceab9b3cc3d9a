"""The distillation variants: each is a pure function, about as long as its formula.

`variant(student, teacher, labels, hp) -> {name: Term}`. Shapes broadcast over leading dimensions: logits
(..., batch, classes), labels (..., batch), each term's value (..., batch). What an arm's teacher rows are (its own, or
another sample's of the same class) is the arm's business: a variant takes the teacher as it comes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trainables.losses import (
    SMALLEST,
    attention_distance,
    attention_map,
    bernoulli_kl,
    binary_cross_entropy,
    cross_entropy,
    feature_alignment,
    gated_mix,
    hinton_kd,
    one_sided_kl,
    same_size,
    softened,
)


@dataclass(frozen=True)
class Outputs:
    """What a network says of a batch: logits (..., batch, classes), and what a variant asks for by layer.

    features: (..., batch, channels, height, width). Of the student as they come from its forward pass; of the teacher
    divided by their standard deviation over the rows to fit on, so that a weight does not depend on their scale.
    aligned: the student's features through the trained 1x1 regressor, with the channels of the teacher's.
    attention: maps (..., batch, height, width), of the teacher only. masks: causal masks of the teacher at the size
    of the student's and the teacher's map, whichever is smaller; None where the arm uses none.
    Of tables there are two classes. gate: of the student, (..., batch, teachers), sums to 1. members: of the teachers,
    each one's logit of class 1, (..., batch, teachers).
    extras: of the student, the learned parts of a user's variant by name, each to be called with tensors.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    aligned: Mapping[str, Tensor] = field(default_factory=dict)
    attention: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor | None] = field(default_factory=dict)
    gate: Tensor | None = None
    members: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One named part of a loss: its value per sample (..., batch) and its weight in the sum.

    trains_extras: it is meant for the learned parts beside the student (a gate) and sends the student nothing.
    """

    value: Tensor
    weight: float
    trains_extras: bool = False


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


def weighted_kd(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """ce_weight x cross-entropy + kd_weight x T² KL(teacher || student): study 3's form, the weights free."""
    assert teacher is not None
    return {
        "ce": Term(cross_entropy(student.logits, labels), hp["ce_weight"]),
        "kd": Term(hinton_kd(student.logits, teacher.logits, hp["temperature"]), hp["kd_weight"]),
    }


def kd_fa(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """weighted_kd + fa_weight x feature alignment (arXiv 1412.6550), the mean over the layers used."""
    assert teacher is not None
    return {**weighted_kd(student, teacher, labels, hp), "fa": Term(_alignment(student, teacher), hp["fa_weight"])}


def kd_at(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """weighted_kd + at_weight x attention transfer (arXiv 1612.03928), the mean over the layers used."""
    assert teacher is not None
    return {
        **weighted_kd(student, teacher, labels, hp),
        "at": Term(_attention(student, teacher, hp["at_form"]), hp["at_weight"]),
    }


def kd_fa_at(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """weighted_kd + fa_weight x feature alignment + at_weight x attention transfer: the paper's combined arm."""
    assert teacher is not None
    return {
        **weighted_kd(student, teacher, labels, hp),
        "fa": Term(_alignment(student, teacher), hp["fa_weight"]),
        "at": Term(_attention(student, teacher, hp["at_form"]), hp["at_weight"]),
    }


def released_kd(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """As study 3's notebook runs: "KD" is a distance of pooled features that its hooks have detached."""
    assert teacher is not None
    return {"ce": _half_ce(student, labels), "kd": Term(_detached_distance(student, teacher, pool=True), 0.5)}


def released_fa(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """As study 3's notebook runs: feature alignment of features that its hooks have detached."""
    assert teacher is not None
    return {"ce": _half_ce(student, labels), "fa": Term(_detached_distance(student, teacher), 0.5)}


def released_at(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """As study 3's notebook runs: attention transfer of features that its hooks have detached."""
    assert teacher is not None
    return {"ce": _half_ce(student, labels), "at": Term(_attention(_detached(student), teacher, "code"), 0.5)}


def released_fa_at(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """As study 3's notebook runs: both distances, of features that its hooks have detached."""
    assert teacher is not None
    return {
        "ce": _half_ce(student, labels),
        "fa": Term(_detached_distance(student, teacher), 0.25),
        "at": Term(_attention(_detached(student), teacher, "code"), 0.25),
    }


def half_ce(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """0.5 x cross-entropy: what is left of the released arms when nothing flows through their other terms."""
    return {"ce": _half_ce(student, labels)}


def kd_uniform(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """Cross-entropy + kl_weight x T² KL(mean of the teachers || student): nothing is learned of the teachers."""
    assert teacher is not None
    return {
        "ce": Term(cross_entropy(student.logits, labels), 1.0),
        "kl": Term(_kl_to(_uniform_mix(teacher), student, hp["temperature"]), hp["kl_weight"]),
    }


def attention_student(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """kd_uniform with a gate in place of the mean; the gate learns from the labels, and the student runs alone.

    The student's target is the mix under stop-gradient, so the gate has a loss of its own: cross-entropy of the mix,
    less entropy_weight x the gate's entropy.
    """
    assert teacher is not None
    mix = gated_mix(_gate(student), torch.sigmoid(_members(teacher)))
    return {
        "ce": Term(cross_entropy(student.logits, labels), 1.0),
        "kl": Term(_kl_to(mix.detach(), student, hp["temperature"]), hp["kl_weight"]),
        "mix_ce": Term(binary_cross_entropy(mix, labels), 1.0, trains_extras=True),
        "gate_entropy": Term(-_entropy(_gate(student)), hp["entropy_weight"], trains_extras=True),
    }


def attention_blend(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """Study 2's model with a KL of both sides: BCE(output) + kl_weight x KL(mix || output), see `blended`."""
    return {
        **_blend(student, teacher, labels, hp),
        "gate_entropy": Term(-_entropy(_gate(student)), hp["entropy_weight"]),
    }


def global_gate_blend(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """attention_blend with one gate for all rows: what does it gain from looking at the row?"""
    entropy = Term(-_entropy(_gate(student)), hp["entropy_weight"], trains_extras=True)
    return {**_blend(student, teacher, labels, hp), "gate_entropy": entropy}


def uniform_blend(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """attention_blend with the teachers' mean in place of the gated mix."""
    return _blend(student, teacher, labels, hp)


def as_printed(student: Outputs, teacher: Outputs | None, labels: Tensor, hp: HyperParameters) -> Terms:
    """Study 2 as its article prints it: BCE(output) + kl_weight x a one-sided "KL" of the mix from the output."""
    return _blend(student, teacher, labels, hp, one_sided_kl)


def blended(student: Outputs, teacher: Outputs, hp: HyperParameters) -> tuple[Tensor, Tensor]:
    """(output, mix), probabilities (..., batch): blend_weight x student + (1 - blend_weight) x mix of the teachers.

    The teachers' probabilities are softened by the temperature; without a gate they count alike.
    """
    members = softened(_members(teacher), hp["temperature"])
    mix = members.mean(dim=-1) if student.gate is None else gated_mix(student.gate, members)
    own = student.logits.softmax(dim=-1)[..., 1]
    return hp["blend_weight"] * own + (1.0 - hp["blend_weight"]) * mix, mix


def _blend(
    student: Outputs,
    teacher: Outputs | None,
    labels: Tensor,
    hp: HyperParameters,
    divergence: Callable[[Tensor, Tensor], Tensor] = bernoulli_kl,
) -> Terms:
    assert teacher is not None
    output, mix = blended(student, teacher, hp)
    return {
        "ce": Term(binary_cross_entropy(output, labels), 1.0),
        "kl": Term(divergence(mix, output), hp["kl_weight"]),
    }


def _uniform_mix(teacher: Outputs) -> Tensor:
    return torch.sigmoid(_members(teacher)).mean(dim=-1)


def _kl_to(mix: Tensor, student: Outputs, temperature: float) -> Tensor:
    """T² KL(mix || student), both softened; mix: probabilities of class 1."""
    logit = torch.logit(mix, eps=SMALLEST)
    return hinton_kd(student.logits, torch.stack([torch.zeros_like(logit), logit], dim=-1), temperature)


def _entropy(gate: Tensor) -> Tensor:
    """Of each row's gate (..., batch, teachers), in nats: (..., batch)."""
    return -(gate * gate.clamp_min(SMALLEST).log()).sum(dim=-1)


def _gate(student: Outputs) -> Tensor:
    assert student.gate is not None
    return student.gate


def _members(teacher: Outputs) -> Tensor:
    assert teacher.members is not None
    return teacher.members


def _half_ce(student: Outputs, labels: Tensor) -> Term:
    return Term(cross_entropy(student.logits, labels), 0.5)


def _attention(student: Outputs, teacher: Outputs, form: str) -> Tensor:
    distances = [
        attention_distance(attention_map(f), teacher.attention[layer], form, teacher.masks.get(layer))
        for layer, f in student.features.items()
    ]
    return torch.stack(distances).mean(dim=0)


def _alignment(student: Outputs, teacher: Outputs) -> Tensor:
    distances = [
        feature_alignment(f, teacher.features[layer], teacher.masks.get(layer)) for layer, f in student.aligned.items()
    ]
    return torch.stack(distances).mean(dim=0)


def _detached(student: Outputs) -> Outputs:
    return replace(student, features={layer: f.detach() for layer, f in student.features.items()})


def _detached_distance(student: Outputs, teacher: Outputs, pool: bool = False) -> Tensor:
    """Mean squared distance over the channels that both have: how channels are matched cannot matter, all is dead."""
    distances = []
    for layer, features in _detached(student).features.items():
        theirs, ours = same_size(teacher.features[layer], features)
        channels = min(theirs.shape[-3], ours.shape[-3])
        difference = theirs[..., :channels, :, :] - ours[..., :channels, :, :]
        squared = difference.mean(dim=(-2, -1)).square() if pool else difference.square().mean(dim=(-2, -1))
        distances.append(squared.mean(dim=-1))
    return torch.stack(distances).mean(dim=0)


# Tables: which gate a variant learns, and which variants predict with their teachers' help.
GATES = {
    "attention_student": "own",  # a small network of its own on the features
    "attention_blend": "shared",  # a layer on the student's last hidden one, as in the article
    "as_printed": "shared",
    "global_gate_blend": "global",  # one for all rows
}
BLENDS = ("attention_blend", "global_gate_blend", "uniform_blend", "as_printed")
REFERENCES = ("one_teacher", "uniform_mix", "logistic_stack")  # teachers alone: no student is trained
READS_FEATURES = ("kd_fa", "kd_fa_at", "released_kd", "released_fa", "released_fa_at")  # of the teacher
VARIANTS: dict[str, Variant] = {
    v.__name__: v
    for v in (
        hard_labels,
        label_smoothing,
        kd,
        weighted_kd,
        kd_fa,
        kd_at,
        kd_fa_at,
        released_kd,
        released_fa,
        released_at,
        released_fa_at,
        half_ce,
        kd_uniform,
        attention_student,
        attention_blend,
        global_gate_blend,
        uniform_blend,
        as_printed,
    )
}
