"""Loss terms per sample: logits (..., batch, classes) in, values (..., batch) out; the trainer averages.

They broadcast over leading dimensions, so that one call serves a single student and a pack of them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-7  # probabilities are kept so far from 0 and 1


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with label smoothing: the target gives `smoothing` / classes to every class.

    logits: (..., batch, classes); labels: (..., batch), whole numbers. Returns (..., batch), in nats.
    Source: Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567, section 7.
    """
    log_p = F.log_softmax(logits, dim=-1)
    nll = -log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if smoothing == 0.0:
        return nll
    return (1.0 - smoothing) * nll - smoothing * log_p.mean(dim=-1)


def hinton_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) || softmax(student / T)), summed over classes.

    student_logits, teacher_logits: (..., batch, classes). Returns (..., batch), in nats times T².
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; the factor T²
    keeps the gradient's size when the temperature changes.
    """
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    log_student = F.log_softmax(student_logits / temperature, dim=-1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1)


def binary_cross_entropy(prob: Tensor, labels: Tensor) -> Tensor:
    """-log of the probability given to the label; prob: (..., batch) of class 1; labels: (..., batch). In nats."""
    prob = prob.clamp(SMALLEST, 1.0 - SMALLEST)
    return -torch.where(labels == 1, prob.log(), torch.log1p(-prob))


def bernoulli_kl(target_prob: Tensor, prob: Tensor) -> Tensor:
    """KL(Bernoulli(target_prob) || Bernoulli(prob)), never negative: p log(p/q) + (1-p) log((1-p)/(1-q)).

    target_prob, prob: (..., batch) probabilities of class 1. Returns (..., batch), in nats.
    """
    p, q = (x.clamp(SMALLEST, 1.0 - SMALLEST) for x in (target_prob, prob))
    return p * (p / q).log() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).log()


def one_sided_kl(target_prob: Tensor, prob: Tensor) -> Tensor:
    """The "KL" that study 2's article prints: p log((p + 1e-7) / (q + 1e-7)). Half of one, and it can be negative.

    target_prob, prob: (..., batch). Returns (..., batch).
    """
    return target_prob * ((target_prob + SMALLEST) / (prob + SMALLEST)).log()


def softened(logits: Tensor, temperature: float) -> Tensor:
    """p^(1/T) renormalised, which for two classes is sigmoid(logit(p) / T); logits: of class 1, of any shape."""
    return torch.sigmoid(logits / temperature)


def gated_mix(gate: Tensor, probs: Tensor) -> Tensor:
    """The teachers' probabilities (..., batch, teachers) weighed by a gate of the same shape that sums to 1."""
    return (gate * probs).sum(dim=-1)


def is_finite(values: Tensor) -> Tensor:
    """Whether every value of each leading row is finite: (S, ...) in, (S,) out, boolean."""
    return torch.isfinite(values).reshape(values.shape[0], -1).all(dim=1)


def attention_map(features: Tensor) -> Tensor:
    """Where a layer is active: the sum over channels of its squared activations.

    features: (..., channels, height, width). Returns (..., height, width), not normalised.
    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, F²_sum.
    """
    return features.square().sum(dim=-3)


def attention_transfer(
    student_features: Tensor, teacher_features: Tensor, form: str = "code", mask: Tensor | None = None
) -> Tensor:
    """Distance between student's and teacher's attention maps, each L2-normalised over the whole map.

    student_features, teacher_features: (..., batch, channels, height, width), whose channels may differ; of maps of
    different size the larger is average-pooled. mask: (..., batch, height, width) at the smaller size. Returns
    (..., batch). Raises ValueError for an unknown form. Source and forms: `attention_distance`.
    """
    return attention_distance(attention_map(student_features), attention_map(teacher_features), form, mask)


def attention_distance(
    student_map: Tensor, teacher_map: Tensor, form: str = "code", mask: Tensor | None = None
) -> Tensor:
    """The same from the maps (..., batch, height, width), so that a teacher's can come from a cache.

    form: `code` is the mean of squared differences, as in the authors' code; `sum` their sum, height x width x code;
    `paper` half their L2 norm, equation 2 of arXiv 1612.03928. With a mask M the mean is sum M d² / sum M: both maps
    are normalised before the mask is applied, or how much attention lies inside it would be lost.
    """
    student_map, teacher_map = same_size(student_map, teacher_map)
    squared = (_normalised(student_map) - _normalised(teacher_map)).square().flatten(-2)
    if mask is None:
        mean = squared.mean(dim=-1)
    else:
        weight = mask.flatten(-2)
        mean = (weight * squared).sum(dim=-1) / weight.sum(dim=-1)
    if form == "code":
        return mean
    if form == "sum":
        return squared.shape[-1] * mean
    if form == "paper":
        return 0.5 * _root(squared.shape[-1] * mean)
    raise ValueError(f"form must be code, sum or paper, got {form!r}")


def feature_alignment(regressed: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared distance between the teacher's features and a trained 1x1 regression of the student's.

    regressed: R(student), (..., batch, channels, height, width); teacher_features: the same channels; of maps of
    different size the larger is average-pooled. mask M: (..., batch, height, width) at the smaller size, then
    sum M (F_t - R F_s)² / (channels x sum M). Returns (..., batch).
    Source: Romero et al., "FitNets", arXiv 1412.6550, equation 3.
    """
    regressed, teacher_features = same_size(regressed, teacher_features)
    squared = (teacher_features - regressed).square().mean(dim=-3).flatten(-2)
    if mask is None:
        return squared.mean(dim=-1)
    weight = mask.flatten(-2)
    return (weight * squared).sum(dim=-1) / weight.sum(dim=-1)


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both (..., height, width) at the smaller height and width, by adaptive average pooling of the larger."""
    size = min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])
    return _pooled(a, size), _pooled(b, size)


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.adaptive_avg_pool2d(flat, size).reshape(*maps.shape[:-2], *size)


def _normalised(maps: Tensor) -> Tensor:
    """Each (height, width) map divided by its L2 norm; a map of zeros stays zero."""
    return F.normalize(maps.flatten(-2), dim=-1).reshape(maps.shape)


def _root(value: Tensor) -> Tensor:
    """The square root, with gradient 0 instead of infinity at 0."""
    positive = value > 0
    return torch.where(positive, value, torch.ones_like(value)).sqrt() * positive
