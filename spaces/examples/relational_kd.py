"""Relational knowledge distillation: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019,
arXiv 1904.05068, equations 3 to 9.

The student need not say what the teacher says, but keep its geometry: distances between the samples of a batch,
relative to their mean, and angles that three samples form. Embeddings are the features of the arm's `layers`, averaged
over their maps, and of a family without such features the logits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distune import Outputs, Term, losses


def relational_kd(student: Outputs, teacher: Outputs, labels: Tensor, hp: dict) -> dict[str, Term]:
    """Cross-entropy + distance_weight x RKD-D + angle_weight x RKD-A, each a mean over a sample's relations."""
    distances, angles = [], []
    for ours, theirs in _embeddings(student, teacher):
        distances.append(_huber(_distances(ours), _distances(theirs)).mean(dim=-1))
        angles.append(_huber(_angles(ours), _angles(theirs)).mean(dim=(-2, -1)))
    return {
        "ce": Term(losses.cross_entropy(student.logits, labels), 1.0),
        "distance": Term(torch.stack(distances).mean(dim=0), hp["distance_weight"]),
        "angle": Term(torch.stack(angles).mean(dim=0), hp["angle_weight"]),
    }


def _embeddings(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Of student and teacher, each (..., batch, width), whose widths may differ."""
    layers = [layer for layer in student.features if layer in teacher.features]
    pooled = [(student.features[n].mean(dim=(-2, -1)), teacher.features[n].mean(dim=(-2, -1))) for n in layers]
    return pooled or [(student.logits, teacher.logits)]


def _distances(x: Tensor) -> Tensor:
    """(..., batch, batch) Euclidean distances over the mean of those between two samples."""
    others = 1.0 - torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    squared = (x.unsqueeze(-3) - x.unsqueeze(-2)).square().sum(dim=-1)
    distances = squared.clamp_min(1e-12).sqrt() * others  # a gradient, too, where two samples are alike
    mean = distances.sum(dim=(-2, -1), keepdim=True) / others.sum().clamp_min(1.0)
    return distances / mean.clamp_min(1e-12)


def _angles(x: Tensor) -> Tensor:
    """(..., batch, batch, batch) cosines at the first sample between the directions to the other two."""
    directions = F.normalize(x.unsqueeze(-3) - x.unsqueeze(-2), dim=-1)
    return directions @ directions.transpose(-2, -1)


def _huber(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.smooth_l1_loss(ours, theirs, reduction="none")
