"""An ensemble of MLPs as teacher: its logits are the mean of its members' (the soft vote of study 1).

All members train in one packed program, on labels, each from its own seed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.artefacts import Artefact, build_once, is_stored
from trainables.datasets import Rows, Scaling
from trainables.models.mlp import StackedMLP, parameter_count
from trainables.packing import Pack
from trainables.streams import Streams
from trainables.variants import Outputs, Terms, hard_labels

KIND = "teachers"
VERSION = 1  # goes into the address: raise it when the same recipe would give other weights
MAX_MEMBERS = 1000  # members of teacher set k are the replicates k * MAX_MEMBERS + 0, 1, 2, ...


@dataclass(frozen=True)
class Ensemble:
    """A trained teacher: `member_logits` takes features as they come, unscaled."""

    artefact: Artefact
    model: StackedMLP
    scaling: Scaling

    @property
    def fitted_on(self) -> NDArray[np.int64]:
        return self.artefact.fitted_on

    @property
    def parameters(self) -> int:
        """Of all members together."""
        return int(self.model.weights[0].shape[0]) * parameter_count(self.model.widths)

    @torch.no_grad()
    def member_logits(self, x: NDArray[np.float64], chunk: int = 4096) -> Tensor:
        """(n, features) -> (members, n, classes)."""
        scaled = torch.from_numpy(self.scaling(x)).float()
        return torch.cat([self.model(part.unsqueeze(0)) for part in scaled.split(chunk)], dim=1)

    def logits(self, x: NDArray[np.float64]) -> Tensor:
        """(n, features) -> (n, classes): the mean over members."""
        return self.member_logits(x).mean(dim=0)


def build(spec: Mapping[str, Any], fit: Rows, classes: int, teacher_set: int, streams: Streams) -> Ensemble:
    """Teacher set number `teacher_set` fitted on `fit`, from the cache or trained now.

    spec: `members`, `hidden`, `dropout`, `epochs`, `learning_rate`, `batch_size` of the study's teacher.
    """

    def train() -> tuple[dict[str, Tensor], dict[str, Any]]:
        scaling, pack = Scaling.of(fit), untrained(spec, fit, classes, teacher_set, streams)
        for epoch in range(1, spec["epochs"] + 1):
            pack.train_epoch(epoch, labels_only)
        if not pack.finite():
            raise FloatingPointError(f"the teacher diverged: learning_rate={spec['learning_rate']} is too high for it")
        tensors = {k: v.detach().contiguous() for k, v in pack.model.state_dict().items()}
        tensors |= {"scaling.mean": torch.from_numpy(scaling.mean), "scaling.scale": torch.from_numpy(scaling.scale)}
        return tensors, {"rows": len(fit)}

    artefact = build_once(KIND, _recipe(spec, fit, teacher_set, streams), fit.fingerprints(), train)
    weights = {k: v for k, v in artefact.tensors.items() if not k.startswith("scaling.")}
    model = StackedMLP(_widths(spec, fit, classes), spec["members"], spec["dropout"])
    model.load_state_dict(weights)
    model.requires_grad_(False)
    scaling = Scaling(artefact.tensors["scaling.mean"].numpy(), artefact.tensors["scaling.scale"].numpy())
    return Ensemble(artefact, model, scaling)


def is_built(spec: Mapping[str, Any], fit: Rows, teacher_set: int, streams: Streams) -> bool:
    """Whether `build` would find this teacher in the cache."""
    return is_stored(KIND, _recipe(spec, fit, teacher_set, streams), fit.fingerprints())


def untrained(spec: Mapping[str, Any], fit: Rows, classes: int, teacher_set: int, streams: Streams) -> Pack:
    """The pack of all members, ready to train."""
    members = [teacher_set * MAX_MEMBERS + m for m in range(spec["members"])]
    hp = {"learning_rate": spec["learning_rate"], "weight_decay": 0.0, "batch_size": spec["batch_size"]}
    x, y = torch.from_numpy(Scaling.of(fit)(fit.x)).float(), torch.from_numpy(fit.y)
    own = Streams(streams.study + "/teacher", streams.seed)
    return Pack(_widths(spec, fit, classes), spec["dropout"], members, own, hp, x, y)


def labels_only(student: Outputs, teacher: Outputs | None, labels: Tensor) -> Terms:
    return hard_labels(student, None, labels, {})


def _widths(spec: Mapping[str, Any], fit: Rows, classes: int) -> list[int]:
    return [fit.x.shape[1], *spec["hidden"], classes]


def _recipe(spec: Mapping[str, Any], fit: Rows, teacher_set: int, streams: Streams) -> dict[str, Any]:
    """What the artefact's address is made of, besides the rows: labels too, since fingerprints leave them out."""
    return {
        "what": "mlp ensemble",
        "version": VERSION,
        "spec": {k: list(v) if isinstance(v, list | tuple) else v for k, v in spec.items()},
        "streams": [streams.study, streams.seed],
        "teacher_set": teacher_set,
        "labels": hashlib.sha256(np.stack([fit.fingerprints(), fit.y]).tobytes()).hexdigest(),
    }
