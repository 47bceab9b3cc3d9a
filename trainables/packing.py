"""Seed packing: S networks of one configuration trained in one program, each as it would train alone.

Parameters are stacked over seeds. Each seed has its own initialisation, order of rows and dropout masks, from its own
named streams; since no operation mixes seeds, packed equals solo up to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.losses import is_finite
from trainables.models.mlp import StackedMLP
from trainables.streams import Streams
from trainables.variants import Outputs, Terms

Loss = Callable[[Outputs, Outputs | None, Tensor], Terms]


class Pack:
    """S networks, their optimiser and the rows that they are fitted on.

    x: (N, features); y: (N,); teacher: (S, N, classes) logits, row n of seed s belonging to sample n, or None.
    hp: `learning_rate`, `weight_decay` (as in Adam: added to the gradient) and `batch_size`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        dropout: Sequence[float],
        replicates: Sequence[int],
        streams: Streams,
        hp: Mapping[str, Any],
        x: Tensor,
        y: Tensor,
        teacher: Tensor | None = None,
    ) -> None:
        self.replicates, self.streams = tuple(replicates), streams
        self.x, self.y, self.teacher = x, y, teacher
        self.batch_size = min(int(hp["batch_size"]), len(y))
        self.model = StackedMLP(widths, len(self.replicates), dropout).to(device=x.device, dtype=x.dtype)
        self.model.initialise([streams.generator("init", r) for r in self.replicates])
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), lr=hp["learning_rate"], weight_decay=hp["weight_decay"], fused=True
        )

    def train_epoch(self, epoch: int, loss: Loss) -> dict[str, Tensor]:
        """One pass over the rows; returns each term's mean over the pass, (S,).

        The gradient of the sum over seeds is each seed's own gradient, since no parameter is shared.
        """
        rows = len(self.y)
        order = torch.stack([torch.randperm(rows, generator=g) for g in self._generators("order", epoch)])
        order = order.to(self.x.device)
        x, y = self.x[order], self.y[order]
        teacher = None if self.teacher is None else self.teacher.take_along_dim(order.unsqueeze(-1), dim=1)
        masks = self._dropout(epoch, rows)
        sums: dict[str, Tensor] = {}
        for start in range(0, rows, self.batch_size):
            batch = slice(start, min(start + self.batch_size, rows))
            keep = [None if m is None else m[:, batch] for m in masks]
            student = Outputs(self.model(x[:, batch], keep))
            shown = None if teacher is None else Outputs(teacher[:, batch])
            terms = loss(student, shown, y[:, batch])
            self.optimiser.zero_grad(set_to_none=True)
            total = sum(term.weight * term.value for term in terms.values())
            assert isinstance(total, Tensor)
            total.mean(dim=-1).sum().backward()
            self.optimiser.step()
            for name, term in terms.items():
                value = term.value.detach().sum(dim=-1)
                sums[name] = sums[name] + value if name in sums else value
        return {name: value / rows for name, value in sums.items()}

    def finite(self) -> bool:
        """Whether every parameter of every seed is a number: one seed's divergence ends the pack's trial."""
        return all(bool(is_finite(p.detach()).all()) for p in self.model.parameters())

    @torch.no_grad()
    def logits(self, x: Tensor, chunk: int = 8192) -> Tensor:
        """x: (n, features) -> (S, n, classes), without dropout."""
        return torch.cat([self.model(part.unsqueeze(0)) for part in x.split(chunk)], dim=1)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on; the random streams are functions of their names."""
        state = {f"model.{k}": v.detach().clone() for k, v in self.model.state_dict().items()}
        for index, entry in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{index}.{k}": v.detach().clone() for k, v in entry.items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        saved = self.optimiser.state_dict()
        for name, value in state.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                saved["state"].setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict(saved)

    def _generators(self, stream: str, epoch: int) -> list[torch.Generator]:
        return [self.streams.generator(stream, r, epoch) for r in self.replicates]

    def _dropout(self, epoch: int, rows: int) -> list[Tensor | None]:
        """For each hidden layer the epoch's masks (S, rows, width), drawn seed by seed, or None without dropout."""
        generators = self._generators("dropout", epoch)
        masks: list[Tensor | None] = []
        for width, p in zip(self.model.widths[1:-1], self.model.dropout, strict=True):
            if p == 0.0:
                masks.append(None)
                continue
            kept = torch.stack([torch.empty(rows, width).bernoulli_(1.0 - p, generator=g) for g in generators])
            masks.append(kept.mul_(1.0 / (1.0 - p)).to(self.x))
        return masks


def shuffled_within_class(labels: NDArray[np.int64], generator: torch.Generator) -> Tensor:
    """(N,) a permutation of the rows that keeps every row's class: `kd_shuffled`'s teacher rows."""
    permutation = torch.arange(len(labels))
    for label in np.unique(labels):
        rows = torch.from_numpy(np.flatnonzero(labels == label))
        permutation[rows] = rows[torch.randperm(len(rows), generator=generator)]
    return permutation
