"""Seed packing: S networks of one configuration trained in one program, each as it would train alone.

Parameters are stacked over seeds. Each seed has its own initialisation, order of rows and dropout masks, from its own
named streams; since no operation mixes seeds, packed equals solo up to rounding.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adam import adam

from trainables.losses import is_finite
from trainables.models.mlp import StackedMLP
from trainables.models.stacked import StackedModule
from trainables.own_variants import Part
from trainables.streams import Streams
from trainables.variants import Outputs, Terms

SIXTEEN_BITS = 2**16  # dropout keeps with the probability asked for, to the nearest 1 / 65,536
Loss = Callable[[Outputs, Outputs | None, Tensor], Terms]


class Pack:
    """S networks, their optimiser and the rows that they are fitted on.

    x: (N, features); y: (N,); teacher: (S, N, classes) logits, row n of seed s belonging to sample n, or None.
    hp: `learning_rate`, `weight_decay` (as in Adam: added to the gradient) and `batch_size`. parts: what is learned
    beside the networks, by name. model: the networks, if they are not multilayer perceptrons of these widths.
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
        parts: Mapping[str, Part] | None = None,
        model: StackedModule | None = None,
    ) -> None:
        self.replicates, self.streams = tuple(replicates), streams
        self.x, self.y, self.teacher = x, y, teacher
        self.batch_size = min(int(hp["batch_size"]), len(y))
        self.model: StackedMLP | StackedModule = model or StackedMLP(widths, len(self.replicates), dropout)
        self.model.to(device=x.device, dtype=x.dtype)
        self.model.initialise([streams.generator("init", r) for r in self.replicates])
        self._parts = dict(parts or {})
        self.extras = [p for part in self._parts.values() for p in part.parameters.values()]
        self.parameters: list[Tensor] = [*self.model.parameters(), *self.extras]
        self._adam = StackedAdam(self.parameters, hp["learning_rate"], hp["weight_decay"])

    def train_epoch(self, epoch: int, loss: Loss) -> dict[str, Tensor]:
        """One pass over the rows; returns each term's mean over the pass, (S,).

        The gradient of the sum over seeds is each seed's own gradient, since no parameter is shared. A last batch of a
        single row is left out for a module of the user's: a batch norm cannot train on it.
        """
        self.model.train()
        least = 1
        if isinstance(self.model, StackedModule):
            self.model.begin([self.streams.number("dropout", r, epoch) for r in self.replicates])
            least = min(2, self.batch_size)
        rows = len(self.y)
        order = torch.stack([torch.randperm(rows, generator=g) for g in self._generators("order", epoch)])
        order = order.to(self.x.device)
        x, y = self.x[order], self.y[order]
        teacher = None if self.teacher is None else self.teacher.take_along_dim(order.unsqueeze(-1), dim=1)
        masks = self._dropout(epoch, rows)
        values: dict[str, list[Tensor]] = defaultdict(list)
        for start in range(0, rows, self.batch_size):
            batch = slice(start, min(start + self.batch_size, rows))
            if batch.stop - start < least:
                continue
            keep = [None if m is None else m[:, batch] for m in masks]
            student = self._outputs(x[:, batch], keep)
            shown = None if teacher is None else Outputs(teacher[:, batch])
            terms = loss(student, shown, y[:, batch])
            total = sum(term.weight * term.value for term in terms.values())
            assert isinstance(total, Tensor)
            gradients = torch.autograd.grad(
                total.mean(dim=-1).sum(), self.parameters, allow_unused=True, materialize_grads=True
            )
            self._adam.step(gradients)
            for name, term in terms.items():
                values[name].append(term.value.detach())
        return {name: torch.cat(parts, dim=-1).mean(dim=-1) for name, parts in values.items()}

    def _outputs(self, x: Tensor, keep: Sequence[Tensor | None] = ()) -> Outputs:
        if isinstance(self.model, StackedModule):
            return Outputs(self.model(x), extras=self._parts)
        hidden = self.model.hidden(x, keep)
        return Outputs(self.model.head(hidden), {"hidden": hidden}, extras=self._parts)

    def first_rows(self, rows: slice) -> tuple[Outputs, Outputs | None, Tensor]:
        """What the loss is given of these rows in the order that they lie in, without dropout."""
        self.model.eval()
        student = self._outputs(self.x[rows].unsqueeze(0))
        shown = None if self.teacher is None else Outputs(self.teacher[:, rows])
        return student, shown, self.y[rows].expand(student.logits.shape[:-1])

    def finite(self) -> bool:
        """Whether every parameter of every seed is a number: one seed's divergence ends the pack's trial."""
        return all(bool(is_finite(p.detach()).all()) for p in self.parameters)

    @torch.no_grad()
    def logits(self, x: Tensor, chunk: int = 8192) -> Tensor:
        """x: (n, features) -> (S, n, classes), without dropout."""
        self.model.eval()
        return torch.cat([self.model(part.unsqueeze(0)) for part in x.split(chunk)], dim=1)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on; the random streams are functions of their names."""
        return {k: v.detach().clone() for k, v in self._everything().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up where another pack of the same shape stood; other entries of `state` are left alone."""
        with torch.no_grad():
            for name, tensor in self._everything().items():
                tensor.copy_(state[name])

    def _everything(self) -> dict[str, Tensor]:
        learned = {f"extras.{n}.{k}": p for n, part in self._parts.items() for k, p in part.parameters.items()}
        return {f"model.{k}": v for k, v in self.model.state_dict().items()} | {
            **learned,
            **{f"optimiser.{k}": v for k, v in self._adam.state().items()},
        }

    def _generators(self, stream: str, epoch: int) -> list[torch.Generator]:
        return [self.streams.generator(stream, r, epoch) for r in self.replicates]

    def _dropout(self, epoch: int, rows: int) -> list[Tensor | None]:
        """For each hidden layer the epoch's masks (S, rows, width): all layers of a seed draw from one stream."""
        generators = [self.streams.numpy_generator("dropout", r, epoch) for r in self.replicates]
        return dropout_masks(self.model, [generators] * len(self.model.dropout), rows, self.x.dtype, self.x.device)


class StackedAdam:
    """Adam (Kingma, Ba, arXiv 1412.6980) as torch.optim.Adam takes its steps, at half the dispatch.

    parameters: each (S, ...), shared by no two seeds. weight_decay: added to the gradient.
    """

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float, weight_decay: float) -> None:
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._steps = [torch.zeros((), device=p.device) for p in self._parameters]
        self._learning_rate, self._weight_decay = learning_rate, weight_decay

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        adam(
            self._parameters,
            list(gradients),
            self._first,
            self._second,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            lr=self._learning_rate,
            weight_decay=self._weight_decay,
        )

    def keep(self, seeds: Sequence[int]) -> None:
        """Forget the moments of all other seeds; the parameters are the caller's to cut."""
        self._first = [m[list(seeds)] for m in self._first]
        self._second = [m[list(seeds)] for m in self._second]

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves, so that a caller may copy into them."""
        moments = {"first": self._first, "second": self._second, "steps": self._steps}
        return {f"{i}.{name}": tensor for name, tensors in moments.items() for i, tensor in enumerate(tensors)}


def dropout_masks(
    model: StackedMLP | StackedModule,
    draws: Sequence[Sequence[np.random.Generator]],
    rows: int,
    dtype: torch.dtype,
    device: Any,
) -> list[Tensor | None]:
    """For each hidden layer the next masks (S, rows, width) of 0 and 1 / (1 - p), or None where p is 0.

    draws: generators of every seed, for each layer with dropout. Whoever draws rows in several calls gets the masks of
    one call, as long as rows x width is even (two draws of 16 bits come from one word).
    """
    left = iter(draws)
    return [
        None if p == 0 else _masks(next(left), p, (rows, width), dtype).to(device)
        for width, p in zip(model.widths[1:-1], model.dropout, strict=True)
    ]


def _masks(generators: Sequence[np.random.Generator], p: float, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(S, *shape), drawn seed by seed."""
    keep = round((1.0 - p) * SIXTEEN_BITS)
    kept = torch.empty(len(generators), *shape, dtype=dtype)
    for seed, generator in enumerate(generators):
        draws = generator.integers(SIXTEEN_BITS, size=shape, dtype=np.uint16)
        kept[seed] = torch.from_numpy(draws < keep)
    return kept.mul_(SIXTEEN_BITS / keep)


def shuffled_within_class(labels: NDArray[np.int64], generator: torch.Generator) -> Tensor:
    """(N,) a permutation of the rows that keeps every row's class: `kd_shuffled`'s teacher rows."""
    permutation = torch.arange(len(labels))
    for label in np.unique(labels):
        rows = torch.from_numpy(np.flatnonzero(labels == label))
        permutation[rows] = rows[torch.randperm(len(rows), generator=generator)]
    return permutation
