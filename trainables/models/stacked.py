"""S copies of a module of the user's in one program, as `StackedMLP` is of multilayer perceptrons.

Parameters and buffers are stacked over seeds and the module runs under `torch.vmap`. Where it cannot, because it draws
random numbers (dropout) or does what vmap has no rule for, its seeds run one after another, each as it would alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainables.models.networks import made

CLOSE = 1e-4  # logits of both ways to run it may differ by so much
TRIED = 8  # rows


class StackedModule(nn.Module):
    """Modules that `make` builds, from torch's global generator, with their states stacked: (S, ...) each.

    features: of an input row. why_alone: why it does not run under vmap, empty where it does.
    """

    classes: Tensor
    dropout: tuple[float, ...] = ()  # what it drops is the module's own affair

    def __init__(self, make: Callable[[], nn.Module], seeds: int, features: int, classes: int) -> None:
        super().__init__()
        self.widths = (features, classes)
        self._make, self._draws, self._step = make, (0,) * seeds, 0
        first = make()
        self._template = [first]  # in a list, so that its parameters are not this module's
        self.weights = nn.ParameterDict(
            {_key(n): nn.Parameter(torch.stack([p.detach()] * seeds)) for n, p in first.named_parameters()}
        )
        self.kept = nn.Module()
        for name, buffer in first.named_buffers():
            self.kept.register_buffer(_key(name), torch.stack([buffer] * seeds))
        self.register_buffer("classes", torch.tensor(classes))
        self.why_alone = _why_alone(self)

    @torch.no_grad()
    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Each seed's initial weights by the module's own rule, as its own generator says."""
        for seed, generator in enumerate(generators):
            number = int(torch.randint(2**62, (), generator=generator))
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(number)
                fresh = _tensors_of(self._make())
            for name, tensor in self.own().items():
                tensor[seed] = fresh[name].to(tensor.dtype)

    def begin(self, numbers: Sequence[int]) -> None:
        """Begin an epoch in which each seed's own random numbers start from its number."""
        self._draws, self._step = tuple(numbers), 0

    def train(self, mode: bool = True) -> Self:
        self._template[0].train(mode)
        super().train(mode)
        return self

    def forward(self, x: Tensor, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """x: (S or 1, batch, features) -> logits (S, batch, classes). state: as `own`, to run with in its place."""
        state = self.own() if state is None else state
        x = x.expand(len(next(iter(state.values()))), -1, -1)
        return self.alone(x, state) if self.why_alone else self.together(x, state)

    def together(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """All seeds under vmap: (S, batch, features) -> (S, batch, classes)."""
        logits: Tensor = torch.vmap(self._one)(dict(state), x)
        return logits

    def alone(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """One seed after another, likewise."""
        self._step += self.training
        said = []
        for seed, rows in enumerate(x):
            with torch.random.fork_rng(enabled=self.training):
                if self.training:
                    torch.manual_seed((self._draws[seed] + self._step) % 2**63)
                said.append(self._one({name: tensor[seed] for name, tensor in state.items()}, rows))
        return torch.stack(said)

    def own(self) -> dict[str, Tensor]:
        """{name in the module: (S, ...)} of parameters and buffers."""
        entries = [*self.weights.items(), *self.kept.named_buffers()]
        return {key.replace("/", "."): tensor for key, tensor in entries}

    def keep(self, seeds: Sequence[int]) -> None:
        """Forget the buffers of all other seeds; the parameters are the caller's to cut."""
        for name, buffer in list(self.kept.named_buffers()):
            setattr(self.kept, name, buffer[list(seeds)])

    def _one(self, state: Mapping[str, Tensor], x: Tensor) -> Any:
        return functional_call(self._template[0], dict(state), (x,))


def stacked_of(student: Mapping[str, Any], features: int, classes: int, seeds: int) -> StackedModule:
    """A pack of the module that a study's `student` names. Raises Unusable for a function that cannot be used."""
    return StackedModule(_maker(student, features, classes), seeds, features, classes)


def in_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{name in the module: (S, ...)} of a pack's state, with entries as `model.weights.fc/bias` and `model.kept...`."""
    parts = {key: key.split(".", 2) for key in state if key.startswith(("model.weights.", "model.kept."))}
    return {name.replace("/", "."): state[key] for key, (_, _, name) in parts.items()}


def module_of_seed(
    student: Mapping[str, Any], features: int, classes: int, state: Mapping[str, Tensor], seed: int
) -> nn.Module:
    """One seed's module from a pack's state."""
    module = _maker(student, features, classes)()
    own = in_module(state)
    with torch.no_grad():
        for name, tensor in _tensors_of(module).items():
            tensor.copy_(own[name][seed])
    return module


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once, and buffers that a state dict leaves out too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _maker(student: Mapping[str, Any], features: int, classes: int) -> Callable[[], nn.Module]:
    return partial(made, student["function"], {"classes": classes, "features": features}, student["options"])


def _why_alone(stacked: StackedModule) -> str:
    """Try both ways in training, on copies of the buffers."""
    buffers = {name: tensor.clone() for name, tensor in stacked.kept.named_buffers()}
    generator = torch.Generator().manual_seed(0)
    own = stacked.own()
    x = torch.randn(len(next(iter(own.values()))), TRIED, stacked.widths[0], generator=generator)
    stacked.train()
    why = ""
    try:
        together = stacked.together(x, own)
        torch.autograd.grad(together.sum(), list(stacked.weights.values()), allow_unused=True)
        after = {name: tensor.clone() for name, tensor in stacked.kept.named_buffers()}
        _restore(stacked, buffers)
        if not torch.allclose(together, stacked.alone(x, own), atol=CLOSE):
            why = "its logits differ under vmap"
        elif any(not torch.allclose(after[n].float(), t.float(), atol=CLOSE) for n, t in stacked.kept.named_buffers()):
            why = "its buffers differ under vmap"
    except Exception as error:  # whatever vmap or the module raise
        text = " ".join(str(error).split())
        why = "it draws random numbers, such as dropout" if "random" in text else f"vmap cannot run it ({text[:100]})"
    _restore(stacked, buffers)
    return why


@torch.no_grad()
def _restore(stacked: StackedModule, buffers: Mapping[str, Tensor]) -> None:
    for name, tensor in stacked.kept.named_buffers():
        tensor.copy_(buffers[name])


def _key(name: str) -> str:
    """A name in the module as that of an entry, which may hold no dot."""
    return name.replace(".", "/")
