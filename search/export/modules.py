"""What an exported student is: its preprocessing, then its layers, with the arithmetic of the confirmation."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from search.students import Confirmed
from spaces import BadInput
from trainables import mlp, tabular, vision
from trainables.encoding import Encoder
from trainables.models.gate import Gate
from trainables.models.mlp import StackedMLP
from trainables.models.networks import Network, Unusable, classes_of, described, made, network
from trainables.models.resnet import ResNet
from trainables.models.stacked import module_of_seed
from trainables.tabular import Difference, two_class
from trainables.variants import GATES, Outputs, blended

CONFIG, WEIGHTS, FACTORY = "config.json", "student.safetensors", "network.py"


class Standardised(nn.Module):
    """Features as they come, (n, features) float64 -> logits (n, classes)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, layers: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", mean.double())
        self.register_buffer("scale", scale.double())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(((x - self.mean) / self.scale).float())
        return logits


class Pixels(nn.Module):
    """Images (n, channels, height, width), uint8 or floats in [0, 1] -> logits (n, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ResNet | Network, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.float() / 255 if x.dtype == torch.uint8 else x
        logits: Tensor = self.model((pixels - self.mean) / self.std)[0]
        return logits


class Table(nn.Module):
    """A table's columns (n, columns) float64, categories as codes -> logit of class 1 (n,)."""

    def __init__(self, layers: nn.Module, encoder: Encoder) -> None:
        super().__init__()
        self.layers, self.encoder = layers, encoder

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.layers(self.encoder(x)).squeeze(-1)
        return logit


class Blend(nn.Module):
    """A table's columns (n, columns) float64 and its teachers' logits (n, teachers) -> logit of class 1 (n,).

    model: a perceptron, or a module of the user's, which has no layer for a gate. platt: (teachers, 2) slope and
    intercept of the teachers' calibration, or None where the arm reads logits as they come. hp: `blend_weight` and
    `temperature`.
    """

    platt: Tensor

    def __init__(
        self,
        model: StackedMLP | Difference,
        gate: Gate | None,
        encoder: Encoder,
        platt: Tensor | None,
        hp: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.gate, self.encoder, self._hp, self._calibrated = model, gate, encoder, hp, platt is not None
        self.register_buffer("platt", torch.zeros(0, 2) if platt is None else platt)

    def forward(self, x: Tensor, said: Tensor) -> Tensor:
        features = self.encoder(x).unsqueeze(0)
        if self._calibrated:
            said = said * self.platt[:, 0] + self.platt[:, 1]
        model, hidden = self.model, None
        if isinstance(model, StackedMLP):
            hidden = model.hidden(features)
            scores = model.head(hidden).squeeze(-1)
        else:
            scores = model(features[0]).T
        gate = None if self.gate is None else self.gate(features, hidden)
        members = said.float().double().unsqueeze(0)  # onnxruntime's sigmoid of a float32 is too rough at its ends
        student = Outputs(two_class(scores), gate=gate)
        output, _ = blended(student, Outputs(members[..., :0], members=members), self._hp)
        return torch.logit(output.float(), eps=1e-7).squeeze(0)


def module_of(found: Confirmed) -> tuple[nn.Module, dict[str, Any]]:
    """A student that runs alone, in evaluation mode, and its architecture as JSON values."""
    state, family = found.state, found.study.family
    module: nn.Module
    if family == "vision":
        student = vision.Student(state, found.place, found.study.student_of(found.arm))
        module = Pixels(student.model, student.mean, student.std)
        spec = found.study.student_of(found.arm)
        sizes = {"classes": classes_of(student.model.state_dict()), "channels": student.mean.numel()}
        if spec["kind"] == "resnet":
            return module.eval(), {**{key: spec[key] for key in ("depth", "stem", "width", "cbam")}, **sizes}
        return module.eval(), {"network": described(spec), **from_outside(spec), **sizes}
    spec = found.study.student_of(found.arm)
    if family == "mlp":
        layers, features = mlp.layers_of(state, found.place, spec), state["scaling.mean"].numel()
        module = Standardised(layers, state["scaling.mean"], state["scaling.scale"])
    else:
        encoder = encoder_of(state)
        layers, features = tabular.layers_of(state, found.place, len(encoder.names), spec), len(encoder.names)
        module = Table(layers, encoder)
    if spec["kind"] == "factory":
        sizes = {"classes": int(state["model.classes"]) if family == "mlp" else 2, "features": features}
        return module.eval(), {"network": described(spec), **from_outside(spec), **sizes}
    assert isinstance(layers, nn.Sequential)
    return module.eval(), {"widths": _widths(layers), "activation": "relu"}


def blend_of(found: Confirmed, platt: Tensor) -> tuple[Blend, dict[str, Any]]:
    """A student that runs with its teachers, whose calibration `platt` is, in evaluation mode; and its architecture."""
    place, encoder = slice(found.place, found.place + 1), encoder_of(found.state)
    spec = found.study.student_of(found.arm)
    model: StackedMLP | Difference
    if spec["kind"] == "factory":
        sizes = {"classes": 2, "features": len(encoder.names)}
        model = Difference(module_of_seed(spec, sizes["features"], 2, found.state, found.place))
        about: dict[str, Any] = {"network": described(spec), **from_outside(spec), **sizes}
    else:
        own = {k.removeprefix("model."): v[place] for k, v in found.state.items() if k.startswith("model.")}
        model = StackedMLP(_stacked_widths(own), 1)
        model.load_state_dict(own)
        about = {"widths": list(model.widths), "activation": "relu"}
    kind, gate = GATES.get(found.study.arms[found.arm].variant), None
    if kind is not None:
        prefix = "gate.network."
        weights = {k.removeprefix(prefix): v[place] for k, v in found.state.items() if k.startswith(prefix)}
        gate = Gate(kind, _stacked_widths(weights), 1)
        gate.network.load_state_dict(weights)
    calibration = None if found.study.learns_in_sample(found.arm) else platt
    hp = {name: float(found.record.config[name]) for name in ("blend_weight", "temperature")}
    return Blend(model, gate, encoder, calibration, hp).eval(), {**about, "gate": kind, **hp}


def from_outside(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a network from outside is made of; a user's function lies in the file FACTORY beside it."""
    about = {key: spec[key] for key in ("kind", "options")}
    if spec["kind"] == "factory":
        return {**about, "function": spec["function"].rpartition(":")[2]}
    return {**about, "model": spec["model"]}


def encoder_of(state: Mapping[str, Tensor]) -> Encoder:
    return Encoder.of({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})


def rebuilt(folder: Path) -> nn.Module:
    """The student of an export as a module, from `config.json` and `student.safetensors`.

    Raises BadInput for a folder that is no such export, and for one of a student that needs its teachers.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
        family, about = config["family"], config["architecture"]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder} holds no student that was exported as safetensors ({error})") from None
    if config["teachers"]:
        raise BadInput(f"{config['arm']} needs its teachers: {folder / 'student.onnx'} holds them and runs as a whole")
    module: nn.Module
    if family == "vision":
        module = Pixels(_network_of(folder, about), state["mean"], state["std"])
    elif family == "mlp":
        module = Standardised(_perceptron_or_own(folder, about), state["mean"], state["scale"])
    else:
        layers = _perceptron_or_own(folder, about)
        module = Table(Difference(layers) if "network" in about else layers, encoder_of(state))
    module.load_state_dict(state)
    return module.eval()


def _network_of(folder: Path, about: Mapping[str, Any]) -> ResNet | Network:
    spec = {**about, "function": f"{folder / FACTORY}:{about.get('function')}"}
    try:
        return network(spec, about["channels"], about["classes"])
    except Unusable as error:
        raise BadInput(str(error)) from None


def _perceptron_or_own(folder: Path, about: Mapping[str, Any]) -> nn.Module:
    if "widths" in about:
        return _sequential(about["widths"])
    sizes = {key: about[key] for key in ("classes", "features")}
    try:
        return made(f"{folder / FACTORY}:{about['function']}", sizes, about["options"])
    except Unusable as error:
        raise BadInput(str(error)) from None


def _sequential(widths: Sequence[int]) -> nn.Sequential:
    layers = [layer for i, o in itertools.pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _widths(layers: nn.Sequential) -> list[int]:
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


def _stacked_widths(state: Mapping[str, Tensor]) -> list[int]:
    shapes = [state[f"weights.{i}"].shape for i in range(len(state) // 2)]
    return [shapes[0][1], *(shape[2] for shape in shapes)]
