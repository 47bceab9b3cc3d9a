"""One convolutional network and its optimiser, trained on views: what student and teacher have in common."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainables.losses import is_finite
from trainables.models.networks import Network
from trainables.models.resnet import ResNet
from trainables.streams import Streams
from trainables.variants import Outputs, Terms
from trainables.views import Normalise, Views

MOMENTUM = 0.9
EVALUATION_BATCH = 512
Loss = Callable[[Outputs, Tensor, int], Terms]  # (student's outputs, rows (batch,), number of the view shown)


def autocast(precision: str, device: str, pixels: int) -> contextlib.AbstractContextManager[Any]:
    """The mixed precision to compute in; `auto` is bf16 where the processor has it and images are 16x16 or larger.

    fp16 on a GPU that has no bf16; fp32 elsewhere. Below 16x16 the casts cost more than they save.
    """
    if precision == "auto":
        precision = "fp32"
        if pixels >= 16 * 16 and device == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        elif pixels >= 16 * 16 and device == "cpu" and torch.cpu._is_avx512_bf16_supported():
            precision = "bf16"
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


class Learner:
    """A network, what trains beside it, and its SGD with momentum.

    hp: `learning_rate`, `weight_decay` (added to the gradient), `batch_size`, `schedule`; horizon: epochs that the
    schedule is laid out for. labels: (N,). extras: modules trained with the network and not part of it: a regressor by
    the name of its layer, and what a user's variant asks for. layers: whose features the loss is given. compute:
    `precision`, `channels_last`, `compile` of the study.
    """

    def __init__(
        self,
        model: ResNet | Network,
        views: Views,
        labels: Tensor,
        normalise: Normalise,
        hp: Mapping[str, Any],
        horizon: int,
        streams: Streams,
        replicate: int,
        compute: Mapping[str, Any],
        layers: Sequence[str] = (),
        extras: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.device = str(labels.device.type)
        self._format = torch.channels_last if compute["channels_last"] else torch.contiguous_format
        model.initialise(streams.generator("init", replicate))
        self.extras = nn.ModuleDict({_key(layer): extra for layer, extra in (extras or {}).items()}).to(self.device)
        self._extra_names = tuple(extras or ())
        self.model = model.to(device=self.device, memory_format=self._format)  # type: ignore[call-overload]
        self._forward = torch.compile(self.model) if compute["compile"] else self.model
        self.views, self.labels, self.normalise = views, labels, normalise.to(self.device)
        self.layers, self._streams, self._replicate = tuple(layers), streams, replicate
        self._hp, self._horizon, self._precision = hp, horizon, compute["precision"]
        self.parameters: list[Tensor] = [*self.model.parameters(), *self.extras.parameters()]
        self._optimiser = torch.optim.SGD(
            self.parameters, lr=hp["learning_rate"], momentum=MOMENTUM, weight_decay=hp["weight_decay"], fused=True
        )
        fp16 = self._precision == "fp16" and self.device == "cuda"
        self._scaler = torch.amp.GradScaler(self.device, enabled=fp16)
        for p in self.parameters:
            self._optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)

    def train_epoch(self, epoch: int, loss: Loss) -> dict[str, float]:
        """One pass over the rows, in an order of its own; returns each term's mean over the pass.

        A last batch of a single image is left out: a batch norm cannot train on it.
        """
        self.model.train()
        with self._dropout(epoch):
            return self._train_epoch(epoch, loss)

    def _train_epoch(self, epoch: int, loss: Loss) -> dict[str, float]:
        number, n = self.views.number(epoch), len(self.labels)
        order = torch.randperm(n, generator=self._streams.generator("order", self._replicate, epoch)).to(self.device)
        size = min(int(self._hp["batch_size"]), n)
        batches = [rows for rows in order.split(size) if len(rows) > 1]
        values: dict[str, list[Tensor]] = defaultdict(list)
        for step, rows in enumerate(batches):
            for group in self._optimiser.param_groups:
                group["lr"] = self._learning_rate(epoch - 1 + step / len(batches))
            images = self.show(rows, number)
            terms = loss(self.outputs(images, self._forward), rows, number)
            total = sum(term.weight * term.value for term in terms.values())
            assert isinstance(total, Tensor)
            self._optimiser.zero_grad()
            self._scaler.scale(total.mean()).backward()
            self._scaler.step(self._optimiser)
            self._scaler.update()
            for name, term in terms.items():
                values[name].append(term.value.detach())
        return {name: float(torch.cat(parts).mean()) for name, parts in values.items()}

    def show(self, rows: Tensor, number: int) -> Tensor:
        """A view of these rows, normalised: (batch, channels, height, width)."""
        return self.normalise(self.views(rows, number)).contiguous(memory_format=self._format)

    def outputs(self, images: Tensor, forward: Callable[..., Any] | None = None) -> Outputs:
        """Logits, the asked features and what the extras make of them, in float32."""
        with self.autocast(images):
            logits, features = (self.model if forward is None else forward)(images, self.layers)
            features = {layer: f.float() for layer, f in features.items()}
            named = {name: self.extras[_key(name)] for name in self._extra_names}
            aligned = {name: extra(features[name]).float() for name, extra in named.items() if name in self.layers}
        beside = {name: extra for name, extra in named.items() if name not in self.layers}
        return Outputs(logits.float(), features, aligned, extras=beside)

    def untracked(self, images: Tensor) -> Outputs:
        """The same in training mode, on copies of the running statistics: to look at a step without taking it."""
        self.model.train()
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        weights = dict(self.model.named_parameters())
        with self._dropout(0):
            return self.outputs(images, lambda *given: functional_call(self.model, {**weights, **buffers}, given))

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(n, channels, height, width), uint8 or floats in [0, 1] -> (n, classes), in evaluation mode."""
        self.model.eval()
        parts = []
        for part in images.split(EVALUATION_BATCH):
            shown = self.normalise(part.to(self.device)).contiguous(memory_format=self._format)
            with self.autocast(shown):
                parts.append(self.model(shown)[0].float())
        return torch.cat(parts)

    def autocast(self, images: Tensor) -> contextlib.AbstractContextManager[Any]:
        return autocast(self._precision, self.device, images.shape[-2] * images.shape[-1])

    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return all(bool(is_finite(p.detach().reshape(1, -1)).all()) for p in self.parameters)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on; the random streams are functions of their names."""
        scaler = {f"optimiser.scaler.{k}": torch.tensor(float(v)) for k, v in self._scaler.state_dict().items()}
        return {name: tensor.detach().clone() for name, tensor in self._everything()} | scaler

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._everything():
                tensor.copy_(state[name])
        own = self._scaler.state_dict()  # empty unless it scales
        if own:
            stored = {k: type(v)(state[f"optimiser.scaler.{k}"].item()) for k, v in own.items()}
            self._scaler.load_state_dict(stored)

    @contextlib.contextmanager
    def _dropout(self, epoch: int) -> Iterator[None]:
        """torch's global generators at the beginning of this epoch's own stream, for what a network itself draws."""
        if isinstance(self.model, ResNet):  # draws nothing
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(self._streams.number("dropout", self._replicate, epoch))
            yield

    def _everything(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model.{name}", tensor
        for name, tensor in self.extras.state_dict().items():
            yield f"extras.{name}", tensor
        for i, p in enumerate(self.parameters):
            yield f"optimiser.{i}.momentum", self._optimiser.state[p]["momentum_buffer"]

    def _learning_rate(self, epochs_done: float) -> float:
        base = float(self._hp["learning_rate"])
        if self._hp["schedule"] == "constant":
            return base
        return base * 0.5 * (1 + math.cos(math.pi * min(1.0, epochs_done / self._horizon)))


def _key(layer: str) -> str:
    """A layer's name as that of a submodule, which may hold no dot."""
    return layer.replace(".", "/")
