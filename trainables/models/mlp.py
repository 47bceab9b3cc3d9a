"""S multilayer perceptrons in one program: parameters stacked over seeds, so that one call trains a pack.

A pack of eight costs about what one costs alone, because at this size a step is dispatch, not arithmetic.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """ReLU MLPs with weights (S, fan_in, fan_out) and biases (S, 1, fan_out).

    widths: of input, hidden layers and output. dropout: probability after each hidden layer.
    """

    def __init__(self, widths: Sequence[int], seeds: int, dropout: Sequence[float] = ()) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.dropout = tuple(dropout) or (0.0,) * (len(widths) - 2)
        shapes = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(seeds, i, o)) for i, o in shapes])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(seeds, 1, o)) for _, o in shapes])
        self._layers = list(zip(self.weights, self.biases, strict=True))  # a ParameterList is slow to index

    @torch.no_grad()
    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Fill each seed's slice from its own generator as `nn.Linear` does: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
        for seed, generator in enumerate(generators):
            for weight, bias in zip(self.weights, self.biases, strict=True):
                bound = 1.0 / math.sqrt(weight.shape[1])
                for tensor in (weight[seed], bias[seed]):
                    draws = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.copy_((2.0 * draws - 1.0) * bound)

    def forward(self, x: Tensor, keep: Sequence[Tensor | None] = ()) -> Tensor:
        """x: (S or 1, batch, features) -> logits (S, batch, classes).

        keep: for each hidden layer a mask (S, batch, width) of 0 and 1 / (1 - p), or None for no dropout.
        """
        return self.head(self.hidden(x, keep))

    def hidden(self, x: Tensor, keep: Sequence[Tensor | None] = ()) -> Tensor:
        """The last hidden layer, (S, batch, width)."""
        x = x.expand(self._layers[0][0].shape[0], -1, -1)
        for layer, (weight, bias) in enumerate(self._layers[:-1]):
            x = torch.baddbmm(bias, x, weight).relu_()
            mask = keep[layer] if keep else None
            if mask is not None:
                x = x * mask
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """From the last hidden layer to logits."""
        weight, bias = self._layers[-1]
        return torch.baddbmm(bias, hidden, weight)

    def single(self, seed: int) -> nn.Sequential:
        """One seed's network as an ordinary module, (batch, features) -> (batch, classes)."""
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[2], dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight[seed].T)
                linear.bias.copy_(bias[seed, 0])
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def single_of(state: Mapping[str, Tensor], seed: int) -> nn.Sequential:
    """One seed's network from a pack's state, whose entries are `model.weights.0`, `model.biases.0` and so on."""
    weights = {k.removeprefix("model."): v[seed : seed + 1] for k, v in state.items() if k.startswith("model.")}
    shapes = [weights[f"weights.{i}"].shape for i in range(len(weights) // 2)]
    stacked = StackedMLP([shapes[0][1], *(shape[2] for shape in shapes)], 1)
    stacked.load_state_dict(weights)
    return stacked.single(0)


def parameter_count(widths: Sequence[int]) -> int:
    """Parameters of one MLP with these widths: 3,490 for 20-64-32-2."""
    return sum(i * o + o for i, o in itertools.pairwise(widths))
