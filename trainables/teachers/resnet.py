"""A network of images as teacher: trained on labels, on rows that it may see, and stopped on a share of those rows.

The source stops its teacher on its validation set, which is its test set. Here neither the validation nor the test
rows of the study have a say in the teacher.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables import artefacts
from trainables.artefacts import Artefact, build_once, is_stored
from trainables.datasets import Rows
from trainables.learner import EVALUATION_BATCH, Learner, Loss, autocast
from trainables.losses import cross_entropy
from trainables.models.networks import Network, classes_of, identity, network
from trainables.models.resnet import ResNet, parameter_count
from trainables.streams import Streams
from trainables.teachers import outside
from trainables.teachers.outside import Graph
from trainables.variants import Outputs, Term, Terms
from trainables.views import Normalise, Views, as_tensor

logger = logging.getLogger(__name__)
KIND = "teachers"
VERSION = 1  # goes into the address: raise it when the same recipe would give other weights


@dataclass(frozen=True)
class ResNetTeacher:
    """A trained and frozen teacher; images come as uint8, or as floats in [0, 1]."""

    artefact: Artefact
    model: ResNet | Network | Graph
    normalise: Normalise
    precision: str

    @property
    def fitted_on(self) -> NDArray[np.int64]:
        return self.artefact.fitted_on

    @property
    def parameters(self) -> int:
        return self.model.numbers if isinstance(self.model, Graph) else parameter_count(self.model)

    @property
    def device(self) -> str:
        return str(self.normalise.mean.device.type)

    def autocast(self, images: Tensor) -> Any:
        return autocast(self.precision, self.device, images.shape[-2] * images.shape[-1])

    @torch.no_grad()
    def member_logits(self, x: NDArray[Any]) -> Tensor:
        """(n, channels, height, width) -> (1, n, classes): a teacher of one member."""
        parts = []
        for part in as_tensor(x).split(EVALUATION_BATCH):
            shown = self.normalise(part.to(self.device)).contiguous(memory_format=torch.channels_last)
            with self.autocast(shown):
                parts.append(self.model(shown)[0].float().cpu())
        return torch.cat(parts).unsqueeze(0)


def build(
    spec: Mapping[str, Any],
    views: Mapping[str, Any],
    compute: Mapping[str, Any],
    fit: Rows,
    classes: int,
    teacher_set: int,
    streams: Streams,
    device: str,
) -> ResNetTeacher:
    """Teacher number `teacher_set` fitted on `fit`, from the cache or trained now.

    spec: the study's `teacher`; views and compute: the study's. Raises FloatingPointError if it diverges.
    """

    def train() -> tuple[dict[str, Tensor], dict[str, Any]]:
        model = untrained(spec, fit, classes)
        return _train(spec, views, compute, fit, model, teacher_set, streams, device)

    artefact = build_once(KIND, _recipe(spec, views, fit, teacher_set, streams), fit.fingerprints(), train)
    return opened(artefact, compute, device)


def reopen(key: str, compute: Mapping[str, Any], device: str) -> ResNetTeacher:
    """A teacher that was built before, by its artefact's key. Raises FileNotFoundError where there is none."""
    return opened(artefacts.reopen(KIND, key), compute, device)


def opened(artefact: Artefact, compute: Mapping[str, Any], device: str) -> ResNetTeacher:
    """The teacher of an artefact, trained here or elsewhere."""
    spec, tensors = artefact.about["recipe"]["spec"], artefact.tensors
    model: ResNet | Network | Graph
    if outside.BLOB in tensors:
        model = outside.graph_of(artefact)
    else:
        model = network(spec, tensors["normalise.mean"].numel(), classes_of(tensors))
        model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("normalise.")})
    model.requires_grad_(False).eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normalise(tensors["normalise.mean"], tensors["normalise.std"])
    return ResNetTeacher(artefact, model, normalise.to(device), compute["precision"])


def is_built(spec: Mapping[str, Any], views: Mapping[str, Any], fit: Rows, teacher_set: int, streams: Streams) -> bool:
    """Whether `build` would find this teacher in the cache."""
    return is_stored(KIND, _recipe(spec, views, fit, teacher_set, streams), fit.fingerprints())


def untrained(spec: Mapping[str, Any], rows: Rows, classes: int) -> ResNet | Network:
    """A student's or a teacher's network for these images; `outputs` of a student may ask for more than classes."""
    return network(spec, rows.x.shape[1], classes)


def learner(
    spec: Mapping[str, Any],
    views: Mapping[str, Any],
    compute: Mapping[str, Any],
    rows: Rows,
    model: ResNet | Network,
    teacher_set: int,
    streams: Streams,
    device: str,
) -> Learner:
    """The teacher ready to train on these rows."""
    own = Streams(streams.study + "/teacher", streams.seed)
    shown = Views(as_tensor(rows.x, device), views)
    labels, normalise = as_tensor(rows.y, device), Normalise.of(rows.x)
    return Learner(model, shown, labels, normalise, spec, spec["epochs"], own, teacher_set, compute)


def labels_only(labels: Tensor) -> Loss:
    """Cross-entropy on the labels (N,), as a learner's loss."""

    def loss(student: Outputs, rows: Tensor, view: int) -> Terms:
        return {"ce": Term(cross_entropy(student.logits, labels[rows]), 1.0)}

    return loss


def _train(
    spec: Mapping[str, Any],
    views: Mapping[str, Any],
    compute: Mapping[str, Any],
    fit: Rows,
    model: ResNet | Network,
    teacher_set: int,
    streams: Streams,
    device: str,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train on all but `stop_fraction` of the rows, until the loss on those has not fallen for `patience` epochs."""
    order = torch.randperm(len(fit), generator=streams.generator("teacher stop", teacher_set)).numpy()
    held = max(1, round(spec["stop_fraction"] * len(fit)))
    rows, stop = Rows(fit.x[np.sort(order[held:])], fit.y[np.sort(order[held:])]), order[:held]
    stop_x, stop_y = as_tensor(fit.x[stop], device), as_tensor(fit.y[stop], device)
    trained = learner(spec, views, compute, rows, model, teacher_set, streams, device)
    weights = _imagenet(spec["depth"]) if spec.get("pretrained") and fit.x.shape[1] == 3 else None
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    best, best_epoch, best_state = float("inf"), 0, {}
    diverged = f"the teacher diverged: learning_rate={spec['learning_rate']} is too high for it"
    for epoch in range(1, spec["epochs"] + 1):
        trained.train_epoch(epoch, labels_only(trained.labels))
        if not trained.finite():
            raise FloatingPointError(diverged)
        loss = float(cross_entropy(trained.logits(stop_x), stop_y).mean())
        if loss < best:
            best, best_epoch = loss, epoch
            best_state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        elif epoch - best_epoch >= spec["patience"]:
            break
    if not best_state:
        raise FloatingPointError(diverged)
    normal = {"normalise.mean": trained.normalise.mean.flatten(), "normalise.std": trained.normalise.std.flatten()}
    about = {"rows": len(rows), "epoch": best_epoch, "stop_loss": best, "pretrained": weights is not None}
    return best_state | {k: v.cpu().contiguous() for k, v in normal.items()}, about


@lru_cache(maxsize=1)
def _imagenet(depth: int) -> dict[str, Tensor] | None:
    """torchvision's ImageNet weights without the head, or None where they cannot be had: then from scratch."""
    from torchvision.models import get_model_weights

    try:
        state: dict[str, Tensor] = get_model_weights(f"resnet{depth}").DEFAULT.get_state_dict(progress=False)
    except OSError as error:
        logger.warning("ImageNet weights cannot be downloaded (%s): the teacher trains from scratch", error)
        return None
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


def _recipe(
    spec: Mapping[str, Any], views: Mapping[str, Any], fit: Rows, teacher_set: int, streams: Streams
) -> dict[str, Any]:
    """What the artefact's address is made of, besides the rows: labels too, since fingerprints leave them out."""
    spec = dict(spec)
    if spec.get("kind", "resnet") == "resnet":
        spec["pretrained"] = spec["pretrained"] and fit.x.shape[1] == 3 and _imagenet(spec["depth"]) is not None
    else:
        spec["identity"] = identity(spec)
    return {
        "what": "resnet",
        "version": VERSION,
        "spec": spec,
        "views": {k: views[k] for k in ("count", "pad", "flip")},
        "streams": [streams.study, streams.seed],
        "teacher_set": teacher_set,
        "labels": hashlib.sha256(np.stack([fit.fingerprints(), fit.y]).tobytes()).hexdigest(),
    }
