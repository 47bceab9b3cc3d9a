"""Decoupled knowledge distillation: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022,
arXiv 2203.08679, equations 5 to 7.

Hinton's KL splits into two parts. Target class KD (TCKD) compares how much student and teacher give to the true class
against all others; non-target class KD (NCKD) compares how the others share what is left. In the KL, NCKD is weighed by
1 - p of the true class, so that it counts least where the teacher is sure; here each has a weight of its own.

With two classes nothing is left to share: NCKD is 0, and `distune check` says that its term is dead.
"""

from torch import Tensor
from torch.nn import functional as F

from distune import Outputs, Term, losses

FAR = 1000.0  # taken from the true class's logit, so that it takes no part, as in the authors' code


def decoupled_kd(student: Outputs, teacher: Outputs, labels: Tensor, hp: dict) -> dict[str, Term]:
    """Cross-entropy + tckd_weight x T² TCKD + nckd_weight x T² NCKD; logits (..., batch, classes)."""
    temperature, true = hp["temperature"], F.one_hot(labels, student.logits.shape[-1])
    s, t = student.logits / temperature, teacher.logits / temperature
    tckd = _kl(_true_or_not(t, true), _true_or_not(s, true))
    nckd = _kl((t - FAR * true).log_softmax(dim=-1), (s - FAR * true).log_softmax(dim=-1))
    return {
        "ce": Term(losses.cross_entropy(student.logits, labels), 1.0),
        "tckd": Term(temperature**2 * tckd, hp["tckd_weight"]),
        "nckd": Term(temperature**2 * nckd, hp["nckd_weight"]),
    }


def _true_or_not(logits: Tensor, true: Tensor) -> Tensor:
    """Logarithms (..., 2) of the probability of the true class and of all others together."""
    log_p = logits.log_softmax(dim=-1)
    others = log_p.masked_fill(true.bool(), -float("inf")).logsumexp(dim=-1)
    return F.pad(others.unsqueeze(-1), (1, 0)) + F.pad((log_p * true).sum(dim=-1, keepdim=True), (0, 1))


def _kl(log_target: Tensor, log_p: Tensor) -> Tensor:
    return (log_target.exp() * (log_target - log_p)).sum(dim=-1)
