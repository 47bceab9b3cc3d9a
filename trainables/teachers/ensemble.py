"""An ensemble of MLPs as teacher: its logits are the mean of its members' (the soft vote of study 1).

All members train in one packed program, on labels, each from its own seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.artefacts import Artefact, build_once
from trainables.datasets import Rows, Scaling
from trainables.models.mlp import StackedMLP, parameter_count
from trainables.packing import Pack
from trainables.streams import Streams
from trainables.variants import hard_labels

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
        return self.model.weights[0].shape[0] * parameter_count(self.model.widths)

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
    widths = [fit.x.shape[1], *spec["hidden"], classes]
    recipe = {
        "what": "mlp ensemble",
        "version": VERSION,
        "spec": {k: list(v) if isinstance(v, list | tuple) else v for k, v in spec.items()},
        "streams": [streams.study, streams.seed],
        "teacher_set": teacher_set,
        "labels": int(np.bitwise_xor.reduce(fit.fingerprints() * (fit.y + 1))),
    }

    def train() -> tuple[dict[str, Tensor], dict[str, Any]]:
        scaling = Scaling.of(fit)
        members = [teacher_set * MAX_MEMBERS + m for m in range(spec["members"])]
        hp = {"learning_rate": spec["learning_rate"], "weight_decay": 0.0, "batch_size": spec["batch_size"]}
        x, y = torch.from_numpy(scaling(fit.x)).float(), torch.from_numpy(fit.y)
        pack = Pack(widths, spec["dropout"], members, Streams(streams.study + "/teacher", streams.seed), hp, x, y)
        for epoch in range(1, spec["epochs"] + 1):
            pack.train_epoch(epoch, lambda student, _, labels: hard_labels(student, None, labels, {}))
        if not pack.finite():
            raise FloatingPointError(f"the teacher diverged: learning_rate={spec['learning_rate']} is too high for it")
        tensors = {k: v.detach().contiguous() for k, v in pack.model.state_dict().items()}
        tensors |= {"scaling.mean": torch.from_numpy(scaling.mean), "scaling.scale": torch.from_numpy(scaling.scale)}
        return tensors, {"rows": len(fit)}

    artefact = build_once("teachers", recipe, fit.fingerprints(), train)
    weights = {k: v for k, v in artefact.tensors.items() if not k.startswith("scaling.")}
    model = StackedMLP(widths, spec["members"], spec["dropout"])
    model.load_state_dict(weights)
    model.requires_grad_(False)
    scaling = Scaling(artefact.tensors["scaling.mean"].numpy(), artefact.tensors["scaling.scale"].numpy())
    return Ensemble(artefact, model, scaling)
