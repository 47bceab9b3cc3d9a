"""Loss terms per sample: logits (..., batch, classes) in, values (..., batch) out; the trainer averages.

They broadcast over leading dimensions, so that one call serves a single student and a pack of them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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


def is_finite(values: Tensor) -> Tensor:
    """Whether every value of each leading row is finite: (S, ...) in, (S,) out, boolean."""
    return torch.isfinite(values).reshape(values.shape[0], -1).all(dim=1)
